"""Figures: from runs to files of numbers, from these to pictures, the same bytes again without training."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import data_folder, model_folder

import lowrank_teach as lt
from lowrank_teach.experiments.runs import Run, Store
from lowrank_teach.reproduction import figures
from lowrank_teach.reproduction.figures import SIGNATURES, draw, redraw, write_figures

ABSOLUTE = re.compile(r"(?:^|[\s\"'=(])(?:/[\w.@-]+){2,}|[A-Z]:\\\\")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    place = tmp_path_factory.mktemp("line-up")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRANK_TEACH_DATA", str(data_folder(place / "data")))
        model = str(model_folder(place / "tiny"))
        return lt.compare("rt", model, "tiny", store=Store(place / "runs"), progress=False, steps=24, batch_size=8,
                          n_train=96)


def strings(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in (str(key), *strings(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def test_every_figure_has_its_numbers_and_their_provenance(runs, tmp_path):
    made = write_figures(runs, tmp_path)
    assert sorted(path.name for path in made) == sorted(
        [*(f"{name}.png" for name in SIGNATURES if name != "gates"), "gates.gif", "overview.png"])
    for name, signature in SIGNATURES.items():
        data = json.loads((tmp_path / "data" / f"{name}.json").read_text(encoding="utf-8"))
        assert data["name"] == name
        assert data["caption"] == signature.caption
        labels = [run["label"] for run in data["runs"]]
        assert set(signature.needs) <= set(labels)
        for entry in data["runs"]:
            run = runs[entry["label"]]
            assert entry["key"] == run.key
            assert entry["metrics"] == run.metrics
            assert entry["config"] == {**run.config, "backbone": "tiny"}
        assert data["machine"] == runs["lora"].machine
        assert {"torch", "transformers", "commit", "processor", "python"} <= data["machine"].keys()
    record = json.loads((tmp_path / "data" / "compare.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in record["table"]] == list(runs)
    assert [row["accuracy"] for row in record["table"]] == [run.score()[1] for run in runs.values()]


def test_no_path_of_a_machine_is_in_the_numbers(runs, tmp_path):
    assert ABSOLUTE.search("at /srv/reader/model")  # the pattern finds one
    assert Path(runs["lora"].config["backbone"]).is_absolute()
    write_figures(runs, tmp_path)
    for path in (tmp_path / "data").glob("*.json"):
        assert not [text for text in strings(json.loads(path.read_text(encoding="utf-8"))) if ABSOLUTE.search(text)]


def test_drawn_again_without_training_the_bytes_are_the_same(runs, tmp_path, monkeypatch):
    made = write_figures(runs, tmp_path)
    before = {path.name: path.read_bytes() for path in made}
    for path in made:
        path.unlink()
    monkeypatch.setattr(lt.Trainer, "run", lambda self: pytest.fail("it trained"))
    again = redraw(tmp_path)
    assert {path.name: path.read_bytes() for path in again} == before
    starts = {".png": b"\x89PNG", ".gif": b"GIF89a"}
    assert all(data.startswith(starts[Path(name).suffix]) and len(data) > 5000 for name, data in before.items())


def test_the_animation_has_a_frame_for_each_step_it_shows(runs, tmp_path):
    """They differ, and the last one stays."""
    write_figures({"salora": runs["salora"]}, tmp_path)
    with Image.open(tmp_path / "gates.gif") as gif:
        shown = []
        for i in range(gif.n_frames):
            gif.seek(i)
            shown.append((gif.convert("RGB").tobytes(), gif.info["duration"]))
    assert len({pixels for pixels, _ in shown}) == len(shown) == 7
    assert shown[-1][1] > 10 * shown[0][1]


def test_the_picture_follows_the_numbers(runs, tmp_path):
    write_figures(runs, tmp_path)
    path = tmp_path / "data" / "loss.json"
    before = (tmp_path / "loss.png").read_bytes()
    data = json.loads(path.read_text(encoding="utf-8"))
    data["arrays"]["curves"]["lora"][1][0] += 0.5
    path.write_text(json.dumps(data), encoding="utf-8")
    draw(path, tmp_path)
    assert (tmp_path / "loss.png").read_bytes() != before


def test_the_numbers_are_those_of_the_runs(runs, tmp_path):
    write_figures(runs, tmp_path)

    def arrays(name: str) -> dict:
        return json.loads((tmp_path / "data" / f"{name}.json").read_text(encoding="utf-8"))["arrays"]

    assert set(map(json.dumps, arrays("ranks")["ranks"].values())) == {
        json.dumps(runs["salora"].ranks), json.dumps(runs["autolora"].ranks)}
    assert arrays("density")["density"] == runs["salora"].series("density")[1]
    window = [round(24 * runs["salora"].config["method"][end]) for end in ("t_start", "t_end")]
    assert arrays("density")["window"] == window
    gates = arrays("gates")
    assert gates["steps"] == [1, 5, 9, 13, 17, 21, 24]
    assert {site: kept[-1] for site, kept in gates["kept"].items()} == runs["salora"].ranks
    assert gates["density"][1] == arrays("density")["density"][4]
    assert arrays("cosine")["values"]["delta_lora"] == runs["delta_lora"].by_site("cosine")
    assert arrays("chain")["series"]["rt"]["3"] == [runs["cola-3"].score()[1]]
    alpha = arrays("alpha")
    site = next(iter(alpha["alphas"]))
    r = runs["autolora"].config["method"]["r"]
    assert alpha["threshold"] == 1 / r
    assert [sum(row) for row in alpha["alphas"][site]] == pytest.approx([1] * len(alpha["steps"]), abs=1e-5)
    assert sum(a >= 1 / r for a in alpha["alphas"][site][-1]) == runs["autolora"].ranks[site]
    assert len(arrays("loss")["curves"]["autolora"][1]) == 2  # 24 steps of its retraining, ten at a time


@pytest.mark.parametrize(("kept", "expected"), [
    (("lora", "delta_lora"), {"cosine", "loss"}), (("salora",), {"density", "gates"}), (("head",), set()),
    (("salora", "autolora"), {"ranks", "density", "gates", "alpha"}), (("lora", "cola-2"), {"loss"})])
def test_a_figure_whose_runs_are_missing_is_left_out(runs, tmp_path, kept, expected):
    made = write_figures({name: runs[name] for name in kept}, tmp_path)
    assert {path.stem for path in made} == expected
    assert {path.stem for path in tmp_path.glob("*.*")} == expected
    assert {path.stem for path in (tmp_path / "data").glob("*.json")} == expected | {"compare"}


def test_an_encoder_decoder_has_layers_in_two_stacks(runs, tmp_path):
    run = runs["autolora"]
    history = run.history.assign(site=["enc." + s if s.startswith("0") else "dec." + s if s else s
                                       for s in run.history["site"]])
    seq2seq = dataclasses.replace(run, history=history)
    made = write_figures({"autolora": seq2seq}, tmp_path)
    assert [path.stem for path in made] == ["alpha"]
    alphas = json.loads((tmp_path / "data" / "alpha.json").read_text(encoding="utf-8"))["arrays"]["alphas"]
    assert list(alphas) == ["enc.0.q", "enc.0.v", "dec.1.q", "dec.1.v"]


def test_what_is_no_figure_is_refused_or_left_alone(runs, tmp_path):
    write_figures({"salora": runs["salora"]}, tmp_path)
    other = tmp_path / "data" / "bench.json"
    other.write_text(json.dumps({"name": "bench", "arrays": {}}))
    with pytest.raises(ValueError, match=r"bench\.json is not the data of a figure; there are ranks, density"):
        draw(other, tmp_path)
    assert [path.stem for path in redraw(tmp_path)] == ["density", "gates"]
    other.write_text("{")
    with pytest.raises(ValueError, match=r"bench\.json is damaged .*make it again with"):
        redraw(tmp_path)


def test_a_folder_that_cannot_be_written(runs, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"figures cannot be written to .*name another folder"):
        write_figures(runs, tmp_path / "file")
    assert figures.redraw(tmp_path) == []

"""The key of a run holds what it is made from: other rows or weights under one name give another run."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import data_folder, model_folder, place_in

import lowrank_teach as lt
from lowrank_teach.errors import StoppedError
from lowrank_teach.experiments import fit as fit_module
from lowrank_teach.experiments import identity as identity_module
from lowrank_teach.experiments.fit import RunConfig
from lowrank_teach.experiments.identity import data_fingerprint, identity, weights_fingerprint
from lowrank_teach.experiments.runs import Store, config_key
from lowrank_teach.models import packaged as packaged_module
from lowrank_teach.reproduction import arms
from lowrank_teach.tasks.readers import FOLDER
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.training.config import TrainConfig

SHORT = {"steps": 6, "batch_size": 8, "n_train": None, "n_validation": 16, "n_test": 32}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a model in tiny/ and rows in data/, and a cache folder of the test's own."""
    monkeypatch.setenv("LOWRANK_TEACH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return place_in(tmp_path, hidden_dropout_prob=0.0)


def fit(model: str | Path, **options) -> lt.Run:
    return lt.fit("lora", "rt", str(model), "tiny", progress=False, **{**SHORT, **options})


def flip(folder: Path) -> None:
    """Every label the other one: same name, same number of rows, same texts."""
    for path in (folder / "rt").glob("*.parquet"):
        frame = pd.read_parquet(path)
        frame.assign(label=1 - frame["label"]).to_parquet(path)


def dated_back(path: Path, seconds: int = 100) -> None:
    """As if it had been written that long ago: so old that its digest is remembered."""
    then = time.time() - seconds
    os.utime(path, (then, then))


# ---- rows and weights that change under one name ------------------------------------------------------------

def test_other_rows_are_another_run_and_the_same_elsewhere_are_not(place, monkeypatch):
    """Labels that were flipped under one name, and a file that grew."""
    first = fit(place / "tiny")
    shutil.copytree(place / "data", place / "same")
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "same"))
    assert RunConfig("lora", "rt", str(place / "tiny"), "tiny", training=SHORT).key == first.key
    flip(place / "same")
    second = fit(place / "tiny")
    assert second.key != first.key
    assert second.series("loss") != first.series("loss")
    assert (first.identity["weights"], len(list(Store()))) == (second.identity["weights"], 2)
    path = place / "same" / "rt" / "train.parquet"
    pd.read_parquet(path).head(40).to_parquet(path)
    assert fit(place / "tiny").notes[0] != second.notes[0]


def test_a_relative_name_in_another_directory_is_another_run(place, monkeypatch):
    """Both ./model and a relative LOWRANK_TEACH_DATA mean what stands in the directory of the call."""
    found = []
    for name, seed in (("a", 1), ("b", 2)):
        (place / name).mkdir()
        shutil.copytree(place / "data", place / name / "data")
        model_folder(place / name / "model")
        weights = load_file(place / name / "model" / "model.safetensors")
        torch.manual_seed(seed)
        save_file({key: value + 0.1 * torch.randn(value.shape) for key, value in weights.items()},
                  place / name / "model" / "model.safetensors", {"format": "pt"})
        monkeypatch.chdir(place / name)
        monkeypatch.setenv("LOWRANK_TEACH_DATA", "data")
        found.append(fit("./model"))
    assert found[0].identity["data"] == found[1].identity["data"]
    assert found[0].key != found[1].key
    assert found[0].series("loss") != found[1].series("loss")


def test_a_checkpoint_is_not_taken_up_on_other_rows(place):
    from helpers import Stop, Watch

    with pytest.raises(StoppedError):
        fit(place / "tiny", callbacks=[Stop(3)])
    flip(place / "data")
    steps: list[int] = []
    fit(place / "tiny", callbacks=[Watch(lambda step, values: steps.append(step))])
    assert steps == [1, 2, 3, 4, 5, 6]


def test_runs_of_one_call_do_not_share_what_changed_meanwhile(place):
    """The rows of a pass are kept in memory; a run that begins after they changed reads them anew."""
    configs = lt.grid("lora", "rt", str(place / "tiny"), seeds=2, profile="tiny", **SHORT)
    runs = lt.fit_many(configs, at_once=1, say=None, on_run=lambda config, run: config.seed or flip(place / "data"))
    assert runs[0].identity["data"] != runs[1].identity["data"]
    again = lt.fit_many(configs[1:], say=None, cache=False)
    assert again[0].series("loss") == runs[1].series("loss")


def test_rows_that_change_while_they_are_read_are_refused(place, monkeypatch):
    real = fit_module.load_for

    def meanwhile(*args):
        flip(place / "data")
        return real(*args)

    monkeypatch.setattr("lowrank_teach.experiments.fit.load_for", meanwhile)
    with pytest.raises(ValueError, match="the data of 'rt' changed while this run was being prepared"):
        fit(place / "tiny")
    assert not list(Store())


def test_what_is_kept_beside_the_runs_has_the_rows_in_its_key(place, monkeypatch):
    """Networks, of the classifier of styles too, and a fine-tuned one's checkpoint are named like runs."""
    from helpers import Stop

    from lowrank_teach.reproduction import rank_cuts, rewriting

    short = {"steps": 4, "batch_size": 8, "n_train": 32, "n_validation": 16, "n_test": 16}
    rewriting.train_classifier("rt", str(place / "tiny"), "tiny", **short)
    with pytest.raises(StoppedError):
        rank_cuts.fine_tune("rt", str(place / "tiny"), "tiny", callbacks=[Stop(2)], **short)
    flip(place / "data")
    rewriting.train_classifier("rt", str(place / "tiny"), "tiny", **short)
    assert len(list((Store().folder / "networks").glob("*.safetensors"))) == 2
    tuned = rank_cuts.fine_tune("rt", str(place / "tiny"), "tiny", **short)
    assert tuned.series("loss")[0][0] == 1
    assert len(list(Store().folder.glob("*.checkpoint.safetensors"))) == 1, "the other rows' checkpoint stays theirs"


# ---- what a fingerprint is -----------------------------------------------------------------------------------

def test_touching_a_file_changes_nothing(place):
    before = identity("rt", str(place / "tiny"))
    for path in [*(place / "data" / "rt").iterdir(), *(place / "tiny").iterdir()]:
        os.utime(path)
    assert identity("rt", str(place / "tiny")) == before
    (place / "data" / "rt" / ".DS_Store").write_text("x")
    assert identity("rt", str(place / "tiny")) == before


def test_folders_are_named_or_taken_from_the_environment(place, monkeypatch):
    expected = identity("rt", str(place / "tiny"))
    monkeypatch.delenv("LOWRANK_TEACH_DATA")
    assert identity("rt", str(place / "tiny"), place / "data") == expected
    assert data_fingerprint("rt") not in (None, expected["data"])   # the packaged text
    assert data_fingerprint("cola", place / "data") is None
    assert data_fingerprint("rt", place / "nowhere") is None   # as `load_task`, which refuses such a folder


def test_every_task_with_rows_of_a_known_kind_has_a_fingerprint(tmp_path, monkeypatch):
    """Packaged text by its pinned hash, tasks made of another's rows by that task's, and folders of other names."""
    monkeypatch.delenv("LOWRANK_TEACH_DATA")
    packaged = {name: data_fingerprint(name) for name, task in TASKS.items() if task.reader}
    assert all(packaged.values())
    assert all(task.asset for task in TASKS.values() if task.reader)
    for task, file in (("yelp", "yelp_style/test.parquet"), ("alpaca", "alpaca_cleaned/train.parquet"),
                       ("gyafc", f"{FOLDER}/Family_Relationships/train/formal")):
        path = tmp_path / "rows" / file
        path.parent.mkdir(parents=True)
        path.write_text(task)
    derived = [name for name, task in TASKS.items() if task.derived]
    for name in derived:
        first = data_fingerprint(name, tmp_path / "rows")
        assert (first is None) == ("music" in name), name
    before = data_fingerprint("yelp-transfer", tmp_path / "rows")
    (tmp_path / "rows" / "alpaca_cleaned" / "train.parquet").write_text("other")   # what it is trained on
    assert data_fingerprint("yelp-transfer", tmp_path / "rows") != before


def test_a_task_of_ones_own_is_known_by_its_rows(monkeypatch):
    monkeypatch.delenv("LOWRANK_TEACH_DATA")
    rows = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
    monkeypatch.setitem(TASKS, "mine", replace(TASKS["rt"], name="mine", asset="", reader=lambda: {"train": rows}))
    before = data_fingerprint("mine")
    rows["label"] = [1, 0]
    assert None is not before != data_fingerprint("mine")


def test_a_task_of_ones_own_is_known_by_all_that_it_does_to_rows(place, monkeypatch):
    """Its reader, what it derives and how it prepares: none is in a file; nor is its definition."""
    def reader(flipped: bool):
        rows = pd.DataFrame({"text": ["a", "b"], "label": [0, 1]})
        return lambda: {"train": rows.assign(label=1 - rows["label"]) if flipped else rows}

    def key_of(**changes) -> str | None:
        monkeypatch.setitem(TASKS, "rt2", replace(TASKS["rt"], name="rt2", **changes))
        return data_fingerprint("rt2")

    for field in ("reader", "derived"):
        first, second = key_of(**{field: reader(False)}), key_of(**{field: reader(True)})
        assert None is not first != second is not None
        assert key_of(**{field: reader(False)}) == first
        assert key_of(**{field: reader(False)}, max_length=7) != first
    files = {"folder": "rt"}
    before = key_of(**files)
    flipping = key_of(**files, prepare=lambda frame: frame.assign(label=1 - frame["label"]))
    assert None is not before != flipping is not None
    assert key_of(**files, prepare=lambda frame: frame.drop(columns="label")) is None   # which training refuses
    monkeypatch.setitem(TASKS, "rt", replace(TASKS["rt"], prepare=lambda frame: frame.head(9)))
    assert data_fingerprint("rt") != data_fingerprint("rt", place / "nowhere") is None
    short = data_fingerprint("rt")
    monkeypatch.setitem(TASKS, "rt", replace(TASKS["rt"], prepare=lambda frame: frame.head(8)))
    assert data_fingerprint("rt") != short


def test_the_files_that_the_loader_reads_count_and_no_others(place):
    """Also through a link to a folder of parts."""
    folder = place / "data" / "rt"
    (place / "real").mkdir()
    (folder / "train.parquet").rename(place / "real" / "0000.parquet")
    (folder / "train").symlink_to(place / "real", target_is_directory=True)
    before = data_fingerprint("rt")
    (folder / "NOTES.txt").write_text("a note")
    assert data_fingerprint("rt") == before
    frame = pd.read_parquet(place / "real" / "0000.parquet")
    frame.assign(label=1 - frame["label"]).to_parquet(place / "real" / "0000.parquet")
    assert data_fingerprint("rt") != before


def test_a_corpus_of_text_files_counts_through_links(place):
    domain = place / "data" / FOLDER / "Family_Relationships"
    (place / "real").mkdir()
    domain.mkdir(parents=True)
    (domain / "train").symlink_to(place / "real", target_is_directory=True)
    (place / "real" / "round").symlink_to(domain, target_is_directory=True)
    (place / "real" / "formal").write_text("a")
    before = data_fingerprint("gyafc")
    (place / "real" / "formal").write_text("b")
    assert None is not before != data_fingerprint("gyafc")


def test_whatever_transformers_reads_of_a_model_s_folder_counts(place):
    """And no documents, hidden files, or folders such as a run store's."""
    model = place / "tiny"
    index = {"weight_map": {"a": "w/model-00001-of-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    seen = [weights_fingerprint(str(model))]
    for name in ("config.json", "tokenizer.json", "model.safetensors", "bpe.codes", "source.spm", "vocab.bpe",
                 "qwen.tiktoken", "pytorch_model.bin", "w/model-00001-of-00001.safetensors",
                 "additional_chat_templates/tool.jinja"):
        (model / name).parent.mkdir(exist_ok=True)
        for content in ("a", "b"):
            (model / name).write_text(content)
            seen.append(weights_fingerprint(str(model)))
    assert len(set(seen)) == len(seen)
    for name in ("README.md", "NOTES.txt", "LICENSE", ".cache.json", "runs/a/run.json"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("x")
    assert weights_fingerprint(str(model)) == seen[-1] is not None


# ---- digests are remembered ----------------------------------------------------------------------------------

@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that are hashed, with nothing remembered in this process."""
    names: list[str] = []
    real = packaged_module.sha256
    monkeypatch.setattr(identity_module, "sha256", lambda path: (names.append(path.name), real(path))[1])
    monkeypatch.setattr(identity_module, "_hashed", {})
    monkeypatch.setattr(identity_module, "SETTLED_NS", 0)
    return names


def test_a_file_is_hashed_once_and_again_when_it_changes(place, hashed, monkeypatch):
    path = place / "data" / "rt" / "train.parquet"
    before = data_fingerprint("rt")
    assert sorted(hashed) == ["test.parquet", "train.parquet", "validation.parquet"]
    hashed.clear()
    assert data_fingerprint("rt") == before
    monkeypatch.setattr(identity_module, "_hashed", {})   # another process
    assert data_fingerprint("rt") == before
    assert hashed == []
    seen = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))   # same size and date, as after a copy that keeps dates
    assert data_fingerprint("rt") != before
    assert hashed == ["train.parquet"]


def test_a_file_just_written_is_not_remembered(place, hashed, monkeypatch):
    """Written twice within one tick of the file system's clock, it has one size and one date for two contents."""
    monkeypatch.setattr(identity_module, "SETTLED_NS", 2_000_000_000)
    data_fingerprint("rt")
    data_fingerprint("rt")
    assert len(hashed) == 6


@pytest.mark.parametrize("left", ["", "null", "[1]", '{"a": 1}', "[" * 100_000, '{"PATH": null}', '{"PATH": [1, 2]}'])
def test_a_damaged_memory_is_made_again(place, hashed, left):
    expected = data_fingerprint("rt")
    memory = place / "home" / identity_module.MEMORY
    identity_module._hashed.clear()
    memory.write_text(left.replace("PATH", str(place / "data" / "rt" / "train.parquet")))
    assert data_fingerprint("rt") == expected
    assert len(json.loads(memory.read_text())) >= 3


def test_a_cache_folder_that_cannot_be_written_is_fine(place, monkeypatch):
    (place / "file").write_text("in the way")
    expected = data_fingerprint("rt")
    monkeypatch.setenv("LOWRANK_TEACH_HOME", str(place / "file"))
    monkeypatch.setattr(identity_module, "SETTLED_NS", 0)
    assert data_fingerprint("rt") == expected


def test_a_key_is_quick_once_the_files_are_known(place, monkeypatch):
    monkeypatch.setattr(identity_module, "SETTLED_NS", 0)
    config = RunConfig("lora", "rt", str(place / "tiny"), "tiny")
    config.key  # noqa: B018
    start = time.perf_counter()
    for _ in range(20):
        config.key  # noqa: B018
    assert (time.perf_counter() - start) / 20 < 0.02


# ---- the stored reference records ----------------------------------------------------------------------------

DATA = Path(__file__).resolve().parents[2] / "figures" / "data"
VERSIONS = ("0.1.0", "0.2.0")   # that trained what is stored
KEYED = [path for path in sorted(DATA.rglob("*.json"))
         if '"key": "' in path.read_text(encoding="utf-8") and path.name not in ("identities.json", "keys.json")]


def records(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What has a key in a file: as stored, and its configuration as it is defined today."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    about = stored.get("about", stored)
    for record in stored.get("runs", []):   # of a figure: they hold their configuration
        config = record["config"]
        yield record, {**config, "training": TrainConfig(**config["training"]).to_dict()}
    for record in stored.get("records", []):
        if "key" in record:
            made = of_a_text(about["task"], record) if "08_" in path.name else of_a_study(path.stem, about, record)
            yield record, made.described


def of_a_study(name: str, about: dict[str, Any], record: dict[str, Any]) -> RunConfig:
    study = {**arms.STUDIES, **arms.TASK_STUDIES}[name]
    return study.config(record.get("task", about.get("task")), record["arm"], record["seed"], record.get("lr"))


def of_a_text(task: str, record: dict[str, Any]) -> RunConfig:
    return arms.TEXT_STUDIES[task].config(task, record["arm"], record["seed"], record["lr"])


@pytest.mark.parametrize("path", KEYED, ids=lambda path: path.stem)
def test_a_stored_record_s_key_follows_from_what_it_says(path, monkeypatch):
    """From its configuration as it is defined today, its identity, and the version that made it."""
    monkeypatch.delenv("LOWRANK_TEACH_DATA")
    then, now = (json.loads((DATA / name).read_text(encoding="utf-8"))["keys"].get(
        path.relative_to(DATA).as_posix(), {}) for name in ("identities.json", "keys.json"))
    assert set(then.values()) == set(now)   # each key that was written first was followed by another
    new = not now                           # made since, under the keys of today
    found = list(records(path))
    assert found
    for record, config in found:
        assert record["key"] in {config_key(config, record["identity"], version) for version in VERSIONS}
        assert new or record["key"] in now.values()
        assert record.get("config", config) == config
        assert record["identity"]["weights"] == weights_fingerprint(config["backbone"])
        if TASKS[config["task"]].asset:
            assert record["identity"]["data"] == data_fingerprint(config["task"])


@pytest.mark.shared
def test_rows_of_the_stored_records_are_those_of_the_folder(shared_data):
    """Where it could be shown: what was trained again gave the same metrics. The others say that it was not."""
    then = json.loads((DATA / "identities.json").read_text(encoding="utf-8"))["trained_again"]
    for path in KEYED:
        for record, config in records(path):
            task = TASKS[config["task"]]
            if not task.asset:
                shown = then.get(task.folder or task.name, {}).get("same")
                assert record["identity"]["data"] == (data_fingerprint(task.name, shared_data) if shown
                                                      else "not recorded")


def test_a_name_that_is_not_here_has_no_fingerprint(place):
    data_folder(place / "other", "sst2", "sentence")
    assert identity("sst2", "nobody/nothing", place / "other")["weights"] is None
    assert RunConfig("lora", "rt", "nobody/nothing", "tiny").key

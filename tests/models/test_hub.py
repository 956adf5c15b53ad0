"""The hub, played on 127.0.0.1: models and every published shape of rows are used; what it has not, cuts short,
delays or refuses ends in a sentence, and never in a hang."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hub_server import environment, hub
from huggingface_hub import constants
from tiny_models import model_folder

import lowrank_teach.models.backbones as client
from lowrank_teach.tasks import readers
from lowrank_teach.tasks.load import load_task
from lowrank_teach.tasks.table import TASKS

# loads each model and "task:NAME" of its arguments; one JSON line each: what came of it, in how many seconds. The
# hub's client tries again and again after a second's sleep, which is left out here
CHILD = """
import json, sys, time
import lowrank_teach as lt
from lowrank_teach.experiments.identity import data_fingerprint, weights_fingerprint
time.sleep = lambda seconds: None
lt.load_task, lt.load_backbone

def rows(name):
    data = lt.load_task(name)
    shown = [*data.task.text, data.task.label, *([data.task.group] if data.task.group else [])]
    return {"source": data.source, "rows": data.train[shown].astype(str).values.tolist(),
            "n": [0 if part is None else len(part) for part in (data.train, data.validation, data.test)],
            "fingerprint": data_fingerprint(name),
            "parts": sorted(set(data.test[data.task.part])) if data.task.part else []}

def network(name):
    model, tokenizer = lt.load_backbone(name, num_labels=2)
    return {"type": model.config.model_type, "new": list(model.lowrank_new_parameters),
            "sum": float(model.bert.encoder.layer[0].attention.self.query.weight.detach().sum()),
            "ids": tokenizer("good film")["input_ids"], "fingerprint": weights_fingerprint(name)}

for what in sys.argv[1:]:
    start, kind, name = time.monotonic(), *what.rpartition(":")[::2]
    try:
        line = rows(name) if kind else network(name)
    except Exception as error:
        line = {"error": type(error).__name__, "says": str(error)}
    print(json.dumps(line | {"what": name, "seconds": time.monotonic() - start}), flush=True)
"""
LIMIT_S = 280


def load(address: str, home: Path, *names: str) -> dict[str, dict]:
    """What came of loading each, in one process, which is stopped if it hangs; names of tasks are known as such."""
    words = [f"task:{name}" if name in TASKS else name for name in names]
    done = subprocess.run([sys.executable, "-c", CHILD, *words], env=environment(address, home),
                          capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    return {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}


# ---- repositories in the hub's shapes ---------------------------------------------------------------------------


def superglue(n: int) -> dict[str, pd.DataFrame]:
    text, binary = [f"text {i}" for i in range(n)], [i % 2 for i in range(n)]
    return {
        "boolq": pd.DataFrame({"question": text, "passage": "It is.", "label": binary}),
        "cb": pd.DataFrame({"premise": text, "hypothesis": "It is.", "label": [i % 3 for i in range(n)]}),
        "multirc": pd.DataFrame({"paragraph": "It is.", "question": text, "answer": "Yes.", "label": binary,
                                 "idx": [{"paragraph": 0, "question": i // 2, "answer": i} for i in range(n)]}),
        "wic": pd.DataFrame({"word": "bank", "sentence1": text, "sentence2": "A bank.", "label": binary}),
        "wsc": pd.DataFrame({"text": text, "span1_text": "Ann", "span2_text": "she", "label": binary}),
    }


def webnlg(n: int, category: str) -> pd.DataFrame:
    return pd.DataFrame({
        "category": category, "eid": [f"Id{i}" for i in range(n)], "size": 1,
        "modified_triple_sets": [{"mtriple_set": [np.array([f"A{i} | owns | B"], dtype=object)]} for i in range(n)],
        "lex": [{"text": np.array([f"A{i} owns B.", f"B is of A{i}."], dtype=object)} for i in range(n)],
    })  # fmt: skip


def export(root: Path, repository: str, name: str, **splits: pd.DataFrame) -> None:
    """The branch where the hub keeps its parquet copies: CONFIGURATION/SPLIT/0000.parquet."""
    for split, frame in splits.items():
        place = root / "datasets" / f"{repository}@export" / name / split
        place.mkdir(parents=True)
        half = len(frame) // 2  # two shards
        frame[:half].to_parquet(place / "0000.parquet")
        frame[half:].to_parquet(place / "0001.parquet")


def exports(root: Path) -> None:
    for name, frame in superglue(120).items():
        export(root, "aps/super_glue", name, train=frame, validation=frame[:20], test=frame[:9].assign(label=-1))
    fields = [f"name[A{i // 2}], area[riverside]" for i in range(12)]
    e2e = pd.DataFrame({"meaning_representation": fields, "human_reference": "A place. "})
    export(root, "tuetschek/e2e_nlg", "default", train=e2e, validation=e2e[:4], test=e2e[:6])
    seen, unseen = webnlg(8, "Airport"), webnlg(4, "Artist")
    blank = seen.assign(lex=[{"text": np.array([], dtype=object)}] * 8)
    export(root, "webnlg-challenge/web_nlg", "webnlg_challenge_2017", train=seen, dev=seen[:3],
           test=pd.concat([seen, unseen, unseen, blank], ignore_index=True))  # fmt: skip
    xsum = pd.DataFrame({"document": [f"Long {i}." for i in range(8)], "summary": "Short.", "id": "1"})
    export(root, "EdinburghNLP/xsum", "default", train=xsum, validation=xsum[:3], test=xsum[:4])
    tags = pd.DataFrame({"tokens": [["the", "p53", "gene"]] * 6, "tags": [[0, 1, 2], [0, 9, 10]] * 3})
    export(root, "tner/bionlp2004", "bionlp2004", train=tags, validation=tags[:3], test=tags[:4])


def plain_files(root: Path) -> None:
    """Repositories whose own files `datasets` reads: Alpaca is one JSON file, GLUE is parquet with a card."""
    place = root / "datasets" / "yahma" / "alpaca-cleaned"
    place.mkdir(parents=True)
    (place / "alpaca_data_cleaned.json").write_text(json.dumps(
        [{"instruction": f"Say {i}.", "input": "", "output": "ok"} for i in range(60)]))  # fmt: skip
    place = root / "datasets" / "nyu-mll" / "glue"
    parts = {"mnli": {"train": 9, "validation_matched": 6, "validation_mismatched": 5},
             "sst2": {"train": 9, "validation": 6}}
    card = ""
    for task, splits in parts.items():
        (place / task).mkdir(parents=True)
        card += f"- config_name: {task}\n  data_files:\n"
        for split, n in splits.items():
            text = {"premise": [f"{split} {i}" for i in range(n)], "hypothesis": "So."}
            frame = pd.DataFrame(text if task == "mnli" else {"sentence": ["So."] * n})
            frame.assign(label=[i % 3 for i in range(n)]).to_parquet(place / task / f"{split}-00000.parquet")
            card += f"  - split: {split}\n    path: {task}/{split}-*\n"
    (place / "README.md").write_text(f"---\nconfigs:\n{card}---\n")


def repositories(folder: Path, *models: str) -> None:
    for name in models:
        model_folder(folder / "models" / "org" / name)
    exports(folder)
    plain_files(folder)


PUBLISHED = {  # rows by split after preparation
    "boolq": [20, 100, 20], "cb-prompt": [20, 100, 20], "multirc": [20, 100, 20], "wic": [20, 100, 20],
    "wsc": [20, 100, 20], "e2e": [12, 4, 6], "webnlg": [16, 6, 24], "xsum": [8, 3, 4], "jnlpba": [6, 3, 4],
    "mnli": [9, 6, 0], "mnli-mm": [9, 5, 0], "alpaca": None,
}  # fmt: skip


def read_all(folder: Path) -> None:
    """What came of loading a model and each published shape, what was asked for, and of some without the server."""
    repositories(folder, "tiny")
    with hub(folder) as server:
        found = load(server.address, folder / "home", "org/tiny", *PUBLISHED)
    again = load(server.address, folder / "home", "org/tiny", "boolq", "webnlg", "mnli", "alpaca")
    (folder / "found.json").write_text(json.dumps([found, server.asked, again]))


@pytest.fixture(scope="module")
def read(once) -> tuple[dict[str, dict], list[str], dict[str, dict]]:
    return json.loads((once("hub-read", read_all) / "found.json").read_text())


def test_what_the_hub_has_is_used_once_and_then_from_the_cache(once, read):
    from safetensors.torch import load_file

    (found, asked, again), root = read, once("hub-read", read_all)
    assert {name: line["error"] for name, line in found.items() if "error" in line} == {}
    model = found["org/tiny"]
    weights = load_file(root / "models" / "org" / "tiny" / "model.safetensors")
    key, = (k for k in weights if k.endswith("layer.0.attention.self.query.weight"))
    assert model["sum"] == pytest.approx(float(weights[key].sum()), abs=1e-5)
    assert (model["type"], model["new"], model["ids"]) == ("bert", ["classifier.bias", "classifier.weight"], [5, 14])
    assert model["fingerprint"] is not None
    for place in ("GET /org/tiny/resolve", "GET /datasets/nyu-mll/glue/resolve"):
        assert any(place in request for request in asked)
    assert not any(".bin" in request for request in asked)  # no pickle was looked for
    for name, line in again.items():   # the server is gone
        assert line.items() >= {k: v for k, v in found[name].items() if k != "seconds"}.items()
        assert line["fingerprint"] is not None
        assert line["seconds"] < 15


def test_each_published_shape_is_read(read):
    found = read[0]
    for name, rows in PUBLISHED.items():
        line = found[name]
        assert line["source"].startswith(f"rows from the hub, {'/'.join(TASKS[name].hub)}: train "), line["source"]
        assert rows in (line["n"], None), name
    assert sum(found["alpaca"]["n"]) == 60
    assert found["e2e"]["rows"][0][0].endswith("| area : riverside")
    assert sorted({row[0] for row in found["webnlg"]["rows"]}) == [f"A{i} : owns : B" for i in range(8)]
    assert found["webnlg"]["parts"] == ["seen", "unseen"]
    codes = readers.tags("DNA RNA protein cell_line cell_type")
    both = [("O", "B-DNA", "I-DNA"), ("O", "B-RNA", "I-RNA")]  # the hub numbers its tags in another order
    assert {row[1] for row in found["jnlpba"]["rows"]} == {str([codes.index(tag) for tag in tags]) for tags in both}
    assert found["mnli-mm"]["rows"] == found["mnli"]["rows"]  # one training, two sets to score it on


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mnli", "boolq", "alpaca", "xsum", "qqp", "yelp"])
def test_notes_on_known_copies_are_not_those_of_the_hub_s(read, name, shared_data, monkeypatch):
    """Each deviation of the local copies is printed with them, and with nothing else."""
    (_, note), = TASKS[name].copies
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    source = load_task(name).source
    assert note in source
    assert "this copy has" in source
    assert note not in read[0].get(name, {}).get("source", "")


# ---- what goes wrong --------------------------------------------------------------------------------------------

ENDED_EARLY = r"(received \d+ bytes, expected|incomplete|closed|disconnected)"
WRONG = {   # what is asked for: what lies at the bottom of its refusal
    "org/missing": "404", "org/cut": ENDED_EARLY, "org/slow": "timed? ?out",
    "qnli": "qnli",   # the repository is there, this part of it is not
    "xsum": "404", "wsc-prompt": ENDED_EARLY, "alpaca": "", "e2e": "[Pp]arquet", "sst2": "", "jnlpba": "timed? ?out",
    "yelp": "no hub copy"}


def read_wrong(folder: Path) -> None:
    """What came of asking a hub in which much is wrong, and then for what is whole.

    One is so slow with its rows that it takes longer than the test's own limit: without one in the program this
    would never end.
    """
    repositories(folder, "tiny", "cut", "slow")
    (folder / "datasets" / "EdinburghNLP").rename(folder / "datasets" / "moved")
    for bad in ("tuetschek/e2e_nlg@export/default/train/0001.parquet", "nyu-mll/glue/sst2/train-00000.parquet"):
        path = folder / "datasets" / bad
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with hub(folder, cut=("cut", "super_glue", "alpaca-cleaned"),
             slow={"org/slow": 2.5, "tner": 2 * LIMIT_S}) as server:
        found = load(server.address, folder / "home", *WRONG, "org/tiny", "webnlg")
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def refused(once) -> dict[str, dict]:
    return json.loads((once("hub-wrong", read_wrong) / "found.json").read_text())


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_ends_in_a_sentence(refused, name):
    line, why = refused[name], WRONG[name]
    if name in TASKS:
        says = rf"FileNotFoundError: no rows for '{name}' \(.*{why}.*\)\. Three ways: \(1\) set LOWRANK_TEACH_DATA"
    elif name == "org/cut":
        says = rf"CheckpointError: 'org/cut' \(bert\) cannot be loaded for classification: .*{why}.*; repair or "
    else:
        says = rf"CheckpointError: no backbone '{name}': Three ways.*\(3\) a hub name.*{why}"
    assert re.search(says, f"{line.get('error')}: {line.get('says')}"), line
    assert line["seconds"] < 60


def test_after_what_goes_wrong_the_next_is_loaded(refused):
    assert "error" not in refused["org/tiny"]
    assert refused["webnlg"]["n"] == PUBLISHED["webnlg"]


def test_a_hub_that_cannot_be_reached(tmp_path):
    with socket.socket() as nobody:  # a port that nobody listens on
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        found = load(address, tmp_path, "org/tiny", "boolq-prompt", "e2e", "alpaca", "mnli-mm")
    for name, line in found.items():
        kind = f"no rows for '{name}' .*" if name in TASKS else f"no backbone '{name}': "
        assert re.search(f"{kind}Three ways", line["says"]), line
        assert line["seconds"] < 20


def test_reachable_means_that_the_port_answers(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not client.is_reachable()
        server.listen()
        assert client.is_reachable()
    start = time.monotonic()
    monkeypatch.setattr(constants, "ENDPOINT", "https://no.such.name.invalid")
    assert not client.is_reachable()
    assert time.monotonic() - start < 30
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert client.is_reachable()  # behind a proxy the client has to find out
    monkeypatch.setenv("no_proxy", "no.such.name.invalid")
    assert not client.is_reachable()


def test_the_reason_is_what_lies_at_the_bottom():
    bottom, top = TimeoutError("timed out\nafter 10 s"), OSError("general advice")
    top.__cause__ = bottom
    assert client.reason(top) == "timed out"
    assert client.reason(ValueError()) == "ValueError"
    assert client.reason(ValueError("only")) == "only"


# ---- the same rows, from a folder and from the hub -------------------------------------------------------------


def as_on_the_hub(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    if name == "webnlg_2017":
        return frame.assign(lex=[{"text": texts} for texts in frame["lexicalizations"]],
                            modified_triple_sets=[{"mtriple_set": [triples]} for triples in frame["triples"]]
                            ).drop(columns=["lexicalizations", "triples", "eval_category"])  # fmt: skip
    if name == "jnlpba":
        names = readers.tags("DNA RNA protein cell_line cell_type")
        code = [readers.TNER.index(tag) for tag in names]
        tags = [[readers.TNER.index(t) if isinstance(t, str) else code[t] for t in row] for row in frame["ner_tags"]]
        return frame.assign(tags=tags).drop(columns="ner_tags")
    return frame


SAME = ("boolq", "cb", "multirc", "wsc-prompt", "e2e", "webnlg", "jnlpba")


@pytest.mark.shared
def test_a_folder_and_the_hub_give_the_same_rows(shared_data, tmp_path, monkeypatch):
    wanted = {}
    for task in map(TASKS.get, SAME):
        folder, configuration = task.folder or task.name, task.hub[1] if len(task.hub) > 1 else "default"
        (tmp_path / "local" / folder).mkdir(parents=True)
        for split in task.rows:
            frame = pd.read_parquet(shared_data / folder / f"{split}.parquet").head(240)
            frame.to_parquet(tmp_path / "local" / folder / f"{split}.parquet")
            export(tmp_path / "hub", task.hub[0], configuration,
                   **{task.hub_splits.get(split, split): as_on_the_hub(folder, frame)})  # fmt: skip
        monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path / "local"))
        shown = [*task.text, task.label, *([task.group] if task.group else [])]
        wanted[task.name] = load_task(task.name).train[shown].astype(str).values.tolist()
    with hub(tmp_path / "hub") as server:
        found = load(server.address, tmp_path / "home", *SAME)
    for name, rows in wanted.items():
        assert "error" not in found[name], found[name]
        assert len(rows) > 10
        assert found[name]["rows"] == rows, name

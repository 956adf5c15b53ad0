"""The papers' tasks from a hub on 127.0.0.1: each published shape is read, each mishap ends in a sentence."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hub_server import hub
from test_hub import environment

from lowrank_teach.tasks import readers
from lowrank_teach.tasks.load import load_task
from lowrank_teach.tasks.table import TASKS

# loads each task of its arguments; one JSON line each: what came of it, in how many seconds; without the sleep
# between two tries of the hub's client
CHILD = """
import json, sys, time
import lowrank_teach as lt
from lowrank_teach.experiments.identity import data_fingerprint
time.sleep = lambda seconds: None
lt.load_task
for name in sys.argv[1:]:
    start, line = time.monotonic(), {"task": name}
    try:
        data = lt.load_task(name)
        shown = [*data.task.text, data.task.label, *([data.task.group] if data.task.group else [])]
        line |= {"source": data.source, "rows": data.train[shown].astype(str).values.tolist(),
                 "n": [0 if part is None else len(part) for part in (data.train, data.validation, data.test)],
                 "fingerprint": data_fingerprint(name),
                 "parts": sorted(set(data.test[data.task.part])) if data.task.part else []}
    except Exception as error:
        line |= {"error": type(error).__name__, "says": str(error)}
    print(json.dumps(line | {"seconds": time.monotonic() - start}), flush=True)
"""
LIMIT_S = 120


def load(address: str, home: Path, *names: str) -> dict[str, dict]:
    """What came of loading each task, in one process, which is stopped if it hangs."""
    done = subprocess.run([sys.executable, "-c", CHILD, *names], env=environment(address, home),
                          capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["task"]: line for line in lines}


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


def export_superglue(root: Path) -> None:
    for name, frame in superglue(120).items():
        export(root, "aps/super_glue", name, train=frame, validation=frame[:20], test=frame[:9].assign(label=-1))


def export_others(root: Path) -> None:
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
    (place / "mnli").mkdir(parents=True)
    splits = {"train": 9, "validation_matched": 6, "validation_mismatched": 5}
    for split, n in splits.items():
        pd.DataFrame({"premise": [f"{split} {i}" for i in range(n)], "hypothesis": "So.",
                      "label": [i % 3 for i in range(n)]}).to_parquet(place / "mnli" / f"{split}-00000.parquet")
    files = "".join(f"  - split: {split}\n    path: mnli/{split}-*\n" for split in splits)
    (place / "README.md").write_text(f"---\nconfigs:\n- config_name: mnli\n  data_files:\n{files}---\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    export_superglue(folder)
    export_others(folder)
    plain_files(folder)
    return folder


PUBLISHED = {  # rows by split after preparation
    "boolq": [20, 100, 20], "cb-prompt": [20, 100, 20], "multirc": [20, 100, 20], "wic": [20, 100, 20],
    "wsc": [20, 100, 20], "e2e": [12, 4, 6], "webnlg": [16, 6, 24], "xsum": [8, 3, 4], "jnlpba": [6, 3, 4],
    "mnli": [9, 6, 0], "mnli-mm": [9, 5, 0], "alpaca": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def read(root, tmp_path_factory) -> tuple[dict[str, dict], str, Path]:
    """What came of loading each published shape, the address of the server, now gone, and the hub's cache."""
    home = tmp_path_factory.mktemp("home")
    with hub(root) as server:
        return load(server.address, home, *PUBLISHED), server.address, home


def test_each_published_shape_is_read_and_kept(read):
    found, address, home = read
    for name, rows in PUBLISHED.items():
        line = found[name]
        assert "error" not in line, line
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
    again = load(address, home, "boolq", "webnlg", "alpaca")  # the server is gone: from the cache
    for name, line in again.items():
        assert line.get("rows") == found[name]["rows"], line
        assert line["fingerprint"] == found[name]["fingerprint"] is not None


@pytest.mark.shared
@pytest.mark.parametrize("name", ["mnli", "boolq", "alpaca", "xsum", "qqp", "yelp"])
def test_notes_on_known_copies_are_not_those_of_the_hub_s(read, name, shared_data, monkeypatch):
    """Each deviation of the local copies is printed with them, and with nothing else."""
    (_, note), = TASKS[name].copies
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    source = load_task(name).source
    assert note in source
    assert "this copy has" in source
    if name in read[0]:
        assert note not in read[0][name]["source"]


# ---- what goes wrong --------------------------------------------------------------------------------------------


def ends_in_a_sentence(line: dict, name: str, why: str) -> None:
    assert line.get("error") == "FileNotFoundError", line
    says = rf"no rows for '{name}' \(.*{why}.*\)\. Three ways: \(1\) set LOWRANK_TEACH_DATA"
    assert re.search(says, line["says"]), line
    assert line["seconds"] < 60


def test_what_the_hub_lacks_or_cuts_short(root, tmp_path):
    (root / "datasets" / "EdinburghNLP").rename(root / "datasets" / "moved")
    try:
        with hub(root, cut=("super_glue", "e2e_nlg", "alpaca-cleaned")) as server:
            found = load(server.address, tmp_path, "xsum", "wsc-prompt", "e2e", "alpaca", "qnli", "yelp", "webnlg")
    finally:
        (root / "datasets" / "moved").rename(root / "datasets" / "EdinburghNLP")
    ends_in_a_sentence(found["xsum"], "xsum", "404")
    ends_in_a_sentence(found["wsc-prompt"], "wsc-prompt", r"(received \d+ bytes, expected|disconnected)")
    ends_in_a_sentence(found["e2e"], "e2e", r"(received \d+ bytes, expected|disconnected)")
    ends_in_a_sentence(found["alpaca"], "alpaca", "")
    ends_in_a_sentence(found["qnli"], "qnli", "qnli")  # the repository is there, this part of it is not
    ends_in_a_sentence(found["yelp"], "yelp", "no hub copy")
    assert found["webnlg"]["n"] == PUBLISHED["webnlg"]  # and the next is loaded as if nothing had been


def test_a_file_that_is_no_parquet_file(root, tmp_path):
    bad = root / "datasets" / "tuetschek" / "e2e_nlg@export" / "default" / "train" / "0001.parquet"
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    try:
        with hub(root) as server:
            found = load(server.address, tmp_path, "e2e")
    finally:
        bad.write_bytes(good)
    ends_in_a_sentence(found["e2e"], "e2e", "[Pp]arquet")


def test_a_hub_that_takes_a_question_and_does_not_answer(root, tmp_path):
    """Longer than the test's own limit: without one in the program this would never end."""
    with hub(root, slow=("tuetschek", "aps"), delay=2 * LIMIT_S) as server:
        found = load(server.address, tmp_path, "e2e", "cb", "webnlg")
    for name in ("e2e", "cb"):
        ends_in_a_sentence(found[name], name, "timed? ?out")
    assert "error" not in found["webnlg"]


def test_a_hub_that_cannot_be_reached(tmp_path):
    with socket.socket() as nobody:  # a port that nobody listens on
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        found = load(address, tmp_path, "boolq-prompt", "e2e", "alpaca", "mnli-mm")
    for name, line in found.items():
        ends_in_a_sentence(line, name, "")
        assert line["seconds"] < 20


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

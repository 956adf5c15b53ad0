"""A task of one's own file: read as it is, checked in sentences, trained on, and the same again."""

from __future__ import annotations

import json
import pickle

import pandas as pd
import pytest

import lowrank_teach as lt
from lowrank_teach.tasks.own_file import task_from_file
from lowrank_teach.tasks.table import TASKS


@pytest.fixture(autouse=True)
def the_table_as_it_was(monkeypatch):
    for name in set(TASKS):
        monkeypatch.setitem(TASKS, name, TASKS[name])
    before = set(TASKS)
    yield
    for name in set(TASKS) - before:
        del TASKS[name]


def frame(n: int = 200) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"film {i} is {'dull' if i % 2 else 'bright'}" for i in range(n)],
                         "verdict": ["bad" if i % 2 else "good" for i in range(n)]})


def written(frame: pd.DataFrame, path) -> str:
    {".csv": lambda: frame.to_csv(path, index=False), ".tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
     ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
     ".json": lambda: frame.to_json(path, orient="records"),
     ".parquet": lambda: frame.to_parquet(path)}[path.suffix]()
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_each_kind_of_file_gives_the_same_rows(tmp_path, suffix):
    task = task_from_file(written(frame(), tmp_path / f"films{suffix}"), "review", "verdict")
    data = lt.load_task(task.name)
    assert task.labels == ("bad", "good")
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    assert sum(map(len, parts.values())) == 200
    assert 140 < len(data.train) < 180
    assert all((("dull" in text) == (code == 0)) for part in parts.values()
               for text, code in zip(part["review"], part["label"], strict=True))
    assert "own split by text" in data.source


def test_it_trains_is_found_again_and_is_another_run_when_a_row_changes(tmp_path):
    rows, path, store = frame(), tmp_path / "films.csv", lt.Store(tmp_path / "runs")

    def run(rows):
        task = task_from_file(written(rows, path), "review", "verdict")
        return lt.fit(lt.LoRA(r=2), task.name, "minilm-l3", "tiny", 0, steps=2, n_train=32, store=store,
                      progress=False)

    first = run(rows)
    assert run(rows).found
    rows.loc[0, "verdict"] = "bad"
    second = run(rows)
    assert not second.found
    assert first.key != second.key


def test_equal_texts_stay_in_one_split_and_what_was_found_is_said(tmp_path):
    rows = pd.concat([frame(100)] * 3 + [frame(10).assign(verdict="good")], ignore_index=True)
    task = task_from_file(written(rows, tmp_path / "films.csv"), "review", "verdict")
    data = lt.load_task(task.name)
    assert not set(data.train["review"]) & set(data.test["review"])
    assert not set(data.train["review"]) & set(data.validation["review"])
    assert "100 texts occur more than once" in data.source
    assert "5 texts have two labels" in data.source
    assert "52 % of the rows are of the class 'good'" in data.source


def test_test_rows_that_are_trained_on_are_counted(tmp_path):
    train, test = written(frame(100), tmp_path / "films.csv"), written(frame(120).tail(40), tmp_path / "later.csv")
    task = task_from_file(train, "review", "verdict", test=test)
    data = lt.load_task(task.name)
    assert len(data.test) == 40
    assert len(data.train) + len(data.validation) == 100
    leaked = len(set(data.train["review"]) & set(data.test["review"]))
    assert 0 < leaked <= 20
    assert f"{leaked} of 40 test texts are training texts, too" in data.source


def test_cells_of_csv_stay_the_strings_they_are(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("text,label\n" + "".join(f"{word} {i},{i % 2:03d}\n" for i in range(40)
                                             for word in ("NA", "null", "007", '"a, ""b"""')))
    task = task_from_file(path)
    assert task.labels == ("000", "001")
    texts = set(pd.concat([lt.load_task(task.name).train, lt.load_task(task.name).test])["text"])
    assert any(text.startswith("NA ") for text in texts)


def test_a_pair_of_columns_and_numbers_as_classes(tmp_path):
    rows = pd.DataFrame({"a": [f"first {i}" for i in range(60)], "b": [f"second {i}" for i in range(60)],
                         "stars": [10 - i % 2 * 8 for i in range(60)]})
    task = task_from_file(written(rows, tmp_path / "pairs.parquet"), ("a", "b"), "stars")
    assert task.labels == ("2", "10")
    assert task.text == ("a", "b")
    flags = rows.assign(stars=[i % 2 == 0 for i in range(60)])
    for suffix in (".csv", ".parquet"):   # a class has one name, whatever the file
        assert task_from_file(written(flags, tmp_path / f"flags{suffix}"), ("a", "b"), "stars").labels == (
            "False", "True")
    assert pickle.loads(pickle.dumps(task)).derived().keys() == {"train", "validation", "test"}   # another process


def test_another_encoding_is_read_when_it_is_named(tmp_path):
    path = tmp_path / "films.csv"
    path.write_bytes(b"review,verdict\n" + "".join(
        f"café {i},{'gut' if i % 2 else 'mäßig'}\n" for i in range(40)).encode("cp1252"))
    with pytest.raises(ValueError, match=r"films.csv, line 2: not utf-8; save the file as UTF-8, or name its enc"):
        task_from_file(path, "review", "verdict")
    assert task_from_file(path, "review", "verdict", encoding="cp1252").labels == ("gut", "mäßig")
    path.write_bytes(b"\xef\xbb\xbf" + frame(40).to_csv(index=False).encode())   # as Excel writes it
    assert task_from_file(path, "review", "verdict", encoding="utf-8-sig").labels == ("bad", "good")


@pytest.mark.parametrize(("content", "says"), [
    ("", "is empty"),
    ("review,verdict\n", "has no rows"),
    ("reviews,verdict\na,x\nb,y\n", "has no column 'review'; it has reviews, verdict"),
    ("review,verdict\na,x\n,y\nb,x\n", "column 'review': 1 of 3 rows are empty"),
    ("review,verdict\na,x\nb,\nc,\n", "column 'verdict': 2 of 3 rows are empty"),
    ("review,verdict\na,x\nb,x\n", "all rows are of the class 'x'"),
    ("review,verdict\na,0.12\nb,0.34\nc,0.5\nd,0.7\n", "are scores or texts rather than classes"),
    ("review,verdict,review\na,x,b\n", "has two columns with the name 'review'"),
    ("review,verdict\na,x\nb,y\na,x\nb,y\n", "none falls into"),
])
def test_what_cannot_be_used_is_said(tmp_path, content, says):
    path = tmp_path / "films.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        task_from_file(path, "review", "verdict")


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        task_from_file(tmp_path / "nowhere.csv")
    (tmp_path / "films.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"films.xlsx is no .csv, .tsv"):
        task_from_file(tmp_path / "films.xlsx")
    (tmp_path / "films.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match="no readable parquet file"):
        task_from_file(tmp_path / "films.parquet")
    (tmp_path / "films.jsonl").write_text(json.dumps({"text": 7, "label": "x"}) + "\n" + json.dumps(
        {"text": 8, "label": "y"}))
    with pytest.raises(ValueError, match="a text must be a string"):
        task_from_file(tmp_path / "films.jsonl")
    with pytest.raises(ValueError, match="name one column of texts or two"):
        task_from_file(tmp_path / "films.jsonl", "text", "text")

"""Tasks: the counts, splits that do not leak, rows that cannot be used, and the way from rows to tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from lowrank_teach import corpora, hub
from lowrank_teach.assets import fetch
from lowrank_teach.convert import converted
from lowrank_teach.metrics import METRICS
from lowrank_teach.tasks import TASKS, Collate, encode, load_task

asset = pytest.mark.asset
PACKAGED = [name for name, task in TASKS.items() if task.reader is not None]


@pytest.fixture(autouse=True)
def _no_folder_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWRANK_TEACH_DATA", raising=False)
    monkeypatch.setattr(hub, "is_reachable", lambda: False)


@pytest.fixture(scope="module")
def bert():
    return AutoTokenizer.from_pretrained(fetch("minilm-l6"))


def texts(frame: pd.DataFrame, column: str) -> list[str]:
    """Normalised; token lists are joined."""
    return [corpora.normalised(v if isinstance(v, str) else " ".join(v)) for v in frame[column]]


# ---- packaged tasks -------------------------------------------------------------------------------------

# assets.md counts exact duplicates; ignoring case takes one more snippet and question,
# and headlines and leads must both be new
COUNTS = {"rt": 12_751, "trec": 5_380, "trec-fine": 5_380, "bbc-match": 2_057, "wnut16": 2_295, "bbc-headline": 2_057}


@asset
@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_tasks(name):
    data = load_task(name)
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    assert sum(map(len, splits.values())) == COUNTS[name]
    assert 0.6 < len(data.train) / COUNTS[name] < 0.8
    seen: set[str] = set()
    for frame in splits.values():
        found = texts(frame, data.task.text[0])
        assert len(set(found)) == len(found)  # de-duplicated …
        assert not seen & set(found)  # … and before the split
        seen |= set(found)
    assert "packaged text" in data.source
    assert data.task.deviation in data.source


@asset
def test_rt_is_split_by_film():
    data = load_task("rt")
    films = [set(frame["film"]) for frame in (data.train, data.validation, data.test)]
    assert sum(map(len, films)) == len(set.union(*films)) == 507
    everything = pd.concat([data.train, data.validation, data.test])
    assert everything["label"].value_counts().to_dict() == {1: 7368, 0: 5383}


@asset
def test_trec_labels_agree():
    coarse, fine = load_task("trec"), load_task("trec-fine")
    assert coarse.train["text"].nunique() == len(coarse.train)
    fine_names = TASKS["trec-fine"].labels
    names = {row.text: fine_names[row.label] for row in fine.train.itertuples()}
    for text, label in zip(coarse.train["text"], coarse.train["label"], strict=True):
        assert names[text].split(":")[0] == TASKS["trec"].labels[label]
    assert fine.train["label"].nunique() == len(TASKS["trec-fine"].labels) == 50


@asset
def test_bbc_negatives_stay_in_their_split_and_category():
    articles, data = corpora.bbc_articles(), load_task("bbc-match")
    for split, frame in articles.items():
        pairs = getattr(data, split)
        category = dict(zip(frame["lead"], frame["category"], strict=True))
        own = dict(zip(frame["headline"], frame["lead"], strict=True))
        assert sorted(pairs["lead"]) == sorted(frame["lead"])  # each text once
        for row in pairs.itertuples():
            assert (own[row.headline] == row.lead) == bool(row.label)
            assert category[row.lead] == row.category
        assert abs(pairs["label"].mean() - 0.5) < 0.02


@asset
def test_wnut_tags():
    data = load_task("wnut16")
    for frame in (data.train, data.validation, data.test):
        assert all(len(row.tokens) == len(row.tags) for row in frame.itertuples())
    used = {TASKS["wnut16"].labels[tag] for tags in data.train["tags"] for tag in tags}
    assert used == set(TASKS["wnut16"].labels)


@asset
def test_fewer_rows_are_a_part_of_more_and_the_seed_changes_nothing():
    small, large = load_task("rt", n_train=400), load_task("rt", n_train=1600)
    other = load_task("rt", n_train=400, seed=9)
    assert small.train.equals(large.train.head(400))
    assert small.train.equals(other.train)
    assert len(small.validation) == len(large.validation)
    assert "train 400 of 8,869" in small.source
    assert 0.5 < small.train["label"].mean() < 0.65  # a fair sample
    assert len(load_task("rt", n_test=10**6).test) == len(small.test)


# ---- tasks from a folder --------------------------------------------------------------------------------

ROWS = {
    "cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "qqp": (9917, 9928),
    "mnli": (9888, 9815), "rte": (2490, 277),
}  # fmt: skip


@pytest.mark.shared
@pytest.mark.parametrize("name", ROWS)
def test_glue_from_a_folder(name, shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    data = load_task(name)
    assert (len(data.train), len(data.validation)) == ROWS[name]
    assert data.test is None
    assert data.source.startswith(f"rows from the local folder {shared_data.name}/{name}")
    assert ("published: " in data.source) == (name in ("qqp", "mnli"))
    if data.task.labels:
        assert set(data.validation["label"]) == set(range(len(data.task.labels)))


@pytest.mark.shared
def test_what_no_source_has_names_the_three_ways(shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    with pytest.raises(FileNotFoundError, match="no rows for 'qnli'") as caught:
        load_task("qnli")
    for part in ("(1) set LOWRANK_TEACH_DATA", "qnli/train.parquet", "(2)", "rt, trec", "(3) the hub", "glue"):
        assert part in str(caught.value)


@pytest.mark.shared
@asset
def test_a_packaged_task_does_not_need_the_folder_to_have_it(shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    assert "packaged text" in load_task("trec", n_train=50).source


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    return tmp_path


def put(folder: Path, task: str, split: str, **columns: list) -> None:
    (folder / task).mkdir(exist_ok=True)
    pd.DataFrame(columns).to_parquet(folder / task / f"{split}.parquet")


def put_cola(folder: Path, **spoiled: list) -> None:
    good = {"sentence": ["one.", "two.", "three."], "label": [0, 1, 1]}
    put(folder, "cola", "validation", **good)
    put(folder, "cola", "train", **{k: v for k, v in (good | spoiled).items() if v is not None})


def test_the_folder_comes_before_the_package(folder):
    for split in ("train", "validation", "test"):
        put(folder, "rt", split, text=[f"{split} a", f"{split} b"], label=[0, 1])
    data = load_task("rt")
    assert sorted(data.test["text"]) == ["test a", "test b"]
    assert "local folder" in data.source


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ({"sentence": ["one.", None, "three."]}, r"cola, train, column 'sentence', row 1.*must be a string"),
        ({"sentence": [1, 2, 3]}, r"column 'sentence', row 0: 1: text must be a string"),
        ({"label": [0, 1, 2]}, r"column 'label', row 2: 2: labels must be 0 to 1 \(unacceptable, acceptable\)"),
        ({"label": [0.0, 1.0, np.nan]}, r"column 'label', row 2: nan"),
        ({"label": [0.0, 0.5, 1.0]}, r"column 'label', row 1: 0\.5"),
        ({"label": ["0", "1", "1"]}, r"column 'label', row 0: '0'"),
        ({"label": [-1, -1, -1]}, r"hidden labels"),
        ({"label": [1, 1, 1]}, r"cola, train: all 3 rows have label = 1.*one class"),
        ({"label": None}, r"no column 'label'; the file has \['sentence'\]"),
        ({"sentence": [], "label": []}, r"cola, train: the set is empty"),
    ],
)
def test_rows_that_cannot_be_used(folder, spoiled, message):
    put_cola(folder, **spoiled)
    with pytest.raises(ValueError, match=message):
        load_task("cola")


def test_scores_must_be_finite(folder):
    for split in ("train", "validation"):
        put(folder, "stsb", split, sentence1=["a", "b"], sentence2=["c", "d"], label=[0.5, np.inf])
    with pytest.raises(ValueError, match=r"stsb, train, column 'label', row 1.*finite"):
        load_task("stsb")


def test_tags_are_checked_and_names_become_codes(folder):
    def write(tags: list[list[str]]) -> None:
        for split in ("train", "validation", "test"):
            put(folder, "wnut16", split, tokens=[["a", "b"], ["c"]], tags=tags)

    write([["O", "B-person"], ["O"]])
    data = load_task("wnut16")
    assert sorted(data.train["tags"]) == [[0], [0, data.task.labels.index("B-person")]]
    write([["O", "B-planet"], ["O"]])
    with pytest.raises(ValueError, match=r"wnut16, train, column 'tags', row 0.*each tag must be one of 21"):
        load_task("wnut16")
    write([["O", "O"], ["O", "O"]])
    with pytest.raises(ValueError, match="row 1: 1 tokens but 2 tags"):
        load_task("wnut16")


def test_files_that_are_missing_or_damaged(folder, monkeypatch):
    put_cola(folder)
    (folder / "cola" / "validation.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"cola, validation: no file .*validation\.parquet"):
        load_task("cola")
    (folder / "cola" / "validation.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(ValueError, match=r"cola, validation: .* no readable parquet"):
        load_task("cola")
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(folder / "nowhere"))
    with pytest.raises(FileNotFoundError, match="which is no folder"):
        load_task("cola")


def test_names_and_numbers_that_make_no_sense():
    with pytest.raises(ValueError, match=r"no task 'nope'.*tasks: .*rt, ") as caught:
        load_task("nope")
    assert len(str(caught.value)) <= 300
    with pytest.raises(ValueError, match="did you mean mrpc"):
        load_task("mrcp")
    with pytest.raises(ValueError, match="n_train = 0"):
        load_task("rt", n_train=0)


def test_the_table():
    for name, task in TASKS.items():
        assert task.name == name
        assert task.metrics
        assert set(task.metrics) <= set(METRICS)
        assert bool(task.labels) == (task.kind in ("classification", "tagging", "choice"))
        assert len(task.words) == (len(task.labels) if task.kind == "choice" else 0)
        assert len(set(task.labels)) == len(task.labels)
        assert task.reader or task.hub or task.rows  # packaged, on the hub, or a published set to copy by hand


# ---- encode and Collate ---------------------------------------------------------------------------------

def frame_of(**columns: list) -> pd.DataFrame:
    return pd.DataFrame(columns)


@asset
def test_single_and_pair(bert):
    rows = encode(frame_of(sentence=["one two three", "one"], label=[1, 0]), TASKS["cola"], bert, max_length=4)
    assert [len(row["input_ids"]) for row in rows] == [4, 3]
    assert [row["labels"] for row in rows] == [1, 0]
    pair = encode(frame_of(sentence1=["one"], sentence2=["two"], label=[2.5]), TASKS["stsb"], bert)[0]
    assert pair["token_type_ids"] == [0, 0, 0, 1, 1]
    assert pair["labels"] == 2.5


@asset
def test_batches_are_padded_to_their_longest_row(bert):
    task = TASKS["cola"]
    batch = Collate(bert, task)(encode(frame_of(sentence=["one two three", "one"], label=[1, 0]), task, bert))
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "input_ids": (2, 5), "attention_mask": (2, 5), "token_type_ids": (2, 5), "labels": (2,),
    }  # fmt: skip
    assert batch["input_ids"][1, 3:].tolist() == [bert.pad_token_id] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch["labels"].dtype == torch.int64
    scores = encode(frame_of(sentence1=["a"], sentence2=["b"], label=[2]), TASKS["stsb"], bert)
    assert Collate(bert, TASKS["stsb"])(scores)["labels"].dtype == torch.float32


@asset
def test_the_first_piece_of_a_word_carries_its_tag(bert):
    task = TASKS["wnut16"]
    frame = frame_of(tokens=[["Pxleyes", "wins", "again"], ["ok"]], tags=[[1, 0, 2], [0]])
    rows = encode(frame, task, bert)
    pieces = bert.convert_ids_to_tokens(rows[0]["input_ids"])
    tagged = [(piece, tag) for piece, tag in zip(pieces, rows[0]["labels"], strict=True) if tag != -100]
    assert [tag for _, tag in tagged] == [1, 0, 2]
    assert not any(piece.startswith("##") or piece.startswith("[") for piece, _ in tagged)
    assert Collate(bert, task)(rows)["labels"][1, 3:].unique().tolist() == [-100]
    short = encode(frame, task, bert, max_length=3)[0]
    assert [tag for tag in short["labels"] if tag != -100] == [1]


@asset
def test_text_to_text():
    tokenizer = AutoTokenizer.from_pretrained(converted("flan-t5-small-titles"))
    frame = frame_of(lead=["word " * 300, "short"], headline=["A title", "B"])
    rows = encode(frame, TASKS["bbc-headline"], tokenizer, max_length=40)
    assert len(rows[0]["input_ids"]) <= 40
    for row, title in zip(rows, frame["headline"], strict=True):  # the cue stays, whatever is cut
        assert tokenizer.decode(row["input_ids"], skip_special_tokens=True).endswith("Headline:")
        assert tokenizer.decode(row["labels"]) == title + "</s>"
    batch = Collate(tokenizer, TASKS["bbc-headline"])(rows)
    assert batch["labels"].shape[1] < batch["input_ids"].shape[1]
    assert batch["labels"][1, -1] == -100


@asset
def test_causal_text():
    tokenizer = AutoTokenizer.from_pretrained(converted("smollm2-135m"))
    task = TASKS["bbc-headline"]
    frame = frame_of(lead=["word " * 300, "short"], headline=["A long title", "B"])
    rows = encode(frame, task, tokenizer, max_length=40, causal=True)
    assert len(rows[0]["input_ids"]) <= 41
    for row, title in zip(rows, frame["headline"], strict=True):
        learned = [label for label in row["labels"] if label != -100]
        assert row["input_ids"][-len(learned) :] == learned
        assert tokenizer.decode(learned) == f" {title}{tokenizer.eos_token}"
        prompt = row["input_ids"][: -len(learned)]
        assert tokenizer.decode(prompt).endswith("\nHeadline:")
        assert set(row["labels"][: len(prompt)]) == {-100}
    batch = Collate(tokenizer, task, causal=True)(rows)
    pads = batch["attention_mask"] == 0
    assert batch["labels"][pads].unique().tolist() == [-100]
    assert batch["labels"].shape == batch["input_ids"].shape
    # the closing token is learned although it is the pad token too
    assert batch["labels"][1][batch["attention_mask"][1] == 1][-1] == tokenizer.eos_token_id


@asset
def test_causal_is_for_text_only(bert):
    with pytest.raises(ValueError, match="tasks that write text"):
        encode(frame_of(sentence=["a"], label=[1]), TASKS["cola"], bert, causal=True)
    with pytest.raises(ValueError, match="tasks that write text"):
        Collate(bert, TASKS["cola"], causal=True)

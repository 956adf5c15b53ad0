"""Tasks: the counts, splits that do not leak, rows that cannot be used, and the way from rows to tensors."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TOKENIZERS, tokenizer_of
from transformers import AutoTokenizer

from lowrank_teach.models import backbones
from lowrank_teach.models.convert import converted
from lowrank_teach.models.packaged import fetch
from lowrank_teach.tasks import readers
from lowrank_teach.tasks.load import load_task
from lowrank_teach.tasks.metrics import METRICS
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.tasks.tokenize import Collate, encode, prompt_of

asset = pytest.mark.asset
PACKAGED = [name for name, task in TASKS.items() if task.reader is not None]


@pytest.fixture(autouse=True)
def _no_folder_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOWRANK_TEACH_DATA", raising=False)
    monkeypatch.setattr(backbones, "is_reachable", lambda: False)


@pytest.fixture(scope="module")
def bert():
    return AutoTokenizer.from_pretrained(fetch("minilm-l6"))


def texts(frame: pd.DataFrame, column: str) -> list[str]:
    """Normalised; token lists are joined."""
    return [readers.normalised(v if isinstance(v, str) else " ".join(v)) for v in frame[column]]


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
    articles, data = readers.bbc_articles(), load_task("bbc-match")
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


def test_parts_of_a_split_are_all_there_and_alike(tmp_path, monkeypatch):
    """Of a set that was copied in half, the other half would be missing without a word."""
    folder = tmp_path / "cola"
    folder.mkdir()
    rows = pd.DataFrame({"sentence": [f"word {i}" for i in range(8)], "label": [0, 1] * 4})
    first, second = (folder / f"train-0000{i}-of-00002.parquet" for i in range(2))
    rows.to_parquet(first)
    rows.to_parquet(folder / "validation-00000-of-00001.parquet")
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"has 1 of the 2 parts that the name of train-00000"):
        load_task("cola")
    rows.rename(columns={"sentence": "text"}).to_parquet(second)
    with pytest.raises(ValueError, match=r"train-00001-of-00002.* have other columns \(sentence, text\)"):
        load_task("cola")
    rows.assign(sentence=rows["sentence"] + " more").to_parquet(second)
    assert len(load_task("cola").train) == 16


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
        ({"sentence": [1, 2, 3]},
         r"column 'sentence', row 0 of cola/train.parquet \(the first is row 0\): 1: text must be a string"),
        ({"label": [0, 1, 2]}, r"column 'label', row 2 of .*: 2: labels must be 0 to 1 \(unacceptable, acceptable\)"),
        ({"label": [0.0, 1.0, np.nan]}, r"column 'label', row 2 of .*: nan"),
        ({"label": [0.0, 0.5, 1.0]}, r"column 'label', row 1 of .*: 0\.5"),
        ({"label": ["0", "1", "1"]}, r"column 'label', row 0 of .*: '0'"),
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


def test_scores_and_tags_are_checked_and_names_become_codes(folder):
    for split in ("train", "validation"):
        put(folder, "stsb", split, sentence1=["a", "b"], sentence2=["c", "d"], label=[0.5, np.inf])
    with pytest.raises(ValueError, match=r"stsb, train, column 'label', row 1.*finite"):
        load_task("stsb")

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
    with pytest.raises(ValueError, match=r"row 1 of wnut16/train.parquet .*: 1 tokens but 2 tags"):
        load_task("wnut16")


@pytest.mark.parametrize("line", ["null", "3", '["a", 1]'])
def test_a_line_of_json_that_is_no_row(folder, line):
    (folder / "cola").mkdir()
    good = '{"sentence": "a word", "label": 1}\n{"sentence": "a second", "label": 0}\n'
    (folder / "cola" / "train.jsonl").write_text(good + line + "\n")
    (folder / "cola" / "validation.jsonl").write_text(good)
    with pytest.raises(ValueError, match=r"train.jsonl is no readable jsonl file \(row 2 is .* must be an object"):
        load_task("cola")


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
    for wrong in (0, "5", 2.5, True, [3]):
        with pytest.raises(ValueError, match=r"n_train = .*; ask for a whole number of rows"):
            load_task("rt", n_train=wrong)


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


# ---- rows of every kind of tokenizer ---------------------------------------------------------------------

PROMPTS = [("the cat", "sat on the mat."), ("name : The Mill | eatType : pub", "12 rooms"), ("é ü", "ä ö"),
           ("the cat", ""), ("", "the mat"), ("the cat ", " the mat"), ("Headline: a cat", "Maybe")]  # text, target


@pytest.fixture(scope="module", params=TOKENIZERS)
def as_trained(request, tmp_path_factory):
    if request.param == "SentencePiece":
        pytest.importorskip("sentencepiece")
    return tokenizer_of(request.param, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tokenizer(as_trained):
    return copy.deepcopy(as_trained)


def without_end(ids: list[int], tokenizer) -> list[int]:
    return ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def first_of(target: int, text: str, tokenizer) -> int:
    """The place of the first token that has the letter at `target` or a later one."""
    if not tokenizer.is_fast:  # of tokens that never reach over a space, and bytes: the prompt's own come first
        return len(without_end(tokenizer(text[:target])["input_ids"], tokenizer))
    encoding = tokenizer(text)
    found = [place for letter in range(target, len(text)) if (place := encoding.char_to_token(letter)) is not None]
    return min(found, default=len(without_end(encoding["input_ids"], tokenizer)))


def test_prompt_and_target_are_tokenised_at_once(tokenizer):
    """The row has the tokens of the text, and the mask ends where the target begins."""
    task = TASKS["xsum"]
    frame = frame_of(document=[text for text, _ in PROMPTS], summary=[target for _, target in PROMPTS])
    for (text, target), row in zip(PROMPTS, encode(frame, task, tokenizer, 128, causal=True), strict=True):
        prompt = task.prompt.format(text)
        whole = f"{prompt} {target}"
        assert row["input_ids"] == [*without_end(tokenizer(whole)["input_ids"], tokenizer), tokenizer.eos_token_id]
        given = prompt_of(row)
        assert len(given) == first_of(len(prompt), whole, tokenizer), (text, target)
        assert row["labels"] == [-100] * len(given) + row["input_ids"][len(given):]


def test_a_token_that_reaches_over_the_boundary_is_the_target_s():
    tokenizer = tokenizer_of("over spaces")
    row = encode(frame_of(document=["the cat"], summary=["12"]), TASKS["xsum"], tokenizer, 64, causal=True)[0]
    learned = [token for token in row["labels"] if token != -100]
    assert ":▁" in tokenizer.convert_ids_to_tokens(learned)[0]
    assert ":" not in tokenizer.decode(prompt_of(row))


@pytest.mark.parametrize("name", ["sst2-prompt", "boolq-prompt", "cb-prompt"])
def test_a_prompt_and_each_answer_are_tokenised_at_once(tokenizer, name):
    """Of each class the model scores the tokens of the text, and what it is given is the same for all."""
    task = TASKS[name]
    asked = {"sst2-prompt": "the cat It was ", "boolq-prompt": "the mat. Yes or No? ", "cb-prompt": "the cat\n"}[name]
    row = encode(frame_of(prompt=[asked], label=[1]), task, tokenizer, 128, causal=True)[0]
    for word, tokens in zip(task.words, row["choices"], strict=True):
        assert prompt_of(row) + tokens == without_end(tokenizer(asked + word)["input_ids"], tokenizer)
    assert [token for token in row["labels"] if token != -100] == row["choices"][1]
    assert len(prompt_of(row)) == min(first_of(len(asked), asked + word, tokenizer) for word in task.words)


def rows_of_all_kinds(tokenizer, length: int) -> dict[str, list[dict]]:
    """Long rows of each kind of task that this tokenizer can be used for."""
    long, few = "the cat sat on the mat. " * 40, "a cat"
    rows = {"one text": encode(frame_of(sentence=[long, few], label=[0, 1]), TASKS["cola"], tokenizer, length),
            "a pair": encode(frame_of(sentence1=[long, few], sentence2=[long, long], label=[1.0, 2.0]),
                             TASKS["stsb"], tokenizer, length),
            "answer": encode(frame_of(prompt=[long + "Yes or No?\n", few], label=[0, 1]), TASKS["rte-prompt"],
                             tokenizer, length, causal=True)}
    texts = frame_of(document=[long, few, long, "ä" * 90], summary=[few, long, long, "ü" * 90])
    for causal in (False, True):
        rows[f"text, {causal}"] = encode(texts, TASKS["xsum"], tokenizer, length, causal=causal)
    if tokenizer.is_fast:
        rows["tags"] = encode(frame_of(tokens=[long.split(), few.split()], tags=[[3] * 240, [3, 0]]),
                              TASKS["wnut16"], tokenizer, length)
    return rows


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_row_is_longer_than_asked_whatever_the_tokenizer_s_sides(tokenizer, side):
    tokenizer.truncation_side = tokenizer.padding_side = side
    for length in (40, 64):
        for kind, rows in rows_of_all_kinds(tokenizer, length).items():
            assert max(len(row["input_ids"]) for row in rows) <= length, kind
            assert max(len(row["input_ids"]) for row in rows) > length // 2, kind  # some tokens have many words
            if kind.startswith("text"):
                assert all(sum(token != -100 for token in row["labels"]) <= TASKS["xsum"].max_target for row in rows)
                for row in rows:  # the cue stays; of a text too long its end goes, of a target too
                    given = tokenizer.decode(prompt_of(row) if kind == "text, True" else row["input_ids"])
                    end = given.replace(tokenizer.eos_token, "").replace(" ", "").lower()
                    assert end.endswith(("summary:", "su")), given  # "mmary:▁" is one token of "over spaces"
            if kind == "answer":
                assert "yes or no?" in tokenizer.decode(prompt_of(rows[0])).lower()
    assert tokenizer.truncation_side == side


@pytest.mark.parametrize("side", ["left", "right"])
def test_of_what_is_too_long_the_end_goes(tokenizer, side):
    tokenizer.truncation_side = side
    long = "the cat sat on the mat. " * 40
    rows = rows_of_all_kinds(tokenizer, 48)
    for causal in ("True", "False"):
        learned = [token for token in rows[f"text, {causal}"][1]["labels"] if token != -100]
        assert causal == "False" or learned[-1] == tokenizer.eos_token_id
        assert "thecatsaton" in tokenizer.decode(learned, skip_special_tokens=True).replace(" ", "")[:20]
    if "tags" in rows:
        assert rows["tags"][0]["words"] == list(range(len(rows["tags"][0]["words"])))
    seen = tokenizer.decode(rows["one text"][0]["input_ids"], skip_special_tokens=True).replace(" ", "")
    assert (long.replace(" ", "").startswith(seen) if side == "right" else long.replace(" ", "").endswith(seen))


@pytest.mark.parametrize(("name", "columns"), [
    ("cola", {"sentence": ["the cat"], "label": [0]}), ("xsum", {"document": ["the cat"], "summary": ["a"]}),
    ("rte-prompt", {"prompt": ["the cat\n"], "label": [0]})])
def test_a_length_that_has_no_room_is_refused(name, columns):
    tokenizer, causal = tokenizer_of("WordPiece"), TASKS[name].kind != "classification"
    for length in (0, 1):
        with pytest.raises(ValueError, match=f"max_length = {length} ") as caught:
            encode(frame_of(**columns), TASKS[name], tokenizer, length, causal=causal)
        assert len(str(caught.value)) <= 300


def test_a_long_text_is_cut_without_a_word(caplog):
    """transformers warns of rows that its model has no positions for, when they are not yet cut."""
    tokenizer = tokenizer_of("Unigram")
    tokenizer.model_max_length = 16
    rows_of_all_kinds(tokenizer, 64)
    assert "longer than" not in caplog.text


def test_tokenizers_that_cannot_be_used_are_refused():
    """And causal rows of a task that writes no text."""
    plain = tokenizer_of("WordPiece")
    for make in (lambda: encode(frame_of(sentence=["a"], label=[1]), TASKS["cola"], plain, causal=True),
                 lambda: Collate(plain, TASKS["cola"], causal=True)):
        with pytest.raises(ValueError, match="tasks that write text"):
            make()
    frame = frame_of(tokens=[["a"]], tags=[[0]])
    with pytest.raises(ValueError, match="take the fast tokenizer"):
        encode(frame, TASKS["wnut16"], tokenizer_of("ByT5"))
    endless = tokenizer_of("byte-level BPE")
    endless.eos_token = None
    with pytest.raises(ValueError, match="no token that ends a text"):
        encode(frame_of(document=["a"], summary=["b"]), TASKS["xsum"], endless, causal=True)

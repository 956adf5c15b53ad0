"""Tasks of the four papers: every published layout of their files, a bad cell in each, rows put together as
published, subsets by seed, words scored by a causal model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import Letters, tokenizer_of
from tiny_models import model_folder
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

from lowrank_teach.models.packaged import fetch
from lowrank_teach.tasks import readers
from lowrank_teach.tasks.evaluate import choose, evaluate
from lowrank_teach.tasks.load import load_task, load_transfer
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.tasks.tokenize import IGNORED, Collate, encode

SUPERGLUE = ("wsc", "cb", "wic", "boolq", "multirc")
PROMPTED = (*SUPERGLUE, "rte", "sst2")
ROWS = {"e2e": (42061, 4672, 4693), "webnlg": (18102, 2268, 4928), "jnlpba": (16807, 1739, 3856),
        "bionlp13pc": (2499, 857, 1695), "yelp": (90000, 4000, 1000)}  # fmt: skip


# ---- every published layout, and a bad cell in each column ----------------------------------------------------

N, BAD = 120, 5   # rows of a file, and the one that is spoiled


def _said(word: str) -> list[str]:
    return [f"{word} {i} is told." for i in range(N)]


def _codes(n: int) -> list[int]:
    return [i % n for i in range(N)]


_PAIR = {"sentence1": _said("first"), "sentence2": _said("second")}
_IDX = {"idx": list(range(N))}
_TOKENS = {"id": [str(i) for i in range(N)], "tokens": [["the", f"p{i}", "gene"] for i in range(N)]}
_WIC = {"word": ["bank"] * N, **_PAIR, "start1": [0] * N, "end1": [4] * N}
_WEBNLG = {"category": ["Airport"] * N, "eid": [f"Id{i}" for i in range(N)], "size": [1] * N}
# task: columns of its file that are used, and others
LAYOUTS: dict[str, tuple[dict, dict]] = {
    "cola": ({"sentence": _said("it"), "label": _codes(2)}, _IDX),
    "sst2-prompt": ({"sentence": _said("it"), "label": _codes(2)}, _IDX),
    "mrpc": ({**_PAIR, "label": _codes(2)}, _IDX), "rte-prompt": ({**_PAIR, "label": _codes(2)}, _IDX),
    "stsb": ({**_PAIR, "label": [i % 11 / 2 for i in range(N)]}, _IDX),
    "mnli": ({"premise": _said("it"), "hypothesis": _said("that"), "label": _codes(3)}, _IDX),
    **{name: ({"text": _said("it"), "span1_text": ["Ann"] * N, "span2_text": ["she"] * N, "label": _codes(2)},
              {**_IDX, "span1_index": [0] * N}) for name in ("wsc", "wsc-prompt")},
    **{name: ({"premise": _said("it"), "hypothesis": _said("that"), "label": _codes(3)}, _IDX)
       for name in ("cb", "cb-prompt")},
    **{name: ({k: v for k, v in _WIC.items() if k in ("word", "sentence1", "sentence2")} | {"label": _codes(2)},
              {**_IDX, "start1": [0] * N}) for name in ("wic", "wic-prompt")},
    **{name: ({"question": _said("is it"), "passage": _said("it"), "label": _codes(2)}, _IDX)
       for name in ("boolq", "boolq-prompt")},
    **{name: ({"paragraph": _said("it"), "question": _said("is it"), "answer": _said("yes"), "label": _codes(2),
               "idx": [{"paragraph": i // 4, "question": i // 2, "answer": i} for i in range(N)]}, {})
       for name in ("multirc", "multirc-prompt")},
    "e2e": ({"meaning_representation": [f"name[A{i}], area[riverside]" for i in range(N)],
             "human_reference": _said("a place")}, {}),
    "webnlg": ({**_WEBNLG, "triples": [[f"A{i} | owns | B"] for i in range(N)], "eval_category": ["seen"] * N,
                "lexicalizations": [[f"A{i} owns B.", "So."] for i in range(N)]}, {}),
    "webnlg (hub)": ({**_WEBNLG, "modified_triple_sets": [{"mtriple_set": [[f"A{i} | owns | B"]]} for i in range(N)],
                      "lex": [{"text": [f"A{i} owns B."], "lid": ["Id1"]} for i in range(N)]},
                     {"shape": ["(X)"] * N}),
    "xsum": ({"document": _said("long"), "summary": _said("short")}, {"id": [str(i) for i in range(N)]}),
    "alpaca": ({"instruction": _said("say"), "input": ["", "more"] * (N // 2), "output": _said("yes")}, {}),
    "jnlpba": ({**_TOKENS, "ner_tags": [["O", "B-DNA", "I-DNA"]] * N}, {}),
    "jnlpba (hub)": ({**_TOKENS, "tags": [[0, 9, 10]] * N}, {}),
    "wnut16": ({"tokens": _TOKENS["tokens"], "tags": [["O", "B-person", "O"]] * N}, {}),
    "yelp": ({"text": _said("it"), "label": _codes(2)}, {"reference": _said("other")}),
    "rt": ({"text": _said("it"), "label": _codes(2)}, {}),
    "trec (hub)": ({"text": _said("what"), "coarse_label": _codes(6)}, {"fine_label": _codes(50)}),
    "trec-fine (hub)": ({"text": _said("what"), "fine_label": _codes(50)}, {"coarse_label": _codes(6)}),
}  # fmt: skip
for _name in ("jnlpba", "jnlpba (hub)"):   # its number is nobody's input
    LAYOUTS[_name][1]["id"] = LAYOUTS[_name][0].pop("id")


def put(root: Path, layout: str, kind: str = "parquet", split: str = "", **spoiled: list) -> str:
    """The files of a task in one layout; `spoiled` columns go into one split. Returns the task's name."""
    task = TASKS[layout.split()[0]]
    folder = root / (task.folder or task.name)
    folder.mkdir(exist_ok=True)
    for name in ("train", "validation", "test") if task.resplit is None else ("train", "validation"):
        used, unused = LAYOUTS[layout]
        frame = pd.DataFrame({**used, **unused, **(spoiled if name == split else {})})
        WRITERS[kind](frame, folder, task.files.get(name, name))
    return task.name


def _in_parts(frame: pd.DataFrame, folder: Path, name: str) -> None:
    for i in range(2):
        frame[i * N // 2:(i + 1) * N // 2].to_parquet(folder / f"{name}-{i:05}-of-00002.parquet")


def _in_a_folder(frame: pd.DataFrame, folder: Path, name: str) -> None:
    (folder / name).mkdir()
    frame.to_parquet(folder / name / "0000.parquet")


WRITERS = {
    "parquet": lambda frame, folder, name: frame.to_parquet(folder / f"{name}.parquet"),
    "parts": _in_parts, "a folder": _in_a_folder,
    "lines": lambda frame, folder, name: frame.to_json(folder / f"{name}.jsonl", orient="records", lines=True),
    "json": lambda frame, folder, name: frame.to_json(folder / f"{name}.json", orient="records"),
}  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    return tmp_path


def shown(name: str) -> dict[str, list]:
    """The rows of each split as text: what is read, what is learned, what is scored together."""
    data = load_task(name)
    task = data.task
    columns = [*task.text, task.label, *filter(None, (task.group, task.part))]
    return {split: getattr(data, split)[columns].astype(str).values.tolist()
            for split in ("train", "validation", "test") if getattr(data, split) is not None}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_alike_from_every_kind_of_file(layout, tmp_path, monkeypatch):
    found = {}
    for kind in WRITERS:
        (tmp_path / kind).mkdir()
        monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path / kind))
        found[kind] = shown(put(tmp_path / kind, layout, kind))
    assert all(found[kind] == found["parquet"] for kind in WRITERS)
    assert all(len(rows) > 1 for rows in found["parquet"].values())
    assert "nan" not in str(found["parquet"])


def test_the_hub_s_numbers_of_questions_keep_their_names(root):
    """CogComp/trec numbers its fine classes in another order: 45 is NUM:perc there, and NUM:period here."""
    name = put(root, "trec-fine (hub)")
    train = load_task(name).train
    assert set(train.loc[train["fine_label"] == 45, "label"]) == {TASKS[name].labels.index("NUM:perc")}
    assert set(train.loc[train["fine_label"] == 24, "label"]) == {TASKS[name].labels.index("DESC:def")}


SPOILED = {"null": None, "bytes": b"bytes", "a number": 7}


def refusal(name: str) -> str:
    with pytest.raises(ValueError, match=rf"^{name}, train, ") as caught:
        load_task(name)
    assert len(str(caught.value)) <= 300
    return str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cell_that_cannot_be_used_is_named_as_its_owner_numbers_it(layout, root):
    """In the file's own rows: several of these tasks are cut anew, and all are put into another order.

    A cell that nobody reads may be empty.
    """
    used, unused = LAYOUTS[layout]
    name = put(root, layout)
    whole, folder = shown(name), root / (TASKS[name].folder or name)
    for column, values in unused.items():
        put(root, layout, "parquet", "train", **{column: [*values[:BAD], None, *values[BAD + 1:]]})
        assert shown(name) == whole, column
    for column, good in used.items():
        bad = [value for value in SPOILED.values() if value is None or isinstance(good[0], str)]
        bad += [["a", None]] if isinstance(good[0], list) and isinstance(good[0][0], str) else []
        for value in bad:
            shutil.rmtree(folder)
            kind = "json" if value == 7 else "parquet"   # a column of Parquet has one type
            row, values = (0, [value] * N) if isinstance(value, bytes) else (
                BAD, [*good[:BAD], value, *good[BAD + 1:]])
            put(root, layout, kind, "train", **{column: values})
            place = f"row {row} of {folder.name}/train.{kind} (the first is row 0): "
            assert f"column '{column}', {place}" in refusal(name)


def test_a_row_of_a_part_is_numbered_in_its_own_file(root):
    name = put(root, "boolq", "parts", "train", passage=[
        *_said("it")[:N // 2 + BAD], None, *_said("it")[:N // 2 - BAD - 1]])
    assert f"row {BAD} of boolq/train-00001-of-00002.parquet (the first is row 0)" in refusal(name)


def test_a_line_of_json_may_hold_other_ends_of_a_line(root):
    folder = root / "rt"
    folder.mkdir()
    rows = [{"text": f"one\u2028two\x85three {i}", "label": i % 2} for i in range(4)]
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert sorted(load_task("rt").train["text"]) == [row["text"] for row in rows]
    (folder / "train.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"rt, train: .*train\.jsonl is no readable jsonl file"):
        load_task("rt")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_texts_are_read_as_they_are(layout, root, tmp_path_factory):
    """A published set has them (XSum, QQP, the inputs of Alpaca): a row of nothing is a row all the same."""
    texts = {column: ["" if i == BAD else text for i, text in enumerate(values)]
             for column, values in LAYOUTS[layout][0].items() if isinstance(values[0], str)}
    data = load_task(put(root, layout, "parquet", "train", **texts))
    if layout != "alpaca":   # its rows without an answer are left out
        assert len(data.train) + len(data.validation) >= N
    tokenizer, causal = tokenizer_of("byte-level BPE"), data.task.kind in ("seq2seq", "choice")
    for row in encode(data.train, data.task, tokenizer, 200, causal=causal):
        assert 1 <= len(row["input_ids"]) <= 200
        assert data.task.kind in ("classification", "regression") or any(token != IGNORED for token in row["labels"])


@pytest.mark.parametrize("layout", ["jnlpba", "wnut16"])
def test_a_sentence_without_words_is_refused(layout, root):
    tokens = LAYOUTS[layout][0]["tokens"]
    name = put(root, layout, "parquet", "train", tokens=[*tokens[:BAD], [], *tokens[BAD + 1:]])
    assert "tokens must be a list of strings, at least one" in refusal(name)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "(" not in name])
@pytest.mark.parametrize("hidden", ["-1", "null", "no column"])
def test_test_rows_without_labels_are_passed_over(layout, hidden, root):
    """As GLUE and SuperGLUE publish theirs; training and validation rows without labels are refused."""
    task = TASKS[put(root, layout)]
    label = "lexicalizations" if task.name == "webnlg" else task.label
    if (task.kind in ("seq2seq", "tagging") and hidden == "-1") or label != task.label:
        pytest.skip("no such layout")
    folder = root / (task.folder or task.name)
    frame = pd.DataFrame({k: v for k, v in LAYOUTS[layout][0].items() if k != label})
    values = {"-1": {label: [-1] * N}, "null": {label: [None] * N}, "no column": {}}[hidden]
    frame.assign(**values).to_parquet(folder / "test.parquet")
    data = load_task(task.name)
    assert data.source.endswith("; the test rows have no labels and are passed over")
    assert data.test is None or task.resplit is not None
    frame.assign(**values).to_parquet(folder / "train.parquet")
    with pytest.raises(ValueError, match=rf"^{task.name}, train[,:] "):
        load_task(task.name)


@pytest.mark.parametrize("layout", ["cola", "stsb"])
def test_some_test_rows_without_labels_are_no_hidden_test_set(layout, root):
    name = put(root, layout, "parquet", "test", label=[*LAYOUTS[layout][0]["label"][:-1], None])
    with pytest.raises(ValueError, match=rf"{name}, test, column 'label', row {N - 1} of {name}/test.parquet"):
        load_task(name)


def test_sets_that_a_folder_lacks(root):
    for layout, keep in (("xsum", "validation"), ("alpaca", "test"), ("boolq", "train")):
        folder = root / (TASKS[put(root, layout)].folder or layout)
        pd.read_parquet(folder / "train.parquet").to_parquet(folder / f"{keep}.parquet")
        for file in folder.glob("*.parquet"):
            if file.stem != keep:
                file.unlink()
        with pytest.raises(FileNotFoundError, match=rf"^{layout}: no \w+ rows, and those of {keep} alone"):
            load_task(layout)


def test_columns_of_another_layout_are_refused_in_a_sentence(root):
    """SuperGLUE's own WSC nests its spans, GEM's E2E calls its columns otherwise."""
    for layout, columns in (("wsc", {"text": ["a"], "target": [{"span1_text": "b"}], "label": [True]}),
                            ("e2e", {"meaning_representation": ["name[A]"], "references": [["A."]]}),
                            ("boolq", {"q": ["a"], "label": [0]}),
                            ("alpaca", {"conversations": [[{"from": "human", "value": "Hi"}]]})):
        folder = root / (TASKS[layout].folder or layout)
        folder.mkdir()
        for split in ("train", "validation", "test"):
            pd.DataFrame(columns).to_parquet(folder / f"{split}.parquet")
        says = rf"its columns \['{next(iter(columns))}'.* are not those of the published set.*; rename or repair them"
        with pytest.raises(ValueError, match=f"{layout}, train: {says}"):
            load_task(layout)


def test_a_reference_that_is_missing_is_found_where_it_is_read(root):
    name = put(root, "yelp", "parquet", "test", reference=[*_said("other")[:BAD], None, *_said("other")[BAD + 1:]])
    assert len(load_task(name).test) == N
    with pytest.raises(ValueError, match=rf"column 'reference', row {BAD} of yelp_style/test.parquet"):
        load_transfer("yelp-transfer")


# ---- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ROWS)
def test_published_counts(name, shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    data = load_task(name)
    assert (len(data.train), len(data.validation), len(data.test)) == ROWS[name]


@pytest.mark.shared
@pytest.mark.parametrize("name", [*SUPERGLUE, *(f"{name}-prompt" for name in PROMPTED)])
def test_the_paper_s_subsets(name, shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    data, again, other = load_task(name), load_task(name), load_task(name, seed=1)
    text = data.task.text[0]
    assert data.train.equals(again.train)
    assert not data.train[text].equals(other.train[text])
    assert len(data.train) <= 1000
    assert len(data.validation) in (100, 500)
    assert set(data.test["label"]) == set(range(len(data.task.labels)))
    whole = {"wsc": (454, 104), "cb": (150, 56), "boolq": (1000, 1000), "multirc": (1000, 1000)}
    assert (len(data.train), len(data.test)) == whole.get(name.removesuffix("-prompt"), (1000, len(data.test)))


@pytest.mark.shared
def test_rows_that_no_file_has_are_cut_from_others(shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    for name, column in (("alpaca", "instruction"), ("xsum", "document")):
        data = load_task(name)
        parts = [set(frame[column]) for frame in (data.train, data.validation, data.test)]
        assert all(len(part) > 50 for part in parts)
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert "published: " in data.source


@pytest.mark.shared
def test_references_of_one_input_stay_together(shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    few, all_ = load_task("e2e", n_test=50).test, load_task("e2e").test
    assert 50 <= len(few) < 100
    last = few["meaning_representation"].iloc[-1]
    assert (few["meaning_representation"] == last).sum() == (all_["meaning_representation"] == last).sum()
    parts = load_task("webnlg").test["part"].value_counts()
    assert set(parts.index) == {"seen", "unseen"}


def test_texts_put_together():
    e2e = readers.e2e(pd.DataFrame({"meaning_representation": ["name[Blue Spice], area[city centre]"],
                                    "human_reference": ["A place. "]}))  # fmt: skip
    assert e2e.iloc[0]["source"] == "name : Blue Spice | area : city centre"
    webnlg = readers.webnlg(pd.DataFrame({"category": ["Airport"], "eid": ["Id1"], "size": [1],
                                          "triples": [["A | cityServed | B"]], "eval_category": ["seen"],
                                          "lexicalizations": [["A serves B.", "B has A."]]}))  # fmt: skip
    assert webnlg[["source", "target", "entry"]].values.tolist() == [
        ["A : cityServed : B", "A serves B.", "Airport.Id1.1"], ["A : cityServed : B", "B has A.", "Airport.Id1.1"]]
    boolq = readers.boolq(pd.DataFrame({"question": ["is it so"], "passage": ["It is."]}))
    assert boolq["prompt"].tolist() == ["It is. Is it so? "]
    rows = pd.DataFrame({"instruction": ["Add.", "Say."], "input": ["1 1", ""], "output": ["2", "hi"]})
    one, two = readers.alpaca(rows)["text"]
    assert "### Input:\n1 1" in one
    assert "Input" not in two


def test_mismatched_rows_share_the_training_rows(root):
    (root / "mnli").mkdir()
    for split, n in {"train": 30, "validation_matched": 6, "validation_mismatched": 9}.items():
        pd.DataFrame({"premise": [f"{split} {i}" for i in range(n)], "hypothesis": "So.",
                      "label": [i % 3 for i in range(n)]}).to_parquet(root / "mnli" / f"{split}.parquet")
    matched, other = load_task("mnli", n_train=12), load_task("mnli-mm", n_train=12)
    assert matched.train.equals(other.train)  # the same rows in the same order: one model, two sets to score it on
    assert matched.validation["premise"].str.startswith("validation_matched").all()
    assert other.validation["premise"].str.startswith("validation_mismatched").all()
    assert (len(matched.validation), len(other.validation)) == (6, 9)
    (root / "mnli" / "validation_mismatched.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"or unset LOWRANK_TEACH_DATA for the hub's nyu-mll/glue/mnli"):
        load_task("mnli-mm")


# ---- tags ---------------------------------------------------------------------------------------------------


def test_words_that_were_cut_off_count_as_missed(tmp_path):
    """Four entities of one word, of which two fit: all found that can be, and half of all."""
    pytest.importorskip("seqeval")
    tokenizer = AutoTokenizer.from_pretrained(model_folder(tmp_path))
    task, code = TASKS["jnlpba"], TASKS["jnlpba"].labels.index("B-DNA")
    frame = pd.DataFrame({"tokens": [["good", "film", "is", "warm"]], "ner_tags": [[code] * 4]})
    model = BertForTokenClassification(BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        num_labels=len(task.labels)))  # fmt: skip
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.eye(len(task.labels))[code] * 9)  # always B-DNA
    scores = {}
    for length in (4, 2):
        rows = encode(frame, task, tokenizer, length)
        assert len(rows[0]["words"]) == length
        assert rows[0]["reference"] == ["B-DNA"] * 4
        scores[length] = evaluate(model, rows, Collate(tokenizer, task), task)["entity_f1"]
    assert scores == {4: 1.0, 2: pytest.approx(2 / 3)}


@pytest.mark.shared
@pytest.mark.asset
@pytest.mark.parametrize("name", ["jnlpba", "bionlp13pc"])
def test_first_pieces_carry_the_tags_of_real_words(name, shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    data, tokenizer = load_task(name, n_test=200), AutoTokenizer.from_pretrained(fetch("minilm-l6"))
    pieces = 0
    for row, words, tags in zip(encode(data.test, data.task, tokenizer), data.test["tokens"], data.test["ner_tags"],
                                strict=True):  # fmt: skip
        kept = [label for label in row["labels"] if label != IGNORED]
        assert row["words"] == list(range(len(words)))  # nothing was cut off or lost
        assert kept == tags
        assert row["reference"] == [data.task.labels[tag] for tag in tags]
        first = [tokenizer.decode([t]) for t, label in zip(row["input_ids"], row["labels"], strict=True)
                 if label != IGNORED]  # fmt: skip
        assert not any(piece.startswith("##") for piece in first)
        pieces += len(row["labels"]) - len(kept) - 2
    assert pieces > 1000  # long words did fall into pieces


# ---- words scored by a causal model -------------------------------------------------------------------------


@pytest.fixture
def rows():
    asks = [f"{'ab' * (i % 4)} is it? " for i in range(9)]
    frame = pd.DataFrame({"prompt": asks, "label": [i % 3 for i in range(9)]})
    return encode(frame, TASKS["cb-prompt"], Letters(), causal=True)


def test_the_likeliest_word_is_chosen_whatever_the_batch(decoder, rows):
    collate = Collate(Letters(), TASKS["cb-prompt"], causal=True)
    got = choose(decoder, rows, collate, batch_size=4)
    by_hand = []
    for row in rows:
        prompt = [t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
        means = []
        for word in row["choices"]:
            with torch.no_grad():
                logs = decoder(input_ids=torch.tensor([prompt + word])).logits[0].log_softmax(-1)
            means.append(sum(float(logs[len(prompt) - 1 + j, t]) for j, t in enumerate(word)) / len(word))
        by_hand.append(max(range(3), key=means.__getitem__))
    assert got == by_hand == choose(decoder, rows, collate, batch_size=100)
    assert len(set(got)) > 1


def test_only_the_word_is_learned_and_the_question_is_kept(rows):
    assert all([t for t in row["labels"] if t != IGNORED] in row["choices"] for row in rows)
    long = pd.DataFrame({"prompt": ["x" * 90 + "Yes or No?"], "label": [1]})
    row = encode(long, TASKS["boolq-prompt"], Letters(), 20, causal=True)[0]
    assert len(row["input_ids"]) <= 20
    asked = Letters()("Yes or No?")["input_ids"]
    assert row["input_ids"][: -len(row["choices"][1])][-len(asked):] == asked


def test_a_few_steps_teach_the_words(decoder, rows):
    task, collate = TASKS["cb-prompt"], Collate(Letters(), TASKS["cb-prompt"], causal=True)
    same = [row for row in rows if row["labels"] == rows[0]["labels"]] or rows[:1]
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    for _ in range(30):
        loss = decoder(**collate(same)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    found = evaluate(decoder, same, collate, task)
    assert found["accuracy"] == 1.0
    assert found["loss"] < 0.1

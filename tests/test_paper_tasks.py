"""Tasks of the four papers: rows put together as published, subsets by seed, words scored by a causal model."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from helpers import Letters
from small import model_folder
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification

from lowrank_teach.assets import fetch
from lowrank_teach.evaluate import choose, evaluate
from lowrank_teach.features import IGNORED, Collate, encode
from lowrank_teach.tasks import TASKS, load_task, prepare

SUPERGLUE = ("wsc", "cb", "wic", "boolq", "multirc")
PROMPTED = (*SUPERGLUE, "rte", "sst2")
ROWS = {"e2e": (42061, 4672, 4693), "webnlg": (18102, 2268, 4928), "jnlpba": (16807, 1739, 3856),
        "bionlp13pc": (2499, 857, 1695), "yelp": (90000, 4000, 1000)}  # fmt: skip


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
    e2e = prepare.e2e(pd.DataFrame({"meaning_representation": ["name[Blue Spice], area[city centre]"],
                                    "human_reference": ["A place. "]}))  # fmt: skip
    assert e2e.iloc[0]["source"] == "name : Blue Spice | area : city centre"
    webnlg = prepare.webnlg(pd.DataFrame({"category": ["Airport"], "eid": ["Id1"], "size": [1],
                                          "triples": [["A | cityServed | B"]], "eval_category": ["seen"],
                                          "lexicalizations": [["A serves B.", "B has A."]]}))  # fmt: skip
    assert webnlg[["source", "target", "entry"]].values.tolist() == [
        ["A : cityServed : B", "A serves B.", "Airport.Id1.1"], ["A : cityServed : B", "B has A.", "Airport.Id1.1"]]
    boolq = prepare.boolq(pd.DataFrame({"question": ["is it so"], "passage": ["It is."]}))
    assert boolq["prompt"].tolist() == ["It is. Is it so? "]
    rows = pd.DataFrame({"instruction": ["Add.", "Say."], "input": ["1 1", ""], "output": ["2", "hi"]})
    one, two = prepare.alpaca(rows)["text"]
    assert "### Input:\n1 1" in one
    assert "Input" not in two


def test_other_columns_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    (tmp_path / "boolq").mkdir()
    for split in ("train", "validation"):
        pd.DataFrame({"q": ["a"], "label": [0]}).to_parquet(tmp_path / "boolq" / f"{split}.parquet")
    with pytest.raises(ValueError, match=r"boolq, train: its columns \['q', 'label'\].*question"):
        load_task("boolq")


def test_mismatched_rows_share_the_training_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    (tmp_path / "mnli").mkdir()
    for split, n in {"train": 30, "validation_matched": 6, "validation_mismatched": 9}.items():
        pd.DataFrame({"premise": [f"{split} {i}" for i in range(n)], "hypothesis": "So.",
                      "label": [i % 3 for i in range(n)]}).to_parquet(tmp_path / "mnli" / f"{split}.parquet")
    matched, other = load_task("mnli", n_train=12), load_task("mnli-mm", n_train=12)
    assert matched.train.equals(other.train)  # the same rows in the same order: one model, two sets to score it on
    assert matched.validation["premise"].str.startswith("validation_matched").all()
    assert other.validation["premise"].str.startswith("validation_mismatched").all()
    assert (len(matched.validation), len(other.validation)) == (6, 9)
    (tmp_path / "mnli" / "validation_mismatched.parquet").unlink()
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

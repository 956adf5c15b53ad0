"""Style transfer: what is asked, what is scored, by values worked out by hand; GYAFC from a made-up copy."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers import Letters, tiny, tokenizer_of
from tiny_models import data_folder, model_folder
from torch.nn.functional import cross_entropy

from lowrank_teach.methods import LoRA
from lowrank_teach.reproduction import rewriting
from lowrank_teach.tasks import readers, style_transfer
from lowrank_teach.tasks.load import load_task, load_transfer
from lowrank_teach.tasks.readers import TRANSFERS, prompts
from lowrank_teach.tasks.style_transfer import CausalLM, NGram
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.tasks.tokenize import IGNORED, encode, prompt_of

pytest.importorskip("sacrebleu")
nltk = pytest.importorskip("nltk")


# ---- language models ----------------------------------------------------------------------------------------


def test_witten_bell_by_hand():
    """<s> a b </s> and <s> a c </s>: 6 words that can be predicted; γ = kinds / (kinds + times) of what follows."""
    model = NGram.from_texts(["a b", "a c"], order=2, unknown_below=1)
    first = 2 / 3 * 1 + 1 / 3 * (2 / 6)  # after <s>: one kind, two times
    second = 1 / 2 * (1 / 2) + 1 / 2 * (1 / 6)  # after a: two kinds, two times
    end = 1 / 2 * 1 + 1 / 2 * (2 / 6)  # after b: one kind, once
    assert model.log_probabilities("a b") == pytest.approx([math.log(p) for p in (first, second, end)])
    assert model.perplexity(["a b"]) == pytest.approx((first * second * end) ** (-1 / 3))
    assert model.perplexity(["A  b", "a b"]) == pytest.approx(model.perplexity(["a b"]))  # all words together
    assert model.perplexity(["a d"]) == math.inf  # no training word was rare: none stands for d


def test_the_words_share_all_of_the_probability():
    model = NGram.from_texts(["the cat sat", "the dog sat here", "a cat", "the end"])
    assert model.name == "3-gram"
    for context in ((), ("the",), ("<s>", "the"), ("cat", "sat"), ("sat", "cat")):
        total = sum(model.model.score(word, context) for word in model.model.vocab if word != "<s>")
        assert total == pytest.approx(1.0)
    assert model.perplexity(["the cat sat"]) < model.perplexity(["sat cat the"])
    assert model.perplexity(["the cow sat"]) < math.inf  # rare words stand for cow
    with pytest.raises(ValueError, match="at least one text"):
        NGram.from_texts([])
    with pytest.raises(ValueError, match="no text"):
        model.perplexity([])


def test_a_causal_model_token_by_token(decoder):
    texts, total, count = ["abc", "hello there", "x", ""], 0.0, 0
    for text in texts:
        ids = torch.tensor([[1, *Letters()(text)["input_ids"]]])
        with torch.no_grad():
            logits = decoder(input_ids=ids).logits[0, :-1]
        total += float(cross_entropy(logits, ids[0, 1:], reduction="sum")) if text else 0.0
        count += len(text)
    judge = CausalLM(decoder.train(), Letters())
    assert judge.perplexity(texts, batch_size=2) == pytest.approx(math.exp(total / count), rel=1e-4)
    assert decoder.training  # its mode came back
    assert math.isnan(judge.perplexity([""]))


# ---- scores -------------------------------------------------------------------------------------------------


class Keyword:
    """Positive is what has the word good."""

    accuracy = 0.9

    def predict(self, texts):
        return [int("good" in text) for text in texts]


class Lengths:
    """A judge whose perplexity is the mean number of words."""

    name = "words"

    def perplexity(self, texts):
        return sum(len(text.split()) for text in texts) / len(texts)


def made(written: list[str], references: list[list[str]] | None = None) -> pd.DataFrame:
    sources = ["the food was bad here today", "the food was good here today", "it was bad", "it was good"]
    wanted = [1, 0, 1, 0]
    directions = ["negative to positive" if code else "positive to negative" for code in wanted]
    return pd.DataFrame({"source": sources, "references": references or [[] for _ in sources], "wanted": wanted,
                         "direction": directions, "instruction": "-", "written": written})  # fmt: skip


def test_scores_by_hand():
    written = ["the food was good here today", "the food was bad here today", "It was bad", ""]
    references = [["the food was good here today"], ["the food was awful here today"], ["it was good"],
                  ["it was bad"]]
    found = style_transfer.score_transfer(made(written, references), Keyword(), Lengths())
    assert found["accuracy"] == 2 / 4  # the third is a copy; an empty text is never right
    assert found["source_accuracy"] == 0.0
    assert found["classifier_accuracy"] == 0.9
    assert found["copied"] == found["empty"] == 1 / 4
    assert found["perplexity.words"] == pytest.approx((6 + 6 + 3) / 3)
    # to the references: of 15 words 6 + 5 + 2; groups of two 5 + 3 + 1 of 12, three 4 + 1 of 9, four 3 of 6;
    # 15 words written for 18
    shares = [13 / 15, 9 / 12, 5 / 9, 3 / 6]
    brevity = math.exp(1 - 18 / 15)
    assert found["bleu"] == pytest.approx(brevity * math.prod(shares) ** 0.25)
    # to the sources: 5 + 5 + 3 of 15; 3 + 3 + 2 of 12; 1 + 1 + 1 of 9; none of 6 (counted as half of one)
    shares = [13 / 15, 8 / 12, 3 / 9, 0.5 / 6]
    assert found["self_bleu"] == pytest.approx(brevity * math.prod(shares) ** 0.25)


def test_copying_keeps_all_and_changes_nothing():
    frame = made([""] * 4)
    found = style_transfer.score_transfer(frame.assign(written=frame["source"]), Keyword())
    assert found["self_bleu"] == pytest.approx(1.0)
    assert found["copied"] == 1.0
    assert found["accuracy"] == found["source_accuracy"] == 0.0
    assert "bleu" not in found  # nobody wrote references
    assert math.isnan(style_transfer.score_transfer(frame, Keyword(), [Lengths()])["perplexity.words"])
    with pytest.raises(ValueError, match="what `transfer` returned"):
        style_transfer.score_transfer(frame.drop(columns="written"), Keyword())


# ---- writing ------------------------------------------------------------------------------------------------


def sentences() -> pd.DataFrame:
    return made([""] * 4).drop(columns="written").assign(instruction=["be positive", "be negative"] * 2)


def test_what_a_model_is_asked_and_what_is_kept_of_its_answer(monkeypatch, decoder):
    seen = {}

    def write(model, rows, tokenizer, **options):
        seen.update(rows=rows, **options)
        return ['\n "It was good." \n### Instruction', "one", "", "two\nthree"]

    monkeypatch.setattr(style_transfer, "generate", write)
    frame = style_transfer.transfer(decoder, Letters(), sentences(), num_beams=3)
    assert frame["written"].tolist() == ["It was good.", "one", "", "two"]
    assert (seen["num_beams"], seen["max_new_tokens"]) == (3, 40)
    asked = prompts(sentences())
    assert [row["input_ids"] for row in seen["rows"]] == [Letters()(text)["input_ids"] for text in asked]
    assert all(set(row["labels"]) == {IGNORED} for row in seen["rows"])
    assert "### Instruction:\nbe negative\n\n### Input:\nthe food was good here today\n\n### Response:" in asked[1]
    with pytest.raises(ValueError, match="no chat template"):
        style_transfer.transfer(decoder, Letters(), sentences(), prompt="chat")
    with pytest.raises(ValueError, match="choose 'alpaca' or 'chat'"):
        style_transfer.transfer(decoder, Letters(), sentences(), prompt="few-shot")


@pytest.mark.parametrize("kind", ["Llama 2", "Unigram", "WordPiece"])
def test_a_model_is_asked_as_it_was_trained(monkeypatch, decoder, kind):
    """The tokens before what is to be written are those of a row of `alpaca`, for tokenizers that begin or close a
    text, too; a chat template writes them itself, and they come once."""
    seen, tokenizer = {}, tokenizer_of(kind)
    monkeypatch.setattr(style_transfer, "generate", lambda model, rows, *_,
                        **__: seen.update(rows=rows) or [""] * len(rows))
    style_transfer.transfer(decoder, tokenizer, sentences())
    trained = encode(pd.DataFrame({"text": prompts(sentences()), "output": "a cat"}), TASKS["alpaca"], tokenizer, 900,
                     causal=True)
    assert [row["input_ids"] for row in seen["rows"]] == [prompt_of(row) for row in trained]
    tokenizer.chat_template = "<s>{% for m in messages %}{{ m['content'] }}{% endfor %}</s>a"
    style_transfer.transfer(decoder, tokenizer, sentences(), prompt="chat")
    assert all(row["input_ids"].count(tokenizer.bos_token_id) == 1 for row in seen["rows"])
    assert all(row["input_ids"].count(tokenizer.eos_token_id) == 1 for row in seen["rows"])


def test_a_model_writes_the_same_in_any_batch(decoder):
    one = style_transfer.transfer(decoder, Letters(), sentences(), max_new_tokens=6, batch_size=1)
    assert any(one["written"])
    assert one.equals(style_transfer.transfer(decoder, Letters(), sentences(), max_new_tokens=6, batch_size=4))
    half = style_transfer.transfer(decoder, Letters(), sentences(), "positive to negative", n=1, max_new_tokens=6)
    assert half["written"].tolist() == [one["written"][1]]


# ---- sentences ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    return tmp_path


def put(folder: Path, task: str, **splits: dict) -> None:
    (folder / task).mkdir()
    for split, columns in splits.items():
        pd.DataFrame(columns).to_parquet(folder / task / f"{split}.parquet")


def put_yelp(folder: Path) -> None:
    plain = {"text": ["good .", "bad .", "fine ."], "label": [1, 0, 1]}
    test = {"text": ["good food .", "bad food .", "good wine ."], "label": [1, 0, 1]}
    put(folder, "yelp_style", train=plain, validation=plain,
        test=test | {"reference": ["bad food", "good food", "bad wine"]})  # fmt: skip


def test_each_sentence_is_to_become_the_other_style(folder):
    put_yelp(folder)
    frame = load_transfer("yelp-transfer")
    assert dict(zip(frame["source"], frame["wanted"], strict=True)) == {
        "good food .": 0, "good wine .": 0, "bad food .": 1}
    for row in frame.itertuples():
        style = ("negative", "positive")[row.wanted]
        assert row.direction.endswith(f"to {style}")
        assert f"it is {style}." in row.instruction
    assert load_transfer("yelp-transfer", "positive to negative", n=1)["references"].tolist()[0][0].startswith("bad")
    with pytest.raises(ValueError, match="'negative to positive' and 'positive to negative'"):
        load_transfer("yelp-transfer", "up to down")
    with pytest.raises(ValueError, match="did you mean yelp-transfer"):
        load_transfer("yelp-tranfer")
    with pytest.raises(ValueError, match="at least one sentence"):
        load_transfer("yelp-transfer", n=0)
    test = folder / "yelp_style" / "test.parquet"
    pd.read_parquet(test).drop(columns="reference").to_parquet(test)
    with pytest.raises(ValueError, match="need a column 'reference'"):
        load_transfer("yelp-transfer")


def test_tuned_on_instructions_and_tested_on_sentences(folder):
    put_yelp(folder)
    asks = [f"Say {i}." for i in range(40)]
    put(folder, "alpaca_cleaned", train={"instruction": asks, "input": [""] * 40, "output": ["ok"] * 40})
    data = load_task("yelp-transfer")
    assert all("### Instruction:\nSay" in text for text in data.train["text"])
    assert sorted(data.test["output"]) == ["bad food", "bad wine", "good food"]
    assert set(data.test["part"]) == {"positive to negative", "negative to positive"}
    assert set(data.validation["part"]) == {"alpaca"}
    assert "trained on alpaca" in data.source
    rows = encode(data.test, data.task, OffsetLetters(), causal=True)
    assert {row["part"] for row in rows} == set(data.test["part"])
    assert len({row["group"] for row in rows}) == 3


class OffsetLetters(Letters):
    def __call__(self, text, max_length=None, **_):
        ids = super().__call__(text)["input_ids"][:max_length]
        return {"input_ids": ids, "offset_mapping": [(i, i + 1) for i in range(len(ids))]}


@pytest.mark.shared
def test_the_published_sentences(shared_data, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    frame = load_transfer("yelp-transfer")
    assert frame["direction"].value_counts().to_dict() == {"negative to positive": 500, "positive to negative": 500}
    assert all(len(many) == 1 and many[0] for many in frame["references"])
    few = load_transfer("yelp-transfer", "negative to positive", n=20)
    assert few["source"].tolist() == frame["source"].tolist()[:20]


@pytest.mark.asset
def test_packaged_sentences_have_no_references(monkeypatch):
    monkeypatch.delenv("LOWRANK_TEACH_DATA", raising=False)
    frame = load_transfer("rt-transfer", n=5)
    assert frame["direction"].value_counts().to_dict() == {"rotten to fresh": 5, "fresh to rotten": 5}
    assert not any(len(many) for many in frame["references"])
    assert set(frame["instruction"].str.extract(r"it is (\w+)\.")[0]) == {"positive", "negative"}
    assert TRANSFERS["rt-transfer"].classifier == "rt"


# ---- GYAFC --------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(folder) -> Path:
    """The published layout, two sentences a style and part."""
    for domain in ("Family_Relationships", "Entertainment_Music"):
        for part in ("train", "tune", "test"):
            place = folder / "GYAFC_Corpus" / domain / part
            place.mkdir(parents=True)
            for style in readers.STYLES:
                (place / style).write_text(f"{style} {part} one\n{style} {part} two\n")
                for i in range(4 if part != "train" else 0):
                    lines = [f"{style} rewrite {i} of {number}\n" for number in ("one", "two")]
                    (place / f"{style}.ref{i}").write_text("".join(lines))
    return folder / "GYAFC_Corpus"


def test_a_copy_of_gyafc(corpus, folder):
    data = load_task("gyafc")
    assert (len(data.train), len(data.validation), len(data.test)) == (4, 4, 4)
    assert dict(zip(data.train["text"], data.train["label"], strict=True))["formal train one"] == 1
    frame = load_transfer("gyafc-transfer", "informal to formal")
    assert sorted(frame["source"]) == ["informal test one", "informal test two"]
    row = frame[frame["source"] == "informal test two"].iloc[0]
    assert row["references"] == [f"formal rewrite {i} of two" for i in range(4)]
    assert row["wanted"] == 1
    assert "so that it is formal" in row["instruction"]
    put(folder, "alpaca_cleaned", train={"instruction": [f"Say {i}." for i in range(40)], "input": [""] * 40,
                                         "output": ["ok"] * 40})  # fmt: skip
    test = load_task("gyafc-music-transfer").test
    assert len(test) == 2 * 2 * 4
    assert test["of"].nunique() == 4


def test_a_damaged_copy_of_gyafc(corpus):
    (corpus / "Family_Relationships" / "test" / "formal.ref2").write_text("only one\n")
    with pytest.raises(ValueError, match=r"informal has 2 lines, but formal\.ref2 has 1"):
        load_transfer("gyafc-transfer")
    (corpus / "Family_Relationships" / "test" / "formal.ref2").write_bytes(b"one\ncaf\xe9\n")
    with pytest.raises(ValueError, match=r"test/formal\.ref2 is no text in UTF-8 .* at byte 7"):
        load_transfer("gyafc-transfer")
    (corpus / "Family_Relationships" / "test" / "formal.ref2").write_text("one\u2028line\ntwo\n", encoding="utf-8")
    assert len(load_transfer("gyafc-transfer")) == 4
    (corpus / "Family_Relationships" / "train" / "informal").unlink()
    with pytest.raises(FileNotFoundError, match="no file Family_Relationships/train/informal"):
        load_task("gyafc")


def test_gyafc_is_not_here_and_how_to_get_it(folder, monkeypatch):
    for _ in ("in the folder", "without one"):
        for load in (lambda: load_task("gyafc"), lambda: load_transfer("gyafc-music-transfer")):
            with pytest.raises(FileNotFoundError, match=r"licensed on request.*GYAFC_Corpus into LOWRANK_TEACH_DATA"):
                load()
        monkeypatch.delenv("LOWRANK_TEACH_DATA", raising=False)


# ---- the classifier -----------------------------------------------------------------------------------------


def test_a_classifier_is_trained_once_and_kept(folder, tmp_path):
    data_folder(folder)
    torch.manual_seed(0)
    model = str(model_folder(tmp_path / "model"))
    training = {"steps": 150, "lr": 1e-2, "n_train": None, "n_test": None, "n_validation": None}
    first = rewriting.train_classifier("rt", model, "tiny", **training)
    assert first.rows == 32
    assert first.accuracy > 0.8
    texts = load_task("rt").test
    codes = first.predict(texts["text"].tolist(), batch_size=7)
    assert sum(a == b for a, b in zip(codes, texts["label"], strict=True)) / 32 == first.accuracy
    kept, = (tmp_path / "runs" / "networks").glob("*.safetensors")
    written = kept.stat().st_mtime_ns
    again = rewriting.train_classifier("rt", model, "tiny", **training)
    assert kept.stat().st_mtime_ns == written
    assert again.predict(texts["text"].tolist()) == codes
    assert again.accuracy == first.accuracy
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is trained again"):
        assert rewriting.train_classifier("rt", model, "tiny", **training).accuracy == first.accuracy
    with pytest.raises(ValueError, match="needs one whose rows have a class"):
        rewriting.train_classifier("bbc-headline", model, "tiny")


def test_a_classifier_reads_a_sentence_as_a_row_of_its_training(tmp_path):
    """Padded on the right whatever side the tokenizer names, and never empty: GPT-2's puts nothing around a text."""
    seen = []

    class Network(torch.nn.Linear):
        def forward(self, input_ids, attention_mask):
            seen.append(attention_mask)
            return SimpleNamespace(logits=torch.zeros(len(input_ids), 2))

    tokenizer = tokenizer_of("byte-level BPE")
    tokenizer.padding_side = "left"
    judge = rewriting.StyleClassifier(Network(1, 1), tokenizer, TASKS["rt"], 1.0, 1, {})
    assert judge.predict(["the cat sat on the mat.", "a cat", ""]) == [0, 0, 0]
    assert seen[0][:, 0].tolist() == [1, 1, 1]
    assert seen[0].sum(1)[2] == 1


def test_rewrites_are_made_kept_and_read_back(folder, tmp_path, monkeypatch):
    """Both controls, the model as it is, and tuned with each seed: a record in each direction."""
    data_folder(folder)
    put(folder, "alpaca_cleaned", train={"instruction": [f"Say {i}." for i in range(40)], "input": [""] * 40,
                                         "output": ["a cat"] * 40})  # fmt: skip
    tokenizer = tokenizer_of("byte-level BPE")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "causal")
    tiny("llama", head="causal", vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(
        tmp_path / "causal")
    monkeypatch.setattr(rewriting, "LONGEST", 300)
    short = {"steps": 2, "batch_size": 2, "n_train": 8, "n_validation": 2, "n_test": 2}
    judge = {"backbone": str(model_folder(tmp_path / "model")), "profile": "tiny", "steps": 2}
    told: list[tuple] = []
    made = rewriting.train([0, 1], tmp_path, tuned={"after LoRA": LoRA(r=2, sites="all")}, sentences=2,
                           backbone=str(tmp_path / "causal"), data="rt-transfer", judge=judge,
                           on_run=lambda task, arm, seed, rate, scores: told.append((arm, seed)), **short)
    assert told == [(rewriting.COPY, 0), (rewriting.PLAIN, 0), (rewriting.CHAT, 0), ("after LoRA", 0),
                    ("after LoRA", 1)]
    found = rewriting.load(tmp_path)
    assert found.records == made.records
    assert [r["direction"] for r in found.records] == found.directions * 5
    assert len(found.values("accuracy", found.directions[0])["after LoRA"]) == 2
    assert found.mean("copied", found.directions[0], rewriting.COPY) == 1
    assert len(found.records[-1]["loss"]) == 2
    assert (found.about["longest"], found.about["training"]["steps"]) == (300, 2)


def test_every_transfer_names_a_task_with_its_styles_in_order():
    for name, one in TRANSFERS.items():
        assert TASKS[one.classifier].labels == one.styles, name

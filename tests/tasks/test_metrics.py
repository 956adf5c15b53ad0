"""Metrics against values worked out by hand, and evaluate: exact, repeatable, leaving the model as it was."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lowrank_teach.tasks.evaluate import evaluate
from lowrank_teach.tasks.generation import Generation, generate
from lowrank_teach.tasks.metrics import METRICS, score
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.tasks.tokenize import IGNORED, Collate

COLA, STSB, TAGS, TEXT = TASKS["cola"], TASKS["stsb"], TASKS["wnut16"], TASKS["bbc-headline"]


class Words:
    """As much of a tokenizer as is used here: token 7 is written 't7'; 0 pads and 1 ends."""

    pad_token_id, eos_token_id = 0, 1

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(f"t{int(i)}" for i in ids if not (skip_special_tokens and int(i) in (0, 1)))

    def batch_decode(self, rows, skip_special_tokens=True):
        return [self.decode(row) for row in rows]


# ---- score ----------------------------------------------------------------------------------------------

def test_classes():
    got = score(["accuracy", "f1", "mcc", "macro_f1"], [1, 1, 0, 0, 1], [1, 0, 0, 1, 1], COLA)
    # true positives 2, false positives 1, false negatives 1, true negatives 1
    assert got["accuracy"] == pytest.approx(3 / 5)
    assert got["f1"] == pytest.approx(2 / 3)
    assert got["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert got["mcc"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))


def test_correlations():
    got = score(["pearson", "spearman"], [1.0, 2.0, 9.0], [1.0, 2.0, 3.0], STSB)
    assert got["spearman"] == pytest.approx(1.0)
    assert 0.8 < got["pearson"] < 1.0


@pytest.mark.parametrize("predictions", [[2.0, 2.0, 2.0], [math.nan, 1.0, 2.0]])
def test_a_correlation_that_is_none_counts_as_zero(predictions, recwarn):
    assert score(["pearson", "spearman"], predictions, [1.0, 2.0, 3.0], STSB) == {"pearson": 0.0, "spearman": 0.0}
    with pytest.raises(ValueError, match="a correlation needs two rows or more"):
        score(["pearson"], [1.0], [2.0], STSB)
    assert not recwarn.list


def test_constant_classes():
    assert score(["mcc", "f1"], [0, 0, 0], [1, 0, 1], COLA) == {"mcc": 0.0, "f1": 0.0}


def test_entities_count_whole():
    pytest.importorskip("seqeval")
    truth = [["B-person", "I-person", "O"], ["B-movie", "O"]]
    half = [["B-person", "O", "O"], ["B-movie", "O"]]  # one end wrong: no entity
    assert score(["entity_f1"], truth, truth, TAGS) == {"entity_f1": 1.0}
    assert score(["entity_f1"], half, truth, TAGS)["entity_f1"] == pytest.approx(0.5)


def test_rouge():
    pytest.importorskip("rouge_score")
    got = score(["rouge1", "rouge2", "rougeL"], ["the cat sat"], ["the cat ran"], TEXT)
    assert got == pytest.approx({"rouge1": 2 / 3, "rouge2": 1 / 2, "rougeL": 2 / 3})
    assert score(["rouge1"], [""], ["the cat"], TEXT) == {"rouge1": 0.0}


@pytest.mark.parametrize(
    ("name", "module", "pair"),
    [("entity_f1", "seqeval.metrics", [["O"]]), ("rouge1", "rouge_score.rouge_scorer", ["a"]),
     ("bleu", "sacrebleu", ["a"]), ("cider", "pycocoevalcap.cider.cider", ["a"])],
)
def test_a_missing_package_names_the_extra(monkeypatch, name, module, pair):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"lowrank-teach\[(lab|text)\]"):
        score([name], pair, pair, TEXT)


def test_refusals():
    with pytest.raises(ValueError, match="did you mean accuracy"):
        score(["acuracy"], [1], [1], COLA)
    with pytest.raises(ValueError, match="follows from the loss"):
        score(["perplexity"], [1], [1], TEXT)
    with pytest.raises(ValueError, match="use macro_f1"):
        score(["f1"], [1], [1], TASKS["trec"])
    with pytest.raises(ValueError, match="2 predictions for 1"):
        score(["accuracy"], [1, 0], [1], COLA)
    with pytest.raises(ValueError, match="0 predictions"):
        score(["accuracy"], [], [], COLA)


def test_directions():
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {"loss", "perplexity", "ter"}


# ---- evaluate -------------------------------------------------------------------------------------------

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 40,
}  # fmt: skip


def rows_of(n: int, label) -> list[dict]:
    """n rows of different lengths; label(i, ids) makes the labels."""
    stream = torch.Generator().manual_seed(0)
    rows = []
    for i in range(n):
        ids = torch.randint(2, 40, (3 + i % 5,), generator=stream).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label(i, ids)})
    return rows


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**SIZES, num_labels=2))


def test_a_classifier_row_by_row(classifier):
    rows = rows_of(11, lambda i, ids: i % 2)
    got = evaluate(classifier, rows, Collate(Words(), COLA), COLA, batch_size=4)
    classifier.eval()
    with torch.no_grad():
        logits = torch.cat([classifier(input_ids=torch.tensor([row["input_ids"]])).logits for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    assert got["loss"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-5)
    assert got["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert set(got) == {"loss", "mcc", "accuracy"}


def test_the_model_is_left_as_it_was(classifier):
    rows, collate = rows_of(6, lambda i, ids: i % 2), Collate(Words(), COLA)
    classifier.train()
    classifier.bert.pooler.eval()  # kept in eval on purpose
    modes = [module.training for module in classifier.modules()]
    state = torch.get_rng_state()
    first = evaluate(classifier, rows, collate, COLA)
    assert [module.training for module in classifier.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in classifier.parameters())
    assert evaluate(classifier, rows, collate, COLA) == first  # dropout is off: the same again


def test_the_mode_comes_back_after_an_error(classifier):
    classifier.train()
    with pytest.raises(IndexError):
        evaluate(classifier, rows_of(2, lambda i, ids: 7), Collate(Words(), COLA), COLA)
    assert classifier.training


def test_regression():
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=1, problem_type="regression"))
    rows = rows_of(7, lambda i, ids: i / 2)
    got = evaluate(model, rows, Collate(Words(), STSB), STSB, batch_size=3)
    whole = evaluate(model, rows, Collate(Words(), STSB), STSB, batch_size=7)
    assert got == pytest.approx(whole, rel=1e-4)
    assert set(got) == {"loss", "spearman", "pearson"}


def test_tags_are_scored_at_first_pieces_only():
    torch.manual_seed(0)
    model = BertForTokenClassification(BertConfig(**SIZES, num_labels=len(TAGS.labels)))
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.eye(len(TAGS.labels))[1] * 9)  # always the same B- tag
    rows = rows_of(5, lambda i, ids: [1] + [IGNORED] * (len(ids) - 1))
    got = evaluate(model, rows, Collate(Words(), TAGS), TAGS, batch_size=2)
    assert got["entity_f1"] == 1.0
    assert got["loss"] < 0.01


def causal_rows(n: int) -> list[dict]:
    return rows_of(n, lambda i, ids: [IGNORED] * 2 + ids[2:])


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, pad_token_id=0, eos_token_id=1, bos_token_id=1)).eval()


def test_a_causal_loss_counts_tokens(decoder):
    rows, collate = causal_rows(9), Collate(Words(), TEXT, causal=True)
    got = evaluate(decoder, rows, collate, TEXT, batch_size=4)
    total, count = 0.0, 0
    for row in rows:  # token by token, without padding
        with torch.no_grad():
            logits = decoder(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        total += float(cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
        count += int((targets != IGNORED).sum())
    assert got["loss"] == pytest.approx(total / count, rel=1e-5)
    assert got["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert set(got) == {"loss", "perplexity"}


def test_writing_does_not_depend_on_the_padding(decoder):
    rows = causal_rows(6)
    together = generate(decoder, rows, Words(), max_new_tokens=5)
    assert together == [generate(decoder, [row], Words(), max_new_tokens=5)[0] for row in rows]
    # only the prompt is shown: other targets, the same text
    other = [row | {"input_ids": row["input_ids"][:2], "labels": [IGNORED] * 2} for row in rows]
    assert generate(decoder, other, Words(), max_new_tokens=5) == together


def test_rouge_of_what_is_written(decoder):
    rows, collate = causal_rows(4), Collate(Words(), TEXT, causal=True)
    got = evaluate(decoder, rows, collate, TEXT, tokenizer=Words(), generate_rows=3,
                   generation=Generation(max_new_tokens=4))
    assert set(got) == {"loss", "perplexity", "rouge1", "rouge2", "rougeL"}
    with pytest.raises(ValueError, match="pass tokenizer="):
        evaluate(decoder, rows, collate, TEXT, generate_rows=3)


def test_an_encoder_decoder():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=1,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    rows, collate = rows_of(6, lambda i, ids: [*ids[:2], 1]), Collate(Words(), TEXT)
    one = evaluate(model, rows, collate, TEXT, batch_size=1)
    assert evaluate(model, rows, collate, TEXT, batch_size=6) == pytest.approx(one, rel=1e-4)
    written = evaluate(model, rows, collate, TEXT, tokenizer=Words(), generate_rows=6,
                       generation=Generation(max_new_tokens=3))
    assert 0.0 <= written["rouge1"] <= 1.0


def test_nothing_to_evaluate(classifier):
    with pytest.raises(ValueError, match="at least one row"):
        evaluate(classifier, [], Collate(Words(), COLA), COLA)

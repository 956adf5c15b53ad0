"""Metrics against values worked out by hand, and evaluate: exact, repeatable, leaving the model as it was."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers import tiny
from torch.nn.functional import cross_entropy

from lowrank_teach.tasks import metrics as text
from lowrank_teach.tasks.evaluate import _score_texts, evaluate
from lowrank_teach.tasks.generation import Generation, generate
from lowrank_teach.tasks.metrics import METRICS, score, synonyms
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.tasks.tokenize import IGNORED, Collate

COLA, STSB, TAGS, TEXT = TASKS["cola"], TASKS["stsb"], TASKS["wnut16"], TASKS["bbc-headline"]


class Words:
    """As much of a tokenizer as is used here: token 7 is written 't7'; 0 pads and 1 ends."""

    pad_token_id, eos_token_id = 0, 1

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(f"t{int(i)}" for i in ids if not (skip_special_tokens and int(i) in (0, 1)))


# ---- scores of classes, numbers and tags ----------------------------------------------------------------

TRUE_TAGS = [["B-person", "I-person", "O"], ["B-movie", "O"]]
BY_HAND = {   # predictions, references, task, groups, what is wanted
    # true positives 2, false positives 1, false negatives 1, true negatives 1
    "two classes": ([1, 1, 0, 0, 1], [1, 0, 0, 1, 1], COLA, None, {
        "accuracy": 3 / 5, "f1": 2 / 3, "macro_f1": (2 / 3 + 1 / 2) / 2,
        "mcc": (2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2)}),
    "a class alone": ([0, 0, 0], [1, 0, 1], COLA, None, {"mcc": 0.0, "f1": 0.0}),
    # F1 of 1/2, 2/3 and 0 (never right), all weighing the same
    "three classes": ([0, 0, 1, 1], [0, 2, 1, 0], TASKS["cb"], None, {
        "macro_f1": (1 / 2 + 2 / 3 + 0) / 3, "accuracy": 1 / 2}),
    "numbers": ([1.0, 2.0, 9.0], [1.0, 2.0, 3.0], STSB, None, {"pearson": 8 / math.sqrt(38 * 2), "spearman": 1.0}),
    "ranks that tie, 1.5, 1.5 and 3": ([1.0, 1.0, 3.0], [1.0, 2.0, 3.0], STSB, None, {
        "spearman": 1.5 / math.sqrt(1.5 * 2)}),
    # a correlation that there is not counts as zero
    "a constant": ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], STSB, None, {"pearson": 0.0, "spearman": 0.0}),
    "no number": ([math.nan, 1.0, 2.0], [1.0, 2.0, 3.0], STSB, None, {"pearson": 0.0, "spearman": 0.0}),
    "answers by question": ([1, 0, 1, 0], [1, 0, 1, 1], TASKS["multirc"], ["q1", "q1", "q2", "q2"], {
        "exact_match": 0.5, "f1": 0.8}),
    "entities": (TRUE_TAGS, TRUE_TAGS, TAGS, None, {"entity_f1": 1.0}),
    "an entity with one end wrong": ([["B-person", "O", "O"], ["B-movie", "O"]], TRUE_TAGS, TAGS, None, {
        "entity_f1": 0.5}),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_scores_by_hand(case, recwarn):
    predictions, references, task, groups, wanted = BY_HAND[case]
    if task is TAGS:
        pytest.importorskip("seqeval")
    assert score(list(wanted), predictions, references, task, groups) == pytest.approx(wanted)
    assert not recwarn.list


# ---- scores of texts ------------------------------------------------------------------------------------

# METEOR: Fmean = P R / (0.9 P + 0.1 R), less half the cube of pieces over matches
ONE_PIECE = 1 - 0.5 * (1 / 6) ** 3
STEM = 0.75 / (0.9 + 0.1 * 0.75) * (1 - 0.5 * (1 / 3) ** 3)   # 3 of 3 and 3 of 4 words, in one piece
PUB, NEAR = ["a pub near the river"], "a pub near the river"
FOX, BIRD, SIX = "red fox runs home", "blue bird sings now", "one two three four five six"
TEXTS = [   # metric, what is held, texts, references, value
    ("bleu", "1- to 4-groups of 7 words", ["the cat sat on a mat today"], [["The cat sat on the mat today"]],
     math.exp(np.mean(np.log([6 / 7, 4 / 6, 2 / 5, 1 / 4])))),
    ("bleu", "any reference will do", PUB, [["a pub by the water", NEAR]], 1.0),
    ("bleu", "other numbers of references", ["a b c d", "e f g h"], [["a b c d"], ["x y z w", "e f g h"]], 1.0),
    # groups are clipped by the references together: 5 + 4 words, 3 + 3 pairs, 1 + 2 threes, 0 + 1 fours
    ("bleu", "as the E2E challenge", ["a b c d e", "w x y z"], [["a b x d e", "a b c y e f"], ["w x y z", "q"]],
     math.prod([9 / 9, 6 / 7, 3 / 5, 1 / 3]) ** 0.25),
    ("ter", "any reference will do", PUB, [["a pub by the water", NEAR]], 0.0),
    ("ter", "one word other, one missing", ["a cat sat here"], [["a dog sat here now"]], 2 / 5),
    ("ter", "one edit over the mean length, of 4 and 6", ["a b c d"], [["a b c x", "q r s t u v"]], 1 / 5),
    # every 1-group of six distinct words weighs log2(6); a 2-group is certain given its first word: 0
    ("nist", "a perfect text is its information", [SIX], [[SIX]], math.log2(6)),
    ("nist", "no text of five words", ["seven"], [[SIX]], 0.0),
    ("nist", "four of five words, of log2(5) each", ["a b x d e"], [["a b c d e"]], 4 / 5 * math.log2(5)),
    # of the same four words cosine 1 at each of four lengths, times 10; the idf needs two inputs
    ("cider", "the same", [FOX, BIRD], [[FOX], [BIRD]], 10.0),
    ("cider", "nothing of it", [BIRD, FOX], [[FOX], [BIRD]], 0.0),
    ("cider", "cosines 3/4, 2/3, 1/2 and 0", ["red fox runs away", BIRD], [[FOX], [BIRD]],
     (10 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4 + 10) / 2),
    ("meteor", "a synonym", ["a small home by the river"], [["a small house by the river"]], ONE_PIECE),
    ("meteor", "a synonym, turned round", ["a small house by the river"], [["a small home by the river"]], ONE_PIECE),
    ("meteor", "a stem", ["the cat sat"], [["the cats sat down"]], STEM),
    ("meteor", "the best reference", ["the cat sat"], [["a dog ran", "the cats sat down"]], STEM),
    ("meteor", "the mean over texts", ["", "river"], [["a"], ["river"]], (0 + 0.5) / 2),
    ("rougeL", "any reference will do", PUB, [["a pub by the water", NEAR]], 1.0),
    ("rougeL", "a pub the: 3 of 5 and 3 of 5", PUB, [["a pub by the water"]], 3 / 5),
    ("rougeL", "in order: two of four words", ["one two\nred fox"], [["red fox\none two"]], 2 / 4),
    ("rougeLsum", "each line of the summary is there", ["one two\nred fox"], [["red fox\none two"]], 1.0),
    ("rouge2", "one pair of 2 and 3", ["one two red"], [["one two fox red"]], 2 * 1 / (2 + 3)),
    ("rouge1", "stems", ["cats running"], [["cat runs fast"]], 2 * 2 / (2 + 3)),
    ("rouge1", "a reference that is no list", ["the cat sat"], ["the cat ran"], 2 / 3),
    ("rouge1", "nothing written", [""], ["the cat"], 0.0),
]
NEEDS = {"cider": "pycocoevalcap", "meteor": "pycocoevalcap", "nist": "nltk", "rouge": "rouge_score"}


@pytest.mark.parametrize("case", TEXTS, ids=lambda case: f"{case[0]}: {case[1]}")
def test_texts_by_hand(case):
    name, _, written, references, value = case
    for package in ("sacrebleu", NEEDS.get(name[:5], NEEDS.get(name, "sacrebleu"))):
        pytest.importorskip(package)
    assert score([name], written, references, TASKS["e2e"])[name] == pytest.approx(value, rel=1e-6, abs=1e-12)


def test_synonyms_are_wordnet_s():
    pytest.importorskip("pycocoevalcap")
    words = synonyms()
    assert any({"house", "home", "family"} <= set(one) for one in words.sets("house"))
    assert words.sets("mice") == words.sets("mouse")  # irregular
    assert any("car" in one and "auto" in one for one in words.sets("cars"))  # regular
    assert words.sets("qqq") == []


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR 1.5 is a Java program")
def test_meteor_15_by_hand():
    """Denkowski & Lavie 2014: content words weigh 0.75 and others 0.25, a stem counts 0.6; α 0.85, β 0.2, γ 0.6."""
    pytest.importorskip("pycocoevalcap")
    matched = 0.75 * (0.6 + 1) + 0.25  # cat by its stem, sat; the
    precision, recall = matched / (0.75 * 2 + 0.25), matched / (0.75 * 3 + 0.25)
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    want = mean * (1 - 0.6 * (1 / 3) ** 0.2)
    assert text.meteor_15(["the cat\nsat"], [["the cats sat ||| down"]]) == pytest.approx(want, rel=1e-5)


def test_meteor_15_without_java_says_so(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ImportError, match=r"no java on the path.*take 'meteor'"):
        text.meteor_15(["a"], [["a"]])


def test_one_text_an_input_against_all_its_references_and_scores_by_part(monkeypatch):
    """Two inputs, three references: two texts are written, each against its own references."""
    pytest.importorskip("sacrebleu")
    rows = [{"group": g, "part": p, "reference": r, "input_ids": [1], "labels": [1]}
            for g, p, r in (("a", "seen", "one two x four five"), ("a", "seen", "one two three y five six"),
                            ("b", "unseen", "x y z w"))]  # fmt: skip
    asked = []
    monkeypatch.setattr("lowrank_teach.tasks.evaluate.generate", lambda model, chosen, *_, **__: asked.extend(
        chosen) or ["one two three four five", "x y z w"])
    task = dataclasses.replace(TASKS["webnlg"], metrics=("bleu", "ter"))
    found = _score_texts(None, rows, task, None, 8, None)
    assert len(asked) == 2
    assert found["bleu"] == pytest.approx(math.prod([9 / 9, 6 / 7, 3 / 5, 1 / 3]) ** 0.25)
    assert found["ter.seen"] == pytest.approx(1 / 5.5)   # one edit, over the mean length of 5 and 6 words
    assert found["ter.unseen"] == 0.0


# ---- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "module", "pair"),
    [("entity_f1", "seqeval.metrics", [["O"]]), ("rouge1", "rouge_score.rouge_scorer", ["a"]),
     ("bleu", "sacrebleu", ["a"]), ("cider", "pycocoevalcap.cider.cider", ["a"])],
)
def test_a_missing_package_names_the_extra(monkeypatch, name, module, pair):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"lowrank-teach\[(lab|text)\]"):
        score([name], pair, pair, TEXT)


@pytest.mark.parametrize(("name", "predictions", "references", "task", "says"), [
    ("acuracy", [1], [1], COLA, "did you mean accuracy"), ("perplexity", [1], [1], TEXT, "follows from the loss"),
    ("f1", [1], [1], TASKS["trec"], "use macro_f1"), ("accuracy", [1, 0], [1], COLA, "2 predictions for 1"),
    ("accuracy", [], [], COLA, "0 predictions"),
    ("pearson", [1.0], [2.0], STSB, "a correlation needs two rows or more")])
def test_scores_that_cannot_be(name, predictions, references, task, says):
    with pytest.raises(ValueError, match=says):
        score([name], predictions, references, task)


def test_directions():
    assert {name for name, metric in METRICS.items() if not metric.higher_is_better} == {"loss", "perplexity", "ter"}


# ---- evaluate -------------------------------------------------------------------------------------------


def rows_of(n: int, label) -> list[dict]:
    """n rows of different lengths; label(i, ids) makes the labels."""
    stream = torch.Generator().manual_seed(0)
    rows = []
    for i in range(n):
        ids = torch.randint(2, 40, (3 + i % 5,), generator=stream).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label(i, ids)})
    return rows


def causal_rows(n: int) -> list[dict]:
    return rows_of(n, lambda i, ids: [IGNORED] * 2 + ids[2:])


@pytest.fixture
def classifier():
    return tiny("bert", dropout=0.1)


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
    """After an error, too."""
    rows, collate = rows_of(6, lambda i, ids: i % 2), Collate(Words(), COLA)
    classifier.train()
    classifier.bert.pooler.eval()  # kept in eval on purpose
    modes = [module.training for module in classifier.modules()]
    state = torch.get_rng_state()
    first = evaluate(classifier, rows, collate, COLA)
    with pytest.raises(IndexError):
        evaluate(classifier, rows_of(2, lambda i, ids: 7), collate, COLA)
    assert [module.training for module in classifier.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in classifier.parameters())
    assert evaluate(classifier, rows, collate, COLA) == first  # dropout is off: the same again
    with pytest.raises(ValueError, match="at least one row"):
        evaluate(classifier, [], collate, COLA)


@pytest.mark.parametrize("kind", ["a regression", "an encoder-decoder"])
def test_a_loss_does_not_depend_on_the_batch(kind):
    if kind == "a regression":
        model, task, names = tiny("bert", labels=1, problem_type="regression"), STSB, {"loss", "spearman", "pearson"}
        rows = rows_of(7, lambda i, ids: i / 2)
    else:
        model, task, names = tiny("t5", head="seq2seq", eos_token_id=1), TEXT, {"loss", "perplexity"}
        rows = rows_of(7, lambda i, ids: [*ids[:2 + i % 2], 1])
    collate = Collate(Words(), task)
    one = evaluate(model, rows, collate, task, batch_size=1)
    assert set(one) == names
    for size in (3, 7):
        assert evaluate(model, rows, collate, task, batch_size=size) == pytest.approx(one, rel=1e-4)


def test_tags_are_scored_at_first_pieces_only():
    model = tiny("bert", labels=len(TAGS.labels), head="tagging")
    torch.nn.init.zeros_(model.classifier.weight)
    with torch.no_grad():
        model.classifier.bias.copy_(torch.eye(len(TAGS.labels))[1] * 9)  # always the same B- tag
    rows = rows_of(5, lambda i, ids: [1] + [IGNORED] * (len(ids) - 1))
    got = evaluate(model, rows, Collate(Words(), TAGS), TAGS, batch_size=2)
    assert got["entity_f1"] == 1.0
    assert got["loss"] < 0.01


@pytest.fixture
def decoder():
    return tiny("llama", head="causal", eos_token_id=1)


def test_a_causal_loss_counts_tokens(decoder):
    """The first token is nobody's target, also where its label counts."""
    rows = rows_of(9, lambda i, ids: [IGNORED] * (i % 3) + ids[i % 3:])
    collate = Collate(Words(), TEXT, causal=True)
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


def test_rouge_of_what_is_written(decoder):
    pytest.importorskip("rouge_score")
    rows, collate = causal_rows(4), Collate(Words(), TEXT, causal=True)
    got = evaluate(decoder, rows, collate, TEXT, tokenizer=Words(), generate_rows=3,
                   generation=Generation(max_new_tokens=4))
    assert set(got) == {"loss", "perplexity", "rouge1", "rouge2", "rougeL"}
    assert 0.0 <= got["rouge1"] <= 1.0
    with pytest.raises(ValueError, match="pass tokenizer="):
        evaluate(decoder, rows, collate, TEXT, generate_rows=3)
    other = [row | {"input_ids": row["input_ids"][:2], "labels": [IGNORED] * 2} for row in rows]
    assert generate(decoder, other, Words(), max_new_tokens=5) == generate(decoder, rows, Words(), max_new_tokens=5)

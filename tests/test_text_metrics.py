"""Scores of text: by hand where a hand can, several references counting together, one text a group."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lowrank_teach import text_metrics as text
from lowrank_teach.evaluate import _score_texts
from lowrank_teach.metrics import score
from lowrank_teach.tasks import TASKS

pytest.importorskip("sacrebleu")


def test_bleu_by_hand():
    """7 words; 1- to 4-groups that also stand in the reference: 6/7, 4/6, 2/5, 1/4; no brevity penalty."""
    got = text.bleu(["the cat sat on a mat today"], [["The cat sat on the mat today"]])
    assert got == pytest.approx(math.exp(np.mean(np.log([6 / 7, 4 / 6, 2 / 5, 1 / 4]))), rel=1e-6)


def test_a_second_reference_can_only_help():
    written, one, other = ["a pub near the river"], ["a pub by the water"], ["a pub near the river"]
    assert text.bleu(written, [[*one, *other]]) == pytest.approx(1.0)
    assert text.ter(written, [[*one, *other]]) == 0.0
    assert text.rouge("rougeL")(written, [[*one, *other]]) == 1.0
    assert text.rouge("rougeL")(written, [one]) == pytest.approx(3 / 5)   # a pub the: 3 of 5 and 3 of 5


def test_texts_may_have_different_numbers_of_references():
    written = ["a b c d", "e f g h"]
    assert text.bleu(written, [["a b c d"], ["x y z w", "e f g h"]]) == pytest.approx(1.0)


def test_ter_counts_edits_a_reference_word():
    assert text.ter(["a cat sat here"], [["a dog sat here now"]]) == pytest.approx(2 / 5)   # one other, one missing


def test_nist_of_a_perfect_text_is_its_information():
    """Every 1-group of six distinct words weighs log2(6); a 2-group is certain given its first word: 0."""
    pytest.importorskip("nltk")
    perfect = "one two three four five six"
    assert text.nist([perfect], [[perfect]]) == pytest.approx(math.log2(6))
    assert text.nist(["seven"], [[perfect]]) == 0.0


def test_cider_by_hand():
    """Of the same four words cosine 1 at each of four lengths, times 10; the idf needs two inputs."""
    pytest.importorskip("pycocoevalcap")
    texts = ["red fox runs home", "blue bird sings now"]
    assert text.cider(texts, [[one] for one in texts]) == pytest.approx(10.0)
    assert text.cider(["blue bird sings now", "red fox runs home"], [[one] for one in texts]) == pytest.approx(0.0)


def test_meteor_needs_wordnet_and_says_so():
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("corpora/wordnet.zip")
    except LookupError:
        with pytest.raises(ImportError, match="wordnet"):
            text.meteor(["a small house"], [["a small house"]])
    else:
        assert text.meteor(["a small house"], [["a small house"]]) > 0.9


def test_exact_match_is_by_question():
    names, task = ["exact_match", "f1"], TASKS["multirc"]
    got = score(names, [1, 0, 1, 0], [1, 0, 1, 1], task, ["q1", "q1", "q2", "q2"])
    assert got["exact_match"] == 0.5
    assert got["f1"] == pytest.approx(0.8)


def test_one_text_a_group_and_scores_by_part(monkeypatch):
    """Two inputs, three references: two texts are written, each against its own references."""
    rows = [{"group": g, "part": p, "reference": r, "input_ids": [1], "labels": [1]}
            for g, p, r in (("a", "seen", "one two three four"), ("a", "seen", "one two"),
                            ("b", "unseen", "x y z w"))]  # fmt: skip
    asked = []

    def write(model, chosen, tokenizer, **options):
        asked.extend(chosen)
        return ["one two three four", "x y q w"]

    monkeypatch.setattr("lowrank_teach.evaluate.generate", write)
    task = TASKS["webnlg"]
    found = _score_texts(None, rows, task_with(task, ("ter",)), None, 8, None)
    assert len(asked) == 2
    assert found["ter.seen"] == 0.0
    assert found["ter.unseen"] == pytest.approx(1 / 4)


def task_with(task, metrics):
    import dataclasses

    return dataclasses.replace(task, metrics=metrics)

"""Scores of text: by hand where a hand can, several references counting together, one text a group."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest

from lowrank_teach.tasks import metrics as text
from lowrank_teach.tasks.evaluate import _score_texts
from lowrank_teach.tasks.metrics import score, synonyms
from lowrank_teach.tasks.table import TASKS

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


def test_meteor_by_hand():
    """Fmean = P R / (0.9 P + 0.1 R), less half the cube of pieces over matches."""
    pytest.importorskip("pycocoevalcap")
    one_piece = 1 - 0.5 * (1 / 6) ** 3
    assert text.meteor(["a small home by the river"], [["a small house by the river"]]) == pytest.approx(one_piece)
    assert text.meteor(["a small house by the river"], [["a small home by the river"]]) == pytest.approx(one_piece)
    stem = 0.75 / (0.9 + 0.1 * 0.75) * (1 - 0.5 * (1 / 3) ** 3)  # 3 of 3 and 3 of 4 words, in one piece
    assert text.meteor(["the cat sat"], [["the cats sat down"]]) == pytest.approx(stem)
    assert text.meteor(["the cat sat"], [["a dog ran", "the cats sat down"]]) == pytest.approx(stem)  # the best
    assert text.meteor(["", "river"], [["a"], ["river"]]) == pytest.approx((0 + 0.5) / 2)


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


def test_one_output_an_input_against_all_its_references():
    """As the E2E challenge scores: groups are clipped by the references together, the length is the nearest one's."""
    written = ["a b c d e", "w x y z"]
    references = [["a b x d e", "a b c y e f"], ["w x y z", "q"]]
    shares = [9 / 9, 6 / 7, 3 / 5, 1 / 3]  # 5 + 4 words, 3 + 3 pairs, 1 + 2 threes, 0 + 1 fours
    assert text.bleu(written, references) == pytest.approx(math.prod(shares) ** 0.25)
    rows = [{"group": str(i), "reference": one, "input_ids": [1], "labels": [1]}
            for i, many in enumerate(references) for one in many]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lowrank_teach.tasks.evaluate.generate", lambda model, chosen, *a, **k: written[:len(chosen)])
        found = _score_texts(None, rows, task_with(TASKS["e2e"], ("bleu",)), None, None, None)
    assert found["bleu"] == pytest.approx(math.prod(shares) ** 0.25)


def test_edits_are_counted_to_the_nearest_reference():
    """One edit, over the mean length of the references (4 and 6 words)."""
    assert text.ter(["a b c d"], [["a b c x", "q r s t u v"]]) == pytest.approx(1 / 5)


def test_nist_by_hand():
    """Four of five words are right, each worth log2(5); a pair whose first word tells it is worth nothing."""
    assert text.nist(["a b x d e"], [["a b c d e"]]) == pytest.approx(4 / 5 * math.log2(5))


def test_cider_of_a_part():
    """Cosines 3/4, 2/3, 1/2 and 0 of groups of one to four words: all weigh the same, each in one of two inputs."""
    pytest.importorskip("pycocoevalcap")
    written = ["red fox runs away", "blue bird sings now"]
    references = [["red fox runs home"], ["blue bird sings now"]]
    first = 10 * (3 / 4 + 2 / 3 + 1 / 2 + 0) / 4
    assert text.cider(written, references) == pytest.approx((first + 10) / 2)


def test_rouge_by_pairs_and_by_lines():
    written, reference = ["one two\nred fox"], [["red fox\none two"]]
    assert text.rouge("rougeL")(written, reference) == pytest.approx(2 / 4)  # in order: two of four words
    assert text.rouge("rougeLsum")(written, reference) == pytest.approx(1.0)  # each line of the summary is there
    assert text.rouge("rouge2")(["one two red"], [["one two fox red"]]) == pytest.approx(2 * 1 / (2 + 3))
    assert text.rouge("rouge1")(["cats running"], [["cat runs fast"]]) == pytest.approx(2 * 2 / (2 + 3))  # stems


def test_correlations_by_hand():
    found = score(["pearson", "spearman"], [1.0, 2.0, 9.0], [1.0, 2.0, 3.0], TASKS["stsb"])
    assert found["pearson"] == pytest.approx(8 / math.sqrt(38 * 2))
    tied = score(["spearman"], [1.0, 1.0, 3.0], [1.0, 2.0, 3.0], TASKS["stsb"])  # ranks 1.5, 1.5, 3
    assert tied["spearman"] == pytest.approx(1.5 / math.sqrt(1.5 * 2))


def test_macro_f1_of_three_classes():
    """CB: F1 of 1/2, 2/3 and 0 (never right), all weighing the same."""
    found = score(["macro_f1", "accuracy"], [0, 0, 1, 1], [0, 2, 1, 0], TASKS["cb"])
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 0) / 3)
    assert found["accuracy"] == 1 / 2


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

    monkeypatch.setattr("lowrank_teach.tasks.evaluate.generate", write)
    task = TASKS["webnlg"]
    found = _score_texts(None, rows, task_with(task, ("ter",)), None, 8, None)
    assert len(asked) == 2
    assert found["ter.seen"] == 0.0
    assert found["ter.unseen"] == pytest.approx(1 / 4)


def task_with(task, metrics):
    import dataclasses

    return dataclasses.replace(task, metrics=metrics)

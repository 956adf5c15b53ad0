"""Entities and their errors, the tagger's words, stored comparisons, and that data in HTML stays text."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from seqeval.metrics import f1_score

from lowrank_teach import HeadOnly, LoRA
from lowrank_teach.analysis import style
from lowrank_teach.course import html_page
from lowrank_teach.course.chapters import tagging as drawn
from lowrank_teach.course.chapters.tagging import KEPT_LOOK, LINE, EntityThreshold, layout, pieces
from lowrank_teach.experiments.fit import load_for
from lowrank_teach.experiments.runs import Store
from lowrank_teach.reproduction import rewriting, tagging
from lowrank_teach.tasks.entities import (
    INVENTED,
    MISSED,
    OUTCOMES,
    RIGHT,
    WRONG_BORDER,
    WRONG_BOTH,
    WRONG_TYPE,
    Curve,
    Entity,
    compare,
    confidences,
    confusion,
    counts,
    curve,
    entities,
    f1,
    interval,
    kinds_of,
    outcomes,
    predicted_tags,
    remarks,
    token_accuracy,
)
from lowrank_teach.tasks.load import load_task, task_here
from lowrank_teach.training.trainer import Trainer

LABELS = ("O", "B-a", "I-a", "B-b", "I-b")
QUICK = {"steps": 2, "n_train": 24, "n_validation": 8, "n_test": 12, "batch_size": 8, "max_length": 24}


def drawn_at_random(n: int, seed: int) -> list[list[str]]:
    r = np.random.default_rng(seed)
    return [[LABELS[i] for i in r.choice(5, size=r.integers(3, 12), p=(0.5, 0.15, 0.15, 0.1, 0.1))] for _ in range(n)]


# ---- entities ----------------------------------------------------------------------------------------------------


def test_entities_are_the_spans_of_the_tags():
    assert entities(["B-a", "I-a", "O", "B-b", "B-b"]) == [Entity(0, 2, "a"), Entity(3, 4, "b"), Entity(4, 5, "b")]
    assert entities(["O", "I-a", "I-b"]) == [Entity(1, 2, "a"), Entity(2, 3, "b")]   # an I- may begin one
    assert kinds_of(LABELS) == ["a", "b"]


@pytest.mark.parametrize(("gold", "predicted", "outcome"), [
    (["B-a", "I-a", "O"], ["B-a", "I-a", "O"], RIGHT),
    (["B-a", "I-a", "O"], ["B-b", "I-b", "O"], WRONG_TYPE),
    (["B-a", "I-a", "O"], ["B-a", "I-a", "I-a"], WRONG_BORDER),
    (["B-a", "I-a", "O"], ["O", "B-b", "O"], WRONG_BOTH),
    (["B-a", "I-a", "O"], ["O", "O", "O"], MISSED),
    (["O", "O", "O"], ["O", "B-b", "O"], INVENTED),
])
def test_each_way_of_being_wrong_has_its_name(gold, predicted, outcome):
    assert outcomes([gold], [predicted]) == {**dict.fromkeys(OUTCOMES, 0), outcome: 1}


def test_every_entity_is_held_against_one_other_and_equal_spans_come_first():
    gold, found = entities(["B-a", "I-a", "I-a", "O", "B-b"]), entities(["B-a", "B-a", "I-a", "O", "B-b"])
    matches = compare(gold, found)
    assert [(m.gold, m.predicted) for m in matches if m.outcome == RIGHT] == [(Entity(4, 5, "b"), Entity(4, 5, "b"))]
    # the longer overlap takes the entity, the other is invented
    assert [(m.predicted, m.outcome) for m in matches if m.outcome != RIGHT] == [
        (Entity(0, 1, "a"), INVENTED), (Entity(1, 3, "a"), WRONG_BORDER)]
    for seed in range(20):
        (g,), (p,) = drawn_at_random(1, seed), drawn_at_random(1, seed + 100)
        p = (p * 4)[:len(g)]
        told = compare(entities(g), entities(p))
        assert sorted(m.gold for m in told if m.gold) == entities(g)
        assert sorted(m.predicted for m in told if m.predicted) == entities(p)


def pair(seed: int = 0, n: int = 40) -> tuple[list, list]:
    gold = drawn_at_random(n, seed)
    r = np.random.default_rng(seed + 1)
    return gold, [[t if r.random() < 0.8 else LABELS[r.integers(5)] for t in tags] for tags in gold]


def test_f1_from_counts_is_seqeval_s():
    gold, predicted = pair()
    counted = counts(gold, predicted, ["a", "b"])
    assert counted.shape == (40, 2, 3)
    assert float(f1(counted.sum((0, 1)))) == pytest.approx(f1_score(gold, predicted))
    by_kind = f1_score(gold, predicted, average=None)
    np.testing.assert_allclose(f1(counted.sum(0)), by_kind)
    assert outcomes(gold, predicted)[RIGHT] == counted[..., 0].sum()
    assert f1(np.zeros(3)) == 0


def test_saying_o_looks_good_by_words_and_finds_nothing():
    gold = [["O"] * 8 + ["B-a", "I-a"]] * 3
    lazy = [["O"] * 10] * 3
    assert token_accuracy(gold, lazy) == pytest.approx(0.8)
    assert f1(counts(gold, lazy, ["a"]).sum((0, 1))) == 0


def test_the_interval_holds_the_score_and_narrows_with_more_sentences():
    few, many = (interval(counts(*pair(3, n), ["a", "b"])) for n in (20, 400))
    assert few.shape == (3, 2)
    for n, found in ((20, few), (400, many)):
        total = counts(*pair(3, n), ["a", "b"]).sum((0, 1))
        assert found[-1, 0] < float(f1(total)) < found[-1, 1]
    assert np.ptp(many[-1]) < np.ptp(few[-1]) / 2
    same = counts([["B-a"]] * 30, [["B-a"]] * 30, ["a"])
    np.testing.assert_allclose(interval(same), 1.0)


def test_confusion_puts_missed_last_and_invented_last():
    gold = [["B-a", "O", "B-b", "O", "O"]]
    predicted = [["B-b", "O", "O", "O", "B-a"]]
    assert confusion(gold, predicted, ["a", "b"]).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]


# ---- how sure ----------------------------------------------------------------------------------------------------


def soft(tags: list[str], sure: list[float]) -> np.ndarray:
    table = np.zeros((len(tags), 5))
    for row, tag, p in zip(table, tags, sure, strict=True):
        row[:] = (1 - p) / 4
        row[LABELS.index(tag)] = p
    return table


def test_an_entity_is_as_sure_as_its_least_certain_word():
    table = soft(["B-a", "I-a", "O", "B-b"], [0.9, 0.6, 0.99, 0.7])
    assert confidences(table, LABELS) == {Entity(0, 2, "a"): 0.6, Entity(3, 4, "b"): 0.7}
    assert predicted_tags([table], LABELS) == [["B-a", "I-a", "O", "B-b"]]


def test_the_curve_at_nought_is_the_plain_score_and_falls_in_recall():
    gold, predicted = pair(5)
    r = np.random.default_rng(0)
    tables = [soft(tags, r.uniform(0.4, 1, len(tags)).tolist()) for tags in predicted]
    found = curve(tables, gold, LABELS)
    assert found.at(0.0)[2] == pytest.approx(f1_score(gold, predicted))
    recalls = [found.at(t)[1] for t in np.linspace(0, 1, 21)]
    assert recalls == sorted(recalls, reverse=True)
    assert Curve(np.array([0.8, 0.5]), np.array([True, False]), 4).at(0.8) == (1.0, 0.25, 0.4)


# ---- the explorer ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture() -> EntityThreshold:
    gold = [["O", "B-a", "I-a", "B-b"], ["B-b", "O"], ["O"] * 300]
    words = [["a", "$x$ $y", "<b>", "long" * 20], ["z", "."], ["word"] * 300]
    tables = [soft(["O", "B-a", "I-a", "B-a"], [0.9, 0.8, 0.5, 0.7]), soft(["B-b", "O"], [0.95, 0.9]),
              soft(["O"] * 300, [0.9] * 300)]
    return EntityThreshold(tables, words, gold, LABELS, [0, 1, 2])


def test_the_explorer_keeps_what_is_sure_and_leaves_out_what_does_not_fit(picture):
    assert picture.controls[1].high == 2, "300 words do not fit"
    a = picture.arrays(threshold=0.6, sentence=1)
    assert a["kept"] == [Entity(3, 4, "a")]
    assert a["dropped"] == [Entity(1, 3, "a")]
    assert a["right"] == []
    assert a["found"] == 2
    assert "“$x$ $y <b>” (a)" in picture.words(threshold=0.0, sentence=1)
    assert picture.words(threshold=0.99, sentence=2).startswith(
        "At 0.99, 0 of 3 predicted entities are kept: no precision, recall 0.00")


def test_the_explorer_s_picture_changes_with_both_sliders(picture):
    frames = [picture.frame(threshold=t, sentence=s).copy() for t, s in ((0.0, 1), (0.6, 1), (0.6, 2))]
    assert not np.array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])


def test_the_threshold_s_mark_is_seen_at_both_ends(picture):
    low, high = picture.axes[0].get_xlim()
    assert low < picture.controls[0].low < picture.controls[0].high < high


def test_an_entity_is_one_piece_a_line():
    words = ["a", "bb", "ccc", "x" * LINE, "dd"]
    assert pieces(words, Entity(0, 3, "a")) == [(0, 8, 0)]            # with the blanks between its words
    assert pieces(words, Entity(1, 5, "a")) == [(2, 8, 0), (0, LINE, 1), (0, 2, 2)]


def test_each_kind_of_entity_has_its_look_and_its_place(picture):
    """At 0.6 in sentence 1: the last word is kept and wrong, two words are dropped, two of three are annotated."""
    picture.update(picture.arrays(threshold=0.6, sentence=1))
    shown = [(round(box.get_x() + 0.2), round(box.get_width() - 0.4), box.get_linestyle())
             for box in picture.boxes if box.get_visible()]
    words = ["a", "$x$ $y", "<b>", "long" * 20]
    (kept,), (dropped,) = (pieces(words, Entity(*span, "a")) for span in ((3, 4), (1, 3)))
    assert shown == [(kept[0], kept[1] - kept[0], "-"), (dropped[0], dropped[1] - dropped[0], "--")]
    under = [line.get_xdata() for line in picture.under if line.get_visible()]
    assert [tuple(x) for x in under] == [dropped[:2], kept[:2]]
    picture.update(picture.arrays(threshold=0.0, sentence=1))
    fills = [to_hex(box.get_facecolor()).upper() for box in picture.boxes if box.get_visible()]
    assert fills == [KEPT_LOOK[right]["facecolor"] for right in (True, False)]
    picture.update(picture.arrays(threshold=0.6, sentence=2))
    assert sum(box.get_visible() for box in picture.boxes) == 1        # nothing stays of the sentence before
    assert [text.get_text() for text in picture.letters if text.get_visible()] == ["z", "."]


def test_the_explorer_passes_no_address_on():
    tables, words = [soft(["O", "B-a"], [0.9, 0.8])], ["see", "http://no.such.name.invalid/" + "x" * 400]
    shown = EntityThreshold(tables, [words], [["O", "B-a"]], LABELS, [0])
    shown.update(shown.arrays(**shown.start()))
    assert [text.get_text() for text in shown.letters if text.get_visible()] == ["see", "[link]"]
    assert "“[link]” (a)" in shown.words(**shown.start())


def test_words_stand_one_after_the_other_and_none_leaves_its_line():
    places = layout(["word"] * 40 + ["x" * 200])
    assert places[:2] == [(0, 0), (5, 0)]
    assert all(x + 4 <= LINE for x, _ in places[:40])
    assert places[-1][0] == 0


# ---- HTML and figures --------------------------------------------------------------------------------------------

NASTY = ["<script>alert(1)</script>", "&", '"quoted"', "<img src=x onerror=alert(1)>", "$1$"]


def test_what_stands_in_the_data_stays_text():
    spans = [(0, 1, "<i>kind</i>", "<u>remark</u>"), (2, 4, "b", "missed")]
    marked = drawn.highlight(NASTY, spans, ["<i>kind</i>", "b"])
    pages = [marked, html_page.table([{"<script>name</script>": marked}]),
             html_page.texts([{"<script>name</script>": " ".join(NASTY)}])]
    for page in pages:
        assert not any(bad in page for bad in ("<script", "<img", "<i>kind", "<u>"))
        assert "&lt;script&gt;" in page
        assert "&amp;" in page
    assert "tex2jax_ignore" in pages[1], "dollars are no mathematics"
    assert "(nothing)" in html_page.texts([{"written": ""}])


def test_an_error_is_told_in_words_and_by_a_frame():
    words = ["the", "IL-2", "gene"]
    assert drawn.in_brackets(words, [(1, 3, "DNA", "missed")]) == "the [IL-2 gene | DNA, missed]"


def test_an_address_in_a_tweet_is_not_passed_on():
    words = ["see", "http://no.such.name.invalid/abc", "HTTPS://no.such.name.invalid", "now"]
    for shown in (drawn.highlight(words, [(0, 2, "a", "")], ["a"]), drawn.in_brackets(words, [(0, 2, "a", "")])):
        assert "invalid" not in shown
        assert shown.count("[link]") == 2
    right, wrong = (drawn.highlight(words, [(1, 3, "DNA", remark)], ["DNA"]) for remark in ("right", "wrong border"))
    assert "dashed" in wrong
    assert "[DNA, wrong border]" in wrong
    assert "dashed" not in right
    annotated, predicted = remarks(["O", "B-a", "I-a"], ["B-b", "B-a", "O"])
    assert annotated == [(1, 3, "a", "")]
    assert predicted == [(0, 1, "b", INVENTED), (1, 2, "a", WRONG_BORDER)]


def test_names_of_scores_are_words_that_a_line_can_break_between():
    table = pd.DataFrame({"self_bleu": [1.0], "perplexity.3-gram": [2.0]})
    assert list(rewriting.in_words(table)) == ["self bleu", "perplexity 3-gram"]


def test_figures_have_something_in_every_panel():
    gold, predicted = pair()
    told = outcomes(gold, predicted)
    part = {name: count / sum(told.values()) for name, count in told.items()}
    figures = [
        drawn.pieces_and_labels(["IL-2", "$"], ["[CLS]", "il", "##2", "$", "[SEP]"], [None, 0, 0, 1, None],
                                ["", "B-a", "", "O", ""]),
        drawn.confusion_table(confusion(gold, predicted, ["a", "b"]), ["a", "b"]),
        drawn.outcome_bars({"LoRA": part}),
        drawn.f1_by_kind({"lora": np.array([[0.5, 0.4, 0.6]] * 3)}, ["a", "b"], [4, 5]),
        drawn.two_scores({"lora": [0.4], "head": [0.1]}, {"lora": [0.9], "head": [0.85]}, 0.8),
        drawn.trade_off({"one way": {"copy": [(1.0, 0.1)]}, "other": {"copy": [(1.0, 0.2)]}}, "x", "y"),
        drawn.idea()]
    assert [style.empty_panels(fig) for fig in figures] == [[]] * len(figures)


# ---- taggers, trained and stored ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two short runs of one seed, in a store and a folder of their own."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOWRANK_TEACH_RUNS", str(folder / "runs"))
        patch.delenv("LOWRANK_TEACH_DATA", raising=False)
        arms = {"lora": LoRA(r=2), "head": HeadOnly()}
        found = tagging.train_tags("wnut16", [0], folder, arms=arms, profile="tiny", **QUICK)
        again = tagging.tag(LoRA(r=2), "wnut16", tagging.BACKBONE, "tiny", 0,
                           **{**tagging.TAG_TASKS["wnut16"], **QUICK})
    return folder, found, again


def test_stored_tags_are_what_the_tagger_said(made):
    folder, found, again = made
    stored = tagging.load_tags("wnut16", folder)
    assert stored.arms == found.arms == ["lora", "head"]
    assert stored.tags("lora") == again.predicted
    assert stored.gold == again.gold
    assert [len(words) for words in again.words] == [len(tags) for tags in again.gold]
    assert stored.values()["lora"][0] == pytest.approx(f1_score(stored.gold, stored.tags("lora"), zero_division=0))
    assert stored.about["machine"]["torch"]
    assert "2 runs (1 seeds)" in stored.line()
    assert stored.by_kind("lora").shape == (len(stored.kinds) + 1, 3)
    assert sum(stored.sizes()) == sum(len(entities(tags)) for tags in stored.gold)
    assert sum(stored.outcomes("head").values()) == pytest.approx(1)
    assert stored.differences("lora", "head")[0] == stored.values()["lora"][0] - stored.values()["head"][0]


def test_a_kept_tagger_is_found_again_and_not_trained(made, monkeypatch):
    folder, _, again = made
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("it was trained again"))
    monkeypatch.delenv("LOWRANK_TEACH_DATA", raising=False)
    once_more = tagging.tag(LoRA(r=2), "wnut16", tagging.BACKBONE, "tiny", 0, store=Store(folder / "runs"),
                           **{**tagging.TAG_TASKS["wnut16"], **QUICK})
    assert once_more.predicted == again.predicted
    assert once_more.run.metrics == again.run.metrics
    assert all(np.allclose(p.sum(1), 1, atol=1e-5) for p in once_more.probabilities)


def test_a_task_without_tags_is_refused():
    with pytest.raises(ValueError, match="no task of tagging; there are wnut16"):
        tagging.tag(LoRA(), "rt")


def test_the_example_has_one_label_a_word_on_its_first_piece(monkeypatch):
    monkeypatch.delenv("LOWRANK_TEACH_DATA", raising=False)
    data = load_task("wnut16", n_test=4)
    _, tokenizer = load_for("minilm-l3", data, 0)
    cut = tagging.short_example(data, tokenizer)
    assert [label for label in cut.labels if label] == cut.tags
    for i, (label, word) in enumerate(zip(cut.labels, cut.word_of, strict=True)):
        assert bool(label) == (word is not None and cut.word_of[i - 1] != word)
    with pytest.raises(ValueError, match="at most 3 pieces"):
        tagging.short_example(data, tokenizer, longest=3)


def test_words_that_are_cut_off_are_scored_as_outside(made, monkeypatch):
    folder, _, _ = made
    monkeypatch.delenv("LOWRANK_TEACH_DATA", raising=False)
    short = {**tagging.TAG_TASKS["wnut16"], **QUICK, "max_length": 8, "steps": 1}
    found = tagging.tag(LoRA(r=2), "wnut16", tagging.BACKBONE, "tiny", 0, store=Store(folder / "short"), **short)
    assert [len(words) for words in found.words] == [len(tags) for tags in found.gold]
    assert max(map(len, found.words)) > 8
    for table in found.probabilities:
        assert (table[8:, 0] == 1).all(), "no word past eight pieces was read"
        assert not (table[:2, 0] == 1).all()
    told = f1_score(found.gold, found.predicted, zero_division=0)
    assert found.run.metrics["test"]["entity_f1"] == pytest.approx(told)


def test_letters_are_read_back():
    tags = drawn_at_random(5, 0)
    assert tagging.read(tagging.written(tags, LABELS), LABELS) == tags
    assert tagging.written([["O", "B-a", "I-a", "B-b"]], LABELS) == [".AaB"]


def test_the_task_follows_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank_teach.models.backbones.is_reachable", lambda: False)
    monkeypatch.delenv("LOWRANK_TEACH_DATA", raising=False)
    assert task_here("jnlpba", packaged="wnut16")[0] == "wnut16"
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    task, why = task_here("jnlpba", packaged="wnut16")
    assert task == "wnut16"
    assert "LOWRANK_TEACH_DATA" in why
    (tmp_path / "jnlpba").mkdir()
    for split in ("train", "validation", "test"):
        pd.DataFrame({"tokens": [["a"]], "ner_tags": [[0]]}).to_parquet(tmp_path / "jnlpba" / f"{split}.parquet")
    assert task_here("jnlpba", packaged="wnut16")[0] == "jnlpba"


def stored_rewrites(folder) -> rewriting.Rewrites:
    def record(arm, seed, way, accuracy, hits):
        return {"arm": arm, "seed": seed, "direction": way, "scores": {"accuracy": accuracy, "self_bleu": 0.5},
                "hits": hits, "samples": [f"{arm} {way}"]}

    records = [record("source copied", 0, "up", 0.0, [0, 0, 0, 0]), record("after LoRA", 0, "up", 0.5, [1, 1, 0, 0]),
               record("after LoRA", 1, "up", 0.25, [1, 0, 0, 0])]
    (folder / rewriting.FILE).write_text(json.dumps({"backbone": "x", "records": records}), encoding="utf-8")
    return rewriting.load(folder)


def test_stored_rewrites_average_their_seeds(tmp_path):
    found = stored_rewrites(tmp_path)
    assert found.values("accuracy", "up") == {"source copied": [0.0], "after LoRA": [0.5, 0.25]}
    assert found.mean("accuracy", "up", "after LoRA") == 0.375
    assert found.points("up")["after LoRA"] == [(0.5, 0.5), (0.5, 0.25)]
    assert found.table("up")["seeds"].tolist() == [1, 2]
    assert found.samples("up")["after LoRA"].tolist() == ["after LoRA up"]
    low, high = found.accuracy_interval("after LoRA", "up")
    assert 0 <= low < 0.375 < high < 1, "a sentence that one of two seeds turned counts half"
    assert found.accuracy_interval("source copied", "up") == (0, 0)


def test_the_stored_numbers_hold_what_the_notebook_reads():
    """The files of the repository: scores that follow from the tags and hits beside them, and both controls."""
    stored, asked = tagging.load_tags("jnlpba"), rewriting.load()
    assert set(stored.arms) == set(tagging.TAGGERS)
    for arm in stored.arms:
        for run in stored.of(arm):
            told = f1_score(stored.gold, stored.tags(arm, run["seed"]), zero_division=0)
            assert run["test"]["entity_f1"] == pytest.approx(told)
    assert {rewriting.COPY, rewriting.HUMAN, rewriting.PLAIN} <= set(asked.arms)
    for record in asked.records:
        assert np.mean(record["hits"]) == pytest.approx(record["scores"]["accuracy"], abs=1e-4)
    assert asked.mean("copied", asked.directions[0], rewriting.COPY) == 1

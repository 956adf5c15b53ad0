"""Texts: the rule for slot errors, scores from their sums, the pages and pictures, and how stored texts are made."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import EOS, PAD, shake, tiny
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from lowrank_teach.adapters import adapt
from lowrank_teach.analysis import toy_problems
from lowrank_teach.course.chapters import generation as generation_chapter
from lowrank_teach.course.chapters.generation import HowManyInputs
from lowrank_teach.experiments.runs import Store, config_key
from lowrank_teach.methods import DeltaLoRA, LoRA
from lowrank_teach.reproduction import ledger, texts, verdicts
from lowrank_teach.reproduction.arms import TEXT_STUDIES, Arm
from lowrank_teach.reproduction.results import write
from lowrank_teach.reproduction.verdicts import CONTRADICTED, NO_RUNS, OPEN, SUPPORTED
from lowrank_teach.tasks import metrics, slot_errors
from lowrank_teach.tasks.load import task_here

FIELDS = ("name : The Mill | eatType : pub | food : French | priceRange : cheap | familyFriendly : no | "
          "near : Café Rouge")
VALUES = {"name": ["The Mill", "The Punter"], "eatType": ["pub", "restaurant", "coffee shop"],
          "food": ["French", "Indian"], "priceRange": ["cheap", "high", "less than £20"],
          "familyFriendly": ["yes", "no"], "near": ["Café Rouge", "Raja Indian Cuisine"],
          "area": ["riverside", "city centre"]}


def errors(text: str, source: str = FIELDS, values: slot_errors.Values = VALUES) -> tuple[set[str], set[str]]:
    """What is missing, and what is made up as it is written."""
    found = slot_errors.check(text, source, values)
    return set(found.missing), {text[mark.start:mark.end] for mark in found.marks if not mark.right}


# -- the rule

def test_a_text_that_says_everything_has_no_error():
    assert errors("The Mill is a cheap French pub near Café Rouge. It is not family-friendly.") == (set(), set())


@pytest.mark.parametrize(("text", "missing", "made_up"), [
    ("The Mill is an inexpensive French pub near Cafe Rouge, for adults.", set(), set()),   # other words, no accent
    ("The Mill is a French pub near Café Rouge for less than £20, not for families.", set(), set()),   # a twin level
    ("The Mill is an expensive french pub near Café Rouge, no kids.", {"priceRange"}, {"expensive"}),
    ("The Mill, a public French bar, cheap, near Café Rouge. No children.", {"eatType"}, set()),       # no whole word
    ("The Mill is a cheap, family friendly French pub near Café Rouge.", {"familyFriendly"}, {"family friendly"}),
    ("The Mill is a cheap pub near Raja Indian Cuisine, no kids.", {"food", "near"}, {"Raja Indian Cuisine"}),
    ("The Punter, a cheap French pub by the river, Café Rouge, no kids", {"name"}, {"The Punter", "by the river"}),
    ("", {"name", "eatType", "food", "priceRange", "familyFriendly", "near"}, set())])
def test_what_is_missing_and_what_is_made_up(text, missing, made_up):
    assert errors(text) == (missing, made_up)


def test_what_is_denied_is_not_said():
    friendly = FIELDS.replace("familyFriendly : no", "familyFriendly : yes")
    assert errors("The Mill is a cheap French pub near Café Rouge, not family friendly.", friendly) == (
        {"familyFriendly"}, {"not family"})


def test_a_place_called_restaurant_is_harmless():
    assert errors("The Mill, a restaurant and pub, French and cheap, near Café Rouge, no kids.")[1] == set()


def test_levels_have_twins_only_in_their_own_field():
    assert slot_errors._twins("priceRange", "high") == ["high", "more than £30"]
    assert slot_errors._twins("customer rating", "high") == ["high", "5 out of 5"]


TRIPLES = ('Aenir : author : Garth_Nix | Aenir : country : Australia | Aenir : published : "2001-01-01" | '
           "Aenir : pages : 1232.0 | Austin,_Texas : isPartOf : Texas")
NAMES = {"value": ["Garth Nix", "Mark_Rutte", "English_language", "jazz", "12"]}


def test_triples_are_looked_for_by_name_date_and_number():
    text = "Aenir, by Garth Nix of Australia, came out in 2001 and has 1,232 pages. Austin is in Texas."
    assert errors(text, TRIPLES, NAMES) == (set(), set())
    assert [len(slot_errors.fields(TRIPLES)), slot_errors.check(text, TRIPLES, NAMES).slots] == [
        7, 7]   # Aenir counts once


def test_names_of_the_task_and_new_numbers_are_made_up():
    text = "Aenir by Mark Rutte has 1232 pages, 14 of them jazz. Austin is in Texas, Australia, since 2001."
    assert errors(text, TRIPLES, NAMES) == ({"Garth Nix"}, {"Mark Rutte", "14"})


def test_value_lists_hold_every_value_once_and_a_line_without_fields_is_refused():
    assert slot_errors.value_lists([FIELDS, "name : The Punter | area : riverside"])["name"] == ["The Mill",
                                                                                                 "The Punter"]
    assert slot_errors.value_lists([TRIPLES])["value"][:2] == ['"2001-01-01"', "1232.0"]
    with pytest.raises(ValueError, match="no 'field : value'"):
        slot_errors.fields("a headline")


def test_places_in_the_text_stay_where_letters_have_accents():
    text = "Café Rouge is near The Mill."
    [near] = [mark for mark in slot_errors.check(text, FIELDS, VALUES).marks if mark.field == "near"]
    assert text[near.start:near.end] == "Café Rouge"


# -- scores from their sums

SAID = ["the pub is cheap and near the river", "a place to eat", "The Mill serves French food by the river"]
REFERENCES = [["the pub is cheap , near the river", "a cheap pub on the river"], ["a nice place to eat"],
              ["The Mill serves French food", "French food is served in The Mill by the river"]]


@pytest.mark.parametrize("name", texts.STATISTICS)
def test_sums_give_the_corpus_score(name):
    if name in ("cider", "meteor"):   # the second reads its WordNet from that package
        pytest.importorskip("pycocoevalcap")
    rows = texts.text_statistics(name, SAID, REFERENCES)
    own = {"bleu": metrics.bleu, "ter": metrics.ter, "cider": metrics.cider,
           "meteor": metrics.meteor, "rougeL": metrics.rouge("rougeL")}[name]
    assert len(rows) == len(SAID)
    assert texts.combined(name, rows) == pytest.approx(own(SAID, REFERENCES), abs=1e-6)


def test_a_draw_of_every_text_once_is_the_score_itself():
    rows = texts.text_statistics("bleu", SAID, REFERENCES)
    whole, twice = texts.resampled("bleu", rows, np.array([[2, 0, 1], [0, 0, 1]]))
    assert whole == pytest.approx(metrics.bleu(SAID, REFERENCES), abs=1e-9)
    assert twice == pytest.approx(metrics.bleu([SAID[0], *SAID[:2]], [REFERENCES[0], *REFERENCES[:2]]), abs=1e-9)


def stored_texts(shift: float = 0.0, n: int = 40) -> texts.Texts:
    """Two arms on n inputs in two parts; the second needs `shift` more edits a text."""
    draw = np.random.default_rng(0)
    edits, lengths = draw.integers(0, 9, n).astype(float), draw.integers(8, 12, n).astype(float)
    records = [{"arm": arm, "seed": 0, "scores": {"ter": 0.0}, "slots": [[1, 0, 4]] * n,
                "statistics": {"ter": np.stack([edits + more, lengths], 1).tolist()}}
               for arm, more in (("LoRA", 0.0), ("other", shift))]
    about = {"task": "made up", "parts": ["seen", "unseen"] * (n // 2)}
    return texts.Texts(about, records, [], {})


def test_differences_are_paired_and_scores_are_not():
    stored = stored_texts(shift=1.0)
    one, two = stored.interval("LoRA", "ter"), stored.interval("other", "ter")
    score, low, high = stored.interval("other", "ter", other="LoRA")
    assert two[1] < one[2]                           # side by side the bars overlap
    assert 0 < low <= score <= high                  # on the same inputs they are apart
    assert score == pytest.approx(two[0] - one[0])
    assert high - low < one[2] - one[1]


def test_a_part_holds_its_own_inputs_only():
    stored = stored_texts()
    assert len(stored.rows("LoRA", "ter", part="seen")) == 20
    assert np.array_equal(stored.rows("LoRA", "ter", part="unseen"), stored.rows("LoRA", "ter")[1::2])
    with pytest.raises(KeyError, match="arms: \\['LoRA', 'other'\\]"):
        stored.record("COLA")


def test_the_task_is_the_packaged_one_where_rows_cannot_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    monkeypatch.setattr("lowrank_teach.models.backbones.is_reachable", lambda: False)
    name, why = task_here("e2e", packaged="bbc-headline")
    assert name == "bbc-headline"
    assert "no rows of e2e" in why


def test_the_task_is_the_wanted_one_where_its_rows_are(tmp_path, monkeypatch):
    folder = tmp_path / "e2e_nlg"
    folder.mkdir()
    frame = pd.DataFrame({"meaning_representation": ["name[The Mill], eatType[pub]"],
                          "human_reference": ["The Mill is a pub."]})
    for split in ("train", "validation", "test"):
        frame.to_parquet(folder / f"{split}.parquet")
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    assert task_here("e2e", packaged="bbc-headline")[0] == "e2e"


# -- pages and pictures

NASTY = 'The Mill <script>alert("x")</script> & a pub'


def test_every_piece_of_a_marked_text_is_escaped():
    source, text = "name : <b>Mill | eatType : pub", "<i>1 <b>Mill <i>2 a <u>bar <i>3 pub <i>4"
    check = slot_errors.check(text, source, {"name": ["<b>Mill"], "eatType": ["pub", "<u>bar"]})
    assert [mark.right for mark in check.marks] == [True, True]   # a word begins with a letter
    check = slot_errors.Check((*check.marks[:1], slot_errors.Mark(20, 26, "eatType", False), *check.marks[1:]),
                              ("<a>",), 2)
    shown = generation_chapter.marked(text, check)
    assert re.findall(r"<(\w+)", shown) == ["b", "del", "b", "i"]    # the marks' own tags and no other
    assert shown.count("&lt;") == 7


def test_text_of_the_data_is_escaped_everywhere():
    check = slot_errors.check(NASTY, FIELDS, VALUES)
    pages = [generation_chapter.side_by_side(NASTY, [NASTY], {NASTY: (NASTY, check)}, NASTY),
             generation_chapter.texts_in_rows({NASTY: NASTY}, NASTY),
             generation_chapter.tokens([NASTY, "b"], [True, False])]
    for page in pages:
        assert "<script" not in page.html
        assert "&lt;script&gt;" in page.html
        assert "<script>" in page.plain                     # plain text needs no escape
        assert page._repr_mimebundle_()["text/html"] == page.html


def test_marks_say_what_is_right_made_up_and_missing():
    text = "The Mill is an expensive pub."
    shown = generation_chapter.marked(text, slot_errors.check(text, FIELDS, VALUES))
    assert ">The Mill</b>" in shown
    assert ">expensive</del>" in shown
    assert "[missing: food, priceRange, familyFriendly, near]" in shown
    page = generation_chapter.side_by_side(FIELDS, ["a", "b", "c"],
                                           {"LoRA": (text, slot_errors.check(text, FIELDS, VALUES))}, "CC")
    assert "expensive✗" in page.plain
    assert page.html.count("reference") == 2 + 1            # two of three, and the line below


def test_every_figure_draws_something():
    from lowrank_teach.analysis.style import empty_panels

    found = {"LoRA": (0.5, 0.4, 0.6), "other": (0.4, 0.3, 0.5)}
    figures = [generation_chapter.data_to_text(),
               generation_chapter.score_intervals({"BLEU": found, "TER": found}, zero=True),
               generation_chapter.slot_error_bars({"LoRA": (0.3, 0.1), "people": (0.1, 0.0)}),
               generation_chapter.word_tree(toy_problems.TREE, {"greedy": toy_problems.best(1).words})]
    assert not any(empty_panels(fig) for fig in figures)


def test_more_inputs_leave_less_open():
    picture = HowManyInputs(stored_texts(shift=1.0), ["LoRA", "other"], "ter")
    few, many = picture.arrays(n=10), picture.arrays(n=40)
    width = [np.ptp(found["scores"][:, 1:], axis=1).mean() for found in (few, many)]
    assert width[1] < 0.7 * width[0]
    assert many["differences"].shape == (1, 3)
    assert "apart from LoRA: other" in picture.words(n=40)


def test_every_bar_lies_within_the_axes_wherever_the_slider_stands():
    """The widest bars are not always those of the fewest inputs, nor is their middle."""
    stored = stored_texts(shift=0.3)
    rows = np.array(stored.record("other")["statistics"]["ter"])
    rows[20:30, 0] += 30
    stored.record("other")["statistics"]["ter"] = rows.tolist()
    picture = HowManyInputs(stored, ["LoRA", "other"], "ter")
    few = picture.arrays(n=10)["differences"]
    for n in range(10, 41, 5):
        found = picture.arrays(n=n)
        for ax, name in zip(picture.axes, ("scores", "differences"), strict=True):
            low, high = ax.get_xlim()
            assert low < found[name][:, 1:].min()
            assert high > found[name][:, 1:].max()
    assert picture.arrays(n=30)["differences"][0, 2] > 2 * few[0, 2]


def test_with_all_inputs_the_slider_agrees_with_the_figure():
    stored = stored_texts(shift=0.3)
    picture = HowManyInputs(stored, ["LoRA", "other"], "ter")
    at_the_end = picture.arrays(n=picture.controls[0].high)
    np.testing.assert_allclose(at_the_end["scores"], [stored.interval(arm, "ter") for arm in ("LoRA", "other")])
    np.testing.assert_allclose(at_the_end["differences"], [stored.interval("other", "ter", other="LoRA")])


def test_a_text_without_blanks_stays_in_its_table_and_a_dollar_is_a_dollar():
    table = generation_chapter.texts_in_rows({"written": "$" + "x" * 300 + "$"}, "").html
    assert "overflow-wrap:anywhere" in table
    for page in (table, generation_chapter.tokens(["$a", "b$"], [True, False]).html):
        assert "tex2jax_ignore" in page


# -- the toy

def test_greedy_is_width_one_and_misses_the_likeliest_text():
    assert toy_problems.best(1).words == ("The", "pub")
    assert toy_problems.best(2).words == ("A", "pub")
    likeliest = max(toy_problems.search(99)[-1], key=lambda beam: beam.probability)
    assert toy_problems.best(2) == likeliest
    assert sum(beam.probability for beam in toy_problems.search(99)[-1]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="width = 0"):
        toy_problems.search(0)


# -- how stored texts are made

def language_model(folder, words):
    """A folder with a tiny random Llama and a tokenizer of these words."""
    numbers = {"[pad]": PAD, "[begin]": 1, "[end]": EOS} | {word: 3 + i for i, word in enumerate(sorted(words))}
    made = Tokenizer(WordLevel(numbers, unk_token="[begin]"))
    made.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[pad]", bos_token="[begin]", eos_token="[end]"
                            ).save_pretrained(folder)
    tiny("llama", head="causal", vocab_size=len(numbers), max_position_embeddings=256).save_pretrained(folder)
    return folder


@pytest.fixture
def restaurants(tmp_path, monkeypatch):
    """A model folder, with LOWRANK_TEACH_DATA set to rows in E2E's form: three inputs, two texts of each."""
    names, eaten = ("The Mill", "Zizzi", "The Punter"), ("French", "Indian", "Italian")
    rows = [(f"name[{name}], food[{food}]", text) for name, food in zip(names, eaten, strict=True)
            for text in (f"{name} serves {food} food .", f"eat {food} food at {name} .")]
    frame = pd.DataFrame(rows, columns=["meaning_representation", "human_reference"])
    (tmp_path / "e2e_nlg").mkdir()
    for split in ("train", "validation", "test"):
        frame.to_parquet(tmp_path / "e2e_nlg" / f"{split}.parquet")
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path))
    return language_model(tmp_path / "model", {word for row in rows for word in f"{row[1]} name : | food ||".split()})


def test_what_a_run_learned_is_added_to_the_pretrained_matrices():
    model = tiny("llama", head="causal")
    adapters = adapt(model, LoRA(r=2, sites="qv"), seed=0)
    shake(adapters)
    batch = {"input_ids": torch.arange(3, 15).reshape(2, 6)}
    fresh = tiny("llama", head="causal")
    plain = fresh(**batch).logits
    texts.deploy(fresh, {name: branch.factors() for name, branch in adapters.items()})
    assert torch.allclose(fresh(**batch).logits, model(**batch).logits, atol=1e-4)
    assert not torch.allclose(plain, model(**batch).logits, atol=1e-2)


def small_study(restaurants, tmp_path, monkeypatch, **values):
    """LoRA and Delta-LoRA on three inputs with two seeds, unless `values` say otherwise."""
    writers = {"LoRA": Arm(LoRA(r=2)), "LoRA, α × 3": Arm(LoRA(r=2, lora_alpha=12.0)),
               "Delta-LoRA": Arm(DeltaLoRA(r=2, lam=2.0, K=1, form="lazy"))}
    monkeypatch.setitem(TEXT_STUDIES, "e2e", replace(TEXT_STUDIES["e2e"], arms=writers))
    values = {"arms": ["LoRA", "Delta-LoRA"], "beams": (1, 2), "seeds": 2, "lr": 2e-3, "steps": 3, "batch_size": 2,
              **values}
    return texts.make("e2e", tmp_path, inputs=3, backbone=str(restaurants), store=Store(tmp_path / "runs"),
                           mixed_precision="no", **values)


def test_texts_are_made_kept_and_read_back(restaurants, tmp_path, monkeypatch):
    pytest.importorskip("pycocoevalcap")   # every score of the table is computed
    told = []
    stored = small_study(restaurants, tmp_path, monkeypatch, on_run=lambda *found: told.append(found[1:3]))
    arms = ["LoRA", "Delta-LoRA"]
    assert told == [("not trained", 0), ("LoRA", 0), ("Delta-LoRA", 0), ("LoRA", 1), ("Delta-LoRA", 1)]
    assert stored.arms == ["not trained", *arms]
    assert stored.about["licence"].endswith("CC BY-SA 4.0")
    assert stored.about["training"]["steps"] == 3
    assert str(tmp_path) not in texts.texts_path("e2e", tmp_path).read_text()   # of a model's folder its name alone
    assert stored.about["human"] == {"missing": 0.0, "made_up": 0.0}
    assert stored.seeds("LoRA") == [0, 1]
    record = stored.record("Delta-LoRA", 1)
    assert texts.combined("bleu", np.array(record["statistics"]["bleu"])) == pytest.approx(record["scores"]["bleu"])
    assert len(record["series"]["loss"][0]) == 3
    source, references, written = stored.sample(0)
    assert len(references) == 2
    assert set(written) == set(stored.arms)
    text, check = written["LoRA"]
    assert check == slot_errors.check(text, source,
                                      slot_errors.value_lists([one["source"] for one in stored.samples]))
    assert [one["num_beams"] for one in stored.beams["widths"]] == [1, 2]
    assert stored.beams["widths"][0]["texts"][0] == text         # width 1 is what was written greedily
    assert "python -m lowrank_teach.reproduction.texts e2e --seeds 2 --inputs 3" in stored.line()


def test_each_arm_takes_the_rate_whose_texts_score_best(restaurants, tmp_path, monkeypatch):
    """On validation inputs, whatever the loss says; a control takes the rate of the arm it is held against."""
    values = {"arms": ["LoRA", "LoRA, α × 3"], "beams": ()}
    alone = small_study(restaurants, tmp_path, monkeypatch, lr=1e-2, **values)
    assert (alone.about["rates"], alone.about["grid"]) == ([1e-2], [])
    asked = []

    def headline(writer, run):
        asked.append(writer.inputs.split)
        method, rate = run.config["method"]["method"], run.config["training"]["lr"]
        return {("lora", 1e-4): 0.2, ("lora", 1e-2): 0.1, ("delta_lora", 1e-4): 0.3, ("delta_lora", 1e-2): 0.3}[
            method, rate]

    monkeypatch.setattr(texts.Writer, "headline", headline)
    stored = small_study(restaurants, tmp_path, monkeypatch, rates=(1e-4, 1e-2), **values)
    grid = {(one["arm"], one["lr"]): tuple(one["validation"].values()) for one in stored.about["grid"]}
    assert set(asked) == {"validation"}
    assert list(grid) == [("LoRA", 1e-4), ("LoRA", 1e-2), ("Delta-LoRA", 1e-4), ("Delta-LoRA", 1e-2)]
    assert grid["LoRA", 1e-4][1] > grid["LoRA", 1e-2][1]   # and yet its texts score better
    tie = min((1e-4, 1e-2), key=lambda rate: grid["Delta-LoRA", rate][1])
    used = {(record["arm"], record["lr"]) for record in stored.records[1:]}
    assert used == {("LoRA", 1e-4), ("LoRA, α × 3", tie)}
    assert stored.record("LoRA", 0)["validation"]["loss"] == grid["LoRA", 1e-4][1]


def test_the_headline_is_the_bleu_of_what_is_written(restaurants, tmp_path, monkeypatch):
    from lowrank_teach.tasks.load import load_task

    small_study(restaurants, tmp_path, monkeypatch, seeds=1, beams=(), arms=["LoRA"])
    [run] = Store(tmp_path / "runs")
    writer = texts.Writer(texts.Inputs(load_task("e2e"), 3, "validation"), str(restaurants))
    assert writer.headline(run) == metrics.bleu(writer.write(run), writer.inputs.references)
    with pytest.raises(ValueError, match="has no test rows"):
        _ = texts.Inputs(replace(load_task("e2e"), test=None), 3).rows


@pytest.mark.parametrize(("file", "count"), [("e2e", 20), ("webnlg", 4), ("e2e_by_loss", 5)])
def test_stored_texts_are_of_the_runs_that_are_defined(file, count):
    """Each record's key is that of its arm, seed and rate with today's definitions."""
    stored = json.loads(texts.texts_path(file).read_text(encoding="utf-8"))
    task = stored.get("about", stored)["task"]
    trained = [record for record in stored["records"] if record["lr"]]
    for record in trained:
        run = TEXT_STUDIES[task].config(task, record["arm"], record["seed"], record["lr"])
        assert config_key(run.described, record["identity"]) == record["key"]
    assert len(trained) == count


# -- claims on texts

def scored(folder, left_out=(), **scores):
    """The folder of the studies, with texts of two arms beside it: by each score, (ours, theirs) of each seed."""
    records = [{"arm": arm, "seed": seed, "scores": {name: pairs[seed][i] for name, pairs in scores.items()}}
               for i, arm in enumerate(("Delta-LoRA", "LoRA")) for seed in range(len(next(iter(scores.values()))))]
    absent = [*left_out, *(name for name in verdicts.FIVE if name not in scores)]
    about = {"task": "e2e", "backbone": "b", "training": {"steps": 2}, "inputs": 3, "rates": [1.0, 2.0], "parts": [],
             "left_out": dict.fromkeys(absent, "why")}
    write(texts.texts_path("e2e", folder), {"about": about, "samples": [], "beams": {}}, records)
    return folder / "studies"


def test_bleu_is_compared_seed_by_seed(tmp_path):
    pairs = [(0.30, 0.20), (0.50, 0.41), (0.20, 0.12), (0.40, 0.29), (0.30, 0.18)]
    claim = verdicts.bleu_claim("T1", "better", "Delta-LoRA", "LoRA")
    row = claim.row("x", "y", scored(tmp_path, bleu=pairs))
    assert row.differences == pytest.approx([10, 9, 8, 11, 12])
    assert (row.verdict, row.unit) == (SUPPORTED, "BLEU")
    assert row.ours == "Delta-LoRA: 34.0 ± 11.4; LoRA: 24.0 ± 11.3"
    assert row.why == "b on e2e, 2 steps, 3 inputs, rates chosen on validation rows"
    assert claim.row("x", "y", tmp_path / "none" / "studies").verdict == NO_RUNS
    few = claim.row("x", "y", scored(tmp_path, bleu=pairs[:4]))
    assert (few.verdict, few.why.split(";")[0]) == (NO_RUNS, "4 of 5 seeds")


def test_every_score_is_as_good_as_the_lowest(tmp_path):
    """In percent of the other's mean, so that scores of other scales stand beside each other."""
    up, down = [(1.1, 1.0)] * 4 + [(1.2, 1.0)], [(9.0, 10.0)] * 4 + [(8.0, 10.0)]
    claim = verdicts.every_score_claim("T1", "better", "Delta-LoRA", "LoRA")

    def row(**scores):
        return claim.row("x", "y", scored(tmp_path, **scores))

    alike = row(bleu=up, nist=[(5 * a, 5 * b) for a, b in up])
    assert alike.verdict == SUPPORTED
    assert alike.differences == pytest.approx([10, 10, 10, 10, 20])
    mixed = row(bleu=up, nist=down, meteor=up)
    assert mixed.differences == pytest.approx([-10, -10, -10, -10, -20])
    assert (mixed.verdict, mixed.ours) == (CONTRADICTED, "lowest, by nist: −12.0 ± 4.47")
    assert mixed.why.endswith("; bleu, nist, meteor")
    # three scores: a stricter high end
    assert mixed.interval[1] > verdicts.Evidence(mixed.differences).estimate().interval()[1]
    assert row(bleu=up, nist=down, left_out=["nist"]).verdict == SUPPORTED
    assert row(bleu=up, nist=[(1.1, 1.0), (0.9, 1.0)] * 2 + [(1.0, 1.0)]).verdict == OPEN


def test_the_runs_behind_a_claim_on_texts_are_made_again(restaurants, tmp_path, monkeypatch):
    small_study(restaurants, tmp_path, monkeypatch, seeds=1)
    before = texts.texts_path("e2e", tmp_path).read_bytes()
    monkeypatch.setitem(TEXT_STUDIES, "e2e", replace(TEXT_STUDIES["e2e"], inputs=3, seeds=2, rates=(1e-3, 1e-2),
                                                     backbone=str(restaurants)))
    monkeypatch.setattr(ledger, "CLAIMS", {"P": (verdicts.bleu_claim("T1", "better", "Delta-LoRA", "LoRA"),)})
    told, store = [], Store(tmp_path / "again")
    again = ledger.reproduce("P 1", store=store, stored=tmp_path / "studies", steps=2, batch_size=2,
                             mixed_precision="no", on_run=lambda *found: told.append(found))
    assert again.runs == len(list(store)) == 2 * (2 + 1)
    assert (len(again.stored.differences), len(again.new.differences)) == (1, 2)
    assert [(arm, seed, rate, *found) for _, arm, seed, rate, found in told[1:4]] == [
        ("Delta-LoRA", 0, 0.001, "validation score"), ("Delta-LoRA", 0, 0.01, "validation score"),
        ("LoRA", 0, 0.001, "validation score")]
    assert [told[0][1:3], *(one[1:3] for one in told[5:])] == [
        ("not trained", 0), ("Delta-LoRA", 0), ("LoRA", 0), ("Delta-LoRA", 1), ("LoRA", 1)]
    assert texts.texts_path("e2e", tmp_path).read_bytes() == before


# -- the command

def test_a_task_that_no_texts_are_stored_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="e2e, webnlg, not for 'rt'"):
        texts.make("rt", tmp_path)


def test_the_command_line_makes_each_task_named(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(texts, "make", lambda task, folder, **how: asked.append((task, folder, how)))
    monkeypatch.setattr("sys.argv", ["texts", "e2e", "webnlg", "--seeds", "2", "--folder", str(tmp_path)])
    texts.main()
    assert [(task, folder, how["seeds"], how["inputs"]) for task, folder, how in asked] == [
        ("e2e", tmp_path, 2, None), ("webnlg", tmp_path, 2, None)]


def test_real_inputs_have_all_their_references(shared_data, monkeypatch):
    from lowrank_teach.tasks.load import load_task

    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(shared_data))
    data = load_task("webnlg")
    inputs = texts.Inputs(data, 40)
    assert len(inputs.sources) == len(set(inputs.rows["entry"])) == 40
    assert set(inputs.parts) == {"seen", "unseen"}
    row = inputs.rows.iloc[3]
    assert row["references"] == data.test.loc[data.test["entry"] == row["entry"], "target"].tolist()

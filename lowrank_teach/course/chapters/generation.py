"""Notebook 08, generation: its workbench, texts beside their references, figures and findings, a slider, exercises.

Pages are HTML in which all text of the data is escaped. What a mark means is said twice, by a tag and by a colour,
because repository pages drop the colours. T tokens of an example, N texts, R draws.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...adapters import adapt
from ...analysis import statistics, style
from ...analysis import toy_problems as toy_problems
from ...analysis.statistics import draws_of as draws_of
from ...experiments.runs import Run
from ...methods import LoRA
from ...models.backbones import load_backbone
from ...reproduction import ledger, texts
from ...reproduction.results import references_folder
from ...reproduction.texts import UNTRAINED
from ...reproduction.texts import deploy as deploy
from ...tasks import metrics, slot_errors
from ...tasks.generation import generate as generate
from ...tasks.load import load_task, task_here
from ...tasks.slot_errors import Check
from ...tasks.task import Task as TextTask
from ...tasks.tokenize import IGNORED, Collate, encode, prompt_of
from ...training.config import default_profile, train_config
from ...training.trainer import Trainer
from ..by_hand import losses_of as losses_of
from ..by_hand import say_equal as say_equal
from ..contents import machine_line, readable
from ..exercises import EXERCISES, Task, predict
from ..explorer import Control, Picture
from ..html_page import PLAIN_TEXT, Page, table
from ..schematic import arrow, box, canvas

BACKBONE = "smollm2-135m"
# fields of a `TrainConfig` that the profile's own training is changed by
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 8, "batch_size": 4, "max_length": 96, "n_train": 64, "n_validation": 8, "n_test": 8,
             "n_written": 4},
    "laptop": {"steps": 40, "batch_size": 8, "max_length": 96, "n_train": 1000, "n_validation": 32, "n_test": 32,
               "n_written": 12},
    "gpu": {"n_written": 64}}
LONGEST = {"tiny": 16, "laptop": 40, "gpu": 40}   # tokens that are written for one input in section 7


def begin() -> tuple[str, str, str]:
    """Print where this notebook runs and on what it trains, and return task, backbone and profile."""
    task, why = task_here("e2e", packaged="bbc-headline")
    profile = default_profile()
    print(machine_line())
    print(f"profile {profile}, network {BACKBONE}, task {task}: {why}")
    return task, BACKBONE, profile


# ---- the workbench: a few rows of the task, and the network as it was published ---------------------------


class Workbench:
    """Rows of a task as a causal model learns from them, and inputs that it writes texts for.

    prompt, target, end: tokens of the first training row.  rows, collate, settings: of a training of four steps of
    two rows: AdamW with decay at a rate that falls linearly, no warm-up, no clipping.  batches: those of each step.
    asked, prompts: three test inputs, encoded, and their prompts alone.
    """

    def __init__(self, task: str, backbone: str) -> None:
        self.backbone = backbone
        data = load_task(task, n_train=16, n_validation=4, n_test=40)
        self.model, self.tokenizer = load_backbone(backbone)
        self.rows = encode(data.train, data.task, self.tokenizer, max_length=96, causal=True)
        self.collate = Collate(self.tokenizer, data.task, causal=True)
        self.settings = train_config("tiny", steps=4, n_train=16, batch_size=2, lr=2e-3, warmup=0.0,
                                     max_grad_norm=0.0)
        loop = Trainer(adapt(self.network(), LoRA(), seed=0), self.rows, self.collate, self.settings, seed=0)
        self.batches = [self.collate(loop.rows_of("train", step)[0]) for step in range(1, self.settings.steps + 1)]
        self.end = int(self.tokenizer.eos_token_id)
        self.prompt = prompt_of(self.rows[0])
        self.target = self.rows[0]["input_ids"][len(self.prompt):-1]
        assert data.test is not None, f"{task} has no test rows"
        first = data.test.drop_duplicates(data.task.text[0]).head(3)   # an input has many rows
        self.asked = encode(first, data.task, self.tokenizer, max_length=96, causal=True)
        self.prompts = [prompt_of(row) for row in self.asked]

    def network(self) -> Any:
        """Return the network as it was published."""
        return load_backbone(self.backbone)[0]

    def page(self, ids: Sequence[int], labels: Sequence[int]) -> Page:
        """Return the tokens of a row, those with a label in bold."""
        pieces = [str(self.tokenizer.decode([int(token)])) for token in ids]
        return tokens(pieces, [label != IGNORED for label in labels])


def say_same(what: str, ours: Sequence[str], theirs: Sequence[str]) -> None:
    """Print how many texts are the same; one may differ, where rounding turns a tie between two tokens.

    Raises:
        AssertionError: more than one differs.
    """
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert same >= len(theirs) - 1, f"{what}: only {same} of {len(theirs)} are the same; run section 5 from its start"
    print(f"{what}: {same} of {len(theirs)} are the same")


# ---- predictions: the answers stay out of the notebook's own cells ----------------------------------------


def predict_loss(vocabulary: int) -> None:
    predict(f"A model that knows nothing finds all {vocabulary:,} tokens equally likely. What is its loss?",
            f"ln {vocabulary:,} = {math.log(vocabulary):.2f}. The pretrained model starts far below it (section 5).")


def predict_greedy() -> None:
    greedy, wide = toy_problems.best(1), toy_problems.best(2)
    predict("At each place the likeliest next word is taken. Is the result the likeliest text?",
            f"Not always. In the tree of section 9 the greedy text has probability {greedy.probability:.2f}, and "
            f"another one has {wide.probability:.2f}.")


def predict_bleu() -> None:
    found = _toy_scores()
    predict("One text says all facts in words that no reference uses. Another copies a reference but turns “cheap” "
            "into “expensive”. Which one has the higher BLEU?",
            f"The wrong one: {found['BLEU']['wrong price']:.2f} against {found['BLEU']['other words']:.2f}. BLEU "
            "counts shared groups of words. It does not know which words matter.")


# ---- texts to read, as HTML -------------------------------------------------------------------------------

TAGS = {True: ("b", style.BLUE), False: ("del", style.ORANGE)}   # said and right; made up
Interval = tuple[float, float, float]                              # score, low, high


def marked(text: str, check: Check) -> str:
    """HTML of a text: values of its data in bold, made-up ones struck out, what it lacks in brackets behind it."""
    out, at = [], 0
    for mark in check.marks:
        if mark.start < at:
            continue
        tag, color = TAGS[mark.right]
        out += [html.escape(text[at:mark.start]),
                f'<{tag} style="color:{color}">{html.escape(text[mark.start:mark.end])}</{tag}>']
        at = mark.end
    lacks = f" <i>[missing: {html.escape(', '.join(check.missing))}]</i>" if check.missing else ""
    return "".join([*out, html.escape(text[at:]), lacks])


def plainly(text: str, check: Check) -> str:
    """The same without HTML: ✗ behind what is made up."""
    for mark in reversed([mark for mark in check.marks if not mark.right]):
        text = f"{text[:mark.end]}✗{text[mark.end:]}"
    return text + (f" [missing: {', '.join(check.missing)}]" if check.missing else "")


def side_by_side(source: str, references: Sequence[str], written: Mapping[str, tuple[str, Check]],
                 licence: str, shown: int = 2) -> Page:
    """One input: its data, some references, and what each method wrote, with its marks.

    written: arm -> (text, its check).  licence: of data and references, stands under the table.
    """
    few = list(references[:shown])
    rows = {"data": html.escape(source)}
    rows |= {f"reference {i} of {len(references)}": html.escape(one) for i, one in enumerate(few, 1)}
    rows |= {arm: marked(*pair) for arm, pair in written.items()}
    plain = [f"data: {source}", *(f"reference: {one}" for one in few),
             *(f"{arm}: {plainly(*pair)}" for arm, pair in written.items())]
    return _page(rows, plain, f"bold: said and right; struck out: made up. Data and references: {licence}")


def _page(rows: Mapping[str, str], plain: Sequence[str], below: str) -> Page:
    """A table of name -> HTML with a line under it."""
    return Page(f"{table([rows])}<p><small>{html.escape(below)}</small></p>", "\n".join([*plain, below]))


def page_of(stored: texts.Texts, i: int) -> Page:
    """The i-th sample of stored texts: its data, two references, and what each method wrote."""
    return side_by_side(*stored.sample(i), stored.about["licence"])


def references_of(stored: texts.Texts, shown: int = 4) -> Page:
    """The sample with the most references, and some of them."""
    most = max(range(len(stored.samples)), key=lambda i: len(stored.samples[i]["references"]))
    source, references, _ = stored.sample(most)
    rows = {"data": source, **{f"reference {k}": one for k, one in enumerate(references[:shown], 1)}}
    return texts_in_rows(rows, f"{len(references)} references in all; {stored.about['licence']}")


def before_and_after(asked: Sequence[Mapping[str, Any]], before: Sequence[str], after: Sequence[str]) -> Page:
    """Of each input one text by a person, and what the model wrote before and after it was trained."""
    shown: dict[str, str] = {}
    for i, row in enumerate(asked):
        shown |= {f"{i + 1} · a person": row["reference"], f"{i + 1} · before": before[i],
                  f"{i + 1} · after": after[i]}
    changed = sum(a != b for a, b in zip(before, after, strict=True))
    return texts_in_rows(shown, f"The training changed {changed} of {len(before)} texts.")


def texts_in_rows(texts: Mapping[str, str], below: str) -> Page:
    """name -> text, a row each."""
    return _page({name: html.escape(text) for name, text in texts.items()},
                 [f"{name}: {text}" for name, text in texts.items()], below)


def tokens(pieces: Sequence[str], learned: Sequence[bool]) -> Page:
    """The tokens of a row: those with a label in bold, the others pale."""
    shown = [f'<b style="color:{style.BLUE}">{html.escape(piece)}</b>' if is_learned else
             f'<span style="color:{style.GREY}">{html.escape(piece)}</span>'
             for piece, is_learned in zip(pieces, learned, strict=True)]
    plain = " ".join(f"[{piece}]" if is_learned else piece for piece, is_learned in zip(pieces, learned, strict=True))
    below = f"{sum(learned)} of {len(learned)} tokens have a label (bold; in brackets as plain text)"
    return Page(f'<p class="{PLAIN_TEXT}">{" · ".join(shown)}</p><p><small>{below}</small></p>', f"{plain}\n{below}")


# ---- pictures ---------------------------------------------------------------------------------------------


def data_to_text() -> Figure:
    """From fields to a prompt, through a frozen model with thin branches, to a text, to scores."""
    fig, ax = canvas(9.0, 2.7)
    for x, width, name, words, color in (
            (0.05, 1.95, "data", "name : Blue Spice |\neatType : pub |\narea : riverside ||", style.PALE),
            (2.65, 1.75, "causal model", "W frozen,\nA and B train", style.BLUE),
            (5.05, 1.65, "text", "Blue Spice is a pub\nby the river.", style.PALE),
            (7.35, 1.6, "references", "several people's\ntexts for the\nsame data", style.GREEN)):
        box(ax, x, 0.85, width, 1.2, color, words, size=9.5)
        ax.text(x + width / 2, 2.25, name, ha="center", va="center", fontsize=10.5, fontweight="bold")
    for start, end in ((2.04, 2.6), (4.44, 5.0), (6.74, 7.3)):
        arrow(ax, (start, 1.45), (end, 1.45), width=1.6, head=16)
    for x, words in ((3.5, "trained on: prompt, text, end;\nthe loss counts the text and the end"),
                     (7.0, "scores: what is shared with\nany of the references")):
        ax.text(x, 0.35, words, ha="center", va="center", fontsize=9.5)
    fig.set_label("Four boxes with arrows: fields of a restaurant, a causal model with frozen W and trained A and B, "
                  "a written text, and several references that it is compared with.")
    return fig


def finding_of_references(stored: texts.Texts) -> str:
    """Say how many right texts an input has."""
    counts = [len(sample["references"]) for sample in stored.samples]
    return (f"The first {len(counts)} test inputs of {stored.about['task'].upper()} have {min(counts)} to "
            f"{max(counts)} references each, all written by people. A score takes all of them as right.")


def word_tree(tree: Mapping[tuple[str, ...], Mapping[str, float]], paths: Mapping[str, Sequence[str]]) -> Figure:
    """A tree of words with their probabilities; a path a way of searching it.

    Args: words before -> word -> probability; name -> words of its text.
    """
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    ends = [(*before, word) for before in tree for word in tree[before] if (*before, word) not in tree]
    height = {words: float(-i) for i, words in enumerate(sorted(ends))}
    for before in sorted(tree, key=len, reverse=True):
        height[before] = float(np.mean([height[(*before, word)] for word in tree[before]]))
    for before, following in tree.items():
        for word, p in following.items():
            ys = [height[before], height[(*before, word)]]
            ax.plot([len(before), len(before) + 1], ys, color=style.PALE, linewidth=1 + 6 * p, zorder=1)
            inner = (*before, word) in tree   # beside an inner word lines go on to the right
            place = (-8, 10 if ys[1] > ys[0] else -20) if inner else (8, -4)
            ax.annotate(f"{word}  {p:.2f}", (len(before) + 1, ys[1]), xytext=place, textcoords="offset points",
                        ha="right" if inner else "left", fontsize=10)
    looks = ((style.ORANGE, "--"), (style.BLUE, "-"), (style.GREEN, ":"))
    for (name, words), (color, line) in zip(paths.items(), looks, strict=False):
        ways = [tuple(words[:i]) for i in range(len(words) + 1)]
        ax.plot(range(len(ways)), [height[way] for way in ways], color=color, linestyle=line, linewidth=2.2,
                label=name, zorder=2)
    ax.set(xlim=(-0.1, max(map(len, ends)) + 0.6), ylim=(min(height.values()) - 0.4, 0.8), yticks=[],
           xticks=range(max(map(len, ends)) + 1))
    style.dress(ax, "Words written", "", "Probability of each next word")
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    style.legend(fig)
    fig.set_label("A tree of words with the probability of each next word; coloured paths: "
                  + "; ".join(f"{name} writes {' '.join(words)}" for name, words in paths.items()) + ".")
    return fig


def searched() -> dict[str, toy_problems.Beam]:
    """What beams of width 1 and 2 write in the tree."""
    return {"width 1 (greedy)": toy_problems.best(1), "width 2": toy_problems.best(2)}


def finding_of_tree() -> str:
    """Say which text each width finds, and how likely it is."""
    said = "; ".join(f"{name} writes “{' '.join(beam.words)}” with probability {beam.probability:.3f}"
                     for name, beam in searched().items())
    return f"Multiply along a path: {said}. The greedy text begins well and cannot take its first word back."


def arm_looks(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Arm -> colour, marker: a method's own, also of "Delta-LoRA − LoRA"; black for what is no method."""
    known = {label: (color, marker) for label, color, _, marker in style.METHOD_STYLE.values()}
    known[UNTRAINED] = (style.GREY, "D")
    return {arm: known.get(arm.partition(" −")[0], (style.BLACK, "o")) for arm in arms}


def score_intervals(scores: Mapping[str, Mapping[str, Interval]], *, zero: bool = False, columns: int = 3,
                    shared: bool = False, title: str | None = None) -> Figure:
    """A panel a score, a row an arm: the score, and what other test inputs could give.

    Args: score -> arm -> (score, low, high); zero: a line where nothing differs; columns: panels side by side;
        shared: one scale for all panels.
    """
    arms = list(next(iter(scores.values())))
    fig, axes = style.panels(len(scores), min(columns, len(scores)), 0.8 + 0.34 * len(arms), title)
    for i, (ax, (name, found)) in enumerate(zip(axes, scores.items(), strict=True)):
        for y, (arm, (color, marker)) in enumerate(arm_looks(arms).items()):
            score, low, high = found[arm]
            ax.plot([low, high], [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            ax.plot(score, y, marker, color=color, markersize=9, markeredgecolor="white")   # seen on its own bar
        if zero:
            ax.axvline(0, color=style.GREY, linestyle="--", linewidth=1.2)
        if shared:
            ends = [end for one in scores.values() for _, *both in one.values() for end in both]
            ax.set_xlim(min(ends) - 0.03, max(ends) + 0.03)
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))   # more would touch
        first = i % columns == 0
        ax.set_yticks(range(len(arms)), arms if first else [""] * len(arms))
        ax.set_ylim(len(arms) - 0.5, -0.5)
        style.dress(ax, name, "")
    fig.set_label(f"{len(scores)} panels ({', '.join(scores)}), a row for each of {', '.join(arms)}: a score as a "
                  "point, and a bar of what other test inputs could give.")
    return fig


def slot_error_bars(shares: Mapping[str, tuple[float, float]]) -> Figure:
    """Bars: fields missing, values made up, as shares of the fields there are.

    Args: arm -> (missing, made up).
    """
    fig, (ax,) = style.panels(1, 1, 0.9 + 0.4 * len(shares), None, width=8.0)
    missing, made_up = np.array(list(shares.values())).T
    ax.barh(list(shares), missing, color=style.BLUE, label="missing", height=0.65)
    ax.barh(list(shares), made_up, left=missing, color=style.ORANGE, hatch="//", edgecolor="white", label="made up",
            height=0.65)
    ax.invert_yaxis()
    people = sum(shares.get("people", (0.0, 0.0)))
    if people:
        ax.axvline(people, color=style.BLACK, linestyle="--", linewidth=1.2, label="people")
    style.dress(ax, "Errors, as a share of the fields there are", "", "Slot errors by kind")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    fig.set_label("A bar for each writer, fields missing and values made up: "
                  + "; ".join(f"{arm} {a:.0%} and {b:.0%}" for arm, (a, b) in shares.items()) + ".")
    return fig


# ---- what stored runs wrote: tables, figures, and what they show ------------------------------------------

SHOWN = {"bleu": "BLEU", "rougeL": "ROUGE-L", "ter": "TER (low is good)"}


def stored(*tasks: str) -> list[texts.Texts]:
    """Return stored texts, and print where they come from."""
    found = [texts.load_texts(task) for task in tasks]
    for one in found:
        print(one.line().replace("lowrank_teach.texts", texts.__name__))   # where the module stood before
        print(f"  {', '.join(one.arms)}; seeds of the training: {len(one.seeds(trained_arms(one)[0]))}\n")
    return found


def trained_arms(of: texts.Texts) -> list[str]:
    return [arm for arm in of.arms if arm != UNTRAINED]


def finding_of_run(run: Run, vocabulary: int) -> str:
    """Say where the loss of a run ended, beside chance."""
    _, losses = run.series("loss")
    few = min(10, len(losses) // 2)
    return (f"The mean loss of the first {few} steps is {np.mean(losses[:few]):.2f} and of the last {few} "
            f"{np.mean(losses[-few:]):.2f}; chance, ln {vocabulary:,}, is {math.log(vocabulary):.1f}. "
            f"{run.parameters['trainable']:,} of {run.parameters['total']:,} numbers train.")


def curves(of: texts.Texts, vocabulary: int) -> Figure:
    """The training loss of the stored runs of seed 0."""
    fig, (ax,) = style.panels(1, 1, 3.2, None, width=8.0)
    lines = {label: line for label, _, line, _ in style.METHOD_STYLE.values()}
    for arm, (color, marker) in arm_looks(trained_arms(of)).items():
        ax.plot(*of.record(arm)["series"]["loss"], color=color, marker=marker, markersize=5, label=arm,
                linestyle=lines.get(arm, ":"))
    chance = f"ln {vocabulary:,} = {math.log(vocabulary):.1f}"
    style.dress(ax, "Optimizer step", "Training loss (mean of 5 steps)",
                f"E2E, seed 0; chance, {chance}, lies above the panel")
    style.legend(fig)
    fig.set_label("Training loss against step for the stored E2E runs of seed 0, a line a method; all fall steeply, "
                  "then slowly. " + finding_of_curves(of))
    return fig


def finding_of_curves(of: texts.Texts) -> str:
    """Say where the curves of all seeds end, and how far seeds of one method lie apart."""
    ends = {arm: [float(np.mean(record["series"]["loss"][1][-2:])) for record in of.of(arm)]
            for arm in trained_arms(of)}
    means = {arm: float(np.mean(values)) for arm, values in ends.items()}
    spread = float(np.mean([np.std(values, ddof=1) for values in ends.values()]))
    said = ", ".join(f"{arm} {mean:.2f}" for arm, mean in means.items())
    return (f"Over the last ten steps and {len(of.seeds('LoRA'))} seeds the mean losses are: {said}. Two seeds of "
            f"one method differ by about {math.sqrt(2) * spread:.2f}, and the methods by "
            f"{max(means.values()) - min(means.values()):.2f} at most.")


def rate_table(of: texts.Texts) -> Any:
    """A table of the grid of rates: BLEU and loss on validation inputs, a row a method and score."""
    grid = pd.DataFrame(of.about["grid"]).rename(columns={"score": "BLEU"})
    rows = {f"{arm}, {what}": part.set_index("lr")[what] for arm, part in grid.groupby("arm", sort=False)
            for what in ("BLEU", "loss")}
    frame = pd.DataFrame(rows).T
    frame.columns = [f"{rate:g}" for rate in frame]
    return readable(frame.rename_axis("validation, one seed"), "rates", **dict.fromkeys(frame, "{:.3f}"))


def finding_of_rates(of: texts.Texts) -> str:
    """Say which rates were taken, by which seed, and whether one seed can tell the best two apart."""
    grid = pd.DataFrame(of.about["grid"])
    seeds = sorted(set(grid["seed"]))
    lines, close = [], 0
    spread = float(np.std(of.scores("bleu")["LoRA"], ddof=1))
    for arm, part in grid.groupby("arm", sort=False):
        by_bleu, by_loss = part.sort_values("score", ascending=False), part.sort_values("loss")
        best, second = by_bleu.iloc[0], by_bleu.iloc[1]
        close += best["score"] - second["score"] < 2 * spread
        lines.append(f"{arm}: {best['lr']:g} by BLEU, {best['score'] - second['score']:.3f} ahead of "
                     f"{second['lr']:g}; {by_loss.iloc[0]['lr']:g} by loss")
    lines.append(f"Each cell is one training, with seed {', '.join(map(str, seeds))}. Over "
                 f"{len(of.seeds('LoRA'))} seeds at one rate, the standard deviation of LoRA's BLEU on test inputs "
                 f"is {spread:.3f}.")
    lines.append(f"The lead of the best rate is below two such deviations for {close} of {len(lines) - 1} methods.")
    return "\n".join(lines)


FIELDS = "name : The Mill | eatType : pub | priceRange : cheap | area : riverside"
WANTED = ["The Mill is a cheap pub by the river .", "The Mill is an inexpensive pub on the riverside ."]
WRITTEN = {"near copy": "The Mill is a cheap pub on the riverside .",
           "other words": "Short of money ? Take an affordable pint near the river in a pub , The Mill .",
           "wrong price": "The Mill is an expensive pub on the riverside .",
           "the data, copied": FIELDS}
VALUES = {"name": ["The Mill"], "eatType": ["pub"], "priceRange": ["cheap", "high"],
          "area": ["riverside", "city centre"]}
SCORERS: dict[str, Callable[..., float]] = {
    "BLEU": metrics.bleu, "NIST": metrics.nist, "METEOR": metrics.meteor, "ROUGE-L": metrics.rouge("rougeL"),
    "TER (low is good)": metrics.ter}


def bleu(text: str, references: Sequence[str]) -> float:
    """BLEU of one text, by sacrebleu."""
    return metrics.bleu([text], [references])


def _toy_scores() -> pd.DataFrame:
    frame = pd.DataFrame({what: {name: scorer([text], [WANTED]) for name, text in WRITTEN.items()}
                          for what, scorer in SCORERS.items()})
    return frame.assign(**{"slot errors": [slot_errors.check(text, FIELDS, VALUES).errors
                                           for text in WRITTEN.values()]})


def toy_texts() -> Page:
    """The made-up example: its data, its references and its texts."""
    rows = {"data": FIELDS, **{f"reference {i}": one for i, one in enumerate(WANTED, 1)}}
    return texts_in_rows({**rows, **{name: text for name, text in WRITTEN.items() if text != FIELDS}},
                         "made up for this notebook")


def toy_table() -> Any:
    """The scores of the made-up texts, one of them a copy of the data."""
    return readable(_toy_scores().rename_axis("text"), "toy", **dict.fromkeys(SCORERS, "{:.2f}"))


def finding_of_toy() -> str:
    """Say which of two texts each score prefers."""
    found = _toy_scores()
    good, bad = found.loc["other words"], found.loc["wrong price"]
    prefer_wrong = [name.split(" (")[0] for name in SCORERS
                    if (bad[name] < good[name] if "low" in name else bad[name] > good[name])]
    return (f"The wrong price is preferred to the right text in other words by {len(prefer_wrong)} of "
            f"{len(SCORERS)} scores ({', '.join(prefer_wrong)}). The slot rule counts {bad['slot errors']:g} errors "
            f"in the wrong one and {good['slot errors']:g} in the right one. It counts "
            f"{found.loc['the data, copied', 'slot errors']:g} in the copied data, which is no text at all.")


def rule_by_rule(of: texts.Texts, mine: Callable[[str, list[str]], Iterable[float]], arm: str = "LoRA") -> str:
    """Count the missing fields of an arm's samples by a reader's rule, and by the library's."""
    ours, theirs, fields = 0.0, 0, 0
    for i in range(len(of.samples)):
        source, _, written = of.sample(i)
        values = [value for _, value in slot_errors.fields(source)]
        text, check = written[arm]
        ours += float(np.sum(list(mine(text, values))))
        theirs, fields = theirs + len(check.missing), fields + len(values)
    return (f"In {len(of.samples)} texts of {arm} your rule finds {ours:g} of {fields} fields missing, and the "
            f"library's finds {theirs}. The library also knows other words for a value, such as “inexpensive” for "
            "cheap.")


def board(of: texts.Texts) -> Any:
    """A table of mean scores over seeds, with their standard deviation, and the model without training."""
    names = list(of.record("LoRA")["scores"])
    rows = {arm: [_mean_and_spread(of.scores(name)[arm]) for name in names] for arm in of.arms}
    columns = [SHOWN.get(name, name.upper()) for name in names]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return readable(frame.rename_axis("E2E, mean ± sd over seeds"), "board")


def _mean_and_spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else f"{np.mean(values):.3f}"


def intervals(of: texts.Texts) -> dict[str, dict[str, Interval]]:
    """label of a score -> arm -> the score of seed 0, and its interval over test inputs."""
    return {label: {arm: of.interval(arm, name) for arm in trained_arms(of)} for name, label in SHOWN.items()}


def finding_of_intervals(found: Mapping[str, Mapping[str, Interval]]) -> str:
    """Say how wide the bars are, beside how far the points lie apart."""
    said, wider = [], 0
    for label, arms in found.items():
        points = [score for score, *_ in arms.values()]
        width = float(np.mean([high - low for _, low, high in arms.values()]))
        wider += width > max(points) - min(points)
        said.append(f"{label.split(' (')[0]} {width:.3f} and {max(points) - min(points):.3f}")
    return ("The mean width of a bar, and the distance of the outermost points: " + ", ".join(said)
            + f". For {wider} of {len(said)} scores the bars are wider than all that lies between the methods.")


def two_doubts(of: texts.Texts) -> Figure:
    """Difference of BLEU to LoRA: left over other test inputs, for seed 0; right over other seeds of the training."""
    arms = trained_arms(of)[1:]
    fig, (left, right) = style.panels(2, 2, 0.9 + 0.42 * len(arms), None, sharey=True)
    over_inputs, over_seeds, by_seed = _doubts(of)
    for y, (arm, (color, marker)) in enumerate(arm_looks(arms).items()):
        for ax, (score, low, high) in ((left, over_inputs[arm]), (right, over_seeds[arm])):
            ax.plot([low, high], [y, y], color=color, linewidth=2.5, solid_capstyle="butt")
            ax.plot(score, y, marker, color=color, markersize=9, markeredgecolor="white")
        right.plot(by_seed[arm], [y + 0.25] * len(by_seed[arm]), ".", color=style.GREY, markersize=7)
        right.plot(by_seed[arm][0], y + 0.25, "o", markerfacecolor="none", color=style.BLACK, markersize=8)
    for ax, title in ((left, "Other test inputs (seed 0)"), (right, "Other seeds (small dots; ring: seed 0)")):
        ax.axvline(0, color=style.GREY, linestyle="--", linewidth=1.2)
        style.dress(ax, "Difference of BLEU to LoRA, points", "", title)
    ends = [*left.get_xlim(), *right.get_xlim()]
    for ax in (left, right):
        ax.set_xlim(min(ends), max(ends))
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    left.set_yticks(range(len(arms)), [f"{arm} − LoRA" for arm in arms])
    left.set_ylim(len(arms) - 0.4, -0.5)
    fig.set_label("Two panels of differences of BLEU to LoRA, a row a method: bars over test inputs for seed 0, and "
                  "bars with dots over seeds of the training. " + finding_of_doubts(of))
    return fig


def _doubts(of: texts.Texts) -> tuple[dict[str, Interval], dict[str, Interval], dict[str, np.ndarray]]:
    """In points of BLEU, arm − LoRA: over inputs for seed 0, over seeds, and by seed."""
    arms = trained_arms(of)[1:]
    inputs = {arm: [100 * x for x in of.interval(arm, "bleu", other="LoRA")] for arm in arms}
    by_seed = {arm: 100 * np.subtract(*of.paired(arm, "LoRA", "bleu")) for arm in arms}
    seeds = {arm: (float(gaps.mean()), *statistics.paired_bootstrap(gaps.tolist())) for arm, gaps in by_seed.items()}
    return {arm: (x[0], x[1], x[2]) for arm, x in inputs.items()}, seeds, by_seed


def finding_of_doubts(of: texts.Texts) -> str:
    """Say of each method whether zero is inside its two intervals."""
    over_inputs, over_seeds, by_seed = _doubts(of)
    said = []
    for arm, (mean, low, high) in over_seeds.items():
        score, bottom, top = over_inputs[arm]
        said.append(f"{arm} − LoRA: {score:+.1f} [{bottom:+.1f}, {top:+.1f}] over inputs, {mean:+.1f} "
                    f"[{low:+.1f}, {high:+.1f}] over seeds, {int((by_seed[arm] > 0).sum())} of {len(by_seed[arm])} "
                    "seeds above zero")
    apart = [arm for arm, (_, low, high) in over_seeds.items() if low > 0 or high < 0]
    verdict = f"Over seeds, {', '.join(apart)} can be told from LoRA." if apart else (
        "Every interval over seeds holds zero: none of them is told apart from LoRA.")
    return "; ".join(said) + f". {verdict} All rates were chosen with one seed."


def rate_by_loss(of: texts.Texts) -> str:
    """Say how LoRA scores at the rate that its validation loss prefers, over the same seeds."""
    path = references_folder() / "08_generation_e2e_by_loss.json"
    again = json.loads(path.read_text(encoding="utf-8"))["records"]
    chosen = 100 * np.array(of.scores("bleu")["LoRA"])
    other = 100 * np.array([record["scores"]["bleu"] for record in again])
    low, high = statistics.paired_bootstrap(other - chosen)
    decided = "zero is not inside" if low > 0 or high < 0 else "zero is inside, so the five seeds do not settle it"
    methods = max(abs(gaps.mean()) for gaps in _doubts(of)[2].values())
    return (f"BLEU of LoRA over {len(chosen)} seeds: {chosen.mean():.1f} at {of.record('LoRA')['lr']:g}, the rate by "
            f"BLEU; {other.mean():.1f} at {again[0]['lr']:g}, the rate by loss\n"
            f"difference {(other - chosen).mean():+.1f} [{low:+.1f}, {high:+.1f}]: {decided}\n"
            f"largest mean difference between LoRA and another method: {methods:.1f}")


def slot_shares(of: texts.Texts) -> dict[str, tuple[float, float]]:
    """arm -> shares of fields missing and made up by seed 0; at the end those of people."""
    shares = {}
    for arm in of.arms:
        missing, made_up, there = of.slot_errors(arm).sum(0)
        shares[arm] = (float(missing / there), float(made_up / there))
    human = of.about["human"]
    return {**shares, "people": (human["missing"], human["made_up"])}


def finding_of_slots(shares: Mapping[str, tuple[float, float]]) -> str:
    """Say what the trained models leave out and make up, beside people and the untrained model."""
    missing, made_up = zip(*(pair for arm, pair in shares.items() if arm not in (UNTRAINED, "people")), strict=True)
    return (f"Without training {shares[UNTRAINED][0]:.0%} of the fields are missing, and in people's texts "
            f"{shares['people'][0]:.0%}. The trained models leave out {min(missing):.0%} to {max(missing):.0%} and "
            f"make up {min(made_up):.0%} to {max(made_up):.0%} (people {shares['people'][1]:.0%}). These are the "
            "texts of one seed, so they give no order of the methods.")


def people_by_the_rule(*several: texts.Texts) -> str:
    """Say what the rule for slot errors finds in people's own texts."""
    return "\n".join(f"{of.about['task']}: of the fields of people's own texts the rule finds "
                     f"{of.about['human']['missing']:.1%} missing and {of.about['human']['made_up']:.1%} made up"
                     for of in several)


def by_part(of: texts.Texts) -> dict[str, dict[str, Interval]]:
    """label of a part -> arm -> BLEU and its interval over test inputs."""
    parts: dict[str, str | None] = {"seen": "seen", "unseen": "unseen", "all": None}
    return {f"BLEU, {name} ({of.parts.count(part) if part else len(of.parts)} inputs)":
            {arm: of.interval(arm, "bleu", part=part) for arm in of.arms} for name, part in parts.items()}


def finding_of_parts(of: texts.Texts) -> str:
    """Say how far seen and unseen lie apart for each method, and whether the bars overlap."""
    seen, unseen, _ = by_part(of).values()
    arms = trained_arms(of)
    overlap = sum(seen[arm][1] <= unseen[arm][2] and unseen[arm][1] <= seen[arm][2] for arm in arms)
    gaps = [seen[arm][0] - unseen[arm][0] for arm in arms]
    return (f"BLEU on seen less BLEU on unseen categories is {min(gaps):+.3f} to {max(gaps):+.3f}, and the bars of "
            f"the two parts overlap for {overlap} of {len(arms)} methods. Without training BLEU is "
            f"{seen[UNTRAINED][0]:.3f} and {unseen[UNTRAINED][0]:.3f}. This is one seed at one rate.")


def beam_table(of: texts.Texts) -> Any:
    """A table of scores, lengths and missing fields by beam width, for one stored model."""
    rows = {}
    for one in of.beams["widths"]:
        missing, _, there = np.sum(one["slots"], axis=0)
        rows[one["num_beams"]] = [one["scores"]["bleu"], one["scores"]["rougeL"], one["words"], missing / there]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["BLEU", "ROUGE-L", "words", "missing"])
    return readable(frame.rename_axis(f"beams ({of.beams['arm']}, {len(one['slots'])} inputs)"), "beams",
                    BLEU="{:.3f}", words="{:.1f}", missing="{:.1%}", **{"ROUGE-L": "{:.3f}"})


def beam_texts(of: texts.Texts, yours: Mapping[int, Sequence[str]]) -> Page:
    """What two widths wrote for one stored input, and for the reader's own inputs: width -> texts."""
    widths = {one["num_beams"]: one["texts"] for one in of.beams["widths"]}
    widest = max(widths)
    differ = [i for i, text in enumerate(widths[1]) if text != widths[widest][i]]
    pick = differ[0] if differ else 0
    rows = {"stored: data": of.sample(pick)[0], "stored: reference": of.sample(pick)[1][0]}
    rows |= {f"stored: {w} beam{'s' * (w > 1)}": found[pick] for w, found in widths.items() if w in (1, widest)}
    rows |= {f"yours, input {i + 1}: {w} beam{'s' * (w > 1)}": found[i]
             for i in range(2) for w, found in yours.items()}
    return texts_in_rows(rows, f"Stored: greedy and {widest} beams differ for {len(differ)} of {len(widths[1])} "
                               f"inputs. Data: {of.about['licence']}")


def one_reference(of: texts.Texts, arm: str = "LoRA") -> str:
    """Say what BLEU an arm's samples have against all references, and against the first alone."""
    found = [of.sample(i) for i in range(len(of.samples))]
    written = [texts_of[arm][0] for _, _, texts_of in found]
    many, first = (metrics.bleu(written, refs) for refs in ([refs for _, refs, _ in found],
                                                            [refs[:1] for _, refs, _ in found]))
    return f"BLEU of {len(written)} texts: {many:.3f} against all references, {first:.3f} against the first one"


def claims_about_texts() -> Any:
    """The ledger's rows on E2E and WebNLG, to be read."""
    found = ledger.table(["LoRA", "Delta-LoRA", "AutoLoRA"])
    rows = found[found["statement"].str.contains("E2E|WebNLG")]
    return readable(rows[["where", "statement", "paper's number", "difference [95 %]", "verdict"]], "claims")


def measured(*several: texts.Texts) -> Any:
    """A table of differences to LoRA by every score, for seed 0, with intervals over test inputs."""
    rows = []
    for of in several:
        names = [name for name in ("bleu", "meteor", "rougeL", "cider", "ter")
                 if name in of.record("LoRA")["statistics"]]
        for arm in trained_arms(of)[1:]:
            cells = {}
            for name in names:
                score, low, high = of.interval(arm, name, other="LoRA")
                cells[SHOWN.get(name, name.upper())] = f"{score:+.3f} [{low:+.3f}, {high:+.3f}]"
            rows.append({"seed 0, over inputs": f"{of.about['task']}: {arm} − LoRA", **cells})
    return readable(pd.DataFrame(rows).set_index("seed 0, over inputs").fillna("–"), "measured")


# ---- explorers: what the sliders move ---------------------------------------------------------------------

RESAMPLES, LEVEL = 500, 0.95   # as many as `Texts.interval` draws: at the right end the two agree


class HowManyInputs(Picture):
    """Scores of some arms over n test inputs, and their differences to the first arm, with 95 % intervals.

    stored: from `texts.load_texts`.  arms: the first is what the others are compared with.  score: its name.
    """

    height = 2.9

    def __init__(self, stored: texts.Texts, arms: Sequence[str], score: str = "bleu") -> None:
        self.arms, self.score = list(arms), score
        self.rows = {arm: stored.rows(arm, score) for arm in self.arms}
        self.count_of_inputs = len(self.rows[self.arms[0]])
        self.known: dict[int, dict[str, Any]] = {}   # n -> arrays: picture and sentence ask for the same
        self.controls = (Control("n", "test inputs", 10, self.count_of_inputs, min(30, self.count_of_inputs), 5),)
        super().__init__()

    def build(self) -> list[Artist]:
        self.bars, self.dots = [], []
        for ax, arms in zip(self.axes, (self.arms, self.arms[1:]), strict=True):
            for y, (color, marker) in enumerate(arm_looks(arms).values()):
                self.bars += ax.plot([0, 0], [y, y], color=color, linewidth=3, solid_capstyle="butt")
                self.dots += ax.plot([0], [y], marker, color=color, markersize=9, markeredgecolor="white")
            ax.set_ylim(len(arms) - 0.5, -0.5)
        score = self.score.upper()
        self.axes[0].set_yticks(range(len(self.arms)), self.arms)
        self.axes[1].set_yticks(range(len(self.arms) - 1), [f"{arm} − {self.arms[0]}" for arm in self.arms[1:]])
        self.axes[1].axvline(0, color=style.GREY, linestyle="--", linewidth=1.2)
        n = self.controls[0]
        everywhere = [self.arrays(n=at) for at in {*range(int(n.low), int(n.high), int(n.step)), int(n.high)}]
        for ax, name in zip(self.axes, ("scores", "differences"), strict=True):
            ends = np.concatenate([found[name][:, 1:] for found in everywhere])
            low, high = ends.min(), ends.max()
            ax.set_xlim(low - 0.1 * (high - low), high + 0.1 * (high - low))
        style.dress(self.axes[0], f"{score} of the first n inputs", "")
        style.dress(self.axes[1], f"Difference in {score}", "")
        for ax in self.axes:
            ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))   # more would touch
        return [*self.bars, *self.dots]

    def arrays(self, **state: Any) -> dict[str, Any]:
        """scores (arms, 3) and differences (arms − 1, 3): over the first n inputs, low end, high end."""
        n = min(int(state["n"]), self.count_of_inputs)
        if n not in self.known:
            self.known[n] = self._drawn(n)
        return self.known[n]

    def _drawn(self, n: int) -> dict[str, Any]:
        draws = texts.draws_of(n, RESAMPLES)
        tail = (1 - LEVEL) / 2
        drawn = {arm: texts.resampled(self.score, rows[:n], draws) for arm, rows in self.rows.items()}
        whole = {arm: texts.combined(self.score, rows[:n]) for arm, rows in self.rows.items()}
        first = self.arms[0]
        return {"n": n, "scores": np.array([[whole[arm], *np.quantile(drawn[arm], [tail, 1 - tail])]
                                            for arm in self.arms]),
                "differences": np.array([[whole[arm] - whole[first],
                                          *np.quantile(drawn[arm] - drawn[first], [tail, 1 - tail])]
                                         for arm in self.arms[1:]])}

    def update(self, arrays: dict[str, Any]) -> None:
        found = np.concatenate([arrays["scores"], arrays["differences"]])
        for (score, low, high), bar, dot in zip(found, self.bars, self.dots, strict=True):
            bar.set_xdata([low, high])
            dot.set_xdata([score])

    def words(self, **state: Any) -> str:
        found = self.arrays(**state)
        apart = [arm for arm, (_, low, high) in zip(self.arms[1:], found["differences"], strict=True)
                 if low > 0 or high < 0]
        width = float(np.mean(found["scores"][:, 2] - found["scores"][:, 1]))
        said = (f"apart from {self.arms[0]}: {', '.join(apart)}" if apart else
                f"no method is apart from {self.arms[0]}, since each difference's interval holds zero")
        return (f"With the first {found['n']} of {self.count_of_inputs} inputs an interval of {self.score.upper()} "
                f"is {width:.3f} wide on average; {said}.")


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

Ids = Sequence[int]


class NumberTokenizer:
    """A tokenizer of numbers between blanks, so that a row's tokens can be given as they are."""

    def __init__(self, end: int) -> None:
        self.eos_token_id = end

    def __call__(self, text: str, *, max_length: int | None = None, **_: Any) -> dict[str, Any]:
        found = list(re.finditer(r"\d+", text))[:max_length]
        return {"input_ids": [int(one[0]) for one in found], "offset_mapping": [one.span() for one in found]}


_ROWS = TextTask("numbers", "seq2seq", ("prompt",), "target", (), (), 64, "numbers after numbers", "made up")


def causal_row(prompt: Ids, target: Ids, end: int) -> np.ndarray:
    """Tokens and labels (2, T) of one row for a causal model, by the library's `encode`."""
    frame = pd.DataFrame({"prompt": [" ".join(map(str, prompt))], "target": [" ".join(map(str, target))]})
    row = encode(frame, _ROWS, NumberTokenizer(end), causal=True)[0]  # type: ignore[arg-type]
    return np.array([row["input_ids"], row["labels"]])


def _labels(change: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    """The library's row with its labels changed: (tokens, labels) -> labels."""

    def wrong(prompt: Ids, target: Ids, end: int) -> np.ndarray:
        tokens, labels = causal_row(prompt, target, end)
        return np.array([tokens, change(tokens, labels)])

    return wrong


def next_tokens(logits: Tensor, done: Tensor, end: int) -> Tensor:
    """The next token (N,) of each text of a batch padded on the left: the likeliest one, and the end where done."""
    return torch.where(done, end, logits[:, -1].argmax(-1))


def matched_groups(text: str, references: Sequence[str], n: int) -> np.ndarray:
    """Groups of n words of a text that BLEU finds in its references, and groups written: sacrebleu's counts."""
    counts = texts.text_statistics("bleu", [text], [references])[0]
    return np.array([counts[n - 1], counts[3 + n]])


def _groups(text: str, n: int) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))


def _matched(known: Callable[[tuple[str, ...], list[Counter[tuple[str, ...]]]], float]) -> Callable[..., np.ndarray]:
    """Another rule of how often a group may count: (group, counts by reference) -> times."""

    def wrong(text: str, references: Sequence[str], n: int) -> np.ndarray:
        by_reference, found = [_groups(one, n) for one in references], _groups(text, n)
        return np.array([sum(min(times, known(group, by_reference)) for group, times in found.items()),
                         found.total()])

    return wrong


def missing_values(text: str, values: Sequence[str]) -> np.ndarray:
    """Of each value 1 where the text does not say it, else 0: the library's rule."""
    wanted = {f"field {i}": [value] for i, value in enumerate(values)}
    lacks = slot_errors.check(text, " | ".join(f"{field} : {value}" for field, [value] in wanted.items()),
                              wanted).missing
    return np.array([float(field in lacks) for field in wanted])


def resampled_scores(edits: np.ndarray, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Edit rate of each draw (R,) of texts: edits (N,), reference lengths (N,), draws (R, N) of text numbers."""
    return texts.resampled("ter", np.stack([edits, lengths], axis=1), draws)


_PLAIN = "Blue Spice, near Public Square, serves french food by the river."
_VALUES = ["Blue Spice", "pub", "French", "riverside", "Public Square"]
_EDITS, _LENGTHS = np.array([1.0, 8.0, 0.0, 6.0]), np.array([4.0, 20.0, 9.0, 7.0])
_DRAWS = np.array([[0, 1, 2, 3], [0, 0, 1, 3], [2, 2, 1, 0]])


def _steps_of_writing() -> list[tuple]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 5, 11, generator=draw), torch.tensor([False, True, False, True]), 2),
            (torch.randn(3, 6, 9, generator=draw), torch.tensor([True, False, False]), 0)]


# ---- answers, written for a reader ------------------------------------------------------------------------


def answer_causal_row(prompt: Ids, target: Ids, end: int) -> np.ndarray:
    tokens = [*prompt, *target, end]
    labels = [-100] * len(prompt) + [*target, end]
    return np.array([tokens, labels])


def answer_next_tokens(logits: Tensor, done: Tensor, end: int) -> Tensor:
    likeliest = logits[:, -1].argmax(-1)
    return torch.where(done, end, likeliest)


def answer_matched_groups(text: str, references: Sequence[str], n: int) -> list[int]:
    def groups(line: str) -> Counter:
        words = line.split()
        return Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1))

    allowed: Counter = Counter()
    for one in references:
        allowed |= groups(one)   # the larger of the two counts
    return [(groups(text) & allowed).total(), groups(text).total()]


def answer_missing_values(text: str, values: Sequence[str]) -> np.ndarray:
    said = [re.search(rf"\b{re.escape(value)}\b", text, re.IGNORECASE) for value in values]
    return np.array([float(one is None) for one in said])


def answer_resampled_scores(edits: np.ndarray, lengths: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return edits[draws].sum(axis=1) / lengths[draws].sum(axis=1)


EXERCISES.update({
    "causal_row": Task(
        causal_row, lambda: [([5, 6, 7], [8, 9], 2), ([3], [4, 4, 8, 1], 2)],
        "tokens: prompt, target, end; labels: −100 for every token of the prompt, then the target and the end",
        [("the prompt is learned, too: its labels must be −100", _labels(lambda tokens, labels: tokens)),
         ("0 is a token like any other; the number that is left out is −100",
          _labels(lambda tokens, labels: np.where(labels == IGNORED, 0, labels))),
         ("that is shifted: tokens and labels stand one above the other, and the model itself compares each label "
          "with what it said one place before", _labels(lambda tokens, labels: np.append(labels[1:], IGNORED))),
         ("the end is not learned: a model that never saw it does not stop",
          _labels(lambda tokens, labels: np.append(labels[:-1], IGNORED))),
         ("that learns the prompt and leaves the target out",
          _labels(lambda tokens, labels: np.where(labels == IGNORED, tokens, IGNORED)))],
        (encode,), shapes="the row has prompt, target and one token for the end", answer=answer_causal_row),
    "next_tokens": Task(
        next_tokens, _steps_of_writing,
        "two things are wrong: which place of a row is the last one, and what a text that has ended is given",
        [("that reads the first place of each row: the next token is told by the last one",
          lambda logits, done, end: next_tokens(logits[:, :1], done, end)),
         ("a text that has ended goes on: give it the end token again",
          lambda logits, done, end: next_tokens(logits, torch.zeros_like(done), end)),
         ("that is upside down: texts that have not ended get the end token",
          lambda logits, done, end: next_tokens(logits, ~done, end)),
         ("that is the least likely token", lambda logits, done, end: next_tokens(-logits, done, end)),
         ("that reads the first place, and a text that has ended goes on",
          lambda logits, done, end: next_tokens(logits[:, :1], torch.zeros_like(done), end))],
        (generate,), shapes="logits are (N, T, V): texts, places, tokens; return one number a text",
        answer=answer_next_tokens),
    "matched_groups": Task(
        matched_groups, lambda: [("the pub the pub the pub by the river", ["the pub by the river",
                                                                          "the pub , the pub the inn"], 2),
                                 ("a pub by a pub by a pub by", ["a pub by a river",
                                                                 "by a pub by a pub and a pub by a sea"], 3)],
        "each group of the text counts at most as often as it stands in the one reference that has it most often",
        [("a group counts as often as it is written: repeating a good one would win",
          _matched(lambda group, refs: np.inf if any(group in one for one in refs) else 0)),
         ("the references are added up: the most in any one of them is what counts",
          _matched(lambda group, refs: sum(one[group] for one in refs))),
         ("that looks at the first reference alone", _matched(lambda group, refs: refs[0][group])),
         ("that counts different groups: one may count twice if a reference has it twice",
          _matched(lambda group, refs: float(any(group in one for one in refs)))),
         ("that counts single words: take groups of n words",
          lambda text, references, n: matched_groups(text, references, 1)),
         ("that is upside down: first the matches, then the groups written",
          lambda text, references, n: matched_groups(text, references, n)[::-1])],
        (texts._bleu,), answer=answer_matched_groups),
    "missing_values": Task(
        missing_values, lambda: [(_PLAIN, _VALUES), ("A cheap Pub in the city centre.", ["pub", "heap", "city"])],
        "1 for each value that does not stand in the text as a whole word, whether in capitals or not",
        [("capitals: \"french\" says French",
          lambda text, values: np.array([float(re.search(rf"\b{v}\b", text) is None) for v in values])),
         ("\"Public\" does not say pub: look for whole words (\\b in a regular expression)",
          lambda text, values: np.array([float(v.lower() not in text.lower()) for v in values])),
         ("that is upside down: 1 is for what is missing", lambda text, values: 1 - missing_values(text, values))],
        (slot_errors.check, slot_errors._check_fields), answer=answer_missing_values),
    "resampled_scores": Task(
        resampled_scores, lambda: [(_EDITS, _LENGTHS, _DRAWS)],
        "for each row of draws: the edits of the texts drawn, added up, over their lengths, added up",
        [("a mean of each text's own rate: a corpus score adds up first and divides then",
          lambda edits, lengths, draws: (edits / lengths)[draws].mean(1)),
         ("upside down: edits over length",
          lambda edits, lengths, draws: 1 / resampled_scores(edits, lengths, draws)),
         ("the lengths were not drawn: edits and lengths belong to the same texts",
          lambda edits, lengths, draws: edits[draws].sum(1) / lengths.sum()),
         ("that is one set of texts over and over: use the row numbers in draws",
          lambda edits, lengths, draws: np.full(len(draws), edits.sum() / lengths.sum()))],
        (texts.resampled,), answer=answer_resampled_scores),
})

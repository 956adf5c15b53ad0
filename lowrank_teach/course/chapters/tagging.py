"""Notebook 09, tagging and style transfer: its workbench, pictures and findings, tables, a slider, exercises.

The words are those of tweets, abstracts and reviews. Whatever goes into HTML is escaped here and kept from being
read as mathematics; whatever goes into a figure is drawn as it stands. W words, T pieces of a sentence.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ...analysis import statistics, style
from ...analysis.plots import Numbers
from ...experiments.runs import Run
from ...reproduction import ledger, rewriting
from ...reproduction.rewriting import CHAT, COPY, HUMAN, PLAIN, Rewrites
from ...reproduction.rewriting import train_classifier as train_classifier
from ...reproduction.tagging import SIX as SIX
from ...reproduction.tagging import WHOLE_RATE, Taggers, load_tags, short_example
from ...reproduction.tagging import tag as tag
from ...tasks import entities
from ...tasks.load import load_task, task_here
from ...tasks.readers import TRANSFERS as TRANSFERS
from ...tasks.style_transfer import CausalLM as CausalLM
from ...tasks.style_transfer import score_transfer
from ...tasks.style_transfer import transfer as transfer
from ...tasks.table import TASKS as ALL_TASKS
from ...tasks.task import TaskData
from ...tasks.tokenize import IGNORED, _encode_tags, encode
from ...training.config import default_profile, train_config
from ..by_hand import Bench
from ..by_hand import losses_of as losses_of
from ..by_hand import say_equal as say_equal
from ..contents import machine_line, readable
from ..exercises import EXERCISES, Task, predict
from ..explorer import Control, Picture
from ..html_page import Page, table
from ..html_page import texts as texts_in_a_table
from ..schematic import arrow, box, canvas

# fields of a `TrainConfig` for the tagger of section 7
_LENGTHS: dict[str, dict[str, Any]] = {
    "tiny": {"steps": 120, "batch_size": 8, "n_train": 960, "n_validation": 60},
    "laptop": {"steps": 300, "batch_size": 16, "n_train": 1600, "n_validation": 100},
    "gpu": {"steps": 2000, "batch_size": 32, "n_train": None, "n_validation": 400}}
SIZES = {name: {**length, "n_test": 200, "max_length": 64, "lr": 2e-3, "head_lr": 1e-2}
         for name, length in _LENGTHS.items()}
JUDGED: dict[str, dict[str, Any]] = {"tiny": {"steps": 90, "n_train": 1200}, "laptop": {}, "gpu": {}}
WRITTEN = {"tiny": (6, 16), "laptop": (12, 24), "gpu": (100, 40)}   # sentences a direction, tokens at most
STEPS_BY_HAND = {"tiny": 6, "laptop": 12, "gpu": 20}


def begin() -> tuple[str, str, str, str]:
    """Print where this notebook runs and on what it trains: the task of tags, that of styles, backbone, profile."""
    profile = default_profile()
    backbone = "minilm-l3" if profile == "tiny" else "minilm-l6"
    tags, why = task_here("jnlpba", packaged="wnut16")
    styles, style_why = task_here("yelp-transfer", packaged="rt-transfer")
    print(machine_line())
    print(f"profile {profile}, network {backbone}\ntags: {tags} ({why})\nstyles: {styles} ({style_why})")
    return tags, styles, backbone, profile


def sentences(task: str, profile: str) -> TaskData:
    """Return the rows that the tagger of this profile reads."""
    return load_task(task, n_train=SIZES[profile]["n_train"], n_validation=60, n_test=200)


# ---- the workbench: a tagger that trains in seconds, in float64 -------------------------------------------


class Workbench(Bench):
    """A tagger: the small network with a fresh head of one score a tag, and batches of eight short sentences.

    words: of each batch, for every sentence the number of each piece's word, and the tags of its words.
    labels: the tags.  cut: one sentence, its pieces and labels.
    """

    def __init__(self, data: TaskData, profile: str) -> None:
        few = TaskData(**{**vars(data), "train": data.train.head(64)})
        super().__init__(few, train_config("tiny", steps=STEPS_BY_HAND[profile], n_train=64, batch_size=8, lr=5e-3,
                                           warmup=0.0, max_grad_norm=0.0, max_length=64))
        self.labels, self.cut = data.task.labels, short_example(data, self.tokenizer, longest=12)
        tokens, codes = few.train[data.task.text[0]].tolist(), few.train[data.task.label].tolist()
        self.words = []
        for chosen in self.chosen:
            places = [next(i for i, row in enumerate(self.rows) if row is one) for one in chosen]
            cut = self.tokenizer([list(tokens[i]) for i in places], is_split_into_words=True, truncation=True,
                                 max_length=64)
            self.words.append([(cut.word_ids(n), [int(c) for c in codes[i]]) for n, i in enumerate(places)])


# ---- pictures of style transfer ---------------------------------------------------------------------------

Point = tuple[float, float]


def trade_off(panels: Mapping[str, Mapping[str, Sequence[Point]]], xlabel: str, ylabel: str) -> Figure:
    """One panel a direction; name -> points (x, y), one a seed, both from 0 to 1. Up and to the right is good."""
    fig, axes = style.panels(len(panels), len(panels), 3.5, None, width=9.5, sharey=True)
    looks = {**style.looks(dict.fromkeys(name for points in panels.values() for name in points)), **LOOKS_OF_ARMS}
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        for name, found in points.items():
            xs, ys = np.array(found, dtype=float).T
            look = {**looks[name], "linestyle": "none", "markersize": 9}
            ax.plot(xs, ys, alpha=0.9, **look)
        ax.set_xlim(-0.05, 1.05)
        ax.set_ylim(-0.05, 1.05)
        style.dress(ax, xlabel, ylabel if ax is axes[0] else "", title)
    style.legend(fig)
    fig.set_label(f"{len(panels)} panels of points, {xlabel} across and {ylabel} up: "
                  + "; ".join(f"{name} {np.mean(found, axis=0)[0]:.2f}, {np.mean(found, axis=0)[1]:.2f}"
                              for name, found in next(iter(panels.values())).items()) + " in the first.")
    return fig


LOOKS_OF_ARMS: dict[str, dict[str, Any]] = {
    COPY: {"label": COPY, "color": style.GREY, "marker": "o"}, HUMAN: {"label": HUMAN, "color": style.BLACK,
                                                                      "marker": "*"},
    PLAIN: {"label": PLAIN, "color": style.GREY, "marker": "^"},
    CHAT: {"label": CHAT, "color": style.GREY, "marker": "v"},
    "after LoRA": {"label": "after LoRA", "color": style.BLUE, "marker": "s"},
    "after SaLoRA": {"label": "after SaLoRA", "color": style.GREEN, "marker": "D"}}


def idea() -> Figure:
    """The route of a sentence: instruction, model, rewrite, and the three judges."""
    fig, ax = canvas(9.0, 2.5)
    for x, width, color, words in ((0.05, 2.3, style.PALE, "“Rewrite … so that it is\npositive” + sentence"),
                                   (2.95, 1.9, style.BLUE, "causal model\n(frozen W + BA)"),
                                   (5.45, 1.1, style.PALE, "rewrite")):
        box(ax, x, 0.85, width, 0.7, color, words)
    judges = (("classifier: the wanted style?", 1.75), ("BLEU: to a human rewrite,\nand to the source", 0.95),
              ("perplexity: is it fluent?", 0.15))
    for words, y in judges:
        box(ax, 7.1, y, 1.85, 0.62, style.GREEN, words)
        arrow(ax, (6.6, 1.2), (7.05, y + 0.31))
    arrow(ax, (2.4, 1.2), (2.9, 1.2))
    arrow(ax, (4.9, 1.2), (5.4, 1.2))
    fig.set_label("Boxes from left to right: instruction and sentence, causal model, rewrite; three arrows to a "
                  "classifier, to BLEU and to perplexity.")
    return fig


# ---- sentences with their entities, as HTML ---------------------------------------------------------------

Span = tuple[int, int, str, str]   # first word, word after the last, type, and a remark ("" for none)
INKS = (style.BLUE, style.ORANGE, style.GREEN, style.PINK, style.SKY, style.YELLOW, style.GREY)



def highlight(words: Sequence[str], spans: Sequence[Span], kinds: Sequence[str]) -> str:
    """One sentence as HTML, its entities in colour with their type (and a remark) written behind them.

    words: of the sentence.  spans: not overlapping, by the numbers of words.  kinds: the order of the colours.
    Every word, type and remark is escaped: what is in the data stays text.
    """
    words, parts, at = unlinked(words), [], 0
    for start, end, kind, remark in sorted(spans):
        parts += [html.escape(word) for word in words[at:start]]
        name = html.escape(f"{kind}, {remark}" if remark else kind)
        parts.append(f'<mark style="background:{_tint(kind, kinds)};color:#000;padding:0 .2em;border-radius:.2em'
                     f'{_edge(remark)}">{html.escape(" ".join(words[start:end]))} <small>[{name}]</small></mark>')
        at = end
    return " ".join([*parts, *(html.escape(word) for word in words[at:])])


def unlinked(words: Sequence[str]) -> list[str]:
    """Addresses in tweets lead nowhere by now, or worse: that there was one is shown, and not which."""
    return ["[link]" if word.lower().startswith(("http://", "https://")) else word for word in words]


def _tint(kind: str, kinds: Sequence[str]) -> str:
    return INKS[list(kinds).index(kind) % len(INKS)] + "55"   # a third of the colour: black on it can be read


def _edge(remark: str) -> str:
    return ";border:2px dashed #B00000" if remark and remark != "right" else ""


def in_brackets(words: Sequence[str], spans: Sequence[Span]) -> str:
    """The same sentence as plain text, for a reader without colours: [IL-2 | protein, missed]."""
    words, parts, at = unlinked(words), [], 0
    for start, end, kind, remark in sorted(spans):
        name = f"{kind}, {remark}" if remark else kind
        parts += [*words[at:start], f"[{' '.join(words[start:end])} | {name}]"]
        at = end
    return " ".join([*parts, *words[at:]])


# ---- pictures of tagging ----------------------------------------------------------------------------------


def pieces_and_labels(words: Sequence[str], pieces: Sequence[str], word_of: Sequence[int | None],
                      labels: Sequence[str]) -> Figure:
    """Three rows: words, the pieces they are cut into, the label of every piece ("" for one that does not count).

    word_of: of every piece the number of its word, None for one that the tokenizer adds.
    """
    fig, ax = canvas(9.0, 2.6, x=(-1.4, len(pieces)), y=(-0.2, 3))
    for y, name in ((2.4, "words"), (1.4, "pieces"), (0.4, "labels")):
        ax.text(-0.25, y, name, ha="right", va="center", fontsize=10, fontweight="bold")
    for number, word in enumerate(words):
        places = [i for i, w in enumerate(word_of) if w == number]
        if places:
            _cell(ax, places[0], places[-1] + 1, 2.0, word, style.PALE)
    for i, (piece, label) in enumerate(zip(pieces, labels, strict=True)):
        _cell(ax, i, i + 1, 1.0, piece, style.SKY if word_of[i] is not None else "#FFFFFF")
        _cell(ax, i, i + 1, 0.0, label or "−100", style.ORANGE if label not in ("", "O") else "#FFFFFF",
              style.GREY if not label else style.BLACK)
    fig.set_label(f"Three rows of boxes: {len(words)} words, their {len(pieces)} pieces, and under each piece a "
                  "label or minus 100.")
    return fig


def _cell(ax: Axes, left: float, right: float, y: float, words: str, fill: str, ink: str = style.BLACK) -> None:
    room = 9.3 * (right - left) / (ax.get_xlim()[1] - ax.get_xlim()[0]) * 10
    if len(words) > room + 1:   # on two lines, so that it can be read
        at = words.find("-") + 1 or (len(words) + 1) // 2
        words = f"{words[:at]}\n{words[at:]}"
    box(ax, left + 0.08, y + 0.1, right - left - 0.16, 0.62, fill, words, alpha=0.55, ink=ink, size=9.5)


def confusion_table(table: np.ndarray, kinds: Sequence[str]) -> Figure:
    """Counts (K + 1, K + 1) of annotated against predicted types; the last row invented, the last column missed."""
    n = len(kinds)
    fig, (ax,) = style.panels(1, 1, 1.2 + 0.38 * n, None, width=3.4 + 0.62 * n)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    counts = np.char.mod("%d", table)
    counts[n, n] = ""   # what is neither annotated nor predicted is not counted
    mesh = style.heatmap(ax, shares, [*kinds, "invented"], [*kinds, "missed"], annot=counts, cmap="cividis", vmin=0,
                         vmax=1)
    ax.set_xticks(ax.get_xticks(), [*kinds, "missed"], rotation=35, ha="right", rotation_mode="anchor")
    style.dress(ax, "Predicted", "Annotated", "Entities by annotated and predicted type")
    fig.colorbar(mesh, ax=ax, pad=0.02, label="Share of the row")
    fig.set_label(f"A table of counts of {n} types: annotated types down, predicted ones across, invented entities "
                  "in the last row and missed ones in the last column.")
    return fig


def outcome_bars(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """One bar a name, made of the shares of its outcomes; name -> outcome -> share, each adding up to 1."""
    fig, (ax,) = style.panels(1, 1, 0.8 + 0.42 * len(shares), None, width=9.0)
    inks = (style.GREEN, style.SKY, style.YELLOW, style.ORANGE, style.PALE, style.PINK)
    hatches = ("", "//", "..", "xx", "", "\\\\")
    outcomes = list(next(iter(shares.values())))
    for y, name in enumerate(list(shares)[::-1]):
        left = 0.0
        for outcome, ink, hatch in zip(outcomes, inks, hatches, strict=False):
            ax.barh(y, shares[name][outcome], left=left, color=ink, hatch=hatch, edgecolor=style.BLACK, linewidth=0.6)
            left += shares[name][outcome]
    ax.set_yticks(range(len(shares)), list(shares)[::-1])
    ax.set_xlim(0, 1)
    style.dress(ax, "Share of all entities, annotated or predicted", "", "What became of every entity")
    ax.grid(axis="y", visible=False)
    style.legend(fig, [Patch(facecolor=ink, hatch=hatch, edgecolor=style.BLACK, label=outcome)
                       for outcome, ink, hatch in zip(outcomes, inks, hatches, strict=False)])
    fig.set_label("A bar for each tagger in six parts, from right to invented; share right: "
                  + ", ".join(f"{name} {part[outcomes[0]]:.2f}" for name, part in shares.items()) + ".")
    return fig


def f1_by_kind(scores: Mapping[str, np.ndarray], kinds: Sequence[str], sizes: Sequence[int]) -> Figure:
    """F1 of every type and over all, a mark an arm with its interval.

    Args: arm -> (K + 1, 3): F1, low, high, the last row over all types; sizes: annotated entities of each type.
    """
    fig, (ax,) = style.panels(1, 1, 3.6, None, width=9.0)
    looks = style.looks(scores)
    for i, (arm, values) in enumerate(scores.items()):
        x = np.arange(len(kinds) + 1) + 0.8 * ((i + 0.5) / len(scores) - 0.5)
        look = {**looks[arm], "linestyle": "none"}
        ax.errorbar(x, values[:, 0], yerr=[values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], capsize=2,
                    elinewidth=1.2, **look)
    for edge in np.arange(len(kinds)) + 0.5:
        ax.axvline(edge, color=style.PALE, linewidth=0.8, linestyle="-" if edge == len(kinds) - 0.5 else ":")
    names = [f"{kind}\n({size})" for kind, size in zip(kinds, sizes, strict=True)]
    ax.set_xticks(range(len(kinds) + 1), [*names, f"all\n({sum(sizes)})"])
    style.dress(ax, "Type of entity (annotated in the test sentences)", "Entity F1",
                "F1 by type; bars: 95 % over test sentences")
    style.legend(fig)
    fig.set_label(f"Entity F1 of {len(kinds)} types, and over all at the right: a mark and an error bar for each of "
                  f"{len(scores)} methods.")
    return fig


def two_scores(entity: Mapping[str, Numbers], token: Mapping[str, Numbers], floor: float) -> Figure:
    """Left token accuracy, right entity F1 of the same runs, a row an arm; floor: the accuracy of saying only O."""
    fig, axes = style.panels(2, 2, 0.7 + 0.36 * len(entity), None, width=9.0, sharey=True)
    looks = style.looks(entity)
    for ax, values, xlabel, lazy in zip(axes, (token, entity), ("Token accuracy", "Entity F1"), (floor, 0.0),
                                        strict=True):
        style.seed_strip(ax, {looks[name]["label"]: values[name] for name in entity})
        ax.set_xlim(-0.02, 1)
        ax.axvline(lazy, color=style.GREY, linestyle="--", linewidth=1.5, label="saying O at every word")
        style.dress(ax, xlabel, "", f"{xlabel} of the same runs")
    style.legend(fig)
    fig.set_label(f"Two panels of dots, one row for each of {len(entity)} methods: token accuracies close together "
                  f"above the dashed line at {floor:.2f}, and entity F1 from {min(map(min, entity.values())):.2f} to "
                  f"{max(map(max, entity.values())):.2f}; the dashed line there is at 0.")
    return fig


# ---- what was found, and tables ---------------------------------------------------------------------------


def say_o(data: TaskData) -> float:
    """Print what a tagger gets that says O at every word, and return its token accuracy."""
    assert data.test is not None
    every = np.concatenate(data.test[data.task.label].tolist())
    share = float(np.mean(every == 0))
    print(f"a tagger that says O (“no entity”) at each of {len(every):,} words: token accuracy {share:.3f}, entities "
          "found: 0")
    return share


def predict_lazy(only_O: float) -> None:
    predict(f"The tagger above that only says O has token accuracy {only_O:.2f}. What is its entity F1?",
            "0, because no entity is right. This is why taggers are compared by entities.")


def predict_half() -> None:
    near = entities.counts([["B-x", "I-x", "I-x"]], [["B-x", "I-x", "O"]], ["x"]).sum((0, 1))
    right, predicted, annotated = near.tolist()
    predict("An entity has three words, and the tagger found the first two of them. How many errors are that?",
            f"Two: the entity is missed, and another one is invented. R, P, G = {right}, {predicted}, {annotated}, "
            f"so F1 is {float(entities.f1(near)):g}, although two of three words are right.")


def predict_copy() -> None:
    asked = rewriting.load()
    ways = asked.directions
    models = [arm for arm in asked.arms if arm not in (COPY, HUMAN)]
    name = _judges(asked)[-1]

    def said(score: str, arm: str) -> str:
        return " and ".join(f"{asked.mean(score, way, arm):.2f}" for way in ways)

    best = " and ".join(f"{max(asked.mean('bleu', way, arm) for arm in models):.2f}" for way in ways)
    worst = " and ".join(f"{asked.mean(name, way, COPY):.0f}" for way in ways)
    others = " and ".join(f"{max(asked.mean(name, way, arm) for arm in models):.0f}" for way in ways)
    predict("A model answers every request with the sentence that it was given. Which of the three judges of style "
            "transfer are pleased?",
            f"Only BLEU: a copy has {said('bleu', COPY)} to the human rewrite in the two directions, above the best "
            f"model with {best}. The classifier objects (accuracy {said('accuracy', COPY)}). So does the perplexity "
            f"by SmolLM2: {worst} for the copy, at most {others} for what a model wrote (section 9).")


def finding_of_pieces(words: Sequence[str], pieces: Sequence[str], labels: Sequence[str]) -> str:
    """Say how many pieces and labels there are."""
    counted = sum(label != "" for label in labels)
    return (f"The {len(words)} words are cut into {len(pieces)} pieces, two of them [CLS] and [SEP]. Only "
            f"{counted} pieces carry a label, one a word; the other {len(labels) - counted} have −100.")


def finding_of_judges(asked: Rewrites) -> str:
    """Say what the three judges say of a copied sentence."""
    name = _judges(asked)[-1]
    mean = {score: float(np.mean([asked.mean(score, way, COPY) for way in asked.directions]))
            for score in ("accuracy", "self_bleu", name)}
    return (f"No judge is enough. A source that is simply copied has BLEU {mean['self_bleu']:.0f} to itself, and "
            f"{mean['accuracy']:.0%} of the copies have the wanted style; its perplexity by SmolLM2 is "
            f"{mean[name]:.0f}. Section 9 compares that with other texts.")


def _judges(asked: Rewrites) -> list[str]:
    """Names of the scores that language models give; SmolLM2's is the last."""
    return [name for name in asked.records[0]["scores"] if name.startswith("perplexity")]


def finding_of_run(run: Run) -> str:
    """Say where the loss of a tagger ended, and what it guessed at the start."""
    _, losses = run.series("loss")
    few = min(10, len(losses) // 2)
    return (f"The loss a word falls from {np.mean(losses[:few]):.2f} (mean of the first {few} steps) to "
            f"{np.mean(losses[-few:]):.2f} (of the last {few}). {run.parameters['trainable']:,} of "
            f"{run.parameters['total']:,} numbers train.")


def tag_scores(tagged: Any) -> Any:
    """A table of both scores of a reader's tagger, beside saying O at every word."""
    lazy = [["O"] * len(tags) for tags in tagged.gold]
    rows = {}
    for name, tags in (("saying O at every word", lazy), ("yours", tagged.predicted)):
        counted = entities.counts(tagged.gold, tags, tagged.kinds).sum((0, 1))
        rows[name] = [entities.token_accuracy(tagged.gold, tags), float(entities.f1(counted)), *map(int, counted)]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=["token accuracy", "entity F1", "R", "P", "G"])
    frame = frame.astype({"R": int, "P": int, "G": int}).rename_axis("tagger")
    return readable(frame, "tagged", **dict.fromkeys(("token accuracy", "entity F1"), "{:.3f}"))


def first_sentences(tagged: Any, count: int = 5) -> Page:
    """The first test sentences with an entity: what was annotated, and what was predicted."""
    blocks, plain = [], []
    for n in with_entity(tagged)[:count]:
        sides = entities.remarks(tagged.gold[n], tagged.predicted[n])
        for who, spans in zip(("annotated", "predicted"), sides, strict=True):
            blocks.append({who: highlight(tagged.words[n], spans, tagged.kinds)})
            plain.append(f"{who}: {in_brackets(tagged.words[n], spans)}")
    return Page(table(blocks), "\n".join(plain))


def with_entity(tagged: Any) -> list[int]:
    return [n for n, tags in enumerate(tagged.gold) if set(tags) != {"O"}]


def outcome_shares(tagged: Any) -> dict[str, dict[str, float]]:
    """tagger -> outcome -> share of all entities, for a reader's tagger and for saying O."""
    found = {}
    for name, tags in (("yours", tagged.predicted), ("saying O", [["O"] * len(one) for one in tagged.gold])):
        told = entities.outcomes(tagged.gold, tags)
        found[name] = {outcome: count / sum(told.values()) for outcome, count in told.items()}
    return found


def finding_of_outcomes(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Say how much is right, and which error is the most common."""
    mine = shares["yours"]
    errors = {name: share for name, share in mine.items() if name != entities.RIGHT}
    order = sorted(errors, key=errors.__getitem__, reverse=True)
    return (f"Of all entities, annotated or predicted, {mine[entities.RIGHT]:.0%} are right. The most common errors "
            f"are “{order[0]}” ({errors[order[0]]:.0%}) and “{order[1]}” ({errors[order[1]]:.0%}). The tagger that "
            "says O misses all and invents none.")


def confused(tagged: Any) -> np.ndarray:
    return entities.confusion(tagged.gold, tagged.predicted, tagged.kinds)


def finding_of_confusion(counts: np.ndarray, kinds: Sequence[str]) -> str:
    """Say which type is taken for which most often, and how many were missed and invented."""
    inner = counts[:-1, :-1].copy()
    right = int(np.trace(inner))
    np.fill_diagonal(inner, 0)
    i, j = map(int, np.unravel_index(int(inner.argmax()), inner.shape))
    mistaken = (f"The most frequent confusion is {kinds[i]}, taken for {kinds[j]} ({inner[i, j]} times)"
                if inner.any() else "No type is taken for another")
    return (f"{right} entities overlap with a prediction of their type and {int(inner.sum())} with one of another "
            f"type. {mistaken}. {int(counts[:-1, -1].sum())} are missed and {int(counts[-1, :-1].sum())} invented. "
            "Borders may differ in this figure.")


def written_page(written: pd.DataFrame, codes: Sequence[int], styles: Any) -> Page:
    """The first rewrites of each direction, with what the classifier says of them."""
    shown = written.assign(verdict=[styles.styles[code] for code in codes]).groupby("direction", sort=False).head(3)
    return _texts_page([{row.direction: row.source, "human rewrite": (list(row.references) or ["–"])[0],
                         "written": row.written, "classifier says": row.verdict} for row in shown.itertuples()])


def _texts_page(blocks: Sequence[Mapping[str, str]]) -> Page:
    return Page(texts_in_a_table(blocks), "\n".join(str(dict(one)) for one in blocks))


def written_scores(written: pd.DataFrame, judge: Any, fluency: Any) -> dict[str, dict[str, float]]:
    """The scores of a model's texts, of the copied source, and of the human rewrite where there is one."""
    found = {COPY: score_transfer(written.assign(written=written["source"]), judge, fluency)}
    if all(written["references"].map(len)):
        people = written.assign(written=[many[0] for many in written["references"]])
        found[HUMAN] = score_transfer(people, judge, fluency)
    return {**found, "SmolLM2 as it is": score_transfer(written, judge, fluency)}


def written_table(scores: Mapping[str, Mapping[str, float]]) -> Any:
    frame = rewriting.in_words(pd.DataFrame(scores).T).drop(columns=["classifier accuracy", "source accuracy"])
    return readable(frame.rename_axis("text"), "written", **dict.fromkeys(frame, "{:.2f}"))


def finding_of_written(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Say how a copy and the model's own texts fare by each judge."""
    copied, model = scores[COPY], scores["SmolLM2 as it is"]
    name = next(name for name in copied if name.startswith("perplexity"))
    order = sorted(scores, key=lambda arm: scores[arm][name])
    return (f"By the classifier {copied['accuracy']:.0%} of the copies and {model['accuracy']:.0%} of the written "
            f"texts have the wanted style. By BLEU to the source they have {copied['self_bleu']:.2f} and "
            f"{model['self_bleu']:.2f}. The lowest perplexity has “{order[0]}” ({scores[order[0]][name]:.0f}), the "
            f"highest “{order[-1]}” ({scores[order[-1]][name]:.0f}).")


def misjudged(judge: Any, styles: Any, shown: int = 4) -> Page:
    """Sentences of a known style that the classifier takes for the other one."""
    held_out = load_task(styles.classifier, n_test=200).test
    assert held_out is not None
    said = np.array(judge.predict(held_out["text"].tolist()))
    missed = held_out[said != held_out["label"].to_numpy()]
    print(f"{len(missed)} of {len(held_out)} sentences of known style are taken for the other style")
    return _texts_page([{"sentence": text, "labelled": styles.styles[label], "taken for": styles.styles[1 - label]}
                        for text, label in zip(missed["text"][:shown], missed["label"][:shown], strict=True)])


def stored_tags() -> Taggers:
    """Return the stored taggers, and print where they come from and which rates they had."""
    found = load_tags("jnlpba")
    print(found.line())
    print(f"learning rate {found.about['training']['lr']:g} for all branches; the command gives full fine-tuning "
          f"{WHOLE_RATE:g}")
    return found


def differences(found: Taggers) -> Any:
    """A table of scores, and of differences to LoRA in entity F1 with an interval over seeds."""
    rows = {"saying O at every word": [f"{found.saying_o():.3f}", "0.000", "–", "–"]}
    f1, token = found.values("entity_f1"), found.values("token_accuracy")
    for arm in found.arms:
        cells = ["–", "–"]
        if arm != "lora":
            gaps = found.differences(arm, "lora")
            low, high = statistics.t_interval(gaps)
            cells = [f"{np.mean(gaps):+.3f} [{low:+.3f}, {high:+.3f}]", ", ".join(f"{gap:+.3f}" for gap in gaps)]
        rows[style.METHOD_STYLE[arm][0]] = [f"{np.mean(token[arm]):.3f}", f"{np.mean(f1[arm]):.3f}", *cells]
    columns = ["token accuracy", "entity F1", "F1 − LoRA's [95 % over seeds]", "by seed"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return readable(frame.rename_axis("tagger"), "differences")


def finding_of_two_scores(found: Taggers) -> str:
    """Say how far the methods lie apart by each score, and which of them can be told from LoRA."""
    ranges = {name: float(np.ptp([np.mean(v) for v in found.values(name).values()]))
              for name in ("token_accuracy", "entity_f1")}
    apart = []
    for arm in (arm for arm in found.arms if arm != "lora"):
        low, high = statistics.t_interval(found.differences(arm, "lora"))
        if low > 0 or high < 0:
            apart.append(f"{style.METHOD_STYLE[arm][0]} ({'above' if low > 0 else 'below'})")
    return (f"The means of the methods span {ranges['token_accuracy']:.3f} in token accuracy and "
            f"{ranges['entity_f1']:.3f} in entity F1. Over {len(found.seeds)} seeds the interval of the difference "
            f"to LoRA's F1 leaves zero out for {', '.join(apart) if apart else 'no method'}. One rate was used for "
            "all branches, and three seeds are few.")


def finding_of_kinds(by_type: Mapping[str, np.ndarray], kinds: Sequence[str], sizes: Sequence[int]) -> str:
    """Say how far types and methods lie apart, and how wide the bars of the rarest type are."""
    table_of = np.array([values[:-1, 0] for values in by_type.values()])   # (arms, K)
    rare, common = int(np.argmin(sizes)), int(np.argmax(sizes))
    width = {i: float(max(values[i, 2] - values[i, 1] for values in by_type.values())) for i in (rare, common)}
    types, methods = table_of.mean(0), np.array([values[-1, 0] for values in by_type.values()])
    larger = "type" if np.ptp(types) > np.ptp(methods) else "method"
    return (f"The mean F1 of a type goes from {types.min():.2f} to {types.max():.2f}, and that of a method over all "
            f"types from {methods.min():.2f} to {methods.max():.2f}: the {larger} makes the larger difference. Of "
            f"{kinds[rare]} there are only {sizes[rare]} entities, and its widest bar spans {width[rare]:.2f}; that "
            f"of {kinds[common]} ({sizes[common]} entities) spans {width[common]:.2f}.")


def stored_rewrites() -> Rewrites:
    """Return the stored rewrites, and print where they come from."""
    asked = rewriting.load()
    seeds = max(len(asked.values("accuracy", way)[arm]) for way in asked.directions for arm in asked.arms)
    print(asked.line())
    print(f"classifier: {asked.about['classifier']['accuracy']:.3f} right on sentences of known style; seeds of the "
          f"tuned models: {seeds}")
    return asked


def style_table(asked: Rewrites) -> Any:
    """A table of all arms in both directions: accuracy with its interval over sentences, and the other scores."""
    names = {"bleu": "BLEU to the human", "self_bleu": "BLEU to the source", "copied": "copied",
             **{name: name.replace(".", " ", 1) for name in _judges(asked)}}
    rows = {}
    for way in asked.directions:
        for arm in asked.arms:
            low, high = asked.accuracy_interval(arm, way)
            scores = [asked.mean(name, way, arm) for name in names]
            cells = [f"{x:.{0 if 'perplexity' in name else 2}f}" for name, x in zip(names, scores, strict=True)]
            rows[f"{way}: {arm}"] = [f"{asked.mean('accuracy', way, arm):.2f} [{low:.2f}, {high:.2f}]", *cells]
    columns = ["accuracy [95 % over sentences]", *names.values()]
    return readable(pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("text"), "stored")


def finding_of_trade_off(asked: Rewrites) -> str:
    """Say where copy and human stand, and whether a model stands above the line between them."""
    said = []
    for way, points in ((way, asked.points(way)) for way in asked.directions):
        means = {arm: tuple(np.mean(found, axis=0)) for arm, found in points.items()}
        (x0, y0), (x1, y1) = means.pop(COPY), means.pop(HUMAN)
        above = [arm for arm, (x, y) in means.items()
                 if x1 <= x <= x0 and y > y1 + (y0 - y1) * (x - x1) / (x0 - x1)]
        said.append(f"{way}: copied source {y0:.2f} at {x0:.2f}, human rewrite {y1:.2f} at {x1:.2f}; above the line "
                    f"between these two: {', '.join(above) or 'no model'}")
    wide = np.mean([np.ptp(asked.accuracy_interval(arm, way)) / 2 for way in asked.directions for arm in asked.arms])
    return ". ".join(said) + (f". An accuracy is uncertain by about ± {wide:.2f} through the choice of "
                              f"{asked.about['sentences']} sentences alone, and each tuned model is one seed.")


def perplexities(asked: Rewrites) -> Figure:
    """A panel a direction: the perplexity of each kind of text by two language models, on a logarithmic axis."""
    fig, axes = style.panels(len(asked.directions), len(asked.directions), 0.9 + 0.36 * len(asked.arms), None,
                             sharey=True)
    every = [asked.mean(name, way, arm) for name in _judges(asked) for way in asked.directions for arm in asked.arms]
    for ax, way in zip(axes, asked.directions, strict=True):
        for name, (marker, fill) in zip(_judges(asked), (("o", "none"), ("s", "full")), strict=True):
            ax.plot([asked.mean(name, way, arm) for arm in asked.arms], range(len(asked.arms)), marker,
                    color=style.BLACK, markersize=8, fillstyle=fill, label=f"by {name.partition('.')[2]}")
        ax.set_xscale("log")
        ax.set_xlim(min(every) / 1.3, max(every) * 1.3)
        ax.set_xticks([30, 100, 300, 1000], ["30", "100", "300", "1000"])
        ax.set_xticks([], minor=True)
        ax.set_xlim(min(every) / 1.3, max(every) * 1.3)
        ax.axhspan(-0.5, 0.5, color=style.PALE, alpha=0.3)
        style.dress(ax, "Perplexity (log; low is fluent)", "", way)
    axes[0].set_yticks(range(len(asked.arms)), asked.arms)
    axes[0].set_ylim(len(asked.arms) - 0.5, -0.5)
    style.legend(fig)
    fig.set_label("Two panels of dots on a log axis: the perplexity of each kind of text by a 3-gram model and by "
                  "SmolLM2; the row of the copied source is shaded. " + finding_of_perplexities(asked))
    return fig


def finding_of_perplexities(asked: Rewrites) -> str:
    """Say where the copied source stands by each language model."""
    said = []
    for name in _judges(asked):
        copied, places = [], []
        for way in asked.directions:
            means = sorted((asked.mean(name, way, arm) for arm in asked.arms), reverse=True)
            copied.append(f"{asked.mean(name, way, COPY):.0f}")
            places.append(f"{means.index(asked.mean(name, way, COPY)) + 1}")
        said.append(f"{' and '.join(copied)} by {name.partition('.')[2]} (place {' and '.join(places)} of "
                    f"{len(asked.arms)}, counted from the worst)")
    return ("In the two directions the copied source has perplexity " + "; ".join(said) + ". So a judge of fluency "
            "need not like a sentence that a person wrote. It likes what it would have written nearly so itself.")


def style_samples(asked: Rewrites, count: int = 3) -> Page:
    """The first sentences of each direction: source, human rewrite, and what every arm wrote."""
    blocks = [{str(name): str(text) for name, text in row.items()} for way in asked.directions
              for row in asked.samples(way).head(count).to_dict("records")]
    return _texts_page(blocks)


def about_the_sentence(asked: Rewrites) -> str:
    """Count the texts that talk about the sentence instead of rewriting it."""
    every = pd.concat(asked.samples(way) for way in asked.directions)
    remarks = every.apply(lambda column: column.str.lower().str.contains("the sentence").sum())
    return (f"texts that speak about “the sentence”, of {len(every)} each: "
            + ", ".join(f"{arm} {count}" for arm, count in remarks.items()))


def claims_of_both() -> Any:
    """The ledger's rows of SaLoRA's and AutoLoRA's tables on these tasks, to be read."""
    found = ledger.table(["SaLoRA", "AutoLoRA"])
    place = {"SaLoRA": "T2", "AutoLoRA": "T3"}
    rows = found.loc[[place[key.split()[0]] == where for key, where in found["where"].items()]]
    return readable(rows[["where", "statement", "paper's number", "verdict", "setting, or reason"]], "claims")


def seen_here(found: Taggers, asked: Rewrites) -> Any:
    """A table of statements about the stored runs, each with what was measured."""
    frame = rewriting.seen_here(found, asked)
    name = _judges(asked)[-1]
    copied = {way: asked.mean(name, way, COPY) for way in asked.directions}
    others = {way: max(asked.mean(name, way, arm) for arm in asked.arms if arm != COPY) for way in asked.directions}
    frame.loc["copying has the highest perplexity by SmolLM2, in both directions"] = [
        "holds" if all(copied[way] > others[way] for way in copied) else "not seen",
        ", ".join(f"{copied[way]:.0f} against {others[way]:.0f}" for way in copied)]
    frame["verdict"] = frame["verdict"].map({"holds": "seen in these runs", "not seen": "not seen in these runs"})
    return readable(frame, "seen")


def finding_of_threshold(picture: EntityThreshold, states: Sequence[Mapping[str, float]]) -> str:
    """Say what the threshold does between two states, and which threshold has the best F1."""
    best = float(picture.grid[int(picture.scores[:, 2].argmax())])
    said = "; ".join(f"at {state['threshold']:g} " + in_numbers(
        int((picture.curve.confidence >= state["threshold"]).sum()), *picture.curve.at(state["threshold"]))
        for state in states)
    return (f"Over all test sentences: {said}. F1 is highest at a threshold of {best:.2f} "
            f"({picture.scores[:, 2].max():.2f}).")


# ---- explorers: what the sliders move ---------------------------------------------------------------------

LINE, LINES = 42, 8   # characters of a line of the sentence, and lines that there is room for
LOOKS = (("precision", style.ORANGE, "--"), ("recall", style.GREEN, "-."), ("F1", style.BLUE, "-"))
# of a kept entity, by whether it is right, in tints on which black can be read; and of one that is dropped
KEPT_LOOK: dict[bool, dict[str, Any]] = {
    True: {"facecolor": "#8FC1E3", "edgecolor": "none", "linestyle": "-", "linewidth": 1.2},
    False: {"facecolor": "#F2B48C", "edgecolor": style.ORANGE, "linestyle": "-", "linewidth": 1.2}}
DROPPED_LOOK = {"facecolor": "none", "edgecolor": style.GREY, "linestyle": "--", "linewidth": 0.8}
KEY = "blue: kept and right; orange, framed: kept and wrong\ndashed: dropped; underlined: annotated"


class EntityThreshold(Picture):
    """Left precision, recall and F1 against the threshold; right one sentence with what is kept at it.

    Blue is kept and right, orange kept and wrong, a dashed frame dropped; what the annotators marked is underlined.
    Addresses in tweets are not passed on.

    Args:
        probabilities: (W, C) of every sentence.  words, gold: the sentences and their annotated tags.
        labels: the C tags.  shown: numbers of the sentences to choose from; those that do not fit are left out.
    """

    height = 3.3

    def __init__(self, probabilities: Sequence[np.ndarray], words: Sequence[Sequence[str]],
                 gold: Sequence[Sequence[str]], labels: Sequence[str], shown: Sequence[int]) -> None:
        self.curve = entities.curve(probabilities, gold, labels)
        shorter = {n: unlinked(words[n]) for n in shown}
        fits = [n for n in shown if layout(shorter[n])[-1][1] < LINES]
        self.sentences = [shorter[n] for n in fits]
        self.sure = [entities.confidences(probabilities[n], labels) for n in fits]
        self.gold = [set(entities.entities(gold[n])) for n in fits]
        if not fits:
            raise ValueError(f"none of the {len(shown)} sentences fits {LINES} lines; name shorter ones")
        self.grid = np.linspace(0, 1, 101)
        self.scores = np.array([self.curve.at(t) for t in self.grid])                      # (101, 3)
        self.controls = (Control("threshold", "threshold", 0.0, 1.0, 0.5, 0.01),
                         Control("sentence", "sentence", 1, len(fits), 1))
        super().__init__()

    def build(self) -> list[Artist]:
        left, right = self.axes
        some = self.grid <= self.curve.confidence.max(initial=0.0)   # above it nothing is kept
        for column, (name, color, line) in enumerate(LOOKS):
            left.plot(self.grid[some], self.scores[some, column], color=color, linestyle=line, label=name)
        left.set_xlim(-0.02, 1.02)   # the mark is seen at both ends
        left.set_ylim(0, 1.02)
        style.dress(left, "Threshold on an entity's confidence", "Score, all test sentences", " ")
        left.legend(fontsize=9, loc="best", frameon=False)
        self.mark = left.axvline(0.5, color=style.BLACK, linewidth=1.3)
        right.set(xlim=(-0.3, LINE + 0.3), ylim=(LINES + 1, -0.6))
        right.set_axis_off()
        right.text(0, LINES + 0.4, KEY, fontsize=9, color=style.GREY, va="center")
        longest = max(map(len, self.sentences))
        self.boxes = [right.add_patch(Rectangle((0, 0), 0, 0.8)) for _ in range(longest)]
        self.letters = [right.text(0, 0, "", fontsize=10, family="monospace", va="center", parse_math=False)
                        for _ in range(longest)]
        self.under = [right.plot([], [], color=style.BLACK, linewidth=1.6)[0] for _ in range(longest)]
        right.set_title(" ", fontsize=10)
        return [self.mark, *self.boxes, *self.letters, *self.under, left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        threshold, n = state["threshold"], round(state["sentence"]) - 1
        kept = set(entities.at_threshold(self.sure[n], threshold))
        return {"threshold": threshold, "n": n, "kept": sorted(kept), "right": sorted(kept & self.gold[n]),
                "dropped": sorted(set(self.sure[n]) - kept), "scores": self.curve.at(threshold),
                "found": int((self.curve.confidence >= threshold).sum())}

    def update(self, arrays: dict[str, Any]) -> None:
        n = arrays["n"]
        self.mark.set_xdata([arrays["threshold"]] * 2)
        self.axes[0].set_title(in_numbers(arrays["found"], *arrays["scores"]), fontsize=10)
        self.axes[1].set_title(f"sentence {n + 1}: {len(arrays['kept'])} kept, {len(arrays['right'])} of them right",
                               fontsize=10)
        for artist in (*self.letters, *self.boxes, *self.under):
            artist.set_visible(False)
        words = self.sentences[n]
        for text, word, place in zip(self.letters, words, layout(words), strict=False):
            text.set(text=word[:LINE], position=place, visible=True)
        looks = [(entity, KEPT_LOOK[entity in arrays["right"]]) for entity in arrays["kept"]]
        looks += [(entity, DROPPED_LOOK) for entity in arrays["dropped"]]
        framed = [(piece, look) for entity, look in looks for piece in pieces(words, entity)]
        for frame, ((left, end, line), look) in zip(self.boxes, framed, strict=False):
            frame.set(x=left - 0.2, y=line - 0.4, width=end - left + 0.4, visible=True, **look)
        marked = [piece for entity in sorted(self.gold[n]) for piece in pieces(words, entity)]
        for under, (left, end, line) in zip(self.under, marked, strict=False):
            under.set(data=([left, end], [line + 0.42] * 2), visible=True)

    def listed(self, n: int, found: Sequence[entities.Entity]) -> str:
        """The entities of a sentence in words."""
        return ", ".join(f"“{' '.join(self.sentences[n][e.start:e.end])}” ({e.kind})" for e in found) or "none"

    def words(self, **state: Any) -> str:
        a = self.arrays(**state)
        return (f"At {a['threshold']:.2f}, {a['found']} of {len(self.curve.confidence)} predicted entities are kept: "
                f"{in_numbers(a['found'], *a['scores'])}. In sentence {a['n'] + 1} kept: "
                f"{self.listed(a['n'], a['kept'])}; dropped: {self.listed(a['n'], a['dropped'])}.")


def layout(words: Sequence[str]) -> list[tuple[int, int]]:
    """(column, line) of every word of a sentence in letters of one width."""
    places, x, y = [], 0, 0
    for word in words:
        width = min(len(word), LINE)
        if x and x + width > LINE:
            x, y = 0, y + 1
        places.append((x, y))
        x += width + 1
    return places


def pieces(words: Sequence[str], entity: entities.Entity) -> list[tuple[int, int, int]]:
    """(first column, column after the last, line) of an entity in the layout, one for each line that it stands on."""
    places, found = layout(words), dict[int, tuple[int, int]]()
    for i in range(entity.start, entity.end):
        x, y = places[i]
        found[y] = found.get(y, (x,))[0], x + min(len(words[i]), LINE)
    return [(left, end, line) for line, (left, end) in found.items()]


def in_numbers(kept: int, precision: float, recall: float, score: float) -> str:
    """The three scores in words; what nothing is kept of has no precision."""
    first = f"precision {precision:.2f}" if kept else "no precision"
    return f"{first}, recall {recall:.2f}, F1 {score:.2f}"


# ---- exercises: the library's answers, and what usual mistakes would give ---------------------------------

EntitySpan = tuple[int, int, str]


class _Batch(dict):
    """What a tokenizer returns for one sentence, with the cut into pieces given."""

    def __init__(self, word_of: Sequence[int | None]) -> None:
        super().__init__(input_ids=[[0] * len(word_of)], attention_mask=[[1] * len(word_of)])
        self.word_of = list(word_of)

    def word_ids(self, sentence: int) -> list[int | None]:
        """Of every piece the number of its word."""
        return self.word_of


def align_labels(word_of: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """Labels (T,) as the library's `encode` gives them for pieces that belong to these words."""
    task = ALL_TASKS["wnut16"]
    frame = pd.DataFrame({task.text[0]: [[str(i) for i in range(len(tags))]], task.label: [list(tags)]})
    tokenizer: Any = lambda *_, **__: _Batch(word_of)  # noqa: E731
    return encode(frame, task, tokenizer)[0]["labels"]


def read_entities(tags: Sequence[str]) -> list[EntitySpan]:
    """The entities of one sentence by the library: (start, end, type)."""
    return [(one.start, one.end, one.kind) for one in entities.entities(tags)]


def _in_a_table(found: Sequence[EntitySpan]) -> np.ndarray:
    """Entities as rows of three numbers, of a table that is large enough for all."""
    rows = np.zeros((12, 3))
    for i, (start, end, kind) in enumerate(sorted(found)[:12]):
        rows[i] = start, end, sum(map(ord, kind))
    return rows


def _continued(tags: Sequence[str]) -> list[str]:
    """The tags with I- of whatever type taken for a continuation of what stands before it."""
    out: list[str] = []
    for one in tags:
        goes_on = one.startswith("I-") and out and out[-1] != "O"
        out.append(f"I-{out[-1][2:]}" if goes_on else one)
    return out


def entity_f1(gold: Sequence[EntitySpan], found: Sequence[EntitySpan]) -> float:
    """F1 by the library, of entities given as (start, end, type)."""
    right = len(set(gold) & set(found))
    return float(entities.f1(np.array([right, len(set(found)), len(set(gold))])))


def precision_recall(confidence: np.ndarray, right: np.ndarray, annotated: int, threshold: float) -> list[float]:
    """[precision, recall] of the entities whose confidence is at least the threshold."""
    return list(entities.Curve(confidence, right, annotated).at(threshold)[:2])


@dataclass(frozen=True)
class _Known:
    """A classifier that has been asked before."""

    codes: dict[str, int]
    accuracy: float = 1.0

    def predict(self, texts: Sequence[str]) -> list[int]:
        """The code of each text."""
        return [self.codes[text] for text in texts]


def transfer_gain(texts: Sequence[str], after: Sequence[int], before: Sequence[int], wanted: Sequence[int]
                  ) -> list[float]:
    """[accuracy of the texts, the same of the sources], by the library's `score_transfer`."""
    sources = [f"source {i}" for i in range(len(texts))]
    codes = dict(zip([*sources, *texts], [*before, *after], strict=True))
    frame = pd.DataFrame({"source": sources, "written": list(texts), "wanted": list(wanted),
                          "references": [[] for _ in texts]})
    scores = score_transfer(frame, _Known(codes))
    return [scores["accuracy"], scores["source_accuracy"]]


def _relabelled(change: Callable[[int, int | None, list[int]], int]) -> Callable[..., list[int]]:
    """A mistake in the label of a piece: (label, its word, tags) -> label."""
    return lambda word_of, tags: [change(label, word, list(tags))
                                  for label, word in zip(align_labels(word_of, tags), word_of, strict=True)]


def _last_piece(word_of: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    return align_labels(word_of[::-1], tags)[::-1]


def _spans(change: Callable[[EntitySpan], Any]) -> Callable[..., float]:
    """A mistake that sees less of an entity than it is."""
    return lambda gold, found: entity_f1([change(s) for s in gold], [change(s) for s in found])


def _words_of(spans: Sequence[EntitySpan]) -> list[EntitySpan]:
    return [(i, i + 1, kind) for start, end, kind in spans for i in range(start, end)]


def _one_side(which: int) -> Callable[..., float]:
    """Precision (0) or recall (1) alone."""
    return lambda gold, found: len(set(gold) & set(found)) / len((found, gold)[which])


_GOLD: list[EntitySpan] = [(0, 2, "DNA"), (4, 5, "protein"), (7, 9, "protein"), (11, 12, "RNA"), (14, 15, "protein"),
                     (17, 19, "DNA")]
_FOUND: list[EntitySpan] = [(0, 2, "DNA"), (4, 6, "protein"), (7, 9, "DNA"), (14, 15, "protein"), (17, 19, "RNA")]
_CONFIDENCE, _RIGHT = np.array([0.9, 0.8, 0.6, 0.6, 0.4]), np.array([True, True, False, True, True])
_TEXTS, _WANTED = ["good food !", "bad food .", "", "fine .", "ugly .", "cold ."], [1, 1, 1, 0, 0, 0]
_AFTER, _BEFORE = [1, 0, 1, 1, 0, 0], [0, 0, 0, 1, 0, 1]

def _stub_of_reading(tags: Sequence[str]) -> list[EntitySpan]:
    """What the function in the notebook gives before anybody changes it."""
    found: list[EntitySpan] = []
    start = None
    for i, bio in enumerate(tags):
        if bio == "O" and start is not None:
            found.append((start, i, tags[start][2:]))
            start = None
        elif bio != "O" and start is None:
            start = i
    return found


_TAGS = [(["B-p", "I-p", "B-p", "O", "I-d", "I-d", "O", "B-d", "I-p", "B-p"],),
         (["O", "B-d", "B-d", "I-d", "I-p", "O", "I-p", "B-p", "I-p"],)]


# ---- answers, written for a reader ------------------------------------------------------------------------


def answer_align_labels(word_of: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    labels, before = [], None
    for word in word_of:
        first = word is not None and word != before
        labels.append(tags[word] if first else -100)   # type: ignore[index]  # a first piece has a word
        before = word
    return labels


def answer_read_entities(tags: Sequence[str]) -> list[EntitySpan]:
    found: list[EntitySpan] = []
    start = None
    for i, bio in enumerate([*tags, "O"]):   # a last O closes what is still open
        goes_on = start is not None and bio == f"I-{tags[start][2:]}"
        if start is not None and not goes_on:
            found.append((start, i, tags[start][2:]))
            start = None
        if bio != "O" and not goes_on:
            start = i
    return found


def answer_entity_f1(gold: Sequence[EntitySpan], found: Sequence[EntitySpan]) -> float:
    right = len(set(gold) & set(found))
    return 2 * right / (len(gold) + len(found))


def answer_precision_recall(confidence: np.ndarray, right: np.ndarray, annotated: int, threshold: float) -> list:
    kept = confidence >= threshold
    return [right[kept].mean(), right[kept].sum() / annotated]


def answer_transfer_gain(texts: Sequence[str], after: Sequence[int], before: Sequence[int], wanted: Sequence[int]
                         ) -> list[float]:
    hits = [bool(text) and code == want for text, code, want in zip(texts, after, wanted, strict=True)]
    already = [code == want for code, want in zip(before, wanted, strict=True)]
    return [sum(hits) / len(hits), sum(already) / len(already)]


EXERCISES.update({
    "read_entities": Task(
        read_entities, lambda: _TAGS,
        "B- always begins an entity; I- goes on with one of its own type, and begins one where there is none; what "
        "is open at the end of the sentence counts, too",
        [("an entity that stands at the end of the sentence is lost", lambda tags: read_entities(tags)[:-1]),
         ("two neighbours of one type became one: B- begins a new entity",
          lambda tags: read_entities([f"I-{tag[2:]}" if tag != "O" else tag for tag in tags])),
         ("I- of another type does not go on with an entity: it begins its own",
          lambda tags: read_entities(_continued(tags))),
         ("the end is the word after the last one", lambda tags: [(s, e - 1, k) for s, e, k in read_entities(tags)]),
         ("an I- that follows no entity of its type begins one, as in the official scripts",
          lambda tags: [one for one in read_entities(tags) if tags[one[0]].startswith("B-")]),
         ("two neighbours become one, and an entity at the end is lost", _stub_of_reading)],
        (entities.entities,), answer=answer_read_entities, seen=_in_a_table),
    "align_labels": Task(
        align_labels, lambda: [([None, 0, 1, 1, 2, None], [0, 3, 4]), ([None, 0, 0, 0, 1, 2, 2, None], [5, 6, 0])],
        "walk over the pieces: the first of each word gets the word's tag, every other piece and [CLS], [SEP] get "
        "-100",
        [("every piece has its word's tag: then a word counts once for each piece, and B- begins twice",
          _relabelled(lambda label, word, tags: IGNORED if word is None else tags[word])),
         ("the pieces after the first have O (0): they are to be left out (-100), not to be learned as outside",
          _relabelled(lambda label, word, tags: 0 if word is not None and label == IGNORED else label)),
         ("[CLS] and [SEP] have O (0): they are no words, leave them out with -100",
          _relabelled(lambda label, word, tags: 0 if word is None else label)),
         ("the tag stands on the last piece of each word; here it stands on the first", _last_piece)],
        (_encode_tags,), "labels is as long as word_of: one number a piece", answer=answer_align_labels),
    "entity_f1": Task(
        entity_f1, lambda: [(_GOLD, _FOUND), (_FOUND, _GOLD)],
        "right are those in both lists with start, end and type the same; F1 = 2 · right / (annotated + found)",
        [("the type is not looked at", _spans(lambda s: s[:2])),
         ("only the start is looked at: an entity that ends elsewhere is wrong, too",
          _spans(lambda s: (s[0], s[2]))),
         ("that counts words, not entities: half an entity is no entity",
          lambda gold, found: entity_f1(_words_of(gold), _words_of(found))),
         ("that is precision alone: what was missed costs nothing there", _one_side(0)),
         ("that is recall alone: what was invented costs nothing there", _one_side(1))],
        (entities.counts, entities.f1), answer=answer_entity_f1),
    "precision_recall": Task(
        precision_recall, lambda: [(_CONFIDENCE, _RIGHT, 8, 0.6), (_CONFIDENCE, _RIGHT, 6, 0.8)],
        "keep what is at least so sure; precision: share of the kept that is right; recall: share of the annotated "
        "that is kept and right",
        [("precision is over what is kept, not over all that was predicted",
          lambda c, r, n, t: [precision_recall(c, r & (c >= t), n, 0.0)[0], precision_recall(c, r, n, t)[1]]),
         ("recall is over all annotated entities, not only over those that were predicted",
          lambda c, r, n, t: precision_recall(c, r, int(r.sum()), t)),
         ("“at least” includes the threshold itself: use ≥", lambda c, r, n, t: precision_recall(c, r, n, t + 1e-6)),
         ("the two stand the wrong way round: precision first", lambda *a: precision_recall(*a)[::-1])],
        (entities.Curve,), answer=answer_precision_recall),
    "transfer_gain": Task(
        transfer_gain, lambda: [(_TEXTS, _AFTER, _BEFORE, _WANTED)],
        "two shares: of the written texts, and of the sources, that the classifier takes for the wanted style; an "
        "empty text is never a success",
        [("an empty text has no style, whatever the classifier says about it: count it as a failure",
          lambda texts, after, before, wanted: transfer_gain([t or "?" for t in texts], after, before, wanted)),
         ("the style is to be the wanted one: you count where it stayed",
          lambda texts, after, before, wanted: transfer_gain(texts, after, before, [1 - w for w in wanted])),
         ("the wrong way round: first the written texts, then the sources",
          lambda *a: transfer_gain(*a)[::-1]),
         ("the second is the gain; return the sources' own share, so that both can be seen",
          lambda *a: [transfer_gain(*a)[0], transfer_gain(*a)[0] - transfer_gain(*a)[1]])],
        (score_transfer,), answer=answer_transfer_gain),
})

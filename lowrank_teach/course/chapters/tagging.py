"""Notebook 09, tagging and style transfer: pictures, sentences with their entities, a slider and the exercises.

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

from ...analysis import style
from ...analysis.plots import Numbers
from ...tasks import entities
from ...tasks.style_transfer import score_transfer
from ...tasks.table import TASKS as ALL_TASKS
from ...tasks.tokenize import IGNORED, _encode_tags, encode
from ..exercises import EXERCISES, Task
from ..explorer import Control, Picture
from ..schematic import arrow, box, canvas

# ---- pictures of style transfer ---------------------------------------------------------------------------

Point = tuple[float, float]


def trade_off(panels: Mapping[str, Mapping[str, Sequence[Point]]], xlabel: str, ylabel: str) -> Figure:
    """One panel a direction; name -> points (x, y), one a seed, both from 0 to 1. Up and to the right is good."""
    fig, axes = style.panels(len(panels), len(panels), 3.5, None, width=9.5, sharey=True)
    looks = style.looks(dict.fromkeys(name for points in panels.values() for name in points))
    for ax, (title, points) in zip(axes, panels.items(), strict=True):
        for name, found in points.items():
            xs, ys = np.array(found, dtype=float).T
            look = {**looks[name], "linestyle": "none", "markersize": 9}
            ax.plot(xs, ys, alpha=0.9, **look)
        ax.set_xlim(-0.05, 1.05)
        ax.set_ylim(-0.05, 1.05)
        style.dress(ax, xlabel, ylabel if ax is axes[0] else "", title)
    style.legend(fig)
    return fig


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
    return fig


def _cell(ax: Axes, left: float, right: float, y: float, words: str, fill: str, ink: str = style.BLACK) -> None:
    room = 9.3 * (right - left) / (ax.get_xlim()[1] - ax.get_xlim()[0]) * 10
    box(ax, left + 0.08, y + 0.1, right - left - 0.16, 0.62, fill, words, alpha=0.55, ink=ink,
        size=max(6.0, min(10.0, 10 * room / max(len(words), 1))))


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
    style.dress(ax, "Predicted", "Annotated")
    fig.colorbar(mesh, ax=ax, pad=0.02, label="Share of the row")
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
    style.dress(ax, "Share of all entities, annotated or predicted", "")
    ax.grid(axis="y", visible=False)
    style.legend(fig, [Patch(facecolor=ink, hatch=hatch, edgecolor=style.BLACK, label=outcome)
                       for outcome, ink, hatch in zip(outcomes, inks, hatches, strict=False)])
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
    style.dress(ax, "Type of entity (annotated in the test sentences)", "Entity F1")
    style.legend(fig)
    return fig


def two_scores(entity: Mapping[str, Numbers], token: Mapping[str, Numbers], floor: float) -> Figure:
    """Left token accuracy, right entity F1 of the same runs, a row an arm; floor: the accuracy of saying only O."""
    fig, axes = style.panels(2, 2, 0.7 + 0.36 * len(entity), None, width=9.0, sharey=True)
    looks = style.looks(entity)
    for ax, values, xlabel in zip(axes, (token, entity), ("Token accuracy", "Entity F1"), strict=True):
        style.seed_strip(ax, {looks[name]["label"]: values[name] for name in entity})
        ax.set_xlim(0, 1)
        style.dress(ax, xlabel, "")
    axes[0].axvline(floor, color=style.ORANGE, linestyle="--", linewidth=1.5)
    return fig


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
        left.legend(fontsize=8, loc="best", frameon=False)
        self.mark = left.axvline(0.5, color=style.BLACK, linewidth=1.3)
        right.set(xlim=(-0.3, LINE + 0.3), ylim=(LINES + 1, -0.6))
        right.set_axis_off()
        right.text(0, LINES + 0.4, KEY, fontsize=8, color=style.GREY, va="center")
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

EXERCISES.update({
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
        (_encode_tags,), "labels is as long as word_of: one number a piece"),
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
        (entities.counts, entities.f1)),
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
        (entities.Curve,)),
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
        (score_transfer,)),
})

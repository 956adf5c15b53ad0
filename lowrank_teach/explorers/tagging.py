"""The picture behind the slider of 09: how sure an entity must be to be kept.

Exact and computed live from the probabilities of any tagger. Used by 09.
"""

# W words of a sentence, C tags

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.patches import Rectangle

from .. import entities, style
from ..drawings.tags import unlinked
from ..widgets import Control, Picture

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
        for box, ((left, end, line), look) in zip(self.boxes, framed, strict=False):
            box.set(x=left - 0.2, y=line - 0.4, width=end - left + 0.4, visible=True, **look)
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

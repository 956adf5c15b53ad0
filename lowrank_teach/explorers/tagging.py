"""The picture behind the slider of 09: how sure an entity must be to be kept.

Exact and computed live from the probabilities of any tagger. Used by 09.
"""

# W words of a sentence, C tags

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist

from .. import entities, style
from ..widgets import Control, Picture

LINE, LINES = 54, 8   # characters of a line of the sentence, and lines that there is room for
LOOKS = (("precision", style.ORANGE, "--"), ("recall", style.GREEN, "-."), ("F1", style.BLUE, "-"))
KEPT_RIGHT, KEPT_WRONG = "#8FC1E3", "#F2B48C"   # tints on which black can be read


class EntityThreshold(Picture):
    """Left precision, recall and F1 against the threshold; right one sentence with what is kept at it.

    Blue is kept and right, orange kept and wrong, a dashed frame dropped; what the annotators marked is underlined.

    Args:
        probabilities: (W, C) of every sentence.  words, gold: the sentences and their annotated tags.
        labels: the C tags.  shown: numbers of the sentences to choose from; those that do not fit are left out.
    """

    height = 3.0

    def __init__(self, probabilities: Sequence[np.ndarray], words: Sequence[Sequence[str]],
                 gold: Sequence[Sequence[str]], labels: Sequence[str], shown: Sequence[int]) -> None:
        self.curve = entities.curve(probabilities, gold, labels)
        fits = [n for n in shown if layout(words[n])[-1][1] < LINES]
        self.sentences = [list(words[n]) for n in fits]
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
        left.set_xlim(0, 1)
        left.set_ylim(0, 1.02)
        style.dress(left, "Threshold on an entity's confidence", "Score, all test sentences", " ")
        left.legend(fontsize=8, loc="best", frameon=False)
        self.mark = left.axvline(0.5, color=style.BLACK, linewidth=1.3)
        right.set(xlim=(0, LINE), ylim=(LINES, -0.6))
        right.set_axis_off()
        longest = max(map(len, self.sentences))
        self.letters = [right.text(0, 0, "", fontsize=8, family="monospace", va="center", parse_math=False)
                      for _ in range(longest)]
        self.under = [right.plot([], [], color=style.BLACK, linewidth=1.6)[0] for _ in range(longest)]
        right.set_title(" ", fontsize=10)
        return [self.mark, *self.letters, *self.under, left.title, right.title]

    def arrays(self, **state: Any) -> dict[str, Any]:
        threshold, n = state["threshold"], round(state["sentence"]) - 1
        kept = set(entities.at_threshold(self.sure[n], threshold))
        return {"threshold": threshold, "n": n, "kept": sorted(kept), "right": sorted(kept & self.gold[n]),
                "dropped": sorted(set(self.sure[n]) - kept), "scores": self.curve.at(threshold),
                "found": int((self.curve.confidence >= threshold).sum())}

    def update(self, arrays: dict[str, Any]) -> None:
        n, (precision, recall, score) = arrays["n"], arrays["scores"]
        self.mark.set_xdata([arrays["threshold"]] * 2)
        self.axes[0].set_title(f"precision {precision:.2f}, recall {recall:.2f}, F1 {score:.2f}", fontsize=10)
        self.axes[1].set_title(f"sentence {n + 1}: {len(arrays['kept'])} kept, {len(arrays['right'])} of them right",
                               fontsize=10)
        look = {i: _box(entity in arrays["right"]) for entity in arrays["kept"]
                for i in range(entity.start, entity.end)}
        look |= {i: _dropped() for entity in arrays["dropped"] for i in range(entity.start, entity.end)}
        marked = {i for entity in self.gold[n] for i in range(entity.start, entity.end)}
        places = layout(self.sentences[n])
        for i, (text, line) in enumerate(zip(self.letters, self.under, strict=True)):
            there = i < len(places)
            text.set_text(self.sentences[n][i][:LINE] if there else "")
            text.set_bbox(look.get(i))   # type: ignore[arg-type]
            line.set_data([], [])
            if there:
                x, y = places[i]
                text.set_position((x, y))
                if i in marked:
                    line.set_data([x, x + min(len(self.sentences[n][i]), LINE)], [y + 0.36] * 2)

    def listed(self, n: int, found: Sequence[entities.Entity]) -> str:
        """The entities of a sentence in words."""
        return ", ".join(f"“{' '.join(self.sentences[n][e.start:e.end])}” ({e.kind})" for e in found) or "none"

    def words(self, **state: Any) -> str:
        a = self.arrays(**state)
        precision, recall, score = a["scores"]
        return (f"At {a['threshold']:.2f}, {a['found']} of {len(self.curve.confidence)} predicted entities are kept: "
                f"precision {precision:.2f}, recall {recall:.2f}, F1 {score:.2f}. In sentence {a['n'] + 1} kept: "
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


def _box(right: bool) -> dict[str, Any]:
    return {"facecolor": KEPT_RIGHT if right else KEPT_WRONG, "edgecolor": "none", "pad": 1.0}


def _dropped() -> dict[str, Any]:
    return {"facecolor": "none", "edgecolor": style.GREY, "linestyle": "--", "linewidth": 0.8, "pad": 1.0}

"""Texts to look at: side by side with their references, errors marked; and the figures of their scores. Used by 08.

Pages are HTML in which all text of the data is escaped. What a mark means is said twice, by a tag and by a colour:
repository pages drop the colours.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from .. import style
from ..slots import Check
from .tags import PLAIN_TEXT

TAGS = {True: ("b", style.BLUE), False: ("del", style.ORANGE)}   # said and right; made up
Interval = tuple[float, float, float]                              # score, low, high


@dataclass(frozen=True)
class Page:
    """A piece of HTML, and the same as plain text; the last line of a cell shows it. Pages add up."""

    html: str
    plain: str

    def __add__(self, other: Page) -> Page:
        return Page(self.html + other.html, f"{self.plain}\n\n{other.plain}")

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": self.plain}


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
    rows = [("data", html.escape(source))]
    rows += [(f"reference {i} of {len(references)}", html.escape(one)) for i, one in enumerate(few, 1)]
    rows += [(html.escape(arm), marked(*pair)) for arm, pair in written.items()]
    plain = [f"data: {source}", *(f"reference: {one}" for one in few),
             *(f"{arm}: {plainly(*pair)}" for arm, pair in written.items())]
    return table(rows, plain, f"bold: said and right; struck out: made up. Data and references: {licence}")


def table(rows: Sequence[tuple[str, str]], plain: Sequence[str], below: str) -> Page:
    """Rows of (name, HTML) with a line under them."""
    body = "".join(f'<tr><th style="text-align:left;vertical-align:top;white-space:nowrap">{name}</th>'
                   f'<td style="text-align:left;overflow-wrap:anywhere">{cell}</td></tr>' for name, cell in rows)
    return Page(f'<table class="{PLAIN_TEXT}">{body}</table><p><small>{html.escape(below)}</small></p>',
                "\n".join([*plain, below]))


def texts_in_rows(texts: Mapping[str, str], below: str) -> Page:
    """name -> text, a row each."""
    return table([(html.escape(name), html.escape(text)) for name, text in texts.items()],
                 [f"{name}: {text}" for name, text in texts.items()], below)


def tokens(pieces: Sequence[str], learned: Sequence[bool]) -> Page:
    """The tokens of a row: those with a label in bold, the others pale."""
    shown = [f'<b style="color:{style.BLUE}">{html.escape(piece)}</b>' if is_learned else
             f'<span style="color:{style.GREY}">{html.escape(piece)}</span>'
             for piece, is_learned in zip(pieces, learned, strict=True)]
    plain = " ".join(f"[{piece}]" if is_learned else piece for piece, is_learned in zip(pieces, learned, strict=True))
    below = f"{sum(learned)} of {len(learned)} tokens have a label (bold; in brackets as plain text)"
    return Page(f'<p class="{PLAIN_TEXT}">{" · ".join(shown)}</p><p><small>{below}</small></p>', f"{plain}\n{below}")


# -- figures

def data_to_text() -> Figure:
    """From fields to a prompt, through a frozen model with thin branches, to a text, to scores."""
    fig = Figure(figsize=(9.0, 2.7), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    ax.set(xlim=(0, 9), ylim=(0, 2.7))
    ax.set_axis_off()
    _box(ax, 0.05, 1.95, "data", "name : Blue Spice |\neatType : pub |\narea : riverside ||", style.PALE)
    _box(ax, 2.65, 1.75, "causal model", "W frozen,\nA and B train", style.BLUE)
    _box(ax, 5.05, 1.65, "text", "Blue Spice is a pub\nby the river.", style.PALE)
    _box(ax, 7.35, 1.6, "references", "several people's\ntexts for the\nsame data", style.GREEN)
    for start, end in ((2.0, 2.62), (4.4, 5.02), (6.7, 7.32)):
        ax.add_patch(FancyArrowPatch((start, 1.45), (end, 1.45), arrowstyle="-|>", mutation_scale=16,
                                     color=style.BLACK, linewidth=1.6))
    for x, words in ((3.5, "trained on: prompt, text, end;\nthe loss counts the text and the end"),
                     (7.0, "scores: what is shared with\nany of the references")):
        ax.text(x, 0.35, words, ha="center", va="center", fontsize=9.5)
    return fig


def _box(ax: Axes, x: float, width: float, name: str, words: str, color: str) -> None:
    ax.add_patch(FancyBboxPatch((x, 0.85), width, 1.2, boxstyle="round,pad=0.03", facecolor=color, alpha=0.35,
                                edgecolor=style.BLACK))
    ax.text(x + width / 2, 1.45, words, ha="center", va="center", fontsize=9.5)
    ax.text(x + width / 2, 2.25, name, ha="center", va="center", fontsize=10.5, fontweight="bold")


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
    style.dress(ax, "words written", "")
    ax.grid(False)
    ax.spines["left"].set_visible(False)
    style.legend(fig)
    return fig


def arm_looks(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Arm -> colour, marker: a method's own, also of "Delta-LoRA − LoRA"; black for what is no method."""
    known = {label: (color, marker) for label, color, _, marker in style.METHOD_STYLE.values()}
    return {arm: known.get(arm.partition(" −")[0], (style.BLACK, "o")) for arm in arms}


def score_intervals(scores: Mapping[str, Mapping[str, Interval]], *, zero: bool = False, columns: int = 3,
                    shared: bool = False) -> Figure:
    """A panel a score, a row an arm: the score, and what other test inputs could give.

    Args: score -> arm -> (score, low, high); zero: a line where nothing differs; columns: panels side by side;
        shared: one scale for all panels.
    """
    arms = list(next(iter(scores.values())))
    fig, axes = style.panels(len(scores), min(columns, len(scores)), 0.8 + 0.34 * len(arms), None)
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
    style.dress(ax, "Errors, as a share of the fields there are", "")
    ax.grid(axis="y", visible=False)
    style.legend(fig)
    return fig

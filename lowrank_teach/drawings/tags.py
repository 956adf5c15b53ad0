"""Entities highlighted in a sentence (HTML), pieces of words, errors by type, F1 by type, samples side by side.
Used by 09.

The words are a data set's: tweets, abstracts, reviews. Whatever goes into HTML is escaped here, and kept from being
read as mathematics; whatever goes into a figure is drawn as it stands.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

from .. import style

Span = tuple[int, int, str, str]   # first word, word after the last, type, and a remark ("" for none)
Numbers = Sequence[float] | np.ndarray
INKS = (style.BLUE, style.ORANGE, style.GREEN, style.PINK, style.SKY, style.YELLOW, style.GREY)
PLAIN_TEXT = "tex2jax_ignore mathjax_ignore"   # a $ in a tweet is a dollar


# ---- HTML --------------------------------------------------------------------------------------------------------


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


def side_by_side(rows: Sequence[Mapping[str, str]]) -> str:
    """An HTML table: one block a row of the data, a line for each name. The values are HTML from `highlight`."""
    lines = []
    for i, row in enumerate(rows):
        for j, (name, cell) in enumerate(row.items()):
            top = ";border-top:1px solid #999" if i and not j else ""
            lines.append(f'<tr><th style="text-align:left;white-space:nowrap;vertical-align:top{top}">'
                         f'{html.escape(name)}</th>'
                         f'<td style="text-align:left;overflow-wrap:anywhere{top}">{cell}</td></tr>')
    return f'<table class="{PLAIN_TEXT}">{"".join(lines)}</table>'


def texts(rows: Sequence[Mapping[str, str]]) -> str:
    """`side_by_side` of plain texts: escaped here; an empty one is said to be empty."""
    return side_by_side([{name: html.escape(text) or "<i>(nothing)</i>" for name, text in row.items()}
                         for row in rows])


def in_brackets(words: Sequence[str], spans: Sequence[Span]) -> str:
    """The same sentence as plain text, for a reader without colours: [IL-2 | protein, missed]."""
    words, parts, at = unlinked(words), [], 0
    for start, end, kind, remark in sorted(spans):
        name = f"{kind}, {remark}" if remark else kind
        parts += [*words[at:start], f"[{' '.join(words[start:end])} | {name}]"]
        at = end
    return " ".join([*parts, *words[at:]])


def show(page: str, plain: str) -> None:
    """Display a page of HTML in a notebook, and the plain text for whoever shows none."""
    from IPython.display import display  # lazily, as in `style.show`

    display({"text/html": page, "text/plain": plain}, raw=True)


# ---- figures -----------------------------------------------------------------------------------------------------


def pieces_and_labels(words: Sequence[str], pieces: Sequence[str], word_of: Sequence[int | None],
                      labels: Sequence[str]) -> Figure:
    """Three rows: words, the pieces they are cut into, the label of every piece ("" for one that does not count).

    word_of: of every piece the number of its word, None for one that the tokenizer adds.
    """
    fig = Figure(figsize=(9.0, 2.6), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    ax.set(xlim=(-1.4, len(pieces)), ylim=(-0.2, 3))
    ax.set_axis_off()
    for y, name in ((2.4, "words"), (1.4, "pieces"), (0.4, "labels")):
        ax.text(-0.25, y, name, ha="right", va="center", fontsize=10, fontweight="bold")
    for number, word in enumerate(words):
        places = [i for i, w in enumerate(word_of) if w == number]
        if places:
            _box(ax, places[0], places[-1] + 1, 2.0, word, style.PALE)
    for i, (piece, label) in enumerate(zip(pieces, labels, strict=True)):
        _box(ax, i, i + 1, 1.0, piece, style.SKY if word_of[i] is not None else "#FFFFFF")
        _box(ax, i, i + 1, 0.0, label or "−100", style.ORANGE if label not in ("", "O") else "#FFFFFF",
             style.GREY if not label else style.BLACK)
    return fig


def _box(ax: Axes, left: float, right: float, y: float, words: str, fill: str, ink: str = style.BLACK) -> None:
    ax.add_patch(FancyBboxPatch((left + 0.06, y + 0.08), right - left - 0.12, 0.66, facecolor=fill, linewidth=0.8,
                                boxstyle="round,pad=0,rounding_size=0.06", edgecolor=style.BLACK, alpha=0.55))
    room = 9.3 * (right - left) / (ax.get_xlim()[1] - ax.get_xlim()[0]) * 10
    ax.text((left + right) / 2, y + 0.41, words, ha="center", va="center", color=ink, parse_math=False,
            fontsize=max(6.0, min(10.0, 10 * room / max(len(words), 1))))


def confusion_table(table: np.ndarray, kinds: Sequence[str]) -> Figure:
    """Counts (K + 1, K + 1) of annotated against predicted types; the last row invented, the last column missed."""
    n = len(kinds)
    fig, (ax,) = style.panels(1, 1, 1.2 + 0.38 * n, None, width=3.4 + 0.62 * n)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    image = ax.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(table):
        if (i, j) != (n, n):
            ax.text(j, i, f"{count}", ha="center", va="center", fontsize=9,
                    color=style.text_color(tuple(image.to_rgba(shares[i, j]))))
    ax.set_xticks(range(n + 1), [*kinds, "missed"], rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n + 1), [*kinds, "invented"])
    style.dress(ax, "Predicted", "Annotated")
    ax.grid(False)
    fig.colorbar(image, ax=ax, pad=0.02).set_label("Share of the row", fontsize=10)
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
    names = list(entity)[::-1]
    for ax, values, xlabel in zip(axes, (token, entity), ("Token accuracy", "Entity F1"), strict=True):
        for y, name in enumerate(names):
            runs = np.asarray(values[name], dtype=float)
            ax.plot(runs, np.full(len(runs), y - 0.2), ".", color=style.GREY, markersize=7)
            ax.plot(runs.mean(), y, "s", color=style.BLUE, markersize=7)
        ax.set_ylim(-0.6, len(names) - 0.4)
        ax.set_xlim(0, 1)
        style.dress(ax, xlabel, "")
    axes[0].axvline(floor, color=style.ORANGE, linestyle="--", linewidth=1.5)
    axes[0].set_yticks(range(len(names)), [style.METHOD_STYLE.get(name, (name,))[0] for name in names])
    return fig

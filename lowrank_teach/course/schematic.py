"""Schematic pictures: matrices, boxes and arrows on an empty canvas.

    fig, ax = canvas(9.0, 2.9)
    matrix(ax, 0.1, 0.9, 1.3, 1.3, style.GREY, "W", "frozen")
    arrow(ax, (1.5, 1.5), (2.5, 1.5))
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from ..analysis import style

Point = tuple[float, float]
PAD = 0.02   # by which a box is drawn larger on each side, for its round corners


def canvas(width: float, height: float, *, x: Point | None = None, y: Point | None = None) -> tuple[Figure, Axes]:
    """Make a figure without axes.

    Args: width, height: in inches; x, y: ends of the coordinates, by default one unit an inch.
    """
    fig = Figure(figsize=(width, height), dpi=style.DPI, layout="constrained")
    ax = fig.add_subplot()
    ax.set(xlim=x or (0, width), ylim=y or (0, height))
    ax.set_axis_off()
    return fig, ax


def matrix(ax: Axes, x: float, y: float, width: float, height: float, color: str, name: str = "", words: str = "", *,
           alpha: float = 0.55, size: float = 9) -> None:
    """Draw a rectangle with its letter in it and words under it.

    Args: x, y: its lower left corner; size: font size of the words.
    """
    ax.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor=style.BLACK, alpha=alpha))
    middle = x + width / 2
    ax.text(middle, y + height / 2, name, ha="center", va="center", fontsize=13, fontweight="bold")
    ax.text(middle, y - 0.1, words, ha="center", va="top", fontsize=size)


def box(ax: Axes, x: float, y: float, width: float, height: float, color: str, words: str, *, name: str = "",
        alpha: float = 0.35, size: float = 9, ink: str = style.BLACK) -> None:
    """Draw a box with round corners and words in it, as they stand: a $ is no mathematics.

    Args: x, y: its lower left corner; name: in bold over the words; size, ink: font size and colour of the words.
    """
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=f"round,pad={PAD},rounding_size=0.08",
                                facecolor=color, edgecolor=style.BLACK, alpha=alpha))
    middle = x + width / 2
    ax.text(middle, y + (0.25 if name else 0.5) * height, words, ha="center", va="center", fontsize=size, color=ink,
            parse_math=False)
    ax.text(middle, y + 0.62 * height, name, ha="center", va="center", fontsize=11, fontweight="bold")


def arrow(ax: Axes, start: Point, end: Point, *, color: str = style.BLACK, width: float = 1.3, head: float = 13,
          bend: float = 0.0, pointed: bool = True) -> None:
    """Draw an arrow, or a dotted line where it is not pointed; bend: of its arc, to the right if positive."""
    ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", mutation_scale=head, color=color,
                                 arrowstyle="-|>" if pointed else "-", linestyle="-" if pointed else ":",
                                 linewidth=width, shrinkA=0, shrinkB=0))

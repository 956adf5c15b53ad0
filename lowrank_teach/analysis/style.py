"""What every picture shares: theme, colours, line styles, panels, legend; `show` for a notebook, `save` for a file.

seaborn gives the theme and draws what is statistical: heatmaps, strips of seeds, means with bands. It is imported
where it draws, since that takes half a second. `cividis` for size; the colour-blind palette with line style and
marker as further channels; nothing under 8 points at 1000 pixels. Figures are built directly, without pyplot's
current figure: no global state, nothing left open. The pictures themselves stand in `plots.py`. Used by every
notebook.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import Collection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.spines import Spine
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

WIDTH, DPI = 9.0, 110   # inches, pixels an inch: 990 pixels wide
COLORS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#56B4E9")   # seaborn-v0_8-colorblind
BLUE, GREEN, ORANGE, PINK, YELLOW, SKY = COLORS
BLACK, GREY, PALE = "#000000", "#6B6B6B", "#BDBDBD"
DOTTED_DASH, LONG = (0, (4, 1, 1, 1, 1, 1)), (0, (7, 2))
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", DOTTED_DASH, LONG)
MARKERS = "osD^vPXd"
# method -> display name, colour, line style, marker
METHOD_STYLE: dict[str, tuple[str, str, Any, str]] = {
    "full": ("full fine-tuning", BLACK, "-", "o"),
    "head": ("head only", GREY, ":", "h"),
    "lora": ("LoRA", BLUE, "-", "s"),
    "cola": ("COLA", ORANGE, "--", "^"),
    "cola-2": ("COLA, chain of 2", ORANGE, DOTTED_DASH, "<"),
    "cola-3": ("COLA, chain of 3", ORANGE, ":", "v"),
    "salora": ("SaLoRA", GREEN, "-.", "D"),
    "delta_lora": ("Delta-LoRA", PINK, LONG, "P"),
    "autolora": ("AutoLoRA", SKY, DOTTED_DASH, "X"),
    "dylora": ("DyLoRA", SKY, "-", "p"),
    "adalora": ("AdaLoRA", SKY, "--", "d"),
    "houlsby": ("Houlsby adapters", GREEN, "--", "H"),
    "pfeiffer": ("Pfeiffer adapters", GREEN, ":", "8"),
    "prefix": ("prefix tuning", PINK, "-.", ">"),
    "prompt": ("prompt tuning", PINK, ":", "*"),
}


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name -> label, color, linestyle, marker for `plot`: a method's own, or the next pair not in use."""
    names = list(names)
    taken = [METHOD_STYLE[name][1:3] for name in names if name in METHOD_STYLE]
    # no yellow: a thin yellow line cannot be read on white
    inks = (BLUE, ORANGE, GREEN, PINK, BLACK, SKY)
    # down the diagonals, so that neighbours in the legend differ in colour and in style
    pairs = [(inks[i], STYLES[(i + shift) % 6]) for shift in range(6) for i in range(6)]
    free = [pair for pair in pairs if pair not in taken]
    result = {}
    for i, name in enumerate(names):
        label, color, style, marker = METHOD_STYLE.get(name) or (name, *free.pop(0), MARKERS[i % 8])
        result[name] = {"label": label, "color": color, "linestyle": style, "marker": marker,
                        "markersize": 5}
    return result


def panels(count: int, columns: int, height: float, title: str | None, width: float = WIDTH,
           sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a Figure with `count` axes in rows of `columns`; height of a row and width of the figure in inches."""
    rows = math.ceil(count / columns)
    with themed():
        fig = Figure(figsize=(width, rows * height + 0.5), dpi=DPI, layout="constrained")
        axes = list(fig.subplots(rows, columns, squeeze=False, sharey=sharey).ravel())
    for spare in axes[count:]:
        spare.remove()
    if title:
        fig.suptitle(title, fontsize=12)
    return fig, axes[:count]


def themed() -> AbstractContextManager[None]:
    """Give every panel that is made inside it the theme; a reader's own settings stay as they are."""
    return matplotlib.rc_context(_theme())


@functools.cache
def _theme() -> Any:
    """Return sizes, ticks and a light grid as rcParams: seaborn's, for a page that is 990 pixels wide."""
    import seaborn

    return {**seaborn.plotting_context("paper", font_scale=1.05),
            **seaborn.axes_style("ticks", {"axes.grid": True, "grid.color": "#E5E5E5", "axes.axisbelow": True,
                                           "axes.spines.top": False, "axes.spines.right": False}),
            "grid.linewidth": 0.6}


def dress(ax: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    """Name the axes and the panel."""
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.set_title(title, fontsize=10)


def legend(fig: Figure, extra: Sequence[Artist] = ()) -> None:
    """Draw one legend under all panels, each label once; outside, so that it hides nothing."""
    handles: dict[str, Any] = {}
    for ax in fig.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles.update({str(artist.get_label()): artist for artist in extra})
    if handles:
        longest = max(len(re.sub(r"\\[a-z]+|[$_^{}]", "", label)) for label in handles)
        ncols = int(fig.get_figwidth() / (0.75 + 0.085 * longest))   # inches: line and gap, then the text
        fig.legend(list(handles.values()), list(handles), loc="outside lower center", fontsize=9,
                   ncols=min(max(ncols, 1), len(handles), 5), frameon=False, handlelength=3.2)


def text_color(rgb: Sequence[float]) -> str:
    """Return black or white, whichever contrasts more with a cell of this colour (WCAG 2.1, relative luminance)."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb[:3])
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


Names = Sequence[str] | int
Values = Sequence[float] | np.ndarray


def heatmap(ax: Axes, table: np.ndarray, rows: Names = 0, columns: Names = 0, *,
            annot: np.ndarray | bool = False, fmt: str = "", size: float = 9, **look: Any) -> QuadMesh:
    """Draw a table (R, C) by `seaborn.heatmap`, with its numbers in black or white; NaN stays empty.

    Args: rows, columns: their names, or n to number every n-th, 0 none; annot: True, or words (R, C) in place of
    the numbers; fmt, size: of what is written; look: colour map and its limits.
    """
    import seaborn

    seaborn.heatmap(table, ax=ax, annot=annot, fmt=fmt, annot_kws={"size": size}, cbar=False, xticklabels=columns,
                    yticklabels=rows, **look)
    ax.tick_params(rotation=0)
    ax.grid(False)
    ax.spines[:].set_visible(True)   # cells near zero are white
    mesh, = (artist for artist in ax.collections if isinstance(artist, QuadMesh))
    if ax.texts:   # seaborn's own black and white leave some cells with a contrast under 4.5
        for text, color in zip(ax.texts, mesh.to_rgba(table[~np.isnan(table)]), strict=True):
            text.set_color(text_color(color))
    return mesh


def seed_strip(ax: Axes, values: Mapping[Any, Values], *, color: str = BLUE, label: str = "one seed",
               errorbar: Callable[[Values], tuple[float, float]] | None = None, upright: bool = False) -> None:
    """Draw a dot a seed and a stroke at their mean, a row a name, by seaborn's `stripplot` and `pointplot`.

    Args: name -> one value a seed; errorbar: seeds -> its ends, such as `spread`; upright: a column a number instead
    of a row a name, at its place on the axis.
    """
    import seaborn

    names = [name for name, runs in values.items() for _ in runs]
    points = [point for runs in values.values() for point in runs]
    both = {"ax": ax, "legend": False, **({"x": names, "y": points, "native_scale": True} if upright else
                                          {"x": points, "y": names})}
    seaborn.stripplot(**both, jitter=False, size=6, color=color, alpha=0.7, edgecolor="white", linewidth=0.5,
                      label=label, zorder=4)   # seen on the error bar
    seaborn.pointplot(**both, errorbar=errorbar, capsize=0.2, err_kws={"linewidth": 1.2}, color=BLACK, zorder=3,
                      linestyle="none", label="mean", marker="_" if upright else "|", markersize=16,
                      markeredgewidth=2)


def seed_curve(ax: Axes, values: Mapping[Any, Values], look: Mapping[str, Any], *,
               errorbar: Callable[[Values], tuple[float, float]] | None = None, shift: float = 0.0) -> None:
    """Draw the means over seeds as a line with a band by `seaborn.lineplot`, and each of several seeds as a dot.

    Args: x -> one value a seed; look: of the line; errorbar: seeds -> ends of the band, `spread` for None; shift: of
    the dots, so that two curves do not hide each other's.
    """
    import seaborn

    x = np.repeat(list(values), [len(runs) for runs in values.values()])
    y = np.concatenate([np.asarray(runs, dtype=float) for runs in values.values()])
    seaborn.lineplot(x=x, y=y, errorbar=errorbar or spread, err_kws={"alpha": 0.15, "linewidth": 0}, ax=ax,
                     legend=False, markeredgecolor=look["color"], **look)
    ax.plot(x + shift, y, ".", color=look["color"], alpha=0.6, markersize=5)


def spread(runs: Values) -> tuple[float, float]:
    """Return the mean ± one standard deviation; two seeds have no spread worth a band."""
    mean, deviation = np.mean(runs), np.std(runs, ddof=1) if len(runs) > 2 else np.nan
    return float(mean - deviation), float(mean + deviation)


MATRICES = ("q", "k", "v", "o", "gate", "up", "down")   # the order of rows


def site_label(site: str) -> str:
    """Return "3.q" -> layer 3 W_q, "q" -> W_q, as the papers write it; other names stay."""
    layer, _, matrix = site.rpartition(".")
    name = rf"$W_\mathrm{{{matrix}}}$" if matrix in MATRICES else matrix
    return f"layer {layer} {name}" if layer else name


def site_grid(maps: Iterable[Mapping[str, float]]) -> tuple[list[str], list[str]]:
    """Return rows and columns for sites like "3.q", "enc.3.q": matrices in order, every layer from 0 to the last."""
    matrices, stacks = dict[str, None](), dict[str, int]()
    for site in (site for one in maps for site in one):
        layer, _, matrix = site.rpartition(".")
        stack, _, number = layer.rpartition(".")
        matrices[matrix] = None
        stack, last = (stack, int(number)) if number.isdigit() else (layer, -1)   # a path: own column
        stacks[stack] = max(stacks.get(stack, -1), last)
    rows = [m for m in MATRICES if m in matrices] + [m for m in matrices if m not in MATRICES]
    return rows, [f"{s}.{i}".lstrip(".") if last >= 0 else s
                  for s, last in stacks.items() for i in range(max(last, 0) + 1)]


def site_table(values: Mapping[str, float], rows: Sequence[str], layers: Sequence[str]) -> np.ndarray:
    """Return site -> value as (matrices, layers), NaN where there is no such site."""
    return np.array([[values.get(f"{layer}.{m}".lstrip("."), np.nan) for layer in layers] for m in rows],
                    dtype=float)


def layer_ticks(ax: Axes, layers: Sequence[str], start: float = 0.0) -> None:
    """Put the layers along x, the first at `start`; names like "enc.3" stand upright, of many only some."""
    upright = any("." in layer for layer in layers)
    every = 1 if upright else -(-len(layers) // 16)
    ax.set_xticks(start + np.arange(0, len(layers), every), layers[::every], rotation=90 * upright,
                  fontsize=9 if len(layers) <= 12 else 8)


def index_axis(ax: Axes, longest: int) -> None:
    """Put whole numbers along x, on a log axis where hundreds of values would push the first eight together."""
    if longest > 64:
        ax.set_xscale("log")
        ax.set_xlabel(f"{ax.get_xlabel()} (log)")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def save(fig: Figure, path: str | Path, *, svg: bool = False) -> list[Path]:
    """Write path.png, and path.svg if asked; the same figure gives the same bytes on any day.

    Args: path with or without the ending .png. Returns the files written. Folders are made as needed.
    """
    path = Path(path)
    path = path if path.suffix == ".png" else path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=DPI, metadata={"Software": None})
    if not svg:
        return [path]
    # without a salt every id in an SVG is drawn anew
    with matplotlib.rc_context({"svg.hashsalt": "lowrank_teach"}):
        fig.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    return [path, path.with_suffix(".svg")]


@dataclass(frozen=True)
class Animation:
    """A figure whose contents follow a step.

    figure: drawn once.  update: called with a position from 0 to `frames` − 1, changes what the figure shows.
    """

    figure: Figure
    update: Callable[[int], None]
    frames: int


def save_animation(animation: Animation, path: str | Path, *, fps: int = 8, hold: int = 24) -> Path:
    """Write path.gif, which plays for ever and stays at the last frame for `hold` frames; the same bytes on any day.

    Args: path without an ending; fps: frames a second. Returns the file written.
    """
    path = Path(path).with_suffix(".gif")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = PillowWriter(fps=fps)
    with writer.saving(animation.figure, str(path), dpi=DPI):
        for i in range(animation.frames):
            animation.update(i)
            writer.grab_frame()
        for _ in range(hold):
            writer.grab_frame()
    return path


def png_bytes(fig: Figure) -> bytes:
    """Return the figure as a PNG file of few colours, a third of the size: a notebook with ten of them stays small.

    256 where it shows a colour map; 128 where lines, bars and letters are all there is; 96 for strips, of which a
    page has many.
    """
    buffer, small = io.BytesIO(), io.BytesIO()
    mapped = any(isinstance(artist, AxesImage | QuadMesh) for ax in fig.axes for artist in ax.get_children())
    colors = 256 if mapped else 96 if fig.images else 128
    fig.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    full = Image.open(buffer).convert("RGB")
    few = full.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(small, format="png", optimize=True)
    return small.getvalue()


def image_bundle(png: bytes, width: int, alt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return data and metadata of a notebook output: a plain image, with its alt text twice (as alt, and as text)."""
    return ({"image/png": base64.b64encode(png).decode(), "text/plain": alt},
            {"image/png": {"alt": alt, "width": width}})


def show(fig: Figure, caption: str, alt: str = "") -> None:
    """Display the figure in a notebook, and under it the caption in italics.

    A plain image and a line of Markdown, since repository pages strip images that are written inside HTML.
    caption: what is found in it; alt: what it shows, in words; "" takes the figure's label (`fig.set_label`).

    Raises:
        ValueError: one of them is empty, or a panel of the figure is.
    """
    alt = alt or str(fig.get_label())
    if not caption.strip() or not alt.strip():
        raise ValueError("a figure needs a caption and an alt text: say what to look for, and what is drawn")
    if empty := empty_panels(fig):
        raise ValueError(f"nothing is drawn in panel {empty[0]} of this figure: its numbers are missing or not "
                         "finite")
    from IPython.display import display  # lazily: a script that only saves figures needs no notebook

    data, metadata = image_bundle(png_bytes(fig), round(fig.get_figwidth() * DPI), alt)
    display(data, raw=True, metadata=metadata)
    display(caption_bundle(caption), raw=True)


def empty_panels(fig: Figure) -> list[int]:
    """Return the numbers, from 1, of the panels that show nothing: no artist, or none with a finite number."""
    panels = [ax for ax in fig.axes if ax.get_visible()]
    if not panels and not fig.images:
        return [1]
    return [i for i, ax in enumerate(panels, 1) if not any(_seen(artist, ax) for artist in ax.get_children())]


def _seen(artist: Artist, ax: Axes) -> bool:
    """Return whether an artist of a panel shows data: its frame, titles and lines across the whole panel do not."""
    across = Artist.get_transform(artist) is not ax.transData and isinstance(artist, Line2D | Patch)
    if across or isinstance(artist, Spine) or not artist.get_visible():
        return False
    if isinstance(artist, Line2D):
        return bool(np.isfinite(np.asarray(artist.get_ydata(), dtype=float)).any())
    if isinstance(artist, AxesImage | QuadMesh):
        return bool(np.isfinite(np.ma.filled(artist.get_array(), np.nan)).any())  # type: ignore[arg-type]
    if isinstance(artist, Rectangle):
        return bool(np.isfinite([artist.get_width(), artist.get_height()]).all())
    if isinstance(artist, Text):
        titles = {ax.title, ax._left_title, ax._right_title}  # type: ignore[attr-defined]
        return bool(artist.get_text().strip()) and artist not in titles
    return isinstance(artist, Collection | Patch)


def caption_bundle(caption: str) -> dict[str, str]:
    """Return a caption as a notebook output, in italics and as plain text; nothing in it is markup of its own."""
    plain = " ".join(caption.split()).replace("*", "∗").replace("&", "&amp;").replace("<", "&lt;")
    plain = re.sub(r"[\\`\[\]$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", plain)   # W_q is no emphasis
    return {"text/markdown": f"*{plain}*", "text/plain": caption}

"""Explorers: a slider, a number box, a picture, and a sentence that says in words what is seen.

A picture is drawn once; a move of a slider then goes state → arrays (a pure function) → the few artists that
move, drawn over the stored background → PNG bytes → `Image.value`. No `interact` and no `Output` widget: both
hide errors. `strip` puts some states of the same picture one above the other, for pages where sliders do not
live. Each chapter has its own explorers, subclasses of `Picture`; notebook 10 shows them all.
"""

from __future__ import annotations

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..analysis import style

WIDTH, HEIGHT = 8.0, 2.6   # inches
LIVE = "computed live from the numbers, exactly"
SNAPPED = "snapped to the nearest stored run; nothing is trained while you move"


@dataclass(frozen=True)
class Control:
    """One slider: the state's name, what stands beside it, its range, where it starts, and one move of it."""

    name: str
    label: str
    low: float
    high: float
    start: float
    step: float = 1

    @property
    def whole(self) -> bool:
        """Whether it takes whole numbers only."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.start, self.step))


class Picture:
    """A figure of which few artists move.

    Subclasses give `controls`, `build`, `arrays`, `update` and `words`; a state is a value of each control by name.
    """

    controls: tuple[Control, ...]
    kind = LIVE
    count = 2         # panels, side by side
    height = HEIGHT

    def __init__(self) -> None:
        self.draw(**self.start())

    def draw(self, **state: Any) -> None:
        """Draw everything anew, and keep what stands still as pixels."""
        self.fig, self.axes = style.panels(self.count, self.count, self.height - 0.5, None, width=WIDTH)
        self.canvas = FigureCanvasAgg(self.fig)
        self.moving = self.build()
        self.update(self.arrays(**state))
        self.canvas.draw()
        self.fig.set_layout_engine("none")   # solving the layout again would cost more than all the rest
        for artist in self.moving:
            artist.set_visible(False)
        self.canvas.draw()
        self.background = self.canvas.copy_from_bbox(self.fig.bbox)
        for artist in self.moving:
            artist.set_visible(True)

    def start(self) -> dict[str, float]:
        """Return the state in which every control starts."""
        return {c.name: c.start for c in self.controls}

    def build(self) -> list[Artist]:
        """Draw everything, and return the artists that move."""
        raise NotImplementedError

    def arrays(self, **state: Any) -> dict[str, Any]:
        """Compute what is drawn at this state, and change nothing."""
        raise NotImplementedError

    def update(self, arrays: dict[str, Any]) -> None:
        """Hand the arrays to the artists."""
        raise NotImplementedError

    def words(self, **state: Any) -> str:
        """Say in a sentence what is seen at this state."""
        raise NotImplementedError

    def frame(self, **state: Any) -> np.ndarray:
        """Draw the pixels at this state, (height, width, 4)."""
        self.update(self.arrays(**state))
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            artist.draw(self.canvas.get_renderer())
        return np.asarray(self.canvas.buffer_rgba())

    def png(self, **state: Any) -> bytes:
        """Draw the picture at this state as a PNG file, lightly compressed: it only crosses to the browser."""
        buffer = io.BytesIO()
        Image.fromarray(self.frame(**state)[..., :3]).save(buffer, format="png", compress_level=1)
        return buffer.getvalue()


def strip(picture: Picture, states: Sequence[Mapping[str, float]]) -> Figure:
    """Put some states of a picture one above the other, pixel by pixel what the slider shows there.

    The figure's label, its alternative text, is what the picture says of each.
    """
    frames = [picture.frame(**state).copy() for state in states]
    stacked = np.concatenate(frames)                                    # (height, width, 4)
    fig = Figure(figsize=(stacked.shape[1] / style.DPI, stacked.shape[0] / style.DPI), dpi=style.DPI)
    fig.figimage(stacked)
    fig.set_label(" ".join(f"Row {i}: {picture.words(**state)}" for i, state in enumerate(states, 1)))
    return fig


def need_ipywidgets() -> Any:
    """Import ipywidgets.

    Raises:
        ImportError: ipywidgets is not installed; says how to install it.
    """
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError('sliders need ipywidgets: pip install "lowrank-teach[lab]"; the strip shows the same '
                          "picture") from error
    return ipywidgets


def number_row(*named: tuple[str, Any]) -> Any:
    """Put widgets in a row, each behind its name; what does not fit goes to the next line."""
    w = need_ipywidgets()
    pairs = [w.HBox([w.Label(name), widget], layout=w.Layout(margin="0 1.5em 0 0")) for name, widget in named]
    return w.HBox(pairs, layout=w.Layout(flex_flow="row wrap", width="100%"))


def named_image() -> Any:
    """Make an empty image widget, no wider than its page, whose `tooltip` is its name for a screen reader.

    An image widget has no alt text, but a title. ipywidgets 8 sets it only beside a description, which an image
    lacks (the view fails without one), so it is given an empty one.
    """
    w = need_ipywidgets()
    import traitlets

    class NamedImage(w.Image):  # type: ignore[name-defined, misc]
        description = traitlets.Unicode("").tag(sync=True)

    return NamedImage(format="png", layout=w.Layout(max_width="100%", height="auto"))


def tidy(value: float) -> float:
    """Round a slider's value, to which steps of a fraction have added up: -0.1, not -0.09999999999999998."""
    return round(value, 10)


def explore(picture: Picture) -> Any:
    """Make a widget of the picture with a slider and a number box for each control, and a sentence under it.

    The sentence is the picture's name for a screen reader, too.

    Raises:
        ImportError: ipywidgets is not installed.
    """
    w = need_ipywidgets()
    image, text = named_image(), w.HTML()
    sliders, rows = {}, []
    for c in picture.controls:
        options = {"value": c.start, "min": c.low, "max": c.high, "step": c.step}
        slider, number = (w.IntSlider, w.BoundedIntText) if c.whole else (w.FloatSlider, w.BoundedFloatText)
        sliders[c.name] = slider(**options, description=c.label, readout=False,
                                 style={"description_width": "12em"}, layout=w.Layout(width="32em"))
        box = number(**options, layout=w.Layout(width="6em"), tooltip=c.label)
        w.link((sliders[c.name], "value"), (box, "value"), transform=(tidy, tidy))
        rows.append(w.HBox([sliders[c.name], box]))

    def redraw(change: Any = None) -> None:
        state = {name: tidy(slider.value) for name, slider in sliders.items()}
        try:
            shown, words = picture.png(**state), picture.words(**state)
            with image.hold_sync():   # one message: the name never belongs to another picture
                image.value, image.tooltip = shown, words
            text.value = f"{html.escape(words)} <i>({picture.kind}.)</i>"
        except Exception as error:
            text.value = f"<b>This state could not be drawn: {html.escape(repr(error))}</b>"
            raise

    for slider in sliders.values():
        slider.observe(redraw, names="value")
    redraw()
    return w.VBox([*rows, image, text])

"""Sliders for pages without a kernel: an explorer's pictures and sentences at some positions, made when the site is.

A native range input moves each slider (`_static/frames.js`). With two sliders at most, all pairs of positions are
there; with more, one slider is moved at a time and the others stand where they start. A frame holds only the pixels
in which it differs from the first one, over which it is laid.
"""

from __future__ import annotations

import html
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lowrank_teach.course.explorer import SNAPPED, Control, Picture, tidy

ALONE, PAIRED, MANY = 25, 8, 14   # positions of one slider, of each of two, of each of more
COLORS = 96


def positions(control: Control, most: int) -> list[float]:
    """Return so many positions over the slider's range at most, its start among them."""
    steps = round((control.high - control.low) / control.step)
    every = sorted({round(i) for i in np.linspace(0, steps, min(most, steps + 1))})
    nearest = min(every, key=lambda i: abs(control.low + i * control.step - control.start))
    values = [control.start if i == nearest else tidy(control.low + i * control.step) for i in every]
    return [round(value) if control.whole else value for value in values]


def states(picture: Picture) -> tuple[dict[str, list[float]], Iterator[dict[str, float]]]:
    """Return the positions of each slider, and the states that frames are made for."""
    n = len(picture.controls)
    found = {c.name: positions(c, ALONE if n == 1 else PAIRED if n == 2 else MANY) for c in picture.controls}
    if n <= 2:
        return found, (dict(zip(found, values, strict=True)) for values in itertools.product(*found.values()))
    start = picture.start()
    return found, ({**start, name: value} for name, values in found.items() for value in values)


def write(picture: Picture, folder: Path) -> dict[str, Any]:
    """Write the frames into a folder, each picture once, and return what a page has to know of them."""
    folder.mkdir(parents=True, exist_ok=True)
    values, every = states(picture)
    first = np.array(picture.frame(**picture.start())[..., :3])
    _image(first).save(folder / "first.png", optimize=True)
    names: dict[bytes, str] = {}
    found: dict[str, list[str]] = {}
    for state in every:
        pixels = np.array(picture.frame(**state)[..., :3])
        name = names.setdefault(pixels.tobytes(), "" if (pixels == first).all() else f"{len(names)}.png")
        if name and not (folder / name).exists():
            _over(pixels, first).save(folder / name, optimize=True, transparency=0)
        at = ",".join(str(values[control].index(value)) for control, value in state.items())
        found[at] = [name, picture.words(**state)]
    start = {name: at.index(picture.start()[name]) for name, at in values.items()}
    return {"values": values, "start": start, "frames": found}


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).quantize(COLORS, dither=Image.Dither.NONE)


def _over(pixels: np.ndarray, first: np.ndarray) -> Image.Image:
    """Return the pixels that differ from the first frame; colour 0 is transparent."""
    drawn = _image(pixels)
    palette = (drawn.getpalette() or [])[:3 * COLORS]
    changed = (pixels != first).any(-1)
    over = Image.fromarray(np.where(changed, np.asarray(drawn) + 1, 0).astype(np.uint8), mode="P")
    over.putpalette([255, 255, 255, *palette])
    return over


def page(picture: Picture, folder: Path, address: str) -> str:
    """Write the frames into a folder, and return the HTML that shows them; address: of the folder, from the page."""
    about = write(picture, folder)
    height, width = picture.frame(**picture.start()).shape[:2]
    words = html.escape(picture.words(**picture.start()))
    rows = "\n".join(
        f'<label><span>{html.escape(c.label)}</span> <input type="range" name="{c.name}" min="0" '
        f'max="{len(about["values"][c.name]) - 1}" value="{about["start"][c.name]}"> <output></output></label>'
        for c in picture.controls)
    made = "stored runs" if picture.kind == SNAPPED else "computed by the same code as in JupyterLab"
    alone = " One slider moves at a time: the others go back to their start." if len(picture.controls) > 2 else ""
    data = json.dumps({**about, "address": address}, ensure_ascii=False).replace("</", "<\\/")
    return (f'<div class="frames">\n<div class="frames-rows" hidden>\n{rows}\n</div>\n'
            f'<div class="frames-picture"><img src="{address}/first.png" alt="{words}" width="{width}" '
            f'height="{height}"><img src="{address}/first.png" alt="{words}" hidden></div>\n'
            f'<p class="frames-says" aria-live="polite">{words}</p>\n'
            f'<p class="frames-made">Pictures for these positions were made with the page ({made}).{alone} In '
            f"JupyterLab the sliders take every position.</p>\n"
            f'<script type="application/json">{data}</script>\n</div>')

"""What must hold of every picture behind a slider, whichever file tests it."""

import io
import pkgutil
from importlib import import_module

import numpy as np
from PIL import Image

from lowrank_teach.course import chapters
from lowrank_teach.course.explorer import Picture

CHAPTERS = [import_module(f"{chapters.__name__}.{found.name}") for found in pkgutil.iter_modules(chapters.__path__)]
EXPLORERS = sorted(name for chapter in CHAPTERS for name, value in vars(chapter).items()
                   if isinstance(value, type) and issubclass(value, Picture) and value.__module__ == chapter.__name__
                   and not name.startswith("_"))


def arrays_are_pure(picture):
    """The same state gives the same arrays, whatever was drawn between."""
    first = picture.arrays(**picture.start())
    picture.png(**{c.name: c.low for c in picture.controls})
    again = picture.arrays(**picture.start())
    assert first.keys() == again.keys()
    for key, value in first.items():
        np.testing.assert_equal(again[key], value)


def a_slider_moves(picture, control):
    """Its ends differ in picture and words, and going back gives the first picture again."""
    states = [{**picture.start(), control.name: value} for value in (control.low, control.high)]
    first, other = (picture.png(**state) for state in states)
    assert first != other
    assert picture.words(**states[0]) != picture.words(**states[1])
    assert picture.png(**states[0]) == first
    assert Image.open(io.BytesIO(first)).format == "PNG"

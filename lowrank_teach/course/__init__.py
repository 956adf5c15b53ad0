"""What a notebook needs beside `lowrank_teach`: one import, `from lowrank_teach import course`.

    task, backbone, profile = course.begin()          # where this machine stands, and on what the notebook trains
    course.show(figure, "W_v keeps 5 of 8 directions.")  # a picture with its finding under it
    @course.exercise … course.solution, course.predict   # to try for oneself
    course.explore, course.strip                      # sliders, and some of their positions for a page
    course.symbols("x", "W"), course.claims("LoRA")   # tables
    course.chapters.salora                            # what one notebook alone needs, a file a notebook
"""

from __future__ import annotations

from ..analysis.style import show
from . import chapters
from .contents import begin, claims, readable, symbols
from .exercises import exercise, predict, solution
from .explorer import explore, strip
from .live_curve import LiveCurve, keep_reference, load_reference

__all__ = ["LiveCurve", "begin", "chapters", "claims", "exercise", "explore", "keep_reference", "load_reference",
           "predict", "readable", "show", "solution", "strip", "symbols"]

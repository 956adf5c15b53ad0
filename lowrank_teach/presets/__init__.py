"""The cells of the papers' tables, each under one name: paper/backbone/task.

    lowrank-teach train --preset salora/roberta-base/cola      # the table's cell
    lt.preset("salora/roberta-base/cola").fit(seed=0)          # the same
    lt.preset("salora/roberta-base/cola").not_given            # what the paper leaves open, and what we took

One file a paper. Each value stands with its source; a number is quoted as a paper's only where it was found in a
text, a table or a repository.
"""

from __future__ import annotations

import difflib

from ..methods.checks import require_kind
from . import autolora, cola, delta_lora, lora, salora
from .cell import Preset
from .setting import KINDS, Setting

__all__ = ["KINDS", "PRESETS", "Preset", "Setting", "preset"]

PRESETS: dict[str, Preset] = {one.name: one for papers in (lora, cola, salora, delta_lora, autolora)
                              for one in papers.PRESETS}


def preset(name: str) -> Preset:
    """One cell.

    Raises:
        ValueError: there is none of this name, with the nearest ones; or it is no text.
    """
    require_kind("name", name, str, "a text: paper/backbone/task")
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, 3, 0.6)
    start = [one for one in PRESETS if one.startswith(name.rstrip("/") + "/")]
    hint = f"did you mean {', '.join(near or start[:3])}?" if near or start else "`lowrank-teach presets` lists them"
    raise ValueError(f"no preset {name!r}: a name is paper/backbone/task; {hint}")

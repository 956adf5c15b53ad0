"""Pictures of the course itself, beside those of the methods (`plots.py`), a file for each paper.

Arrays in, Figure out, and no torch, as there. Used by every notebook and by the exercises.
"""

from __future__ import annotations

from .lora import idea, ratio_bars, score_grid
from .result import own_result

__all__ = ["idea", "own_result", "ratio_bars", "score_grid"]

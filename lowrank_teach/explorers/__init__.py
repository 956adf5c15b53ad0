"""The pictures behind the sliders, a file for each paper. Used by every notebook, and all together by 10."""

from __future__ import annotations

from .lora import RankAlpha, RankOfAPicture, Truncation

__all__ = ["RankAlpha", "RankOfAPicture", "Truncation"]

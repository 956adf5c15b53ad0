"""The pictures behind the sliders, a file for each paper. Used by every notebook, and all together by 10."""

from __future__ import annotations

from .autolora import RankThreshold
from .cola import ColaChain
from .delta_lora import DeltaTrajectory
from .lora import RankAlpha, RankOfAPicture, Truncation
from .ranks import CutNetwork
from .runs import RunBrowser
from .salora import HardConcreteGate, SaloraBudget, SaloraRuns

__all__ = ["ColaChain", "CutNetwork", "DeltaTrajectory", "HardConcreteGate", "RankAlpha", "RankOfAPicture",
           "RankThreshold", "RunBrowser", "SaloraBudget", "SaloraRuns", "Truncation"]

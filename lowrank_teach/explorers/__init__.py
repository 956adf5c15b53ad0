"""The pictures behind the sliders, a file for each paper or kind of task. Used by every notebook; all that stand on
stored numbers come together in 10.
"""

from __future__ import annotations

from .autolora import RankThreshold
from .cola import ColaChain
from .delta_lora import DeltaTrajectory
from .lora import RankAlpha, RankOfAPicture, Truncation
from .ranks import CutNetwork
from .runs import RunBrowser
from .salora import HardConcreteGate, SaloraBudget, SaloraRuns
from .side_by_side import BestOfGrid
from .tagging import EntityThreshold
from .texts import HowManyInputs

__all__ = ["BestOfGrid", "ColaChain", "CutNetwork", "DeltaTrajectory", "EntityThreshold", "HardConcreteGate",
           "HowManyInputs", "RankAlpha", "RankOfAPicture", "RankThreshold", "RunBrowser", "SaloraBudget",
           "SaloraRuns", "Truncation"]

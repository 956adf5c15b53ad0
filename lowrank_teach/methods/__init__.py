"""One paper a file; each is the layer of `lowrank.py` plus a rule. `METHODS` lists them in teaching order."""

from .lora import LoRA  # isort: skip  (teaching order: this is the order of METHODS)
from .cola import COLA  # isort: skip
from .salora import SaLoRA  # isort: skip
from .delta_lora import DeltaLoRA  # isort: skip
from .autolora import AutoLoRA  # isort: skip
from .baselines import FullFineTuning, HeadOnly  # isort: skip
from .base import METHODS, Clock, Invariant, Loop, Method, Rule

__all__ = ["COLA", "METHODS", "AutoLoRA", "Clock", "DeltaLoRA", "FullFineTuning", "HeadOnly", "Invariant", "LoRA",
           "Loop", "Method", "Rule", "SaLoRA"]

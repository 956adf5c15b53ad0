"""One paper a file; each is the layer of `lowrank.py` plus a rule. `METHODS` lists them in teaching order."""

from __future__ import annotations

from .lora import LoRA  # isort: skip  (teaching order: this is the order of METHODS)
from .cola import COLA  # isort: skip
from .salora import SaLoRA  # isort: skip
from .delta_lora import DeltaLoRA  # isort: skip
from .autolora import AutoLoRA  # isort: skip
from .baselines import FullFineTuning, HeadOnly, Houlsby, Pfeiffer  # isort: skip
from .dylora import DyLoRA  # isort: skip
from .base import METHODS, Clock, Invariant, Loop, Method, Rule
from .composition import Composed, as_method, compose

for _name in ("adalora", "prefix", "prompt"):  # these stand on peft, which is imported when one is put on a model
    METHODS.later(_name, "lowrank_teach.integrations.peft_methods")

__all__ = ["COLA", "METHODS", "AutoLoRA", "Clock", "Composed", "DeltaLoRA", "DyLoRA", "FullFineTuning", "HeadOnly",
           "Houlsby", "Invariant", "LoRA", "Loop", "Method", "Pfeiffer", "Rule", "SaLoRA", "as_method", "compose"]

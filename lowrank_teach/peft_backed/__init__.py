"""Baselines that run through peft, inside the same loop, records and tables as everything else. Taught in 07.

peft is imported when one of them is put on a model, not before: `METHODS` knows the names without it.
"""

from __future__ import annotations

from .adalora import AdaLoRA
from .prompts import PrefixTuning, PromptTuning

__all__ = ["AdaLoRA", "PrefixTuning", "PromptTuning"]

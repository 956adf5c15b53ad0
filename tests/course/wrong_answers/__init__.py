"""Typical wrong answers to every exercise, each with a piece of the hint it must get, and a right one."""

from . import autolora, cola, delta_lora, generation, ledger, lora, ranks, salora, side_by_side, tagging

PARTS = (ranks, autolora, delta_lora, lora, cola, salora, ledger, generation, tagging, side_by_side)
WRONG = {name: wrong for part in PARTS for name, wrong in part.WRONG.items()}
RIGHT = {name: right for part in PARTS for name, right in part.RIGHT.items()}

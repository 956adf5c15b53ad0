"""Objects by the names that the glossary's expressions stand on, and the dimensions in its shapes, by paper."""

from . import autolora, cola, delta_lora, lora, ranks, salora

PARTS = {"LoRA": lora, "COLA": cola, "Delta-LoRA": delta_lora, "AutoLoRA": autolora, "SaLoRA": salora, "SVD": ranks}

"""Objects by the names that the glossary's expressions stand on, and the dimensions in its shapes, by paper."""

from . import lora

PARTS = {"LoRA": lora}

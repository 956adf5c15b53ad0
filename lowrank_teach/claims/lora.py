"""Claims of LoRA (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from . import identities
from .evidence import FULL, between
from .reported import says
from .rows import Beyond, Claim, Compared, Exact

CLAIMS: tuple[Claim, ...] = (
    Compared("T2", "LoRA matches full fine-tuning or beats it", between(("delta", "LoRA"), FULL),
             says=says("LoRA: average"), note="held to be better, not only as good"),
    Compared("T2", "LoRA beats fine-tuning of the same matrices, W_q and W_v",
             between(("delta", "LoRA"), ("delta", "FT‡ (W_q, W_v)")), note="our reading: only those matrices train"),
    Beyond("T2", "the average over GLUE is above that of full fine-tuning, on RoBERTa", "RoBERTa-base",
           says("LoRA: average"), "RTE, MRPC and STS-B start from an MNLI adapter there"),
    Beyond("T3", "on E2E it beats fine-tuning", "GPT2-medium", says("LoRA: E2E")),
    Exact("T2", "r = 8 on q and v of RoBERTa-base trains 294 912 numbers, the table's 0.3 M", identities.lora_count,
          "counted on its shapes", says("LoRA: size")),
    Exact("eq. 3", "B = 0 leaves the function as it was", identities.starts_unchanged, "random inputs",
          tolerance=0.0),
    Exact("Section 4.1", "merging leaves the function as it was: no cost at inference",
          identities.merge_is_the_same_function, "random factors and inputs"),
)

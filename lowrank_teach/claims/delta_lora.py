"""Claims of Delta-LoRA (Zi et al. 2023, arXiv 2309.02411), and the controls its reviewers asked for."""

from __future__ import annotations

from . import identities
from .evidence import TURNED, Record, between, site_mean
from .over_tasks import average_claim, every_claim
from .over_texts import bleu_claim, every_score_claim
from .reported import says
from .rows import Beyond, Claim, Compared, Exact

LORA, DELTA = ("delta", "LoRA"), ("delta", "Delta-LoRA λ = 0.5")
WET_LORA, WET_DELTA = ("delta", "LoRA, dropout 0.1"), ("delta", "Delta-LoRA, dropout 0.1")
STRONG = ("delta_strong", "Delta-LoRA λ = 2")
FT = ("delta", "FT‡ (W_q, W_v)")


def _turn(record: Record) -> float:
    """1 − cosine of W before and after, mean over matrices."""
    return 1 - site_mean("cosine")(record)


def _control(arm: tuple[str, str], other: tuple[str, str], what: str) -> Compared:
    return Compared("control", f"Delta-LoRA beats LoRA {what}", between(arm, other),
                    note="our control, not the paper's")


CLAIMS: tuple[Claim, ...] = (
    Compared("T1-T4", "Delta-LoRA beats LoRA", between(DELTA, LORA)),
    Compared("T1", "LoRA is a little below fine-tuning of W_q and W_v alone", between(LORA, FT), "<"),
    Beyond("T1", "on E2E it gains on all five metrics, and is the best of all rows", "GPT2-medium",
           says("Delta-LoRA: E2E")),
    Beyond("T2", "on WebNLG it gains BLEU, seen and unseen, METEOR and TER", "GPT2-medium",
           says("Delta-LoRA: WebNLG")),
    Beyond("T3", "on XSum it is the best of the parameter-efficient rows", "BART-large"),
    Beyond("T4", "on GLUE it is the best of the parameter-efficient rows, on all eight tasks", "RoBERTa-base",
           says("Delta-LoRA: GLUE"), "the two cells come from a secondary page"),
    Compared("T5", "with dropout, Delta-LoRA beats LoRA", between(WET_DELTA, WET_LORA)),
    Compared("T5", "Delta-LoRA is better without dropout than with it", between(DELTA, WET_DELTA)),
    Compared("T6", "Delta-LoRA with λ = 2 beats LoRA at three times the rate",
             between(STRONG, ("delta_strong", "LoRA, rate × 3"))),
    Compared("Fig. 3", "W turns further under Delta-LoRA than under LoRA: its cosine is lower",
             between(DELTA, LORA, _turn), unit="thousandths of 1 − cosine", scale=1000.0),
    Compared("Fig. 3", "fine-tuning of W_q and W_v turns W further than LoRA", between(TURNED, LORA, _turn),
             unit="thousandths of 1 − cosine", scale=1000.0),
    Compared("Fig. 3", "and less than Delta-LoRA", between(TURNED, DELTA, _turn), "<",
             unit="thousandths of 1 − cosine", scale=1000.0),
    Compared("appendix", "λ = 2 is better than λ = 0.5", between(("delta_lam", "2"), ("delta_lam", "0.5")),
             says=says("Delta-LoRA: λ")),
    Compared("appendix", "λ = 2 is better than λ = 5", between(("delta_lam", "2"), ("delta_lam", "5"))),
    Compared("appendix", "the gain does not depend on K once K is large: 25 % and 50 % of the steps differ by less "
             "than one point", between(("delta_K", "0.5"), ("delta_K", "0.25")), "≈", says("Delta-LoRA: K"), 1.0),
    _control(DELTA, ("delta", "LoRA, α × 1.5"), "at (1 + λ) α, for λ = 0.5"),
    _control(DELTA, ("delta", "LoRA, rate × 1.5"), "at (1 + λ) times the rate, for λ = 0.5"),
    _control(STRONG, ("delta_strong", "LoRA, α × 3"), "at (1 + λ) α, for λ = 2"),
    Exact("Alg. 1", "up to step K it is LoRA without dropout", identities.before_K_it_is_lora,
          "W and B of the first 50 steps, least squares", tolerance=0.0),
    Exact("Alg. 1", "λ = 0 is LoRA", identities.lambda_zero_is_lora, "120 steps, least squares", tolerance=0.0),
    Exact("Alg. 1", "the steps telescope: W_T − W_K = λ s (B_T A_T − B_K A_K)", identities.delta_telescopes,
          "W written step by step, least squares"),
    Exact("Alg. 1", "the whole change has rank 2 r at most", identities.delta_has_rank_2r,
          "r = 2, K = 50, least squares"),
    Exact("Alg. 1", "with K = 0 it is LoRA at (1 + λ) α", identities.delta_from_the_start_is_a_larger_scale,
          "120 steps of AdamW without ε and clipping, least squares"),
    average_claim("T4", "over tasks, Delta-LoRA beats LoRA, each at its best rate", "Delta-LoRA", "LoRA"),
    every_claim("T4", "Delta-LoRA beats LoRA on every one of the GLUE tasks tried", "Delta-LoRA", "LoRA"),
    average_claim("control", "over tasks, Delta-LoRA beats LoRA at (1 + λ) α and the same rate, for λ = 0.5",
                  "Delta-LoRA", "LoRA, α × 1.5", note="our control, not the paper's"),
    bleu_claim("T1", "on E2E, Delta-LoRA beats LoRA by BLEU, each at its best rate", "Delta-LoRA", "LoRA",
               says("Delta-LoRA: E2E")),
    every_score_claim("T1", "on E2E, Delta-LoRA beats LoRA by all five scores", "Delta-LoRA", "LoRA",
                      says("Delta-LoRA: E2E")),
    bleu_claim("control", "on E2E, Delta-LoRA beats LoRA at (1 + λ) α and the same rate by BLEU, for λ = 2",
               "Delta-LoRA", "LoRA, α × 3", note="our control, not the paper's"),
)

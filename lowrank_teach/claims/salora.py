"""Claims of SaLoRA (Hu et al. 2023, Mathematics 11(20), 4317)."""

from __future__ import annotations

import itertools

from . import identities
from .evidence import FULL, Arm, Record, between, each, last, log10, mean_rank, peak_memory, step_time
from .over_tasks import average_claim, every_claim
from .reported import says
from .rows import Beyond, Claim, Compared, Exact

ALL, LORA = ("salora_parts", "all parts"), ("salora_parts", "LoRA, all six")
FREE, LOOSE = ("salora_parts", "λ = 0"), ("salora_parts", "β = 0")
WIDE = ("up", "o", "v")


def _target(record: Record) -> float:
    return float(record["method"]["b"])


def _largest_fall(record: Record) -> float:
    """By how much λ ever falls from one step to the next."""
    return max([a - b for a, b in itertools.pairwise(record["series"]["lambda"][1])] + [0.0])


def _left_of_peak(record: Record) -> float:
    """The budget penalty at the end, as a share of its peak."""
    penalty = record["series"]["budget_penalty"][1]
    return float(penalty[-1] / max(penalty))


def _wide_less_others(record: Record) -> float:
    others = tuple({site.rpartition(".")[2] for site in record["ranks"]} - set(WIDE))
    return mean_rank(WIDE)(record) - mean_rank(others)(record)


def _against_lora(where: str, first: Arm, second: Arm, what: str, number: str = "–") -> Compared:
    """Fig. 4 at r = 8 and Fig. 5 at b = 0.5 are the setting of T1: the row says that its runs are counted there."""
    same = first in (("salora_r", "SaLoRA 8"), ("salora_b", "0.5"))
    return Compared(where, f"SaLoRA beats LoRA {what}", between(first, second), says=number,
                    note="the runs of T1 again" if same else "")


CLAIMS: tuple[Claim, ...] = (
    Compared("T1", "SaLoRA beats LoRA on the same six matrices, with half the directions", between(ALL, LORA)),
    Compared("T1", "half of the adapter's numbers are kept, give or take 5 %",
             each(ALL, last("kept_density"), _target, "share kept"), "≈", says("SaLoRA: kept"), 5.0,
             "% of the numbers"),
    Compared("T1", "SaLoRA beats full fine-tuning", between(("salora_parts", "all parts"), FULL)),
    Beyond("T1", "the gain is on every GLUE task", "RoBERTa-base and RoBERTa-large"),
    Exact("T1, T4", "at r = 8 on six matrices, 1.33 M and 3.54 M numbers, and 576 and 1152 gates",
          identities.salora_counts, "counted on RoBERTa's shapes", says("SaLoRA: counts")),
    Beyond("T2", "from negative to positive, accuracy is below StyIns and near the human reference", "LLaMA-7B",
           says("SaLoRA: style")),
    Beyond("T2", "perplexity is below that of systems made for one data set", "LLaMA-7B"),
    Beyond("T2", "from formal to informal, accuracy is below that of systems made for one data set", "LLaMA-7B",
           note="the text also says the opposite"),
    Compared("T3", "without λ the density ends below the target",
             each(FREE, last("density"), _target, "density at the end"), "<", says("SaLoRA: λ = 0"),
             unit="of the density", scale=1.0),
    Compared("T3", "without λ the score is slightly better", between(FREE, ALL)),
    Compared("T3", "without β the score is worse", between(LOOSE, ALL), "<"),
    Compared("T4", "a step takes 11 % longer than LoRA's on the same matrices, give or take 5",
             step_time("loop: SaLoRA all", "loop: LoRA all", 1.11), "≈", says("SaLoRA: time"), 5.0,
             "% of LoRA's time"),
    Compared("T4", "memory is about LoRA's, give or take 5 %", peak_memory("loop: SaLoRA all", "loop: LoRA all"), "≈",
             margin=5.0, unit="% of LoRA's peak", scale=1.0, note="of the whole process, weights and libraries"),
    *(_against_lora("Fig. 4", ("salora_r", f"SaLoRA {r}"), ("salora_r", f"LoRA {r}"), f"at starting rank {r}")
      for r in (2, 4, 8, 16)),
    *(Compared("Fig. 4", f"LoRA loses from rank {a} to {b} (it is not monotone in r if it does anywhere)",
               between(("salora_r", f"LoRA {b}"), ("salora_r", f"LoRA {a}")), "<")
      for a, b in ((2, 4), (4, 8), (8, 16))),
    *(_against_lora("Fig. 5", ("salora_b", b), LORA, f"at density {b}", says("SaLoRA: density"))
      for b in ("0.75", "0.5", "0.25", "0.125")),
    Exact("Fig. 6", "the expected density starts at 0.92", identities.density_starts_at_092,
          "P(g > 0) at log θ = 0, to the two digits printed", says("SaLoRA: start")),
    Compared("Fig. 6", "the expected density ends within 0.02 of the target",
             each(ALL, last("density"), _target, "density at the end"), "≈", says("SaLoRA: end"), 0.02,
             "of the density", 1.0),
    Compared("Fig. 6", "λ never falls", each(ALL, _largest_fall, name="largest fall of λ"), "≈", margin=1e-9, unit="",
             scale=1.0),
    *(Compared("Fig. 6", f"the penalty on {which} ends at about 10⁻³, within half a power of ten",
               each(ALL, log10(last(f"orth_{which}")), -3.0, f"log₁₀ of the penalty on {which}"), "≈",
               says("SaLoRA: orthogonality"), 0.5, "powers of ten", 1.0, "mean over matrices") for which in "AB"),
    Compared("Fig. 6", "the budget penalty ends under 5 % of its peak",
             each(ALL, _left_of_peak, 0.05, "left of the peak"), "<", unit="% of the peak"),
    Compared("Fig. 7", "W_up, W_o and W_v keep more directions than the other three",
             each(ALL, _wide_less_others, name="these three less the others"), unit="directions", scale=1.0),
    Beyond("Fig. 7", "layers 4 to 7 keep more directions", "RoBERTa-base",
           note="its twelve layers; stored studies use three"),
    Exact("Section 3.3", "a gate is dropped exactly where P(g > 0) < ½", identities.pruned_exactly_below_one_half,
          "4000 values of log θ from −6 to 6"),
    average_claim("T1", "over tasks, SaLoRA beats LoRA on the same six matrices, each at its best rate", "SaLoRA",
                  "LoRA, all six"),
    every_claim("T1", "the gain over LoRA is on every one of the GLUE tasks tried", "SaLoRA", "LoRA, all six"),
)

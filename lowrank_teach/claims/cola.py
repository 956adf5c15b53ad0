"""Claims of COLA (Xia, Qin and Hazan 2024, arXiv 2401.04151)."""

from __future__ import annotations

from functools import partial

from . import identities
from .evidence import between, spread
from .over_tasks import average_claim, most_claim
from .reported import says
from .rows import Beyond, Claim, Compared, Exact

_COMPLETION = "matrix completion in three units of measurement, exact answers"
LORA, TWO, THREE = ("chain", "1"), ("chain", "2"), ("chain", "3")


def _second_rank(r: int) -> Compared:
    return Compared("Fig. 3, T3", f"with a second link of rank {r}, the chain beats LoRA of rank 8",
                    between(("step_down", str(r)), LORA))


CLAIMS: tuple[Claim, ...] = (
    Compared("T1, T2", "a chain of 2 beats LoRA at equal epochs", between(TWO, LORA),
             says=says("COLA: gains"), note="third-party re-runs: better in 9 of 20 settings, worse in 11"),
    Compared("T1, T2", "a chain of 3 beats LoRA at equal epochs", between(THREE, LORA)),
    Beyond("T1", "the largest gain of OPT-1.3B is on WSC", "OPT-1.3B", says("COLA: WSC")),
    Beyond("T2", "Llama2-7B gains on RTE", "Llama2-7B", says("COLA: RTE, Llama2")),
    Beyond("T2", "Llama2-7B ties on SST-2", "Llama2-7B", says("COLA: SST-2, Llama2")),
    Compared("Fig. 2", "the score rises again from a chain of 2 to one of 3", between(THREE, TWO)),
    Compared("Fig. 2", "scores of a chain of 2 scatter less over seeds than LoRA's", spread(TWO, LORA), "<",
             unit="points of scatter", note="distances from the median over seeds are compared"),
    Compared("Fig. 2", "scores of a chain of 3 scatter less over seeds than LoRA's", spread(THREE, LORA), "<",
             unit="points of scatter", note="distances from the median over seeds are compared"),
    *(_second_rank(r) for r in (2, 4, 6, 8)),
    Beyond("Fig. 3, T3", "CB and WSC gain with a larger second rank; WIC peaks at 4 and loses at 2", "OPT-1.3B"),
    Exact("T4", "training FLOPs fall with the second rank and never exceed LoRA's",
          identities.flops_fall_with_the_second_rank, "counted from the shapes, both links' steps averaged"),
    Exact("Alg. 1", "tying a knot and adding a link leave the function as it was",
          identities.knot_keeps_the_function, "outputs before and after two knots"),
    Exact("Section 3", "three links of rank 2 reach rank 6 together",
          identities.chain_reaches_the_sum_of_ranks, "rank of the whole change, random links"),
    Exact("Section 3", "each link trains as many numbers as LoRA of its rank",
          identities.link_trains_what_lora_trains, "parameters counted before and after each knot"),
    Exact("Theorem", "Frank-Wolfe's average gap stays under 2 D √(M β / T), which the proof gives",
          partial(identities.frank_wolfe_gap, "of the proof"), _COMPLETION, tolerance=0.0),
    Exact("Theorem", "it stays under 2 √(M β D) / √T, as printed", partial(identities.frank_wolfe_gap, "as printed"),
          _COMPLETION + "; D is misplaced", tolerance=0.0),
    average_claim("T1, T2", "over tasks, a chain of 2 beats LoRA, each at its best rate", "COLA", "LoRA",
                  says("COLA: gains")),
    most_claim("T1, T2", "a chain of 2 beats LoRA on more than half of the tasks", "COLA", "LoRA"),
)

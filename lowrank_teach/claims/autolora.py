"""Claims of AutoLoRA (Zhang et al. 2024, NAACL, arXiv 2403.09113), and the control it lacks."""

from __future__ import annotations

import random
import statistics

from . import identities
from .evidence import FULL, Record, Value, between, each, mean_rank, ratio, seconds
from .over_tasks import average_claim, most_claim
from .over_texts import bleu_claim, every_score_claim
from .reported import says
from .rows import Beyond, Claim, Compared, Exact

AUTO, LORA = ("autolora_parts", "AutoLoRA"), ("autolora_parts", "LoRA, r = 4")
BESIDE, ADA = ("adalora", "AutoLoRA"), ("adalora", "AdaLoRA, 8 to 4")   # trained in turns: their seconds compare


DEALS = 2000


def _by_chance(value: Value) -> Value:
    """The mean of `value` over the same run with its ranks dealt to its matrices at random: what no search gives."""
    def chance(record: Record) -> float:
        sites, dealer = list(record["ranks"]), random.Random(0)
        ranks = list(record["ranks"].values())
        dealt = [dict(zip(sites, dealer.sample(ranks, len(ranks)), strict=True)) for _ in range(DEALS)]
        return statistics.fmean(value({"ranks": one}) for one in dealt)

    return chance


def _ranks(record: Record, letter: str) -> list[int]:
    """Ranks of one matrix, layer by layer."""
    return [r for site, r in sorted(record["ranks"].items()) if site.endswith(f".{letter}")]


def _between_blocks(record: Record) -> float:
    """Standard deviation of ranks over layers, averaged over q and v."""
    return statistics.fmean(statistics.pstdev(_ranks(record, letter)) for letter in "qv")


def _between_q_and_v(record: Record) -> float:
    pairs = zip(_ranks(record, "q"), _ranks(record, "v"), strict=True)
    return statistics.fmean(abs(q - v) for q, v in pairs)


def _share_of_a_grid(record: Record) -> float:
    return seconds(record) / (16 * record["seconds"]["training"])


def _ablation(arm: str, what: str, note: str = "") -> Compared:
    return Compared("T4" if not note else "control", f"the search beats {what}",
                    between(AUTO, ("autolora_parts", arm)), note=note)


CLAIMS: tuple[Claim, ...] = (
    Compared("T1", "AutoLoRA beats LoRA of rank 4", between(AUTO, LORA), says=says("AutoLoRA: GLUE")),
    Compared("T1", "AutoLoRA beats AdaLoRA", between(BESIDE, ADA), note="AdaLoRA from rank 8 to 4 on average"),
    Compared("T1", "AutoLoRA is comparable with full fine-tuning", between(("autolora_parts", "AutoLoRA"), FULL), "≈",
             margin=1.0, note="our reading: within one point"),
    Beyond("T1", "it is the best on six of eight GLUE tasks", "RoBERTa-base", says("AutoLoRA: best")),
    Beyond("Fig. 2", "it is above all baselines on MRPC, QQP and SST-2", "RoBERTa-large"),
    Beyond("T2", "it is the best on all five metrics of E2E, and equal or better on WebNLG's three", "GPT2-medium"),
    Beyond("T3", "it has the best F1 on BioNLP", "RoBERTa-base"),
    _ablation("η = 0", "its own with η = 0, which looks at the present weights only"),
    _ablation("no constraint", "its own without the constraint that α sums to one"),
    _ablation("sigmoid", "its own with a sigmoid for each α"),
    _ablation("ranks dealt at random", "its own ranks dealt out at random", "our control, not the paper's"),
    Compared("T5", "search and training cost slightly more than AdaLoRA: up to one half more",
             ratio(BESIDE, ADA, seconds, 1.25), "≈", says("AutoLoRA: cost"), 25.0, "% of AdaLoRA's time",
             note="our reading of “slightly”: between 0 and 50 %"),
    Compared("T5", "search and training cost less than a grid of 16 LoRA trainings",
             each(AUTO, _share_of_a_grid, 1.0, "of the grid's time"), "<", unit="% of the grid",
             note="a grid counted as 16 times AutoLoRA's own retraining"),
    Compared("Fig. 3", "ranks differ between blocks, more than the same ranks dealt at random do",
             each(AUTO, _between_blocks, _by_chance(_between_blocks), "spread of ranks over blocks"),
             unit="directions", scale=1.0, note="less what dealing gives: any list of unequal ranks differs"),
    Compared("Fig. 3", "ranks differ between W_q and W_v, more than the same ranks dealt at random do",
             each(AUTO, _between_q_and_v, _by_chance(_between_q_and_v), "|q − v|"),
             unit="directions", scale=1.0, note="less what dealing gives: any list of unequal ranks differs"),
    Compared("code", "ranks average 3.6 at k = 8, give or take 0.6", each(AUTO, mean_rank(), 3.6, "mean rank"), "≈",
             says("AutoLoRA: lists"), 0.6, "directions", 1.0, "the band of the lists printed in the authors' code"),
    Exact("Section 3.3", "softmax ranks lie in 1 .. k: none is ever 0", identities.softmax_ranks_stay_inside,
          "500 random β of five sizes"),
    Exact("eq. 8", "the finite difference is the unrolled hypergradient",
          identities.finite_difference_is_the_unrolled, "a pair of least-squares losses, radius 10⁻⁴",
          tolerance=1e-6),
    Exact("T4", "η = 0 differs from the exact hypergradient in proportion to η: hardly, at the paper's rate",
          identities.second_order_vanishes_with_eta, "the same losses, η = 10⁻⁴ against twice that", tolerance=0.01),
    Exact("code", "the authors' code weighs the second-order part by 1 in place of η, 1/η times as much",
          identities.code_weighs_by_one, "the same losses, η = 10⁻³", tolerance=1e-9),
    Exact("T1", "LoRA r = 4 on q and v trains 147 456 numbers, the lists in the code 110 592 to 152 064",
          identities.autolora_counts, "counted on RoBERTa-base's shapes"),
    average_claim("T1", "over tasks, AutoLoRA beats LoRA of rank 4", "AutoLoRA", "LoRA, r = 4",
                  says("AutoLoRA: GLUE")),
    most_claim("T1", "AutoLoRA beats LoRA of rank 4 on more than half of the tasks", "AutoLoRA", "LoRA, r = 4",
               says("AutoLoRA: best"), "the paper: best of all methods on six of eight"),
    bleu_claim("T2", "on E2E, AutoLoRA beats LoRA of rank 4 by BLEU, each at its best rate", "AutoLoRA", "LoRA"),
    every_score_claim("T2", "on E2E, AutoLoRA beats LoRA of rank 4 by all five scores", "AutoLoRA", "LoRA"),
)

"""Delta-LoRA (Zi et al. 2023, arXiv 2309.02411): E2E (table 1) and WebNLG (table 2) with GPT-2 medium, XSum with
BART-large (table 3), GLUE with RoBERTa-base (table 4). It names λ and K, and for all else the configuration of
LoRA's or of AdaLoRA's authors, which is read from their scripts.
"""

from __future__ import annotations

from . import lora
from .cell import Preset
from .setting import Setting, code, ours, paper

ADALORA = "AdaLoRA's script for XSum (QingruZhang/AdaLoRA), whose configuration the paper takes"
METHOD: dict[str, Setting] = {
    "sites": paper("qv"), "lora_dropout": paper(0.0, "no dropout on the branch"), "init": paper("kaiming"),
    "form": paper("in_place", "W is written at every step; the lazy form is the same function"),
}
REPORTED = {
    "e2e": ({"gain over LoRA: BLEU": "+1.24", "gain over LoRA: NIST": "+0.13", "gain over LoRA: METEOR": "+0.86",
             "gain over LoRA: ROUGE-L": "+1.13", "gain over LoRA: CIDEr": "+0.08"}, "text on table 1"),
    "webnlg": ({"gain over LoRA: BLEU Seen": "+0.79", "gain over LoRA: BLEU Unseen": "+1.08",
                "gain over LoRA: BLEU All": "+0.91", "gain over LoRA: METEOR All": "+0.01",
                "gain over LoRA: TER All": "0.02"}, "text on table 2"),
    "mrpc": ({"acc": "90.19"}, "a secondary page on table 4"),
    "sst2": ({"acc": "95.1"}, "a secondary page on table 4"),
}


def _generation(task: str, table: str) -> Preset:
    r = ours(4, "not given; LoRA's configuration, which it takes, has r = 4 (its reviewers speak of rank 8 only)")
    alpha = code(32.0, lora.SCRIPT)
    reported, where = REPORTED[task]
    training = {**lora.E2E, "lr": paper(2e-4, "of its ablations on E2E, and LoRA's"),
                "epochs": paper(5.0, "of its ablations on E2E, and LoRA's")}
    webnlg = {"warmup": code(500 / 11315, f"500 of 11,315 steps, {lora.SCRIPT}")} if task == "webnlg" else {}
    dropout = code(0.1, lora.SCRIPT)
    return Preset(
        f"delta_lora/gpt2-medium/{task}", table, task,
        {**METHOD, "lam": paper(2.0), "K": paper(500), "r": r, "lora_alpha": alpha, **training, **webnlg},
        seeds=ours((0, 1, 2, 3, 4), "not given: no spread is printed"), reported=reported, reported_source=where,
        baselines={"lora": {"r": r, "lora_alpha": alpha, "sites": paper("qv"), "lora_dropout": dropout}},
        differs=("the printed text counts 21,855 training triples; here 18,102 pairs of input and reference",
                 ) if task == "webnlg" else ())


_XSUM = Preset(
    "delta_lora/bart-large/xsum", "table 3, XSum", "xsum",
    {**METHOD, "lam": paper(0.5), "K": paper(1000),
     "sites": ours("qv", "given for GPT-2 and RoBERTa; AdaLoRA's configuration adapts all six matrices"),
     "r": code(8, f"the budget in {ADALORA}"), "lora_alpha": code(32.0, ADALORA), "lr": code(5e-4, ADALORA),
     "epochs": code(25.0, ADALORA), "batch_size": code(64, f"8 rows on each of 8 devices, {ADALORA}"),
     "warmup": code(3000 / 79725, f"3,000 of 79,725 steps, {ADALORA}"), "max_length": code(768, ADALORA),
     "weight_decay": code(0.0, f"none is named in {ADALORA}"),
     "max_grad_norm": ours(0.0, f"none is named in {ADALORA}"),
     "num_beams": code(8, ADALORA), "n_written": paper(None, "scores are over all test articles")},
    seeds=ours((0, 1, 2, 3, 4), "not given: no spread is printed"))


def _glue(task: str, row: lora.Glue) -> Preset:
    shared = {"r": code(8, lora.SCRIPT), "lora_alpha": code(16.0, lora.SCRIPT), "sites": paper("qv")}
    reported, where = REPORTED.get(task, ({}, ""))
    return Preset(
        f"delta_lora/roberta-base/{task}", "table 4, GLUE", task,
        {**METHOD, **shared, **row.settings(), "lam": paper(0.5), "K": paper(0.06, "the steps of the warm-up, 6 %"),
         "max_length": paper(256, "256 in place of LoRA's 512")},
        seeds=ours((0, 1, 2, 3, 4), "not given: no spread is printed"), reported=reported, reported_source=where,
        baselines={"lora": shared}, differs=lora.differs(task))


PRESETS = [_generation("e2e", "table 1, E2E"), _generation("webnlg", "table 2, WebNLG"), _XSUM,
           *(_glue(task, row) for task, row in lora.GLUE["roberta-base"].items())]

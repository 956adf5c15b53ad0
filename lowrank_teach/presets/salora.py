"""SaLoRA (Hu et al. 2023, Mathematics 11(20), 4317): GLUE with RoBERTa (table 1); LLaMA-7B trained on Alpaca, then
asked to change a text's style (table 2). Per-task rates, epochs and α were not found; where the paper names no
value of the training we take that of LoRA's scripts for the same cell.
"""

from __future__ import annotations

from dataclasses import replace

from . import lora
from .cell import Preset
from .setting import Setting, ours, paper

AS_LORA = "not given; as LoRA's script for this cell"
RATES = (8e-5, 3e-5, 1e-4, 3e-4, 8e-4, 1e-3)
COUNTS = {"roberta-base": ("1.33M, and 576 gates", 1_327_104), "roberta-large": ("3.54M, and 1152 gates", 3_538_944)}
SHARED: dict[str, Setting] = {
    "r": paper(8), "lora_alpha": ours(16.0, "not given; 2r, so that s = 2 as in LoRA's GLUE scripts"),
    "lora_dropout": ours(0.0, "not given"),
}
METHOD: dict[str, Setting] = {
    **SHARED, "sites": paper("all", "Q, K, V, O, U, D"),
    "init": ours("unit_rows", "\"Gaussian\", with no scale; 1/√k gives A Aᵀ ≈ I, which the penalty asks for"),
    "b": paper(0.5), "beta": paper(0.1), "eta_c": paper(0.01, "one rate for gates and λ"),
    "t_start": ours(0.0, "the window's length is given, not its place; the text has 70 % of plain training"),
    "t_end": paper(0.3, "the window is 30 % of the training"),
    "tau": paper(1.0), "gamma": paper(-0.1), "zeta": paper(1.1),
    "gate_betas": ours((0.0, 0.999), "not given; with Adam's usual 0.9 momentum carries the density past b"),
    "lambda_betas": ours((0.9, 0.9), "not given; with Adam's usual 0.999 the ascent stalls"),
    "ascent": ours("adam", "\"gradient ascent\"; with plain SGD λ hardly moves"),
    "orthogonality": ours("mean", "a sum in the text; at B = 0 it would drown the task loss, at 57.6"),
}


def _glue(backbone: str, task: str, row: lora.Glue) -> Preset:
    training = {name: replace(setting, kind="ours", source=AS_LORA) for name, setting in row.settings().items()}
    training |= {"lr": ours(3e-4, "one of six rates that the paper searched over; which, is not given"),
                 "batch_size": ours(32, "32 is the batch of its table on cost; for scores none is given")}
    return Preset(
        f"salora/{backbone}/{task}", "table 1, GLUE", task, {**METHOD, **training},
        seeds=ours((0, 1, 2, 3, 4), "not given"), counts=COUNTS[backbone], grid={"lr": RATES},
        baselines={"lora": {**SHARED, "sites": paper("all", "as many parameters as SaLoRA's: 1.33M, 3.54M")}},
        differs=lora.differs(task, begins_from_adapter=False))


_ALPACA: dict[str, Setting] = {
    **METHOD, "sites": paper(("q", "k", "v", "o", "up", "down"), "Q, K, V, O, U, D: not LLaMA's gate projection"),
    "lr": ours(3e-4, "one of six rates that the paper searched over; which, is not given"),
    "epochs": ours(3.0, "not given; what Alpaca's own recipe trains"),
    "batch_size": ours(128, "not given; what Alpaca's own recipe takes"),
    "accumulation": ours(16, "so that 8 rows are in memory at a time; changes no number"),
    "max_length": ours(512, "not given; what Alpaca's own recipe takes"),
    "weight_decay": ours(0.0, "not given"), "warmup": ours(0.03, "not given; what Alpaca's own recipe takes"),
    "n_written": ours(None, "all test inputs"),
    "base_dtype": ours("bfloat16", "not given; so that 7B fits on one card"),
    "gradient_checkpointing": ours(True, "not given; so that 7B fits on one card; changes no number"),
}


def _llama(task: str) -> Preset:
    return Preset(
        f"salora/llama-7b/{task}", "table 2, LLaMA-7B: Alpaca, then style transfer untrained", task, _ALPACA,
        seeds=ours((0,), "not given"), grid={"lr": RATES}, train_rows=36_232,
        differs=("50K cleaned instructions in the paper; here 70 % of the 51,760 published ones, as the rest is held "
                 "out",))


PRESETS = [*(_glue(backbone, task, row) for backbone, rows in lora.GLUE.items() for task, row in rows.items()),
           *(_llama(task) for task in ("alpaca", "yelp-transfer", "gyafc-transfer", "gyafc-music-transfer"))]

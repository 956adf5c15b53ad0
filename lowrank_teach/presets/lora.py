"""LoRA (Hu et al. 2021, arXiv 2106.09685): GLUE with RoBERTa (table 2), E2E with GPT-2 medium (table 3).

Read from microsoft/LoRA@c4593f0: its scripts, and the two tables as pictures. GLUE's configuration is the one that
Delta-LoRA says it takes, and that we take where SaLoRA gives none.
"""

from __future__ import annotations

from dataclasses import dataclass

from .cell import Preset
from .setting import Setting, code, ours, paper

SCRIPT = "LoRA's script (microsoft/LoRA@c4593f0)"
ADAPTER = ("LoRA's scripts begin MRPC, RTE and STS-B from an adapter trained on MNLI; here it is from the pretrained "
           "weights, so that the printed number is not comparable")
MNLI = "the printed accuracy is over matched and mismatched rows; here over the matched ones"
TRAINER = "not given; what transformers' Trainer does, which the scripts use"


@dataclass(frozen=True)
class Glue:
    """One row of the scripts: batch on each device, devices, peak rate, epochs, tokens; the printed score."""

    device_batch: int
    devices: int
    lr: float
    epochs: int
    max_length: int
    score: str

    def settings(self) -> dict[str, Setting]:
        """What the scripts say of the training."""
        where = f"{self.device_batch} rows on each of {self.devices} devices, {SCRIPT}"
        return {"batch_size": code(self.device_batch * self.devices, where), "lr": code(self.lr, SCRIPT),
                "epochs": code(float(self.epochs), SCRIPT), "max_length": code(self.max_length, SCRIPT),
                "weight_decay": code(0.1, SCRIPT), "warmup": code(0.06, SCRIPT),
                "max_grad_norm": ours(1.0, TRAINER), "head_lr": ours(None, "not given; the rate of the branches")}


GLUE: dict[str, dict[str, Glue]] = {
    "roberta-base": {
        "mnli": Glue(16, 8, 5e-4, 30, 512, "87.5 ± .3"), "sst2": Glue(16, 8, 5e-4, 60, 512, "95.1 ± .2"),
        "mrpc": Glue(16, 8, 4e-4, 30, 512, "89.7 ± .7"), "cola": Glue(32, 2, 4e-4, 80, 512, "63.4 ± 1.2"),
        "qnli": Glue(32, 8, 4e-4, 25, 512, "93.3 ± .3"), "qqp": Glue(16, 8, 5e-4, 25, 512, "90.8 ± .1"),
        "rte": Glue(32, 8, 5e-4, 80, 512, "86.6 ± .7"), "stsb": Glue(16, 8, 4e-4, 40, 512, "91.5 ± .2"),
    },
    "roberta-large": {
        "mnli": Glue(4, 8, 3e-4, 10, 128, "90.6 ± .2"), "sst2": Glue(8, 8, 4e-4, 10, 512, "96.2 ± .5"),
        "mrpc": Glue(4, 8, 3e-4, 20, 512, "90.9 ± 1.2"), "cola": Glue(4, 8, 3e-4, 20, 128, "68.2 ± 1.9"),
        "qnli": Glue(4, 8, 2e-4, 10, 512, "94.9 ± .3"), "qqp": Glue(4, 8, 3e-4, 20, 512, "91.6 ± .1"),
        "rte": Glue(8, 8, 4e-4, 20, 512, "87.4 ± 2.5"), "stsb": Glue(4, 8, 3e-4, 10, 128, "92.6 ± .2"),
    },
}  # fmt: skip
METRIC = {"mnli": "acc (overall m/mm)", "cola": "MCC", "stsb": "Pearson"}  # where it is not "acc"

# what the authors' command trains and writes E2E with; Delta-LoRA takes it over
E2E: dict[str, Setting] = {
    "lr": code(2e-4, SCRIPT), "epochs": code(5.0, SCRIPT), "batch_size": code(8, SCRIPT),
    "weight_decay": code(0.01, SCRIPT), "warmup": code(500 / 26290, f"500 of 26,290 steps, {SCRIPT}"),
    "max_grad_norm": code(0.0, f"no clipping, {SCRIPT}"), "max_length": code(512, SCRIPT),
    "label_smoothing": code(0.1, SCRIPT), "num_beams": code(10, SCRIPT), "length_penalty": code(0.8, SCRIPT),
    "no_repeat_ngram_size": code(4, SCRIPT), "n_written": paper(None, "scores are over all test inputs"),
}


def differs(task: str, begins_from_adapter: bool = True) -> tuple[str, ...]:
    """How a GLUE task of a paper differs from ours."""
    from_adapter = begins_from_adapter and task in ("mrpc", "rte", "stsb")
    return (*([ADAPTER] if from_adapter else []), *([MNLI] if task == "mnli" else []))


def _glue(backbone: str, task: str, row: Glue) -> Preset:
    size, count = {"roberta-base": ("0.3M", 294_912), "roberta-large": ("0.8M", 786_432)}[backbone]
    return Preset(
        f"lora/{backbone}/{task}", "table 2, GLUE", task,
        {"r": code(8, SCRIPT), "lora_alpha": code(16.0, SCRIPT), "sites": paper("qv"),
         "lora_dropout": ours(0.0, "not given; the GLUE scripts name none"),
         "init": ours("kaiming", "\"Gaussian\" in the text; loralib, which the scripts use, draws Kaiming-uniform"),
         **row.settings()},
        seeds=ours((0, 1, 2, 3, 4), "not given in what was read; the scripts have seed 0"),
        reported={METRIC.get(task, "acc"): row.score}, reported_source="table 2 (LoRA_NLU.PNG)",
        counts=(size, count), differs=differs(task))


_E2E = Preset(
    "lora/gpt2-medium/e2e", "table 3, E2E", "e2e",
    {"r": code(4, SCRIPT), "lora_alpha": code(32.0, SCRIPT), "lora_dropout": code(0.1, SCRIPT), "sites": paper("qv"),
     "init": ours("kaiming", "as in loralib, which the command uses"), **E2E},
    seeds=code((110,), SCRIPT),
    reported={"BLEU": "70.4 ± .1", "NIST": "8.85 ± .02", "METEOR": "46.8 ± .2", "ROUGE-L": "71.8 ± .1",
              "CIDEr": "2.53 ± .02"}, reported_source="table 3 (LoRA_GPT2.PNG)", counts=("0.35M", 393_216))

PRESETS = [*(_glue(backbone, task, row) for backbone, rows in GLUE.items() for task, row in rows.items()), _E2E]

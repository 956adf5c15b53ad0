"""AutoLoRA (Zhang et al. 2024, NAACL, arXiv 2403.09113): GLUE with RoBERTa-base (table 1), three tasks of it with
RoBERTa-large (figure 2), E2E and WebNLG with GPT-2 medium (table 2), BioNLP (table 3).

What the text leaves open is read from the authors' code (ruz048/AutoLoRA), which has GLUE and BioNLP only; where
text and code differ, the text stands here.
"""

from __future__ import annotations

from . import lora
from .cell import Preset
from .setting import Setting, code, ours, paper

CODE = "the authors' code (ruz048/AutoLoRA)"
RETRAINING = f"of the training at the ranks found, {CODE}"
METHOD: dict[str, Setting] = {
    "r": paper(8, "k in the text"), "sites": paper("qv"), "lora_alpha": code(16.0, RETRAINING),
    "lora_dropout": code(0.1, RETRAINING), "init": ours("kaiming", "not given; peft's, which the code builds on"),
    "eta_beta": paper(1e-3), "split": paper(0.5, "1:1; the code has 70:30"),
    "constraint": paper("softmax"), "retrain": paper(True),
    "hypergradient": paper("finite_difference", "the second-order part is approximated; weight η, in the code 1"),
    "radius": code(0.01, f"Betty's, {CODE}"),
    "fixed_alpha": code(True, f"s = 16 / rank, so that it differs by matrix, {RETRAINING}"),
}
TRAINING: dict[str, Setting] = {
    "lr": paper(1e-4), "batch_size": paper(16), "warmup": code(0.06, RETRAINING), "max_length": code(512, CODE),
    "weight_decay": ours(0.01, "AdamW is named, its decay is not; torch's default"),
    "head_lr": ours(None, "not given; the rate of the branches"),
}
LORA: dict[str, Setting] = {
    "r": paper(4, "LoRA with about as many parameters"), "sites": paper("qv"),
    "lora_alpha": ours(16.0, "not given; as in the training at the ranks found"),
    "lora_dropout": code(0.1, RETRAINING),
}
SEARCH = "\"until convergence\"; 20 epochs in the code, over the half of the rows that weights are learned on"


def _preset(backbone: str, task: str, table: str, epochs: Setting, seen: dict[str, Setting] | None = None,
            **more: object) -> Preset:
    length = {"epochs": epochs, "search_steps": code(20 * 0.5 / epochs.value, SEARCH)}
    return Preset(f"autolora/{backbone}/{task}", table, task, {**METHOD, **TRAINING, **length, **(seen or {})},
                  seeds=ours((0, 1, 2, 3, 4), "not given"), baselines={"lora": LORA}, **more)  # type: ignore[arg-type]


def _glue(backbone: str, task: str, table: str) -> Preset:
    epochs = code(10.0 if task in ("qqp", "mnli") else 30.0, RETRAINING)
    return _preset(backbone, task, table, epochs, differs=lora.differs(task, begins_from_adapter=False))


_WRITING = ("num_beams", "length_penalty", "no_repeat_ngram_size", "n_written")
_GENERATED = {name: ours(lora.E2E[name].value, "not given; as LoRA's command") for name in _WRITING}
_BIONLP = {"batch_size": paper(32, "32 for tagging"),
           "max_length": ours(192, "not given; holds almost all rows whole")}

PRESETS = [
    *(_glue("roberta-base", task, "table 1, GLUE") for task in lora.GLUE["roberta-base"]),
    *(_glue("roberta-large", task, "figure 2, GLUE") for task in ("mrpc", "qqp", "sst2")),
    *(_preset("gpt2-medium", task, "table 2, " + name, ours(5.0, "not given; as LoRA's command"), _GENERATED)
      for task, name in (("e2e", "E2E"), ("webnlg", "WebNLG"))),
    _preset("roberta-base", "jnlpba", "table 3, BioNLP", code(30.0, f"of BioNLP, {CODE}"), _BIONLP,
            differs=("the paper says BioNLP, which is taken to be the shared task of 2004 (JNLPBA)",
                     "its code trains again at batch 64 and rate 1e-3, with all biases")),
]

"""Data to text, stored: LoRA, its control, Delta-LoRA and AutoLoRA on one causal model, and the texts they write.

    python -m lowrank_teach.texts e2e webnlg    # with LOWRANK_TEACH_DATA naming the folder of their rows

Every training is a run of the store; what it learned is then added to the pretrained matrices, and the test inputs
are written out greedily. The file of a task is written anew after each run, so an interrupted study keeps what it
has, and the same command goes on. Of the data only the samples are copied, with the licence beside them. What is
stored is read by `lowrank_teach.texts`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import slots, texts
from ..experiment import fit
from ..features import encode
from ..live import smooth
from ..methods import AutoLoRA, DeltaLoRA, LoRA, Method
from ..metrics import score
from ..models import load_backbone
from ..runs import Run, Store, machine
from ..sites import find_sites, matrix_of
from ..tasks import TaskData, load_task
from ..writing import Generation, generate

BACKBONE, PROFILE, UNTRAINED = "smollm2-135m", "laptop", "not trained"
# equal s = α/r everywhere but in the control; Delta-LoRA's closed form, since a small step of W rounds away in bf16
ARMS: dict[str, Method] = {
    "LoRA": LoRA(r=4, lora_alpha=8.0),
    "Delta-LoRA": DeltaLoRA(r=4, lora_alpha=8.0, lam=2.0, form="lazy"),
    "AutoLoRA": AutoLoRA(r=8, lora_alpha=16.0, search_steps=8, eta_beta=0.02),
    "LoRA, α × 3": LoRA(r=4, lora_alpha=24.0),
}
TRAINING: dict[str, Any] = {"steps": 60, "batch_size": 8, "lr": 2e-3, "n_train": 8000, "n_validation": 64,
                            "n_test": 64, "mixed_precision": "bf16"}
LICENCE = {"e2e": "E2E NLG Challenge (Novikova et al. 2017), CC BY-SA 4.0",
           "webnlg": "WebNLG Challenge 2017 (Gardent et al. 2017), CC BY-NC-SA 4.0"}
METRICS = {"e2e": ("bleu", "nist", "meteor", "rougeL", "cider", "ter"), "webnlg": ("bleu", "meteor", "ter")}
INPUTS, SAMPLES, BEAMS = 100, 12, (1, 2, 4)   # texts a run, shown with their inputs, widths tried on these


@torch.no_grad()
def deploy(model: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add what a run has learned to a pretrained model: W += left right at each site of the record."""
    matrices = {site.name: matrix_of(model, site) for site in find_sites(model)}
    for name, (left, right) in factors.items():
        matrices[name].add_((left @ right).to(matrices[name]))


@dataclass
class Inputs:
    """The first test inputs of a task, with all references of each."""

    data: TaskData
    count: int

    @cached_property
    def rows(self) -> Any:
        """One row an input, its references in the column "references"."""
        task, test = self.data.task, self.data.test
        if test is None:
            raise ValueError(f"{task.name} has no test rows to write texts for")
        wanted = test.groupby(task.group, sort=False)[task.label].agg(list)
        first = test.drop_duplicates(task.group).head(self.count).reset_index(drop=True)
        return first.assign(references=[wanted[group] for group in first[task.group]])

    @property
    def sources(self) -> list[str]:
        return self.rows[self.data.task.text[0]].tolist()

    @property
    def references(self) -> list[list[str]]:
        return self.rows["references"].tolist()

    @property
    def parts(self) -> list[str]:
        return self.rows[self.data.task.part].tolist() if self.data.task.part else []


class Writer:
    """A fresh model a run, its change added; the texts it writes for the inputs, and what they are worth."""

    def __init__(self, inputs: Inputs, backbone: str) -> None:
        self.inputs, self.task, self.backbone = inputs, inputs.data.task, backbone
        self.values = slots.value_lists(inputs.data.train[self.task.text[0]])
        self.left_out: dict[str, str] = {}   # metric -> why
        for name in METRICS[self.task.name]:
            try:
                score([name], ["a pub"], ["a pub by the river"], self.task)
            except ImportError as error:
                self.left_out[name] = str(error)

    def write(self, run: Run | None, count: int | None = None, num_beams: int = 1) -> list[str]:
        """One text an input, for the first `count` of them; a run of None is the pretrained model as it is."""
        model, tokenizer = load_backbone(self.backbone)
        if run is not None:
            deploy(model, run.factors)
        task = self.task
        rows = encode(self.inputs.rows.head(count or self.inputs.count), task, tokenizer,
                      causal=not model.config.is_encoder_decoder)
        return generate(model, rows, tokenizer, Generation(max_new_tokens=task.max_target, num_beams=num_beams))

    def judged(self, written: Sequence[str]) -> dict[str, Any]:
        """Scores over all inputs and by part, what they add up for each text, slot errors of each text."""
        references, names = self.inputs.references[:len(written)], self._names()
        found = score(names, written, references, self.task)
        parts = self.inputs.parts[:len(written)]
        for part in sorted(set(parts)):
            here = [i for i, one in enumerate(parts) if one == part]
            of_part = score(names, [written[i] for i in here], [references[i] for i in here], self.task)
            found |= {f"{name}.{part}": value for name, value in of_part.items()}
        sums = {name: texts.statistics(name, written, references).round(4).tolist() for name in names
                if name in texts.STATISTICS}
        checks = [slots.check(text, source, self.values)
                  for text, source in zip(written, self.inputs.sources, strict=False)]
        return {"scores": found, "statistics": sums,
                "slots": [[len(one.missing), one.made_up, one.slots] for one in checks]}

    def humans(self) -> dict[str, float]:
        """What the rule of `slots` says of the references themselves, as shares of the fields there are."""
        checks = [slots.check(text, source, self.values)
                  for source, many in zip(self.inputs.sources, self.inputs.references, strict=True) for text in many]
        fields = sum(one.slots for one in checks)
        return {"missing": sum(len(one.missing) for one in checks) / fields,
                "made_up": sum(one.made_up for one in checks) / fields}

    def _names(self) -> list[str]:
        return [name for name in METRICS[self.task.name] if name not in self.left_out]


def make(task: str, folder: Path | str | None = None, *, seeds: Sequence[int] = (0,), inputs: int = INPUTS,
         backbone: str = BACKBONE, arms: Mapping[str, Method] | None = None, beams: Sequence[int] = BEAMS,
         store: Store | None = None, on_run: Callable[[str, int, Mapping[str, float]], None] | None = None,
         **training: Any) -> texts.Texts:
    """Train every arm with every seed, write the test inputs out, keep scores and samples.

    Args:
        folder: where the file goes; None takes figures/data of the checkout.  inputs: test inputs written out.
        arms: name -> method; None takes ARMS.  beams: widths tried with the first arm of the first seed.
        training: fields of `TrainConfig` beside TRAINING.  on_run: told of each run's scores.

    Raises:
        ValueError: a task whose samples have no licence named here.  FileNotFoundError: its rows are not there.
    """
    if task not in LICENCE:
        raise ValueError(f"texts are stored for {', '.join(LICENCE)}, not for {task!r}")
    data = load_task(task)
    training = {**TRAINING, "max_length": data.task.max_length, **training}
    writer = Writer(Inputs(data, inputs), backbone)
    stored: dict[str, Any] = {"about": _about(writer, training, seeds), "records": [],
                              "samples": _samples(writer.inputs), "beams": {}}

    def keep(arm: str, seed: int, run: Run | None) -> None:
        written = writer.write(run)
        stored["records"].append({"arm": arm, "seed": seed, **_of_run(run), **writer.judged(written)})
        if seed == seeds[0]:
            for sample, text in zip(stored["samples"], written, strict=False):
                sample["texts"][arm] = text
                sample["checks"][arm] = asdict(slots.check(text, sample["source"], writer.values))
        _save(stored, texts.path_of(task, folder))
        if on_run is not None:
            on_run(arm, seed, stored["records"][-1]["scores"])

    keep(UNTRAINED, seeds[0], None)
    for seed in seeds:
        for arm, method in (arms or ARMS).items():
            run = fit(method, task, backbone, PROFILE, seed, progress=False, store=store, **training)
            keep(arm, seed, run)
            if not stored["beams"] and beams:
                stored["beams"] = {"arm": arm, "widths": [_at_width(writer, run, width) for width in beams]}
    _save(stored, texts.path_of(task, folder))
    return texts.load(task, folder)


def _about(writer: Writer, training: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    task, data = writer.task, writer.inputs.data
    folder = Path(writer.backbone)   # of a model in a folder, only its name
    return {"task": task.name, "licence": LICENCE[task.name], "source": data.source,
            "backbone": folder.name if folder.is_absolute() else writer.backbone,
            "profile": PROFILE, "training": training, "seeds": list(seeds), "inputs": len(writer.inputs.rows),
            "parts": writer.inputs.parts, "generation": {"num_beams": 1, "max_new_tokens": task.max_target},
            "human": writer.humans(), "left_out": writer.left_out, "machine": machine(),
            "command": f"python -m lowrank_teach.texts {task.name} --seeds {len(seeds)} "
                       f"--inputs {writer.inputs.count}"}


def _samples(inputs: Inputs) -> list[dict[str, Any]]:
    """The first few inputs; of a task with parts, as many of each."""
    parts = inputs.parts or [""] * len(inputs.sources)
    return [{"source": source, "references": references, "part": part, "texts": {}, "checks": {}}
            for source, references, part in zip(inputs.sources, inputs.references, parts, strict=True)][:SAMPLES]


def _of_run(run: Run | None) -> dict[str, Any]:
    if run is None:
        return {"method": {}, "series": {}, "seconds": {}, "parameters": {}, "ranks": {}, "validation": {}}
    last = int(run.seconds["steps.training"])   # without a search, and counted from the training's own start
    steps, values = smooth((range(1, last + 1), run.series("loss")[1][-last:]), width=5)
    return {"key": run.key, "commit": run.machine["commit"], "method": run.config["method"],
            "seconds": run.seconds, "parameters": run.parameters,
            "series": {"loss": [list(steps), [round(value, 4) for value in values]]}, "ranks": run.ranks,
            "validation": {"loss": run.metrics["validation"]["loss"]}}


def _at_width(writer: Writer, run: Run, width: int) -> dict[str, Any]:
    written = writer.write(run, SAMPLES, num_beams=width)
    judged = writer.judged(written)
    return {"num_beams": width, "scores": judged["scores"], "texts": written,
            "words": float(np.mean([len(text.split()) for text in written])), "slots": judged["slots"]}


def _save(stored: Mapping[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(stored, ensure_ascii=False) + "\n", encoding="utf-8")

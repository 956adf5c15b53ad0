"""R runs in one pass over one frozen network, against R steps of `peft`'s LoRA one after another.

Each replica is a whole LoRA run of the package's loop, with its own rows, optimizer, log and checks; `peft`'s step is
five plain lines. How time and memory grow with R is a least-squares line through the sizes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import lowrank_teach as lt
from lowrank_teach.training.replicas import BatchedPass, ReplicaState, share_weights

from .candidates import backbone, collate, make_rows, with_peft
from .growth import line
from .harness import Row, Settings, Step, in_turn, of_many, quartiles, weighed

TITLE = "Replicas"
SIZES, ON_CPU = (1, 4, 16, 64), (1, 4, 16)


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    on_cpu = s.device == "cpu"
    sizes = (1, 4) if s.quick else ON_CPU if on_cpu else SIZES
    s = dataclasses.replace(s, repeats=max(3, s.repeats // 2))
    made = {R: weighed(lambda R=R: together(s, R), s.device) for R in sizes}
    seconds = in_turn({"peft": with_peft(s, "qv"), **{str(R): step for R, (step, _) in made.items()}}, s)
    rows = []
    for R in sizes:
        aim = {1: None, 64: 15.0}.get(R, 1.0 if on_cpu else None)
        rows.append(of_many(f"{R} × peft LoRA / {R} replicas in one pass",
                            [R * a / b for a, b in zip(seconds["peft"], seconds[str(R)], strict=True)], "×", aim,
                            least=True))
    cost = {R: {"ms": 1000 * quartiles(seconds[str(R)])["median"], "MB": peak / 1e6} for R, (_, peak) in made.items()}
    rows += [Row(f"{name} with R", line(list(cost), [c[unit] for c in cost.values()]), f"{unit}/replica")
             for unit, name in (("ms", "time"), ("MB", "memory"))]
    return rows, {"cost": cost, "peft ms": 1000 * quartiles(seconds["peft"])["median"], "repeats": s.repeats}


def together(s: Settings, R: int) -> Step:
    """One step of R LoRA runs whose rates and ranks differ."""
    base, passes = backbone(s), BatchedPass()
    lanes = [ReplicaState(replica(s, base, i)) for i in range(R)]

    def step() -> None:
        passes.step(lanes)
        for lane in lanes:
            lane.trainer.outcome.history.clear()

    return step


def replica(s: Settings, base: torch.nn.Module, seed: int) -> lt.Trainer:
    model = backbone(s)
    share_weights(model, base, [name for name, _ in model.named_parameters() if name.startswith("classifier")])
    config = lt.train_config("gpu", steps=100_000, batch_size=s.rows, lr=1e-4 * (1 + seed))
    trainer = lt.Trainer(lt.adapt(model, lt.LoRA(r=s.r, lora_alpha=s.alpha), seed=seed),
                         make_rows(4 * s.rows, s.tokens), collate, config, seed=seed, cpu=s.device == "cpu")
    trainer.prepare()
    return trainer

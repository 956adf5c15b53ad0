"""What each of several processes does for test_distributed.py; its findings go to FOLDER/rank<number>.pt.

    torchrun --nproc_per_node 2 tests/ranks.py FOLDER MODEL
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from helpers import Stop, Watch, collate, collate_for, make_rows, rows_for, tiny

import lowrank_teach as lt
from lowrank_teach import cli
from lowrank_teach.adapters import adapt
from lowrank_teach.methods.autolora import KINDS
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.distributed import Team
from lowrank_teach.training.trainer import Trainer

METHODS = {
    "lora": lt.LoRA(r=4), "cola": lt.COLA(r=4, knots=(7, 14)),
    "cola-step-down": lt.COLA(ranks=(6, 4, 2), knots=(7, 14), keep_scaling=False),
    "salora": lt.SaLoRA(r=4, eta_c=0.5, t_start=3, t_end=15),
    # slow gates: Adam without momentum divides a gradient that is all rounding by its own size
    "salora-slow": lt.SaLoRA(r=4, b=0.9, eta_c=0.02, t_start=3, t_end=15), "delta_lora": lt.DeltaLoRA(r=4, K=5),
    "delta_lora-lazy": lt.DeltaLoRA(r=4, K=5, form="lazy"),
    **{f"autolora-{kind}": lt.AutoLoRA(r=4, eta_beta=0.05, hypergradient=kind) for kind in KINDS},
    "cola+salora": lt.compose(lt.COLA(knots=(10,)), lt.SaLoRA(r=4, eta_c=0.5, t_start=1, t_end=9)),
}
PAPERS = ("lora", "cola", "salora-slow", "delta_lora", "autolora-unrolled")
ROWS = 65   # in batches of 8 the last of an epoch has one row: too few for two processes


WORDS = {"causal": ("delta_lora", "llama"), "causal, a search": ("autolora-first_order", "gpt2"),
         "tagging": ("lora", "bert"), "seq2seq": ("lora", "t5")}   # by head: a method, a family


def make(name: str, batch_size: int, dtype: torch.dtype = torch.float64, dropout: float = 0.0,
         **settings: Any) -> Trainer:
    """A trainer of 20 steps; settings of TrainConfig or of Trainer."""
    own = {key: settings.pop(key) for key in ("callbacks", "evaluate", "checkpoint") if key in settings}
    model = tiny("bert", dtype=dtype, labels=3, dropout=dropout)
    config = TrainConfig(**{"steps": 20, "batch_size": batch_size, "lr": 1e-2, **settings})
    return Trainer(adapt(model, METHODS[name], seed=0), make_rows(ROWS, labels=3), collate, config, cpu=True,
                   identity=name, **own)


def words(name: str, batch_size: int) -> Trainer:
    """A trainer of six steps in micro-batches; each word has a label, a third of the rows none that counts."""
    (method, kind), head = WORDS[name], name.split(",")[0]
    rows = rows_for(head, ROWS, labels=3)
    for i, row in enumerate(rows):
        if head == "causal":
            row["labels"] = row["input_ids"]
        if i % 3 == 0:
            row["labels"] = [row["labels"][0] if head == "causal" else -100, *[-100] * (len(row["labels"]) - 1)]
    config = TrainConfig(steps=6, batch_size=batch_size, accumulation=4, lr=1e-2, max_grad_norm=0.0)
    model = tiny(kind, dtype=torch.float64, labels=3, head=head)
    return Trainer(adapt(model, METHODS[method], seed=0), rows, collate_for(head), config, cpu=True, identity=name)


def result(trainer: Trainer) -> dict[str, Any]:
    """Train; all that is compared."""
    outcome = trainer.run()
    return {"state": {k: v.clone() for k, v in trainer.adapters.model.state_dict().items()},
            "history": outcome.history, "following": repr(outcome.following), "step": outcome.step}


def resumed(folder: Path) -> dict[str, Any]:
    """With dropout: a run, and one that a callback stops after step 7 and that is taken up again."""
    settings = {"dropout": 0.2, "batch_size": 4}
    whole = result(make("salora", **settings))
    path = folder / "run.safetensors"
    stopped = result(make("salora", **settings, checkpoint=path, callbacks=[Stop(7)]))
    return {"whole": whole, "stopped": stopped["step"],
            "again": result(make("salora", **settings, checkpoint=path)), "noise": noise(make("salora", **settings))}


def noise(trainer: Trainer) -> list[float]:
    """What dropout would draw first."""
    trainer.prepare()
    return torch.rand(3).tolist()


def evaluated() -> dict[str, Any]:
    """Who evaluates, who hears of it, and what all then know."""
    calls, heard = [], []

    def evaluate(model: Any) -> dict[str, float]:
        calls.append(1)
        return {"accuracy": (0.2, 0.9, 0.5, 0.4)[len(calls) - 1]}

    trainer = make("lora", 4, evaluate=evaluate, eval_every=5, best=True,
                   callbacks=[Watch(lambda step, _: heard.append(step))])
    return {**result(trainer), "calls": len(calls), "heard": len(heard), "best": trainer.best[0]}


def failing() -> dict[str, str]:
    """What each process hears of: a loss that is nan on the second, an evaluation that fails on the first."""
    found = {}

    def broken(model: Any) -> dict[str, float]:
        raise ValueError("no rows to evaluate on")

    for name, trainer in (("loss", make("lora", 4)), ("evaluation", make("lora", 4, evaluate=broken, eval_every=2))):
        if name == "loss" and trainer.team.rank == 1:
            real = trainer.loss
            trainer.loss = lambda batch, at=None, real=real, t=trainer: real(batch, at) * (
                float("nan") if t.clock.step == 3 else 1.0)
        try:
            trainer.run()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def fitted(model: str) -> dict[str, Any]:
    """`fit` with four rows a process, twice."""
    options = {"steps": 12, "batch_size": 4, "n_train": 96, "progress": False}
    runs = [lt.fit(lt.LoRA(r=4), "rt", model, "tiny", 3, **options) for _ in range(2)]
    return {"keys": [run.key for run in runs], "metrics": [run.metrics for run in runs], "config": runs[0].config,
            "losses": [run.series("loss")[1] for run in runs], "processes": runs[0].machine["processes"]}


def main(folder: Path, model: str) -> None:
    torch.set_num_threads(1)
    found = {"float64": {name: result(make(name, 4)) for name in METHODS},
             "float32": {name: result(make(name, 4, torch.float32)) for name in PAPERS},
             "words": {name: result(words(name, 4)) for name in WORDS},
             "resumed": resumed(folder), "evaluated": evaluated(), "failing": failing(), "fitted": fitted(model)}
    sys.argv = ["lowrank-teach", "train", "lora", "--backbone", model, "--profile", "tiny", "--set", "steps=6",
                "--set", "batch_size=4", "--json"]
    cli.main()
    torch.save(found, folder / f"rank{Team.here().rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""The stored numbers behind the sliders of 10: a grid over rank and α, two ΔW, one set of gates, one search.

Twelve short trainings, kept in two small files under figures/data: 10_playground.json with its provenance, and
10_updates.safetensors with what is shown of a ΔW. So the page opens without training.

    playground.load()     # what is stored
    playground.train()    # the same again, on this machine
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from . import cuts
from .changes import FineTuned, fine_tune
from .comparison import made_on
from .course import references_folder
from .experiment import fit
from .gates import Stretch
from .live import Curve, smooth
from .methods import AutoLoRA, LoRA, SaLoRA
from .runs import Run, Store, machine

RANKS, ALPHAS = (1, 4, 16), (4.0, 16.0, 64.0)
SETTING: dict[str, Any] = {"task": "rt", "backbone": "minilm-l3", "profile": "laptop", "seed": 0}
STEPS = {"grid": 60, "gates": 100, "search": 100, "full": 100}
NUMBERS, UPDATES = "10_playground.json", "10_updates.safetensors"
CUT_SITES, BLOCK = ("0.q", "2.v", "2.up"), 40   # of the whole ΔW: these, and of each the corner that is shown

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]   # U (d, n), σ (n,), Vᵀ (n, k)


@dataclass(frozen=True)
class Stored:
    """What the explorers take.

    curves, losses: (r, α) -> smoothed training loss; validation loss.
    factors: site -> (left (d, R), right (R, k)) of the run at r = 16, α = 16.
    parts: site -> U, σ, Vᵀ of full fine-tuning's ΔW; of U and V only the first BLOCK rows are kept, the rest is 0.
    cut_scores, cut_halves: i -> accuracy with every ΔW cut to rank i, and half its 95 % interval.
    log_theta: site -> log θ (r,) when SaLoRA's window closed.  sizes: site -> (d, k).  stretch: its constants.
    alphas: site -> AutoLoRA's weights (k,) at the end of its search.  about: setting, steps, machine.
    """

    curves: Mapping[tuple[int, float], Curve]
    losses: Mapping[tuple[int, float], float]
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    parts: Mapping[str, Parts]
    cut_scores: Mapping[int, float]
    cut_halves: Mapping[int, float]
    log_theta: Mapping[str, list[float]]
    sizes: Mapping[str, tuple[int, int]]
    stretch: Stretch
    alphas: Mapping[str, np.ndarray]
    about: Mapping[str, Any]

    def line(self) -> str:
        """One sentence on where the numbers come from."""
        s, steps = self.about["setting"], self.about["steps"].values()
        return (f"stored for the sliders: {len(self.losses) + 3} runs, {s['backbone']} on {s['task']}, seed "
                f"{s['seed']}, {min(steps)} to {max(steps)} steps; "
                f"{made_on(self.about['machine'])}")


def load(folder: Path | str | None = None) -> Stored:
    """What is stored.

    Raises:
        FileNotFoundError: it has not been trained here.
    """
    folder = Path(folder or references_folder())
    if not (folder / NUMBERS).exists():
        raise FileNotFoundError("the sliders' numbers are not here; train them: lowrank_teach.playground.train()")
    d = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    tensors = {name: value.astype(float) for name, value in load_file(folder / UPDATES).items()}
    sites = dict.fromkeys(name.split("/")[1] for name in tensors if name.startswith("lora/"))
    keys = [(row["r"], row["alpha"]) for row in d["grid"]]
    sizes = {site: tuple(size) for site, size in d["sizes"].items()}
    return Stored(
        curves={key: tuple(row["loss"]) for key, row in zip(keys, d["grid"], strict=True)},
        losses={key: row["validation_loss"] for key, row in zip(keys, d["grid"], strict=True)},
        factors={site: (tensors[f"lora/{site}/left"], tensors[f"lora/{site}/right"]) for site in sites},
        parts={site: _padded(tensors, site, sizes[site]) for site in CUT_SITES},
        cut_scores={cut["i"]: cut["score"] for cut in d["cuts"]},
        cut_halves={cut["i"]: 1.96 * (cut["score"] * (1 - cut["score"]) / cut["rows"]) ** 0.5 for cut in d["cuts"]},
        log_theta=d["log_theta"], sizes=sizes, stretch=Stretch(**d["stretch"]),
        alphas={site: np.array(alpha) for site, alpha in d["alphas"].items()},
        about={key: d[key] for key in ("setting", "steps", "machine")})


def _padded(tensors: Mapping[str, np.ndarray], site: str, size: tuple[int, ...]) -> Parts:
    """U and Vᵀ in their own sizes, 0 outside the corner that is kept."""
    u, s, vh = (tensors[f"full/{site}/{name}"] for name in ("u", "s", "vh"))
    return np.pad(u, ((0, size[0] - len(u)), (0, 0))), s, np.pad(vh, ((0, 0), (0, size[1] - vh.shape[1])))


def train(folder: Path | str | None = None, *, store: Store | None = None,
          on_run: Callable[[Run], None] = lambda run: None, **training: Any) -> Stored:
    """Train all of them, or find the runs that were, and write both files; training: fields of `TrainConfig`."""
    folder = Path(folder or references_folder())

    def one(method: Any, part: str) -> Run:
        run = fit(method, **SETTING, progress=False, store=store, **{"steps": STEPS[part], **training})
        on_run(run)
        return run

    grid = {(r, alpha): one(LoRA(r=r, lora_alpha=alpha), "grid") for r in RANKS for alpha in ALPHAS}
    gated = SaLoRA(eta_c=0.1, t_start=0.05, t_end=0.9)
    salora, autolora = one(gated, "gates"), one(AutoLoRA(search_steps=0.25, eta_beta=0.01), "search")
    full = fine_tune(**SETTING, **{"steps": STEPS["full"], "lr": cuts.LR, "weight_decay": 0.0, **training})
    lora = {f"lora/{site}/{side}": factor for site, pair in grid[16, 16.0].factors.items()
            for side, factor in zip(("left", "right"), pair, strict=True)}
    save_file({name: tensor.to(torch.float16).contiguous() for name, tensor in {**lora, **_corners(full)}.items()},
              folder / UPDATES)
    numbers = {
        "setting": SETTING, "steps": {part: training.get("steps", steps) for part, steps in STEPS.items()},
        "grid": [{"r": r, "alpha": alpha, "loss": _short(smooth(run.series("loss"))),
                  "validation_loss": round(run.metrics["validation"]["loss"], 5)}
                 for (r, alpha), run in grid.items()],
        "cuts": _cut_scores(full), "log_theta": _columns(salora, "log_theta", gated.r),
        "sizes": {site: list(W.shape) for site, W in full.before.items()},
        "stretch": {"tau": gated.tau, "gamma": gated.gamma, "zeta": gated.zeta},
        "alphas": _columns(autolora, "alpha", 8), "machine": machine()}
    (folder / NUMBERS).write_text(json.dumps(numbers, ensure_ascii=False) + "\n", encoding="utf-8")
    return load(folder)


def _corners(full: FineTuned) -> dict[str, torch.Tensor]:
    """What is shown of the whole ΔW: all of σ, and of U and V the first rows."""
    return {f"full/{site}/{name}": value for site in CUT_SITES
            for name, value in (("u", full.directions[site].U[:BLOCK]), ("s", full.directions[site].s),
                                ("vh", full.directions[site].Vh[:, :BLOCK]))}


def _cut_scores(full: FineTuned) -> list[dict[str, float]]:
    rows, uncut = len(full.rows.splits["test"]), max(len(found.s) for found in full.directions.values())
    return [{"i": i, "score": next(iter(full.score(slice(i)).values())), "rows": rows}
            for i in [*(i for i in cuts.CUTS if i < uncut), uncut]]


def _short(curve: Curve) -> list[list[float]]:
    return [list(curve[0]), [round(float(value), 5) for value in curve[1]]]


def _columns(run: Run, name: str, count: int) -> dict[str, list[float]]:
    """Site -> the last values of name.0, name.1, …"""
    columns = [run.by_site(f"{name}.{j}") for j in range(count)]
    return {site: [round(column[site], 6) for column in columns] for site in columns[0]}

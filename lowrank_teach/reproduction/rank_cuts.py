"""What is left of a change of weights at a lower rank, and the numbers behind the sliders of 10."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor, nn

from ..adapters import Adapters
from ..analysis import measures
from ..analysis.measures import Directions, directions
from ..analysis.statistics import Curve, smooth
from ..errors import require
from ..experiments.fit import Rows, fit, load_for
from ..experiments.runs import Run, Store, machine
from ..gates import Stretch
from ..methods import AutoLoRA, FullFineTuning, LoRA
from ..sites import find_sites, matrix_of
from ..training.callbacks import Callback
from ..training.config import train_config
from .arms import BACKBONE, PROFILE, TASK, Arm, Study, salora
from .results import Results, made_on, read, references_folder
from .studies import OnRun, Records, Runner, short_curve


# ---- branches cut to a rank --------------------------------------------------------------------------------
# A trained network with every branch cut to its first b directions, for as long as one looks. Taught in 07.
#
#     with cut_branches(adapters, 2, by_svd=True):
#         rows.score(model, "test")
@contextmanager
def cut_branches(adapters: Adapters, b: int, *, by_svd: bool = False) -> Iterator[None]:
    """Return the first b directions of each branch; the factors are put back at the end.

    Args:
        by_svd: the branch is first turned into its singular directions: the first b are then the best b there are.

    Raises:
        ValueError: b is outside 0 … r; or a branch has a gate or fixed terms, whose directions are not its factors'.
    """
    for name, branch in adapters.items():
        require(0 <= b <= branch.r, f"rank {b} is outside 0 .. r = {branch.r} at site {name}")
        require(branch.gate_module is None and not branch.merged_share and not branch.fixed_left.shape[1],
                f"site {name} holds more than B and A: a gate, an merged_share or merged links; cut a plain LoRA")
    kept = {name: (branch.lora_A.detach().clone(), branch.lora_B.detach().clone())
            for name, branch in adapters.items()}
    try:
        with torch.no_grad():
            for branch in adapters.values():
                if by_svd:
                    U, s, Vh = measures.factor_svd(*branch.factors())   # (d, r), (r,), (r, k)
                    branch.lora_A.copy_(Vh)
                    branch.lora_B.copy_(U * s / branch.scaling)
                branch.lora_B[:, b:] = 0
        yield
    finally:
        with torch.no_grad():
            for name, branch in adapters.items():
                branch.lora_A.copy_(kept[name][0])
                branch.lora_B.copy_(kept[name][1])


# ---- full fine-tuning, cut to a rank -----------------------------------------------------------------------
# Full fine-tuning's ΔW in hand: trained, subtracted, cut down to its first directions, and scored again.
#
# LoRA takes for granted that ΔW may be a product of two thin matrices. Here nothing is taken for granted: every
# matrix trains whole, ΔW = W after − W before, and the network is scored with a part of every ΔW only
# (`measures.directions`). That a task needs few directions to change is argued by Aghajanyan et al. 2020 (arXiv
# 2012.13255) and taken up by Hu et al. 2021 (arXiv 2106.09685). Taught in 01.
# d out, k in


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Return site -> a copy of its W (d, k), for every matrix of a known architecture.

    Raises:
        ValueError: the architecture is not in the table of `sites`.
    """
    return {site.name: matrix_of(model, site).cpu().clone() for site in find_sites(model)}


@dataclass
class FineTuned:
    """A network trained without branches, and all that is needed to cut its ΔW and score it again.

    model: the trained network.  rows: its task's rows.  before: site -> W before training (d, k).
    trained: names of the parameters that trained.  run: the record.
    """

    model: Any
    rows: Rows
    before: dict[str, Tensor]
    trained: list[str] = field(default_factory=list)
    run: Run = None  # type: ignore[assignment]  # of a network that was changed by hand there is none

    def __post_init__(self) -> None:
        self.after = weights(self.model)
        self.changes = {name: after - self.before[name] for name, after in self.after.items()}

    @cached_property
    def directions(self) -> dict[str, Directions]:
        """Site -> the directions of its ΔW."""
        return {name: directions(delta) for name, delta in self.changes.items()}

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return the steps and values of one name of the history."""
        return self.run.series(name)

    @contextmanager
    def cut(self, keep: slice | Sequence[int]) -> Iterator[Any]:
        """Return the network with only these directions of every ΔW, as long as the block lasts.

        keep: as in `Directions.keep`.  Biases, norms and head stay as trained: slice(0) still has those.
        """
        self._write({name: self.before[name].double() + found.keep(keep).matrix()
                     for name, found in self.directions.items()})
        try:
            yield self.model
        finally:
            self._write(self.after)

    def score(self, keep: slice | Sequence[int] = slice(None), split: str = "test") -> dict[str, float]:
        """Return the metrics of the network cut to these directions, the headline first."""
        with self.cut(keep) as model:
            return self.rows.score(model, split)

    def count(self, split: str = "test") -> int:
        """Return how many rows a score rests on."""
        return len(self.rows.splits.get(split, self.rows.splits["validation"]))

    @torch.no_grad()
    def _write(self, weights: dict[str, Tensor]) -> None:
        for site in find_sites(self.model):
            matrix_of(self.model, site).copy_(weights[site.name])


def fine_tune(task: str = "rt", backbone: str = "minilm-l6", profile: str | None = None, seed: int = 0, *,
              trains: str = "no_embeddings", callbacks: Iterable[Callback] = (), store: Store | None = None,
              **training: Any) -> FineTuned:
    """Train every matrix whole, or find the network that was kept (a record has no dense ΔW).

    Args:
        task, backbone, profile, seed, store, training: as in `fit`; give an lr far below that of LoRA.
        trains: as in `FullFineTuning`; the word embeddings are most of a small network and stay out.

    Raises:
        KeyboardInterrupt, StoppedError: Ctrl-C or a callback; the same call goes on where it stopped.
    """
    return fine_tuned(fit(FullFineTuning(trains=trains), task, backbone, profile, seed, progress=False, store=store,
                          callbacks=list(callbacks), keep_model=True, **training))


def fine_tuned(run: Run) -> FineTuned:
    """Return the network of a run of full fine-tuning, which `fit(keep_model=True)` left in it, beside its start."""
    found = run.trained
    assert found is not None
    names = {*found.adapters.head_names, *found.adapters.base_names}
    before = weights(load_for(run.config["backbone"], found.data, run.config["seed"])[0])
    return FineTuned(found.model, found.rows, before,
                     [name for name, _ in found.model.named_parameters() if name in names], run)


# ---- cuts over seeds ---------------------------------------------------------------------------------------
# Full fine-tuning cut to rank i, over seeds: stored numbers with their provenance.
#
# For each seed a network is trained whole (`fine_tune`), then scored with parts of every ΔW only: its first
# i directions, all but the first i, or i drawn at random. Stored in figures/data/01_cuts.json; drawn by 01.
#
#     load_cuts()      # what is stored
#     train_cuts()     # again, here
CUTS = (0, 1, 2, 4, 8, 16, 32, 64)
LR = 2e-4   # a tenth of LoRA's: every number of W moves
TRAINING: dict[str, Any] = {"steps": 100, "lr": LR, "weight_decay": 0.0}
FILE = "01_cuts.json"


def at_random(i: int, n: int, seed: int) -> list[int]:
    """Return i of n directions, drawn without looking at their weight."""
    return sorted(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:i].tolist())


def arms(n: int, seed: int) -> dict[str, slice | list[int]]:
    """Name -> which of n directions are kept: "first 8", "rest 8" (all but these), "random 8", "all"."""
    return {**{f"first {i}": slice(i) for i in CUTS}, "all": slice(None),
            **{f"rest {i}": slice(i, None) for i in CUTS[1:]},
            **{f"random {i}": at_random(i, n, seed) for i in CUTS[1:]}}


def records(full: FineTuned, seed: int) -> list[dict[str, Any]]:
    """Return one record a cut: test scores, and by site the rank that holds 90 % and the first 8's share."""
    n = max(len(found.s) for found in full.directions.values())
    shares = {name: measures.energy(found.s) for name, found in full.directions.items()}
    sites = {"energy_rank": {name: measures.energy_rank(found.s) for name, found in full.directions.items()},
             "energy_of_8": {name: round(float(share[7]), 4) for name, share in shares.items()}}
    return [{"arm": arm, "seed": seed, "test": full.score(keep), "sites": sites if arm == "all" else {}}
            for arm, keep in arms(n, seed).items()]


class CutRunner(Runner):
    """Trains networks whole, and keeps their scores with parts of every ΔW."""

    def records_of(self, arm: str, seed: int, run: Run) -> Records:
        return records(fine_tuned(run), seed)


def train_cuts(seeds: Iterable[int] = range(5), folder: Path | str | None = None, *, task: str = TASK,
               backbone: str = BACKBONE, profile: str = PROFILE, store: Store | None = None,
               on_run: OnRun | None = None, **training: Any) -> Results:
    """Train and cut, seed by seed; the file is written anew after each."""
    settled = train_config(profile, **{**TRAINING, **training}).to_dict()
    study = Study("How many directions of a whole ΔW does the task need?", "directions kept",
                  {"all": Arm(FullFineTuning(trains="no_embeddings"))}, {task: {}}, backbone, profile, settled)
    runner = CutRunner(study, Path(folder or references_folder()) / FILE, {"name": "cuts"}, store, on_run,
                       keep_model=True)
    runner.run(seeds=seeds)
    return Results(runner.described(), runner.records)


def line(found: Results) -> str:
    """Return one sentence on where the numbers come from."""
    a = found.about
    networks = len(found.values("loss")["all"])
    return (f"stored cuts: {networks} networks trained whole, {a['backbone']} on {a['task']}, "
            f"{a['training']['steps']} steps; {made_on(a['machine'])}")


def load_cuts(folder: Path | str | None = None) -> Results:
    """Return what is stored.

    Raises:
        FileNotFoundError: it has not been trained here.
    """
    path = Path(folder or references_folder()) / FILE
    return Results(*read(path,
                         "the cuts have no numbers yet; train them: "
                                "lowrank_teach.reproduction.rank_cuts.train_cuts()"))


# ---- what the sliders of 10 show ---------------------------------------------------------------------------
# The stored numbers behind the sliders of 10: a grid over rank and α, two ΔW, one set of gates, one search.
#
# Twelve short trainings, kept in two small files under figures/data: 10_playground.json with its provenance, and
# 10_updates.safetensors with what is shown of a ΔW. So the page opens without training.
#
#     load_explorer_data()     # what is stored
#     train_explorer_data()    # the same again, on this machine
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
        """Return one sentence on where the numbers come from."""
        s, steps = self.about["setting"], self.about["steps"].values()
        return (f"stored for the sliders: {len(self.losses) + 3} runs, {s['backbone']} on {s['task']}, seed "
                f"{s['seed']}, {min(steps)} to {max(steps)} steps; "
                f"{made_on(self.about['machine'])}")


def load_explorer_data(folder: Path | str | None = None) -> Stored:
    """Return what is stored.

    Raises:
        FileNotFoundError: it has not been trained here.
    """
    folder = Path(folder or references_folder())
    if not (folder / NUMBERS).exists():
        raise FileNotFoundError("the sliders' numbers are not here; train them: "
                                "lowrank_teach.reproduction.rank_cuts.train_explorer_data()")
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
    """Return U and Vᵀ in their own sizes, 0 outside the corner that is kept."""
    u, s, vh = (tensors[f"full/{site}/{name}"] for name in ("u", "s", "vh"))
    return np.pad(u, ((0, size[0] - len(u)), (0, 0))), s, np.pad(vh, ((0, 0), (0, size[1] - vh.shape[1])))


def train_explorer_data(folder: Path | str | None = None, *, store: Store | None = None,
          on_run: Callable[[Run], None] = lambda run: None, **training: Any) -> Stored:
    """Train all of them, or find the runs that were, and write both files; training: fields of `TrainConfig`."""
    folder = Path(folder or references_folder())

    def one(method: Any, part: str) -> Run:
        run = fit(method, **SETTING, progress=False, store=store, **{"steps": STEPS[part], **training})
        on_run(run)
        return run

    grid = {(r, alpha): one(LoRA(r=r, lora_alpha=alpha), "grid") for r in RANKS for alpha in ALPHAS}
    method = salora()
    gated, searched = one(method, "gates"), one(AutoLoRA(search_steps=0.25, eta_beta=0.01), "search")
    full = fine_tune(**SETTING, store=store, **{"steps": STEPS["full"], "lr": LR, "weight_decay": 0.0, **training})
    lora = {f"lora/{site}/{side}": factor for site, pair in grid[16, 16.0].factors.items()
            for side, factor in zip(("left", "right"), pair, strict=True)}
    save_file({name: tensor.to(torch.float16).contiguous() for name, tensor in {**lora, **_corners(full)}.items()},
              folder / UPDATES)
    numbers = {
        "setting": SETTING, "steps": {part: training.get("steps", steps) for part, steps in STEPS.items()},
        "grid": [{"r": r, "alpha": alpha, "loss": short_curve(smooth(run.series("loss"))),
                  "validation_loss": round(run.metrics["validation"]["loss"], 5)}
                 for (r, alpha), run in grid.items()],
        "cuts": _cut_scores(full), "log_theta": _columns(gated, "log_theta", method.r),
        "sizes": {site: list(W.shape) for site, W in full.before.items()},
        "stretch": {"tau": method.tau, "gamma": method.gamma, "zeta": method.zeta},
        "alphas": _columns(searched, "alpha", 8), "machine": machine()}
    (folder / NUMBERS).write_text(json.dumps(numbers, ensure_ascii=False) + "\n", encoding="utf-8")
    return load_explorer_data(folder)


def _corners(full: FineTuned) -> dict[str, torch.Tensor]:
    """Return what is shown of the whole ΔW: all of σ, and of U and V the first rows."""
    return {f"full/{site}/{name}": value for site in CUT_SITES
            for name, value in (("u", full.directions[site].U[:BLOCK]), ("s", full.directions[site].s),
                                ("vh", full.directions[site].Vh[:, :BLOCK]))}


def _cut_scores(full: FineTuned) -> list[dict[str, float]]:
    rows, uncut = len(full.rows.splits["test"]), max(len(found.s) for found in full.directions.values())
    return [{"i": i, "score": next(iter(full.score(slice(i)).values())), "rows": rows}
            for i in [*(i for i in CUTS if i < uncut), uncut]]


def _columns(run: Run, name: str, count: int) -> dict[str, list[float]]:
    """Return site -> the last values of name.0, name.1, …"""
    columns = [run.by_site(f"{name}.{j}") for j in range(count)]
    return {site: [round(column[site], 6) for column in columns] for site in columns[0]}

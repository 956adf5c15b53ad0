"""Figures from runs, through a file of numbers: runs → figures/data/NAME.json → figures/NAME.png (or .gif).

The JSON holds the arrays with their provenance (configurations, seeds, machine, versions, commit), so that every
figure can be drawn again without training. Taught in 00.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..analysis import plots, style
from ..experiments.compare import table
from ..experiments.runs import Run

Runs = Mapping[str, Run]


@dataclass(frozen=True)
class Signature:
    """One figure: which runs it needs, the arrays it takes from them, how they are drawn, and its words."""

    needs: tuple[str, ...]
    arrays: Callable[[Runs], dict[str, Any]]
    draw: Callable[[dict[str, Any]], Figure | style.Animation]
    caption: str


EVERY = 4   # steps between two frames of an animation


def _gates(runs: Runs) -> dict[str, Any]:
    run = runs["salora"]
    frames = [*range(0, (total := len(run.series("density")[0])) - 1, EVERY), total - 1]

    def at_frames(name: str, site: str = "") -> list[float]:
        values = run.series(name, site)[1]
        return [values[i] for i in frames]

    density = _density(runs)
    return {"steps": [density["steps"][i] for i in frames], "density": at_frames("density"),
            "lam": at_frames("lambda"), "kept": {site: at_frames("kept", site) for site in run.ranks},
            "r": run.config["method"]["r"], "target": density["target"], "window": density["window"]}


def _ranks(runs: Runs) -> dict[str, Any]:
    return {"ranks": {style.METHOD_STYLE[name][0]: runs[name].ranks for name in ("salora", "autolora")},
            "max_rank": max(runs["salora"].config["method"]["r"], runs["autolora"].config["method"]["r"])}


def _density(runs: Runs) -> dict[str, Any]:
    run = runs["salora"]
    method = run.config["method"]
    total = run.seconds["steps.training"]
    window = [round(w * total) if isinstance(w, float) else w for w in (method["t_start"], method["t_end"])]
    names = {"density": "density", "lam": "lambda", "orth_A": "orth_A", "orth_B": "orth_B",
             "penalty": "budget_penalty"}
    return {"steps": run.series("density")[0], **{key: run.series(name)[1] for key, name in names.items()},
            "target": method["b"], "window": window}


def _cosine(runs: Runs) -> dict[str, Any]:
    return {"values": {name: runs[name].by_site("cosine") for name in ("lora", "delta_lora")}}


def _chain(runs: Runs) -> dict[str, Any]:
    task, metric = runs["lora"].config["task"], runs["lora"].score("test")[0]
    rows = runs["lora"].config["training"]["n_test"]
    scores = {str(n): runs[name].score("test")[1] for n, name in {1: "lora", 2: "cola-2", 3: "cola-3"}.items()}
    out: dict[str, Any] = {"series": {task: {n: [p] for n, p in scores.items()}},
                           "ylabel": f"{metric} on the test rows"}
    if metric == "accuracy" and rows:  # what so many test rows leave open: 95 %, normal approximation
        out["half"] = {task: {n: 1.96 * (p * (1 - p) / rows) ** 0.5 for n, p in scores.items()}}
    return out


def _draw_chain(a: dict[str, Any]) -> Figure:
    def whole(by_length: dict[str, dict[str, Any]]) -> dict[str, dict[int, Any]]:
        return {name: {int(n): value for n, value in one.items()} for name, one in by_length.items()}

    return plots.chain_length(whole(a["series"]), ylabel=a["ylabel"], half=whole(a["half"]) if "half" in a else None)


def _draw_density(a: dict[str, Any]) -> Figure:
    return plots.density_and_lambda(*(np.array(a[k]) for k in ("steps", "density", "lam", "orth_A", "orth_B")),
                                    penalty=np.array(a["penalty"]), target=a["target"], window=tuple(a["window"]))


def _alpha(runs: Runs) -> dict[str, Any]:
    run, r = runs["autolora"], runs["autolora"].config["method"]["r"]
    rows = run.history[run.history["name"].str.startswith("alpha.")]
    sites = list(dict.fromkeys(rows["site"]))
    layers = [site.rpartition(".")[0] for site in sites]  # "3", or "enc.3" in an encoder-decoder
    shown = [site for site, layer in zip(sites, layers, strict=True) if layer in {layers[0], layers[-1]}][:4]
    return {"steps": run.series("alpha.0", sites[0])[0], "threshold": 1 / r,
            "alphas": {site: np.transpose([run.series(f"alpha.{j}", site)[1] for j in range(r)]).tolist()
                       for site in shown}}


def _curves(runs: Runs) -> dict[str, Any]:
    return {"curves": {name: _smooth(*run.series("loss"), last=int(run.seconds["steps.training"]))
                       for name, run in runs.items()}}


def _smooth(steps: list[int], values: list[float], last: int, width: int = 10) -> tuple[list[int], list[float]]:
    """Return the means over `width` steps of the last stage, counted from its own start."""
    steps, values = steps[-last:], values[-last:]
    ends = range(width, len(values) + 1, width)
    return list(ends), [float(np.mean(values[end - width:end])) for end in ends]


SIGNATURES: dict[str, Signature] = {
    "ranks": Signature(
        ("salora", "autolora"), _ranks, lambda a: plots.rank_heatmaps(a["ranks"], max_rank=a["max_rank"]),
        "Directions each method kept, by matrix and layer. SaLoRA prunes gates on all six matrices until its budget "
        "is met; AutoLoRA counts selection weights of at least 1/k on W_q and W_v."),
    "density": Signature(
        ("salora",), _density, _draw_density,
        "SaLoRA's expected density starts at σ(log 11) = 0.917 and is driven to its target while λ grows; the "
        "penalty λ(C − b)² goes to zero with the gap. Grey: the window in which gates train."),
    "gates": Signature(
        ("salora",), _gates, lambda a: plots.gates_closing(**a),
        "One SaLoRA training. Grey: the window in which gates train. While the density falls to its target, gates "
        "close one by one, and each matrix is left with a rank of its own."),
    "cosine": Signature(
        ("lora", "delta_lora"), _cosine, lambda a: plots.cosine_by_layer(a["values"], one_minus=True),
        "How far each pretrained matrix turned: 1 − cosine of W before and after, by layer, on a log axis. "
        "Higher is further."),
    "chain": Signature(
        ("lora", "cola-2", "cola-3"), _chain, _draw_chain,
        "Score by chain length at equal steps; length 1 is LoRA. One dot a seed; the bars are what the number of "
        "test rows leaves open (95 %). Where bars overlap, one seed separates nothing."),
    "alpha": Signature(
        ("autolora",), _alpha, lambda a: plots.alpha_over_time(
            a["steps"], {site: np.array(alpha) for site, alpha in a["alphas"].items()}, a["threshold"]),
        "AutoLoRA's selection weights during the search, first and last layer. All start at 1/k; what ends below "
        "the dotted line is dropped."),
    "loss": Signature(
        ("lora",), _curves, lambda a: plots.learning_curves(
            a["curves"], ylabel="Training loss (mean of 10 steps)"),
        "Training loss of every method on the same rows in the same order (AutoLoRA: its retraining)."),
}


def check_folder(folder: Path | str) -> None:
    """Refuse before the training what could not be written after it.

    Raises:
        OSError: the folder cannot be made or written.
    """
    try:
        (Path(folder) / "data").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"figures cannot be written to {folder} ({error.strerror or error}); name another folder, or "
                      "make room there") from error


def write_figures(runs: Runs, folder: Path | str = "figures") -> list[Path]:
    """Write every figure whose runs are there, with the file of numbers it is drawn from.

    Returns:
        The pictures: PNG files, and a GIF of what moves.
    """
    folder = Path(folder)
    check_folder(folder)
    made = []
    for name, signature in SIGNATURES.items():
        if not all(need in runs for need in signature.needs):
            continue
        used = {need: runs[need] for need in (runs if name == "loss" else signature.needs)}
        data = {"name": name, "caption": signature.caption, "arrays": signature.arrays(runs),
                "runs": [{"label": label, "key": run.key, "identity": run.identity, "config": _public(run.config),
                          "metrics": run.metrics}
                         for label, run in used.items()],
                "machine": _machine(used)}
        path = folder / "data" / f"{name}.json"
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        made.append(draw(path, folder))
    frame = table(runs)
    record = {"table": json.loads(frame.reset_index().to_json(orient="records")), "machine": _machine(runs),
              "runs": [{"label": label, "key": run.key, "identity": run.identity, "config": _public(run.config)}
                       for label, run in runs.items()]}
    (folder / "data" / "compare.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n",
                                                  encoding="utf-8")
    sheet = overview(folder)
    return [*made, sheet] if sheet else made


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Return a run's configuration; of a model in a folder only the folder's name, not where it lies."""
    folder = Path(config["backbone"])
    return {**config, "backbone": folder.name} if folder.is_absolute() else config


def _machine(runs: Runs) -> dict[str, Any]:
    return next(iter(runs.values())).machine


OVERVIEW = ("ranks", "density", "cosine", "chain")


def overview(folder: Path | str = "figures") -> Path | None:
    """Return the four signature pictures on one sheet, or None where one of them is missing."""
    from PIL import Image

    paths = [Path(folder) / f"{name}.png" for name in OVERVIEW]
    if not all(path.exists() for path in paths):
        return None
    pictures = [Image.open(path).convert("RGB") for path in paths]
    width = max(p.width for p in pictures)
    heights = [max(p.height for p in pictures[:2]), max(p.height for p in pictures[2:])]
    gap = width // 30
    sheet = Image.new("RGB", (2 * width + gap, sum(heights) + gap), "white")
    for i, picture in enumerate(pictures):
        row, column = divmod(i, 2)
        left = column * (width + gap) + (width - picture.width) // 2
        sheet.paste(picture, (left, sum(heights[:row]) + row * gap + (heights[row] - picture.height) // 2))
    sheet.save(Path(folder) / "overview.png", optimize=True)
    return Path(folder) / "overview.png"


def draw(path: Path | str, folder: Path | str = "figures") -> Path:
    """Draw one figure again from its file of numbers.

    Raises:
        ValueError: the file names no figure of this package.
    """
    data = _numbers(Path(path))
    if data.get("name") not in SIGNATURES:
        raise ValueError(f"{Path(path).name} is not the data of a figure; there are {', '.join(SIGNATURES)}")
    drawn = SIGNATURES[data["name"]].draw(data["arrays"])
    if isinstance(drawn, style.Animation):
        return style.save_animation(drawn, Path(folder) / data["name"])
    return style.save(drawn, Path(folder) / data["name"])[0]


def redraw(folder: Path | str = "figures") -> list[Path]:
    """Draw every figure again from `folder`/data, without training."""
    made = [draw(path, folder) for path in sorted((Path(folder) / "data").glob("*.json"))
            if _numbers(path).get("name") in SIGNATURES]
    sheet = overview(folder) if made else None
    return [*made, sheet] if sheet else made


def _numbers(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); make it again with `lowrank-teach compare --figures "
                         f"{path.parent.parent}`") from error

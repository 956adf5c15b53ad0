"""Look at a LoRA adapter that anybody trained: what each matrix learned, what is wrong with it, what to do.

    found = audit("my_adapter/")                  # a folder that peft, unsloth, axolotl or `save_peft` wrote
    found = audit("my_adapter/", base="owner/model")   # with its pretrained weights, read matrix by matrix
    found.frame(); found.advice                   # one row a matrix; sentences with their reasons
    compress("my_adapter/", "smaller/", energy=0.95)

Only the factors are multiplied: for ΔW = s B A of rank r the QR decompositions of B (d, r) and A (r, k) give all
singular values, so an adapter of a model of 7 billion parameters takes seconds. Only safetensors and JSON are read.
DoRA (arXiv 2402.09353) is read as its direction s B A, without its magnitudes; AdaLoRA (arXiv 2303.10512) as
s B diag(E) A.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from ..adaptable import plain_name
from ..analysis.measures import (
    cosine_update,
    effective_rank,
    energy,
    energy_rank,
    factor_svd,
    numerical_rank,
    stable_rank,
)
from ..errors import require
from ..models.backbones import checkpoint_folder, load_backbone
from .peft_format import CONFIG, PREFIX, WEIGHTS, ExportError

FACTOR = re.compile(rf"(?:{re.escape(PREFIX)})?(.+)\.lora_([ABE])(?:\.default)?(?:\.weight)?")
MAGNITUDE = re.compile(r"\.lora_magnitude_vector(?:\.default)?(?:\.weight)?$")
KINDS = ("LORA", "ADALORA")
ADALORA = ("target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")
DENSE = 1024        # up to this min(d, k) W is decomposed whole, above it in its first WIDE directions
WIDE, TOP = 32, 10  # directions of W that are looked at, and of W + ΔW that may be intruders
INTRUDER = 0.5      # the largest cosine with any direction of W, below which one is an intruder
FEW, FULL = 4, 0.8  # from which rank on, and from which effective rank beside it, a rank is said to be used up
HALF = 0.97         # share of the energy that half of the rank must keep to be worth a word


# ---- what is in the files ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Update:
    """The change of one matrix: ΔW = scale · B A, with A (r, k) and B (d, r)."""

    path: str
    A: Tensor
    B: Tensor
    scale: float

    @property
    def r(self) -> int:
        return self.A.shape[0]

    @property
    def layer(self) -> str:
        """The first number in the path, "–" where there is none."""
        return next((part for part in self.path.split(".") if part.isdigit()), "–")

    @property
    def matrix(self) -> str:
        """What stands behind the layer's number in the path; "decoder." before it in a decoder's stack."""
        parts = self.path.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), -1)
        return "decoder." * ("decoder" in parts[:max(at, 0)]) + ".".join(parts[at + 1:])


@dataclass(frozen=True)
class AdapterFile:
    """What an adapter's files hold: its updates by path, its configuration, all other tensors, and remarks."""

    name: str
    config: Mapping[str, Any]
    updates: Mapping[str, Update]
    others: Mapping[str, Tensor]
    remarks: tuple[str, ...] = ()


def read_adapter(place: str | Path) -> AdapterFile:
    """Read a folder of peft's format, or a safetensors file of factors alone.

    Numbers that are not finite are kept, so that they can be reported.

    Raises:
        ExportError: there is no such file, it is a pickle, it is damaged, or it holds no LoRA.
    """
    place = Path(place).expanduser()
    file = place / WEIGHTS if place.is_dir() else place
    if not file.is_file() or file.suffix in (".bin", ".pt", ".pth"):
        pickles = [file] if file.is_file() else sorted(place.glob("adapter_model.bin")) if place.is_dir() else []
        if pickles:
            raise ExportError(f"{pickles[0].name} is a pickle, which can run code when it is read, so it is not: "
                              "load the adapter with peft and call its save_pretrained(folder), "
                              "which writes safetensors")
        raise ExportError(f"{place} holds no {WEIGHTS}: name the folder that peft's save_pretrained(folder) wrote, "
                          "or a safetensors file")
    try:
        tensors = load_file(file)
        text = (file.parent / CONFIG).read_text(encoding="utf-8") if (file.parent / CONFIG).is_file() else "{}"
        config = json.loads(text)
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ExportError(f"the adapter in {place} is damaged ({str(error)[:99]}); copy it again") from error
    if not isinstance(config, dict) or config.get("peft_type", "LORA") not in KINDS:
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ExportError(f"this adapter is of peft's type {kind}, and only LoRA and AdaLoRA change matrices by a "
                          "product of two factors")
    return _assemble(place.name, config, tensors)


def _assemble(name: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> AdapterFile:
    factors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    others, magnitudes, remarks = {}, 0, []
    for key, value in tensors.items():
        if match := FACTOR.fullmatch(key):
            factors[match[1]][match[2]] = value
        elif MAGNITUDE.search(key):
            magnitudes += 1
        else:
            others[key] = value
    if magnitudes:
        remarks.append(f"DoRA: {magnitudes} vectors of magnitudes were left out; what is shown is the "
                       "direction s B A.")
    if not config:
        remarks.append("There is no adapter_config.json, so the scale is unknown and taken as 1: sizes of ΔW are "
                       "right up to one factor, ranks and shares are exact.")
    if config.get("init_lora_weights", True) not in (True, False, None, "gaussian", "orthogonal"):
        remarks.append(f"init_lora_weights = {config['init_lora_weights']} changes W before the training; what is "
                       "shown is the product in the file, which is not the whole change.")
    updates = {path: _update(path, found, config) for path, found in factors.items()}
    if not updates:
        raise ExportError("the file holds no lora_A and lora_B of any module, so it is no LoRA adapter")
    return AdapterFile(name, config, dict(sorted(updates.items(), key=lambda one: _order(one[0]))), others,
                       tuple(remarks))


def _order(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.split(".")]


def _update(path: str, found: dict[str, Tensor], config: dict[str, Any]) -> Update:
    missing = [f"lora_{letter}" for letter in "AB" if letter not in found]
    if missing:
        raise ExportError(f"the file holds no {missing[0]} of {path}; copy it again")
    A, B = found["A"], found["B"]
    if A.ndim != 2 or B.ndim != 2 or len(A) != B.shape[1]:
        raise ExportError(f"the factors of {path} have shapes {tuple(A.shape)} and {tuple(B.shape)}, which do not "
                          "multiply to the change of a matrix: only matrices are read, no convolutions or embeddings")
    if "E" in found:
        A = A * found["E"].reshape(-1, 1).to(A)
    return Update(path, A, B, scale_of(config, path, len(A)))


def scale_of(config: Mapping[str, Any], path: str, r: int) -> float:
    """Return what peft multiplies B A by: α / r, α / √r with use_rslora; 1 where no configuration says."""
    if not config:
        return 1.0
    alpha = _by_pattern(config.get("alpha_pattern"), path, config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)


def _by_pattern(patterns: Any, path: str, default: Any) -> Any:
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", path)), default)


# ---- what is measured of one matrix --------------------------------------------------------------------------

@dataclass(frozen=True)
class MatrixReport:
    """What one matrix learned. Sizes are Frobenius norms; what needs the base weights is None without them.

    share: ‖ΔW‖ / ‖W‖.  rank_90, rank_97: the smallest rank that holds that share of ‖ΔW‖².
    half: share of ‖ΔW‖² in the first r / 2 directions.  dead: directions of which A or B is all zero.
    intruders: of the first 10 directions of W + ΔW, how many are like none of W (arXiv 2410.21228).
    overlap: share of ‖ΔW‖² that lies in the span of W's first r output directions.
    lost: share of ‖ΔW‖² that is lost where W + ΔW is rounded to bfloat16.
    """

    path: str
    layer: str
    matrix: str
    d: int
    k: int
    r: int
    scale: float
    finite: bool
    norm: float
    largest: float
    rank: int
    effective: float
    stable: float
    rank_90: int
    rank_97: int
    half: float
    dead: int
    share: float | None = None
    cosine: float | None = None
    intruders: int | None = None
    overlap: float | None = None
    lost: float | None = None
    spectrum: tuple[float, ...] = field(default=(), repr=False)


def measure(update: Update, W: Tensor | None = None) -> MatrixReport:
    """Measure one update; W (d, k): the pretrained matrix, or None.

    Raises:
        ExportError: W has another shape.
    """
    d, k, r = update.B.shape[0], update.A.shape[1], update.r
    named: dict[str, Any] = {"path": update.path, "layer": update.layer, "matrix": update.matrix, "d": d, "k": k,
                             "r": r, "scale": update.scale}
    dead = int((~update.A.bool().any(1) | ~update.B.bool().any(0)).sum())
    finite = bool(update.A.isfinite().all() and update.B.isfinite().all())
    if not finite:
        nan = float("nan")
        return MatrixReport(**named, finite=False, norm=nan, largest=nan, rank=0, effective=nan, stable=nan,
                            rank_90=0, rank_97=0, half=nan, dead=dead)
    U, s, Vh = factor_svd(update.scale * update.B.double(), update.A)
    held = energy(s)
    report: dict[str, Any] = {
        "finite": True, "norm": float(s.norm()), "largest": float(s.max()) if len(s) else 0.0,
        "rank": numerical_rank(s), "effective": effective_rank(s), "stable": stable_rank(s),
        "rank_90": energy_rank(s, 0.9), "rank_97": energy_rank(s, HALF), "half": float(held[max(1, r // 2) - 1]),
        "dead": dead, "spectrum": tuple(s.tolist())}
    if W is not None:
        if W.shape != (d, k):
            raise ExportError(f"{update.path} is {d} × {k} in the adapter and {' × '.join(map(str, W.shape))} in the "
                              "base: this is another model's adapter")
        report |= _beside(W, update, U, s, Vh)
    return MatrixReport(**named, **report)


def _beside(W: Tensor, update: Update, U: Tensor, s: Tensor, Vh: Tensor) -> dict[str, Any]:
    """Return what the pretrained matrix adds to the report; U (d, n), s (n,), Vh (n, k): the SVD of ΔW."""
    size = float(W.double().norm())
    if not s.any() or not size:
        return {"share": 0.0 if size else None, "cosine": 1.0, "intruders": 0, "overlap": None, "lost": None}
    delta = ((U * s) @ Vh).float()
    W = W.float()
    small = min(W.shape) <= DENSE
    own = _directions(W, min(W.shape) if small else WIDE)
    new = _directions(W + delta, min(TOP, min(W.shape)))
    likeness = (new.T @ own).abs().max(1).values
    within = own[:, :min(update.r, own.shape[1])].double().T @ (U * s)
    rounded = (W.bfloat16().float() + delta).bfloat16().float() - W.bfloat16().float()
    return {"share": float(s.norm()) / size, "cosine": cosine_update(W, U * s, Vh),
            "intruders": int((likeness < INTRUDER).sum()),
            "overlap": float(within.square().sum() / s.square().sum()),
            "lost": float((rounded - delta).square().sum() / delta.square().sum())}


def _directions(W: Tensor, n: int) -> Tensor:
    """Return the first n left singular vectors (d, n); those of a large matrix by random projections."""
    if min(W.shape) <= DENSE:
        return torch.linalg.svd(W, full_matrices=False)[0][:, :n]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.svd_lowrank(W, q=n + 8, niter=3)[0][:, :n]


# ---- the base's weights, matrix by matrix ----------------------------------------------------------------------

class BaseWeights:
    """The matrices of a checkpoint, each read from its safetensors file when it is asked for.

    place: a local folder, the name of a packaged model, or a name on the hub.

    Raises:
        CheckpointError: there is no such model.  ExportError: it holds no safetensors.
    """

    def __init__(self, place: str | Path) -> None:
        folder = checkpoint_folder(str(place))
        self.file_of: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                self.file_of |= dict.fromkeys(opened.keys(), file)
        if not self.file_of:
            raise ExportError(f"{place} holds no safetensors file of weights: only these are read")

    def matrix(self, path: str, d: int, k: int) -> Tensor:
        """Return the weight (d, k) of the module at this path, whose beginning may be another one in the checkpoint.

        Raises:
            ExportError: the checkpoint has no such matrix, or several.
        """
        parts = path.split(".")
        for skip in range(len(parts)):
            end = ".".join(parts[skip:]) + ".weight"
            found = [key for key in self.file_of if key == end or key.endswith(f".{end}")]
            if len(found) == 1:
                with safe_open(self.file_of[found[0]], "pt") as opened:
                    W = opened.get_tensor(found[0])
                return W.T if W.shape == (k, d) != (d, k) else W   # GPT-2's are stored the other way round
            if len(found) > 1 or not any(part.isdigit() for part in parts[skip + 1:]):
                break
        raise ExportError(f"the base has no matrix named {path}: give the model that the adapter was trained on")


# ---- the whole adapter ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Audit:
    """What was found of an adapter.

    reports: one a matrix.  advice: sentences with their reasons.  remarks: what was not read, or taken for granted.
    """

    name: str
    base: str
    config: Mapping[str, Any]
    reports: tuple[MatrixReport, ...]
    advice: tuple[str, ...]
    remarks: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """Return a table with a row a matrix, without the spectra."""
        return pd.DataFrame([{name: value for name, value in asdict(one).items() if name != "spectrum"}
                             for one in self.reports]).set_index("path")

    def document(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return {"name": self.name, "base": self.base or None, "advice": list(self.advice),
                "remarks": list(self.remarks), "parameters": self.parameters,
                "matrices": [asdict(one) for one in self.reports]}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Audit:
        """Return what `document` wrote, without the adapter's configuration."""
        reports = tuple(MatrixReport(**{**one, "spectrum": tuple(one["spectrum"])}) for one in document["matrices"])
        return cls(document["name"], document["base"] or "", {}, reports, tuple(document["advice"]),
                   tuple(document["remarks"]))

    @property
    def parameters(self) -> int:
        return sum(one.r * (one.d + one.k) for one in self.reports)


def audit(place: str | Path, base: str | Path = "") -> Audit:
    """Measure every matrix of an adapter and say what follows.

    Args:
        place: a folder of peft's format, or a safetensors file.
        base: the pretrained weights: a folder, a packaged model or a name on the hub; "" for the factors alone.

    Raises:
        ExportError: the adapter or the base cannot be read, or they do not fit.
    """
    file = read_adapter(place)
    weights = BaseWeights(base) if base else None
    reports = tuple(measure(one, weights.matrix(one.path, one.B.shape[0], one.A.shape[1]) if weights else None)
                    for one in file.updates.values())
    return Audit(file.name, str(base), file.config, reports, tuple(_advice(reports, file.config)), file.remarks)


def _advice(reports: tuple[MatrixReport, ...], config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an owner of this adapter should know, the gravest first."""
    n = len(reports)
    broken = [one for one in reports if not one.finite]
    sound = [one for one in reports if one.finite and one.norm > 0]
    if broken:
        yield (f"{len(broken)} of {n} matrices hold numbers that are not finite (first {broken[0].path}): the "
               "training diverged. Take an earlier checkpoint, or train again at a lower learning rate.")
    still = [one for one in reports if one.finite and one.norm == 0]
    if still and not sound and not broken:
        yield ("No matrix has changed: every product B A is zero, so the model is its base. The adapter was saved "
               "before its training, or the optimizer did not hold its parameters.")
    elif still:
        yield (f"{len(still)} of {n} matrices learned nothing (first {still[0].path}): their B is zero. If this was "
               "not intended, look whether they were frozen or are never called.")
    if dead := sum(one.dead for one in sound):
        yield (f"{dead} of {sum(one.r for one in sound)} directions are dead: their row of A or column of B is all "
               "zero, so they cost memory and do nothing. `compress` removes them.")
    yield from _on_ranks(sound)
    yield from _on_sizes(sound)
    yield from _on_scales(sound, config)
    yield from _beside_base(sound)
    if not broken and not still and sound and not any(one.dead for one in sound):
        yield "All matrices are finite and have changed."


def _on_ranks(sound: list[MatrixReport]) -> Iterator[str]:
    wide = [one for one in sound if one.r >= 2]
    if not wide:
        return
    kept = [one for one in wide if one.half >= HALF]
    if len(kept) >= len(wide) / 2:
        spent, needed = (sum(of(one) * (one.d + one.k) for one in wide)
                         for of in (lambda one: one.r, lambda one: max(1, one.rank_97)))
        yield (f"Half of the rank keeps {HALF:.0%} of the energy in {len(kept)} of {len(wide)} matrices. "
               f"`compress --energy {HALF}` would keep {needed:,} of {spent:,} numbers ({needed / spent:.0%}).")
    full = [one for one in wide if one.r >= FEW and one.effective >= FULL * one.r]
    if len(full) >= len(wide) / 2:
        yield (f"{len(full)} of {len(wide)} matrices use all of their rank (effective rank "
               f"{fmean(one.effective for one in full):.1f} of {fmean(one.r for one in full):.0f} on average): a "
               "larger rank may be worth a try.")


def _on_sizes(sound: list[MatrixReport]) -> Iterator[str]:
    by_matrix: dict[str, list[float]] = defaultdict(list)
    for one in sound:
        by_matrix[one.matrix].append(one.norm / math.sqrt(one.d * one.k))
    means = {name: fmean(values) for name, values in by_matrix.items()}
    if len(means) >= 2:
        most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        if means[most] >= 3 * means[least]:
            yield (f"The matrices changed unevenly: an entry of {most} changed {means[most] / means[least]:.1f} "
                   f"times as much as one of {least}. A rank_pattern can give {least} fewer directions.")


def _on_scales(sound: list[MatrixReport], config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("use_rslora") and sound:
        r = Counter(one.r for one in sound).most_common(1)[0][0]
        yield (f"use_rslora: the scale is α / √r. A tool that ignores this setting divides by r and makes every "
               f"change {math.sqrt(r):.1f} times too small.")
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    if patterns:
        yield (f"{' and '.join(patterns)} set ranks or scales of single matrices. Some tools read only r and "
               "lora_alpha; lt.save_peft(adapters, folder, uniform=True) writes the same change with "
               "one rank and one scale.")


def _beside_base(sound: list[MatrixReport]) -> Iterator[str]:
    known = [one for one in sound if one.share is not None]
    if not known:
        return
    shares = [one.share or 0.0 for one in known]
    yield (f"The changes are {median(shares):.2%} of the pretrained matrices in size (median), {max(shares):.2%} at "
           f"most; the lowest cosine of a matrix before and after is {min(one.cosine or 1.0 for one in known):.4f}.")
    intruders = [one for one in known if one.intruders]
    if intruders:
        total = sum(one.intruders or 0 for one in intruders)
        yield (f"In {len(intruders)} of {len(known)} matrices the first {TOP} directions of W + ΔW hold some that "
               f"are like none of W ({total} in all; intruder dimensions). Adapters with many of them have been seen "
               "to forget more of what the base knew (arXiv 2410.21228): try a lower learning rate or fewer steps.")
    lost = [one for one in known if (one.lost or 0.0) > 0.05]
    if lost:
        yield (f"Merged in bfloat16, {len(lost)} of {len(known)} matrices lose more than 5 % of their change to "
               f"rounding ({max(one.lost or 0.0 for one in lost):.0%} at most): merge in float32, or "
               "keep the adapter beside W.")


# ---- a smaller adapter ---------------------------------------------------------------------------------------

def compress(place: str | Path, out: str | Path, *, energy: float = 0.0, rank: int = 0) -> dict[str, tuple[int, int]]:
    """Write the adapter with the smallest ranks that hold a share of each ‖ΔW‖², or with one rank at most.

    The factors of the best approximation (Eckart & Young 1936) come from the SVD of ΔW = s B A. The new adapter has
    a scale of 1, uneven ranks (`rank_pattern`), and leaves out matrices that learned nothing.

    Args:
        place: as for `audit`.  out: the folder to write.
        energy: the share in (0, 1] that each matrix keeps.  rank: the largest rank. One of the two.

    Returns: path -> (rank before, rank after).

    Raises:
        ExportError: the adapter cannot be read, is not finite, or is a DoRA.
        ValueError: not exactly one of energy and rank is given, or it is out of its range.
    """
    require(bool(energy) != bool(rank), "give one of energy and rank: energy=0.95 keeps 95 % of each change")
    require(not energy or 0 < energy <= 1, f"energy {energy} is a share in (0, 1]")
    require(rank >= 0, f"rank {rank} is a whole number above 0")
    file = read_adapter(place)
    if file.config.get("use_dora"):
        raise ExportError("a DoRA scales each row by the norm of W + s B A, which a smaller s B A would change: "
                          "merge it with peft, and extract a LoRA")
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, tuple[int, int]] = {}
    for update in file.updates.values():
        if not (update.A.isfinite().all() and update.B.isfinite().all()):
            raise ExportError(f"{update.path} is not finite: the training diverged; take an earlier checkpoint")
        U, s, Vh = factor_svd(update.scale * update.B.double(), update.A)
        n = min(energy_rank(s, energy) if energy else rank, numerical_rank(s))
        ranks[update.path] = (update.r, n)
        if n:
            root = s[:n].sqrt()
            parts = {"A": root[:, None] * Vh[:n], "B": U[:, :n] * root}
            tensors |= {f"{PREFIX}{update.path}.lora_{letter}.weight": value.to(update.A.dtype).contiguous()
                        for letter, value in parts.items()}
    require(bool(tensors), "no matrix has changed, so there is nothing to write")
    Path(out).mkdir(parents=True, exist_ok=True)
    save_file({**tensors, **{name: value.contiguous() for name, value in file.others.items()}}, Path(out) / WEIGHTS,
              {"format": "pt"})
    kept = {path: new for path, (_, new) in ranks.items() if new}
    usual = Counter(kept.values()).most_common(1)[0][0]
    own = {path: n for path, n in kept.items() if n != usual}
    config = {**file.config, "peft_type": "LORA", "r": usual, "lora_alpha": usual, "use_rslora": False,
              "rank_pattern": {re.escape(path): n for path, n in own.items()},
              "alpha_pattern": {re.escape(path): n for path, n in own.items()}, "target_modules": list(kept)}
    for name in ADALORA:
        config.pop(name, None)
    (Path(out) / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return ranks


@dataclass(frozen=True)
class OutputChange:
    """How far the outputs of two adapters on one base are apart, on random tokens.

    largest: the largest difference of a logit or hidden value.  relative: norm of the difference over that of what
    the first adapter changes in the base's outputs.  agree: share of outputs with the same largest entry.
    """

    largest: float
    relative: float
    agree: float

    def __str__(self) -> str:
        return (f"on random tokens the outputs differ by {self.largest:.2g} at most, which is {self.relative:.1%} of "
                f"what the adapter changes; {self.agree:.1%} of the largest entries are the same")


def output_change(first: str | Path, second: str | Path, base: str, *, inputs: int = 8, length: int = 32,
                  seed: int = 0) -> OutputChange:
    """Run the base bare and with each of two adapters on the same random tokens, and compare the outputs.

    Raises:
        ExportError: an adapter does not fit the base.  CheckpointError: there is no such model.
    """
    kind = {"CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq"}.get(read_adapter(first).config.get("task_type") or "")
    found = []
    for adapter in (None, first, second):
        model, _ = load_backbone(base, kind=kind)
        if adapter is not None:
            load_updates(model, adapter)
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(model.config.get_text_config().vocab_size, (inputs, length), generator=draw)
        extra = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
        with torch.no_grad():
            found.append(next(iter(model(input_ids=tokens, **extra).values())).float())
    bare, one, other = found
    return OutputChange(float((one - other).abs().max()), float((one - other).norm() / (one - bare).norm()),
                        float((one.argmax(-1) == other.argmax(-1)).float().mean()))


def load_updates(model: Any, place: str | Path) -> None:
    """Add an adapter's updates to the weights of a model in place, as merging would; its other tensors are left out.

    Raises:
        ExportError: the model has no matrix for one of them.
    """
    modules = {plain_name(path): module for path, module in model.named_modules() if hasattr(module, "weight")}
    for update in read_adapter(place).updates.values():
        parts = update.path.split(".")
        ends = (".".join(parts[skip:]) for skip in range(len(parts)))
        module = next((modules[end] for end in ends if end in modules), None)
        delta = update.scale * update.B.float() @ update.A.float()
        if module is None or {*module.weight.shape} != {*delta.shape}:
            raise ExportError(f"the base has no matrix {update.path} of {' × '.join(map(str, delta.shape))}")
        with torch.no_grad():
            module.weight += (delta.T if isinstance(module, Conv1D) else delta).to(module.weight)

"""A run's record, and the store that keeps it.

A record is what a figure or a verdict may quote: configuration, seed, machine, versions, commit, history in long
form, metrics, ranks, time and memory. It is a folder named by the hash of the configuration: `run.json`,
`history.parquet`, and `update.safetensors` with the factors of every ΔW. Taught in 00.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .cache import home

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
HISTORY = ["step", "site", "name", "value"]


@dataclass
class Run:
    """One finished run.

    config: method, task, backbone, training, seed: all that decides the result.
    history: DataFrame (step, site, name, value); site is "" for the whole model.
    metrics: by split, such as {"test": {"accuracy": 0.79, "loss": 0.5}}.
    ranks: directions left at each site.  parameters: counts.  seconds: by part.  notes: warnings, sources.
    flops: of one step, frozen and adapter apart.  memory: peak bytes.
    factors: site -> (left (d, R), right (R, k)) with ΔW = left right, where the method has such a form.
    """

    config: dict[str, Any]
    history: pd.DataFrame
    metrics: dict[str, dict[str, float]]
    ranks: dict[str, int]
    parameters: dict[str, int]
    seconds: dict[str, float]
    memory: dict[str, Any] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> str:
        return config_key(self.config)

    @property
    def label(self) -> str:
        """Short name of the method and what sets it apart, such as "cola-3"."""
        method = self.config["method"]
        chain = f"-{method['chain']}" if method["method"] == "cola" else ""
        return method["method"] + chain

    def series(self, name: str, site: str = "") -> tuple[list[int], list[float]]:
        """Steps and values of one name of the history."""
        rows = self.history[(self.history["name"] == name) & (self.history["site"] == site)]
        return rows["step"].tolist(), rows["value"].tolist()

    def by_site(self, name: str) -> dict[str, float]:
        """Site -> last value of one name of the history."""
        rows = self.history[(self.history["name"] == name) & (self.history["site"] != "")]
        return rows.groupby("site", sort=False)["value"].last().to_dict()

    def score(self, split: str = "test") -> tuple[str, float]:
        """The headline metric's name and value."""
        return next(iter(self.metrics[split].items()))


def config_key(config: dict[str, Any]) -> str:
    """The run's name: a hash of all that decides its result, the package's version included.

    Changes to the code between two versions are not seen: then train with `cache=False`.
    """
    text = json.dumps({**config, "format": FORMAT, "version": version("lowrank-teach")}, sort_keys=True,
                      ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """A folder of records; LOWRANK_TEACH_RUNS, else `runs/` in the package's cache folder."""

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder) if folder else default_folder()

    def check(self) -> None:
        """Refuse before hours of training what could not be written after them.

        Raises:
            OSError: the folder cannot be made or written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"0" * 4096)
        except OSError as error:
            raise OSError(f"runs cannot be written to {self.folder} ({error.strerror or error}); make room there, or "
                          "choose another folder with LOWRANK_TEACH_RUNS") from error

    def path(self, key: str) -> Path:
        return self.folder / key

    def checkpoint(self, key: str) -> Path:
        return self.folder / f"{key}.checkpoint.safetensors"

    def forget_checkpoints(self, key: str) -> None:
        """Delete what an unfinished run of this configuration left, one file a stage."""
        for path in self.folder.glob(f"{key}.*checkpoint.safetensors"):
            path.unlink(missing_ok=True)

    def get(self, key: str) -> Run | None:
        """A stored run, or None; a damaged one is passed over with a warning, and the next `put` replaces it."""
        folder = self.path(key)
        if not (folder / "run.json").exists():
            return None
        try:
            return _read(folder)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(f"the stored run {key} is damaged ({type(error).__name__}: {error}) and is passed over; "
                          f"train it again, or delete {folder}", stacklevel=2)
            return None

    def put(self, run: Run) -> Path:
        """Write a record, whole or not at all; an older one of the same configuration is replaced.

        Raises:
            OSError: the folder cannot be written or is full; what stood there stays.
        """
        self.check()
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.folder))
        try:
            plain = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)
                     if f.name not in ("history", "factors")}
            (scratch / "run.json").write_text(json.dumps({"key": run.key, **plain}, indent=1, ensure_ascii=False),
                                              encoding="utf-8")
            run.history.to_parquet(scratch / "history.parquet", index=False)
            save_file({f"{site}.{side}": factor.detach().cpu().float().contiguous().clone()
                       for site, pair in run.factors.items()
                       for side, factor in zip(("left", "right"), pair, strict=True)},
                      scratch / "update.safetensors")
            _replace_folder(scratch, self.path(run.key))
        except (OSError, SafetensorError) as error:
            raise OSError(f"the run could not be written to {self.folder} ({error}); make room there or choose "
                          "another folder with LOWRANK_TEACH_RUNS; its checkpoint stays, so the same call goes on "
                          "from there") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.path(run.key)

    def __iter__(self) -> Iterator[Run]:
        for path in sorted(self.folder.glob("*/run.json")) if self.folder.is_dir() else []:
            run = self.get(path.parent.name)
            if run is not None:
                yield run


def _read(folder: Path) -> Run:
    values = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "update.safetensors")
    values.pop("key")
    sites = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return Run(**values, history=pd.read_parquet(folder / "history.parquet"),
               factors={site: (tensors[f"{site}.left"], tensors[f"{site}.right"]) for site in sites})


def _replace_folder(new: Path, target: Path) -> None:
    """Move a folder to its place; what stood there is deleted only once the new one stands."""
    old = new.with_name(new.name + ".old")
    if target.exists():
        os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def default_folder() -> Path:
    """`$LOWRANK_TEACH_RUNS`, or `runs` in the package's cache folder."""
    named = os.environ.get("LOWRANK_TEACH_RUNS")
    return Path(named).expanduser() if named else home() / "runs"


@cache
def machine() -> dict[str, Any]:
    """What a number was measured on: processor, cores, accelerator, versions, and the code's commit."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if cuda else None, "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "numpy")},
        "lowrank_teach": version("lowrank-teach"), "commit": commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with "+changes" where files differ from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10,
                              check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD")[:12] + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None

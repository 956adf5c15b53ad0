"""A run's record, and the store that keeps it.

A record is what a figure or a verdict may quote: configuration, seed, machine, versions, commit, history in long
form, metrics, ranks, time and memory. It is a folder named by the hash of the configuration and of what it was
trained from (rows, pretrained weights): `run.json`, `history.parquet`, and `update.safetensors` with the factors of
every ΔW. It is checked when it is read. Taught in 00.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import itertools
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from ..errors import sentence, shown
from ..models.packaged import delete, expanded, home, of_this_process, remove_leftovers, sha256

if TYPE_CHECKING:
    from torch import Tensor

    from .fit import Trained


FORMAT = 2
VERSION = version("lowrank-teach")
HISTORY = ["step", "site", "name", "value"]
FILES = ("history.parquet", "update.safetensors")   # of a record, beside run.json
WRITING = ".writing-"      # folders of records that are not finished
PAUSES_S = (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.3)   # between looks at a record that is being written


@dataclass
class Run:
    """One finished run.

    config: method, task, backbone, training, seed: all that decides the result.
    history: DataFrame (step, site, name, value); site is "" for the whole model.
    metrics: by split, such as {"test": {"accuracy": 0.79, "loss": 0.5}}.
    hits: split -> for each example whether its class was predicted, one bit each (`right` reads them); only for
        tasks that have classes.
    ranks: directions left at each site.  parameters: counts.  seconds: by part.  notes: warnings, sources.
    flops: of one step, frozen and adapter apart.  memory: peak bytes.
    factors: site -> (left (d, R), right (R, k)) with ΔW = left right, where the method has such a form.
    identity: fingerprints of the rows ("data") and of the pretrained weights ("weights"); see `identity`.
    version: of the package that made it.
    found: whether it was in the store, so that its times are those of then; no part of the record.
    trained: the network, where `fit(keep_model=True)` was asked for it; no part of the record.
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
    hits: dict[str, str] = field(default_factory=dict, repr=False)
    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    identity: dict[str, str | None] = field(default_factory=dict)
    version: str = VERSION
    found: bool = field(default=False, compare=False)
    trained: Trained | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> str:
        return config_key(self.config, self.identity, self.version)

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

    def right(self, split: str = "test") -> np.ndarray:
        """For each example of a split, in order, whether its class was predicted; (n,) of booleans.

        Raises:
            KeyError: the task has no classes, or the record is older than these bits.
        """
        return unpacked(self.hits[split])

    def score(self, split: str = "test") -> tuple[str, float]:
        """The headline metric's name and value."""
        return next(iter(self.metrics[split].items()))


def packed(hits: Sequence[bool]) -> str:
    """Booleans as text: how many, and their bits in base64."""
    return f"{len(hits)}:{base64.b64encode(np.packbits(np.asarray(hits, bool)).tobytes()).decode()}"


def unpacked(text: str) -> np.ndarray:
    """The booleans that `packed` wrote, (n,)."""
    count, _, bits = text.partition(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(count)).astype(bool)


def config_key(config: Mapping[str, Any], identity: Mapping[str, str | None] | None = None,
               made_by: str = VERSION) -> str:
    """A run's name: a hash of all that decides its result.

    config: as in the record.  identity: of rows and weights, see `identity`; None for what is no run.
    made_by: the package's version. Changes to the code between two versions are not seen: then train with
    `cache=False`.
    """
    text = json.dumps({**config, "identity": dict(identity or {}), "format": FORMAT, "version": made_by},
                      sort_keys=True, ensure_ascii=False)
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

    def network(self, key: str) -> Path:
        """Where the network of a run is kept, if it is."""
        return self.folder / "networks" / f"{key}.safetensors"

    def forget_checkpoints(self, key: str) -> None:
        """Delete what an unfinished run of this configuration left, one file a stage."""
        for path in self.folder.glob(f"{key}.*checkpoint.safetensors"):
            path.unlink(missing_ok=True)

    def get(self, key: str) -> Run | None:
        """A stored run, or None; a damaged one is passed over with one warning, and the next `put` replaces it."""
        error: Exception | None = None
        for pause in PAUSES_S:
            time.sleep(pause)
            before = self._standing(key)
            try:
                if before is not None:
                    return _read(self.path(key))
                error = None
            except DAMAGE as found:
                error = found
            writing = any(self.folder.glob(f"{WRITING}{key}-*"))   # seen first: what it wrote is then seen
            if before == self._standing(key) and not writing:
                break
        if error is not None:
            self._warn(key, error)
        return None

    def _standing(self, key: str) -> tuple[int, int] | None:
        """Which record stands under a key: another one once it was replaced; None where there is none."""
        try:
            seen = (self.path(key) / "run.json").stat()
        except OSError:
            return None
        return seen.st_ino, seen.st_mtime_ns

    def _warn(self, key: str, error: Exception) -> None:
        folder = self.path(key)
        if isinstance(error, EarlierError) or (folder, self._standing(key)) in _warned:
            return
        _warned.add((folder, self._standing(key)))
        what = f"the stored run {key} is damaged ({type(error).__name__}: {error}) and is passed over"
        warnings.warn(sentence(f"{what}; train it again, or delete {folder}"), stacklevel=3)

    def put(self, run: Run) -> Path:
        """Write a record, whole or not at all; an older one of the same run is replaced, also while it is read.

        Raises:
            OSError: the folder cannot be written or is full; what stood there stays.
        """
        self.check()
        remove_leftovers(self.folder, WRITING)
        scratch = Path(tempfile.mkdtemp(prefix=of_this_process(f"{WRITING}{run.key}-"), dir=self.folder))
        try:
            _write(run, scratch)
            _replace_folder(scratch, self.path(run.key))
        except (OSError, SafetensorError) as error:
            raise OSError(f"the run could not be written to {self.folder} ({error}); make room there or choose "
                          "another folder with LOWRANK_TEACH_RUNS; its checkpoint stays, so the same call goes on "
                          "from there") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return self.path(run.key)

    def __iter__(self) -> Iterator[Run]:
        for key in self.names():
            run = self.get(key)
            if run is not None:
                yield run

    def names(self) -> list[str]:
        """Keys under which a record may stand, sorted; also of those that are being replaced at the moment."""
        found: set[str] = set()
        for _ in range(2):   # a record that moves during a look may be passed over
            with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
                names = [entry.name for entry in entries if not entry.is_file()]
                found |= {name for name in names if not name.startswith(".")}
                found |= {name.removeprefix(WRITING).partition("-")[0] for name in names
                          if name.startswith(WRITING) and ".old" in name}
        return sorted(found)


# ---- a record as files ------------------------------------------------------------------------------------

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError)
_warned: set[tuple[Path, Any]] = set()   # damaged records that were spoken of


class EarlierError(ValueError):
    """A record of an earlier format, which did not say what it was trained on."""


def _write(run: Run, folder: Path) -> None:
    run.history.to_parquet(folder / FILES[0], index=False)
    save_file({f"{site}.{side}": factor.detach().cpu().float().contiguous().clone()
               for site, pair in run.factors.items() for side, factor in zip(("left", "right"), pair, strict=True)},
              folder / FILES[1])
    apart = ("history", "factors", "found", "trained")
    plain = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name not in apart}
    values = {"key": run.key, "format": FORMAT, **plain, "files": {name: sha256(folder / name) for name in FILES}}
    (folder / "run.json").write_text(
        json.dumps({**values, "sha256": _checksum(json.loads(json.dumps(values)))}, indent=1, ensure_ascii=False),
        encoding="utf-8")


def _checksum(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _read(folder: Path) -> Run:
    """The record in a folder.

    Raises:
        EarlierError: it is of an earlier format.  DAMAGE: it is not as it was written, or not this folder's.
    """
    values = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"run.json holds {shown(values)}, which is no record")
    if "config" in values and not {"format", "sha256"} & values.keys() and values.get("key") == folder.name:
        raise EarlierError("its format is an earlier one")
    if values.pop("sha256", None) != _checksum(values):
        raise ValueError("run.json was changed since it was written")
    written, key, _ = (values.pop(name) for name in ("files", "key", "format"))
    held = {name: (folder / name).read_bytes() for name in FILES}   # read once: another may be put there meanwhile
    for name, content in held.items():
        if hashlib.sha256(content).hexdigest() != written[name]:
            raise ValueError(f"{name} is not the file that was written")
    tensors = load(held[FILES[1]])
    sites = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    run = Run(**values, history=pd.read_parquet(io.BytesIO(held[FILES[0]])),
              factors={site: (tensors[f"{site}.left"], tensors[f"{site}.right"]) for site in sites})
    if not key == run.key == folder.name:
        raise ValueError(f"it is the record of {run.key}, another run")
    return run


def _replace_folder(new: Path, target: Path) -> None:
    """Move a folder to its place; what stood there is deleted only once the new one stands.

    Others may be doing the same: each record stands whole, and the last one stays.
    """
    for attempt in itertools.count():
        old = new.with_name(f"{new.name}.old{attempt}")
        with suppress(FileNotFoundError):   # nothing stands there
            os.replace(target, old)
        try:
            os.replace(new, target)
        except OSError:
            if not target.exists():   # not because another was faster
                with suppress(FileNotFoundError):
                    os.replace(old, target)
                raise
        delete(old)
        if not new.exists():
            return


def default_folder() -> Path:
    """`$LOWRANK_TEACH_RUNS`, or `runs` in the package's cache folder."""
    named = os.environ.get("LOWRANK_TEACH_RUNS")
    return expanded(named, "LOWRANK_TEACH_RUNS") if named else home() / "runs"


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

"""Checkpoints of an unfinished run: one safetensors file with a JSON header, written completely or not at all.

A checkpoint has the factors, gates, knots, W if a method wrote into it, Adam's moments, the rule's state, the random
state and the history. The order of the examples follows from seed and step. A checksum in the header shows whether
the file was changed. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import Refusal, sentence

if TYPE_CHECKING:
    from ..adapters import Adapters
    from .trainer import Trainer


FORMAT = "lowrank_teach checkpoint 4"
STATE = "lowrank_state.safetensors"  # the file in a checkpoint folder of transformers' Trainer
CHECKSUM = "sha256"
UNREADABLE = (SafetensorError, OSError, struct.error, ValueError, KeyError, TypeError, RuntimeError)
AFRESH = "call train() without resume_from_checkpoint to start afresh, or name another checkpoint"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the reason and the remedy."""


class DamagedError(CheckpointError):
    """A checkpoint is incomplete or damaged; `found` is the message without the remedy."""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(sentence(f"{found}; {remedy}") if remedy else found)
        self.found = found


@dataclass
class Checkpoint:
    """A checkpoint that was read: tensors by "part.name", and plain values by part.

    name, remedy: the file's name and the remedy for the message of an error.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    name: str
    remedy: str

    def part(self, name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name + "."): t for key, t in self.tensors.items() if key.startswith(name + ".")}

    def into_adapters(self, adapters: Adapters) -> None:
        """Load the state of the adapters, before the optimizer is made.

        Raises:
            CheckpointError: the checkpoint is of another head or model; the adapters are then unchanged.
        """
        with self._refusing():
            self._into_adapters(adapters)

    def _into_adapters(self, adapters: Adapters) -> None:
        tensors, values = self.part("adapters"), self.values["adapters"]
        trained = [*adapters.head_names, *adapters.base_names, *adapters.extra_names]
        own = {name: tuple(adapters.model.get_parameter(name).shape) for name in trained}
        kept = {key.removeprefix("parameter."): tuple(t.shape) for key, t in tensors.items()
                if key.startswith("parameter.")}
        for name in [*own, *kept]:
            if own.get(name) != kept.get(name):
                raise CheckpointError(sentence(
                    f"the checkpoint {self.name} belongs to another head: of {name} it holds "
                    f"{kept.get(name, 'nothing')}, and here it is {own.get(name, 'not trained')}; load the model "
                    "with the head that was trained, or start afresh"))
        here = {name: (site.d, site.k) for name, site in adapters.sites.items()}
        there = {name: (len(tensors[f"branch.{name}.lora_B"]), tensors[f"branch.{name}.lora_A"].shape[1])
                 for name in values}
        if here != there:
            wrong = next(name for name in [*here, *there] if here.get(name) != there.get(name))
            raise CheckpointError(sentence(
                f"the checkpoint {self.name} belongs to another model: of {wrong} it holds "
                f"{there.get(wrong, 'nothing')}, and here it is {here.get(wrong, 'not adapted')}; load the model "
                "that was trained, or start afresh"))
        adapters.load_state_dict(tensors, values)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn other errors of loading into a CheckpointError."""
        try:
            yield
        except (CheckpointError, Refusal):
            raise
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise CheckpointError(sentence(f"the checkpoint {self.name} does not fit this training "
                                           f"({_reason(error)}); {self.remedy}")) from error

    def refuse_longer(self, total: int) -> None:
        """Raise CheckpointError if the checkpoint has more steps than the training."""
        if self.values["step"] > total:
            raise CheckpointError(sentence(f"the checkpoint {self.name} is of step {self.values['step']}, and this "
                                           f"training has {total}; {self.remedy}"))

    def into(self, trainer: Trainer) -> None:
        """Load everything except the adapters.

        Raises:
            CheckpointError: the checkpoint is of another optimizer or rule.
        """
        with self._refusing():
            self._into(trainer)

    def _into(self, trainer: Trainer) -> None:
        parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        moments = {tuple(key.split(".", 1)) for key in self.part("optimizer")}
        if lost := {(index, name) for index, _ in moments for name in ("step", "exp_avg", "exp_avg_sq")} - moments:
            raise ValueError(f"it lacks {min(lost)[1]} of parameter {min(lost)[0]}")
        for key, value in self.part("optimizer").items():
            index, name = key.split(".", 1)
            parameter = parameters[int(index)]
            if name != "step" and value.shape != parameter.shape:
                raise ValueError(f"{name} of parameter {index} has shape {tuple(value.shape)}, which is not its own")
            trainer.optimizer.state[parameter][name] = value if name == "step" else value.to(parameter)
        trainer.rule.load_state_dict({**self.part("rule"), **self.values["rule"]})
        outcome = trainer.outcome
        outcome.step, outcome.seconds = self.values["step"], self.values["seconds"]
        outcome.history = [tuple(row) for row in self.values["history"]]  # type: ignore[misc]
        if "best" in self.values:
            trainer.best = self.values["best"]["metric"], (self.part("best"), self.values["best"]["values"])
        random = self.part("random")
        own = {name: random.get(f"{name}.{trainer.team.rank}", random[name]) for name in ("cpu", "cuda")
               if name in random}
        torch.set_rng_state(own["cpu"])
        if "cuda" in own:
            torch.cuda.set_rng_state(own["cuda"])


def random_state() -> dict[str, Tensor]:
    """Return the state of torch's default generators, of the CPU and, if there is one, of the GPU."""
    state = {"cpu": torch.get_rng_state()}
    return {**state, "cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def save_checkpoint(path: Path, trainer: Trainer, random: Sequence[dict[str, Tensor]] = ()) -> None:
    """Write the state between two steps; if that fails, the old file stays.

    random: the random state of each process; empty takes that of this process.

    Raises:
        OSError: the folder cannot be written or is full.
    """
    tensors, plain = trainer.adapters.state_dict()
    tensors = {f"adapters.{key}": value for key, value in tensors.items()}
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for i, parameter in enumerate(parameters):
        tensors |= {f"optimizer.{i}.{k}": v for k, v in trainer.optimizer.state.get(parameter, {}).items()}
    rule = trainer.rule.state_dict()
    tensors |= {f"rule.{k}": v for k, v in rule.items() if isinstance(v, Tensor)}
    for rank, state in enumerate(random or [random_state()]):
        tensors |= {f"random.{name}" + (f".{rank}" if rank else ""): value for name, value in state.items()}
    outcome = trainer.outcome
    values: dict[str, Any] = {
        "adapters": plain, "rule": {k: v for k, v in rule.items() if not isinstance(v, Tensor)},
        "step": outcome.step, "seconds": outcome.seconds, "history": outcome.history}
    if trainer.best is not None:
        metric, (best, best_values) = trainer.best
        tensors |= {f"best.{key}": value for key, value in best.items()}
        values["best"] = {"metric": metric, "values": best_values}
    write(path, tensors, {"format": FORMAT, "identity": trainer.identity, "values": json.dumps(values)})


def write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file with a checksum in its header, completely or not at all.

    Raises:
        OSError: the folder cannot be written or is full.
    """
    scratch = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, scratch, {**header, CHECKSUM: _checksum(plain, header)})
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        raise OSError(f"the checkpoint could not be written to {path.parent}: {error}; free some space or choose "
                      "another folder with LOWRANK_TEACH_RUNS") from error
    finally:
        with suppress(OSError):  # the folder may not exist
            scratch.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """Return the tensors and the header of such a file, and whether its checksum is right.

    Raises:
        UNREADABLE: the file is not safetensors, or is cut off.
    """
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        header = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    checksum = header.pop(CHECKSUM, None)
    return tensors, header, checksum == _checksum(tensors, header)


def _checksum(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        t = tensors[name]
        found.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        found.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


SCHEMA: dict[str, Any] = {"adapters": dict, "rule": dict, "step": int, "seconds": (int, float), "history": list}


def _values_of(text: str) -> dict[str, Any]:
    """Return the plain values of a checkpoint.

    Raises:
        ValueError, TypeError, RecursionError: they are not as `save_checkpoint` writes them.
    """
    values = json.loads(text)
    wrong = [name for name, kind in SCHEMA.items() if not isinstance(values[name], kind)]
    if wrong or values["step"] < 0 or any(len(row) != 4 for row in values["history"]):
        raise ValueError(f"{', '.join(wrong) or 'step or history'} is not what is written there")
    return values


def load_checkpoint(path: Path, identity: str, name: str = "", remedy: str = "") -> Checkpoint | None:
    """Return the checkpoint at `path`, or None if there is none; the file is never changed.

    name, remedy: the file's name and the remedy for the message of an error; by default to delete the file.

    Raises:
        CheckpointError: the file is cut off (`DamagedError`), has another format, or belongs to another run.
    """
    if not path.exists():
        return None
    name, remedy = name or path.name, remedy or f"delete {path} to start the run afresh"
    try:
        tensors, header, whole = read(path)
        if header.get("format") != FORMAT:
            raise CheckpointError(sentence(f"{name} is not a checkpoint of this version of the package; {remedy}"))
        if header.get("identity") != identity:
            raise CheckpointError(sentence(f"the checkpoint {name} belongs to another run; {remedy}"))
        if not whole:
            raise ValueError("its content is not what was written")
        return Checkpoint(tensors, _values_of(header["values"]), name, remedy)
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise DamagedError(f"the checkpoint {name} is cut off or damaged ({_reason(error)})", remedy) from error


# ---- a checkpoint of transformers' Trainer: a folder with such a file ----------------------------------------

def load_folder(folder: str | Path, identity: str) -> Checkpoint:
    """Return the checkpoint in a folder that `LowRankTrainer` wrote.

    Raises:
        DamagedError: the folder is incomplete or damaged.  CheckpointError: as for `load_checkpoint`.
    """
    name = Path(folder).name
    stored = load_checkpoint(Path(folder) / STATE, identity, f"{name}/{STATE}", AFRESH)
    if stored is None:
        raise DamagedError(f"{name} holds no {STATE} (none is written with save_only_model), so there is nothing to "
                           "resume from", AFRESH)
    try:
        _check_state(Path(folder) / "trainer_state.json", stored.values["step"])
        _check_random(Path(folder) / "rng_state.pth")
    except (*UNREADABLE, RecursionError) as error:
        found = f"{name} was not written to its end, or changed since ({_reason(error)})"
        raise DamagedError(found, AFRESH) from error
    return stored


def _check_state(path: Path, step: int) -> None:
    """Refuse a state of transformers' Trainer that it could not read, or that is of another step.

    Raises:
        OSError, ValueError, RecursionError: names the file and the fault.
    """
    from transformers import TrainerState  # slow to import, and not needed by our own Trainer

    numbers = [field.name for field in fields(TrainerState) if isinstance(field.default, int | float)]
    kinds: dict[str, Any] = dict.fromkeys([*numbers, "train_batch_size"], (int, float))
    kinds |= {"log_history": list, "stateful_callbacks": dict}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key, kind in kinds.items() if not isinstance(held.get(key), kind)]
        wrong += sorted(held.keys() - {field.name for field in fields(TrainerState)})
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path.name} is no JSON object") from error
    if wrong:
        raise ValueError(f"{path.name} holds another {wrong[0]:.30} than is written there")
    if held["global_step"] != step:
        raise ValueError(f"{path.name} says step {held['global_step']}, and {STATE} {step}")


def _check_random(path: Path) -> None:
    """Refuse a file of the random state whose checksums are wrong; the file may be missing.

    Raises:
        ValueError: the file is cut off or damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            whole = file.testzip() is None
    except FileNotFoundError:
        return
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, *UNREADABLE):
        whole = False
    if not whole:
        raise ValueError(f"{path.name} is cut off or damaged")


def _reason(error: Exception) -> str:
    """Return why a file could not be read, in at most 80 characters and without its folder."""
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    text = str(error)
    return text if len(text) <= 80 else f"{text[:79]}…"


def newest_whole(folder: str, identity: str) -> str | None:
    """Return the newest complete checkpoint in a folder, or None if there are no checkpoints.

    Raises:
        DamagedError: no checkpoint is complete.  CheckpointError: the newest complete one is of another run.
    """
    steps = {path: int(path.name.rpartition("-")[2]) for path in Path(folder).glob("checkpoint-*")
             if path.name.rpartition("-")[2].isdecimal()}
    first: DamagedError | None = None
    for path in sorted(steps, key=lambda path: -steps[path]):
        try:
            load_folder(path, identity)
        except DamagedError as error:
            first = first or error
            continue
        if first:
            warnings.warn(sentence(f"{first.found}. The training goes on from {path.name}, the newest one that is "
                                   "whole"), stacklevel=3)
        return str(path)
    if first:
        raise first
    return None

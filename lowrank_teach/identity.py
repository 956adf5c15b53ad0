"""What a run was made from: fingerprints of the rows and of the backbone, which its key holds and its record says.

    identity("cola", "./model")                  # {"data": "3f9a…", "weights": "b07c…"}
    identity("cola", "/abs/model", "/abs/data")  # with the folder of LOWRANK_TEACH_DATA named, not read

A local folder is known by the content of its files, packaged text and models by the hashes that they are pinned to,
and what the hub has by its commit. Nothing is loaded for it, and a file is hashed once: its digest is kept in the
cache folder by path, size and times of change, so the next time takes a look at each file's date. How rows are
prepared is not in a fingerprint: it follows from the configuration and the package's version, which are in the key.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .cache import expanded, home, sha256

if TYPE_CHECKING:
    from .tasks import Task

Digests = dict[str, str]   # name -> sha256, commit or the like
READ_OF_A_MODEL = {".json", ".safetensors", ".txt", ".model", ".jinja"}   # weights, configuration and tokenizer
MEMORY = "digests.json"
SETTLED_NS = 2_000_000_000   # a file as young as this may change again without a new date
_hashed: dict[str, list[int | str]] = {}   # path -> size, times of change, sha256


def identity(task: str, backbone: str, folder: Path | str | None = None) -> dict[str, str | None]:
    """Fingerprints of the rows and of the weights, as a record holds them.

    task: a key of `tasks.TASKS`.  backbone: as `load_backbone` takes it.
    folder: of local rows; None takes LOWRANK_TEACH_DATA, as `load_task` does.

    Returns "data" and "weights"; None for what is not at hand, so that nothing can be trained on it here.
    """
    return {"data": data_fingerprint(task, folder), "weights": weights_fingerprint(backbone)}


def data_fingerprint(task: str, folder: Path | str | None = None) -> str | None:
    """A hash of all that a task's rows are made from; arguments as `identity`."""
    from .tasks import TASKS

    named = folder or os.environ.get("LOWRANK_TEACH_DATA")
    place = expanded(str(named), "LOWRANK_TEACH_DATA") if named else None
    return None if place and not place.is_dir() else _hash_of(_rows(TASKS[task], place))


def weights_fingerprint(backbone: str) -> str | None:
    """A hash of a model's weights, configuration and tokenizer; arguments as `identity`."""
    from .assets import ASSETS
    from .convert import CONVERTER, CONVERTERS
    from .models import BACKBONES

    if backbone in BACKBONES:
        pinned = {name: sha for asset in BACKBONES[backbone].assets for name, sha in ASSETS[asset].files.items()}
        return _hash_of(pinned | ({"converter": str(CONVERTER)} if backbone in CONVERTERS else {}))
    folder = Path(backbone)
    if folder.is_dir():
        return _hash_of(_files(folder, (path for path in folder.iterdir() if path.suffix in READ_OF_A_MODEL)))
    commit = _model_on_hub(backbone)
    return _hash_of({backbone: commit} if commit else {})


def _hash_of(digests: Digests) -> str | None:
    """One hash of many; None of nothing."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32] if digests else None


# ---- where rows come from, in the order in which `tasks.sources` looks --------------------------------------


def _rows(task: Task, folder: Path | None) -> Digests:
    from .assets import ASSETS
    from .tasks import TASKS

    place = folder / (task.folder or task.name) if folder else None
    if task.made_of:
        found = _rows(TASKS[task.made_of], folder)
    elif place is not None and place.is_dir():
        found = _files(place, (path for path in place.rglob("*") if not path.name.startswith(".")))
    elif task.asset:
        found = dict(ASSETS[task.asset].files)
    elif task.reader:   # a task of one's own: by its rows, since nothing is known of their source
        found = {split: hashlib.sha256(frame.to_json().encode()).hexdigest()
                 for split, frame in task.reader().items()}
    else:
        commit = _rows_on_hub(task.name) if task.hub else None
        found = {"/".join(task.hub or ()): commit} if commit else {}
    if found and task.trained_on:
        training = _rows(TASKS[task.trained_on], folder)
        found = {**found, **{f"{task.trained_on}: {name}": sha for name, sha in training.items()}} if training else {}
    return found


def _files(folder: Path, paths: Iterable[Path]) -> Digests:
    """Digests by path in the folder; of none where one cannot be read."""
    try:
        return {path.relative_to(folder).as_posix(): digest(path) for path in paths if path.is_file()}
    except OSError:
        return {}


@cache
def _model_on_hub(name: str) -> str | None:
    """The commit that a hub name stands for, asked once a process."""
    from huggingface_hub import try_to_load_from_cache

    from .models import CheckpointError, require_config

    try:
        require_config(name)
    except CheckpointError:
        return None
    path = try_to_load_from_cache(name, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None   # models--NAME/snapshots/COMMIT/config.json


@cache
def _rows_on_hub(task: str) -> str | None:
    from .tasks import TASKS
    from .tasks.sources import commit_on_hub

    return commit_on_hub(TASKS[task])


# ---- the digest of a file, remembered -----------------------------------------------------------------------


def digest(path: Path) -> str:
    """sha256 of a file, from what is remembered where its size and times of change are those of then.

    Raises:
        OSError: it cannot be read.
    """
    name, seen = str(path.resolve()), path.stat()
    stamp: list[int | str] = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns]
    for memory in (lambda: _hashed, _remembered):
        found = memory().get(name)
        if isinstance(found, list) and found[:-1] == stamp and isinstance(found[-1], str):
            _hashed[name] = found
            return found[-1]
    value = sha256(path)
    if time.time_ns() - max(seen.st_mtime_ns, seen.st_ctime_ns) > SETTLED_NS:
        _hashed[name] = [*stamp, value]
        _remember(name, [*stamp, value])
    return value


def _remembered() -> dict[str, list[int | str]]:
    with suppress(OSError, ValueError, RecursionError):   # none yet, damaged, or no home
        found = json.loads((home() / MEMORY).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _remember(name: str, entry: list[int | str]) -> None:
    """Beside what is known of files that still stand. Of two written at once one is forgotten, and hashed again."""
    with suppress(OSError, ValueError):   # a cache that cannot be written, or no home, is fine
        known = {path: old for path, old in _remembered().items() if os.path.exists(path)} | {name: entry}
        scratch = home() / f"{MEMORY}.{os.getpid()}.part"
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(known), encoding="utf-8")
        os.replace(scratch, home() / MEMORY)

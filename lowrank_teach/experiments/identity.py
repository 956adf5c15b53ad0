"""What a run was made from: fingerprints of the rows and of the backbone, which its key holds and its record says.

    identity("cola", "./model")                  # {"data": "3f9a…", "weights": "b07c…"}
    identity("cola", "/abs/model", "/abs/data")  # with the folder of LOWRANK_TEACH_DATA named, not read

A local folder is known by the content of the files that are read, packaged text and models by the hashes that they
are pinned to, and what the hub has by its commit. Nothing is loaded for it, and a file is hashed once: its digest is
kept in the cache folder by path, size and times of change, so the next time takes a look at each file's date. How the
package's tasks prepare rows is not in a fingerprint: it follows from the version, which is in the key. A task of
one's own is known by its definition and its prepared rows, which are read for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.packaged import expanded, home, sha256

if TYPE_CHECKING:
    from pandas import DataFrame

    from ..tasks.task import Task


Digests = dict[str, str]   # name -> sha256, commit or the like
# of a model's folder, what transformers does not read; tokenizers have files of too many names to list those it does
DOCUMENTS = {"readme", "license", "licence", "notice", "notes", "changelog"}
DOCUMENT_TYPES = {".md", ".rst", ".pdf", ".html", ".png", ".jpg", ".svg", ".ipynb", ".py", ".log", ".csv"}
MEMORY = "digests.json"
SETTLED_NS = 2_000_000_000   # a file as young as this may change again without a new date
_hashed: dict[str, list[int | str]] = {}   # path -> size, times of change, sha256


def identity(task: str, backbone: str, folder: Path | str | None = None) -> dict[str, str | None]:
    """Return fingerprints of the rows and of the weights, as a record holds them.

    task: a key of `tasks.TASKS`.  backbone: as `load_backbone` takes it.
    folder: of local rows; None takes LOWRANK_TEACH_DATA, as `load_task` does.

    Returns "data" and "weights"; None for what is not at hand, so that nothing can be trained on it here.
    """
    return {"data": data_fingerprint(task, folder), "weights": weights_fingerprint(backbone)}


def data_fingerprint(task: str, folder: Path | str | None = None) -> str | None:
    """Return a hash of all that a task's rows are made from; arguments as `identity`."""
    named = folder or os.environ.get("LOWRANK_TEACH_DATA")
    place = expanded(str(named), "LOWRANK_TEACH_DATA") if named else None
    return None if place and not place.is_dir() else _hash_of(_rows(task, place))


def weights_fingerprint(backbone: str) -> str | None:
    """Return a hash of a model's weights, configuration and tokenizer; arguments as `identity`."""
    from ..models.backbones import BACKBONES
    from ..models.convert import CONVERTER, CONVERTERS
    from ..models.packaged import ASSETS

    if backbone in BACKBONES:
        pinned = {name: sha for asset in BACKBONES[backbone].assets for name, sha in ASSETS[asset].files.items()}
        return _hash_of(pinned | ({"converter": str(CONVERTER)} if backbone in CONVERTERS else {}))
    folder = Path(backbone)
    if folder.is_dir():
        return _hash_of(_files(folder, _of_a_model(folder)))
    commit = _model_on_hub(backbone)
    return _hash_of({backbone: commit} if commit else {})


def _hash_of(digests: Digests) -> str | None:
    """Return one hash of many digests; None of none."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()[:32] if digests else None


# ---- where rows come from, in the order in which `tasks.sources` looks --------------------------------------


def _rows(name: str, folder: Path | None) -> Digests:
    from ..tasks.table import TASKS, is_packaged

    task = TASKS[name]
    found = _packaged_rows(task, folder) if is_packaged(name) else _own_rows(task, folder)
    if found and task.trained_on:
        training = _rows(task.trained_on, folder)
        found = {**found, **{f"{task.trained_on}: {part}": sha for part, sha in training.items()}} if training else {}
    return found


def _packaged_rows(task: Task, folder: Path | None) -> Digests:
    from ..models.packaged import ASSETS
    from ..tasks.load import files_read

    place = folder / (task.folder or task.name) if folder else None
    if task.made_of:
        return _rows(task.made_of, folder)
    if place is not None and place.is_dir():
        return _files(place, _tree(place) if task.derived or task.made_of else files_read(task, place))
    if task.asset:
        return dict(ASSETS[task.asset].files)
    commit = _rows_on_hub(task.name) if task.hub else None
    return {"/".join(task.hub or ()): commit} if commit else {}


def _own_rows(task: Task, folder: Path | None) -> Digests:
    """Return the rows of a task that a user defined: nothing is known of its functions but what comes out of them."""
    from ..tasks.load import all_rows

    try:
        rows = {split: _hash_of_rows(frame) for split, frame in all_rows(task, folder).items()}
    except Exception:  # whatever its functions raise: training raises it too, and says more
        return {}
    return {"task": repr(task), **rows}


def _hash_of_rows(frame: DataFrame) -> str:
    def plain(cell: Any) -> Any:
        return cell.tolist() if hasattr(cell, "tolist") else repr(cell)

    columns = {str(column): frame[column].tolist() for column in frame.columns}
    return hashlib.sha256(json.dumps(columns, default=plain).encode()).hexdigest()


def _of_a_model(folder: Path) -> list[Path]:
    """Find what transformers may read of a model's folder: no hidden file, no document, of folders what an index
    of weights names, and templates."""
    shards: list[str] = []
    for index in folder.glob("*.index.json"):
        with suppress(OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError):   # damaged
            shards += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    here = [path for path in folder.iterdir() if not path.name.startswith(".")
            and path.suffix.lower() not in DOCUMENT_TYPES and path.stem.lower() not in DOCUMENTS]
    return [*here, *(folder / str(name) for name in shards), *folder.glob("*/*.jinja")]


def _tree(folder: Path) -> Iterator[Path]:
    """Return all files below a folder but hidden ones, also where a folder in it is a link; each folder once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        fresh = [name for name in sorted(folders) if os.path.realpath(os.path.join(place, name)) not in seen]
        seen |= {os.path.realpath(os.path.join(place, name)) for name in fresh}
        folders[:] = fresh
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _files(folder: Path, paths: Iterable[Path]) -> Digests:
    """Return digests by path in the folder; none if one cannot be read."""
    try:
        return {path.relative_to(folder).as_posix(): digest(path) for path in paths if path.is_file()}
    except OSError:
        return {}


@cache
def _model_on_hub(name: str) -> str | None:
    """Return the commit that a hub name stands for, asked once a process."""
    from huggingface_hub import try_to_load_from_cache

    from ..models.backbones import CheckpointError, require_config

    try:
        require_config(name)
    except CheckpointError:
        return None
    path = try_to_load_from_cache(name, "config.json")
    return Path(path).parent.name if isinstance(path, str) else None   # models--NAME/snapshots/COMMIT/config.json


@cache
def _rows_on_hub(task: str) -> str | None:
    from ..tasks.load import commit_on_hub
    from ..tasks.table import TASKS

    return commit_on_hub(TASKS[task])


# ---- the digest of a file, remembered -----------------------------------------------------------------------


def digest(path: Path) -> str:
    """Return sha256 of a file, from what is remembered where its size and times of change are those of then.

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
    """Keep a digest beside those of files that still stand. Of two written at once one is hashed again."""
    with suppress(OSError, ValueError):   # a cache that cannot be written, or no home, is fine
        known = {path: old for path, old in _remembered().items() if os.path.exists(path)} | {name: entry}
        scratch = home() / f"{MEMORY}.{os.getpid()}.part"
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(known), encoding="utf-8")
        os.replace(scratch, home() / MEMORY)

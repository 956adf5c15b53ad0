"""Folders that the environment names, and files of the cache that are known by their hash."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from contextlib import suppress
from pathlib import Path

from lowrank_teach.errors import sentence

BLOCK = 1 << 20
SCRATCH = ".scratch-"  # folders that hold what is not finished; they stand beside their target


def home() -> Path:
    """The cache folder: `$LOWRANK_TEACH_HOME`, or `~/.cache/lowrank_teach`."""
    return expanded(os.environ.get("LOWRANK_TEACH_HOME") or "~/.cache/lowrank_teach", "LOWRANK_TEACH_HOME")


def data_folder() -> Path | None:
    """The folder of local rows, `$LOWRANK_TEACH_DATA`; None where it is not set.

    Raises:
        FileNotFoundError: it names no folder.
    """
    named = os.environ.get("LOWRANK_TEACH_DATA")
    if not named:
        return None
    folder = expanded(named, "LOWRANK_TEACH_DATA")
    if not folder.is_dir():
        raise FileNotFoundError(sentence(f"LOWRANK_TEACH_DATA is {named}, which is no folder; correct or unset it"))
    return folder


def expanded(path: str, variable: str) -> Path:
    """A path with its ~ written out; `variable` is what names it in the environment.

    Raises:
        ValueError: no home folder is known, as in some containers.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(sentence(f"{path} begins in a home folder that is not known here: set {variable} to the "
                                  "full path of a folder")) from None


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_verified(path: Path, expected: str) -> bool:
    """Is this file there, and the one with this sha256?

    Hashing 90 MB at every start is slow, so a note beside the file says what was hashed. Size and time of
    change must still be those of the note, else the file is hashed again: one that was cut short is seen.
    """
    if not path.is_file():
        return False
    note, content = _note_for(path, expected)
    with suppress(OSError, ValueError):  # no note yet, or a damaged one
        if json.loads(note.read_text()) == content:
            return True
    if sha256(path) != expected:
        return False
    write_note(path, expected)
    return True


def write_note(path: Path, expected: str) -> None:
    """Remember that this file was hashed and found right."""
    note, content = _note_for(path, expected)
    with suppress(OSError):  # a read-only cache is fine: the file is then hashed each time
        note.write_text(json.dumps(content))


def _note_for(path: Path, expected: str) -> tuple[Path, list[str | int]]:
    stat = path.stat()
    return path.with_name(f".{path.name}.verified.json"), [expected, stat.st_size, stat.st_mtime_ns]


def of_this_process(prefix: str) -> str:
    """The beginning of a name of a folder that holds what is not finished, by which `sweep` knows whose it is."""
    return f"{prefix}{platform.node()}-{os.getpid()}-"


def sweep(folder: Path, prefix: str = SCRATCH) -> None:
    """Remove what a killed process left behind: where its name tells which (`of_this_process`), as soon as that has
    ended; else once it is a day old."""
    for left in folder.glob(f"{prefix}*"):
        host, _, process = left.name.rpartition("-")[0].rpartition("-")
        ended = host.endswith(f"-{platform.node()}") and process.isdecimal() and not _runs(int(process))
        with suppress(OSError):  # another process may be sweeping too
            if ended or time.time() - left.stat().st_mtime > 86_400:
                removed(left)


def removed(path: Path) -> None:
    """Delete what stands there, a folder, file or link, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _runs(process: int) -> bool:
    if os.name != "posix":   # where signal 0 would be one
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:   # another user's
        return True
    return True

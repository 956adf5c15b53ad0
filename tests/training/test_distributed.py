"""One run on two processes is the run of one process with the double batch; and nobody waits for ever."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from ranks import METHODS, PAPERS, WORDS, make, result, words
from safetensors import safe_open
from tiny_models import CALM, place_in
from torch import Tensor

import lowrank_teach as lt
from lowrank_teach.experiments.fit import RunConfig
from lowrank_teach.experiments.runs import Store
from lowrank_teach.training.batches import shares
from lowrank_teach.training.distributed import Team

if not torch.distributed.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LOWRANK_TEACH_RUNS": str(place / "runs"),
            "LOWRANK_TEACH_DATA": str(place / "data")}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return place_in(tmp_path_factory.mktemp("ranks"), **CALM)


@pytest.fixture(scope="module")
def two(place) -> list[dict[str, Any]]:
    """What two processes found, by rank."""
    script = str(Path(__file__).parents[1] / "ranks.py")
    done = subprocess.run([*LAUNCH, script, str(place), str(place / "tiny")], env=environment(place),
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [{**torch.load(place / f"rank{rank}.pt"), "printed": done.stdout} for rank in (0, 1)]


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference between two models of the same shapes."""
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in other.items()}
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())


def losses(found: dict[str, Any]) -> list[float]:
    return [value for _, _, name, value in found["history"] if name == "loss"]


# ---- the same as one process with the double batch ---------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one_with_the_double_batch(name, two):
    """Weights, ranks, gates, λ, losses and what a search hands over, in float64; the last batch has one row."""
    one, pair = result(make(name, 8)), two[0]["float64"][name]
    assert gap(one["state"], pair["state"]) < 1e-12
    assert losses(pair) == pytest.approx(losses(one), abs=1e-13)
    assert len(losses(one)) == 20
    assert pair["following"] == one["following"]
    history = [[(step, site, what) for step, site, what, _ in found["history"]] for found in (one, pair)]
    assert history[0] == history[1]


@pytest.mark.parametrize("name", PAPERS)
def test_also_in_float32(name, two):
    one, pair = result(make(name, 8, torch.float32)), two[0]["float32"][name]
    assert gap(one["state"], pair["state"]) < 1e-6
    assert losses(pair) == pytest.approx(losses(one), abs=1e-6)


@pytest.mark.parametrize("name", WORDS)
def test_a_loss_over_words_weighs_each_process_by_its_words(name, two):
    """Micro-batches of unlike rows: each has a label for its first word, or none at all. Few steps, no clipping.

    transformers takes a causal model's loss in float32.
    """
    one, pair = result(words(name, 8)), two[0]["words"][name]
    assert gap(one["state"], pair["state"]) < (1e-7 if "causal" in name else 1e-12)
    assert losses(pair) == pytest.approx(losses(one), abs=1e-6)


def test_all_processes_hold_the_same_bits(two):
    """Weights, gates' noise, merged knots, W under Delta-LoRA, β."""
    first, second = two
    for part in ("float64", "float32"):
        for name, mine in first[part].items():
            theirs = second[part][name]
            assert mine["state"].keys() == theirs["state"].keys()
            assert [key for key, value in mine["state"].items() if not torch.equal(value, theirs["state"][key])] == []
            assert repr(mine["history"]) == repr(theirs["history"])


# ---- who does what ------------------------------------------------------------------------------------------


def test_the_first_process_evaluates_and_is_heard(two):
    first, second = (each["evaluated"] for each in two)
    assert [each["calls"] for each in (first, second)] == [4, 0]
    assert [each["heard"] for each in (first, second)] == [20, 0]
    assert first["best"] == second["best"] == 0.9
    for each in (first, second):
        scores = [value for _, _, name, value in each["history"] if name == "validation.accuracy"]
        assert scores == [0.2, 0.9, 0.5, 0.4]
    assert gap(first["state"], second["state"]) == 0


def test_a_stop_is_everybodys_and_a_resume_is_exact(two):
    """Under dropout, which is each process's own; the callback that stops is called on the first alone."""
    for each in (each["resumed"] for each in two):
        assert each["stopped"] == 7
        assert gap(each["again"]["state"], each["whole"]["state"]) == 0
        assert repr(each["again"]["history"]) == repr(each["whole"]["history"])
    alone = torch.rand(3, generator=torch.Generator().manual_seed(0)).tolist()
    assert two[0]["resumed"]["noise"] == alone != two[1]["resumed"]["noise"]


def test_what_fails_on_one_process_is_heard_on_all(two):
    for each in two:
        assert each["failing"]["loss"].startswith("DivergedError: the loss is")
        assert "at step 3 of 20" in each["failing"]["loss"]
        assert each["failing"]["evaluation"] == "ValueError: no rows to evaluate on"


def test_the_record_is_that_of_the_whole_batch(two, place, monkeypatch):
    """`fit` writes it once, under the key of one process with that batch; the second call finds it."""
    for name, value in environment(place).items():
        monkeypatch.setenv(name, value)
    config = RunConfig(lt.LoRA(r=4), "rt", str(place / "tiny"), "tiny", 3,
                       {"steps": 12, "batch_size": 8, "n_train": 96})
    for each in (each["fitted"] for each in two):
        assert each["keys"] == [config.key] * 2
        assert each["config"] == config.described
        assert each["processes"] == 2
        assert each["metrics"][0] == each["metrics"][1] == two[0]["fitted"]["metrics"][0]
    stored = Store().get(config.key)
    assert stored.machine["processes"] == 2
    assert not list(Store().folder.glob("*.safetensors"))
    alone = config.fit(cache=False, progress=False, store=Store(place / "alone"))
    assert stored.series("loss")[1] == pytest.approx(alone.series("loss")[1], abs=1e-5)
    assert stored.metrics["test"]["accuracy"] == alone.metrics["test"]["accuracy"]


def test_the_command_line_speaks_once(two):
    assert json.loads(two[0]["printed"])["config"]["training"]["batch_size"] == 8


def test_a_run_that_is_ended_leaves_a_checkpoint(place):
    """The launcher hands SIGTERM on (after Ctrl-C, too); all processes end after the same step."""
    words = [*LAUNCH, "-m", "lowrank_teach.cli", "train", "lora", "--backbone", str(place / "tiny"), "--profile",
             "tiny", "--set", "steps=100000", "--set", "checkpoint_every=9", "--set", "batch_size=4", "--seed", "9"]
    started = subprocess.Popen(words, env=environment(place), start_new_session=True, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not (found := list((place / "runs").glob("*.checkpoint.safetensors"))) and started.poll() is None:
            time.sleep(0.2)   # until it trains
        os.kill(started.pid, signal.SIGTERM)
        _, said = started.communicate(timeout=60)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    stopped = [int(step) for step in re.findall(r"lowrank-teach: stopped after step (\d+) of 100000", said)]
    assert stopped
    with safe_open(found[0], "pt") as file:
        assert {json.loads(file.metadata()["values"])["step"]} == set(stopped)


# ---- the parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_parts_of_a_batch_cover_it(size, rows, accumulation):
    """Each row once; or, where they are too few, all of them on every process. As many micro-batches on each."""
    teams = [Team(rank, size) for rank in range(size)]
    parts = [team.shard(list(range(rows))) for team in teams]
    counted = sorted(row for part in parts for row in part)
    assert counted == (list(range(rows)) if rows >= size else sorted(list(range(rows)) * size))
    assert all(1 <= team.pieces(rows, accumulation) <= len(part) for team, part in zip(teams, parts, strict=True))


def test_alone_all_is_as_it_was():
    """One process exchanges nothing."""
    team, config = Team(), lt.train_config("tiny")
    run = RunConfig("lora", profile="tiny")
    model, batches = tiny(), [{"labels": torch.tensor([1, 2, -100])}, {"labels": torch.tensor([1, -100, -100])}]
    assert team.whole(config) is config
    assert run.on(team) is run
    assert team.shares(batches, model) == shares(batches, model) == [2 / 3, 1 / 3]
    assert team.any(True, False) == [True, False]
    assert team.broadcast(lambda: 3) == 3
    assert team.gather(4) == [4]
    assert team.own_seed(7) == 7
    assert Team(0, 4).whole(config).batch_size == 64
    assert run.on(Team(0, 4)).train.batch_size == 64

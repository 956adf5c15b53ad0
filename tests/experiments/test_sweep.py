"""Grids of runs: each is trained once, a death loses nothing, Ctrl-C leaves all resumable; on processes, on Ray."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import trainer
from killed_process import ENDLESS, Lethal, lives, steps, until
from tiny_models import command, place_in

import lowrank_teach as lt
from lowrank_teach.cli import read_values
from lowrank_teach.console import Screen, SweepBars
from lowrank_teach.experiments import run_groups
from lowrank_teach.experiments import sweep as engine
from lowrank_teach.experiments.estimate import estimate
from lowrank_teach.experiments.fit import RunConfig, grid
from lowrank_teach.experiments.runs import Store
from lowrank_teach.experiments.sweep import Message, SweepError, SweepResult, sweep

FAST = {"steps": 12, "batch_size": 8, "n_train": 96, "n_validation": 16, "n_test": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return place_in(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def small(place, monkeypatch, tmp_path):
    """A function that makes a grid on the tiny model; and a store of the test's own."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(methods, seeds=1, **values) -> list[RunConfig]:
        return grid(methods, "rt", str(place / "tiny"), seeds=seeds, profile="tiny", **{**FAST, **values})

    return make


def keys(configs: list[RunConfig]) -> list[str]:
    return [config.key for config in configs]


def records(store: Store) -> list[str]:
    return sorted(path.parent.name for path in store.folder.glob("*/run.json"))


# ---- configurations -----------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_seed_by_seed():
    made = grid(["lora", "cola+salora"], ["rt", "cola"], seeds=2, profile="tiny", lr=[1e-3, 2e-3], r=[4, 8])
    assert len(set(keys(made))) == 2 * 2 * 2 * 2 * 2
    assert [config.seed for config in made] == [0] * 16 + [1] * 16
    seen = {(c.method.name, c.task, c.seed, c.method.r, c.train.lr) for c in made}
    assert len(seen) == 32
    assert {members.r for c in made for members in getattr(c.method, "members", ())} == {4, 8}


def test_a_value_is_varied_for_the_methods_that_have_it():
    made = grid(["lora", lt.SaLoRA(r=4)], seeds=[3], profile="tiny", b=[0.25, 0.5])
    assert [(c.method.name, getattr(c.method, "b", None), c.method.r) for c in made] == [
        ("lora", None, 8), ("salora", 0.25, 4), ("salora", 0.5, 4)]
    assert {c.seed for c in made} == {3}
    with pytest.raises(ValueError, match="bb: no value of the methods or of the training has this name; there are"):
        grid("lora", bb=[1])


def test_a_configuration_is_what_fit_takes(small, monkeypatch):
    config, = small(lt.SaLoRA(eta_c=0.9))
    found = lt.fit(config.method, config.task, config.backbone, "tiny", 0, progress=False, **config.training)
    assert found.key == config.key
    assert found.config == config.described
    monkeypatch.setattr(lt.Trainer, "run", lambda self: pytest.fail("it trained again"))
    assert config.fit(progress=False).metrics == found.metrics
    unadjusted = RunConfig(config.method, config.task, config.backbone, "tiny", adjust=False)
    assert unadjusted.described["method"]["t_end"] == 0.3 != config.described["method"]["t_end"]


@pytest.mark.parametrize(("wrong", "words"), [
    ({"seed": -1}, "seed = -1"), ({"training": {"lr": -1.0}}, "lr and head_lr"),
    ({"method": "lorra"}, "unknown method"), ({"task": "rtt"}, "no task 'rtt': did you mean rt"),
    ({"training": {"lrr": 1}}, "unknown training value lrr"), ({"profile": "huge"}, "unknown profile")])
def test_a_configuration_is_refused_when_it_is_made(wrong, words):
    with pytest.raises(ValueError, match=words):
        RunConfig(**{"method": "lora", **wrong})


def test_the_profile_is_that_of_the_moment(monkeypatch):
    monkeypatch.setenv("LOWRANK_PROFILE", "tiny")
    config = RunConfig("lora")
    monkeypatch.setenv("LOWRANK_PROFILE", "gpu")
    assert (config.profile, config.train.steps) == ("tiny", 30)


# ---- in this process ----------------------------------------------------------------------------------------


def test_each_run_is_trained_once_and_then_found(small, monkeypatch):
    configs = small(["head", "lora"], seeds=2)
    heard: list[str] = []
    runs = sweep([*configs, configs[0]], processes=0, progress=False,
                 on_run=lambda config, run: heard.append(run.key))
    assert [run.key for run in runs] == [*keys(configs), configs[0].key]
    assert heard == keys(configs)
    assert records(Store()) == sorted(heard)
    assert [run.config["seed"] for run in runs] == [0, 0, 1, 1, 0]
    monkeypatch.setattr(lt.Trainer, "run", lambda self: pytest.fail("it trained again"))
    again = sweep(configs, processes=2, progress=False)   # nothing is missing, so no worker is started
    assert [run.metrics for run in again] == [run.metrics for run in runs[:4]]


def test_a_run_that_raises_does_not_harm_the_others(small, tmp_path, capsys):
    wrong = small(Lethal(diary=str(tmp_path / "diary"), at=3, ends="raise", times=9))
    good = small("lora", seeds=2)
    with pytest.raises(SweepError, match=r"1 of 3 runs failed: lethal, rt, seed 0: RuntimeError: it went wrong\. The "
                                         "others are stored") as found:
        sweep([good[0], *wrong, good[1]], processes=0)
    error = found.value
    assert [run and run.key for run in error.runs] == [good[0].key, None, good[1].key]
    assert [config.key for config, _ in error.failures] == keys(wrong)
    assert "after_step" in error.traces[0]
    assert records(Store()) == sorted(keys(good))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "3 runs, 0 of them stored"
    assert [line.rsplit("(", 1)[1] for line in lines[1:]] == ["1 of 3)", "2 of 3)", "3 of 3)"]
    assert "failed: RuntimeError: it went wrong" in lines[2]


def test_what_no_worker_could_have_is_refused_at_once(small, monkeypatch):
    monkeypatch.setattr(engine, "_train", lambda *_: pytest.fail("it began"))
    with pytest.raises(ValueError, match="nowhere"):
        sweep([RunConfig("lora", backbone="./nowhere")], progress=False)
    with pytest.raises(ValueError, match="processes = -1 must be 0 or more"):
        sweep(small("lora"), processes=-1, progress=False)
    with pytest.raises(ValueError, match="replicas = 0 must be 1 or more"):
        sweep(small("lora"), replicas=0, progress=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="a sweep starts its own workers"):
        sweep(small("lora"), progress=False)


def test_interrupted_here_it_goes_on_from_its_checkpoint(small, tmp_path):
    diary = tmp_path / "diary"
    configs = small(Lethal(diary=str(diary), at=99))

    class Interrupt(run_groups.Reporter):
        def on_step(self, clock, values):
            if clock.step == 5 and len(steps(diary)) == 5:
                signal.raise_signal(signal.SIGINT)
            return super().on_step(clock, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_groups, "Reporter", Interrupt)
        with pytest.raises(KeyboardInterrupt, match="stopped with 0 of 1 runs done; run the same again to go on"):
            sweep(configs, processes=0, progress=False)
    run, = sweep(configs, processes=0, progress=False)
    assert steps(diary) == list(range(1, 13))
    assert len(run.series("loss")[0]) == 12


def test_a_checkpoint_is_due_after_so_many_seconds(tmp_path):
    """The seconds count from the last one; the configuration's own count of steps is left alone."""
    saved: list[int] = []
    for autosave, expected in ((0.0, list(range(1, 7))), (3600.0, [])):
        saved.clear()
        made = trainer(lt.LoRA(r=2), steps=6, checkpoint=tmp_path / f"{autosave}.safetensors")
        made.autosave = autosave
        real = made.save
        made.save = lambda real=real, made=made: (saved.append(made.clock.step), real())
        made.run()
        assert saved == [*expected, 6]   # the last is the one at the end, that every run leaves


@pytest.mark.parametrize(("ends", "words"), [("refuse", "it went wrong"), ("raise", "RuntimeError: it went wrong")])
def test_runs_that_share_a_pass(ends, words, small, tmp_path):
    """One that is refused on the way, one that breaks the pass, and one that cannot share it harm no other."""
    good = small(["lora", "cola"], seeds=2)
    wrong, = small(Lethal(diary=str(tmp_path / "diary"), at=3, ends=ends, times=9))
    alone, = small("full", lr=1e-4)
    configs = [good[0], wrong, *good[1:], alone]
    assert sorted(map(len, engine.groups(configs, 2, 1))) == [1, 1, 2, 2]
    assert sorted(map(len, engine.groups(configs, 99, 2))) == [1, 2, 3]
    assert list(map(len, engine.groups(configs, 1, 1))) == [1] * 6
    heard: list[str] = []
    with pytest.raises(SweepError, match=f"1 of 6 runs failed: lethal, rt, seed 0: {words}\\."):
        sweep(configs, processes=0, replicas=3, progress=False, on_run=lambda config, run: heard.append(run.key))
    assert sorted(heard) == sorted(keys([*good, alone])) == records(Store())
    far = Store(tmp_path / "far")
    for config in good:
        mine, single = Store().get(config.key), config.fit(progress=False, store=far)
        assert mine.config == single.config
        assert len(mine.series("loss")[1]) == 12
    assert sweep(configs[2:], processes=0, replicas=3, progress=False)[-1].key == alone.key


# ---- on processes -------------------------------------------------------------------------------------------


def wait_until_gone(group: int) -> None:
    """No process of this group is left; Python's own helper for shared resources ends a moment later."""
    def gone() -> bool:
        with suppress(ProcessLookupError):
            os.killpg(group, 0)
            return False
        return True

    until(gone, "a worker was left behind")


@pytest.fixture(params=["processes", pytest.param("ray", marks=pytest.mark.extra)])
def where(request) -> dict[str, Any]:
    """Two processes of this machine, and a cluster of two nodes."""
    return {"processes": 2} if request.param == "processes" else {"ray": request.getfixturevalue("two_nodes").address}


def test_killed_workers_lose_nothing_and_double_nothing(where, small, tmp_path):
    """One kills its worker and is taken up again from its checkpoint, one raises; all others are as they were.

    The one that trains beside the killed one waits until that is taken up, and takes no step twice.
    """
    diary, beside = tmp_path / "once", tmp_path / "beside" / "diary"
    beside.parent.mkdir()
    once, = small(Lethal(diary=str(diary), at=10), checkpoint_every=4)
    waits, = small(Lethal(diary=str(beside), at=5, ends="wait"))
    raises, = small(Lethal(diary=str(tmp_path / "raises"), at=3, times=9, ends="raise"))
    good = small(["lora", "head"])
    configs = [once, waits, raises, *good]

    def let_it_go_on():
        until(lambda: steps(beside), "the other did not begin")
        until(lambda: len(steps(diary)) > 10, "the killed run was not taken up")
        beside.with_name("go").touch()

    (watching := threading.Thread(target=let_it_go_on)).start()
    heard: list[str] = []
    with pytest.raises(SweepError, match="1 of 5 runs failed") as found:
        sweep(configs, **where, progress=False, on_run=lambda config, run: heard.append(run.key))
    watching.join()
    expected = keys([once, waits, *good])
    assert [run and run.key for run in found.value.runs] == [*expected[:2], None, *expected[2:]]
    assert sorted(heard) == sorted(expected) == records(Store())
    assert [(config.key, words) for config, words in found.value.failures] == [
        (raises.key, "RuntimeError: it went wrong")]
    assert steps(diary) == [*range(1, 11), *range(9, 13)]   # from the checkpoint of step 8
    assert steps(beside) == list(range(1, 13))
    whole = good[0].fit(progress=False)                     # the same but for its diary
    assert Store().get(once.key).series("loss") == whole.series("loss")
    assert {entry.name for entry in Store().folder.iterdir()} == set(expected)   # no checkpoint, no token
    again = sweep([once, waits, *good], **where, progress=False)
    assert [run.key for run in again] == expected


def test_a_group_over_which_worker_after_worker_dies_is_given_up(small):
    """Its runs are said to have failed, and the others still get a worker."""
    given: list[list[str]] = []

    class Frail:
        """A place where every worker dies over one group and does the other."""

        size = 1

        def submit(self, parcel):
            given.append(parcel.keys)
            (future := Future()).set_result(None)
            return future

        def heard(self):
            return []

        def result(self, future, parcel):
            if parcel.keys == ["deadly"]:
                raise run_groups.DeadWorkerError("its process ended with SIGKILL(-9)")
            return [Message(key, "done") for key in parcel.keys]

        def stop(self):
            given.append("stop")

        close = stop

    said = list(engine.messages([run_groups.Parcel(["deadly"], b""), run_groups.Parcel(["good"], b"")], Frail()))
    assert [(message.key, message.kind) for message in said] == [("deadly", "failed"), ("good", "done")]
    assert said[0].words.startswith("given up after 3 workers died over it (its process ended with SIGKILL(-9))")
    assert given == [*3 * [["deadly"]], ["good"], "stop", "stop"]


@pytest.mark.parametrize(("to", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM),
                                            (os.killpg, signal.SIGHUP), (os.kill, signal.SIGKILL)],
                         ids=["Ctrl-C", "TERM", "HUP", "KILL"])
def test_a_stop_leaves_every_run_resumable_and_nothing_else(small, place, tmp_path, to, number):
    """Ctrl-C, and a terminal that is closed, reach the command and its worker at once; others the command alone."""
    killed = number == signal.SIGKILL
    configs, store = small("lora", seeds=2, steps=[12, ENDLESS], checkpoint_every=1), Store()
    values = {**FAST, "steps": f"12,{ENDLESS}", "checkpoint_every": 1}
    words = [sys.executable, "-m", "lowrank_teach.cli", "sweep", "--backbone", str(place / "tiny"), "--seeds", "2",
             "--profile", "tiny", "--processes", "1", "--replicas", "1",
             *(f"--set={k}={v}" for k, v in values.items())]
    started = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path / "passing")})
    (tmp_path / "passing").mkdir(exist_ok=True)
    heard = []
    for line in started.stderr:
        heard.append(line)
        if "(1 of 4)" in line:
            until(lambda: list(store.folder.glob("*.checkpoint.safetensors")), "the second run did not begin")
            assert list((tmp_path / "passing").glob(f"{engine.LOGS}*"))
            to(started.pid, number)
    assert started.wait(60) == (-signal.SIGKILL if killed else 130), "".join(heard)
    assert heard[0] == "4 runs, 0 of them stored\n"
    assert killed or "run the same again to go on" in heard[-1]
    assert "Traceback" not in "".join(heard)
    wait_until_gone(started.pid)
    done, begun = set(records(store)), {path.name.split(".")[0] for path in store.folder.glob("*.safetensors")}
    assert done
    assert begun
    assert not done & begun
    assert done | begun <= set(keys(configs))
    assert not list(store.folder.glob(".writing-*"))
    assert killed == bool(list((tmp_path / "passing").glob(f"{engine.LOGS}*")))   # the next sweep clears it up


def test_a_killed_sweep_s_folder_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = ("import os, signal; from lowrank_teach.experiments import sweep as engine; "
              "place = engine.Processes(None, 1); os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.returncode == -signal.SIGKILL
    left, = tmp_path.iterdir()
    mine, other = engine.Processes(None, 1), engine.Processes(None, 1)
    assert len(list(tmp_path.iterdir())) == 2, "those of a process that runs stay"
    assert Path(mine.logs.name).is_dir()
    assert not left.exists()
    mine.close()
    other.close()
    assert not list(tmp_path.iterdir())


def test_ctrl_c_that_only_a_worker_hears_stops_the_sweep(small):
    """Python drops an interrupt that comes while it collects garbage; the worker's word of it remains."""
    configs, heard = small("lora", seeds=3, steps=ENDLESS), []

    def interrupt_the_worker():
        while workers := multiprocessing.active_children():   # it listens once it takes steps
            with suppress(ProcessLookupError):
                os.kill(workers[0].pid, signal.SIGINT)
            time.sleep(0.2)

    def on_run(config, run):
        heard.append(config)
        threads.append(threading.Thread(target=interrupt_the_worker))
        threads[0].start()

    threads: list[threading.Thread] = []
    short = small("lora", seeds=4, steps=4)[3:]
    with pytest.raises(KeyboardInterrupt, match="stopped with 1 of 4 runs done; run the same again to go on"):
        sweep([*short, *configs], 1, on_run=on_run, replicas=1, progress=False)
    threads[0].join()   # else it would meet a worker of the next test
    assert len(heard) == 1


def test_a_worker_that_cannot_start_says_what_to_do(small, monkeypatch):
    monkeypatch.setattr(engine, "_set_up", os._exit)   # a pipe is no exit status: it dies on its way in
    with pytest.raises(run_groups.WorkerError, match=r"a worker could not start .*processes=0"):
        sweep(small("lora"), processes=1, progress=False)
    local = type("Local", (lt.LoRA,), {"name": "", "lock": threading.Lock()})   # a class that cannot travel
    with pytest.raises(run_groups.WorkerError, match=r"cannot be handed to another process .*processes=0"):
        sweep(small(local()), processes=1, progress=False)


def in_a_notebook(cells: str) -> str:
    """What is printed where code runs as in a kernel: its __main__ is no file to be imported."""
    done = subprocess.run([sys.executable, "-c", cells], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_method_of_a_notebook_is_trained_by_the_workers(where, small, place):
    """The printed example of one."""
    page = (Path(__file__).parents[2] / "notebooks/site/pages/extend.md").read_text(encoding="utf-8")
    example = next(code for code in page.split("```python\n") if "class LoRAPlus(" in code)
    assert in_a_notebook(example.partition("\nrun = ")[0] + f"""
configs = lt.grid([LoRAPlus(r=2)], "rt", {str(place / "tiny")!r}, seeds=2, profile="tiny", **{FAST!r})
runs = lt.sweep(configs, **{where!r}, progress=False)
print([run.config["method"]["method"] for run in runs], set(runs[0].ranks.values()))
""") == "['lora_plus', 'lora_plus'] {2}\n"


def test_a_method_that_the_worker_cannot_import_is_told_at_once(small, monkeypatch):
    """Its class travels by name, and the worker that is started has no such module: no worker dies over it."""
    module = type(sys)("a_module_of_this_process")
    made = type("Nowhere", (lt.LoRA,), {"name": "", "__module__": module.__name__})
    module.Nowhere = made
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(SweepError, match=r"the worker cannot load .*a_module_of_this_process.*processes=0"):
        sweep(small(made()), processes=1, progress=False)


def test_a_worker_with_other_rows_or_another_model_trains_nothing(small, place, tmp_path, monkeypatch):
    """Its record would stand under a key that nobody asked for."""
    shutil.copytree(place / "data", tmp_path / "data")
    shutil.copytree(place / "tiny", tmp_path / "tiny")
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path / "data"))
    group = grid("lora", "rt", str(tmp_path / "tiny"), profile="tiny", **FAST)
    parcel = run_groups.packed(group, keys(group))

    def trained() -> tuple[str, str]:
        said: list[Message] = []
        run_groups.train_parcel(parcel, Store(), said.append)
        return said[-1].kind, said[-1].words

    rows = pd.read_parquet(path := tmp_path / "data" / "rt" / "train.parquet")
    rows.assign(label=1 - rows["label"]).to_parquet(path)
    assert trained() == ("failed", told := run_groups._changed("rt", group[0].backbone))
    assert "the rows of rt or the weights of" in told
    rows.to_parquet(path)
    before = (settings := tmp_path / "tiny" / "config.json").read_text()
    settings.write_text(json.dumps({**json.loads(before), "hidden_act": "relu"}))
    assert trained() == ("failed", told)
    assert not list(Store())
    settings.write_text(before)
    assert trained() == ("done", "")


@pytest.mark.parametrize("count", [0, 1])
def test_rows_that_change_while_a_sweep_starts_are_told(small, place, tmp_path, monkeypatch, count):
    """Its runs were asked for on the rows of the call: none is trained on others."""
    shutil.copytree(place / "data", tmp_path / "data")
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path / "data"))
    path, real = tmp_path / "data" / "rt" / "train.parquet", engine.groups

    def meanwhile(*args):
        rows = pd.read_parquet(path)
        rows.assign(label=1 - rows["label"]).to_parquet(path)
        return real(*args)

    monkeypatch.setattr(engine, "groups", meanwhile)
    with pytest.raises(SweepError, match=r"the rows of rt or the weights of .*tiny are others than where and when"):
        sweep(small("lora"), processes=count, replicas=1, progress=False)
    assert not list(Store())


def test_a_run_whose_rows_change_as_it_begins_failed(small, monkeypatch):
    config, said = small("lora")[0], []
    real = run_groups._fit

    def meanwhile(*args):
        run, = real(*args[:3], lambda config, run: None)
        run.identity = {**run.identity, "data": "others"}
        return [run]

    monkeypatch.setattr(run_groups, "_fit", meanwhile)
    run_groups.train_group([config], [config.key], Store(), said.append)
    assert (said[-1].key, said[-1].kind) == (config.key, "failed")
    assert "are others" in said[-1].words


OWN_TASK = """
from dataclasses import replace
import pandas as pd
import lowrank_teach as lt
from lowrank_teach.tasks.table import TASKS
def prepare(frame):
    return frame.assign(label=1 - frame["label"])
TASKS["mine"] = replace(TASKS["rt"], name="mine", folder="rt", prepare=prepare)
"""


def test_a_task_of_a_notebook_is_trained_by_the_workers(small, place):
    assert in_a_notebook(OWN_TASK + f"""
runs = lt.sweep(lt.grid("lora", "mine", {str(place / "tiny")!r}, profile="tiny", **{FAST!r}), processes=1,
                progress=False)
print([run.config["task"] for run in runs])
""") == "['mine']\n"


def test_a_worker_s_table_has_the_tasks_of_each_group(small, place, monkeypatch):
    """Also where an earlier group had put another task under a name of the package's."""
    from dataclasses import replace

    from lowrank_teach.tasks.table import TASKS

    rt, group = TASKS["rt"], small("lora")
    mine = run_groups.packed(group, keys(group))
    other = replace(rt, prepare=lambda frame: frame.head(20))
    monkeypatch.setitem(TASKS, "rt", other)
    theirs = run_groups.packed(group, keys(group))
    assert run_groups.unpacked(mine) == group
    assert TASKS["rt"] is rt
    run_groups.unpacked(theirs)
    assert TASKS["rt"].prepare is not rt.prepare


@pytest.mark.parametrize(("ends", "words"), [("raise SystemExit(3)", "cannot load the method or the task"),
                                             ("os._exit(3)", "died as it loaded the method and the task")])
def test_a_worker_that_dies_as_it_loads_is_told_at_once(small, place, ends, words):
    """What a module does when it is imported is done again by the next worker."""
    said = in_a_notebook(OWN_TASK + f"""
import os
from dataclasses import dataclass
from lowrank_teach.experiments import sweep as engine; from lowrank_teach.experiments.sweep import SweepError
starts, real = [], engine.Worker.__init__
engine.Worker.__init__ = lambda self, *args: (starts.append(1), real(self, *args))[1]
def end():
    {ends}
class Prepare:
    def __call__(self, frame):
        return frame
    def __reduce__(self):
        return end, ()
TASKS["mine"] = replace(TASKS["mine"], prepare=Prepare())
try:
    lt.sweep(lt.grid("lora", "mine", {str(place / "tiny")!r}, profile="tiny", **{FAST!r}), processes=1,
             progress=False)
except SweepError as error:
    print(len(starts), error)
""")
    assert said.startswith("1 ")
    assert words in said
    assert "memory" not in said


def test_a_worker_has_one_thread_that_waits_as_those_here(tmp_path, monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "777")
    worker = engine.Worker(str(tmp_path))

    def look() -> list[Any]:
        return [torch.get_num_threads(), *map(os.environ.get, lt.WAITING_CHOICES)]

    found = worker.process.submit(look).result()
    worker.end()
    assert found == [1, *look()[1:]]


@pytest.mark.parametrize(("gpu", "options", "expected"), [
    (False, {}, (8, 2)), (False, {"processes": 3, "replicas": 2}, (4, 3)), (False, {"ray": "local"}, (8, 2)),
    (False, {"processes": 0, "replicas": 4}, (2, 1)), (True, {}, (1, 1)), (True, {"ray": "local"}, (8, 1)),
    (True, {"replicas": 4}, (2, 1))])
def test_runs_are_spread_by_one_rule(gpu, options, expected, calm, monkeypatch):
    """Groups and workers: one run a pass and a process a core, or on a GPU as many as fit in one process."""
    done = []
    monkeypatch.setattr(engine, "_train", lambda groups, tally, workers, *_: done.append((len(groups), workers)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(engine, "cpu_count", lambda: 2)
    with pytest.raises(SweepError, match="no worker said"):
        sweep(calm(), progress=False, **options)
    assert done == [expected]


@pytest.mark.parametrize("replicas", [1, 2])
def test_records_are_those_of_single_runs(replicas, calm, tmp_path):
    """Bit for bit where each run has its pass; where some share one, to rounding."""
    configs = calm(["lora", "cola"], seeds=2)
    singles = [config.fit(progress=False, store=Store(tmp_path / "far")) for config in configs]
    near = partial(pytest.approx, abs=1e-5) if replicas > 1 else lambda value: value
    for run, single in zip(sweep(configs, 1, replicas=replicas, progress=False), singles, strict=True):
        assert run.config == single.config
        assert run.series("loss")[1] == near(single.series("loss")[1])
        assert run.metrics == {split: near(values) for split, values in single.metrics.items()}
        for site, pair in single.factors.items():
            for ours, theirs in zip(run.factors[site], pair, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 if replicas > 1 else 0)


# ---- what is heard ------------------------------------------------------------------------------------------


def test_a_message_that_comes_twice_changes_nothing(small):
    config, = small("head")
    run = config.fit(progress=False)
    heard: list[str] = []
    tally = SweepResult([config, config], Store(), lambda config, run: heard.append(run.key), SweepBars(False))
    for message in (Message(config.key, "done"), Message(config.key, "failed", words="late"),
                    Message(config.key, "done")):
        tally.hear(message)
    assert heard == [config.key]
    assert [found.metrics for found in tally.result()] == [run.metrics] * 2


def test_a_record_made_out_of_reach_is_kept_here(small, tmp_path):
    config, = small("head")
    run = config.fit(progress=False, store=Store(tmp_path / "far"))
    tally = SweepResult([config], Store(), None, SweepBars(False))
    tally.hear(Message(config.key, "done", run=run))
    assert records(Store()) == [config.key]
    assert tally.result()[0].metrics == run.metrics


def test_silence_and_a_lost_record_are_failures(small):
    silent, lost = small("head", seeds=2)
    tally = SweepResult([silent, lost], Store(), None, SweepBars(False))
    tally.hear(Message(lost.key, "done"))
    with pytest.raises(SweepError, match=r"0: no worker said how it ended; head, rt, seed 1: its record is gone"):
        tally.result()


def test_the_view_on_a_terminal(small, monkeypatch):
    """Bars for all runs and for those in progress, lines above them; a run that ends loses its bar."""
    out = Screen(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr("lowrank_teach.console.console", out)
    one, other = small("lora", seeds=2)
    shown = SweepBars(True)

    def drawn() -> str:
        other = Screen(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
        other.print(shown.bars)
        return other.file.getvalue()

    with shown.shown():
        shown.begin(3, 5)
        shown.note("measured [on] 3 steps")   # above the bars, as it is
        assert "measured [on] 3 steps\n" in out.file.getvalue()
        shown.step("lora, rt, seed 0", Message(one.key, "step"))
        assert "reading examples and weights" in drawn()
        shown.step("lora, rt, seed 0", Message(one.key, "step", 4, 12, 0.61))
        shown.step("lora, rt, seed 1", Message(other.key, "step", 8, 12, 0.52))
        assert all(words in drawn() for words in ("3/5", "lora, rt, seed 0", "4/12", "loss 0.610", "8/12"))
        shown.failed("lora, rt, seed 0", Message(one.key, "failed", words="no"))
        after = drawn()
    assert "1 failed" in after
    assert "4/5" in after
    assert "seed 0" not in after
    assert "8/12" in after
    SweepBars(False).note("nothing")
    assert "nothing" not in out.file.getvalue()


# ---- the estimate -------------------------------------------------------------------------------------------


def test_the_estimate_is_drawn_from_runs_like_these(small):
    config, = small("lora")
    store = Store()
    found = estimate(small(["lora", "head"], seeds=3), store)
    assert (found.runs, found.stored, found.seconds, len(found.unknown)) == (6, 0, 0.0, 6)
    run = config.fit(progress=False)
    run.seconds = {"training": 6.0, "steps.training": 12, "total": 7.0}
    store.put(run)
    found = estimate([*small("lora", seeds=3, steps=24), *small("head", seeds=3, steps=24, batch_size=4)], store)
    assert found.seconds == pytest.approx(3 * (24 * 0.5 + 1.0))
    assert len(found.unknown) == 3
    assert found.words(2).splitlines()[0] == "6 runs, 0 of them stored, 6 to train"
    assert "about 20 s for 3 of them on 2 processes" in found.words(2)
    assert "3 of them cannot be judged, such as head, rt, seed 0: no run on that model" in found.words(2)
    assert estimate(small("head", steps=24), store).seconds == pytest.approx(13.0)   # of another method
    run.config["method"], run.seconds = small("head")[0].described["method"], {"training": 12.0, "total": 12.0}
    store.put(run)
    assert estimate(small("head", steps=24), store).seconds == pytest.approx(24.0)   # of its own
    assert estimate([config], store).missing == 0
    assert estimate(small("lora", seeds=[1], batch_size=4), store).unknown == ("lora, rt, seed 1",)


# ---- the command --------------------------------------------------------------------------------------------


def test_values_to_try_are_parted_by_commas():
    assert read_values("lr=1e-3,2e-3") == ("lr", [0.001, 0.002])
    assert read_values("sites=qv,all") == ("sites", ["qv", "all"])
    assert read_values("knots=[4,8],[6]") == ("knots", [(4, 8), (6,)])
    assert read_values("r=4") == ("r", [4])
    with pytest.raises(ValueError, match="name=value"):
        read_values("lr")


def test_the_command(small, place, monkeypatch, capsys):
    line = ("sweep", "-m", "lora", "-m", "head", "--backbone", str(place / "tiny"), "--profile", "tiny",
            "--seeds", "2", "--set", "lr=1e-3,3e-3", *(f"--set={k}={v}" for k, v in FAST.items()), "--processes", "0")
    status, out, _ = command(monkeypatch, capsys, *line, "--plan")
    assert status == 0
    assert out.startswith("8 runs, 0 of them stored, 8 to train")
    status, out, err = command(monkeypatch, capsys, *line)
    assert status == 0, err
    assert "8 runs, 0 of them stored" in err
    rows = [row.split() for row in out.splitlines()]
    assert [row[1:4] for row in rows[1:]] == [[method, f"lr={lr}", "2"] for method in ("lora", "head")
                                              for lr in (0.001, 0.003)]
    status, out, _ = command(monkeypatch, capsys, *line, "--json")
    found = json.loads(out)["runs"]
    assert len({run["key"] for run in found}) == 8
    mean = sum(run["metrics"]["test"]["accuracy"] for run in found if run["config"]["method"]["method"] == "lora" and
               run["config"]["training"]["lr"] == 0.001) / 2
    assert rows[1][5] == f"{mean:.3f}"
    plan = json.loads(command(monkeypatch, capsys, *line, "--plan", "--json")[1])
    assert (plan["stored"], plan["missing"], plan["seconds"]) == (8, 0, None)


def test_the_command_fails_after_it_has_shown_the_rest(small, place, monkeypatch, capsys):
    line = ("sweep", "-m", "head", "-m", "lora", "--backbone", str(place / "tiny"), "--profile", "tiny",
            *(f"--set={k}={v}" for k, v in FAST.items()), "--set", "r=4,99", "--processes", "0")
    status, out, err = command(monkeypatch, capsys, *line)
    assert status == 2
    assert "1 of 4 runs failed: lora, rt, seed 0, r=99: rank 99 is larger than min(d, k)" in err
    assert "Traceback" not in err
    assert [row.split()[1] for row in out.splitlines()[1:]] == ["head", "head", "lora"]


# ---- on Ray -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_nodes(place, tmp_path_factory):
    """A cluster of two nodes with one core each, which keep their own runs elsewhere."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'lowrank-teach[scale]'")
    import ray
    from ray.cluster_utils import Cluster

    far = tmp_path_factory.mktemp("node")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        patch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
        patch.setenv("LOWRANK_TEACH_RUNS", str(far / "runs"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.far = far
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.extra
def test_on_ray_a_node_that_dies_loses_nothing(two_nodes, small, tmp_path):
    """One of two nodes goes while each of them trains: its run is made again on the other."""
    cluster = two_nodes
    diaries = [tmp_path / "one", tmp_path / "other"]
    configs = [config for diary in diaries for config in small(Lethal(diary=str(diary), at=5, ends="wait"))]

    def remove_a_node():
        until(lambda: all(5 in steps(diary) for diary in diaries), "not both came to their fifth step")
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        until(lambda: not all(map(lives, diaries)), "the node's worker lives on")
        (tmp_path / "go").touch()

    watching = threading.Thread(target=remove_a_node)
    watching.start()
    runs = sweep(configs, ray="auto", progress=False)
    watching.join()
    cluster.add_node(num_cpus=1)
    assert [run.key for run in runs] == keys(configs)
    assert records(Store()) == sorted(keys(configs))
    taken = [steps(diary) for diary in diaries]
    assert all(sorted(set(each)) == list(range(1, 13)) for each in taken)
    assert sorted(len(each) == 12 for each in taken) == [False, True]   # one of them began anew
    assert [len(run.series("loss")[0]) for run in runs] == [12, 12]


@pytest.mark.extra
def test_on_ray_records_come_back_where_folders_are_not_shared(two_nodes, small, monkeypatch):
    """A node that does not find the sweep's token trains into its own store; the record is put into ours."""
    kept: list[str] = []
    real = Store.put
    monkeypatch.setattr(Store, "put", lambda self, run: (kept.append(run.key), real(self, run)))
    monkeypatch.setattr(Path, "touch", lambda self: None)
    configs = small("head", seeds=2)
    runs = sweep(configs, ray="auto", progress=False)
    assert [run.key for run in runs] == keys(configs)
    assert sorted(kept) == sorted(keys(configs)) == records(Store())


@pytest.mark.extra
def test_on_ray_each_sweep_is_trained_on_its_own_rows(two_nodes, small, place, tmp_path, monkeypatch):
    """A worker that is there already reads the folder that the second sweep names, not the first one's."""
    trained = []
    for name in ("first", "second"):
        shutil.copytree(place / "data", tmp_path / name)
        monkeypatch.setenv("LOWRANK_TEACH_DATA", str(tmp_path / name))
        monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / name / "runs"))
        trained += sweep(small("lora"), ray="auto", progress=False)
    assert [run.notes[0].partition(":")[0] for run in trained] == ["rows from the local folder first/rt",
                                                                  "rows from the local folder second/rt"]


@pytest.mark.extra
def test_on_ray_what_is_relative_is_found_by_a_cluster_started_elsewhere(two_nodes, small, place, tmp_path,
                                                                         monkeypatch):
    """Rows, the model, the store and the hub's cache: the record is in the sweep's store, and in no other."""
    monkeypatch.chdir(place)
    for name, value in {"LOWRANK_TEACH_DATA": "data", "LOWRANK_TEACH_RUNS": "here/runs", "HF_HOME": "hub"}.items():
        monkeypatch.setenv(name, value)
    elsewhere = [set(Path(folder).rglob("run.json")) for folder in (two_nodes.far, tmp_path)]
    run, = sweep(grid("lora", "rt", "./tiny", profile="tiny", **FAST), ray="auto", progress=False)
    assert records(Store(place / "here" / "runs")) == [run.key]
    assert [set(Path(folder).rglob("run.json")) for folder in (two_nodes.far, tmp_path)] == elsewhere


@pytest.mark.extra
def test_on_ray_ctrl_c_leaves_checkpoints(two_nodes, small, tmp_path):
    diary = tmp_path / "diary"
    configs = small(Lethal(diary=str(diary)), steps=ENDLESS)

    class Impatient(SweepBars):
        def step(self, label, message):
            if message.step > 1:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "SweepBars", Impatient)
        with pytest.raises(KeyboardInterrupt, match="stopped with 0 of 1 runs done"):
            sweep(configs, ray="auto", progress=False)
    taken = len(steps(diary))
    assert 1 < taken < ENDLESS
    assert len(list(Store().folder.glob("*.checkpoint.safetensors"))) == 1
    assert not list(Store().folder.glob(".seen-by-ray-*"))


@pytest.mark.extra
def test_on_ray_what_is_answered_late_is_heard(two_nodes, small, tmp_path, monkeypatch):
    """A run goes on once the view has heard of it, from a mailbox that takes its time as on a busy machine."""
    from lowrank_teach.experiments import ray_cluster

    class Slow(ray_cluster.Mailbox):
        def take(self):
            time.sleep(2 * run_groups.LOOK_EVERY_S)
            return super().take()

    class Letting(SweepBars):
        def step(self, label, message):
            (tmp_path / "go").touch()

    monkeypatch.setattr(ray_cluster, "Mailbox", Slow)
    monkeypatch.setattr(engine, "SweepBars", Letting)
    run, = sweep(small(Lethal(diary=str(tmp_path / "diary"), at=5, ends="wait")), ray="auto", progress=False)
    assert len(run.series("loss")[0]) == 12


def test_without_ray_it_says_how_to_get_it(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "lowrank_teach.experiments.ray_cluster", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'lowrank-teach\[scale\]'"):
        sweep(small("lora"), ray="auto", progress=False)

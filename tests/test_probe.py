"""Steps of a sweep's runs, timed in workers: they are the runs' own and leave nothing behind; their benchmark."""

from __future__ import annotations

import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from benchmarks import mix as benchmark
from benchmarks.harness import Settings
from small import left

from lowrank_teach.outcome import DivergedError
from lowrank_teach.runs import Store
from lowrank_teach.sweeps import probe, processes
from lowrank_teach.sweeps.mix import Mix, candidates

ALONE, DEFAULT, TWO = Mix(1, 2, 1), Mix(2, 1, 1), Mix(2, 1, 2)


@pytest.mark.parametrize("methods", ["lora", "cola", "delta_lora", "autolora", "pfeiffer"])
def test_the_steps_are_those_of_the_runs(methods, calm, tmp_path):
    """Alone or in a pass: the first step of each run is that of `fit`, on its rows, and nothing is written."""
    configs = calm(methods, seeds=3, eval_every=1, checkpoint_every=1)
    expected = [config.fit(progress=False, store=Store(tmp_path / "far")).series("loss")[1] for config in configs]
    before = left(tmp_path)
    for replicas in (1, 2, 4):
        sample = probe.Sample(probe.trainers_of(configs, tmp_path / "passing"))
        assert sample.sharing == (0 if methods == "pfeiffer" else 3)
        assert sample.step(replicas, 1) > 0
        sample.step(replicas, 2)
        for lane, losses in zip(sample.lanes, expected, strict=True):
            history = lane.trainer.outcome.history
            found = [value for _, site, name, value in history if (site, name) == ("", "loss")]
            assert found == pytest.approx(losses[:2], abs=1e-5)
            assert not [name for _, _, name, _ in history if name.startswith("validation.")]
            assert sample.passes.keys() == ({(1, 0)} if methods == "pfeiffer" else
                                            set(zip([replicas] * 3, range(0, 3, replicas), strict=False)))
        assert bool(sample.passes[replicas, 0].made) == (replicas > 1 and sample.sharing > 0)   # they shared a pass
    assert left(tmp_path) == before


def test_what_goes_wrong_in_one_run_is_told(calm, tmp_path):
    trainers = probe.trainers_of(calm(seeds=2), tmp_path / "passing")
    with torch.no_grad():
        trainers[1].adapters["0.q"].lora_A.fill_(float("nan"))
    with pytest.raises(DivergedError, match="at step 1 of 6"):
        probe.Sample(trainers).step(2, 1)


def test_workers_leave_nothing_and_end(calm, tmp_path):
    configs = calm(seeds=2)
    with probe.probing(partial(probe.trainers_of, configs), 2) as workers:
        assert workers.steps == 6.0
        taken = {mix: workers.seconds(mix, 1) for mix in (ALONE, DEFAULT, TWO)}
        assert all(0 < seconds < 60 for seconds in taken.values())
        started = [worker.process for worker in workers.workers]
        assert all(process.is_alive() for process in started)
        started[1].kill()
        with pytest.raises(probe.ProbeError, match="its process ended with signal SIGKILL"):
            workers.seconds(DEFAULT, 2)
        with pytest.raises(probe.ProbeError, match="range"):
            workers.seconds(Mix(1, 1, 0), 2)   # passes of no run
    assert not any(process.is_alive() for process in started)
    assert not left(tmp_path)


class Pipe:
    """One that holds what will be heard, and notes what is said."""

    def __init__(self, *heard):
        self.heard, self.said = list(heard), []

    def recv(self):
        if not self.heard:
            raise EOFError
        return self.heard.pop(0)

    def poll(self, seconds):
        return True

    def send(self, what):
        self.said.append(what)


def test_the_slowest_of_those_at_work_counts():
    workers = [SimpleNamespace(pipe=Pipe(100.0, *taken)) for taken in ((1.0, 2.0), (3.0,))]
    probed = probe.Probe(workers, "make")
    assert probed.steps == 100.0
    assert probed.seconds(TWO, 1) == 1.5      # 3 s of the slower of two, that each took one step of one run meanwhile
    assert probed.seconds(ALONE, 2) == 2.0
    assert [worker.pipe.said for worker in workers] == [["make", (1, 2, 1), (2, 1, 2)], ["make", (1, 2, 1)]]


def test_a_step_has_the_threads_of_its_mix(calm, monkeypatch, tmp_path):
    threads = []
    monkeypatch.setattr(probe, "set_up", lambda log, threads: None)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    pipe = Pipe(partial(probe.trainers_of, calm(seeds=2)), (2, 1, 1), (1, 2, 1))
    probe._live(pipe, str(tmp_path / "passing"), "", 1)
    assert threads == [2, 1]
    assert pipe.said[0] == 6.0
    assert all(0 < seconds < 60 for seconds in pipe.said[1:3])
    assert pipe.said[3:] == ["EOFError:"]     # nobody hears it any more


def told_threads(pipe, folder, log, threads):
    processes.set_up(log, threads)
    pipe.send(torch.get_num_threads())


def sleeps(folder):
    threading.Event().wait()


def test_a_worker_has_the_threads_it_was_given(tmp_path):
    worker = processes.Worker(tmp_path, tmp_path, 3, told_threads)
    assert worker.pipe.recv() == 3
    worker.end()
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "Worker", lambda *given: made.append(given))
        processes.Pool([[]], Store(tmp_path), 1, 3)._start()
    assert made[0][2] == 3


def test_a_worker_that_falls_silent_is_told(calm, monkeypatch, tmp_path):
    monkeypatch.setattr(probe, "PATIENCE_S", 0.2)
    with pytest.raises(probe.ProbeError, match="silent for 0 s"), probe.probing(sleeps, 1):
        pass
    assert not left(tmp_path)


# ---- the benchmark ------------------------------------------------------------------------------------------


def test_the_benchmark(calm_folder, monkeypatch):
    monkeypatch.setattr(benchmark, "usable_processes", lambda: 1)
    rows, details = benchmark.bench(Settings(backbone=str(calm_folder / "tiny"), rows=8, tokens=6, r=4, repeats=2))
    names = [str(mix) for mix in candidates(100, 1, 1, None)]
    assert [row.name for row in rows] == [*(f"{benchmark.PEFT} / {name}" for name in names),
                                          f"{benchmark.PEFT} / what a sweep chooses",
                                          f"{names[0]} / what a sweep chooses"]
    assert [row.aim for row in rows] == [*[None] * len(names), 1.3, 1.0]
    assert all(row.least for row in rows)
    assert set(details["milliseconds"]) == {benchmark.PEFT, *names}
    assert details["choice"] in names


def test_the_ratios_of_the_benchmark_by_hand():
    each = {benchmark.PEFT: [6.0, 6.0, 6.0], str(ALONE): [4.0, 4.0, 4.0], str(DEFAULT): [2.0, 2.0, 2.0]}
    found = {row.name: row.value for row in benchmark.rows(each, [ALONE, DEFAULT], DEFAULT)}
    assert found == {f"{benchmark.PEFT} / {ALONE}": 1.5, f"{benchmark.PEFT} / {DEFAULT}": 3.0,
                     f"{benchmark.PEFT} / what a sweep chooses": 3.0, f"{ALONE} / what a sweep chooses": 2.0}

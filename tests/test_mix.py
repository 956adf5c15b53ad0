"""The mix of processes and replicas: what may be chosen, what is, and that measuring it leaves nothing behind."""

from __future__ import annotations

import itertools
import random
from functools import partial

import pytest
import torch
from small import left

from lowrank_teach.run_config import grid
from lowrank_teach.runs import Store
from lowrank_teach.sweeps import SweepError, engine, mix, probe, sweep
from lowrank_teach.sweeps.mix import Mix, candidates, choose, measure, pays, planned, spread_over

ALONE, DEFAULT, TWO, FOUR, FOUR_ALONE = Mix(1, 2, 1), Mix(2, 1, 1), Mix(2, 1, 2), Mix(2, 1, 4), Mix(1, 2, 4)


@pytest.fixture
def always(monkeypatch):
    """However little there is to train, it is measured; one core, so that few processes are started."""
    monkeypatch.setattr(mix, "WORTH", 0)
    monkeypatch.setattr(engine, "usable_processes", lambda: 1)


@pytest.fixture
def no_probe(monkeypatch):
    """Nothing may be measured."""
    def refuse(*_):
        pytest.fail("it measured")

    monkeypatch.setattr(probe, "probing", refuse)
    monkeypatch.setattr(engine, "usable_processes", lambda: 2)


# ---- what may be chosen, and what is ------------------------------------------------------------------------


def test_one_after_another_is_the_first_candidate():
    assert candidates(100, 2, 2, None) == [ALONE, DEFAULT, TWO, FOUR, FOUR_ALONE]
    for runs, cores, threads in itertools.product((1, 7, 8, 100), (1, 2, 16), (1, 2, 8)):
        found = candidates(runs, cores, threads, None)
        assert found[0] == Mix(1, threads, 1)
        assert Mix(cores, 1, 1) in found
        assert len(set(found)) == len(found)
        assert all(mix.replicas <= max(1, -(-runs // mix.processes)) for mix in found)


def test_what_was_asked_for_is_kept():
    assert candidates(100, 3, None, None) == [Mix(3, 1, 1), Mix(3, 1, 2), Mix(3, 1, 4)]
    assert candidates(100, 2, 2, 16) == [Mix(1, 2, 16), Mix(2, 1, 16)]
    assert candidates(10, 2, 2, 16) == [Mix(1, 2, 10), Mix(2, 1, 5)]   # no worker has more to train
    assert candidates(100, 2, 2, 1) == [ALONE, DEFAULT]
    assert candidates(100, 1, 1, 4) == [Mix(1, 1, 4)]                 # nothing to choose


@pytest.mark.parametrize(("seconds", "expected"), [
    ({ALONE: 1.0, DEFAULT: 0.7, TWO: 0.8, FOUR: 0.9}, DEFAULT),
    ({ALONE: 1.0, DEFAULT: 0.7, TWO: 0.6, FOUR: 0.5}, FOUR),
    ({ALONE: 1.0, DEFAULT: 0.7, TWO: 0.69, FOUR: 0.685}, DEFAULT),      # within noise: the simpler one
    ({ALONE: 1.0, DEFAULT: 0.7, TWO: 0.69, FOUR: 0.67}, TWO),
    ({ALONE: 1.0, DEFAULT: 1.4, TWO: 1.2, FOUR: 1.1}, ALONE),
    ({ALONE: 1.0, DEFAULT: 0.98, TWO: 1.2}, ALONE)])
def test_the_simplest_of_the_fastest_is_chosen(seconds, expected):
    assert choose(seconds) == expected


def test_the_choice_is_never_slower_than_one_after_another():
    draw = random.Random(0)
    for _ in range(300):
        seconds = {mix: draw.uniform(0.9, 1.1) for mix in candidates(100, 2, 2, None)}
        assert seconds[choose(seconds)] <= seconds[ALONE]
        assert seconds[choose(seconds)] <= 1.03 * min(seconds.values())


def test_measuring_pays_where_it_is_a_tenth_of_the_sweep():
    """Three turns of 1 · 4 · 1 s and 0.6 · 4 · 2 s, after 3.6 s: 30 s, so 300 s of training, 500 steps of 0.6 s."""
    first = {ALONE: 1.0, DEFAULT: 0.6}
    assert pays(501, first, 3.6, 4)
    assert not pays(499, first, 3.6, 4)
    assert not pays(501, first, 3.7, 4)


def test_the_runs_that_are_measured_lie_over_the_whole_list(calm):
    configs = calm(lr=[1e-3, 2e-3, 3e-3], seeds=4)
    assert [configs.index(config) for config in spread_over(configs, 4)] == [0, 3, 6, 9]
    assert spread_over(configs, 12) == configs


class Recorded:
    """Workers whose steps take what a table says; they note what they were asked for."""

    steps = 1000.0

    def __init__(self, table):
        self.table, self.asked = {mix: iter(values) for mix, values in table.items()}, []

    def seconds(self, mix, number):
        self.asked.append((mix, number))
        return next(self.table[mix])


def test_mixes_are_measured_in_turn_and_the_first_turn_is_not_counted():
    found = Recorded({ALONE: [9.0, 1.0, 5.0, 2.0], DEFAULT: [0.1, 4.0, 3.0, 3.5]})
    shown = []
    assert measure(found, [ALONE, DEFAULT], lambda first: shown.append(first) or True) == {ALONE: 2.0, DEFAULT: 3.5}
    assert shown == [{ALONE: 9.0, DEFAULT: 0.1}]
    assert found.asked == [(ALONE, 1), (DEFAULT, 1), (ALONE, 2), (DEFAULT, 2), (DEFAULT, 3), (ALONE, 3), (ALONE, 4),
                           (DEFAULT, 4)]      # of each mix the same steps, so the same rows
    assert measure(Recorded({ALONE: [9.0], DEFAULT: [0.1]}), [ALONE, DEFAULT], lambda first: False) is None


# ---- a sweep ------------------------------------------------------------------------------------------------


def test_a_sweep_measures_and_says_what_it_chose(calm, always, capsys, tmp_path):
    configs = calm()
    runs = sweep(configs)
    assert [run.key for run in runs] == [config.key for config in configs]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "8 runs, 0 of them stored"
    assert said[1].startswith("measured on 3 steps of 4 runs a process, as speed: 1 process of 1 thread, one run a "
                              "pass 1.00; 1 process of 1 thread, 2 runs a pass ")
    chosen = said[1].split("; chosen: ")[1]
    assert chosen in [str(mix) for mix in candidates(8, 1, 1, None)]
    assert len(said) == 10
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(config.key for config in configs)
    assert not list((tmp_path / "passing").iterdir())


@pytest.mark.parametrize("chosen", [ALONE, Mix(1, 1, 2)], ids=str)
def test_records_under_a_mix_are_those_of_single_runs(chosen, calm, monkeypatch, tmp_path):
    """Bit for bit where each run has its pass; where some share one, to rounding."""
    configs = calm(["lora", "cola"], seeds=2)
    monkeypatch.setattr(engine, "planned", lambda *_: chosen)
    singles = [config.fit(progress=False, store=Store(tmp_path / "far")) for config in configs]
    near = partial(pytest.approx, abs=1e-5) if chosen.replicas > 1 else lambda value: value
    for run, single in zip(sweep(configs, progress=False), singles, strict=True):
        assert run.config == single.config
        assert run.series("loss")[1] == near(single.series("loss")[1])
        assert run.metrics == {split: near(values) for split, values in single.metrics.items()}
        for site, pair in single.factors.items():
            for ours, theirs in zip(run.factors[site], pair, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 if chosen.replicas > 1 else 0)


def test_what_is_asked_for_is_what_is_done(calm, no_probe, monkeypatch, tmp_path):
    """Both, or this very process: nothing is left to measure. One of the two: the other is."""
    monkeypatch.setattr(mix, "WORTH", 0)
    done = []
    monkeypatch.setattr(engine, "_train", lambda work, store, mix, *_: done.append((mix, len(work))))

    def asked(**options):
        with pytest.raises(SweepError):   # for nothing is trained
            sweep(calm(), progress=False, **options)
        return done.pop()

    assert asked(processes=2, replicas=2) == (Mix(2, 1, 2), 4)
    assert asked(processes=0) == (Mix(1, 1, 1), 8)
    assert asked(processes=0, replicas=4) == (Mix(1, 1, 4), 2)
    assert asked(ray="local") == (Mix(2, 1, 1), 8)
    tried = []

    def measured(workers, mixes, worth):
        tried.append(mixes)
        return {mix: 1.0 / (1 + i) for i, mix in enumerate(mixes)}

    monkeypatch.setattr(probe, "probing", lambda make, size: Nothing())
    monkeypatch.setattr(mix, "measure", measured)
    for options, chosen in (({"processes": 2}, FOUR), ({"replicas": 4}, FOUR),
                            ({}, Mix(1, torch.get_num_threads(), 4))):
        assert asked(**options) == (chosen, 2)
        assert tried.pop()[-1] == chosen


class Nothing:
    """Workers that are asked for nothing."""

    steps = 1.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_short_sweep_measures_nothing(calm, no_probe, monkeypatch):
    said = []
    assert planned(calm(seeds=40), 2, None, None, said.append) == DEFAULT
    assert planned(calm(seeds=40), 2, 3, None, said.append) == Mix(3, 1, 1)
    assert planned(calm(seeds=1), 2, None, None, said.append) == Mix(1, 1, 1)
    assert planned([], 2, None, None, said.append) == Mix(1, 1, 1)
    monkeypatch.setattr(mix, "WORTH", 0)
    assert planned(calm(seeds=7), 2, None, None, said.append) == DEFAULT
    assert planned(calm("full", seeds=9), 2, None, None, said.append) == DEFAULT   # each by itself
    assert not said


def test_operations_say_before_the_start_whether_it_may_pay(calm):
    """A hundred runs of MiniLM in the laptop profile do, eight do not; nor do ten thousand of a toy."""
    both = candidates(100, 2, 2, None)
    assert mix._may_pay(grid("lora", seeds=100, profile="laptop"), both)
    assert not mix._may_pay(grid("lora", seeds=8, profile="laptop"), both)
    assert not mix._may_pay(calm(seeds=1) * 10_000, both)


def test_too_little_is_seen_after_a_first_turn(calm, monkeypatch):
    """Rough operations said yes; the steps themselves say no."""
    monkeypatch.setattr(mix, "_may_pay", lambda *_: True)
    slow = Recorded({mix: [0.1] for mix in candidates(8, 2, 1, None)})
    monkeypatch.setattr(probe, "probing", lambda make, size: type("", (Nothing,), {
        "steps": 50.0, "seconds": staticmethod(slow.seconds)})())
    said = []
    assert planned(calm(), 2, None, None, said.append) == DEFAULT
    assert said == ["to measure how these runs train fastest would take too much of their time; they are trained on "
                    "2 processes of 1 thread, one run a pass"]


def test_replicas_without_room_are_not_tried(calm, monkeypatch):
    from lowrank_teach import many_runs

    configs = calm()
    for room, expected in ((3, [ALONE, DEFAULT]), (4, [ALONE, DEFAULT, TWO, FOUR_ALONE]),
                           (99, candidates(8, 2, 2, None))):
        monkeypatch.setattr(many_runs, "room_for", lambda group, room=room: room)
        assert mix._that_fit(configs, candidates(8, 2, 2, None)) == expected


def test_a_run_that_is_refused_where_it_is_measured(calm, always):
    """It ends the measuring, not the sweep."""
    said = []
    assert planned([*calm("salora", seeds=1), *calm()], 1, None, None, said.append) == Mix(1, 1, 1)
    assert len(said) == 1
    assert said[0].startswith("how to train these runs fastest could not be measured (a gate window of 5 "
                              "steps cannot")
    assert said[0].endswith("they are trained on 1 process of 1 thread, one run a pass")


def test_whatever_breaks_the_measuring(calm, always, monkeypatch):
    def breaks(*_):
        raise OSError("no room for a worker")

    monkeypatch.setattr(probe, "probing", breaks)
    said = []
    assert planned(calm(), 2, None, 2, said.append) == TWO
    assert said == ["how to train these runs fastest could not be measured (OSError: no room for a worker); they are "
                    "trained on 2 processes of 1 thread, 2 runs a pass"]


def test_ctrl_c_while_it_measures(calm, always, monkeypatch, tmp_path):
    made = []

    def interrupted(workers, make):
        made.extend(worker.process for worker in workers)
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "Probe", interrupted)
    monkeypatch.setattr(engine, "usable_processes", lambda: 2)
    with pytest.raises(KeyboardInterrupt, match="stopped with 0 of 8 runs done; run the same again to go on"):
        sweep(calm(), progress=False)
    assert len(made) == 2
    assert not any(process.is_alive() for process in made)
    assert not left(tmp_path)

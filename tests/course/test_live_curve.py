"""The live curve: throttled, complete at the end, words for who cannot see it, and a reference with provenance."""

from __future__ import annotations

import re
from contextlib import suppress

import pandas as pd
import pytest

from lowrank_teach.analysis import statistics
from lowrank_teach.course import live_curve
from lowrank_teach.experiments.runs import HISTORY, Run
from lowrank_teach.methods.base import Clock
from lowrank_teach.training import callbacks
from lowrank_teach.training.callbacks import ProgressLine, watched


def a_run(steps: int = 40, seed: int = 0) -> Run:
    history = pd.DataFrame([(i, "", "loss", 1 / i) for i in range(1, steps + 1)], columns=HISTORY)
    return Run(config={"method": {"method": "lora"}, "task": "rt", "backbone": "minilm-l6", "profile": "tiny",
                       "seed": seed},
               history=history, metrics={"test": {"accuracy": 0.8}}, ranks={}, parameters={}, seconds={},
               machine={"processor": "a machine", "torch": "2", "commit": "abc"})


def test_pictures_are_throttled_and_the_last_step_is_drawn():
    shown = []
    curve = live_curve.LiveCurve("lora", {"stored": ([1, 2, 3], [1.0, 0.5, 0.3])}, every=1e9,
                           display=lambda data, metadata, first: shown.append((data, metadata, first)))
    for step in range(1, 31):
        curve.on_step(Clock(step, 30, 10), {"loss": 1 / step})
    assert len(shown) <= 2
    data, metadata, _ = shown[-1]
    assert metadata["image/png"]["alt"] == data["text/plain"] == curve.words()
    assert "over 30 steps" in curve.words()
    assert "stored" in curve.words()
    assert [first for _, _, first in shown].count(True) == 1


def test_outside_a_notebook_it_prints(capsys):
    curve = live_curve.LiveCurve(every=0.0)
    for step in (1, 2, 3):
        curve.on_step(Clock(step, 3, 3), {"loss": 0.5})
    curve.finish(a_run(), "caption")
    out = capsys.readouterr().out
    assert "step 3/3  loss 0.500" in out
    assert "caption" in out


def test_a_line_of_progress_in_a_notebook_is_there_at_once_and_gone_in_the_end():
    shown = []
    line = ProgressLine(every=0.0, show=lambda *parts: shown.append(parts))
    with suppress(ZeroDivisionError), watched([line], '<b>&"'):   # also after an error
        assert shown[0][0]["text/html"].endswith("> &lt;b&gt;&amp;&quot;: reading examples and weights …")
        for step in (1, 2, 3):
            line.on_step(Clock(step, 3, 3), {"loss": 0.5})
            line.on_eval(Clock(step, 3, 3), {"accuracy": 0.5})
        assert shown[2][0]["text/html"].startswith('<progress value="2" max="3"></progress>')
        assert re.search(r"step 2/3  loss 0.500, \d+ s left$", shown[2][0]["text/plain"])
        assert shown[-1][0]["text/plain"].endswith(": evaluating …")
        raise ZeroDivisionError
    assert shown[-1][0] == {"text/plain": ""}
    assert [there for _, _, there in shown] == [False] + [True] * (len(shown) - 1)   # one line, replaced
    assert len({name for _, name, _ in shown}) == 1


def test_progress_in_a_file_is_a_line_now_and_then(capsys):
    line = ProgressLine(every=1e9)
    with watched([line], "lora"):
        for step in (1, 2, 3):
            line.on_step(Clock(step, 3, 3), {"loss": 0.5})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "reading examples and weights …"
    assert [words.split()[1] for words in lines if words.startswith("step")] == ["1/3", "3/3"]


def test_a_curve_shows_the_line_above_its_picture(monkeypatch):
    """From before the first step, in a notebook."""
    shown = []
    monkeypatch.setattr(callbacks, "in_notebook", lambda: True)
    monkeypatch.setattr(live_curve, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    curve = live_curve.LiveCurve("lora")
    with watched([curve], "lora, rt, seed 0"):
        assert "reading examples" in shown[0][0]["text/plain"]
        curve.on_step(Clock(1, 1, 1), {"loss": 0.5})
    assert any("image/png" in data for data, _ in shown)
    assert shown[-1][0] == {"text/plain": ""}


def test_a_stored_run_is_drawn_though_no_step_was_called():
    shown = []
    curve = live_curve.LiveCurve(display=lambda *parts: shown.append(parts))
    curve.finish(a_run(40), "caption")
    assert len(shown) == 1
    assert len(curve.steps) == 40


def test_smoothing_keeps_the_mean_and_copes_with_few_steps():
    steps, values = statistics.smooth((list(range(1, 41)), [float(i) for i in range(1, 41)]))
    assert values == [5.5, 15.5, 25.5, 35.5] == steps
    assert statistics.smooth(([1, 2], [3.0, 4.0])) == ([1.0, 2.0], [3.0, 4.0])


def test_a_reference_is_kept_only_where_asked_and_names_where_it_was_made(tmp_path, monkeypatch):
    monkeypatch.delenv("LOWRANK_REFERENCES", raising=False)
    live_curve.keep_reference("nowhere", lambda: pytest.fail("nothing should be trained"))
    monkeypatch.setattr(live_curve, "references_folder", lambda: tmp_path)
    assert live_curve.load_reference("03_test") == ({}, "no stored reference 03_test beside this package: your curve "
                                                  "stands alone")
    monkeypatch.setenv("LOWRANK_REFERENCES", str(tmp_path))
    live_curve.keep_reference("03_test", lambda: a_run(seed=3))
    curves, made = live_curve.load_reference("03_test")
    assert list(curves) == ["lora, seed 3"]
    assert len(curves["lora, seed 3"][0]) == 40
    assert all(word in made for word in ("minilm-l6", "'tiny'", "seed 3", "a machine", "abc"))

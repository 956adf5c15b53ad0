"""The training button without a browser: it starts, stops, goes on to the same bits, ends, and shows a failure."""

from __future__ import annotations

import dataclasses
import json
import logging

import nbformat
import pytest
import run_notebooks
import torch

import lowrank_teach as lt
from lowrank_teach.course.training_button import Job, Training
from lowrank_teach.experiments.compare import LINEUP
from lowrank_teach.experiments.runs import Store

pytest.importorskip("ipywidgets")

from lowrank_teach.course.training_button import TrainNow

SHORT = {"n_train": 64, "n_validation": 16, "n_test": 32}
asset = pytest.mark.asset


@pytest.fixture
def trainer(tmp_path):
    made = TrainNow("rt", "minilm-l3", "tiny", store=Store(tmp_path / "runs"), threads=1, **SHORT)
    made.steps.value = 8
    yield made
    if made.training is not None:
        made.training.stop()
        assert made.wait(60)


def hidden(text: str) -> list[str]:
    """What the tests of the notebooks would find in a widget with this text."""
    states = {"a": {"state": {"value": text}}}
    page = nbformat.v4.new_notebook(metadata={"widgets": {run_notebooks.STATE: {"state": states}}})
    return list(run_notebooks.hidden_errors(page))


def test_nothing_starts_by_itself(trainer):
    assert trainer.training is None
    assert trainer.stop.disabled
    assert bytes(trainer.image.value) == b""
    assert "Nothing is trained yet" in trainer.text.value
    assert trainer.wait(0)


@asset
def test_it_stops_and_goes_on_to_the_same_bits(trainer, tmp_path):
    trainer.method.value, trainer.seed.value, trainer.steps.value = "cola-2", 3, 24
    trainer.start.click()
    assert not trainer.wait(0), "the page must not wait for the training"
    assert trainer.start.disabled
    assert trainer.seed.disabled
    trainer.stop.click()    # before its first step, which it still takes
    assert trainer.wait(90)
    at = trainer.last
    assert 1 <= at < 24
    assert trainer.text.value.startswith(f"Stopped after {at} steps")
    assert trainer.start.description == "Go on"
    assert list((tmp_path / "runs").glob("*.checkpoint.safetensors"))
    before = bytes(trainer.image.value)
    assert before.startswith(b"\x89PNG")

    trainer.start.click()
    assert trainer.wait(90)
    assert trainer.curve.steps == list(range(1, 25))
    assert bytes(trainer.image.value) != before
    assert "over 24 steps" in trainer.image.tooltip
    assert "COLA, chain of 2, seed 3: finished" in trainer.text.value
    assert not hidden(trainer.text.value)
    assert not trainer.start.disabled
    assert trainer.stop.disabled

    whole = lt.fit(LINEUP["cola-2"], "rt", "minilm-l3", "tiny", 3, store=Store(tmp_path / "whole"), progress=False,
                   steps=24, **SHORT)
    assert trainer.run.key == whole.key
    assert trainer.run.history.equals(whole.history)
    assert trainer.run.metrics == whole.metrics
    for site, pair in whole.factors.items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(trainer.run.factors[site], pair, strict=True))

    trainer.start.click()
    assert trainer.wait(60)
    assert "found in the store" in trainer.text.value


@asset
def test_the_steps_of_a_search_are_counted_on(trainer):
    trainer.method.value = "autolora"
    trainer.start.click()
    assert trainer.wait(120)
    assert "finished" in trainer.text.value
    assert trainer.offset == 3                           # a search of 0.4 · 8 steps, then the training's 8
    assert trainer.curve.steps == list(range(1, 12))


@asset
def test_a_refusal_is_seen_and_found(trainer, caplog):
    trainer.method.value, trainer.steps.value = "salora", 5
    with caplog.at_level(logging.ERROR):
        trainer.start.click()
        assert trainer.wait(60)
    assert "The training stopped with an error: a gate window of" in trainer.text.value
    assert hidden(trainer.text.value)
    assert "a gate window of" in caplog.text
    assert not trainer.start.disabled


def test_a_page_that_cannot_show_a_step_says_so(trainer, caplog):
    trainer.curve.on_step = lambda clock, values: 1 / 0
    trainer.last = trainer.offset = 0
    with caplog.at_level(logging.ERROR):
        trainer._hear({"step": 1, "total": 2, "loss": 0.5})
    assert "The page stopped with an error: ZeroDivisionError" in trainer.text.value
    assert hidden(trainer.text.value)
    assert "ZeroDivisionError" in caplog.text


def test_a_process_that_dies_is_a_failure(trainer):
    heard = []
    training = Training(trainer.chosen(), heard.append)
    training.process.kill()
    assert training.wait(30)
    assert len(heard) == 1
    assert "its process ended with status -9" in heard[0]["failed"]
    training.stop()   # again: nothing to stop, nothing raised


def test_a_job_carries_its_method_whole(trainer):
    for label, method in LINEUP.items():
        trainer.method.value = label
        job = Job(**json.loads(json.dumps(dataclasses.asdict(trainer.chosen()))))
        assert job.configured() == method
        assert job.configured().given == method.given
        assert job.training == {**SHORT, "steps": 8}

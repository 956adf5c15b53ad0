"""Notebook 00's chapter: what the check of the machine says, the bill's sums, and the sentences made from runs."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest

from lowrank_teach.analysis import style
from lowrank_teach.course import contents
from lowrank_teach.course.chapters import start


def test_a_good_environment_is_said_to_be_one(monkeypatch):
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    said = start.environment(("numpy", "torch"))
    assert len(said) == 3
    assert all(line.startswith("✓") and line.endswith(".") for line in said)


def test_another_kernel_a_missing_package_and_a_changed_one_are_named(monkeypatch):
    assert start.environment((), variables={"VIRTUAL_ENV": "/somewhere/else"})[0].startswith("✗ The kernel's Python")
    assert start.environment(("no_such_package",))[0].startswith("✗ no_such_package is not installed")
    monkeypatch.setattr(np, "__version__", "0.1")
    assert "Restart the kernel" in start.environment(("numpy",))[0]


def test_a_package_of_another_installation_is_named(monkeypatch):
    other = types.ModuleType("numpy")
    other.__version__, other.__file__ = np.__version__, "/elsewhere/numpy/__init__.py"
    monkeypatch.setitem(sys.modules, "numpy", other)
    assert start.environment(("numpy",))[0].startswith(f"✗ numpy {np.__version__} comes from")


def test_the_bill_adds_up_to_the_plans():
    plans = start.bills()
    for plan in plans.values():
        assert sum(start._parts(plan).values()) == pytest.approx(plan.total / 2**30)
    full = plans["full fine-tuning"]
    assert full.weights + full.gradients + full.moments == pytest.approx(16 * 6_738_415_616, rel=1e-4)
    assert plans["LoRA, W in 16 bits"].branches == 4 * 32 * 2 * 8 * (4096 + 4096)   # A and B stay in 32 bits
    assert not style.empty_panels(start.bill(plans))
    assert "101 GiB" in start.finding_bill(plans)


def test_entropy_and_the_finding_of_two_losses():
    assert start.entropy([0, 1, 1, 0]) == pytest.approx(math.log(2))
    assert start.entropy([1, 1]) == 0
    right = {"lora": np.array([1, 1, 1, 0] * 50, bool), "head": np.array([1, 0, 0, 0] * 50, bool)}
    said = start.finding_by_hand({"lora": [0.4] * 20, "head": [0.6] * 20}, right, 0.5)
    assert "+50.0 ± 6.9 points: more than the examples leave open" in said
    assert "no more than" in start.finding_by_hand({"lora": [1] * 20, "head": [1] * 20},
                                                   {"lora": right["lora"], "head": right["lora"]}, 0.5)
    said = start.finding_learning({"lora": [0.4] * 20, "head": [0.69] * 20}, math.log(2))
    assert "Of these 2, 1 is below" in said


def test_the_map_and_the_figures_say_what_they_show():
    for fig in (start.paper_map(), start.learning({"lora": [0.5] * 20, "head": [0.6] * 20}, 0.69)):
        assert len(fig.get_label().split()) >= 6
    frame = contents.course_map()
    assert list(frame.index) == list(contents.NOTEBOOKS)


def test_a_head_alone_gets_a_rate_of_its_own_only_where_it_is_a_classifier():
    assert start.head_rate("minilm-l6", 2e-3) > start.head_rate("minilm-l3", 2e-3) == 2e-3

"""The sliders' stored numbers: whole, true to their runs, and made again by one call."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import data_folder, model_folder

from lowrank_teach.course.chapters import autolora, salora
from lowrank_teach.experiments.runs import Store
from lowrank_teach.reproduction import rank_cuts


def test_what_is_stored_is_whole():
    stored = rank_cuts.load_explorer_data()
    assert set(stored.curves) == set(stored.losses) == {(r, a) for r in rank_cuts.RANKS for a in rank_cuts.ALPHAS}
    assert {(left.shape[1], right.shape[0]) for left, right in stored.factors.values()} == {(16, 16)}
    assert stored.log_theta.keys() == stored.sizes.keys()
    assert {len(values) for values in stored.log_theta.values()} == {8}
    for alpha in stored.alphas.values():
        assert alpha.sum() == pytest.approx(1, abs=1e-4)
    scores, halves = stored.cut_scores, stored.cut_halves
    assert list(scores) == sorted(scores)
    assert all(0.5 < scores[i] < 1 and 0 < halves[i] < 0.05 for i in scores)
    for site, (u, s, vh) in stored.parts.items():
        assert (u.shape[0], vh.shape[1]) == stored.sizes[site]
        assert u.shape[1] == len(s) == len(vh)
        assert (np.diff(s) <= 0).all()
        assert not u[rank_cuts.BLOCK:].any()
    assert "12 runs, minilm-l3 on rt, seed 0, 60 to 100 steps" in stored.line()


def test_it_is_trained_again_by_one_call(tmp_path, monkeypatch):
    """On a network of two layers: every number comes from a run, none from the stored files."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    backbone = str(model_folder(tmp_path / "model"))
    monkeypatch.setattr(rank_cuts, "SETTING", {**rank_cuts.SETTING, "backbone": backbone})
    monkeypatch.setattr(rank_cuts, "CUT_SITES", ("0.q", "1.up"))
    runs = []
    (tmp_path / "out").mkdir()
    made = rank_cuts.train_explorer_data(tmp_path / "out", store=Store(tmp_path / "runs"), on_run=runs.append,
                                         steps=40,
                            n_train=None, n_validation=None, n_test=None)
    assert [run.label for run in runs] == ["lora"] * 9 + ["salora", "autolora"]
    for run in runs[:9]:
        at = run.config["method"]["r"], run.config["method"]["lora_alpha"]
        assert made.losses[at] == pytest.approx(run.metrics["validation"]["loss"], abs=1e-5)
    middle = next(run for run in runs if run.config["method"]["r"] == 16 and run.config["method"]["lora_alpha"] == 16)
    left, right = made.factors["1.v"]
    wanted = (middle.factors["1.v"][0] @ middle.factors["1.v"][1]).numpy()
    np.testing.assert_allclose(left @ right, wanted, atol=2e-3 * np.abs(wanted).max() + 1e-4)
    ranks = autolora.RankThreshold(made.alphas).ranks(1 / 8)
    assert ranks == runs[10].ranks
    gates = salora.SaloraBudget(made.log_theta, made.sizes, made.stretch)
    assert gates.masks[0].sum() == sum(runs[9].ranks.values())
    assert max(made.cut_scores) == 16
    assert made.parts["1.up"][0].shape == (made.sizes["1.up"][0], 16)

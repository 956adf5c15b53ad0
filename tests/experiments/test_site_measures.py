"""What is recorded of each matrix: through factors or of the trained weight itself, the same numbers."""

from __future__ import annotations

import pytest
import torch
from helpers import collate, make_rows, tiny

from lowrank_teach.adapters import adapt
from lowrank_teach.analysis import measures
from lowrank_teach.experiments.fit import site_measures, trained_weights
from lowrank_teach.methods import COLA, DeltaLoRA, FullFineTuning, HeadOnly, LoRA
from lowrank_teach.sites import find_sites
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer


def trained(method, kind="bert"):
    model = tiny(kind)
    adapters = adapt(model, method, seed=0)
    Trainer(adapters, make_rows(32), collate, TrainConfig(steps=4, batch_size=8, lr=1e-2), cpu=True).run()
    return adapters


def table(found):
    return {(site, name): value for site, name, value in found}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(("trains", "letters"), [("all", ""), ("qv", "qv")])
def test_a_weight_that_trained_is_measured_dense(kind, trains, letters):
    adapters = trained(FullFineTuning(trains=trains), kind)
    found = table(site_measures(adapters))
    sites = [s for s in find_sites(adapters.model) if not letters or s.letter in letters]
    assert {site for site, _ in found} >= {s.name for s in sites}
    fresh = tiny(kind)
    for site in sites:
        before, after = (m.get_parameter(f"{site.path}.weight").detach() for m in (fresh, adapters.model))
        if kind == "gpt2":   # Conv1D keeps (k, d)
            before, after = before.T, after.T
        before, after = (w[site.rows or slice(None)] for w in (before, after))
        assert after.shape == (site.d, site.k)
        assert found[site.name, "norm"] == pytest.approx(float((after - before).norm()), rel=1e-4)
        assert found[site.name, "norm"] > 0
        cosine = float((before * after).sum() / before.norm() / after.norm())
        assert found[site.name, "cosine"] == pytest.approx(cosine, abs=1e-6)
        largest = float(torch.linalg.matrix_norm(after - before, 2))
        assert found[site.name, "sigma.0"] == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("method", [LoRA(r=2), COLA(r=2, chain=2), DeltaLoRA(r=2, K=1)], ids=lambda m: m.name)
def test_a_branch_is_measured_through_its_factors(method):
    adapters = trained(method)
    found = table(site_measures(adapters))
    for name, branch in adapters.items():
        W, delta = adapters.owner(name).pretrained_of(name), branch.delta()
        assert found[name, "norm"] == pytest.approx(float(delta.norm()), rel=1e-4)
        assert found[name, "cosine"] == pytest.approx(measures.cosine(W, W + delta), abs=1e-6)
        assert found[name, "rank"] == 2
    assert list(trained_weights(adapters)) == []


def test_nothing_of_a_head():
    assert site_measures(trained(HeadOnly())) == []

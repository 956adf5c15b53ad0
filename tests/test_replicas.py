"""Replicas: each trajectory is that of its own single run, on every architecture; what ends one harms no other."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import Any

import pytest
import torch
from helpers import FAMILIES, Stop, Watch, collate_for, rows_for, same_tensors, tiny, trainer

from lowrank_teach.adapters import _head_names, adapt
from lowrank_teach.config import TrainConfig
from lowrank_teach.distributed import Team
from lowrank_teach.methods import (
    COLA,
    AutoLoRA,
    DeltaLoRA,
    DyLoRA,
    FullFineTuning,
    HeadOnly,
    LoRA,
    Method,
    SaLoRA,
    compose,
)
from lowrank_teach.outcome import DivergedError, LivenessError, Outcome
from lowrank_teach.replicas import train_together
from lowrank_teach.stacked import share_weights
from lowrank_teach.train import Trainer

WIDE = torch.float64
# what may differ from replica to replica: method, rank, sites, rates, clipping, schedules, knots, λ, windows
GRID: list[tuple[Method, dict[str, Any]]] = [
    (LoRA(r=4), {"lr": 1e-2}),
    (LoRA(r=2, lora_alpha=8.0, sites="qkvo"), {"lr": 3e-3, "weight_decay": 0.1, "warmup": 0.5}),
    (COLA(r=4, chain=3), {"head_lr": 3e-2}),
    (COLA(r=4, ranks=(4, 2), restart_schedule=True), {}),
    (SaLoRA(r=4, eta_c=0.5, t_end=0.7), {"max_grad_norm": 0.5}),
    (DeltaLoRA(r=4, K=3), {"label_smoothing": 0.1}),
    (DeltaLoRA(r=3, lam=2.0, K=0.5, sites="v"), {"lr": 2e-3}),
    (DyLoRA(r=4), {}),
    (compose(COLA(chain=2, r=4), SaLoRA(r=4, eta_c=1.0, t_end=0.8)), {}),
    (HeadOnly(), {"lr": 5e-2}),
]
SEARCHES: list[tuple[Method, dict[str, Any]]] = [
    (AutoLoRA(r=4, hypergradient="first_order"), {}),
    (AutoLoRA(r=3, hypergradient="finite_difference", eta_beta=0.05), {"lr": 3e-3}),
    (AutoLoRA(r=4, hypergradient="betty", constraint="sigmoid", sites="qkvo"), {}),
    (AutoLoRA(r=4, hypergradient="unrolled", split=0.5), {}),
]


def twin(kind: str, seed: int, base: Any, **kinds: Any) -> Any:
    """A model on the base's own weights, with a head of its own."""
    model = tiny(kind, seed=seed, **kinds)
    share_weights(model, base, _head_names(model, None))
    return model


def several(kind: str, grid: list[tuple[Method, dict[str, Any]]], *, base: Any = None,
            form: Callable = methodcaller("beside"), **settings: Any) -> list[Trainer]:
    """A trainer for each row of a grid; over one base, where one is given."""
    kinds = {"dtype": settings.pop("dtype", WIDE), "dropout": settings.pop("dropout", 0.0)}
    return [trainer(form(method), twin(kind, seed, base or tiny(kind, **kinds), **kinds), seed=seed,
                    **{"steps": 50, **settings, **values}) for seed, (method, values) in enumerate(grid)]


def gap(left: Trainer, right: Trainer) -> float:
    """The largest difference of two trainings, over all that trains and all of their histories."""
    a, b = (dict(t.adapters.model.named_parameters()) for t in (left, right))
    trained = [float((a[n] - b[n]).detach().abs().max()) for n in a if a[n].numel()]
    assert len(left.outcome.history) == len(right.outcome.history)
    noted = [abs(x[3] - y[3]) for x, y in zip(left.outcome.history, right.outcome.history, strict=True)]
    return max(*trained, *noted)


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_trajectory_is_that_of_the_single_run(kind):
    alone, shared = several(kind, GRID), several(kind, GRID, base=tiny(kind, dtype=WIDE))
    found = train_together(shared)
    for one, other, outcome in zip(alone, shared, found, strict=True):
        one.run()
        assert isinstance(outcome, Outcome)
        assert outcome.finished
        assert gap(one, other) < 1e-9


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_search_asks_for_the_gradients_of_its_single_run(kind):
    alone, shared = several(kind, SEARCHES, steps=30), several(kind, SEARCHES, base=tiny(kind, dtype=WIDE), steps=30)
    found = train_together(shared)
    for one, other, outcome in zip(alone, shared, found, strict=True):
        own = one.run()
        assert isinstance(outcome, Outcome)
        assert gap(one, other) < 1e-9
        assert outcome.following == own.following


def test_the_forms_of_a_method_are_the_same_run():
    """What is trained beside W in a shared pass equals what writes into W in a run of its own."""
    grid = [(COLA(r=4, chain=3), {}), (DeltaLoRA(r=4, K=3), {}), (DeltaLoRA(r=2, lam=2.0), {})]
    alone = several("bert", grid, form=lambda method: method)
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE))
    train_together(shared)
    for one, other in zip(alone, shared, strict=True):
        one.run()
        for name, branch in one.adapters.items():
            assert torch.allclose(branch.delta(), other.adapters[name].delta(), rtol=0, atol=1e-9)
        names = {name for _, _, name, _ in one.outcome.history}
        assert names == {name for _, _, name, _ in other.outcome.history}
        for mine, theirs in zip(one.outcome.history, other.outcome.history, strict=True):
            # in place, W's movement is read in float32
            assert mine[3] == pytest.approx(theirs[3], abs=1e-5 if mine[2] == "moved" else 1e-9)


@pytest.mark.parametrize(("head", "kind"), [("tagging", "bert"), ("causal", "llama"), ("causal", "gpt2"),
                                            ("seq2seq", "t5"), ("seq2seq", "bart")])
def test_every_kind_of_head(head, kind):
    def made(base: Any, seed: int, **values: Any) -> Trainer:
        model = twin(kind, seed, base, head=head, dtype=WIDE)
        method = LoRA(r=2 + seed)
        return Trainer(adapt(model, method, seed=seed), rows_for(head), collate_for(head),
                       TrainConfig(steps=20, batch_size=8, lr=1e-2, **values), seed=seed, cpu=True)

    settings: list[dict[str, Any]] = [{}, {"weight_decay": 0.1}, {"label_smoothing": 0.1}]
    alone = [made(tiny(kind, head=head, dtype=WIDE), i, **s) for i, s in enumerate(settings)]
    base = tiny(kind, head=head, dtype=WIDE)
    shared = [made(base, i, **s) for i, s in enumerate(settings)]
    train_together(shared)
    for one, other, values in zip(alone, shared, settings, strict=True):
        one.run()
        # transformers takes the loss of a causal model, and every smoothed one, in float32 whatever the logits are
        assert gap(one, other) < (1e-6 if head == "causal" or values.get("label_smoothing") else 1e-9)


def test_micro_batches_and_recomputed_activations():
    values = {"accumulation": 3, "steps": 12}
    for more in ({}, {"gradient_checkpointing": True}):
        alone = several("bert", GRID[:3], **values, **more)
        shared = several("bert", GRID[:3], base=tiny("bert", dtype=WIDE), **values, **more)
        train_together(shared)
        for one, other in zip(alone, shared, strict=True):
            one.run()
            assert gap(one, other) < 1e-9


def test_bf16_autocast_stays_close():
    grid = [(LoRA(r=4), {}), (SaLoRA(r=4, eta_c=2.0), {}), (COLA(r=4), {})]
    values = {"mixed_precision": "bf16", "dtype": torch.float32, "steps": 8}
    alone, shared = several("bert", grid, **values), several("bert", grid, base=tiny("bert"), **values)
    train_together(shared)
    for one, other in zip(alone, shared, strict=True):
        one.run()
        losses = [[v for _, _, name, v in t.outcome.history if name == "loss"] for t in (one, other)]
        assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_each_has_its_own_length():
    lengths = [5, 20, 11]
    grid = [(LoRA(r=4), {"steps": n}) for n in lengths]
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE))
    left = []
    found = train_together(shared, on_step=lambda running, steps: left.append((running, steps)))
    assert [outcome.step for outcome in found] == lengths
    assert left[4] == (2, 15)
    assert left[-1] == (0, 0)
    for one, other in zip(several("bert", grid), shared, strict=True):
        one.run()
        assert gap(one, other) < 1e-9


def test_the_base_keeps_its_bytes():
    base = tiny("bert", dtype=WIDE)
    before = copy.deepcopy(base.state_dict())
    train_together(several("bert", GRID[:7], base=base, steps=12))
    assert same_tensors(before, base.state_dict())


# ---- what ends one harms no other ---------------------------------------------------------------------------


def test_one_that_diverges_is_frozen_and_told():
    wild = (LoRA(r=4), {"lr": 1e30, "max_grad_norm": 0.0})
    grid = [GRID[0], wild, GRID[4]]
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE))
    found = train_together(shared)
    assert isinstance(found[1], DivergedError)
    assert "lower lr (now 1e+30)" in str(found[1])
    assert shared[1].outcome.step < 50
    for i in (0, 2):
        one = several("bert", grid)[i]
        one.run()
        assert gap(one, shared[i]) < 1e-9


def test_one_whose_weights_are_nan_harms_no_other():
    grid = [GRID[0], GRID[0], GRID[2]]

    def poison(step: int, values: dict[str, float]) -> None:
        if step == 4:
            shared[1].adapters["0.q"].lora_B.data.fill_(float("nan"))

    shared = several("bert", grid, base=tiny("bert", dtype=WIDE), steps=10)
    shared[1].callbacks = [Watch(poison)]
    found = train_together(shared)
    assert isinstance(found[1], DivergedError)
    assert "step 5" in str(found[1])
    for i in (0, 2):
        one = several("bert", grid, steps=10)[i]
        one.run()
        assert gap(one, shared[i]) < 1e-9


def test_a_search_that_diverges_harms_no_other():
    grid = [SEARCHES[1], (AutoLoRA(r=4, hypergradient="finite_difference"), {"lr": 1e30, "max_grad_norm": 0.0})]
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE), steps=10)
    found = train_together(shared)
    assert isinstance(found[1], DivergedError | LivenessError)
    one = several("bert", grid, steps=10)[0]
    one.run()
    assert gap(one, shared[0]) < 1e-9


def test_one_that_breaks_harms_no_other():
    """Any error of its own, as a method of the reader's may raise; but memory is everybody's."""
    grid = [GRID[0], GRID[1]]

    def breaks(step: int, values: dict[str, float], error: type[Exception] = TypeError) -> None:
        if step == 3:
            raise error("it went wrong")

    shared = several("bert", grid, base=tiny("bert", dtype=WIDE), steps=10)
    shared[1].callbacks = [Watch(breaks)]
    found = train_together(shared)
    assert isinstance(found[1], TypeError)
    one = several("bert", grid, steps=10)[0]
    one.run()
    assert gap(one, shared[0]) < 1e-9
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE), steps=10)
    shared[1].callbacks = [Watch(partial(breaks, error=torch.OutOfMemoryError))]
    with pytest.raises(torch.OutOfMemoryError):
        train_together(shared)


def test_a_rule_that_refuses_its_length_harms_no_other():
    grid = [GRID[0], (COLA(r=4, knots=(99,)), {})]
    found = train_together(several("bert", grid, base=tiny("bert", dtype=WIDE), steps=10))
    assert isinstance(found[0], Outcome)
    assert "knots" in str(found[1])


def test_a_stop_leaves_a_checkpoint_that_goes_on(tmp_path):
    """Stopped after step 7, taken up beside another that starts from the beginning: still the single run."""
    def made(base: Any, seed: int, path: Any = None, callbacks: Any = ()) -> Trainer:
        return trainer(SaLoRA(r=4, eta_c=0.5), twin("bert", seed, base, dtype=WIDE), seed=seed, steps=20,
                       checkpoint=path, identity="x", callbacks=callbacks)

    base, path = tiny("bert", dtype=WIDE), tmp_path / "one.safetensors"
    first = train_together([made(base, 0, path, [Stop(7)]), made(base, 1)])
    assert [outcome.finished for outcome in first] == [False, True]
    again = [made(base, 0, path), made(base, 2)]
    train_together(again)
    for seed, other in zip((0, 2), again, strict=True):
        one = made(tiny("bert", dtype=WIDE), seed)
        one.run()
        assert gap(one, other) < 1e-9


@pytest.mark.parametrize(("method", "says"), [(FullFineTuning(), "pretrained weights"),
                                              (COLA(r=4), "writes into W")])
def test_what_cannot_share_is_refused(method, says):
    base = tiny("bert")
    shared = [trainer(m, twin("bert", i, base), seed=i) for i, m in enumerate((LoRA(r=4), method))]
    with pytest.raises(ValueError, match=says):
        train_together(shared)


def test_one_process_only():
    shared = several("bert", GRID[:2], base=tiny("bert", dtype=WIDE))
    shared[0].team = Team(rank=0, size=2)
    with pytest.raises(ValueError, match="without a launcher"):
        train_together(shared)

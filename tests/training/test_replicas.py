"""Replicas: each trajectory is that of its own single run, on every architecture; what ends one harms no other."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from operator import methodcaller
from typing import Any

import pytest
import torch
from helpers import FAMILIES, Stop, Watch, collate, collate_for, make_rows, rows_for, same_tensors, tiny, trainer

from lowrank_teach.adapters import adapt
from lowrank_teach.errors import DivergedError, LivenessError
from lowrank_teach.methods import (
    COLA,
    AutoLoRA,
    DeltaLoRA,
    DyLoRA,
    FullFineTuning,
    HeadOnly,
    LoRA,
    Method,
    Pfeiffer,
    SaLoRA,
)
from lowrank_teach.methods.base import Noise
from lowrank_teach.methods.composition import compose
from lowrank_teach.sites import head_names
from lowrank_teach.training.callbacks import Outcome
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.distributed import Team
from lowrank_teach.training.replicas import share_weights, train_together
from lowrank_teach.training.trainer import Trainer

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
    share_weights(model, base, head_names(model))
    return model


def several(kind: str, grid: list[tuple[Method, dict[str, Any]]], *, base: Any = None,
            form: Callable = methodcaller("with_frozen_base"), **settings: Any) -> list[Trainer]:
    """A trainer for each row of a grid; over one base, where one is given."""
    kinds = {"dtype": settings.pop("dtype", WIDE), "dropout": settings.pop("dropout", 0.0)}
    return [trainer(form(method), twin(kind, seed, base or tiny(kind, **kinds), **kinds), seed=seed,
                    **{"steps": 20, **settings, **values}) for seed, (method, values) in enumerate(grid)]


def gap(left: Trainer, right: Trainer) -> float:
    """The largest difference of two trainings, over all that trains and all of their histories."""
    a, b = (dict(t.adapters.model.named_parameters()) for t in (left, right))
    trained = [float((a[n] - b[n]).detach().abs().max()) for n in a if a[n].numel()]
    assert len(left.outcome.history) == len(right.outcome.history)
    noted = [abs(x[3] - y[3]) for x, y in zip(left.outcome.history, right.outcome.history, strict=True)]
    return max(*trained, *noted)


def same_as_alone(alone: Iterable[Trainer], shared: Iterable[Trainer], limit: float = 1e-9) -> None:
    """Each of the shared ones, which have trained, ended as its twin does when that trains by itself."""
    for one, other in zip(alone, shared, strict=True):
        one.run()
        assert gap(one, other) < limit


@pytest.mark.parametrize("kind", FAMILIES)
def test_each_trajectory_is_that_of_the_single_run(kind):
    steps = 50 if kind in ("bert", "gpt2") else 20   # longer on two, where a gap would have grown
    alone, shared = several(kind, GRID, steps=steps), several(kind, GRID, base=tiny(kind, dtype=WIDE), steps=steps)
    found = train_together(shared)
    assert all(isinstance(outcome, Outcome) and outcome.finished for outcome in found)
    same_as_alone(alone, shared)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_search_asks_for_the_gradients_of_its_single_run(kind):
    values = {"steps": 30 if kind == "bert" else 12}
    alone, shared = several(kind, SEARCHES, **values), several(kind, SEARCHES, base=tiny(kind, dtype=WIDE), **values)
    found = train_together(shared)
    for one, other, outcome in zip(alone, shared, found, strict=True):
        own = one.run()
        assert isinstance(outcome, Outcome)
        assert gap(one, other) < 1e-9
        assert outcome.following == own.following


def test_asks_for_rows_of_other_lengths_have_passes_of_their_own():
    """A row at a time, so that the rows to train on and those held out are padded to unlike lengths."""
    alone = several("bert", SEARCHES[:3], steps=12, batch_size=1)
    shared = several("bert", SEARCHES[:3], base=tiny("bert", dtype=WIDE), steps=12, batch_size=1)
    train_together(shared)
    same_as_alone(alone, shared)


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
                       TrainConfig(steps=10, batch_size=8, lr=1e-2, **values), seed=seed, cpu=True)

    settings: list[dict[str, Any]] = [{}, {"weight_decay": 0.1}, {"label_smoothing": 0.1}]
    alone = [made(tiny(kind, head=head, dtype=WIDE), i, **s) for i, s in enumerate(settings)]
    base = tiny(kind, head=head, dtype=WIDE)
    shared = [made(base, i, **s) for i, s in enumerate(settings)]
    train_together(shared)
    for one, other, values in zip(alone, shared, settings, strict=True):
        one.run()
        # transformers takes the loss of a causal model, and every smoothed one, in float32 whatever the logits are:
        # over six seeds up to 1.4e-6 (causal) and 1.2e-7 (smoothed), else up to 9e-15
        limit = 1e-5 if head == "causal" else 1e-6 if values.get("label_smoothing") else 1e-9
        assert gap(one, other) < limit


def test_micro_batches_and_recomputed_activations():
    values = {"accumulation": 3, "steps": 12}
    for more in ({}, {"gradient_checkpointing": True}):
        alone = several("bert", GRID[:3], **values, **more)
        shared = several("bert", GRID[:3], base=tiny("bert", dtype=WIDE), **values, **more)
        train_together(shared)
        same_as_alone(alone, shared)


@pytest.mark.parametrize("method", [LoRA(r=4), AutoLoRA(r=3, hypergradient="finite_difference")])
@pytest.mark.parametrize(("kind", "head"), [("bert", "tagging"), ("llama", "causal")])
@pytest.mark.parametrize("pieces", [1, 4, 8])
def test_a_micro_batch_weighs_as_many_words_as_it_has_itself(method, kind, head, pieces):
    """Its share of the mean follows the words that count: others in each replica, and in each ask; or none at all."""
    def made(base: Any, seed: int) -> Trainer:
        model = twin(kind, seed, base, head=head, dtype=WIDE)
        rows = rows_for(head)
        for i, row in enumerate(rows):
            first = row["input_ids"][0] if head == "causal" else -100  # under a causal loss it never counts
            row["labels"] = [first, *row["labels"][1:]] if i % 3 else [first, *[-100] * (len(row["labels"]) - 1)]
        config = TrainConfig(steps=8, batch_size=max(pieces, 2), accumulation=pieces, lr=1e-2)
        return Trainer(adapt(model, method, seed=seed), rows, collate_for(head), config, seed=seed, cpu=True)

    base = tiny(kind, head=head, dtype=WIDE)
    shared = [made(base, seed) for seed in range(3)]
    found = train_together(shared)
    for seed, other in enumerate(shared):
        one = made(tiny(kind, head=head, dtype=WIDE), seed)
        one.run()
        assert isinstance(found[seed], Outcome)
        # transformers takes the loss of a causal model in float32 whatever the logits are
        assert gap(one, other) < (1e-6 if head == "causal" else 1e-9)


def test_several_scores_a_row_have_the_loss_of_their_kind():
    """Float labels of several classes are answers of yes and no, each on its own, unless it is a regression."""
    def made(base: Any, seed: int, **kinds: Any) -> Trainer:
        model = twin("bert", seed, base, dtype=WIDE, labels=3, **kinds)
        rows = [{**row, "labels": [float(row["labels"] == j) for j in range(3)]} for row in rows_for(
            "classification", labels=3)]
        return Trainer(adapt(model, LoRA(r=4), seed=seed), rows, scores, TrainConfig(steps=8, batch_size=8, lr=1e-2),
                       seed=seed, cpu=True)

    def scores(rows: list) -> dict[str, torch.Tensor]:
        plain = collate_for("classification")([{**row, "labels": 0} for row in rows])
        return {**plain, "labels": torch.tensor([row["labels"] for row in rows], dtype=WIDE)}

    for kinds in ({}, {"problem_type": "regression"}):
        base = tiny("bert", dtype=WIDE, labels=3, **kinds)
        shared = [made(base, seed, **kinds) for seed in range(2)]
        train_together(shared)
        same_as_alone((made(tiny("bert", dtype=WIDE, labels=3, **kinds), seed, **kinds) for seed in range(2)), shared)


def test_rows_of_other_shapes_have_passes_of_their_own():
    """Two pairs, each of a batch size of its own, and a search beside what holds no rows out."""
    fewer: dict[str, Any] = {"batch_size": 4}
    grid = [(AutoLoRA(r=4, hypergradient="first_order"), {}), (LoRA(r=4), {}), (LoRA(r=3), {}), (LoRA(r=2), fewer),
            (DeltaLoRA(r=4, K=3), fewer)]
    alone = several("bert", grid, steps=12)
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE), steps=12)
    train_together(shared)
    same_as_alone(alone, shared)


@pytest.mark.parametrize("method", [LoRA(r=4, lora_dropout=0.3), COLA(r=4, chain=3, lora_dropout=0.3),
                                    AutoLoRA(r=4, lora_dropout=0.3, hypergradient="finite_difference")])
def test_one_by_itself_draws_the_masks_of_its_single_run(method):
    """Also where an ask wants the noise of another again, and where part of a branch is held."""
    values = {"dropout": 0.1, "steps": 12}
    (alone,) = several("bert", [(method, {})], **values)
    (shared,) = several("bert", [(method, {})], base=tiny("bert", dtype=WIDE, dropout=0.1), **values)
    train_together([shared])
    same_as_alone([alone], [shared])


def test_each_drops_what_its_own_branch_says():
    grid = [(LoRA(r=4), {}), (LoRA(r=4, lora_dropout=0.5), {}), (LoRA(r=4), {})]
    alone = several("bert", grid, steps=12)
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE), steps=12)
    train_together(shared)
    same_as_alone(alone[::2], shared[::2])
    without = several("bert", [(LoRA(r=4), {})] * 2, steps=12)[1]
    without.run()
    assert gap(without, shared[1]) > 1e-3


def test_noise_comes_again_and_torch_s_own_state_does_not_move():
    torch.manual_seed(0)
    noise, drawn = Noise(), []
    for _ in range(2):
        with noise.again():
            drawn.append(torch.rand(4))
    after = torch.rand(4)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(after, drawn[0])            # torch stood where it had stood
    assert not torch.equal(torch.rand(4), after)
    with noise.again():
        assert torch.equal(torch.rand(4), after)


def test_seconds_are_shared_among_those_who_share_a_pass():
    shared = several("bert", GRID[:4], base=tiny("bert", dtype=WIDE), steps=8)
    start = time.perf_counter()
    found = train_together(shared)
    assert 0 < sum(outcome.seconds for outcome in found) <= time.perf_counter() - start


def test_bf16_autocast_stays_close():
    grid = [(LoRA(r=4), {}), (SaLoRA(r=4, eta_c=2.0), {}), (COLA(r=4), {})]
    values = {"mixed_precision": "bf16", "dtype": torch.float32, "steps": 8}
    alone, shared = several("bert", grid, **values), several("bert", grid, base=tiny("bert"), **values)
    train_together(shared)
    for one, other in zip(alone, shared, strict=True):
        one.run()
        losses = [[v for _, _, name, v in t.outcome.history if name == "loss"] for t in (one, other)]
        assert losses[0] == pytest.approx(losses[1], abs=0.02)
        exact = torch.tensor(losses[1])
        assert (exact != exact.bfloat16()).any(), "the loss itself is in float32, as that of a single run is"


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
    assert shared[1].outcome.step < 20
    same_as_alone(several("bert", grid)[::2], shared[::2])


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
    same_as_alone(several("bert", grid, steps=10)[::2], shared[::2])


def test_a_search_that_diverges_harms_no_other():
    grid = [SEARCHES[1], (AutoLoRA(r=4, hypergradient="finite_difference"), {"lr": 1e30, "max_grad_norm": 0.0})]
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE), steps=10)
    threads = threading.active_count()
    found = train_together(shared)
    assert isinstance(found[1], DivergedError | LivenessError)
    assert threading.active_count() == threads      # no rule waits for an answer any more
    same_as_alone(several("bert", grid, steps=10)[:1], shared[:1])


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
    same_as_alone(several("bert", grid, steps=10)[:1], shared[:1])
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE), steps=10)
    shared[1].callbacks = [Watch(partial(breaks, error=torch.OutOfMemoryError))]
    with pytest.raises(torch.OutOfMemoryError):
        train_together(shared)


def test_one_that_breaks_at_its_end_harms_no_other(monkeypatch):
    grid = [(LoRA(r=4), {"steps": 5}), (LoRA(r=4), {"steps": 10})]
    shared = several("bert", grid, base=tiny("bert", dtype=WIDE))

    def breaks() -> None:
        raise OSError("no space left")

    monkeypatch.setattr(shared[0], "complete", breaks)
    found = train_together(shared)
    assert isinstance(found[0], OSError)
    same_as_alone(several("bert", grid)[1:], shared[1:])


def test_a_rule_that_refuses_its_length_harms_no_other():
    grid = [GRID[0], (COLA(r=4, knots=(99,)), {})]
    found = train_together(several("bert", grid, base=tiny("bert", dtype=WIDE), steps=10))
    assert isinstance(found[0], Outcome)
    assert "knots" in str(found[1])


@pytest.mark.parametrize("step", [7, 20])
def test_a_stop_leaves_a_checkpoint_that_goes_on(tmp_path, step):
    """Stopped after step 7 or the last one, taken up beside one that starts afresh: still the single run."""
    def made(base: Any, seed: int, path: Any = None, callbacks: Any = ()) -> Trainer:
        return trainer(SaLoRA(r=4, eta_c=0.5), twin("bert", seed, base, dtype=WIDE), seed=seed, steps=20,
                       checkpoint=path, identity="x", callbacks=callbacks)

    base, path = tiny("bert", dtype=WIDE), tmp_path / "one.safetensors"
    first = train_together([made(base, 0, path, [Stop(step)]), made(base, 1)])
    assert [outcome.finished for outcome in first] == [False, True]
    again = [made(base, 0, path), made(base, 2)]
    train_together(again)
    same_as_alone((made(tiny("bert", dtype=WIDE), seed) for seed in (0, 2)), again)


def test_each_is_trained_again_as_its_single_run_is():
    """The same adapters in a second pass: a chain, gates, a moving W and their compositions."""
    def again(trainers: list[Trainer]) -> list[Trainer]:
        return [Trainer(t.adapters, make_rows(64), collate, t.config, seed=t.seed, cpu=True) for t in trainers]

    grid = [(method, {}) for method in (COLA(r=4, chain=2), SaLoRA(r=4, eta_c=0.5), DeltaLoRA(r=4, K=3), LoRA(r=2),
                                        compose(COLA(r=4), SaLoRA(eta_c=1.0, t_end=0.9), DeltaLoRA(r=4, K=3)))]
    alone, shared = (several("bert", grid, base=base, steps=20) for base in (None, tiny("bert", dtype=WIDE)))
    for second in (False, True):
        alone, shared = (again(alone), again(shared)) if second else (alone, shared)
        assert all(outcome.finished for outcome in train_together(shared))
        same_as_alone(alone, shared)


def test_an_interrupt_leaves_each_a_checkpoint_that_goes_on(tmp_path):
    steps: list[int] = []

    def press(step: int, values: dict[str, float]) -> None:
        steps.append(step)
        if steps == [1, 2, 3, 4]:
            signal.raise_signal(signal.SIGINT)

    def made(seed: int, base: Any, **more: Any) -> Trainer:
        return trainer(SaLoRA(r=4, eta_c=0.5), twin("bert", seed, base, dtype=WIDE), seed=seed, steps=20,
                       identity="x", **more)

    def both() -> list[Trainer]:
        base = tiny("bert", dtype=WIDE)
        return [made(seed, base, checkpoint=tmp_path / f"{seed}.safetensors", callbacks=[Watch(press)] * (seed == 0))
                for seed in range(2)]

    with pytest.raises(KeyboardInterrupt, match="run the same line again"):
        train_together(both())
    again = both()
    train_together(again)
    assert steps == [*range(1, 21)]
    same_as_alone((made(seed, tiny("bert", dtype=WIDE)) for seed in range(2)), again)


@pytest.mark.parametrize(("method", "says"), [(FullFineTuning(), "pretrained weights"),
                                              (COLA(r=4), "writes into W"),
                                              (Pfeiffer(m=4), "modules of its own")])
def test_what_cannot_share_is_refused(method, says):
    base = tiny("bert")
    shared = [trainer(m, twin("bert", i, base), seed=i) for i, m in enumerate((LoRA(r=4), method))]
    with pytest.raises(ValueError, match=says):
        train_together(shared)


def test_a_head_that_is_not_linear_is_refused():
    model = tiny("bert")
    model.classifier = torch.nn.Sequential(torch.nn.LayerNorm(16), torch.nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"more than linear layers \(classifier\.0\)"):
        train_together([trainer(LoRA(r=4), model)])


def test_one_process_only():
    shared = several("bert", GRID[:2], base=tiny("bert", dtype=WIDE))
    shared[0].team = Team(rank=0, size=2)
    with pytest.raises(ValueError, match="without a launcher"):
        train_together(shared)

"""Delta-LoRA: W follows the change of s B A step by step; the steps telescope, so three forms are one function."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers import Watch, logits, make_batch, same_tensors, tiny, train, trainer
from torch import Tensor

from lowrank_teach.errors import LivenessError
from lowrank_teach.methods import DeltaLoRA, LoRA

F64 = torch.float64


def follow(method, model=None, **settings) -> tuple:
    """The trainer after its run, and per step: site -> (B, A, the rows of W as stored, W* − W as delta() says)."""
    made = trainer(method, model, **settings)
    path: list[dict[str, tuple[Tensor, ...]]] = []

    def look(*_) -> None:
        path.append({name: (b.lora_B.detach().clone(), b.lora_A.detach().clone(),
                            made.adapters.owner(name).slice_of(name).clone(), b.delta())
                     for name, b in made.adapters.items()})

    look()
    made.callbacks = [Watch(look), *settings.get("callbacks", ())]
    made.run()
    return made, path


@pytest.fixture
def adam_without_epsilon(monkeypatch):
    """AdamW whose step does not depend on the gradient's scale at all."""
    monkeypatch.setattr(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, eps=1e-30))


# ---- three forms, one function ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("K", [0, 4])
def test_in_place_lazy_and_closed_form_agree_at_every_step(kind, K):
    """W_t − W_0 = λ s (B_t A_t − B_K A_K) in W and in delta(), and the lazy run has the same factors."""
    lam, s = 0.7, 4.0
    written, path = follow(DeltaLoRA(r=4, lam=lam, K=K), tiny(kind, dtype=F64))
    _, lazy_path = follow(DeltaLoRA(r=4, lam=lam, K=K, form="lazy"), tiny(kind, dtype=F64))
    assert len(path) == 13
    for t, (here, lazy) in enumerate(zip(path, lazy_path, strict=True)):
        for name in here:
            (B, A, W, delta), (B_K, A_K, W_0, _) = here[name], path[min(t, K)][name]
            W_0 = path[0][name][2]
            moved = lam * s * (B @ A - B_K @ A_K) if t > K else torch.zeros_like(W)
            assert (W - W_0 - moved).abs().max() < 1e-12
            assert (delta - moved - s * B @ A).abs().max() < 1e-12
            assert torch.equal(lazy[name][2], W_0)
            assert (lazy[name][3] - delta).abs().max() < 1e-11
            assert (lazy[name][0] - B).abs().max() < 1e-12
            assert (lazy[name][1] - A).abs().max() < 1e-12
    last = next(iter(path[-1]))
    assert (path[-1][last][2] - path[0][last][2]).abs().max() > 1e-3
    assert all(owner.base.weight.grad is None for owner in written.adapters.owners.values())


def test_the_lazy_forward_is_the_forward_with_w_written():
    """On the same factors, the lazy terms and the written W give the same logits: 1e-12."""
    made, _ = follow(DeltaLoRA(r=4, lam=0.7, K=3, form="lazy"), tiny(dtype=F64))
    lazy = logits(made.adapters.model, make_batch())
    for name in made.adapters:
        assert not made.adapters[name].in_base
        made.adapters.owner(name).write_in_base(name)
        assert made.adapters[name].in_base
    assert (logits(made.adapters.model, make_batch()) - lazy).abs().max() < 1e-12


def test_k_as_a_share_of_the_training():
    """K = 0.25 of twelve steps is K = 3, bit for bit."""
    share, _ = train(DeltaLoRA(r=4, K=0.25))
    steps, _ = train(DeltaLoRA(r=4, K=3))
    other, _ = train(DeltaLoRA(r=4, K=4))
    for name in steps:
        assert torch.equal(share.owner(name).W, steps.owner(name).W)
        assert not torch.equal(other.owner(name).W, steps.owner(name).W)


# ---- what the closed form says about the method ---------------------------------------------------------------


@pytest.mark.parametrize(("K", "rank"), [(0, 3), (6, 6)])
def test_the_change_has_rank_at_most_2r(K, rank):
    """ΔW has rank 2r, and with K = 0 only r: W's own movement adds no new direction."""
    adapters, _ = train(DeltaLoRA(r=3, K=K), tiny(dtype=F64))
    for name, branch in adapters.items():
        sigma = torch.linalg.svdvals(branch.delta())
        assert sigma[rank - 1] > 1e-7
        assert sigma[rank] < 1e-13
        left, right = branch.factors()
        assert left.shape[1] == right.shape[0] == rank
        assert (left @ right - branch.delta()).abs().max() < 1e-13
        total = adapters.owner(name).slice_of(name) + branch.scaling * branch.lora_B @ branch.lora_A
        assert (total - adapters.owner(name).pretrained_of(name) - branch.delta()).abs().max() < 1e-12


@pytest.mark.usefixtures("adam_without_epsilon")
def test_with_k_zero_it_is_lora_at_alpha_times_one_plus_lambda():
    """Under an Adam that ignores the gradient's scale: same A, B and function as LoRA at α (1 + λ)."""
    settings = {"max_grad_norm": 0.0, "weight_decay": 0.01, "steps": 20, "batch_size": 16}
    delta, first = train(DeltaLoRA(r=4, lora_alpha=8, lam=2.0, K=0), tiny(dtype=F64), **settings)
    plain, second = train(LoRA(r=4, lora_alpha=24), tiny(dtype=F64), **settings)
    other, _ = train(LoRA(r=4, lora_alpha=8), tiny(dtype=F64), **settings)
    for name in delta:
        assert (delta[name].lora_B - plain[name].lora_B).abs().max() < 1e-9
        assert (delta[name].lora_A - plain[name].lora_A).abs().max() < 1e-9
        assert (delta[name].delta() - plain[name].delta()).abs().max() < 1e-9
        assert (delta[name].delta() - other[name].delta()).abs().max() > 1e-2
    losses = [[row[3] for row in outcome.history if row[2] == "loss"] for outcome in (first, second)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


@pytest.mark.parametrize("form", ["in_place", "lazy"])
@pytest.mark.parametrize("values", [{"lam": 0.0, "K": 0}, {"lam": 0.0, "K": 4}, {"lam": 2.0, "K": 12},
                                    {"lam": 2.0, "K": 99}, {"lam": 2.0, "K": 1.0}])
def test_without_lambda_or_before_k_it_is_lora_bit_for_bit(values, form):
    """λ = 0, or K at or past the last step: the same bytes as LoRA, in A, B, the head and W."""
    delta, _ = train(DeltaLoRA(r=4, form=form, **values))
    plain, _ = train(LoRA(r=4))
    keys = [k for k in plain.state_dict()[0] if not k.startswith("base.")]
    mine = {k: v for k, v in delta.state_dict()[0].items() if k in keys}
    assert same_tensors(mine, plain.state_dict()[0])
    for name in plain:
        assert torch.equal(delta.owner(name).W, plain.owner(name).W)
        assert torch.equal(delta[name].delta(), plain[name].delta())


# ---- λ schedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lam", "lam_end"), [(2.0, 0.0), (0.0, 1.0), (0.5, 1.5)])
def test_a_schedule_sums_each_step_at_its_own_lambda(lam, lam_end):
    """W_T − W_0 = Σ_t λ_t s (B_t A_t − B_{t-1} A_{t-1}), λ linear over the steps past K; delta() knows it."""
    K, total, s = 4, 12, 4.0
    made, path = follow(DeltaLoRA(r=4, lam=lam, lam_end=lam_end, K=K), tiny(dtype=F64))
    rates = {t: lam + (lam_end - lam) * (t - K - 1) / (total - K - 1) for t in range(K + 1, total + 1)}
    assert (rates[K + 1], rates[total]) == (lam, lam_end)
    for name in path[0]:
        accumulated_update = torch.zeros_like(path[0][name][2])
        for t in range(1, total + 1):
            (B, A, W, delta), (B_, A_, *_) = path[t][name], path[t - 1][name]
            accumulated_update += rates.get(t, 0.0) * s * (B @ A - B_ @ A_)
            assert (W - path[0][name][2] - accumulated_update).abs().max() < 1e-12
            assert (delta - accumulated_update - s * B @ A).abs().max() < 1e-12
        assert accumulated_update.abs().max() > 1e-4
    before = logits(made.adapters.model, make_batch())
    made.adapters.restore()
    assert (logits(made.adapters.model, make_batch()) - before).abs().max() < 1e-12


def test_a_flat_schedule_is_the_constant():
    """lam_end = lam sums to the telescoped form."""
    flat, _ = train(DeltaLoRA(r=4, lam=0.7, lam_end=0.7, K=3), tiny(dtype=F64))
    constant, _ = train(DeltaLoRA(r=4, lam=0.7, K=3), tiny(dtype=F64))
    for name in flat:
        assert (flat[name].delta() - constant[name].delta()).abs().max() < 1e-12


# ---- bfloat16, accumulation, refusals ------------------------------------------------------------------------


@pytest.mark.parametrize("values", [{"lam": 2.0}, {"lam": 2.0, "lam_end": 0.5}])
def test_a_bfloat16_base_accumulates_the_whole_change(values):
    """Small steps are not lost: the change stored in W stays within 5 % of a float64 sum over the same factors."""
    K, first, last = 2, values["lam"], values.get("lam_end", values["lam"])
    settings = {"steps": 60, "lr": 5e-4}
    made, path = follow(DeltaLoRA(r=4, K=K, **values), tiny(dtype=torch.bfloat16), **settings)
    assert made.adapters.dtype == torch.bfloat16
    for name in path[0]:
        W_0, exact = path[0][name][2].double(), torch.zeros_like(path[0][name][2], dtype=F64)
        step_by_step = path[0][name][2].clone()
        for t in range(K + 1, 61):
            (B, A, *_), (B_, A_, *_) = path[t][name], path[t - 1][name]
            lam = first + (last - first) * (t - K - 1) / (60 - K - 1)
            change = lam * 4.0 * (B.double() @ A.double() - B_.double() @ A_.double())
            exact += change
            step_by_step += change.to(torch.bfloat16)
        # W* − W_0 as delta() says, less the branch that is still beside W
        held = path[-1][name][3].double() - 4.0 * path[-1][name][0].double() @ path[-1][name][1].double()
        assert (held - exact).norm() < 1e-4 * exact.norm()
        rounding = (exact + W_0).bfloat16().double() - W_0 - exact
        stored = path[-1][name][2].double() - W_0
        assert (stored - exact).norm() <= rounding.norm() * 1.01 + 1e-6
        assert (step_by_step.double() - W_0 - exact).norm() > 2 * (stored - exact).norm()
        # along the change itself the rounding of single entries averages out
        assert float((stored * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=0.05)


def test_accumulation_counts_optimizer_steps():
    """With four micro-batches a step, K, the number of changes and the factors are those of one batch a step."""
    _, path = follow(DeltaLoRA(r=4, lam=1.0, K=3), tiny(dtype=F64))
    _, split = follow(DeltaLoRA(r=4, lam=1.0, K=3), tiny(dtype=F64), accumulation=4)
    assert len(path) == len(split) == 13
    for t in range(13):
        for name in path[0]:
            assert (path[t][name][2] - split[t][name][2]).abs().max() < 1e-10
            assert torch.equal(split[t][name][2], split[0][name][2]) == (t <= 3)


def test_a_run_in_which_w_never_moves_is_stopped():
    """If the anchor is never set, the last step says that W stood still."""
    made = trainer(DeltaLoRA(r=4, K=3))
    made.rule._anchor = lambda *_: None
    made.rule._add_step = lambda *_: None
    with pytest.raises(LivenessError, match=r"W never moved at 0\.q"):
        made.run()


def test_moved_is_the_distance_of_w():
    """The logged "moved" is ‖W_t − W_0‖, zero up to K."""
    made, path = follow(DeltaLoRA(r=4, K=3))
    for step, site, name, value in made.outcome.history:
        if name == "moved":
            assert value == pytest.approx(float((path[step][site][2] - path[0][site][2]).norm()), abs=1e-7)
            assert (value > 0) == (step > 3)

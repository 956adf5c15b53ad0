"""The layer itself: h = W x + s · B diag(g) A x, its merge, its way back, and the dtypes it lives with."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import make_batch, shake, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lowrank_teach.adapters import adapt
from lowrank_teach.lowrank import Adapted, LowRank, initial_A
from lowrank_teach.methods import LoRA

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class FixedGate(nn.Module):
    """A gate with given values."""

    def __init__(self, g: Tensor) -> None:
        super().__init__()
        self.register_buffer("g", g)

    def forward(self) -> Tensor:
        return self.g


def make_base(layout: str, d: int, k: int, dtype: torch.dtype = torch.float64, bias: bool = True) -> nn.Module:
    layer = nn.Linear(k, d, bias=bias) if layout == "linear" else Conv1D(d, k)
    return layer.to(dtype)


def make_branch(d: int, k: int, r: int, dtype: torch.dtype = torch.float64, **options) -> LowRank:
    """A branch of unit size whose B is not zero."""
    branch = LowRank(k, d, r, dtype=dtype, **options)
    nn.init.normal_(branch.lora_B, std=1 / math.sqrt(r))
    nn.init.normal_(branch.lora_A, std=1 / math.sqrt(k))
    return branch


def dense(base: nn.Module, W: Tensor, x: Tensor) -> Tensor:
    """x Wᵀ + bias, by hand."""
    return x @ W.T + (0 if base.bias is None else base.bias)


@st.composite
def layers(draw):
    """(layout, d, k, [slices], r, dtype, scaling, seed): one branch on all rows, or one on each of some slices."""
    k, width = draw(st.integers(1, 12)), draw(st.integers(1, 10))
    pieces = draw(st.integers(1, 3))
    chosen = draw(st.lists(st.integers(0, pieces - 1), min_size=1, max_size=pieces, unique=True))
    slices = [None] if pieces == 1 else [slice(i * width, (i + 1) * width) for i in sorted(chosen)]
    return (draw(st.sampled_from(["linear", "conv1d"])), pieces * width, k, slices,
            draw(st.integers(1, min(width, k))), draw(st.sampled_from([torch.float32, torch.float64])),
            draw(st.sampled_from([0.5, 1.0, 2.0])), draw(st.integers(0, 10**6)))


def adapted_layer(case) -> tuple[Adapted, Tensor, torch.dtype]:
    layout, d, k, slices, r, dtype, scaling, seed = case
    torch.manual_seed(seed)
    base = make_base(layout, d, k, dtype)
    width = d if slices[0] is None else slices[0].stop - slices[0].start
    branches = {f"0.{i}": (make_branch(width, k, r, dtype, scaling=scaling), rows) for i, rows in enumerate(slices)}
    return Adapted(base, branches), torch.randn(2, 3, k, dtype=dtype), dtype


# ---- the function -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(layers())
def test_output_is_the_dense_sum_on_every_slice(case):
    """h = x (W + s B A)ᵀ + bias, where only the adapted rows of W change."""
    layer, x, dtype = adapted_layer(case)
    W = layer.W.clone()
    for name, branch in layer.branches.items():
        W[layer.rows[name] or slice(None)] += branch.scaling * (branch.lora_B @ branch.lora_A).detach()
    assert (layer(x) - dense(layer.base, W, x)).abs().max() < 10 * TOLERANCE[dtype]


@settings(max_examples=60, deadline=None)
@given(layers())
def test_merged_equals_unmerged(case):
    """One dense matrix gives what the branches give: 1e-5 in float32, 1e-12 in float64."""
    layer, x, dtype = adapted_layer(case)
    before, raw = layer(x).detach(), layer.base.weight.detach().clone()
    layer.merge()
    with torch.no_grad():
        merged = layer(x)
    scale = before.abs().max().clamp_min(1)
    assert (merged - before).abs().max() <= TOLERANCE[dtype] * scale
    layer.restore()
    assert torch.equal(layer.base.weight, raw)
    assert torch.equal(layer(x).detach(), before)


def test_gate_multiplies_each_direction():
    """Branch, ΔW and factors are s B diag(g) A."""
    torch.manual_seed(0)
    g = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    branch, x = make_branch(6, 5, 3, gate=FixedGate(g)), torch.randn(4, 5, dtype=torch.float64)
    W = 2.0 * branch.lora_B @ torch.diag(g) @ branch.lora_A
    left, right = branch.factors()
    assert torch.allclose(branch(x), x @ W.T, rtol=0, atol=1e-13)
    assert torch.allclose(branch.delta(), W, rtol=0, atol=1e-13)
    assert torch.allclose(left @ right, W, rtol=0, atol=1e-13)


def test_echo_fixed_and_drift_are_part_of_the_function_and_of_delta():
    """W* − W = (1 + merged share) s B A + fixed + accumulated update: forward, merged, and after write_in_base."""
    torch.manual_seed(0)
    branch = make_branch(6, 5, 2)
    branch.merged_share = 0.7
    branch.fixed_left, branch.fixed_right = (torch.randn(6, 3).double(), torch.randn(3, 5).double())
    branch.accumulated_update = torch.randn(6, 5).double()
    layer, x = Adapted(make_base("linear", 6, 5), {"0.q": (branch, None)}), torch.randn(4, 5).double()
    W = layer.W.clone()
    product = 2.0 * (branch.lora_B @ branch.lora_A).detach()
    fixed = branch.fixed_left @ branch.fixed_right
    expected = dense(layer.base, W + 1.7 * product + fixed + branch.accumulated_update, x)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
    layer.write_in_base("0.q")
    assert torch.allclose(layer.W, W + 0.7 * product + fixed + branch.accumulated_update, rtol=0, atol=1e-12)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
    layer.merge()
    layer.eval()
    with torch.no_grad():
        assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)
    layer.restore()
    assert torch.equal(layer.W, W)
    assert torch.allclose(layer(x), expected, rtol=0, atol=1e-12)


def test_the_echo_is_constant_for_the_factors_but_not_for_the_input():
    """Gradients of A and B are LoRA's; the gradient of x passes through all of W*."""
    torch.manual_seed(0)
    branch, W = make_branch(6, 5, 2), torch.randn(6, 5).double()
    base = make_base("linear", 6, 5)
    base.weight.data.copy_(W)
    layer, x = Adapted(base, {"0.q": (branch, None)}), torch.randn(4, 5).double().requires_grad_()
    seed = torch.randn(4, 6).double()
    plain = torch.autograd.grad((layer(x) * seed).sum(), [branch.lora_A, branch.lora_B])
    branch.merged_share = 0.5
    *echoed, at_x = torch.autograd.grad((layer(x) * seed).sum(), [branch.lora_A, branch.lora_B, x])
    for one, other in zip(plain, echoed, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-13)
    assert torch.allclose(at_x, seed @ (W + 1.5 * 2 * branch.lora_B @ branch.lora_A), rtol=0, atol=1e-12)


def test_factors_are_refused_where_there_are_none():
    """An accumulated update has no low-rank form."""
    branch = make_branch(4, 4, 2)
    branch.accumulated_update = torch.zeros(4, 4).double()
    with pytest.raises(ValueError, match="no low-rank form"):
        branch.factors()


def test_gradients_match_finite_differences():
    """A, B and x have the gradients of the dense formula, through the in-place product on a slice."""
    torch.manual_seed(0)
    layer = Adapted(make_base("conv1d", 9, 4), {"0.q": (make_branch(3, 4, 2), slice(0, 3)),
                                                "0.v": (make_branch(3, 4, 2), slice(6, 9))})
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    inputs = list(layer.lora.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *inputs))
    assert layer.base.weight.grad is None


def test_dropout_only_in_training_and_only_on_the_branch():
    """In eval mode dropout does nothing; in training W x is untouched by it."""
    torch.manual_seed(0)
    branch = make_branch(6, 5, 2, dropout=0.5)
    layer, x = Adapted(make_base("linear", 6, 5), {"0.q": (branch, None)}), torch.randn(40, 5).double()
    assert not torch.allclose(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    branch.lora_B.data.zero_()
    assert torch.equal(layer.train()(x), layer.base(x))
    dropped = make_branch(5, 5, 5, dropout=0.25, scaling=1.0)
    dropped.lora_A.data.copy_(torch.eye(5))
    dropped.lora_B.data.copy_(torch.eye(5))
    seen = dropped(torch.ones(400, 5).double())
    assert set(seen.flatten().tolist()) == {0.0, 1 / 0.75}
    assert abs(float((seen == 0).double().mean()) - 0.25) < 0.05


# ---- how it starts --------------------------------------------------------------------------------------------


def test_starts():
    """B = 0; A uniform within ±1/√k, Gaussian of std 1/r, or with rows of about unit length."""
    g = torch.Generator().manual_seed(0)
    branch = LowRank(400, 30, 8, init="kaiming", generator=g)
    assert not branch.lora_B.any()
    assert branch.lora_A.abs().max() <= 1 / math.sqrt(400)
    assert abs(float(branch.lora_A.detach().std()) * math.sqrt(3 * 400) - 1) < 0.05
    assert abs(float(initial_A(8, 4000, "gaussian", g).std()) * 8 - 1) < 0.05
    A = initial_A(8, 4000, "unit_rows", g)
    assert (A @ A.T - torch.eye(8)).abs().max() < 0.1
    with pytest.raises(ValueError, match="'kaiming', 'gaussian', 'unit_rows'"):
        initial_A(2, 2, "zeros")


@pytest.mark.parametrize("r", [0, -1, 5])
def test_rank_outside_its_bounds_is_refused(r):
    """1 ≤ r ≤ min(d, k)."""
    with pytest.raises(ValueError, match=r"min\(d, k\) = 4"):
        LowRank(6, 4, r)


def test_only_linear_layers_are_adapted():
    """Another kind of layer is refused by name."""
    with pytest.raises(TypeError, match="Embedding"):
        Adapted(nn.Embedding(4, 4), {"0.q": (make_branch(4, 4, 2), None)})


# ---- the way into W and back ----------------------------------------------------------------------------------


def test_merge_twice_restore_with_nothing_written_and_training_while_merged_are_refused():
    """Each illegal transition says what to do instead."""
    layer = Adapted(make_base("linear", 6, 5), {"0.q": (make_branch(6, 5, 2), None)})
    x = torch.randn(2, 5).double()
    with pytest.raises(RuntimeError, match="nothing to restore"):
        layer.restore()
    layer.merge()
    with pytest.raises(RuntimeError, match="restore"):
        layer.merge()
    with pytest.raises(RuntimeError, match="restore"):
        layer.train()(x)
    layer.restore()
    layer(x)
    with pytest.raises(RuntimeError, match="nothing to restore"):
        layer.restore()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["linear", "conv1d"])
def test_merge_casts_once(layout, dtype):
    """A short float's merge is the cast of the float32 sum, also over several terms; restore gives W's bytes."""
    torch.manual_seed(0)
    base = make_base(layout, 24, 20, dtype)
    branch = make_branch(24, 20, 4, torch.float32)
    branch.fixed_left, branch.fixed_right = torch.randn(24, 3), torch.randn(3, 20)
    layer, raw = Adapted(base, {"0.q": (branch, None)}), base.weight.detach().clone()
    expected = (layer.W.float() + branch.delta()).to(dtype)
    layer.merge()
    assert torch.equal(layer.W, expected)
    layer.restore()
    held = branch.fixed_left @ branch.fixed_right
    layer.write_in_base("0.q")
    # the cast of the sum lies nearer to it than any other number of the type
    spacing = torch.finfo(dtype).eps * (layer.pretrained.float() + held).abs()
    assert ((layer.W.float() - layer.pretrained.float() - held).abs() <= 0.5 * spacing + 1e-6).all()
    layer.restore()
    assert torch.equal(base.weight, raw)


def test_bfloat16_layer_computes_its_branch_in_float32():
    """Output and input gradient are those of the dense float32 matrix up to bfloat16's rounding; A's, B's too."""
    torch.manual_seed(0)
    base, branch = make_base("linear", 24, 20, torch.bfloat16), make_branch(24, 20, 4, torch.float32)
    layer = Adapted(base, {"0.q": (branch, None)})
    x = torch.randn(8, 20).bfloat16().requires_grad_()
    seed, wide = torch.randn(8, 24).bfloat16(), x.detach().float().requires_grad_()
    W = base.weight.float()
    exact = wide @ (W + 2 * branch.lora_B @ branch.lora_A).T + base.bias.float()
    inputs = [branch.lora_A, branch.lora_B]
    expected = torch.autograd.grad((exact * seed.float()).sum(), [wide, *inputs])
    h = layer(x)
    assert h.dtype == torch.bfloat16
    found = torch.autograd.grad((h * seed).sum(), [x, *inputs])
    assert (h.float() - exact).norm() < 0.005 * exact.norm()
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.float() - theirs).norm() < 0.005 * theirs.norm()


@pytest.mark.parametrize("layout", ["linear", "conv1d"])
def test_bfloat16_branch_on_a_slice_leaves_the_other_rows_alone(layout):
    """Rows before and behind the slice are W x to the byte; its own rows are the sum."""
    torch.manual_seed(0)
    base, branch = make_base(layout, 24, 20, torch.bfloat16), make_branch(8, 20, 4, torch.float32)
    layer, x = Adapted(base, {"0.k": (branch, slice(8, 16))}), torch.randn(2, 3, 20).bfloat16()
    h, plain = layer(x), base(x)
    assert torch.equal(h[..., :8], plain[..., :8])
    assert torch.equal(h[..., 16:], plain[..., 16:])
    exact = plain[..., 8:16].float() + branch(x.float())
    assert (h[..., 8:16].float() - exact).norm() < 0.005 * exact.norm()
    assert (plain[..., 8:16].float() - exact).norm() > 0.5 * exact.norm()


def gradients(model, batch) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def trained_like(dtype: torch.dtype, kind: str = "bert"):
    model = tiny(kind, dtype=dtype)
    adapters = adapt(model, LoRA(r=4), seed=0)
    shake(adapters)
    return model.train(), adapters


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_bfloat16_base_with_float32_adapters(kind):
    """W stays in bfloat16 without gradients; A and B are float32, with the gradients of the widened model."""
    model, adapters = trained_like(torch.bfloat16, kind)
    found = gradients(model, make_batch())
    branch = next(iter(adapters.values()))
    assert {branch.lora_A.dtype, branch.lora_B.dtype} == {torch.float32}
    assert next(iter(adapters.owners.values())).W.dtype == torch.bfloat16
    assert all(owner.base.weight.grad is None for owner in adapters.owners.values())
    wide, _ = trained_like(torch.float32, kind)
    wide.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    expected = gradients(wide, make_batch())
    assert found.keys() == expected.keys()
    mine, exact = (torch.cat([v.flatten().float() for v in g.values()]) for g in (found, expected))
    assert (mine - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_and_gradient_checkpointing_give_the_same_gradients(dtype):
    """Under torch.autocast(bfloat16), recomputing activations changes no gradient, and W has none."""
    model, adapters = trained_like(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(model, make_batch())
        model.gradient_checkpointing_enable({"use_reentrant": False})
        again = gradients(model, make_batch())
    assert plain.keys() == again.keys()
    assert any(g.abs().max() > 0 for name, g in plain.items() if "lora_A" in name)
    for name, g in plain.items():
        assert torch.equal(g, again[name]), name
    assert all(owner.base.weight.grad is None for owner in adapters.owners.values())


def test_autocast_stays_near_the_float32_output():
    """Autocast rounds the branch, it does not drop or double it."""
    model, adapters = trained_like(torch.float32)
    batch = make_batch()
    model.eval()
    with torch.no_grad():
        exact = model(**batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(**batch).logits.float()
        for branch in adapters.values():
            branch.scaling = 0.0
        bare = model(**batch).logits
    assert (rounded - exact).abs().max() < 0.2 * (bare - exact).abs().max()

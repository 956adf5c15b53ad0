"""Numbers on weights: every shortcut through the factors against the dense definition it replaces."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank_teach.analysis import measures as m

# d out, k in, R rank of a pair of factors, r rank of an adapter, T tokens, L sequence length

# d, k, R, seed
SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 16), st.integers(0, 10**6))


def draw(d: int, k: int, R: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((d, R), (R, k), (d, k))
    left, right, W = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes)
    return left, right, W


# ---- spectra --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_factors_give_the_dense_spectrum(size):
    left, right, _ = draw(*size)
    s = m.singular_values(left, right)
    dense = torch.linalg.svdvals(left @ right)
    assert s.shape == (min(size[0], size[1], size[2]),)
    assert (s[:-1] >= s[1:]).all()
    torch.testing.assert_close(s, dense[: len(s)], rtol=0, atol=1e-10)
    assert (dense[len(s):] < 1e-10).all()


@settings(max_examples=30, deadline=None)
@given(SIZES)
def test_factor_svd_is_an_svd(size):
    left, right, _ = draw(*size)
    u, s, vh = m.factor_svd(left, right)
    eye = torch.eye(len(s), dtype=torch.float64)
    torch.testing.assert_close(u @ torch.diag(s) @ vh, left @ right, rtol=0, atol=1e-10)
    torch.testing.assert_close(u.T @ u, eye, rtol=0, atol=1e-10)
    torch.testing.assert_close(vh @ vh.T, eye, rtol=0, atol=1e-10)


def test_no_factors_no_spectrum():
    s = m.singular_values(torch.zeros(5, 0), torch.zeros(0, 7))
    assert s.shape == (0,)
    assert (m.effective_rank(s), m.stable_rank(s), m.numerical_rank(s), m.energy_rank(s)) == (0, 0, 0, 0)


def test_float32_parameters_are_read_in_float64_and_keep_no_graph():
    s = m.singular_values(nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.randn(2, 5)))
    assert s.dtype == torch.float64
    assert not s.requires_grad


def test_factors_that_do_not_multiply_are_refused():
    with pytest.raises(ValueError, match="pass left"):
        m.singular_values(torch.zeros(5, 2), torch.zeros(3, 7))


# ---- how many directions --------------------------------------------------------------------------


@given(st.integers(1, 40), st.floats(1e-3, 1e3))
def test_equal_values_count_themselves(n, size):
    s = torch.full((n,), size)
    assert m.effective_rank(s) == pytest.approx(n, rel=1e-9)
    assert m.stable_rank(s) == pytest.approx(n, rel=1e-6)
    assert m.numerical_rank(s) == n
    assert m.energy_rank(s, 1.0) == n


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.floats(0.01, 1))
def test_rank_bounds(values, share):
    s = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    s = s if s[0] > 1e-3 else torch.zeros_like(s)
    rank, held = m.energy_rank(s, share), m.energy(s)
    if not s.any():
        assert (rank, m.effective_rank(s), m.stable_rank(s), m.numerical_rank(s)) == (0, 0, 0, 0)
        assert not held.any()
        return
    assert 1 <= rank <= len(s)
    assert held[rank - 1] >= share - 1e-9              # enough …
    assert rank == 1 or held[rank - 2] < share         # … and one fewer is not
    assert held[-1] == pytest.approx(1)
    assert 1 - 1e-9 <= m.stable_rank(s) <= m.numerical_rank(s, 0.0) + 1e-9
    assert 1 - 1e-9 <= m.effective_rank(s) <= m.numerical_rank(s, 0.0) + 1e-9


def test_ranks_ignore_the_scale():
    s = torch.tensor([5.0, 2.0, 0.1])
    for rank in (m.effective_rank, m.stable_rank, m.numerical_rank, m.energy_rank):
        assert rank(s) == pytest.approx(rank(1e-20 * s), rel=1e-6)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_outside_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        m.energy_rank(torch.ones(3), share)


# ---- direction ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(SIZES)
def test_cosine_through_the_factors(size):
    left, right, W = draw(*size)
    dense = torch.nn.functional.cosine_similarity(W.flatten(), (W + left @ right).flatten(), dim=0)
    assert m.cosine(W, W + left @ right) == pytest.approx(float(dense), abs=1e-10)
    assert m.cosine_update(W, left, right) == pytest.approx(float(dense), abs=1e-10)


def test_cosine_sees_a_change_that_float32_would_round_away():
    left, right, W = draw(64, 64, 4, 0)
    small = 1 - m.cosine_update(W, 1e-4 * left, right)
    assert small == pytest.approx(1 - m.cosine(W, W + 1e-4 * left @ right), rel=1e-6)
    assert 0 < small < 1e-6
    assert m.cosine_update(W, 0 * left, right) == pytest.approx(1, abs=1e-15)


def test_cosine_signs_and_refusal():
    W = torch.randn(4, 3)
    assert m.cosine(W, -2 * W) == pytest.approx(-1)
    with pytest.raises(ValueError, match="all-zero"):
        m.cosine(W, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="all-zero"):
        m.cosine_update(torch.zeros(4, 3), torch.ones(4, 1), torch.ones(1, 3))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6), st.sampled_from(["left", "right"]))
def test_angles_of_a_subspace_with_itself_are_zero(rank, seed, side):
    left, right, _ = draw(9, 7, rank, seed)
    mixed = torch.linalg.qr(draw(rank, rank, rank, seed + 1)[0])[0]      # another basis of the same spaces
    angles = m.principal_angles(left @ mixed, mixed.T @ right, left @ right, rank, side)
    assert angles.shape == (rank,)
    assert (angles.abs() < 1e-10).all()                                  # arccos alone stops at 1e-8


@pytest.mark.parametrize("side", ["left", "right"])
def test_angles_of_orthogonal_subspaces_are_right(side):
    eye = torch.eye(8, dtype=torch.float64)
    angles = m.principal_angles(eye[:, :3], eye[:3], eye[:, 3:6] @ eye[3:6], 3, side)
    torch.testing.assert_close(angles, torch.full((3,), math.pi / 2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_known_angle_and_their_order():
    eye, tilt = torch.eye(6, dtype=torch.float64), 1e-9
    # first direction turned by 1e-9, second by 1 radian; W's own pair has sizes 2 and 1
    turned = torch.stack([math.cos(tilt) * eye[0] + math.sin(tilt) * eye[2],
                          math.cos(1) * eye[1] + math.sin(1) * eye[3]])
    W = 2 * torch.outer(eye[0], eye[0]) + torch.outer(eye[1], eye[1])
    angles = m.principal_angles(turned.T, torch.diag(eye[0, :2] + 1) @ eye[:2], W, 2, "left")
    torch.testing.assert_close(angles, torch.tensor([tilt, 1.0], dtype=torch.float64), rtol=1e-6, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_angles_agree_with_scipy_and_with_a_kept_basis(seed, rank):
    from scipy.linalg import subspace_angles

    left, right, W = draw(10, 8, 5, seed)
    for side in ("left", "right"):
        basis = m.top_subspace(W, rank, side)
        angles = m.principal_angles(left, right, W, rank, side)
        assert torch.equal(angles, m.principal_angles(left, right, None, rank, side, basis=basis))
        own = m.top_subspace(left @ right, rank, side)
        assert angles.flip(0).numpy() == pytest.approx(subspace_angles(own.numpy(), basis.numpy()), abs=1e-9)


def test_angles_refuse_what_is_arbitrary():
    left, right, W = draw(6, 5, 2, 0)
    with pytest.raises(ValueError, match="it has 2"):
        m.principal_angles(left, right, W, 3)                            # ΔW has two directions only
    with pytest.raises(ValueError, match="it has 0"):
        m.principal_angles(0 * left, right, W, 1)
    with pytest.raises(ValueError, match="columns"):
        m.principal_angles(left, right, None, 2, basis=m.top_subspace(W, 1))
    with pytest.raises(ValueError, match="basis="):
        m.principal_angles(left, right, None, 1)
    with pytest.raises(ValueError, match="side"):
        m.top_subspace(W, 1, "top")
    with pytest.raises(ValueError, match="rank 6"):
        m.top_subspace(W, 6)


# ---- gates and parameters -------------------------------------------------------------------------


def test_gate_sparsity_counts_exact_zeros():
    gates = {"0.q": torch.tensor([0.0, 1e-30, 1.0]), "0.up": torch.tensor([0.0])}
    assert m.gate_sparsity(gates) == 0.5
    with pytest.raises(ValueError, match="no gates"):
        m.gate_sparsity({})


def test_density_weighs_by_size_and_keeps_the_graph():
    p = {"0.q": torch.full((8,), 0.25, requires_grad=True), "0.up": torch.ones(8)}
    sizes = {"0.q": (4, 4), "0.up": (16, 8)}
    value = m.density(p, sizes)
    assert value.item() == pytest.approx((8 * 0.25 * 8 + 8 * 24) / (8 * 8 + 8 * 24))
    value.backward()
    assert p["0.q"].grad is not None
    torch.testing.assert_close(p["0.q"].grad, torch.full((8,), 8 / 256))
    with pytest.raises(ValueError, match="gated site"):
        m.density({}, sizes)


def test_density_of_salora_at_its_start():
    p = {site: torch.sigmoid(torch.log(torch.tensor(11.0))).expand(8) for site in ("0.q", "0.up")}
    assert float(m.density(p, {"0.q": (384, 384), "0.up": (1536, 384)})) == pytest.approx(0.9167, abs=1e-4)


class LowRank(nn.Module):
    def __init__(self, d: int, k: int, r: int):
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(torch.randn(r, k)), nn.Parameter(torch.randn(d, r))
        self.log_theta = nn.Parameter(torch.zeros(r))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.lora_A.T) @ self.lora_B.T


def test_parameter_counts():
    model = nn.ModuleDict({"base": nn.Linear(5, 7), "branch": LowRank(7, 5, 2), "head": nn.Linear(7, 3),
                           "norm": nn.LayerNorm(7)})
    model["tied"] = model["head"]
    model["base"].requires_grad_(False)
    model["norm"].requires_grad_(False)
    counts = m.parameter_counts(model)
    assert counts == {"total": 42 + 26 + 24 + 14, "trainable": 26 + 24, "frozen": 42 + 14, "adapter": 26,
                      "head": 24}
    model["branch"].lora_A.requires_grad_(False)                          # as after a rank was frozen
    assert m.parameter_counts(model)["adapter"] == 16


def test_published_count_of_salora():
    sizes = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]                 # q k v o up down of RoBERTa-base
    assert 12 * sum(8 * (d + k) for d, k in sizes) == 1_327_104           # the 1.33M of the paper
    model = nn.ModuleList(LowRank(d, k, 8) for d, k in sizes)
    assert 12 * (m.parameter_counts(model)["adapter"] - 6 * 8) == 1_327_104


# ---- FLOPs ----------------------------------------------------------------------------------------


class Stack(nn.Module):
    """Frozen Linears one after another, with hand-made branches on some."""

    def __init__(self, widths: list[int], ranks: dict[str, int], train_weight: bool = False):
        super().__init__()
        pairs = list(zip(widths[1:], widths[:-1], strict=True))
        self.shapes = {f"{i}.down": pair for i, pair in enumerate(pairs)}
        self.linears = nn.ModuleList(nn.Linear(k, d, bias=False).requires_grad_(train_weight)
                                     for d, k in pairs)
        self.branches = nn.ModuleDict({name.replace(".", "_"): LowRank(*self.shapes[name], r)
                                       for name, r in ranks.items()})

    def forward(self, x: Tensor) -> Tensor:
        for name, linear in zip(self.shapes, self.linears, strict=True):
            key = name.replace(".", "_")
            x = linear(x) + (self.branches[key](x) if key in self.branches else 0)
        return x


def counted(model: nn.Module, x: Tensor) -> tuple[int, int]:
    with FlopCounterMode(display=False) as counter:
        y = model(x)
        forward = counter.get_total_flops()
        y.sum().backward()
    return forward, counter.get_total_flops() - forward


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), st.data(), st.booleans())
def test_model_flops_are_those_torch_counts(widths, data, train_weight):
    names = [f"{i}.down" for i in range(len(widths) - 1)]
    ranks = data.draw(st.dictionaries(st.sampled_from(names), st.integers(1, 4), min_size=1))
    model = Stack(widths, ranks, train_weight)
    flops = m.model_flops(model.shapes, ranks, tokens=2 * 3, train_weight=train_weight)
    assert (flops.forward, flops.backward) == counted(model, torch.randn(2, 3, widths[0]))


class Attention(nn.Module):
    """Two layers of single-head attention and a gated MLP: q, k, v share an input, and so do gate and up."""

    def __init__(self, width: int, ranks: dict[str, int]):
        super().__init__()
        self.shapes = {f"{i}.{name}": {"down": (width, 2 * width), "up": (2 * width, width),
                                       "gate": (2 * width, width)}.get(name, (width, width))
                       for i in range(2) for name in ("q", "k", "v", "o", "gate", "up", "down")}
        self.linears = nn.ModuleDict({n.replace(".", "_"): nn.Linear(k, d, bias=False).requires_grad_(False)
                                      for n, (d, k) in self.shapes.items()})
        self.branches = nn.ModuleDict({n.replace(".", "_"): LowRank(*self.shapes[n], r)
                                       for n, r in ranks.items()})

    def at(self, key: str, x: Tensor) -> Tensor:
        return self.linears[key](x) + (self.branches[key](x) if key in self.branches else 0)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(2):
            q, k, v = (self.at(f"{i}_{name}", x) for name in "qkv")
            x = x + self.at(f"{i}_o", (q @ k.transpose(1, 2)).softmax(-1) @ v)
            x = x + self.at(f"{i}_down", self.at(f"{i}_gate", x).sigmoid() * self.at(f"{i}_up", x))
        return x


@pytest.mark.parametrize("sites", ["0.q", "0.v", "0.k 0.v", "0.q 0.v 1.q 1.v", "0.o", "0.up 1.gate", "1.v",
                                   "1.q", "1.k", "1.down", "0.q 0.k 0.v 0.o 0.gate 0.up 0.down"])
def test_model_flops_with_attention(sites):
    ranks = dict.fromkeys(sites.split(), 3)
    model = Attention(8, ranks)
    flops = m.model_flops(model.shapes, ranks, tokens=2 * 5, sequence_length=5)
    assert (flops.forward, flops.backward) == counted(model, torch.randn(2, 5, 8))


def test_matrix_flops_by_hand():
    d, k, r, T = 30, 20, 4, 7
    full = m.matrix_flops(d, k, r, T)
    assert full == m.Flops(2 * T * d * k, 2 * T * d * k, 2 * T * r * (d + k), 4 * T * r * (d + k))
    lowest = m.matrix_flops(d, k, r, T, input_gradient=False)
    assert lowest.backward_frozen == 0
    assert lowest.backward_adapter == 4 * T * d * r + 2 * T * r * k       # all but dx = dz A
    fixed = m.matrix_flops(d, k, r, T, train_adapter=False)
    assert fixed.backward_adapter == 2 * T * r * (d + k)                  # only the way through
    assert m.matrix_flops(d, k, r, T, input_gradient=False, train_adapter=False).backward == 0
    assert m.matrix_flops(d, k, 0, T).adapter == 0
    assert full.total == full.forward + full.backward == full.frozen + full.adapter
    assert (full + lowest).total == full.total + lowest.total


def test_model_flops_lower_bounds_and_refusal():
    shapes = {f"{i}.up": (8, 8) for i in range(4)}
    assert m.model_flops(shapes, {}, 5).backward == 0
    assert m.model_flops(shapes, {"3.up": 2}, 5).backward_frozen == 0     # adapted on top only
    assert m.model_flops(shapes, {"0.up": 2}, 5).backward_frozen == 3 * 2 * 5 * 64
    with pytest.raises(KeyError, match=r"9\.up"):
        m.model_flops(shapes, {"9.up": 2}, 5)


# ---- memory ------------ ---------------------------------------------------------------------------


def test_peak_memory_is_in_bytes():
    m.reset_peak_memory()
    peak = m.peak_memory()
    assert set(peak) == {"cuda_peak_bytes", "rss_peak_bytes"}
    assert peak["rss_peak_bytes"] is None or 2**26 < peak["rss_peak_bytes"] < 2**40   # torch: over 64 MB
    assert (peak["cuda_peak_bytes"] is None) == (not torch.cuda.is_available())


def test_peak_memory_without_getrusage(monkeypatch):
    monkeypatch.setattr(m.Path, "exists", lambda path: False)             # as on Windows: no /proc and
    monkeypatch.setitem(sys.modules, "resource", None)                    # no getrusage
    assert m.peak_memory()["rss_peak_bytes"] is None

"""AutoLoRA: the hypergradient against brute force, the ranks it hands over, and who moves what."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Stop, Watch, logits, make_batch, tiny, train, trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank_teach.adapters import adapt
from lowrank_teach.errors import LivenessError
from lowrank_teach.gates import Selection
from lowrank_teach.methods import AutoLoRA, LoRA
from lowrank_teach.methods.autolora import KINDS, hypergradient, same_noise

F64 = torch.float64


class Toy:
    """Two gated low-rank layers with a tanh between them; W = (A1, B1, A2, B2), β = (β1, β2)."""

    def __init__(self, seed: int = 0, rows: int = 12) -> None:
        g = torch.Generator().manual_seed(seed)
        make = lambda *shape: 0.5 * torch.randn(*shape, generator=g, dtype=F64)  # noqa: E731
        self.base = make(6, 5), make(3, 6)
        self.weights = {name: nn.Parameter(make(*shape)) for name, shape in
                        {"A1": (3, 5), "B1": (6, 3), "A2": (2, 6), "B2": (3, 2)}.items()}
        self.betas = [nn.Parameter(make(3)), nn.Parameter(make(2))]
        self.data = {part: (make(rows, 5), make(rows, 3)) for part in ("train", "held_out")}

    def loss(self, part: str, w: dict[str, Tensor]) -> Tensor:
        x, y = self.data[part]
        for i, (W, beta) in enumerate(zip(self.base, self.betas, strict=True), 1):
            x = x @ W.T + 2 * (x @ w[f"A{i}"].T * torch.softmax(beta, 0)) @ w[f"B{i}"].T
            x = torch.tanh(x) if i == 1 else x
        return ((x - y) ** 2).mean()

    def hypergradient(self, kind: str, eta: float, radius: float = 0.01) -> Tensor:
        found = hypergradient(kind, lambda w: self.loss("train", w), lambda w: self.loss("held_out", w),
                              self.weights, self.betas, eta, radius)
        return torch.cat([g.detach() for g in found])

    def outer_value(self, eta: float) -> float:
        """L_held-out(W − η ∇_W L_train(W, β), β) with the virtual step taken for real."""
        gradients = torch.autograd.grad(self.loss("train", self.weights), list(self.weights.values()))
        moved = {n: (w - eta * g).detach() for (n, w), g in zip(self.weights.items(), gradients, strict=True)}
        return self.loss("held_out", moved).item()

    def brute_force(self, eta: float, step: float = 1e-5) -> Tensor:
        """Central differences of `outer_value` over each entry of β."""
        out = []
        for beta in self.betas:
            for j in range(len(beta)):
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        beta[j] += sign * step
                    values.append(self.outer_value(eta))
                    with torch.no_grad():
                        beta[j] -= sign * step
                out.append((values[0] - values[1]) / (2 * step))
        return torch.tensor(out, dtype=F64)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


# ---- the hypergradient --------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_unrolled_equals_brute_force(seed, eta):
    """The double backward is the derivative of the held-out loss after an explicit virtual step."""
    toy = Toy(seed)
    exact = toy.brute_force(eta)
    assert exact.norm() > 1e-4
    assert (toy.hypergradient("unrolled", eta) - exact).norm() < 1e-7 * max(1.0, float(exact.norm()))


@pytest.mark.parametrize("eta", [0.01, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_finite_difference_comes_near_the_exact_one(seed, eta):
    """Its cosine to the unrolled one is above 0.999, and its second-order part's too; smaller ε, closer."""
    toy = Toy(seed)
    exact, found = toy.hypergradient("unrolled", eta), toy.hypergradient("finite_difference", eta)
    assert cosine(found, exact) > 0.999
    direct = direct_part(toy, eta)
    assert (exact - direct).norm() > 1e-6
    assert cosine(found - direct, exact - direct) > 0.999
    finer = toy.hypergradient("finite_difference", eta, radius=1e-4)
    assert (finer - exact).norm() < 1e-3 * (exact - direct).norm()


@pytest.mark.parametrize("eta", [0.01, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forward_difference_needs_a_pass_fewer_and_errs_linearly_in_the_radius(seed, eta):
    """Three losses in place of four; a tenth of ε, a tenth of the error."""
    toy, asked = Toy(seed), []
    exact, direct, loss = toy.hypergradient("unrolled", eta), direct_part(toy, eta), toy.loss
    toy.loss = lambda part, w: asked.append(part) or loss(part, w)
    far, near = (toy.hypergradient("forward_difference", eta, radius) for radius in (1e-2, 1e-3))
    assert asked == 2 * ["train", "held_out", "train"]
    assert cosine(near - direct, exact - direct) > 0.999
    assert float((far - exact).norm() / (near - exact).norm()) == pytest.approx(10, rel=0.2)


def direct_part(toy: Toy, eta: float) -> Tensor:
    """∂L_held-out/∂β at the virtual weights, these held fixed."""
    inner = torch.autograd.grad(toy.loss("train", toy.weights), list(toy.weights.values()))
    virtual = {n: (w - eta * g).detach() for (n, w), g in zip(toy.weights.items(), inner, strict=True)}
    return torch.cat(torch.autograd.grad(toy.loss("held_out", virtual), toy.betas))


@pytest.mark.parametrize("eta", [0.01, 0.3])
def test_betty_weighs_the_second_order_part_by_one_instead_of_eta(eta):
    """betty − direct = (finite_difference − direct) / η."""
    toy = Toy()
    direct = direct_part(toy, eta)
    weighted = toy.hypergradient("finite_difference", eta) - direct
    betty = toy.hypergradient("betty", eta) - direct
    assert (betty * eta - weighted).norm() < 1e-10 * weighted.norm()
    assert betty.norm() > 2 * weighted.norm()


def test_first_order_is_the_limit_of_no_virtual_step():
    """As η → 0 the exact hypergradient goes to the first-order one, linearly in η."""
    toy = Toy()
    plain = toy.hypergradient("first_order", 1.0)
    gaps = [float((toy.hypergradient("unrolled", eta) - plain).norm()) for eta in (1e-2, 1e-3, 1e-4)]
    assert gaps[0] > 1e-4
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.01)
    assert torch.equal(plain, direct_part(toy, 0.0))
    assert torch.allclose(toy.hypergradient("unrolled", 0.0), plain, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_while_the_hypergradient_is_taken(kind):
    """W and β keep their bytes, and no .grad is left behind."""
    toy = Toy()
    before = [p.detach().clone() for p in (*toy.weights.values(), *toy.betas)]
    toy.hypergradient(kind, 0.3)
    for p, old in zip((*toy.weights.values(), *toy.betas), before, strict=True):
        assert torch.equal(p, old)
        assert p.grad is None


def test_a_whole_transformer_has_the_same_hypergradient():
    """On tiny BERT, through the loop's own loss: unrolled equals central differences, the others come near."""
    found = {}
    for kind in ("unrolled", "finite_difference", "first_order"):
        made = trainer(AutoLoRA(r=3, hypergradient=kind), tiny(dtype=F64), callbacks=[Stop(4)], rows=32)
        made.run()
        rule, loop = made.rule, made
        if not found:
            brute = whole_model_by_hand(made)
        seen = {}
        rule.outer.step = lambda rule=rule, seen=seen: seen.update(
            g=torch.cat([beta.grad.flatten() for beta in rule.own_parameters()]))
        with torch.no_grad():
            for beta, value in zip(rule.own_parameters(), some_betas(rule), strict=True):
                beta.copy_(value)
        rule.before_step(loop.clock)
        found[kind] = seen["g"]
    assert (found["unrolled"] - brute).norm() < 1e-6 * brute.norm()
    assert cosine(found["finite_difference"], brute) > 0.999
    assert (found["first_order"] - brute).norm() > 10 * (found["unrolled"] - brute).norm()


def some_betas(rule) -> list[Tensor]:
    """The same β for every kind."""
    g = torch.Generator().manual_seed(7)
    return [torch.randn(len(beta), generator=g, dtype=F64) for beta in rule.own_parameters()]


def whole_model_by_hand(made, step: float = 1e-5) -> Tensor:
    """Central differences over β of the held-out loss after an explicit virtual step, on the trainer's batches."""
    rule, eta = made.rule, made.optimizer.param_groups[0]["lr"]
    betas = rule.own_parameters()
    keep = [beta.detach().clone() for beta in betas]
    weights = {n: p for n, p in made.adapters.model.named_parameters() if p.requires_grad and "beta" not in n}
    assert len(weights) == 2 * 4 + 2

    def value() -> float:
        inner = torch.autograd.grad(sum(made.loss(b) for b in made.micro_batches), list(weights.values()))
        moved = {n: (w - eta * g).detach() for (n, w), g in zip(weights.items(), inner, strict=True)}
        with torch.no_grad():
            return float(sum(made.loss(b, moved) for b in made.held_out()))

    out = []
    with torch.no_grad():
        for beta, start in zip(betas, some_betas(rule), strict=True):
            beta.copy_(start)
    for beta in betas:
        for j in range(len(beta)):
            values = []
            for sign in (1, -1):
                beta.data[j] += sign * step
                values.append(value())
                beta.data[j] -= sign * step
            out.append((values[0] - values[1]) / (2 * step))
    for beta, old in zip(betas, keep, strict=True):
        beta.data.copy_(old)
    return torch.tensor(out, dtype=F64)


def test_the_perturbed_passes_share_their_dropout_masks():
    """same_noise repeats one random state at every call, and gives the caller's state back."""
    torch.manual_seed(3)
    loss = same_noise(lambda w: nn.functional.dropout(torch.ones(200), 0.5).mul(w["x"]).sum())
    first, between, second = loss({"x": torch.tensor(1.0)}), torch.rand(3), loss({"x": torch.tensor(1.0)})
    assert first == second
    assert loss({"x": torch.tensor(2.0)}) == 2 * first
    torch.manual_seed(3)
    assert torch.equal(between, torch.rand(3))


@pytest.mark.parametrize("kind", ["finite_difference", "betty", "unrolled"])
def test_every_training_pass_of_one_outer_step_starts_from_one_random_state(kind):
    """In the rule itself: the gradient and both perturbed passes drop the same units; the next step others."""
    made = trainer(AutoLoRA(r=4, hypergradient=kind, lora_dropout=0.3), tiny(dropout=0.2), callbacks=[Stop(3)])
    loss, states = made.loss, {"train": [], "held_out": []}

    def watched(batch, parameters=None):
        if parameters is not None:
            mine = any(batch is b for b in made.micro_batches)
            states["train" if mine else "held_out"].append((made.clock.step, torch.get_rng_state()))
        return loss(batch, parameters)

    made.loss = watched
    made.run()
    for step in (1, 2, 3):
        seen = [state for at, state in states["train"] if at == step]
        assert len(seen) == (1 if kind == "unrolled" else 3)
        assert all(torch.equal(state, seen[0]) for state in seen)
    firsts = [next(state for at, state in states["train"] if at == step) for step in (1, 2)]
    assert not torch.equal(*firsts)


# ---- who moves what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_inner_optimizer_leaves_beta_alone_and_the_head_trains(kind):
    """β changes in before_step only, and from there to the end of the step its bytes stay; the head moves."""
    made = trainer(AutoLoRA(r=4, hypergradient=kind, eta_beta=0.05), weight_decay=0.5)
    rule, seen, moved = made.rule, {}, []
    before_step = rule.before_step

    def watched(clock) -> None:
        old = [beta.detach().clone() for beta in rule.own_parameters()]
        if seen:
            assert all(torch.equal(a, b) for a, b in zip(old, seen["after"], strict=True))
        before_step(clock)
        seen["after"] = [beta.detach().clone() for beta in rule.own_parameters()]
        moved.append(any(not torch.equal(a, b) for a, b in zip(old, seen["after"], strict=True)))
        assert all(beta.grad is None and not beta.requires_grad for beta in rule.own_parameters())

    rule.before_step = watched
    head = [p.detach().clone() for p in made.adapters.head_parameters()]
    optimized = []
    made.callbacks = [Watch(lambda *_: optimized.append(
        {id(p) for group in made.optimizer.param_groups for p in group["params"]}))]
    made.run()
    # at step 1 B = 0 and no loss sees α, except through the virtual step, which moves B
    assert moved == [kind != "first_order"] + [True] * 11
    assert not optimized[0] & {id(beta) for beta in rule.own_parameters()}
    assert all(not torch.equal(p, old) for p, old in zip(made.adapters.head_parameters(), head, strict=True))
    for selection in rule.selections().values():
        assert float(selection().sum()) == pytest.approx(1, abs=1e-6)


def test_beta_learns_on_rows_that_the_weights_never_see():
    """The split is disjoint, covers all rows, and has the share asked for."""
    made = trainer(AutoLoRA(r=4, split=0.25), rows=64)
    train_rows, held = ({id(row) for row in made.streams[s]} for s in ("train", "held_out"))
    assert not train_rows & held
    assert (len(train_rows), len(held)) == (48, 16)
    made.run()
    assert made.clock.per_epoch == 6
    with pytest.raises(ValueError, match="too few to hold out"):
        trainer(AutoLoRA(r=4), rows=1)


def test_search_steps():
    """A share of the training's own steps, or a count; the search and not the training is that long."""
    assert AutoLoRA(search_steps=0.4).steps(30) == 12
    assert AutoLoRA(search_steps=7).steps(30) == 7
    assert AutoLoRA(search_steps=0.001).steps(30) == 1
    assert trainer(AutoLoRA(r=4, search_steps=5)).total == 5


def test_a_search_that_moves_nothing_is_stopped():
    """If β never moves the end of the search says so."""
    made = trainer(AutoLoRA(r=4), steps=6)
    made.rule.before_step = lambda clock: None
    for beta in made.rule.own_parameters():
        beta.requires_grad_(False)
    with pytest.raises(LivenessError, match="no selection weight has moved"):
        made.run()


# ---- ranks --------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=16))
def test_softmax_ranks_lie_between_one_and_k(beta):
    """#{α ≥ 1/k} is at least one, for the largest is never below the mean, and at most k."""
    selection = Selection(len(beta))
    selection.beta.data.copy_(torch.tensor(beta))
    assert 1 <= selection.rank() <= len(beta)
    assert selection().sum().item() == pytest.approx(1, abs=1e-5)
    # α ≥ 1/k is the same as β ≥ log-mean-exp(β)
    limit = torch.logsumexp(torch.tensor(beta).double(), 0) - math.log(len(beta))
    clear = all(abs(float(limit) - b) > 1e-3 for b in beta)
    if clear:
        assert selection.rank() == sum(b > float(limit) for b in beta)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 16])
@pytest.mark.parametrize("constraint", ["softmax", "sigmoid", "none"])
def test_every_search_starts_with_all_weights_at_their_threshold(k, constraint):
    """All equal and counted as rank k, under each constraint; for the softmax whatever the rounding."""
    selection = Selection(k, constraint)
    start = 0.5 if constraint == "sigmoid" else 1 / k
    assert torch.allclose(selection(), torch.full((k,), start), rtol=0, atol=1e-5)
    assert selection.rank() == k
    selection.beta.data += 1e-9 * torch.randn(k)
    assert constraint != "softmax" or selection.rank() == k


def test_ranks_are_handed_over_by_the_name_of_their_site():
    """The LoRA that follows has the ranks found, site by site, one s for all, and no selection weights."""
    made = trainer(AutoLoRA(r=4, lora_alpha=8, eta_beta=0.3, sites="qkvo", lora_dropout=0.1, init="gaussian"),
                   tiny("gpt2"))
    ranks = {}
    for i, (name, selection) in enumerate(made.rule.selections().items()):
        ranks[name] = 1 + i % 4
        with torch.no_grad():
            selection.beta.copy_(torch.tensor([9.0 if j <= i % 4 else -9.0 for j in range(4)]))
    assert made.rule.ranks() == ranks
    following = made.rule.finish()
    assert isinstance(following, LoRA)
    assert (following.lora_dropout, following.init, following.lora_alpha) == (0.1, "gaussian", 8)
    adapters = adapt(tiny("gpt2"), following, seed=0)
    assert adapters.ranks() == ranks
    assert {branch.scaling for branch in adapters.values()} == {2.0}
    assert all(branch.gate_module is None for branch in adapters.values())


def test_fixed_alpha_divides_by_each_rank():
    """The authors' scale α / r_l, which differs per matrix, is a switch."""
    made = trainer(AutoLoRA(r=4, lora_alpha=8, fixed_alpha=True))
    for i, selection in enumerate(made.rule.selections().values()):
        selection.beta.data.copy_(torch.tensor([5.0] * (i + 1) + [-5.0] * (3 - i)))
    adapters = adapt(tiny(), made.rule.finish(), seed=0)
    assert {name: branch.scaling for name, branch in adapters.items()} == {
        "0.q": 8.0, "0.v": 4.0, "1.q": 8 / 3, "1.v": 2.0}


def test_shuffled_ranks_keep_their_histogram():
    """The control deals the same ranks out to other sites, the same way for the same seed."""
    dealt = []
    for seed in (0, 0, 1, 2):
        made = trainer(AutoLoRA(r=8, sites="all", shuffle_ranks=True), seed=seed)
        for i, selection in enumerate(made.rule.selections().values()):
            selection.beta.data.copy_(torch.arange(8.0) * (i % 5) ** 2)
        found = made.rule.ranks()
        dealt.append(made.rule.finish().rank_pattern)
        assert sorted(dealt[-1].values()) == sorted(found.values())
        assert set(dealt[-1]) == set(found)
        assert len(set(found.values())) > 2
    assert dealt[0] == dealt[1]
    assert any(dealt[0] != other for other in dealt[2:])


def test_the_search_hands_over_only_when_it_retrains():
    """retrain=False leaves the searched model, whose gated branches merge like any other."""
    adapters, outcome = train(AutoLoRA(r=4, eta_beta=0.1, retrain=False), tiny(dtype=F64))
    assert outcome.following is None
    before = logits(adapters.model, make_batch())
    adapters.merge()
    assert (logits(adapters.model, make_batch()) - before).abs().max() < 1e-12
    adapters.remove()
    adapters, outcome = train(AutoLoRA(r=4, eta_beta=0.1), tiny())
    assert outcome.following.rank_pattern == adapters.rule.ranks()
    assert all(1 <= r <= 4 for r in outcome.following.rank_pattern.values())
    retrained, _ = train(outcome.following, tiny())
    assert retrained.ranks() == adapters.rule.ranks()


def test_the_initial_effective_scale_is_one_kth_of_loras():
    """α = 1/k: the searched branch starts at s / k, which the log shows."""
    made = trainer(AutoLoRA(r=4, hypergradient="first_order"), callbacks=[Stop(1)])
    made.run()
    first = [row for row in made.outcome.history if row[2].startswith("alpha.")]
    assert len(first) == 4 * 4
    assert all(row[3] == 0.25 for row in first)
    branch = made.adapters["0.q"]
    assert torch.allclose(branch.delta(), 4.0 / 4 * branch.lora_B @ branch.lora_A)


# ---- the two ways to count, and a search that learned nothing -------------------------------------------------


def test_raw_weights_count_against_their_mean():
    """β = (1.2, 1, 1, 0.8): three are at or above the mean 1, and one has a softmax of 1/4 or more."""
    selection = Selection(4)
    selection.beta.data = torch.tensor([1.2, 1.0, 1.0, 0.8])
    assert (selection.rank(raw=True), selection.rank()) == (3, 1)
    made = trainer(AutoLoRA(r=4, count="raw"))
    for one in made.rule.selections().values():
        one.beta.data = selection.beta.data.clone()
    assert set(made.rule.ranks().values()) == {3}
    made.rule.method = AutoLoRA(r=4)
    assert set(made.rule.ranks().values()) == {1}


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=16))
def test_raw_never_counts_fewer_than_the_softmax(beta):
    """The mean of β is at most the logarithm of the mean of exp β (Jensen)."""
    selection = Selection(len(beta))
    selection.beta.data = torch.tensor(beta)
    assert 1 <= selection.rank() <= selection.rank(raw=True)


@pytest.mark.parametrize(("losses", "noted"), [
    ([0.7, 0.69, 0.71, 0.7] * 10, True), ([0.7 + 0.01 * i for i in range(40)], True),
    ([0.7 - 0.01 * i + 0.005 * (-1) ** i for i in range(40)], False), ([0.7, 0.6, 0.5], False)])
def test_a_search_whose_loss_has_not_fallen_is_noted(losses, noted):
    """Flat within its noise, or rising; not where it falls, and nothing is said of a handful of steps."""
    made = trainer(AutoLoRA(r=4), callbacks=[Stop(1)])
    made.run()
    made.outcome.history[:] = [(i, "", "loss", loss) for i, loss in enumerate(losses, 1)]
    notes = made.rule.notes()
    assert bool(notes) == noted
    assert not noted or "the search's loss has not fallen" in notes[0]

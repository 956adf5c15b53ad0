"""SaLoRA: gates, a budget driven to b, orthogonality, pruning; each formula against its definition."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from helpers import Stop, Watch, collate_for, logits, make_batch, rows_for, shake, tiny, train, trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lowrank_teach.adapters import adapt
from lowrank_teach.errors import LivenessError
from lowrank_teach.gates import HardConcrete, Stretch
from lowrank_teach.methods import COLA, LoRA, SaLoRA
from lowrank_teach.methods.composition import compose
from lowrank_teach.methods.salora import SaLoRARule
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer

F64 = torch.float64
STRETCHES = st.builds(Stretch, tau=st.floats(0.3, 2.0), gamma=st.floats(-0.5, -0.05), zeta=st.floats(1.05, 1.5))


def values_of(outcome, name: str) -> list[float]:
    return [row[3] for row in outcome.history if row[2] == name]


# ---- the gate -----------------------------------------------------------------------------------------------


def test_the_density_starts_at_sigma_of_log_11():
    """log θ = 0 gives P(g > 0) = σ(log 11) = 11/12 = 0.9167, for one gate and for the whole model."""
    assert Stretch().open_probability(torch.zeros((), dtype=F64)).item() == pytest.approx(11 / 12, abs=1e-12)
    made = trainer(SaLoRA(r=4, eta_c=0.5, t_end=10), callbacks=[Stop(1)])
    made.prepare()
    assert float(made.rule.density().detach()) == pytest.approx(11 / 12, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(STRETCHES, st.floats(-4, 4), st.integers(0, 10**6))
def test_open_probability_and_mean_agree_with_monte_carlo(stretch, log_theta, seed):
    """The closed form of P(g > 0) and E[g] by quadrature are the frequencies of 20 000 samples, within 5 σ."""
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(seed), dtype=F64)
    theta = torch.tensor(log_theta, dtype=F64)
    g = stretch.sample(theta, u)
    p = float(stretch.open_probability(theta))
    assert abs(float((g > 0).double().mean()) - p) < 5 * math.sqrt(p * (1 - p) / 20_000) + 1e-3
    mean = float(stretch.mean(theta))
    assert abs(float(g.mean()) - mean) < 5 * float(g.std()) / math.sqrt(20_000) + 1e-3
    assert ((g >= 0) & (g <= 1)).all()


@settings(max_examples=60, deadline=None)
@given(STRETCHES, st.floats(-6, 6))
def test_the_deterministic_gate_is_zero_up_to_its_threshold(stretch, log_theta):
    """Zero iff log θ ≤ −τ log(−ζ/γ); with τ = 1 that is −2.398, where P(g > 0) = 1/2. The mean is never zero, so that
    "keep if E[g] > 0", read literally, keeps everything."""
    theta = torch.tensor(log_theta, dtype=F64)
    assert 0 < float(stretch.mean(theta)) <= 1
    edge = -stretch.tau * math.log(-stretch.zeta / stretch.gamma)
    if abs(log_theta - edge) > 1e-9:
        assert (float(stretch.deterministic(theta)) == 0) == (log_theta < edge)
    usual = Stretch()
    assert (float(usual.deterministic(theta)) == 0) == (log_theta <= -math.log(11))
    assert -math.log(11) == pytest.approx(-2.398, abs=1e-3)
    assert (float(usual.open_probability(theta)) > 0.5) == (log_theta > -math.log(11))


def test_gate_gradients_match_finite_differences():
    """∂g/∂log θ of a sample, of the deterministic gate and of P(g > 0), inside (0, 1)."""
    theta = torch.linspace(-1.5, 1.5, 5, dtype=F64, requires_grad=True)
    u = torch.linspace(0.3, 0.7, 5, dtype=F64)
    for stretch in (Stretch(), Stretch(tau=0.5, gamma=-0.3, zeta=1.2)):
        g = stretch.sample(theta, u)
        assert ((g > 0) & (g < 1)).any()
        assert torch.autograd.gradcheck(lambda t, s=stretch: s.sample(t, u), (theta,))
        assert torch.autograd.gradcheck(stretch.deterministic, (theta,))
        assert torch.autograd.gradcheck(stretch.open_probability, (theta,))


def test_phases_of_a_gate():
    """Open and folded: ones. Sampled: the noise's gate in training, the deterministic one in eval mode."""
    gate = HardConcrete(Stretch(), 3)
    with torch.no_grad():
        gate.log_theta.copy_(torch.tensor([-3.0, 0.0, 1.0]))
    gate.u = torch.tensor([0.5, 0.01, 0.9])
    for phase in ("open", "folded"):
        gate.phase = phase
        assert torch.equal(gate(), torch.ones(3))
    fixed = Stretch().deterministic(gate.log_theta)
    gate.phase = "sampled"
    assert torch.equal(gate.train()(), Stretch().sample(gate.log_theta, gate.u))
    assert torch.equal(gate.eval()(), fixed)
    gate.phase = "deterministic"
    assert torch.equal(gate.train()(), fixed)
    assert fixed[0] == 0
    assert not torch.equal(fixed, torch.ones(3))


# ---- the loss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_orthogonality_equals_a_loop_over_the_sites(kind, reduce):
    """One batched product a shape is ‖A Aᵀ − I‖² and ‖Bᵀ B − I‖² site by site, averaged or added up."""
    adapters = adapt(tiny(kind, dtype=F64), SaLoRA(r=4, orthogonality=reduce), seed=0)
    shake(adapters)
    A_term, B_term = [], []
    for branch in adapters.values():
        A, B, eye = branch.lora_A.detach(), branch.lora_B.detach(), torch.eye(4, dtype=F64)
        A_term.append(float(torch.linalg.matrix_norm(A @ A.T - eye)) ** 2)
        B_term.append(float(torch.linalg.matrix_norm(B.T @ B - eye)) ** 2)
    scale = len(A_term) if reduce == "mean" else 1
    found = adapters.rule.orthogonality()
    assert found[0].item() == pytest.approx(sum(A_term) / scale, rel=1e-12)
    assert found[1].item() == pytest.approx(sum(B_term) / scale, rel=1e-12)


def test_a_starts_near_orthonormal_and_b_at_zero():
    """With unit rows (std 1/√k) the start of A costs little; ‖0 − I‖² = r on B's side."""
    method = SaLoRA(r=8, init="unit_rows", orthogonality="mean")
    R_A, R_B = adapt(tiny(hidden_size=256, intermediate_size=256), method, seed=0).rule.orthogonality()
    assert R_B.item() == 8.0
    assert R_A.item() < 1.0


def test_the_density_weighs_each_site_by_its_size():
    """C = Σ P(g > 0)(d + k) / Σ r (d + k), and λ (C − b)² + β R is the penalty, once an optimizer step."""
    made = trainer(SaLoRA(r=4, b=0.3, beta=0.2, eta_c=0.5, t_end=10), tiny(dtype=F64), callbacks=[Stop(2)])
    made.run()
    rule, top, bottom = made.rule, 0.0, 0.0
    assert len({branch.lora_A.shape[1] + branch.lora_B.shape[0] for branch in made.adapters.values()}) > 1
    for branch in made.adapters.values():
        with torch.no_grad():
            branch.gate_module.log_theta.normal_()
        size = branch.lora_A.shape[1] + branch.lora_B.shape[0]
        top += float(torch.sigmoid(branch.gate_module.log_theta.detach() + math.log(11)).sum()) * size
        bottom += 4 * size
    C = top / bottom
    assert float(rule.density()) == pytest.approx(C, abs=1e-12)
    with torch.no_grad():
        rule.lam.fill_(3.0)
    R = sum(r.item() for r in rule.orthogonality())
    assert float(rule.penalty()) == pytest.approx(0.2 * R + 3.0 * (C - 0.3) ** 2, abs=1e-12)


def test_the_multiplier_climbs_and_is_no_part_of_the_descent():
    """λ's gradient is (C − b)² upwards: with Adam its first step is η_c, with SGD η_c (C − b)²; never negative."""
    start = (11 / 12 - 0.5) ** 2
    lams = {}
    for ascent in ("adam", "sgd"):
        made = trainer(SaLoRA(r=4, eta_c=0.25, t_end=12, ascent=ascent), steps=12)
        _, outcome = made.adapters, made.run()
        lams[ascent] = values_of(outcome, "lambda")
        assert all(later >= earlier >= 0 for earlier, later in zip(lams[ascent], lams[ascent][1:], strict=False))
        assert not made.rule.lam.requires_grad or made.rule.lam.grad >= 0
    assert lams["adam"][0] == pytest.approx(0.25, rel=1e-3)
    assert lams["sgd"][0] == pytest.approx(0.25 * start, rel=0.2)
    assert lams["sgd"][-1] < 12 * 0.25 * start
    assert lams["adam"][-1] > 5 * lams["sgd"][-1]


def test_lambda_max_bounds_the_multiplier():
    """0 switches the budget off, also its check of the window's length; another bound is kept."""
    _, outcome = train(SaLoRA(r=4, eta_c=0.01, t_end=6, lambda_max=0))
    assert set(values_of(outcome, "lambda")) == {0.0}
    _, outcome = train(SaLoRA(r=4, eta_c=0.5, t_end=10, lambda_max=0.3))  # Adam's first step alone is eta_c
    assert max(values_of(outcome, "lambda")) == pytest.approx(0.3)


def test_the_projection_is_part_of_the_ascent():
    """λ pushed below zero comes back to zero at the next step."""
    made = trainer(SaLoRA(r=4, eta_c=0.25, t_end=12, ascent="sgd"), callbacks=[Stop(3)])
    made.run()
    with torch.no_grad():
        made.rule.lam.fill_(-5.0)
    made.rule._ascend()
    assert float(made.rule.lam) == 0.0


# ---- noise and phases ---------------------------------------------------------------------------------------


def gates_seen(made, steps: int) -> list[list[torch.Tensor]]:
    """The gate of site 0.q at each forward pass of each step."""
    seen: list[list[torch.Tensor]] = [[] for _ in range(steps + 1)]
    gate = made.adapters["0.q"].gate_module
    gate.register_forward_hook(lambda m, i, g: seen[made.clock.step].append(g.detach().clone())
                               if m.training else None)
    return seen


@pytest.mark.parametrize("settings_", [{"accumulation": 4}, {"gradient_checkpointing": True}])
def test_one_draw_a_step_for_all_micro_batches_and_recomputations(settings_):
    """Within a step every forward sees the same gate; the next step draws another one."""
    made = trainer(SaLoRA(r=4, eta_c=0.5, t_end=12), tiny(dropout=0.1), **settings_)
    seen = gates_seen(made, 12)
    made.run()
    for step in range(1, 12):
        assert len(seen[step]) >= (4 if "accumulation" in settings_ else 2)
        assert all(torch.equal(g, seen[step][0]) for g in seen[step])
    assert len({tuple(seen[step][0].tolist()) for step in range(1, 7)}) == 6


def test_the_draw_is_the_hard_concrete_of_fresh_noise():
    """In the window g is sample(log θ, u) with a new uniform u for each site and step."""
    made = trainer(SaLoRA(r=4, eta_c=0.5, t_start=2, t_end=12), callbacks=[Stop(6)])
    noise: list[torch.Tensor] = []
    made.callbacks = [Stop(9), Watch(lambda step, v: noise.extend(
        gate.u.clone() for gate in made.rule.gates().values()) if step > 2 else None)]
    made.run()
    drawn = torch.stack(noise)
    assert len({tuple(u.tolist()) for u in noise}) == len(noise) == 7 * 12
    assert abs(float(drawn.mean()) - 0.5) < 0.05
    assert abs(float(drawn.var()) - 1 / 12) < 0.02


def test_before_the_window_it_is_lora_with_the_orthogonality_penalty():
    """All gates are one and log θ stands still; with β = 0 the factors are LoRA's, bit for bit."""
    made = trainer(SaLoRA(r=4, beta=0.0, eta_c=0.5, t_start=5, t_end=12), callbacks=[Stop(5)])
    made.run()
    plain, _ = train(LoRA(r=4, sites="all"), callbacks=[Stop(5)])
    for name, branch in made.adapters.items():
        assert torch.equal(branch.lora_A, plain[name].lora_A)
        assert torch.equal(branch.lora_B, plain[name].lora_B)
        assert torch.equal(branch.gate(), torch.ones(4))
        assert not branch.gate_module.log_theta.any()
    assert float(made.rule.lam) == 0.0


def test_gates_move_only_inside_the_window():
    """log θ is zero up to T_start, moves in every step up to T_end, and is frozen after it."""
    made = trainer(SaLoRA(r=4, eta_c=0.5, t_start=3, t_end=10), steps=15)
    seen: dict[int, torch.Tensor] = {}
    made.callbacks = [Watch(lambda step, v: seen.update({step: torch.cat(
        [gate.log_theta.detach() for gate in made.rule.gates().values()])}))]
    made.run()
    assert not seen[3].any()
    for step in range(4, 10):
        assert not torch.equal(seen[step], seen[step - 1])
    for step in range(11, 16):
        assert torch.equal(seen[step], seen[10])
    assert len(seen[10]) < len(seen[9])


def test_weight_decay_and_schedule_leave_the_gates_alone():
    """log θ has its own constant rate and no decay: it moves at η_c whatever the run's warm-up."""
    made = trainer(SaLoRA(r=4, eta_c=0.4, t_end=12), weight_decay=1.0, warmup=0.5, callbacks=[Stop(2)])
    made.run()
    moved = torch.cat([gate.log_theta.detach() for gate in made.rule.gates().values()])
    # at step 1 B is zero and so is λ: the gates see their first gradient at step 2, Adam's second step
    second = 1 / math.sqrt(0.001 / (1 - 0.999**2))
    assert moved.abs().max() == pytest.approx(0.4 * second, rel=1e-3)
    group = next(g for g in made.optimizer.param_groups if any(
        p is made.rule.gates()["0.q"].log_theta for p in g["params"]))
    assert (group["lr"], group["weight_decay"]) == (0.4, 0.0)


# ---- the budget ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "eta_c"), [(0.125, 0.3), (0.25, 0.3), (0.5, 0.3), (0.5, 0.1)])
def test_the_estimated_window_reaches_the_budget(b, eta_c):
    """Given the window that the method asks for, the density at its end lies within 0.02 of b."""
    method = SaLoRA(r=8, b=b, eta_c=eta_c)
    method = dataclasses.replace(method, t_start=0, t_end=method.estimated_window())
    adapters, outcome = train(method, steps=method.t_end + 2, batch_size=16, rows=256, lr=5e-3)
    assert adapters.rule.closed_at == pytest.approx(b, abs=0.02)
    assert all("but pruning kept" in note for note in adapters.rule.notes())  # what b is not the density of
    assert values_of(outcome, "density")[-1] == adapters.rule.closed_at


def test_a_window_that_missed_the_budget_is_noted():
    """The record then carries the density reached and the window that is likely to be needed."""
    adapters, _ = train(SaLoRA(r=4, b=0.125, eta_c=0.5, t_end=10))
    assert abs(adapters.rule.closed_at - 0.125) > 0.02
    (note,) = adapters.rule.notes()
    assert f"density of {adapters.rule.closed_at:.3f}, not 0.125" in note
    assert str(adapters.method.estimated_window()) in note


def test_shortest_window_is_what_adam_needs_at_least():
    """(log 11 − logit b) / η_c steps: from log θ = 0 to the common log θ whose P(g > 0) is b."""
    for b, eta in ((0.5, 0.01), (0.25, 0.05), (0.125, 0.3)):
        method = SaLoRA(b=b, eta_c=eta)
        end = torch.tensor(-eta * method.shortest_window(), dtype=F64)
        assert float(Stretch().open_probability(end)) <= b
        assert float(Stretch().open_probability(end + eta)) > b
        assert method.estimated_window() > method.shortest_window()
    assert SaLoRA(b=0.5, eta_c=0.01).shortest_window() == 240
    assert SaLoRA(b=0.95).shortest_window() == 0
    assert SaLoRA(b=1.0).estimated_window() == 0


def test_a_window_that_is_too_short_is_refused_with_the_length_it_needs():
    """And one that ends past the training."""
    with pytest.raises(ValueError, match="at least 240 steps"):
        train(SaLoRA(r=4), steps=100)
    for values in ({"t_start": 11, "t_end": 0.5}, {"t_start": 1, "t_end": 40}):
        with pytest.raises(ValueError, match="12 steps of the training"):
            train(SaLoRA(r=4, eta_c=1.0, **values))


def test_gates_without_a_gradient_stop_the_run(monkeypatch):
    """If log θ does not move, the closing of the window says so."""
    monkeypatch.setattr(SaLoRARule, "density",
                        lambda self: torch.tensor(11 / 12, requires_grad=True))
    with pytest.raises(LivenessError, match="density has not moved"):
        train(SaLoRA(r=4, eta_c=0.5, t_end=10))


@pytest.mark.parametrize("seed", [9, 16, 20, 36])
def test_slow_gates_that_move_apart_do_not_stop_the_run(seed):
    """Some open and some close, so that the density ends within 1e-3 of where it began: taken for no move once."""
    model = tiny(dtype=F64, seed=seed)
    made = trainer(SaLoRA(r=4, b=0.9, eta_c=0.02, t_start=3, t_end=15), model, steps=20)
    made.run()
    assert made.outcome.finished


# ---- pruning and folding ------------------------------------------------------------------------------------


def run_with_closed_gates(closed: dict[str, list[int]], kind: str = "bert", after_window: str = "fold", **settings_):
    """A run whose window closes at step 10 with these gates shut for certain, and the look around the pruning."""
    made = trainer(SaLoRA(r=4, eta_c=0.5, t_end=10, after_window=after_window), tiny(kind, dtype=F64), steps=17,
                   callbacks=[Stop(16)], **settings_)
    seen: dict = {}
    close = made.rule._close

    def watched(clock) -> None:
        with torch.no_grad():
            for name, gate in made.rule.gates().items():
                gate.log_theta.clamp_(min=-1.0)
                gate.log_theta[closed.get(name, [])] = -5.0
                gate.phase = "deterministic"
        seen["before"] = logits(made.adapters.model, make_batch())
        seen["gates"] = {name: gate.settled().detach().clone() for name, gate in made.rule.gates().items()}
        seen["factors"] = {n: (b.lora_A.detach().clone(), b.lora_B.detach().clone())
                           for n, b in made.adapters.items()}
        seen["state"] = {n: {x: {k: v.clone() for k, v in made.optimizer.state[getattr(b, f"lora_{x}")].items()}
                             for x in "AB"} for n, b in made.adapters.items()}
        seen["log_theta"] = {name: gate.log_theta.tolist() for name, gate in made.rule.gates().items()}
        close(clock)
        seen["after"] = logits(made.adapters.model, make_batch())
        seen["pruned_state"] = {n: {x: {k: v.clone() for k, v in
                                        made.optimizer.state[getattr(b, f"lora_{x}")].items()} for x in "AB"}
                                for n, b in made.adapters.items()}
        seen["pruned"] = {n: (b.lora_A.detach().clone(), b.lora_B.detach().clone())
                          for n, b in made.adapters.items()}

    made.rule._close = watched
    return made, seen


CLOSED = {"0.q": [1, 2], "0.up": [0], "1.v": [0, 1, 2, 3], "1.down": [3]}


@pytest.mark.parametrize("after_window", ["fold", "leave"])
def test_pruning_and_folding_leave_the_logits_unchanged(after_window):
    """Closed directions add nothing, and a gate times B is B folded: the same function before and after each.

    Folded where the window closes, or at the end of the training.
    """
    made, seen = run_with_closed_gates(CLOSED, after_window=after_window)
    made.run()
    assert (seen["after"] - seen["before"]).abs().max() < 1e-13
    expected = {name: 4 - len(CLOSED.get(name, [])) for name in made.adapters}
    assert made.adapters.ranks() == expected
    batch = make_batch()
    before = logits(made.adapters.model, batch)
    gates = {name: branch.gate().detach() for name, branch in made.adapters.items()}
    assert any((g < 0.999).any() for g in gates.values()) == (after_window == "leave")
    B = {name: branch.lora_B.detach().clone() for name, branch in made.adapters.items()}
    made.rule.finish()
    assert (logits(made.adapters.model, batch) - before).abs().max() < 1e-13
    for name, branch in made.adapters.items():
        assert torch.equal(branch.gate(), torch.ones(branch.r, dtype=F64))
        assert torch.equal(branch.lora_B, B[name] * gates[name])


def test_after_the_fold_a_step_is_lora_s():
    """No penalty, gates of one, and AdamW's step from moments that belong to the folded B, worked out by hand."""
    made, seen = run_with_closed_gates(CLOSED)
    before: dict[str, tuple[torch.Tensor, ...]] = {}

    def look(optimizer, arguments, options) -> None:
        if made.clock.step == 11:
            assert made.rule.penalty() is None
            before.update({name: tuple(t.detach().clone() for t in (b.lora_B, b.lora_B.grad))
                           for name, b in made.adapters.items() if b.r})

    made.callbacks = [Stop(11)]
    with register_optimizer_step_pre_hook(look):
        made.run()
    assert before
    beta1, beta2, rate, decay = 0.9, 0.999, made._rates(11)[0], made.config.weight_decay
    for name, (B, gradient) in before.items():
        g = seen["gates"][name]
        g = g[g > 0]
        assert (g < 1).any()
        keep = [j for j in range(4) if j not in CLOSED.get(name, [])]
        old = {key: value[:, keep] for key, value in seen["state"][name]["B"].items() if key != "step"}
        m = beta1 * old["exp_avg"] / g + (1 - beta1) * gradient
        v = beta2 * old["exp_avg_sq"] / g**2 + (1 - beta2) * gradient**2
        step = (m / (1 - beta1**11)) / ((v / (1 - beta2**11)).sqrt() + 1e-8)
        expected = B * (1 - rate * decay) - rate * step
        assert (made.adapters[name].lora_B - expected).abs().max() < 1e-12


def test_gates_that_stay_are_set_to_one_where_that_is_asked_for():
    """Neither B nor its moments change, and so the function does."""
    made, seen = run_with_closed_gates(CLOSED, after_window="one")
    made.run()
    assert (seen["after"] - seen["before"]).abs().max() > 1e-6
    for name, (_, B) in seen["pruned"].items():
        keep = [j for j in range(4) if j not in CLOSED.get(name, [])]
        assert torch.equal(B, seen["factors"][name][1][:, keep])
        assert torch.equal(made.adapters[name].gate(), torch.ones(len(keep), dtype=F64))


@pytest.mark.parametrize("prune", ["budget", "random"])
def test_as_many_directions_stay_as_the_budget_asks_for(prune):
    """The likeliest ones, or any; folded with E[g], since without its noise the gate of one that stays may be 0."""
    made, seen = run_with_closed_gates({})
    made.rule.method = dataclasses.replace(made.rule.method, prune=prune, b=0.4)
    made.run()
    rule, ranks = made.rule, made.adapters.ranks()
    share = sum(r * rule.sizes[name] for name, r in ranks.items()) / rule.all_directions
    assert 0.4 - max(rule.sizes.values()) / rule.all_directions < share <= 0.4
    kept, dropped = [], []
    for name, (A, B) in seen["factors"].items():
        is_kept = (A[:, None] == seen["pruned"][name][0][None]).all(2).any(1)
        log_theta = torch.tensor(seen["log_theta"][name], dtype=F64)
        kept += log_theta[is_kept].tolist()
        dropped += log_theta[~is_kept].tolist()
        E = Stretch().mean(log_theta[is_kept])
        assert torch.allclose(seen["pruned"][name][1], B[:, is_kept] * E, rtol=1e-6)
    assert (min(kept) >= max(dropped)) == (prune == "budget")


def test_the_orthogonality_penalty_ends_with_the_window_or_not():
    for until, ends in (("window", True), ("end", False)):
        made = trainer(SaLoRA(r=4, eta_c=0.5, t_end=10, orthogonality_until=until), callbacks=[Stop(11)])
        made.run()
        assert (made.rule.penalty() is None) == ends
        assert values_of(made.outcome, "orth_A")[-1] > 0


@pytest.mark.parametrize(("dtype", "settings"), [
    (torch.bfloat16, {}), (torch.float32, {"mixed_precision": "bf16"}), (torch.float32, {})])
def test_pruning_may_move_a_logit_by_its_own_rounding(dtype, settings, monkeypatch):
    """Fewer directions are summed in another order: bfloat16 logits may come out an ulp away, float32 ones not."""
    made = trainer(SaLoRA(r=4, eta_c=0.5, t_end=6), tiny(dtype=dtype), **settings)
    real, factors = made.logits, iter((1.0, 1 + torch.finfo(torch.bfloat16).eps))
    monkeypatch.setattr(made, "logits", lambda batch: next(factors) * real(batch))
    if made.dtype == torch.bfloat16:
        made.run()
        return
    with pytest.raises(LivenessError, match="pruning the closed gates changed the logits"):
        made.run()


def test_the_kept_directions_go_on_with_their_moments():
    """Rows of A, columns of B and their Adam moments are those that were there; they move, the step count goes on.

    A folded B is the old one times g, and so its gradient and moments are divided by g. The optimizer holds nothing
    of what was dropped.
    """
    made, seen = run_with_closed_gates(CLOSED)
    made.run()
    for name in made.adapters:
        keep = [j for j in range(4) if j not in CLOSED.get(name, [])]
        for i, x in enumerate("AB"):
            old, new = seen["factors"][name][i], seen["pruned"][name][i]
            g = seen["gates"][name][keep]
            assert torch.equal(new, old[keep] if x == "A" else old[:, keep] * g)
            before, after = seen["state"][name][x], seen["pruned_state"][name][x]
            assert float(after["step"]) == 10
            for key, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
                assert torch.equal(after[key], before[key][keep] if x == "A" else before[key][:, keep] / g**power)
                assert after[key].any() or not keep
    trained = [p for group in made.optimizer.param_groups for p in group["params"]]
    for branch in made.adapters.values():
        assert any(branch.lora_A is p for p in trained)
        assert any(branch.lora_B is p for p in trained)
        assert not branch.gate_module.log_theta.requires_grad
    for name, branch in made.adapters.items():
        assert torch.equal(branch.lora_A, seen["pruned"][name][0]) == (branch.r == 0)
    held, sizes = made.optimizer.state, made.adapters.model.parameters()
    assert {tuple(p.shape) for p in held} <= {tuple(p.shape) for p in sizes}


def test_a_site_of_rank_zero_works():
    """Forward, backward, orthogonality, merge, restore and factors of a site whose every gate closed."""
    made, _ = run_with_closed_gates(CLOSED)
    made.run()
    branch = made.adapters["1.v"]
    assert branch.r == 0
    assert branch.lora_B.shape == (16, 0)
    x = torch.randn(3, 16, dtype=F64, requires_grad=True)
    layer = made.adapters.owner("1.v")
    assert torch.equal(layer(x), layer.base(x))
    layer(x).sum().backward()
    assert x.grad is not None
    left, right = branch.factors()
    assert (left.shape, right.shape) == ((16, 0), (0, 16))
    assert not branch.delta().any()
    assert all(math.isfinite(r.item()) for r in made.rule.orthogonality())
    before = logits(made.adapters.model, make_batch())
    made.adapters.merge()
    assert torch.equal(layer.W, layer.pretrained)
    assert (logits(made.adapters.model, make_batch()) - before).abs().max() < 1e-12
    made.adapters.restore()
    assert "1.v" in str(made.adapters.plan())


def test_every_site_may_close():
    """A run whose every gate shut trains its head on, and is the pretrained model."""
    made, _ = run_with_closed_gates({name: [0, 1, 2, 3] for name in adapt(tiny(), SaLoRA(), seed=0)})
    made.run()
    assert set(made.adapters.ranks().values()) == {0}
    x = torch.randn(2, 16, dtype=F64)
    assert torch.equal(made.adapters.owner("0.q")(x), made.adapters.owner("0.q").base(x))


def close_every_gate(made, at: int | None = None) -> None:
    """Each window's gates shut at its end, or only those of the window that closes at this step of the training."""
    rule = getattr(made.rule, "rules", {}).get("salora", made.rule)
    close = rule._close

    def watched(clock) -> None:
        with torch.no_grad():
            for gate in rule.gates().values():
                gate.log_theta.fill_(-5.0 if at in (None, made.clock.step) else 5.0)
        close(clock)

    rule._close = watched


@pytest.mark.parametrize("t_end", [10, 12])
def test_a_window_that_closes_every_direction_is_noted(t_end):
    """With a head that trains on the record says from which step; at the last step nothing is lost any more."""
    made = trainer(SaLoRA(r=4, eta_c=0.5, t_end=t_end))
    close_every_gate(made)
    assert made.run().finished
    noted = [note for note in made.rule.notes() if "closed every direction" in note]
    assert len(noted) == (t_end == 10)
    assert all("at step 10: in the 2 steps after it no branch trains" in note for note in noted)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("chained", [False, True])
def test_where_nothing_is_left_that_trains_the_run_stops_with_a_sentence(kind, chained):
    """No head, and every direction closed before the end; a link's window may close all at its last step."""
    method = SaLoRA(r=2, eta_c=1.0, t_end=0.75 if chained else 9, sites="qv")
    method = compose(COLA(r=2, knots=(8,), sites="qv"), method) if chained else method

    def made(method) -> Trainer:
        adapters = adapt(tiny(kind, head="causal"), method, seed=0)
        return Trainer(adapters, rows_for("causal"), collate_for("causal"),
                       TrainConfig(steps=16, batch_size=8, lr=1e-2), cpu=True)

    running = made(method)
    close_every_gate(running, 14 if chained else None)
    with pytest.raises(LivenessError, match=rf"step {14 if chained else 9}: the gate window closed every direction, "
                                            "and the model has no head: nothing is left that trains; raise b"):
        running.run()
    running = made(SaLoRA(r=2, eta_c=1.0, t_end=16, sites="qv"))
    close_every_gate(running)
    assert running.run().finished
    again = Trainer(running.adapters, rows_for("causal"), collate_for("causal"), TrainConfig(steps=4, batch_size=8),
                    cpu=True)
    with pytest.raises(ValueError, match="an earlier training closed every direction, so nothing is left"):
        again.run()


def test_a_share_kept_far_from_b_is_noted():
    """Also where the expected density is b: half of it comes from gates that are more likely shut."""
    made = trainer(SaLoRA(r=4, b=0.5, eta_c=0.5, t_end=10))
    close, undecided = made.rule._close, math.log(0.45 / 0.55) - math.log(11)  # P(g > 0) = 0.45

    def watched(clock) -> None:
        with torch.no_grad():
            for i, gate in enumerate(made.rule.gates().values()):
                gate.log_theta.fill_(5.0 if i == 0 else undecided)
        close(clock)

    made.rule._close = watched
    share = values_of(made.run(), "kept_density")[-1]
    assert abs(made.rule.closed_at - 0.5) < 0.02
    assert share < 0.1
    (note,) = made.rule.notes()
    assert f"but pruning kept {share:.3f} of the directions, not 0.5" in note


def test_pruned_ranks_are_what_is_counted_as_kept():
    """kept, kept_density and ranks() tell one story after the window."""
    adapters, outcome = train(SaLoRA(r=8, b=0.25, eta_c=0.3, t_end=40), steps=44)
    kept = {row[1]: row[3] for row in outcome.history if row[2] == "kept"}
    assert kept == adapters.ranks()
    size = {name: b.lora_A.shape[1] + b.lora_B.shape[0] for name, b in adapters.items()}
    share = sum(kept[n] * size[n] for n in kept) / sum(8 * size[n] for n in kept)
    assert values_of(outcome, "kept_density")[-1] == pytest.approx(share)
    assert 0 < share < 1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_short_floats_pass_the_pruning_check(precision):
    """A bfloat16 base, or autocast, rounds the logits; pruning is still the same function."""
    dtype = torch.bfloat16 if precision == "no" else torch.float32
    train(SaLoRA(r=8, b=0.25, eta_c=0.3, t_end=40), tiny(dtype=dtype), steps=41, mixed_precision=precision)

"""COLA: a knot changes the weights' form and never the function; links add up; only moments start anew."""

from __future__ import annotations

import pytest
import torch
from helpers import Stop, Watch, logits, make_batch, same_tensors, tiny, train, trainer

from lowrank_teach.errors import LivenessError
from lowrank_teach.methods import COLA, Clock, LoRA
from lowrank_teach.methods import cola as cola_module
from lowrank_teach.training.batches import linear_schedule


def watch_knots(made, look):
    """Calls look("before") and look("after") around every knot of a trainer."""
    tie = made.rule.tie

    def watched() -> None:
        look("before")
        tie()
        look("after")

    made.rule.tie = watched
    return made


def factors_of(adapters) -> dict[str, torch.Tensor]:
    return {f"{name}.{x}": getattr(branch, f"lora_{x}").detach().clone()
            for name, branch in adapters.items() for x in "AB"}


# ---- the function and its parts -----------------------------------------------------------------------------


@pytest.mark.parametrize("merge_knots", [True, False])
@pytest.mark.parametrize("method", [{}, {"ranks": (6, 4, 2)}, {"ranks": (2, 8, 3), "keep_scaling": False}])
def test_a_knot_leaves_the_logits_unchanged(method, merge_knots):
    """Tying and extending is the same function: B = 0 on the new link, to 1e-12 in float64, at every knot."""
    made = trainer(COLA(r=4, chain=3, merge_knots=merge_knots, **method), tiny(dtype=torch.float64))
    batch, seen = make_batch(), []
    base = logits(made.adapters.model, batch)
    watch_knots(made, lambda when: seen.append(logits(made.adapters.model, batch))).run()
    assert len(seen) == 4
    for before, after in zip(seen[::2], seen[1::2], strict=True):
        assert (before - base).abs().max() > 1e-3
        assert (before - after).abs().max() < 1e-12


@pytest.mark.parametrize("merge_knots", [True, False])
@pytest.mark.parametrize("keep_scaling", [True, False])
def test_the_total_is_the_sum_of_the_links(merge_knots, keep_scaling):
    """delta() = Σ s_i B_i A_i over the recorded links, and W holds all of it but the last one if knots merge."""
    model = tiny(dtype=torch.float64)
    made = trainer(COLA(ranks=(4, 2, 3), chain=3, merge_knots=merge_knots, keep_scaling=keep_scaling),
                   model)
    pretrained = {name: made.adapters.owner(name).slice_of(name).clone() for name in made.adapters}
    links: list[dict] = []

    def record(when: str = "before") -> None:
        if when == "before":
            s = {4: 4.0, 2: 8.0, 3: 16 / 3}
            links.append({name: (4.0 if keep_scaling else s[b.r]) * (b.lora_B @ b.lora_A).detach()
                          for name, b in made.adapters.items()})

    watch_knots(made, record).run()
    record()
    for name, branch in made.adapters.items():
        total = sum(link[name] for link in links)
        assert all(link[name].abs().max() > 1e-4 for link in links)
        assert (branch.delta() - total).abs().max() < 1e-12
        held = made.adapters.owner(name).slice_of(name) - pretrained[name]
        expected = total - links[-1][name] if merge_knots else torch.zeros_like(total)
        assert (held - expected).abs().max() < 1e-12


def test_merged_and_stacked_knots_give_one_trajectory():
    """Writing links into W, or keeping them beside it, is the same training: A, B and losses to 1e-10."""
    runs = [train(COLA(ranks=(4, 2), merge_knots=merge), tiny(dtype=torch.float64), steps=20)
            for merge in (True, False)]
    (one, first), (other, second) = runs
    for name in one:
        assert (one[name].lora_B - other[name].lora_B).abs().max() < 1e-10
        assert (one[name].lora_A - other[name].lora_A).abs().max() < 1e-10
        assert (one[name].delta() - other[name].delta()).abs().max() < 1e-10
        assert one[name].in_base
        assert not other[name].in_base
        assert torch.equal(other.owner(name).slice_of(name), other.owner(name).pretrained_of(name))
        assert not torch.equal(one.owner(name).slice_of(name), one.owner(name).pretrained_of(name))
    assert [row[3] for row in first.history] == pytest.approx([row[3] for row in second.history], abs=1e-9)


def test_float32_and_bfloat16_knots_pass_their_own_check():
    """Knots stay the same function up to the rounding of W's type, also under bfloat16 autocast."""
    train(COLA(r=4, chain=3))
    train(COLA(r=4, chain=3), tiny(dtype=torch.bfloat16))
    train(COLA(r=4, chain=3), mixed_precision="bf16")


# ---- what starts anew and what does not ---------------------------------------------------------------------


@pytest.mark.parametrize("reset_head", [False, True])
@pytest.mark.parametrize("ranks", [(4, 4), (4, 2)])
def test_moments_of_a_and_b_start_from_zero_and_the_heads_stay(ranks, reset_head):
    """Right after the knot: exp_avg, exp_avg_sq and the step count of A and B are zero, the head's are not."""
    made = trainer(COLA(ranks=ranks, knots=(6,), reset_head_moments=reset_head), callbacks=[Stop(6)])
    before: dict = {}

    def look(when: str) -> None:
        if when == "before":
            before.update({n: v.clone() for n, v in made.optimizer.state[made.adapters["0.q"].lora_B].items()})

    watch_knots(made, look).run()
    assert float(before["step"]) == 6
    assert before["exp_avg"].any()
    state = made.optimizer.state
    live = [p for b in made.adapters.values() for p in (b.lora_A, b.lora_B)]
    grouped = [p for group in made.optimizer.param_groups for p in group["params"]]
    assert all(any(p is q for q in grouped) for p in live)
    assert len(grouped) == len(live) + 2
    assert not any(value.any() for p in live for value in state.get(p, {}).values())
    for p in made.adapters.head_parameters():
        assert float(state[p]["step"]) == (0 if reset_head else 6)
        assert bool(state[p]["exp_avg"].any()) != reset_head


@pytest.mark.parametrize("ranks", [(4, 4), (4, 2)])
def test_the_first_step_of_a_link_is_adams_first_step(ranks):
    """With the step count at zero, bias correction makes the first move of B |ΔB| = η g/(g + ε)."""
    made = trainer(COLA(ranks=ranks, knots=(6,)), tiny(dtype=torch.float64), callbacks=[Stop(7)], warmup=0.0)
    made.run()
    rate = 1e-2 * linear_schedule(7, 12, 0.0)
    for branch in made.adapters.values():
        gradient = made.optimizer.state[branch.lora_B]["exp_avg"].abs() / (1 - 0.9)
        assert torch.allclose(branch.lora_B.abs(), rate * gradient / (gradient + 1e-8), rtol=1e-9)
        assert (branch.lora_B.abs() > 0.5 * rate).all()


def test_the_new_link_is_drawn_anew():
    """A of the new link, here N(0, 1/r²), is no copy of the link before nor of another site's."""
    made = trainer(COLA(r=16, knots=(1,), sites="all", init="gaussian"), callbacks=[Stop(1)])
    old = {name: branch.lora_A.detach().clone() for name, branch in made.adapters.items()}
    made.run()
    new = [branch.lora_A.detach() for branch in made.adapters.values()]
    values = torch.cat([A.flatten() for A in new])
    assert abs(float(values.std()) * 16 - 1) < 0.05
    assert abs(float(values.mean())) < 0.005
    starts = torch.stack([A[:, :16].flatten() for A in [*new, *old.values()]])
    alike = torch.corrcoef(starts) - torch.eye(len(starts))
    assert alike.abs().max() < 0.5
    assert not any(branch.lora_B.any() for branch in made.adapters.values())


def test_the_first_link_is_lora_bit_for_bit():
    """Up to the knot COLA is LoRA; a chain of one is LoRA to the end."""
    stop = [Stop(5)]
    chain, first = train(COLA(r=4, knots=(6,)), callbacks=stop)
    plain, second = train(LoRA(r=4), callbacks=stop)
    assert same_tensors(factors_of(chain), factors_of(plain))
    losses = [[r for r in o.history if r[2] in ("loss", "grad_norm", "lr")] for o in (first, second)]
    assert losses[0] == losses[1]
    one, _ = train(COLA(r=4, chain=1))
    whole, _ = train(LoRA(r=4))
    assert same_tensors(factors_of(one), factors_of(whole))


# ---- ranks, scale, counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep_scaling", "scales"), [(True, [2.0, 2.0, 2.0]), (False, [2.0, 4.0, 8.0])])
def test_step_down_of_the_rank(keep_scaling, scales):
    """Shapes follow the list; s stays α / r of the first link, or is α over the link's own rank."""
    seen: dict[int, tuple] = {}
    made = trainer(COLA(ranks=(8, 4, 2), chain=3, keep_scaling=keep_scaling, lora_alpha=16))

    def look(step: int, values: dict) -> None:
        branch = made.adapters["1.v"]
        seen[step] = tuple(branch.lora_A.shape), tuple(branch.lora_B.shape), branch.scaling

    made.callbacks = [Watch(look)]
    made.run()
    expected = [((r, 16), (16, r), s) for r, s in zip((8, 4, 2), scales, strict=True)]
    assert [seen[step] for step in (1, 4, 8, 12)] == [expected[0], expected[1], expected[2], expected[2]]
    assert made.adapters.ranks() == dict.fromkeys(made.adapters, 2)


@pytest.mark.parametrize("ranks", [(8, 2), (4, 4), (2, 8)])
def test_each_link_trains_as_many_parameters_as_lora_of_its_rank(ranks):
    """Trainable numbers during link i are LoRA's at r_i: no link carries the ones before it."""
    counts = []
    made = trainer(COLA(ranks=ranks))
    made.callbacks = [Watch(lambda step, values: counts.append(
        sum(p.numel() for p in made.adapters.model.parameters() if p.requires_grad)))]
    made.run()
    lora = [sum(p.numel() for p in trainer(LoRA(r=r)).adapters.model.parameters() if p.requires_grad)
            for r in ranks]
    assert counts == [lora[0]] * 5 + [lora[1]] * 7
    optimized = sum(p.numel() for group in made.optimizer.param_groups for p in group["params"])
    assert optimized == lora[1]


# ---- when knots are tied ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "clock", "steps"), [
    (COLA(chain=1), (50, 10), []),
    (COLA(chain=2), (50, 10), [30]),               # five epochs: 3 + 2
    (COLA(chain=3), (50, 10), [20, 40]),           # 2 + 2 + 1
    (COLA(chain=2), (12, 24), [6]),                # less than an epoch: steps are split
    (COLA(chain=3), (13, 24), [5, 9]),
    (COLA(chain=5), (50, 10), [10, 20, 30, 40]),
    (COLA(knots=(7, 20)), (50, 10), [7, 20]),
    (COLA(knots=(3, 4), unit="epochs"), (50, 10), [30, 40]),
    (COLA(knots=(0.5,)), (50, 10), [25]),
    (COLA(knots=(0.6, 0.8)), (50, 10), [30, 40]),
    (COLA(ranks=(8, 4, 2)), (12, 24), [4, 8]),     # a rank for each link says how many
])
def test_when_knots_are_tied(method, clock, steps):
    """Whole epochs where there are enough, the first links taking what is over; steps and shares as given."""
    assert method.knot_steps(Clock(0, *clock)) == steps
    assert method.chain == len(steps) + 1


@pytest.mark.parametrize(("method", "total"), [
    (COLA(knots=(12,)), 12), (COLA(knots=(4, 40)), 12), (COLA(knots=(1.0,)), 12),
    (COLA(knots=(1, 2), unit="epochs"), 16), (COLA(chain=9), 8), (COLA(knots=(0.5, 0.51)), 12)])
def test_knots_past_the_end_are_refused(method, total):
    """A knot on or past the last step, or two on one step, is refused with the length of the training."""
    with pytest.raises(ValueError, match=rf"knots at steps .* {total} steps"):
        train(method, steps=total)


@pytest.mark.parametrize("restart", [False, True])
def test_one_schedule_or_one_for_each_link(restart):
    """By default the linear schedule runs over all steps; restarted, each link has its own."""
    _, outcome = train(COLA(r=4, knots=(8,), restart_schedule=restart), steps=12, warmup=0.25)
    rates = [row[3] for row in outcome.history if row[2] == "lr"]
    whole = [linear_schedule(step, 12, 0.25) for step in range(1, 13)]
    links = [linear_schedule(s, 8, 0.25) for s in range(1, 9)] + [linear_schedule(s, 4, 0.25) for s in range(1, 5)]
    assert rates == pytest.approx([1e-2 * f for f in (links if restart else whole)], rel=1e-12)


# ---- liveness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("broken", "says"), [("reset_moments", "moments"), ("initial_A", "changed the logits")])
def test_a_broken_knot_stops_the_run(broken, says, monkeypatch):
    """If moments survive, or the new link does not start from zero, the loop says so at the knot."""
    if broken == "reset_moments":
        monkeypatch.setattr(cola_module, broken, lambda *_: None)
    else:
        monkeypatch.setattr(torch.Tensor, "zero_", lambda self: self.fill_(1.0))
    with pytest.raises(LivenessError, match=rf"step 6: .*{says}"):
        train(COLA(r=4, knots=(6,)))


def test_knots_in_a_fused_layer_stay_on_their_slice():
    """GPT-2: q's and v's links go into their own thirds of c_attn; k's is untouched."""
    model = tiny("gpt2", dtype=torch.float64)
    raw = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    adapters, _ = train(COLA(r=4, chain=3), model)
    W = adapters.owner("0.q").base.weight
    assert torch.equal(W[:, 16:32], raw[:, 16:32])
    assert not torch.equal(W[:, :16], raw[:, :16])
    branch = adapters["0.v"]
    assert (W[:, 32:] - raw[:, 32:] - (branch.fixed_left @ branch.fixed_right).T).abs().max() < 1e-13

"""Compositions: what is true of each method alone stays true, contracts combine by one rule, the rest is refused."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from helpers import Stop, Watch, logits, make_batch, same_tensors, tiny, train, trainer
from tiny_models import command, data_folder, model_folder
from torch import Tensor

import lowrank_teach as lt
from lowrank_teach.errors import LivenessError
from lowrank_teach.experiments.runs import Store, config_key
from lowrank_teach.methods import (
    COLA,
    METHODS,
    AutoLoRA,
    Composed,
    DeltaLoRA,
    FullFineTuning,
    HeadOnly,
    LoRA,
    SaLoRA,
    as_method,
)
from lowrank_teach.methods import cola as cola_module
from lowrank_teach.methods.base import Method, Rule
from lowrank_teach.methods.composition import SOLE, compose, fields_of, named
from lowrank_teach.methods.salora import SaLoRARule
from lowrank_teach.training.config import SHORT_TRAINING, fit_to_profile

F64 = torch.float64
S = 4.0  # scaling of every branch here: lora_alpha 16 over r = 4


def gated(**values) -> SaLoRA:
    """SaLoRA with a rate that opens and closes gates within a link of eight steps."""
    return SaLoRA(**{"r": 4, "eta_c": 0.8, "t_start": 0.0, "t_end": 0.8, **values})


def state(made) -> dict[str, Tensor]:
    """All tensors that a training leaves: branches, head, W as stored, moments."""
    tensors = {k: v.clone() for k, v in made.adapters.state_dict()[0].items()}
    tensors |= {f"W.{name}": made.adapters.owner(name).slice_of(name).clone() for name in made.adapters}
    return tensors | {f"moment.{name}.{k}": v for name, p in made.adapters.model.named_parameters()
                      for k, v in made.optimizer.state.get(p, {}).items()}


def history(outcome, without: tuple[str, ...] = ()) -> list:
    return sorted(repr(row) for row in outcome.history if row[2] not in without)


def run(method, model=None, **settings):
    made = trainer(method, model, **settings)
    return made, made.run()


def follow(method, model=None, **settings):
    """The trainer after its run, and after each step: site -> (s B diag(g) A, W as stored, delta())."""
    made = trainer(method, model, **settings)
    path: list[dict[str, tuple[Tensor, ...]]] = []

    def look(*_) -> None:
        path.append({name: (b.scaling * b.lora_B.detach() * b.settled_gate().detach() @ b.lora_A.detach(),
                            made.adapters.owner(name).slice_of(name).clone(), b.delta())
                     for name, b in made.adapters.items()})

    look()
    made.callbacks = [Watch(look)]
    made.run()
    return made, path


# ---- a partner that does nothing ----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "own_names"), [
    (gated(t_end=10), ("link",)), (gated(t_start=3, t_end=9, init="gaussian", sites="qv"), ("link",)),
    (DeltaLoRA(r=4, K=3, lam=2.0), ("link",)), (DeltaLoRA(r=4, K=3, form="lazy"), ("link",))])
def test_a_chain_of_one_link_changes_nothing(method, own_names):
    """COLA(chain=1) + X is X: the same bytes in factors, head, W and moments, and the same history."""
    chain = COLA(chain=1, merge_knots=getattr(method, "form", "in_place") == "in_place")
    both, first = run(compose(chain, method))
    init = both.adapters.method.init
    alone, second = run(type(method)(**{**vars(method), "init": init}))
    assert same_tensors(state(both), state(alone))
    assert history(first, own_names) == history(second)


def test_gates_that_never_open_change_nothing(monkeypatch):
    """SaLoRA with a window past the end and β = 0, in a chain, is the chain: the same bytes after two knots."""
    start = SaLoRARule.start

    def shut(self, clock, loop) -> None:
        start(self, clock, loop)
        self.t_start, self.t_end = clock.total + 1, clock.total + 2

    monkeypatch.setattr(SaLoRARule, "start", shut)
    for settings in ({}, {"merge_knots": False}):
        chain = COLA(r=4, chain=3, sites="all", init="gaussian", **settings)
        both, first = run(compose(chain, gated(beta=0.0, init="gaussian")))
        alone, second = run(chain)
        kept = {k: v for k, v in state(both).items() if "gate_module" not in k}
        assert same_tensors(kept, state(alone))
        shared = ("loss", "grad_norm", "lr", "link")
        losses = [[row for row in o.history if row[2] in shared] for o in (first, second)]
        assert losses[0] == losses[1]


@pytest.mark.parametrize("idle", [{"lam": 0.0, "K": 0}, {"lam": 2.0, "K": 99}])
@pytest.mark.parametrize("partner", [COLA(r=4, chain=3), gated(), compose(COLA(r=4, chain=2), gated())])
def test_delta_lora_that_adds_nothing_changes_nothing(partner, idle):
    """λ = 0, or K past the last step: X + Delta-LoRA is X, bit for bit."""
    both, first = run(compose(partner, DeltaLoRA(**idle)), steps=16)
    alone, second = run(partner, steps=16)
    assert same_tensors(state(both), state(alone))
    assert history(first, ("moved",)) == history(second)


def test_plain_lora_beside_a_chain_is_the_chain():
    both, _ = run(compose(LoRA(r=4), COLA(chain=3)))
    alone, _ = run(COLA(r=4, chain=3))
    assert same_tensors(state(both), state(alone))


def test_a_search_that_others_wait_for_is_the_search_alone():
    """AutoLoRA's first training knows nothing of the chain that follows; a chain of one is its retraining."""
    both, first = run(compose(AutoLoRA(r=4, eta_beta=0.1), COLA(chain=1)))
    alone, second = run(AutoLoRA(r=4, eta_beta=0.1))
    assert same_tensors(state(both), state(alone))
    assert history(first) == history(second)
    assert both.adapters.method.held_out == 0.5
    chained, plain = (train(o.following)[0] for o in (first, second))
    assert chained.ranks() == plain.ranks()
    assert same_tensors(chained.state_dict()[0], plain.state_dict()[0])


# ---- a chain of gated links ---------------------------------------------------------------------------------


def watched_knots(method, model, **settings):
    """A trainer whose knots are looked at: a list of (what the rule has just done, what was seen)."""
    made = trainer(method, model, **settings)
    seen: list[tuple[str, dict]] = []
    batch = make_batch()

    def look(when: str) -> None:
        seen.append((when, {"logits": logits(made.adapters.model, batch), "delta": {
            n: b.delta() for n, b in made.adapters.items()}, "r": made.adapters.ranks()}))

    chain, rule = made.rule.chain, made.rule
    close, tie, start = rule.close_link, chain.tie, rule.open_link
    rule.close_link = lambda clock: (look("before"), close(clock), look("closed"))
    chain.tie = lambda: (tie(), look("tied"))
    rule.open_link = lambda clock: (start(clock), look("open"))
    return made, seen


@pytest.mark.parametrize("merge_knots", [True, False])
@pytest.mark.parametrize("t_end", [0.8, 1.0])
def test_a_knot_of_gated_links_leaves_the_function_unchanged(merge_knots, t_end):
    """Closing, folding, tying and opening: the deployed function stays to 1e-12, also where the window ends there."""
    made, seen = watched_knots(compose(COLA(chain=3, merge_knots=merge_knots), gated(t_end=t_end)), tiny(dtype=F64),
                               steps=24)
    made.run()
    assert [when for when, _ in seen] == ["before", "closed", "tied", "open"] * 2
    for knot in (seen[:4], seen[4:]):
        first = knot[0][1]
        assert any(r < 4 for r in first["r"].values())
        for _, now in knot[1:]:
            assert (now["logits"] - first["logits"]).abs().max() < 1e-12
            assert all((now["delta"][n] - first["delta"][n]).abs().max() < 1e-12 for n in first["delta"])
    assert (seen[0][1]["logits"] - seen[4][1]["logits"]).abs().max() > 1e-3
    made.adapters.merge()
    merged = logits(made.adapters.model, make_batch())
    made.adapters.restore()
    assert (logits(made.adapters.model, make_batch()) - merged).abs().max() < 1e-12


@pytest.mark.parametrize("stop", [8, 16])
def test_a_new_link_starts_like_the_first(stop):
    """After a knot: rank r again, B = 0, fresh A, log θ = 0, gates open, λ = 0, no moments but the head's."""
    made = trainer(compose(COLA(chain=3), gated()), callbacks=[Stop(stop)], steps=24)
    start = {name: branch.lora_A.detach().clone() for name, branch in made.adapters.items()}
    made.run()
    rule, live = made.rule.rules["salora"], []
    assert (rule.lam.item(), rule.ascent.state, rule.closed_at) == (0.0, {}, None)
    for name, branch in made.adapters.items():
        gate = branch.gate_module
        assert (branch.r, gate.phase, gate.u.shape) == (4, "open", (4,))
        assert not branch.lora_B.any()
        assert not gate.log_theta.any()
        assert not torch.equal(branch.lora_A, start[name])
        assert abs(branch.lora_A.std().item() * branch.lora_A.shape[1] ** 0.5 * 3**0.5 - 1) < 0.4  # ±1/√k, uniform
        live += [branch.lora_A, branch.lora_B, gate.log_theta]
    grouped = [p for group in made.optimizer.param_groups for p in group["params"]]
    head = made.adapters.head_parameters()
    assert len(grouped) == len(live) + len(head)
    assert {id(p) for p in grouped} == {id(p) for p in [*live, *head]}
    assert not any(v.any() for p in live for v in made.optimizer.state.get(p, {}).values())
    assert all(float(made.optimizer.state[p]["step"]) == stop for p in head)


def test_the_total_is_the_sum_of_the_kept_directions():
    """ΔW = Σ s B_i diag(g_i) A_i over the links, of rank Σ kept; what is frozen has no closed directions left."""
    made, seen = watched_knots(compose(COLA(chain=3), gated()), tiny(dtype=F64), steps=24)
    made.run()
    kept = [knot["r"] for when, knot in seen if when == "closed"]
    assert len(kept) == 2
    for name, branch in made.adapters.items():
        assert branch.fixed_left.shape[1] == kept[0][name] + kept[1][name]
        total = kept[0][name] + kept[1][name] + branch.r
        sigma = torch.linalg.svdvals(branch.delta())
        assert int((sigma > 1e-9).sum()) <= total
        assert torch.equal(branch.gate(), torch.ones(branch.r, dtype=F64))  # the last link is folded, too
    assert 0 < sum(k[name] for k in kept for name in k) < 2 * 4 * len(made.adapters)


def test_density_is_of_the_link():
    """It starts at 11/12 in every link, falls in each, and at a knot the link that ends is what is logged."""
    made, outcome = run(compose(COLA(chain=3), gated()), steps=24)
    density, kept = ({row[0]: row[3] for row in outcome.history if (row[1], row[2]) == ("", name)}
                     for name in ("density", "kept_density"))
    for first, closes, last in ((1, 6, 8), (9, 14, 16), (17, 22, 24)):
        assert density[first] > 0.85
        assert density[closes] < 0.7
        assert density[last] == density[closes]
        sizes = {n: sum(b.lora_A.shape[1:] + b.lora_B.shape[:1]) for n, b in made.adapters.items()}
        by_site = {row[1]: row[3] for row in outcome.history if row[2] == "kept" and row[0] == last}
        share = sum(by_site[n] * sizes[n] for n in sizes) / (4 * sum(sizes.values()))
        assert kept[last] == pytest.approx(share)
    closing = {row[0] for row in outcome.history if row[2].startswith("log_theta.")}
    assert closing == {6, 14, 22}
    lam = {row[0]: row[3] for row in outcome.history if row[2] == "lambda"}
    assert lam[8] > lam[9] > 0
    notes = made.rule.notes()
    assert len(set(notes)) == len(notes) <= 2 * 3   # of each link its density, and whether it closed every direction


@pytest.mark.parametrize(("chain", "window", "says"), [
    ({"chain": 3}, {"t_end": 0.3}, "in a link of 8 steps, a gate window of 2 steps cannot bring the density"),
    ({"chain": 3}, {"t_end": 9}, "in a link of 8 steps, the gate window, steps 0 to 9"),
    ({"knots": (10, 21)}, {}, "in a link of 3 steps")])  # the last one is the short one
def test_a_window_that_does_not_fit_a_link_is_refused_before_the_first_step(chain, window, says):
    made = trainer(compose(COLA(**chain), gated(**window)), steps=24)
    with pytest.raises(ValueError, match=says):
        made.run()
    assert made.outcome.step == 0


def test_evaluations_wait_for_every_link():
    """Inside a window the model has not the form that is used; at a knot and after it closed it has."""
    seen = []
    made = trainer(compose(COLA(chain=2), gated()), steps=16, eval_every=1,
                   evaluate=lambda model: seen.append(made.clock.step) or {"accuracy": 0.5})
    made.run()
    assert seen == [6, 7, 8, 14, 15, 16]


# ---- gates under Delta-LoRA ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize(("K", "window"), [(0, (0, 8)), (3, (0, 8)), (3, (6, 13)), (5, (5, 13)), (9, (2, 9))])
def test_gated_steps_telescope(kind, K, window):
    """W_t − W_0 = λ s (B_t g_t A_t − B_K g_K A_K) at every step, to 1e-12: through opening, pruning and folding."""
    lam, method = 0.7, gated(t_start=window[0], t_end=window[1], eta_c=0.4)
    written, path = follow(compose(DeltaLoRA(lam=lam, K=K), method), tiny(kind, dtype=F64), steps=16)
    _, lazy = follow(compose(DeltaLoRA(lam=lam, K=K, form="lazy"), method), tiny(kind, dtype=F64), steps=16)
    anchors = {name: written.adapters[name].fixed_left @ written.adapters[name].fixed_right for name in path[0]}
    for t, (here, there) in enumerate(zip(path, lazy, strict=True)):
        for name, (product, W, delta) in here.items():
            moved = lam * product + anchors[name] if t > K else torch.zeros_like(W)
            assert (W - path[0][name][1] - moved).abs().max() < 1e-12
            assert (delta - moved - product).abs().max() < 1e-12
            assert torch.equal(there[name][1], path[0][name][1])
            assert (there[name][0] - product).abs().max() < 1e-11
            assert (there[name][2] - delta).abs().max() < 1e-11
    for name, anchor in anchors.items():
        jump = window[0] == K and K > 0   # at K the window opens as well: g_K is read after that
        assert jump or (anchor + lam * path[K][name][0]).abs().max() < 1e-12
    assert any(anchor.any() for anchor in anchors.values()) == (K > 0)
    assert any(branch.r < 4 for branch in written.adapters.values())
    assert any((path[-1][n][1] - path[0][n][1]).abs().max() > 1e-3 for n in path[0])


def test_a_schedule_of_lambda_follows_gated_steps():
    """W_t − W_{t−1} = λ_t s (B' g' A' − B g A), with the jump of g as the window opens counted to its step."""
    method = compose(DeltaLoRA(lam=2.0, lam_end=0.5, K=3), gated(t_start=6, t_end=13))
    made, path = follow(method, tiny(dtype=F64), steps=16)
    for name in path[0]:
        for t in range(1, 17):
            lam = 2.0 - 1.5 * (t - 4) / 12 if t > 3 else 0.0
            step = lam * (path[t][name][0] - path[t - 1][name][0])
            assert (path[t][name][1] - path[t - 1][name][1] - step).abs().max() < 1e-12
    assert all(branch.accumulated_update is not None for branch in made.adapters.values())


def test_w_follows_no_noise():
    """In the window the forward pass has sampled gates; what W holds and delta() says has none."""
    made = trainer(compose(DeltaLoRA(lam=0.5, K=1), gated(t_end=14, eta_c=0.2)), tiny(dtype=F64), steps=16,
                   callbacks=[Stop(8)])
    made.run()
    branch = made.adapters["0.q"]
    assert branch.gate_module.phase == "sampled"
    branch.train()
    assert not torch.equal(branch.gate(), branch.settled_gate())
    first = branch.delta()
    branch.gate_module.u = torch.rand(4).double()
    assert torch.equal(branch.delta(), first)


# ---- a chain under Delta-LoRA -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["in_place", "lazy"])
@pytest.mark.parametrize("K", [0, 2, 6, 9])
def test_knots_and_steps_add_up(form, K):
    """W* − W_0 = Σ_i (1 + λ·[ended past K]) s B_i A_i + λ (…): K before, on and after the knots at 6 and 12."""
    lam, merge = 0.7, form == "in_place"
    method = compose(COLA(r=4, chain=3, merge_knots=merge), DeltaLoRA(lam=lam, K=K, form=form))
    made, seen = watched_knots(method, tiny(dtype=F64), steps=18)
    path: list[dict[str, Tensor]] = []
    made.callbacks = [Watch(lambda *_: path.append({n: S * b.lora_B.detach() @ b.lora_A.detach()
                                                    for n, b in made.adapters.items()}))]
    W_0 = {name: made.adapters.owner(name).slice_of(name).clone() for name in made.adapters}
    made.run()
    for before, tied in ((seen[0], seen[2]), (seen[4], seen[6])):
        assert (before[1]["logits"] - tied[1]["logits"]).abs().max() < 1e-12
    for name, branch in made.adapters.items():
        links = [seen[0][1]["delta"][name], seen[4][1]["delta"][name] - seen[0][1]["delta"][name],
                 branch.delta() - seen[4][1]["delta"][name]]
        anchor = path[K - 1][name] if K not in (0, 6) else torch.zeros_like(W_0[name])
        last = (1 + lam) * path[-1][name]
        assert (links[2] - last).abs().max() < 1e-12
        if K == 2:  # the first link has the anchor, the second follows from its first step
            product = (links[0] + lam * anchor) / (1 + lam)
            assert torch.linalg.matrix_rank(product, atol=1e-9) <= 4
        stored = made.adapters.owner(name).slice_of(name) - W_0[name]
        expected = branch.delta() - path[-1][name] if merge else torch.zeros_like(stored)
        assert (stored - expected).abs().max() < 1e-12
        assert int((torch.linalg.svdvals(branch.delta()) > 1e-10).sum()) <= 3 * 4 + 4
        assert branch.merged_share == lam


def test_both_forms_of_a_chain_under_delta_lora_are_one_training():
    """Written into W at every step and at every knot, or kept beside it: the same factors, to 1e-11."""
    ends = []
    for form in ("in_place", "lazy"):
        ends.append(train(compose(COLA(r=4, chain=3, merge_knots=form == "in_place"), gated(),
                                  DeltaLoRA(lam=0.7, K=4, form=form)), tiny(dtype=F64), steps=24)[0])
    for name in ends[0]:
        assert (ends[0][name].delta() - ends[1][name].delta()).abs().max() < 1e-11
        assert ends[0][name].r == ends[1][name].r
        assert torch.equal(ends[1].owner(name).slice_of(name), ends[1].owner(name).pretrained_of(name))


def test_a_knot_after_the_first_step_raises_no_false_alarm():
    """B is zero again, as it must be: what the first step had to move was asked of the link that it trained."""
    adapters, _ = train(compose(COLA(r=4, knots=(1, 6)), DeltaLoRA(K=8)))
    assert adapters.rule.chain.link == 2


# ---- ranks that were searched, in a chain -------------------------------------------------------------------


def test_searched_ranks_stay_through_the_chain():
    """The training that follows the search is a chain at its ranks: each link the same, Σ over three links."""
    _, outcome = run(compose(COLA(chain=3, reset_head_moments=True), AutoLoRA(r=4, eta_beta=0.3)))
    following = outcome.following
    assert following.name == "lora+cola"
    lora, chain = following.members
    assert (chain.chain, chain.reset_head_moments, chain.sites) == (3, True, lora.sites)
    ranks = dict(lora.rank_pattern)
    assert len(set(ranks.values())) > 1
    made, seen = watched_knots(following, tiny(dtype=F64))
    made.run()
    assert all(at["r"] == ranks for _, at in seen)
    for name, branch in made.adapters.items():
        assert branch.r == ranks[name]
        assert branch.fixed_left.shape[1] == 2 * ranks[name]
        assert branch.scaling == S
        assert int((torch.linalg.svdvals(branch.delta()) > 1e-10).sum()) <= 3 * ranks[name]


def test_delta_lora_waits_for_the_search():
    """W does not move in the two-level search; it does in the training at the ranks found."""
    made, outcome = run(compose(AutoLoRA(r=4, eta_beta=0.3, sites="qkvo"), DeltaLoRA(K=2)))
    assert set(made.rule.rules) == {"autolora"}
    assert outcome.following.name == "lora+delta_lora"
    adapters, _ = train(outcome.following)
    assert len(adapters) == 8
    assert all(branch.merged_share == 0.5 for branch in adapters.values())


def test_a_bfloat16_base_holds_the_closed_form():
    """In a short float W is cast once from the factors, after every step and as the window opens."""
    method = compose(COLA(chain=2), gated(t_start=2), DeltaLoRA(K=1))
    adapters, _ = train(method, tiny(dtype=torch.bfloat16), steps=20)
    for name, branch in adapters.items():
        left, right = branch.factors_in_base()
        pretrained, stored = adapters.owner(name).pretrained_of(name), adapters.owner(name).slice_of(name)
        W = (pretrained.float() + left @ right).bfloat16()
        assert (stored == W).float().mean() > 0.98  # folding at the end moves a last bit here and there
        assert (stored == pretrained).float().mean() < 0.9


# ---- how contracts combine ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "says"), [
    ((SaLoRA(), AutoLoRA()), "salora and autolora both decide the form of the branch"),
    ((LoRA(), SaLoRA()), "lora and salora both decide the form"),
    ((COLA(ranks=(8, 4)), SaLoRA()), "cola and salora both decide the form"),
    ((AutoLoRA(retrain=False), DeltaLoRA()), "delta_lora cannot go with autolora: its two-level search"),
    ((AutoLoRA(retrain=False), COLA()), "cola cannot go with autolora: .*retrain=False"),
    ((COLA(), COLA(chain=3)), "cola is named twice"),
    ((HeadOnly(), COLA()), "cola cannot go with head: it trains without a branch"),
    ((FullFineTuning(), SaLoRA(), COLA()), "cola and salora cannot go with full"),
    ((SaLoRA(lora_dropout=0.1), DeltaLoRA()), "Delta-LoRA takes no dropout"),
    ((COLA(r=4), SaLoRA(r=2)), "must agree: cola has r = 4, salora has r = 2"),
    ((COLA(r=8), SaLoRA(r=2)), "must agree: cola has r = 8, salora has r = 2"),
    ((COLA(sites="qkvo"), SaLoRA(sites="qv")), "cola has sites = 'qkvo', salora has sites = 'qv'"),
    ((COLA(ranks=(8, 4)), DeltaLoRA(r=16)), "cola has r = 8 where another has 16"),
    ((COLA(merge_knots=False), DeltaLoRA()), "cola leaves W alone, delta_lora writes into W"),
    ((COLA(), DeltaLoRA(form="lazy")), "cola writes into W, delta_lora leaves W alone"),
])
def test_contradictions_are_refused_in_a_sentence(members, says):
    """Whatever the order in which they are named."""
    for order in itertools.permutations(members):
        with pytest.raises(ValueError, match=says):
            compose(*order)


def test_the_order_of_naming_does_not_matter():
    one, other = compose(SaLoRA(), DeltaLoRA(), COLA()), compose(COLA(), compose(DeltaLoRA(), SaLoRA()))
    assert one == other
    assert one.name == "cola+salora+delta_lora"
    assert [m.name for m in one.members] == ["cola", "salora", "delta_lora"]
    assert compose(COLA()) == COLA()


def test_shared_fields_are_agreed_on():
    """What was changed holds for all; what nobody changed is that of the member that decides the branch's form."""
    both = compose(COLA(r=4), SaLoRA(lora_alpha=8))
    assert [(m.r, m.lora_alpha, m.sites, m.init) for m in (both, *both.members)] == [(4, 8.0, "all", "kaiming")] * 3
    assert compose(COLA(sites="qkvo"), SaLoRA()).sites == "qkvo"
    assert compose(COLA(ranks=(4, 2)), DeltaLoRA()).r == 4
    assert compose(COLA(init="gaussian"), SaLoRA()).init == "gaussian"
    again = compose(compose(COLA(), SaLoRA()), DeltaLoRA(init="gaussian"))
    assert {m.init for m in again.members} == {"gaussian"}  # what a composition filled in was not asked for
    assert not {"init", "sites"} & {name for m in compose(COLA(), SaLoRA()).members for name in m.given}
    adapters = lt.adapt(tiny(), (COLA(r=4), "salora"), seed=0)
    assert adapters.method == compose(COLA(r=4), SaLoRA())
    assert len(adapters) == 12


def test_who_owns_what_is_declared():
    """A method whose rule decides the form or the schedule says so: else a pair of them would not be refused."""
    hooks = {"branch": "form", "stretch": "schedule", "link_clock": "links"}
    for name in ("lora", "cola", "salora", "delta_lora", "autolora"):
        for method in (METHODS[name](), *([COLA(restart_schedule=True, ranks=(4, 2))] if name == "cola" else [])):
            rule = type(method.rule())
            claims = {what for hook, what in hooks.items() if getattr(rule, hook) is not getattr(Rule, hook)}
            assert method.owns <= set(SOLE)
            if method.name != "cola" or method.restart_schedule:  # without its switches COLA does neither
                assert method.owns - {"following"} == claims


@dataclass(frozen=True, kw_only=True)
class Faster(Method):
    """A user's method: B at another rate, and a penalty."""

    name: ClassVar[str] = "faster"
    owns: ClassVar[frozenset[str]] = frozenset()

    def rule(self) -> Rule:
        return FasterRule(self)


class FasterRule(Rule):
    nesting = 1

    def parameter_groups(self) -> list:
        branches = list(self.adapters.values())
        return [{"params": [b.lora_A for b in branches], "lr": 1e-3},
                {"params": [b.lora_B for b in branches], "lr": 4e-3}]

    def penalty(self) -> Tensor:
        return sum(b.lora_B.square().sum() for b in self.adapters.values())

    def log(self) -> dict:
        return {"link": 1.0} if self.method.r == 2 else {"own": 1.0}


@dataclass(frozen=True, kw_only=True)
class Twin(Faster):
    """Another that sets the same rates."""

    name: ClassVar[str] = "twin"


METHODS.pop("faster"), METHODS.pop("twin")


@pytest.fixture
def faster():
    METHODS["faster"], METHODS["twin"] = Faster, Twin
    yield Faster
    METHODS.pop("faster"), METHODS.pop("twin")


def test_a_users_method_joins_in(faster):
    """Its rates stand, no parameter is in two groups, penalties add up, also after a knot."""
    made = trainer(compose(COLA(r=4, chain=2), gated(orthogonality_until="end"), faster()), steps=16)
    made.run()
    grouped = [id(p) for group in made.optimizer.param_groups for p in group["params"]]
    assert len(set(grouped)) == len(grouped)
    peaks = {peak for group, peak in zip(made.optimizer.param_groups, made.peaks, strict=True)
             if any(p is made.adapters["0.q"].lora_B for p in group["params"])}
    assert peaks == {4e-3}
    rules = made.rule.rules
    salora, own = rules["salora"].penalty().item(), rules["faster"].penalty().item()
    assert made.rule.penalty().item() == pytest.approx(salora + own)
    assert own > 0


def test_a_parameter_has_one_rate(faster):
    with pytest.raises(ValueError, match="two members of faster\\+twin give one parameter a rate"):
        train(compose(faster(), Twin()))


def test_two_members_may_not_log_one_name(faster):
    with pytest.raises(ValueError, match="two members of cola\\+faster log link"):
        train(compose(COLA(r=2), faster()))


def test_a_method_that_says_nothing_takes_no_partner(faster, monkeypatch):
    monkeypatch.setattr(faster, "owns", None)
    with pytest.raises(ValueError, match=r"cola cannot go with faster: it does not say .*owns"):
        compose(COLA(), faster())


def test_hooks_are_nested_around_the_step():
    """before_step from the chain inwards, after_step from Delta-LoRA outwards."""
    made = trainer(compose(COLA(r=4), gated(), DeltaLoRA()), steps=16, callbacks=[Stop(1)])
    calls: list[tuple[str, str]] = []
    for name, rule in made.rule.rules.items():
        for hook in ("before_step", "after_step"):
            inner = getattr(rule, hook)
            setattr(rule, hook, lambda clock, n=name, h=hook, i=inner: (calls.append((h, n)), i(clock))[1])
    made.run()
    order = ["cola", "salora", "delta_lora"]
    assert calls == [("before_step", n) for n in order] + [("after_step", n) for n in reversed(order)]


@pytest.mark.parametrize("broken", ["reset_moments", "replace_parameter"])
def test_a_broken_knot_stops_the_run(broken, monkeypatch):
    """The chain's own invariants are asked in a composition, too: moments that survive stop it at the knot."""
    if broken == "replace_parameter":  # the new factors take over the moments of the old ones
        monkeypatch.setattr(cola_module, broken, lambda optimizer, old, new, *_: optimizer.state.update(
            {new: {k: v for k, v in optimizer.state[old].items() if k == "step"}}))
        partner: Method = gated()
    else:
        monkeypatch.setattr(cola_module, broken, lambda *_: None)
        partner = DeltaLoRA(K=2)
    with pytest.raises(LivenessError, match="step 8: after a knot the Adam moments"):
        train(compose(COLA(chain=2), partner), steps=16)


# ---- by name, in records, from the command line -------------------------------------------------------------


def test_a_record_holds_all_of_it():
    """to_dict and back, through JSON; the key of a run depends on every member's values."""
    both = compose(COLA(knots=(0.3, 0.6)), SaLoRA(b=0.25, gate_betas=(0.0, 0.9)))
    written = json.loads(json.dumps(both.to_dict()))
    assert (written["method"], written["r"], written["sites"]) == ("cola+salora", 8, "all")
    assert Method.from_dict(written) == both
    other = compose(COLA(knots=(0.3, 0.6)), SaLoRA(b=0.5, gate_betas=(0.0, 0.9)))
    assert config_key({"method": both.to_dict()}) != config_key({"method": other.to_dict()})
    assert Method.from_dict(compose(LoRA(rank_pattern={"0.q": 2}), COLA()).to_dict()).members[0].rank_pattern == {
        "0.q": 2}


@pytest.mark.parametrize("profile", ["tiny", "laptop", "gpu"])
def test_a_profile_sets_the_members(profile):
    """Each as if alone; the rate of the gates times the number of links, since each has that share of the steps."""
    wanted = SHORT_TRAINING[profile]
    fitted = {m.name: m for m in fit_to_profile(compose(COLA(chain=3), SaLoRA()), profile).members}
    for name, value in wanted.get("salora", {}).items():
        assert getattr(fitted["salora"], name) == pytest.approx(value * (3 if name == "eta_c" else 1))
    searched = fit_to_profile(compose(AutoLoRA(), COLA()), profile).members[-1]
    alone = fit_to_profile(AutoLoRA(), profile)
    assert (searched.search_steps, searched.eta_beta) == (alone.search_steps, alone.eta_beta)
    kept = fit_to_profile(compose(COLA(chain=3), SaLoRA(eta_c=0.3)), profile)
    assert {m.name: m for m in kept.members}["salora"].eta_c == 0.3


def test_names_and_settings():
    """A setting goes to every member that has the field."""
    both = named("salora+cola", chain=3, b=0.25, r=4)
    assert both == compose(COLA(chain=3, r=4), SaLoRA(b=0.25, r=4))
    assert as_method(("cola", SaLoRA(b=0.25))) == compose(COLA(), SaLoRA(b=0.25))
    assert as_method("cola+salora") == as_method(["salora", "cola"]) == compose(COLA(), SaLoRA())
    assert as_method("cola") == COLA()
    assert {"chain", "b", "r"} <= set(fields_of("cola+salora"))
    assert isinstance(both, Composed)
    with pytest.raises(ValueError, match="unknown method 'collar'; choose among lora, cola"):
        as_method("collar+salora")
    with pytest.raises(ValueError, match=r"cola\+salora has no value lam; it has .*chain"):
        named("cola+salora", lam=2.0)


def test_fit_and_the_command_line(monkeypatch, capsys, tmp_path):
    """From two names to a record, and the same record from the terminal."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / "runs"))
    model = str(model_folder(tmp_path / "model"))
    run = lt.fit((COLA(chain=3), SaLoRA(b=0.75)), "rt", model, "tiny", steps=45, progress=False)
    assert run.config["method"]["method"] == run.label == "cola+salora"
    assert set(run.history["name"]) >= {"link", "density", "lambda", "cosine"}
    directions = {site: left.shape[1] for site, (left, _) in run.factors.items()}
    assert all(directions[site] >= rank for site, rank in run.ranks.items())
    assert sum(directions.values()) > sum(run.ranks.values())
    assert Store().get(run.key).config == run.config
    status, out, err = command(monkeypatch, capsys, "train", "cola+salora", "-b", model, "-p", "tiny", "--json",
                               "--set", "chain=3", "--set", "b=0.75", "--set", "steps=45")
    assert (status, err) == (0, err)
    assert json.loads(out)["key"] == run.key
    status, _, err = command(monkeypatch, capsys, "train", "cola+autolora+salora", "-b", model, "-p", "tiny")
    assert status == 2
    assert "both decide the form" in err

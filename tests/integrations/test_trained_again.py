"""A second training of the same adapters goes on from the first: what was learned stays, and every identity holds."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from helpers import (
    Stop,
    Watch,
    assert_same,
    bytes_of,
    collate,
    everything,
    logits,
    make_batch,
    make_rows,
    same_tensors,
    tiny,
)
from test_hf_trainer import METHODS as SINGLE
from test_hf_trainer import ROWS, STEPS, arguments

import lowrank_teach as lt
from lowrank_teach.methods import DyLoRA, Pfeiffer
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer

F64 = torch.float64
GATES: dict[str, Any] = {"r": 4, "sites": "qv", "eta_c": 1.0, "t_start": 0.1, "t_end": 0.9}
METHODS: dict[str, lt.Method] = {
    **{name: method for name, method in SINGLE.items() if name != "autolora, unrolled"},
    "cola, one link": lt.COLA(r=4, chain=1),
    "delta_lora, from the first step": lt.DeltaLoRA(r=4, K=0),
    "delta_lora, from the first step, lazily": lt.DeltaLoRA(r=4, K=0, form="lazy"),
    "delta_lora, scheduled from the first step": lt.DeltaLoRA(r=4, K=0, lam_end=2.0),
    "FT‡": lt.FullFineTuning(trains="qv"),
    "pfeiffer": Pfeiffer(),
    "dylora": DyLoRA(r=4),
    "dylora, one direction a step": DyLoRA(r=4, frozen=True),
    "prefix": lt.PrefixTuning(num_virtual_tokens=3),
    "prompt": lt.PromptTuning(num_virtual_tokens=3),
    "cola+delta_lora": lt.compose(lt.COLA(r=4, knots=(6,)), lt.DeltaLoRA(r=4, K=3)),
    "cola+delta_lora, lazily": lt.compose(lt.COLA(r=4, knots=(6,), merge_knots=False),
                                          lt.DeltaLoRA(r=4, K=0, form="lazy")),
    "salora+delta_lora": lt.compose(lt.SaLoRA(**GATES), lt.DeltaLoRA(r=4, K=3)),
    "salora+delta_lora, from the first step": lt.compose(lt.SaLoRA(**GATES), lt.DeltaLoRA(r=4, K=0)),
    "cola+salora+delta_lora": lt.compose(lt.COLA(r=4, knots=(6,)), lt.SaLoRA(**GATES), lt.DeltaLoRA(r=4, K=3)),
    "lora+cola+delta_lora": lt.compose(lt.LoRA(r=4, rank_pattern={"0.q": 2}), lt.COLA(r=4, knots=(6,)),
                                       lt.DeltaLoRA(r=4, K=3)),
    "autolora+cola, the search": lt.compose(lt.AutoLoRA(r=4, eta_beta=0.05, hypergradient="first_order"),
                                            lt.COLA(r=4, knots=(6,))),
}
# those whose rule has nothing of its own to bring to the form that a training begins from
PLAIN = ("lora", "head", "full", "FT‡", "houlsby", "pfeiffer", "prefix", "prompt")
# a first training that was stopped before its rule had come to its end; early, where something begins in between
STOPPED = [*((name, 6) for name in METHODS if name not in PLAIN and "autolora" not in name),
           *((name, 2) for name in ("cola", "salora", "delta_lora", "delta_lora, scheduled", "adalora",
                                    "a chain of gated links", "cola+salora+delta_lora"))]
# one of each rule and each form of it, where the other settings change nothing about a second start
KINDS = [name for name in METHODS if name not in PLAIN and name not in (
    "cola, one link", "delta_lora, from the first step, lazily", "delta_lora, scheduled from the first step",
    "salora+delta_lora, from the first step", "lora+cola+delta_lora", "dylora")]


def cell(adapters: lt.Adapters, **settings: Any) -> Trainer:
    """What a notebook's second cell makes, of adapters that its first one made."""
    given = {"rows": make_rows(64), "callbacks": (), "checkpoint": None, "identity": "", **settings}
    config = {"steps": STEPS, "batch_size": ROWS, "lr": 1e-2, "warmup": 0.25, "max_grad_norm": 0.3}
    config |= {name: given.pop(name) for name in list(given) if name in TrainConfig.__dataclass_fields__}
    return Trainer(adapters, given.pop("rows"), collate, TrainConfig(**config), cpu=True, **given)


def adapted(name: str, dtype: torch.dtype = F64, **changes: Any) -> lt.Adapters:
    return lt.adapt(tiny(dtype=dtype, **changes), METHODS[name], seed=0)


def weights(adapters: lt.Adapters) -> dict[str, torch.Tensor]:
    return {name: adapters.owner(name).slice_of(name).clone() for name in adapters}


def largest(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    return max((float((left[name] - right[name]).abs().max()) for name in left), default=0.0)


# ---- the function is the same before a second training, and after it merged and restored ------------------------


@pytest.mark.parametrize(("name", "stop"), [*((name, STEPS) for name in METHODS), *STOPPED])
def test_a_second_training_goes_on_where_the_first_ended(name, stop):
    """The function stays through its start, and so does W, but where a link is tied; its end may be merged and
    restored, and trained once more."""
    adapters, batch = adapted(name), make_batch()
    pretrained = weights(adapters)
    cell(adapters, callbacks=[Stop(stop)] if stop < STEPS else []).run()
    before, W = logits(adapters.model, batch), weights(adapters)
    started = cell(adapters, steps=STEPS + 3)
    started.prepare()
    started.unwrap()
    assert (logits(adapters.model, batch) - before).abs().max() < 1e-12
    if "links" not in (adapters.method.owns or ()):
        assert same_tensors(weights(adapters), W)
    assert cell(adapters, steps=STEPS + 3).run().finished
    after = logits(adapters.model, batch)
    assert (after - before).abs().max() > 1e-4
    if adapters.owners:
        adapters.merge()
        assert (logits(adapters.model, batch) - after).abs().max() < 1e-11
        adapters.restore()
        assert same_tensors(weights(adapters), pretrained)
        assert (logits(adapters.model, batch) - after).abs().max() < 1e-11
    if stop == STEPS:
        assert cell(adapters).run().finished


@pytest.mark.parametrize("name", ["lora", "full", *KINDS])
def test_both_trainers_train_again_alike(name, tmp_path):
    """Two trainings in transformers' Trainer end in the bytes and the log of two in ours."""
    ours, theirs = (adapted(name, torch.float32) for _ in range(2))
    for _ in range(2):
        made, order = cell(ours, rows=make_rows(round(STEPS * ROWS / (1 - ours.method.held_out)))), []
        made.collate = lambda rows, order=order: (order.extend(rows), {})[1]
        for step in range(1, STEPS + 1):
            made._batches("train", step)
        made.collate = collate
        made.run()
        other = lt.LowRankTrainer(theirs, arguments(tmp_path, max_grad_norm=0.3), train_dataset=order,
                                  held_out=made.streams["held_out"] or None, data_collator=collate)
        other.train()
        assert same_tensors(bytes_of(ours.model), bytes_of(theirs.model))
        assert sorted(made.outcome.history) == sorted(other.outcome.history)
        assert (made.outcome.following, ours.ranks()) == (other.following, theirs.ranks())


# ---- the identities -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ranks"), [
    ("cola", (4,) * 6), ("cola, ranks that fall, restarted schedule", (4, 2, 4, 2)),
    ("cola, links kept beside W", (2,) * 6), ("cola, one link", (4, 4)), ("a chain of gated links", None)])
def test_a_chain_trained_twice_is_a_chain_of_twice_the_links(name, ranks):
    """All links but the last are fixed, each at its own rank, and W* − W is their sum."""
    adapters = adapted(name)
    pretrained = weights(adapters)
    links: dict[str, list[torch.Tensor]] = {site: [] for site in adapters}
    tie = adapters.rule.tie if ranks else adapters.rule.chain.tie

    def watched() -> None:
        for site, branch in adapters.items():
            left, right = branch.live_factors()
            links[site].append(left @ right)
        tie()

    (adapters.rule if ranks else adapters.rule.chain).tie = watched
    for _ in range(2):
        cell(adapters).run()
    for site, branch in adapters.items():
        left, right = branch.live_factors()
        assert len(links[site]) == len(ranks or (0,) * 4) - 1
        assert (branch.delta() - sum(links[site]) - left @ right).abs().max() < 1e-12
        if ranks:
            assert (branch.fixed_left.shape[1], branch.r) == (sum(ranks[:-1]), ranks[-1])
    adapters.merge()
    W = weights(adapters)
    assert all((W[site] - pretrained[site] - sum(links[site]) - adapters[site].scaling * adapters[site].lora_B
                @ adapters[site].lora_A).abs().max() < 1e-12 for site in adapters)


def product(adapters: lt.Adapters) -> dict[str, torch.Tensor]:
    """s B A of each site."""
    return {site: left @ right for site, branch in adapters.items() for left, right in [branch.live_factors()]}


@pytest.mark.parametrize("restored", [False, True])
@pytest.mark.parametrize(("K", "lam_end"), [(0, None), (3, None), (12, None), (0, 2.0), (3, 2.0)])
def test_each_training_of_delta_lora_telescopes_by_itself(K, lam_end, restored):
    """W_t − W_K = λ s (B_t A_t − B_K A_K) in both trainings, and the lazy form is the same function throughout."""
    lam = 0.5
    made = {form: lt.adapt(tiny(dtype=F64), lt.DeltaLoRA(r=4, lam=lam, K=K, lam_end=lam_end, form=form), seed=0)
            for form in (("in_place", "lazy") if lam_end is None else ("in_place",))}
    written = made["in_place"]
    pretrained = weights(written)

    def held() -> dict[str, torch.Tensor]:
        """W_t − W_0 of each site: as W holds it, where it does."""
        found = {site: branch.delta() - product(written)[site] for site, branch in written.items()}
        actual = {site: W - pretrained[site] for site, W in weights(written).items() if written[site].in_base}
        assert largest(actual, found) < 1e-12
        return found

    for training in range(2):
        if training and restored and K < STEPS:
            written.restore()
        path = [(held(), product(written))]
        look = Watch(lambda *_, path=path: path.append((held(), product(written))))
        for form, adapters in made.items():
            cell(adapters, callbacks=[look] if form == "in_place" else []).run()
        for site in written:
            moved = torch.zeros(())
            for t in range(1, STEPS + 1):
                rate = lam if lam_end is None else lam + (lam_end - lam) * (t - K - 1) / max(STEPS - K - 1, 1)
                moved = moved + (rate * (path[t][1][site] - path[t - 1][1][site]) if t > K else 0)
                assert (path[t][0][site] - path[0][0][site] - moved).abs().max() < 1e-12
            if lam_end is None and K < STEPS:
                assert (moved - lam * (path[-1][1][site] - path[K][1][site])).abs().max() < 1e-12
        for adapters in made.values():
            assert largest(*({s: b.delta() for s, b in a.items()} for a in (adapters, written))) < 1e-11
    assert {branch.fixed_left.shape[1] for branch in written.values()} == {12 if K == 3 and lam_end is None else 0}


def test_salora_trained_again_is_lora_at_the_ranks_that_were_kept():
    """From the same factors LoRA ends in the same bytes; the record says what was trained."""
    method = lt.SaLoRA(r=4, eta_c=0.5, t_end=9, b=0.4)
    adapters = lt.adapt(tiny(), method, seed=0)
    first = cell(adapters)
    first.run()
    kept = adapters.ranks()
    assert 0 < sum(kept.values()) < 4 * len(kept)
    kept_sites = tuple(site for site, r in kept.items() if r)
    plain = lt.adapt(tiny(), lt.LoRA(r=4, rank_pattern={s: kept[s] for s in kept_sites}, sites=kept_sites), seed=0)
    with torch.no_grad():
        for site, branch in plain.items():
            branch.lora_A.copy_(adapters[site].lora_A)
            branch.lora_B.copy_(adapters[site].lora_B)
        for mine, theirs in zip(plain.head_parameters(), adapters.head_parameters(), strict=True):
            mine.copy_(theirs)
    again, lora = cell(adapters, steps=7), cell(plain, steps=7)
    mine, theirs = again.run(), lora.run()
    for site, branch in plain.items():
        assert torch.equal(branch.lora_A, adapters[site].lora_A)
        assert torch.equal(branch.lora_B, adapters[site].lora_B)
    assert torch.equal(logits(adapters.model, make_batch()), logits(plain.model, make_batch()))
    assert [row for row in mine.history if row[2] not in ("kept", "kept_density")] == theirs.history
    assert {row[1]: row[3] for row in mine.history if row[2] == "kept"} == kept == adapters.ranks()
    assert not any("earlier training" in note for note in first.rule.notes()[:-1])
    assert "an earlier training closed the gate window" in again.rule.notes()[-1]


def test_salora_stopped_inside_its_window_opens_another():
    """log θ goes on from where it was, without noise until the window opens; λ starts from zero."""
    adapters = lt.adapt(tiny(), lt.SaLoRA(r=4, eta_c=0.5, t_start=2, t_end=9, b=0.4), seed=0)
    cell(adapters, callbacks=[Stop(6)]).run()
    log_theta = {site: gate.log_theta.detach().clone() for site, gate in adapters.rule.gates().items()}
    assert adapters.rule.lam.item() > 0
    again = cell(adapters)
    seen: dict[int, Any] = {}
    again.callbacks = [Watch(lambda step, v: seen.update({step: {
        site: gate.log_theta.detach().clone() for site, gate in adapters.rule.gates().items()}}))]
    outcome = again.run()
    assert same_tensors(seen[2], log_theta)
    assert not same_tensors(seen[3], log_theta)
    assert [v for _, _, name, v in outcome.history if name == "lambda"][:2] == [0.0, 0.0]
    assert again.rule.closed_at is not None
    assert outcome.finished


def test_adalora_trained_again_keeps_the_ranks_that_it_found():
    """The budget is met from the first step on; a training that was stopped before measures anew."""
    adapters = lt.adapt(tiny(), lt.AdaLoRA(r=4, target_r=2, tinit=2, tfinal=3), seed=0)
    cell(adapters, callbacks=[Stop(5)]).run()
    cell(adapters).run()
    found = adapters.ranks()
    assert sum(found.values()) == 2 * len(found)
    assert adapters.rule.notes() == []
    outcome = cell(adapters, steps=3).run()
    assert {(row[1], row[3]) for row in outcome.history if row[2] == "kept"} == set(found.items())
    assert "an earlier training met the budget" in adapters.rule.notes()[0]


# ---- a second training that was interrupted ----------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_second_training_may_be_resumed(name, tmp_path):
    """Bit for bit, on adapters that were never trained or were trained twice already; from its last step, too."""
    path = tmp_path / "run.safetensors"
    keep = Watch(lambda step, v: shutil.copy(path, tmp_path / f"{step - 1}") if step in (3, 8) else None)
    settings = {"steps": STEPS + 1, "checkpoint": path}
    adapters = adapted(name, torch.float32, dropout=0.1)
    cell(adapters).run()
    whole = cell(adapters, checkpoint_every=1, callbacks=[keep], **settings)
    whole.run()
    expected = everything(whole)
    for stored, onto in ((path, None), (tmp_path / "2", None), (tmp_path / "7", None), (tmp_path / "2", adapters)):
        resumed = cell(onto or adapted(name, torch.float32, dropout=0.1), **{**settings, "checkpoint": stored})
        resumed.run()
        assert_same(everything(resumed), expected)


# ---- what is refused ----------------------------------------------------------------------------------------------


def refused(made: Trainer, error: type[Exception], says: str) -> None:
    """With this sentence, and before anything moved."""
    before, W = bytes_of(made.adapters.model), weights(made.adapters)
    with pytest.raises(error, match=says):
        made.run()
    assert same_tensors(bytes_of(made.adapters.model), before)
    assert same_tensors(weights(made.adapters), W)


def test_what_does_not_fit_a_second_training_is_refused_before_it_begins():
    """Knots past its end; and it is still a second training when it is asked for again."""
    adapters = adapted("cola")
    cell(adapters).run()
    refused(cell(adapters, steps=6), ValueError, r"knots at steps \[4, 8\] do not fit")
    cell(adapters).run()
    assert {b.fixed_left.shape[1] for b in adapters.values()} == {20}


def test_a_trainer_trains_once():
    """The same object again is refused, whether it came to its end or was stopped."""
    for callbacks in ([], [Stop(3)]):
        made = cell(adapted("lora"), callbacks=callbacks)
        made.run()
        refused(made, RuntimeError, r"this trainer has trained \d+ steps already; make a new one")


def test_the_same_trainer_goes_on_from_its_checkpoint(tmp_path):
    """Stopped, and run again: it is taken up."""
    stop = Stop(3)
    made = cell(adapted("cola"), callbacks=[stop], checkpoint=tmp_path / "run.safetensors")
    made.run()
    stop.step = -1
    assert made.run().finished
    straight = cell(adapted("cola"))
    straight.run()
    assert same_tensors(bytes_of(made.adapters.model), bytes_of(straight.adapters.model))

"""What `adapt` puts on a model, and that every way in has its exact way back."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers import (
    FAMILIES,
    Watch,
    bytes_of,
    collate,
    logits,
    make_batch,
    make_rows,
    same_tensors,
    shake,
    tiny,
    train,
    trainer,
)

import lowrank_teach as lt
from lowrank_teach.adapters import Adapters, adapt
from lowrank_teach.errors import DivergedError
from lowrank_teach.lowrank import Adapted
from lowrank_teach.methods import (
    COLA,
    METHODS,
    AutoLoRA,
    DeltaLoRA,
    FullFineTuning,
    HeadOnly,
    Houlsby,
    LoRA,
    Pfeiffer,
    SaLoRA,
)
from lowrank_teach.methods.composition import compose
from lowrank_teach.training.trainer import Trainer, start_from

# one of each kind of trace that a method can leave in a model, over a twelve-step training
EVERY = {
    "lora": LoRA(r=4),
    "lora-gpt2": LoRA(r=4),
    "cola": COLA(r=4, chain=3),
    "cola-stacked": COLA(r=4, chain=3, merge_knots=False),
    "cola-step-down": COLA(ranks=(6, 2)),
    "delta": DeltaLoRA(r=4, K=4),
    "delta-lazy": DeltaLoRA(r=4, K=4, form="lazy"),
    "delta-schedule": DeltaLoRA(r=4, K=4, lam=2.0, lam_end=0.0),
    "salora": SaLoRA(r=4, eta_c=0.5, t_end=10),
    "autolora": AutoLoRA(r=4, eta_beta=0.05, retrain=False),
    "full": FullFineTuning(),
    "full-qv": FullFineTuning(trains="qv"),
    "head": HeadOnly(),
}


def a_model(name: str, dtype: torch.dtype = torch.float32):
    return tiny("gpt2" if name.endswith("gpt2") or name == "delta" else "bert", dtype=dtype)


def state_of(model) -> tuple:
    return bytes_of(model), {n: p.requires_grad for n, p in model.named_parameters()}, \
        {n: type(m) for n, m in model.named_modules()}


def same_state(left: tuple, right: tuple) -> bool:
    return same_tensors(left[0], right[0]) and left[1:] == right[1:]


# ---- B = 0 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_fresh_branch_changes_no_logit(kind):
    """B = 0: adapting all matrices of any architecture leaves the function as it was, bit for bit."""
    model, batch = tiny(kind), make_batch()
    before = logits(model, batch)
    adapters = adapt(model, LoRA(r=4, sites="all"), seed=0)
    assert len(adapters) == {"t5": 32, "bart": 32, "llama": 14}.get(kind, 12)
    assert torch.equal(logits(model, batch), before)


# ---- the way back after each method -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), [
    *((name, torch.float64) for name in EVERY),
    *((name, torch.bfloat16) for name in EVERY if not name.startswith("full"))])  # which needs float32
def test_whatever_a_method_wrote_has_its_way_back(name, dtype):
    """After a training: merged and restored, stored and loaded, merged or not, and removed.

    Merging keeps the function; restore() gives W its pretrained bytes back. A state makes the same logits, bit for
    bit, on a model that was adapted afresh, and what merge_and_unload() then deploys is what was learned. remove()
    leaves bytes (the head's too), flags and modules as before `adapt`, so that the same training ends the same again.
    """
    def fresh() -> Adapters:
        return adapt(a_model(name, dtype), EVERY[name], seed=99)

    model, batch = a_model(name, dtype), make_batch()
    model.get_parameter(next(iter(dict(model.named_parameters())))).requires_grad_(False)
    before, at_first = state_of(model), logits(model, batch)
    adapters, _ = train(EVERY[name], model)
    adapters.rule.finish()
    learned = logits(model, batch)
    assert not torch.equal(learned, at_first)
    tolerance = (1e-10 if dtype == torch.float64 else 0.1) * float(learned.abs().max().clamp_min(1))

    def as_learned(found: torch.Tensor) -> bool:
        return bool((found.double() - learned.double()).abs().max() <= tolerance)

    tensors, values = adapters.state_dict()
    other = fresh()
    other.load_state_dict({key: value.clone() for key, value in tensors.items()}, values)
    for gate in other.rule.gates().values() if name == "salora" else ():
        gate.phase = "folded"  # the phase of the gates belongs to the rule
    assert torch.equal(logits(other.model, batch), learned)
    assert other.ranks() == adapters.ranks()
    adapters.load_state_dict(*adapters.state_dict())  # the tensors in use: W as a knot left it is among them
    assert torch.equal(logits(model, batch), learned)

    if adapters.owners:
        adapters.merge()
        assert as_learned(logits(model, batch))
        adapters.restore()
        assert as_learned(logits(model, batch))
        for path, owner in adapters.owners.items():
            assert torch.equal(owner.base.weight, before[0][f"{path}.weight"])
            assert owner.base.weight.grad is None
        adapters.merge()
        adapters.load_state_dict(*adapters.state_dict())  # of merged adapters, onto them
        assert adapters.state == "adapted"
        other = fresh()
        other.merge()
        other.load_state_dict(*adapters.state_dict())
        for loaded in (adapters, other):
            assert as_learned(logits(loaded.model, batch))
        assert as_learned(logits(other.merge_and_unload(), batch))
        adapters.merge()
    assert adapters.remove() is model
    assert same_state(state_of(model), before)
    assert torch.equal(logits(model, batch), at_first)
    again, _ = train(EVERY[name], model)
    again.rule.finish()
    assert torch.equal(logits(model, batch), learned)


# ---- illegal transitions ------------------------------------------------------------------------------------


def test_illegal_transitions_are_refused():
    """Merge twice, restore with nothing written, train while merged, adapt twice, use after remove()."""
    model = tiny()
    running = trainer(LoRA(r=4), model)
    adapters = running.adapters
    with pytest.raises(RuntimeError, match="nothing to restore"):
        adapters.restore()
    adapters.merge()
    with pytest.raises(RuntimeError, match=r"cannot merge.*restore\(\) first"):
        adapters.merge()
    with pytest.raises(RuntimeError, match="restore"):
        running.run()
    with pytest.raises(RuntimeError, match="restore"):
        Trainer(adapters, [{"input_ids": [3], "labels": 0}], list, running.config)
    with pytest.raises(ValueError, match="adapted already"):
        adapt(model, LoRA(r=4))
    adapters.restore()
    running.run()
    adapters.remove()
    for call in (adapters.merge, adapters.restore, adapters.remove):
        with pytest.raises(RuntimeError, match=r"removed; call adapt\(\) again"):
            call()
    with pytest.raises(RuntimeError, match="removed"):
        Trainer(adapters, [{"input_ids": [3], "labels": 0}], list, running.config)


@pytest.mark.parametrize("name", ["lora", "cola", "delta", "delta-lazy", "delta-schedule", "autolora"])
def test_merging_between_two_steps_does_not_disturb_the_training(name):
    """merge() and restore() in a callback: the run ends where the untouched one ends, and W's bytes survive."""
    runs = []
    for look in (False, True):
        model = a_model(name, torch.float64)
        pretrained = {n: p.detach().clone() for n, p in model.named_parameters()}
        made = trainer(EVERY[name], model)

        def peek(step: int, values: dict, made=made) -> None:
            if step in (3, 7, 9):
                made.adapters.merge()
                made.adapters.restore()

        made.callbacks = [Watch(peek)] if look else []
        made.run()
        runs.append(logits(model, make_batch()))
        made.adapters.merge()
        assert (logits(model, make_batch()) - runs[-1]).abs().max() < 1e-10
        made.adapters.restore()
        assert all(torch.equal(owner.base.weight, pretrained[f"{path}.weight"])
                   for path, owner in made.adapters.owners.items())
    assert (runs[0] - runs[1]).abs().max() < 1e-10


# ---- refusals leave no trace --------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "options", "says"), [
    *((method, {}, r"rank 17 is larger than min\(d, k\) = 16")
      for method in (LoRA(r=17), SaLoRA(r=17), COLA(r=17), COLA(ranks=(4, 17)), AutoLoRA(r=17), DeltaLoRA(r=17))),
    (LoRA(sites="zz"), {}, "'zz' matches nothing"),
    (LoRA(r=4, sites=("0.q", "9.q")), {}, "9.q"),
    (LoRA(r=4, rank_pattern={"1.v": 99}), {}, "1.v"),
    (SaLoRA(r=4, sites=("nowhere",)), {}, "nowhere"),
    (LoRA(r=4), {"head": ["clasifier"]}, "clasifier"),
])
def test_a_refused_adapt_leaves_the_model_untouched(method, options, says):
    """Bytes, flags and modules are as before the call."""
    model = tiny()
    before = state_of(model)
    with pytest.raises(ValueError, match=says):
        adapt(model, method, **options)
    assert same_state(state_of(model), before)
    adapt(model, LoRA(r=4))


# ---- what one holds in the hand -----------------------------------------------------------------------------


def test_only_the_branches_and_the_head_train():
    """requires_grad is true for A, B and the classifier alone; W.grad stays None."""
    model = tiny()
    adapters = adapt(model, LoRA(r=4), seed=0)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trains == {"classifier.weight", "classifier.bias"} | {
        f"{path}.lora.{name.replace('.', '_')}.lora_{x}" for path, owner in adapters.owners.items()
        for name in owner.branches for x in "AB"}
    shake(adapters)
    model.train()(**make_batch()).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trains


def test_the_head_can_be_named():
    """head=[] trains none, a module's name trains all of it."""
    assert adapt(tiny(), LoRA(r=4), head=[]).head_parameters() == []
    model = tiny()
    adapters = adapt(model, LoRA(r=4), head=["bert.pooler"])
    assert adapters.head_names == ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
    model = tiny()
    model.lowrank_new_parameters = ["classifier.bias"]
    assert adapt(model, LoRA(r=4)).head_names == ["classifier.bias"]


def test_the_same_seed_gives_the_same_start_and_another_seed_another():
    """A's start is a function of the seed alone, whatever torch's own random state."""
    def start(seed: int) -> dict:
        torch.manual_seed(torch.seed() % 2**31)
        return {name: branch.lora_A.detach() for name, branch in adapt(tiny(), LoRA(r=4), seed=seed).items()}

    assert same_tensors(start(1), start(1))
    assert not same_tensors(start(1), start(2))
    assert len({float(A[0, 0]) for A in start(1).values()}) == 4


def test_adapting_draws_nothing_from_torchs_own_random_state():
    """With a seed, A's start comes from the rule's own generator: the model's dropout goes on as it would have."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for method in (LoRA(r=4), SaLoRA(r=4), AutoLoRA(r=4), Houlsby(m=4), Pfeiffer(m=4)):
        adapt(tiny(), method, seed=1)
        assert torch.equal(torch.get_rng_state(), before)


def test_mapping_and_plan():
    """By name, in order; the plan counts r (d + k) a site, and its summary all of them."""
    model = tiny("gpt2")
    total = sum(p.numel() for p in model.parameters())
    adapters = adapt(model, LoRA(r=4, lora_alpha=8, sites=("0.q", "1.down"), rank_pattern={"1.down": 2}), seed=0)
    assert list(adapters) == ["0.q", "1.down"]
    assert len(adapters) == 2
    assert adapters.ranks() == {"0.q": 4, "1.down": 2}
    assert isinstance(adapters.owner("0.q"), Adapted)
    with pytest.raises(KeyError, match=r"0\.v.*is not adapted; the sites are 0\.q, 1\.down"):
        adapters["0.v"]
    plan = adapters.plan()
    assert plan.rows == [("0.q", "transformer.h.0.attn.c_attn", 16, 16, 4, 2.0, 4 * 32),
                         ("1.down", "transformer.h.1.mlp.c_proj", 16, 64, 2, 2.0, 2 * 80)]
    assert plan.head == 2 * 16
    assert plan.total == total + 4 * 32 + 2 * 80
    text = str(plan)
    assert "16 × 64" in text
    assert "2 matrices, 288 parameters in branches and 32 in the head" in text
    assert text.splitlines()[-1] in plan._repr_html_().replace("&nbsp;", " ")


def test_a_state_of_other_adapters_is_refused_with_nothing_changed():
    """Other sites, another width, another head; after remove() there is nothing to read and nothing to load into."""
    model = tiny()
    adapters = adapt(model, LoRA(r=4), seed=0)
    shake(adapters)
    before = bytes_of(model)
    for other in (adapt(tiny(), LoRA(r=4, sites="qkv")), adapt(tiny(), LoRA(r=4, sites="q")),
                  adapt(tiny(hidden_size=8, intermediate_size=16), LoRA(r=4)), adapt(tiny(labels=3), LoRA(r=4))):
        with pytest.raises(ValueError, match="state is that of other adapters: it does not fit at"):
            adapters.load_state_dict(*other.state_dict())
    assert same_tensors(bytes_of(model), before)
    stored = adapters.state_dict()
    adapters.remove()
    with pytest.raises(RuntimeError, match="cannot read a state: the adapters are removed"):
        adapters.state_dict()
    with pytest.raises(RuntimeError, match="cannot load a state: the adapters are removed"):
        adapters.load_state_dict(*stored)


# ---- what is no number is not deployed ----------------------------------------------------------------------


@pytest.mark.parametrize("leaf", ["lora_A", "lora_B", "fixed_left", "accumulated_update"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_neither_merged_nor_loaded(leaf, value):
    """The site is named, and nothing is changed; also where it came after the merge."""
    model, at = tiny(), "1.v"
    adapters = adapt(model, LoRA(r=4), seed=0)
    shake(adapters)
    branch = adapters[at]
    branch.fixed_left, branch.fixed_right = torch.zeros(16, 1), torch.zeros(1, 16)
    branch.accumulated_update = torch.zeros(16, 16)
    good = {name: t.clone() for name, t in adapters.state_dict()[0].items()}
    getattr(branch, leaf).data[0, 0] = value
    before = bytes_of(model)
    for call in (adapters.merge, adapters.merge_and_unload):
        with pytest.raises(DivergedError, match=r"not finite at 1\.v, so it was not merged"):
            call()
    assert same_bytes(bytes_of(model), before)
    tensors, values = adapters.state_dict()
    other = adapt(tiny(), LoRA(r=4), seed=1)
    with pytest.raises(DivergedError, match=rf"not finite at branch\.1\.v\.{leaf}, and nothing was changed"):
        other.load_state_dict(tensors, values)
    adapters.load_state_dict(good, values)
    adapters.merge()


def same_bytes(left: dict, right: dict) -> bool:
    """As `same_tensors`, where a nan is the same as itself."""
    return same_tensors(*({name: t.nan_to_num(7.0) for name, t in side.items()} for side in (left, right)))


def test_a_sum_that_w_cannot_hold_is_not_merged():
    """Finite in float32, and above what float16 goes up to."""
    model = tiny(dtype=torch.float16)
    adapters = adapt(model, LoRA(r=4), seed=0)
    with torch.no_grad():
        adapters["0.q"].lora_B.fill_(1e4)
        adapters["0.q"].lora_A.fill_(1e4)
    before = bytes_of(model)
    with pytest.raises(DivergedError, match=r"not finite at 0\.q"):
        adapters.merge()
    assert same_tensors(bytes_of(model), before)
    assert adapters.state == "adapted"


def test_a_head_that_is_not_finite_is_not_merged_either():
    for method in (LoRA(r=4), HeadOnly(), FullFineTuning()):
        adapters = adapt(tiny(), method, seed=0)
        adapters.merge()
        adapters.model.classifier.bias.data[0] = float("nan")
        with pytest.raises(DivergedError, match=r"not finite at classifier\.bias"):
            adapters.merge_and_unload()


# ---- where A starts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*EVERY.values(), METHODS["dylora"](r=4), compose(COLA(r=4), SaLoRA())])
def test_a_start_that_had_no_seed_can_be_given_one(method):
    """As `adapt` would have made it: A of every site, and the noise that is drawn next."""
    given, later = adapt(tiny(), method, seed=7), adapt(tiny(), method)
    start_from(later, 6)
    start_from(later, 7)
    assert same_tensors(given.state_dict()[0], later.state_dict()[0])
    assert torch.equal(given.rule.generator.get_state(), later.rule.generator.get_state())


def test_a_start_is_kept_where_it_was_asked_for_or_has_changed(tmp_path):
    """A seed of its own, values that were put in by hand, from a state or from a file, and a training."""
    def by_hand() -> Adapters:
        shake(adapters := adapt(tiny(), LoRA(r=4)))
        return adapters

    def from_a_state() -> Adapters:
        adapters = adapt(tiny(), LoRA(r=4))
        adapters.load_state_dict(*adapt(tiny(), LoRA(r=4), seed=3).state_dict())
        return adapters

    def from_a_file() -> Adapters:
        lt.save_peft(adapt(tiny(), LoRA(r=4), seed=3), tmp_path)
        return lt.load_peft(tiny(), tmp_path)

    for made in (lambda: adapt(tiny(), LoRA(r=4), seed=3), by_hand, from_a_state, from_a_file,
                 lambda: train(LoRA(r=4), steps=2)[0]):
        adapters = made()
        before = {name: value.clone() for name, value in adapters.state_dict()[0].items()}
        start_from(adapters, 7)
        assert same_tensors(before, adapters.state_dict()[0])


def test_a_start_that_cannot_be_repeated_is_reported():
    """Modules beside the branches are not drawn again; a seed silences it."""
    with pytest.warns(UserWarning, match=r"the start of houlsby was drawn at random.*seed="):
        start_from(adapt(tiny(), METHODS["houlsby"]()), 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start_from(adapt(tiny(), METHODS["houlsby"](), seed=1), 7)


@pytest.mark.parametrize("after", ["merge", "restore", "train"])
@pytest.mark.parametrize("method", [COLA(r=4, knots=(6,)), DeltaLoRA(r=4, K=2), DeltaLoRA(r=4, K=2, lam_end=1.0),
                                    compose(COLA(r=4, knots=(6,)), DeltaLoRA(K=2))], ids=lambda m: m.name)
def test_a_state_stays_what_it_was_whatever_is_written_into_w(method, after):
    """W in a state is a copy: merging, restoring or training on does not change what the state holds of it."""
    adapters, _ = train(method)
    batch, state = make_batch(), adapters.state_dict()
    before, kept = logits(adapters.model, batch), {name: t.clone() for name, t in state[0].items()}
    if after == "train":
        Trainer(adapters, make_rows(64), collate, lt.TrainConfig(steps=12, batch_size=8, lr=1e-2), cpu=True).run()
        assert all(torch.equal(t, kept[name]) for name, t in state[0].items() if name.startswith("base."))
        return
    getattr(adapters, after)()
    adapters.load_state_dict(*state)
    torch.testing.assert_close(logits(adapters.model, batch), before)


def test_inference_mode_is_refused_where_tensors_are_made(tmp_path):
    """What is made in it never trains: adapt, a state and a saved adapter refuse, and the model stays as it was."""
    model = tiny()
    bytes_before = bytes_of(model)
    adapters, _ = train(LoRA(r=2))
    lt.save_peft(adapters, tmp_path)
    stored = adapters.state_dict()
    with torch.inference_mode():
        for refused in (lambda: adapt(model, LoRA(r=2)), lambda: lt.load_peft(model, tmp_path),
                        lambda: adapters.load_state_dict(*stored)):
            with pytest.raises(RuntimeError, match="can never train: do this outside"):
                refused()
        loaded = tiny()
    assert same_tensors(bytes_of(model), bytes_before)
    assert not adapters["0.q"].lora_A.is_inference()
    with pytest.raises(RuntimeError, match=r"was made in torch\.inference_mode\(\)"):
        adapt(loaded, LoRA(r=2))


def test_removed_adapters_are_not_trained():
    """The sentence does not send to restore(), which could not help."""
    adapters = adapt(tiny(), LoRA(r=2))
    adapters.remove()
    with pytest.raises(RuntimeError, match=r"cannot train: the adapters are removed; call adapt\(\) again"):
        Trainer(adapters, make_rows(8), collate, lt.TrainConfig(), cpu=True)

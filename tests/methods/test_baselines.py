"""What the methods are compared with: the same contract for all of it, full fine-tuning's lists, and bottlenecks."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import (
    FAMILIES,
    Stop,
    bytes_of,
    collate_for,
    logits,
    make_batch,
    make_rows,
    rows_for,
    same_tensors,
    tiny,
    train,
    trainer,
)
from tiny_models import place_in
from torch import nn

import lowrank_teach as lt
from lowrank_teach.adapters import adapt
from lowrank_teach.analysis import measures
from lowrank_teach.experiments.fit import site_measures
from lowrank_teach.methods import FullFineTuning, HeadOnly, Houlsby, Method, Pfeiffer
from lowrank_teach.methods.baselines import AFTER_FFN
from lowrank_teach.sites import find_sites, matrix_of, select
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer

BASELINES: dict[str, Method] = {
    "head": HeadOnly(), "full": FullFineTuning(), "full-no-embeddings": FullFineTuning(trains="no_embeddings"),
    "full-qv": FullFineTuning(trains="qv"), "dylora": lt.DyLoRA(r=4), "dylora-frozen": lt.DyLoRA(r=4, frozen=True),
    "houlsby": Houlsby(m=4), "pfeiffer": Pfeiffer(m=4),
    "houlsby-bare": Houlsby(m=4, layer_norms=False, nonlinearity="silu"),
    "pfeiffer-norms": Pfeiffer(m=4, layer_norms=True),
    "adalora": lt.AdaLoRA(r=4, target_r=2), "prefix": lt.PrefixTuning(num_virtual_tokens=4),
    "prefix-projected": lt.PrefixTuning(num_virtual_tokens=4, prefix_projection=True),
    "prompt": lt.PromptTuning(num_virtual_tokens=4),
    "prompt-random": lt.PromptTuning(num_virtual_tokens=4, init="random"),
}
ADDS_POSITIONS = ("prefix", "prefix-projected", "prompt", "prompt-random")
F64 = torch.float64


@pytest.fixture(params=BASELINES)
def name(request) -> str:
    if request.param.partition("-")[0] in ("adalora", "prefix", "prompt"):
        pytest.importorskip("peft")
    return request.param


def losses(outcome) -> list[float]:
    return [value for _, _, what, value in outcome.history if what == "loss"]


def form(model) -> tuple:
    """Whatever can be seen of a model: modules, flags, hooks, and attributes of its own."""
    return ({n: type(m) for n, m in model.named_modules()}, {n: p.requires_grad for n, p in model.named_parameters()},
            sum(len(m._forward_hooks) for m in model.modules()),
            {n: set(vars(m)) - {"_is_accelerate_prepared"} for n, m in model.named_modules()})


# ---- the contract of every baseline -------------------------------------------------------------------------


def test_the_start_the_way_back_and_what_moves(name):
    """Fresh, the function is the pretrained one (but where positions are added); removed, all is as it was.

    In between only what is listed moves, and all of it; the state alone makes the trained function of a fresh model.
    """
    model, batch = tiny(), make_batch()
    at_first, start, look = logits(model, batch), bytes_of(model), form(model)
    adapters = adapt(model, BASELINES[name], seed=0)
    if name not in ADDS_POSITIONS:
        assert torch.equal(logits(model, batch), at_first)
    adapters.remove()
    assert form(model) == look

    made = trainer(BASELINES[name], model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    must, may = made.adapters.listed_names()
    made.run()
    learned = logits(model, batch)
    assert not torch.equal(learned, at_first)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= must | may
    # a key's bias has no gradient by softmax's invariance; unused words and positions have none either; where no
    # rank is left, the singular values have come back to the zero that they began with
    closed = {f"{made.rule.paths[site]}.lora_E.default" for site, rank in made.adapters.ranks().items() if not rank}
    still = {n for n in must - moved if "key.bias" not in n and "position" not in n and "token_type" not in n}
    assert still == closed

    made.adapters.rule.finish()
    other = adapt(tiny(), BASELINES[name], seed=9)
    other.load_state_dict(*made.adapters.state_dict())
    assert torch.equal(logits(other.model, batch), logits(model, batch))
    made.adapters.remove()
    assert same_tensors(bytes_of(model), start)
    assert form(model) == look
    assert torch.equal(logits(model, batch), at_first)


def test_a_layer_whose_units_are_all_closed_is_no_dead_adapter():
    """Where no row opens a unit of the ReLU, U has no gradient; b_U has one, and later rows may open a unit."""
    model = tiny(seed=9)
    made = Trainer(adapt(model, Pfeiffer(m=4), seed=9), make_rows(8, seed=9), collate_for("classification"),
                   TrainConfig(steps=1, batch_size=8, lr=2e-2), seed=9, cpu=True)
    made.run()
    last = model.bert.encoder.layer[1].output.LayerNorm.bottleneck.up
    assert not last.weight.any()
    assert last.bias.any()


def test_ninety_steps_lower_the_loss(name):
    """On the same eight rows each step, so that no other draw of rows hides it.

    Over 20 seeds of model, rows and training the limit lies 4.9 standard deviations or more above the mean end.
    """
    # pretrained weights want a small rate; a head that reads what does not change, and prompts, a large one
    rate = 1e-2 if name.startswith("full") else 3e-2 if name == "head" else 2e-2
    rate = {"prompt": 0.1, "prompt-random": 0.5}.get(name, rate)
    _, outcome = train(BASELINES[name], steps=90, rows=8, lr=rate)
    found = losses(outcome)
    assert all(map(math.isfinite, found))
    assert sum(found[-5:]) < 0.92 * sum(found[:5])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_in(tmp_path_factory.mktemp("place"))


def test_it_is_trained_through_fit_and_stands_in_the_table(name, place, monkeypatch):
    """On a folder's model: a record with metrics, parameters and notes; the same call finds it again."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
    backbone = str(place / "tiny")
    settings = {"steps": 6, "batch_size": 8, "n_train": 48, "progress": False}
    run = lt.fit(BASELINES[name], "rt", backbone, "tiny", **settings)
    assert lt.fit(BASELINES[name], "rt", backbone, "tiny", **settings).key == run.key
    assert Method.from_dict(run.config["method"]) == BASELINES[name]
    counts = run.parameters
    assert counts["trainable"] == counts["adapter"] + counts["head"]
    assert counts["total"] == counts["trainable"] + counts["frozen"]
    assert counts["adapter"] > 0 or name.startswith(("full", "head"))
    table = lt.table({name: run})
    assert table.loc[name, "trainable"] == counts["trainable"]
    assert table.loc[name, "sum of ranks"] == sum(run.ranks.values())
    turned = set(run.history[run.history.name == "cosine"].site)
    assert bool(turned) == name.startswith(("full", "dylora", "adalora"))


@pytest.mark.asset
@pytest.mark.parametrize("short", ["dylora", "houlsby", "pfeiffer", "adalora", "prefix", "prompt"])
def test_it_trains_on_real_weights(short):
    """By its short name on minilm-l3 and real text it learns the 64 rows that it sees again and again.

    Over three or four seeds of head, rows and training the mean of the last eight losses lies 5.7 standard deviations
    (prefix; the others 14 or more) below that of a model that always says one half.
    """
    if short in ("adalora", "prefix", "prompt"):
        pytest.importorskip("peft")
    run = lt.fit(short, "rt", "minilm-l3", "tiny", progress=False, steps=64, lr=1e-2 if short == "prefix" else 3e-3,
                 n_train=64, n_validation=32, n_test=16)
    assert sum(run.series("loss")[1][-8:]) / 8 < math.log(2)


# ---- full fine-tuning, by lists -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_frozen_embeddings_on_every_family(kind):
    """FT†: no table of words or positions trains; every matrix of `sites` does."""
    model = tiny(kind)
    adapters = adapt(model, FullFineTuning(trains="no_embeddings"), seed=0)
    tables = {f"{path}.weight" for path, m in model.named_modules()
              if isinstance(m, nn.Embedding) and "relative" not in path}
    assert tables
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not trains & tables
    assert {f"{site.path}.weight" for site in find_sites(model)} <= trains
    assert set(adapters.listed_names()[0]) == trains


@pytest.mark.parametrize("kind", FAMILIES)
def test_q_and_v_alone_on_every_family(kind):
    """FT‡: all of W_q and W_v moves, and every other matrix, fused or not, keeps its bytes under weight decay."""
    model = tiny(kind, dtype=F64)
    start = {site.name: matrix_of(model, site).clone() for site in find_sites(model)}
    adapters, _ = train(FullFineTuning(trains="qv"), model, weight_decay=0.5, steps=6)
    for site in find_sites(model):
        same = matrix_of(model, site) == start[site.name]
        assert same.all() if site.letter not in "qv" else not same.any(), site.name
    counts = measures.parameter_counts(model, sum(s.d * s.k for s in adapters.rule.still_sites()))
    head = sum(p.numel() for p in adapters.head_parameters())
    assert counts["trainable"] == sum(s.d * s.k for s in select(model, "qv")) + head
    measured = {site for site, what, _ in site_measures(adapters) if what == "cosine"}
    assert measured == {site.name for site in select(model, "qv")}


def test_fused_q_and_v_move_as_if_they_stood_alone():
    """The gradient of k's part is left out before it is clipped: the step is that of a model without it."""
    made = trainer(FullFineTuning(trains="qv"), tiny("gpt2", dtype=F64), callbacks=[Stop(1)], max_grad_norm=1e-3)
    made.run()
    held = [p.grad for group in made.optimizer.param_groups for p in group["params"]]
    assert len(held) == 2 + 1  # c_attn of two layers, each once, and the head
    norm = torch.stack([grad.norm() for grad in held]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    for site in find_sites(made.adapters.model):
        if site.letter in "qkv":
            part = matrix_of(made.adapters.model, site, made.adapters.model.get_parameter(f"{site.path}.weight").grad)
            assert bool(part.any()) == (site.letter != "k")


def test_the_mask_of_a_fused_layer_goes_with_the_method():
    """After `remove`, the same parameter gets its whole gradient again."""
    model = tiny("gpt2")
    adapters, _ = train(FullFineTuning(trains="qv"), model, steps=2)
    adapters.remove()
    model(**make_batch()).loss.backward()
    for site in find_sites(model):
        if site.letter == "k":
            assert matrix_of(model, site, model.get_parameter(f"{site.path}.weight").grad).any()


# ---- bottleneck adapters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("method", [Houlsby(m=3, layer_norms=False), Pfeiffer(m=3)], ids=lambda m: m.name)
def test_bottlenecks_on_every_family(kind, method):
    """Where they stand, how many parameters (2 d m + m + d each), the same function at first, and they train."""
    model, batch = tiny(kind), make_batch()
    before = logits(model, batch)
    adapters = adapt(model, method, seed=0)
    assert torch.equal(logits(model, batch), before)
    d, layers = 16, 4 if kind in ("t5", "bart") else 2
    many = layers * (2 if method.name == "houlsby" else 1)
    counts = measures.parameter_counts(model)
    assert counts["adapter"] == many * (2 * d * method.m + method.m + d) == adapters.plan().extra
    assert f"{counts['adapter']:,} in modules of the method's own" in str(adapters.plan())
    made = Trainer(adapters, make_rows(), collate_for("classification"), TrainConfig(steps=4, batch_size=8, lr=1e-2),
                   cpu=True)
    made.run()  # the loop asserts that each has moved after the first step
    assert not torch.equal(logits(model, batch), before)


@pytest.mark.parametrize(("kind", "head"), [("gpt2", "causal"), ("llama", "causal"), ("opt", "causal"),
                                            ("t5", "seq2seq"), ("bart", "seq2seq"), ("roberta", "tagging")])
@pytest.mark.parametrize("method", [Houlsby(m=4), Pfeiffer(m=4)], ids=lambda m: m.name)
def test_bottlenecks_write_and_tag(kind, head, method):
    """On the same eight rows each step; over 20 seeds of model, rows and training the mean end, 0.77 of the start at
    most, lies 4.8 standard deviations or more below the limit, whatever the cell."""
    model = tiny(kind, head=head)
    made = Trainer(adapt(model, method, seed=0, head=["classifier"] if head == "tagging" else []),
                   rows_for(head, 8), collate_for(head), TrainConfig(steps=50, batch_size=8, lr=2e-2), cpu=True)
    found = losses(made.run())
    assert sum(found[-5:]) < 0.92 * sum(found[:5])
    if head != "tagging":
        out = model.generate(input_ids=make_batch(2)["input_ids"], max_new_tokens=3, do_sample=False)
        assert out.shape[0] == 2


def by_hand(module, h: torch.Tensor) -> torch.Tensor:
    return module.up(torch.relu(module.down(h)))


def filled(model) -> None:
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "bottleneck" in n:
                p.copy_(torch.randn(p.shape, generator=g).to(p))


def test_houlsby_stands_before_the_residual():
    """BERT's attention output is LN(x + h + U f(D h)), its last one LN(x + h + U f(D h)): read off by hand."""
    model = tiny("bert", dtype=F64)
    adapt(model, Houlsby(m=3, nonlinearity="relu"), seed=0)
    filled(model)
    layer = model.bert.encoder.layer[0]
    x, h = torch.randn(2, 5, 16, dtype=F64), torch.randn(2, 5, 16, dtype=F64)
    out = layer.attention.output
    dense = nn.functional.linear(h, out.dense.weight, out.dense.bias)
    wanted = out.LayerNorm(x + dense + by_hand(out.dense.bottleneck, dense))
    torch.testing.assert_close(out(h, x), wanted, rtol=0, atol=1e-12)


def test_pfeiffer_stands_after_the_norm_and_adds_before_it():
    """BERT: LN(s + U f(D LN(s))); GPT-2: s + U f(D s); s is the network's output and the residual."""
    model = tiny("bert", dtype=F64)
    adapt(model, Pfeiffer(m=3), seed=0)
    filled(model)
    out = model.bert.encoder.layer[0].output
    x, h = torch.randn(2, 5, 16, dtype=F64), torch.randn(2, 5, 32, dtype=F64)
    s, norm = x + out.dense(h), out.LayerNorm
    plain = lambda t: nn.functional.layer_norm(t, (16,), norm.weight, norm.bias, norm.eps)  # noqa: E731
    torch.testing.assert_close(out(h, x), plain(s + by_hand(norm.bottleneck, plain(s))), rtol=0, atol=1e-12)

    model = tiny("gpt2", dtype=F64)
    block = model.transformer.h[0]
    x = torch.randn(2, 5, 16, dtype=F64)
    first = lambda y: y[0] if isinstance(y, tuple) else y  # noqa: E731
    s = first(block(x))
    adapt(model, Pfeiffer(m=3), seed=0)
    filled(model)
    torch.testing.assert_close(first(block(x)), s + by_hand(block.bottleneck, s), rtol=0, atol=1e-12)


def test_opt_with_norms_after_the_sum_is_treated_like_bert():
    model = tiny("opt", do_layer_norm_before=False)
    adapters = adapt(model, Pfeiffer(m=3), seed=0)
    assert adapters.extra_names[0].startswith("model.decoder.layers.0.final_layer_norm.bottleneck.")


def test_cross_attention_has_an_adapter_only_where_it_is_named():
    places = {name.split(".bottleneck")[0] for name in adapt(tiny("bart"), Houlsby(m=3), seed=0).extra_names}
    assert not any("encoder_attn" in place for place in places)
    named = adapt(tiny("bart"), Houlsby(m=3, sites=("down", "cross.1.o")), seed=0).extra_names
    assert {name.split(".bottleneck")[0] for name in named if "encoder_attn" in name} == {
        "model.decoder.layers.1.encoder_attn.out_proj"}


def test_layer_norms_train_where_the_paper_trains_them():
    """Houlsby's count is L (2 d m + m + d) + 2 d L_LN; Pfeiffer's has no norms."""
    model = tiny("bert")
    adapters = adapt(model, Houlsby(m=3), seed=0)
    norms = [n for n in adapters.base_names if "LayerNorm" in n]
    assert len(norms) == len(adapters.base_names) == 2 * (1 + 2 * 2)  # the embeddings' and two a layer
    trained = measures.parameter_counts(model)["trainable"] - sum(p.numel() for p in adapters.head_parameters())
    assert trained == 4 * (2 * 16 * 3 + 3 + 16) + 2 * 16 * 5
    assert adapt(tiny("llama"), Pfeiffer(m=3), seed=0).base_names == []
    assert len(adapt(tiny("llama"), Pfeiffer(m=3, layer_norms=True), seed=0).base_names) == 2 * 2 + 1


def test_any_module_can_have_a_bottleneck():
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    adapters = adapt(net, Houlsby(m=2, sites=("2",), layer_norms=False), seed=0, head=[])
    assert adapters.extra_names == [f"2.bottleneck.{n}" for n in ("down.weight", "down.bias", "up.weight", "up.bias")]
    assert adapters.remove() is net
    assert [type(m).__name__ for m in net] == ["Linear", "Tanh", "Linear"]
    with pytest.raises(ValueError, match="use Houlsby, which takes module paths"):
        adapt(net, Pfeiffer(m=2, sites=("2",)), seed=0, head=[])


def test_gradient_checkpointing_and_short_floats():
    """Recomputed activations give the same end; a bfloat16 base carries adapters in float32."""
    ends = []
    for recompute in (False, True):
        adapters, _ = train(Pfeiffer(m=4), tiny("llama", dtype=F64), gradient_checkpointing=recompute)
        ends.append(adapters.extra_parameters())
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    for method in (Houlsby(m=4, layer_norms=False), Pfeiffer(m=4)):
        adapters, outcome = train(method, tiny(dtype=torch.bfloat16))
        assert {p.dtype for p in adapters.extra_parameters()} == {torch.float32}
        assert all(map(math.isfinite, losses(outcome)))


# ---- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("short", ["houlsby", "pfeiffer", "prefix", "prompt"])
def test_what_is_no_change_of_w_is_not_merged(short):
    if short in ("prefix", "prompt"):
        pytest.importorskip("peft")
    adapters = adapt(tiny(), lt.METHODS[short](), seed=0)
    for call in (adapters.merge, adapters.merge_and_unload):
        with pytest.raises(RuntimeError, match=rf"{short} cannot be merged.*keep .* on the model, or use LoRA"):
            call()
    assert adapters.state == "adapted"


def test_wrong_places_are_refused_and_leave_the_model_alone():
    model = tiny()
    look = form(model)
    with pytest.raises(ValueError, match=r"0\.up ends no feed-forward network"):
        adapt(model, Pfeiffer(m=3, sites=("0.up",)), seed=0)
    with pytest.raises(ValueError, match="matches nothing"):
        adapt(model, Houlsby(m=3, sites=("9.o",)), seed=0)
    assert form(model) == look


def test_the_table_of_places_covers_every_architecture():
    from lowrank_teach.sites import ARCHITECTURES

    assert AFTER_FFN.keys() == ARCHITECTURES.keys()

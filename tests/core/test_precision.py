"""A model in a short float: its head, its branches' memory, its evaluation."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    bytes_of,
    collate_for,
    logits,
    make_batch,
    rows_for,
    same_tensors,
    shake,
    tiny,
    train,
    word_tokenizer,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

import lowrank_teach as lt
from lowrank_teach.lowrank import Adapted, LowRank
from lowrank_teach.precision import product
from lowrank_teach.tasks.evaluate import evaluate
from lowrank_teach.tasks.generation import generate

SHORT = [torch.float16, torch.bfloat16]


# ---- a head --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "gpt2", "llama", "t5", "bart"])
def test_a_short_models_head_is_wide_until_it_is_unloaded(kind):
    """Logits in float32 from a float32 head; unloaded, the model is short as a whole and answers alike."""
    model = tiny(kind, dtype=torch.bfloat16)
    before, batch = bytes_of(model), make_batch()
    adapters = lt.adapt(model, lt.LoRA(r=4), seed=0)
    assert {p.dtype for p in adapters.head_parameters()} == {torch.float32}
    wide = logits(model, batch)
    assert wide.dtype == torch.float32
    assert same_tensors(bytes_of(adapters.remove()), before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    found = logits(lt.adapt(model, lt.LoRA(r=4), seed=0).merge_and_unload(), batch)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(found.float(), wide, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("kind", "head", "part"), [
    ("bert", "classification", "bert.embeddings.word_embeddings"), ("bert", "classification", "bert.pooler"),
    ("bert", "classification", "bert.encoder.layer.0.output.LayerNorm"),
    ("llama", "causal", "model.norm"), ("llama", "causal", "lm_head"), ("bart", "seq2seq", "model.encoder.layers.1"),
    ("t5", "seq2seq", "decoder.final_layer_norm"), ("gpt2", "classification", "transformer.h.1.mlp"),
])  # fmt: skip
def test_any_module_can_be_a_short_models_head(kind, head, part):
    """One in the middle of the network hands on what the rest can read; each of its weights moves."""
    model = tiny(kind, head=head, dtype=torch.bfloat16, tie_word_embeddings=False)
    before = bytes_of(model)
    batch = collate_for(head)(rows_for(head, 6))
    adapters = lt.adapt(model, lt.HeadOnly(), head=[part])
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype == torch.float32 for p in adapters.head_parameters())
    assert same_tensors(bytes_of(adapters.remove()), before)


def test_a_head_that_is_tied_to_short_weights_is_refused():
    """The word embeddings would turn float32 with it, and the network could not read them."""
    model = tiny("gpt2", head="causal", dtype=torch.bfloat16)
    before = bytes_of(model)
    with pytest.raises(ValueError, match=r"wte.weight is to train in float32, and is tied to lm_head.weight"):
        lt.adapt(model, lt.LoRA(r=4), head=["transformer.wte"])
    assert same_tensors(bytes_of(model), before)
    lt.adapt(tiny("gpt2", head="causal"), lt.LoRA(r=4), head=["transformer.wte"])


def test_a_part_of_a_layer_in_the_head():
    """A bias trains in float32; the frozen weight beside it is computed with, and comes back as it was."""
    model = tiny(dtype=torch.float16)
    before = bytes_of(model)
    model.lowrank_new_parameters = ["classifier.bias"]
    adapters = lt.adapt(model, lt.LoRA(r=4))
    assert logits(model, make_batch()).isfinite().all()
    assert not model.classifier.weight.requires_grad
    assert same_tensors(bytes_of(adapters.remove()), before)


def test_a_model_that_was_widened_meanwhile_keeps_its_type():
    model = tiny(dtype=torch.bfloat16)
    adapters = lt.adapt(model, lt.LoRA(r=4), head=["classifier", "bert.embeddings.LayerNorm"])
    model.float()
    assert logits(model, make_batch()).isfinite().all()
    adapters.remove()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert logits(model, make_batch()).isfinite().all()


@pytest.mark.parametrize("dtype", SHORT)
def test_an_adapter_of_a_short_model_is_saved_and_loaded(dtype, tmp_path):
    """Factors and head come back in float32 with every bit."""
    adapters, _ = train(lt.LoRA(r=4), tiny(dtype=dtype), steps=6)
    found = lt.load_peft(tiny(dtype=dtype), lt.save_peft(adapters, tmp_path))
    for name, branch in adapters.items():
        assert torch.equal(found[name].lora_A, branch.lora_A)
        assert torch.equal(found[name].lora_B, branch.lora_B)
    for mine, theirs in zip(adapters.head_parameters(), found.head_parameters(), strict=True):
        assert mine.dtype == theirs.dtype == torch.float32
        assert torch.equal(mine, theirs)


# ---- branches on one input -----------------------------------------------------------------------------------


def kept_bytes(call) -> int:
    """Bytes of all that a pass keeps for its backward pass, parameters aside."""
    storages: dict[int, int] = {}

    def pack(t):
        if not isinstance(t, nn.Parameter):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = call()
    assert kept.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", [lt.LoRA, lt.COLA], ids=["lora", "cola"])
def test_a_branch_on_the_same_input_keeps_no_copy_of_it(kind, method):
    """v beside q keeps its r numbers a token; a float32 copy of the input would be sixteen times as much."""
    batch, found = make_batch(), {}
    for sites in ("q", "qv"):
        model = tiny(kind, dtype=torch.bfloat16)
        adapters = lt.adapt(model, method(r=1, sites=sites), head=[], seed=0)
        shake(adapters)
        if method is lt.COLA:  # a knot beside W
            for branch in adapters.values():
                branch.fixed_left, branch.fixed_right = branch.live_factors()
        found[sites] = kept_bytes(lambda model=model: model.train()(**batch).loss)
    tokens, layers, width = batch["input_ids"].numel(), 2, 16
    a_copy = 4 * layers * tokens * width
    assert 0 < found["qv"] - found["q"] < a_copy / 2


@pytest.mark.parametrize("dtype", SHORT)
def test_the_product_is_that_of_a_wide_copy(dtype):
    """Output, gradients of both factors, and gradients of these, up to rounding; for one matrix and for several."""
    torch.manual_seed(0)
    for x, right in ((torch.randn(2, 5, 12), torch.randn(3, 12)), (torch.randn(12), torch.randn(3, 12)),
                     (torch.randn(4, 5, 12), torch.randn(4, 3, 12))):
        x, right = x.to(dtype).requires_grad_(), right.requires_grad_()
        found = []
        for call in (product, lambda x, A: F.linear(x.float(), A) if A.dim() == 2 else torch.bmm(x.float(), A.mT)):
            y = call(x, right)
            first = torch.autograd.grad(y.sin().sum(), [x, right], create_graph=True)
            found.append([y, *first, *torch.autograd.grad(sum(g.float().square().sum() for g in first), [x, right])])
        for mine, theirs in zip(*found, strict=True):
            assert mine.dtype == theirs.dtype
            gap = (mine.float() - theirs.float()).norm()
            assert gap <= 2 * torch.finfo(mine.dtype).eps * theirs.float().norm()


def pair(dtype=torch.bfloat16, dropout: float = 0.0):
    """q and v on one input."""
    torch.manual_seed(0)
    layers = nn.ModuleList()
    for name in ("q", "v"):
        branch = LowRank(8, 6, 2, dropout=dropout)
        nn.init.normal_(branch.lora_B)
        layers.append(Adapted(nn.Linear(8, 6).to(dtype), {name: (branch, None)}))
    return layers, lambda x: sum(layer(x) for layer in layers).float().square().sum()


def gradients(layers, call, x):
    layers.zero_grad()
    torch.manual_seed(1)
    call(x).backward()
    return [p.grad.clone() for p in layers.parameters() if p.grad is not None]


@pytest.mark.parametrize("how", ["compiled", "recomputed", "recomputed, with dropout"])
def test_the_gradients_are_the_same(how):
    layers, call = pair(dropout=0.5 if "dropout" in how else 0.0)
    x = torch.randn(3, 8).bfloat16()
    plain = gradients(layers, call, x)
    other = torch.compile(call, backend="aot_eager") if how == "compiled" else \
        lambda x: checkpoint(call, x, use_reentrant=False)
    assert len(plain) == 4
    for mine, theirs in zip(gradients(layers, other, x), plain, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_an_input_that_is_overwritten_is_noticed():
    """The next branch reads what is there now; for a gradient torch refuses, as of a linear layer that trains."""
    layers, call = pair()
    x = torch.randn(3, 8).bfloat16()
    with torch.no_grad():
        layers[0](x)
        assert torch.equal(layers[1](x.mul_(2)), layers[1](x.clone()))
    loss = call(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_nothing_is_held_after_the_pass():
    _, call = pair()
    x = torch.randn(3, 8).bfloat16()
    seen = weakref.ref(x)
    call(x).backward()
    del x
    assert seen() is None


# ---- evaluation and texts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize(("kind", "head"), [("bert", "classification"), ("bert", "tagging"), ("llama", "causal"),
                                            ("gpt2", "causal"), ("bart", "seq2seq"), ("t5", "seq2seq")])
def test_a_short_model_is_evaluated_and_writes(kind, head, dtype):
    """The loss is that of the float32 model up to the type's rounding; texts are written in all three ways."""
    rows, of_rows, found = rows_for(head, 6), collate_for(head), []
    task = SimpleNamespace(name=head, kind="seq2seq" if head == "causal" else head, metrics=[], labels=("a", "b"))
    for held in (torch.float32, dtype):
        changes = {"initializer_factor": 2.0} if kind == "t5" else {}  # its own start is so small that none writes
        model = tiny(kind, head=head, dtype=held, **changes)
        adapters = lt.adapt(model, lt.LoRA(r=4), seed=0)
        shake(adapters, scale=0.1)
        found.append(evaluate(model, rows, of_rows, task)["loss"])
        if task.kind == "seq2seq":
            for how in ({}, {"num_beams": 2}, {"temperature": 1.0}):
                texts = generate(model, rows, word_tokenizer(), max_new_tokens=3, **how)
                assert len(texts) == 6
                assert any(texts)
    assert found[1] == pytest.approx(found[0], rel=0.05)

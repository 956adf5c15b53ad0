"""LoRA is the reference: against `peft`, against dense matrices by hand, and on GPT-2's fused layer."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import logits, make_batch, shake, tiny, train, trainer
from peft import LoraConfig, get_peft_model
from torch import Tensor

from lowrank_teach.adapters import adapt
from lowrank_teach.methods import LoRA

PEFT_NAMES = {"bert": ("query", "value"), "distilbert": ("q_lin", "v_lin"), "llama": ("q_proj", "v_proj"),
              "t5": ("q", "v")}


def with_peft(model, kind: str, r: int, alpha: float, ours) -> tuple:
    """peft's own LoRA on the same matrices with the same A and B; site -> (its A, its B)."""
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=list(PEFT_NAMES[kind]), lora_dropout=0.0)
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    pairs = {}
    for name, site in ours.sites.items():
        layer = wrapped.base_model.model.get_submodule(site.path)
        pairs[name] = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        with torch.no_grad():
            pairs[name][0].copy_(ours[name].lora_A)
            pairs[name][1].copy_(ours[name].lora_B)
    return wrapped, pairs


def twins(kind: str, dtype: torch.dtype = torch.float64, r: int = 4, alpha: float = 12.0, moved: bool = True):
    model = tiny(kind, dtype=dtype)
    other = copy.deepcopy(model)
    ours = adapt(model, LoRA(r=r, lora_alpha=alpha), seed=0, head=[])
    if moved:
        shake(ours)
    return ours, *with_peft(other, kind, r, alpha, ours)


@pytest.mark.parametrize("kind", list(PEFT_NAMES))
def test_outputs_and_gradients_equal_peft(kind):
    """Given the same A, B, r and α, logits and the gradients of A and B are those of `peft`."""
    ours, theirs, pairs = twins(kind)
    batch = make_batch()
    mine, other = ours.model(**batch), theirs(**batch)
    assert (mine.logits - other.logits).abs().max() < 1e-12
    mine.loss.backward()
    other.loss.backward()
    assert set(pairs) == set(ours)
    for name, (A, B) in pairs.items():
        assert ours[name].lora_A.grad.abs().max() > 0
        assert torch.allclose(ours[name].lora_A.grad, A.grad, rtol=1e-9, atol=1e-13)
        assert torch.allclose(ours[name].lora_B.grad, B.grad, rtol=1e-9, atol=1e-13)


def test_the_loop_is_adamw_by_hand():
    """The Trainer's run is plain AdamW with the linear schedule, written out here with `peft` as the model."""
    made = trainer(LoRA(r=4), tiny(dtype=torch.float64), steps=20, weight_decay=0.1, warmup=0.25,
                   max_grad_norm=0.3)
    other = tiny(dtype=torch.float64)
    theirs, pairs = with_peft(other, "bert", 4, 16.0, made.adapters)
    head = [p for n, p in theirs.named_parameters() if "classifier" in n]
    for p in head:
        p.requires_grad_(True)
    parameters = [p for pair in pairs.values() for p in pair] + head
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    norms = []
    for step in range(1, 21):
        rate = step / 5 if step <= 5 else (20 - step + 1) / (20 - 5 + 1)
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        optimizer.zero_grad()
        theirs(**made._batches("train", step)[0]).loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 0.3)))
        optimizer.step()
    outcome = made.run()
    assert max(norms) > 0.3
    assert [row[3] for row in outcome.history if row[2] == "grad_norm"] == pytest.approx(norms, rel=1e-8)
    for name, (A, B) in pairs.items():
        assert torch.allclose(made.adapters[name].lora_A, A, rtol=0, atol=1e-8)
        assert torch.allclose(made.adapters[name].lora_B, B, rtol=0, atol=1e-8)
    for p, q in zip(made.adapters.head_parameters(), head, strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-8)


# ---- GPT-2's fused layer ------------------------------------------------------------------------------------


def attention_by_hand(x: Tensor, weights: dict[str, Tensor], biases: dict[str, Tensor], out, heads: int) -> Tensor:
    """Causal attention from three separate dense matrices W (d, k), written out."""
    rows, length, width = x.shape
    q, k, v = (x @ weights[c].T + biases[c] for c in "qkv")
    q, k, v = (t.view(rows, length, heads, width // heads).transpose(1, 2) for t in (q, k, v))
    scores = q @ k.mT / (width // heads) ** 0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, width)
    return mixed @ out.weight + out.bias


def test_fused_layer_equals_three_dense_matrices():
    """q and v of c_attn are adapted apart: output and gradients of A, B and x are the dense reference's."""
    model = tiny("gpt2", dtype=torch.float64)
    adapters = adapt(model, LoRA(r=3, lora_alpha=6), seed=0)
    shake(adapters)
    attention = model.transformer.h[0].attn
    W = attention.c_attn.W.clone()
    bias = attention.c_attn.bias.detach()
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    seed = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    inputs = [x, *(p for c in "qv" for p in (adapters[f"0.{c}"].lora_A, adapters[f"0.{c}"].lora_B))]
    found_h = attention(x)[0]
    found = torch.autograd.grad((found_h * seed).sum(), inputs)
    weights = {c: W[i * 16:(i + 1) * 16] for i, c in enumerate("qkv")}
    for c in "qv":
        branch = adapters[f"0.{c}"]
        weights[c] = weights[c] + 2.0 * branch.lora_B @ branch.lora_A
    biases = {c: bias[i * 16:(i + 1) * 16] for i, c in enumerate("qkv")}
    hand = attention_by_hand(x, weights, biases, attention.c_proj, heads=2)
    assert (found_h - hand).abs().max() < 1e-12
    for mine, theirs in zip(found, torch.autograd.grad((hand * seed).sum(), inputs), strict=True):
        assert theirs.abs().max() > 1e-3
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-11)
    assert attention.c_attn.base.weight.grad is None


def test_fused_layer_leaves_the_slice_of_k_alone():
    """Training and merging q and v changes not one byte of k's third, nor of any bias."""
    model = tiny("gpt2")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapters, _ = train(LoRA(r=4), model)
    adapters.merge()
    for path, owner in adapters.owners.items():
        old, new = before[f"{path}.weight"], owner.base.weight
        assert torch.equal(new[:, 16:32], old[:, 16:32])
        assert not torch.equal(new[:, :16], old[:, :16])
        assert not torch.equal(new[:, 32:], old[:, 32:])
        assert torch.equal(owner.base.bias, before[f"{path}.bias"])


# ---- scaling and patterns -----------------------------------------------------------------------------------


def test_alpha_over_r_is_the_only_scale():
    """α doubled doubles ΔW; r doubled at equal α halves s."""
    def s(**values) -> float:
        return adapt(tiny(), LoRA(**values), seed=0)["0.q"].scaling

    assert s(r=8, lora_alpha=16) == 2.0
    assert s(r=8, lora_alpha=32) == 4.0
    assert s(r=4, lora_alpha=16) == 4.0


def test_rank_pattern_keeps_s_unless_alpha_is_fixed():
    """A site of another rank keeps α / r of the method, or divides the same α by its own rank; 0 leaves it out."""
    pattern = {"0.q": 2, "1.v": 0}
    kept = adapt(tiny(), LoRA(r=8, rank_pattern=pattern), seed=0)
    assert kept.ranks() == {"0.q": 2, "0.v": 8, "1.q": 8}
    assert {name: branch.scaling for name, branch in kept.items()} == {"0.q": 2.0, "0.v": 2.0, "1.q": 2.0}
    fixed = adapt(tiny(), LoRA(r=8, rank_pattern=pattern, fixed_alpha=True), seed=0)
    assert {name: branch.scaling for name, branch in fixed.items()} == {"0.q": 8.0, "0.v": 2.0, "1.q": 2.0}
    named = adapt(tiny(), LoRA(r=8, rank_pattern=pattern, alpha_pattern={"0.q": 6, "0.v": 4}), seed=0)
    assert {name: branch.scaling for name, branch in named.items()} == {"0.q": 3.0, "0.v": 0.5, "1.q": 2.0}


def test_dropout_of_the_branch_changes_training_and_not_evaluation():
    """With p = 0.5 the loss differs from step 2 on; in eval mode the trained model is deterministic."""
    losses = []
    for p in (0.0, 0.5):
        adapters, outcome = train(LoRA(r=4, lora_dropout=p), steps=4)
        losses.append([row[3] for row in outcome.history if row[2] == "loss"])
        assert torch.equal(logits(adapters.model, make_batch()), logits(adapters.model, make_batch()))
    assert losses[0][0] == losses[1][0]  # B = 0: what is dropped in the branch is not seen yet
    assert losses[0][2] != losses[1][2]

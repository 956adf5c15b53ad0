"""Every family with every head it has: adapted, trained by each method, merged, given back, stored and loaded."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import (
    EOS,
    FAMILIES,
    PAD,
    bytes_of,
    collate_for,
    gap,
    logits,
    rows_for,
    same_tensors,
    shake,
    tiny,
    word_tokenizer,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrank_teach.adapters import Adapters, adapt
from lowrank_teach.methods import COLA, AutoLoRA, DeltaLoRA, LoRA, Method, SaLoRA
from lowrank_teach.models.backbones import load_backbone
from lowrank_teach.tasks.evaluate import evaluate
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.tasks.tokenize import encode
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer

HEADS = {**dict.fromkeys(("bert", "roberta", "distilbert", "mpnet"), ("classification", "tagging")),
         "gpt2": ("classification", "tagging", "causal"), "opt": ("classification", "causal"),
         "llama": ("classification", "tagging", "causal"), "t5": ("classification", "tagging", "seq2seq"),
         "bart": ("classification", "seq2seq")}
METHODS: dict[str, Method] = {
    "lora": LoRA(r=4), "cola": COLA(r=4, chain=2), "salora": SaLoRA(r=4, eta_c=0.5, t_end=6),
    "delta_lora": DeltaLoRA(r=4, K=2), "autolora": AutoLoRA(r=4, eta_beta=0.05, retrain=False)}
# published members of a family that differ in the layer's own code
MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt-350m": ("opt", {"word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "t5-v1.1": ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart-scaled": ("bart", {"scale_embedding": True}),
    "gpt2-by-layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
}
CELLS = [(kind, head) for kind, heads in HEADS.items() for head in heads]
LABELS = 3


def trained(model: Any, method: Method, head: str, **config: Any) -> tuple[Adapters, list[float]]:
    """The adapters after a short training, and the mean loss of all rows before and after it, in eval mode.

    Eight rows, each four times, so that what AutoLoRA holds out is trained on too; it takes more and smaller steps.
    Over 12 to 20 seeds of model, rows and training, with bfloat16 weights, the end lies 4 standard deviations or more
    below the start wherever it was measured (AutoLoRA on 14 pairs of model and head, the encoders with the others).
    """
    rows, collate = 4 * rows_for(head, 8, labels=LABELS), collate_for(head)
    adapters = adapt(model, method, seed=0)
    ends = [mean_loss(model, rows, collate)]
    length = {"steps": 48, "lr": 1e-2} if method.name == "autolora" else {"steps": 16, "lr": 2e-2}
    settings = TrainConfig(**{"batch_size": 16, **length, **config})
    outcome = Trainer(adapters, rows, collate, settings, seed=0, cpu=True).run()
    assert all(torch.isfinite(torch.tensor(value)) for _, _, _, value in outcome.history)
    model.eval()
    return adapters, [*ends, mean_loss(model, rows, collate)]


@torch.no_grad()
def mean_loss(model: Any, rows: list[dict[str, Any]], collate: Any) -> float:
    return float(model(**collate(rows)).loss)


def batch_for(head: str) -> dict[str, Tensor]:
    return collate_for(head)(rows_for(head, 7, labels=LABELS, seed=5))


# ---- the whole life of an adaptation ----------------------------------------------------------------------


# each family with each method and with each of its heads; each method with each kind of head
@pytest.mark.parametrize(("kind", "head", "name"), [
    (kind, heads[(i + j) % len(heads)], name) for j, (kind, heads) in enumerate(HEADS.items())
    for i, name in enumerate(METHODS)])
def test_train_merge_restore_store_and_load(kind, head, name, tmp_path):
    live_through(lambda: tiny(kind, head=head, labels=LABELS, dtype=torch.float64), METHODS[name], head, tmp_path)


@pytest.mark.parametrize(("member", "head", "name"), [
    (member, head, list(METHODS)[i % 5]) for i, (member, head) in enumerate(
        (member, head) for member in MEMBERS for head in HEADS[MEMBERS[member][0]])])
def test_members_that_differ(member, head, name, tmp_path):
    """Embeddings of another width, tied heads, gated layers, scaled embeddings: all matrices adapted."""
    kind, changes = MEMBERS[member]
    method = type(METHODS[name])(**{**vars(METHODS[name]), "sites": "all"})
    live_through(lambda: tiny(kind, head=head, labels=LABELS, dtype=torch.float64, **changes), method, head, tmp_path)


def live_through(make: Any, method: Method, head: str, folder: Path) -> None:
    """Loss down, every branch moved, nothing else touched; merge, restore and a stored state keep the function."""
    model, batch = make(), batch_for(head)
    start, untouched = bytes_of(model), logits(model, batch)
    adapters, (before, after) = trained(model, method, head)
    assert after < before
    assert all(branch.delta().any() or not branch.r for branch in adapters.values())  # SaLoRA may close a site
    moved = logits(model, batch)
    assert gap(moved, untouched) > 1e-3
    owned = {f"{path}.base.weight" for path in adapters.owners}
    for key, value in model.state_dict().items():
        old = start.get(key.replace(".base.", "."))
        if old is not None and key not in owned:
            assert torch.equal(value, old) != (key in adapters.head_names), key

    tensors, values = adapters.state_dict()
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "state.safetensors")
    other = adapt(make(), method, seed=9)
    other.load_state_dict(load_file(folder / "state.safetensors"), values)
    for gate in other.rule.gates().values() if hasattr(other.rule, "gates") else ():
        gate.phase = "folded"  # the phase belongs to the rule's own state
    assert torch.equal(logits(other.model, batch), moved)
    other.merge()
    assert gap(logits(other.model, batch), moved) < 1e-12

    adapters.merge()
    assert gap(logits(model, batch), moved) < 1e-12
    adapters.restore()
    for path, owner in adapters.owners.items():
        assert torch.equal(owner.base.weight, start[f"{path}.weight"])
    assert gap(logits(model, batch), moved) < 1e-12
    adapters.remove()
    assert same_tensors(bytes_of(model), start)
    assert torch.equal(logits(model, batch), untouched)


# ---- less memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "head", "name"), [
    (kind, heads[-1], name) for (kind, heads), name in zip(HEADS.items(), itertools.cycle(METHODS), strict=False)
    if kind != "mpnet"])
def test_gradient_checkpointing_changes_no_number(kind, head, name):
    """Activations computed twice give the same losses, with dropout too (the masks are drawn once)."""
    losses = []
    for recompute in (False, True):
        model = tiny(kind, head=head, labels=LABELS, dtype=torch.float64, dropout=0.1)
        _, ends = trained(model, METHODS[name], head, gradient_checkpointing=recompute, steps=6)
        losses.append(ends)
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.parametrize("kind", ["unrolled", "finite_difference", "betty", "first_order"])
def test_checkpointing_sees_the_virtual_step_of_autolora(kind):
    """The two-level gradient is taken at weights that are not the model's own; recomputing must not mix them up."""
    alphas = []
    for recompute in (False, True):
        method = AutoLoRA(r=4, eta_beta=0.05, retrain=False, hypergradient=kind)
        adapters, _ = trained(tiny("gpt2", dtype=torch.float64, labels=LABELS, dropout=0.1), method,
                              "classification", gradient_checkpointing=recompute, steps=4)
        alphas.append(torch.stack([branch.gate().detach() for branch in adapters.values()]))
    assert float((alphas[0] - 1 / 4).abs().max()) > 0.01
    torch.testing.assert_close(alphas[1], alphas[0], rtol=1e-12, atol=1e-12)


def test_a_family_that_cannot_recompute_is_refused():
    """transformers' MPNet has no gradient checkpointing: a sentence, not an attribute error."""
    with pytest.raises(ValueError, match=r"MPNetForSequenceClassification cannot recompute .* \(accumulation\)"):
        trained(tiny("mpnet", labels=LABELS), LoRA(r=4), "classification", gradient_checkpointing=True)


@pytest.mark.parametrize(("kind", "head", "name"), [
    (*cell, name) for cell, name in zip(CELLS, itertools.cycle(reversed(METHODS)), strict=False)])
def test_bfloat16_weights(kind, head, name):
    """Branches stay in float32 and learn; W's bytes come back; merged logits agree to bfloat16's rounding."""
    model, batch = tiny(kind, head=head, labels=LABELS, dtype=torch.bfloat16), batch_for(head)
    start = bytes_of(model)
    adapters, (before, after) = trained(model, METHODS[name], head)
    assert after < before
    assert all(branch.lora_A.dtype == torch.float32 and (branch.delta().any() or not branch.r)
               for branch in adapters.values())
    moved = logits(model, batch).float()
    adapters.merge()
    assert gap(logits(model, batch).float(), moved) < 0.1
    adapters.restore()
    assert all(torch.equal(owner.base.weight, start[f"{path}.weight"]) for path, owner in adapters.owners.items())


# ---- what is particular about a family --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mpnet", "t5"])
def test_relative_positions_are_left_alone_and_count(kind):
    """The table of relative positions is no site, does not train, and still decides."""
    model = tiny(kind, labels=LABELS, dtype=torch.float64)
    adapters, _ = trained(model, LoRA(r=4, sites="all"), "classification")
    tables = {name: p for name, p in model.named_parameters() if "relative_attention_bias" in name}
    assert tables
    assert not any(p.requires_grad or name in adapters.head_names for name, p in tables.items())
    batch = batch_for("classification")
    before = logits(model, batch)
    with torch.no_grad():
        for table in tables.values():
            table.add_(torch.randn(table.shape, generator=torch.Generator().manual_seed(0)))
    assert gap(logits(model, batch), before) > 1e-3


@pytest.mark.parametrize(("kind", "head", "shared"), [
    ("bart", "seq2seq", ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")),
    ("bart", "classification", ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens")),
    ("t5", "seq2seq", ("shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head")),
    ("gpt2", "causal", ("transformer.wte", "lm_head")), ("opt", "causal", ("model.decoder.embed_tokens", "lm_head"))])
def test_shared_embeddings_stay_one_and_cannot_be_adapted_by_a_side_door(kind, head, shared):
    """One tensor under several names before and after; its output layer is refused as a site."""
    model = tiny(kind, head=head, labels=LABELS)
    adapters, _ = trained(model, LoRA(r=4), head)
    assert len({model.get_submodule(name).weight.data_ptr() for name in shared}) == 1
    adapters.remove()
    if shared[-1] == "lm_head":
        with pytest.raises(ValueError, match="lm_head is tied to"):
            adapt(model, LoRA(r=4, sites=("lm_head",)))


# ---- classification of padded rows ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_padded_rows_logits_are_its_own(kind):
    """Decoders read the last token that is no pad, encoder-decoders their end: whatever stands beside the row."""
    model = tiny(kind, labels=LABELS, dtype=torch.float64)
    adapters = adapt(model, LoRA(r=4, sites="all"), seed=0)
    shake(adapters)
    rows, collate = rows_for("classification", 9, labels=LABELS), collate_for("classification")
    together = logits(model, collate(rows))
    assert len({len(row["input_ids"]) for row in rows}) > 2
    assert gap(together[:1], together[1:2]) > 1e-3
    for i, row in enumerate(rows):
        assert gap(logits(model, collate([row]))[0], together[i]) < 1e-12
    task = TASKS["trec"]
    assert evaluate(model, rows, collate, task, batch_size=9) == \
        pytest.approx(evaluate(model, rows, collate, task, batch_size=1), rel=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_a_decoder_whose_pad_is_its_end(kind):
    """Tokenizers without a pad are given the end of text as one: rows without an end in them lose nothing by it."""
    model = tiny(kind, labels=LABELS, dtype=torch.float64, pad_token_id=EOS)
    ids = [[5, 6, 7], [8, 9, 10, 11, 12], [13]]
    longest = torch.full((3, 5), EOS)
    for i, row in enumerate(ids):
        longest[i, :len(row)] = torch.tensor(row)
    mask = torch.tensor([[1] * len(row) + [0] * (5 - len(row)) for row in ids])
    together = logits(model, {"input_ids": longest, "attention_mask": mask})
    for i, row in enumerate(ids):
        assert gap(logits(model, {"input_ids": torch.tensor([row])})[0], together[i]) < 1e-12


def test_an_empty_text_is_an_end_and_nothing_else():
    """GPT-2's tokenizer makes no token of it, and a row of no tokens has no last one to read."""
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    task = TASKS["cola"]
    rows = encode(pd.DataFrame({"sentence": ["", "5 6 7"], "label": [0, 1]}), task, tokenizer)
    assert [row["input_ids"] for row in rows] == [[EOS], [5, 6, 7]]
    model, collate = tiny("gpt2", dtype=torch.float64), collate_for("classification")
    assert gap(logits(model, collate(rows))[:1], logits(model, collate(rows[:1]))) < 1e-12


# ---- from a folder ----------------------------------------------------------------------------------------

NEW = {  # what a bare checkpoint lacks, by head
    ("bert", "classification"): {"classifier"}, ("bert", "tagging"): {"classifier"},
    ("roberta", "classification"): {"classifier.dense", "classifier.out_proj"},
    ("roberta", "tagging"): {"classifier"},
    ("distilbert", "classification"): {"pre_classifier", "classifier"}, ("distilbert", "tagging"): {"classifier"},
    ("mpnet", "classification"): {"classifier.dense", "classifier.out_proj"}, ("mpnet", "tagging"): {"classifier"},
    ("gpt2", "classification"): {"score"}, ("gpt2", "tagging"): {"classifier"}, ("opt", "classification"): {"score"},
    ("llama", "classification"): {"score"}, ("llama", "tagging"): {"score"},
    ("t5", "classification"): {"classification_head.dense", "classification_head.out_proj"},
    ("t5", "tagging"): {"classifier"},
    ("bart", "classification"): {"classification_head.dense", "classification_head.out_proj"},
}


@pytest.mark.parametrize(("kind", "head", "dtype"), [
    *((*cell, torch.float32) for cell in CELLS), ("t5", "seq2seq", torch.bfloat16),
    ("gpt2", "causal", torch.bfloat16)])
def test_load_backbone_finds_the_new_head_and_it_trains(kind, head, dtype, tmp_path):
    """From a stored network: its weights arrive, the head alone is new, and `adapt` trains the branches and it."""
    own = HEADS[kind][-1]  # a decoder is stored with its own head, as it is published
    stored = tiny(kind, head=own)
    (stored if own in ("causal", "seq2seq") else stored.base_model).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    classes = {"num_labels": LABELS} if head in ("classification", "tagging") else {}
    model, tokenizer = load_backbone(str(tmp_path), kind=head, dtype=dtype, **classes)
    assert tokenizer.pad_token_id == PAD
    assert {name.rpartition(".")[0] for name in model.lowrank_new_parameters} - {"bert.pooler.dense"} == \
        NEW.get((kind, head), set())
    assert {p.dtype for p in model.parameters()} == {dtype}
    adapters, (before, after) = trained(model, LoRA(r=4), head)
    assert after < before
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trains if "lora_" not in name} == set(model.lowrank_new_parameters)
    assert len(adapters) == len([name for name in trains if name.endswith("lora_A")])


@pytest.mark.asset
@pytest.mark.parametrize(("head", "task"), [("classification", "trec"), ("tagging", "wnut16")])
def test_the_real_t5_reads_too(head, task):
    """As a classifier and as a tagger: the new head and the branches learn from real rows of unlike lengths."""
    t = TASKS[task]
    model, tokenizer = load_backbone("flan-t5-small-titles", kind=head, num_labels=len(t.labels))
    texts = [f"{word} is what the question asks about" + " really" * i for i, word in enumerate("abcdefgh")]
    labels = [[i % 5 for i, _ in enumerate(text.split())] if head == "tagging" else i % 6
              for i, text in enumerate(texts)]
    frame = pd.DataFrame({t.text[0]: [x.split() for x in texts] if head == "tagging" else texts, t.label: labels})
    rows, collate = encode(frame, t, tokenizer), collate_for(head)
    adapters = adapt(model, LoRA(r=4), seed=0)
    before = mean_loss(model, rows, collate)
    Trainer(adapters, rows, collate, TrainConfig(steps=6, batch_size=8, lr=3e-3), cpu=True).run()
    model.eval()
    assert mean_loss(model, rows, collate) < before
    assert evaluate(model, rows, collate, t, batch_size=8)["loss"] == pytest.approx(
        evaluate(model, rows, collate, t, batch_size=1)["loss"], rel=1e-3)

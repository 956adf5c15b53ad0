"""What the plan counts is what a training holds; a bf16 base, recomputed activations and 4-bit codes train."""

from __future__ import annotations

import json
from typing import Any

import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import collate, make_batch, make_rows, tiny
from tiny_models import command, data_folder, model_folder
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import lowrank_teach as lt
from lowrank_teach.experiments.compare import LINEUP
from lowrank_teach.experiments.fit import site_measures
from lowrank_teach.experiments.memory import GIB, NF4_TABLES, MemoryPlan, plan_memory
from lowrank_teach.experiments.runs import config_key
from lowrank_teach.lowrank import dequantized, numel
from lowrank_teach.methods import COLA, AutoLoRA, DeltaLoRA, FullFineTuning, LoRA, Method, SaLoRA
from lowrank_teach.models import backbones
from lowrank_teach.models.backbones import DIMENSIONS, config_of, meta_model
from lowrank_teach.sites import HEADS
from lowrank_teach.training.config import fit_to_profile
from lowrank_teach.training.trainer import Trainer

# ---- stored runs are still found ------------------------------------------------------------------------

# of no rows and no weights, computed when a key took every value of a training; those of cola, salora and autolora
# when all methods got one start of A, salora its fold and autolora its rule for counting
KEYS_OF_BEFORE = {
    "tiny": {"head": "94175199ebf14ad2", "lora": "cebb3bd5e49e8444", "cola-3": "5753281adb7bb951",
             "delta_lora": "d1038a885a77f641"},
    "laptop": {"lora": "cf930d9a9b469e15", "salora": "e2aaad5caf68f721", "autolora": "35ab8cd81c838236"},
    "gpu": {"lora": "2e8002697af3fb03"},
}


@pytest.mark.parametrize(("profile", "label"), [(p, m) for p, keys in KEYS_OF_BEFORE.items() for m in keys])
def test_the_key_of_a_default_configuration_is_unchanged(profile, label):
    def key(**training: Any) -> str:
        config = {"method": fit_to_profile(LINEUP[label], profile).to_dict(), "task": "rt", "backbone": "minilm-l6",
                  "seed": 0, "profile": profile, "training": lt.train_config(profile, **training).to_dict()}
        return config_key(json.loads(json.dumps(config)), made_by="0.2.0")

    assert key() == KEYS_OF_BEFORE[profile][label]
    assert key(base_dtype="float32", label_smoothing=0) == key()
    assert len({key(), key(base_dtype="bfloat16"), key(label_smoothing=0.1)}) == 3


# ---- the dimensions -------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", DIMENSIONS)
def test_a_model_of_the_table_has_the_checkpoints_parameters(name):
    model = meta_model(name)
    head = sum(p.numel() for n, p in model.named_parameters() if n.split(".")[0] in HEADS)
    assert sum(p.numel() for p in model.parameters()) - head == DIMENSIONS[name].parameters
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert config_of(DIMENSIONS[name].hub).to_dict() == config_of(name).to_dict()


def test_a_name_that_there_is_not():
    with pytest.raises(backbones.CheckpointError,
                       match=r"no backbone 'lama-7b'.*models known by their dimensions alone: "):
        plan_memory(LoRA(), "lama-7b")


# ---- the plan against a training ------------------------------------------------------------------------

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT that is large enough for its activations to stand out, and small enough to train at once."""
    return str(model_folder(tmp_path_factory.mktemp("model") / "m", hidden_size=64, intermediate_size=256,
                            num_attention_heads=4, num_hidden_layers=4, max_position_embeddings=128))


METHODS: dict[str, Method] = {
    "lora": LoRA(r=4), "cola": COLA(r=4, knots=(1,)), "salora": SaLoRA(r=4, eta_c=1.5, t_start=0, t_end=2),
    "delta": DeltaLoRA(r=4, K=1), "full": FullFineTuning(), "head": lt.HeadOnly(),
}


def held(adapters: lt.Adapters, optimizer: Any, base: set[int]) -> dict[str, int]:
    """Bytes that there are after a step, by part."""
    def total(tensors: Any) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    head = {id(p) for p in adapters.head_parameters()}
    own = [p for p in adapters.model.parameters() if id(p) not in base]
    return {"weights": total(p for p in adapters.model.parameters() if id(p) in base - head),
            "head": total(adapters.head_parameters()), "branches": total(own),
            "kept": total(o._pretrained for o in adapters.owners.values() if o._pretrained is not None),
            "gradients": total(p.grad for p in adapters.model.parameters() if p.grad is not None),
            "moments": total(v for state in optimizer.state.values() for v in state.values())}


@pytest.mark.parametrize("name", METHODS)
def test_what_stays_is_counted_exactly(folder, name):
    """Weights, branches, head, gradients, moments and the copies of W: byte for byte those of a training."""
    model, _ = lt.load_backbone(folder, num_labels=2)
    base = {id(p) for p in model.parameters()}
    adapters = lt.adapt(model, METHODS[name], seed=0)
    trainer = Trainer(adapters, [{"input_ids": [5, 6, 7, 8], "labels": i % 2} for i in range(16)], collate,
                      lt.TrainConfig(steps=3, batch_size=8, best=False), cpu=True)
    seen: dict[str, int] = {}
    last = 1 if name == "salora" else 2  # then its gates are pruned
    trainer.callbacks = [helpers.Watch(lambda step, values: seen.update(held(adapters, trainer.optimizer, base))
                                       if step == last else None)]
    trainer.run()
    planned = plan_memory(METHODS[name], folder, lt.TrainConfig(batch_size=8), length=4)
    for part, found in seen.items():
        assert getattr(planned, part) == found, part


def peak(model: nn.Module, batch: dict[str, Tensor]) -> int:
    """The most that a forward and backward pass holds beyond what was there: every allocation of the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model(**batch).loss.backward()
    now = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def real_peak(name: str, kind: str, rows: int, length: int, recompute: bool) -> tuple[int, MemoryPlan]:
    model, _ = lt.load_backbone(name, **({"num_labels": 2} if kind == "classification" else {"kind": kind}))
    lt.adapt(model, LoRA(), seed=0)
    model.train()
    if recompute:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(5, 20, (rows, length))
    labels = torch.zeros(rows, dtype=torch.long) if kind == "classification" else ids
    found = peak(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    plan = plan_memory(LoRA(), name, lt.TrainConfig(batch_size=rows, gradient_checkpointing=recompute), length=length)
    return found, plan


@pytest.mark.asset
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("minilm-l6", "classification"), ("smollm2-135m", "causal")])
def test_activations_are_those_of_the_profiler(name, kind, recompute):
    """Within 15 % of the peak that torch's profiler sees in the same step, gradients included."""
    found, plan = real_peak(name, kind, 4, 64, recompute)
    planned = plan.activations + plan.logits + plan.gradients + (plan.scores if kind == "classification" else 0)
    assert 0.85 * found <= planned <= 1.15 * found, (planned / found, plan)


def test_recomputing_and_smaller_types_take_less(folder):
    def plan(method: Method = METHODS["lora"], **training: Any) -> MemoryPlan:
        return plan_memory(method, "llama-7b", lt.TrainConfig(batch_size=8, max_length=256, **training))

    whole, short, codes = plan(), plan(base_dtype="bfloat16"), plan(base_dtype="4bit")
    less = plan(base_dtype="bfloat16", gradient_checkpointing=True)
    assert whole.weights == 2 * short.weights == 4 * DIMENSIONS["llama-7b"].parameters
    assert 3.4 * codes.weights < short.weights < 4 * codes.weights  # 4.13 bits, embeddings in 16
    assert codes.unpacked == 2 * 4096 * 11008
    assert whole.branches == short.branches == codes.branches  # branches stay in float32
    assert less.activations < short.activations / 8
    inputs = 32 * 8 * 256 * 4096 * 2
    assert inputs < less.activations < inputs + short.activations / 16
    assert plan(accumulation=4).activations * 3.9 < whole.activations  # two rows at a time
    assert plan(METHODS["delta"]).kept == 64 * 4096 * 4096 * 4  # q and v of 32 layers, once more
    assert plan(DeltaLoRA(form="lazy")).kept == 0
    assert not short.fits(20)
    assert less.fits(20)
    assert "does not fit" in short.verdict(20)
    assert str(less).splitlines()[0].endswith("base in bfloat16, activations recomputed")


@pytest.mark.parametrize("name", [name for name in DIMENSIONS if not name.startswith("llama")])
def test_every_backbone_has_a_plan(name):
    plan = plan_memory(COLA(r=4), name, lt.TrainConfig(batch_size=2, max_length=24))
    parts = {part: size for part, size, _ in plan.rows()}
    assert plan.total == sum(parts.values()) > 4 * DIMENSIONS[name].parameters
    assert parts["activations"] > 0
    assert ("head" in parts) == (DIMENSIONS[name].family == "roberta")
    assert ("logits" in parts) != ("head" in parts)
    config = lt.TrainConfig(batch_size=2, max_length=24, gradient_checkpointing=True)
    assert plan_memory(COLA(r=4), name, config).activations < plan.activations / 3


def test_the_plan_from_a_terminal(monkeypatch, capsys):
    words = ("plan", "lora", "--backbone", "llama-7b", "--memory", "--set", "base_dtype=bfloat16", "--set",
             "batch_size=2", "--length", "128")
    status, out, err = command(monkeypatch, capsys, *words, "--card", "16")
    assert status == 0, err
    assert "weights        12.55 GiB  the frozen model" in out
    assert out.splitlines()[-1].startswith("a card of 16 GiB: fits, with ")
    status, out, _ = command(monkeypatch, capsys, *words, "--json")
    document = json.loads(out)
    assert document["bytes"]["weights"] == 2 * DIMENSIONS["llama-7b"].parameters
    assert document["total"] == sum(document["bytes"].values()) < document["card"] * GIB
    assert document["fits"]
    status, out, _ = command(monkeypatch, capsys, "plan", "--preset", "salora/roberta-base/stsb", "--memory")
    assert "salora on FacebookAI/roberta-base: 32 rows of 512 tokens at a time" in out
    status, out, _ = command(monkeypatch, capsys, "plan", "lora", "--backbone", "opt-1.3b")  # its sites, no download
    assert out.splitlines()[-1].startswith("48 matrices, 1,572,864 parameters in branches")


def test_a_training_can_be_planned_instead(monkeypatch, capsys):
    """`train --plan`: the bytes of this very training, at its profile's lengths and with its task's head."""
    words = ("train", "lora", "--backbone", "llama-7b", "--profile", "gpu", "--set", "base_dtype=bfloat16", "--plan")
    monkeypatch.setattr(lt.Trainer, "run", lambda self: pytest.fail("it trained"))
    status, out, err = command(monkeypatch, capsys, *words, "--task", "alpaca")
    assert status == 0, err
    assert out.startswith("lora on llama-7b: 32 rows of 128 tokens at a time, base in bfloat16, activations kept")
    assert "\nlogits " in out
    classes = json.loads(command(monkeypatch, capsys, *words, "--task", "rt", "--json")[1])
    written = json.loads(command(monkeypatch, capsys, *words, "--task", "alpaca", "--json")[1])
    assert classes["bytes"].get("logits", 0) < written["bytes"]["logits"] / 100


# ---- a bf16 base, recomputed activations ----------------------------------------------------------------

@pytest.fixture
def rt(folder, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    return folder


@pytest.mark.parametrize("name", ["lora", "cola", "salora", "delta", "autolora"])
def test_a_bf16_base_trains_under_float32_branches(rt, name):
    method = AutoLoRA(r=4, search_steps=4) if name == "autolora" else METHODS[name]
    run = lt.fit(method, "rt", rt, "tiny", progress=False, base_dtype="bfloat16", steps=8, eval_every=4)
    losses = [run.series("loss")[1], run.series("validation.loss")[1]]
    assert all(torch.isfinite(torch.tensor(found)).all() for found in losses)
    assert run.config["training"]["base_dtype"] == "bfloat16"
    assert all(factor.dtype == torch.float32 for pair in run.factors.values() for factor in pair)


def test_the_head_of_a_bf16_base_is_float32():
    model = tiny("roberta", dtype=torch.bfloat16)
    model.lowrank_new_parameters = tuple(n for n, _ in model.named_parameters() if n.startswith("classifier"))
    adapters = lt.adapt(model, LoRA(r=4), seed=0)
    assert {p.dtype for p in adapters.head_parameters()} == {torch.float32}
    assert model(**make_batch()).logits.dtype == torch.float32
    names = [n for n, p in model.named_parameters() if p.dtype == torch.bfloat16]
    assert names
    assert not any("classifier" in n or "lora_" in n for n in names)


@pytest.mark.parametrize("kind", [kind for kind in helpers.FAMILIES if kind not in ("distilbert", "mpnet")])
def test_recomputed_activations_change_no_number(kind):
    """B moves in the first step, and every loss is that of a run that keeps its activations."""
    losses = []
    for recompute in (False, True):
        adapters, outcome = helpers.train(LoRA(r=4), tiny(kind, dropout=0.1), steps=4,
                                          gradient_checkpointing=recompute)
        assert all(branch.lora_B.any() for branch in adapters.values())
        losses.append([value for _, _, name, value in outcome.history if name == "loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(("call", "says"), [
    (lambda rt: lt.TrainConfig(base_dtype="int4"), "base_dtype 'int4' must be one of float32, bfloat16, 4bit"),
    (lambda rt: lt.TrainConfig(label_smoothing=1.0), r"label_smoothing = 1.0 must lie in \[0, 1\)"),
    (lambda rt: lt.fit("full", "rt", rt, "tiny", progress=False, base_dtype="bfloat16"),
     r"full trains \S+ itself, which needs float32 and is torch.bfloat16"),
], ids=["type", "smoothing", "a short base that trains"])
def test_what_is_refused(rt, call, says):
    with pytest.raises(ValueError, match=says):
        call(rt)


def test_label_smoothing():
    """The mean of −log p over (1 − ε) of the label and ε of all classes; refused where there is no class."""
    model, batch = tiny("bert").train(), make_batch()
    adapters = lt.adapt(model, LoRA(r=4), seed=0)
    trainer = Trainer(adapters, make_rows(16), collate, lt.TrainConfig(label_smoothing=0.2, batch_size=8), cpu=True)
    trainer.model = model
    expected = F.cross_entropy(model(**batch).logits, batch["labels"], label_smoothing=0.2)
    torch.testing.assert_close(trainer.loss(batch), expected)
    scores = {**batch, "labels": batch["labels"].float()}
    trainer.model = tiny("bert", labels=1)
    with pytest.raises(ValueError, match="leave it out of a regression"):
        trainer.loss(scores)


def test_label_smoothing_of_a_causal_model_is_over_the_next_words():
    from lowrank_teach.training.batches import task_loss

    config = config_of("gpt2-medium")
    config.n_embd, config.n_layer, config.n_head, config.vocab_size = 16, 1, 2, 30
    model = backbones.AUTO["causal"].from_config(config).eval()
    ids = torch.randint(0, 30, (2, 7))
    labels = ids.masked_fill(torch.arange(7) < 3, -100)
    output = model(input_ids=ids, labels=labels)
    expected = F.cross_entropy(output.logits[:, :-1].reshape(-1, 30), labels[:, 1:].reshape(-1), label_smoothing=0.1)
    torch.testing.assert_close(task_loss(output, {"labels": labels}, 0.1, model), expected)
    assert torch.equal(task_loss(output, {"labels": labels}, 0.0, model), output.loss)


# ---- 4-bit codes: what can be known without the library -------------------------------------------------

class Codes(nn.Linear):
    """As bitsandbytes' 4-bit layer: a Linear whose weight is bytes of a shape of their own, two codes in each."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, layer.bias is not None)
        weight = layer.weight.detach()
        self.scale = weight.abs().max() / 7
        codes = (weight / self.scale).round().clamp(-8, 7).add(8).to(torch.uint8).reshape(-1, 2)
        packed = nn.Parameter(codes[:, :1] * 16 + codes[:, 1:], requires_grad=False)
        packed.quant_state = type("State", (), {"shape": weight.shape})()
        self.weight = packed
        if layer.bias is not None:
            self.bias.data.copy_(layer.bias.data)

    def dense(self) -> Tensor:
        pairs = torch.cat([self.weight // 16, self.weight % 16], 1).reshape(self.out_features, self.in_features)
        return (pairs.float() - 8) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dense().to(x.dtype), self.bias)


def coded(kind: str = "bert") -> Any:
    """A tiny model whose layers hold codes; the head does not."""
    model = tiny(kind)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layer" in path:
            model.set_submodule(path, Codes(module))
    return model


BESIDE = {"lora": LoRA(r=4), "cola": COLA(r=4, knots=(4,), merge_knots=False),
          "delta": DeltaLoRA(r=4, K=2, form="lazy"), "salora": SaLoRA(r=4, eta_c=0.5, t_start=2, t_end=10),
          "autolora": AutoLoRA(r=4, hypergradient="finite_difference")}


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("name", BESIDE)
def test_what_is_kept_beside_w_works_on_codes(name, kind):
    model = coded(kind)
    codes = {n: p.clone() for n, p in model.named_parameters() if p.dtype == torch.uint8}
    adapters, outcome = helpers.train(BESIDE[name], model)
    assert outcome.finished
    now = dict(model.named_parameters())
    assert codes
    assert all(torch.equal(now[n.replace(".weight", ".base.weight")] if n not in now else now[n], p)
               for n, p in codes.items())  # no code was touched
    first = next(iter(adapters))
    owner = adapters.owner(first)
    site = adapters.sites[first]
    assert (site.d, site.k) == owner.base.dense().shape
    torch.testing.assert_close(owner.W, owner.base.dense(), rtol=0, atol=0)
    cosines = [value for _, what, value in site_measures(adapters) if what == "cosine"]
    assert len(cosines) == len(adapters)
    assert -1 <= min(cosines) < 0.9999
    fresh = sum(p.numel() for p in tiny(kind).parameters())
    branches = sum(b.lora_A.numel() + b.lora_B.numel() for b in adapters.values())
    assert adapters.plan().total >= fresh + branches  # codes count as the weights they stand for
    with pytest.raises(ValueError, match="load the base in bfloat16, adapt it in the same way"):
        adapters.merge()
    assert adapters.state == "adapted"


@pytest.mark.parametrize("method", [COLA(r=4), DeltaLoRA(r=4), FullFineTuning(), FullFineTuning(trains="qv")])
def test_what_writes_into_w_is_refused_on_codes(method):
    model = coded()
    before = helpers.bytes_of(model)
    with pytest.raises(ValueError, match=r"writes into W, which is quantized.*merge_knots=False.*lazy"):
        lt.adapt(model, method)
    assert helpers.same_tensors(before, helpers.bytes_of(model))
    assert not any(isinstance(m, lt.Adapted) for m in model.modules())


def test_a_matrix_is_read_off_codes_without_its_bias():
    layer = Codes(nn.Linear(24, 8))
    nn.init.constant_(layer.bias, 1e4)
    torch.testing.assert_close(dequantized(layer, columns=7), layer.dense(), rtol=0, atol=0)
    assert layer.bias is not None
    assert (numel(layer.weight), layer.weight.numel()) == (192, 96)


def test_four_bits_are_refused_where_they_cannot_be(monkeypatch, folder):
    monkeypatch.setattr(backbones, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="need bitsandbytes, which is not installed: pip install bitsandbytes"):
        lt.load_backbone(folder, num_labels=2, four_bit=True)
    monkeypatch.setattr(backbones, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="need a CUDA device, and there is none here"):
        lt.load_backbone(folder, num_labels=2, four_bit=True)
    with pytest.raises(ValueError, match="dtype 'bf16' is not a type of torch"):
        lt.load_backbone(folder, num_labels=2, dtype="bf16")


# ---- 4-bit codes by the library itself ------------------------------------------------------------------

def by_the_library(place: Any, monkeypatch: Any, device: str) -> Any:
    """A tiny Llama through `load_backbone(four_bit=True)`."""
    pytest.importorskip("bitsandbytes")
    model_folder(place, hidden_size=64, intermediate_size=128)  # its tokenizer
    tiny("llama", hidden_size=64, intermediate_size=128).model.save_pretrained(place)
    if device == "cpu":  # the codes are the same there; only this package asks for a GPU, as speed does
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    model, _ = lt.load_backbone(str(place), num_labels=2, four_bit=True)
    monkeypatch.undo()
    for module in model.modules():  # bitsandbytes repacks for a CPU with the right instructions, and rounds there
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here")])]


@pytest.mark.extra
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", BESIDE)
def test_every_method_trains_on_the_librarys_codes(tmp_path, monkeypatch, name, device):
    model = by_the_library(tmp_path, monkeypatch, device)
    import bitsandbytes

    adapters = lt.adapt(model, BESIDE[name], seed=0)
    owner = next(iter(adapters.owners.values()))
    weight = owner.base.weight
    dense = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    torch.testing.assert_close(owner.W.to(dense), dense, rtol=0, atol=0)
    codes = weight.detach().clone()
    config = lt.TrainConfig(steps=12, batch_size=8, lr=1e-2)
    outcome = Trainer(adapters, make_rows(64), collate, config, seed=0, cpu=device == "cpu").run()
    losses = [value for _, _, part, value in outcome.history if part == "loss"]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert torch.equal(weight, codes)
    assert lt.measure.parameter_counts(model)["total"] > 60_000  # two codes a byte, each a weight
    assert site_measures(adapters)


@pytest.mark.extra
@pytest.mark.parametrize("device", DEVICES)
def test_the_planned_bytes_are_those_of_the_librarys_codes(tmp_path, monkeypatch, device):
    model = by_the_library(tmp_path, monkeypatch, device)
    plan = plan_memory(LoRA(r=4), str(tmp_path), lt.TrainConfig(batch_size=2, base_dtype="4bit"), length=8,
                       kind="classification")
    head = set(model.lowrank_new_parameters)
    found = 0
    for name, p in model.named_parameters():
        state = getattr(p, "quant_state", None)
        found += 0 if name in head else p.numel() * p.element_size()
        if state is not None:
            found += state.absmax.numel() + 4 * state.state2.absmax.numel() + NF4_TABLES
    assert plan.weights == found

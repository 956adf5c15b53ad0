"""Stock peft and stock transformers are the judges: what is written here they load, with the same logits."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from helpers import (
    FAMILIES,
    VOCAB,
    Watch,
    collate,
    gap,
    logits,
    make_batch,
    make_rows,
    rounding,
    same_tensors,
    shake,
    tiny,
    train,
    trainer,
    word_tokenizer,
)
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import lowrank_teach as lt
from lowrank_teach.adapters import SaveError
from lowrank_teach.integrations.peft_format import CONFIG, WEIGHTS, ExportError
from lowrank_teach.lowrank import Adapted
from lowrank_teach.sites import ARCHITECTURES

BATCH = make_batch()
PREFIX = "base_model.model."


def in_peft(base: nn.Module, folder: Path) -> PeftModel:
    """Stock peft's model; any warning is an error, but for one about transformers' own names."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return PeftModel.from_pretrained(base, folder).eval()


def written(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8")), load_file(folder / WEIGHTS)


def ranks_in(folder: Path) -> dict[str, int]:
    """Module -> rank, as the file has it."""
    _, tensors = written(folder)
    return {name.removeprefix(PREFIX).removesuffix(".lora_A.weight"): len(A) for name, A in tensors.items()
            if name.endswith(".lora_A.weight")}


def move_head(adapters: lt.Adapters) -> None:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapters.head_parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=g).to(p))


def apart(left: nn.Module, right: nn.Module) -> float:
    """The `gap` between two models' logits."""
    return gap(logits(left, BATCH), logits(right, BATCH))


def learned(method: lt.Method, kind: str = "bert", dtype: torch.dtype = torch.float32, labels: int = 2,
            model: Any = None, **head: Any) -> lt.Adapters:
    """Adapters with random factors and a moved head."""
    model = tiny(kind, dtype=dtype, labels=labels) if model is None else model
    adapters = lt.adapt(model, method, seed=1, **head)
    shake(adapters)
    move_head(adapters)
    return adapters


# ---- what is written, peft loads ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_both_ways(kind, dtype, tmp_path):
    """All matrices at two ranks and three scales: peft, peft merged, and our own reading have the same logits."""
    names = [site.name for site in lt.find_sites(tiny(kind))]
    adapters = learned(lt.LoRA(r=4, sites="all", rank_pattern={names[0]: 2, names[-1]: 3},
                               alpha_pattern={names[1]: 5.0}), kind, dtype)
    lt.save_peft(adapters, tmp_path)
    limit = rounding(adapters.model)
    loaded = in_peft(tiny(kind, dtype=dtype), tmp_path)
    assert apart(loaded, adapters.model) < limit
    assert apart(loaded.merge_and_unload(), adapters.model) < limit
    back = lt.load_peft(tiny(kind, dtype=dtype), tmp_path)
    assert apart(back.model, adapters.model) < limit
    assert back.ranks() == adapters.ranks()
    assert apart(tiny(kind, dtype=dtype), adapters.model) > 0.1  # the adapter does something


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_fault_is_more_than_rounding(kind):
    """A scale that is 1 % off, any one site left out, any one square factor pair transposed: each is seen."""
    adapters = learned(lt.LoRA(r=4, sites="all"), kind)
    right, limit = logits(adapters.model, BATCH), rounding(adapters.model)

    def moved() -> float:
        return gap(logits(adapters.model, BATCH), right)

    factors = {name: (branch.lora_A.detach().clone(), branch.lora_B.detach().clone())
               for name, branch in adapters.items()}
    with torch.no_grad():
        for branch in adapters.values():
            branch.lora_B *= 1.01
        assert moved() > 10 * limit
        for name, branch in adapters.items():
            branch.lora_B.copy_(factors[name][1])
        assert moved() == 0
        for name, branch in adapters.items():
            A, B = factors[name]
            branch.lora_B.zero_()
            assert moved() > limit, f"{name} left out"
            if A.shape[1] == B.shape[0]:
                branch.lora_A.copy_(B.T)
                branch.lora_B.copy_(A.T)
                assert moved() > limit, f"{name} transposed"
                branch.lora_A.copy_(A)
            branch.lora_B.copy_(B)


def trained(method: lt.Method, kind: str = "bert", model: Any = None) -> lt.Adapters:
    return train(method, tiny(kind, dtype=torch.float64) if model is None else model, steps=9)[0]


METHODS = {
    "cola": (lt.COLA(r=3, chain=3), 9),
    "cola, links beside W": (lt.COLA(ranks=(3, 2), knots=(4,), merge_knots=False), 5),
    "delta_lora": (lt.DeltaLoRA(r=3, K=2), 6),
    "delta_lora, lazily": (lt.DeltaLoRA(r=3, K=2, form="lazy"), 6),
    "autolora, searched": (lt.AutoLoRA(r=3, retrain=False, eta_beta=0.1), 3),
    "dylora": (lt.DyLoRA(r=3), 3),
}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trained(name, kind, tmp_path):
    """Chains as Σr, Delta-LoRA as 2r, W written or not, merged or not: relative to the pretrained W.

    And a plain checkpoint at the end, whatever W held while training.
    """
    method, rank = METHODS[name]
    adapters = trained(method, kind)
    before = logits(adapters.model, BATCH)
    fused = 2 if kind == "gpt2" else 1  # q and v in one module
    for state in ("adapted", "merged"):
        lt.save_peft(adapters, tmp_path / state)
        assert set(ranks_in(tmp_path / state).values()) == {rank * fused}
        base = tiny(kind, dtype=torch.float64)
        assert apart(in_peft(base, tmp_path / state), adapters.model) < 1e-12
        assert apart(lt.load_peft(tiny(kind, dtype=torch.float64), tmp_path / state).model, adapters.model) < 1e-12
        if state == "adapted":
            adapters.merge()
    assert_unloads(adapters, before, tmp_path / "plain")


def gated(kind: str, log_theta: dict[str, list[float]], dtype: torch.dtype = torch.float32,
          model: Any = None) -> lt.Adapters:
    """SaLoRA after its window, with these gates."""
    adapters = learned(lt.SaLoRA(r=3, sites="qv"), kind, dtype, model=model)
    with torch.no_grad():
        for name, gate in adapters.rule.gates().items():
            gate.phase = "deterministic"
            gate.log_theta.copy_(torch.tensor(log_theta.get(name, [9.0, 0.5, -9.0])))  # open, half open, closed
    return adapters


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_gates_are_folded_and_closed_sites_left_out(kind, tmp_path):
    """Uneven ranks through rank_pattern; a site without a direction has no tensor; GPT-2's q alone in c_attn."""
    closed = {"0.v": [-9.0] * 3, "1.q": [9.0] * 3}
    adapters = gated(kind, closed, torch.float64)
    lt.save_peft(adapters, tmp_path)
    found = list(ranks_in(tmp_path).values())
    assert found == ([2, 3, 2] if kind == "bert" else [2, 5])
    assert apart(in_peft(tiny(kind, dtype=torch.float64), tmp_path), adapters.model) < 1e-12
    back = lt.load_peft(tiny(kind, dtype=torch.float64), tmp_path)
    assert back.ranks() == {"0.q": 2, "1.q": 3, "1.v": 2}
    assert apart(back.model, adapters.model) < 1e-12


def test_a_step_s_gate_noise_is_not_written(tmp_path):
    """Inside the window and in training mode the gates are noise: what is deployed is written, not the sample."""
    adapters = gated("bert", {})
    for gate in adapters.rule.gates().values():
        gate.phase, gate.u = "sampled", torch.full((3,), 0.9)
    adapters.model.train()
    lt.save_peft(adapters, tmp_path)
    assert adapters.model.training
    assert apart(in_peft(tiny(), tmp_path), adapters.model) < rounding(adapters.model)  # compared in eval mode


def test_trained_salora_and_its_search_ranks(tmp_path):
    """The whole way: SaLoRA pruned and folded by training; AutoLoRA searched and retrained at its ranks."""
    kept = {"0.q": 2, "0.v": 0, "1.q": 4, "1.v": 1}

    def decide(step: int, values: dict[str, float]) -> None:
        """Before the window's last step: gates so far from closing or opening that no step turns them round."""
        if step == 7:
            for name, gate in salora.rule.gates().items():
                gate.log_theta.data = torch.where(torch.arange(4) < kept[name], 8.0, -8.0).to(gate.log_theta)

    made = trainer(lt.SaLoRA(r=4, sites="qv", eta_c=0.6, t_end=8, b=0.45), tiny(dtype=torch.float64), steps=9,
                   callbacks=[Watch(decide)])
    salora = made.adapters
    made.run()
    assert salora.ranks() == kept
    search = lt.AutoLoRA(r=4, eta_beta=0.2)
    following = train(search, tiny(dtype=torch.float64), steps=9)[1].following
    for adapters in (salora, trained(following)):
        lt.save_peft(adapters, tmp_path)
        assert sorted(ranks_in(tmp_path).values()) == sorted(r for r in adapters.ranks().values() if r)
        assert apart(in_peft(tiny(dtype=torch.float64), tmp_path), adapters.model) < 1e-12


def test_plain_lora_is_written_as_it_is(tmp_path):
    """A and B keep their bytes and α its value, so that training goes on in peft as it would have here."""
    adapters = learned(lt.LoRA(r=4, lora_alpha=12.0, lora_dropout=0.25))
    lt.save_peft(adapters, tmp_path)
    config, tensors = written(tmp_path)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 12, 0.25)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    path = f"{PREFIX}bert.encoder.layer.1.attention.self.value"
    assert torch.equal(tensors[f"{path}.lora_A.weight"], adapters["1.v"].lora_A)
    assert torch.equal(tensors[f"{path}.lora_B.weight"], adapters["1.v"].lora_B)
    back = lt.load_peft(tiny(), tmp_path)
    assert (back.method.r, back.method.lora_alpha, back.method.lora_dropout) == (4, 12.0, 0.25)
    assert all(torch.equal(back[name].lora_A, adapters[name].lora_A) for name in adapters)
    again = lt.save_peft(back, tmp_path / "again")
    assert same_tensors(written(again)[1], tensors)
    assert written(again)[0] == config


def test_links_that_overlap_are_compressed_exactly(tmp_path):
    """Three links in one span of two directions: nine directions as they stand, two when compressed."""
    adapters = trained(lt.COLA(r=3, chain=3))
    with torch.no_grad():
        for branch in adapters.values():
            for factor in (branch.lora_A, branch.fixed_right):
                factor[:] = factor[:, :2] @ torch.eye(2, factor.shape[1], dtype=factor.dtype)
    adapters.restore()
    lt.save_peft(adapters, tmp_path / "stacked")
    lt.save_peft(adapters, tmp_path / "compressed", compress=True)
    assert set(ranks_in(tmp_path / "stacked").values()) == {9}
    assert set(ranks_in(tmp_path / "compressed").values()) == {2}
    assert apart(in_peft(tiny(dtype=torch.float64), tmp_path / "compressed"), adapters.model) < 1e-12


def test_more_directions_than_the_matrix_has(tmp_path):
    """A chain of Σr = 20 on 16 × 16 matrices: peft takes it; read back or compressed it has 16, trainable ones."""
    adapters = trained(lt.COLA(r=5, chain=4))
    lt.save_peft(adapters, tmp_path)
    assert apart(in_peft(tiny(dtype=torch.float64), tmp_path), adapters.model) < 1e-12
    lt.save_peft(adapters, tmp_path / "compressed", compress=True)
    assert max(ranks_in(tmp_path / "compressed").values()) <= 16
    for folder in (tmp_path, tmp_path / "compressed"):
        back = lt.load_peft(tiny(dtype=torch.float64), folder)
        assert apart(back.model, adapters.model) < 1e-12
        assert all(branch.lora_A.any(1).all() for branch in back.values())


def test_gpt2_q_and_v_are_one_block(tmp_path):
    """c_attn: A stacked, B in blocks with nothing in k's rows; apart again when read back."""
    adapters = learned(lt.LoRA(r=2, rank_pattern={"1.v": 3}, alpha_pattern={"1.v": 1.7}), "gpt2")
    lt.save_peft(adapters, tmp_path)
    config, tensors = written(tmp_path)
    assert config["fan_in_fan_out"] is True
    assert config["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    B = tensors[f"{PREFIX}transformer.h.0.attn.c_attn.lora_B.weight"]
    assert torch.equal(B[:16, :2], adapters["0.q"].lora_B)
    assert torch.equal(B[32:, 2:], adapters["0.v"].lora_B)
    assert not B[16:32].any()
    assert not B[:16, 2:].any()
    back = lt.load_peft(tiny("gpt2"), tmp_path)
    assert back.ranks() == {"0.q": 2, "0.v": 2, "1.q": 2, "1.v": 3}
    assert torch.equal(back["0.v"].lora_A, adapters["0.v"].lora_A)
    for name, branch in adapters.items():
        assert torch.allclose(back[name].delta(), branch.delta(), atol=1e-6)


# ---- in a process that never imports this package, by peft's own Auto classes -----------------------------------

READER = """
import contextlib, json, os, re, sys, warnings
import torch
from safetensors.torch import load_file, save_file

os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[1])
import peft
warnings.simplefilter("error", UserWarning)     # such as missing adapter keys
warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True` and a tied layer")  # of merging, later
batch, found = load_file("batch.safetensors"), {}

def first(model, inputs):
    with torch.no_grad():
        return model.eval()(**{name: batch[name] for name in inputs})[0].contiguous()

for name, (auto, settings, inputs) in json.load(open("cases.json")).items():
    try:
        if auto:
            model = getattr(peft, auto).from_pretrained(name, **settings)
            found[name + " auto"] = first(model, inputs)
        lines = re.search("```python\\n(.*?)```", open(name + "/README.md").read(), re.S)[1]
        assert len([line for line in lines.splitlines() if line]) <= 5
        made = {}
        exec(lines, made)
        found[name + " card"] = first(made["model"], inputs)
    except Exception as error:
        print(name, repr(error)[:600])
assert "lowrank_teach" not in sys.modules
save_file(found, "found.safetensors")
"""

OWN = """
from transformers import BertForSequenceClassification

class Twice(BertForSequenceClassification):
    def forward(self, *args, **kwargs):
        return [2 * self.bert(*args, **kwargs)[1] @ self.classifier.weight.T]
"""
DECODER = ("decoder_input_ids",)
CLASSES: dict[str, str] = {  # how a class's name ends -> how peft's does
    "ForSequenceClassification": "ForSequenceClassification", "ForTokenClassification": "ForTokenClassification",
    "ForQuestionAnswering": "ForQuestionAnswering", "ForCausalLM": "ForCausalLM", "LMHeadModel": "ForCausalLM",
    "ForConditionalGeneration": "ForSeq2SeqLM", "ForMaskedLM": "", "Model": "",
}
# each task, each name of a head, and a class of each kind without one; put_resized has more of those that write
OPENED = ("BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering",
          "BertForMaskedLM", "BertModel", "GPT2LMHeadModel", "GPT2Model", "LlamaForSequenceClassification",
          "T5ForTokenClassification", "T5ForConditionalGeneration", "BartForSequenceClassification", "BartModel",
          "BartForCausalLM", "DistilBertForSequenceClassification", "RobertaForSequenceClassification")
INPUTS = ("input_ids", "attention_mask")
HEADS: dict[str, tuple[str, ...] | None] = {"trained": None, "untrained": ()}
PRUNED = {"0.v": [-9.0] * 3, "1.q": [9.0] * 3}
BY_METHOD = (*METHODS, "salora, pruned")


class Doors:
    """Folders that `save_peft` wrote, what the model says that each is of, and what peft makes of it elsewhere."""

    def __init__(self, root: Path) -> None:
        self.root, self.right, self.limit = root, {}, {}
        self.cases: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {}
        self.batch = {name: value for name, value in BATCH.items() if name in INPUTS}
        self.batch["decoder_input_ids"] = BATCH["input_ids"].flip(1).contiguous()

    def base(self, kind: type, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
        """A pretrained model as a person has it: saved in a folder, and loaded from there."""
        folder = self.root / "bases" / f"{kind.__name__}-{len(self.cases)}"
        family = next((one for one in FAMILIES if kind.__name__.lower().startswith(one)), "bert")
        config = tiny(family, labels=2 if "Question" in kind.__name__ else 3, **changes).config
        with torch.random.fork_rng():
            torch.manual_seed(4)
            kind(config).to(dtype).save_pretrained(folder)
        return kind.from_pretrained(folder).eval()

    def put(self, name: str, adapters: lt.Adapters, auto: str | None = None, settings: dict[str, Any] | None = None,
            **options: Any) -> None:
        """Write one, under a base name that is relative to where the reader stands.

        auto: of peft's class; "" where the card's lines alone can open it.
        """
        model = adapters.model
        base, kind = str(Path(model.name_or_path).relative_to(self.root)), type(model).__name__
        if auto is None:
            auto = "AutoPeftModel" + next(ours for theirs, ours in CLASSES.items() if kind.endswith(theirs))
        lt.save_peft(adapters, self.root / name, base_name=base, **options)
        decodes = kind in ("T5Model", "BartModel") or kind.endswith("ForConditionalGeneration")
        self.cases[name] = auto, settings or {}, INPUTS + DECODER * decodes
        self.limit[name] = rounding(model)
        with torch.no_grad():
            self.right[name] = model.eval()(**{key: self.batch[key] for key in self.cases[name][2]})[0]

    def read(self) -> None:
        """Open all of them in one fresh process."""
        save_file(self.batch, self.root / "batch.safetensors")
        (self.root / "cases.json").write_text(json.dumps(self.cases))
        done = subprocess.run([sys.executable, "-c", READER, str(self.root)], capture_output=True, text=True,
                              env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        self.said, self.found = done.stdout, load_file(self.root / "found.safetensors")

    def check(self, name: str) -> None:
        """What both ways to open it gave, against what the model gave here."""
        for way in ("auto", "card") if self.cases[name][0] else ("card",):
            assert f"{name} {way}" in self.found, [line for line in self.said.splitlines() if line.startswith(name)]
            assert gap(self.found[f"{name} {way}"], self.right[name]) < self.limit[name], way


@pytest.fixture(scope="module")
def doors(tmp_path_factory) -> Doors:
    made = Doors(tmp_path_factory.mktemp("doors"))
    for name in OPENED:
        for trains, head in HEADS.items():
            model = made.base(getattr(transformers, name))
            sites = lt.find_sites(model)
            method = lt.LoRA(r=4, sites="all", rank_pattern={sites[0].name: 2}, alpha_pattern={sites[1].name: 5.0})
            made.put(f"{name}, {trains}", learned(method, model=model, head=head))
    for name in BY_METHOD:
        for kind in (transformers.BertForSequenceClassification, transformers.GPT2ForSequenceClassification):
            model = made.base(kind, torch.float64)
            adapters = trained(METHODS[name][0], model=model) if name in METHODS else gated("", PRUNED, model=model)
            made.put(f"{name} on {kind.__name__}", adapters)
            if kind is transformers.BertForSequenceClassification:  # GPT-2: in the test of `uniform` below
                made.put(f"{name} on {kind.__name__}, uniform", adapters, uniform=True)
    put_other_heads(made)
    put_filled(made)
    for tied in (True, False):
        put_resized(made, transformers.LlamaForCausalLM, tied)
        put_resized(made, transformers.BartForConditionalGeneration, tied)
    put_resized(made, transformers.GPT2LMHeadModel, False, head=("transformer.wte", "lm_head"))
    made.read()
    return made


def put_other_heads(made: Doors) -> None:
    """A class of a person's own; a pooler and a head that no checkpoint has, of other labels than it says."""
    (made.root / "own_base.py").write_text(OWN)
    sys.path.insert(0, str(made.root))
    own = importlib.import_module("own_base").Twice
    sys.path.pop(0)
    made.put("a class of one's own", learned(lt.LoRA(r=2), model=made.base(own)), "AutoPeftModel",
             {"import_allowlist": ["own_base"]})
    model = made.base(transformers.BertModel)
    folder = Path(model.name_or_path)
    model.pooler = None
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    for trains, head in HEADS.items():
        model, _ = lt.load_backbone(str(folder), num_labels=5, seed=3)
        made.put(f"a fresh pooler, {trains}", learned(lt.LoRA(r=2), model=model, head=head),
                 settings={"num_labels": 5})


FILLED = {  # the class of the checkpoint -> the class that it was loaded by, and the changes of its configuration
    "BertForMaskedLM as BertForSequenceClassification": {}, "BertModel as BertForMaskedLM": {},
    "LlamaModel as LlamaForCausalLM": {"tie_word_embeddings": False},
    "BartModel as BartForSequenceClassification": {}, "RobertaModel as RobertaForMaskedLM": {},
    "DistilBertModel as DistilBertForMaskedLM": {},
}


def put_filled(made: Doors) -> None:
    """What plain `from_pretrained` filled in with numbers that no reader has: a pooler, heads of language models."""
    for name, changes in FILLED.items():
        theirs, ours = (getattr(transformers, kind) for kind in name.split(" as "))
        stored = made.base(theirs, **changes)
        with torch.random.fork_rng():
            torch.manual_seed(9)
            model = ours.from_pretrained(stored.name_or_path, num_labels=5).eval()
        made.put(name, learned(lt.LoRA(r=2), model=model, head=()), settings={"num_labels": 5})


def put_resized(made: Doors, kind: Any, tied: bool, head: tuple[str, ...] = ()) -> None:
    """Two tokens more, as the tokenizer beside it has them, and rows up to a multiple that no tokenizer tells of."""
    tokenizer = word_tokenizer()
    tokenizer.add_tokens(["[new]", "[newer]"])
    for name, rows in (("tokens", len(tokenizer)), ("rows", 64)):
        model = made.base(kind, tie_word_embeddings=tied)
        model.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            for table in (model.get_input_embeddings(), model.get_output_embeddings()):
                table.weight[VOCAB:] += 1
        sites = ("lm_head", "0.q") if kind is transformers.LlamaForCausalLM and not tied else "q"
        adapters = learned(lt.LoRA(r=2, sites=sites), model=model, head=head)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made.put(f"{name} added to {kind.__name__}{' tied' * tied}{' trained' * bool(head)}", adapters,
                     None if name == "tokens" else "", tokenizer=tokenizer)
        told = [str(one.message) for one in said if "vocabulary was resized from 40 to 64" in str(one.message)]
        assert len(told) == (name == "rows")


@pytest.mark.parametrize("trains", HEADS)
@pytest.mark.parametrize("name", OPENED)
def test_peft_s_auto_class_opens_it(name, trains, doors):
    """By task or by auto_mapping, with a head that trained and one that did not; the card's own lines do it too."""
    doors.check(f"{name}, {trains}")


@pytest.mark.parametrize("name", BY_METHOD)
def test_peft_s_auto_class_opens_every_method(name, doors):
    """As they were trained, and brought to one rank and one scale."""
    for kind, end in (("Bert", ""), ("Bert", ", uniform"), ("GPT2", "")):
        doors.check(f"{name} on {kind}ForSequenceClassification{end}")


@pytest.mark.parametrize("name", ["a class of one's own", "a fresh pooler, trained", "a fresh pooler, untrained"])
def test_peft_s_auto_class_opens_other_heads(name, doors):
    """Where the base's own configuration or checkpoint does not have the head that was used."""
    doors.check(name)


@pytest.mark.parametrize("name", FILLED)
def test_what_the_checkpoint_lacks_travels_with_the_adapter(name, doors):
    """Though it did not train; we read it, too, and write it again."""
    doors.check(name)
    ours = getattr(transformers, name.partition(" as ")[2])
    base = ours.from_pretrained(doors.root / written(doors.root / name)[0]["base_model_name_or_path"], num_labels=5)
    back = lt.load_peft(base, doors.root / name)
    with torch.no_grad():
        found = back.model.eval()(**{key: doors.batch[key] for key in doors.cases[name][2]})[0]
    assert gap(found, doors.right[name]) < doors.limit[name]
    state = torch.get_rng_state()
    lt.save_peft(back, doors.root / "again")
    assert torch.equal(torch.get_rng_state(), state)
    assert same_tensors(written(doors.root / "again")[1], written(doors.root / name)[1])


def test_a_lora_on_what_the_checkpoint_lacks_is_refused(tmp_path):
    """The reader's base has another weight there."""
    config = tiny("llama", head="causal", tie_word_embeddings=False).config
    transformers.LlamaModel(config).save_pretrained(tmp_path / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    with pytest.raises(ExportError, match=r"lm_head carries a LoRA on a weight that the base's checkpoint lacks"):
        lt.save_peft(lt.adapt(model, lt.LoRA(r=2, sites=("lm_head",))), tmp_path / "out")


def test_a_base_that_moved_is_found_by_its_new_name_or_missed_aloud(tmp_path):
    """A folder at base_name is looked at in its place; without one a warning says what could not be read."""
    tiny("llama", head="causal").save_pretrained(tmp_path / "base")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(VOCAB + 2, mean_resizing=False)
    adapters = lt.adapt(model, lt.LoRA(r=2))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match=r"could not be read.*base_name="):
        lt.save_peft(adapters, tmp_path / "out", base_name="owner/name")
    with pytest.warns(UserWarning, match=f"resized from {VOCAB} to {VOCAB + 2}"):
        lt.save_peft(adapters, tmp_path / "out", base_name=str(tmp_path / "moved"))
    assert f"{PREFIX}model.embed_tokens.weight" in written(tmp_path / "out")[1]


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "LlamaForCausalLM tied", "BartForConditionalGeneration",
                                  "BartForConditionalGeneration tied", "GPT2LMHeadModel trained"])
@pytest.mark.parametrize("added", ["tokens", "rows"])
def test_a_resized_vocabulary_travels_with_the_adapter(added, kind, doors):
    """The new rows are in the file; we read them, too, and say so where the model was not resized."""
    name = f"{added} added to {kind}"
    doors.check(name)
    base = getattr(transformers, kind.partition(" ")[0]).from_pretrained(
        doors.root / written(doors.root / name)[0]["base_model_name_or_path"])
    rows = 64 if added == "rows" else VOCAB + 2
    with pytest.raises(ExportError, match=rf"\b{rows}\b.*resize_token_embeddings"):
        lt.load_peft(base, doors.root / name)
    base.resize_token_embeddings(rows, mean_resizing=False)
    back = lt.load_peft(base, doors.root / name)
    with torch.no_grad():
        found = back.model.eval()(**{key: doors.batch[key] for key in doors.cases[name][2]})[0]
    assert gap(found, doors.right[name]) < doors.limit[name]


# ---- for tools that read less, on other machines, from compiled models -----------------------------------------


@torch.no_grad()
def by_the_top_level(base: nn.Module, folder: Path, own_rank: bool = False) -> nn.Module:
    """The model as a tool reads it that looks at r and lora_alpha and at no pattern.

    own_rank: α is divided by each tensor's own rank and not by r, as llama.cpp does with what its converter wrote.
    """
    config, tensors = written(folder)
    for name, A in tensors.items():
        path, _, kind = name.removeprefix(PREFIX).partition(".lora_A")
        if kind:
            scale = config["lora_alpha"] / (len(A) if own_rank else config["r"])
            delta = scale * tensors[f"{PREFIX}{path}.lora_B.weight"] @ A
            layer: Any = base.get_submodule(path)
            layer.weight += delta.T if type(layer).__name__ == "Conv1D" else delta
        elif ".lora_B." not in name:
            base.get_parameter(name.removeprefix(PREFIX)).copy_(A)
    return base


UNEVEN: dict[str, Callable[[str], lt.Adapters]] = {
    "ranks": lambda kind: learned(lt.LoRA(r=4, sites="all", rank_pattern={"0.q": 2}), kind, torch.float64),
    "scales": lambda kind: learned(lt.LoRA(r=4, alpha_pattern={"0.q": 3.0}), kind, torch.float64),
    "gates": lambda kind: gated(kind, PRUNED, torch.float64),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("case", UNEVEN)
def test_uniform_is_read_rightly_by_r_and_alpha_alone(case, kind, compress, tmp_path):
    """One rank, one scale, no pattern: the same logits, where the default has others; ranks come back as before."""
    adapters = UNEVEN[case](kind)
    for name, uniform in (("even", True), ("as it is", False)):
        lt.save_peft(adapters, tmp_path / name, uniform=uniform, compress=compress)
    config, _ = written(tmp_path / "even")
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert set(ranks_in(tmp_path / "even").values()) == {config["r"]}
    def base() -> Any:
        return tiny(kind, dtype=torch.float64)

    for own_rank in (True, False):
        assert apart(by_the_top_level(base(), tmp_path / "even", own_rank), adapters.model) < 1e-12
    assert apart(in_peft(base(), tmp_path / "even"), adapters.model) < 1e-12
    differ = bool(written(tmp_path / "as it is")[0]["alpha_pattern"])  # compressed, equal ranks have one scale
    assert (apart(by_the_top_level(base(), tmp_path / "as it is", True), adapters.model) > 1e-3) == differ
    assert differ or (case, compress) == ("scales", True)
    back = lt.load_peft(base(), tmp_path / "even")
    assert apart(back.model, adapters.model) < 1e-12
    assert back.ranks() == lt.load_peft(base(), tmp_path / "as it is").ranks()


def test_what_trains_further_after_uniform_has_no_dead_direction(tmp_path):
    """Zeros in both factors would stay zeros: they are left out when the folder is read."""
    adapters = UNEVEN["ranks"]("bert")
    back = lt.load_peft(tiny(dtype=torch.float64), lt.save_peft(adapters, tmp_path, uniform=True))
    assert all(branch.lora_A.any(1).all() for branch in back.values())
    assert back["0.q"].scaling == adapters["0.q"].scaling


def test_the_base_is_named_so_that_others_find_it(tmp_path):
    """The hub's name as it is; a folder with a warning, unless base_name says where it is for the reader."""
    def name_of(adapters: lt.Adapters, **options: Any) -> tuple[str | None, list[str]]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            lt.save_peft(adapters, tmp_path / "out", **options)
        own = [warning for warning in said if "base_name" in str(warning.message)]
        assert all(warning.filename == __file__ for warning in own)
        return (written(tmp_path / "out")[0]["base_model_name_or_path"],
                [str(warning.message) for warning in own if "known only" in str(warning.message)])

    tiny().save_pretrained(tmp_path / ("a-long-name" * 20) / "base")
    model = type(tiny()).from_pretrained(tmp_path / ("a-long-name" * 20) / "base")
    adapters = lt.adapt(model, lt.LoRA(r=2))
    name, said = name_of(adapters)
    assert name == model.name_or_path
    assert len(said) == 1
    assert "known only as the folder" in said[0]
    assert len(said[0]) <= 300
    assert name_of(adapters, base_name="owner/bert.base-v1") == ("owner/bert.base-v1", [])
    for known, warned in (("roberta-base", 0), ("owner/name", 0), ("./here", 1), ("/not/here", 1), ("a/b/c", 1),
                          ("", 0), ("mymodel", 1)):
        model.name_or_path = known
        model.config._commit_hash = None if warned else "0f3c"
        name, said = name_of(adapters)
        assert (name, len(said)) == (known or None, warned)
        assert ("base_model:" in (tmp_path / "out" / "README.md").read_text()) == (not warned and bool(known))


def test_the_card_says_what_it_is_and_who_can_read_it(tmp_path):
    """Method, ranks by module, scores, the base; a card that a person wrote is left alone, one of ours not."""
    adapters = gated("bert", PRUNED)
    options: dict[str, Any] = {"base_name": "owner/base", "tokenizer": word_tokenizer()}
    lt.save_peft(adapters, tmp_path, scores={"accuracy": 0.87654, "runs": 3}, **options)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for part in ("library_name: peft\nbase_model: \"owner/base\"\n", "salora", lt.SaLoRA.paper, "| query | 2 | 2–3 |",
                 "| value | 1 | 2 |", "1 adapted layers ended with rank 0", "| accuracy | 0.8765 |", "| runs | 3 |",
                 "peft 0.15 or newer", "`uniform=True`", '"sites": "qv"'):
        assert part in card, part
    assert "tokenizer.json" in {path.name for path in tmp_path.iterdir()}
    lt.save_peft(adapters, tmp_path, uniform=True, **options)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "one rank and one scale" in card
    assert "accuracy" not in card
    (tmp_path / "README.md").write_text("mine")
    lt.save_peft(adapters, tmp_path, **options)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_file_in_the_folder_s_place_and_odd_names_of_scores(tmp_path):
    """The first is refused in a sentence; the second do not break the card's table."""
    adapters = learned(lt.LoRA(r=2))
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ExportError, match=r"the folder .* cannot be made .*name another one"):
            lt.save_peft(adapters, folder)
    lt.save_peft(adapters, tmp_path / "out", scores={"acc|x\ny": 0.5})
    assert "\n| acc\\|x y | 0.5 |\n" in (tmp_path / "out" / "README.md").read_text()


BACKEND = "eager"  # names and wrappers are what is tested, not the code that a backend makes


def compiled_before(model: Any) -> tuple[lt.Adapters, Any]:
    made = torch.compile(model, backend=BACKEND)
    return lt.adapt(made, lt.LoRA(r=2), seed=1), made


def compiled_after(model: Any) -> tuple[lt.Adapters, Any]:
    adapters = lt.adapt(model, lt.LoRA(r=2), seed=1)
    return adapters, torch.compile(model, backend=BACKEND)


def compiled_in_parts(model: Any) -> tuple[lt.Adapters, Any]:
    adapters = lt.adapt(model, lt.LoRA(r=2), seed=1)
    model.bert.encoder.layer[0] = torch.compile(model.bert.encoder.layer[0], backend=BACKEND)
    model.classifier = torch.compile(model.classifier, backend=BACKEND)
    return adapters, model


def kept_compiled(model: Any) -> tuple[lt.Adapters, Any]:
    adapters, made = compiled_after(model)
    adapters.model = made
    return adapters, made


@pytest.mark.parametrize("compiled", [compiled_before, compiled_after, compiled_in_parts, kept_compiled])
def test_an_adapter_of_a_compiled_model_has_plain_names(compiled, tmp_path):
    """In the file, in our state, at the sites; the compiled model runs with the branches; peft and we read it."""
    adapters, runs = compiled(tiny())
    before = logits(runs, BATCH)
    shake(adapters)
    move_head(adapters)
    assert apart(runs, adapters.model) < rounding(tiny())
    assert gap(before, logits(runs, BATCH)) > 0.1
    lt.save_peft(adapters, tmp_path)
    plain = learned(lt.LoRA(r=2))
    assert written(tmp_path)[0] == written(lt.save_peft(plain, tmp_path / "plain"))[0]
    assert same_tensors(written(tmp_path)[1], written(tmp_path / "plain")[1])
    assert adapters.state_dict()[0].keys() == plain.state_dict()[0].keys()
    assert [site.path for site in adapters.sites.values()] == [site.path for site in plain.sites.values()]
    assert apart(in_peft(tiny(), tmp_path), plain.model) < rounding(plain.model)
    assert apart(lt.load_peft(torch.compile(tiny(), backend=BACKEND), tmp_path).model, plain.model) < 1e-6
    assert lt.find_sites(torch.compile(tiny(), backend=BACKEND)) == lt.find_sites(tiny())
    adapters.merge()
    adapters.model.save_pretrained(tmp_path / "merged")
    assert apart(reloaded(tiny(), tmp_path / "merged"), plain.model) < rounding(plain.model)


@pytest.mark.parametrize("compiled", [compiled_before, compiled_after, compiled_in_parts])
def test_a_compiled_model_trains_as_another_does(compiled):
    """In our loop, which compares the names of what trains with those that were listed."""
    adapters, _ = compiled(tiny())
    plain = lt.adapt(tiny(), lt.LoRA(r=2), seed=1)
    for one in (adapters, plain):
        lt.Trainer(one, make_rows(16), collate, lt.train_config("tiny", steps=2, batch_size=8), cpu=True).run()
    assert gap(logits(adapters.model, BATCH), logits(plain.model, BATCH)) < 1e-5


def test_wrappers_that_must_come_after_adapt_are_refused():
    """One that took note of the parameters, and one part that hides its layers: neither is passed over silently."""
    model = tiny()
    model.bert.encoder.layer[0] = torch.compile(model.bert.encoder.layer[0], backend=BACKEND)
    with pytest.raises(ValueError, match=r"bert\.encoder\.layer\.0 was compiled by itself.*adapt the model first"):
        lt.adapt(model, lt.LoRA(r=2))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match=r"is in a DistributedDataParallel.*adapt the model inside"):
            lt.adapt(nn.parallel.DistributedDataParallel(tiny()), lt.LoRA(r=2))
    finally:
        torch.distributed.destroy_process_group()
    assert next(iter(lt.adapt(nn.DataParallel(tiny()), lt.LoRA(r=2)).owners)).startswith("bert.")


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module."])
def test_names_with_a_wrapper_s_prefix_are_read_too(wrapper, tmp_path):
    """As peft and an earlier save_peft wrote them of a compiled or a parallel model, in patterns as well."""
    theirs = by_peft("bert", tmp_path, target_modules=["query"], modules_to_save=["classifier"],
                     rank_pattern={"bert.encoder.layer.1.attention.self.query": 2})
    config, tensors = written(tmp_path)
    save_file({name.replace(PREFIX, PREFIX + wrapper): value for name, value in tensors.items()}, tmp_path / WEIGHTS)
    config["rank_pattern"] = {"^" + re.escape(f"{wrapper}bert.encoder.layer.1.attention.self.query"): 2}
    config["modules_to_save"] = [f"{wrapper}classifier"]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert apart(lt.load_peft(tiny(), tmp_path).model, theirs) < rounding(theirs)


LAYER, COMPILED_LAYER = "layer.0.attention.self.query", "layer.0._orig_mod.attention.self.query"


@pytest.mark.parametrize(("first", "pattern", "key"), [
    *((True, pattern, key) for pattern in ("alpha_pattern", "rank_pattern") for key in (LAYER, COMPILED_LAYER)),
    (False, "rank_pattern", LAYER)])
def test_patterns_mean_what_they_meant_for_layers_compiled_one_by_one(first, pattern, key, tmp_path):
    """Compiled before peft came, a pattern has to hold the wrapper's name; compiled after it, the rank tells."""
    def in_parts(model: Any) -> Any:
        for i, layer in enumerate(model.bert.encoder.layer):
            model.bert.encoder.layer[i] = torch.compile(layer, backend=BACKEND)
        return model

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query"], init_lora_weights=False, **{pattern: {key: 2}})
    theirs = get_peft_model(in_parts(tiny()) if first else tiny(), config).eval()
    if not first:
        in_parts(theirs.get_base_model())
    theirs.save_pretrained(tmp_path)
    assert any("_orig_mod" in name for name in written(tmp_path)[1])
    assert apart(lt.load_peft(tiny(), tmp_path).model, theirs) < rounding(theirs)


def test_a_vocabulary_that_was_resized_in_peft_is_read(tmp_path):
    """peft writes both embeddings by itself, the tied one twice; we read them into a model of that size."""
    tiny("llama", head="causal", tie_word_embeddings=True).save_pretrained(tmp_path / "base")

    def base() -> Any:
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()
        model.resize_token_embeddings(VOCAB + 2, mean_resizing=False)
        return model

    theirs = get_peft_model(base(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    with torch.no_grad():
        theirs.get_base_model().model.embed_tokens.weight[VOCAB:] += 1
    theirs.save_pretrained(tmp_path / "theirs")
    assert sum("weight" in name and "lora" not in name for name in written(tmp_path / "theirs")[1]) == 2
    batch = {**BATCH, "input_ids": (BATCH["input_ids"] + 2) % (VOCAB + 2), "labels": None}
    adapters = lt.load_peft(base(), tmp_path / "theirs")
    assert gap(logits(adapters.model, batch), logits(theirs, batch)) < rounding(theirs)


# ---- heads, names, other models -------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "head", "modules"), [
    ("bert", ("bert.pooler", "classifier"), ["bert.pooler", "classifier"]),  # as where a checkpoint lacked both
    ("roberta", None, ["classifier"]),
    ("roberta", ("classifier.out_proj",), ["classifier"]),  # peft takes all of it for a classification
    ("distilbert", ("classifier",), ["classifier"]),  # also the end of pre_classifier, which peft takes too
    ("gpt2", (), ["score"]),
    ("bart", (), None),
])
def test_heads(kind, head, modules, tmp_path):
    """A head of several modules, a part of one, one whose name ends another's, none: with what peft takes for it."""
    adapters = learned(lt.LoRA(r=2), kind, head=head)
    lt.save_peft(adapters, tmp_path)
    assert written(tmp_path)[0]["modules_to_save"] == modules
    assert apart(in_peft(tiny(kind), tmp_path), adapters.model) < rounding(adapters.model)
    back = lt.load_peft(tiny(kind), tmp_path)
    assert apart(back.model, adapters.model) < rounding(adapters.model)
    assert set(adapters.head_names) <= set(back.head_names)


class Other(nn.Module):
    """A model of no known architecture, with a path that is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.proj = nn.Linear(6, 8)
        self.inner = nn.ModuleDict({"proj": nn.Linear(8, 8)})
        self.out = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.inner["proj"](torch.tanh(self.proj(x)))))


def test_any_model_by_module_paths(tmp_path):
    """Adapting proj leaves inner.proj alone in peft too, though peft compares the ends of names."""
    adapters = lt.adapt(Other(), lt.LoRA(r=2, sites=("proj",)), head=("out",))
    shake(adapters)
    move_head(adapters)
    x = torch.randn(5, 6)
    lt.save_peft(adapters, tmp_path)
    assert written(tmp_path)[0]["modules_to_save"] == [".out"]  # "out" would also be the end of peft's lora_dropout
    loaded = in_peft(Other(), tmp_path)
    assert torch.allclose(loaded(x), adapters.model(x), atol=1e-6)
    assert not isinstance(loaded.base_model.model.inner["proj"], peft.tuners.lora.LoraLayer)
    back = lt.load_peft(Other(), tmp_path)
    assert torch.allclose(back.model(x), adapters.model(x), atol=1e-6)
    assert list(back) == ["proj"]


def test_transformers_alone_loads_the_adapter(tmp_path):
    """`model.load_adapter`, which transformers has without PeftModel."""
    adapters = learned(lt.LoRA(r=4, rank_pattern={"0.q": 2}), "llama")
    lt.save_peft(adapters, tmp_path)
    model = tiny("llama")
    model.load_adapter(str(tmp_path))
    assert apart(model, adapters.model) < rounding(adapters.model)


def test_saving_changes_nothing(tmp_path):
    """The model, its flags and the adapters' state are as before."""
    adapters = trained(lt.COLA(r=2, chain=2))
    before = copy.deepcopy(adapters.model.state_dict())
    flags = {name: p.requires_grad for name, p in adapters.model.named_parameters()}
    lt.save_peft(adapters, tmp_path, compress=True)
    assert same_tensors(before, adapters.model.state_dict())
    assert flags == {name: p.requires_grad for name, p in adapters.model.named_parameters()}


def refused_exports() -> dict[str, tuple[Any, str]]:
    def merged_off() -> lt.Adapters:
        adapters = learned(lt.LoRA(r=2))
        adapters.merge_and_unload()
        return adapters

    return {
        "unloaded": (merged_off, r"the adapters are unloaded"),
        "full": (lambda: lt.adapt(tiny(), lt.FullFineTuning()), r"full trains pretrained weights.*save_pretrained"),
        "head": (lambda: lt.adapt(tiny(), lt.HeadOnly()), r"head puts no branch on any matrix"),
        "schedule": (lambda: trained(lt.DeltaLoRA(r=2, K=1, lam_end=1.0)), r"λ schedule at 0\.q.*merge_and_unload"),
        "closed": (lambda: gated("bert", {site: [-9.0] * 3 for site in ("0.q", "0.v", "1.q", "1.v")}), "has rank 0"),
        "houlsby": (lambda: lt.adapt(tiny(), lt.Houlsby()), r"houlsby puts modules.*keep adapters\.state_dict\(\)"),
        "prompt": (lambda: lt.adapt(tiny(), lt.PromptTuning(num_virtual_tokens=2)), r"prompt.*keep adapters\.state"),
        "adalora": (lambda: lt.adapt(tiny(), lt.AdaLoRA(r=2, target_r=1)), r"adalora.*call adapters\.merge_and"),
        "tied": (lambda: lt.adapt(tiny_lm(), lt.LoRA(r=2), head=("model.embed_tokens",)), "tied to lm_head.weight"),
    }


def tiny_lm() -> nn.Module:
    from transformers import LlamaForCausalLM

    config = tiny("llama").config
    config.tie_word_embeddings = True
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("case", refused_exports())
def test_what_has_no_such_form_is_refused(case, tmp_path):
    """In a sentence that says what to do instead; nothing is written."""
    make, says = refused_exports()[case]
    adapters = make()
    with pytest.raises(ExportError, match=says):
        lt.save_peft(adapters, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", [lt.Houlsby(), lt.PromptTuning(num_virtual_tokens=2)])
def test_what_can_neither_be_exported_nor_merged_is_kept_by_its_state(method, tmp_path):
    """As the refusal says: the state, read by the same adapters on a model loaded anew, gives the same logits."""
    adapters, batch = train(method, tiny(), steps=4)[0], make_batch()
    torch.save(adapters.state_dict(), tmp_path / "state.pt")
    anew = lt.adapt(tiny(), method)
    assert not torch.equal(logits(anew.model, batch), logits(adapters.model, batch))
    anew.load_state_dict(*torch.load(tmp_path / "state.pt"))
    assert torch.equal(logits(anew.model, batch), logits(adapters.model, batch))


# ---- what peft wrote, is read ---------------------------------------------------------------------------------


def by_peft(kind: str, folder: Path, seed: int = 0, **config: Any) -> PeftModel:
    """An adapter made, filled with random numbers and saved by stock peft."""
    wrapped = get_peft_model(tiny(kind), LoraConfig(**{"r": 4, "lora_alpha": 12, **config}))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    wrapped.save_pretrained(folder)
    return wrapped.eval()


CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "names": ("bert", {"target_modules": ["query", "value"]}),
    "a pattern": ("bert", {"target_modules": r".*layer\.1.*(query|output\.dense)"}),
    "some layers": ("llama", {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}),
    "patterns": ("bert", {"target_modules": ["query", "value"], "rank_pattern": {"value": 2, r"layer\.0\..*query": 6},
                          "alpha_pattern": {r"^bert\.encoder\.layer\.1\.attention\.self\.query": 3, "query": 5}}),
    "all linear": ("opt", {"target_modules": "all-linear", "exclude_modules": ["fc1"]}),
    "rslora": ("t5", {"target_modules": ["q", "v", "wo"], "use_rslora": True, "rank_pattern": {"wo": 2}}),
    "a head": ("distilbert", {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier", "classifier"]}),
    "a task": ("roberta", {"target_modules": ["key"], "task_type": "SEQ_CLS", "lora_dropout": 0.1}),
    "fused": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "another start": ("bart", {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_an_adapter_trained_by_peft(case, tmp_path):
    """The same logits, merged as well, and the same again after it was written here."""
    kind, config = CONFIGS[case]
    theirs = by_peft(kind, tmp_path / "theirs", **config)
    adapters = lt.load_peft(tiny(kind), tmp_path / "theirs")
    assert apart(adapters.model, theirs) < rounding(theirs)
    lt.save_peft(adapters, tmp_path / "ours")
    assert apart(in_peft(tiny(kind), tmp_path / "ours"), theirs) < rounding(theirs)
    assert apart(adapters.merge_and_unload(), theirs) < rounding(theirs)
    assert apart(tiny(kind), theirs) > 0.01


def test_what_is_read_trains_further(tmp_path):
    """In our loop: the factors and the head move from where peft left them; remove() gives the base model back."""
    by_peft("bert", tmp_path, target_modules=["query"], modules_to_save=["classifier"], lora_dropout=0.1)
    base = tiny()
    adapters = lt.load_peft(base, tmp_path, seed=0)
    assert adapters.method.lora_dropout == 0.1
    start = {name: p.detach().clone() for name, p in base.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in start} == {"lora_A", "lora_B", "weight", "bias"}
    lt.Trainer(adapters, make_rows(32), collate, lt.train_config("tiny", steps=4, batch_size=8), cpu=True).run()
    assert all(not torch.equal(base.get_parameter(name), value) for name, value in start.items())
    assert same_tensors(adapters.remove().state_dict(), tiny().state_dict())


def test_a_lora_across_q_k_and_v_stays_one(tmp_path):
    """peft's adapter on c_attn writes to all of it: one branch, named by its path, at peft's rank."""
    by_peft("gpt2", tmp_path, target_modules=["c_attn"], fan_in_fan_out=True)
    adapters = lt.load_peft(tiny("gpt2"), tmp_path)
    assert adapters.ranks() == {"transformer.h.0.attn.c_attn": 4, "transformer.h.1.attn.c_attn": 4}
    assert adapters["transformer.h.0.attn.c_attn"].lora_B.shape == (48, 4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "uses use_dora, which is more than LoRA"),
    "biases": ({"bias": "lora_only"}, "bias = 'lora_only'"),
    "all biases": ({"bias": "all"}, "bias = 'all'"),
    "layers again": ({"layer_replication": [[0, 2], [1, 2]]}, "uses layer_replication"),
    "parameters": ({"target_parameters": ["attention.self.key.weight"]}, "uses target_parameters"),
    "tokens only where they are called": ({"alora_invocation_tokens": [3]}, "uses alora_invocation_tokens"),
    "lora_bias": ({"lora_bias": True}, "uses lora_bias"),
    "pissa": ({"init_lora_weights": "pissa"}, "'pissa' changes the pretrained weights too.*path_initial_model"),
    "tokens": ({"trainable_token_indices": [1, 2]}, "uses trainable_token_indices"),
    "embeddings": ({"target_modules": ["word_embeddings", "query"]}, r"neither LoRA.*lora_embedding_A"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_more_than_lora_is_refused_by_name(case, tmp_path):
    """The sentence names the setting; the model is as it was."""
    config, says = REFUSED[case]
    wrapped = get_peft_model(tiny(), LoraConfig(**{"r": 4, "target_modules": ["query"], **config}))
    wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
    model = tiny()
    with pytest.raises(ExportError, match=says):
        lt.load_peft(model, tmp_path)
    assert same_tensors(model.state_dict(), tiny().state_dict())


DEEP = json.loads("[" * 300 + "]" * 300)
ODD: dict[str, tuple[dict[str, Any] | str | bytes, str]] = {
    "a list": ("[1]", r"holds \[1\] and no object"),
    "null": ("null", "holds None and no object"),
    "nothing": ("", "is damaged"),
    "half": ('{"peft_type": "LORA",', "is damaged"),
    "another encoding": ('{"peft_type": "LÖRA"}'.encode("latin-1"), "is damaged"),
    "very deep": ("[" * 100_000, "is damaged"),
    "no type": ({"peft_type": None}, "type None, and only LORA"),
    "an unknown type": ({"peft_type": "x" * 999}, "type x.*and only LORA"),
    "another type": ({"peft_type": "IA3"}, "type IA3, and only LORA is read"),
    "a deep type": ({"peft_type": DEEP}, "and only LORA"),
    "no rank": ({"r": 0}, "r = 0, which must be a whole number above 0"),
    "below 0": ({"r": -4}, "r = -4, which"),
    "half a rank": ({"r": 4.5}, r"r = 4\.5, which"),
    "true": ({"r": True}, "r = True, which"),
    "a long rank": ({"r": 10**4000}, "r = a number of"),
    "alpha null": ({"lora_alpha": None}, "lora_alpha = None, which must be a finite number above 0"),
    "alpha text": ({"lora_alpha": "12"}, "lora_alpha = '12', which"),
    "alpha nan": ({"lora_alpha": float("nan")}, "lora_alpha = nan, which"),
    "alpha huge": ({"lora_alpha": 1e300}, r"lora_alpha = 1e\+300, which"),
    "alpha huger": ({"lora_alpha": 10**400}, "lora_alpha = a number of"),
    "dropout": ({"lora_dropout": "a lot"}, "lora_dropout = 'a lot', which must be a number in"),
    "no pattern": ({"rank_pattern": [4]}, r"rank_pattern = \[4\], which must be an object of regular expressions"),
    "a broken pattern": ({"rank_pattern": {"(": 4}}, r"rank_pattern = \{'\(': 4\}, which must be an object of"),
    "a deep pattern": ({"alpha_pattern": {"(" * 50_000: 4}}, "alpha_pattern = .* an object of regular expressions"),
    "a long repeat": ({"alpha_pattern": {"a{" + "9" * 99 + "}": 4}}, "alpha_pattern = .* an object of regular"),
    "a pattern's rank": ({"rank_pattern": {"query": "4"}}, "rank_pattern = .*'4'.* each with a whole number"),
    "a pattern's alpha": ({"alpha_pattern": {"query": DEEP}}, "alpha_pattern = .* each with a finite number"),
    "rslora": ({"use_rslora": "no"}, "use_rslora = 'no', which must be true or false"),
    "modules": ({"modules_to_save": "classifier"}, "modules_to_save = 'classifier', which must be a list of module"),
    "module": ({"modules_to_save": [3]}, r"modules_to_save = \[3\], which"),
    "targets": ({"target_modules": {"query": 1}}, "target_modules = .* must be a list of module names or a text"),
    "bias": ({"bias": DEEP}, "bias = .*biases were trained too"),
    "start": ({"init_lora_weights": DEEP}, "init_lora_weights = .*changes the pretrained weights too"),
    "unknown settings": ({"x" * 99 + str(i): 1 for i in range(99)}, "is more than LoRA"),
}


@pytest.fixture(scope="module")
def queries(tmp_path_factory) -> Path:
    """An adapter of stock peft on every query."""
    folder = tmp_path_factory.mktemp("queries")
    by_peft("bert", folder, target_modules=["query"])
    return folder


@pytest.mark.parametrize("case", [*ODD, "int8", "float8_e4m3fn"])
def test_an_odd_file_is_refused_in_a_sentence(case, queries, tmp_path):
    """Not an object, another type, no number, no pattern, factors that are no floats of 16 bits: named, in at most
    300 letters; the model is as it was."""
    config, tensors = written(queries)
    given, says = ODD.get(case, ({}, rf"lora_A.weight is torch.{case}, and a LoRA is read in floats"))
    text = given if isinstance(given, str | bytes) else json.dumps({**config, **given})
    (tmp_path / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    dtype = torch.float32 if case in ODD else getattr(torch, case)
    save_file({name: value.to(dtype) for name, value in tensors.items()}, tmp_path / WEIGHTS)
    model = tiny()
    with pytest.raises(ExportError, match=says) as refused:
        lt.load_peft(model, tmp_path)
    assert len(str(refused.value)) <= 300
    assert "\n" not in str(refused.value)
    assert same_tensors(model.state_dict(), tiny().state_dict())


def test_files_that_do_not_fit_are_refused(tmp_path):
    """Missing, pickled, cut off, of another width, another head, another rank than said, another architecture."""
    def refused(says: str, model: nn.Module | None = None, error: type[Exception] = ExportError) -> None:
        with pytest.raises(error, match=says):
            lt.load_peft(tiny() if model is None else model, tmp_path)

    refused("holds no adapter_config.json and no adapter_model.safetensors")
    (tmp_path / "adapter_model.bin").touch()
    refused("pickle")
    by_peft("bert", tmp_path, target_modules=["query"], modules_to_save=["classifier"])
    refused("this is another model's adapter", tiny(hidden_size=24, intermediate_size=24))
    refused(r"classifier.weight is \(3, 16\) in the model and \(2, 16\).*num_labels", tiny(labels=3))
    refused("matches nothing", tiny("llama"), ValueError)
    for method in (lt.LoRA(r=2), lt.HeadOnly()):
        refused("adapted already", lt.adapt(tiny(), method).model, ValueError)
    config, tensors = written(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({**config, "r": 5}))
    refused("the configuration says rank 5")
    (tmp_path / CONFIG).write_text(json.dumps(config))
    first = next(name for name in tensors if "lora_A" in name)
    save_file({name: value for name, value in tensors.items() if name != first}, tmp_path / WEIGHTS)
    refused("only one factor of bert.encoder.layer.0.attention.self.query")
    save_file({f"{PREFIX}q.lora_{letter}.weight": torch.zeros(4, 4) for letter in "AB"}, tmp_path / WEIGHTS)
    refused("the model has no linear layer 'q'")
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:100])
    refused("is damaged")


def test_what_is_not_finite_is_neither_written_nor_read(tmp_path):
    """At every door, with its site; and nothing is left there."""
    adapters = learned(lt.LoRA(r=2))
    lt.save_peft(adapters, tmp_path / "good")
    adapters.merge()
    adapters["1.v"].lora_B.data[0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"not finite at branch\.1\.v\.lora_B, so nothing was written"):
        lt.save_peft(adapters, tmp_path / "out")
    adapters["1.v"].lora_B.data[0, 0] = 0
    adapters.owner("0.q").weight.data[0, 0] = float("inf")
    with pytest.raises(SaveError, match=r"not finite at bert\.encoder\.layer\.0\.attention\.self\.query\.weight"):
        adapters.model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    _, tensors = written(tmp_path / "good")
    name = next(name for name in tensors if name.endswith("1.attention.self.value.lora_A.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, tmp_path / "good" / WEIGHTS)
    model = tiny()
    with pytest.raises(ExportError, match=r"not finite at bert\.encoder\.layer\.1\.attention\.self\.value\.lora_A"):
        lt.load_peft(model, tmp_path / "good")
    assert not any(isinstance(module, Adapted) for module in model.modules())


# ---- plain checkpoints ----------------------------------------------------------------------------------------


def reloaded(model: Any, folder: Path) -> nn.Module:
    """What transformers alone makes of a saved folder; nothing may be missing or left over."""
    loaded, info = type(model).from_pretrained(folder, output_loading_info=True, dtype=model.dtype)
    assert not any(info.values()), info
    return loaded


def assert_reloads(model: Any, folder: Path) -> None:
    """The folder holds every byte of the (merged) model, and what is loaded from it computes the same."""
    loaded = reloaded(model, folder)
    held = {name.replace(".base.", "."): value for name, value in model.state_dict().items() if ".lora." not in name}
    assert same_tensors(loaded.state_dict(), held)
    assert apart(loaded, model) < rounding(loaded)


def assert_unloads(adapters: lt.Adapters, before: torch.Tensor, folder: Path) -> None:
    """A plain transformers model with the same logits as before, and the same bytes after reloading.

    Bytes, not logits to the bit: transformers lays a matrix out anew, and the layout decides a product's last bits.
    """
    model = adapters.merge_and_unload()
    assert not any(isinstance(module, Adapted) for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.allclose(logits(model, BATCH), before, atol=1e-12)
    model.save_pretrained(folder)
    assert_reloads(model, folder)
    with pytest.raises(RuntimeError, match=r"the adapters are unloaded; call adapt\(\) again"):
        adapters.merge()


@pytest.mark.parametrize("kind", FAMILIES)
def test_merged_or_unloaded_a_plain_checkpoint_is_saved(kind, tmp_path):
    """Merged, the wrappers stay and the file has plain names; restore() gives W's bytes back; unloaded, they go."""
    assert set(FAMILIES) == set(ARCHITECTURES)
    plain = tiny(kind, dtype=torch.float64, labels=3).state_dict()
    adapters = learned(lt.LoRA(r=4, sites="all"), kind, torch.float64, labels=3)  # 2 is what BART's file cannot say
    before = logits(adapters.model, BATCH)
    adapters.merge()
    adapters.model.save_pretrained(tmp_path / "merged")
    assert_reloads(adapters.model, tmp_path / "merged")
    adapters.restore()
    assert all(torch.equal(owner.base.weight, plain[f"{path}.weight"]) for path, owner in adapters.owners.items())
    assert_unloads(adapters, before, tmp_path / "plain")
    assert adapters.model.state_dict().keys() == plain.keys()


@pytest.mark.parametrize("method", [lt.DeltaLoRA(r=2, K=1, lam_end=1.0), lt.FullFineTuning(),
                                    lt.AdaLoRA(r=4, target_r=2, sites="qv", tinit=2, tfinal=3)], ids=lambda m: m.name)
def test_what_has_no_low_rank_form_is_saved_plain_too(method, tmp_path):
    """AdaLoRA's layers stand inside the model, so only when they are off it."""
    adapters = trained(method)
    if method.name == "adalora":
        with pytest.raises(SaveError, match="merge_and_unload"):
            adapters.model.save_pretrained(tmp_path)
    assert_unloads(adapters, logits(adapters.model, BATCH), tmp_path)


def test_a_live_model_is_not_saved_as_if_it_were_plain(tmp_path):
    """Its checkpoint would load with fresh weights: refused, until the branches are merged or taken off."""
    adapters = learned(lt.LoRA(r=2))
    copied = copy.deepcopy(adapters.model)
    for model in (adapters.model, copied):
        with pytest.raises(SaveError, match=r"4 layers carry live branches .*save_peft"):
            model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    adapters.merge()
    with pytest.raises(SaveError, match="leave state_dict out"):
        adapters.model.save_pretrained(tmp_path, state_dict=adapters.model.state_dict())
    adapters.remove().save_pretrained(tmp_path)
    assert same_tensors(reloaded(tiny(), tmp_path).state_dict(), tiny().state_dict())
    assert "save_pretrained" not in vars(adapters.model)


def test_merged_models_are_also_adapted_again(tmp_path):
    """merge_and_unload gives a model that a second adapter can go on, as a chain of two would."""
    first = learned(lt.LoRA(r=2), dtype=torch.float64)
    model = first.merge_and_unload()
    second = lt.adapt(model, lt.LoRA(r=2, sites="ko"), head=())
    shake(second)
    before = logits(model, BATCH)
    assert torch.allclose(logits(second.merge_and_unload(), BATCH), before, atol=1e-12)

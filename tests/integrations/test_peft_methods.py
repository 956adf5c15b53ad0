"""AdaLoRA, prefix and prompt tuning: peft's parts in our loop, and what peft itself would have done."""

from __future__ import annotations

import copy
import inspect
import json
import subprocess
import sys

import pytest
import torch
from helpers import (
    EOS,
    FAMILIES,
    PAD,
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
from tiny_models import command, data_folder, model_folder
from torch import nn

import lowrank_teach as lt
from lowrank_teach.adapters import adapt
from lowrank_teach.analysis import measures
from lowrank_teach.experiments.fit import site_measures
from lowrank_teach.methods import METHODS, Method
from lowrank_teach.methods.base import Registry
from lowrank_teach.training.batches import linear_schedule
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer

F64 = torch.float64
WRITERS = (("gpt2", "causal"), ("opt", "causal"), ("llama", "causal"), ("t5", "seq2seq"), ("bart", "seq2seq"))
PREFIX, PROMPT = lt.PrefixTuning(num_virtual_tokens=4), lt.PromptTuning(num_virtual_tokens=4)


# ---- known without peft -------------------------------------------------------------------------------------


def test_the_names_are_known_and_peft_is_not_imported():
    script = """
import json, sys
sys.modules["peft"] = None
from lowrank_teach.methods import METHODS, Method
names = [n for n in METHODS if n in ("adalora", "prefix", "prompt")]
early = "lowrank_teach.integrations.peft_methods" in sys.modules
made = METHODS["adalora"](r=6, target_r=3)
same = Method.from_dict(made.to_dict()) == made
late = "lowrank_teach.integrations.peft_methods" in sys.modules
print(json.dumps([names, early, same, late, "transformers" in sys.modules]))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout) == [["adalora", "prefix", "prompt"], False, True, True, False]


@pytest.mark.parametrize("method", [lt.AdaLoRA(r=4, target_r=2), PREFIX, PROMPT], ids=lambda m: m.name)
def test_without_peft_the_way_to_get_it_is_said_and_the_model_is_left_alone(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model = tiny()
    before = [(n, p.requires_grad) for n, p in model.named_parameters()]
    with pytest.raises(ImportError, match=r"run through peft, which is not installed: "
                                          r"pip install 'lowrank-teach\[baselines\]'"):
        adapt(model, method, seed=0)
    assert [(n, p.requires_grad) for n, p in model.named_parameters()] == before


def test_the_command_line_knows_them_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    words = ["train", "adalora", "--backbone", str(model_folder(tmp_path / "model")), "--profile", "tiny", "--json",
             "--set", "steps=6", "--set", "r=4", "--set", "target_r=2"]
    status, out, _ = command(monkeypatch, capsys, *words)
    assert status == 0
    assert sum(json.loads(out)["ranks"].values()) == 2 * 12
    status, _, said = command(monkeypatch, capsys, *words, "--set", "target_r=5")
    assert (status, "target_r = 5 must lie above 0 and below r = 4" in said) == (2, True)
    monkeypatch.setitem(sys.modules, "peft", None)
    status, _, said = command(monkeypatch, capsys, *words, "--no-cache")
    assert (status, said.count("pip install"), said.count("\n")) == (2, 1, 1)


def test_the_registry_is_a_dict_that_may_import_late():
    names = Registry()
    names["plain"] = lt.LoRA
    names.later("json", "json")
    assert list(names) == ["plain", "json"]
    assert len(names) == 2
    assert "json" in names
    assert "other" not in names
    assert names.get("other") is None
    with pytest.raises(KeyError, match="has no method named 'json'"):
        names["json"]
    assert names.pop("plain") is lt.LoRA
    assert list(names) == ["json"]
    assert METHODS["adalora"] is lt.AdaLoRA
    assert Method.from_dict(PREFIX.to_dict()) == PREFIX


# ---- AdaLoRA ------------------------------------------------------------------------------------------------

peft = pytest.importorskip("peft")


def test_the_penalty_is_what_pefts_forward_adds():
    model = tiny(dtype=F64)
    adapters = adapt(model, lt.AdaLoRA(r=4, target_r=2, orth_reg_weight=0.3), seed=0)
    batch = make_batch()
    added = adapters.rule.tuner(**batch).loss - model(**batch).loss
    assert added.item() > 0.1
    assert adapters.rule.penalty().item() == pytest.approx(added.item(), abs=1e-10)
    assert adapt(tiny(), lt.AdaLoRA(r=4, target_r=2, orth_reg_weight=0.0), seed=0).rule.penalty() is None


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_it_trains_as_pefts_own_recipe_does(kind):
    """The loop of peft's documentation, on the same rows and start: the same weights, ranks and masks."""
    method = lt.AdaLoRA(r=4, target_r=2, tinit=3, tfinal=5, deltaT=2, orth_reg_weight=0.3)
    steps, settings = 16, {"steps": 16, "lr": 1e-2, "max_grad_norm": 0.0, "weight_decay": 0.01}
    made = trainer(method, tiny(kind, dtype=F64), **settings)
    start = bytes_of(made.adapters.model)
    made.run()

    model = tiny(kind, dtype=F64)
    fused = kind == "gpt2"
    tuner = peft.AdaLoraModel(model, {"default": peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=16, tinit=3, tfinal=5, deltaT=2, orth_reg_weight=0.3, total_step=steps,
        target_modules=list(made.adapters.rule.paths.values()), fan_in_fan_out=fused)}, "default")
    model.load_state_dict(start)
    # on a base that is no float32, this version of peft lets its record of the first rank train, too
    listed = made.adapters.listed_names()[0]
    trained = [p.requires_grad_(n in listed) for n, p in model.named_parameters() if n in listed or "ranknum" in n]
    trained = [p for p in trained if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.01)
    model.train()
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = 1e-2 * linear_schedule(step, steps, made.config.warmup)
        batch, = made._batches("train", step)
        tuner(**batch).loss.backward()
        optimizer.step()
        tuner.update_and_allocate(step)
        optimizer.zero_grad()
    theirs = bytes_of(model)
    for name, value in bytes_of(made.adapters.model).items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-9, msg=name)
    assert tuner.peft_config["default"].rank_pattern == made.rule.config.rank_pattern


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "t5", "bart"])
def test_the_budget_is_reached(kind):
    """Ranks by site name sum to target_r a matrix, and are what is left of E; they begin at r."""
    model = tiny(kind)
    adapters = adapt(model, lt.AdaLoRA(r=4, target_r=2), seed=0)
    names = list(adapters.ranks())
    assert set(adapters.ranks().values()) == {4}
    made = Trainer(adapters, make_rows(), collate_for("classification"), TrainConfig(steps=12, batch_size=8, lr=1e-2),
                   cpu=True)
    made.run()
    ranks = adapters.ranks()
    assert list(ranks) == names
    assert sum(ranks.values()) == 2 * len(ranks)
    assert len(set(ranks.values())) > 1  # spread by importance, not two everywhere
    assert names[0] == {"gpt2": "0.qkv", "t5": "enc.0.q", "bart": "enc.0.q"}.get(kind, "0.q")
    for name, layer in adapters.rule.layers():
        assert int((layer.lora_E["default"] != 0).sum()) == ranks[name]


@pytest.mark.parametrize("when", [{"tinit": 0, "tfinal": 0}, {"tinit": 0, "tfinal": 10}, {"tinit": 10, "tfinal": 1},
                                  {"tinit": 2, "tfinal": 4, "deltaT": 5}, {"tinit": 0.25, "tfinal": 0.5,
                                                                          "deltaT": 0.1}])
def test_the_budget_is_reached_at_its_step_and_kept(when):
    """Nothing falls up to tinit; from total − tfinal on the sum is the target, at every step."""
    made = trainer(lt.AdaLoRA(r=4, target_r=1, **when))
    outcome = made.run()
    sums = {step: value for step, _, name, value in outcome.history if name == "sum_of_ranks"}
    c = made.rule.config
    assert all(sums[step] == 48 for step in range(1, c.tinit + 1))
    assert all(sums[step] == 12 for step in range(c.total_step - c.tfinal, 13))
    falling = [sums[step] for step in range(c.tinit + 1, 13)]
    assert falling == sorted(falling, reverse=True)
    assert sums[12] == 12


@pytest.mark.parametrize(("tinit", "tfinal"), [(6, 6), (0, 11), (0.5, 0.5)])
def test_a_schedule_without_room_is_refused(tinit, tfinal):
    with pytest.raises(ValueError, match=r"tinit = \d+ and tfinal = \d+ of 12 steps"):
        train(lt.AdaLoRA(r=4, target_r=2, tinit=tinit, tfinal=tfinal))


def test_it_is_evaluated_on_the_way_only_once_the_ranks_are_settled():
    found = []
    made = trainer(lt.AdaLoRA(r=4, target_r=2, tfinal=5), eval_every=2,
                   evaluate=lambda model: found.append(made.clock.step) or {"accuracy": 0.5})
    made.run()
    assert found == [8, 10, 12]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_update_is_read_off_as_factors_of_the_final_rank(kind):
    """W + left right is what the layer multiplies with, and what merging writes; spectra have that rank."""
    model, batch = tiny(kind, dtype=F64), make_batch()
    adapters, _ = train(lt.AdaLoRA(r=4, target_r=2), model)
    before = logits(model, batch)
    updates, ranks = adapters.rule.own_updates(), adapters.ranks()
    measured = {(site, what): value for site, what, value in site_measures(adapters)}
    for name, layer in adapters.rule.layers():
        W, left, right = updates[name]
        assert left.shape[1] == right.shape[0] == ranks[name] == measured[name, "rank"]
        assert 0 < measured[name, "cosine"] <= 1
        x = torch.randn(3, W.shape[1], dtype=F64)
        bias = layer.get_base_layer().bias
        torch.testing.assert_close(layer(x) - (0 if bias is None else bias), x @ (W.double() + left @ right).t(),
                                   rtol=0, atol=1e-5)  # W comes back in float32
    adapters.merge()
    assert adapters.state == "merged"
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-11)
    again = adapters.rule.own_updates()
    assert all(torch.equal(updates[name][0], again[name][0]) for name in updates)  # the pretrained W, not the merged


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restore_gives_the_bytes_back_and_unload_keeps_the_function(dtype):
    model, batch = tiny(dtype=dtype), make_batch()
    start = bytes_of(model)
    adapters, _ = train(lt.AdaLoRA(r=4, target_r=2), model)
    assert {p.dtype for p in adapters.extra_parameters()} == {torch.float32}
    live = logits(model, batch)
    adapters.merge()
    weights = {f"{path}.base_layer.weight": f"{path}.weight" for path in adapters.rule.paths.values()}
    assert all(not torch.equal(model.state_dict()[inner], start[plain]) for inner, plain in weights.items()
               if adapters.ranks()[next(n for n, p in adapters.rule.paths.items() if f"{p}.weight" == plain)])
    adapters.restore()
    assert all(torch.equal(model.state_dict()[inner], start[plain]) for inner, plain in weights.items())
    assert torch.equal(logits(model, batch), live)
    plain = adapters.merge_and_unload()
    assert set(bytes_of(plain)) == set(start)
    assert not hasattr(plain, "peft_config")
    torch.testing.assert_close(logits(plain, batch).to(live), live, rtol=0,
                               atol=1e-5 if dtype == torch.float32 else 0.2)


def test_gpt2s_fused_matrix_is_taken_whole_or_not_at_all():
    model = tiny("gpt2")
    with pytest.raises(ValueError, match=r"holds more than 0\.q, 0\.v.*choose q, k and v together"):
        adapt(model, lt.AdaLoRA(r=4, target_r=2, sites="qv"), seed=0)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert list(adapt(model, lt.AdaLoRA(r=4, target_r=2, sites="qkv"), seed=0).ranks()) == ["0.qkv", "1.qkv"]
    with pytest.raises(ValueError, match="rank 40 is larger than"):
        adapt(tiny(), lt.AdaLoRA(r=40, target_r=2), seed=0)


def test_counts_of_adalora():
    """r (d + k + 1) a matrix; the allocator's own record of ranks is no parameter that trains."""
    model = tiny()
    adapt(model, lt.AdaLoRA(r=4, target_r=2, sites="qv"), seed=0)
    assert measures.parameter_counts(model)["adapter"] == 4 * 4 * (16 + 16 + 1)


def test_the_seed_alone_decides_the_start():
    ends = []
    for noise, method in ((0, PREFIX), (5, PREFIX), (0, PROMPT), (5, PROMPT), (0, lt.AdaLoRA(r=4, target_r=2)),
                          (5, lt.AdaLoRA(r=4, target_r=2))):
        torch.rand(noise)
        state = torch.get_rng_state()
        ends.append(bytes_of(adapt(tiny(), method, seed=3).model))
        assert torch.equal(torch.get_rng_state(), state)
    assert all(same_tensors(one, other) for one, other in zip(ends[::2], ends[1::2], strict=True))
    other = bytes_of(adapt(tiny(), PREFIX, seed=4).model)
    assert not same_tensors(other, ends[0])


# ---- prefix and prompt: which models, how many parameters ---------------------------------------------------


CAN = [(kind, "classification", method) for kind in FAMILIES for method in (PREFIX, PROMPT)
       if kind not in ("t5", "bart") and not (method is PREFIX and kind in ("distilbert", "mpnet"))
       and not (method is PROMPT and kind in ("gpt2", "opt", "llama"))]
CAN += [(kind, "tagging", method) for kind in ("bert", "roberta") for method in (PREFIX, PROMPT)]
CAN += [(kind, "tagging", PROMPT) for kind in ("distilbert", "mpnet")]
CAN += [(kind, head, method) for kind, head in WRITERS for method in (PREFIX, PROMPT)]
HEADS = {"classification": None, "tagging": ["classifier"], "causal": [], "seq2seq": []}


@pytest.mark.parametrize("method", [PREFIX, PROMPT], ids=lambda m: m.name)
def test_a_copy_does_not_run_the_original(method):
    """peft's wrapper is bound to the model that it was made for, so the copy would answer with that one's weights."""
    adapters = adapt(tiny(), method, seed=0)
    for copied in (copy.deepcopy(adapters.model), copy.deepcopy(adapters).model):
        with pytest.raises(RuntimeError, match=f"a copy of one with {method.name} vectors"):
            copied(**make_batch(2))
    adapters.model(**make_batch(2))


@pytest.mark.parametrize(("kind", "head", "method"), CAN, ids=lambda p: getattr(p, "name", p))
def test_it_trains_wherever_it_is_taken(kind, head, method):
    """The count of parameters is the formula's; a gradient reaches them, or the loop would stop after its first step.

    For one family a head, 72 steps on the same eight rows lower the loss. Over 20 seeds of model, rows and training
    the mean end lies 4.2 standard deviations or more below the start; a prompt for a writer 3.1, and so it is the sum
    of three seeds there, which lies 5.4 below.
    """
    widths = {"llama": 8}.get(kind, 16)  # one key-value head of two
    many = 4 * 2 * 2 * widths if method is PREFIX else 4 * 16
    ends, learns = [0.0, 0.0], (kind, head) in (("bert", "classification"), ("roberta", "tagging"), WRITERS[0],
                                                WRITERS[3])
    for seed in range(3 if learns and method is PROMPT and head in ("causal", "seq2seq") else 1):
        model = tiny(kind, head=head, seed=seed)
        own = {n: set(vars(m)) for n, m in model.named_modules()}
        adapters = adapt(model, method, seed=seed, head=HEADS[head])
        assert measures.parameter_counts(model)["adapter"] == many == adapters.plan().extra
        made = Trainer(adapters, rows_for(head, 8, seed=seed), collate_for(head),
                       TrainConfig(steps=72 if learns else 4, batch_size=8, lr=5e-2 if method is PREFIX else 0.1),
                       seed=seed, cpu=True)
        found = [value for _, _, name, value in made.run().history if name == "loss"]
        ends = [ends[0] + sum(found[:3]), ends[1] + sum(found[-3:])]
    assert ends[1] < ends[0] or not learns
    adapters.remove()
    assert {n: set(vars(m)) - {"_is_accelerate_prepared"} for n, m in model.named_modules()} == own


@pytest.mark.parametrize(("kind", "head", "method"), CAN, ids=lambda p: getattr(p, "name", p))
def test_a_row_alone_and_in_a_padded_batch_are_the_same(kind, head, method):
    """Logits stand at the words, of the words' number, whatever the padding; the loss is theirs."""
    model = tiny(kind, head=head, labels=3, dtype=F64)
    adapt(model, method, seed=0, head=HEADS[head])
    batch = collate_for(head)(rows_for(head, 6, labels=3))
    out = model(**batch)
    lengths = batch["attention_mask"].sum(1)
    short = int(lengths.argmin())
    assert lengths[short] < lengths.max()
    alone = {k: v[short:short + 1] for k, v in batch.items()}
    alone |= {k: v[:, :lengths[short]] for k, v in alone.items() if v.dim() == 2 and k != "labels"}
    if head in ("causal", "tagging"):
        alone["labels"] = alone["labels"][:, :lengths[short]]
        assert out.logits.shape[1] == batch["labels"].shape[1]
    single = model(**alone).logits[0]
    if head != "classification":
        single, together = single[:len(single)], out.logits[short, :len(single)]
    else:
        together = out.logits[short]
    torch.testing.assert_close(together, single, rtol=0, atol=1e-9)
    pairs = (out.logits[:, :-1], batch["labels"][:, 1:]) if head == "causal" else (out.logits, batch["labels"])
    flat = pairs[0].reshape(-1, pairs[0].shape[-1]), pairs[1].reshape(-1)
    assert out.loss.item() == pytest.approx(nn.functional.cross_entropy(*flat).item(), abs=1e-5)


@pytest.mark.parametrize(("kind", "head"), WRITERS)
@pytest.mark.parametrize("method", [PREFIX, PROMPT], ids=lambda m: m.name)
def test_what_is_written_is_what_the_logits_say(kind, head, method):
    """Greedy with a cache, in a batch with padding, equals taking the likeliest word of a full pass each time."""
    model = tiny(kind, head=head, forced_eos_token_id=None) if kind == "bart" else tiny(kind, head=head)
    adapters = adapt(model, method, seed=0, head=[])
    rows = [row["input_ids"][:n] for row, n in zip(rows_for("seq2seq", 3), (3, 7, 5), strict=True)]
    longest, causal = max(map(len, rows)), head == "causal"
    ids, mask = torch.full((3, longest), PAD), torch.zeros(3, longest, dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(longest - len(row), None) if causal else slice(0, len(row))
        ids[i, span], mask[i, span] = torch.tensor(row), 1
    settings = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": PAD,
                "eos_token_id": EOS}
    out = model.generate(input_ids=ids, attention_mask=mask, num_beams=1, **settings)
    written = out[:, longest:] if causal else out[:, 1:]
    for i, row in enumerate(rows):
        given, told = torch.tensor([row]), torch.full((1, 1), getattr(model.config, "decoder_start_token_id", PAD))
        for wanted in written[i].tolist():
            more = {} if causal else {"decoder_input_ids": told}
            last = logits(model, {"input_ids": given, "attention_mask": torch.ones_like(given), **more})[:, -1]
            last[:, EOS] = -torch.inf
            assert int(last.argmax()) == wanted
            given = torch.cat([given, last.argmax(-1, keepdim=True)], 1) if causal else given
            told = torch.cat([told, last.argmax(-1, keepdim=True)], 1)
    beams = model.generate(input_ids=ids, attention_mask=mask, num_beams=3, **settings)
    assert beams.shape == out.shape
    assert {"prepare_inputs_for_generation", "generation_config"}.isdisjoint(
        {*vars(model), *vars(getattr(model, "model", model))} - set(vars(tiny(kind, head=head))))
    adapters.remove()


@pytest.mark.parametrize(("kind", "head", "method", "says"), [
    ("mpnet", "classification", PREFIX, "layers take no keys and values from outside.*use PromptTuning"),
    ("distilbert", "tagging", PREFIX, "layers take no keys and values"),
    ("gpt2", "classification", PROMPT, "looks for the last word of the input"),
    ("bart", "classification", PREFIX, "looks for the last word of the input"),
    ("t5", "classification", PROMPT, "kind 'choice' or 'seq2seq'"),
])
def test_models_that_cannot_are_refused_and_left_alone(kind, head, method, says):
    model = tiny(kind, head=head)
    names = [n for n, _ in model.named_modules()]
    with pytest.raises(ValueError, match=says):
        adapt(model, method, seed=0)
    assert [n for n, _ in model.named_modules()] == names
    assert "forward" not in vars(model)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ValueError, match="load the model for classification or for writing"):
        adapt(tiny().bert, PROMPT, seed=0, head=[])


def test_rows_that_leave_no_room_for_virtual_tokens_are_refused():
    model = tiny()  # 32 positions
    adapt(model, PROMPT, seed=0)
    fits = torch.randint(3, 40, (1, 28))
    assert model(input_ids=fits).logits.shape == (1, 2)
    with pytest.raises(ValueError, match=r"29 tokens and 4 virtual ones .* 32 positions.* max_length ≤ 28"):
        model(input_ids=torch.randint(3, 40, (1, 29)))


@pytest.mark.parametrize(("kind", "head", "method"), [
    ("bert", "classification", lt.PromptTuning), ("gpt2", "causal", lt.PrefixTuning),
    ("roberta", "classification", lt.PrefixTuning), ("bart", "seq2seq", lt.PrefixTuning)])
@pytest.mark.parametrize("more", [0, 28])
def test_virtual_tokens_that_fill_all_positions_are_refused_by_adapt(kind, head, method, more):
    model = tiny(kind, head=head)
    room = 32 - (kind == "roberta")  # which counts from the pad's place on
    before = bytes_of(model)
    with pytest.raises(ValueError, match=rf"num_virtual_tokens = {room + more} leaves no word .* fewer than {room}$"):
        adapt(model, method(num_virtual_tokens=room + more), seed=0)
    assert same_tensors(bytes_of(model), before)
    adapt(model, method(num_virtual_tokens=room - 1), seed=0)


def test_texts_to_write_that_leave_no_room_for_a_prefix_are_refused():
    """The prefix of an encoder-decoder also stands in front of what its decoder reads."""
    model = tiny("bart", head="seq2seq")  # 32 positions on either side
    adapt(model, PREFIX, seed=0)
    words = torch.randint(3, 40, (1, 32))
    assert model(input_ids=words, labels=words[:, :28]).loss.isfinite()
    for given in ("labels", "decoder_input_ids"):
        with pytest.raises(ValueError, match=r"29 tokens and 4 virtual ones .* texts to write of at most 28 tokens"):
            model(input_ids=words, **{given: words[:, :29]})


def test_a_prefix_and_recomputed_activations_are_refused_together():
    with pytest.raises(ValueError, match="a prefix is kept in the cache"):
        train(PREFIX, gradient_checkpointing=True)
    _, outcome = train(PROMPT, gradient_checkpointing=True)
    assert outcome.finished


def test_the_model_keeps_its_signature_and_its_own_head():
    """What transformers asks of a forward is still there; peft's copy of the classifier is not."""
    model = tiny()
    asked = list(inspect.signature(model.forward).parameters)
    classifier = model.classifier
    adapt(model, PREFIX, seed=0)
    assert list(inspect.signature(model.forward).parameters) == asked
    assert model.classifier is classifier
    assert classifier.weight.requires_grad
    assert type(model.classifier) is nn.Linear


@pytest.mark.parametrize("method", [PREFIX, PROMPT, lt.AdaLoRA(r=4, target_r=2)], ids=lambda m: m.name)
def test_mixed_precision_leaves_the_way_back_open(method):
    model, batch = tiny(), make_batch()
    before, start = logits(model, batch), bytes_of(model)
    adapters, outcome = train(method, model, mixed_precision="bf16")
    assert outcome.finished
    assert logits(model, batch).dtype == torch.float32
    more = Trainer(adapters, make_rows(), collate_for("classification"), TrainConfig(steps=6, batch_size=8), cpu=True)
    assert more.run().finished
    adapters.remove()
    assert torch.equal(logits(model, batch), before)
    assert same_tensors(bytes_of(model), start)


def test_a_training_that_was_stopped_can_be_removed():
    model, batch = tiny(), make_batch()
    before = logits(model, batch)
    for method in (PREFIX, lt.AdaLoRA(r=4, target_r=2)):
        made = trainer(method, model, callbacks=[Stop(3)])
        made.run()
        made.adapters.remove()
        assert torch.equal(logits(model, batch), before)

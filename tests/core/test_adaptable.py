"""What `adapt` refuses before it changes anything: a model that is adapted already, a layer that cannot carry it."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from types import SimpleNamespace

import peft
import pytest
import torch
from accelerate import cpu_offload
from helpers import bytes_of, collate, logits, make_batch, make_rows, same_tensors, shake, tiny, trainer
from torch import nn
from transformers import BertForMaskedLM

import lowrank_teach as lt
from lowrank_teach.errors import LivenessError
from lowrank_teach.training.replicas import share_weights, train_together

# with branches, with hooks, with a detour of forward, with peft's layers, with nothing at all
ON = {"lora": lt.LoRA(r=2), "houlsby": lt.Houlsby(m=4), "prompt": lt.PromptTuning(num_virtual_tokens=2),
      "adalora": lt.AdaLoRA(r=4, target_r=2, lora_dropout=0.1), "head": lt.HeadOnly(), "full": lt.FullFineTuning()}


def state_of(model: nn.Module) -> tuple:
    return {n: (p.requires_grad, p.data_ptr()) for n, p in model.named_parameters()}, \
        {n: (type(m), m.training, set(vars(m)), set(m._forward_hooks)) for n, m in model.named_modules()}


def refused(says: str, model: nn.Module, method: lt.Method, watched: nn.Module | None = None, **options) -> None:
    """With such a sentence, short, and with nothing changed."""
    watched = model if watched is None else watched
    before, state = bytes_of(watched), state_of(watched)
    with pytest.raises(ValueError, match=says) as error:
        lt.adapt(model, method, **options)
    assert len(str(error.value)) <= 300
    assert same_tensors(bytes_of(watched), before)
    assert state_of(watched) == state


# ---- adapted already ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [
    *itertools.pairwise([*ON, "lora"]), *((name, name) for name in ("lora", "houlsby", "prompt", "adalora"))])
def test_a_model_takes_one_method_at_a_time(first, second, tmp_path):
    """Whatever the two put on it; the first one's remove() then gives back the model that there was."""
    model = tiny()
    before, batch = bytes_of(model), make_batch()
    at_first = logits(model, batch)
    adapters = lt.adapt(model, ON[first], seed=0)
    refused(r"adapted already; call remove\(\).*lt\.adapters_of\(model\)", model, ON[second], seed=0)
    if adapters.owners or adapters.extra_names:  # the first one's guard is not given up
        with pytest.raises(RuntimeError, match="live branches" if adapters.owners else "would not load"):
            model.save_pretrained(tmp_path)
    adapters.remove()
    assert same_tensors(bytes_of(model), before)
    assert torch.equal(logits(model, batch), at_first)
    lt.adapt(model, ON[second], seed=0)


@pytest.mark.parametrize("first", ["lora", "adalora", "head"])
def test_neither_a_part_nor_a_whole_is_adapted_again(first):
    """Of an adapted model the layers that carry nothing; of an adapted part the model around it."""
    model = tiny()
    adapters = lt.adapt(model, ON[first])
    for part in (model.bert.encoder.layer[1], model.bert.pooler.dense, model.classifier):
        refused("adapted already", part, lt.FullFineTuning(), model)
    assert lt.adapters_of(model.bert.pooler) is adapters
    adapters.remove()
    lt.adapt(model.bert, lt.HeadOnly(), head=["pooler"])
    refused("adapted already", model, ON[first])


def test_peft_on_the_model_is_refused():
    """A PeftModel, what is in it, a model with add_adapter; free again once peft has merged or unloaded."""
    config = peft.LoraConfig(target_modules=["query"])
    wrapped = peft.get_peft_model(tiny(), config)
    inside = wrapped.base_model.model
    added = tiny()
    added.add_adapter(config)
    for model in (wrapped, inside, inside.bert.encoder.layer[0], added):
        refused(r"peft's own modules.*merge_and_unload\(\) or unload\(\)", model, lt.LoRA(r=2, sites=("v",)) if
                hasattr(model, "config") else lt.FullFineTuning())
        refused("peft's own modules", model, lt.HeadOnly())
    lt.adapt(wrapped.merge_and_unload(), lt.LoRA(r=2))


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_a_prompt_of_peft_is_refused_with_what_can_be_done(kind):
    """It has no merge_and_unload() and no unload(), and its base keeps the wrapped classifier."""
    wrapped = peft.get_peft_model(tiny(), kind(num_virtual_tokens=3, task_type="SEQ_CLS"))
    for model in (wrapped, wrapped.get_base_model()):
        refused("peft cannot merge or unload a prompt, so adapt a model that was loaded anew", model, lt.LoRA(r=2))


# ---- a lost handle ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ON))
def test_adapters_are_had_back_from_the_model(name):
    """A cell run again is no dead end; off again, and nothing is said any more."""
    model = tiny()
    with pytest.raises(ValueError, match="not adapted"):
        lt.adapters_of(model)
    given = lt.adapt(model, ON[name])
    assert lt.adapters_of(model) is given
    lt.adapters_of(model).remove()
    with pytest.raises(ValueError, match="not adapted"):
        lt.adapters_of(model)
    if name in ("lora", "adalora", "head", "full"):
        lt.adapt(model, ON[name]).merge_and_unload()
        lt.adapt(model, ON[name])


def test_a_copy_of_an_adapted_model():
    """Of the adapters a copy is whole; of the model alone it is refused, and pickles as it did."""
    model, batch = tiny(), make_batch()
    adapters = lt.adapt(model, lt.LoRA(r=2), seed=0)
    shake(adapters)
    for alone in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(alone, batch), logits(model, batch))
        refused("copy of an adapted", alone, lt.LoRA(r=2))
        with pytest.raises(ValueError, match=r"copy\.deepcopy\(adapters\)\.model"):
            lt.adapters_of(alone)
    both = copy.deepcopy(adapters)
    assert lt.adapters_of(both.model) is both
    assert lt.adapters_of(model) is adapters
    both.remove()
    assert torch.equal(logits(both.model, batch), logits(tiny(), batch))
    assert adapters.state == "adapted"


# ---- training and eval mode ---------------------------------------------------------------------------------


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("name", list(ON))
def test_the_mode_is_left_as_it_was_found(name):
    """By adapt, by a training, by remove() and merge_and_unload(), also where a part has a mode of its own."""
    for training in (False, True):
        model = tiny().train(training)
        model.bert.pooler.eval()
        before = modes(model)
        made = trainer(ON[name], model, steps=6)
        during = modes(model)
        assert {n: t for n, t in during.items() if n in before} == before
        assert training or not any(during.values())
        made.run()
        assert {n: t for n, t in modes(model).items() if n in during} == during
        assert training or not any(modes(model).values())
        made.adapters.remove()
        assert modes(model) == before
        if name in ("lora", "adalora", "head", "full"):
            lt.adapt(model, ON[name]).merge_and_unload()
            assert modes(model) == before


def test_new_gates_of_a_link_take_the_models_mode_after_a_training():
    """A chain's gates are made anew at a knot, in training; else they would be drawn in eval mode."""
    model = tiny()
    made = trainer(lt.compose(lt.COLA(r=4, chain=2), lt.SaLoRA(r=4, eta_c=0.5)), model, steps=40)
    made.run()
    assert not any(modes(model).values())


def test_trainings_in_one_pass_leave_the_mode_as_it_was_found():
    first, second = tiny(), tiny()
    share_weights(second, first, ["classifier.weight", "classifier.bias"])
    second.train()
    outcomes = train_together([trainer(lt.LoRA(r=2), first, steps=2), trainer(lt.LoRA(r=2), second, steps=2)])
    assert all(outcome.finished for outcome in outcomes)
    assert not any(modes(first).values())
    assert all(modes(second).values())


# ---- memory that is used twice ------------------------------------------------------------------------------


def pair(change=lambda model: None) -> nn.Module:
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight_norm
        change(model)
    return model


def same_memory(model: nn.Module) -> None:
    model.a.weight = nn.Parameter(model.b.weight.data)


def a_buffer(model: nn.Module) -> None:
    model.b.register_buffer("seen", model.a.weight.data[2:4])


def overlapping(model: nn.Module) -> None:
    held = torch.randn(60)
    model.a.weight, model.b.weight = (nn.Parameter(held[at:at + 36].view(6, 6)) for at in (0, 24))


def side_by_side(model: nn.Module) -> None:
    held = torch.randn(6, 12)
    model.a.weight, model.b.weight = nn.Parameter(held[:, :6]), nn.Parameter(held[:, 6:])


LORA_A = lt.LoRA(r=2, sites=("a",))


@pytest.mark.parametrize(("change", "says"), [
    (same_memory, "a.weight and b.weight are two tensors that share memory"),
    (overlapping, "a.weight and b.weight are two tensors that share memory"),
    (a_buffer, "a.weight and b.seen are two tensors that share memory"),
    (lambda m: setattr(m.a, "weight", nn.Parameter(torch.randn(6, 1).expand(6, 6))), "several elements of a.weight"),
    (lambda m: setattr(m.a, "weight", nn.Parameter(torch.randn(20).as_strided((6, 6), (2, 1)))), "several elements"),
    (lambda m: nn.utils.weight_norm(m.a), "computed from other parameters.*remove the parametrization"),
    (lambda m: nn.utils.spectral_norm(m.a), "computed from other parameters"),
    (lambda m: nn.utils.parametrizations.weight_norm(m.a), "computed from other parameters"),
    (lambda m: nn.utils.parametrizations.orthogonal(m.a), "computed from other parameters"),
])
def test_a_weight_that_cannot_be_written_alone_is_refused(change, says):
    refused(says, pair(change), LORA_A)


def test_what_trains_beside_the_branches_has_memory_of_its_own_too():
    """A head, or pretrained weights, that another parameter would change with."""
    for method, head in ((LORA_A, ["b"]), (lt.HeadOnly(), ["a"]), (lt.FullFineTuning(), [])):
        refused("two tensors that share memory", pair(same_memory), method, head=head)
    tied = pair(lambda m: setattr(m.a, "weight", m.b.weight))  # one parameter, with two names
    lt.adapt(tied, lt.FullFineTuning(), head=[])


def test_parts_of_one_memory_that_do_not_meet_are_adapted():
    """Columns side by side, a transposed weight, slices of one flat tensor: merged exactly, restored exactly."""
    for change in (side_by_side, lambda m: setattr(m.a, "weight", nn.Parameter(torch.randn(6, 6).t()))):
        model = pair(change)
        before = bytes_of(model)
        adapters = lt.adapt(model, LORA_A, seed=0)
        shake(adapters)
        want = before["a.weight"] + adapters["a"].delta()
        adapters.merge()
        assert torch.equal(model.a.weight, want)
        assert torch.equal(model.b.weight, before["b.weight"])
        adapters.remove()
        assert same_tensors(bytes_of(model), before)


def test_a_weight_without_values_is_refused():
    """One layer on the meta device, as offloading leaves it; a model that is all meta is planned with, and may."""
    for model in (pair(lambda m: m.a.to("meta")), cpu_offload(pair())):
        state = state_of(model)
        with pytest.raises(ValueError, match=r"a\.weight is on the meta device.*without offloading"):
            lt.adapt(model, LORA_A)
        assert state_of(model) == state
    lt.adapt(pair(lambda m: m.to("meta")), LORA_A)


# ---- a branch that is never called --------------------------------------------------------------------------


def test_layers_that_torch_reads_without_calling_them_are_refused():
    """In attention always; in an encoder layer as long as its fast path is on; a decoder layer calls its own."""
    attention, encoder = nn.MultiheadAttention(8, 2), nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True)
    stack = nn.Sequential(nn.TransformerEncoder(encoder, 1))
    refused("MultiheadAttention, which reads its weight and never", attention, lt.LoRA(r=2, sites=("out_proj",)))
    for whole, path in ((encoder, "linear1"), (stack, "0.layers.0.linear2")):
        refused("TransformerEncoderLayer, which in eval mode reads its weight", whole.eval(),
                lt.LoRA(r=2, sites=(path,)))
    refused("MultiheadAttention", decoder, lt.LoRA(r=2, sites=("self_attn.out_proj",)))
    x = torch.randn(2, 3, 8)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for layer, args in ((encoder, (x,)), (decoder, (x, x))):
            adapted = lt.adapt(layer.eval(), lt.LoRA(r=2, sites=("linear1",)), seed=0)
            with torch.no_grad():
                before = adapted.model(*args)
                shake(adapted)
                live = adapted.model(*args)
                adapted.merge()
                assert (live - before).abs().max() > 1e-3
                assert (adapted.model(*args) - live).abs().max() < 1e-5
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


class Reader(nn.Module):
    """A classifier of words, two of whose layers are called in training; in eval mode `how` says what is done."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.words = how, nn.Embedding(40, 16)
        self.lin, self.expert, self.classifier = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2)
        self.config = SimpleNamespace(num_labels=2)

    def can_generate(self) -> bool:
        return False

    def forward(self, input_ids, attention_mask, labels):
        h = self.words(input_ids).mean(1)
        calls = self.training or self.how == "called"
        fast = self.how == "fast" and not torch.is_grad_enabled()
        bypass = self.how == "read" or fast
        h = h + (nn.functional.linear(h, self.lin.weight, self.lin.bias) if bypass and not self.training else
                 self.lin(h))
        if calls or self.how != "routed":  # an expert that no row of this batch goes to
            h = h + self.expert(h)
        out = self.classifier(torch.tanh(h))
        return SimpleNamespace(loss=nn.functional.cross_entropy(out, labels), logits=out)


@pytest.mark.parametrize("how", ["called", "routed", "read", "fast"])
def test_a_layer_that_is_passed_by_in_eval_mode_stops_the_first_step(how):
    """Its weight read, or only called with gradients; an expert that the rows do not need is no fault."""
    torch.manual_seed(0)
    model = Reader(how)
    made = trainer(lt.LoRA(r=2, sites=("lin", "expert")), model, steps=3)
    if how in ("called", "routed"):
        assert made.run().finished
    else:
        with pytest.raises(LivenessError, match=r"step 1: in eval mode the weight of lin is used.*self\.lin\(x\)"):
            made.run()
        assert made.outcome.step == 0
    assert not any(owner.weight.requires_grad for owner in made.adapters.owners.values())


def test_transformers_own_trainer_looks_too(tmp_path):
    from transformers import TrainingArguments

    args = TrainingArguments(str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
                             remove_unused_columns=False, disable_tqdm=True)
    adapters = lt.adapt(Reader("read"), lt.LoRA(r=2, sites=("lin",)), head=["classifier"])
    with pytest.raises(LivenessError, match="in eval mode the weight of lin is used"):
        lt.LowRankTrainer(adapters, args, train_dataset=make_rows(16), data_collator=collate).train()


# ---- a head -------------------------------------------------------------------------------------------------


def test_a_head_that_is_tied_is_named_with_what_it_is_tied_to():
    """lm_head of GPT-2 is the table of words: that name trains both."""
    model = tiny("gpt2", head="causal")
    refused("'lm_head' has no weight of its own: it is tied to transformer.wte.weight.*name 'transformer.wte'", model,
            lt.LoRA(r=2), head=["lm_head"])
    refused("'nowhere' names no module.*name one of transformer, or a part", model, lt.LoRA(r=2), head=["nowhere"])
    lt.adapt(tiny("gpt2", head="causal"), lt.LoRA(r=2), head=["lm_head", "transformer.wte"])
    adapters = lt.adapt(model, lt.LoRA(r=2), head=["transformer.wte"])
    assert adapters.head_names == ["transformer.wte.weight"]
    assert model.lm_head.weight.requires_grad


def test_a_head_of_which_a_part_is_tied_is_refused_too():
    """Its bias alone would train; with the other name both do, and the bias can be meant."""
    def tied() -> nn.Module:
        return pair(lambda m: setattr(m.a, "weight", m.b.weight))

    refused("'b' holds b.weight, which is tied to a.weight outside of it.*name 'a.weight' too", tied(), lt.HeadOnly(),
            head=["b"])
    for head, names in ((["b", "a.weight"], ["a.weight", "b.bias"]), (["b.bias"], ["b.bias"]),
                        (["a"], ["a.weight", "a.bias"])):
        assert lt.adapt(tied(), lt.HeadOnly(), head=head).head_names == names
    masked = BertForMaskedLM(tiny().config)
    words = "bert.embeddings.word_embeddings.weight"
    refused(f"'cls' holds cls.predictions.decoder.weight, which is tied to {words}", masked, lt.LoRA(r=2),
            head=["cls"])
    assert words in lt.adapt(masked, lt.LoRA(r=2), head=["cls", words]).head_names

"""Every method on every device and precision there is: alive, finite, and on a GPU the same run as on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import bytes_of, collate, collate_for, make_rows, rows_for, same_tensors, tiny, word_tokenizer
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from transformers import TrainingArguments

import lowrank_teach as lt
from lowrank_teach.tasks.evaluate import evaluate
from lowrank_teach.tasks.generation import Generation
from lowrank_teach.training.callbacks import Outcome
from lowrank_teach.training.replicas import share_weights, train_together
from lowrank_teach.training.trainer import Trainer

METHODS = {
    "lora": lt.LoRA(r=4),
    "cola": lt.COLA(r=4, knots=(4, 8), ranks=(4, 2, 3)),
    "cola-stacked": lt.COLA(r=4, chain=3, merge_knots=False),
    "salora": lt.SaLoRA(r=4, eta_c=0.5, t_start=2, t_end=10),
    "delta-in-place": lt.DeltaLoRA(r=4, K=3),
    "delta-lazy": lt.DeltaLoRA(r=4, K=3, form="lazy"),
    "delta-schedule": lt.DeltaLoRA(r=4, K=3, lam=0.1, lam_end=1.0),
    **{f"autolora-{kind}": lt.AutoLoRA(r=4, hypergradient=kind)
       for kind in ("first_order", "finite_difference", "unrolled", "betty")},
    "full": lt.FullFineTuning(),
}
MORE = {
    "head": lt.HeadOnly(),
    "full-qv": lt.FullFineTuning(trains="qv"),
    "dylora": lt.DyLoRA(r=4),
    "dylora-frozen": lt.DyLoRA(r=4, frozen=True, distribution="geometric"),
    "houlsby": lt.Houlsby(m=4),
    "pfeiffer": lt.Pfeiffer(m=4),
    "adalora": lt.AdaLoRA(r=4, target_r=2, sites="qv", tinit=2, tfinal=3),
    "prefix": lt.PrefixTuning(num_virtual_tokens=3),
    "prompt": lt.PromptTuning(num_virtual_tokens=3),
    "prompt-random": lt.PromptTuning(num_virtual_tokens=3, init="random"),
    "salora-without-penalty": lt.SaLoRA(r=4, eta_c=0.5, t_start=2, t_end=10, beta=0.0, ascent="sgd"),
    "autolora-forward": lt.AutoLoRA(r=4, hypergradient="forward_difference", constraint="none", shuffle_ranks=True),
    "cola+salora": lt.compose(lt.COLA(r=4, chain=2), lt.SaLoRA(r=4, eta_c=0.5, t_start=0, t_end=1.0)),
    "cola+delta": lt.compose(lt.COLA(r=4, knots=(8,)), lt.DeltaLoRA(r=4, K=2)),
    "delta+autolora": lt.compose(lt.DeltaLoRA(r=4, K=2), lt.AutoLoRA(r=4)),
}
ALL = {**METHODS, **MORE}
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here")])]


def trainer_on(device: str, method: lt.Method, model, steps: int = 12, lr: float = 3e-3, **training) -> Trainer:
    config = lt.TrainConfig(steps=steps, batch_size=8, lr=lr, **training)
    return Trainer(lt.adapt(model, method, seed=0), make_rows(64), collate, config, seed=0, cpu=device == "cpu")


def losses_of(outcome: Outcome) -> torch.Tensor:
    return torch.tensor([value for _, _, name, value in outcome.history if name == "loss"])


def train(method: lt.Method, device: str, dtype: torch.dtype = torch.float32, steps: int = 12, **training):
    """The adapters and the losses of a short run without dropout."""
    trainer = trainer_on(device, method, tiny("bert", dropout=0.0).to(dtype), steps, **training)
    outcome = trainer.run()
    return trainer.adapters, losses_of(outcome)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "mixed"), [(torch.float32, "no"), (torch.float32, "bf16"), (torch.bfloat16, "no")],
                         ids=["float32", "autocast-bf16", "bf16-base"])
@pytest.mark.parametrize("name", METHODS)
def test_trains_and_merges(name: str, dtype: torch.dtype, mixed: str, device: str) -> None:
    if name == "full" and dtype == torch.bfloat16:
        pytest.skip("refused: see test_a_short_model_trains_in_float32")
    adapters, losses = train(METHODS[name], device, dtype, mixed_precision=mixed)
    assert torch.isfinite(losses).all()
    assert {p.device.type for p in adapters.model.parameters()} == {device}
    if not adapters:
        return
    assert all(branch.lora_A.dtype == torch.float32 for branch in adapters.values()), "adapters stay in float32"
    batch = {k: v.to(device) for k, v in collate(make_rows(8)).items()}
    adapters.model.eval()
    with torch.no_grad():
        before = adapters.model(**batch).logits.float()
        adapters.merge()
        merged = adapters.model(**batch).logits.float()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(merged, before, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "mixed"), [(torch.float32, "no"), (torch.float32, "bf16"), (torch.bfloat16, "no")],
                         ids=["float32", "autocast-bf16", "bf16-base"])
def test_replicas_follow_their_single_runs(dtype: torch.dtype, mixed: str, device: str) -> None:
    names = [name for name, method in METHODS.items()
             if not (method.with_frozen_base().writes_base or method.trains_base)]
    base, trainers = tiny("bert", dropout=0.0).to(dtype), []
    for name in names:
        model = tiny("bert", dropout=0.0).to(dtype)
        share_weights(model, base, ["classifier.weight", "classifier.bias"])
        trainers.append(trainer_on(device, METHODS[name].with_frozen_base(), model, mixed_precision=mixed))
    tolerance = 1e-3 if (dtype, mixed) == (torch.float32, "no") else 5e-2
    for name, outcome in zip(names, train_together(trainers), strict=True):
        assert isinstance(outcome, Outcome), f"{name}: {outcome}"
        _, alone = train(METHODS[name].with_frozen_base(), device, dtype, mixed_precision=mixed)
        torch.testing.assert_close(losses_of(outcome), alone, rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("name", METHODS)
def test_gpu_run_equals_cpu_run(name: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    _, on_cpu = train(METHODS[name], "cpu")
    _, on_gpu = train(METHODS[name], "cuda")
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)


# ---- what trains is float32 ----------------------------------------------------------------------------------

TRAIN_W = ("full", "full-qv", "houlsby")


def trains_wide(trainer, run) -> None:
    """A training after which all that trains is float32, and each weight of the head has moved."""
    adapters = trainer.adapters
    before = [p.detach().clone() for p in adapters.head_parameters()]
    run()
    assert {p.dtype for p in adapters.model.parameters() if p.requires_grad} == {torch.float32}
    moved = torch.cat([(p != old).flatten() for p, old in zip(adapters.head_parameters(), before, strict=True)])
    assert moved.float().mean() > 0.9
    assert torch.isfinite(losses_of(trainer.outcome)).all()


# of those above a bfloat16 base is trained there, too
@pytest.mark.parametrize(("name", "dtype"), [
    (name, dtype) for name in ALL for dtype in (torch.float16, torch.bfloat16)
    if name not in TRAIN_W and (name in MORE or dtype == torch.float16)])
def test_a_short_model_trains_in_float32(name, dtype, tmp_path):
    """At a rate that a short type would round away, in both trainers; then the model has its own bytes again."""
    model = tiny(dtype=dtype)
    before = bytes_of(model)
    trainer = trainer_on("cpu", ALL[name], model, lr=2.5e-5)
    trainer.checkpoint = tmp_path / "state.safetensors"
    trains_wide(trainer, trainer.run)
    trainer.save()
    again = trainer_on("cpu", ALL[name], tiny(dtype=dtype))
    again.checkpoint = trainer.checkpoint
    again.prepare()
    assert same_tensors(bytes_of(again.adapters.model), bytes_of(model))
    if trainer.adapters.owners or name == "adalora":
        trainer.adapters.merge()
    assert same_tensors(bytes_of(trainer.adapters.remove()), before)
    if dtype == torch.float16:  # the harder one
        theirs = in_transformers(ALL[name], tmp_path, model, lr=2.5e-5)
        trains_wide(theirs, theirs.train)
        assert same_tensors(bytes_of(theirs.adapters.remove()), before)


@pytest.mark.parametrize("name", TRAIN_W)
def test_pretrained_weights_are_not_trained_in_a_short_type(name):
    """Refused before anything is changed, with the way out, which is there."""
    model = tiny(dtype=torch.bfloat16)
    before = bytes_of(model)
    with pytest.raises(ValueError, match=r"itself, which needs float32 and is torch.bfloat16: load the model in"):
        lt.adapt(model, ALL[name])
    assert same_tensors(bytes_of(model), before)
    assert all(p.requires_grad for p in model.parameters())
    lt.adapt(model, lt.Houlsby(m=4, layer_norms=False))
    lt.adapt(tiny(), ALL[name])


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.trains_base])
def test_a_conversion_after_adapt_leaves_the_branches_wide(name):
    """`model.to(bfloat16)`: factors and gates stay float32 and train; a head that turned short is refused."""
    model = tiny()
    trainer = trainer_on("cpu", METHODS[name], model)
    model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"classifier.bias trains and is torch.bfloat16, in which small steps"):
        trainer.run()
    trainer.adapters.remove()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    bare = tiny(head="causal", kind="llama")
    adapters = lt.adapt(bare, METHODS[name], seed=0)
    start = {site: branch.lora_A.detach().clone() for site, branch in adapters.items()}
    bare.half()
    assert {t.dtype for branch in adapters.values() for t in (*branch.parameters(), *branch.buffers())
            if t.is_floating_point()} == {torch.float32}
    assert all(torch.equal(branch.lora_A, start[site]) for site, branch in adapters.items())
    assert next(iter(adapters.owners.values())).weight.dtype == torch.float16


def test_transformers_trainer_refuses_a_short_head_too(tmp_path):
    trainer = in_transformers(lt.LoRA(r=4), tmp_path, tiny())
    trainer.adapters.model.half()
    with pytest.raises(ValueError, match=r"classifier.bias trains and is torch.float16"):
        trainer.train()
    assert trainer.outcome.step == 0


# ---- nothing depends on torch's default device and default type ----------------------------------------------


class DeviceNamed(TorchFunctionMode):
    """Refuses each tensor that a line of the package makes without naming its device: a GPU would refuse it later."""

    package = str(Path(lt.__file__).parent)
    inside = tuple(str(Path(torch.__file__).parent / part) for part in ("nn", "utils", "overrides"))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _device_constructors() and kwargs.get("device") is None:
            frame = sys._getframe(1)
            while frame.f_code.co_filename.startswith(self.inside):  # a module of torch, made for someone
                frame = frame.f_back
            where = frame.f_code.co_filename
            assert not where.startswith(self.package), f"{where}:{frame.f_lineno}: {func.__name__} without a device"
        return func(*args, **kwargs)


def test_a_tensor_without_a_device_is_noticed():
    """In a function of the package and in a module of torch that it makes; nowhere else."""
    code = "import torch; torch.zeros(2, device='cpu'); {}"
    for line in ("torch.zeros(2)", "torch.nn.Linear(2, 2)", "torch.tensor([1])"):
        ours, theirs = (compile(code.format(line), f"{folder}/x.py", "exec") for folder in (DeviceNamed.package, "/"))
        with DeviceNamed():
            exec(theirs)
            with pytest.raises(AssertionError, match=r"x.py:1: \w+ without a device"):
                exec(ours)


def in_transformers(method: lt.Method, folder: Path, model, lr: float = 3e-3) -> lt.LowRankTrainer:
    arguments = TrainingArguments(str(folder), max_steps=12, learning_rate=lr, per_device_train_batch_size=8,
                                  report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True)
    return lt.LowRankTrainer(lt.adapt(model, method), arguments, train_dataset=make_rows(64), data_collator=collate)


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_of_a_training_names_its_device(name, tmp_path):
    """From `adapt` to the last step, a checkpoint, a merge and a resume; the code of both trainers is seen in two."""
    model, method = tiny(), ALL[name]
    with DeviceNamed():
        trainer = trainer_on("cpu", method, model)
        trainer.checkpoint = tmp_path / "state.safetensors"
        trainer.run()
        trainer.save()
        if trainer.adapters.owners or name == "adalora":
            trainer.adapters.merge()
        trainer.adapters.remove()
        again = trainer_on("cpu", method, model)
        again.checkpoint = trainer.checkpoint
        again.prepare()
        if name in ("salora", "autolora-first_order"):
            in_transformers(method, tmp_path, tiny()).train()


def test_every_tensor_of_replicas_names_its_device():
    """Of all methods that can share a pass."""
    names = [name for name, method in METHODS.items()
             if not (method.with_frozen_base().writes_base or method.trains_base)]
    base = tiny()
    models = [tiny() for _ in names]
    with DeviceNamed():
        for model in models:
            share_weights(model, base, ["classifier.weight", "classifier.bias"])
        trainers = [trainer_on("cpu", METHODS[name].with_frozen_base(), model)
                    for name, model in zip(names, models, strict=True)]
        for name, outcome in zip(names, train_together(trainers), strict=True):
            assert isinstance(outcome, Outcome), f"{name}: {outcome}"


@pytest.mark.parametrize(("kind", "head"), [("bert", "classification"), ("bert", "tagging"), ("llama", "causal"),
                                            ("t5", "seq2seq")])
def test_every_tensor_of_an_evaluation_names_its_device(kind, head):
    """Collating, the loss, and texts that are drawn."""
    model, rows, collate_rows = tiny(kind, head=head), rows_for(head, 6), collate_for(head)
    task = SimpleNamespace(name=head, kind="seq2seq" if head == "causal" else head, metrics=[], labels=("a", "b"))
    written = Generation(max_new_tokens=3, temperature=1.0)
    with DeviceNamed():
        lt.adapt(model, lt.LoRA(r=4))
        found = evaluate(model, rows, collate_rows, task, tokenizer=word_tokenizer(), generate_rows=6,
                         generation=written)
    assert found["loss"] > 0


@pytest.fixture
def double_default():
    """torch's default type is float64 while this function is given `True`."""
    def switch(on: bool) -> None:
        torch.set_default_dtype(torch.float64 if on else torch.float32)

    yield switch
    switch(False)


@pytest.mark.parametrize("name", ALL)
def test_the_default_type_changes_no_bit(name, double_default):
    """Under a default type of float64 the start, twelve steps with dropout and their log are the same."""
    found = []
    for on in (False, True):
        model = tiny(dropout=0.1)
        double_default(on)
        trainer = trainer_on("cpu", ALL[name], model)
        start = bytes_of(model)
        outcome = trainer.run()
        found.append((start, bytes_of(model), outcome.history))
        double_default(False)
    for before, after in zip(*(one[:2] for one in found), strict=True):
        assert same_tensors(before, after)
        assert {t.dtype for t in after.values()} <= {torch.float32, torch.int64}
    assert found[0][2] == found[1][2]

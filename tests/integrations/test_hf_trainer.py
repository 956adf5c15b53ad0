"""Inside transformers' own Trainer: the same result as our loop on the same rows, for every method."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import (
    collate,
    collate_for,
    logits,
    make_batch,
    make_rows,
    rounding,
    rows_for,
    same_tensors,
    tiny,
    trainer,
    word_tokenizer,
)
from helpers import gap as apart
from torch.utils.data import IterableDataset
from transformers import DataCollatorForLanguageModeling, TrainerCallback, TrainingArguments

import lowrank_teach as lt
from lowrank_teach.analysis.measures import parameter_counts
from lowrank_teach.errors import DivergedError, LivenessError
from lowrank_teach.integrations.hf_trainer import TrainerError
from lowrank_teach.integrations.peft_format import ExportError
from lowrank_teach.training.checkpoint import CheckpointError

STEPS, ROWS = 12, 8
SALORA = {"r": 4, "sites": "qv", "eta_c": 0.5, "t_start": 2, "t_end": 9, "b": 0.4}
METHODS: dict[str, lt.Method] = {
    "lora": lt.LoRA(r=4),
    "cola": lt.COLA(r=4, knots=(4, 8)),
    "cola, ranks that fall, restarted schedule": lt.COLA(ranks=(4, 2), knots=(6,), restart_schedule=True,
                                                         reset_head_moments=True),
    "cola, links kept beside W": lt.COLA(r=2, chain=3, merge_knots=False),
    "salora": lt.SaLoRA(**SALORA),
    "delta_lora": lt.DeltaLoRA(r=4, K=3),
    "delta_lora, lazily": lt.DeltaLoRA(r=4, K=3, form="lazy"),
    "delta_lora, scheduled": lt.DeltaLoRA(r=4, K=3, lam_end=2.0),
    "autolora, the search": lt.AutoLoRA(r=4, eta_beta=0.05, hypergradient="first_order"),
    "autolora, unrolled": lt.AutoLoRA(r=4, eta_beta=0.05, retrain=False),
    "head": lt.HeadOnly(),
    "full": lt.FullFineTuning(),
    "houlsby": lt.Houlsby(),
    "adalora": lt.AdaLoRA(r=4, target_r=2, sites="qv", tinit=2, tfinal=3),
    "a chain of gated links": lt.compose(lt.COLA(r=4, knots=(6,)),
                                         lt.SaLoRA(r=4, sites="qv", eta_c=1.0, t_start=0.1, t_end=0.9)),
}


def arguments(folder: Path, pieces: int = 1, **changes: Any) -> TrainingArguments:
    settings = {"max_steps": STEPS, "learning_rate": 1e-2, "weight_decay": 0.01, "warmup_steps": 3,
                "per_device_train_batch_size": ROWS // pieces, "gradient_accumulation_steps": pieces,
                "train_sampling_strategy": "sequential", "optim": "adamw_torch", "report_to": "none",
                "save_strategy": "no", "logging_steps": 4, "disable_tqdm": True, "use_cpu": True, "seed": 0}
    return TrainingArguments(str(folder), **{**settings, **changes})


def in_transformers(method: lt.Method, folder: Path, rows: Any = None, model: Any = None, pieces: int = 1,
                    held_out: Any = None, others: dict[str, Any] | None = None, **changes: Any) -> lt.LowRankTrainer:
    model = tiny() if model is None else model
    return lt.LowRankTrainer(
        lt.adapt(model, method, seed=0), arguments(folder, pieces, **changes), held_out=held_out,
        train_dataset=make_rows(STEPS * ROWS) if rows is None else rows, data_collator=collate, **(others or {}))


def both(method: lt.Method, folder: Path, pieces: int = 1,
         ours: dict[str, Any] | None = None, **changes: Any) -> tuple[Any, lt.LowRankTrainer]:
    """Our trainer and transformers', trained on the same rows in the same order."""
    made = trainer(method, rows=round(STEPS * ROWS / (1 - method.held_out)), steps=STEPS,
                   batch_size=ROWS, accumulation=pieces, warmup=0.25, **{"max_grad_norm": 0.3, **(ours or {})})
    order: list[dict[str, Any]] = []
    made.collate = lambda rows: (order.extend(rows), {})[1]
    for step in range(1, STEPS + 1):
        made._batches("train", step)
    made.collate = collate
    made.run()
    theirs = in_transformers(method, folder, order, None, pieces, made.streams["held_out"] or None,
                             **{"max_grad_norm": 0.3, **changes})
    theirs.train()
    return made, theirs


def gap(left: Any, right: Any) -> float:
    """The largest difference between two models' tensors, which must have the same names and shapes."""
    a, b = left.state_dict(), right.state_dict()
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape for name in a)
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a if a[name].numel())


# ---- the same result ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pieces"), [*((name, 2) for name in METHODS), ("lora", 1), ("salora", 1)])
def test_same_bits_as_our_loop(name, pieces, tmp_path):
    """Weights, gates, factors, losses and the rule's log are equal bit for bit after twelve steps."""
    ours, theirs = both(METHODS[name], tmp_path, pieces)
    assert gap(ours.adapters.model, theirs.adapters.model) == 0
    assert ours.adapters.ranks() == theirs.adapters.ranks()
    assert ours.outcome.following == theirs.following
    mine, his = ({row[:3]: row[3] for row in made.outcome.history} for made in (ours, theirs))
    assert mine == his
    assert max(row[3] for row in theirs.outcome.history if row[2] == "grad_norm") > 0.3  # there was enough to clip


@pytest.mark.parametrize(("ours", "changes"), [
    ({"gradient_checkpointing": True}, {"activation_checkpointing": True}),
    ({"mixed_precision": "bf16"}, {"bf16": True}),
    ({"head_lr": 1e-3}, {"others": {"head_lr": 1e-3}}),
    ({"max_grad_norm": 0.0}, {"max_grad_norm": 0.0}),
])
def test_same_bits_with_other_settings(ours, changes, tmp_path):
    """Recomputed activations, bfloat16 and a rate of the head's own mean the same in both."""
    made, theirs = both(METHODS["salora"], tmp_path, ours=ours, **changes)
    assert gap(made.adapters.model, theirs.adapters.model) == 0
    assert made.dtype == theirs.dtype
    if "gradient_checkpointing" not in ours:  # the others are other trainings
        plain = trainer(METHODS["salora"], rows=STEPS * ROWS, steps=STEPS, batch_size=ROWS, warmup=0.25,
                        max_grad_norm=0.3)
        assert plain.run().history != made.outcome.history


def first_gradients(kind: str, head: str, pieces: int, folder: Path, unlabelled: bool = False) -> dict[str, Any]:
    """Of the first step, by parameter, in float64: eight rows of unlike lengths, a label for each word of theirs.

    unlabelled: every other row has no label that counts; of a causal row the first is left.
    """
    rows = rows_for(head, 8, labels=3)
    for i, row in enumerate(rows):
        if head == "causal":
            row["labels"] = row["input_ids"]
        if unlabelled and i % 2 == 0:
            of = row["labels"]
            row["labels"] = [of[0] if head == "causal" else -100, *[-100] * (len(of) - 1)] \
                if isinstance(of, list) else -100
    made = lt.LowRankTrainer(
        lt.adapt(tiny(kind, head=head, labels=3, dtype=torch.float64), lt.LoRA(r=4), seed=0),
        arguments(folder, pieces, max_steps=1, warmup_steps=0), train_dataset=rows,
        data_collator=collate_for(head))
    found: dict[str, Any] = {}

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.update({name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None})

    made.add_callback(Look())
    made.train()
    return found


ONE_A_HEAD = [("bert", "classification"), ("bert", "tagging"), ("gpt2", "causal"), ("llama", "causal"),
              ("t5", "seq2seq")]


@pytest.mark.parametrize(("kind", "head"), ONE_A_HEAD)
@pytest.mark.parametrize("unlabelled", [False, True])
def test_accumulation_weighs_as_the_loss_does(kind, head, unlabelled, tmp_path):
    """A row a micro-batch is the batch of all: one whose labels are all -100 counts for nothing."""
    whole, parts = (first_gradients(kind, head, n, tmp_path, unlabelled) for n in (1, 8))
    assert whole.keys() == parts.keys()
    largest = max(float(value.norm()) for value in whole.values())
    # transformers takes a causal model's loss in float32 whatever the logits are
    assert max(float((whole[n] - parts[n]).norm()) for n in whole) <= (1e-6 if head == "causal" else 1e-12) * largest


def test_a_search_then_a_training(tmp_path):
    """AutoLoRA's two stages, as the file's docstring shows them, with epochs and a split made here."""
    model = tiny()
    rows = make_rows(96)
    args = arguments(tmp_path, max_steps=-1, num_train_epochs=2, train_sampling_strategy="random")
    method = lt.AutoLoRA(r=4, search_steps=0.25, eta_beta=0.1)
    made = lt.LowRankTrainer(lt.adapt(model, method), args, train_dataset=rows, data_collator=collate)
    assert made.total == 6            # a quarter of two epochs of twelve steps
    assert made.clock.per_epoch == 6  # half of the rows
    made.train()
    assert made.outcome.step == 6
    following = made.following
    assert isinstance(following, lt.LoRA)
    made.adapters.remove()
    second = lt.LowRankTrainer(lt.adapt(model, following), args, train_dataset=rows, data_collator=collate)
    second.train()
    assert second.total == 24
    assert second.adapters.ranks() == {k: r for k, r in following.rank_pattern.items() if r}
    assert second.following is None


# ---- what the Trainer brings ----------------------------------------------------------------------------------


def test_the_log_has_the_rules_values(tmp_path):
    """SaLoRA's density and multiplier, and the directions kept at every site, at each logging step."""
    made = in_transformers(METHODS["salora"], tmp_path)
    made.train()
    logged = [row for row in made.state.log_history if "loss" in row]
    assert [row["step"] for row in logged] == [4, 8, 12]
    assert all({"density", "lambda", "kept/0.q", "kept/1.v", "learning_rate"} <= row.keys() for row in logged)
    at_8 = next(v for step, site, name, v in made.outcome.history if (step, site, name) == (8, "", "density"))
    assert logged[1]["density"] == at_8
    json.dumps(made.state.log_history)  # it goes into trainer_state.json


class Spy(TrainerCallback):
    """Counts the rule's hooks, and does something after a step."""

    def __init__(self, made: lt.LowRankTrainer, then: Any = None) -> None:
        self.calls: list[str] = []
        for hook in ("start", "before_step", "penalty", "after_step", "finish"):
            self.wrap(made.rule, hook)
        self.then = then

    def wrap(self, rule: Any, hook: str) -> None:
        own = getattr(rule, hook)
        setattr(rule, hook, lambda *args: (self.calls.append(hook), own(*args))[1])

    def on_step_end(self, args, state, control, **kwargs):
        if self.then:
            self.then(state, control)


def test_hooks_run_once_an_optimizer_step(tmp_path):
    """Four micro-batches a step: each hook is called once, in the order of the contract."""
    made = in_transformers(METHODS["lora"], tmp_path, pieces=4, max_steps=3, warmup_steps=0)
    spy = Spy(made)
    made.train()
    assert spy.calls == ["start", *["before_step", "penalty", "after_step"] * 3, "finish"]


def test_an_invariant_stops_the_trainer(tmp_path):
    """A learning rate so small that B stays at zero: the sentence names the site."""
    made = in_transformers(METHODS["lora"], tmp_path, others={"schedule": lambda step, length: 0.0})
    with pytest.raises(LivenessError, match=r"step 1: after the first step lora_B has not moved at 0\.q"):
        made.train()


def test_a_loss_that_is_not_finite_stops_the_trainer(tmp_path):
    """Nothing is updated after it."""
    model = tiny()
    made = in_transformers(METHODS["lora"], tmp_path, model=model)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.fill_(float("nan"))
    before = made.adapters["0.q"].lora_A.detach().clone()
    with pytest.raises(DivergedError, match="the loss is nan at step 1 of 12"):
        made.train()
    assert torch.equal(made.adapters["0.q"].lora_A, before)


def test_it_is_evaluated_only_in_its_final_form(tmp_path):
    """SaLoRA's gates are noise until the window closes at step 9; then the Trainer evaluates as asked."""
    made = in_transformers(METHODS["salora"], tmp_path, eval_strategy="steps", eval_steps=3,
                           others={"eval_dataset": make_rows(16, seed=1)})
    made.train()
    assert [row["step"] for row in made.state.log_history if "eval_loss" in row] == [9, 12]


def test_a_stop_before_the_final_form_folds_nothing(tmp_path):
    """A callback that stops at step 5 leaves SaLoRA's gates as they are; LoRA is finished at any step."""
    for name, finished in (("salora", False), ("lora", True)):
        made = in_transformers(METHODS[name], tmp_path)
        spy = Spy(made, lambda state, control: setattr(control, "should_training_stop", state.global_step >= 5))
        made.add_callback(spy)
        made.train()
        assert made.outcome.step == 5
        assert made.outcome.finished is ("finish" in spy.calls) is finished


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    """load_best_model_at_end gives the factors of the best evaluation, not of the last step."""
    kept: dict[int, Any] = {}
    made = in_transformers(lt.LoRA(r=4), tmp_path, save_strategy="steps", save_steps=4, eval_strategy="steps",
                           eval_steps=4, load_best_model_at_end=True, greater_is_better=True, learning_rate=5e-2,
                           metric_for_best_model="loss", others={"eval_dataset": make_rows(16, seed=1)})
    made.add_callback(Spy(made, lambda state, control: kept.update(
        {state.global_step: made.adapters["0.q"].lora_B.detach().clone()})))
    made.train()
    best = made.state.best_global_step
    assert best in (4, 8)  # the largest loss is not that of the end
    assert torch.equal(made.adapters["0.q"].lora_B, kept[best])
    assert not torch.equal(kept[best], kept[12])


# ---- checkpoints ----------------------------------------------------------------------------------------------


# those with a state of their own, or of another shape than `adapt` made
@pytest.mark.parametrize("name", [name for name in METHODS if name not in (
    "cola, links kept beside W", "delta_lora, lazily", "autolora, unrolled", "head", "houlsby")])
def test_a_resumed_training_is_the_uninterrupted_one(name, tmp_path):
    """Bit for bit, with dropout and rows drawn at random, from the middle of the second epoch and from the end."""
    def made() -> lt.LowRankTrainer:
        return in_transformers(METHODS[name], tmp_path, make_rows(40 if METHODS[name].held_out == 0 else 80),
                               tiny(dropout=0.1), save_strategy="steps", save_steps=7,
                               train_sampling_strategy="random")

    whole = made()
    whole.train()
    for step in (7, STEPS):  # or killed after its last step, before what comes then
        again = made()
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert whole.clock.per_epoch == 5
        assert gap(whole.adapters.model, again.adapters.model) == 0
        assert whole.following == again.following
        assert whole.outcome.history == again.outcome.history
        assert whole.outcome.finished
        assert again.outcome.finished
        assert parameter_counts(whole.adapters.model) == parameter_counts(again.adapters.model)
    assert (whole.following is None) == (name != "autolora, the search")


def test_save_model_writes_what_peft_loads(tmp_path):
    """save_model, and each checkpoint's folder, hold the adapter in peft's format."""
    peft = pytest.importorskip("peft")
    made = in_transformers(METHODS["salora"], tmp_path, save_strategy="steps", save_steps=12)
    made.train()
    made.save_model(str(tmp_path / "out"))
    batch = make_batch()
    for folder in ("out", "checkpoint-12"):
        loaded = peft.PeftModel.from_pretrained(tiny(), tmp_path / folder)
        assert apart(logits(loaded, batch), logits(made.model, batch)) < rounding(made.model)


def test_save_model_of_what_peft_cannot_hold(tmp_path):
    """A λ schedule: checkpoints resume without an adapter, save_model says what to do. Full: a plain checkpoint."""
    made = in_transformers(METHODS["delta_lora, scheduled"], tmp_path, save_strategy="steps", save_steps=12)
    made.train()
    assert (tmp_path / "checkpoint-12" / "lowrank_state.safetensors").exists()
    with pytest.raises(ExportError, match="λ schedule"):
        made.save_model(str(tmp_path / "out"))
    full = in_transformers(METHODS["full"], tmp_path)
    full.train()
    full.save_model(str(tmp_path / "full"))
    loaded = type(full.model).from_pretrained(tmp_path / "full")
    assert same_tensors(loaded.state_dict(), full.model.state_dict())


# ---- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "says"), [
    ({"optim": "adafactor"}, "optim=.*adamw_torch"),
    ({"lr_scheduler_type": "cosine"}, "schedule="),
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
    ({"auto_find_batch_size": True}, "set the batch size"),
    ({"fp16": True}, "fp16: a skipped step would still be counted: use bf16"),
    ({"torch_compile": True}, "torch_compile: a method changes parameters"),
    ({"others": {"compute_loss_func": print}}, "compute_loss_func: the loop makes its own"),
    ({"method": METHODS["autolora, unrolled"], "rows": iter(())}, "has no length"),
    ({"rows": make_rows(5), "dataloader_drop_last": True}, r"5 examples make no batch of 8.*dataloader_drop_last"),
    ({"rows": []}, "0 examples make no batch"),
    ({"held_out": make_rows(8)}, "held_out: lora learns from no examples besides"),
    ({"method": METHODS["autolora, the search"], "held_out": []}, "held_out: it is empty"),
])
def test_arguments_are_refused(changes, says, tmp_path):
    """What would train otherwise than the method says, or on nothing."""
    with pytest.raises(TrainerError, match=says):
        in_transformers(**{"method": lt.LoRA(r=4), "folder": tmp_path, **changes})


def test_where_nothing_can_be_learned_it_is_not_trained(tmp_path):
    """Merged adapters, gradients that are switched off."""
    adapters = lt.adapt(tiny(), lt.LoRA(r=4))
    adapters.merge()
    with pytest.raises(RuntimeError, match=r"cannot train: the adapters are merged; call restore\(\) first"):
        lt.LowRankTrainer(adapters, arguments(tmp_path), train_dataset=make_rows(8), data_collator=collate)
    made = in_transformers(lt.LoRA(r=4), tmp_path)
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are switched off"):
        made.train()
    assert made.outcome.step == 0


# ---- checkpoints that cannot be taken up ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[Path, lt.LowRankTrainer]:
    """A folder with whole checkpoints of steps 3, 6, 9 and 12, and the training that wrote them."""
    folder = tmp_path_factory.mktemp("kept")
    made = saved(folder)
    made.train()
    return folder, made


def saved(folder: Path, method: lt.Method | None = None, **model: Any) -> lt.LowRankTrainer:
    return in_transformers(method or lt.LoRA(r=4), folder, make_rows(40), tiny(**model), save_strategy="steps",
                           save_steps=3)


def put(**changes: Any) -> Callable[[Path], None]:
    """Other values in trainer_state.json; a key is left out where its value is `...`."""
    def spoil(folder: Path) -> None:
        path = folder / "trainer_state.json"
        held = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in held.items() if value is not ...}))

    return spoil


def flip(folder: Path) -> None:
    """One bit in the middle of the random state."""
    path = folder / "rng_state.pth"
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


def cut_off(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:1000]) and None


def taken_away(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


STATE = "lowrank_state.safetensors"
SPOILED = {
    **{f"step {step}": (put(global_step=step), f"trainer_state.json says step {step}") for step in (99, 5, -1)},
    "no step": (put(global_step=None), "trainer_state.json.*global_step"),
    "no batch size": (put(train_batch_size=None), "trainer_state.json.*train_batch_size"),
    "a batch size left out": (put(train_batch_size=...), "trainer_state.json.*train_batch_size"),
    "another name": (put(max_steps=..., mbx_steps=12), "trainer_state.json.*max_steps"),
    "a text": (put(epoch="1"), "trainer_state.json.*epoch"),
    "one value more": (put(another=1), "trainer_state.json.*another"),
    "a list": (lambda folder: (folder / "trainer_state.json").write_text("[]"), "trainer_state.json"),
    "no trainer_state": (taken_away("trainer_state.json"), "trainer_state.json"),
    "one bit of the random state": (flip, "rng_state.pth is cut off or damaged"),
    "half a random state": (cut_off("rng_state.pth"), "rng_state.pth is cut off or damaged"),
    "half a state": (cut_off(STATE), "cut off or damaged"),
    "no state": (taken_away(STATE), "nothing to resume from"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_checkpoint_that_is_damaged_is_passed_over_or_refused(what, kept, tmp_path):
    """By its name without the path, in 300 characters: refused where it is named, and where no other one is whole.

    A resume from the newest one passes it over, says so, and ends as the uninterrupted training did.
    """
    spoil, says = SPOILED[what]
    place = tmp_path / ("a_long_name" * 20)
    shutil.copytree(kept[0], place)
    spoil(place / "checkpoint-12")
    with pytest.raises(CheckpointError, match=f"checkpoint-12.*{says}.*without resume_from.* afresh") as refused:
        saved(place).train(str(place / "checkpoint-12"))
    again = saved(place)
    with pytest.warns(UserWarning, match="checkpoint-12.*goes on from checkpoint-9, the newest one") as warned:
        again.train(resume_from_checkpoint=True)
    said, = (str(one.message) for one in warned if "goes on from" in str(one.message))
    assert gap(kept[1].adapters.model, again.adapters.model) == 0
    assert max(len(said), len(str(refused.value))) <= 300
    assert not any(word in said for word in ("afresh", "delete"))
    for folder in place.glob("checkpoint-*"):  # the last was written anew
        spoil(folder)
    with pytest.raises(CheckpointError, match=r"checkpoint-12.*call train\(\) without resume_from") as refused:
        saved(place).train(resume_from_checkpoint=True)
    assert "delete" not in str(refused.value)


def test_a_checkpoint_of_something_else_is_refused_as_such(kept, tmp_path):
    """Of another method, of another head; and a trainer trains once."""
    folder, made = kept
    with pytest.raises(CheckpointError, match="belongs to another run"):
        saved(tmp_path, lt.LoRA(r=2)).train(str(folder / "checkpoint-6"))
    with pytest.raises(CheckpointError, match=r"another head: of classifier\.weight"):
        saved(folder, labels=3).train(resume_from_checkpoint=True)
    with pytest.raises(RuntimeError, match="has trained 12 steps already"):
        made.train()


def test_schedules(tmp_path):
    """Constant rates, and a function of one's own; SaLoRA's gates keep theirs under any."""
    def rates(**others: Any) -> list[float]:
        made = in_transformers(METHODS["salora"], tmp_path, **others)
        made.train()
        assert made.optimizer.param_groups[1]["lr"] == METHODS["salora"].eta_c
        return [v for _, _, name, v in made.outcome.history if name == "lr"]

    assert rates(lr_scheduler_type="constant") == [1e-2] * STEPS
    own = rates(lr_scheduler_type="cosine", others={"schedule": lambda step, length: step / length})
    assert own == pytest.approx([1e-2 * step / STEPS for step in range(1, STEPS + 1)])


# ---- what trains is what was asked for ------------------------------------------------------------------------


def test_examples_without_any_label_are_refused(tmp_path):
    """Before the first step where the rows can be looked through, at the end where they come one by one."""
    rows = [{**row, "labels": -100} for row in make_rows(20)]
    made = in_transformers(lt.LoRA(r=4), tmp_path, rows)
    with pytest.raises(ValueError, match="not one label of the examples counts"):
        made.train()
    assert made.outcome.step == 0
    made = in_transformers(lt.LoRA(r=4), tmp_path, Endless(rows), max_steps=2, warmup_steps=0)
    with pytest.raises(ValueError, match="not one label of the examples counts"):
        made.train()
    assert not made.outcome.finished
    made = in_transformers(lt.LoRA(r=4), tmp_path, rows + make_rows(2), max_steps=3, warmup_steps=0)
    made.train()
    assert made.outcome.finished
    assert [v > 0 for _, _, name, v in made.outcome.history if name == "loss"] == [False, False, True]


class Endless(IterableDataset):
    """Rows that come one by one, and again in each pass."""

    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __iter__(self):
        yield from self.rows


def test_nothing_to_train_on_is_an_error(tmp_path):
    """Rows that come one by one, of which there are none, or fewer than a step takes."""
    for rows, pieces, says in ((Endless([]), 1, "it gave 0 batches, and the first step takes 1"),
                               (Endless(make_rows(5)), 4, "it gave 3 batches, and the first step takes 4")):
        made = in_transformers(lt.LoRA(r=4), tmp_path, rows, pieces=pieces)
        with pytest.raises(TrainerError, match=says):
            made.train()
        assert not made.outcome.finished


def test_rows_that_can_be_read_once_are_reported(tmp_path):
    """Two steps of twelve, where the next pass gives nothing."""
    class Once(Endless):
        def __iter__(self):
            while self.rows:
                yield self.rows.pop()

    made = in_transformers(lt.LoRA(r=4), tmp_path, Once(make_rows(16)))
    with pytest.warns(UserWarning, match="train_dataset ended after step 2 of 12"):
        made.train()
    assert made.outcome.step == 2


def test_a_stop_before_the_first_step_finishes_nothing(tmp_path):
    """As a callback may ask for within the first step's micro-batches."""
    class Now(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = True

    made = in_transformers(lt.LoRA(r=4), tmp_path, pieces=4, others={"callbacks": [Now()]})
    made.train()
    assert (made.outcome.step, made.outcome.finished) == (0, False)


def test_a_step_has_all_its_micro_batches_or_is_not_begun(tmp_path):
    """Rows that come one by one, five micro-batches a pass, two a step: what is left over of a pass is left out."""
    made = in_transformers(METHODS["salora"], tmp_path, Endless(make_rows(20)), pieces=2)
    spy = Spy(made)
    made.train()
    assert spy.calls == ["start", *["before_step", "penalty", "after_step"] * STEPS, "finish"]
    whole = in_transformers(METHODS["salora"], tmp_path, make_rows(20)[:16], pieces=2)
    whole.train()
    assert gap(made.adapters.model, whole.adapters.model) == 0


def test_no_best_is_said(tmp_path):
    """A measure that is nan each time: the weights of the end, and a sentence; nan is never best."""
    def made(values: list[float]) -> lt.LowRankTrainer:
        given = iter(values)
        return in_transformers(
            lt.LoRA(r=4), tmp_path, save_strategy="steps", save_steps=4, eval_strategy="steps", eval_steps=4,
            load_best_model_at_end=True, metric_for_best_model="score", greater_is_better=True,
            others={"eval_dataset": make_rows(16, seed=1), "compute_metrics": lambda _: {"score": next(given)}})

    nan = float("nan")
    one = made([nan] * 3)
    with pytest.warns(UserWarning, match="no evaluation gave a number for .*score"):
        one.train()
    one = made([nan, 0.4, nan])
    one.train()
    assert one.state.best_global_step == 8


def test_the_trainers_seed_is_the_start_where_adapt_had_none(tmp_path):
    """Two scripts alike end alike; what was loaded or given a seed stays."""
    def end(seed: int | None, of_trainer: int) -> Any:
        torch.manual_seed(torch.seed())
        made = lt.LowRankTrainer(lt.adapt(tiny(), lt.LoRA(r=4), seed=seed),
                                 arguments(tmp_path, seed=of_trainer, max_steps=2, warmup_steps=0),
                                 train_dataset=make_rows(40), data_collator=collate)
        made.train()
        return made.adapters.model

    assert gap(end(None, 3), end(None, 3)) == 0
    assert gap(end(None, 3), end(3, 3)) == 0
    assert gap(end(None, 3), end(4, 3)) > 0


@pytest.mark.parametrize(("pad", "warns"), [("[end]", True), ("[pad]", False)])
def test_a_collator_that_masks_the_end_is_reported(pad, warns, tmp_path):
    """The pad token is the end token, as many set it: no label asks for it."""
    tokenizer = word_tokenizer()
    tokenizer.pad_token = pad
    rows = [{"input_ids": row["input_ids"], "attention_mask": [1] * len(row["input_ids"])} for row in make_rows(40)]
    made = lt.LowRankTrainer(lt.adapt(tiny("gpt2", head="causal"), lt.LoRA(r=4)), arguments(tmp_path),
                             train_dataset=rows, data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        made.train()
    assert any("will not learn to stop" in str(one.message) for one in said) is warns


def test_rows_held_out_are_read(tmp_path):
    """Those that are given are not cut out of the others."""
    search = METHODS["autolora, the search"]
    assert in_transformers(search, tmp_path, make_rows(40), held_out=make_rows(8)).clock.per_epoch == 5
    assert in_transformers(search, tmp_path, Endless(make_rows(40)), held_out=make_rows(8)).total == STEPS


def test_labels_of_another_name(tmp_path):
    """Questions with the place of the answer, in micro-batches: nothing is called "labels"."""
    rows = [{"input_ids": row["input_ids"][-4:], "start_positions": 1, "end_positions": 2} for row in make_rows(24)]
    model = transformers.BertForQuestionAnswering(tiny().config).double()

    def places(rows: list) -> dict[str, torch.Tensor]:
        batch = collate([{**row, "labels": 0} for row in rows])
        del batch["labels"]
        return batch | {f"{end}_positions": torch.tensor([row[f"{end}_positions"] for row in rows])
                        for end in ("start", "end")}

    ends = []
    for pieces in (1, 4):
        made = lt.LowRankTrainer(lt.adapt(copy.deepcopy(model), lt.LoRA(r=4), seed=0), arguments(tmp_path, pieces),
                                 train_dataset=rows, data_collator=places)
        made.train()
        ends.append(made.adapters.model)
    assert gap(*ends) < 1e-9

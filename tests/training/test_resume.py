"""A run that is stopped and taken up again ends where the uninterrupted one ends, bit for bit on a CPU."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    Stop,
    Watch,
    assert_same,
    bytes_of,
    collate,
    everything,
    make_rows,
    same_tensors,
    tiny,
    trainer,
)
from safetensors import safe_open
from safetensors.torch import save

from lowrank_teach.adapters import adapt
from lowrank_teach.integrations.peft_methods import AdaLoRA, PrefixTuning, PromptTuning
from lowrank_teach.methods import (
    COLA,
    AutoLoRA,
    DeltaLoRA,
    DyLoRA,
    FullFineTuning,
    HeadOnly,
    Houlsby,
    LoRA,
    Pfeiffer,
    SaLoRA,
)
from lowrank_teach.methods.autolora import KINDS
from lowrank_teach.methods.composition import compose
from lowrank_teach.training.checkpoint import FORMAT, CheckpointError, load_checkpoint
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer

# method -> the steps of a twelve-step run after which something of its own begins or ends
RUNS = {
    "lora": (LoRA(r=4, lora_dropout=0.1), (1, 7, 11)),
    "cola": (COLA(r=4, knots=(4, 8)), (1, 3, 4, 5, 8)),
    "cola-stacked": (COLA(r=4, knots=(4, 8), merge_knots=False), (1, 4, 5, 8)),
    "cola-step-down": (COLA(ranks=(6, 4, 2), knots=(4, 8), keep_scaling=False), (1, 4, 5, 8)),
    "cola-restarts": (COLA(r=4, knots=(4,), restart_schedule=True, reset_head_moments=True), (1, 4, 6)),
    "delta": (DeltaLoRA(r=4, K=4), (1, 4, 5, 9)),
    "delta-lazy": (DeltaLoRA(r=4, K=4, form="lazy"), (1, 4, 5, 9)),
    "delta-schedule": (DeltaLoRA(r=4, K=4, lam=2.0, lam_end=0.5), (1, 4, 5, 9)),
    "salora": (SaLoRA(r=4, eta_c=0.5, t_start=3, t_end=9), (1, 3, 5, 9, 10)),
    "salora-sgd": (SaLoRA(r=4, eta_c=0.5, t_start=3, t_end=9, ascent="sgd"), (4, 9)),
    **{f"autolora-{kind}": (AutoLoRA(r=4, eta_beta=0.05, hypergradient=kind), (1, 6)) for kind in KINDS},
    "autolora-shuffled": (AutoLoRA(r=4, eta_beta=0.2, shuffle_ranks=True), (6, 12)),
    "full": (FullFineTuning(), (1, 6)),
    "full-no-embeddings": (FullFineTuning(trains="no_embeddings"), (7,)),
    "full-qv": (FullFineTuning(trains="qv"), (1, 7)),
    "head": (HeadOnly(), (1, 6)),
    "dylora": (DyLoRA(r=4), (1, 7)),
    "dylora-frozen": (DyLoRA(r=4, frozen=True), (1, 6)),
    "houlsby": (Houlsby(m=4), (1, 7)),
    "houlsby-bare": (Houlsby(m=4, layer_norms=False, nonlinearity="silu"), (7,)),
    "pfeiffer": (Pfeiffer(m=4), (1, 7)),
    "pfeiffer-norms": (Pfeiffer(m=4, layer_norms=True), (7,)),
    "adalora": (AdaLoRA(r=4, target_r=2, tinit=2, tfinal=3), (1, 6)),
    "prefix": (PrefixTuning(num_virtual_tokens=3), (7,)),
    "prefix-projected": (PrefixTuning(num_virtual_tokens=4, prefix_projection=True), (7,)),
    "prompt": (PromptTuning(num_virtual_tokens=3), (7,)),
    "prompt-random": (PromptTuning(num_virtual_tokens=4, init="random"), (7,)),
    # gates open and close within a link of six steps
    "cola+salora": (compose(COLA(r=4, knots=(6,)), SaLoRA(eta_c=0.8, t_start=1, t_end=0.8)), (1, 5, 6, 7, 11)),
    "cola+salora-stacked": (compose(COLA(r=4, chain=2, merge_knots=False), SaLoRA(eta_c=0.8, t_end=1.0)), (3, 6, 7)),
    "salora+delta": (compose(SaLoRA(r=4, eta_c=0.8, t_start=4, t_end=10), DeltaLoRA(K=3)), (3, 4, 5, 10)),
    "salora+delta-schedule": (
        compose(SaLoRA(r=4, eta_c=0.8, t_start=4, t_end=10), DeltaLoRA(K=3, lam_end=0.1)), (5, 7)),
    "cola+delta": (compose(COLA(r=4, knots=(6,)), DeltaLoRA(r=4, K=3)), ()),
    "all three": (
        compose(COLA(r=4, chain=2), SaLoRA(eta_c=0.8, t_start=1, t_end=0.8), DeltaLoRA(K=4)), (4, 5, 6, 7, 11)),
    "autolora+cola": (compose(AutoLoRA(r=4, eta_beta=0.05, hypergradient="first_order"), COLA(r=4)), (6,)),
}
CASES = [(name, step) for name, (_, steps) in RUNS.items() for step in sorted({*steps, 12})]


def make(name: str, checkpoint: Path | None, dtype: torch.dtype = torch.float32, **settings):
    """A fresh trainer on a fresh model, with dropout in the model so that the random state counts."""
    kind = "gpt2" if name in ("delta", "cola-stacked") else "bert"
    return trainer(RUNS[name][0], tiny(kind, dropout=0.1, dtype=dtype), checkpoint=checkpoint, identity=name,
                   rows=40, **settings)


@pytest.fixture(scope="module")
def whole():
    """The uninterrupted run of each method, made once."""
    made: dict[str, tuple] = {}

    def run(name: str) -> tuple:
        if name not in made:
            running = make(name, None)
            running.run()
            made[name] = everything(running)
        return made[name]

    return run


@pytest.mark.parametrize(("name", "step"), CASES)
def test_resume_is_bit_identical(name, step, tmp_path, whole):
    """Stopped after this step and taken up in a fresh model: same weights, moments, history and hand-over."""
    path = tmp_path / "run.safetensors"
    first = make(name, path, callbacks=[Stop(step)])
    outcome = first.run()
    assert (outcome.step, outcome.finished) == (step, False)
    second = make(name, path)
    assert second.run().step == 12
    assert_same(everything(second), whole(name))


@pytest.mark.parametrize("name", ["cola", "delta", "delta-schedule", "salora"])
def test_resume_of_a_bfloat16_base(name, tmp_path):
    """Also where W is stored in a short float."""
    path = tmp_path / "run.safetensors"
    make(name, path, torch.bfloat16, callbacks=[Stop(6)]).run()
    second, straight = make(name, path, torch.bfloat16), make(name, None, torch.bfloat16)
    second.run()
    found = everything(second)
    straight.run()
    assert_same(found, everything(straight))


def test_resume_under_accumulation_and_evaluation(tmp_path):
    """Micro-batches, checkpoints on the way and evaluations on the way change nothing; the best is remembered."""
    scores = iter([0.5, 0.9, 0.7, 0.2, 0.5, 0.9, 0.7, 0.2])

    def evaluate(model) -> dict[str, float]:
        torch.rand(5)  # an evaluation may draw; the run's own state is given back
        return {"accuracy": next(scores)}

    settings = {"accumulation": 2, "evaluate": evaluate, "eval_every": 3, "best": True}
    straight = make("cola-step-down", None, **settings)
    straight.run()
    expected = everything(straight)
    path = tmp_path / "run.safetensors"
    make("cola-step-down", path, callbacks=[Stop(7)], **settings).run()
    second = make("cola-step-down", path, **settings)
    second.run()
    found = everything(second)
    assert found[7] == dict.fromkeys(second.adapters, 4)  # the best came at step 6, in the second link
    # what is held in the optimizer belongs to the last step, the parameters to the best one
    assert_same((found[0], {}, *found[2:]), (expected[0], {}, *expected[2:]))


def test_resume_from_a_periodic_checkpoint(tmp_path, whole):
    """checkpoint_every leaves one at each of its steps; a run that died later goes on from the last."""
    path = tmp_path / "run.safetensors"

    def die(step: int, values: dict) -> None:
        if step == 11:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        make("cola", path, callbacks=[Watch(die)], checkpoint_every=5).run()
    assert load_checkpoint(path, "cola").values["step"] == 10
    second = make("cola", path)
    second.run()
    assert_same(everything(second), whole("cola"))


def test_a_finished_run_is_taken_up_at_its_end(tmp_path, whole):
    """The checkpoint of the last step trains nothing more and hands over the same."""
    path = tmp_path / "run.safetensors"
    make("autolora-unrolled", path).run()
    steps: list[int] = []
    second = make("autolora-unrolled", path, callbacks=[Watch(lambda step, v: steps.append(step))])
    second.run()
    assert steps == []
    assert second.outcome.following == whole("autolora-unrolled")[6]


# ---- Ctrl-C -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["delta", "salora"])
def test_an_interrupt_waits_for_the_step_and_leaves_a_checkpoint(name, tmp_path, whole):
    """SIGINT in the middle of step 5: KeyboardInterrupt after that step; the next run ends as the whole one."""
    path = tmp_path / "run.safetensors"
    first = make(name, path)
    before_step = first.rule.before_step

    def interrupted(clock) -> None:
        before_step(clock)
        if clock.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    first.rule.before_step = interrupted
    previous = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="after step 5 of 12"):
        first.run()
    assert signal.getsignal(signal.SIGINT) is previous
    assert load_checkpoint(path, name).values["step"] == 5
    second = make(name, path)
    second.run()
    assert_same(everything(second), whole(name))


@pytest.mark.parametrize("at", ["evaluation", "step"])
def test_an_interrupt_ends_an_evaluation_at_once_and_it_is_made_up_for(tmp_path, at):
    """SIGINT in the evaluation after step 6, or in the step before it: what ran to its end has the same history."""
    asked: list[int] = []

    def evaluate(model) -> dict[str, float]:
        model.eval()
        asked.append(made.outcome.step)
        torch.rand(3)   # an evaluation that draws changes nothing
        if at == "evaluation" and asked == [3, 6]:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the evaluation went on")
        return {"accuracy": 0.1 * made.outcome.step % 0.5}

    def interrupt(step: int, values: dict) -> None:
        if at == "step" and step == 6 and asked == [3]:
            signal.raise_signal(signal.SIGINT)

    path, settings = tmp_path / "run.safetensors", {"eval_every": 3, "evaluate": evaluate, "best": True}
    made = make("delta", path, callbacks=[Watch(interrupt)], **settings)
    previous = signal.getsignal(signal.SIGINT)
    where = "in the evaluation after" if at == "evaluation" else "after"
    with pytest.raises(KeyboardInterrupt, match=f"stopped {where} step 6 of 12; run the same line again") as stop:
        made.run()
    assert at == "step" or stop.value.__suppress_context__   # no trace of what was at work
    assert signal.getsignal(signal.SIGINT) is previous
    assert load_checkpoint(path, "delta").values["step"] == 6
    made = make("delta", path, **settings)
    made.run()
    taken_up = everything(made)
    made = make("delta", None, **settings)
    asked += [3, 6]   # from here on nothing interrupts
    made.run()
    assert_same(taken_up, everything(made))
    assert [step for step, _, name, _ in made.outcome.history if name == "validation.accuracy"] == [3, 6, 9, 12]


def test_a_second_interrupt_does_not_wait(tmp_path):
    """Two Ctrl-C in one step stop at once, and the last whole checkpoint stays."""
    path = tmp_path / "run.safetensors"
    made = make("lora", path, checkpoint_every=4)
    before_step = made.rule.before_step

    def interrupted(clock) -> None:
        before_step(clock)
        if clock.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    made.rule.before_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert load_checkpoint(path, "lora").values["step"] == 4


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
sys.path[:0] = {tests!r}
from helpers import Watch
from test_resume import make
from pathlib import Path
say = Watch(lambda step, values: step == 3 and print("go", flush=True))
made = make("cola", Path({path!r}), steps=100000, callbacks=[say])
made.run()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_another_process(tmp_path, number):
    """A plain kill and a closed terminal end it with KeyboardInterrupt and a checkpoint that can be read.

    As Ctrl-C does: tests/core/test_refusals.py, on the command line.
    """
    path = tmp_path / "run.safetensors"
    script = SCRIPT.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])], path=str(path))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    assert process.stdout.readline().strip() == "go"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt: stopped after step" in errors
    stored = load_checkpoint(path, "cola")
    assert 3 <= stored.values["step"] < 100000


def test_a_terminal_that_is_closed_is_ignored_under_nohup(tmp_path, monkeypatch):
    """What a program ignores stays ignored, and its handlers are its own again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        made = make("lora", tmp_path / "run.safetensors",
                    callbacks=[Watch(lambda step, values: os.kill(os.getpid(), signal.SIGHUP))])
        assert made.run().finished
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before[signal.SIGHUP])


# ---- what is no checkpoint ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("stored") / "run.safetensors"
    make("lora", path, callbacks=[Stop(3)]).run()
    return path.read_bytes()


@pytest.fixture
def stored(three_steps, tmp_path) -> Path:
    path = tmp_path / "run.safetensors"
    path.write_bytes(three_steps)
    return path


def refused(path: Path, says: str, name: str = "lora") -> None:
    """Refused with a sentence that names the file and what to do; the file and the model stay as they are."""
    content, made = path.read_bytes(), make(name, path)
    before = {key: value.clone() for key, value in made.adapters.state_dict()[0].items()}
    with pytest.raises(CheckpointError, match=rf"run\.safetensors.*{says}.*delete .* to start the run afresh"):
        made.run()
    assert path.read_bytes() == content
    assert same_tensors(made.adapters.state_dict()[0], before)


def test_a_refusal_is_short_where_the_path_is_long(tmp_path):
    path = tmp_path / ("a_long_name" * 20) / "run.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"run\.safetensors is cut off or damaged.* to start the run") as no:
        make("lora", path).run()
    assert len(str(no.value)) <= 300


def one_bit(content: bytes) -> bytes:
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]


NO_TENSORS = b"PK\x03\x04 no tensors at all, but long enough to hold a header of some kind"
SPOILED = {  # what becomes of the file, what is said of it, and the run that it is given to
    "empty": (lambda content: b"", "cut off or damaged", "lora"),
    "in the header's length": (lambda content: content[:5], "cut off or damaged", "lora"),
    "in the header": (lambda content: content[:100], "cut off or damaged", "lora"),
    "in the tensors": (lambda content: content[:len(content) // 2], "cut off or damaged", "lora"),
    "before its end": (lambda content: content[:-1], "cut off or damaged", "lora"),
    "one bit": (one_bit, "cut off or damaged .its content is not what was written", "lora"),
    "text": (lambda content: NO_TENSORS, "cut off or damaged", "lora"),
    "foreign": (lambda content: save({"weight": torch.zeros(3)}), "not a checkpoint of this version", "lora"),
    "an older format": (lambda content: save({"weight": torch.zeros(3)}, {
        "format": "lowrank_teach checkpoint 0", "identity": "lora"}), "not a checkpoint of this version", "lora"),
    "another run of the same shapes": (lambda content: content, "belongs to another run", "delta-lazy"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_is_no_checkpoint_of_this_run_is_refused(stored, what):
    """Cut off anywhere, changed, someone else's, or of another identity."""
    spoil, says, name = SPOILED[what]
    stored.write_bytes(spoil(stored.read_bytes()))
    refused(stored, says, name)


def test_a_checkpoint_is_tensors_and_json(stored):
    """No pickle: every value is a tensor or plain JSON in the header."""
    with safe_open(stored, "pt") as file:
        header = file.metadata()
        assert all(isinstance(file.get_tensor(key), torch.Tensor) for key in file.keys())  # noqa: SIM118
    assert header["format"] == FORMAT
    assert json.loads(header["values"])["step"] == 3
    (length,) = struct.unpack("<Q", stored.read_bytes()[:8])
    assert json.loads(stored.read_bytes()[8:8 + length])["__metadata__"] == header


def test_a_checkpoint_of_another_head_or_model_is_refused_as_such(tmp_path):
    """One class more, no head, a head where there was none, fewer layers; the adapters stay as they were."""
    def of(model, head=None, path=tmp_path / "run.safetensors") -> Trainer:
        rows = make_rows(16, labels=model.config.num_labels)
        return Trainer(adapt(model, LoRA(r=4), seed=0, head=head), rows, collate,
                       TrainConfig(steps=4, batch_size=8), checkpoint=path, cpu=True, callbacks=[Stop(2)])

    of(tiny()).run()
    for other, says in ((of(tiny(labels=3)), r"another head: of classifier.weight it holds \(2, 16\), and here it is "
                                             r"\(3, 16\)"),
                        (of(tiny(labels=1)), "another head"), (of(tiny(), head=()), "another head: .*not trained"),
                        (of(tiny(), head=("classifier", "bert.pooler")), "another head: .*pooler.* it holds nothing"),
                        (of(tiny(num_hidden_layers=1)), "another model: of 1.q"),
                        (of(tiny(num_hidden_layers=3)), "another model: of 2.q it holds nothing")):
        before = bytes_of(other.adapters.model)
        with pytest.raises(CheckpointError, match=says):
            other.run()
        assert same_tensors(before, bytes_of(other.adapters.model))


def test_no_checkpoint_is_no_error(tmp_path):
    """Where there is none the run starts afresh."""
    assert load_checkpoint(tmp_path / "none.safetensors", "") is None


def test_a_checkpoint_is_written_whole_or_not_at_all(stored, monkeypatch):
    """If writing fails half way the old checkpoint stays and no scrap is left."""
    content = stored.read_bytes()

    def fails(tensors, path, header) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("lowrank_teach.training.checkpoint.save_file", fails)
    with pytest.raises(OSError, match=r"No space left on device.*free some space"):
        make("lora", stored, callbacks=[Stop(5)]).run()
    assert stored.read_bytes() == content
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]


@pytest.mark.parametrize("inside", ["run.safetensors", "deeper/run.safetensors"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, inside):
    """A file where the folder should be: the sentence names it and the way out."""
    (tmp_path / "runs").write_text("a file, not a folder")
    path = tmp_path / "runs" / inside
    with pytest.raises(OSError, match=r"could not be written to .*runs.*choose another folder"):
        make("head", path, callbacks=[Stop(2)]).run()

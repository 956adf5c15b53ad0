"""Files that the package wrote and reads again, damaged in every way that is cheap to try: each version is read as
what was written, or refused as that file is refused. None is taken up as something else."""

from __future__ import annotations

import json
import random
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from helpers import Stop, same_tensors, tiny, trainer
from safetensors import safe_open
from safetensors.torch import save_file
from test_runs import a_run
from transformers import TrainerState

import lowrank_teach as lt
from lowrank_teach.experiments import runs
from lowrank_teach.experiments.fit import read_network, write_network
from lowrank_teach.experiments.runs import Store
from lowrank_teach.methods import COLA, LoRA
from lowrank_teach.training import checkpoint
from lowrank_teach.training.checkpoint import CheckpointError, DamagedError, load_checkpoint

FLIPS, CUTS = 80, 25


def damaged(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut off, one bit flipped, a stretch of zeros (as a disk leaves it), longer, empty, and other files."""
    draw = random.Random(0)
    places = [*range(16), *(draw.randrange(len(content)) for _ in range(FLIPS - 16))]
    for at in places:
        bit = 1 << draw.randrange(8)
        yield f"bit {bit} of byte {at}", content[:at] + bytes([content[at] ^ bit]) + content[at + 1:]
    for at in (0, 1, 7, 8, 9, len(content) - 1, *(draw.randrange(len(content)) for _ in range(CUTS - 6))):
        yield f"cut off at {at}", content[:at]
    for at in (draw.randrange(len(content)) for _ in range(8)):
        zeros = bytes(min(512, len(content) - at))
        yield f"zeros at {at}", content[:at] + zeros + content[at + len(zeros):]
    yield "longer", content + b"\0" * 64
    for other in (b"null", b"1", b'"x"', b"[]", b"{}", b"[" * 50_000, b"\x80\x04N.", b"PK\x03\x04" + bytes(99)):
        yield f"{other[:10]!r}", other


def rewritten(path: Path) -> Iterator[str]:
    """A safetensors file whole again, with one tensor or one entry of its header lost, added or changed."""
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in tensors.items():
        save_file({key: value for key, value in tensors.items() if key != name}, path, header)
        yield f"without {name}"
        save_file({**tensors, name: tensor.reshape(-1)[:-1].clone()}, path, header)
        yield f"{name} shorter"
        save_file({**tensors, name: tensor.double()}, path, header)
        yield f"{name} of another type"
    save_file({**tensors, "more": torch.ones(2)}, path, header)
    yield "a tensor more"
    for name, text in header.items():
        others = ("", "null", "[" * 50_000, text.replace("3", "99"))
        for changed in ({k: v for k, v in header.items() if k != name}, *({**header, name: o} for o in others)):
            if changed != header:
                save_file(tensors, path, changed)
                yield f"header {name}: {changed.get(name, 'none')[:20]!r}"


def each_version(path: Path, whole: bytes) -> Iterator[str]:
    for what, content in damaged(whole):
        path.write_bytes(content)
        yield what
    if path.suffix == ".safetensors":
        path.write_bytes(whole)
        yield from rewritten(path)


def outcomes(path: Path, use: Callable[[], str]) -> dict[str, int]:
    """How many versions came to which end."""
    whole, found = path.read_bytes(), dict[str, int]()
    for what in each_version(path, whole):
        try:
            end = use()
        except Exception as error:
            raise AssertionError(f"{path.name}, {what}: {type(error).__name__}: {error}") from error
        found[end] = found.get(end, 0) + 1
    path.write_bytes(whole)
    assert use() == "read"
    return found


# ---- a checkpoint --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", [LoRA(r=2), COLA(r=2, knots=(2,))], ids=["lora", "cola"])
def test_a_damaged_checkpoint_is_refused(tmp_path, method):
    """Always a `CheckpointError` that names the file and says what to do; the adapters stay as they were."""
    path = tmp_path / "run.safetensors"
    trainer(method, tiny(), checkpoint=path, identity="run 3", callbacks=[Stop(3)]).run()
    expected = load_checkpoint(path, "run 3")

    def use() -> str:
        try:
            found = load_checkpoint(path, "run 3")
        except CheckpointError as error:
            said = str(error)
        else:
            said = ""
        if said:
            assert re.search(r"run\.safetensors .*; delete .*run\.safetensors to start the run afresh$", said)
            assert len(said) <= 300
            return "refused"
        assert same_tensors(found.tensors, expected.tensors)
        assert found.values == expected.values
        return "read"

    found = outcomes(path, use)
    assert found["refused"] > 200
    assert found.get("read", 0) <= 3, "padding of the header, at most"


def test_a_damaged_folder_of_transformers_trainer_is_refused(tmp_path):
    """The state in it as above, and the Trainer's own notes, which are read by transformers."""
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    trainer(LoRA(r=2), tiny(), checkpoint=folder / checkpoint.STATE, callbacks=[Stop(3)]).run()
    notes = folder / "trainer_state.json"
    state = TrainerState(global_step=3, epoch=0.5, train_batch_size=8, log_history=[{"loss": 0.5, "step": 3}])
    state.stateful_callbacks = {}
    state.save_to_json(notes)

    def use() -> str:
        try:
            checkpoint.load_folder(folder, "")
        except CheckpointError as error:
            return "refused" if str(error).startswith(("checkpoint-3", "the checkpoint checkpoint-3")) else "unnamed"
        return "read"

    for path in (folder / checkpoint.STATE, notes):
        assert {"refused"} <= outcomes(path, use).keys() <= {"read", "refused"}


def crafted(path: Path, change: Callable[[dict, dict], None]) -> None:
    """As a program would write it that knows the format, checksum and all."""
    tensors, header, _ = checkpoint.read(path)
    values = json.loads(header["values"])
    change(tensors, values)
    checkpoint.write(path, tensors, {**header, "values": json.dumps(values)})


def lost(part: str) -> Callable[[dict, dict], None]:
    """Every tensor whose name holds this is gone."""
    def change(tensors: dict, values: dict) -> None:
        gone = [name for name in tensors if part in name]
        assert gone
        for name in gone:
            del tensors[name]
    return change


def said(**changed) -> Callable[[dict, dict], None]:
    return lambda tensors, values: values.update(changed)


CRAFTED = {
    "step 99 of 12": said(step=99), "step -1": said(step=-1), "a step in words": said(step="three"),
    "no history": said(history=None), "rows of a history": said(history=[[1, "", "loss"]]),
    "adapters in a list": said(adapters=[]), "no values of branches": said(adapters={}),
    "a branch that says nothing": lambda tensors, values: values["adapters"].update({"0.q": {}}),
    "a branch that is a number": lambda tensors, values: values["adapters"].update({"0.q": 1}),
    "a site more": lambda tensors, values: values["adapters"].update({"9.q": values["adapters"]["0.q"]}),
    "a factor lost": lost("0.q.lora_A"), "all factors lost": lost("lora_B"), "a head lost": lost("parameter."),
    "a moment lost": lost("optimizer.0.exp_avg_sq"), "the random state lost": lost("random."),
    "the generator lost": lost("rule.generator"),
    "a moment of another shape": lambda tensors, values: tensors.update({"optimizer.0.exp_avg": torch.zeros(3)}),
    "moments of what is not there": lambda tensors, values: tensors.update({"optimizer.99.exp_avg": torch.zeros(3)}),
    "a moment without a number": lambda tensors, values: tensors.update({"optimizer.x": torch.zeros(3)}),
    "a random state of another length": lambda tensors, values: tensors.update({"random.cpu": torch.zeros(3)}),
    "best without its score": said(best={}),
}


@pytest.mark.parametrize("what", CRAFTED)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, what):
    """Whole as a file, and not the state of this training."""
    path = tmp_path / "run.safetensors"
    trainer(LoRA(r=2), tiny(), checkpoint=path, callbacks=[Stop(3)]).run()
    crafted(path, CRAFTED[what])
    with pytest.raises(CheckpointError, match=r"run\.safetensors .*; ") as no:
        trainer(LoRA(r=2), tiny(), checkpoint=path).run()
    assert len(str(no.value)) <= 300


# ---- a record ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["run.json", "history.parquet", "update.safetensors"])
def test_a_damaged_record_is_passed_over(tmp_path, name):
    store, run = Store(tmp_path), a_run()
    path = store.put(run) / name

    def use() -> str:
        runs._warned.clear()   # of each version anew
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            found = store.get(run.key)
        assert [w.category for w in heard] == ([] if found else [UserWarning])
        if found is None:
            return "refused"
        assert found.metrics == run.metrics
        assert found.history.equals(run.history)
        assert all(torch.equal(a, b) for site in run.factors
                   for a, b in zip(found.factors[site], run.factors[site], strict=True))
        return "read"

    assert outcomes(path, use).get("refused", 0) > 110


def test_every_damaged_record_of_a_store_is_passed_over_with_one_warning_each(tmp_path):
    store = Store(tmp_path)
    whole = store.put(a_run(seed=0))
    for seed, content in enumerate((b"null", b"1", b'"x"', b"[" * 50_000, b"{}"), start=1):
        shutil.copytree(whole, store.path(f"{seed:016x}"))
        (store.path(f"{seed:016x}") / "run.json").write_bytes(content)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert [[run.key for run in store] for _ in range(2)] == [[whole.name]] * 2
    assert len(heard) == 5


# ---- what is kept beside the runs ----------------------------------------------------------------------------

def test_a_damaged_network_is_not_taken_up(tmp_path):
    path = tmp_path / "kept.safetensors"
    write_network(path, lt.adapt(tiny(), LoRA(r=2), seed=0))
    method, tensors, values = read_network(path)

    def use() -> str:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            found = read_network(path)
        assert [w.category for w in heard] == ([] if found else [UserWarning])
        if found is None:
            return "refused"
        assert (found[0], found[2]) == (method, values)
        assert same_tensors(found[1], tensors)
        return "read"

    assert outcomes(path, use)["refused"] > 110


def test_damaged_is_said_of_a_file_and_not_of_its_run():
    assert issubclass(DamagedError, CheckpointError)

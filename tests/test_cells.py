"""The table of cells: what trains is recorded once, what cannot be had is passed over, the command is true."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from small import command as run_command
from small import data_folder, model_folder

from lowrank_teach import cells
from lowrank_teach.config import fit_to_profile, train_config
from lowrank_teach.methods import METHODS, Clock
from lowrank_teach.models import BACKBONES
from lowrank_teach.tasks import TASKS


@pytest.fixture
def little(tmp_path, monkeypatch):
    """A table of two lines: a task that is there, on a tiny model, and one whose rows are nowhere."""
    backbone = str(model_folder(tmp_path / "model"))
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    quick = {"steps": 3, "batch_size": 8}
    lines = (cells.Line("rt", backbone, ("head", "lora", "full-qv"), quick),
             cells.Line("qnli", backbone, ("lora",), quick))
    monkeypatch.setattr(cells, "LINES", lines)
    return tmp_path / "numbers"


def test_every_name_of_the_table_exists():
    for line in cells.LINES:
        assert line.task in TASKS
        assert line.backbone in BACKBONES
        assert set(line.columns) <= set(cells.COLUMNS)
    assert {column.method for column in cells.COLUMNS.values()} <= set(METHODS)
    assert set(cells.PAPERS) <= set(METHODS)


def test_every_task_has_a_line():
    """But those of style transfer, which no model is trained on: they have no pairs."""
    assert {line.task for line in cells.LINES} == set(TASKS) - set(cells.ELSEWHERE)


@pytest.mark.parametrize("line", cells.LINES, ids=lambda line: line.name)
def test_gates_have_time_to_reach_their_density(line):
    method = fit_to_profile(cells.COLUMNS["salora"].configured(), cells.PROFILE)
    clock = Clock(1, train_config(cells.PROFILE, **line.trains("salora")).steps, 1)
    assert clock.resolve(method.t_end) - clock.resolve(method.t_start) >= method.shortest_window()


def test_cells_are_trained_once_and_kept(little, monkeypatch):
    seen = []
    records = cells.train(folder=little, on_cell=lambda line, name, run: seen.append((line.task, name, run)))
    assert [(r["task"], r["column"]) for r in records] == [("rt", "head"), ("rt", "lora"), ("rt", "full-qv")]
    assert seen[-1][:2] == ("qnli", "lora")
    assert "no rows for 'qnli'" in seen[-1][2]
    assert records == cells.load(little)
    monkeypatch.setattr(cells, "fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(cells, "LINES", cells.LINES[:1])
    assert cells.train(folder=little) == records


def test_only_what_is_named(little):
    assert [r["column"] for r in cells.train(["rt"], ["lora"], folder=little)] == ["lora"]
    with pytest.raises(ValueError, match=r"no line .nonsense.; there are .*rt"):
        cells.train(["nonsense"], folder=little)
    with pytest.raises(ValueError, match="no column 'loro'"):
        cells.train(columns=["loro"], folder=little)


def test_the_markdown_shows_what_ran_and_what_did_not(little):
    cells.train(["rt"], ["lora"], folder=little)
    head, _, rt, qnli = cells.markdown(little).splitlines()
    value = f"{cells.load(little)[0]['value']:.3f}"
    place = [c.strip() for c in head.split("|")].index("LoRA")
    assert rt.split("|")[place].strip() == value
    assert re.findall(r"\d\.\d{3}", rt) == [value]
    assert not re.search(r"\d\.\d", qnli)


def test_the_command_of_a_cell_makes_the_same_run(little, monkeypatch, capsys):
    """Word for word, from a terminal: it finds the stored run, so its configuration is the same."""
    records = cells.train(["rt"], folder=little)
    for record in records:
        words = shlex.split(record["command"])
        assert words[0] == "lowrank-teach"
        monkeypatch.setattr("lowrank_teach.train.Trainer.run", lambda self: pytest.fail("trained again"))
        status, out, err = run_command(monkeypatch, capsys, *words[1:], "--json")
        assert status == 0, err
        assert json.loads(out)["key"] == record["key"]


def test_from_a_terminal(little, monkeypatch, capsys):
    words = ("cells", "rt", "--train", "--method", "head", "--folder", str(little))
    status, out, err = run_command(monkeypatch, capsys, *words)
    assert status == 0, err
    assert "head" in err
    assert "missing" in out
    status, out, _ = run_command(monkeypatch, capsys, "cells", "rt", "--folder", str(little), "--json")
    assert [c["column"] for c in json.loads(out)["cells"]] == ["head"]
    status, out, _ = run_command(monkeypatch, capsys, "cells", "--markdown", "--folder", str(little))
    assert out.strip() == cells.markdown(little)
    assert run_command(monkeypatch, capsys, "cells", "nonsense", "--train", "--folder", str(little))[0] == 2

"""The store: what is put comes back, a key is the whole configuration, a full disk costs nothing that was there."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError

import lowrank_teach as lt
from lowrank_teach.experiments import runs
from lowrank_teach.experiments.runs import HISTORY, Run, Store, config_key
from lowrank_teach.models.packaged import of_this_process

CONFIG = {"method": {"method": "cola", "chain": 3, "r": 8, "knots": [], "rank_pattern": {}}, "task": "rt",
          "backbone": "minilm-l3", "seed": 0, "profile": "tiny",
          "training": {"steps": 30, "lr": 3e-3, "head_lr": None, "best": False}}


def a_run(**config) -> Run:
    generator = torch.Generator().manual_seed(0)
    history = pd.DataFrame([(1, "", "loss", 0.7), (2, "", "loss", 0.5), (2, "0.q", "kept", 8.0),
                            (2, "0.v", "kept", 3.0), (1, "0.q", "kept", 9.0)], columns=HISTORY)
    return Run(config={**copy.deepcopy(CONFIG), **config}, history=history,
               metrics={"validation": {"accuracy": 0.5, "loss": 0.7}, "test": {"accuracy": 0.75, "loss": 0.6}},
               ranks={"0.q": 8, "enc.0.v": 0}, parameters={"trainable": 12, "total": 100},
               seconds={"training": 1.5, "total": 2.0}, memory={"rss_peak_bytes": 10, "cuda_peak_bytes": None},
               flops={"forward_frozen": 3.0}, notes=["λ was small"], machine={"torch": "2", "commit": "abc"},
               identity={"data": "a1", "weights": "b2"},
               factors={"0.q": (torch.randn(6, 8, generator=generator), torch.randn(8, 5, generator=generator)),
                        "enc.0.v": (torch.zeros(6, 0), torch.zeros(0, 5))})


WRITTEN = ["key", "format", "files", "sha256", *(f.name for f in dataclasses.fields(Run)
                                                 if f.name not in ("history", "factors", "found", "trained"))]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_put_comes_back(store):
    run = a_run()
    folder = store.put(run)
    back = store.get(run.key)
    assert folder == store.path(run.key)
    assert sorted(path.name for path in folder.iterdir()) == ["history.parquet", "run.json", "update.safetensors"]
    for field in dataclasses.fields(Run):
        if field.name not in ("history", "factors"):
            assert getattr(back, field.name) == getattr(run, field.name), field.name
    pd.testing.assert_frame_equal(back.history, run.history)
    assert back.factors.keys() == run.factors.keys()
    for site, pair in run.factors.items():
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(back.factors[site], pair, strict=True))
    assert back.key == run.key
    assert list(back.metrics["test"]) == ["accuracy", "loss"]  # the headline stays first


def test_a_run_reads_its_own_history():
    run = a_run()
    assert run.series("loss") == ([1, 2], [0.7, 0.5])
    assert run.by_site("kept") == {"0.q": 9.0, "0.v": 3.0}  # the last row of each site
    assert run.score() == ("accuracy", 0.75)
    assert run.score("validation") == ("accuracy", 0.5)
    assert run.label == "cola-3"
    assert a_run(method={"method": "lora"}).label == "lora"


def changes(value: object, where: tuple = ()) -> list[tuple]:
    """(path, other value) for every plain value inside a configuration."""
    if isinstance(value, dict) and value:
        return [found for key, inner in value.items() for found in changes(inner, (*where, key))]
    other = {"str": "other", "int": 77, "float": 0.123, "bool": True, "NoneType": 5, "list": [4], "dict": {"0.q": 2}}
    return [(where, other[type(value).__name__])]


@pytest.mark.parametrize(("where", "other"), changes(CONFIG), ids=str)
def test_the_key_depends_on_every_value(where, other):
    config = copy.deepcopy(CONFIG)
    inside = config
    for key in where[:-1]:
        inside = inside[key]
    assert inside[where[-1]] != other
    inside[where[-1]] = other
    assert config_key(config) != config_key(CONFIG)


def test_every_field_of_a_configuration_is_in_the_key():
    """What a method or a training can be told is what is hashed: no field is left out on the way."""
    for method in lt.METHODS.values():
        assert method().to_dict().keys() == {"method", *(field.name for field in dataclasses.fields(method))}
    shuffled = dict(reversed(CONFIG.items()))
    assert config_key(shuffled) == config_key(CONFIG)


@pytest.mark.parametrize("other", [{}, {"data": "a1"}, {"data": "a2", "weights": "b2"},
                                   {"data": "b2", "weights": "a1"}])
def test_the_key_depends_on_rows_and_weights(other):
    run = a_run()
    assert dataclasses.replace(run, identity=other).key != run.key == dataclasses.replace(a_run()).key
    assert dataclasses.replace(run, version="0.0.1").key != run.key


def test_a_record_under_another_key_is_not_returned(store):
    """Copied or renamed by hand, it would answer for a run that never was."""
    asked, other = a_run(seed=1), a_run(seed=2)
    shutil.copytree(store.put(other), store.path(asked.key))
    with pytest.warns(UserWarning, match=rf"{asked.key} is damaged .*it is the record of {other.key}, another run"):
        assert store.get(asked.key) is None
    changed = json.loads((store.path(other.key) / "run.json").read_text())
    changed["config"]["seed"] = 1
    (store.path(other.key) / "run.json").write_text(json.dumps(changed))
    with pytest.warns(UserWarning, match="was changed since it was written"):
        assert list(store) == []


def test_a_record_of_an_earlier_version_is_read_and_of_an_earlier_format_is_not_there(store):
    old = dataclasses.replace(a_run(), version="0.0.1")
    folder = store.put(old)
    assert store.get(old.key).key == folder.name
    values = {name: value for name, value in json.loads((folder / "run.json").read_text()).items()
              if name not in ("format", "sha256", "files", "identity", "version")}
    (folder / "run.json").write_text(json.dumps(values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(store) == []


def test_a_run_replaces_an_older_one(store):
    store.put(a_run())
    run = a_run()
    run.metrics["test"]["accuracy"] = 0.9
    store.put(run)
    assert store.get(run.key).score() == ("accuracy", 0.9)
    assert [path.name for path in store.folder.iterdir()] == [run.key]


def full(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def broken(*args: object, **options: object) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(("where", "failure"), [
    ((runs, "save_file"), broken), ((pd.DataFrame, "to_parquet"), full), ((Path, "write_text"), full),
    ((runs.os, "replace"), full)])
def test_a_full_disk_leaves_what_stood_there(store, monkeypatch, where, failure):
    store.put(a_run())
    before = contents(store.folder)
    changed = a_run()
    changed.metrics["test"]["accuracy"] = 0.1
    monkeypatch.setattr(*where, failure)
    says = r"could not be written to .*No space left.*LOWRANK_TEACH_RUNS.*checkpoint stays"
    with pytest.raises(OSError, match=says):
        store.put(changed)
    monkeypatch.undo()
    assert contents(store.folder) == before
    assert store.get(changed.key).score() == ("accuracy", 0.75)


def test_a_failed_swap_puts_the_old_run_back(store, monkeypatch):
    store.put(a_run())
    before, real, calls = contents(store.folder), os.replace, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            full()
        real(source, target)

    monkeypatch.setattr(runs.os, "replace", second_fails)
    with pytest.raises(OSError, match="could not be written"):
        store.put(a_run())
    assert len(calls) == 3
    assert contents(store.folder) == before


def putter(folder: str, accuracy: float, times: int) -> None:
    """Put one record again and again, as another process would."""
    run = a_run()
    run.metrics["test"]["accuracy"] = accuracy
    for _ in range(times):
        Store(folder).put(run)


def test_writers_of_one_record_and_its_readers_do_not_meet(store):
    """Two processes and two threads put the same run while it is read and looked for: whole records, nothing left."""
    store.put(a_run())
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=putter, args=(str(store.folder), 0.1 * i, 150)) for i in (1, 2)]
    with ThreadPoolExecutor(2) as pool, warnings.catch_warnings():
        warnings.simplefilter("error")
        for worker in workers:
            worker.start()
        threads = [pool.submit(putter, str(store.folder), 0.1 * i, 60) for i in (3, 4)]
        seen, looks = set(), []
        while not all(thread.done() for thread in threads) or any(worker.is_alive() for worker in workers):
            seen.add(store.get(a_run().key).metrics["test"]["accuracy"])
            looks.append([run.key for run in store])   # what is being written is no record
        for thread in threads:
            thread.result()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert seen <= {0.75, 0.1, 0.2, 0.1 * 3, 0.4}
    assert len(seen) > 2
    assert len(looks) > 50
    assert {tuple(look) for look in looks} == {(a_run().key,)}
    assert [path.name for path in store.folder.iterdir()] == [a_run().key]


def test_a_record_that_is_moved_aside_at_the_moment_is_waited_for(store, monkeypatch):
    """Between the two steps of a replacement nothing stands under its key."""
    place = store.put(a_run())
    aside = store.folder / (of_this_process(f"{runs.WRITING}{a_run().key}-") + "x.old0")
    place.rename(aside)
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: seconds and aside.exists() and aside.rename(place))
    assert [run.key for run in store] == [a_run().key]


def test_a_record_is_found_though_its_writer_ends_during_the_look(store, monkeypatch):
    place = store.put(a_run())
    aside, real = store.folder / f"{runs.WRITING}{a_run().key}-x.old0", Path.glob
    place.rename(aside)

    def glob(folder, pattern):
        if aside.exists():   # the look for writers comes a moment too late
            aside.rename(place)
        return real(folder, pattern)

    monkeypatch.setattr(Path, "glob", glob)
    assert store.get(a_run().key) is not None


@pytest.mark.parametrize("link", [False, True])
def test_what_is_no_folder_under_a_key_is_replaced_and_leaves_nothing(store, tmp_path, link):
    place = store.path(a_run().key)
    store.folder.mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    if link:
        place.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    else:
        place.write_text("in the way")
    left = store.folder / (f"{runs.WRITING}key-")
    left.write_text("of a killed writer")
    os.utime(left, (0, 0))
    store.put(a_run())
    assert [path.name for path in store.folder.iterdir()] == [a_run().key]
    assert store.get(a_run().key) is not None
    assert (tmp_path / "elsewhere" / "kept").exists()


def killed_while_writing(folder: str) -> None:
    """A process that is killed (no clean-up) before its record stands."""
    runs._replace_folder = lambda new, target: os.kill(os.getpid(), signal.SIGKILL)
    Store(folder).put(a_run())


def test_what_a_killed_writer_left_is_swept_by_the_next(store):
    worker = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=(str(store.folder),))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    left, = store.folder.iterdir()
    assert left.name.startswith(runs.WRITING)
    day_old, at_work = (store.folder / f"{runs.WRITING}{name}" for name in ("abcdef", "ghijkl"))
    mine = store.folder / (of_this_process(f"{runs.WRITING}key-") + "x")
    for folder in (day_old, at_work, mine):
        folder.mkdir()
    os.utime(day_old, (0, 0))
    assert store.get(a_run().key) is None   # a reader leaves all as it is
    store.put(a_run())
    assert sorted(path.name for path in store.folder.iterdir()) == sorted([at_work.name, mine.name, a_run().key])


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(OSError, match=r"runs cannot be written to .*file.*LOWRANK_TEACH_RUNS"):
            Store(place).check()
    lt.fit  # noqa: B018  (loads the module that is patched)
    monkeypatch.setattr(sys.modules["lowrank_teach.experiments.fit"], "load_task",
                        lambda *a, **k: pytest.fail("it went on"))
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / "file"))
    with pytest.raises(OSError, match="runs cannot be written"):
        lt.fit("lora", "rt", "minilm-l3", "tiny", progress=False)
    assert (tmp_path / "file").read_text() == "in the way"


def test_iteration_finds_every_run_and_nothing_else(store):
    assert list(store) == []
    keys = {store.put(a_run(seed=seed)).name for seed in range(3)}
    (store.folder / "other").mkdir()
    (store.folder / "a.checkpoint.safetensors").write_bytes(b"")
    assert {run.key for run in store} == keys
    assert store.get("nothing") is None


@pytest.mark.parametrize(("name", "spoil"), [
    ("run.json", lambda data: data[: len(data) // 2]), ("run.json", lambda data: b"[1]"),
    ("run.json", lambda data: json.dumps({"key": "a", "config": {}, "unknown": 1}).encode()),
    *(("run.json", lambda data, text=text: text.encode()) for text in ("null", "1", '"x"', "", "[" * 100_000, "{}")),
    *(("run.json", lambda data, name=name: json.dumps(
        {k: v for k, v in json.loads(data).items() if k != name}).encode()) for name in WRITTEN),
    *(("run.json", lambda data, name=name: json.dumps({**json.loads(data), name: 3}).encode()) for name in WRITTEN),
    ("run.json", lambda data: data.replace(b"0.75", b"0.85")), ("history.parquet", lambda data: data[::-1]),
    ("history.parquet", lambda data: data[: len(data) // 2]), ("history.parquet", None),
    ("update.safetensors", lambda data: data[:-7]), ("update.safetensors", None)])
def test_a_damaged_run_is_passed_over_with_a_sentence(store, name, spoil):
    whole, damaged = a_run(seed=1), a_run(seed=2)
    store.put(whole)
    file = store.put(damaged) / name
    if spoil is None:
        file.unlink()
    else:
        file.write_bytes(spoil(file.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{damaged.key} is damaged .*train it again, or delete"):
        assert store.get(damaged.key) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")   # it was said
        assert [run.key for run in store] == [whole.key]
    store.put(damaged)  # training again repairs it
    assert store.get(damaged.key).metrics == damaged.metrics


def test_checkpoints_of_one_run_are_forgotten_and_no_others(store):
    store.check()
    mine = [store.checkpoint(name) for name in ("abc.12", "abc.34")]
    other = store.checkpoint("abd.12")
    for path in (*mine, other):
        path.write_bytes(b"")
    store.forget_checkpoints("abc")
    assert not any(path.exists() for path in mine)
    assert other.exists()


def test_where_runs_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("LOWRANK_TEACH_RUNS")
    monkeypatch.setenv("LOWRANK_TEACH_HOME", str(tmp_path / "home"))
    assert Store().folder == tmp_path / "home" / "runs"
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / "runs"))
    assert Store().folder == tmp_path / "runs"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", "~/mine")
    assert Store().folder == tmp_path / "mine"
    assert Store(tmp_path / "named").folder == tmp_path / "named"


def test_a_record_says_what_it_was_measured_on():
    from importlib.metadata import version

    seen = runs.machine()
    assert seen["torch"] == version("torch")
    assert seen["transformers"] == version("transformers")
    assert seen["lowrank_teach"] == version("lowrank-teach")
    assert seen["cores"] == os.cpu_count()
    assert seen["threads"] == 1
    assert seen["processor"]
    text = json.dumps(seen)
    assert str(Path.home()) not in text
    commit = runs.commit()
    assert commit is None or len(commit.removesuffix("+changes")) == 12

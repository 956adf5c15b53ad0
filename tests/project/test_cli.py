"""The command line: the same functions, one JSON document or one table, a live display that leaves nothing behind."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pandas as pd
import pytest
from terminal import final_screen
from tiny_models import command, place_in

import lowrank_teach as lt
from lowrank_teach import cli, console
from lowrank_teach.experiments.compare import LINEUP
from lowrank_teach.reproduction import arms
from lowrank_teach.tasks.own_file import READERS
from lowrank_teach.tasks.table import TASKS

FAST = [f"--set={pair}" for pair in ("steps=24", "batch_size=8", "n_train=96")]


@pytest.fixture(scope="module")
def place(once) -> Path:
    """A folder with a tiny model, rows, and one store for all that compares its methods."""
    return once("compared", place_in)


@pytest.fixture
def lined_up(place, monkeypatch, capsys):
    """Words of a `compare` on them, and a function that runs a command line."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(place / "runs"))
    words = ("compare", "--backbone", str(place / "tiny"), "--profile", "tiny", *FAST)
    return words, lambda *more: command(monkeypatch, capsys, *more)


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "LOWRANK_TEACH_DATA": str(place / "data"),
            "LOWRANK_TEACH_RUNS": str(place / "runs"), "HF_HUB_OFFLINE": "1"}


def test_train_as_json_in_a_process_of_its_own(place):
    words = [sys.executable, "-m", "lowrank_teach.cli", "train", "salora", "--backbone", str(place / "tiny"),
             "--profile", "tiny", "--seed", "3", "--set", "b=0.25", "--set", "eta_c=0.9", *FAST, "--json"]
    done = subprocess.run(words, env=environment(place), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # nothing else is on standard output
    assert document["config"]["method"]["b"] == 0.25
    assert document["config"]["seed"] == 3
    assert document["config"]["training"]["steps"] == 24
    assert set(document) == {"key", "config", "metrics", "ranks", "parameters", "seconds", "notes"}
    assert (place / "runs" / document["key"] / "run.json").exists()


def test_compare_trains_once_and_then_finds_its_runs(lined_up, monkeypatch, tmp_path):
    """Its figures are drawn again from their numbers, to the byte."""
    words, run = lined_up

    def pictures() -> dict[str, Path]:
        return {path.name: path for kind in ("png", "gif") for path in tmp_path.glob(f"*.{kind}")}

    status, out, err = run(*words, "--json", "--figures", str(tmp_path))
    assert status == 0, err
    first = json.loads(out)
    assert list(first["runs"]) == list(LINEUP)
    assert {Path(path).name for path in first["figures"]} == pictures().keys()
    assert len(pictures()) == 8
    monkeypatch.setattr(lt.Trainer, "run", lambda self: pytest.fail("it trained again"))
    before = {name: path.read_bytes() for name, path in pictures().items()}
    for path in pictures().values():
        path.unlink()
    status, out, _ = run("figures", "--folder", str(tmp_path), "--json")
    assert status == 0
    assert {Path(path).name for path in json.loads(out)["figures"]} == before.keys()
    assert {name: path.read_bytes() for name, path in pictures().items()} == before
    monkeypatch.setattr("lowrank_teach.reproduction.figures.redraw", lambda folder: sorted(folder.glob("*.png")))
    _, out, _ = run("figures", "--folder", str(tmp_path))
    assert out.splitlines() == [f"wrote {path}" for path in sorted(tmp_path.glob("*.png"))]
    status, out, _ = run(*words, "--json")
    assert status == 0
    assert json.loads(out)["runs"] == first["runs"]
    status, out, _ = run(*words)  # and as a table
    assert [line.split()[-2:] for line in out.splitlines() if line][-7:] == [["–", "found"]] * 7   # no time of then
    assert [line.split()[0] for line in out.splitlines() if line][-7:] == list(LINEUP)
    accuracy = f"{first['runs']['cola-3']['metrics']['test']['accuracy']:.3f}"
    assert accuracy in next(line for line in out.splitlines() if line.startswith("cola-3"))


def test_a_file_of_one_s_own_is_a_task(lined_up, tmp_path, monkeypatch):
    rows = [f"film {i} is {'dull' if i % 2 else 'bright'},{'bad' if i % 2 else 'good'}" for i in range(300)]
    (tmp_path / "films.csv").write_text("\n".join(["review,verdict", *rows]))
    (words, lowrank_teach), own = lined_up, ("--task", str(tmp_path / "films.csv"), "--text", "review")
    for name in ("films.csv", *TASKS):   # what is put there goes again
        monkeypatch.setitem(TASKS, name, TASKS.get(name))
    code, out, err = lowrank_teach("train", "lora", *words[1:], *own, "--label", "verdict", "--json")
    assert code == 0, err
    assert json.loads(out)["config"]["task"] == "films.csv"
    assert any(note.startswith("rows from the file films.csv") for note in json.loads(out)["notes"])
    assert "has no column 'label'; it has" in lowrank_teach("train", "lora", *words[1:], *own)[2]
    assert "--text goes with --task and a file" in lowrank_teach(*words, "--task", "rt", "--text", "review")[2]
    assert set(cli.FILES) == set(READERS)


def test_no_cache_trains_again(lined_up, monkeypatch):
    words, run = lined_up
    trained = []
    real = lt.Trainer.run
    monkeypatch.setattr(lt.Trainer, "run", lambda self: trained.append(1) or real(self))
    line = ("train", "lora", *words[1:])
    run(*line)
    before = len(trained)
    run(*line)
    assert len(trained) == before
    status, _, _ = run(*line, "--no-cache")
    assert (status, len(trained)) == (0, before + 1)


def test_what_a_library_prints_does_not_spoil_the_document(lined_up, monkeypatch):
    words, run = lined_up
    real = lt.load_task

    def chatty(*arguments: object, **options: object) -> object:
        print("fetching something (9 MB, once)")
        return real(*arguments, **options)

    monkeypatch.setattr(sys.modules["lowrank_teach.experiments.fit"], "load_task", chatty)
    status, out, err = run("train", "lora", *words[1:], "--seed", "5", "--json")
    assert status == 0
    assert json.loads(out)["config"]["seed"] == 5
    assert "fetching something" in err


def test_numbers_that_json_has_no_word_for(capsys):
    cli._print_json({"metrics": {"pearson": float("nan")}, "list": [float("inf"), 1.5], "none": None})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "metrics": {"pearson": None}, "list": [None, 1.5], "none": None}


def test_plan(lined_up, place):
    _, run = lined_up
    words = ("plan", "salora", "--backbone", str(place / "tiny"), "--set", "r=4")
    status, out, _ = run(*words, "--json")
    document = json.loads(out)
    assert status == 0
    assert len(document["sites"]) == 12  # six matrices in two layers
    assert document["sites"][0] == {"site": "0.q", "module": "encoder.layer.0.attention.self.query", "d": 16, "k": 16,
                                    "r": 4, "scaling": 4.0, "parameters": 128}
    status, out, _ = run(*words)
    assert status == 0
    assert out.splitlines()[0].split() == ["site", "module", "shape", "d", "×", "k", "r", "s", "parameters"]
    assert out.splitlines()[-1].startswith("12 matrices, ")


def test_tasks(lined_up):
    _, run = lined_up
    status, out, _ = run("tasks", "--json")
    assert status == 0
    document = json.loads(out)
    assert list(document) == list(TASKS)
    assert document["stsb"]["metrics"] == ["spearman", "pearson"]
    status, out, _ = run("tasks")
    assert all(re.search(rf"^ *{name} ", out, re.MULTILINE) for name in TASKS)


@pytest.mark.parametrize("name", ["train", "compare", "plan", "tasks", "figures"])
def test_help_shows_an_example_that_is_one(lined_up, name):
    _, run = lined_up
    status, out, err = run(name, "--help")
    assert status == 0, err
    assert f"Example: lowrank-teach {name}" in " ".join(out.split())
    assert "--json" in out
    assert name in run("--help")[1]


ODD = ["", "[/b]", "-1", "zz", "/nope/[b]", "a" * 400, "9" * 30, "\0", "\ud800", "é̂𝒳"]   # none of them is a name


@pytest.mark.parametrize("line", [
    "train {}", "train lora --task {}", "train lora --backbone {}", "train lora --profile {}", "train lora --set {}",
    "train lora --set r={}", "train lora --set steps={}", "train lora --seed {}", "train lora --plan --task {}",
    "train --preset {}",
    "train --preset salora/roberta-base/cola --set {}", "compare --task {}", "compare --backbone {}",
    "compare --profile {}", "compare --set {}", "compare --set {}=1", "plan {}", "plan lora --backbone {}",
    "plan lora --memory --backbone roberta-base --length {}", "plan lora --memory --backbone roberta-base --card {}",
    "presets {}x", "sweep -m {}",
    "sweep -t {}", "sweep -b {} --processes 0", "sweep --seeds {}", "sweep --set {}", "sweep --plan --set {}=1",
    "reproduce {}", "reproduce COLA 1 --plan --seeds {}", "reproduce COLA 1 --plan --steps {}", "study {}",
    "study chain --seeds {}", "claims --paper {}x", "claims --folder {}/x", "tasks {}", "figures --folder {}/x"])
def test_what_is_no_name_and_no_number_is_refused_in_a_sentence(lined_up, monkeypatch, tmp_path, line):
    _, run = lined_up
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lt.Trainer, "run", lambda self: pytest.fail("it trained"))
    for odd in ODD:
        if (odd == "" and line.endswith("--profile {}")) or (odd == ODD[6] and "--card" in line):
            continue   # the usual profile; a card as large as one likes
        words = [word.replace("{}", odd) for word in line.split()]
        status, out, err = run(*words)
        assert (status, out) == (2, ""), (words, out)
        assert err.startswith("lowrank-teach: ")
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1, err
        assert len(max(err.split(), key=len)) < 120


def test_a_value_that_a_command_gives_itself_is_none_of_the_training(lined_up):
    words, run = lined_up
    for name in ("task", "cache", "callbacks", "seed"):
        for line in (words, ("sweep", "--plan"), ("train", "--preset", "salora/roberta-base/cola")):
            status, _, err = run(*line, "--set", f"{name}=1")
            assert (status, f"{name}: no value of " in err) == (2, True), err


def test_what_somebody_types_is_no_markup(place, monkeypatch, capsys):
    """A model in a folder with brackets in its name, in the title of the table and in a sweep's."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(place / "runs"))
    odd = place / "[bold]x[" / "b]"
    shutil.copytree(place / "tiny", odd, dirs_exist_ok=True)
    monkeypatch.setattr(console.console, "_width", 300)   # else COLUMNS of when it was made
    for line in (["train", "lora", "-b"], ["sweep", "-b", str(place / "tiny"), "--processes", "0", "-b"]):
        status, out, err = command(monkeypatch, capsys, *line, str(odd), "--profile", "tiny", *FAST)
        assert status == 0, err
        assert str(odd) in out


# ---- Ctrl-C -----------------------------------------------------------------------------------------------

AT_WORK = {   # where a signal comes: what is replaced by something that never ends
    "loading": "lowrank_teach.experiments.fit.load_for", "evaluation": "lowrank_teach.experiments.fit.evaluate",
    "rows": "lowrank_teach.experiments.fit.load_task"}
STOPS = [
    ("train lora", "loading", "no step was kept yet: run the same line again to begin anew"),
    ("train lora --set eval_every=0", "evaluation", "kept up to the last checkpoint: run the same line again to go"),
    ("train lora --set eval_every=8", "evaluation", "stopped in the evaluation after step 8 of 24; run the same"),
    ("compare", "rows", "no step was kept yet: run the same line again to begin anew; 0 of 7 runs are done and kept"),
    ("sweep --processes 0 --seeds 2", "evaluation", "stopped with 0 of 2 runs done; run the same again to go on"),
    ("study chain --folder studies", "loading", "run the same line again to "),
]


@pytest.mark.parametrize(("line", "place_", "says"), STOPS)
def test_an_interrupt_ends_in_one_sentence(lined_up, place, monkeypatch, tmp_path, line, place_, says):
    words, run = lined_up
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    line = [*line.split(), *(words[1:] if "study" not in line else ())]

    def interrupted(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(AT_WORK[place_], interrupted)
        status, out, err = run(*line)
    assert status == 130
    said = err.splitlines()[-1]
    assert said.startswith("lowrank-teach: ")
    assert says in said
    assert "Traceback" not in err + out
    if line[0] == "train":   # the same line goes on
        status, out, err = run(*line, "--json")
        assert status == 0, err
        assert json.loads(out)["metrics"]["test"]


def test_many_runs_say_what_is_kept(place, monkeypatch, tmp_path):
    """In Python it stays a KeyboardInterrupt, with the sentence and without the trace of what was at work."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
    short = {"profile": "tiny", "steps": 4, "n_train": 32, "batch_size": 8}
    configs = lt.grid("lora", backbones=str(place / "tiny"), seeds=2, **short)
    calls = []

    def second(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(*arguments, **options)

    from lowrank_teach.experiments import fit
    from lowrank_teach.tasks import evaluate

    real = evaluate.evaluate
    monkeypatch.setattr(fit, "evaluate", second)
    with pytest.raises(KeyboardInterrupt, match=r"run the same line again .*1 of 2 runs are done and kept") as stop:
        lt.fit_many(configs, store=lt.Store(tmp_path), at_once=1, say=None)
    assert stop.value.__suppress_context__


HANGS = """
import sys, time
from lowrank_teach import cli; from lowrank_teach.experiments import fit as experiment
def hang(*arguments, **options):
    print("go", flush=True)
    time.sleep(600)
experiment.evaluate = hang
cli.main()
"""


def test_an_interrupt_of_a_process(place, tmp_path):
    """SIGINT once it is at work."""
    words = ["compare", "--backbone", str(place / "tiny"), "--profile", "tiny", *FAST]
    env = {**environment(place), "LOWRANK_TEACH_RUNS": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", HANGS, *words], env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for said in process.stdout:
        if said.strip() == "go":
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert re.fullmatch(r"lowrank-teach: stopped.*: run the same line again to .*", err.splitlines()[-1])
    assert "Traceback" not in out + err


# ---- terminals that are not UTF-8 -------------------------------------------------------------------------


def test_letters_that_a_terminal_lacks_are_spelled():
    assert console.spelled("λ × 2 − 1 … “é²” Δη ‡", "ascii") == 'lambda x 2 - 1 ... "e2" Deltaeta ++'
    assert console.spelled("λ × 2 …", "cp1252") == "lambda × 2 …"
    assert console.spelled("λ\ud800", "utf-8") == "λ?"
    text = "".join(path.read_text(encoding="utf-8") for path in Path(lt.__file__).parent.rglob("*.py"))
    lost = {letter for letter in set(text) if "?" in console.spelled(letter, "ascii")} - {"?"}
    assert not lost   # of all that the package can say


@pytest.mark.parametrize("line", [["--help"], ["claims", "--paper", "SaLoRA"], ["study"], ["tasks"], ["presets"],
                                  ["presets", "salora/roberta-base/cola"], ["sweep", "--plan"],
                                  ["plan", "salora", "--memory", "--backbone", "roberta-base"],
                                  ["reproduce", "SaLoRA", "1", "--plan"],
                                  *([name, "--help"] for name in ("train", "compare", "study", "sweep", "plan"))],
                         ids=" ".join)
def test_every_command_speaks_to_such_a_terminal(lined_up, monkeypatch, line):
    """On streams as that terminal has them."""
    _, run = lined_up
    wanted, real = run(*line)[1].count("?"), cli.main
    for name in ("cp1252", "ascii"):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=name) for _ in range(2)]

        def main(streams=streams) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdout", streams[0])
                patch.setattr(sys, "stderr", streams[1])
                try:
                    real()
                finally:
                    for stream in streams:
                        stream.flush()

        monkeypatch.setattr(cli, "main", main)
        status, _, _ = run(*line)
        out, err = (stream.buffer.getvalue().decode(name) for stream in streams)
        assert status == 0, err
        assert out.strip()
        assert (out.count("?"), out.count("\\u")) == (wanted, 0)   # no letter was lost


def test_a_document_is_exact_on_a_terminal_of_ascii(place):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-m", "lowrank_teach.cli", "study", "--json"],
                          env={**environment(place), **plain}, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.decode("ascii"))
    assert {name: document[name]["arms"] for name in arms.STUDIES} == {
        name: list(study.arms) for name, study in arms.STUDIES.items()}


# ---- the live display -----------------------------------------------------------------------------------

def in_a_terminal(words: list[str], columns: int, env: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a command in a pseudo-terminal."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(words, stdin=follower, stdout=follower, stderr=follower,
                               env={**env, "TERM": "xterm-256color"})
    os.close(follower)
    out = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not piece:
            break
        out += piece
    os.close(leader)
    return process.wait(timeout=60), out.decode()


def test_the_live_table_in_a_terminal(place, tmp_path):
    words = [sys.executable, "-m", "lowrank_teach.cli", "compare", "--backbone", str(place / "tiny"), "--profile",
             "tiny", "--seed", "1", *FAST]
    env = {name: value for name, value in environment(place).items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    status, out = in_a_terminal(words, 100, env)
    screen = [line for line in final_screen(out, 100) if line]
    assert status == 0, out
    said, screen = screen[:2], screen[2:]
    assert [line.split(" of ")[-1] for line in said] == [f"{name}; a value asked for is kept"
                                                         for name in ("salora", "autolora")]
    assert screen[0].endswith(", tiny, seed 1")
    heading, rows = screen[-8], screen[-7:]
    assert heading.split()[:4] == ["method", "accuracy", "validation", "trainable"]
    assert [row.split()[0] for row in rows] == list(LINEUP)
    assert {len(row) for row in [heading, *rows]} == {len(heading)}  # right edges align: nothing wrapped or was cut
    assert not any(mark in line for line in screen for mark in ("━", "loss", "…"))  # no bar, nothing waits
    assert len(screen) <= 10  # the title may take two lines
    assert "━" in out  # but there was a bar on the way
    first = [out.find(words) for words in ("loading torch", "reading examples and weights", "loss ", "evaluating")]
    later = [at for at in first[1:] if at >= 0]   # the screen is drawn a few times a second, so that any of them may
    assert -1 < first[0] < min(later)             # pass between two of its pictures for one method
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", out)
    assert re.search(r"[-\\|/] \w+ .*\d+/\d+ [-\d]:[-\d]+:[-\d]+ loss", plain)   # and how long it still takes
    assert "\x1b[2J" not in out  # and the screen was never cleared as a whole
    assert out.rstrip().endswith("\x1b[?25h") or out.rfind("\x1b[?25h") > out.rfind("\x1b[?25l")  # the cursor is back


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_no_cell_is_cut(monkeypatch, columns):
    frame = pd.DataFrame([{"method": name, "accuracy": 0.7812, "validation": 0.7912, "trainable": 1_312_962,
                           "ranks": "3–8", "sum of ranks": 1142, "ms a step": 1167.2, "search s": 222.61,
                           "total s": 1114.71} for name in LINEUP]).set_index("method")
    screen = console.Screen(width=columns, file=io.StringIO())
    monkeypatch.setattr(console, "console", screen)
    screen.print(console.rich_table(frame, "title", ["waiting"]))
    lines = screen.file.getvalue().splitlines()
    rows = [line for line in lines if line.split()[:1] and line.split()[0] in LINEUP]
    assert [row.split() for row in rows] == [
        [name, "0.781", "0.791", "1,312,962", "3–8", "1,142", "1167", "222.6", "1114.7"] for name in LINEUP]
    assert lines[-1].split() == ["waiting", *"…" * 8]
    assert all(len(line.rstrip()) <= columns for line in lines)


def test_the_table_of_compare_at_80_columns(monkeypatch):
    """With numbers as `make demo` gives them: two lines of heading, two spaces between columns, nothing cut."""
    numbers = Path(lt.__file__).parents[1] / "figures" / "data" / "compare.json"
    stored = json.loads(numbers.read_text(encoding="utf-8"))
    frame = pd.DataFrame(stored["table"]).set_index("method")
    screen = console.Screen(width=80, file=io.StringIO())
    monkeypatch.setattr(console, "console", screen)
    screen.print(console.rich_table(frame, "rt, minilm-l6, laptop, seed 0"))
    title, *heading, = screen.file.getvalue().splitlines()
    heading, rows = heading[:-len(frame)], heading[-len(frame):]
    assert title.strip() == "rt, minilm-l6, laptop, seed 0"
    assert len(heading) == 2
    assert [re.split(" {2,}", row.strip()) for row in rows] == [  # so that no two numbers stand close
        [label, *(console._cell(name, row[name]) for name in frame.columns)] for label, row in frame.iterrows()]
    screen.print(console.rich_table(frame.rename(index={"lora": "lora" * 12}), "title"))
    assert "…" not in screen.file.getvalue()
    assert screen.file.getvalue().replace("\n", " ").count("0.784") == 2

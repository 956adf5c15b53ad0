"""What installs this package says the same everywhere: versions, extras, targets, names; and leaks no machine."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any

import pytest
import yaml
from jupyter_core.utils import ensure_async
from packaging.requirements import Requirement
from packaging.version import Version

import lowrank_teach as lt
from lowrank_teach import cli

ROOT = Path(__file__).resolve().parents[2]
TOML = pytest.importorskip("tomllib", reason="Python 3.11 or later")
PROJECT = TOML.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
PINS = {requirement.name.lower(): requirement for line in (ROOT / "constraints.txt").read_text().splitlines()
        if (text := line.partition("#")[0].strip()) and (requirement := Requirement(text))}
REQUIRED = [Requirement(line) for line in
            [*PROJECT["dependencies"], *(one for name in ("lab", "test")
                                         for one in PROJECT["optional-dependencies"][name])]]


def test_the_pins_satisfy_what_is_required():
    other = {}
    for requirement in REQUIRED:
        only, = PINS[requirement.name.lower()].specifier
        assert only.operator == "==", requirement
        assert requirement.specifier.contains(only.version, prereleases=True), requirement
        if Version(version(requirement.name)).public != Version(only.version).public:
            other[requirement.name] = version(requirement.name), only.version
    if other:
        pytest.skip(f"this environment was not made with constraints.txt: {other}")


def test_ci_is_the_suite_and_what_it_leaves_out():
    """`make test` as it is, each marker that it then asks for is one, and what it installs is an extra or pinned."""
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+)$", text, re.MULTILINE) == ["lint", "test"]
    markers = {line.partition(":")[0] for line in TOML.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
               ["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(re.findall(r" -m (\w+) tests$", text, re.MULTILINE)) == {"numeric", "extra"} <= markers
    installs = re.search(r'--constraint constraints\.txt --editable "\.\[(.+)\]" (.+)$', text, re.MULTILINE)
    extras, others = installs.groups()
    needed = [Requirement(line) for extra in extras.split(",") for line in PROJECT["optional-dependencies"][extra]]
    assert {requirement.name for requirement in needed} | set(others.split()) <= set(PINS)
    assert all(requirement.specifier.contains(next(iter(PINS[requirement.name].specifier)).version)
               for requirement in needed)


def test_conda_makes_the_same_environment():
    parts = [part for part in CONDA["dependencies"] if isinstance(part, str)]
    pip, = (part["pip"] for part in CONDA["dependencies"] if isinstance(part, dict))
    python, = (part for part in parts if part.startswith("python="))
    pinned_for = re.search(r"Python (\d\.\d+)", (ROOT / "constraints.txt").read_text())[1]
    assert python == f"python={pinned_for}"
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(pinned_for)
    assert any(part.startswith("pip") for part in parts)
    assert "--constraint constraints.txt" in pip
    assert f"torch{PINS['torch'].specifier}" in pip
    assert "-e .[lab]" in pip
    assert len(pip) == 3
    assert CONDA["name"] == PROJECT["name"] == metadata(PROJECT["name"])["Name"]
    assert CONDA["channels"] == ["conda-forge"]
    assert version(PROJECT["name"]) == PROJECT["version"]


def test_the_makefile_has_its_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    wanted = {"demo", "test", "lab", "notebooks", "figures", "bench", "lint"}
    assert wanted <= targets
    phony = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())
    assert wanted <= phony
    for target in wanted:  # each sets itself up first
        assert re.search(rf"^{target}: \$\(READY\)$", text, re.MULTILINE), target
    for script in re.findall(r"python ((?:tests|lowrank_teach)/\S+\.py)", text):
        assert (ROOT / script).is_file(), script
    assert "constraints.txt" in re.search(r"^\$\(READY\):(.+)$", text, re.MULTILINE)[1]


@pytest.mark.parametrize("target", ["demo", "test", "lab", "notebooks", "figures", "bench", "lint"])
def test_make_knows_what_to_do(target):
    """A dry run, as if nothing had been set up yet: the set-up stands first, then the work."""
    words = ["make", "--dry-run", "--always-make", "--no-print-directory", target]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # not `make test`'s own
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=30, env=alone)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "-m venv" in lines[0]
    assert any('".[lab,test]"' in line and "--constraint constraints.txt" in line for line in lines)
    assert ".venv/bin/" in lines[-1]


def test_the_command_that_demo_runs_is_one(monkeypatch, capsys):
    """The options in the Makefile are options of the command line."""
    from tiny_models import command

    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in re.findall(r"lowrank-teach (.+)$", text, re.MULTILINE):
        name, *words = line.split()
        _, out, _ = command(monkeypatch, capsys, name, "--help")
        assert all(word in out for word in words if word.startswith("--")), line


def clone(folder: Path, *, of: tuple[str, ...] = ()) -> Path:
    """A repository of git with these files of this one, .gitignore among them, all committed."""
    for name in (".gitignore", *of):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    for words in (("init", "-q"), ("add", "-A"), (*who, "commit", "-qm", "as it is")):
        subprocess.run(["git", *words], cwd=folder, check=True, timeout=60)
    return folder


def changed(folder: Path) -> str:
    return subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True,
                          timeout=60).stdout


def test_demo_leaves_a_clone_as_it_was(once, tmp_path, monkeypatch, capsys):
    """What `make demo` runs, on a tiny model: its figures and numbers stand where git does not look."""
    from tiny_models import command, place_in

    place = once("compared", place_in)
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(place / "runs"))
    shipped = tuple(str(path.relative_to(ROOT)) for path in (ROOT / "figures" / "data").glob("*.json"))
    monkeypatch.chdir(clone(tmp_path / "clone", of=shipped))
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    words = re.search(r"^demo: .+\n\t\S+lowrank-teach (.+)$", text, re.MULTILINE)[1].split()
    words[words.index("--backbone") + 1] = str(place / "tiny")
    words[words.index("--profile") + 1] = "tiny"
    quick = ("--set=steps=24", "--set=batch_size=8", "--set=n_train=96")
    status, out, err = command(monkeypatch, capsys, *words, *quick)
    assert status == 0, err
    written = [Path(line.removeprefix("wrote ")) for line in out.splitlines() if line.startswith("wrote ")]
    assert len(written) == 8
    assert all(path.is_file() for path in written)
    assert (written[0].parent / "data" / "compare.json").is_file()
    assert changed(Path()) == ""
    assert f"figures in {written[0].parent}/" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_only_make_figures_writes_to_what_is_shipped():
    """And a study only where somebody names the folder."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipes = dict(re.findall(r"^(\w+): \$\(READY\)\n((?:\t.+\n)+)", text, re.MULTILINE))
    writes = re.compile(r"--(?:figures|folder) figures\b")
    assert [name for name, lines in recipes.items() if writes.search(lines)] == ["figures"]
    assert inspect.signature(cli.study).parameters["folder"].default == Path("out/studies")


def test_a_notebook_that_was_opened_and_saved_is_as_it_was(tmp_path, monkeypatch):
    """Through the contents manager of a JupyterLab with all its extensions, as `make lab` starts it."""
    serverapp = pytest.importorskip("jupyter_server.serverapp")
    for variable in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
    names = ("00_start_here", "04_salora")
    folder = clone(tmp_path / "clone", of=tuple(file for name in names for file in (
        f"notebooks/{name}.ipynb", f"notebooks/text/{name}.py")))
    lab, = re.findall(r"^lab: .*\n\t(.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    app = serverapp.ServerApp()
    app.initialize(["--allow-root", f"--ServerApp.root_dir={folder}", *re.findall(r"--\S+=\S+", lab)],
                   new_httpserver=False)
    manager = app.contents_manager

    async def open_and_save(path: str, change: Callable[[Any], None]) -> None:
        found = await ensure_async(manager.get(path, content=True))
        change(found["content"])
        await ensure_async(manager.save({"type": "notebook", "format": "json", "content": found["content"]}, path))

    def as_the_editor_does(content: Any) -> None:
        """It writes what the kernel says of itself, of another Python here."""
        content["metadata"]["kernelspec"]["display_name"] = "Python 3 (ipykernel)"
        content["metadata"]["language_info"]["version"] = "3.10.1"

    def with_an_answer(content: Any) -> None:
        content["cells"][1]["source"] = "1 + 1"

    for name in names:
        asyncio.run(open_and_save(f"notebooks/{name}.ipynb", as_the_editor_does))
    assert changed(folder) == ""
    asyncio.run(open_and_save(f"notebooks/{names[0]}.ipynb", with_an_answer))   # what is changed is kept, there alone
    assert changed(folder) == f" M notebooks/{names[0]}.ipynb\n"
    assert '"source": [\n    "1 + 1"\n' in (folder / "notebooks" / f"{names[0]}.ipynb").read_text(encoding="utf-8")


def test_every_public_name_is_there():
    assert len(set(lt.__all__)) == len(lt.__all__)
    for name in lt.__all__:
        assert getattr(lt, name) is not None
    assert set(lt.__all__) <= set(dir(lt))
    with pytest.raises(AttributeError, match="no_such_name"):
        lt.no_such_name  # noqa: B018


def test_no_public_function_shares_its_name_with_a_file():
    """Importing a submodule sets an attribute of its name on the package, which would hide the function."""
    files = {path.stem for path in (ROOT / "lowrank_teach").glob("*.py")}
    assert not files & set(lt._WHERE)


IMPORTS = """
import importlib, json, os, subprocess, sys
import lowrank_teach as lt

said = {}
def there(what, *names):
    said[what] = [name for name in names if name in sys.modules]

there("the package", "torch", "transformers", "pandas", "matplotlib", "seaborn")
import lowrank_teach.cli
there("the command line", "torch", "pandas", "seaborn")
done = subprocess.run([sys.executable, "-c", "import sys, torch, lowrank_teach.analysis.measures;"
                       "sys.exit('matplotlib' in sys.modules)"], check=False)
said["numbers without plots"] = done.returncode
import lowrank_teach.analysis.plots as plots
there("plots", "torch", "matplotlib.pyplot", "seaborn")
plots.gate_bars({"0.q": [0, 1]})
there("a picture", "torch")
for name in lt.WAITING_CHOICES:
    for each in lt.WAITING_CHOICES:
        os.environ.pop(each, None)
    os.environ[name] = "200"
    importlib.reload(lt)
    said[f"{name} is chosen"] = {each: os.environ[each] for each in lt.WAITING_CHOICES if each in os.environ}
print(json.dumps(said))
"""


def test_what_an_import_loads_and_how_torch_s_threads_wait():
    """In one process: no torch with the package or its command line, none for a picture, no plots for numbers.

    A choice of how threads wait is kept; without one, a process that is started inherits the package's, and the
    runtime of OpenMP says itself what it read as torch loaded it.
    """
    alone = {name: value for name, value in os.environ.items() if name not in lt.WAITING_CHOICES}
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=120, check=True,
                          env={**alone, "OMP_DISPLAY_ENV": "VERBOSE"})
    assert json.loads(done.stdout) == {
        "the package": [], "the command line": [], "numbers without plots": 0, "plots": [], "a picture": [],
        **{f"{name} is chosen": {name: "200"} for name in lt.WAITING_CHOICES}}
    if sys.platform == "linux":   # elsewhere another runtime, which says it otherwise
        assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [lt.WAITING["GOMP_SPINCOUNT"]]


@pytest.mark.parametrize("path", [ROOT / "tests" / "conftest.py", ROOT / "tests" / "benchmarks" / "__main__.py",
                                  *sorted((ROOT / "notebooks" / "text").glob("*.py"))], ids=lambda path: path.stem)
def test_the_package_comes_before_torch(path):
    """What begins a process imports the package before all else that may load torch."""
    named = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
             for node in ast.parse(path.read_text(encoding="utf-8")).body
             if isinstance(node, ast.Import | ast.ImportFrom)]
    others = [top for name in named if (top := name.partition(".")[0]) not in sys.stdlib_module_names]
    assert set(others[:others.index("lowrank_teach")]) <= {"numpy", "pandas"}


def test_the_kernels_of_make_lab_inherit_it():
    line, = re.findall(r"^lab:.*\n\t(.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(r'python -c "import lowrank_teach; from jupyterlab.labapp import main', line)


# a machine's own folders, and options that name an index of packages
FOREIGN = re.compile(r"(?<![\w.$}~/])/(?:work|root|tmp|home/\w+|Users/\w+|mnt|var/tmp)/|"
                     r"\b(?:index-url|extra-index-url|trusted-host)\b", re.IGNORECASE)
HOST = re.compile(r"https?://([\w.-]+\.[a-z]{2,})\b", re.IGNORECASE)
# what a reader may be sent to: papers where they were published, sources where they are kept; no index, no mirror
HOSTS = {"arxiv.org", "doi.org", "aclanthology.org", "proceedings.mlr.press", "ieeexplore.ieee.org", "github.com",
         "www.apache.org", "no.such.name.invalid"}


def test_no_file_names_a_machine_or_an_index():
    assert FOREIGN.search('open("/home/reader/data")')
    assert FOREIGN.search("pip install --index-url x")
    assert not FOREIGN.search("figures/data/run.json, $HOME/work/x, ~/.cache/tmp/")
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, timeout=30)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path == Path(__file__) or path.suffix in (".png", ".gif", ".safetensors") or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            wrong = FOREIGN.search(line) or set(HOST.findall(line)) - HOSTS
            found += [f"{name}:{number}: {line.strip():.80}"] if wrong else []
    assert found == []

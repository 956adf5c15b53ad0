"""The shape of the code: who may import whom, that names are explained, that functions stay short."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from pathlib import Path

import pytest

import lowrank_teach
from lowrank_teach.methods import METHODS

PACKAGE = Path(lowrank_teach.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# the rooms from the ground up, and what each may import; a file at the top is a room of its own
CORE = {"errors": "", "console": "analysis", "gates": "precision", "precision": "", "lowrank": "precision",
        "adaptable": "errors lowrank", "sites": "adaptable errors lowrank",
        "methods": "errors gates lowrank precision sites"}
MODELS = "errors sites"
TASKS = f"{MODELS} adaptable models"
ADAPTERS = f"{CORE['methods']} adaptable methods"
ANALYSIS = "gates lowrank methods"
TRAINING = f"{ADAPTERS} adapters console"
EXPERIMENTS = f"{TRAINING} models tasks analysis training"
MAY_IMPORT: dict[str, set[str]] = {room: set(others.split()) for room, others in {
    **CORE, "models": MODELS, "adapters": ADAPTERS, "tasks": TASKS, "analysis": ANALYSIS, "training": TRAINING,
    "experiments": EXPERIMENTS, "integrations": EXPERIMENTS,
    "reproduction": f"{EXPERIMENTS} experiments integrations",
    "course": f"{EXPERIMENTS} experiments reproduction",
    "cli": f"{EXPERIMENTS} experiments integrations reproduction course",
}.items()}
# rooms that can be read with no data, no plot and no model library in sight
TORCH_ALONE = ("errors", "precision", "gates", "lowrank", "adaptable", "sites", "methods")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path: Path) -> set[str]:
    """Every module that a file imports when run, as a dotted name; its own package's as ".name"."""
    depth = len(path.relative_to(PACKAGE).parts) - 1
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if only_for_types(node):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = path.relative_to(PACKAGE).parts[:-1][:depth - node.level + 1] if node.level else ()
            module = ".".join([*folder, *([node.module] if node.module else [])])
            if node.level:
                names = [f"{module}.{alias.name}" if module else alias.name for alias in node.names]
                found.update(f".{module}" if module and not is_module(name) else f".{name}" for name in names)
            else:
                found.add(module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(path))
    return found


def is_module(name: str) -> bool:
    path = PACKAGE / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def outside(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path) if not name.startswith(".")}


# ---- who imports whom ---------------------------------------------------------------------------------------


def room(path: Path) -> str:
    """The folder of a file under the package, or the file itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def inside(path: Path) -> set[str]:
    """The package's own files that one imports, inside functions too, by their path under the package."""
    found = set()
    for module in imports(path):
        place = PACKAGE / module.removeprefix(".").replace(".", "/")
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if module.startswith(".") and module != "." and file.exists():
            found.add(file.relative_to(PACKAGE).as_posix())
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_rooms_below_it(path):
    others = {name.split("/")[0].removesuffix(".py") for name in inside(path)} - {room(path)}
    assert others <= MAY_IMPORT.get(room(path), set()) or (path.name == "__init__.py" and path.parent == PACKAGE)


def test_no_room_is_above_itself():
    """What the table allows has an order: no room may reach itself through others."""
    order: list[str] = []
    left = dict(MAY_IMPORT)
    while left:
        ready = [name for name, others in left.items() if others <= set(order)]
        assert ready, f"a circle among {', '.join(left)}"
        order += ready
        for name in ready:
            del left[name]
    assert order[-1] == "cli"


def test_no_file_imports_itself_through_others():
    arrows = {path.relative_to(PACKAGE).as_posix(): inside(path) - {"__init__.py"} for path in FILES}
    done: set[str] = set()
    while ready := [name for name, others in arrows.items() if name not in done and others <= done | {name}]:
        done |= set(ready)
    assert arrows.keys() - done == set()   # those on a circle, and those that stand on one


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in TORCH_ALONE],
                         ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_core_imports_torch_and_nothing_above_it(path):
    """Only the standard library and torch from outside."""
    assert outside(path) - set(sys.stdlib_module_names) <= {"torch"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_a_notebook_or_a_test(path):
    """The package stands without its course."""
    assert not {"notebooks", "tests", "conftest", "helpers"} & outside(path)
    assert not any("import_ipynb" in name or "nbformat" in name for name in outside(path))


@pytest.mark.parametrize("name", ["training/trainer.py", "training/checkpoint.py", "adapters.py", "lowrank.py"])
def test_the_loop_knows_no_method_by_name(name):
    """No name of a method, nor of its rule, in the code: what is left after docstrings is asked of the rule."""
    code = tree(PACKAGE / name)
    words = {node.id for node in ast.walk(code) if isinstance(node, ast.Name)}
    words |= {node.attr for node in ast.walk(code) if isinstance(node, ast.Attribute)}
    words |= {alias.name for node in ast.walk(code) if isinstance(node, ast.ImportFrom) for alias in node.names}
    methods = {cls.__name__ for cls in METHODS.values()} | {f"{cls.__name__}Rule" for cls in METHODS.values()}
    assert not words & methods
    constants = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
    assert not constants & set(METHODS)


def test_a_method_is_one_file_and_one_line_of_the_registry():
    """Each method but the plainest stands in a file of its own, which no other method's file imports."""
    homes = {name: Path(inspect.getfile(cls)).name for name, cls in METHODS.items()}
    own = {home for home in homes.values() if home != "baselines.py"}
    assert {"lora.py", "cola.py", "salora.py", "delta_lora.py", "autolora.py"} <= own
    for name in ("cola.py", "salora.py", "delta_lora.py"):
        assert not inside(PACKAGE / "methods" / name) & {f"methods/{other}" for other in own - {name}}
    assert list(METHODS)[:5] == ["lora", "cola", "salora", "delta_lora", "autolora"]


# ---- what is explained --------------------------------------------------------------------------------------


def public(path: Path):
    """(qualified name, node) of every public function and class of a file, and of the classes' public methods."""
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


# hooks of a contract are explained where the contract is
CONTRACTS = {"Rule", "Attachments", "Method", "Loop", "Callback"}


def explained_above(cls: ast.ClassDef | None) -> set[str]:
    if cls is None or not cls.bases:
        return set()
    explained = {"forward", "extra_repr", "rule", "on_step", "on_eval"}
    for path in FILES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and node.name in CONTRACTS:
                explained |= {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return explained


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in (*TORCH_ALONE, "adapters", "training")],
                         ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_public_names_have_docstrings(path):
    """Every public class and function says what it is; a hook or a short property may leave it to its contract."""
    missing = []
    assert ast.get_docstring(tree(path))
    classes = {node.name: node for node in tree(path).body if isinstance(node, ast.ClassDef)}
    for qualified, node in public(path):
        owner = classes.get(qualified.partition(".")[0]) if "." in qualified else None
        if ast.get_docstring(node) or (owner is not None and node.name in explained_above(owner)):
            continue
        if owner is not None and (owner.name in CONTRACTS or len(node.body) == 1):
            continue
        missing.append(qualified)
    assert missing == []


# ---- how long it is -----------------------------------------------------------------------------------------


def length(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    start = node.body[0].end_lineno + 1 if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
    return node.end_lineno - start + 1


def test_functions_are_short(capsys):
    """Nine functions of ten have at most 20 lines."""
    lengths = sorted((length(node), f"{path.relative_to(PACKAGE)}:{node.name}") for path in FILES
                     for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))
    p90 = lengths[int(0.9 * len(lengths))][0]
    with capsys.disabled():
        print(f"\n{len(lengths)} functions, median {lengths[len(lengths) // 2][0]} lines, p90 {p90}, "
              f"longest {lengths[-3:]}")
    assert p90 <= 20


def test_each_file_of_numbers_is_there():
    """What is marked `numeric` is named by file: a file that is renamed must not drop out of the run."""
    from conftest import NUMERIC

    there = {path.stem.removeprefix("test_") for path in Path(__file__).parents[1].glob("*/test_*.py")}
    assert set(NUMERIC) <= there

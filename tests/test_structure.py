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
# what stands on nothing but torch: the maths can be read with no data, no plot and no model library in sight
CORE = ["errors.py", "packed.py", "wide.py", "lowrank.py", "gates.py", "adaptable.py", "sites.py", "measure.py",
        *(f"methods/{path.name}" for path in sorted((PACKAGE / "methods").glob("*.py")))]
CORE_NAMES = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in CORE}


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


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_torch_and_nothing_above_it(name):
    """Only the standard library and torch from outside, only the core from inside."""
    path = PACKAGE / name
    assert outside(path) - set(sys.stdlib_module_names) <= {"torch"}
    inside = {module[1:] for module in imports(path) if module.startswith(".")}
    assert inside <= CORE_NAMES | {""}


def test_plots_import_no_torch():
    """A picture takes arrays."""
    path = PACKAGE / "plots.py"
    if not path.exists():
        pytest.skip("there are no plots")
    assert "torch" not in outside(path)
    for module in imports(path):
        inner = PACKAGE / f"{module[1:].replace('.', '/')}.py"
        if module.startswith(".") and inner.exists():
            assert "torch" not in outside(inner)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_a_notebook_or_a_test(path):
    """The package stands without its course."""
    assert not {"notebooks", "tests", "conftest", "helpers"} & outside(path)
    assert not any("import_ipynb" in name or "nbformat" in name for name in outside(path))


@pytest.mark.parametrize("name", ["train.py", "checkpoint.py", "adapters.py", "lowrank.py"])
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
        others = {f".methods.{other.removesuffix('.py')}" for other in own - {name}}
        assert not imports(PACKAGE / "methods" / name) & others
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


@pytest.mark.parametrize("name", [*CORE, "adapters.py", "config.py", "train.py", "checkpoint.py"])
def test_public_names_have_docstrings(name):
    """Every public class and function says what it is; a hook or a short property may leave it to its contract."""
    path, missing = PACKAGE / name, []
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

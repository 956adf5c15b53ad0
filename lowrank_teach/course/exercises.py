"""Exercises that the library answers: a stub, a check with a hint, and a picture of your own result.

    @exercise
    def lora_merge(W, lora_A, lora_B, lora_alpha): ...
    lora_merge.check()

What is wanted is never written down a second time: the answer comes from the library, and so does what a
typical mistake would give (the library called with the arguments that the mistake amounts to). With
LOWRANK_SOLUTIONS=1 every stub is swapped for the library's function. A stub that is not right yet stops
nothing: after the check, its name stands for the library's function. A stub that nobody has changed is not judged.
The exercises stand in the chapters.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import html
import inspect
import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..adapters import Adapters, adapt
from ..analysis import style
from ..methods import Method
from .stubs import STUBS


@dataclass(frozen=True)
class Task:
    """One exercise.

    reference: the library's answer.  cases: makes the lists of arguments that are tried.
    hint: said when no mistake is recognised.  mistakes: (hint, function that gives what this mistake gives).
    shows: the library's own functions that answer it.  shapes: said when a product's shapes do not meet.
    answer: the few lines that a learner would write, which `solution` displays in place of the library's own.
    seen: turns what is returned into the numbers that are compared, if it is no number or tensor, such as a layer.
    """

    reference: Callable[..., Any]
    cases: Callable[[], list[tuple]]
    hint: str
    mistakes: Sequence[tuple[str, Callable[..., Any]]]
    shows: Sequence[Callable[..., Any]]
    shapes: str = "A is (r, k) and reads x first, B is (d, r) and writes h"
    answer: Callable[..., Any] | None = None
    seen: Callable[[Any], Any] = lambda returned: returned


EXERCISES: dict[str, Task] = {}   # by the stub's name; each chapter adds its own as it is imported


@dataclass(frozen=True)
class Verdict:
    """Whether an attempt is right, the sentence that answers it, and what the picture shows."""

    right: bool
    says: str
    yours: np.ndarray | None
    wanted: np.ndarray


class Exercise:
    """A learner's function and its check; a call goes to it if it is right, else to the library's."""

    def __init__(self, attempt: Callable[..., Any], task: Task, hint: str = "") -> None:
        functools.update_wrapper(self, attempt, updated=())
        self.task, self.hint = task, hint or task.hint
        self.attempt = task.reference if os.environ.get("LOWRANK_SOLUTIONS") == "1" else attempt
        self.verdict: Verdict | None = None
        self.tried = _fingerprint_of(self.attempt) != STUBS.get(attempt.__name__, "no stub")

    def __call__(self, *arguments: Any) -> Any:
        right = (self.verdict or self.examine()).right
        return (self.attempt if right else self.task.reference)(*arguments)

    def examine(self) -> Verdict:
        """Try the cases in order, and return the verdict on the first that is wrong, or on the last."""
        for arguments in self.task.cases():
            self.verdict = _examine(self.attempt, self.task, arguments, self.hint)
            if not self.verdict.right:
                break
        return self.verdict  # type: ignore[return-value]

    def check(self) -> None:
        """Say what is right or missing, and draw the learner's result beside the library's.

        Of a stub that was not changed, say only that it waits.
        """
        v = self.examine()
        name = self.__name__  # type: ignore[attr-defined]
        if not (self.tried or v.right):
            print(f"Not tried yet: change {name} in this cell and run it again. Until it is right, the notebook goes "
                  "on with the library's version.")
            return
        print(f"✓ {name}: {v.says}" if v.right else
              f"✗ {name}, not there yet: {v.says}\n  The notebook goes on with the library's version; "
              f"course.solution({name}) shows a solution.")
        style.show(own_result(v.yours, v.wanted), *_words(v))


def _words(v: Verdict) -> tuple[str, str]:
    """Return caption and alt text of the picture of a result."""
    if v.wanted.size == 1:
        return "Your number beside the library's.", f"Two bars: your number and the wanted one. {v.says}"
    return ("Left your result, in the middle the library's, right the difference: white where you are right.",
            f"Three coloured tables: your result, the wanted result, and their difference. {v.says}")


def exercise(attempt: Callable[..., Any] | None = None, *, hint: str = "") -> Any:
    """Decorate a stub whose name an imported chapter has in EXERCISES; hint replaces the usual one.

    Raises:
        KeyError: there is no exercise of this name.
    """
    if attempt is None:
        return functools.partial(exercise, hint=hint)
    name = attempt.__name__
    if name not in EXERCISES:
        raise KeyError(f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}: keep the stub's name")
    return Exercise(attempt, EXERCISES[name], hint)


def fingerprint(source: str) -> str:
    """Hash the lines of the first function in a source, without its decorators: that of STUBS if it is untouched.

    Of a class, hash the lines of all its methods.
    """
    whole = textwrap.dedent(source)
    made = next(node for node in ast.walk(ast.parse(whole)) if isinstance(node, ast.FunctionDef | ast.ClassDef))
    parts = [made] if isinstance(made, ast.FunctionDef) else [n for n in made.body if isinstance(n, ast.FunctionDef)]
    lines = [line for part in parts for line in whole.splitlines()[part.lineno - 1:part.end_lineno]]
    return hashlib.sha256("\n".join(line.rstrip() for line in lines).encode()).hexdigest()[:12]


def _source(attempt: Callable[..., Any]) -> str:
    if not inspect.isclass(attempt):
        return inspect.getsource(attempt)
    methods = [inspect.getsource(value) for value in vars(attempt).values() if inspect.isfunction(value)]
    return "\n".join([f"class {attempt.__name__}:", *methods])   # a cell's class has no source, its methods have


def _fingerprint_of(attempt: Callable[..., Any]) -> str | None:
    try:
        return fingerprint(_source(attempt))
    except (OSError, TypeError, SyntaxError, StopIteration):   # written where no source is kept: somebody wrote it
        return None


def adapted_matrix(W: Tensor, method: Method, *, seed: int = 0) -> Adapters:
    """Put `method`, a configuration with sites=("0",), on one linear layer of weight W (d, k)."""
    linear = nn.utils.skip_init(nn.Linear, W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    linear.weight.data = W.clone()
    return adapt(nn.Sequential(linear), method, seed=seed)


def solution(of: Exercise | str) -> None:
    """Display a solution of an exercise, folded away."""
    name = of if isinstance(of, str) else of.__name__  # type: ignore[attr-defined]
    task = EXERCISES[name]
    shown = task.shows if task.answer is None else (task.answer,)
    source = "\n\n".join(textwrap.dedent(inspect.getsource(f)).strip() for f in shown)
    _folded(f"A solution of {name}", f"<pre>{html.escape(source)}</pre>", source)


def predict(question: str, answer: str) -> None:
    """Display a question with its answer folded away: predict first, then open."""
    _folded(f"Predict: {question}", f"<p>{html.escape(answer)}</p>", f"Answer: {answer}")


def _folded(title: str, page: str, text: str) -> None:
    from IPython.display import display

    summary = f"<summary><b>{html.escape(title)}</b> <i>(then open)</i></summary>"
    display({"text/html": f"<details>{summary}{page}</details>",
             "text/plain": f"{title}\n{text}"}, raw=True)


# ---- how an attempt is checked ----------------------------------------------------------------------------


def _examine(attempt: Callable[..., Any], task: Task, arguments: tuple, hint: str) -> Verdict:
    wanted = _array(task.seen(task.reference(*arguments)))
    before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    try:
        got = attempt(*arguments)
        yours = None if got is None else _array(task.seen(got))
    except Exception as error:  # whatever a learner's code raises is an answer, too
        return Verdict(False, _stopped(error, hint, task.shapes), None, wanted)
    finally:
        changed = [i for i, (a, b) in enumerate(zip(arguments, before, strict=True))
                   if isinstance(a, Tensor) and not torch.equal(a, b)]
    if yours is None:
        return Verdict(False, f"it returned nothing. {hint}", None, wanted)
    if changed:
        return Verdict(False, "your function changed its own input: W must keep its bytes, or nothing can be "
                              "restored; build a new tensor", yours, wanted)
    if yours.shape != wanted.shape:
        return Verdict(False, f"it returned shape {yours.shape}, wanted is {wanted.shape}. {hint}", yours, wanted)
    if _same(yours, wanted):
        return Verdict(True, "right", yours, wanted)
    said = [words for words, wrong in task.mistakes if _same(yours, _array(task.seen(wrong(*arguments))))]
    return Verdict(False, said[0] if said else hint, yours, wanted)


def _stopped(error: Exception, hint: str, shapes_are: str) -> str:
    if isinstance(error, NotImplementedError):
        return f"it is still the stub. {hint}"
    shapes = "size" in str(error) or "shape" in str(error)
    says = f"shapes do not meet: {shapes_are}" if shapes else hint
    return f"it stopped with {type(error).__name__}. {says}"


def _array(value: Any) -> np.ndarray:
    value = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=float)
    return np.atleast_1d(value)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5)


# ---- the picture of a learner's result beside the library's -----------------------------------------------


def own_result(yours: np.ndarray | None, wanted: np.ndarray) -> Figure:
    """Draw your result, the library's, and the difference on a scale centred at zero; None: nothing returned.

    Args: two arrays of one shape, (n,), (rows, columns), or more dimensions, drawn as tables one below the other;
    another shape of yours is drawn as it is.
    """
    if wanted.size == 1 and (yours is None or yours.size == 1):
        return _own_number(None if yours is None else yours.item(), wanted.item())
    gap = yours - wanted if yours is not None and yours.shape == wanted.shape else None
    fig, axes = style.panels(3, 3, 2.3, None, width=8.5)
    size = 1.0 if wanted.ndim > 2 else float(np.abs(wanted).max(initial=0.0)) or 1.0
    titles = ("yours", "wanted", "yours − wanted")
    for ax, title, values in zip(axes, titles, (yours, wanted, gap), strict=True):
        if values is None:
            ax.text(0.5, 0.5, "nothing yet" if yours is None else "shapes differ", ha="center", va="center",
                    transform=ax.transAxes, fontsize=10, color=style.GREY)
            ax.set(xticks=[], yticks=[])
        else:
            table, of = _as_table(values, wanted)
            every = (-(-n // 8) for n in table.shape)
            mesh = style.heatmap(ax, table, *every, cmap="RdBu_r", vmin=-size, vmax=size)
            for edge in range(values.shape[-2], len(table), values.shape[-2]) if values.ndim > 2 else ():
                ax.axhline(edge, color="black", linewidth=1.5)
        ax.set_title(title if values is None else f"{title}  ({of})", fontsize=10)
        ax.tick_params(labelsize=8)
    bar = fig.colorbar(mesh, ax=axes, pad=0.02, extend="both")
    if wanted.ndim > 2:
        bar.set_label("in units of the table's\nlargest wanted entry", fontsize=9)
    return fig


def _as_table(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, str]:
    """Return an array as one table, and its size in words.

    Of more dimensions, the last two are tables below each other, each divided by its largest wanted entry.
    """
    if values.ndim < 3:
        table = np.atleast_2d(values)
        return table, " × ".join(map(str, table.shape))
    if values.shape[:-2] == wanted.shape[:-2]:
        values = values / _sizes(wanted)
    stacked = int(np.prod(values.shape[:-2]))
    return values.reshape(-1, values.shape[-1]), f"{stacked} tables of {values.shape[-2]} × {values.shape[-1]}"


def _sizes(wanted: np.ndarray) -> np.ndarray:
    """Return the largest entry of each table of an array of three dimensions or more; 1 for a table of zeros."""
    largest = np.abs(wanted).max(axis=(-2, -1), keepdims=True, initial=0.0)
    return np.where(largest > 0, largest, 1.0)


def _own_number(yours: float | None, wanted: float) -> Figure:
    fig, (ax,) = style.panels(1, 1, 1.3, None, width=8.5)
    bars = ax.barh(["wanted", "yours"], [wanted, yours or 0], color=[style.BLUE, style.ORANGE], height=0.6)
    ax.bar_label(bars, [f"{wanted:,g}", "nothing yet" if yours is None else f"{yours:,g}"], fontsize=10, padding=4)
    ax.margins(x=0.2)
    style.dress(ax, "", "")
    return fig

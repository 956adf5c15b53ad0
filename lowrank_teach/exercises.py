"""Exercises whose solution is the library: a stub, a check with a hint, and a picture of your own result.

    @exercise
    def lora_merge(W, lora_A, lora_B, lora_alpha): ...
    lora_merge.check()

What is wanted is never written down a second time: the answer comes from the library, and so does what a
typical mistake would give (the library called with the arguments that the mistake amounts to). With
LOWRANK_SOLUTIONS=1 every stub is swapped for the library's function. A stub that is not right yet stops
nothing: after the check, its name stands for the library's function. Used by every notebook.
"""

from __future__ import annotations

import functools
import html
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .adapters import adapt
from .lowrank import Adapted, LowRank
from .methods import LoRA
from .methods.base import Rule

# T rows of x, k in, d out, r rank


@dataclass(frozen=True)
class Task:
    """What the registry knows of one exercise.

    reference: the library's answer.  cases: lists of arguments.  hint: said when no mistake is recognised.
    mistakes: (hint, the value that this mistake gives).  shows: what `solution` prints the source of.
    """

    reference: Callable[..., Any]
    cases: Callable[[], list[tuple]]
    hint: str
    mistakes: Sequence[tuple[str, Callable[..., Any]]]
    shows: Sequence[Callable[..., Any]]


@dataclass(frozen=True)
class Verdict:
    """Whether an attempt is right, the sentence that answers it, and what the picture shows."""

    right: bool
    says: str
    yours: np.ndarray | None
    wanted: np.ndarray


class Exercise:
    """A learner's function and its check; calling it calls whichever of the two is right."""

    def __init__(self, attempt: Callable[..., Any], task: Task, hint: str = "") -> None:
        functools.update_wrapper(self, attempt)
        self.task, self.hint = task, hint or task.hint
        self.attempt = task.reference if os.environ.get("LOWRANK_SOLUTIONS") == "1" else attempt
        self.verdict: Verdict | None = None

    def __call__(self, *arguments: Any) -> Any:
        right = (self.verdict or self.examine()).right
        return (self.attempt if right else self.task.reference)(*arguments)

    def examine(self) -> Verdict:
        """Try every case; the verdict on the first that is wrong, or on the last."""
        for arguments in self.task.cases():
            self.verdict = _examine(self.attempt, self.task, arguments, self.hint)
            if not self.verdict.right:
                break
        return self.verdict  # type: ignore[return-value]

    def check(self) -> None:
        """Say what is right or missing, and draw the learner's result beside the library's."""
        from . import drawings, style

        v = self.examine()
        name = self.__name__  # type: ignore[attr-defined]
        print(f"✓ {name}: {v.says}" if v.right else
              f"✗ {name}, not there yet: {v.says}\n  The notebook goes on with the library's version; "
              f"solution({name}) shows it.")
        style.show(drawings.own_result(v.yours, v.wanted), *_words(v))


def _words(v: Verdict) -> tuple[str, str]:
    """Caption and alt text of the picture of a result."""
    if v.wanted.size == 1:
        return "Your number beside the library's.", f"Two bars: your number and the wanted one. {v.says}"
    return ("Left your result, in the middle the library's, right the difference: white where you are right.",
            f"Three coloured tables: your result, the wanted result, and their difference. {v.says}")


def exercise(attempt: Callable[..., Any] | None = None, *, hint: str = "") -> Any:
    """Decorator of a stub whose name is in TASKS; hint replaces the usual one.

    Raises:
        KeyError: there is no exercise of this name.
    """
    if attempt is None:
        return functools.partial(exercise, hint=hint)
    name = attempt.__name__
    if name not in TASKS:
        raise KeyError(f"there is no exercise {name!r}; there are {', '.join(TASKS)}: keep the stub's name")
    return Exercise(attempt, TASKS[name], hint)


def solution(of: Exercise | str) -> None:
    """Show the library's own source for an exercise."""
    from IPython.display import Markdown, display

    task = TASKS[of] if isinstance(of, str) else of.task
    display(Markdown("\n".join(f"`{f.__module__}`, `{f.__qualname__}`:\n```python\n{inspect.getsource(f)}```"
                               for f in task.shows)))


def reveal(question: str, answer: str) -> None:
    """Display a question with its answer folded away: predict first, then open."""
    from IPython.display import display

    display({"text/html": f"<details><summary><b>Predict:</b> {html.escape(question)} <i>(then open)</i></summary>"
                          f"<p>{html.escape(answer)}</p></details>",
             "text/plain": f"Predict: {question}\nAnswer: {answer}"}, raw=True)


# -- how an attempt is judged

def _examine(attempt: Callable[..., Any], task: Task, arguments: tuple, hint: str) -> Verdict:
    wanted = _array(task.reference(*arguments))
    before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    try:
        got = attempt(*arguments)
        yours = None if got is None else _array(got)
    except Exception as error:  # whatever a learner's code raises is an answer, too
        return Verdict(False, _stopped(error, hint), None, wanted)
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
    said = [words for words, wrong in task.mistakes if _same(yours, _array(wrong(*arguments)))]
    return Verdict(False, said[0] if said else hint, yours, wanted)


def _stopped(error: Exception, hint: str) -> str:
    if isinstance(error, NotImplementedError):
        return f"it is still the stub. {hint}"
    shapes = "size" in str(error) or "shape" in str(error)
    says = "shapes do not meet: A is (r, k) and reads x first, B is (d, r) and writes h" if shapes else hint
    return f"it stopped with {type(error).__name__}. {says}"


def _array(value: Any) -> np.ndarray:
    value = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value, dtype=float)
    return np.atleast_1d(value)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.allclose(a, b, rtol=1e-4, atol=1e-5)


# -- what the library answers

def _layer(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> tuple[Any, Adapted]:
    linear = nn.utils.skip_init(nn.Linear, W.shape[1], W.shape[0], bias=False)
    linear.weight.data = W.clone()
    adapters = adapt(nn.Sequential(linear), LoRA(r=len(lora_A), lora_alpha=lora_alpha, sites=("0",)), seed=0)
    adapters["0"].lora_A.data, adapters["0"].lora_B.data = lora_A.clone(), lora_B.clone()
    return adapters, adapters.owner("0")


def lora_forward(x: Tensor, W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> Tensor:
    """h (T, d) of x (T, k) through the library's adapted layer."""
    return _layer(W, lora_A, lora_B, lora_alpha)[1](x).detach()


def lora_merge(W: Tensor, lora_A: Tensor, lora_B: Tensor, lora_alpha: float) -> Tensor:
    """The merged matrix (d, k) that the library writes into W."""
    adapters, owner = _layer(W, lora_A, lora_B, lora_alpha)
    adapters.merge()
    return owner.W.detach()


def count_parameters(d: int, k: int, r: int) -> int:
    """Parameters of the library's branch on a (d, k) matrix."""
    return sum(p.numel() for p in LowRank(k, d, r).parameters())


def _matrices(d: int, k: int, r: int, alpha: float) -> tuple[Tensor, Tensor, Tensor, float]:
    g = torch.Generator().manual_seed(d)
    return (torch.randn(d, k, generator=g), torch.randn(r, k, generator=g), torch.randn(d, r, generator=g), alpha)


_CASES = [_matrices(6, 9, 2, 8.0), _matrices(9, 6, 4, 2.0)]
_NO_SCALE = "the scale is missing: multiply the branch by s = α / r"
_ALPHA = "you scale by α, LoRA scales by α / r"
_UPSIDE_DOWN = "you scale by r / α, LoRA scales by α / r"
_NO_W = "that is the branch alone: W is missing"
_NO_BRANCH = "that is W alone: the branch s · B A is missing"
_MINUS = "the branch is subtracted: it is added"
_ALL_SCALED = "the scale belongs to the branch alone, not to W"


def _mistakes(f: Callable[..., Tensor]) -> list[tuple[str, Callable[..., Tensor]]]:
    """Each mistake as the library called with other arguments; x is empty for the merge."""
    def with_(change: Callable[[Tensor, Tensor, Tensor, float], tuple]) -> Callable[..., Tensor]:
        return lambda *arguments: f(*arguments[:-4], *change(*arguments[-4:]))

    return [(_NO_SCALE, with_(lambda W, A, B, a: (W, A, B, len(A)))),
            (_ALPHA, with_(lambda W, A, B, a: (W, A, B, a * len(A)))),
            (_UPSIDE_DOWN, with_(lambda W, A, B, a: (W, A, B, len(A) ** 2 / a))),
            (_NO_W, with_(lambda W, A, B, a: (0 * W, A, B, a))),
            (_NO_BRANCH, with_(lambda W, A, B, a: (W, A, 0 * B, a))),
            (_MINUS, with_(lambda W, A, B, a: (W, A, -B, a))),
            (_ALL_SCALED, with_(lambda W, A, B, a: (W * a / len(A), A, B, a)))]


TASKS: dict[str, Task] = {
    "lora_forward": Task(
        lora_forward, lambda: [(torch.randn(5, W.shape[1], generator=torch.Generator().manual_seed(1)), W, *rest)
                               for W, *rest in _CASES],
        "x meets A first (k → r), then B (r → d), then the scale; add it to W x", _mistakes(lora_forward),
        (Rule.branch, Adapted.forward, LowRank.add_to)),
    "lora_merge": Task(
        lora_merge, lambda: list(_CASES), "B (d, r) times A (r, k) has W's shape (d, k); scale it and add it to W",
        _mistakes(lora_merge), (LowRank.live_factors, LowRank.delta, Adapted.merge)),
    "count_parameters": Task(
        count_parameters, lambda: [(384, 384, 8), (1536, 384, 4)], "A holds r × k numbers; how many does B hold?",
        [("that is W's own number of parameters, and W is frozen", lambda d, k, r: d * k),
         ("that is A alone: B trains, too", lambda d, k, r: r * k),
         ("that is B alone: A trains, too", lambda d, k, r: r * d),
         ("that is one direction: there are r of them", lambda d, k, r: d + k),
         ("A and B are counted side by side: add their sizes, do not multiply them", lambda d, k, r: d * r * k),
         ("A and B are counted side by side: add their sizes, do not multiply them", lambda d, k, r: d * r * r * k),
         ("W is frozen and is not counted", lambda d, k, r: d * k + count_parameters(d, k, r))],
        (LowRank.__init__,)),
}

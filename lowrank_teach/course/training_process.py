"""A training in a process of its own, which says how it is doing and can be asked to stop.

A training draws from torch's one random state and keeps the interpreter busy. In a process of its own it disturbs
neither the page nor what other cells compute, and is not disturbed by them. It is the same `fit`: asked to stop,
it leaves a checkpoint, and the same job goes on from there; a finished one is found in the store. It stops as well
when the process that started it ends. `training_button` shows it on a page.

    python -m lowrank_teach.course.training_process JOB      # what `Training` starts; one JSON line a message
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..errors import Refusal, StoppedError
from ..experiments.runs import Store
from ..methods import Method
from ..methods.base import Clock
from ..training.callbacks import Callback

Message = dict[str, Any]
# {"step": 3, "total": 30, "loss": 0.69}, and last one of {"stopped": why}, {"finished": key}, {"failed": why}


@dataclass(frozen=True)
class Job:
    """What is trained: the arguments of `fit` as plain values.

    method: as `asked_for` gives it.  store: folder of the runs.  threads: of torch; they decide the last bits.
    """

    method: Mapping[str, Any]
    task: str
    backbone: str
    profile: str
    seed: int
    store: str
    threads: int
    training: Mapping[str, Any] = field(default_factory=dict)

    def configured(self) -> Method:
        """Build the method itself."""
        return Method.from_dict(dict(self.method))


def asked_for(method: Method) -> dict[str, Any]:
    """Return a method's name and the values that were asked for, as `Method.from_dict` takes them."""
    if members := getattr(method, "members", ()):
        return {"members": [asked_for(member) for member in members]}
    return {"method": method.name, **{name: getattr(method, name) for name in sorted(method.given)}}


class Training:
    """A job under way.

    Args: hear: called with each message, in a thread of its own; the last one is always one of the three.
    """

    def __init__(self, job: Job, hear: Callable[[Message], None]) -> None:
        self.hear = hear
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")   # noqa: SIM115 (closed in _listen)
        command = [sys.executable, "-m", __name__, json.dumps(asdict(job))]
        # a session of its own: an interrupt of the kernel is meant for the cell, not for this
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
                                        text=True, encoding="utf-8", start_new_session=True)
        self._thread = threading.Thread(target=self._listen, name="training", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask it to stop after the step in progress; it then leaves a checkpoint."""
        if self.process.stdin and not self.process.stdin.closed:
            self.process.stdin.close()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the last message to be heard, for at most `seconds`; return whether it was."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _listen(self) -> None:
        last: Message = {}
        with self._said:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                last = json.loads(line)
                if "step" in last:
                    self.hear(last)
            status = self.process.wait()
            if not last.keys() & {"stopped", "finished", "failed"}:
                self._said.seek(0)
                last = {"failed": f"its process ended with status {status}: {self._said.read()[-1500:]}"}
        self.stop()
        self.hear(last)


class _Reporter(Callback):
    """Reports every step, and stops once it is asked to."""

    def __init__(self, say: Callable[[Message], None], asked: threading.Event) -> None:
        self.say, self.asked = say, asked

    def on_step(self, clock: Clock, values: dict[str, float]) -> bool:
        self.say({"step": clock.step, "total": clock.total, "loss": values["loss"]})
        return self.asked.is_set()

    def on_eval(self, clock: Clock, metrics: dict[str, float]) -> None:
        """Nothing is shown of these."""


def main(words: list[str]) -> int:
    """Train the job given as JSON: messages go to standard output, whatever else is printed to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    asked = threading.Event()
    threading.Thread(target=_until_asked, args=(asked,), daemon=True).start()

    def say(message: Message) -> None:
        try:
            out.write(json.dumps(message) + "\n")
        except OSError:   # nobody listens any more
            asked.set()

    last = _train(Job(**json.loads(words[0])), _Reporter(say, asked))
    say(last)
    return int("failed" in last)


def _until_asked(asked: threading.Event) -> None:
    os.read(0, 1)   # returns when the pipe is closed; sys.stdin would hold a lock while the interpreter ends
    asked.set()


def _train(job: Job, reporter: _Reporter) -> Message:
    from ..experiments.fit import fit

    torch.set_num_threads(job.threads)
    try:
        run = fit(job.configured(), job.task, job.backbone, job.profile, job.seed, callbacks=[reporter],
                  progress=False, store=Store(job.store), **job.training)
    except (StoppedError, KeyboardInterrupt) as stopped:
        return {"stopped": str(stopped)}
    except Exception as error:
        traceback.print_exc()
        refused = isinstance(error, ValueError | Refusal)   # the message is for the reader
        return {"failed": str(error) if refused else f"{type(error).__name__}: {error}"}
    return {"finished": run.key}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Groups of runs on a Ray cluster: a task each, one core each; Ray starts a task anew whose worker or node died.

Where the nodes see the run store's folder, records and checkpoints are written there, and a run goes on from its
checkpoint on whatever node. Where they do not, each node keeps its own store, and records come back with the task's
result. Every node needs this package, and the rows and models at the same places, which travel with each task: what
the sweep's own process says of them, absolute.
"""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..cache import expanded
from ..runs import Store
from .processes import PATIENCE_S, RETRIES
from .work import Message, Parcel, WorkerError, train_group, unpacked, words_of

try:
    import ray
except ImportError as error:
    raise ImportError("a sweep over several machines needs Ray: pip install 'lowrank-teach[scale]'") from error

LOOK_EVERY_S = 0.5
# what says where rows and models are; a worker is reused only by tasks that were given the same
FOLDERS = ("LOWRANK_TEACH_DATA", "LOWRANK_TEACH_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
OTHERS = ("HF_ENDPOINT", "HF_HUB_OFFLINE")


def environment() -> dict[str, str]:
    """This process's word on where rows and models are, as it holds in a process that stands elsewhere."""
    found = {name: str(expanded(os.environ[name], name).absolute()) for name in FOLDERS if os.environ.get(name)}
    found |= {name: os.environ[name] for name in OTHERS if name in os.environ}
    return {"LOWRANK_TEACH_DATA": "", **found}   # empty is unset, over what the node itself may say


class Mailbox:
    """Where tasks say how far they are; an actor. What is lost in it is lost to the display alone."""

    def __init__(self) -> None:
        self.latest: dict[str, Message] = {}

    def put(self, message: Message) -> None:
        self.latest[message.key] = message

    def take(self) -> list[Message]:
        found, self.latest = list(self.latest.values()), {}
        return found


class Cluster:
    """The groups as tasks of a cluster; iterating gives the messages as they come, `close` stops what is under way.

    Args: address: of the cluster, "auto" for the one this machine belongs to, "local" for a new one on this machine.
        at_once: the most groups at a time; None leaves it to the cluster's cores.

    Raises:
        ConnectionError: there is no cluster at this address.
    """

    def __init__(self, groups: list[Parcel], store: Store, address: str, at_once: int | None) -> None:
        self.waiting, self.store, self.at_once = deque(groups), store, at_once
        self.own = not ray.is_initialized()
        if self.own:
            ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False
                     if address == "local" else None, logging_level="ERROR")
        self.token = store.folder.absolute() / f".seen-by-ray-{uuid.uuid4().hex}"
        self.token.touch()
        self.mailbox, self.answer = ray.remote(Mailbox).options(num_cpus=0).remote(), None
        gpus = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {}
        self.task = ray.remote(_train).options(num_cpus=1, max_retries=RETRIES, **gpus,
                                               runtime_env={"env_vars": environment()})
        self.pending: dict[Any, Parcel] = {}

    def __iter__(self) -> Iterator[Message]:
        while self.waiting or self.pending:
            while self.waiting and (self.at_once is None or len(self.pending) < self.at_once):
                group = self.waiting.popleft()
                task = self.task.remote(group.given, group.keys, os.getcwd(), str(self.token), self.mailbox)
                self.pending[task] = group
            done, _ = ray.wait(list(self.pending), timeout=LOOK_EVERY_S)
            yield from self._steps()
            for reference in done:
                yield from _result(reference, self.pending.pop(reference))

    def _steps(self) -> list[Message]:
        """What the mailbox holds; an answer that is late, as on a busy machine, is heard at a later look."""
        with suppress(ray.exceptions.RayError):   # its node died: nothing but the display depends on it
            answer, self.answer = self.answer or self.mailbox.take.remote(), None
            if ray.wait([answer], timeout=LOOK_EVERY_S)[0]:
                return ray.get(answer)
            self.answer = answer
        return []

    def close(self) -> None:
        """Stop all tasks, each run after its step; a second Ctrl-C does not wait."""
        pending = list(self.pending)
        try:
            for reference in pending:
                ray.cancel(reference)   # as Ctrl-C would
            if pending:
                ray.wait(pending, num_returns=len(pending), timeout=PATIENCE_S)
        finally:
            self.token.unlink(missing_ok=True)
            ray.kill(self.mailbox)
            if self.own:
                ray.shutdown()


def _result(reference: Any, group: Parcel) -> list[Message]:
    """What a task said at its end, or that it came to none however often it was begun."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        words = " ".join(f"given up after {RETRIES + 1} workers died over it: {error}".split())
        return [Message(key, "failed", words=words) for key in group.keys]


def _train(given: bytes, keys: list[str], folder: str, token: str, mailbox: Any) -> list[Message]:
    """A task: train a group into the sweep's store where it is within reach, else into this node's own.

    folder: where the sweep was called, to which the path of a model may be relative.
    """
    import torch

    torch.set_num_threads(1)
    with suppress(OSError):   # no such folder on this node: then only what is relative is not found
        os.chdir(folder)
    try:
        group, _ = unpacked(given)
    except WorkerError as error:
        return [Message(key, "failed", words=words_of(error)) for key in keys]
    near = os.path.exists(token)
    store, said = Store(os.path.dirname(token)) if near else Store(), list[Message]()

    def say(message: Message) -> None:
        if message.kind == "step":
            mailbox.put.remote(message)
        else:
            said.append(message if near else replace(message, run=store.get(message.key)))

    train_group(group, store, say, keys=keys)
    return said

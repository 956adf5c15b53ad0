"""Groups of a sweep's runs on a Ray cluster: a task for each, of one core.

Where the nodes see the run store's folder, records and checkpoints are written there, and a run goes on from its
checkpoint on whatever node. Where they do not, each node keeps its own store, and records come back with the task's
result. Every node needs this package, and the rows and models at the same places, which travel with each task: what
the sweep's own process says of them, absolute.

Tasks, not `ray.util.joblib`: its actors are given groups in turn, also those that are busy, and one that died is not
replaced but ends the call.
"""

from __future__ import annotations

import logging
import math
import os
import uuid
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

try:
    import ray
except ImportError as error:
    raise ImportError("a sweep over several machines needs Ray: pip install 'lowrank-teach[scale]'") from error

from ..models.packaged import expanded
from .run_groups import LOOK_EVERY_S, DeadWorkerError, Message, Parcel, train_parcel, words_of
from .runs import Store

# what says where rows and models are; a worker is reused only by tasks that were given the same
FOLDERS = ("LOWRANK_TEACH_DATA", "LOWRANK_TEACH_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
OTHERS = ("HF_ENDPOINT", "HF_HUB_OFFLINE")


def environment() -> dict[str, str]:
    """This process's word on where rows and models are, as it holds in a process that stands elsewhere."""
    found = {name: str(expanded(os.environ[name], name).absolute()) for name in FOLDERS if os.environ.get(name)}
    found |= {name: os.environ[name] for name in OTHERS if name in os.environ}
    return {"LOWRANK_TEACH_DATA": "", **found}   # empty is unset, over what the node itself may say


class Cluster:
    """A Ray cluster, to which groups are submitted as tasks.

    Args: address: "auto" for the cluster that this machine belongs to, "local" for a new one on this machine.
        at_once: the most groups at a time; None leaves it to the cluster's cores.

    Raises:
        ConnectionError: there is no cluster at this address.
    """

    def __init__(self, store: Store, address: str, at_once: int | None) -> None:
        self.size = at_once or math.inf
        self.own = not ray.is_initialized()
        if self.own:
            new = {"include_dashboard": False} if address == "local" else {"address": address}
            ray.init(**new, log_to_driver=False, logging_level=logging.ERROR)
        self.token = store.folder.absolute() / f".seen-by-ray-{uuid.uuid4().hex}"
        self.token.touch()
        self.mailbox: Any = ray.remote(Mailbox).options(num_cpus=0).remote()
        self.answer: Future | None = None
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self.task = ray.remote(_train_remotely).options(num_cpus=1, num_gpus=gpus, max_retries=0,
                                                        runtime_env={"env_vars": environment()})
        self.tasks: dict[Future, Any] = {}

    def submit(self, parcel: Parcel) -> Future:
        task = self.task.remote(parcel, os.getcwd(), str(self.token), self.mailbox)
        self.tasks[future := task.future()] = task
        return future

    def heard(self) -> list[Message]:
        """What the mailbox holds; an answer that is late, as on a busy machine, is heard at a later look."""
        with suppress(ray.exceptions.RayError):   # its node died: nothing but the display depends on it
            answer, self.answer = self.answer or self.mailbox.take.remote().future(), None
            if wait([answer], LOOK_EVERY_S).done:
                return answer.result()
            self.answer = answer
        return []

    def result(self, future: Future, parcel: Parcel) -> list[Message]:
        """What a task said at its end.

        Raises:
            DeadWorkerError: its worker or its node came to its own.
        """
        del self.tasks[future]
        try:
            return future.result()
        except ray.exceptions.RayError as error:
            raise DeadWorkerError(words_of(error)) from None

    def stop(self) -> None:
        for task in self.tasks.values():
            ray.cancel(task)   # as Ctrl-C would

    def close(self) -> None:
        self.token.unlink(missing_ok=True)
        ray.kill(self.mailbox)
        if self.own:
            ray.shutdown()


class Mailbox:
    """Where tasks say how far they are; an actor. What is lost in it is lost to the display alone."""

    def __init__(self) -> None:
        self.latest: dict[str, Message] = {}

    def put(self, message: Message) -> None:
        self.latest[message.key] = message

    def take(self) -> list[Message]:
        found, self.latest = list(self.latest.values()), {}
        return found


def _train_remotely(parcel: Parcel, folder: str, token: str, mailbox: Any) -> list[Message]:
    """A task: train a group into the sweep's store where it is within reach, else into this node's own.

    folder: where the sweep was called, to which the path of a model may be relative.
    """
    torch.set_num_threads(1)
    with suppress(OSError):   # no such folder on this node: then only what is relative is not found
        os.chdir(folder)
    near = os.path.exists(token)
    store, said = Store(os.path.dirname(token)) if near else Store(), list[Message]()

    def say(message: Message) -> None:
        if message.kind == "step":
            mailbox.put.remote(message)
        else:
            said.append(message if near else replace(message, run=store.get(message.key)))

    train_parcel(parcel, store, say)
    return said

"""The hub, asked only if it can be reached: without a network its client tries for 20 seconds a file.

And not waited for without end: the client's questions about a repository (not its downloads) have no time limit of
their own, so a hub that takes a question and never answers would hold a program for ever.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from huggingface_hub import constants, get_session

CONNECT_S = 3.0
PATIENCE = 3  # a question may be silent for so many times the limit of a download, HF_HUB_DOWNLOAD_TIMEOUT


def is_reachable() -> bool:
    """Does the hub's port answer? (Behind a proxy its name need not be known here: then the client finds out.)"""
    place = urlparse(constants.ENDPOINT)
    host, port = place.hostname or "", place.port or (443 if place.scheme == "https" else 80)
    if place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return True
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError:
        return False
    return True


def reason(error: BaseException) -> str:
    """One line: what lies at the bottom of an error, which the clients of the hub wrap in general advice."""
    said, seen = "", set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said = next(iter(str(error).strip().splitlines()), "") or said or type(error).__name__
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return said[:200]


@contextlib.contextmanager
def cache_only_if_offline() -> Iterator[None]:
    """Around a call to the hub: without a network, what is in the hub's cache is used, or it fails at once."""
    if constants.HF_HUB_OFFLINE or is_reachable():
        with _limited_silence():
            yield
        return
    # `datasets` copied the flag when it was imported; its own copy is set too where it is loaded
    holders = [constants, *([sys.modules["datasets"].config] if "datasets" in sys.modules else [])]
    for holder in holders:
        holder.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for holder in holders:
            holder.HF_HUB_OFFLINE = False


@contextlib.contextmanager
def _limited_silence() -> Iterator[None]:
    """The client's own requests say "no limit" one by one, so the limit is put on each as it leaves."""
    session = get_session()
    before = session.event_hooks
    session.event_hooks = {**before, "request": [*before["request"], _limit]}
    try:
        yield
    finally:
        session.event_hooks = before


def _limit(request: Any) -> None:
    limit = PATIENCE * constants.HF_HUB_DOWNLOAD_TIMEOUT
    asked = request.extensions.get("timeout") or dict.fromkeys(("connect", "read", "write", "pool"))
    request.extensions["timeout"] = {what: limit if value is None else value for what, value in asked.items()}

"""The hub, asked only if it can be reached: without a network its client tries for 20 seconds a file."""

from __future__ import annotations

import contextlib
import socket
import sys
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlparse

from huggingface_hub import constants

CONNECT_S = 3.0


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

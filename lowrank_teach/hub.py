"""The hub, asked only if it can be reached: without a network its client tries for 20 seconds a file."""

from __future__ import annotations

import contextlib
import socket
import sys
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlparse

from huggingface_hub import constants


def is_reachable() -> bool:
    """Can the hub's name be looked up? (Behind a proxy it need not be: then True, and the client finds out.)"""
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


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

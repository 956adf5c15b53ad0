"""How torch's threads wait for their next piece of work: awake for a moment, then asleep.

Left to themselves they stay awake for milliseconds after every operation, on cores that another training, a browser
or a second notebook could use: two trainings at once then take much longer than one after the other
(`python tests/benchmarks busy`). The runtimes of OpenMP read these words as torch loads them. So the package says
them as it is imported, and what it starts inherits them; where torch was imported first, only what it starts does.
"""

from __future__ import annotations

import os

WORDS = {
    "GOMP_SPINCOUNT": "1000",   # GNU's, which torch has on Linux: turns of a loop, tens of microseconds; else 300,000
    "KMP_BLOCKTIME": "1",       # LLVM's and Intel's, on a Mac and on Windows: milliseconds; else 200
}
CHOICES = (*WORDS, "OMP_WAIT_POLICY", "KMP_LIBRARY")


def wait_briefly() -> None:
    """Set these words in the environment, unless it already says how threads wait."""
    if not any(name in os.environ for name in CHOICES):
        os.environ.update(WORDS)

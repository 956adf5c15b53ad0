"""Minutes of each notebook in the laptop profile, as `make notebooks` stored them: read, not run."""

from __future__ import annotations

import json
from typing import Any

from .harness import Row, Settings
from .report import FIGURES

TITLE, ONCE, STORED = "Notebooks, from figures/data/notebooks.json", True, False


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    stored = json.loads((FIGURES / "notebooks.json").read_text(encoding="utf-8"))
    return [Row(name, minutes, "min") for name, minutes in stored["minutes"].items()], {}

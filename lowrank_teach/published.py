"""Numbers that authors printed themselves, with where they stand. Used by 06.

They are read from figures/data and drawn beside ours; nothing here is measured.
"""

from __future__ import annotations

import json

from .course import references_folder


def autolora_ranks() -> tuple[dict[str, dict[str, int]], str]:
    """Task -> site ("0.q") -> rank that AutoLoRA's authors found, and a line that says where.

    roberta-base, W_q and W_v of 12 layers, k = 8: 24 ranks a task (Zhang et al. 2024; the authors' repository).
    """
    stored = json.loads((references_folder() / "autolora_ranks.json").read_text(encoding="utf-8"))
    source = stored["source"]
    tasks = {task: {f"{i // 2}.{'qv'[i % 2]}": rank for i, rank in enumerate(ranks)}
             for task, ranks in stored["ranks"].items()}
    return tasks, (f"repository {source['repository']}, commit {source['commit']}: {source['model']}, "
                   f"k = {source['k']}")

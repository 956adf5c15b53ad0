"""Pictures of the course itself, beside those of the methods (`plots.py`), a file for each paper.

Arrays in, Figure out, and no torch, as there. Used by every notebook and by the exercises.
"""

from __future__ import annotations

from .autolora import (
    arms,
    correlations,
    cost_and_cosine,
    implicit_share,
    push_arrows,
    rank_histogram,
    two_level_surface,
    two_levels,
)
from .cola import chain_idea, powers, saving_bars
from .delta_lora import delta_idea, paired_differences, rank_cliff, trajectories
from .ledger import forest, power_curves, repeated_intervals, verdict_counts, verdict_in_steps
from .lora import idea, ratio_bars, score_grid
from .over_tasks import difference_table, dots_from_zero, intervals_by_task, on_top, over_all_tasks
from .ranks import scores_by_rank, sum_of_directions
from .result import own_result
from .salora import density_sweep, dots_by_arm, gate_histogram, gate_readings, gated_directions, two_ascents
from .text import (
    Page,
    data_to_text,
    marked,
    score_intervals,
    side_by_side,
    slot_error_bars,
    texts_in_rows,
    tokens,
    word_tree,
)

__all__ = ["Page", "arms", "chain_idea", "correlations", "cost_and_cosine", "data_to_text", "delta_idea",
           "density_sweep", "difference_table", "dots_by_arm", "dots_from_zero", "forest", "gate_histogram",
           "gate_readings", "gated_directions", "idea", "implicit_share", "intervals_by_task", "marked", "on_top",
           "over_all_tasks", "own_result", "paired_differences", "power_curves", "powers", "push_arrows",
           "rank_cliff", "rank_histogram", "ratio_bars", "repeated_intervals", "saving_bars", "score_grid",
           "score_intervals", "scores_by_rank", "side_by_side", "slot_error_bars", "sum_of_directions",
           "texts_in_rows", "tokens", "trajectories", "two_ascents", "two_level_surface", "two_levels",
           "verdict_counts", "verdict_in_steps", "word_tree"]

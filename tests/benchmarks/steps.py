"""What a training step costs in seconds and bytes: our methods, `peft`'s LoRA and AdaLoRA, and the floor below all.

"loop" candidates run through the package's own training loop with its checks and its log; the others through the
same five plain lines. SaLoRA's gates train at every step, Delta-LoRA's W moves at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lowrank_teach as lt

from .candidates import PEFT_SITES, floor, looped, ours, with_adalora, with_peft
from .harness import Row, Settings, Step, in_turn, quartiles, ratio, ratios, weighed

TITLE, REFERENCE = "One training step", "peft LoRA qv"
AUTOLORA = ("first_order", "forward_difference", "finite_difference", "betty", "unrolled")

# candidate, divided by, aim
AIMS: tuple[tuple[str, str, float], ...] = (
    ("LoRA qv", "peft LoRA qv", 1.0), ("LoRA all", "peft LoRA all", 1.0), ("LoRA qv", "floor", 1.15),
    ("loop: COLA qv", "peft LoRA qv", 1.0), ("loop: COLA qv", "floor", 1.15),
    ("loop: COLA qv, past a knot", "peft LoRA qv", 1.0),
    ("loop: Delta-LoRA qv, in place", "loop: LoRA qv", 1.05), ("loop: Delta-LoRA qv, lazy", "loop: LoRA qv", 1.05),
    ("loop: SaLoRA qv", "loop: LoRA qv", 1.08), ("loop: SaLoRA all", "loop: LoRA all", 1.08),
    ("loop: AutoLoRA qv, first_order", "loop: LoRA qv", 2.0),
    ("loop: AutoLoRA qv, forward_difference", "loop: LoRA qv", 4.0),
    ("loop: AutoLoRA qv, finite_difference", "loop: LoRA qv", 4.0))
KEPT = "W's pretrained bytes are kept aside, so that it can be given back exactly"
WHY = {
    "loop: AutoLoRA qv, finite_difference":
        "five passes forward and back (∇_W, held-out rows, W + εv, W − εv, the step of W), each about as long as a "
        "step of LoRA; forward_difference saves the fourth"}
WHY_MEMORY = {
    "loop: Delta-LoRA qv, in place": f"{KEPT}; form=\"lazy\" keeps none",
    "loop: COLA qv, past a knot": f"{KEPT}; merge_knots=False keeps none",
    "loop: AutoLoRA qv, unrolled": "the graph of ∇_W is kept, with unfused attention, for its second derivative"}
COMPARED = (("loop: LoRA qv", "peft AdaLoRA qv"), ("loop: SaLoRA all", "peft AdaLoRA all"))
MEMORY_AIM = 1.02


def methods(s: Settings) -> dict[str, Any]:
    """Label -> configuration of what runs in the package's loop."""
    at: dict[str, Any] = {"r": s.r, "lora_alpha": s.alpha}
    gates: dict[str, Any] = {"t_start": 0, "t_end": 1.0, **at}
    return {
        "LoRA qv": lt.LoRA(**at), "LoRA all": lt.LoRA(sites="all", **at), "COLA qv": lt.COLA(knots=(0.5,), **at),
        "COLA qv, past a knot": lt.COLA(knots=(1,), **at),
        "SaLoRA qv": lt.SaLoRA(sites="qv", **gates), "SaLoRA all": lt.SaLoRA(**gates),
        "Delta-LoRA qv, in place": lt.DeltaLoRA(K=0, **at),
        "Delta-LoRA qv, lazy": lt.DeltaLoRA(K=0, form="lazy", **at),
        **{f"AutoLoRA qv, {kind}": lt.AutoLoRA(hypergradient=kind, **at) for kind in AUTOLORA}}


def candidates(s: Settings) -> dict[str, Callable[[], Step]]:
    """Label -> what makes its step."""
    return {
        "floor": lambda: floor(s),
        **{f"peft LoRA {sites}": lambda sites=sites: with_peft(s, sites) for sites in PEFT_SITES},
        **{f"peft AdaLoRA {sites}": lambda sites=sites: with_adalora(s, sites) for sites in PEFT_SITES},
        **{f"LoRA {sites}": lambda sites=sites: ours(s, sites) for sites in PEFT_SITES},
        **{f"loop: {label}": lambda method=method: looped(s, method) for label, method in methods(s).items()}}


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    """Ratios of times and of peak bytes, with their aims; all medians and peaks beside them."""
    steps: dict[str, Step] = {}
    peaks: dict[str, int] = {}
    for label, make in candidates(s).items():
        steps[label], peaks[label] = weighed(make, s.device)
    seconds = in_turn(steps, s)
    rows = [ratio(seconds, first, second, aim, why=WHY.get(first, "")) for first, second, aim in AIMS]
    rows += [ratio(seconds, *pair) for pair in COMPARED]
    rows += _all_times(seconds) + _memory(peaks)
    return rows, {
        "settings": {"reference": REFERENCE},
        "milliseconds": {label: 1000 * quartiles(taken)["median"] for label, taken in seconds.items()},
        "to_reference": ratios(seconds, REFERENCE), "to_floor": ratios(seconds, "floor"), "peak_bytes": peaks}


def _all_times(seconds: Mapping[str, list[float]]) -> list[Row]:
    """What has no line of its own among the aims, over the reference."""
    named = {first for first, _, _ in AIMS} | {REFERENCE}
    return [ratio(seconds, label, REFERENCE) for label in seconds if label not in named]


def _memory(peaks: Mapping[str, int]) -> list[Row]:
    """Peak bytes over those of `peft`'s LoRA on the same sites."""
    rows = []
    for label, found in peaks.items():
        sites = "all" if " all" in label else "qv"
        if label not in ("floor", f"peft LoRA {sites}"):
            rows.append(Row(f"memory: {label} / peft LoRA {sites}", found / peaks[f"peft LoRA {sites}"],
                            aim=None if label.startswith("peft") else MEMORY_AIM, why=WHY_MEMORY.get(label, "")))
    return rows

"""Peak memory of SaLoRA and of LoRA on the same six matrices: a process a measurement, in turns.

    python tests/benchmarks/peak_memory.py [--repeats 5] [--out figures/data/bench_memory.json]

Each process loads the backbone, adapts it and takes three steps of the package's loop at the setting of `make bench`.
On a CPU the peak is the process's resident memory, with weights and libraries; on a GPU what torch allocated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.candidates import looped
from benchmarks.harness import Settings

import lowrank_teach as lt
from lowrank_teach.analysis import measures
from lowrank_teach.experiments.runs import machine

HERE = Settings(device="cuda" if torch.cuda.is_available() else "cpu")
METHODS: dict[str, lt.Method] = {  # SaLoRA's gates train throughout
    "loop: LoRA all": lt.LoRA(r=HERE.r, lora_alpha=HERE.alpha, sites="all"),
    "loop: SaLoRA all": lt.SaLoRA(r=HERE.r, lora_alpha=HERE.alpha, t_start=0, t_end=1.0)}


def peak(label: str, backbone: str) -> int:
    """Peak bytes of a process of its own."""
    words = [sys.executable, __file__, "--backbone", backbone, "--peak-of", label]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def here(label: str, backbone: str) -> int:
    """Peak bytes of this process after three steps."""
    step = looped(dataclasses.replace(HERE, backbone=backbone), METHODS[label])
    for _ in range(3):
        step()
    found = measures.peak_memory()
    return int(found["cuda_peak_bytes"] or found["rss_peak_bytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("figures/data/bench_memory.json"))
    parser.add_argument("--peak-of", metavar="METHOD", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak_of:
        return print(here(chosen.peak_of, chosen.backbone))
    peaks: dict[str, list[int]] = {label: [] for label in METHODS}
    for repeat in range(chosen.repeats):
        for label in sorted(METHODS, reverse=bool(repeat % 2)):
            peaks[label].append(peak(label, chosen.backbone))
    for label, found in peaks.items():
        print(f"{label:20} {statistics.median(found) / 2**20:8.1f} MiB, "
              f"{min(found) / 2**20:.1f} to {max(found) / 2**20:.1f}")
    settings = {"backbone": chosen.backbone, "rows": HERE.rows, "tokens": HERE.tokens, "r": HERE.r,
                "repeats": chosen.repeats, "device": HERE.device}
    record = {"name": "bench_memory", "machine": machine(), "settings": settings, "peak_bytes": peaks}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return print(f"wrote {chosen.out}")


if __name__ == "__main__":
    main()

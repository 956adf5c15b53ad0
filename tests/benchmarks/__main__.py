"""`make bench`: every benchmark, one table of ratios with the aim beside each, and a record of each part.

    python tests/benchmarks [NAMES] [--quick] [--own] [--threads N] [--repeats N] [--out figures/data]

A benchmark is a module of this folder with `TITLE` and `bench(settings) -> (rows, details)`, named in MODULES. What
runs on no GPU (`ONCE`) runs once; the others run on the CPU and, where there is one, on the GPU in float32 and in
bfloat16.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path

os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # the profiler, which counts bytes, is chatty
os.environ["KINETO_LOG_LEVEL"] = "99"

import lowrank_teach  # noqa: F401 (before torch: it says how torch's threads wait)

# isort: split
import torch

if not __package__:  # run as a folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import report
from benchmarks.harness import Row, Settings

MODULES = ("steps", "parts", "growth", "throughput", "replicas", "busy", "start", "sliders")
NAMED = ("mutants",)  # of the tests, not of the package: run only where it is named


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(MODULES)}, all of these where none "
                        f"is given; or {', '.join(NAMED)}")
    parser.add_argument("--quick", action="store_true", help="few repeats and small sizes; stored only with --out")
    parser.add_argument("--repeats", type=int, help="of each candidate")
    parser.add_argument("--backbone", default=Settings.backbone)
    parser.add_argument("--own", action="store_true", help="for a busy machine: one thread, its own processor time")
    parser.add_argument("--threads", type=int, help="of torch; its own choice where not given")
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), help="all there are where not given")
    parser.add_argument("--out", type=Path, help="folder of the records")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - {*MODULES, *NAMED}:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(MODULES + NAMED)}")
    return chosen


def all_settings(chosen: argparse.Namespace) -> list[Settings]:
    """One for each device and type."""
    quick = {"repeats": 3, "quick": True} if chosen.quick else {}
    repeats = {"repeats": chosen.repeats} if chosen.repeats else {}
    first = dataclasses.replace(Settings(backbone=chosen.backbone, own=chosen.own), **quick, **repeats)
    devices = chosen.devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    places = [(device, dtype) for device in devices
              for dtype in (("float32", "bfloat16") if device == "cuda" else ("float32",))]
    return [dataclasses.replace(first, device=device, dtype=dtype) for device, dtype in places]


def run(name: str, every: list[Settings], out: Path | None) -> list[Row]:
    """One benchmark on every device; its rows, printed and stored."""
    module, rows = import_module(f"benchmarks.{name}"), []
    once = getattr(module, "ONCE", False)
    for s in [dataclasses.replace(every[0], device="cpu", dtype="float32")] if once else every:
        load, start = report.load(), time.perf_counter()
        found, details = module.bench(s)
        where = "" if once else f", {s.device} {s.dtype}"
        report.print_rows(f"{module.TITLE}{where} ({time.perf_counter() - start:.0f} s)", found)
        if out is not None:
            print(f"  wrote {report.store(name, s, found, details, out, load)}")
        rows += found
    return rows


def main() -> None:
    chosen = options()
    if chosen.threads or chosen.own:
        torch.set_num_threads(1 if chosen.own else chosen.threads)
    warnings.simplefilter("ignore", FutureWarning)  # peft reads a property that transformers has renamed
    every = all_settings(chosen)
    out = chosen.out or (None if chosen.quick else report.FIGURES)
    s, rows = every[0], []
    print(f"{s.backbone}, {s.rows} × {s.tokens} tokens, r = {s.r}, {s.repeats} interleaved repeats, "
          f"{torch.get_num_threads()} threads, load {report.load() or 0:.1f}")
    for name in chosen.names or MODULES:
        rows += run(name, every, out)
    print(f"\n{report.summary(rows)}")


if __name__ == "__main__":
    main()

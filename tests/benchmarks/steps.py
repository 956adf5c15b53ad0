"""What a training step costs, as ratios within one run: our methods, `peft`'s LoRA, and the floor below all of them.

    python tests/benchmarks/steps.py [--quick] [--repeats 40] [--out figures/data/bench_steps.json]

Every repeat takes one step of each candidate, in a rotating order, so that whatever else the machine does falls on
all alike; a ratio is taken within its repeat, and the median and quartiles over repeats are printed. The floor is a
frozen forward pass and a backward pass to the inputs only: no low-rank method can cost less. "loop" candidates run
through the package's own training loop with its checks and its log; the others through the same five plain lines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import lowrank_teach as lt
from lowrank_teach import measure
from lowrank_teach.runs import machine

Step = Callable[[], None]
ROWS, TOKENS, RANK, ALPHA, REFERENCE = 16, 32, 8, 16, "peft LoRA qv"
PEFT_SITES = {
    "qv": r".*attention\.self\.(query|value)",
    "all": r".*encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|attention\.output\.dense"
           r"|intermediate\.dense|output\.dense)"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def rows(n: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20000, (n, TOKENS), generator=generator)
    return [{"input_ids": row, "labels": i % 2} for i, row in enumerate(ids)]


def collate(picked: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.stack([row["input_ids"] for row in picked])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids),
            "labels": torch.tensor([row["labels"] for row in picked])}


def backbone(name: str) -> Any:
    return lt.load_backbone(name, num_labels=2)[0].to(DEVICE).train()


def plain(model: torch.nn.Module) -> Step:
    """One step of AdamW on what trains, with clipping."""
    batch = {key: value.to(DEVICE) for key, value in collate(rows(ROWS)).items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    return step


def floor(name: str) -> Step:
    """Forward, and backward to the inputs: nothing trains."""
    model = backbone(name).requires_grad_(False)
    batch = {key: value.to(DEVICE) for key, value in collate(rows(ROWS)).items()}
    embedded = model.get_input_embeddings()(batch.pop("input_ids")).detach().requires_grad_()

    def step() -> None:
        embedded.grad = None
        model(inputs_embeds=embedded, **batch).loss.backward()

    return step


def with_peft(name: str, sites: str) -> Step:
    import peft

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PEFT_SITES[sites], task_type="SEQ_CLS")
    return plain(peft.get_peft_model(backbone(name), config).train())


def ours(name: str, sites: str) -> Step:
    model = backbone(name)
    lt.adapt(model, lt.LoRA(r=RANK, lora_alpha=ALPHA, sites=sites), seed=0)
    return plain(model.train())


def looped(name: str, method: lt.Method) -> Step:
    """A step of the package's loop, with all that the method does around it."""
    config = lt.train_config("gpu", steps=100_000, batch_size=ROWS, lr=1e-4)
    trainer = lt.Trainer(lt.adapt(backbone(name), method, seed=0), rows(4 * ROWS), collate, config)
    trainer._prepare()
    clock = type(trainer.clock)

    def step() -> None:
        trainer.outcome.step += 1
        trainer.clock = clock(trainer.outcome.step, trainer.total, trainer.clock.per_epoch)
        trainer._step()
        trainer.outcome.history.clear()

    return step


def candidates() -> dict[str, Callable[[str], Step]]:
    at: dict[str, Any] = {"r": RANK, "lora_alpha": ALPHA}
    gates: dict[str, Any] = {"t_start": 0, "t_end": 1.0, **at}  # gates train at every step
    methods: dict[str, lt.Method] = {
        "LoRA qv": lt.LoRA(**at), "COLA qv": lt.COLA(knots=(0.5,), **at), "SaLoRA qv": lt.SaLoRA(sites="qv", **gates),
        "SaLoRA all": lt.SaLoRA(**gates), "Delta-LoRA qv, in place": lt.DeltaLoRA(K=0, **at),
        "Delta-LoRA qv, lazy": lt.DeltaLoRA(K=0, form="lazy", **at),
        **{f"AutoLoRA qv, {kind}": lt.AutoLoRA(hypergradient=kind, **at)
           for kind in ("first_order", "finite_difference", "betty", "unrolled")}}
    return {
        "floor": floor,
        **{f"peft LoRA {sites}": lambda name, sites=sites: with_peft(name, sites) for sites in PEFT_SITES},
        **{f"LoRA {sites}": lambda name, sites=sites: ours(name, sites) for sites in PEFT_SITES},
        **{f"loop: {label}": lambda name, method=method: looped(name, method) for label, method in methods.items()}}


def interleaved(steps: dict[str, Step], repeats: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds of each candidate's step in every repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for repeat in range(-warm_up, repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            steps[name]()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Candidate -> median and quartiles of its ratio to the reference in the same repeat."""
    out = {}
    for name, taken in seconds.items():
        each = [a / b for a, b in zip(taken, seconds[reference], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
        out[name] = {"median": middle, "q1": low, "q3": high}
    return out


def peak(label: str, name: str) -> int | None:
    """Peak bytes of a process that does nothing but this candidate: on the GPU, else resident."""
    words = [sys.executable, __file__, "--backbone", name, "--peak-of", label]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_peak(label: str, name: str) -> None:
    step = candidates()[label](name)
    for _ in range(3):
        step()
    found = measure.peak_memory()
    print(json.dumps(found["cuda_peak_bytes"] or found["rss_peak_bytes"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="minilm-l6")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, help="of torch; its own choice where not given")
    parser.add_argument("--quick", action="store_true", help="five repeats, no memory; written only to --out")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak-of", metavar="CANDIDATE", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.peak_of:
        return print_peak(chosen.peak_of, chosen.backbone)
    repeats = 5 if chosen.quick else chosen.repeats
    made = {label: make(chosen.backbone) for label, make in candidates().items()}
    seconds = interleaved(made, repeats)
    against, over_floor = ratios(seconds, REFERENCE), ratios(seconds, "floor")
    memory = {} if chosen.quick else {label: peak(label, chosen.backbone) for label in made}
    print(f"{chosen.backbone}, {ROWS} × {TOKENS} tokens, r = {RANK}, {repeats} interleaved repeats, "
          f"{torch.get_num_threads()} threads, {DEVICE.type}")
    print(f"{'candidate':36} {'ms':>7} {'/ ' + REFERENCE:>16} {'quartiles':>13} {'/ floor':>8} {'peak MB':>8}")
    for label in made:
        a, megabytes = against[label], memory.get(label)
        print(f"{label:36} {1000 * statistics.median(seconds[label]):7.1f} {a['median']:16.2f} "
              f"{a['q1']:6.2f}–{a['q3']:<6.2f} {over_floor[label]['median']:8.2f} "
              f"{'' if megabytes is None else f'{megabytes / 1e6:8.0f}'}")
    out = chosen.out or (None if chosen.quick else Path("figures/data/bench_steps.json"))
    if out:
        record = {"name": "bench_steps", "machine": {**machine(), "threads": torch.get_num_threads()},
                  "settings": {"backbone": chosen.backbone, "rows": ROWS, "tokens": TOKENS, "r": RANK,
                               "repeats": repeats, "device": DEVICE.type, "reference": REFERENCE},
                  "milliseconds": {label: 1000 * statistics.median(taken) for label, taken in seconds.items()},
                  "to_reference": against, "to_floor": over_floor, "peak_bytes": memory}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {out}")
    return None


if __name__ == "__main__":
    main()

"""`lowrank-teach presets | plan`: what a paper's cell consists of, and what a method would do to a model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from .board import console
from .cli_options import (
    AsJson,
    Chosen,
    Document,
    MethodName,
    OwnBackbone,
    PresetName,
    Settings,
    StandIn,
    choose,
)

if TYPE_CHECKING:
    from .presets import Preset


CellName = Annotated[str, typer.Argument(help="one cell in full; or the beginning of names, to list fewer")]


def presets(name: CellName = "", as_json: AsJson = False) -> Document:
    """List the cells of the papers' tables, or show one with the source of each of its values."""
    from .presets import PRESETS, preset

    some = {key: one for key, one in PRESETS.items() if name not in PRESETS and key.startswith(name)}
    one = None if some else preset(name)  # refused with the nearest names
    if as_json:
        return _document(one) if one else {key: _summary(item) for key, item in some.items()}
    if one:
        _show(one)
        return None
    names = Column("preset", no_wrap=True, min_width=max(map(len, some), default=0))
    shown = Table(names, "table", "steps", "paper's number", "not given", box=None, header_style="bold")
    for key, item in some.items():
        numbers = [f"{metric} {number}" for metric, number in item.reported.items()]
        reported = ", ".join([*numbers[:1], *(["…"] if numbers[1:] else [])]) or "–"
        shown.add_row(key, item.table, f"{item.steps:,}", reported, str(len(item.not_given)))
    console.print(shown)
    console.print("One of them in full, with the source of each value: lowrank-teach presets NAME; train it: "
                  "lowrank-teach train --preset NAME")
    return None


def _summary(one: Preset) -> dict[str, Any]:
    return {"table": one.table, "task": one.task, "backbone": one.backbone, "stand_in": one.stand_in,
            "steps": one.steps, "reported": dict(one.reported), "not_given": list(one.not_given)}


def _document(one: Preset) -> dict[str, Any]:
    def plain(settings: Any) -> dict[str, Any]:
        return {name: dataclasses.asdict(setting) for name, setting in settings.items()}

    return {"name": one.name, **_summary(one), "reported_source": one.reported_source, "method": one.method.to_dict(),
            "training": one.training, "values": plain(one.values()), "seeds": dataclasses.asdict(one.seeds),
            "parameters": one.counts, "grid": dict(one.grid), "differs": list(one.differs),
            "baselines": {name: plain(settings) for name, settings in one.baselines.items()}}


FROM = {"paper": "paper", "code": "code", "ours": "not given"}


def _show(one: Preset) -> None:
    def say(words: str) -> None:
        console.print(words)

    say(f"{one.name}: {one.table}; {one.backbone} on {one.task}, {one.steps:,} steps")
    shown = Table("value", "", "from", "source, or why", box=None, header_style="bold")
    for name, s in [*one.values().items(), ("seeds", one.seeds)]:
        words = s.source.removeprefix("not given").removeprefix("; ") if s.kind == "ours" else s.source
        cells = (name, _words(s.value), FROM[s.kind], words)
        shown.add_row(*cells, style="dim" if s.kind == "ours" else "")
    console.print(shown)
    numbers = ", ".join(f"{metric} {number}" for metric, number in one.reported.items())
    say(f"The paper's number: {numbers} ({one.reported_source})" if numbers else
        "The paper's number: none that was found in a text, a table or a repository")
    if one.counts:
        say(f"Parameters in branches: {one.counts[1]:,}; the paper prints {one.counts[0]}")
    for name, values in one.grid.items():
        say(f"The paper searched {name} over {', '.join(map(_words, values))}, and reports the best")
    for words in one.differs:
        say(f"Differs: {words}")
    more = f"; a baseline of the same table: lowrank-teach train {next(iter(one.baselines))} --preset {one.name}"
    say(f"Train it: lowrank-teach train --preset {one.name}{more if one.baselines else ''}")


def _words(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def plan(method: MethodName = None, backbone: OwnBackbone = None, preset: PresetName = None,
         stand_in: StandIn = False, settings: Settings = None,
         memory: Annotated[bool, typer.Option("--memory", help="what a training step would hold, by part, without "
                                              "downloading weights")] = False,
         length: Annotated[int | None, typer.Option(help="with --memory: tokens of every row")] = None,
         card: Annotated[float, typer.Option(min=0, help="with --memory: GiB of the device")] = 24.0,
         as_json: AsJson = False) -> Document:
    """Show which matrices a method would adapt, and with how many parameters, or what memory a step would take."""
    chosen = choose(method, None, backbone, None, settings, preset, stand_in)
    return memory_plan(chosen, length, card, as_json) if memory else _sites(chosen, as_json)


def _sites(chosen: Chosen, as_json: bool) -> Document:
    from .adapters import adapt
    from .dimensions import meta_model, published
    from .models import load_backbone

    name = chosen.arguments["backbone"]
    model = meta_model(name) if published(name) else load_backbone(name)[0]
    shown = adapt(model, chosen.arguments["method"], seed=0).plan()
    if as_json:
        keys = ("site", "module", "d", "k", "r", "scaling", "parameters")
        return {"sites": [dict(zip(keys, row, strict=True)) for row in shown.rows], "head": shown.head,
                "total": shown.total}
    print(shown)
    return None


def memory_plan(chosen: Chosen, length: int | None = None, card: float = 24.0, as_json: bool = False,
                profile: str | None = None) -> Document:
    """Bytes by part of a training step, without a weight; profile: of a run, with its task's head."""
    from .config import PROFILES, TrainConfig
    from .memory import plan_memory
    from .tasks import TASKS

    fields = {f.name for f in dataclasses.fields(TrainConfig)}
    values = {name: v for name, v in chosen.arguments.items() if name in fields}
    config = dataclasses.replace(PROFILES[profile] if profile in PROFILES else TrainConfig(), **values)
    task = TASKS[chosen.arguments["task"]]
    headed = task.kind in ("classification", "tagging", "regression") and (chosen.preset or profile)
    kind = task.kind if headed else None
    found = plan_memory(chosen.arguments["method"], chosen.arguments["backbone"], config, length=length, kind=kind,
                        labels=len(task.labels) or 2)
    if as_json:
        return {"setting": found.setting, "bytes": {name: size for name, size, _ in found.rows()},
                "total": found.total, "scores": found.scores, "notes": list(found.notes), "card": card,
                "fits": found.fits(card)}
    print(found)
    print(found.verdict(card))
    return None

"""What the commands share: their options, and how words of a command line become a run's arguments."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .presets import Preset

Document = dict[str, Any] | None  # what a command returns for --json; `main` prints it

METHODS_HELP = ("lora, cola, salora, delta_lora, autolora, head, full, dylora, houlsby, pfeiffer, adalora, prefix, "
                "prompt; cola+salora trains both at once")
MethodName = Annotated[str | None, typer.Argument(help=METHODS_HELP + "; with --preset a baseline of that table")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="short name; `lowrank-teach tasks` lists them")]
BackboneName = Annotated[str, typer.Option("--backbone", "-b", help="short name, hub name or local folder")]
ProfileName = Annotated[str, typer.Option("--profile", "-p", help="tiny, laptop or gpu")]
MOST_SEEDS = 10_000
OwnSeeds = Annotated[int, typer.Option("--seeds", min=0, max=MOST_SEEDS, help="how many; 0 takes the study's own")]
Seed = Annotated[int, typer.Option("--seed", "-s")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="a value of the method or of the training, "
                                                    "as name=value; may be repeated")]
PresetName = Annotated[str | None, typer.Option("--preset", help="a cell of a paper's table, such as "
                                                "salora/roberta-base/cola; `lowrank-teach presets` lists them")]
StandIn = Annotated[bool, typer.Option("--stand-in", help="with --preset: a packaged model in place of the paper's")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output, nothing else")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="train again even if the run is stored")]

# where a preset may have a word, too, what is left out is told from what is not
OwnTask = Annotated[str | None, typer.Option("--task", "-t", help="short name; `lowrank-teach tasks` lists them "
                                             "[default: rt]")]
OwnBackbone = Annotated[str | None, typer.Option("--backbone", "-b", help="short name, hub name or local folder "
                                                 "[default: minilm-l6]")]
OwnProfile = Annotated[str | None, typer.Option("--profile", "-p", help="tiny, laptop or gpu [default: laptop; with "
                                                "--preset as long as the paper]")]


@dataclass
class Chosen:
    """What a command line asks for: the arguments of `fit`, and the preset where it names one."""

    label: str
    arguments: dict[str, Any]
    preset: Preset | None = None

    @property
    def title(self) -> str:
        """Of the table on the screen."""
        words = (self.arguments[name] for name in ("task", "backbone", "profile"))
        return ", ".join([*([self.preset.name] if self.preset else []), *words])

    @contextmanager
    def or_stand_in(self) -> Iterator[None]:
        """Where the paper's checkpoint cannot be had, say so, with this very line and what it needs besides.

        Raises:
            CheckpointError: it cannot be had.
        """
        from .models import CheckpointError

        try:
            yield
        except CheckpointError as error:
            if self.preset is None or self.arguments["backbone"] != self.preset.backbone:
                raise
            line = shlex.join(["lowrank-teach", *sys.argv[1:], "--stand-in"])
            raise CheckpointError(self.preset.missing(line, error)) from error


def choose(method: str | None, task: str | None, backbone: str | None, profile: str | None,
           settings: list[str] | None, preset: str | None, stand_in: bool) -> Chosen:
    """The run that a command line names: by method, task and backbone, or by a preset with what is changed in it.

    Raises:
        ValueError: words that contradict each other, or a name that there is not.
    """
    if preset is None:
        if method is None or stand_in:
            raise ValueError("--stand-in goes with --preset" if stand_in else "name a method, or a cell of a paper's "
                             "table with --preset; `lowrank-teach presets` lists them")
        configured, training = configure(method, settings or [])
        usual = {"task": "rt", "backbone": "minilm-l6", "profile": "laptop"}
        named = {"task": task, "backbone": backbone, "profile": profile}   # an empty name is not one left out
        return Chosen(method, {"method": configured, **usual, **training,
                               **{name: word for name, word in named.items() if word is not None}})
    from .presets import preset as find

    one = find(preset)
    changed = settled(settings, [one.configured(method).name])
    if task is not None or (stand_in and backbone is not None):
        raise ValueError(f"{one.name} names its task: leave --task out" if task is not None else
                         "--stand-in and --backbone both name a model: leave one out")
    arguments = one.arguments(profile, method=method, stand_in=stand_in, backbone=backbone,
                              **changed)
    return Chosen(method or one.name.split("/")[0], arguments, one)


def configure(method: str, settings: list[str]) -> tuple[Any, dict[str, Any]]:
    """A method's configuration and the training values, from name=value pairs.

    Raises:
        ValueError: neither has a value of this name.
    """
    from .methods.compose import fields_of, named

    fields, values = fields_of(method), settled(settings, [method])
    own = {name: value for name, value in values.items() if name in fields}
    return named(method, **own), {name: value for name, value in values.items() if name not in own}


def settled(settings: Iterable[str] | None, methods: Iterable[str] = (),
            read: Callable[[str], tuple[str, Any]] | None = None) -> dict[str, Any]:
    """name -> value of what `--set` gives.

    Args: methods: whose values may be among them; those of the training always may.  read: of a pair, `value`.

    Raises:
        ValueError: neither has a value of this name (and so it is none of a command's own arguments either).
    """
    from .config import TrainConfig
    from .methods.checks import among, require
    from .methods.compose import fields_of

    own = {name: method for method in methods for name in fields_of(method)}
    training = list(TrainConfig.__dataclass_fields__)
    values = dict(map(read or value, settings or ()))
    unknown = [name for name in values if name not in own and name not in training]
    whose = [*dict.fromkeys(own.values()), "the training"]
    require(not unknown, f"{', '.join(unknown)}: no value of {' or of '.join(whose)} has this name; "
                         f"{whose[0]} has {among(list(own) or training, *unknown[:1])}")
    return values


def value(pair: str) -> tuple[str, Any]:
    """ "b=0.25" -> ("b", 0.25): JSON where it is any, a word otherwise.

    Raises:
        ValueError: there is no = in it.
    """
    from .methods.checks import shown

    name, equals, text = pair.partition("=")
    if not equals:
        raise ValueError(f"--set takes name=value, not {shown(pair)}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or numbers and lists that nothing could be done with
        found = text
    return name, tuple(found) if isinstance(found, list) else found

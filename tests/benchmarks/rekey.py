"""The stored records of figures/data get the keys of today's code: run once for each change of what a key holds.

    python tests/benchmarks/rekey.py

A record's old key has to follow from its configuration, its identity and the version that trained it, as keys were
made until now; else nothing is known of it, and it stays as it is. Nothing but "key" changes; a record that holds its
whole configuration gets the values that it did not name then. What was done is in figures/data/keys.json. How the
records first got their identity, which files a run was trained from, is told by figures/data/identities.json.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lowrank_teach.experiments.fit import RunConfig
from lowrank_teach.experiments.runs import config_key, machine
from lowrank_teach.reproduction import arms
from lowrank_teach.training.config import TrainConfig

DATA = Path(__file__).resolve().parents[2] / "figures" / "data"
VERSIONS = ("0.1.0", "0.2.0")
# until now a configuration named these only where they were not left alone
UNNAMED = ("base_dtype", "label_smoothing", "n_written", "num_beams", "length_penalty", "no_repeat_ngram_size",
           "validation_from_train")
Record = tuple[dict[str, Any], dict[str, Any]]   # as stored, and its configuration as today's code has it


def records(path: Path) -> Iterator[Record]:
    """What has a key in a file."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    about = stored.get("about", stored)
    for record in stored.get("runs", []):   # of a figure: they hold their configuration
        config = record["config"]
        yield record, {**config, "training": TrainConfig(**config["training"]).to_dict()}
    for record in stored.get("records", []):
        if "key" in record:
            made = of_a_text(about["task"], record) if "08_" in path.name else of_a_study(path.stem, about, record)
            yield record, made.described


def of_a_study(name: str, about: dict[str, Any], record: dict[str, Any]) -> RunConfig:
    study = {**arms.STUDIES, **arms.TASK_STUDIES}[name]
    return study.config(record.get("task", about.get("task")), record["arm"], record["seed"], record.get("lr"))


def of_a_text(task: str, record: dict[str, Any]) -> RunConfig:
    return arms.TEXT_STUDIES[task].config(task, record["arm"], record["seed"], record["lr"])


def as_it_was(config: dict[str, Any]) -> dict[str, Any]:
    default = TrainConfig().to_dict()
    return {**config, "training": {name: value for name, value in config["training"].items()
                                   if name not in UNNAMED or value != default[name]}}


def named(text: str, values: dict[str, Any]) -> str:
    """The text of a figure's record with these values at the end of the first training that does not name them."""
    for found in re.finditer(r'"training": \{[^{}]*\n( *)\}', text):
        if not all(f'"{name}"' in found[0] for name in values):
            end = found.end() - len(found[1]) - 2
            lines = "".join(f',\n{found[1]} "{name}": {json.dumps(value)}' for name, value in values.items())
            return text[:end] + lines + text[end:]
    raise ValueError("no training lacks them")


def rebuild(path: Path) -> dict[str, str]:
    """Old key -> new key of a file, written into it; all else stays to the byte."""
    text, keys = path.read_text(encoding="utf-8"), dict[str, str]()
    for record, config in records(path):
        made_from, old = record["identity"], record["key"]
        version = next((v for v in VERSIONS if config_key(as_it_was(config), made_from, v) == old), None)
        if version is None:
            print(f"{path.name}: the key {old} does not follow from its configuration", file=sys.stderr)
            continue
        keys[old] = config_key(config, made_from, version)
        text = text.replace(f'"key": "{old}"', f'"key": "{keys[old]}"')
        if missing := config["training"].keys() - record.get("config", config)["training"].keys():
            text = named(text, {name: config["training"][name] for name in UNNAMED if name in missing})
    path.write_text(text, encoding="utf-8")
    return keys


def main() -> None:
    paths = [path for path in sorted(DATA.rglob("*.json")) if '"key": "' in path.read_text(encoding="utf-8")]
    keys = {path.relative_to(DATA).as_posix(): rebuild(path) for path in paths}
    (DATA / "keys.json").write_text(json.dumps({
        "command": "python tests/benchmarks/rekey.py", "keys": keys, "machine": machine()}, indent=1) + "\n",
        encoding="utf-8")


if __name__ == "__main__":
    main()

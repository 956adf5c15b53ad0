"""The stored records of figures/data get the keys of today's code: run once for each change of what a key holds.

    python tests/benchmarks/rekey.py

A record's old key has to follow from its configuration, its identity and the version that trained it, as keys were
made until now; else nothing is known of it, and it stays as it is. Nothing but "key" changes; a method that is written
out gets the values that had no name then, which are the ways that it was trained. What was done is in
figures/data/keys.json, first key -> today's.
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

DATA = Path(__file__).resolve().parents[2] / "figures" / "data"
VERSIONS = ("0.1.0", "0.2.0")
UNNAMED: dict[str, dict[str, Any]] = {
    "salora": {"orthogonality_until": "end", "prune": "threshold", "after_window": "leave"},
    "autolora": {"count": "softmax"},
}


def today(method: dict[str, Any]) -> dict[str, Any]:
    """A method as it was written -> with all values that it has today, in their order."""
    values = {**method, **UNNAMED.get(method["method"], {})}
    return values | ({"members": [today(one) for one in method["members"]]} if "members" in method else {})


def as_it_was(method: dict[str, Any]) -> dict[str, Any]:
    new = UNNAMED.get(method["method"], {})
    values = {name: value for name, value in method.items() if name not in new}
    assert all(method[name] == value for name, value in new.items())
    return values | ({"members": [as_it_was(one) for one in method["members"]]} if "members" in method else {})


def records(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What has a key in a file, with its configuration as today's code has it."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    about = stored.get("about", stored)
    for record in stored.get("runs", []):   # of a figure: they hold their configuration
        yield record, {**record["config"], "method": today(record["config"]["method"])}
    for record in stored.get("records", []):
        if "key" in record:
            made = of_a_text(about["task"], record) if "08_" in path.name else of_a_study(path.stem, about, record)
            yield record, made.described


def of_a_study(name: str, about: dict[str, Any], record: dict[str, Any]) -> RunConfig:
    study = {**arms.STUDIES, **arms.TASK_STUDIES}[name]
    return study.config(record.get("task", about.get("task")), record["arm"], record["seed"], record.get("lr"))


def of_a_text(task: str, record: dict[str, Any]) -> RunConfig:
    return arms.TEXT_STUDIES[task].config(task, record["arm"], record["seed"], record["lr"])


def named(text: str) -> str:
    """The text of a file, in which each method that is written out names the values that had no name."""
    for name, values in UNNAMED.items():
        pattern = re.compile(r'\{(?P<gap>\s*)"method": "' + name + r'",[^{}]*?(?P<end>\s*)\}')

        def longer(found: re.Match[str], values: dict[str, Any] = values) -> str:
            body, gap = found[0][:len(found[0]) - len(found["end"]) - 1], found["gap"] or " "
            added = "".join(f',{gap}"{key}": {json.dumps(value)}' for key, value in values.items()
                            if f'"{key}"' not in found[0])
            return body + added + found["end"] + "}"

        text = pattern.sub(longer, text)
    return text


def rebuild(path: Path) -> dict[str, str]:
    """Old key -> new key of a file, written into it; all else stays to the byte."""
    text, keys = path.read_text(encoding="utf-8"), dict[str, str]()
    for record, config in records(path):
        made_from, old = record["identity"], record["key"]
        then = {**config, "method": as_it_was(config["method"])}
        version = next((v for v in VERSIONS if config_key(then, made_from, v) == old), None)
        if version is None:
            print(f"{path.name}: the key {old} does not follow from its configuration", file=sys.stderr)
            continue
        keys[old] = config_key(config, made_from, version)
        text = text.replace(f'"key": "{old}"', f'"key": "{keys[old]}"')
    path.write_text(named(text), encoding="utf-8")
    return keys


def main() -> None:
    before = json.loads((DATA / "keys.json").read_text(encoding="utf-8"))["keys"]
    paths = [path for path in sorted(DATA.rglob("*.json")) if '"key": "' in path.read_text(encoding="utf-8")
             and path.name not in ("identities.json", "keys.json")]
    after = {path.relative_to(DATA).as_posix(): rebuild(path) for path in paths}
    keys = {name: {first: after[name].get(second, second) for first, second in pairs.items()}
            for name, pairs in before.items()}
    (DATA / "keys.json").write_text(json.dumps({
        "command": "python tests/benchmarks/rekey.py", "keys": keys, "machine": machine()}, indent=1) + "\n",
        encoding="utf-8")


if __name__ == "__main__":
    main()

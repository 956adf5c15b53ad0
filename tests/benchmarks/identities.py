"""The stored records of figures/data get their identity, and the key that follows from it: run once, when keys began
to hold what a run was trained from.

    LOWRANK_TEACH_DATA=FOLDER python tests/benchmarks/identities.py

A record's old key has to follow from its configuration; else nothing is known of it, and it stays as it is. Packaged
text and weights are pinned by hash: they are those of then where the code that trained the record names the same
hash. Of a local folder the fingerprint is taken where a stored run on it, trained again, gives the same metrics, to
the rounding of float32 (1e-5; other rows change the third digit of a loss); else the record says "not recorded".
Nothing but "key" and "identity" changes. What was found is in figures/data/identities.json.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from lowrank_teach import studies
from lowrank_teach.assets import ASSETS
from lowrank_teach.identity import identity
from lowrank_teach.models import BACKBONES
from lowrank_teach.run_config import RunConfig
from lowrank_teach.runs import config_key, machine
from lowrank_teach.studies import text_studies
from lowrank_teach.tasks import TASKS

DATA = Path(__file__).resolve().parents[2] / "figures" / "data"
UNKNOWN = "not recorded"
VERSIONS = ("0.1.0", "0.2.0")
Record = tuple[dict[str, Any], dict[str, Any], str]   # as stored, its configuration, the commit that trained it


def records(path: Path) -> Iterator[Record]:
    """What has a key in a file, with the configuration that its definition gives today."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    about = stored.get("about", stored)
    commit = about.get("machine", {}).get("commit")
    for record in stored.get("runs", []):   # of a figure: they hold their configuration
        yield record, record["config"], commit
    for record in stored.get("records", []):
        if "key" in record:
            made = of_a_text(about["task"], record) if "08_" in path.name else of_a_study(path.stem, about, record)
            yield record, made.described, record.get("commit", commit)


def of_a_study(name: str, about: dict[str, Any], record: dict[str, Any]) -> RunConfig:
    study = {**studies.STUDIES, **studies.TASK_STUDIES}[name]
    arm, task = study.arms[record["arm"]], record.get("task", about.get("task"))
    rate = {"lr": record["lr"]} if "lr" in record else {}
    values = {**about["training"], **about.get("of_task", {}).get(task, {}), **arm.training, **rate}
    return RunConfig(arm.method, task, about["backbone"], about["profile"], record["seed"], values)


def of_a_text(task: str, record: dict[str, Any]) -> RunConfig:
    values = text_studies.settings(task, {"lr": record["lr"]})[0]
    return RunConfig(text_studies.ARMS[record["arm"]], task, text_studies.BACKBONE, text_studies.PROFILE,
                     record["seed"], values)


def version_of(record: dict[str, Any], config: dict[str, Any]) -> str | None:
    """The package's version by which the old key follows from the configuration."""
    for version in VERSIONS:
        text = json.dumps({**config, "format": 1, "version": version}, sort_keys=True, ensure_ascii=False)
        if hashlib.sha256(text.encode()).hexdigest()[:16] == record["key"]:
            return version
    return None


@cache
def pinned_then(commit: str, assets: tuple[str, ...]) -> bool:
    """Whether the code of a commit names today's hashes of these assets."""
    then = subprocess.run(["git", "show", f"{commit.partition('+')[0]}:lowrank_teach/assets.py"], cwd=DATA,
                          capture_output=True, text=True, check=True).stdout
    return all(sha in then for asset in assets for sha in ASSETS[asset].files.values())


@cache
def trained_again(folder: str) -> dict[str, Any] | None:
    """The first stored run of an encoder on a local folder, then and now; None where there is none."""
    study = studies.load_across("side_by_side")
    for record in study.records:
        task = TASKS[record["task"]]
        if folder == (task.folder or task.name):
            run = of_a_study("side_by_side", study.about, record).fit(progress=False)
            found = {"task": task.name, "arm": record["arm"], "then": record["test"], "now": run.metrics["test"],
                     "same": all(math.isclose(record["test"][name], value, rel_tol=1e-5, abs_tol=1e-9)
                                 for name, value in run.metrics["test"].items())}
            print(folder, found, flush=True)
            return found
    return None


def identity_of(config: dict[str, Any], commit: str) -> dict[str, str | None]:
    task, backbone, found = TASKS[config["task"]], config["backbone"], identity(config["task"], config["backbone"])
    weights = pinned_then(commit, BACKBONES[backbone].assets)
    if task.asset:
        rows = pinned_then(commit, (task.asset,))
    else:
        again = trained_again(task.folder or task.name)
        rows = bool(again and again["same"])
    return {"data": found["data"] if rows else UNKNOWN, "weights": found["weights"] if weights else UNKNOWN}


def rebuild(path: Path) -> dict[str, str]:
    """Old key -> new key of a file, written into it; all else stays to the byte."""
    text, keys = path.read_text(encoding="utf-8"), dict[str, str]()
    for record, config, commit in records(path):
        version = version_of(record, config)
        if version is None:
            print(f"{path.name}: the key {record['key']} does not follow from its configuration", file=sys.stderr)
            continue
        made_from = identity_of(config, commit)
        keys[record["key"]] = config_key(config, made_from, version)
        said = f'"key": "{keys[record["key"]]}", "identity": {json.dumps(made_from)}'
        text = text.replace(f'"key": "{record["key"]}"', said)
    path.write_text(text, encoding="utf-8")
    return keys


def main() -> None:
    paths = [path for path in sorted(DATA.rglob("*.json")) if '"key": "' in path.read_text(encoding="utf-8")]
    keys = {path.relative_to(DATA).as_posix(): rebuild(path) for path in paths}
    folders = sorted({task.folder or task.name for task in TASKS.values() if not task.asset and not task.derived})
    (DATA / "identities.json").write_text(json.dumps({
        "command": "LOWRANK_TEACH_DATA=FOLDER python tests/benchmarks/identities.py",
        "trained_again": {folder: found for folder in folders if (found := trained_again(folder))},
        "keys": keys, "machine": machine()}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

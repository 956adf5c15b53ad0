"""The hub, played on 127.0.0.1: what it has is used; what it has not, cuts short, delays or refuses ends in a
sentence, and never in a hang."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import Hub, hub
from huggingface_hub import constants
from tiny_models import model_folder, rows

import lowrank_teach.models.backbones as client

CARD = """---
configs:
- config_name: cola
  data_files:
  - split: train
    path: cola/train-*
  - split: validation
    path: cola/validation-*
- config_name: sst2
  data_files:
  - split: train
    path: sst2/train-*
  - split: validation
    path: sst2/validation-*
---
"""
# loads each name of its arguments; one JSON line each: what came of it, in how many seconds. The hub's client tries
# again and again after a second's sleep, which is left out here
CHILD = """
import json, sys, time
import lowrank_teach as lt
from lowrank_teach.experiments.identity import data_fingerprint, weights_fingerprint
time.sleep = lambda seconds: None
lt.load_task, lt.load_backbone
for what in sys.argv[1:]:
    start, line = time.monotonic(), {"what": what}
    try:
        if what.startswith("task:"):
            data = lt.load_task(what[5:])
            line |= {"source": data.source, "rows": len(data.train), "test": data.test is None,
                     "fingerprint": data_fingerprint(what[5:])}
        else:
            model, tokenizer = lt.load_backbone(what, num_labels=2)
            line |= {"type": model.config.model_type, "new": list(model.lowrank_new_parameters),
                     "sum": float(model.bert.encoder.layer[0].attention.self.query.weight.detach().sum()),
                     "ids": tokenizer("good film")["input_ids"], "fingerprint": weights_fingerprint(what)}
    except Exception as error:
        line |= {"error": type(error).__name__, "says": str(error)}
    print(json.dumps(line | {"seconds": time.monotonic() - start}), flush=True)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for name in ("tiny", "cut", "slow"):
        model_folder(folder / "models" / "org" / name)
    for task in ("cola", "sst2"):
        place = folder / "datasets" / "nyu-mll" / "glue" / task
        place.mkdir(parents=True)
        for i, (split, n) in enumerate({"train": 12, "validation": 6}.items()):
            frame = rows(n, i).rename(columns={"text": "sentence"})
            frame.to_parquet(place / f"{split}-00000-of-00001.parquet")
        (place.parent / "README.md").write_text(CARD)
    damaged = folder / "datasets" / "nyu-mll" / "glue" / "sst2" / "train-00000-of-00001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return folder


def environment(address: str, home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("HF_", "LOWRANK"))}
    return {**kept, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_ETAG_TIMEOUT": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}


def load(address: str, home: Path, *names: str) -> dict[str, dict]:
    """What came of loading each name, in one process."""
    done = subprocess.run([sys.executable, "-c", CHILD, *names], env=environment(address, home), capture_output=True,
                          text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["what"]: line for line in lines}


def asked_for(server: Hub, part: str) -> list[str]:
    return [request for request in server.asked if part in request]


def test_what_the_hub_has_is_used_once_and_then_from_the_cache(root, tmp_path):
    from safetensors.torch import load_file

    with hub(root) as server:
        found = load(server.address, tmp_path, "org/tiny", "task:cola")
        assert "error" not in found["org/tiny"], found["org/tiny"]
        assert "error" not in found["task:cola"], found["task:cola"]
        assert found["org/tiny"]["type"] == "bert"
        weights = load_file(root / "models" / "org" / "tiny" / "model.safetensors")
        key, = (k for k in weights if k.endswith("layer.0.attention.self.query.weight"))
        assert found["org/tiny"]["sum"] == pytest.approx(float(weights[key].sum()), abs=1e-5)
        assert found["org/tiny"]["new"] == ["classifier.bias", "classifier.weight"]
        assert found["org/tiny"]["ids"] == [5, 14]
        assert found["task:cola"]["rows"] == 12
        assert found["task:cola"]["test"]
        assert found["task:cola"]["source"].startswith("rows from the hub, nyu-mll/glue/cola: train 12")
        assert found["org/tiny"]["fingerprint"] is not None is not found["task:cola"]["fingerprint"]
        assert asked_for(server, "GET /org/tiny/resolve")
        assert asked_for(server, "GET /datasets/nyu-mll/glue/resolve")
        assert not asked_for(server, ".bin")  # no pickle was looked for
        address = server.address
    again = load(address, tmp_path, "org/tiny", "task:cola")  # the server is gone
    for name in ("org/tiny", "task:cola"):
        assert again[name].items() >= {k: v for k, v in found[name].items() if k != "seconds"}.items()
        assert again[name]["seconds"] < 15


def test_what_goes_wrong_ends_in_a_sentence(root, tmp_path):
    names = ("org/missing", "org/cut", "org/slow", "task:qnli", "task:sst2", "org/tiny")
    with hub(root, cut=("cut",), slow=("org/slow",), delay=2.5) as server:
        found = load(server.address, tmp_path, *names)
    says = {name: f"{line.get('error')}: {line.get('says')}" for name, line in found.items()}
    assert re.search(r"CheckpointError: no backbone 'org/missing': Three ways.*\(3\) a hub name.*404",
                     says["org/missing"])
    assert re.search(r"CheckpointError: 'org/cut' \(bert\) cannot be loaded for classification: .*"
                     r"(received \d+ bytes, expected|incomplete|closed|disconnected).*; repair or replace",
                     says["org/cut"])
    assert re.search(r"CheckpointError: no backbone 'org/slow': Three ways.*timed? ?out", says["org/slow"])
    assert re.search(r"FileNotFoundError: no rows for 'qnli' \(.*qnli.*\)\. Three ways", says["task:qnli"])
    assert re.search(r"FileNotFoundError: no rows for 'sst2' \(.*\)\. Three ways", says["task:sst2"])
    assert "error" not in found["org/tiny"]  # and the next name is loaded as if nothing had been
    assert all(line["seconds"] < 60 for line in found.values())


def test_a_hub_that_cannot_be_reached(tmp_path):
    with socket.socket() as nobody:  # a port that nobody listens on
        nobody.bind(("127.0.0.1", 0))
        found = load(f"http://127.0.0.1:{nobody.getsockname()[1]}", tmp_path, "org/tiny", "task:cola")
    assert re.search("no backbone 'org/tiny': Three ways", found["org/tiny"]["says"])
    assert re.search("no rows for 'cola' .*Three ways", found["task:cola"]["says"])
    assert all(line["seconds"] < 20 for line in found.values())


def test_reachable_means_that_the_port_answers(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert not client.is_reachable()
        server.listen()
        assert client.is_reachable()
    start = time.monotonic()
    monkeypatch.setattr(constants, "ENDPOINT", "https://no.such.name.invalid")
    assert not client.is_reachable()
    assert time.monotonic() - start < 30
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert client.is_reachable()  # behind a proxy the client has to find out
    monkeypatch.setenv("no_proxy", "no.such.name.invalid")
    assert not client.is_reachable()


def test_the_reason_is_what_lies_at_the_bottom():
    bottom, top = TimeoutError("timed out\nafter 10 s"), OSError("general advice")
    top.__cause__ = bottom
    assert client.reason(top) == "timed out"
    assert client.reason(ValueError()) == "ValueError"
    assert client.reason(ValueError("only")) == "only"

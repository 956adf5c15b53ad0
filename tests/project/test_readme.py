"""What the README shows is true: its code runs, its numbers are those of the stored runs."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from benchmarks import report

import lowrank_teach as lt
from lowrank_teach.course import contents
from lowrank_teach.experiments import fit_many
from lowrank_teach.experiments.compare import markdown
from lowrank_teach.reproduction import ledger

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_results_are_those_of_the_stored_runs():
    """The table is made from figures/data/compare.json as committed (a demo run later may overwrite the file)."""
    stored = subprocess.run(["git", "show", "HEAD:figures/data/compare.json"], cwd=ROOT, capture_output=True,
                            text=True)
    if stored.returncode:
        pytest.skip("not a checkout: the committed numbers cannot be read")
    record = json.loads(stored.stdout)
    shown = README.split("<!-- results -->\n")[1].split("\n<!-- /results -->")[0]
    assert shown == markdown(pd.DataFrame(record["table"]).set_index("method"))


def between(name: str) -> str:
    return README.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def test_the_course_table_is_made_from_the_stored_minutes():
    assert between("course") == contents.markdown()
    there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"\[(\w+)\]\(notebooks/\1\.ipynb\)", between("course"))) == there


def test_the_ratios_are_those_of_the_stored_records():
    assert between("bench") == report.page()


def test_the_presets_are_counted():
    assert f"lists {len(lt.PRESETS)} cells" in README


def test_the_verdicts_are_counted_from_the_stored_runs():
    assert between("ledger") == ledger.summary_markdown().strip()


def test_the_grids_are_real(monkeypatch):
    """The example's lists of runs, as printed; training them is tested with smaller ones."""
    block, asked = next(block for block in BLOCKS if "lt.fit_many" in block), []
    for name in ("fit_many", "sweep"):
        takes = inspect.signature(getattr(lt, name))
        monkeypatch.setattr(lt, name, lambda *a, takes=takes, **k: asked.append(takes.bind(*a, **k).args[0]))
    exec(block, {"lt": lt})
    assert [len(configs) for configs in asked] == [60, 15]
    assert len({config.key for configs in asked for config in configs}) == 75
    assert len(fit_many.groups(asked[0])) == 1, "methods, tasks of two classes, seeds and rates share a pass"


@pytest.mark.asset
def test_the_method_of_twenty_lines_trains():
    """The example of a new method, as printed, trains and is known by name."""
    example = next(block for block in BLOCKS if "class LoRAPlus" in block)
    body = example.split("import lowrank_teach as lt\n")[1].split("run = lt.fit")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20
    names: dict = {}
    try:
        exec(example.replace('profile="tiny"', 'profile="tiny", steps=5, progress=False'), names)
        run = names["run"]
        assert run.config["method"]["method"] == "lora_plus"
        assert run.config["method"]["ratio"] == 4.0
        rates = {group["lr"] for group in names["LoRAPlusRule"].parameter_groups(_rule(names))}
        assert rates == {1e-3, 4e-3}
    finally:
        lt.METHODS.pop("lora_plus", None)


def _rule(names: dict):
    model, _ = lt.load_backbone("minilm-l3", num_labels=2)
    return lt.adapt(model, names["LoRAPlus"]()).rule


def test_the_six_lines_run_on_a_transformers_model(monkeypatch):
    """The snippet for one's own model, with a tiny model in place of the hub's."""
    from helpers import collate, make_rows, tiny
    from transformers import AutoModelForSequenceClassification

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", lambda name: tiny("roberta"))
    example = next(block for block in BLOCKS if "from_pretrained" in block).replace("steps=1000", "steps=8")
    names = {"rows": make_rows(32), "collate": collate}
    exec(example.replace("r=8", "r=4"), names)
    assert names["adapters"].state == "unloaded"
    with torch.no_grad():
        assert torch.isfinite(names["model"](**collate(make_rows(4))).logits).all()


def test_the_lines_for_peft_and_transformers_run(monkeypatch, tmp_path):
    """As printed, on a tiny model: what comes out loads in transformers alone, and answers alike."""
    from helpers import collate, make_rows, tiny
    from transformers import BertForSequenceClassification, TrainingArguments

    monkeypatch.chdir(tmp_path)
    example = next(block for block in BLOCKS if "LowRankTrainer" in block).replace("max_steps=1000", "max_steps=4")
    adapters = lt.adapt(tiny(labels=3), lt.LoRA(r=2), seed=0)
    names = {"lt": lt, "adapters": adapters, "base": tiny(labels=3), "rows": make_rows(32), "collate": collate,
             "TrainingArguments": lambda *a, **k: TrainingArguments(*a, **k, use_cpu=True, report_to=[])}
    exec(example, names)
    plain = BertForSequenceClassification.from_pretrained("merged").eval()
    batch = collate(make_rows(4))
    with torch.no_grad():
        trained = adapters.model.eval()(**batch).logits
        assert (trained - tiny(labels=3)(**batch).logits).abs().max() > 1e-4
        torch.testing.assert_close(plain(**batch).logits, trained, rtol=0, atol=1e-5)

"""What README and pages show is true: their code runs, their numbers are those of the stored runs."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from benchmarks import report
from test_structure import MAY_IMPORT

import lowrank_teach as lt
from lowrank_teach.course import contents
from lowrank_teach.experiments import fit_many
from lowrank_teach.experiments.compare import markdown
from lowrank_teach.reproduction import ledger, verdicts
from lowrank_teach.reproduction.verdicts import CONTRADICTED, EQUAL, EXACT, NO_RUNS, OPEN, SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "notebooks/site/pages").glob("*.md"))}
BLOCKS = re.findall(r"```python\n(.*?)```", "\n".join([README, *PAGES.values()]), re.S)
CLAIMS = {row.key: row for row in ledger.ledger()}


def test_the_front_page_is_short():
    assert 700 <= len(README.split()) <= 900


def test_every_block_of_code_is_run_below():
    """A new one needs a test of its own."""
    assert len(BLOCKS) == 5


def test_results_are_those_of_the_stored_runs():
    """The table is made from figures/data/compare.json as committed (a demo run later may overwrite the file)."""
    stored = subprocess.run(["git", "show", "HEAD:figures/data/compare.json"], cwd=ROOT, capture_output=True,
                            text=True)
    if stored.returncode:
        pytest.skip("not a checkout: the committed numbers cannot be read")
    record = json.loads(stored.stdout)
    assert between("results", PAGES["benchmarks"]) == markdown(pd.DataFrame(record["table"]).set_index("method"))


def between(name: str, text: str = README) -> str:
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def test_the_course_table_is_made_from_the_stored_minutes():
    assert between("course") == contents.markdown()
    there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(re.findall(r"\[(\w+)\]\(notebooks/\1\.ipynb\)", between("course"))) == there


def test_the_ratios_are_those_of_the_stored_records():
    assert between("bench", PAGES["benchmarks"]) == report.page()


def test_the_presets_are_counted():
    assert f"lists {len(lt.PRESETS)} cells" in PAGES["presets"]


def test_the_verdicts_are_counted_from_the_stored_runs():
    assert between("ledger", PAGES["ledger"]) == ledger.summary_markdown().strip()


def test_the_audit_is_the_stored_one():
    stored = json.loads((ROOT / "figures/data/audit.json").read_text(encoding="utf-8"))
    said = "\n\n".join(f"**{one['name']}**, {len(one['matrices'])} matrices, {one['parameters']:,} numbers:\n\n"
                       + "\n".join(f"- {sentence}" for sentence in one["advice"]) for one in stored["adapters"])
    assert between("audit", PAGES["audit"]) == said
    big = stored["seven_billion"]
    assert (f"took {big['measuring_seconds']} s and the page {big['page_seconds']} s, on one thread of a busy "
            f"machine, within {big['peak_memory_gib']} GiB") in PAGES["audit"]


def test_the_audited_adapters_are_made_as_the_page_says(tmp_path, monkeypatch):
    block, = re.findall(r"```python\n(.*?)```", PAGES["audit"], re.S)
    assert "steps=300" in block
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOWRANK_TEACH_RUNS", str(tmp_path / "runs"))
    exec(block.replace('"laptop", 0, steps=300', '"tiny", 0, steps=24'), {})
    assert sorted(path.parent.name for path in tmp_path.glob("*/adapter_config.json")) == ["lora_all", "salora"]


def row(statement: str, task: str = "") -> verdicts.Row:
    """The row of the ledger that says so."""
    return next(one for one in CLAIMS.values() if (one.statement, one.task) == (statement, task))


@pytest.mark.parametrize(("finding", "statement", "task", "says"), [
    ("it differs from LoRA at 3 α by {} on SST-2, both", "Delta-LoRA with λ = 2 beats LoRA at (1 + λ) α", "sst2",
     {OPEN, EQUAL}),
    ("it loses to LoRA with all directions: {}; among all tests this does not stand.",
     "SaLoRA beats LoRA on the same six matrices, with half of its directions", "sst2", {CONTRADICTED}),
    ("the same ranks dealt at random:** {} after 100 steps", "the search beats its own ranks dealt out at random", "",
     {EQUAL})])
def test_the_findings_say_what_the_ledger_says(finding, statement, task, says):
    """Number, interval and direction of each."""
    assert finding.format(row(statement, task).interval_words()) in README
    assert row(statement, task).verdict in says


def test_the_findings_hold_in_the_records():
    """What is said without an interval: the identity, the range of α, the density after the window, the counts."""
    assert row("with K = 0 it is LoRA at (1 + λ) α").verdict == EXACT
    assert row("W turns further under Delta-LoRA than under LoRA: its cosine is lower").verdict == SUPPORTED

    def arrays(name: str) -> dict:
        return json.loads((ROOT / f"figures/data/{name}.json").read_text(encoding="utf-8"))["arrays"]

    alpha = [value for site in arrays("alpha")["alphas"].values() for step in site for value in step]
    assert f"between {min(alpha):.3f} and {max(alpha):.3f}, around 1/k = {arrays('alpha')['threshold']}" in README
    density = arrays("density")
    after = {value for step, value in zip(density["steps"], density["density"], strict=True)
             if step >= density["window"][1]}
    assert len(after) == 1
    run = json.loads((ROOT / "figures/data/density.json").read_text(encoding="utf-8"))["runs"][0]["config"]
    assert (run["backbone"], run["training"]["steps"], run["seed"]) == ("minilm-l6", 140, 0)
    assert f"the pictured density stays at {after.pop():.3f} to the last step" in README
    ranks = json.loads((ROOT / "figures/data/ranks.json").read_text(encoding="utf-8"))["arrays"]["ranks"]["SaLoRA"]
    assert f"the rest is LoRA at {min(ranks.values())} to {max(ranks.values())} directions a matrix" in README
    ran, exact = ledger.from_runs(CLAIMS.values()), [one for one in CLAIMS.values() if one.verdict == EXACT]
    decided = [one for one in ran if one.verdict in verdicts.DECIDED]
    waiting = [one for one in CLAIMS.values() if one.verdict == NO_RUNS]
    assert (f"has {len(CLAIMS)} rows: {len(ran)} rest on five seeds or more, of which {len(decided)} are decided; "
            f"{len(exact)} hold exactly; {len(waiting)} wait for runs.") in README
    for name, task, steps in (("autolora_parts", "rt", 100), ("tuned_delta", None, 625)):
        study = json.loads((ROOT / f"figures/data/studies/{name}.json").read_text(encoding="utf-8"))
        assert (study["backbone"], study.get("task"), study["training"]["steps"]) == ("minilm-l3", task, steps)
        assert {record["seed"] for record in study["records"]} == set(range(5))


def test_the_animation_is_of_the_training_that_the_density_is_of():
    """Both were trained apart: the same gates closed."""
    gates, density, ranks = (json.loads((ROOT / f"figures/data/{name}.json").read_text(encoding="utf-8"))
                             for name in ("gates", "density", "ranks"))
    assert gates["runs"][0]["config"] == density["runs"][0]["config"]
    assert {site: kept[-1] for site, kept in gates["arrays"]["kept"].items()} == ranks["arrays"]["ranks"]["SaLoRA"]
    assert {kept[0] for kept in gates["arrays"]["kept"].values()} == {8}
    assert (ROOT / "figures/gates.gif").stat().st_size < 600_000


def test_the_floors_of_the_architecture_are_those_of_the_imports():
    """Each room stands above all that it may import."""
    drawing = re.search(r"```text\n(.*?)```", PAGES["architecture"], re.S)[1]
    floors = [re.findall(r"[a-z]+", line[30:]) for line in reversed(drawing.splitlines())]
    assert sorted(room for floor in floors for room in floor) == sorted(MAY_IMPORT)
    below: set[str] = set()
    for floor in floors:
        assert all(MAY_IMPORT[room] <= below for room in floor)
        below |= set(floor)


def test_the_citation_is_that_of_this_version():
    """What CFF 1.2.0 asks for, and the papers of the methods."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cff.keys()
    assert cff["cff-version"] == "1.2.0"
    assert cff["version"] == re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert cff["license"] == "Apache-2.0"
    for paper in cff["references"]:
        assert {"type", "title", "authors"} <= paper.keys()
        assert all(author.keys() <= {"name", "family-names"} for author in paper["authors"])
        assert paper.get("url", paper.get("journal", "")).removeprefix("https://") in PAGES["data"]
        assert str(paper["year"]) in PAGES["data"]
    assert len(cff["references"]) == 5


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

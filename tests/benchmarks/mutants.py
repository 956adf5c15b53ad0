"""Do the tests notice a broken formula?  Each mutant changes one place of the package, in a copy of it.

A mutant is caught where its test files fail. A change of the tests after which one is no longer caught has weakened
them. Writes figures/data/mutants.json; run only where it is named (half an hour).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_teach.experiments.runs import machine

from .harness import Row, Settings

TITLE, ONCE, STORED = "Mutants: does a test fail where a formula is broken?", True, False
ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "figures" / "data" / "mutants.json"


class Mutant(NamedTuple):
    """`old` is replaced by `new` in a file of the package; tests, as room/file without "test_", should notice."""

    what: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # -- the layer
    Mutant("ΔW with the merged share subtracted", "lowrank", "(1 + self.merged_share) * left @ right",
           "(1 - self.merged_share) * left @ right", "core/lowrank"),
    Mutant("A starts within 1/√r", "lowrank", "* 2 - 1) / math.sqrt(k)", "* 2 - 1) / math.sqrt(r)", "core/lowrank"),
    Mutant("dropout in eval mode as well", "lowrank", "if self.dropout and self.training:\n            x =",
           "if self.dropout:\n            x =", "core/lowrank"),
    Mutant("a restored W is still said to hold the terms", "lowrank", "branch.in_base = False",
           "branch.in_base = True", "core/lowrank"),
    Mutant("a knot summed in W's own type", "lowrank", "left, right = branch.factors_in_base()\n        total.addmm_",
           "left, right = branch.factors_in_base()\n        total = total.to(self.W)\n        total.addmm_",
           "core/lowrank"),
    Mutant("gates sampled with the sign of log θ turned", "gates", "(torch.logit(u) + log_theta)",
           "(torch.logit(u) - log_theta)", "methods/salora"),
    Mutant("gates with noise in eval mode", "gates", '"sampled" and self.training', '"sampled"', "methods/salora"),
    Mutant("half the threshold of a learned rank", "gates", "1 / len(alpha),", "0.5 / len(alpha),",
           "methods/autolora"),
    Mutant("q, k and v of a fused layer in another order", "sites", "slice(i * width, (i + 1) * width)",
           "slice((2 - i) * width, (3 - i) * width)", "core/sites"),
    Mutant("up and down exchanged in GPT-2", "sites", '"up": "mlp.c_fc", "down": "mlp.c_proj"',
           '"up": "mlp.c_proj", "down": "mlp.c_fc"', "core/sites"),
    Mutant("a tied head is not refused", "sites", "require(owner in chosen,", "require(True,", "core/adaptable"),
    Mutant("the base is not frozen", "adapters", "model.requires_grad_(False)\n", "\n", "core/adapters"),
    Mutant("remove() keeps the trained head", "adapters", "copy_(start)", "detach_()", "core/adapters"),
    Mutant("nan is merged", "adapters", "refuse_non_finite(self)\n        self.rule.merge()", "self.rule.merge()",
           "core/adapters"),
    Mutant("a tied weight is not refused", "adaptable", "    if tied:", "    if False:", "core/sites"),
    Mutant("an expanded weight is not refused", "adaptable", "unique()) < t.numel()", "unique()) > t.numel()",
           "core/adaptable"),
    Mutant("the head stays wide after remove()", "precision", "parameter.data = parameter.data.to(dtype)", "pass",
           "core/precision"),
    # -- the methods
    Mutant("α in the place of α/r", "methods/base", "return self.low_rank(site, m.r, m.lora_alpha / m.r)",
           "return self.low_rank(site, m.r, m.lora_alpha)", "methods/delta_lora"),
    Mutant("α fixed where s should be", "methods/lora", "if m.fixed_alpha else", "if not m.fixed_alpha else",
           "methods/lora"),
    Mutant("moments kept at a knot", "methods/cola", "reset_moments(optimizer, (branch.lora_A, branch.lora_B))",
           "pass", "methods/cola"),
    Mutant("one link takes an epoch too many", "methods/cola", "(i < amount % self.chain)",
           "(i <= amount % self.chain)", "methods/cola"),
    Mutant("a knot forgets what W holds of the link", "methods/cola", "left = (1 + branch.merged_share) * left",
           "left = 1.0 * left", "methods/composition"),
    Mutant("W moves a step early", "methods/delta_lora", "clock.step <= self.K or", "clock.step < self.K or",
           "methods/delta_lora"),
    Mutant("a step's change without ΔB ΔA", "methods/delta_lora", "torch.cat([new_A, new_A - A], 0)",
           "torch.cat([A, new_A - A], 0)", "methods/delta_lora"),
    Mutant("W moves by λ and not by λ s", "methods/delta_lora", "scale = lam * branch.scaling", "scale = lam",
           "methods/delta_lora"),
    Mutant("λ descends", "methods/salora", "maximize=True", "maximize=False", "methods/salora"),
    Mutant("‖A Aᵀ + I‖²", "methods/salora", "M @ M.mT - torch.eye", "M @ M.mT + torch.eye", "methods/salora"),
    Mutant("gates not folded into B", "methods/salora", "branch.lora_B.mul_(branch.settled_gate())", "pass",
           "methods/salora"),
    Mutant("second-order part with the sign turned", "methods/autolora", "d - factor * (p - m)",
           "d + factor * (p - m)", "methods/autolora"),
    Mutant("the virtual step upwards", "methods/autolora", "w - eta * g", "w + eta * g", "methods/autolora"),
    Mutant("a cut branch scaled by α/r", "methods/dylora", "* (self.r / b.to(self.like))", "* self.like",
           "methods/dylora"),
    Mutant("Pfeiffer's adapter adds to the norm's output", "methods/baselines",
           "inputs[0] + module.bottleneck(output)", "output + module.bottleneck(output)", "methods/baselines"),
    Mutant("k of a fused layer decays under FT‡", "methods/baselines", "matrix_of(model, site).copy_(matrix_of",
           "(matrix_of", "methods/baselines"),
    Mutant("a composition's inner rule steps last", "methods/composition", "for rule in self.inside_out:\n"
           "            rule.after_step", "for rule in reversed(self.inside_out):\n            rule.after_step",
           "methods/composition"),
    # -- training
    Mutant("the rate falls a step too far", "training/batches", "(total - step + 1)", "(total - step)",
           "training/trainer"),
    Mutant("micro-batches weigh alike", "training/batches", "count / (sum(counts) or 1)", "1 / len(counts)",
           "training/trainer"),
    Mutant("the best is the highest loss", "training/trainer", "-value if name in", "value if name in",
           "training/trainer"),
    Mutant("gradients are not clipped", "training/trainer", "limit = self.config.max_grad_norm or math.inf",
           "limit = math.inf", "training/trainer"),
    Mutant("an evaluation moves the random state", "training/trainer",
           "torch.set_rng_state(state)\n        self.model", "self.model", "training/trainer"),
    Mutant("a changed checkpoint is taken up", "training/checkpoint", "if not whole:\n            raise ValueError(",
           "if False:\n            raise ValueError(", "training/resume"),
    Mutant("the rule's state is not taken up", "training/checkpoint", "trainer.rule.load_state_dict(", "dict(",
           "training/resume"),
    Mutant("all processes take the same rows", "training/distributed", "rows[self.rank::self.size]",
           "rows[::self.size]", "training/distributed"),
    Mutant("replicas at one scale", "training/replicas", "if len(scales) == 1:\n        return left",
           "if scales:\n        return left", "training/replicas"),
    Mutant("AdamW without its bias correction", "training/replicas", "(1 - beta1 ** t)", "(1 - beta1)",
           "training/batched_adamw"),
    # -- peft and transformers
    Mutant("α written without r", "integrations/peft_format", "alpha = branch.scaling * r", "alpha = branch.scaling",
           "integrations/peft_format"),
    Mutant("rsLoRA read as r", "integrations/peft_format", "alpha * math.sqrt(r)", "alpha * r",
           "integrations/peft_format"),
    Mutant("what is more than LoRA is read", "integrations/peft_format", "    if more:", "    if False:",
           "integrations/peft_format"),
    Mutant("rates of the step before", "integrations/hf_trainer", "self.loop._rates(self.last_epoch + 1)",
           "self.loop._rates(max(self.last_epoch, 1))", "integrations/hf_trainer"),
    Mutant("micro-batches weigh alike in transformers' loop", "integrations/hf_trainer", "self._shares.pop(0),",
           "(self._shares.pop(0) and 1.0),", "integrations/hf_trainer"),
    Mutant("float16 is not refused", "integrations/hf_trainer", "(args.fp16,", "(False,", "integrations/hf_trainer"),
    Mutant("AdaLoRA's update without its rank", "integrations/peft_methods",
           "layer.scaling[NAME] / (layer.ranknum[NAME] + 1e-5)", "layer.scaling[NAME]", "integrations/peft_methods"),
    Mutant("a second training opens the gate window again", "methods/salora",
           "self.over = self.closed_at is not None and", "self.over = False and", "integrations/trained_again"),
]


def bench(s: Settings) -> tuple[list[Row], dict[str, Any]]:
    """Every mutant beside what the record says of it; with --quick every sixth, and the record stays."""
    stored = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {"mutants": []}
    before = {one["mutant"]: one["caught"] for one in stored["mutants"]}
    found = [{"mutant": m.what, "file": f"{m.file}.py", "tests": m.tests, "caught before": before.get(m.what),
              **survey(m)} for m in MUTANTS[::6 if s.quick else 1]]
    if not s.quick:
        OUT.write_text(json.dumps({"mutants": found, "machine": machine()}, indent=1, ensure_ascii=False) + "\n",
                       encoding="utf-8")
    lost = [one["mutant"] for one in found if one["caught before"] and not one["caught"]]
    return [Row("caught", sum(one["caught"] for one in found), f"of {len(found)}"),
            Row("no longer caught", len(lost), "", aim=0, why="; ".join(lost))], {}


def survey(m: Mutant) -> dict[str, Any]:
    """Whether a mutant is caught, and after how many seconds."""
    tests = [f"tests/{room}/test_{name}.py" for room, name in (test.split("/") for test in m.tests.split())]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(ROOT, Path(folder) / "tree", symlinks=True, ignore=shutil.ignore_patterns(
            ".git", ".venv", "figures", "notebooks", "__pycache__", ".*_cache", "*.egg-info")))
        file = copy / "lowrank_teach" / f"{m.file}.py"
        file.write_text(mutated(m, file.read_text(encoding="utf-8")), encoding="utf-8")
        start = time.perf_counter()
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(words, cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True,
                              text=True)
    if done.returncode not in (0, 1):  # no test ran
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return {"caught": done.returncode == 1, "seconds": round(time.perf_counter() - start, 1)}


def mutated(m: Mutant, text: str) -> str:
    """The file's text with the fault in it.

    Raises:
        ValueError: the place is not there, or not the only one.
    """
    if text.count(m.old) != 1:
        raise ValueError(f"{m.what}: {m.old!r} stands {text.count(m.old)} times in {m.file}.py")
    return text.replace(m.old, m.new)

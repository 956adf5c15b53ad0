"""Whatever is done to adapters, in whatever order: what was learned is deployed as it was, and W can be given back.

LOWRANK_FUZZ sets the number of examples, for a long search.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
from helpers import Stop, bytes_of, collate, logits, make_batch, make_rows, same_tensors, shake, tiny
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

import lowrank_teach as lt
from lowrank_teach.integrations.peft_format import why_not
from lowrank_teach.training.checkpoint import load_checkpoint, save_checkpoint

BATCH = make_batch(5)
LIMIT = {torch.float32: 1e-4, torch.float64: 1e-9, torch.bfloat16: 0.1}  # of the largest logit
GATED = lt.SaLoRA(r=3, eta_c=1.0, t_start=0, t_end=1.0)
METHODS: dict[str, Any] = {
    "lora": lt.LoRA(r=2), "cola": lt.COLA(r=2, chain=3), "cola-stacked": lt.COLA(r=2, chain=2, merge_knots=False),
    "cola-step-down": lt.COLA(ranks=(3, 2)), "delta": lt.DeltaLoRA(r=2, K=1),
    "delta-lazy": lt.DeltaLoRA(r=2, K=1, form="lazy"), "delta-schedule": lt.DeltaLoRA(r=2, K=1, lam=1.0, lam_end=0.0),
    "salora": lt.SaLoRA(r=3, eta_c=1.0, t_start=0, t_end=6), "autolora": lt.AutoLoRA(r=2, retrain=False),
    "dylora": lt.DyLoRA(r=2), "adalora": lt.AdaLoRA(r=3, target_r=2, tinit=1, tfinal=2),
    "cola+salora": lt.compose(lt.COLA(r=3, chain=2), GATED),
    "cola+delta": lt.compose(lt.COLA(r=2, chain=2), lt.DeltaLoRA(r=2, K=0)),
    "delta+salora": lt.compose(lt.DeltaLoRA(r=3, K=1), GATED),
    "full": lt.FullFineTuning(), "head": lt.HeadOnly(),
}
STEPS = 8


class Life(RuleBasedStateMachine):
    """One model, and what its logits must be: `base` before `adapt`, `learned` from then on."""

    @initialize(method=st.sampled_from(sorted(METHODS)), kind=st.sampled_from(["bert", "gpt2"]),
                dtype=st.sampled_from([torch.float32, torch.float64]))
    def begin(self, method: str, kind: str, dtype: torch.dtype) -> None:
        kind = "bert" if method == "adalora" else kind  # which takes GPT-2's q, k and v together only
        self.kind, self.dtype, self.method = kind, dtype, METHODS[method]
        self.model = tiny(kind, dtype=dtype)
        self.pretrained = bytes_of(self.model)
        self.base = self.learned = logits(self.model, BATCH)
        self.adapters: lt.Adapters | None = None
        self.kept: list[tuple[dict[str, Tensor], dict[str, Any], Tensor]] = []
        self.folder = Path(tempfile.mkdtemp())

    def teardown(self) -> None:
        for path in sorted(self.folder.rglob("*"), reverse=True) if hasattr(self, "folder") else ():
            path.unlink() if path.is_file() else path.rmdir()

    def fresh(self) -> Any:
        """The pretrained model again, loaded anew."""
        model = tiny(self.kind, dtype=self.dtype)
        model.load_state_dict(self.pretrained)
        return model

    def close(self, found: Tensor, wanted: Tensor, limit: float | None = None) -> bool:
        gap = (found.double() - wanted.double()).abs().max()
        return bool(gap <= (limit or LIMIT[self.dtype]) * wanted.abs().max().clamp_min(1))

    @property
    def on(self) -> lt.Adapters:
        assert self.adapters is not None
        return self.adapters

    def is_live(self) -> bool:
        return self.adapters is not None and self.on.state == "adapted"

    def is_on(self) -> bool:
        return self.adapters is not None and self.on.state in ("adapted", "merged")

    # -- what is done

    @precondition(lambda self: not self.is_on())
    @rule(seed=st.integers(0, 3))
    def adapt(self, seed: int) -> None:
        self.pretrained, self.base = bytes_of(self.model), logits(self.model, BATCH)
        self.adapters = lt.adapt(self.model, self.method, seed=seed)
        self.kept, self.learned, self.trained = [], self.base, False

    @precondition(lambda self: self.is_live() and not any(b.merged_share for b in self.on.values()))
    @rule(seed=st.integers(0, 3))
    def move_by_hand(self, seed: int) -> None:
        """Not while W follows the product: that would have to follow this too."""
        shake(self.on, seed, 0.1)
        self.learned = logits(self.model, BATCH)

    @precondition(lambda self: self.is_live() and not self.trained and self.dtype != torch.bfloat16)
    @rule(steps=st.integers(1, STEPS))
    def train(self, steps: int) -> None:
        """A training that stops somewhere, or ends; its checkpoint holds what is there now."""
        path, self.trained = self.folder / "run.safetensors", True
        path.unlink(missing_ok=True)
        made = self.loop(self.on, path, steps)
        outcome = made.run()
        self.learned = logits(self.model, BATCH)
        save_checkpoint(path, made)
        other = self.loop(lt.adapt(self.fresh(), self.method, seed=5), path, 0)
        assert load_checkpoint(path, "") is not None
        other.prepare()
        other.unwrap()
        if not outcome.finished:  # what `finish` folds is folded again by the run that is taken up
            assert self.close(logits(other.adapters.model, BATCH), self.learned)

    def loop(self, adapters: lt.Adapters, path: Path, stop: int) -> lt.Trainer:
        config = lt.TrainConfig(steps=STEPS, batch_size=4, lr=1e-2)
        return lt.Trainer(adapters, make_rows(24), collate, config, seed=0, callbacks=[Stop(stop)], checkpoint=path,
                          cpu=True)

    @precondition(lambda self: self.is_live())
    @rule()
    def merge(self) -> None:
        self.on.merge()

    @precondition(lambda self: self.is_on() and self.on.state == "merged")
    @rule()
    def restore(self) -> None:
        self.on.restore()
        assert same_tensors({f"{path}.weight": owner.base.weight for path, owner in self.on.owners.items()},
                            {f"{path}.weight": self.pretrained[f"{path}.weight"] for path in self.on.owners})

    @precondition(lambda self: self.is_on())
    @rule()
    def read_a_state(self) -> None:
        tensors, values = self.on.state_dict()
        self.kept.append(({name: t.clone() for name, t in tensors.items()}, values, self.learned))

    @precondition(lambda self: self.is_on())
    @rule()
    def load_its_own_state(self) -> None:
        """The tensors in use, no copies."""
        self.on.load_state_dict(*self.on.state_dict())
        assert self.on.state == "adapted"

    @precondition(lambda self: self.is_on() and self.kept)
    @rule(data=st.data())
    def load_a_state(self, data: Any) -> None:
        tensors, values, self.learned = data.draw(st.sampled_from(self.kept))
        self.on.load_state_dict(tensors, values)
        assert self.on.state == "adapted"

    @precondition(lambda self: self.is_on())
    @rule(merged=st.booleans())
    def load_it_elsewhere(self, merged: bool) -> None:
        other = lt.adapt(self.fresh(), self.method, seed=9)
        if merged:
            other.merge()
        other.load_state_dict(*self.on.state_dict())
        assert self.close(logits(other.model, BATCH), self.learned)
        other.merge_and_unload()
        assert self.close(logits(other.model, BATCH), self.learned)

    @precondition(lambda self: self.is_on())
    @rule()
    def copy(self) -> None:
        other = copy.deepcopy(self.on)
        assert lt.adapters_of(other.model) is other
        assert self.close(logits(other.model, BATCH), self.learned)
        assert same_tensors(bytes_of(other.remove()), self.pretrained)

    @precondition(lambda self: self.is_on() and not why_not(self.on))
    @rule(compress=st.booleans())
    def export(self, compress: bool) -> None:
        """To stock peft, and back into adapters."""
        if not any(branch.delta().any() for branch in self.on.values()):
            return  # every site may be closed, which is refused
        lt.save_peft(self.on, self.folder / "peft", compress=compress)
        for load in (lambda: lt.load_peft(self.fresh(), self.folder / "peft").model,
                     lambda: peft.PeftModel.from_pretrained(self.fresh(), self.folder / "peft")):
            assert self.close(logits(load(), BATCH), self.learned)

    @precondition(lambda self: self.is_on() and self.on.state == "merged" and not self.on.extra_names)
    @rule()
    def save_pretrained(self) -> None:
        self.model.save_pretrained(self.folder / "plain")
        found = type(self.model).from_pretrained(self.folder / "plain", dtype=self.dtype).eval()
        assert self.close(logits(found, BATCH), self.learned)

    @precondition(lambda self: self.dtype == torch.float32)
    @rule(dtype=st.sampled_from([torch.float64, torch.bfloat16]))
    def to(self, dtype: torch.dtype) -> None:
        """Exactly wider, or shorter: then all is compared as bfloat16 rounds."""
        before, self.dtype = self.dtype, dtype
        self.model.to(dtype)
        self.pretrained = {name: t.to(dtype) if t.is_floating_point() else t for name, t in self.pretrained.items()}
        assert self.close(logits(self.model, BATCH), self.learned, max(LIMIT[before], LIMIT[dtype]))
        self.base, self.learned = logits(self.fresh(), BATCH), logits(self.model, BATCH)
        self.kept = []

    @precondition(lambda self: self.is_on())
    @rule()
    def remove(self) -> None:
        assert self.on.remove() is self.model
        assert same_tensors(bytes_of(self.model), self.pretrained)
        assert torch.equal(logits(self.model, BATCH), self.base)
        self.learned = self.base

    @precondition(lambda self: self.is_on())
    @rule()
    def merge_and_unload(self) -> None:
        assert self.on.merge_and_unload() is self.model
        assert bytes_of(self.model).keys() == self.pretrained.keys()

    # -- what is always true

    @invariant()
    def the_function_is_what_was_learned(self) -> None:
        if hasattr(self, "learned"):
            assert self.close(logits(self.model, BATCH), self.learned)
            assert not any(module.training for module in self.model.modules())

    @invariant()
    def state_weights_and_flags_agree(self) -> None:
        if not hasattr(self, "learned"):
            return
        if not self.is_on():
            assert all(p.requires_grad for p in self.model.parameters())
            assert "save_pretrained" not in vars(self.model)
            return
        assert lt.adapters_of(self.model) is self.adapters
        for path, owner in self.on.owners.items():
            assert owner.merged == (self.on.state == "merged")
            assert not owner.weight.requires_grad
            assert owner._pretrained is not None or same_tensors({"": owner.weight},
                                                                 {"": self.pretrained[f"{path}.weight"]})
        must, may = self.on.listed_names()
        trains = {name for name, p in self.model.named_parameters() if p.requires_grad}
        assert must <= trains <= must | may


EXAMPLES = int(os.environ.get("LOWRANK_FUZZ") or 0)
TestLife = Life.TestCase
TestLife.settings = settings(max_examples=EXAMPLES or 40, stateful_step_count=14, deadline=None,
                             derandomize=not EXAMPLES, database=None, print_blob=False,
                             phases=[Phase.generate, *([Phase.shrink] if EXAMPLES else [])],
                             suppress_health_check=list(HealthCheck))

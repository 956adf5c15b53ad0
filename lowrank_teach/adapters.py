"""Put a method on a model with `adapt`, which returns the `Adapters` to work with. Taught in 02.

    adapters = adapt(model, COLA(r=8, sites="qv"))
    adapters["3.q"].lora_A          # a LowRank, by layer and matrix
    adapters.plan()                 # a table of the adapted matrices and their parameters
    adapters.merge()                # W ← W + ΔW;   adapters.restore() restores W bit for bit
    adapters.merge_and_unload()     # a plain model with ΔW in W;   adapters.remove() gives one without ΔW
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .adaptable import mark, refuse_inference, refuse_unwritable, to_adapt, unmark, unwrapped
from .errors import DivergedError, Refusal, require, require_kind, require_seed
from .lowrank import Adapted, LowRank, is_quantized, numel
from .methods import Method, as_method
from .precision import WideHead, refuse_short, wide
from .sites import Site, head_names, select

REMEDY = "take an earlier checkpoint, or train again at a lower lr"


def adapt(model: nn.Module, method: Method | Sequence[Method | str], *, seed: int | None = None,
          head: Sequence[str] | None = None) -> Adapters:
    """Freeze a model and put a method's branches on it, in place. The model is unchanged if an error is raised.

    Args:
        model: a transformer of `sites.ARCHITECTURES`, or any module if the method names module paths. If
            `torch.compile` returned it, the model inside is adapted, and the compiled model runs with the branches.
        method: a configuration, such as `LoRA(r=8, sites="qv")`, or several that share the branches.
        seed: seed of A and of the method's own noise. None draws one from torch's generator; a trainer replaces
            it by its own seed if nothing has changed since (`trainer.start_from`).
        head: modules that train beside the branches. None takes the parameters that `load_backbone` found to be
            new, or, for other models, the usual names of a classifier head (`sites.HEADS`).

    Raises:
        ValueError: a site matches nothing (the nearest names are given), a rank is larger than min(d, k), a weight
            is tied or cannot be written, or the model is adapted already (`adapters_of`), wrapped in
            DistributedDataParallel, compiled in part, or not an nn.Module.
        RuntimeError: torch.inference_mode() is on, or the model was loaded in it.
    """
    model = to_adapt(model)
    method = as_method(method)
    seed = None if seed is None else require_seed(seed)
    sites = select(model, method.sites) if method.sites else []
    return Adapters(model, method, sites, seed, head_names(model, head))


class Adapters(Mapping[str, LowRank]):
    """The branches on a model by site name, and the rule that trains them. Made by `adapt`."""

    def __init__(self, model: nn.Module, method: Method, sites: list[Site], seed: int | None,
                 head: list[str]) -> None:
        refuse_inference(model)
        self.model, self.method, self.rule, self.head_names = model, method, method.rule(), head
        self.rule.adapters = self
        self.drawn_seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else None
        self.rule.generator.manual_seed(seed if self.drawn_seed is None else self.drawn_seed)  # type: ignore[arg-type]
        self.rule.check(sites)
        for site in sites:
            if f"{site.path}.weight" in head:
                raise ValueError(f"{site.path} is part of the head, which trains as it is; leave it out of sites")
        base = method.base_parameters(model)
        self._refuse_quantized(sites, base)
        refuse_unwritable(model, [*(f"{site.path}.weight" for site in sites), *head, *base])
        refuse_short(model, [name for name in base if name not in head], method)
        made = [(site, branch) for site in sites if (branch := self.rule.branch(site)) is not None]
        self.sites = {site.name: site for site, _ in made}
        head_start = {name: model.get_parameter(name).detach().clone() for name in [*head, *base]}
        self._wide_head = WideHead(model, head)
        # nothing is refused after this line, so the model is changed completely or not at all
        self._were_trainable = {name: p.requires_grad for name, p in model.named_parameters()}
        model.requires_grad_(False)
        self.owners = self._wrap(made)
        before = set(model.modules())
        self.extra_names = self.rule.attach(model, sites)
        for module in set(model.modules()) - before:  # new modules take the training mode of the model
            module.training = model.training
        for name in [*head, *base, *self.extra_names]:
            model.get_parameter(name).requires_grad_(True)
        if self.owners or self.extra_names:
            _replace_save(model, bool(self.extra_names))
        self.base_names, self._head_start = base, head_start
        self.state = "adapted"
        mark(model, self)

    def _refuse_quantized(self, sites: list[Site], base: list[str]) -> None:
        quantized = [site.name for site in sites if is_quantized(self.model.get_submodule(site.path))]
        quantized += [name for name in base if not self.model.get_parameter(name).is_floating_point()]
        if quantized and (base or self.method.writes_base):
            raise ValueError(
                f"{self.method.name} writes into W, which is quantized at {quantized[0]}, so nothing can be added "
                "to it: keep the update beside W (COLA with merge_knots=False, Delta-LoRA with form=\"lazy\"), or "
                "load the base in bfloat16")

    def _wrap(self, made: list[tuple[Site, LowRank]]) -> dict[str, Adapted]:
        by_path: dict[str, dict[str, tuple[LowRank, slice | None]]] = {}
        for site, branch in made:
            by_path.setdefault(site.path, {})[site.name] = branch, site.rows
        owners = {}
        for path, branches in by_path.items():
            layer = self.model.get_submodule(path)
            weight: Tensor = layer.weight  # type: ignore[assignment]
            owners[path] = Adapted(layer, branches).train(layer.training)
            owners[path].lora.to(device=weight.device, dtype=wide(weight.dtype))
            self.model.set_submodule(path, owners[path])
        return owners

    # -- the mapping from site names to branches

    def __getitem__(self, name: str) -> LowRank:
        if name not in self.sites:
            raise KeyError(f"{name!r} is not adapted; the sites are {', '.join(self.sites)}")
        return self.owner(name).branches[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __repr__(self) -> str:
        return f"<{len(self)} adapters: {self.method.name}, {self.state}>"

    def owner(self, name: str) -> Adapted:
        """Return the layer that carries a site's branch."""
        return self.owners[self.sites[name].path]

    @property
    def dtype(self) -> torch.dtype:
        """The type that W is stored in, or that a quantized W computes in."""
        weights = [owner.weight for owner in self.owners.values()]
        known = [w.dtype if w.is_floating_point() else torch.bfloat16 for w in weights[:1]]
        return known[0] if known else torch.float32

    # -- ranks and parameters

    def ranks(self) -> dict[str, int]:
        """Return the rank of each site, 0 where the method has pruned every direction."""
        return self.rule.site_ranks()

    def plan(self) -> Plan:
        """Return a table of the adapted sites: module, shape, rank, scaling, parameters."""
        head = sum(p.numel() for p in self.head_parameters())
        total = sum(map(numel, self.model.parameters()))
        rows = [(name, site.path, site.d, site.k, self[name].r, self[name].scaling,
                 self[name].lora_A.numel() + self[name].lora_B.numel()) for name, site in self.sites.items()]
        return Plan(rows, head, total, sum(p.numel() for p in self.extra_parameters()))

    def head_parameters(self) -> list[nn.Parameter]:
        return [self.model.get_parameter(name) for name in self.head_names]

    def base_parameters(self) -> list[nn.Parameter]:
        """Return the pretrained parameters that train too (full fine-tuning)."""
        head = set(self.head_names)
        return [self.model.get_parameter(name) for name in self.base_names if name not in head]

    def extra_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the modules that the rule itself put on the model."""
        return [self.model.get_parameter(name) for name in self.extra_names]

    def start_of(self, name: str) -> Tensor:
        """Return the value before `adapt` of a parameter of the head, or of a pretrained one that trains."""
        return self._head_start[name]

    def listed_names(self) -> tuple[set[str], set[str]]:
        """Return the names of the parameters that must train, and of those that may (of gates)."""
        must = {*self.head_names, *self.base_names, *self.extra_names}
        may: set[str] = set()
        for path, owner in self.owners.items():
            for name, _ in owner.lora.named_parameters(prefix=f"{path}.lora"):
                (must if name.endswith(("lora_A", "lora_B")) else may).add(name)
        return must, may

    # -- merge into W, restore W, take the branches off

    def merge(self) -> None:
        """Write W* = W + ΔW into W (float32 sum, one cast); the model then runs without branches.

        Raises:
            RuntimeError: the adapters are merged already, or removed.
            DivergedError: W* is not finite in W's type, or another trained parameter is not; nothing was written.
        """
        self.require_state("merge", "adapted")
        _refuse_non_finite(self)
        self.rule.merge()
        for owner in self.owners.values():
            owner.merge()
        self.state = "merged"

    def restore(self) -> None:
        """Restore the pretrained W bit for bit; the branches keep the whole update and can train on.

        Raises:
            RuntimeError: nothing was ever written into W.
        """
        self.require_state("restore", "adapted", "merged")
        written = [owner for owner in self.owners.values() if owner._pretrained is not None]
        if not written and self.state != "merged":
            raise RuntimeError("there is nothing to restore: W is the pretrained matrix; call merge() first")
        for owner in written:
            owner.restore()
        self.rule.restore()
        self.state = "adapted"

    def remove(self) -> nn.Module:
        """Take the branches off, so that the weights, the head and `requires_grad` are as before `adapt`."""
        self.require_state("remove", "adapted", "merged")
        for owner in self.owners.values():
            if owner._pretrained is not None:
                owner.restore()
        self.rule.restore()
        with torch.no_grad():
            for name, start in self._head_start.items():
                self.model.get_parameter(name).copy_(start)
        return self._unwrap("removed")

    def merge_and_unload(self) -> nn.Module:
        """Merge, take the branches off and return the plain model, ready for its `save_pretrained`.

        Raises:
            RuntimeError: the branches are off already.  DivergedError: as for `merge`.
        """
        self.require_state("merge_and_unload", "adapted", "merged")
        if self.state == "adapted":
            self.merge()
        else:
            _refuse_non_finite(self)  # W may have changed since the merge
        return self._unwrap("unloaded")

    def _unwrap(self, end: str) -> nn.Module:
        self.rule.detach(self.model)
        for path, owner in self.owners.items():
            self.model.set_submodule(path, owner.base)
        self._wide_head.narrow(self.model)
        _restore_save(self.model)
        unmark(self.model)
        for name, flag in self._were_trainable.items():
            self.model.get_parameter(name).requires_grad_(flag).grad = None
        self.state = end
        return self.model

    def require_state(self, action: str, *states: str) -> None:
        """Refuse an action if the adapters are in none of these states.

        Raises:
            RuntimeError: says what to call first.
        """
        if self.state not in states:
            hint = {"merged": "call restore() first"}.get(self.state, "call adapt() again")
            raise RuntimeError(f"cannot {action}: the adapters are {self.state}; {hint}")

    # -- the state that a resumed training needs

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return tensors by name (branches, head, and W if a method wrote into it) and each branch's plain values.

        Merged adapters return the state that `restore` would leave. W is a copy, since `merge` and `restore` write
        into it; the other tensors are not copied.

        Raises:
            RuntimeError: the branches are off already.
        """
        self.require_state("read a state", "adapted", "merged")
        return _read_state(self)

    def load_state_dict(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Load what `state_dict` returned. Ranks may have changed since; merged adapters are restored first.

        Nothing is changed if an error is raised.

        Raises:
            RuntimeError: the branches are off already, or torch.inference_mode() is on.
            ValueError: the state is that of other adapters.  DivergedError: the state is not finite.
        """
        self.require_state("load a state", "adapted", "merged")
        _write_state(self, tensors, values)


def require_adapters(given: Any) -> None:
    """Refuse an argument that is not `Adapters`, such as the adapted model.

    Raises:
        ValueError: says how to get the adapters.
    """
    require_kind("adapters", given, Adapters, "what adapt(model, method) gave back, or adapters_of(model) gives")


@dataclass(frozen=True)
class Plan:
    """The table of adapted sites that `adapters.plan()` returns; a notebook shows it as HTML.

    rows: (site, module, d, k, r, scaling, parameters).  head, total: parameters of the head and of the model.
    extra: parameters of the modules that the rule itself put on the model.
    """

    rows: list[tuple[str, str, int, int, int, float, int]]
    head: int
    total: int
    extra: int = 0

    TITLES = ("site", "module", "shape d × k", "r", "s", "parameters")

    def cells(self) -> list[tuple[str, ...]]:
        return [(site, path, f"{d} × {k}", str(r), f"{s:g}", f"{n:,}") for site, path, d, k, r, s, n in self.rows]

    def summary(self) -> str:
        """Return the last line: the number of matrices, and the share of the model's parameters that trains."""
        branch = sum(row[-1] for row in self.rows)
        modules = f", {self.extra:,} in modules of the method's own" if self.extra else ""
        share = (branch + self.extra + self.head) / max(self.total, 1)
        return (f"{len(self.rows)} matrices, {branch:,} parameters in branches{modules} and {self.head:,} in the "
                f"head, of {self.total:,} in all ({100 * share:.2f} %)")

    def __str__(self) -> str:
        table = [self.TITLES, *self.cells()]
        widths = [max(len(row[i]) for row in table) for i in range(len(self.TITLES))]
        lines = ["  ".join(cell.ljust(w) if i < 2 else cell.rjust(w)
                           for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in table]
        return "\n".join([*lines, self.summary()])

    def _repr_html_(self) -> str:
        def line(row: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

        body = "".join(line(row, "td") for row in self.cells())
        return f"<table>{line(self.TITLES, 'th')}{body}</table><p>{html.escape(self.summary())}</p>"


# ---- the state: what a checkpoint holds of the adapters ---------------------------------------------------------

def listed(adapters: Adapters) -> list[str]:
    """Return the names of the parameters that train beside the branches."""
    return list(dict.fromkeys([*adapters.head_names, *adapters.base_names, *adapters.extra_names]))


def _read_state(adapters: Adapters) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what `Adapters.state_dict` returns."""
    tensors = {f"parameter.{name}": adapters.model.get_parameter(name).detach() for name in listed(adapters)}
    values: dict[str, Any] = {}
    for name, branch in adapters.items():
        tensors |= {f"branch.{name}.{key}": value.detach() for key, value in branch.state_dict().items()}
        in_base = branch.in_base and adapters.state == "adapted"
        values[name] = {"scaling": branch.scaling, "merged_share": branch.merged_share, "in_base": in_base}
        if phase := getattr(branch.gate_module, "phase", None):
            values[name]["phase"] = phase
        if in_base:
            tensors[f"base.{name}"] = adapters.owner(name).slice_of(name).clone(memory_format=torch.contiguous_format)
    return tensors, values


@torch.no_grad()
def _write_state(adapters: Adapters, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Load what `_read_state` returned; everything is checked before anything is changed."""
    refuse_inference()
    _refuse_others(adapters, tensors, values)
    if bad := non_finite(tensors.items()):
        raise DivergedError(f"the state to load is not finite at {bad}, and nothing was changed: {REMEDY}")
    written = {name: tensors[f"base.{name}"] for name in adapters if values[name]["in_base"]}
    if adapters.state == "merged" or any(owner._pretrained is not None for owner in adapters.owners.values()):
        adapters.restore()
    for name in listed(adapters):
        adapters.model.get_parameter(name).copy_(tensors[f"parameter.{name}"])
    for name, branch in adapters.items():
        stored = {key.removeprefix(f"branch.{name}."): value for key, value in tensors.items()
                  if key.startswith(f"branch.{name}.")}
        update = stored.pop("accumulated_update", None)
        branch.accumulated_update = None if update is None else update.to(branch.lora_A).clone()
        for key, value in stored.items():
            inside, _, leaf = key.rpartition(".")
            own = getattr(branch.get_submodule(inside), leaf)
            own.data = value.to(own).clone()
        branch.scaling, branch.merged_share = values[name]["scaling"], values[name]["merged_share"]
        if "phase" in values[name]:
            vars(branch.gate_module)["phase"] = values[name]["phase"]
        if name in written:
            adapters.owner(name).keep_pretrained()
            adapters.owner(name).slice_of(name).copy_(written[name])
            branch.in_base = True


def _refuse_others(adapters: Adapters, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    def fixed(name: str, t: Tensor) -> torch.Size:  # all but the rank
        return t.shape[1:] if name.endswith("lora_A") else t.shape[:1] if name.endswith("lora_B") else t.shape

    own: dict[str, Tensor] = {f"parameter.{name}": adapters.model.get_parameter(name) for name in listed(adapters)}
    for name, branch in adapters.items():
        own |= {f"branch.{name}.lora_A": branch.lora_A, f"branch.{name}.lora_B": branch.lora_B}
    unlike = [name for name, p in own.items() if name not in tensors or fixed(name, tensors[name]) != fixed(name, p)]
    unlike += sorted(values.keys() ^ adapters.sites.keys())
    require(not unlike, f"this state is that of other adapters: it does not fit at {', '.join(unlike[:4])}")


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the names of the tensors that hold nan or infinity, joined for a sentence; "" if there are none."""
    bad = [name for name, t in tensors if not t.isfinite().all()]
    return ", ".join(bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")


def _refuse_non_finite(adapters: Adapters) -> None:
    """Refuse to deploy nan and infinity in W*, cast to W's type, or in another trained parameter.

    Raises:
        DivergedError: names the sites.
    """
    if bad := non_finite(_deployed(adapters)):
        raise DivergedError(f"what was learned is not finite at {bad}, so it was not merged: {REMEDY}")


@torch.no_grad()
def _deployed(adapters: Adapters) -> Iterator[tuple[str, Tensor]]:
    merged = adapters.state == "merged"
    for name, branch in adapters.items():
        W = adapters.owner(name).slice_of(name) if merged else adapters.owner(name).pretrained_of(name)
        yield name, W if merged else (W + branch.delta()).to(W.dtype)
    for name in listed(adapters):
        yield name, adapters.model.get_parameter(name)


# ---- save_pretrained of an adapted model ---------------------------------------------------------------------
# transformers knows no name of a branch: it would load such a checkpoint with new weights and only a warning. So
# `adapt` replaces the model's `save_pretrained`, which writes plain weights after `adapters.merge()` only.

class SaveError(Refusal, RuntimeError):
    """The model cannot be saved in its present state; the message says what to call instead."""


def _replace_save(model: nn.Module, attached: bool) -> None:
    """Replace the model's `save_pretrained`, if it has one, by a function below.

    attached: whether the rule itself put modules on the model.
    """
    if hasattr(model, "save_pretrained"):
        ours = _refuse_to_save if attached else save_pretrained
        vars(model)["save_pretrained"] = MethodType(ours, model)  # bound, so that a copy of the model has its own


def _restore_save(model: nn.Module) -> None:
    """Restore the model's own `save_pretrained`."""
    vars(model).pop("save_pretrained", None)


def save_pretrained(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Save a merged model with the arguments of its own `save_pretrained`.

    Each wrapper (`Adapted`, or of `torch.compile`) is replaced by the module inside it while the file is written.

    Raises:
        SaveError: the adapters are not merged, a trained value is not finite, or a state dict is given (it would
            have the names of the wrapped layers).
    """
    wrapped = {path: module for path, module in model.named_modules() if isinstance(module, Adapted)}
    live = [path for path, module in wrapped.items() if not module.merged]
    if live:
        raise SaveError(f"{len(live)} layers carry live branches ({live[0]} …), which a plain checkpoint cannot "
                        "hold: call adapters.merge() first, or lt.save_peft(adapters, folder) for the adapters alone")
    learned = [*((f"{path}.weight", module.weight) for path, module in wrapped.items()),
               *((name, p) for name, p in model.named_parameters() if p.requires_grad and ".lora." not in name)]
    if bad := non_finite(learned):
        raise SaveError(f"what was learned is not finite at {bad}, so nothing was written: {REMEDY}")
    if kwargs.get("state_dict") is not None:
        raise SaveError("a merged model is saved from its own weights: leave state_dict out, or take the model that "
                        "adapters.merge_and_unload() returns")
    parts = wrapped | {path: module for path, module in model.named_modules() if unwrapped(module) is not module}
    inward = sorted(parts, key=lambda path: path.count("."))
    try:
        for path in reversed(inward):
            model.set_submodule(path, parts[path].base if path in wrapped else unwrapped(parts[path]))
        return type(model).save_pretrained(model, *args, **kwargs)
    finally:
        for path in inward:
            model.set_submodule(path, parts[path])


def _refuse_to_save(model: Any, *args: Any, **kwargs: Any) -> None:
    """Raise SaveError: the model has modules that its class does not know."""
    raise SaveError("this model has modules that its class does not know, and a checkpoint with them would not load: "
                    "call adapters.merge_and_unload() first if the method changes W, as AdaLoRA does, else keep "
                    "adapters.state_dict(), which load_state_dict reads back")

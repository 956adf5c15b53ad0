"""Find the matrices of a transformer: W_q, W_k, W_v, W_o, W_up, W_down and the gate projection of each layer.

A table lists the architectures, and `select` takes `"qv"`, `"all"`, `"qkvo"` or names. A name that matches nothing
is refused with the nearest valid names. Taught in 02.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .adaptable import plain_name, refuse_adapted, refuse_layer, unwrapped
from .errors import MOST_LETTERS, require, sentence, shown
from .lowrank import Adapted, is_conv1d, is_quantized

LETTERS = ("q", "k", "v", "o", "gate", "up", "down")  # also the order in heatmaps


@dataclass(frozen=True)
class Site:
    """One matrix that can be adapted.

    name: "3.q"; "enc.3.q", "dec.3.q" or "cross.3.q" in an encoder-decoder; the module's path in other models.
    path: the module's path in the model.  rows: the slice of its output, None for all of it.
    d, k: output and input width of the matrix.
    """

    name: str
    path: str
    rows: slice | None
    d: int
    k: int

    @property
    def letter(self) -> str:
        return self.name.rsplit(".", 1)[-1]


def _bert(attention: str, q: str, k: str, v: str, o: str, up: str, down: str) -> dict[str, str]:
    return {"q": f"{attention}.{q}", "k": f"{attention}.{k}", "v": f"{attention}.{v}", "o": o,
            "up": up, "down": down}


_BERT = _bert("attention.self", "query", "key", "value", "attention.output.dense", "intermediate.dense",
              "output.dense")
_PROJ = {letter: f"self_attn.{letter}_proj" for letter in "qkv"}
_T5 = {letter: f"layer.0.SelfAttention.{letter}" for letter in "qkvo"}
_BART = {**_PROJ, "o": "self_attn.out_proj", "up": "fc1", "down": "fc2"}

# model_type -> {(stack, path of its layers): {letter: path inside a layer}}. The key "qkv" is one fused module.
# The name of the stack stands before the layer number if the model has several stacks.
ARCHITECTURES: dict[str, dict[tuple[str, str], dict[str, str]]] = {
    "bert": {("", "encoder.layer"): _BERT},
    "roberta": {("", "encoder.layer"): _BERT},
    "distilbert": {("", "transformer.layer"): _bert("attention", "q_lin", "k_lin", "v_lin", "attention.out_lin",
                                                    "ffn.lin1", "ffn.lin2")},
    "mpnet": {("", "encoder.layer"): _bert("attention.attn", "q", "k", "v", "attention.attn.o",
                                           "intermediate.dense", "output.dense")},
    "gpt2": {("", "h"): {"qkv": "attn.c_attn", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}},
    "opt": {("", "decoder.layers"): _BART},
    "llama": {("", "layers"): {**_PROJ, "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj",
                               "down": "mlp.down_proj"}},
    "t5": {("enc", "encoder.block"): {**_T5, "up": "layer.1.DenseReluDense.(?:wi|wi_1)",
                                      "gate": "layer.1.DenseReluDense.wi_0", "down": "layer.1.DenseReluDense.wo"},
           ("dec", "decoder.block"): {**_T5, "up": "layer.2.DenseReluDense.(?:wi|wi_1)",
                                      "gate": "layer.2.DenseReluDense.wi_0", "down": "layer.2.DenseReluDense.wo"},
           ("cross", "decoder.block"): {c: f"layer.1.EncDecAttention.{c}" for c in "qkvo"}},
    "bart": {("enc", "encoder.layers"): _BART, ("dec", "decoder.layers"): _BART,
             ("cross", "decoder.layers"): {**{c: f"encoder_attn.{c}_proj" for c in "qkv"},
                                           "o": "encoder_attn.out_proj"}},
}


def find_sites(model: nn.Module) -> list[Site]:
    """Return every matrix of a known architecture, adapted or not, in the order of the forward pass.

    Raises:
        ValueError: the model's `config.model_type` is not in `ARCHITECTURES`.
    """
    model = unwrapped(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in ARCHITECTURES:
        raise ValueError(f"architecture {kind!r} is not in the table ({', '.join(ARCHITECTURES)}); "
                         "name the modules to adapt instead, as in sites=(\"layers.0.proj\", …)")
    found: dict[tuple[int, int, int], Site] = {}
    for path, module in ((plain_name(path), module) for path, module in model.named_modules()):
        module = module.base if isinstance(module, Adapted) else module
        if not (isinstance(module, nn.Linear) or is_conv1d(module)):
            continue
        for order, ((stack, where), table) in enumerate(ARCHITECTURES[kind].items()):
            for letters, inside in table.items():
                match = re.search(rf"(?:^|\.){re.escape(where)}\.(\d+)\.{inside}$", path)
                if match:
                    for site in _split(path, module, stack, int(match[1]), letters):
                        found[(min(order, 1), int(match[1]), order * 10 + LETTERS.index(site.letter))] = site
    return [found[key] for key in sorted(found)]


def _split(path: str, module: nn.Module, stack: str, layer: int, letters: str) -> list[Site]:
    d, k = shape(module)
    names = list(letters) if letters == "qkv" else [letters]
    width = d // len(names)
    prefix = f"{stack}.{layer}" if stack else str(layer)
    return [Site(f"{prefix}.{name}", path, slice(i * width, (i + 1) * width) if len(names) > 1 else None, width, k)
            for i, name in enumerate(names)]


def shape(module: nn.Module) -> tuple[int, int]:
    """Return (d, k) of a Linear or Conv1D, quantized or not."""
    if is_quantized(module):
        return module.out_features, module.in_features  # type: ignore[return-value]
    rows, columns = module.weight.shape  # type: ignore[union-attr, misc]
    return (columns, rows) if is_conv1d(module) else (rows, columns)


def matrix_of(model: nn.Module, site: Site, weight: Tensor | None = None) -> Tensor:
    """Return a view of a site's matrix (d, k) in its layer's weight, or in another tensor of the same layout."""
    layer = model.get_submodule(site.path)
    stored: Tensor = layer.weight.data if weight is None else weight  # type: ignore[union-attr, assignment]
    return (stored.t() if is_conv1d(layer) else stored)[site.rows or slice(None)]


def select(model: nn.Module, sites: str | Sequence[str]) -> list[Site]:
    """Return the selected sites in the order of the forward pass.

    Args:
        model: a transformer of `ARCHITECTURES`, or any module if `sites` are module paths.
        sites: letters ("qv", "qkvo"), "all" (every matrix of a layer), or names: "3.q", "up", module paths.

    Raises:
        ValueError: a name matches nothing (the nearest names are given), the model is adapted already, or a layer
            cannot carry a branch: its weight is tied, computed from others, or used without calling the layer.
    """
    if any(isinstance(module, Adapted) for module in model.modules()):
        refuse_adapted(model)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    known = find_sites(model) if kind in ARCHITECTURES or isinstance(sites, str) else []
    wanted = _wanted(sites, known)
    chosen = {site.name: site for site in known if site.name in wanted or site.letter in wanted}
    paths = {site.path for site in known}
    missing = []
    for name in wanted:
        if any(name in (site.name, site.letter) for site in known):
            continue
        module = _linear_at(model, name)
        if module is None:
            missing.append(name)
        elif name in paths:
            chosen.update({site.name: site for site in known if site.path == name})
        else:
            chosen[name] = Site(name, name, None, *shape(module))
    if missing or not chosen:
        raise ValueError(sentence(_nothing_matches(missing, known, model)))
    for path in dict.fromkeys(site.path for site in chosen.values()):
        refuse_layer(model, path)
    order = {site.name: i for i, site in enumerate(known)}
    return sorted(chosen.values(), key=lambda site: order.get(site.name, len(order)))


def _wanted(sites: str | Sequence[str], known: list[Site]) -> list[str]:
    if not isinstance(sites, str):
        return list(sites)
    if sites == "all":
        return [letter for letter in LETTERS if any(site.letter == letter for site in known)]
    return list(sites) if sites and set(sites) <= set("qkvo") else [sites]


def _linear_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        module = model.get_submodule(path) if path else None
    except AttributeError:
        return None
    return module if isinstance(module, nn.Linear) or (module is not None and is_conv1d(module)) else None


def _nothing_matches(missing: list[str], known: list[Site], model: nn.Module) -> str:
    linear = [path for path, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)]
    names = [*{site.letter: None for site in known}, *(site.name for site in known), *linear]
    room = MOST_LETTERS // 3 // max(1, min(2, len(missing)))  # characters for the nearest names
    hints = [f"{name[:room]!r} matches nothing" + (f" (did you mean {_whole(near, room)}?)" if near else "")
             for name in missing[:2] for near in [difflib.get_close_matches(name, names, 3, 0.5)]]
    letters = ", ".join({site.letter: None for site in known})
    message = "; ".join(hints) or "no site was named"
    if known:
        return (f"{message}. Choose among the letters {letters}, \"all\", a site such as {known[0].name!r}, or a "
                "module path.")
    message += ". This model's linear layers are: "
    return message + _whole(linear, MOST_LETTERS - len(message))


def _whole(names: list[str], room: int) -> str:
    """Join the first name and as many more whole names as fit into `room` characters."""
    shown_names = names[:1]
    for name in names[1:]:
        if len(", ".join([*shown_names, name, "…"])) > room:
            return ", ".join([*shown_names, "…"])
        shown_names.append(name)
    return ", ".join(shown_names)


# ---- the head of a model -------------------------------------------------------------------------------------
# A task adds a head to the pretrained model. The head trains with every method.
HEADS = ("classifier", "pre_classifier", "score", "classification_head", "qa_outputs")


def head_names(model: nn.Module, head: Sequence[str] | None = None) -> list[str]:
    """Return the names of the head's parameters, which train beside the branches.

    head: names of modules or parameters; None takes the parameters that `load_backbone` found to be new, or, for
        other models, the modules in `HEADS`.

    Raises:
        ValueError: a name matches no parameter, or one that is tied to a parameter outside the head.
    """
    names = [name for name, _ in model.named_parameters()]
    if head is None:
        new = getattr(model, "lowrank_new_parameters", None)
        return list(new) if new is not None else [n for n in names if any(part in HEADS for part in n.split("."))]
    require(isinstance(head, list | tuple) and all(isinstance(part, str) for part in head),
            f"head = {shown(head)} must be a list of modules that train beside the branches")
    chosen = [n for n in names if any(_within(n, part) for part in head)]
    for part in head:
        _refuse_tied(model, part, chosen)
    return chosen


def _within(name: str, part: str) -> bool:
    return name == part or name.startswith(part + ".")


def _refuse_tied(model: nn.Module, part: str, chosen: list[str]) -> None:
    """Refuse a part of the head that has no parameters, or shares one with a module outside the head."""
    first = {id(p): name for name, p in model.named_parameters()}
    owners = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False) if _within(name, part)}
    known = dict.fromkeys(name.partition(".")[0] for name in first.values())
    require(bool(owners), f"head {part!r} names no module with parameters; name one of {', '.join(known)}, or a part "
                          "of one")
    own = [owner for owner in owners.values() if owner in chosen]
    for name, owner in owners.items():
        where = f"{owner} outside of it" if own else f"{owner}"
        beside = f"{owner!r} too" if own else repr(owner.rpartition(".")[0] or owner)
        holds = f"holds {name}, which" if own else "has no weight of its own: it"
        require(owner in chosen, f"head {part!r} {holds} is tied to {where}, so the two train together or not at "
                                 f"all; name {beside} to train both, or untie them first")

"""Where each architecture keeps its matrices, how they are selected, and what is refused."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import FAMILIES, bytes_of, same_tensors, tiny
from torch import nn

from lowrank_teach.adapters import adapt
from lowrank_teach.methods import LoRA
from lowrank_teach.sites import LETTERS, find_sites, select, shape

BERT = {"q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "o": "attention.output.dense", "up": "intermediate.dense", "down": "output.dense"}
BART = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj",
        "up": "fc1", "down": "fc2"}
T5 = {c: f"layer.0.SelfAttention.{c}" for c in "qkvo"}
CROSS = {c: f"layer.1.EncDecAttention.{c}" for c in "qkvo"}

# family -> {stack: (path of layer 0, {letter: path inside it})}, written out by hand from the models' own code
WHERE = {
    "bert": {"": ("bert.encoder.layer.", BERT)},
    "roberta": {"": ("roberta.encoder.layer.", BERT)},
    "distilbert": {"": ("distilbert.transformer.layer.", {
        "q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin", "o": "attention.out_lin",
        "up": "ffn.lin1", "down": "ffn.lin2"})},
    "mpnet": {"": ("mpnet.encoder.layer.", {
        "q": "attention.attn.q", "k": "attention.attn.k", "v": "attention.attn.v", "o": "attention.attn.o",
        "up": "intermediate.dense", "down": "output.dense"})},
    "gpt2": {"": ("transformer.h.", {"q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn",
                                     "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"})},
    "opt": {"": ("model.decoder.layers.", BART)},
    "llama": {"": ("model.layers.", {
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"})},
    "t5": {"enc": ("transformer.encoder.block.", {**T5, "up": "layer.1.DenseReluDense.wi",
                                                  "down": "layer.1.DenseReluDense.wo"}),
           "dec": ("transformer.decoder.block.", {**T5, "up": "layer.2.DenseReluDense.wi",
                                                  "down": "layer.2.DenseReluDense.wo"}),
           "cross": ("transformer.decoder.block.", CROSS)},
    "bart": {"enc": ("model.encoder.layers.", BART), "dec": ("model.decoder.layers.", BART),
             "cross": ("model.decoder.layers.", {
                 "q": "encoder_attn.q_proj", "k": "encoder_attn.k_proj", "v": "encoder_attn.v_proj",
                 "o": "encoder_attn.out_proj"})},
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_matrix_of_every_layer_is_found_and_nothing_else(kind):
    """Names, module paths and shapes are those of the model's own code; embeddings and heads are no sites."""
    model = tiny(kind)
    expected = {f"{stack}.{i}.{letter}".lstrip("."): f"{where}{i}.{inside}"
                for stack, (where, table) in WHERE[kind].items() for i in range(2)
                for letter, inside in table.items()}
    found = find_sites(model)
    assert {site.name: site.path for site in found} == expected
    for site in found:
        d, k = shape(model.get_submodule(site.path))
        assert (site.k, site.d) == (k, d // 3 if site.rows else d)
    assert select(model, "all") == found


@pytest.mark.parametrize(("kind", "changes", "says"), [
    ("gpt2", {}, {"0.q": ("h.0.attn.c_attn", slice(0, 16), 16, 16), "0.k": ("h.0.attn.c_attn", slice(16, 32), 16, 16),
                  "0.v": ("h.0.attn.c_attn", slice(32, 48), 16, 16)}),
    ("llama", {}, {"0.q": ("q_proj", None, 16, 16), "0.k": ("k_proj", None, 8, 16), "0.v": ("v_proj", None, 8, 16),
                   "0.gate": ("gate_proj", None, 32, 16), "0.down": ("down_proj", None, 16, 32)}),
    ("t5", {"feed_forward_proj": "gated-gelu"}, {
        "enc.0.gate": ("wi_0", None, 32, 16), "enc.0.up": ("wi_1", None, 32, 16),
        "dec.1.gate": ("decoder.block.1.layer.2.DenseReluDense.wi_0", None, 32, 16)})])
def test_what_is_particular_about_a_family(kind, changes, says):
    """Thirds of a fused layer, left to right; one key head for two query heads; T5 v1.1's gate apart from wi_1."""
    found = {site.name: site for site in find_sites(tiny(kind, **changes))}
    for name, (path, rows, d, k) in says.items():
        assert found[name].path.endswith(path)
        assert (found[name].rows, found[name].d, found[name].k) == (rows, d, k)


@pytest.mark.parametrize("kind", FAMILIES)
def test_sites_come_in_the_order_of_the_forward_pass(kind):
    """Encoder before decoder, layer before layer, and in a layer attention before what follows it."""
    names = [site.name for site in find_sites(tiny(kind))]
    calls: list[str] = []
    model = tiny(kind)
    by_path = {site.path: site.name.rpartition(".")[0] for site in find_sites(model)}
    for path in by_path:
        model.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: calls.append(by_path[path]))
    ids = torch.tensor([[5, 6, 7, 2]])
    model(input_ids=ids)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    # a decoder layer's own and cross attention take turns inside it; the order of the layers is the model's
    assert [name.replace("cross", "dec") for name in layers] == \
        [name.replace("cross", "dec") for name in dict.fromkeys(c for c in calls if c in layers)]
    inside = [LETTERS.index(name.rpartition(".")[2]) for name in names if name.startswith(layers[0] + ".")]
    assert inside == sorted(inside)


@pytest.mark.parametrize(("sites", "letters"), [
    ("qv", "qv"), ("qkvo", "qkvo"), ("o", "o"), (("q",), "q"), (("v", "q"), "qv")])
@pytest.mark.parametrize("kind", FAMILIES)
def test_letters_select_these_matrices_in_every_layer(kind, sites, letters):
    """A string of letters, or a tuple of them, names the same matrix of each layer and stack."""
    model = tiny(kind)
    assert [s.name for s in select(model, sites)] == [s.name for s in find_sites(model) if s.letter in letters]


def test_names_and_paths_select_one_site():
    """ "0.q", "up" and a module's path can be mixed; the order is that of the forward pass."""
    model = tiny()
    chosen = select(model, ("bert.pooler.dense", "1.down", "0.q", "bert.encoder.layer.0.attention.self.value"))
    assert [site.name for site in chosen] == ["0.q", "0.v", "1.down", "bert.pooler.dense"]
    assert [site.name for site in select(model, "up")] == ["0.up", "1.up"]
    assert [site.name for site in select(model, "1.v")] == ["1.v"]
    assert [site.name for site in select(tiny("t5"), ("cross.0.q", "dec.1.v"))] == ["cross.0.q", "dec.1.v"]
    assert [site.name for site in select(tiny("gpt2"), ("transformer.h.0.attn.c_attn",))] == ["0.q", "0.k", "0.v"]


@pytest.mark.parametrize(("sites", "names"), [
    (("querry",), ["querry"]), (("0.q", "7.q"), ["7.q", "0.q"]), (("q", "gate"), ["gate"]),
    (("bert.encoder.layer.0.attention.self.qery",), ["bert.encoder.layer.0.attention.self.query"]),
    ((), ["no site was named"]), ("qz", ["qz"]), (("bert.embeddings.word_embeddings",), ["matches nothing"]),
    (("bert.encoder.layer.1.intermediate.dens",), ["did you mean ", "bert.encoder.layer.1.intermediate.dense"])])
def test_what_matches_nothing_is_refused_with_near_misses(sites, names):
    """One name without a match is enough, and the model stays as it was."""
    model = tiny()
    before, modules = bytes_of(model), [type(m) for m in model.modules()]
    method = LoRA(sites=sites) if sites else None
    with pytest.raises(ValueError, match="all") as refusal:
        adapt(model, method) if method else select(model, sites)
    for name in names:
        assert name in str(refusal.value)
    assert same_tensors(bytes_of(model), before)
    assert [type(m) for m in model.modules()] == modules
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("missing", [("encoder.layers.0.self_attn",), ("encoder.layers.0.self_attn", "encoder.layer"),
                                     ("nothing",)])
def test_a_list_of_layers_is_shortened_by_whole_names(missing):
    model = nn.ModuleDict({"encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 6)})
    paths = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    with pytest.raises(ValueError, match=r"linear layers are: .*, …$") as refusal:
        select(model, missing)
    assert len(str(refusal.value)) <= 300
    assert set(re.findall(r"[\w.]*\d[\w.]*", str(refusal.value).replace("…", ""))) <= paths | set(missing)


@pytest.mark.parametrize(("kind", "method", "says"), [
    ("llama", LoRA(r=12), r"rank 12 is larger than min\(d, k\) = 8 at .*0\.v"),  # v is 8 × 16, and q takes it
    ("gpt2", LoRA(r=2, sites=("lm_head",)), r"lm_head is tied to transformer\.wte\.weight"),
    (nn.Linear(4, 4), LoRA(r=2, sites=("0",)), "tied")])  # one module in two places
def test_a_site_that_does_not_fit_or_is_tied_is_refused_by_its_name(kind, method, says):
    """The model stays as it was."""
    model = nn.Sequential(kind, nn.ReLU(), kind) if isinstance(kind, nn.Module) else tiny(kind, head="causal")
    before = bytes_of(model)
    with pytest.raises(ValueError, match=says):
        adapt(model, method)
    assert same_tensors(bytes_of(model), before)
    assert all(p.requires_grad for p in model.parameters())
    if kind == "gpt2":
        assert [site.name for site in select(model, "qv")] == ["0.q", "0.v", "1.q", "1.v"]


def test_an_unknown_architecture_works_by_module_paths():
    """Letters are refused with the table's names; paths are taken."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    with pytest.raises(ValueError, match=r"not in the table .*bert.*name the modules"):
        select(model, "qv")
    with pytest.raises(ValueError, match="linear layers are: 0, 2"):
        select(model, ("1",))
    sites = select(model, ("2", "0"))
    assert {site.name: (site.d, site.k) for site in sites} == {"0": (6, 4), "2": (3, 6)}
    x = torch.randn(2, 4)
    before = model(x)
    adapters = adapt(model, LoRA(r=2, sites=("0", "2")), seed=0)
    assert torch.equal(model(x), before)
    assert list(adapters) == ["0", "2"]

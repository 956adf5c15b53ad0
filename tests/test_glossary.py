"""The glossary cannot lie: every code name and shape is looked up in live objects, every peft name in peft."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import tiny
from torch import nn

from lowrank_teach import adapt, glossary
from lowrank_teach.glossary import SYMBOLS
from lowrank_teach.methods import LoRA

R, ALPHA = 3, 6.0


@pytest.fixture(scope="module")
def live():
    """Objects by the names that the glossary's expressions stand on, and the dimensions; d and k differ."""
    model = tiny()
    method = LoRA(r=R, lora_alpha=ALPHA, sites=("0.up",))
    adapters = adapt(model, method, seed=0)
    branch, site = adapters["0.up"], adapters.sites["0.up"]
    x = torch.randn(2, 5, site.k)
    return ({"method": method, "adapters": adapters, "layer": adapters.owner("0.up"), "branch": branch, "x": x},
            {"d": site.d, "k": site.k, "r": R, "*": (2, 5)})


def dimensions(shape: str, sizes: dict) -> tuple[int, ...]:
    parts = [sizes[part] for part in re.findall(r"\*|\w+", shape)]
    return tuple(n for part in parts for n in (part if isinstance(part, tuple) else (part,)))


def test_the_test_objects_can_tell_d_from_k(live):
    assert live[1]["d"] != live[1]["k"]
    assert set(live[0]) == set(glossary.OBJECTS)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_code_name_and_shape_are_live(symbol, live):
    objects, sizes = live
    row = SYMBOLS[symbol]
    value = eval(row.code, {}, dict(objects))
    if row.shape:
        assert tuple(value.shape) == dimensions(row.shape, sizes)
    else:
        assert isinstance(value, int | float) or callable(value)


def test_values_are_what_the_words_say(live):
    objects, _ = live
    get = {s: eval(row.code, {}, dict(objects)) for s, row in SYMBOLS.items()}
    assert (get["r"], get["α"], get["s"]) == (R, ALPHA, ALPHA / R)
    assert bool((get["g"] == 1).all())
    assert not get["B"].any()
    assert torch.equal(get["ΔW"], torch.zeros_like(get["W"]))


@pytest.mark.parametrize("symbol", [s for s, row in SYMBOLS.items() if row.peft])
def test_peft_names_are_live(symbol, live):
    peft = pytest.importorskip("peft")
    _, sizes = live
    model = nn.Sequential(nn.Linear(sizes["k"], sizes["d"]))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["0"]))
    layer = wrapped.base_model.model[0]
    row = SYMBOLS[symbol]
    value = eval(row.peft, {}, {"layer": layer, "x": torch.randn(2, 5, sizes["k"])})
    if row.shape:
        assert tuple(value.shape) == dimensions(row.shape, sizes)
    elif symbol in ("r", "α", "s"):
        assert value == {"r": R, "α": ALPHA, "s": ALPHA / R}[symbol]
    else:
        assert callable(value)


def test_a_table_has_the_rows_asked_for_in_their_order():
    table = glossary.table(["B", "A"], papers=["LoRA", "Delta-LoRA"])
    assert list(table.index) == ["B", "A"]
    assert list(table["in Delta-LoRA"]) == ["A (its A and B are swapped)", "B (its A and B are swapped)"]
    assert "branch.lora_B" in table.to_html()
    assert len(glossary.table()) == len(SYMBOLS)
    with pytest.raises(KeyError, match="no symbol 'Z'"):
        glossary.table(["Z"])

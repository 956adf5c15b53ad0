"""The glossary cannot lie: every code name and shape is looked up in live objects, every peft name in peft."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from live_objects import PARTS
from live_objects.lora import ALPHA, R
from torch import nn

from lowrank_teach.course import glossary
from lowrank_teach.course.glossary import SYMBOLS


@pytest.fixture(scope="module")
def live():
    """For each paper: the objects that its expressions stand on, and the dimensions."""
    return {paper: part.live() for paper, part in PARTS.items()}


def paper_of(symbol: str) -> str:
    return next(paper for paper, part in glossary.PARTS.items() if symbol in part[0])


def dimensions(shape: str, sizes: dict) -> tuple[int, ...]:
    parts = [sizes[part] for part in re.findall(r"\*|\w+", shape)]
    return tuple(n for part in parts for n in (part if isinstance(part, tuple) else (part,)))


def test_every_paper_s_objects_are_named_and_can_tell_its_dimensions_apart(live):
    assert set(PARTS) == set(glossary.PARTS)
    for paper, (objects, sizes) in live.items():
        assert set(objects) >= set(glossary.PARTS[paper][1])
        plain = [size for name, size in sizes.items() if name != "*"]
        assert len(set(plain)) == len(plain)


def test_no_symbol_stands_in_two_papers():
    assert len(SYMBOLS) == sum(len(part[0]) for part in glossary.PARTS.values())


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_code_name_and_shape_are_live(symbol, live):
    objects, sizes = live[paper_of(symbol)]
    row = SYMBOLS[symbol]
    value = eval(row.code, {}, dict(objects))
    if row.shape:
        assert tuple(value.shape) == dimensions(row.shape, sizes)
    else:
        assert isinstance(value, int | float) or callable(value)


def test_values_are_what_the_words_say(live):
    objects, _ = live["LoRA"]
    get = {s: eval(row.code, {}, dict(objects)) for s, row in glossary.PARTS["LoRA"][0].items()}
    assert (get["r"], get["α"], get["s"]) == (R, ALPHA, ALPHA / R)
    assert bool((get["g"] == 1).all())
    assert not get["B"].any()
    assert torch.equal(get["ΔW"], torch.zeros_like(get["W"]))


@pytest.mark.parametrize("symbol", [s for s, row in SYMBOLS.items() if row.peft])
def test_peft_names_are_live(symbol, live):
    peft = pytest.importorskip("peft")
    _, sizes = live[paper_of(symbol)]
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


def test_the_page_is_made_from_the_rows():
    """The committed page equals the made one; `make glossary` writes it."""
    path = Path(__file__).resolve().parents[2] / "notebooks" / "GLOSSARY.md"
    made = glossary.page()
    assert path.read_text(encoding="utf-8") == made, "run `make glossary`"
    rows = [line for line in made.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) == len(SYMBOLS) + len(glossary.PARTS) + len(glossary.CLASHES) + 1      # one head each
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in rows)


def test_sections_stand_in_the_order_of_the_course_and_clashes_are_clashes():
    titles = re.findall(r"^## (\d\d) ", glossary.page(), re.M)
    assert titles == sorted(titles)
    assert list(glossary.TITLES) == list(glossary.PARTS)
    for letter, meanings in glossary.CLASHES.items():
        assert set(meanings) <= set(glossary.PARTS) - {"SVD"}
        assert len(set(meanings.values())) > 1, letter

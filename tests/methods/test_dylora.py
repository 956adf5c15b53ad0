"""DyLoRA: ranks drawn before each step, nested, and usable at every rank afterwards."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import (
    Stop,
    Watch,
    bytes_of,
    collate,
    logits,
    make_batch,
    make_rows,
    same_tensors,
    shake,
    tiny,
    train,
    trainer,
)

from lowrank_teach.adapters import adapt
from lowrank_teach.methods import DyLoRA, LoRA

F64 = torch.float64


def test_the_probabilities():
    """Uniform, or geometric and cut off at r: by hand for p = 1/2 and three ranks, 4 : 2 : 1."""
    assert DyLoRA(r=5, r_min=2).probabilities().tolist() == [0.25] * 4
    geometric = DyLoRA(r=3, distribution="geometric", p=0.5).probabilities()
    assert geometric.tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])


@pytest.mark.parametrize("b", [1, 3, 4])
def test_the_scale_is_alpha_over_b(b):
    """Cut to b, the branch is (α / b) B[:, :b] A[:b]; the authors' √(r/b) on each factor times α/r is the same."""
    adapters = adapt(tiny(dtype=F64), DyLoRA(r=4, lora_alpha=6.0), seed=0)
    shake(adapters)
    adapters.rule.truncate(b)
    branch = adapters["0.q"]
    by_hand = 6.0 / b * branch.lora_B[:, :b] @ branch.lora_A[:b]
    torch.testing.assert_close(branch.delta(), by_hand.detach(), rtol=0, atol=1e-12)
    theirs = (branch.lora_B[:, :b] * (4 / b) ** 0.5) @ (branch.lora_A[:b] * (4 / b) ** 0.5) * 6.0 / 4
    torch.testing.assert_close(branch.delta(), theirs.detach(), rtol=0, atol=1e-12)
    x = torch.randn(5, 16, dtype=F64)
    torch.testing.assert_close(branch(x), x @ by_hand.t(), rtol=0, atol=1e-12)
    assert set(adapters.ranks().values()) == {b}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("b", [1, 2, 4])
def test_merged_at_a_rank_it_is_the_same_function(kind, b):
    model, batch = tiny(kind, dtype=F64), make_batch()
    adapters, _ = train(DyLoRA(r=4), model)
    adapters.rule.finish()
    adapters.rule.truncate(b)
    before = logits(model, batch)
    model.train()  # the mode changes nothing once the ranks are drawn no more
    adapters.merge()
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-11)
    adapters.restore()
    torch.testing.assert_close(logits(model, batch), before, rtol=0, atol=1e-11)


def test_cutting_is_undone_and_ranks_that_were_not_drawn_are_refused():
    model, batch = tiny(), make_batch()
    adapters = adapt(model, DyLoRA(r=4, r_min=2), seed=0)
    shake(adapters)
    whole = logits(model, batch)
    adapters.rule.truncate(2)
    assert not torch.equal(logits(model, batch), whole)
    adapters.rule.truncate(4)
    assert torch.equal(logits(model, batch), whole)
    for b in (1, 5):
        with pytest.raises(ValueError, match=r"never drawn in training; choose one of 2 \.\. 4"):
            adapters.rule.truncate(b)


def moved(frozen: bool, **changes) -> list[tuple[int, set[int], set[int]]]:
    """Of each step: b, the rows of A that moved, the columns of B that moved (at all sites together)."""
    found = []
    made = trainer(DyLoRA(r=4, frozen=frozen, **changes), tiny(dtype=F64), steps=24, weight_decay=0.1)
    branches = made.adapters.values()
    last = [(b.lora_A.detach().clone(), b.lora_B.detach().clone()) for b in branches]

    def look(step: int, values: dict) -> None:
        rows, columns = set(), set()
        for i, branch in enumerate(branches):
            A, B = branch.lora_A.detach(), branch.lora_B.detach()
            rows |= set((last[i][0] != A).any(1).nonzero().flatten().tolist())
            columns |= set((last[i][1] != B).any(0).nonzero().flatten().tolist())
            last[i] = A.clone(), B.clone()
        found.append((made.rule.b, rows, columns))

    made.callbacks = [Watch(look)]
    made.run()
    return found


def test_frozen_moves_one_direction_a_step():
    """Row b of A and column b of B, whatever momentum and weight decay would do to the others."""
    steps = moved(True)
    assert len({b for b, _, _ in steps}) == 4
    for i, (b, rows, columns) in enumerate(steps):
        assert columns == {b - 1}, i
        assert rows == {b - 1}, i  # weight decay moves A even where B is still zero


def test_a_direction_that_is_closed_gets_no_gradient():
    """Without `frozen` the first step trains the first b alone; of frozen ones only b has a gradient."""
    for frozen in (False, True):
        made = trainer(DyLoRA(r=4, r_min=3, frozen=frozen), tiny(dtype=F64), callbacks=[Stop(1)])
        shake(made.adapters)
        made.run()
        b = made.rule.b
        wanted = {b - 1} if frozen else set(range(b))
        for branch in made.adapters.values():
            assert set(branch.lora_A.grad.any(1).nonzero().flatten().tolist()) == wanted
            assert set(branch.lora_B.grad.any(0).nonzero().flatten().tolist()) == wanted


def test_the_frozen_gradient_is_the_whole_ones_part():
    """Freezing changes what moves, not what the loss is: row b of the gradient is that of the unfrozen step."""
    grads = []
    for frozen in (False, True):
        made = trainer(DyLoRA(r=4, r_min=3, frozen=frozen), tiny(dtype=F64), callbacks=[Stop(1)],
                       max_grad_norm=0.0)
        shake(made.adapters)
        made.run()
        grads.append((made.rule.b, [branch.lora_A.grad[made.rule.b - 1] for branch in made.adapters.values()]))
    assert grads[0][0] == grads[1][0]
    for whole, part in zip(grads[0][1], grads[1][1], strict=True):
        assert whole.abs().max() > 0
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-14)


def test_what_is_drawn_is_drawn_for_all_sites_and_recorded():
    adapters, outcome = train(DyLoRA(r=4, r_min=2), steps=60)
    drawn = [value for _, _, name, value in outcome.history if name == "drawn_rank"]
    counts = Counter(drawn)
    assert set(counts) == {2.0, 3.0, 4.0}
    assert min(counts.values()) > 8  # of 60 draws at 1/3 each
    assert outcome.history[0][1] == ""
    assert {int(gate.drawn) for gate in adapters.rule.gates().values()} == {0}  # finished


def test_draws_come_from_the_rules_own_generator():
    """What the rest of the program draws changes nothing."""
    runs = []
    for noise in (0, 3):
        torch.rand(noise)
        adapters, outcome = train(DyLoRA(r=4), tiny(dropout=0.1), seed=5)
        runs.append((bytes_of(adapters.model), outcome.history))
    assert same_tensors(runs[0][0], runs[1][0])
    assert [row for row in runs[0][1] if row[2] == "drawn_rank"] == [r for r in runs[1][1] if r[2] == "drawn_rank"]


def test_one_training_serves_every_rank():
    """At each rank the loss is below chance (0.69); LoRA cut to its first direction has lost what it had learned.

    Over 20 seeds of model and training (mean, standard deviation): DyLoRA's worst rank 0.169, 0.071; LoRA 0.006,
    0.005; the logarithm of how many times the cut multiplies LoRA's loss 4.64, 0.61. All limits are four of them off.
    """
    settings = {"steps": 200, "rows": 256, "batch_size": 16, "lr": 1e-2}
    batch = collate(make_rows(256))

    def loss(model) -> float:
        with torch.no_grad():
            return float(model.eval()(**batch).loss)

    adapters, _ = train(DyLoRA(r=4, sites="all"), **settings)
    nested = {}
    for b in (1, 2, 3, 4):
        adapters.rule.truncate(b)
        nested[b] = loss(adapters.model)
    assert max(nested.values()) < 0.46, nested
    plain, _ = train(LoRA(r=4, sites="all"), **settings)
    whole = loss(plain.model)
    assert whole < 0.03
    with torch.no_grad():
        for branch in plain.values():
            branch.lora_B[:, 1:] = 0
    assert loss(plain.model) > 9 * whole


def test_with_one_rank_it_is_lora():
    """r_min = r draws r always: the same weights as LoRA after a training, to the last bit."""
    one, _ = train(DyLoRA(r=4, r_min=4), tiny(dtype=F64))
    other, _ = train(LoRA(r=4), tiny(dtype=F64))
    for name in other:
        torch.testing.assert_close(one[name].delta(), other[name].delta(), rtol=0, atol=1e-12)

"""Clipping and AdamW over the tensors of many runs are those of each run alone, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from lowrank_teach.training import replicas

SETTINGS = [(1e-2, 0.0), (3e-3, 0.1), (0.5, 0.01)]   # rate, decay


def networks(dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 2)).to(dtype) for width in (3, 8, 1)]


def optimizers(nets, **more):
    return [torch.optim.AdamW([{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 2 * lr}],
                              lr=lr, weight_decay=decay, **more)
            for net, (lr, decay) in zip(nets, SETTINGS, strict=True)]


def differentiate(nets, step):
    for i, net in enumerate(nets):
        net.zero_grad()
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(10 * step + i)).to(net[0].weight)
        (10.0 ** i * net(x).square().mean()).backward()


def same(nets, others):
    return all(torch.equal(p, q) for net, other in zip(nets, others, strict=True)
               for p, q in zip(net.parameters(), other.parameters(), strict=True))


def steps_agree(nets, optimizers_of):
    """Five steps at once, and of copies each alone: equal parameters after each, equal states at the end."""
    alone = copy.deepcopy(nets)
    ours, theirs = optimizers_of(nets), optimizers_of(alone)
    for step in range(5):
        differentiate(nets, step)
        differentiate(alone, step)
        replicas.step(ours)
        for one in theirs:
            one.step()
        assert same(nets, alone), f"step {step}"
    for one, other in zip(ours, theirs, strict=True):
        assert str(one.state_dict()) == str(other.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("more", [{}, {"betas": (0.8, 0.9), "eps": 1e-5}, {"amsgrad": True}])
def test_steps_are_torchs_own(dtype, more):
    steps_agree(networks(dtype), lambda nets: optimizers(nets, **more))


def test_settings_of_their_own_do_not_mix():
    steps_agree(networks(), lambda nets: [torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, beta))
                                          for net, beta in zip(nets, (0.9, 0.99, 0.999), strict=True)])


@pytest.mark.parametrize("limit", [1e-3, 1.0, float("inf")])
def test_norms_and_clipping_are_torchs_own(limit):
    nets = networks()
    alone = copy.deepcopy(nets)
    differentiate(nets, 0)
    differentiate(alone, 0)
    ours = optimizers(nets)
    norms = replicas.gradient_norms(ours)
    replicas.clip(ours, norms, [limit] * 3)
    for net, other, norm in zip(nets, alone, norms, strict=True):
        wanted = nn.utils.clip_grad_norm_(other.parameters(), limit)
        assert torch.equal(norm, wanted)
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(net.parameters(), other.parameters(), strict=True))
    if limit == 1.0:
        assert min(norms) < 1.0 < max(norms), "some are clipped, and some are not"


def test_each_is_clipped_to_its_own_limit():
    nets = networks()
    differentiate(nets, 0)
    ours = optimizers(nets)
    before = replicas.gradient_norms(ours)
    replicas.clip(ours, before, [0.1 * float(before[0]), float("inf"), 0.5 * float(before[2])])
    after = replicas.gradient_norms(ours)
    wanted = [0.1 * float(before[0]), float(before[1]), 0.5 * float(before[2])]
    assert after.tolist() == pytest.approx(wanted, rel=1e-4)


def test_what_has_no_gradient_stays():
    nets = networks()
    ours = optimizers(nets)
    for step in range(3):
        differentiate(nets, step)
        for p in nets[1].parameters():
            p.grad = None
        nets[0][2].bias.grad = None
        kept = copy.deepcopy([*nets[1].parameters(), nets[0][2].bias])
        moved = nets[0][0].weight.detach().clone()
        assert replicas.gradient_norms(ours)[1] == 0
        replicas.step(ours)
        assert all(torch.equal(a, b) for a, b in zip(kept, [*nets[1].parameters(), nets[0][2].bias], strict=True))
        assert not torch.equal(moved, nets[0][0].weight)


def test_nothing_at_all_to_step():
    ours = optimizers(networks())
    norms = replicas.gradient_norms(ours)
    assert norms.tolist() == [0.0] * 3
    replicas.clip(ours, norms, [1.0] * 3)
    replicas.step(ours)

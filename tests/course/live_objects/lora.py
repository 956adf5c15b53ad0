"""A LoRA branch on one matrix of a tiny model; d and k differ."""

import torch
from helpers import tiny

from lowrank_teach import adapt
from lowrank_teach.methods import LoRA

R, ALPHA = 3, 6.0


def live():
    model = tiny()
    method = LoRA(r=R, lora_alpha=ALPHA, sites=("0.up",))
    adapters = adapt(model, method, seed=0)
    branch, site = adapters["0.up"], adapters.sites["0.up"]
    x = torch.randn(2, 5, site.k)
    return ({"method": method, "adapters": adapters, "layer": adapters.owner("0.up"), "branch": branch, "x": x},
            {"d": site.d, "k": site.k, "r": R, "*": (2, 5)})

"""A SaLoRA branch on one matrix of a tiny model, its rule started; d, k and r differ."""

import torch
from helpers import tiny, trainer

from lowrank_teach.methods import SaLoRA

R = 3


def live():
    made = trainer(SaLoRA(r=R, lora_alpha=6.0, sites=("0.up",), eta_c=0.5, t_end=10), tiny())
    made.prepare()
    adapters = made.adapters
    branch, site = adapters["0.up"], adapters.sites["0.up"]
    x = torch.randn(2, 5, site.k)
    return ({"method": adapters.method, "adapters": adapters, "layer": adapters.owner("0.up"), "branch": branch,
             "gate": adapters.rule.gates()["0.up"], "rule": adapters.rule, "x": x},
            {"d": site.d, "k": site.k, "r": R, "*": (2, 5)})

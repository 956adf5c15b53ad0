"""A chain on one matrix of a tiny model, one knot tied; the toy has the same d and k."""

from types import SimpleNamespace

import torch
from helpers import tiny

from lowrank_teach import adapt
from lowrank_teach.analysis import toy_problems as toy
from lowrank_teach.methods import COLA, Clock

R, T = 3, 20


def live():
    method = COLA(r=R, lora_alpha=6.0, sites=("0.up",), chain=2)
    adapters = adapt(tiny(), method, seed=0)
    rule, site = adapters.rule, adapters.sites["0.up"]
    rule.start(Clock(0, T, T), SimpleNamespace(optimizer=torch.optim.AdamW(rule.parameter_groups())))
    rule.tie()
    problem = toy.completion(d=site.d, k=site.k)
    return ({"method": method, "rule": rule, "layer": adapters.owner("0.up"), "branch": adapters["0.up"], "toy": toy,
             "problem": problem, "path": toy.frank_wolfe(problem, T), "G": problem.gradient(0 * problem.target)},
            {"d": site.d, "k": site.k, "Σr": R, "T": T})

"""A tiny model whose matrices were moved by hand, and one ΔW cut to i directions; d, k and i differ."""

import torch
from helpers import tiny

from lowrank_teach.reproduction import rank_cuts

I = 3


def live():
    model = tiny()
    before = rank_cuts.weights(model)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    full = rank_cuts.FineTuned(model, None, before)
    d, k = full.changes["0.up"].shape
    return {"full": full, "cut": full.directions["0.up"].keep(slice(I))}, {"d": d, "k": k, "i": I}

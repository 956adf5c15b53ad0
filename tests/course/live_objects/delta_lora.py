"""Delta-LoRA after four steps on one matrix of a tiny model; W has moved; d and k differ."""

from helpers import tiny, train

from lowrank_teach.methods import DeltaLoRA

R = 5


def live():
    method = DeltaLoRA(r=R, lora_alpha=10.0, lam=2.0, K=1, sites=("0.up",))
    adapters, _ = train(method, tiny(), steps=4)
    site, layer = adapters.sites["0.up"], adapters.owner("0.up")
    assert (layer.W - layer.pretrained).any()
    return ({"method": method, "rule": adapters.rule, "layer": layer, "branch": adapters["0.up"]},
            {"d": site.d, "k": site.k, "r": R})

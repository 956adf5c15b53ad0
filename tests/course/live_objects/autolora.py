"""One step of a search on one matrix of a tiny model; d and k differ."""

from helpers import Stop, tiny, trainer

from lowrank_teach.methods import AutoLoRA, autolora

R = 3


def live():
    made = trainer(AutoLoRA(r=R, sites=("0.up",)), tiny(), callbacks=[Stop(1)])
    made.run()
    adapters = made.adapters
    branch, site = adapters["0.up"], adapters.sites["0.up"]
    return ({"method": adapters.method, "branch": branch, "selection": adapters.rule.selections()["0.up"],
             "optimizer": made.optimizer, "autolora": autolora}, {"d": site.d, "k": site.k, "r": R})

"""What a configuration holds and what it refuses; what a person asked for, and what was left to a profile."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest

from lowrank_teach.cli_options import configure
from lowrank_teach.config import SHORT_TRAINING, fit_to_profile
from lowrank_teach.methods import COLA, AutoLoRA, LoRA, Method, SaLoRA, as_method, compose
from lowrank_teach.methods.compose import named
from lowrank_teach.run_config import RunConfig, grid

# ---- asked for, or left alone -------------------------------------------------------------------------------


WINDOW = {"t_start": 0.0, "t_end": 0.3}
COPIES = {"replace": dataclasses.replace, "copy": lambda m: copy.deepcopy(m),
          "pickle": lambda m: pickle.loads(pickle.dumps(m)), "changed": lambda m: m.changed(),
          "twice": lambda m: dataclasses.replace(pickle.loads(pickle.dumps(m)))}


@pytest.mark.parametrize("profile", ["tiny", "laptop"])
def test_a_default_can_be_asked_for(profile):
    """What equals a default and was written is kept, in every way to write it."""
    assert SaLoRA(**WINDOW) == SaLoRA()
    assert hash(SaLoRA(**WINDOW)) == hash(SaLoRA())
    for method in (SaLoRA(**WINDOW), named("salora", **WINDOW), dataclasses.replace(SaLoRA(), t_start=0.0, t_end=0.3),
                   SaLoRA().changed(**WINDOW), Method.from_dict({"method": "salora", **WINDOW}),
                   compose(COLA(), SaLoRA(**WINDOW)), named("cola+salora", **WINDOW),
                   grid("salora", **WINDOW)[0].method, grid(SaLoRA(), **WINDOW)[0].method,
                   configure("salora", ["t_start=0.0", "t_end=0.3"])[0], as_method(["cola", SaLoRA(**WINDOW)])):
        for again in (method, pickle.loads(pickle.dumps(method)), fit_to_profile(method, profile)):
            kept = {m.name: m for m in getattr(fit_to_profile(again, profile), "members", (again,))}["salora"]
            assert (kept.t_start, kept.t_end) == (0.0, 0.3)
    search = fit_to_profile(AutoLoRA(search_steps=1.0), profile)
    assert (search.search_steps, search.eta_beta) == (1.0, SHORT_TRAINING[profile]["autolora"]["eta_beta"])


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize(("method", "asked"), [
    (SaLoRA(), set()), (SaLoRA(b=0.25), {"b"}), (SaLoRA(t_end=0.3), {"t_end"}),
    (AutoLoRA(search_steps=1.0, eta_beta=1e-3), {"search_steps", "eta_beta"}), (LoRA(rank_pattern={"0.q": 2}),
                                                                              {"rank_pattern"})])
def test_a_copy_knows_what_was_asked_for(way, method, asked):
    again = COPIES[way](method)
    assert again == method
    assert again.given == asked
    assert fit_to_profile(again, "laptop") == fit_to_profile(method, "laptop")
    assert fit_to_profile(again.changed(r=4), "laptop") == fit_to_profile(method, "laptop").changed(r=4)


def test_a_record_gives_back_its_method():
    """All that stands in a record was trained with, so that no profile changes it."""
    for method in (SaLoRA(), AutoLoRA(), compose(COLA(chain=3), SaLoRA())):
        again = Method.from_dict(json.loads(json.dumps(method.to_dict())))
        assert again == method == fit_to_profile(again, "laptop")
        assert Method.from_dict(method.to_dict()) == fit_to_profile(Method.from_dict(method.to_dict()), "laptop")
    with pytest.raises(ValueError, match="unknown method 'loraa'"):
        Method.from_dict({"method": "loraa"})
    with pytest.raises(ValueError, match="lora has no value rang; it has r, lora_alpha"):
        Method.from_dict({"method": "lora", "rang": 3})


def test_runs_that_differ_are_not_equal():
    """Equal methods may end as two runs; a run is what the profile makes of them."""
    left, asked = (RunConfig(method, profile="laptop") for method in (SaLoRA(), SaLoRA(eta_c=0.01, **WINDOW)))
    assert left.key != asked.key
    assert left != asked
    assert left == RunConfig(fit_to_profile(SaLoRA(), "laptop"), profile="laptop")
    assert asked == RunConfig(SaLoRA(), profile="laptop", adjust=False)
    assert hash(asked) == hash(RunConfig(SaLoRA(), profile="laptop", adjust=False))
    assert left.notes == ["the profile laptop set eta_c = 0.05, t_start = 0.05, t_end = 0.9 of salora; a value asked "
                          "for is kept"]
    assert RunConfig(SaLoRA(), profile="laptop", adjust=False).notes == []

"""What a configuration holds and what it refuses; what a person asked for, and what was left to a profile."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import pickle
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import collate, logits, make_batch, make_rows, tiny
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lowrank_teach.adapters import adapt
from lowrank_teach.cli import configure, read_values
from lowrank_teach.errors import MOST_LETTERS, Refusal
from lowrank_teach.experiments.fit import RunConfig, grid
from lowrank_teach.methods import COLA, METHODS, AutoLoRA, LoRA, Method, SaLoRA, as_method
from lowrank_teach.methods.autolora import KINDS
from lowrank_teach.methods.composition import compose, named
from lowrank_teach.training.config import SHORT_TRAINING, TrainConfig, fit_to_profile, train_config
from lowrank_teach.training.trainer import Trainer

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
    for name, kind in METHODS.items():
        assert kind.name == name
        assert Method.from_dict(json.loads(json.dumps(kind().to_dict()))) == kind()
    for method in (SaLoRA(), AutoLoRA(), LoRA(rank_pattern={"0.q": 2}), compose(COLA(chain=3), SaLoRA())):
        again = Method.from_dict(json.loads(json.dumps(method.to_dict())))
        assert again == method == fit_to_profile(again, "laptop")
        assert Method.from_dict(method.to_dict()) == fit_to_profile(Method.from_dict(method.to_dict()), "laptop")
    with pytest.raises(ValueError, match="unknown method 'loraa'"):
        Method.from_dict({"method": "loraa"})
    with pytest.raises(ValueError, match="lora has no value 'rang'; it has r, lora_alpha"):
        Method.from_dict({"method": "lora", "rang": 3})


def test_runs_that_differ_are_not_equal():
    """Equal methods may end as two runs; a run is what the profile makes of them."""
    left, asked = (RunConfig(method, profile="laptop") for method in (SaLoRA(), SaLoRA(eta_c=0.01, **WINDOW)))
    assert left.key != asked.key
    assert left != asked
    assert left == RunConfig(fit_to_profile(SaLoRA(), "laptop"), profile="laptop")
    assert asked == RunConfig(SaLoRA(), profile="laptop", adjust=False)
    assert hash(asked) == hash(RunConfig(SaLoRA(), profile="laptop", adjust=False))
    assert left.notes == ["the profile laptop set eta_c = 0.15, t_start = 0.05, t_end = 0.35 of salora; a value "
                          "asked for is kept"]
    assert RunConfig(SaLoRA(), profile="laptop", adjust=False).notes == []


# ---- what is refused, and in which words ----------------------------------------------------------------------

NAN, INF = math.nan, math.inf
# name of the method, or "" for a TrainConfig: what its sentence says, and the values of each refusal
REFUSED: dict[str, list[tuple[Any, ...]]] = {
    "lora": [
        *((rf"r = {re.escape(repr(r))} must be a whole number", {"r": r})
          for r in (True, 2.5, "8", NAN, None, 0, -1)),
        ("lora_alpha = .* must be a finite number", *({"lora_alpha": a} for a in (NAN, INF, "16", True))),
        ("lora_alpha = .* must be above 0", {"lora_alpha": 0}, {"lora_alpha": -1.0}),
        (r"lora_dropout = .* must lie in \[0, 1\)", {"lora_dropout": 1}, {"lora_dropout": -0.1}),
        ("sites is empty, so nothing would be adapted", {"sites": ""}, {"sites": ()}),
        ("sites = 3 must be letters", {"sites": 3}),
        ("init 'zeros' is not one of 'kaiming'", {"init": "zeros"}),
        ("rank_pattern = .* must be a dict by site, each a whole number", {"rank_pattern": {"0.q": 1.5}}),
        ("rank -1 of 0.q must be 0 or more", {"rank_pattern": {"0.q": -1}}),
        ("alpha 0 of 0.q must be above 0", {"alpha_pattern": {"0.q": 0}})],
    "cola": [
        ("must increase", {"knots": (8, 4)}, {"knots": (5, 5)}),
        ("must be above 0", {"knots": (0, 4)}, {"knots": (0,)}),
        ("knots = .* must be a tuple, each a whole number or a finite number", {"knots": ("four",)}),
        ("chain = 0 must be 1 or more", {"chain": 0}), ("ranks .* must be above 0", {"ranks": (8, 0)}),
        ("must name one rank for each of the 4 links", {"ranks": (8, 4, 2), "chain": 4}),
        ("must name one rank for each of the 2 links", {"ranks": (8, 4, 2), "knots": (5,)}),
        ("unit 'days' must be 'steps' or 'epochs'", {"unit": "days"})],
    "salora": [
        (r"b = .* must lie in \(0, 1\]", *({"b": b} for b in (0, -0.5, 1.5))),
        ("b = .* must be a finite number", {"b": NAN}, {"b": "half"}),
        *((rf"t_end = {e} must come after t_start = {s}", {"t_start": s, "t_end": e})
          for s, e in ((0.5, 0.5), (0.6, 0.3), (9, 4), (9, 9))),
        ("t_end = 1.1 must be a step count", {"t_end": 1.1}),
        ("t_start = 1.5 must be a step count", {"t_start": 1.5, "t_end": 40}),
        ("beta must be 0 or more and eta_c above 0", {"beta": -1}, {"eta_c": 0}),
        ("needs tau > 0, gamma < 0 and zeta > 1", {"gamma": 0.1}, {"zeta": 0.9}, {"tau": 0}),
        ("gamma = .* and zeta = .* must lie from", {"gamma": -1e29}, {"zeta": 101.0}),
        ("ascent 'rprop' must be", {"ascent": "rprop"}), ("orthogonality 'max' must be", {"orthogonality": "max"}),
        ("orthogonality_until 'never' must be", {"orthogonality_until": "never"}),
        ("prune 'all' must be", {"prune": "all"}), ("after_window 'drop' must be", {"after_window": "drop"}),
        ("these would never train; choose 'fold' or 'one'", {"prune": "budget", "after_window": "leave"},
         {"prune": "random", "after_window": "leave"}),
        ("lambda_max must be 0 or more", {"lambda_max": -1}), ("init 'x' is not one of", {"init": "x"})],
    "delta_lora": [
        ("λ = .* must be 0 or more", {"lam": -0.5}, {"lam_end": -1.0}),
        (r"takes no dropout on the branch .*use LoRA, or drop it", {"lora_dropout": 0.1}),
        ("K = .* must be a step count", {"K": 1.5}, {"K": -1}), ("form 'both' must be", {"form": "both"}),
        ("a λ schedule has no lazy form", {"form": "lazy", "lam_end": 1.0})],
    "autolora": [
        ("split = .* must lie between 0 and 1", {"split": 0.0}, {"split": 1.0}),
        ("search_steps = 0 must be above 0", {"search_steps": 0}),
        ("eta_beta and radius must be above 0", {"eta_beta": 0}, {"radius": 0}),
        ("hypergradient 'exact' must be one of first_order", {"hypergradient": "exact"}),
        ("constraint 'simplex' must be", {"constraint": "simplex"})],
    "dylora": [
        ("r_min = 5 must lie", {"r": 4, "r_min": 5}), ("r_min = 0 must lie", {"r_min": 0}), ("p = 1", {"p": 1.0}),
        ("'uniform' or 'geometric'", {"distribution": "zipf"})],
    "full": [("trains 'half' must be 'all', 'no_embeddings' or 'qv'", {"trains": "half"})],
    "houlsby": [
        ("m = 0", {"m": 0}), ("gelu, relu, silu, tanh", {"nonlinearity": "step"}),
        ("houlsby has no use for r; its size is m", {"r": 4})],
    "pfeiffer": [("no use for lora_dropout", {"lora_dropout": 0.1})],
    "prefix": [("prefix has no use for r; its size is num_virtual_tokens", {"r": 2})],
    "prompt": [("num_virtual_tokens = 0", {"num_virtual_tokens": 0}), ("'vocabulary' or 'random'", {"init": "text"})],
    "adalora": [
        ("target_r = 4 must lie above 0 and below r = 4", {"r": 4, "target_r": 4}),
        ("leave init out", {"init": "gaussian"}), ("beta1 and beta2", {"beta1": 1.0}),
        ("tfinal = 1.5 must be", {"tfinal": 1.5})],
    "": [
        *((f"steps = {n!r} must be a whole number", {"steps": n}) for n in (2.5, "ten", True)),
        ("steps must be above 0", {"steps": 0}, {"epochs": -1.0}),
        ("lr = .* must be a finite number", {"lr": NAN}, {"lr": "fast"}),
        ("lr and head_lr must be above 0", {"lr": 0}, {"head_lr": -1.0}),
        ("batch_size and accumulation must be above 0", {"batch_size": 0}, {"accumulation": 0}),
        ("accumulation = 9 is more micro-batches than the 8 examples", {"accumulation": 9, "batch_size": 8}),
        ("warmup = 1.0 must be a share", {"warmup": 1.0}),
        ("max_grad_norm and weight_decay must be ≥ 0", {"max_grad_norm": -1.0}, {"weight_decay": -0.1}),
        ("mixed_precision 'fp8' must be 'no' or 'bf16'", {"mixed_precision": "fp8"}),
        ("max_length must be above 0", {"max_length": 0}),
        ("best needs evaluations on the way: set eval_every", {"best": True}),
        ("n_train = 0; ask for at least one example", {"n_train": 0})],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_configuration_that_cannot_be_is_refused_when_it_is_built(name):
    """Before any model is there, in a sentence that names the value."""
    for says, *values in REFUSED[name]:
        for chosen in values:
            with pytest.raises(ValueError, match=says):
                (METHODS[name] if name else TrainConfig)(**chosen)


# ---- any values at all ----------------------------------------------------------------------------------------

MANY = int(os.environ.get("LOWRANK_FUZZ", "0"))  # examples; without it few, and the same ones each time
SENSIBLE: dict[str, list[Any]] = {
    "r": [1, 2, 3, 4, 8], "sites": ["qv", "all", "o", ("up", "down"), ("0.q", "1.v"), ("0.q",)],
    "init": ["kaiming", "gaussian", "unit_rows", "vocabulary"], "lora_alpha": [1, 8.0, 16], "chain": [1, 2, 3],
    "knots": [(), (1,), (0.5,), (1, 2), [0.25, 0.75]], "ranks": [(), (4, 2), [2, 2]], "unit": ["steps", "epochs"],
    "form": ["in_place", "lazy"], "trains": ["all", "no_embeddings", "qv"], "ascent": ["adam", "sgd"],
    "distribution": ["uniform", "geometric"], "orthogonality": ["mean", "sum"],
    "prune": ["threshold", "budget", "random"],
    "after_window": ["fold", "leave", "one"], "orthogonality_until": ["window", "end"], "count": ["softmax", "raw"],
    "hypergradient": list(KINDS),
    "constraint": ["softmax", "sigmoid", "none"], "nonlinearity": ["gelu", "relu", "silu", "tanh"],
    "rank_pattern": [{}, {"0.q": 2}, {"0.q": 0, "1.v": 1}], "alpha_pattern": [{}, {"0.q": 4}, {"1.v": 2.5}],
    "gate_betas": [(0.0, 0.9), [0, 0.5]], "lambda_betas": [(0.9, 0.9)], "eta_c": [0.5, 1.0], "gamma": [-0.1, -1],
    "zeta": [1.1, 2], "t_start": [0, 0.0, 1], "t_end": [1.0, 2, 3], "lambda_max": [None, 0, 1.0],
    "lam_end": [None, 0.1], "search_steps": [1, 2, 1.0], "steps": [1, 2, 3, 4], "batch_size": [4, 8],
    "lr": [1e-3, 1e-2], "head_lr": [None, 0.1], "mixed_precision": ["no", "bf16"], "base_dtype": ["float32"],
    "eval_every": [0, 1], "epochs": [0.0, 0.1, 0.5], "max_grad_norm": [0.0, 1.0], "task": ["rt"],
    "backbone": ["minilm-l6", Path("here")], "profile": ["tiny", None], "training": [{}, {"lr": 0.1}], "seed": [0, 7]}
USUAL: dict[str, dict[str, Any]] = {  # what lets so short a training on so small a model be accepted
    "salora": {"r": 4, "eta_c": 1.0, "t_end": 1.0}, "autolora": {"r": 3}, "adalora": {"r": 4, "target_r": 2}}
DEEP = functools.reduce(lambda inside, _: [inside], range(3000), 1)
ABSURD = [0, -1, 1, 17, 2**31, 10**18, 10**400, -10**400, 0.0, -0.0, 1.0, 0.3, 1e-30, 5e-324, 1e30, 1e308, -1e308,
          math.nan, math.inf, -math.inf, True, False, None, "", "x", "qx", "é\n\t", "x" * 2000, "0.q", b"x", (), [],
          {}, set(), (1,), ("x",), ("x",) * 500, tuple(range(1, 2000)), {"x": 1}, {1: 2}, {"0.q": -1}, {"0.q": "x"},
          {"0.q": 1e308}, {"0.q": 10**400}, np.int64(2), np.float32(0.5), Fraction(1, 3), Fraction(10**400),
          Decimal("0.1"), 1j, object(), LoRA, torch.ones(2), DEEP]
TEXTS = ["1e999", "NaN", "-Infinity", "9" * 5000, "[" * 3000, '"x"', "[1, 2]", '{"0.q": 2}', "{", "", "0x10", "True",
         "true", "null", "é", "x" * 2000, "[[1]]", "1e308", "5e-324", "=", "a=b", "0.5", "3"]
EDGES = [0, 1, 17, 0.0, 1.0, 0.3, 1e-30, 1e30, True, None, 10**6]
NAMES = sorted(METHODS)
TOGETHER = [("cola", "salora"), ("salora", "delta_lora"), ("cola", "delta_lora"), ("lora", "cola"),
            ("lora", "delta_lora"), ("autolora", "cola"), ("cola", "salora", "delta_lora")]
FAMILIES = ("bert", "gpt2", "llama", "t5", "distilbert")


@contextmanager
def refused_in_a_sentence() -> Iterator[None]:
    """What the package itself refuses within, in a short sentence, ends here; what Python or torch raise does not."""
    try:
        yield
    except (ValueError, Refusal) as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        if "lowrank_teach" not in last.filename:
            raise AssertionError(f"refused by {last.filename}") from error
        if not 10 < len(str(error)) <= MOST_LETTERS:
            raise AssertionError("too short or too long") from error


def same_written_and_read(config: Method | TrainConfig) -> None:
    written = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    read = TrainConfig(**written) if isinstance(config, TrainConfig) else Method.from_dict(written)
    assert read == config
    assert json.loads(json.dumps(read.to_dict())) == written


@pytest.mark.parametrize("kind", [*(METHODS[name] for name in NAMES), TrainConfig])
def test_any_value_of_a_field_is_taken_or_refused(kind):
    """Each field of its own with everything that it might be given; what is taken can be written and read."""
    shared = {f.name for f in dataclasses.fields(Method)} if kind is not LoRA else ()
    for field, value in itertools.product(dataclasses.fields(kind), ABSURD):
        if field.name not in shared or field.default != LoRA.__dataclass_fields__[field.name].default:
            with refused_in_a_sentence():
                same_written_and_read(kind(**{field.name: value}))


@pytest.mark.parametrize("call", [
    as_method, compose, named, grid, train_config, RunConfig, Method.from_dict,
    *(functools.partial(lambda x, name: RunConfig(**{"method": "lora", name: x}), name=name)
      for name in ("task", "backbone", "profile", "training", "seed", "adjust")),
    lambda x: Method.from_dict({"method": x}), lambda x: Method.from_dict({"members": x}),
    lambda x: Method.from_dict({"method": "lora", "r": x}), lambda x: LoRA().changed(r=x),
    lambda x: named("lora", r=x), lambda x: grid("lora", r=x), lambda x: grid("lora", lr=[x]),
    lambda x: train_config("tiny", lr=x)])
def test_anything_instead_of_an_argument_is_taken_or_refused(call):
    for value in ABSURD:
        with refused_in_a_sentence():
            call(value)


@pytest.mark.parametrize("options", [
    lambda x: {"method": x}, lambda x: {"method": "lora", "seed": x}, lambda x: {"method": "lora", "head": x},
    *(functools.partial(lambda x, name: {"method": LoRA(**{name: x})}, name=name)
      for name in ("sites", "init", "r", "rank_pattern"))])
def test_anything_instead_of_an_argument_of_adapt_is_taken_or_refused(options):
    model = tiny()
    for value in ABSURD:
        with refused_in_a_sentence():
            adapt(model, **options(value)).remove()


@pytest.mark.parametrize("name", [*NAMES, "cola+salora", "nothing", ""])
def test_any_words_of_a_command_line_are_read_or_refused(name):
    own = {"lora", "cola", "salora"} & {name} and {f.name for f in dataclasses.fields(METHODS[name])}
    for field, text in itertools.product(sorted({"r", "sites", "lr", "steps", "x", *own}), TEXTS):
        with refused_in_a_sentence():
            method, training = configure(name, [f"{field}={text}"])
            assert RunConfig(method, training=training).key
            read_values(f"{field}={text}")


# with LOWRANK_FUZZ so many examples, other ones each time
fuzz = settings(max_examples=MANY or 40, deadline=None, database=None, derandomize=not MANY,
                suppress_health_check=list(HealthCheck))


@st.composite
def some_values(draw: Any, kind: type, most: int = 3, odd: list[Any] | None = None) -> dict[str, Any]:
    """Values for some fields of a configuration, three usual ones to one that is odd."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init and f.name not in ("members", "method")}
    names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=most, unique=True))
    return {name: draw(st.sampled_from((odd or ABSURD) if draw(st.integers(0, 3)) == 3 else usual(fields[name])))
            for name in names}


def usual(field: dataclasses.Field[Any]) -> list[Any]:
    plain = {"bool": [False, True], "int": [1, 2, 3]}.get(str(field.type).split(" ")[0], [0.1, 0.5, 0.9])
    return SENSIBLE.get(field.name, plain)


@fuzz
@given(st.data())
def test_any_values_together_are_taken_or_refused(data):
    """What is taken can be written, read and copied, and is the same then."""
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    with refused_in_a_sentence():
        method = compose(*(METHODS[name](**data.draw(some_values(METHODS[name]))) for name in names))
        same_written_and_read(method)
        for again in (copy.deepcopy(method), pickle.loads(pickle.dumps(method)), method.changed()):
            assert again == method
        config = RunConfig(**{"method": method, **data.draw(some_values(RunConfig))})
        again = pickle.loads(pickle.dumps(config))
        assert (again, again.key, hash(again)) == (config, config.key, hash(config))
        train = TrainConfig(**data.draw(some_values(TrainConfig)))
        same_written_and_read(train)
        assert train.total_steps(48) > 0


@fuzz
@given(st.data())
def test_what_is_taken_trains_or_is_refused(data):
    """A finished training has a finite loss, and a function that a merge leaves as it is."""
    names = data.draw(st.sampled_from([*((name,) for name in NAMES), *TOGETHER]))
    family, dtype = data.draw(st.sampled_from(FAMILIES)), data.draw(st.sampled_from([torch.float32, torch.float64]))
    with refused_in_a_sentence():
        method = compose(*(METHODS[name](**{**USUAL.get(name, {}), **data.draw(some_values(METHODS[name], 2, EDGES))})
                           for name in names))
        config = TrainConfig(**{"steps": 3, "batch_size": 8, "lr": 1e-2,
                                **data.draw(some_values(TrainConfig, 2, EDGES))})
        assume(max(config.total_steps(24), method.steps(config.total_steps(24))) <= 20)
        model = tiny(family, dtype=dtype)
        adapters = adapt(model, method, seed=0)
        outcome = Trainer(adapters, make_rows(24), collate, config, cpu=True).run()
        assert all(math.isfinite(value) for _, _, name, value in outcome.history if name == "loss")
        before = logits(model, make_batch())
        assert before.isfinite().all()
        try:
            adapters.merge()
        except RuntimeError as error:
            if "cannot be merged" not in str(error):
                raise
            return
        gap = (logits(model, make_batch()) - before).abs().max() / before.abs().max().clamp_min(1)
        assert gap < (1e-8 if dtype == torch.float64 else 1e-3)

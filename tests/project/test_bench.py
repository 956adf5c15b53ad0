"""The benchmarks of `make bench`, at tiny sizes: what they compute, not how long anything takes here."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import json
import statistics
import sys
from typing import Any

import pytest
import torch
from benchmarks import __main__ as runner
from benchmarks import busy, candidates, growth, harness, mutants, parts, report, sliders, start, steps, throughput
from benchmarks.harness import Row, Settings
from helpers import word_tokenizer
from tiny_models import model_folder
from transformers import LlamaConfig, LlamaForCausalLM

import lowrank_teach as lt
from lowrank_teach.methods.autolora import KINDS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Settings:
    """A random BERT and a random Llama of width 16, eight rows of six tokens, two repeats."""
    folder = tmp_path_factory.mktemp("bench")
    writer = LlamaConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                         vocab_size=40, pad_token_id=0, eos_token_id=2, bos_token_id=1)
    LlamaForCausalLM(writer).save_pretrained(folder / "decoder")
    word_tokenizer().save_pretrained(folder / "decoder")
    return Settings(backbone=str(model_folder(folder / "encoder")), decoder=str(folder / "decoder"), rows=8, tokens=6,
                    r=4, repeats=2, quick=True)


def table(rows: list[Row]) -> dict[str, Row]:
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


# ---- the harness --------------------------------------------------------------------------------------------


def test_each_repeat_calls_each_candidate_once_in_a_rotating_order():
    called: list[str] = []
    settings = Settings(repeats=3)
    taken = harness.in_turn({name: lambda name=name: called.append(name) for name in "abc"}, settings)
    turns = ["".join(called[i:i + 3]) for i in range(0, 12, 3)]
    assert all(sorted(turn) == list("abc") for turn in turns)
    assert len(set(turns[1:])) == 3                                   # every candidate comes first once
    assert {name: len(values) for name, values in taken.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_within_a_repeat():
    """Twice as slow in every repeat is 2, though the machine was ten times slower in one of them."""
    seconds = {"a": [2.0, 20.0, 4.0], "b": [1.0, 10.0, 2.0]}
    assert harness.ratios(seconds, "b")["a"] == {"median": 2.0, "q1": 2.0, "q3": 2.0}
    row = harness.ratio(seconds, "a", "b", 1.5)
    assert (row.value, row.low, row.high, row.verdict) == (2.0, 2.0, 2.0, "missed")


def test_the_interval_is_the_medians():
    values = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
    q1, middle, q3 = statistics.quantiles(values, n=4)
    row = harness.of_many("x", values)
    assert row.value == middle
    assert row.high - row.value == pytest.approx(1.57 * (q3 - q1) / 3) == row.value - row.low


@pytest.mark.parametrize(("row", "verdict"), [
    (Row("x", 0.9, aim=1.0), "met"), (Row("x", 1.1, aim=1.0), "missed"),
    (Row("x", 1.1, low=0.95, high=1.25, aim=1.0), "within noise"),
    (Row("x", 1.1, low=1.05, high=1.2, aim=1.0), "missed"),
    (Row("x", 0.9, aim=1.0, least=True), "missed"), (Row("x", 1.1, aim=1.0, least=True), "met"),
    (Row("x", 0.9, low=0.7, high=1.05, aim=1.0, least=True), "within noise"), (Row("x", 5.0), "")])
def test_a_verdict_says_on_which_side_of_the_aim_the_median_lies(row, verdict):
    assert row.verdict == verdict


def test_the_bytes_of_a_step_by_hand():
    """What is held between steps, and the two tensors that are alive at once in the middle of one."""
    n = 100_000

    def make():
        held = torch.zeros(n)                                         # 4 n bytes, kept

        def step():
            one = held + 1                                            # 4 n
            two = one.double()                                        # 8 n, with one still there
            del one
            return (two.sum() + held.sum()).item()

        return step

    _, found = harness.weighed(make)
    assert found == pytest.approx(4 * n + 12 * n, rel=0.01)


def test_views_of_a_tensor_are_counted_once():
    gc.freeze()
    whole = torch.zeros(50_000)
    views = [whole[:10], whole.view(100, 500), whole]
    assert harness.tensor_bytes() == 200_000
    gc.unfreeze()
    del views


def test_slopes_of_known_costs():
    assert growth.line([1, 2, 4], [5.0, 8.0, 14.0]) == pytest.approx(3.0)
    assert growth.exponent([10, 20, 40], [3 * n**1.5 for n in (10, 20, 40)]) == pytest.approx(1.5)
    costs = {n: {"ms": 2.0 * n, "MB": 10 + 0.5 * n} for n in (4, 16, 64)}
    rows = table(growth.slopes("r", "x", costs, Settings()))
    assert rows["time with r: x"].value == pytest.approx(16.0)       # of 8 ranks
    assert rows["memory with r: x"].value == pytest.approx(4.0)
    rows = table(growth.slopes("tokens", "x", costs, Settings(rows=10)))
    assert rows["time with tokens, exponent: x"].value == pytest.approx(1.0)
    assert rows["memory with tokens: x"].value == pytest.approx(50.0)  # of 1000 tokens: 100 a row


# ---- what is compared ---------------------------------------------------------------------------------------


def test_the_same_parameters_train_here_and_in_peft(tiny):
    """Otherwise their times could not be compared."""
    for sites in candidates.PEFT_SITES:
        theirs = candidates.peft_model(candidates.backbone(tiny), tiny, sites)
        model = candidates.backbone(tiny)
        lt.adapt(model, lt.LoRA(r=tiny.r, lora_alpha=tiny.alpha, sites=sites), seed=0)
        shapes = [sorted(tuple(p.shape) for n, p in m.named_parameters() if p.requires_grad and "lora_" in n)
                  for m in (theirs, model)]
        assert shapes[0] == shapes[1]
        heads = [sum(p.numel() for n, p in m.named_parameters() if p.requires_grad and "lora_" not in n)
                 for m in (theirs, model)]
        assert heads[0] == heads[1] > 0


def test_the_floor_trains_nothing_and_reaches_the_inputs(tiny, monkeypatch):
    seen: list[Any] = []
    real = candidates.backbone
    monkeypatch.setattr(candidates, "backbone", lambda s: seen.append(real(s)) or seen[-1])
    candidates.floor(tiny)()
    assert not any(p.requires_grad or p.grad is not None for p in seen[0].parameters())


def test_dense_products_move_W_as_delta_lora_does(tiny, monkeypatch):
    """What the low-rank update is compared with is the same update."""
    made: list[lt.Trainer] = []
    real = candidates.trainer_of
    for module in (parts, candidates):
        monkeypatch.setattr(module, "trainer_of",
                            lambda *a: made.append(real(*a, lr=1e-2, warmup=0.0)) or made[-1])
    dense = parts.with_dense_products(tiny)
    low_rank = candidates.looped(tiny, lt.DeltaLoRA(K=0, r=tiny.r, lora_alpha=tiny.alpha, lam=0.5))
    for trainer in made:
        trainer.adapters.model.eval()                                  # no dropout: the same gradients
    start = {name: made[0].adapters.owner(name).slice_of(name).clone() for name in made[0].adapters}
    for _ in range(3):
        dense()
        low_rank()
    for name in start:
        moved = [t.adapters.owner(name).slice_of(name) - start[name] for t in made]
        assert moved[1].abs().max() > 1e-3
        torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-6)


def test_the_two_updates_of_one_matrix_are_the_same():
    W, B, A, new_B, new_A = parts._factors(24, Settings(r=3))
    ours = W.addmm(*parts.step_factors(B, A, new_B, new_A))
    torch.testing.assert_close(ours, W + new_B @ new_A - B @ A, rtol=1e-4, atol=1e-4)


def test_a_fused_layer_with_a_dense_update_is_the_same_function(tiny):
    """loralib's way and a branch each, with the same factors."""
    each, dense = parts.gpt2(tiny).eval(), parts.dense_fused(tiny).eval()
    adapters = lt.adapt(each, lt.LoRA(r=tiny.r, lora_alpha=tiny.alpha), seed=0)
    g = torch.Generator().manual_seed(1)
    for layer, block in enumerate(dense.transformer.h):
        fused = block.attn.c_attn
        with torch.no_grad():
            fused.lora_B.copy_(torch.randn(fused.lora_B.shape, generator=g))
            for i, letter in enumerate("qv"):
                adapters[f"{layer}.{letter}"].lora_A.copy_(fused.lora_A[i])
                adapters[f"{layer}.{letter}"].lora_B.copy_(fused.lora_B[i])
    batch = candidates.batch_of(tiny)
    plain = parts.gpt2(tiny).eval()(**batch).logits
    found = [model(**batch).logits for model in (each, dense)]
    assert not torch.allclose(found[0], plain, atol=1e-3)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


# ---- whole benchmarks ---------------------------------------------------------------------------------------


def test_steps_has_a_row_for_every_aim_and_every_candidate(tiny):
    rows, details = steps.bench(tiny)
    named = table(rows)
    labels = set(steps.candidates(tiny))
    assert set(steps.AUTOLORA) == set(KINDS)
    for first, second, aim in steps.AIMS:
        assert {first, second} <= labels
        assert named[f"{first} / {second}"].aim == aim
        assert set(steps.WHY) <= {a for a, _, _ in steps.AIMS}
    assert set(details["to_reference"]) == set(details["peak_bytes"]) == labels
    assert details["to_reference"][steps.REFERENCE] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert {label for label in labels if any(name.startswith(label) for name in named)} == labels - {steps.REFERENCE}
    assert set(steps.WHY_MEMORY) <= labels
    assert all(peak > 0 for peak in details["peak_bytes"].values())
    exact, rough = (details["peak_bytes"][f"loop: AutoLoRA qv, {kind}"] for kind in ("unrolled", "first_order"))
    assert exact > rough


@pytest.mark.parametrize("module", [parts, growth, throughput])
def test_a_benchmark_runs_and_its_names_are_its_own(module, tiny, tmp_path):
    rows, details = module.bench(dataclasses.replace(tiny, repeats=1))
    assert table(rows)
    assert all(row.value == row.value for row in rows)                # no nan
    path = report.store("x", tiny, rows, details, tmp_path, 0.5)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["machine"]["load"] == 0.5
    assert [row["name"] for row in record["table"]] == [row.name for row in rows]
    assert record["settings"]["backbone"] == tiny.backbone


def test_one_and_two_at_once_take_the_same_steps(tiny, monkeypatch):
    """Each way has two trainings; no time is read here."""
    asked: list[list[str]] = []
    monkeypatch.setattr(busy, "worker", lambda first, s: contextlib.nullcontext(first))
    monkeypatch.setattr(busy, "steps", lambda workers, number: asked.append([*workers, number]))
    rows, details = busy.bench(tiny)
    assert {tuple(each) for each in asked} == {(first, *more, busy.STEPS) for first in ("torch", "lowrank_teach")
                                               for more in ((), (first,))}
    assert details["settings"]["words"]["GOMP_SPINCOUNT"]
    assert table(rows).keys() >= {f"two at once / one alone, {way}" for way in busy.WAYS}


def test_two_at_once_by_hand():
    theirs, ours = busy.WAYS
    taken = {f"one, {theirs}": [1.0, 10.0], f"two, {theirs}": [4.0, 40.0], f"one, {ours}": [1.1, 11.0],
             f"two, {ours}": [2.2, 22.0]}
    values = [round(row.value, 3) for row in busy.rows(taken)]
    assert values == [4.0, 2.0, round(4 / 2.2, 3), 1.1]


def test_a_training_beside_another_takes_the_steps_it_is_asked_for(tiny, monkeypatch, capsys):
    taken: list[int] = []
    monkeypatch.setattr(candidates, "ours", lambda s, sites: lambda: taken.append(s.r))
    monkeypatch.setattr(sys, "argv", ["-c", json.dumps(dataclasses.asdict(tiny))])
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n3\n"))
    busy.serve()
    assert taken == [tiny.r] * 5
    assert capsys.readouterr().out == "done\n" * 2


def test_every_move_of_a_slider_is_timed():
    taken = sliders.measure(sliders.entity_threshold(), 2)
    assert len(taken["clock"]) == len(taken["own"]) == 2 * 2           # two moves of each of its two sliders


def test_importing_the_package_loads_no_torch(tiny, monkeypatch):
    """Why its import is short; the timed lines themselves all run."""
    check = f"import sys; {start.LINES['import lowrank_teach']}; assert 'torch' not in sys.modules"
    monkeypatch.setattr(start, "LINES", dict.fromkeys(start.LINES, check))
    rows, _ = start.bench(tiny)
    assert table(rows)["import lowrank_teach / import peft"].aim == 1.0


# ---- the command line ---------------------------------------------------------------------------------------


def test_every_mutant_still_has_its_place():
    """A change of the package that moves a formula must take its mutant along."""
    for m in mutants.MUTANTS:
        text = (mutants.ROOT / "lowrank_teach" / f"{m.file}.py").read_text(encoding="utf-8")
        assert mutants.mutated(m, text) != text
        for room, name in (test.split("/") for test in m.tests.split()):
            assert (mutants.ROOT / "tests" / room / f"test_{name}.py").exists()
    assert len({m.what for m in mutants.MUTANTS}) == len(mutants.MUTANTS)


def test_a_run_prints_the_table_and_stores_a_record(monkeypatch, capsys, tmp_path):
    assert all(callable(runner.import_module(f"benchmarks.{name}").bench) for name in runner.MODULES + runner.NAMED)
    monkeypatch.setattr(sys, "argv", ["bench", "parts", "--quick", "--out", str(tmp_path)])
    monkeypatch.setattr(parts, "bench", lambda s: ([Row("a / b", 1.2, aim=1.0, why="it was late")], {"more": 1}))
    runner.main()
    out = capsys.readouterr().out
    assert "aim ≤ 1.00  missed\n" in out
    assert "it was late" in out
    assert out.rstrip().endswith("0 of 1 aims met\nmissed: a / b")
    assert [path.name for path in tmp_path.iterdir()] == ["bench_parts.json"]
    assert [Settings(**at).place for at in ({}, {"device": "cuda"}, {"device": "cuda", "dtype": "bfloat16"})] == [
        "", "_cuda_float32", "_cuda_bfloat16"]   # a record of a GPU has a name of its own
    record = json.loads((tmp_path / "bench_parts.json").read_text(encoding="utf-8"))
    assert record["more"] == 1
    assert record["table"][0]["verdict"] == "missed"


def test_quick_stores_nothing_of_its_own_accord_and_a_wrong_name_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["bench", "parts", "--quick"])
    monkeypatch.setattr(parts, "bench", lambda s: ([Row("a", 1.0)], {}))
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    runner.main()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["bench", "stepps"])
    with pytest.raises(SystemExit):
        runner.main()
    assert "no benchmark is called stepps; there are steps, " in capsys.readouterr().err

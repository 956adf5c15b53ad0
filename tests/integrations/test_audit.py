"""An adapter from anywhere is measured as by a dense decomposition; each piece of advice has a planted case."""

from __future__ import annotations

import json
import math
import re

import pandas as pd
import peft
import pytest
import torch
import transformers
from helpers import collate, logits, make_batch, make_rows, tiny, trainer
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import command, model_folder

import lowrank_teach as lt
from lowrank_teach.integrations.audit import BaseWeights, audit, compress, measure, output_change, read_adapter
from lowrank_teach.integrations.audit_callback import SHOWN, WatchUpdates
from lowrank_teach.integrations.audit_page import pictures, write
from lowrank_teach.integrations.peft_format import CONFIG, PREFIX, WEIGHTS, ExportError

D, K, R = 24, 16, 8


def factors(seed: int = 0, r: int = R, d: int = D, k: int = K, decay: float = 0.7):
    """A (r, k), B (d, r) whose product has falling singular values."""
    draw = torch.Generator().manual_seed(seed)
    A, B = torch.randn(r, k, generator=draw), torch.randn(d, r, generator=draw)
    return A, B * decay ** torch.arange(r)


def folder_of(place, matrices: dict[str, tuple[torch.Tensor, torch.Tensor]], **config):
    """A folder as peft writes it."""
    place.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{path}.lora_{letter}.weight": value.contiguous()
               for path, pair in matrices.items() for letter, value in zip("AB", pair, strict=True)}
    save_file(tensors, place / WEIGHTS, {"format": "pt"})
    (place / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, **config}))
    return place


def paths(layers: int = 2, names=("self_attn.q_proj", "self_attn.v_proj")) -> list[str]:
    return [f"model.layers.{layer}.{name}" for layer in range(layers) for name in names]


def says(found, words: str) -> bool:
    return any(re.search(words, one) for one in found.advice)


# ---- numbers ---------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_a_dense_decomposition(tmp_path):
    A, B = factors()
    W = torch.randn(D, K, generator=torch.Generator().manual_seed(9))
    report = measure(next(iter(read_adapter(folder_of(tmp_path, {"layers.0.q": (A, B)})).updates.values())), W)
    delta = 2.0 * B.double() @ A.double()
    s = torch.linalg.svdvals(delta)[:R]
    assert torch.tensor(report.spectrum) == pytest.approx(s, rel=1e-6)
    assert report.norm == pytest.approx(float(delta.norm()), rel=1e-6)
    assert report.share == pytest.approx(float(delta.norm() / W.norm()), rel=1e-6)
    assert report.cosine == pytest.approx(float((W * (W + delta)).sum() / W.norm() / (W + delta).norm()), rel=1e-6)
    held = (s.square().cumsum(0) / s.square().sum()).tolist()
    assert report.half == pytest.approx(held[R // 2 - 1], rel=1e-6)
    assert report.rank_97 == next(i for i, share in enumerate(held, 1) if share >= 0.97)
    p = s / s.sum()
    assert report.effective == pytest.approx(float((-p * p.log()).sum().exp()), rel=1e-6)
    own = torch.linalg.svd(W.double())[0][:, :R]
    assert report.overlap == pytest.approx(float((own.T @ delta).square().sum() / delta.square().sum()), rel=1e-5)


def test_an_intruder_is_a_new_direction_and_an_amplified_one_is_none(tmp_path):
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(D, K, generator=draw)
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    known = (Vh[:1], 30 * U[:, :1])                       # along a direction that W has
    new = (torch.ones(1, K) / math.sqrt(K), 30 * (U[:, :9].sum(1, keepdim=True) / 3))   # along none of them
    updates = read_adapter(folder_of(tmp_path, {"known": known, "new": new}, r=1, lora_alpha=1)).updates
    assert measure(updates["known"], W).intruders == 0
    assert measure(updates["new"], W).intruders >= 1


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
def test_an_adapter_that_peft_trained_is_its_merged_difference(kind, tmp_path):
    """What peft merges minus what it started from, matrix by matrix; rsLoRA and patterns included."""
    torch.manual_seed(0)
    base = tiny(kind)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=FAMILIES_TARGETS[kind],
                                            rank_pattern={r".*0\..*": 2}, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    found = audit(tmp_path / "adapter", str(tmp_path / "base"))
    merged = model.merge_and_unload().state_dict()
    assert len(found.reports) >= 2
    for one in found.reports:
        change = (merged[f"{one.path}.weight"] - before[f"{one.path}.weight"]).double()
        assert one.norm == pytest.approx(float(change.norm()), rel=1e-4)
        assert one.share == pytest.approx(float(change.norm() / before[f"{one.path}.weight"].norm()), rel=1e-4)
    assert says(found, "use_rslora")
    assert says(found, "rank_pattern")


FAMILIES_TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "t5": ["q", "v"]}


def test_dora_is_its_direction_and_adalora_has_its_values_in_it(tmp_path):
    for name, config in {"dora": LoraConfig(r=2, use_dora=True, target_modules=["query"], init_lora_weights=False),
                         "ada": AdaLoraConfig(init_r=3, target_r=2, total_step=10, target_modules=["query"])}.items():
        model = get_peft_model(tiny("bert"), config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name and "magnitude" not in parameter_name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
        model.save_pretrained(tmp_path / name)
        layer = next(m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer))
        found = audit(tmp_path / name)
        wanted = layer.get_delta_weight("default").detach().norm()
        assert found.reports[0].norm == pytest.approx(float(wanted), rel=1e-3)
        assert any("magnitude" in one for one in found.remarks) == (name == "dora")


# ---- advice: a planted case each ---------------------------------------------------------------------------------


def test_a_sound_adapter_has_nothing_wrong(tmp_path):
    found = audit(folder_of(tmp_path, {path: factors(i, decay=1) for i, path in enumerate(paths())}))
    assert says(found, "All matrices are finite and have changed")
    assert not says(found, "not finite|learned nothing|dead|Half of the rank|unevenly|use_rslora|patterns")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_reported_and_not_refused(tmp_path, bad):
    matrices = {path: factors(i) for i, path in enumerate(paths())}
    matrices[paths()[1]][0][0, 0] = bad
    found = audit(folder_of(tmp_path, matrices))
    assert says(found, r"1 of 4 matrices hold numbers that are not finite \(first model\.layers\.0\.self_attn\.v")
    assert not says(found, "All matrices")
    assert json.loads(json.dumps(found.document(), default=str))
    write([found], tmp_path / "out")


def test_what_learned_nothing_is_named(tmp_path):
    matrices = {path: factors(i) for i, path in enumerate(paths())}
    matrices[paths()[2]][1].zero_()
    assert says(audit(folder_of(tmp_path / "one", matrices)), "1 of 4 matrices learned nothing")
    for _, B in matrices.values():
        B.zero_()
    nothing = audit(folder_of(tmp_path / "all", matrices))
    assert says(nothing, "No matrix has changed")
    assert pictures(nothing) == {}
    write([nothing], tmp_path / "out")


def test_dead_directions_are_counted(tmp_path):
    A, B = factors()
    A[3] = 0
    B[:, 5] = 0
    assert says(audit(folder_of(tmp_path, {"layers.0.q": (A, B)})), "2 of 8 directions are dead")


def test_a_rank_that_is_not_used_and_one_that_is_used_up(tmp_path):
    spare = audit(folder_of(tmp_path / "spare", {path: factors(i, decay=0.2) for i, path in enumerate(paths())}))
    assert says(spare, "Half of the rank keeps 97% of the energy in 4 of 4")
    assert not says(spare, "larger rank")
    Q = torch.linalg.qr(torch.randn(D, R, generator=torch.Generator().manual_seed(0)))[0]
    full = audit(folder_of(tmp_path / "full", {path: (torch.eye(R, K), Q)
                                               for path in paths()}))
    assert says(full, r"4 of 4 matrices use all of their rank \(effective rank 8\.0 of 8")
    assert not says(full, "Half of the rank")


def test_an_uneven_change_names_the_most_and_the_least(tmp_path):
    matrices = {path: factors(i) for i, path in enumerate(paths())}
    for path, (_, B) in matrices.items():
        B *= 10 if "v_proj" in path else 1
    assert says(audit(folder_of(tmp_path, matrices)), r"self_attn\.v_proj changed 1?\d\.\d times as much as one of "
                                                      r"self_attn\.q_proj")


def test_rounding_of_a_merge_in_bfloat16_is_seen(tmp_path):
    """A change far below the spacing of W's numbers is lost; one of W's own size is not."""
    A, B = factors()
    W = torch.randn(D, K)
    small = read_adapter(folder_of(tmp_path / "s", {"q": (A, 1e-5 * B)})).updates["q"]
    large = read_adapter(folder_of(tmp_path / "l", {"q": (A, B)})).updates["q"]
    assert measure(small, W).lost > 0.5
    assert measure(large, W).lost < 1e-3


# ---- what is refused -----------------------------------------------------------------------------------------


def test_bad_input_gets_one_sentence(tmp_path):
    with pytest.raises(ExportError, match="holds no adapter_model"):
        audit(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ExportError, match="pickle, which can run code"):
        audit(tmp_path)
    good = folder_of(tmp_path / "good", {"layers.0.q": factors()})
    whole = (good / WEIGHTS).read_bytes()
    (good / WEIGHTS).write_bytes(whole[:-40])
    with pytest.raises(ExportError, match="damaged"):
        audit(good)
    (good / WEIGHTS).write_bytes(whole)
    (good / CONFIG).write_text("{")
    with pytest.raises(ExportError, match="damaged"):
        audit(good)
    (good / CONFIG).write_text('{"peft_type": "PROMPT_TUNING"}')
    with pytest.raises(ExportError, match="PROMPT_TUNING"):
        audit(good)
    save_file({"x": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ExportError, match="no LoRA adapter"):
        audit(tmp_path / "other.safetensors")
    A, B = factors()
    half = {f"{PREFIX}q.lora_A.weight": A}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(ExportError, match="no lora_B of q"):
        audit(tmp_path / "half.safetensors")
    save_file({**half, f"{PREFIX}q.lora_B.weight": B[:, 1:].contiguous()}, tmp_path / "odd.safetensors")
    with pytest.raises(ExportError, match="do not multiply"):
        audit(tmp_path / "odd.safetensors")


def test_another_model_s_base_is_refused(tmp_path):
    model_folder(tmp_path / "base")
    with pytest.raises(ExportError, match=r"no matrix named model\.layers\.0\.q"):
        audit(folder_of(tmp_path / "a", {"model.layers.0.q": factors()}), str(tmp_path / "base"))
    name = "encoder.layer.0.attention.self.query"
    with pytest.raises(ExportError, match="24 × 16 in the adapter and 16 × 16 in the base"):
        audit(folder_of(tmp_path / "b", {name: factors()}), str(tmp_path / "base"))
    assert BaseWeights(tmp_path / "base").matrix(f"bert.{name}", 16, 16).shape == (16, 16)


def test_a_file_without_a_configuration_says_what_is_unknown(tmp_path):
    folder = folder_of(tmp_path, {"layers.0.q": factors()})
    (folder / CONFIG).unlink()
    found = audit(folder / WEIGHTS)
    assert found.reports[0].scale == 1
    assert any("scale is unknown" in one for one in found.remarks)


# ---- a smaller adapter -----------------------------------------------------------------------------------------


def trained(tmp_path, **config):
    torch.manual_seed(0)
    model = get_peft_model(tiny("bert"), LoraConfig(r=6, lora_alpha=12, target_modules=["query", "value", "dense"],
                                                    init_lora_weights=False, task_type="SEQ_CLS", **config))
    model.save_pretrained(tmp_path / "adapter")
    return model.eval()


@pytest.mark.parametrize("how", [{}, {"use_rslora": True, "rank_pattern": {"value": 3}}])
def test_all_of_the_energy_is_the_same_function_in_stock_peft(tmp_path, how):
    model = trained(tmp_path, **how)
    wanted = logits(model, make_batch())
    ranks = compress(tmp_path / "adapter", tmp_path / "small", energy=1.0)
    assert all(after <= before for before, after in ranks.values())
    again = PeftModel.from_pretrained(tiny("bert"), tmp_path / "small").eval()
    assert torch.allclose(logits(again, make_batch()), wanted, atol=1e-5)


@pytest.mark.parametrize("how", [{"energy": 0.9}, {"rank": 2}])
def test_the_best_approximation_is_kept(tmp_path, how):
    trained(tmp_path)
    ranks = compress(tmp_path / "adapter", tmp_path / "small", **how)
    old, new = read_adapter(tmp_path / "adapter").updates, read_adapter(tmp_path / "small").updates
    for path, (_, n) in ranks.items():
        before, after = (one.scale * one.B.double() @ one.A.double() for one in (old[path], new[path]))
        s = torch.linalg.svdvals(before)
        assert float((before - after).norm()) == pytest.approx(float(s[n:].norm()), rel=1e-4, abs=1e-6)
        assert n == how.get("rank", n)
        if "energy" in how:
            assert float(s[:n].square().sum() / s.square().sum()) >= 0.9 > float(
                s[:n - 1].square().sum() / s.square().sum())


def test_a_compression_needs_one_aim_and_a_plain_adapter(tmp_path):
    trained(tmp_path)
    for wrong in ({}, {"energy": 0.9, "rank": 2}, {"energy": 1.5}, {"rank": -1}):
        with pytest.raises(ValueError, match=r"energy|rank"):
            compress(tmp_path / "adapter", tmp_path / "small", **wrong)
    assert not (tmp_path / "small").exists()
    get_peft_model(tiny("bert"), LoraConfig(r=2, use_dora=True, target_modules=["query"])).save_pretrained(
        tmp_path / "dora")
    with pytest.raises(ExportError, match="DoRA"):
        compress(tmp_path / "dora", tmp_path / "small", energy=0.9)


def test_other_tensors_go_along(tmp_path):
    trained(tmp_path)
    compress(tmp_path / "adapter", tmp_path / "small", rank=1)
    old, new = (load_file(tmp_path / name / WEIGHTS) for name in ("adapter", "small"))
    others = {name for name in old if ".lora_" not in name}
    assert others
    assert all(torch.equal(old[name], new[name]) for name in others)


# ---- as a user has it -----------------------------------------------------------------------------------------


def test_the_commands(tmp_path, monkeypatch, capsys):
    base = model_folder(tmp_path / "base")
    draw = {f"encoder.layer.{i}.attention.self.{name}": factors(i, r=4, d=16) for i in range(2)
            for name in ("query", "value")}
    adapter = folder_of(tmp_path / "mine", draw, r=4, lora_alpha=4)
    code, out, err = command(monkeypatch, capsys, "audit", str(adapter), "--base", str(base), "--out",
                             str(tmp_path / "out"))
    assert (code, err) == (0, "")
    assert "mine: 4 matrices" in out
    page = (tmp_path / "out" / "audit.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert page.count("<img alt=") == len(list((tmp_path / "out").glob("mine-*.png"))) == 4
    assert "prefers-color-scheme: dark" in page
    code, out, _ = command(monkeypatch, capsys, "audit", str(adapter), "--json")
    assert code == 0
    assert len(json.loads(out)["adapters"][0]["matrices"]) == 4
    code, out, err = command(monkeypatch, capsys, "compress", str(adapter), str(tmp_path / "small"), "--rank", "2",
                             "--base", str(base))
    assert (code, err) == (0, "")
    assert "16 directions of 4 matrices became 8" in out
    assert "on random tokens" in out
    code, _, err = command(monkeypatch, capsys, "audit", str(tmp_path))
    assert code == 2
    assert err.count("\n") == 1


def test_names_in_a_page_are_escaped(tmp_path):
    found = audit(folder_of(tmp_path / "a<b>", {"layers.0.<i>q": factors()}))
    write([found], tmp_path / "out")
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "<i>q" not in page
    assert "a&lt;b&gt;" in page


def test_the_same_adapter_changes_no_output(tmp_path):
    base = model_folder(tmp_path / "base")
    adapter = folder_of(tmp_path / "a", {"encoder.layer.0.attention.self.query": factors(d=16)})
    same = output_change(adapter, adapter, str(base))
    assert (same.largest, same.relative, same.agree) == (0, 0, 1)
    compress(adapter, tmp_path / "b", rank=1)
    assert output_change(adapter, tmp_path / "b", str(base)).relative > 0.01


def test_an_adapter_of_seven_billion_is_read_within_a_minute(tmp_path):
    """The shapes of two layers in thirty-two; the time of the whole is stored beside the page."""
    shapes = {"q_proj": (4096, 4096), "v_proj": (4096, 4096), "up_proj": (11008, 4096), "down_proj": (4096, 11008)}
    matrices = {f"model.layers.{i}.{name}": factors(i, r=16, d=d, k=k) for i in range(2)
                for name, (d, k) in shapes.items()}
    found = audit(folder_of(tmp_path, matrices, r=16))
    assert len(found.reports) == 8
    assert found.parameters == sum(16 * (d + k) for d, k in shapes.values()) * 2


# ---- while it trains ---------------------------------------------------------------------------------------------


def test_transformers_trainer_is_watched_and_its_logs_get_the_medians(tmp_path):
    model = get_peft_model(tiny("bert"), LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS"))
    watch = WatchUpdates(model, every=4)
    args = transformers.TrainingArguments(str(tmp_path), max_steps=10, per_device_train_batch_size=8, use_cpu=True,
                                          report_to=[], save_strategy="no", learning_rate=1e-2, logging_steps=5)
    trained_by = transformers.Trainer(model, args, train_dataset=make_rows(32), data_collator=collate,
                                      callbacks=[watch])
    watch.log = trained_by.log
    trained_by.train()
    table = watch.frame()
    assert sorted(set(table.index.get_level_values("step"))) == [4, 8, 10]   # each fourth, and the last
    assert (table.groupby("step")["norm"].median().diff().dropna() > 0).all()
    logged = [one for one in trained_by.state.log_history if "update/norm" in one]
    assert [one["step"] for one in logged] == [4, 8, 10]
    assert logged[-1]["update/norm"] == pytest.approx(table.loc[10, "norm"].median())
    model.save_pretrained(tmp_path / "adapter")
    found = {one.path: one.norm for one in audit(tmp_path / "adapter").reports}
    last = {path.removeprefix(PREFIX): norm for path, norm in table.loc[10, "norm"].items()}
    assert last == pytest.approx(found, rel=1e-5)      # what is watched is what is saved
    again = pd.read_parquet(watch.save(tmp_path / "updates.parquet"))
    assert len(again) == len(table)
    assert len(watch.figure().axes) == len(SHOWN)


def test_our_loop_is_watched(monkeypatch):
    made = trainer(lt.DeltaLoRA(r=4, lam=1.0))
    watch = WatchUpdates(made.adapters.model, every=5)
    made.callbacks = [*made.callbacks, watch]
    made.run()
    table = watch.frame()
    last = table.index.get_level_values("step").max()
    assert last == made.outcome.step
    for name, branch in made.adapters.items():
        own = [norm for path, norm in table.loc[last, "norm"].items() if path == made.adapters.sites[name].path]
        assert own == [pytest.approx(float(branch.delta().norm()), rel=1e-4)]


def test_a_watch_needs_a_lora_and_a_number_of_steps():
    with pytest.raises(ValueError, match="carries no LoRA"):
        WatchUpdates(tiny("bert"))
    model = get_peft_model(tiny("bert"), LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ValueError, match="every 0"):
        WatchUpdates(model, every=0)
    with pytest.raises(ValueError, match="train first"):
        WatchUpdates(model).figure()

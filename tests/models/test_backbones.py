"""Backbones: the packaged ones load, heads depend on the seed only, and what cannot be loaded is refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging

from lowrank_teach.models import backbones, convert, packaged
from lowrank_teach.models.backbones import BACKBONES, CheckpointError, load_backbone, require_config
from lowrank_teach.models.packaged import AssetError, fetch, is_cached

asset = pytest.mark.asset
SENTENCES = ["A man is eating food.", "Someone eats a meal.", "The rocket left for the moon."]


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def cosines(name: str) -> list[float]:
    """Mean-pooled sentences: the first against the second (same meaning) and the third (another)."""
    model, tokenizer = load_backbone(name)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state  # (3, T, k)
    mask = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return (pooled @ pooled.T)[0, 1:].tolist()


def write(model: torch.nn.Module, tokenizer: object, text: str, tokens: int) -> str:
    batch = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(out[0], skip_special_tokens=True)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "is_reachable", lambda: False)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A local model folder: a two-layer BERT of random weights with a real tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path / "tiny"
    config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(fetch("minilm-l6")).save_pretrained(folder)
    return folder


# ---- the packaged ones ----------------------------------------------------------------------------------

@asset
@pytest.mark.parametrize("name", ["minilm-l6", "minilm-l3"])
def test_sentence_encoders(name):
    same, other = cosines(name)
    assert same > 0.6
    assert other < 0.1
    model, _ = load_backbone(name)
    new = sum(p.numel() for n, p in model.named_parameters() if n in model.lowrank_new_parameters)
    row = BACKBONES[name]
    assert count(model) - new == row.parameters
    assert model.config.num_hidden_layers == row.layers
    assert model.config.hidden_size == row.hidden
    assert model.config.model_type == row.family
    assert model.config._attn_implementation == "sdpa"
    assert not model.training


@asset
def test_minilm_l6_is_the_published_file():
    known = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert packaged.sha256(fetch("minilm-l6") / "model.safetensors") == known


@asset
def test_minilm_l3_computes_what_its_onnx_file_computes():
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model, tokenizer = load_backbone("minilm-l3")
    batch = tokenizer(SENTENCES[:2], padding=True, return_tensors="np")
    reference = ReferenceEvaluator(onnx.load(str(fetch("minilm-l3"))))
    expected = reference.run(None, {k: batch[k] for k in ("input_ids", "attention_mask")})
    with torch.no_grad():
        hidden = model(**{k: torch.tensor(v) for k, v in batch.items()}).last_hidden_state.numpy()
    (tokens,) = [array for array in expected if array.shape == hidden.shape]
    assert np.abs((tokens - hidden) * batch["attention_mask"][..., None]).max() < 1e-5


@asset
def test_flan_t5_has_a_head_of_its_own_also_when_read_again(tmp_path):
    convert.converted("flan-t5-small-titles")  # whatever was cached, the model below is read from safetensors
    model, tokenizer = load_backbone("flan-t5-small-titles")
    assert count(model) == BACKBONES["flan-t5-small-titles"].parameters == 76_961_152
    assert model.lm_head.weight is not model.shared.weight
    assert not torch.equal(model.lm_head.weight, model.shared.weight)
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.config.scale_decoder_outputs is False
    assert model.lowrank_new_parameters == ()
    german = write(model, tokenizer, "translate English to German: The house is wonderful.", 12)
    assert german == "Das Haus ist wunderbar."
    assert write(model, tokenizer, "Is this review positive or negative? A tedious, witless bore.", 4) == "negative"


@asset
def test_smollm2_knows_paris():
    model, tokenizer = load_backbone("smollm2-135m")
    assert count(model) == BACKBONES["smollm2-135m"].parameters
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.pad_token is not None
    assert "Paris" in write(model, tokenizer, "The capital of France is", 3)


@asset
def test_a_decoder_classifies_padded_rows():
    model, tokenizer = load_backbone("smollm2-135m", num_labels=3)
    assert model.lowrank_new_parameters == ("score.weight",)
    alone = tokenizer(["short"], return_tensors="pt")
    padded = tokenizer(["short", "a good deal longer than the other"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**alone).logits[0], model(**padded).logits[0], rtol=1e-3, atol=1e-3)


@asset
@pytest.mark.skipif(not is_cached("mpnet-base"), reason="mpnet-base (404 MB) is not in the cache")
def test_mpnet_base():
    same, other = cosines("mpnet-base")
    assert same > 0.8
    assert other < 0.1
    model, _ = load_backbone("mpnet-base", num_labels=2)
    assert model.config.num_hidden_layers == 12
    assert all("classifier" in name for name in model.lowrank_new_parameters)


# ---- heads ----------------------------------------------------------------------------------------------

@asset
def test_what_is_new_is_recorded():
    model, _ = load_backbone("minilm-l6", num_labels=2)
    assert model.lowrank_new_parameters == ("classifier.bias", "classifier.weight")
    model, _ = load_backbone("minilm-l3", num_labels=2)
    expected = {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.bias", "classifier.weight"}
    assert set(model.lowrank_new_parameters) == expected
    model, _ = load_backbone("minilm-l3", kind="tagging", num_labels=5)
    assert set(model.lowrank_new_parameters) == {"classifier.bias", "classifier.weight"}
    assert set(model.lowrank_new_parameters) <= {name for name, _ in model.named_parameters()}


@asset
def test_a_head_depends_on_the_seed_only():
    def head(seed: int) -> torch.Tensor:
        return load_backbone("minilm-l3", num_labels=4, seed=seed)[0].classifier.weight

    torch.manual_seed(1)
    first = head(0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = head(0)
    assert torch.equal(state, torch.get_rng_state())  # the caller's stream is left alone
    assert torch.equal(first, again)
    assert not torch.equal(first, head(1))
    assert 0.01 < first.std() < 0.03


@asset
def test_regression_is_one_number_of_the_type_asked_for():
    model, tokenizer = load_backbone("minilm-l3", kind="regression", dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    out = model(**tokenizer(["a", "b"], return_tensors="pt"), labels=torch.tensor([0.5, 4.0]).bfloat16())
    assert out.logits.shape == (2, 1)
    assert model.config.problem_type == "regression"
    assert out.loss.ndim == 0


@asset
def test_loading_is_quiet_and_leaves_the_settings(capfd):
    load_backbone("minilm-l3", num_labels=2)  # converts, if it is the first time
    capfd.readouterr()
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    load_backbone("minilm-l3", num_labels=2)
    assert capfd.readouterr() == ("", "")
    assert (hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()) == (level, bars)


# ---- other names ----------------------------------------------------------------------------------------

def with_a_hole(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.attention.self.query.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('was run')")


@asset
@pytest.mark.parametrize(("spoil", "says"), [
    (with_a_hole, r"lacks 1 weights .*layer\.1\.attention\.self\.query"), (cut_short, "cannot be loaded"),
    (pickled, "cannot be loaded"), (with_code, "no backbone")])
def test_a_checkpoint_that_is_not_whole_and_plain_is_refused(tiny_folder, spoil, says):
    """No pickle is read, and no code that a model brings is run."""
    spoil(tiny_folder)
    with pytest.raises(ValueError, match=says):
        load_backbone(str(tiny_folder), num_labels=2)


@pytest.mark.parametrize("content", ["null", "[1]", '"x"', "{", "[" * 3000,
                                     '{"model_type": "bert", "hidden_size": "x"}'])
def test_a_config_that_is_none_is_refused_in_a_sentence(tiny_folder, content):
    (tiny_folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="holds no model that transformers reads") as caught:
        require_config(str(tiny_folder))
    assert len(str(caught.value)) <= 300


def test_a_path_is_a_folder_s_and_no_name_of_the_hub(tiny_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    model, tokenizer = load_backbone(str(tiny_folder), num_labels=2)
    assert model.config.hidden_size == require_config(f"~/{tiny_folder.name}").hidden_size == 16
    assert tokenizer("hello")["input_ids"][0] == 101
    for name in ("/nope/model", "./nope", "~/nope", str(tiny_folder / "config.json"), "/" + 400 * "x"):
        with pytest.raises(CheckpointError, match="there is no folder of that name") as caught:
            load_backbone(name)
        assert len(str(caught.value)) <= 300


def test_an_unknown_name_has_near_misses_and_three_ways(offline):
    with pytest.raises(ValueError, match="did you mean minilm-l6") as caught:
        load_backbone("minilm-l66")
    for part in ("(1) a packaged one: minilm-l6", "(2) the path of a folder", "(3) a hub name"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "classify"}, "choose one of"),
        ({"kind": "tagging"}, "needs num_labels"),
        ({"kind": "causal", "num_labels": 2}, "leave num_labels out"),
        ({"kind": "regression", "num_labels": 3}, "one number"),
        ({"num_labels": 1}, "two classes"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        load_backbone("minilm-l6", **settings)


@asset
@pytest.mark.parametrize(
    ("name", "kind", "advice"),
    [
        ("minilm-l6", "causal", "encoder"),
        ("minilm-l6", "seq2seq", "encoder"),
        ("smollm2-135m", "seq2seq", "kind='causal'"),
    ],
)
def test_kinds_that_do_not_fit(name, kind, advice):
    with pytest.raises(ValueError, match=advice):
        load_backbone(name, kind=kind)


# ---- conversion -----------------------------------------------------------------------------------------

@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of converted models over the shared packaged files."""
    shared = [fetch("minilm-l3").parent, fetch("minilm-l6")]
    (tmp_path / "home" / "assets").mkdir(parents=True)
    for folder in shared:
        (tmp_path / "home" / "assets" / folder.name).symlink_to(folder)
    monkeypatch.setenv("LOWRANK_TEACH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@asset
def test_converted_once_and_again_when_cut_short(own_home, monkeypatch):
    folder = convert.converted("minilm-l3")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    with monkeypatch.context() as patch:
        patch.setitem(convert.CONVERTERS, "minilm-l3", lambda *a: pytest.fail("converted again"))
        assert convert.converted("minilm-l3") == folder
    weights.write_bytes(whole[:1000])
    assert (convert.converted("minilm-l3") / "model.safetensors").read_bytes() == whole
    assert [path.name for path in (own_home / "models").iterdir()] == ["minilm-l3"]


@asset
def test_converted_by_two_at_once_and_anew_when_stale(own_home):
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: convert.converted("minilm-l3"), range(2)))
    folder, = folders
    record = json.loads((folder / "converted.json").read_text())
    (folder / "converted.json").write_text(json.dumps(record | {"converter": -1}))
    convert.converted("minilm-l3")
    assert json.loads((folder / "converted.json").read_text()) == record
    assert [path.name for path in (own_home / "models").iterdir()] == ["minilm-l3"]


@asset
def test_a_missing_reader_names_the_extra(own_home, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"lowrank-teach\[lab\]"):
        convert.converted("minilm-l3")
    assert list((own_home / "models").iterdir()) == []


@asset
def test_a_models_folder_that_cannot_be_written(own_home):
    (own_home / "models").write_text("in the way")
    with pytest.raises(AssetError, match="LOWRANK_TEACH_HOME"):
        convert.converted("minilm-l3")


"""The papers' cells: every value has a source, every cell can be built, and one trains end to end from a hub."""

from __future__ import annotations

import csv
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from helpers import tiny
from hub_server import environment, hub
from tiny_models import BAD, FILLER, GOOD, command, data_folder
from tokenizers import Tokenizer, models, pre_tokenizers

import lowrank_teach as lt
from lowrank_teach.cli import choose
from lowrank_teach.methods import LoRA, SaLoRA
from lowrank_teach.models.backbones import BACKBONES, DIMENSIONS, meta_model
from lowrank_teach.reproduction.presets import KINDS, PRESETS, Preset, preset
from lowrank_teach.sites import select
from lowrank_teach.tasks.table import TASKS

GLUE = {"mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"}
SUPERGLUE = {"sst2", "wsc", "cb", "wic", "boolq", "multirc", "rte"}
CELLS = {
    "lora": {"roberta-base": GLUE, "roberta-large": GLUE, "gpt2-medium": {"e2e"}},
    "cola": {"opt-1.3b": SUPERGLUE, "llama-2-7b": SUPERGLUE},
    "salora": {"roberta-base": GLUE, "roberta-large": GLUE,
               "llama-7b": {"alpaca", "yelp-transfer", "gyafc-transfer", "gyafc-music-transfer"}},
    "delta_lora": {"gpt2-medium": {"e2e", "webnlg"}, "bart-large": {"xsum"}, "roberta-base": GLUE},
    "autolora": {"roberta-base": GLUE | {"jnlpba"}, "roberta-large": {"mrpc", "qqp", "sst2"},
                 "gpt2-medium": {"e2e", "webnlg"}},
}


def test_the_cells_of_the_papers_tables_are_there():
    assert set(PRESETS) == {f"{paper}/{backbone}/{task}" for paper, backbones in CELLS.items()
                            for backbone, tasks in backbones.items() for task in tasks}


@pytest.mark.parametrize("name", PRESETS)
def test_every_cell_can_be_built(name):
    """Method and training are valid, the task exists, and no value is set that nothing reads."""
    one = preset(name)
    assert one.method.name == name.split("/")[0]
    config = lt.TrainConfig(**one.training)
    assert config.epochs > 0
    assert one.steps == config.total_steps(one.rows) > 50
    assert one.task in TASKS
    assert one.settings.keys() <= one.values().keys()
    assert one.stand_in in BACKBONES
    for baseline in one.baselines:
        assert one.configured(baseline).name == baseline
    arguments = one.arguments()
    assert lt.train_config(arguments["profile"], **{k: arguments[k] for k in one.training}) == config
    assert not arguments["adjust"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_says_where_it_is_from(name):
    one = preset(name)
    for setting in [*one.values().values(), one.seeds]:
        assert setting.kind in KINDS
        assert len(setting.source) > 5
    assert one.not_given.keys() == {n for n, s in one.values().items() if s.kind == "ours"}
    assert set(one.settings) - set(one.not_given), "nothing of this cell is the paper's"
    assert bool(one.reported) == bool(one.reported_source)
    for field, points in one.grid.items():
        assert one.values()[field].value in points


@pytest.mark.parametrize("name", sorted({(n.split("/")[0], DIMENSIONS[n.split("/")[1]].family) for n in PRESETS}))
def test_sites_resolve_on_the_family(name):
    """The letters of a paper name the matrices that it means, in a tiny random model of its family."""
    paper, family = name
    model = tiny(family)
    sites = {one.method.sites for key, one in PRESETS.items()
             if key.startswith(f"{paper}/") and one.checkpoint.family == family}
    for chosen in sites:
        letters = {site.letter for site in select(model, chosen)}
        assert letters == ({"q", "v"} if chosen == "qv" else {"q", "k", "v", "o", "up", "down"})


COUNTS = {"roberta-base": (294_912, 1_327_104, 576), "roberta-large": (786_432, 3_538_944, 1_152)}


@pytest.mark.parametrize("backbone", COUNTS)
def test_parameters_are_the_printed_ones(backbone):
    """At the real dimensions: LoRA 0.3M and 0.8M; SaLoRA 1.33M and 3.54M with 576 and 1,152 gates."""
    plain, gated, gates = COUNTS[backbone]
    for paper, expected in (("lora", plain), ("salora", gated)):
        one = preset(f"{paper}/{backbone}/cola")
        model = meta_model(backbone)
        adapters = lt.adapt(model, one.method, seed=0)
        assert sum(row[-1] for row in adapters.plan().rows) == expected == one.counts[1]
        assert float(re.match(r"[\d.]+", one.counts[0])[0]) == round(expected / 1e6, 2 if paper == "salora" else 1)
        found = [p for n, p in model.named_parameters() if n.endswith("log_theta")]
        assert sum(p.numel() for p in found) == (gates if paper == "salora" else 0)
    assert str(gates) in preset(f"salora/{backbone}/cola").counts[0]


def test_gpt2_counts_what_its_setting_comes_to():
    """0.35M is printed, and r = 4 on q and v of 24 layers comes to 0.39M: both are shown."""
    one = preset("lora/gpt2-medium/e2e")
    adapters = lt.adapt(meta_model("gpt2-medium"), one.method, seed=0)
    assert sum(row[-1] for row in adapters.plan().rows) == 24 * 2 * 4 * 2048 == one.counts[1]
    assert one.counts[0] == "0.35M"


# ---- what the paper printed -----------------------------------------------------------------------------

LIST = Path(__file__).resolve().parents[3] / "shared" / "papers" / "reported_results.csv"
PAPER = {"lora": "LoRA (", "cola": "COLA (", "salora": "SaLoRA (", "delta_lora": "Delta-LoRA ("}
MODEL = {"roberta-base": "RoBERTa-base", "roberta-large": "RoBERTa-large", "gpt2-medium": "GPT2-M",
         "opt-1.3b": "OPT-1.3B", "llama-2-7b": "Llama2-7B"}
TASK = {"cola": "CoLA", "sst2": "SST-2", "stsb": "STS-B", "boolq": "BoolQ", "webnlg": "WebNLG"}
ROWS = {"lora": "LoRA (0.", "cola": "COLA", "delta_lora": "Delta-LoRA"}


@pytest.mark.parametrize("name", [name for name, one in PRESETS.items() if one.reported])
def test_a_quoted_number_stands_in_the_list_and_is_verified(name):
    if not LIST.exists():
        pytest.skip("the list of reported results is not beside this checkout")
    paper, backbone, task = name.split("/")
    with LIST.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["paper"].startswith(PAPER[paper])
                and row["verified(yes/no)"] == "yes" and row["model"] == MODEL[backbone]
                and row["method"].startswith(ROWS[paper]) and "dagger" not in row["method"]
                and row["task"] == TASK.get(task, task.upper())]
    for metric, number in preset(name).reported.items():
        value, _, spread = number.partition(" ± ")
        plain = metric.removeprefix("gain over LoRA: ")
        found = [row for row in rows if row["value"] == value and row["metric"].startswith(plain)]
        assert found, (metric, number)
        if spread:
            assert any(row["std"] == spread for row in found)


def test_nothing_is_quoted_where_nothing_was_found():
    """No score of SaLoRA's or AutoLoRA's tables was found; one quoted all the same would be remembered."""
    assert not any(one.reported for name, one in PRESETS.items() if name.startswith(("salora/", "autolora/")))


# ---- values that are easily got wrong -------------------------------------------------------------------

def test_values_of_the_papers():
    cola, delta = preset("cola/opt-1.3b/wsc"), preset("delta_lora/gpt2-medium/e2e")
    clock = lt.methods.Clock(0, 5 * 57, 57)  # 454 rows by 8
    assert cola.method.knot_steps(clock) == [3 * 57]
    assert (cola.rows, cola.steps, cola.seeds.value) == (454, 285, (0, 1, 2, 3, 4))
    assert cola.configured("lora") == LoRA(r=8, lora_alpha=16.0, sites="qv")
    assert (delta.method.lam, delta.method.K, delta.method.lora_dropout, delta.steps) == (2.0, 500, 0.0, 26_290)
    assert round(delta.training["warmup"] * delta.steps) == 500
    assert delta.configured("lora").lora_dropout == 0.1
    writing = {name: delta.training[name] for name in ("num_beams", "length_penalty", "no_repeat_ngram_size")}
    assert writing == {"num_beams": 10, "length_penalty": 0.8, "no_repeat_ngram_size": 4}
    assert delta.training["label_smoothing"] == 0.1
    assert preset("lora/roberta-base/cola").training["batch_size"] == 64   # 32 on each of 2 devices
    assert preset("lora/roberta-base/mnli").training["batch_size"] == 128  # 16 on each of 8
    glue = preset("delta_lora/roberta-base/rte")
    assert (glue.method.lam, glue.method.K, glue.training["max_length"]) == (0.5, 0.06, 256)
    auto = preset("autolora/roberta-base/qqp")
    assert (auto.method.eta_beta, auto.training["lr"], auto.method.r, auto.method.split) == (1e-3, 1e-4, 8, 0.5)
    assert auto.method.search_steps * auto.training["epochs"] == pytest.approx(10)  # 20 epochs of half the rows


def test_a_shorter_run_keeps_the_rates_and_says_what_it_changed():
    one = preset("delta_lora/gpt2-medium/e2e")
    short = one.arguments("tiny", stand_in=True, lora_alpha=8)
    assert (short["steps"], short["epochs"], short["backbone"], short["lr"]) == (30, 0.0, "smollm2-135m", 2e-4)
    assert short["method"].lora_alpha == 8.0
    assert round(short["method"].K * 30) == 1  # 500 of 26,290 steps
    notes = " / ".join(short["notes"])
    assert "not the paper's cell: smollm2-135m in place of openai-community/gpt2-medium" in notes
    assert "not the paper's length: as long as the profile tiny, not 26,290 steps" in notes
    assert "K = 0.019" in notes
    assert "changed: lora_alpha = 8" in notes
    assert one.arguments()["notes"] == ["preset delta_lora/gpt2-medium/e2e: table 1, E2E"]
    assert one.arguments("tiny", K=3)["method"].K == 3  # asked for: steps, not a share
    kept = preset("salora/roberta-base/cola").arguments("tiny", t_end=0.3, eta_c=0.5)
    assert (kept["method"].t_start, kept["method"].t_end, kept["method"].eta_c) == (0.0, 0.3, 0.5)
    gates = preset("salora/roberta-base/cola").arguments("tiny")
    assert gates["method"].shortest_window() <= (gates["method"].t_end - gates["method"].t_start) * gates["steps"]


COLA = "salora/roberta-base/cola"


@pytest.mark.parametrize(("how", "says"), [
    (lambda: preset("salora/roberta-base/col"), "no preset .* did you mean salora/roberta-base/cola"),
    (lambda: preset("nothing"), "`lowrank-teach presets` lists them"),
    (lambda: preset(COLA).configured("adalora"), "no setting for 'adalora'; it has salora, lora"),
    (lambda: preset(COLA).arguments(lamda=2), "lamda: no value of the method or of the training has this name"),
    (lambda: preset(COLA).arguments("huge"), "unknown profile 'huge'"),
    (lambda: choose(None, "rt", None, None, None, "lora/roberta-base/rte", False), "leave --task out"),
    (lambda: choose(None, None, "x", None, None, "lora/roberta-base/rte", True), "both name a model"),
    (lambda: choose("lora", None, None, None, None, None, True), "--stand-in goes with --preset"),
    (lambda: choose(None, None, None, None, None, None, False), "name a method, or a cell"),
])  # fmt: skip
def test_what_is_refused(how, says):
    with pytest.raises(ValueError, match=says):
        how()


# ---- from a terminal ------------------------------------------------------------------------------------

def test_presets_are_listed_and_shown(monkeypatch, capsys):
    status, out, _ = command(monkeypatch, capsys, "presets", "--json")
    assert status == 0
    assert list(json.loads(out)) == list(PRESETS)
    status, out, _ = command(monkeypatch, capsys, "presets")
    assert all(re.search(rf"^ *{name} ", out, re.MULTILINE) for name in PRESETS)  # no name is cut
    status, out, _ = command(monkeypatch, capsys, "presets", "delta_lora/roberta-base/mrpc")
    words = " ".join(out.split())
    assert "lam 0.5 paper" in words
    assert "max_grad_norm 1 not given" in words
    assert "The paper's number: acc 90.19 (a secondary page on table 4)" in words
    assert "Differs: LoRA's scripts begin MRPC" in words
    status, out, _ = command(monkeypatch, capsys, "presets", "salora/roberta-large/rte", "--json")
    document = json.loads(out)
    assert document["values"]["eta_c"] == {"value": 0.01, "kind": "paper", "source": "one rate for gates and λ"}
    assert document["parameters"] == ["3.54M, and 1152 gates", 3_538_944]
    status, _, err = command(monkeypatch, capsys, "presets", "salora/roberta")
    assert status == 0
    status, _, err = command(monkeypatch, capsys, "presets", "salora/roberta-bose/cola")
    assert (status, "did you mean salora/roberta-base/cola" in err) == (2, True)


# ---- the checkpoint, from a hub played on 127.0.0.1 -----------------------------------------------------

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *GOOD, *BAD, *FILLER]


def roberta_folder(folder: Path) -> None:
    """A random RoBERTa without a head, 16 wide, two layers, as a checkpoint of the hub stands."""
    config = transformers.RobertaConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=66, type_vocab_size=1, initializer_range=0.2)
    torch.manual_seed(0)
    transformers.RobertaModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>",
        eos_token="</s>", bos_token="<s>").save_pretrained(folder)


def run(words: list[str], address: str, place: Path) -> subprocess.CompletedProcess[str]:
    env = environment(address, place / "home") | {"LOWRANK_TEACH_DATA": str(place / "data"),
                                                  "LOWRANK_TEACH_RUNS": str(place / "runs")}
    words = [sys.executable, "-m", "lowrank_teach.cli", *words]
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=150)


LINE = ["train", "--preset", "salora/roberta-base/cola", "--profile", "tiny", "--seed", "1", "--set", "b=0.25"]


@pytest.fixture
def place(tmp_path) -> Path:
    data_folder(tmp_path / "data", "cola", "sentence")
    return tmp_path


def test_a_cell_trains_from_the_papers_own_name(place):
    """The checkpoint served as FacebookAI/roberta-base is loaded by the preset, adapted, trained and stored."""
    roberta_folder(place / "hub" / "models" / "FacebookAI" / "roberta-base")
    with hub(place / "hub") as server:
        done = run([*LINE, "--json"], server.address, place)
        assert done.returncode == 0, done.stderr
        assert any("/FacebookAI/roberta-base/resolve" in asked for asked in server.asked)
    record = json.loads(done.stdout)
    config = record["config"]
    assert (config["backbone"], config["task"], config["seed"]) == ("FacebookAI/roberta-base", "cola", 1)
    assert (config["method"]["method"], config["method"]["r"], config["method"]["b"]) == ("salora", 8, 0.25)
    assert config["training"]["lr"] == 3e-4
    assert len(record["ranks"]) == 12
    assert record["notes"][0] == "preset salora/roberta-base/cola: table 1, GLUE"
    assert not any("not the paper's cell" in note for note in record["notes"])
    assert "changed: b = 0.25" in record["notes"]
    again = run([*LINE, "--json"], "http://127.0.0.1:9", place)  # stored: no hub is asked
    assert json.loads(again.stdout)["key"] == record["key"]


def test_without_the_checkpoint_the_sentence_has_the_line_that_trains_the_stand_in(place):
    with socket.socket() as nobody:  # a port that nobody listens on
        nobody.bind(("127.0.0.1", 0))
        done = run(LINE, f"http://127.0.0.1:{nobody.getsockname()[1]}", place)
    assert done.returncode == 2
    assert done.stdout == ""
    sentence = done.stderr.strip().splitlines()[-1]
    assert re.match(r"lowrank-teach: FacebookAI/roberta-base, the model of salora/roberta-base/cola, cannot be had "
                    r"here \(.+\): name a folder that holds it as the backbone, or train the packaged minilm-l6 in "
                    r"its place, which is not the paper's cell: ", sentence)
    assert sentence.endswith("lowrank-teach " + " ".join(LINE) + " --stand-in")
    assert "Traceback" not in done.stderr


@pytest.mark.asset
def test_the_stand_in_is_said_on_the_screen_and_in_the_record(place, monkeypatch, capsys):
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
    monkeypatch.setattr(Preset, "stand_in", "minilm-l3")  # half the cost of the default
    changes = ("steps=16", "n_train=64", "batch_size=4", "eta_c=0.4")
    words = (*(f"--set={pair}" for pair in changes), "--stand-in")
    status, out, err = command(monkeypatch, capsys, *LINE[:5], *words)
    assert status == 0, err
    shown = " ".join(out.split())
    assert "not the paper's cell: minilm-l3 in place of FacebookAI/roberta-base" in shown
    stored, = lt.Store()
    assert "not the paper's cell: minilm-l3 in place of FacebookAI/roberta-base" in stored.notes
    assert isinstance(lt.Method.from_dict(stored.config["method"]), SaLoRA)


def test_a_folder_in_place_of_the_checkpoint(place, monkeypatch):
    """An offline machine with its own copy; and a baseline of the same table."""
    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(place / "data"))
    roberta_folder(place / "copy")
    found = lt.preset("salora/roberta-base/cola").fit(
        0, profile="tiny", method="lora", backbone=str(place / "copy"), progress=False, steps=4)
    assert found.config["method"]["method"] == "lora"
    assert found.config["method"]["sites"] == "all"
    assert "the baseline lora of that table" in found.notes
    assert any(note.startswith("not the paper's cell") for note in found.notes)

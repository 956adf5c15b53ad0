"""Text is the same however it is made: cached or not, merged or not, alone or in a batch, step by step by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from helpers import EOS, PAD, VOCAB, Stop, collate_for, rows_for, shake, tiny
from torch import Tensor, nn
from transformers import GenerationConfig

from lowrank_teach.adapters import Adapters, adapt
from lowrank_teach.experiments.fit import fit
from lowrank_teach.methods import COLA, AutoLoRA, DeltaLoRA, LoRA, Method, SaLoRA
from lowrank_teach.models.backbones import load_backbone
from lowrank_teach.tasks.evaluate import evaluate
from lowrank_teach.tasks.generation import Generation, generate, positions
from lowrank_teach.tasks.table import TASKS
from lowrank_teach.tasks.tokenize import IGNORED
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer

WRITERS: dict[str, dict[str, Any]] = {  # name -> its architecture, and changes of its configuration
    "gpt2": {"kind": "gpt2"},
    "opt": {"kind": "opt"},
    "opt-projected": {"kind": "opt", "word_embed_proj_dim": 8, "do_layer_norm_before": False},
    "llama": {"kind": "llama"},
    "llama-tied": {"kind": "llama", "tie_word_embeddings": True},
    "t5": {"kind": "t5", "initializer_factor": 2.0},  # T5's own start is so small that all texts are alike
    "t5-gated": {"kind": "t5", "initializer_factor": 2.0, "feed_forward_proj": "gated-gelu",
                 "tie_word_embeddings": False},
    "bart": {"kind": "bart"},
}
# one of each kind of trace that a method leaves in a branch or in W
TRACES: dict[str, Method] = {
    "lora": LoRA(r=4, sites="all", lora_dropout=0.3),
    "cola": COLA(r=4, chain=3, sites="all"),
    "cola-stacked": COLA(r=4, chain=3, merge_knots=False),
    "salora": SaLoRA(r=4, eta_c=0.5, t_end=6),
    "salora-in-its-window": SaLoRA(r=4, eta_c=0.5, t_end=1.0),
    "delta": DeltaLoRA(r=4, K=2),
    "delta-lazy": DeltaLoRA(r=4, K=2, form="lazy"),
    "delta-schedule": DeltaLoRA(r=4, K=2, lam=1.0, lam_end=0.5),
    "autolora": AutoLoRA(r=4, eta_beta=0.05, retrain=False),
}
NEVER = VOCAB - 1  # as an end of text: a token that the trained models hardly write
GREEDY = Generation(max_new_tokens=6, no_repeat_ngram_size=1)  # each token once: random models repeat themselves
BEAMS = Generation(max_new_tokens=6, num_beams=3, length_penalty=0.8, no_repeat_ngram_size=2)


class Words:
    """As much of a tokenizer as is used here; token 7 is written 't7', and every token shows."""

    pad_token_id, bos_token_id = PAD, 1

    def __init__(self, end: int = EOS) -> None:
        self.eos_token_id = end

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(f"t{i}" for i in ids)


def writer(name: str, **changes: Any) -> Any:
    kind = WRITERS[name]["kind"]
    head = "seq2seq" if kind in ("t5", "bart") else "causal"
    rest = {key: value for key, value in WRITERS[name].items() if key != "kind"}
    return tiny(kind, head=head, **{"dtype": torch.float64, **rest, **changes})


def prompts(n: int = 6, seed: int = 1) -> list[list[int]]:
    """Prompts of 1 to 12 tokens."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (1 + 11 * i // max(n - 1, 1),), generator=g).tolist() for i in range(n)]


def as_rows(model: Any, given: list[list[int]]) -> list[dict[str, Any]]:
    """Rows with these prompts; a decoder's go on with a target that must not be shown."""
    if model.config.is_encoder_decoder:
        return [{"input_ids": ids, "labels": [5, EOS]} for ids in given]
    return [{"input_ids": [*ids, 5, EOS], "labels": [-100] * len(ids) + [5, EOS]} for ids in given]


@torch.no_grad()
def logits_after(model: Any, prompt: list[int], written: list[list[int]]) -> Tensor:
    """Logits (n, V) of what comes after each of n beginnings of one length: full passes, no padding, no cache."""
    given = torch.tensor([prompt] * len(written))
    text = torch.tensor(written, dtype=torch.int64)                                           # (n, tokens)
    if model.config.is_encoder_decoder:
        start = torch.full((len(written), 1), model.config.decoder_start_token_id)
        ids = {"input_ids": given, "decoder_input_ids": torch.cat([start, text], 1)}
    else:
        ids = {"input_ids": torch.cat([given, text], 1)}
    return model(**ids, use_cache=False).logits[:, -1].double()


def by_hand(model: Any, prompt: list[int], how: Generation | int, end: int = EOS) -> str:
    """Greedy, token by token, from full forward passes. how: or the number of tokens at most."""
    how = Generation(max_new_tokens=how) if isinstance(how, int) else how
    written: list[int] = []
    while len(written) < how.max_new_tokens:
        logits, n = logits_after(model, prompt, [written])[0], how.no_repeat_ngram_size
        for i in range(len(written) - n + 1 if n else 0):
            if written[i:i + n - 1] == written[len(written) - n + 1:]:
                logits[written[i + n - 1]] = -math.inf
        token = int(logits.argmax())
        if token == end:
            break
        written.append(token)
    return Words().decode(written)


def endless(head: str) -> list[dict[str, Any]]:
    """Rows of text whose end is not learned, so that what is written is as long as it may be."""
    rows = rows_for(head)
    return [row | {"labels": [IGNORED if token == EOS else token for token in row["labels"]]} for row in rows]


def trained(name: str, method: Method, *, stop: int = 0, **config: Any) -> Adapters:
    """A short training on such rows."""
    model = writer(name, **({"dropout": 0.1} if "dtype" not in config else {"dtype": config.pop("dtype")}))
    head = "seq2seq" if model.config.is_encoder_decoder else "causal"
    adapters = adapt(model, method, seed=0)
    settings = TrainConfig(**{"steps": 8, "batch_size": 8, "lr": 1e-2, **config})
    Trainer(adapters, endless(head), collate_for(head), settings, seed=0, cpu=True,
            callbacks=[Stop(stop)] if stop else []).run()
    return adapters


# ---- a cache, a branch, a merge ---------------------------------------------------------------------------

FAMILY = ("gpt2", "opt-projected", "llama", "t5", "bart")
SAMPLED = ("lora", "salora-in-its-window")  # dropout and noise while it trains: on every family
ACTIVE = ("cola-stacked", "salora", "delta-lazy")  # on a fused layer, and with cross-attention
WRITTEN = ("cola", "delta", "delta-schedule", "autolora")  # into W, or with no trace but the branch


@pytest.mark.parametrize(("name", "trace"), [
    *itertools.product(FAMILY, SAMPLED), *itertools.product(("gpt2", "t5"), ACTIVE),
    *zip(("llama-tied", "t5-gated", "llama-tied", "t5-gated"), WRITTEN, strict=True)])
def test_cached_uncached_merged_and_by_hand_are_one_text(name, trace):
    """After any method: the cache holds what the branches made of the prompt, greedily and by beam."""
    inside = trace == "salora-in-its-window"  # gates are noisy in training mode, and fixed while writing
    adapters = trained(name, TRACES[trace], stop=5 if inside else 0, lr=3e-2 if "salora" in trace else 1e-2)
    model, given = adapters.model, prompts(4)
    rows, words = as_rows(model, given), Words(NEVER)
    model.train()  # as in the middle of a training, where the branches' dropout and the gates' noise are on
    greedy, beams = (generate(model, rows, words, how) for how in (GREEDY, BEAMS))
    assert len(set(" ".join(greedy).split())) > 6  # enough happens in these texts for a slip to show
    assert generate(model, rows, words, GREEDY, use_cache=False) == greedy
    assert generate(model, rows, words, BEAMS, use_cache=False) == beams
    model.eval()
    assert [by_hand(model, prompt, GREEDY, end=NEVER) for prompt in given] == greedy
    adapters.merge()
    assert generate(model, rows, words, GREEDY) == greedy
    assert generate(model, rows, words, BEAMS) == beams
    adapters.remove()
    assert [generate(model, rows, words, how) for how in (GREEDY, BEAMS)] != [greedy, beams]  # branches did count


@pytest.mark.parametrize("name", FAMILY)
def test_beams_find_the_best_of_all_texts(name):
    """With a beam for every token, two steps of search find the best of all 1,561 texts, at either penalty."""
    adapters = adapt(writer(name), LoRA(r=4, sites="all"), seed=0)
    shake(adapters)
    model, given = adapters.model, prompts(3)
    end = int(logits_after(model, given[0], [[]]).argmax())  # a likely end: some texts are short
    lengths = []
    for penalty in (0.2, 2.0):
        best = [best_of_all(model, prompt, penalty, end) for prompt in given]
        assert best == generate(model, as_rows(model, given), Words(end), max_new_tokens=2, num_beams=VOCAB,
                                length_penalty=penalty, batch_size=3 * VOCAB)
        lengths.append(sum(len(text.split()) for text in best))
    assert lengths[0] < lengths[1]  # the penalty decides


def best_of_all(model: Any, prompt: list[int], penalty: float, end: int) -> str:
    """Of all texts of two tokens, or of fewer and an end: the largest log-probability / length ** penalty."""
    first = logits_after(model, prompt, [[]])[0].log_softmax(-1)
    second = logits_after(model, prompt, [[a] for a in range(VOCAB)]).log_softmax(-1)
    scores = {(a, b): float(first[a] + second[a, b]) / 2**penalty
              for a, b in itertools.product(range(VOCAB), range(VOCAB)) if a != end}
    scores[(end,)] = float(first[end])
    best = max(scores, key=scores.__getitem__)
    return Words().decode(best[:best.index(end)] if end in best else best)


# ---- padding, batches, order ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_a_text_is_that_of_its_prompt_alone(name):
    """Prompts of 1 to 12 tokens in batches of any size: each text is that of its row by hand, in the rows' order."""
    adapters = adapt(writer(name), LoRA(r=4, sites="all"), seed=0)
    shake(adapters)
    model, given, words = adapters.model, [*prompts(4), *prompts(3, seed=2)], Words(NEVER)
    rows = as_rows(model, given)
    expected = [by_hand(model, prompt, GREEDY, end=NEVER) for prompt in given]
    assert len(set(expected)) > 4
    for size in (3, 16):
        assert generate(model, rows, words, GREEDY, batch_size=size) == expected
    beams = generate(model, rows, words, BEAMS, batch_size=64)
    assert generate(model, rows, words, BEAMS, batch_size=3) == beams


def test_prompts_of_like_lengths_go_together(monkeypatch):
    """Longest first, so that what does not fit in memory fails at once; beams count as rows."""
    model = writer("gpt2")
    rows, seen = as_rows(model, prompts(8)), []
    write = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: (seen.append(tuple(given["input_ids"].shape)),
                                                            write(**given))[1])
    generate(model, rows, Words(), max_new_tokens=2, batch_size=3)
    lengths = sorted((len(ids) for ids in prompts(8)), reverse=True)
    assert seen == [(3, lengths[0]), (3, lengths[3]), (2, lengths[6])]
    seen.clear()
    generate(model, rows, Words(), max_new_tokens=2, batch_size=8, num_beams=4)
    assert [rows for rows, _ in seen] == [2, 2, 2, 2]


@pytest.mark.parametrize("name", FAMILY)
def test_each_text_ends_at_its_own_end(name):
    """Rows of one batch end at different places; nothing that comes after an end is shown."""
    adapters = adapt(writer(name), LoRA(r=4, sites="all"), seed=3)
    shake(adapters, scale=0.5)
    model, given = adapters.model, prompts(8)
    rows = as_rows(model, given)
    long = [text.split() for text in generate(model, rows, Words(NEVER), max_new_tokens=8)]
    ends = sorted({int(word[1:]) for text in long for word in text[1:]},
                  key=lambda end: -len({text.index(f"t{end}") if f"t{end}" in text else 9 for text in long}))
    expected = [by_hand(model, prompt, 8, end=ends[0]) for prompt in given]
    assert len({len(text.split()) for text in expected}) > 1
    assert generate(model, rows, Words(ends[0]), max_new_tokens=8) == expected


def test_a_pad_that_is_the_end_too_and_an_empty_prompt():
    """Many decoders pad with their end; GPT-2's tokenizer puts nothing in front of a text: the first token stands."""
    model, given = writer("gpt2"), prompts(5)
    words = Words()
    words.pad_token_id = EOS
    assert generate(model, as_rows(model, [*given, []]), words, max_new_tokens=5) == \
        [by_hand(model, prompt, 5) for prompt in [*given, [1]]]
    assert generate(model, [], Words()) == []


def test_no_run_twice_in_the_text_but_the_prompts_may_come_again():
    """Two tokens that stood in the prompt may be written once; transformers' own rule would forbid them."""
    model = writer("gpt2")
    given = [[10, 12, 12], [33, 33], [21, 33, 15]]
    how = Generation(max_new_tokens=8, no_repeat_ngram_size=2)
    rows, expected = as_rows(model, given), [by_hand(model, prompt, how) for prompt in given]
    assert generate(model, rows, Words(), how) == expected
    assert generate(model, rows, Words(), max_new_tokens=8) != expected
    for text in (text.split() for text in expected):
        runs = list(itertools.pairwise(text))
        assert len(runs) == len(set(runs))
    assert "t33 t33" in expected[1]  # the pair that stands in the prompt


# ---- what must not count ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_writing_is_in_eval_mode_and_leaves_everything_as_it_was(name):
    """Dropout in the model and on the branch, gates that sample: the texts are those of eval mode."""
    model = writer(name, dropout=0.5)
    adapters = adapt(model, LoRA(r=4, lora_dropout=0.5), seed=0)
    shake(adapters)
    rows = as_rows(model, prompts(3))
    calm = generate(model.eval(), rows, Words(NEVER), max_new_tokens=4)
    model.train()
    next(module for module in model.modules() if isinstance(module, nn.Embedding)).eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    own = model.generation_config
    assert generate(model, rows, Words(NEVER), max_new_tokens=4) == calm
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config is own
    with pytest.raises(IndexError):
        generate(model, as_rows(model, [[VOCAB + 7]]), Words(), max_new_tokens=4)
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is own


@pytest.mark.parametrize("name", FAMILY)
def test_what_a_checkpoint_asks_for_does_not_count(name):
    """bart-large brings four beams, a least length and a ban on runs: nobody asked for them here."""
    model = writer(name)
    rows = as_rows(model, prompts(4))
    plain = generate(model, rows, Words(), max_new_tokens=5)
    model.generation_config = GenerationConfig(
        num_beams=4, min_new_tokens=5, no_repeat_ngram_size=1, repetition_penalty=9.0, length_penalty=-3.0,
        do_sample=True, temperature=9.0, suppress_tokens=list(range(3, 20)), early_stopping=True, max_length=3,
        decoder_start_token_id=model.generation_config.decoder_start_token_id)
    assert generate(model, rows, Words(), max_new_tokens=5) == plain


def test_after_training_with_gradient_checkpointing():
    """Recomputation belongs to the training: writing has its cache, and the texts are those by hand."""
    adapters = trained("gpt2", LoRA(r=4, sites="all"), gradient_checkpointing=True)
    given = prompts(3)
    texts = generate(adapters.model, as_rows(adapters.model, given), Words(NEVER), max_new_tokens=5)
    adapters.model.eval()
    assert texts == [by_hand(adapters.model, prompt, 5, end=NEVER) for prompt in given]


@pytest.mark.parametrize("name", FAMILY)
def test_texts_in_the_middle_of_a_training_in_mixed_precision(name):
    """Under autocast the cache is bfloat16 and the branches float32: texts are written and scored all the same."""
    model = writer(name, dtype=torch.float32)
    head = "seq2seq" if model.config.is_encoder_decoder else "causal"
    rows, collate, seen = rows_for(head), collate_for(head), []

    def look(model: Any) -> dict[str, float]:
        seen.append(generate(model, as_rows(model, prompts(3)), Words(NEVER), max_new_tokens=4, num_beams=2))
        return {"loss": 0.0}

    config = TrainConfig(steps=4, batch_size=8, eval_every=2, mixed_precision="bf16", lr=1e-2)
    Trainer(adapt(model, LoRA(r=4), seed=0), rows, collate, config, evaluate=look, cpu=True).run()
    assert len(seen) == 2
    assert all(text for texts in seen for text in texts)


@pytest.mark.parametrize("name", FAMILY)
def test_a_bfloat16_base_with_a_float32_branch(name):
    """Cached, and the first token (which no earlier rounding has touched) that of a full forward pass."""
    adapters = trained(name, LoRA(r=4, sites="all"), dtype=torch.bfloat16)
    model, given = adapters.model, prompts(4)
    texts = generate(model, as_rows(model, given), Words(NEVER), max_new_tokens=4, batch_size=1)
    model.eval()
    assert [text.split()[:1] for text in texts] == [by_hand(model, prompt, 1, end=NEVER).split() for prompt in given]


# ---- draws ------------------------------------------------------------------------------------------------


def test_draws_depend_on_the_seed_and_the_place_alone():
    """Not on the batch, and not on torch's own random state."""
    model = writer("llama")
    rows = as_rows(model, [[5, 6, 7]] * 5)
    first = generate(model, rows, Words(), max_new_tokens=5, temperature=1.5)
    torch.manual_seed(99)
    assert generate(model, rows, Words(), max_new_tokens=5, temperature=1.5, batch_size=2) == first
    assert generate(model, rows[:2], Words(), max_new_tokens=5, temperature=1.5) == first[:2]
    assert len(set(first)) > 2
    assert generate(model, rows, Words(), max_new_tokens=5, temperature=1.5, seed=1) != first


def test_draws_have_the_frequencies_of_the_softmax():
    """First tokens of 1,500 draws: every frequency within four standard errors of softmax(logits / T)."""
    model, T, n = writer("llama", dtype=torch.float32), 2.0, 1500
    p = (logits_after(model, [5, 6, 7], [[]])[0] / T).softmax(-1)
    texts = generate(model, as_rows(model, [[5, 6, 7]] * n), Words(VOCAB), max_new_tokens=1, temperature=T,
                     batch_size=n)
    counts = torch.bincount(torch.tensor([int(text[1:]) for text in texts]), minlength=VOCAB)
    assert (p > 0.03).sum() > 5
    assert ((counts / n - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-3).all()


# ---- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "says"), [
    ({"max_new_tokens": 0}, "max_new_tokens = 0"), ({"num_beams": 0}, "num_beams = 0"),
    ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size = -1"), ({"temperature": -1.0}, "temperature = -1"),
    ({"num_beams": 2, "temperature": 0.5}, "set num_beams = 1 or temperature = 0"),
    ({"length_penalty": 0.8}, "set num_beams above 1"), ({"num_beams": 2.5}, "num_beams = 2.5"),
    ({"length_penalty": math.nan, "num_beams": 2}, "length_penalty = nan")])
def test_settings_that_make_no_sense(settings, says):
    with pytest.raises(ValueError, match=says):
        Generation(**settings)


@pytest.mark.parametrize(("name", "room"), [("gpt2", 32), ("opt", 32), ("llama", 32), ("t5", None), ("bart", 32)])
def test_positions_end(name, room):
    """As many tokens as there are positions are written; one more is refused before anything is written."""
    model = writer(name)
    assert positions(model) == room
    if room is None:
        fits, refused = ([[5] * 200], 2), []
    elif name == "bart":  # the encoder's positions and the decoder's are counted apart
        fits = [[6] * 32], 31
        refused = [([[6] * 33], 1, "row 0 gives the model 33 tokens, but it has 32 positions"),
                   ([[6] * 3], 33, "max_new_tokens = 33 leaves nothing of the model's 32 positions")]
    else:
        fits = [[5] * 3, [6] * 24], 8
        refused = [(fits[0], 9, "row 1 gives the model 24 tokens and 9 more may be written, but it has 32 positions: "
                                "encode with max_length ≤ 23, or write fewer than 9"),
                   (fits[0], 32, "max_new_tokens = 32 leaves nothing of the model's 32 positions")]
    assert all(generate(model, as_rows(model, fits[0]), Words(NEVER), max_new_tokens=fits[1]))
    for given, number, says in refused:
        with pytest.raises(ValueError, match=says):
            generate(model, as_rows(model, given), Words(NEVER), max_new_tokens=number)


@pytest.mark.parametrize(("kind", "room"), [("bert", 32), ("distilbert", 32), ("roberta", 31), ("mpnet", 30)])
def test_encoders_that_count_from_the_pad(kind, room):
    """RoBERTa's first token stands after the pad's index: the table has room for fewer tokens than rows."""
    model = tiny(kind)
    assert positions(model) == room
    model(input_ids=torch.full((1, room), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, room + 1), 5))


def test_a_run_is_refused_before_its_training(tmp_path, monkeypatch):
    """Rows that the model has no positions for, or beams' settings without beams: no step is taken."""
    from tiny_models import data_folder, model_folder

    monkeypatch.setenv("LOWRANK_TEACH_DATA", str(data_folder(tmp_path / "data")))
    folder = str(model_folder(tmp_path / "model", max_position_embeddings=5))
    with pytest.raises(ValueError, match=r"row 0 gives the model \d+ tokens, but it has 5 positions: encode with "
                                         r"max_length ≤ 5"):
        fit("lora", "rt", folder, "tiny", progress=False)
    assert fit("lora", "rt", folder, "tiny", progress=False, max_length=5, steps=2).metrics
    with pytest.raises(ValueError, match="set num_beams above 1"):
        fit("lora", "rt", folder, "tiny", progress=False, max_length=5, length_penalty=0.8)


# ---- in an evaluation and in a run ------------------------------------------------------------------------


def test_evaluate_writes_as_it_is_told(monkeypatch):
    """The settings reach the texts; an input counts once, with all of its references, and whole."""
    model = writer("llama", dtype=torch.float32)
    rows = [row | {"group": group, "reference": reference} for row, (group, reference) in zip(
        as_rows(model, [[5, 6], [5, 6], [7, 8, 9], [7, 8, 9], [10]]),
        [("a", "t1"), ("a", "t2"), ("b", "t3"), ("b", "t4"), ("c", "t5")], strict=True)]
    collate, words, asked = collate_for("causal"), Words(), []
    monkeypatch.setattr("lowrank_teach.tasks.evaluate.score", lambda names, texts, wanted, *rest: asked.append(
        (texts, wanted)) or {"bleu": 0.0} if wanted and isinstance(wanted[0], list) else {})
    for how in (Generation(max_new_tokens=6), Generation(max_new_tokens=6, num_beams=4, no_repeat_ngram_size=1)):
        evaluate(model, rows, collate, TASKS["e2e"], tokenizer=words, generate_rows=2, generation=how)
        texts, wanted = asked.pop()
        assert wanted == [["t1", "t2"], ["t3", "t4"]]
        assert texts == generate(model, [rows[0], rows[2]], words, how)


def test_a_record_names_every_setting():
    told = TrainConfig(num_beams=10, length_penalty=0.8, no_repeat_ngram_size=4, n_written=None)
    assert set(told.to_dict()) == set(TrainConfig().to_dict()) == {f.name for f in dataclasses.fields(TrainConfig)}
    assert TrainConfig(**told.to_dict()) == told


# ---- real weights -----------------------------------------------------------------------------------------


@pytest.mark.asset
@pytest.mark.parametrize(("name", "asks"), [
    ("flan-t5-small-titles", ["translate English to German: The house is wonderful.", "Say yes or no: is it?"]),
    ("smollm2-135m", ["The capital of France is", "One, two, three,"])])
def test_real_weights_with_a_moved_branch(name, asks):
    """Alone and in a batch, cached and not, merged and not: one text."""
    model, tokenizer = load_backbone(name)
    adapters = adapt(model, LoRA(r=4), seed=0)
    shake(adapters, scale=0.1)
    ids = [tokenizer(ask)["input_ids"] for ask in asks]
    rows = as_rows(model, ids)
    texts = generate(model, rows, tokenizer, max_new_tokens=3)
    assert texts == generate(model, rows, tokenizer, max_new_tokens=3, use_cache=False, batch_size=1)
    adapters.merge()
    assert texts == generate(model, rows, tokenizer, max_new_tokens=3)
    adapters.remove()
    assert texts != generate(model, rows, tokenizer, max_new_tokens=3)

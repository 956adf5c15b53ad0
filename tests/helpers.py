"""Tiny random transformers of every architecture of the table, rows that can be learned, and a short training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from lowrank_teach.adapters import Adapters, adapt
from lowrank_teach.analysis.measures import parameter_counts
from lowrank_teach.methods import Clock, Method
from lowrank_teach.tasks.tokenize import Collate
from lowrank_teach.training.callbacks import Callback, Outcome
from lowrank_teach.training.config import TrainConfig
from lowrank_teach.training.trainer import Trainer

FAMILIES = ("bert", "roberta", "distilbert", "mpnet", "gpt2", "opt", "llama", "t5", "bart")
PAD, EOS, VOCAB = 0, 2, 40

_COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 1}
_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "max_position_embeddings": 32, "initializer_range": 0.2}
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 32,
                   "initializer_range": 0.2},
    "mpnet": _ENCODER,
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.2},
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
            "word_embed_proj_dim": 16, "max_position_embeddings": 32, "init_std": 0.2},
    "llama": {**_ENCODER, "num_key_value_heads": 1},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": PAD},
    "bart": {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "init_std": 0.2,
             "max_position_embeddings": 32, "decoder_start_token_id": EOS, "forced_eos_token_id": EOS},
}
_NAMES = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "mpnet": "MPNet", "gpt2": "GPT2",
          "opt": "OPT", "llama": "Llama", "t5": "T5", "bart": "Bart"}
HEADS = {"classification": ("ForSequenceClassification",), "tagging": ("ForTokenClassification",),
         "causal": ("ForCausalLM", "LMHeadModel"), "seq2seq": ("ForConditionalGeneration",)}
# every name under which a configuration of the table keeps a dropout probability
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout",
             "seq_classif_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "dropout_rate",
             "classifier_dropout", "activation_dropout")


def tiny(kind: str = "bert", *, labels: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32,
         dropout: float = 0.0, head: str = "classification", **changes: Any) -> Any:
    """A random model of one architecture, by head of HEADS: width 16, two layers, without dropout unless asked."""
    config = getattr(transformers, f"{_NAMES[kind]}Config")(**{**_COMMON, **_CONFIGS[kind], **changes},
                                                            num_labels=labels)
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    made = next(m for end in HEADS[head] if (m := getattr(transformers, _NAMES[kind] + end, None)) is not None)
    model = made(config)
    torch.set_rng_state(state)
    return model.to(dtype).eval()


def make_rows(n: int = 64, *, labels: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Rows whose label is the band of the vocabulary that their first word lies in; of unlike lengths."""
    g = torch.Generator().manual_seed(seed)
    width = (VOCAB - 3) // labels
    rows = []
    for _ in range(n):
        length = int(torch.randint(3, 8, (), generator=g))
        words = torch.randint(3, VOCAB, (length,), generator=g).tolist()
        rows.append({"input_ids": [*words, EOS], "labels": min((words[0] - 3) // width, labels - 1)})
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows -> input_ids, attention_mask (rows, longest) and labels (rows,)."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), longest), PAD)
    for i, row in enumerate(rows):
        ids[i, :len(row["input_ids"])] = torch.tensor(row["input_ids"])
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(),
            "labels": torch.tensor([row["labels"] for row in rows])}


def rows_for(head: str, n: int = 48, *, labels: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Rows as `encode` makes them, for any head; a text to write is the words given, each put for another."""
    rows = []
    for row in make_rows(n, labels=labels, seed=seed):
        ids = row["input_ids"]
        text = [*(3 + 7 * word % (VOCAB - 3) for word in ids[:-1]), EOS]
        wanted = {"classification": row["labels"], "tagging": [token % labels for token in ids],
                  "causal": [-100] * len(ids) + text, "seq2seq": text}[head]
        ids = ids + text if head == "causal" else ids
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": wanted})
    return rows


def collate_for(head: str) -> Collate:
    """The package's own collate for such rows."""
    causal = head == "causal"
    task: Any = SimpleNamespace(kind="seq2seq" if causal else head, name=head)
    return Collate(SimpleNamespace(pad_token_id=PAD), task, causal)  # type: ignore[arg-type]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the tiny models' words "3" to "39", which closes every text."""
    words = {"[pad]": PAD, "[begin]": 1, "[end]": EOS} | {str(i): i for i in range(3, VOCAB)}
    made = Tokenizer(WordLevel(words, unk_token="3"))
    made.pre_tokenizer = WhitespaceSplit()
    made.post_processor = TemplateProcessing(single="$A [end]", special_tokens=[("[end]", EOS)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[pad]", bos_token="[begin]", eos_token="[end]")


def make_batch(n: int = 6, *, labels: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return collate(make_rows(n, labels=labels, seed=seed))


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits in eval mode; the mode is left as it was."""
    training = model.training
    model.eval()
    try:
        return model(**batch).logits
    finally:
        model.train(training)


def gap(left: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest value on the right where that is above 1."""
    return float((left - right).abs().max() / right.abs().max().clamp_min(1))


def rounding(model: nn.Module) -> float:
    """How far two ways to compute the same logits may lie apart by rounding alone, as `gap` measures it.

    A sum over k terms is off by at most k eps of its operands' size, in whatever order it is taken (Higham, Accuracy
    and Stability of Numerical Algorithms, section 3.1), and the order is the processor's: it follows from its vector
    length, the threads and the layout of the matrix in memory. The errors of n products in series add up, and layer
    norms keep the operands near size 1; that makes n k eps. n is the number of matrices: q, k and v stand side by
    side, which makes room for the two products of attention. k is their longest side; eps is that of their dtype.

    The tiny models of FAMILIES stay at a ninth of it or below; a scale that is off by 1 % is above ten times of it.
    """
    matrices = [module.weight for name, module in model.named_modules()
                if isinstance(module, nn.Linear | Conv1D) and "lora_" not in name]
    return len(matrices) * max(max(W.shape) for W in matrices) * torch.finfo(matrices[0].dtype).eps


def bytes_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, by name."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_tensors(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Equal names and equal bytes."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def shake(adapters: Adapters, seed: int = 0, scale: float = 0.3) -> None:
    """Give every B (and A) values as if it had been trained, so that the branches count."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for branch in adapters.values():
            branch.lora_B.add_(scale * torch.randn(branch.lora_B.shape, generator=g).to(branch.lora_B))
            branch.lora_A.add_(scale * torch.randn(branch.lora_A.shape, generator=g).to(branch.lora_A))


class Stop(Callback):
    """Stops after one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, clock: Clock, values: dict[str, float]) -> bool:
        return clock.step == self.step


class Watch(Callback):
    """Calls a function with the step's number and values after each step."""

    def __init__(self, call: Callable[[int, dict[str, float]], None]) -> None:
        self.call = call

    def on_step(self, clock: Clock, values: dict[str, float]) -> None:
        self.call(clock.step, values)


def trainer(method: Method, model: Any = None, *, seed: int = 0, rows: int = 64,
            callbacks: Sequence[Callback] = (), checkpoint: Path | None = None, identity: str = "",
            evaluate: Any = None, **config: Any) -> Trainer:
    """A Trainer of one method on a tiny model; twelve steps of eight rows unless told."""
    model = tiny() if model is None else model
    settings = {"steps": 12, "batch_size": 8, "lr": 1e-2, **config}
    return Trainer(adapt(model, method, seed=seed), make_rows(rows, labels=model.config.num_labels), collate,
                   TrainConfig(**settings), seed=seed, callbacks=callbacks, checkpoint=checkpoint,
                   identity=identity, evaluate=evaluate, cpu=True)


def train(method: Method, model: Any = None, **settings: Any) -> tuple[Adapters, Outcome]:
    """The adapters after such a training, and its outcome."""
    made = trainer(method, model, **settings)
    return made.adapters, made.run()


class Letters:
    """A tokenizer of letters; 0 pads, 1 ends and starts, 2 is a new line."""

    pad_token_id, eos_token_id, bos_token_id, chat_template = 0, 1, None, None

    def __call__(self, text, **_):
        return {"input_ids": [2 if letter == "\n" else 3 + ord(letter) % 37 for letter in text]}

    def decode(self, ids, skip_special_tokens=True):
        return "".join("\n" if int(i) == 2 else chr(62 + int(i)) for i in ids if int(i) > 1)


SAYINGS = ("the cat sat on the mat.", "name : The Mill | eatType : pub ||", "Headline: a cat in the city",
           "Summary: No", "It was great. Yes or No? Maybe", "ä ö ü é 12 rooms") * 5
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
TOKENIZERS = ("byte-level BPE", "Llama 2", "over spaces", "Metaspace BPE", "Unigram", "WordPiece", "ByT5",
              "SentencePiece")   # the last two are Python code and know no offsets; "over spaces" has ":▁" and such


def tokenizer_of(kind: str, folder: Path | None = None) -> Any:
    """A tokenizer of one of the TOKENIZERS, trained on SAYINGS; with or without tokens around a text, as its kind is.

    folder: where SentencePiece's file goes.
    """
    if kind == "ByT5":
        return transformers.ByT5Tokenizer()
    if kind == "SentencePiece":
        return _sentencepiece(folder)
    space = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words = pre_tokenizers.Metaspace()
    alphabet = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if kind == "byte-level BPE" else {}
    settings = {"vocab_size": 360, "special_tokens": list(_SPECIAL), "show_progress": False}
    if kind == "Unigram":
        made, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token="<unk>", **settings)
    elif kind == "WordPiece":
        made, trainer = Tokenizer(models.WordPiece(unk_token="<unk>")), trainers.WordPieceTrainer(**settings)
        made.normalizer, words = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    else:
        made, trainer = Tokenizer(models.BPE(unk_token="<unk>")), trainers.BpeTrainer(**settings, **alphabet)
    if kind == "byte-level BPE":
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "over spaces":
        made.normalizer = space
    else:
        made.pre_tokenizer = words
    made.train_from_iterator(SAYINGS, trainer)
    if kind == "Llama 2":   # trained on words, then without them, as its file is
        made.pre_tokenizer, made.normalizer = None, space
    around = {"Llama 2": "<s> $A", "over spaces": "<s> $A", "Unigram": "$A </s>",
              "WordPiece": "<s> $A </s>"}.get(kind)
    made.decoder = {"byte-level BPE": decoders.ByteLevel(), "WordPiece": decoders.WordPiece()}.get(
        kind, decoders.Metaspace())
    if around:
        made.post_processor = TemplateProcessing(single=around, pair=f"{around} {around.replace('$A', '$B')}",
                                                 special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                                   unk_token="<unk>")


def _sentencepiece(folder: Path | None) -> Any:
    import sentencepiece

    assert folder is not None
    (folder / "sayings.txt").write_text("\n".join(SAYINGS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(input=str(folder / "sayings.txt"), model_prefix=str(folder / "sayings"),
                                             vocab_size=80, hard_vocab_limit=False, minloglevel=2)
    return transformers.BertGenerationTokenizer(str(folder / "sayings.model"))


def everything(made) -> tuple:
    """All that a finished run holds: tensors, plain values, moments, history, and what it hands over."""
    tensors, values = made.adapters.state_dict()
    moments = {f"{i}.{key}": value for i, group in enumerate(made.optimizer.param_groups)
               for j, p in enumerate(group["params"]) for key, value in
               {f"{j}.{k}": v for k, v in made.optimizer.state.get(p, {}).items()}.items()}
    W = {path: owner.base.weight.detach().clone() for path, owner in made.adapters.owners.items()}
    # NaN is equal to nothing, so history is compared as text
    return ({k: v.clone() for k, v in tensors.items()}, moments, W,
            {"logits": logits(made.adapters.model, make_batch()), "random": torch.get_rng_state()},
            values, repr(made.outcome.history), made.outcome.following, made.adapters.ranks(),
            made.rule.notes(), made.outcome.finished, parameter_counts(made.adapters.model))


def assert_same(one: tuple, other: tuple) -> None:
    for mine, theirs in zip(one[:4], other[:4], strict=True):
        assert mine.keys() == theirs.keys()
        assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []
    assert one[4:] == other[4:]

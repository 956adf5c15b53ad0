"""A model and a task that a run takes a fraction of a second for: a folder for each, through the public names."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

GOOD, BAD = ("good", "fine", "warm", "rich"), ("bad", "dull", "cold", "poor")
FILLER = ("the", "film", "is", "a", "story", "of", "this", "and")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}   # no dropout


def model_folder(folder: Path, **changes: Any) -> Path:
    """A random BERT of two layers, 16 wide, with a tokenizer that knows the words above."""
    words = [*SPECIAL, *GOOD, *BAD, *FILLER]
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
              "initializer_range": 0.2, "max_position_embeddings": 64, "vocab_size": len(words), **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same weights in every test, whatever ran before
        model = BertModel(BertConfig(**config))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


def rows(n: int, seed: int = 0) -> pd.DataFrame:
    """Texts whose label is whether the one word that counts is good."""
    draw = random.Random(seed)
    made = []
    for i in range(n):
        words = draw.sample(FILLER, 5)
        words.insert(draw.randrange(6), draw.choice(GOOD if i % 2 else BAD))
        made.append((" ".join(words), i % 2))
    return pd.DataFrame(made, columns=["text", "label"])


def data_folder(folder: Path, task: str = "rt", text: str = "text") -> Path:
    """A folder for LOWRANK_TEACH_DATA with one task in it."""
    (folder / task).mkdir(parents=True)
    for i, (split, n) in enumerate({"train": 96, "validation": 16, "test": 32}.items()):
        rows(n, i).rename(columns={"text": text}).to_parquet(folder / task / f"{split}.parquet")
    return folder


def place_in(folder: Path, **changes: Any) -> Path:
    """The folder with a tiny model in tiny/ (`model_folder`) and rows in data/."""
    model_folder(folder / "tiny", **changes)
    data_folder(folder / "data")
    return folder


def left(folder: Path) -> list[Path]:
    """What stands in the folders "runs" and "passing" of a test's own folder."""
    return [path for name in ("runs", "passing") for path in (folder / name).rglob("*")]


def command(monkeypatch: Any, capsys: Any, *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `lowrank-teach WORDS`, run in this process."""
    from lowrank_teach import cli

    monkeypatch.setattr("sys.argv", ["lowrank-teach", *words])
    capsys.readouterr()
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, *capsys.readouterr()

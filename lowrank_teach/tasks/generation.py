"""Text out of a model: greedy, by beam search, or drawn. Taught in 08.

What a row's text is depends on its prompt and on the settings alone: not on the rows beside it, on their padding, or
on what a checkpoint's own generation settings ask for. Branches that are active change nothing of this: a branch is a
part of the matrix that made the keys and values in the cache, and no matrix moves while a text is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
)

from ..adaptable import modes_kept
from ..errors import require, require_types
from .tokenize import Feature, prompt_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_OF_THE_CHECKPOINT = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How a text is written.

    Args:
        max_new_tokens: tokens at most, the one that ends the text counted.
        num_beams: 1 takes the likeliest token each time (greedy); more keep so many beginnings alive (beam search).
        length_penalty: beams are ranked by log-probability / length ** length_penalty; above 0 favours long texts.
        no_repeat_ngram_size: no run of so many tokens comes twice in the text (the prompt's runs may come again);
            0 allows all.
        temperature: above 0 draws each token from softmax(logits / temperature); 0 draws nothing.
        seed: of what is drawn; a row's draws depend on the seed and the row's place alone.

    Raises:
        ValueError: a value is out of range, or beams and a temperature are both asked for.
    """

    max_new_tokens: int = 24
    num_beams: int = 1
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        require_types(self)
        for name, least in (("max_new_tokens", 1), ("num_beams", 1), ("no_repeat_ngram_size", 0), ("temperature", 0)):
            require(getattr(self, name) >= least, f"{name} = {getattr(self, name)} must be {least} or more")
        require(self.num_beams == 1 or not self.temperature, "beam search takes the likeliest beams and draws "
                                                             "nothing: set num_beams = 1 or temperature = 0")
        require(self.num_beams > 1 or self.length_penalty == 1.0, "length_penalty ranks beams: set num_beams above "
                                                                  "1, or leave it out")


def generate(
    model: Any,
    features: Sequence[Feature],
    tokenizer: PreTrainedTokenizerBase,
    generation: Generation | None = None,
    *,
    device: torch.device | str | None = None,
    batch_size: int = 16,
    use_cache: bool = True,
    **settings: Any,
) -> list[str]:
    """One text a row, in the order of the rows, written in eval mode; each module's mode is put back after.

    features: from `encode`; of a causal row only the prompt is given to the model.
    generation, settings: a `Generation`, and fields of it to change (`num_beams=4`).
    batch_size: rows at a time, a text's beams counted one by one; prompts of like lengths go together.
    use_cache: keep the keys and values of what is written; False computes them anew at every token, to the same end
        (not with a prefix, which is itself such keys and values).
    Raises ValueError for a prompt that leaves the model too few positions.
    """
    how = replace(generation or Generation(), **settings)
    refuse_long(model, features, how.max_new_tokens)
    place = torch.device(device) if device is not None else next(model.parameters()).device
    causal = not model.config.is_encoder_decoder
    prompts = [(prompt_of(row) if causal else row["input_ids"]) or [_begin(tokenizer)] for row in features]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # what needs most memory, first
    size = max(1, batch_size // how.num_beams)
    texts = [""] * len(prompts)
    with eval_mode(model), torch.no_grad(), _asked_for(model, tokenizer, how, use_cache) as config:
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            ids, mask = _padded([prompts[i] for i in chosen], tokenizer, left=causal)
            first = ids.shape[1] if causal else 1  # an encoder-decoder's text begins after its start token
            out = model.generate(input_ids=ids.to(place), attention_mask=mask.to(place), generation_config=config,
                                 logits_processor=_processors(how, first, chosen))
            for i, written in zip(chosen, out[:, first:].tolist(), strict=True):
                texts[i] = str(tokenizer.decode(_to_its_end(written, tokenizer), skip_special_tokens=True)).strip()
    return texts


def positions(model: Any) -> int | None:
    """How many tokens a model has positions for; None where they are relative (T5)."""
    room = getattr(model.config, "max_position_embeddings", None)
    for name, table in model.named_modules():
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            return table.num_embeddings - table.padding_idx - 1  # RoBERTa, MPNet: they count from the pad's place on
    return room


def refuse_long(model: Any, features: Sequence[Feature], max_new_tokens: int = 0) -> None:
    """Refuse rows, or prompts with what is to be written after them, that the model has no positions for.

    max_new_tokens: 0 looks at whole rows (training); above 0 at prompts (a decoder) and at the text alone.
    Raises ValueError that names the row and what fits. Nothing is cut: half a prompt asks for another text.
    """
    room, causal = positions(model), not model.config.is_encoder_decoder
    if room is None:
        return
    after = max_new_tokens if causal else 0
    require(max_new_tokens <= room and after < room, f"max_new_tokens = {max_new_tokens} leaves nothing of "
                                                     f"the model's {room} positions: write fewer")
    for i, row in enumerate(features):
        given = len(prompt_of(row) if after else row["input_ids"])
        more = f" and {after} more may be written" if after else ""
        less = f", or write fewer than {max_new_tokens}" if after else ""
        require(given + after <= room, f"row {i} gives the model {given} tokens{more}, but it has {room} positions: "
                                       f"encode with max_length ≤ {room - after}{less}")


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Eval mode for a while; each module gets its own mode back, for some may be kept in eval on purpose."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def _asked_for(model: Any, tokenizer: Any, how: Generation, use_cache: bool) -> Iterator[GenerationConfig]:
    """The settings asked for and the checkpoint's special tokens, for a while in place of all that it brings.

    transformers fills what a call leaves open from the model's own settings: a least length, penalties, beams.
    """
    own = model.generation_config
    config = GenerationConfig(
        **{name: getattr(own, name, None) for name in _OF_THE_CHECKPOINT}, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, max_new_tokens=how.max_new_tokens, num_beams=how.num_beams,
        length_penalty=how.length_penalty, do_sample=False, use_cache=use_cache)  # fmt: skip
    model.generation_config = config
    try:
        yield config
    finally:
        model.generation_config = own


def _processors(how: Generation, first: int, places: list[int]) -> LogitsProcessorList:
    made = LogitsProcessorList()
    if how.no_repeat_ngram_size:
        made.append(_InTheText(NoRepeatNGramLogitsProcessor(how.no_repeat_ngram_size), first))
    if how.temperature:
        made.append(_Draw(how.temperature, [how.seed * 1_000_003 + place for place in places]))
    return made


class _InTheText(LogitsProcessor):
    """A rule on what is written, without the prompt in front of it."""

    def __init__(self, rule: LogitsProcessor, first: int) -> None:
        self.rule, self.first = rule, first

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.rule(input_ids[:, self.first :], scores)  # (B, tokens so far), (B, V) -> (B, V)


class _Draw(LogitsProcessor):
    """Gumbel noise on the logits: their maximum is then a draw from softmax(logits / T), row by row."""

    def __init__(self, temperature: float, seeds: list[int]) -> None:
        self.temperature, self.streams = temperature, [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        empty = torch.empty(scores.shape[1], dtype=torch.float32, device="cpu")
        noise = torch.stack([-empty.exponential_(generator=g).log() for g in self.streams])
        return scores + self.temperature * noise.to(scores)  # (B, V)


def _begin(tokenizer: Any) -> int:
    """What stands for an empty prompt."""
    start = getattr(tokenizer, "bos_token_id", None)
    return tokenizer.eos_token_id if start is None else start


def _padded(rows: list[list[int]], tokenizer: Any, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids and mask (B, T). A causal model goes on from the last column, so it is padded on the left."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id, device="cpu")
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        span = slice(longest - len(row), None) if left else slice(0, len(row))
        ids[i, span], mask[i, span] = torch.tensor(row, device="cpu"), 1
    return ids, mask


def _to_its_end(ids: list[int], tokenizer: Any) -> list[int]:
    """Up to the first token that ends a text: what comes after it only fills the batch."""
    end = tokenizer.eos_token_id
    return ids[: ids.index(end)] if end in ids else ids

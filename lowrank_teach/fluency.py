"""How likely texts are under a language model that did not write them: an n-gram model, or a causal transformer.

    NGram.from_texts(texts, order=3).perplexity(written)            # words; Witten-Bell, by nltk.lm
    CausalLM(model, tokenizer, "smollm2-135m").perplexity(written)  # the model's own tokens

The style-transfer papers use KenLM, a 5-gram model with modified Kneser-Ney smoothing. KenLM has no wheel and its
trainer has to be compiled, and nltk's Kneser-Ney takes half a second a sentence; so the n-gram model here is
interpolated Witten-Bell, by default of order 3. Its perplexities rank texts much as KenLM's would, but their values
do not compare with printed ones, nor do those of two models with different vocabularies or tokens.
"""

# N texts

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from lowrank_teach.features import IGNORED
from lowrank_teach.text_metrics import need, words_of
from lowrank_teach.writing import eval_mode

START, END = "<s>", "</s>"


@dataclass
class NGram:
    """An interpolated Witten-Bell n-gram model of words (nltk.lm).

    order: words of a group, n.  model: nltk's.  name: what it is called in a table.
    """

    order: int
    model: Any
    name: str

    @classmethod
    def from_texts(cls, texts: Iterable[str], order: int = 3, unknown_below: int = 2) -> NGram:
        """Count the word groups of texts.

        texts: one sentence each; words are split and lowered as for BLEU.
        unknown_below: words seen fewer times stand for every unknown word, so that such a word has a probability.

        Raises:
            ValueError: no text, or an order below 1.  ImportError: nltk is missing.
        """
        lm, everygrams = need("nltk.lm", "an n-gram model"), need("nltk.util", "an n-gram model").everygrams
        sentences = [words_of(text) for text in texts]
        if not sentences or order < 1:
            raise ValueError(f"an n-gram model of order {order} from {len(sentences)} texts: give at least one text, "
                             "and an order of 1 or more")
        known = [START, END] * unknown_below + [word for words in sentences for word in words]
        model = lm.WittenBellInterpolated(order, vocabulary=lm.Vocabulary(known, unk_cutoff=unknown_below))
        # nothing is ever followed by <s>: groups that end in it would take probability from words
        model.fit([group for group in everygrams(_framed(words, order), max_len=order) if group[-1] != START]
                  for words in sentences)
        return cls(order, model, f"{order}-gram")

    def log_probabilities(self, text: str) -> list[float]:
        """Natural logarithm of the probability of each word and of the end, given up to n − 1 words before."""
        framed = _framed(words_of(text), self.order)
        places = range(self.order - 1, len(framed))
        found = [self.model.score(framed[i], framed[i - self.order + 1:i]) for i in places]
        return [math.log(p) if p > 0 else -math.inf for p in found]

    def perplexity(self, texts: Sequence[str]) -> float:
        """exp of the mean negative log-probability a word, ends of sentences counted, over all texts together.

        Infinite where a word is unknown and every training word was frequent. Raises ValueError without texts.
        """
        logs = [value for text in _some(texts) for value in self.log_probabilities(text)]
        return math.exp(-sum(logs) / len(logs)) if min(logs) > -math.inf else math.inf


@dataclass
class CausalLM:
    """A causal transformer as a judge of texts; its name stands in tables."""

    model: Any
    tokenizer: Any
    name: str = "causal"

    @torch.no_grad()
    def perplexity(self, texts: Sequence[str], batch_size: int = 16) -> float:
        """exp of the mean loss a token of the model's own, over all texts together; the end is not counted.

        The first token is predicted from the start token. Texts without a token count for nothing; NaN if none has
        one. Raises ValueError without texts.
        """
        start = self.tokenizer.bos_token_id
        start = self.tokenizer.eos_token_id if start is None else start
        rows = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in _some(texts)]
        rows = sorted(([start, *row] for row in rows if row), key=len)
        with eval_mode(self.model):
            total = sum(self._loss(rows[i:i + batch_size]) for i in range(0, len(rows), batch_size))
        count = sum(len(row) - 1 for row in rows)
        return math.exp(total / count) if count else math.nan

    def _loss(self, rows: list[list[int]]) -> float:
        """Summed negative log-probability of all tokens but the first of each row."""
        place, longest = next(self.model.parameters()).device, max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=place)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=place)
        logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, IGNORED)
        return float(cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"))


def _framed(words: Sequence[str], order: int) -> list[str]:
    return [START] * (order - 1) + [*words, END]


def _some(texts: Sequence[str]) -> Iterator[str]:
    if not len(texts):
        raise ValueError("the perplexity of no text: give at least one")
    return iter(texts)

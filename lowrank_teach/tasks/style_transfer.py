"""Style transfer by instruction: rewrite sentences in the other of two styles, and score what was written.

    frame = transfer(model, tokenizer, "yelp-transfer", "negative to positive", n=100)
        -> DataFrame: source, references (list), wanted (code), direction, instruction, written
    classifier = train_classifier("yelp", backbone="minilm-l6", profile="laptop")
        -> StyleClassifier: .predict(texts) -> codes, .accuracy (held out), .rows
    judges = [NGram.from_texts(load_task("yelp").train["text"][:20_000]), CausalLM(model, tokenizer, "smollm2-135m")]
    score_transfer(frame, classifier, judges)
        -> {"accuracy", "source_accuracy", "classifier_accuracy", "bleu", "self_bleu", "copied", "empty",
            "perplexity.3-gram", …}
    load_transfer(name, direction=None, n=None) -> the same DataFrame without `written`
    TRANSFERS: yelp-transfer; gyafc-transfer and gyafc-music-transfer from a licensed copy; rt-transfer, packaged

The setting is that of SaLoRA's Table 2: a causal model tuned on cleaned Alpaca (task `alpaca`), then asked without
an example. There is no variant trained on the pairs themselves: Yelp's two styles are not paired. No one number
tells a good transfer: copying the source has the best self-BLEU and no accuracy, writing "great !" the reverse.
The scores of copying (`frame.assign(written=frame["source"])`) belong beside a model's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from . import metrics
from .generation import eval_mode, generate
from .load import load_transfer
from .metrics import need, words_of
from .readers import prompts
from .tokenize import IGNORED, Feature, joined

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase




# ---- judges of fluency -------------------------------------------------------------------------------------
# How likely texts are under a language model that did not write them: an n-gram model, or a causal transformer.
#
#     NGram.from_texts(texts, order=3).perplexity(written)            # words; Witten-Bell, by nltk.lm
#     CausalLM(model, tokenizer, "smollm2-135m").perplexity(written)  # the model's own tokens
#
# The style-transfer papers use KenLM, a 5-gram model with modified Kneser-Ney smoothing. KenLM has no wheel and its
# trainer has to be compiled, and nltk's Kneser-Ney takes half a second a sentence; so the n-gram model here is
# interpolated Witten-Bell, by default of order 3. Its perplexities rank texts much as KenLM's would, but their values
# do not compare with printed ones, nor do those of two models with different vocabularies or tokens.
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


# ---- rewriting and its scores ------------------------------------------------------------------------------

PROMPTS = ("alpaca", "chat")


class Judge(Protocol):
    """What `score_transfer` asks a language model for: `NGram` and `CausalLM` have it."""

    @property
    def name(self) -> str: ...

    def perplexity(self, texts: Sequence[str]) -> float: ...


class Classifier(Protocol):
    """What `score_transfer` asks a classifier for: codes of styles, and its own accuracy on held-out sentences."""

    @property
    def accuracy(self) -> float: ...

    def predict(self, texts: Sequence[str]) -> list[int]: ...


def transfer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: str | pd.DataFrame,
    direction: str | None = None,
    *,
    n: int | None = None,
    prompt: str = "alpaca",
    max_new_tokens: int = 40,
    batch_size: int = 16,
    **writing: Any,
) -> pd.DataFrame:
    """What a model writes when it is asked to rewrite each sentence.

    model, tokenizer: a causal model (adapted or not), or an encoder-decoder.
    data: a key of `TRANSFERS`, or a frame as `load_transfer` gives it.
    direction, n: as in `load_transfer`; both directions, and all sentences, where None.
    prompt: "alpaca", the published form of the tuning set; "chat", the tokenizer's own template, for a model that
        was tuned for chat and not here.
    max_new_tokens, batch_size, writing: as in `generate`; greedy unless beams or a temperature are asked for.
    Returns the frame with a column `written`: the first line that is not empty, quotation marks around it taken off.

    Raises:
        ValueError: an unknown name, direction or prompt, or a tokenizer without a template.
        FileNotFoundError: no source has the sentences.
    """
    frame = _sentences(data, direction, n)
    rows = _features(_asked(frame, tokenizer, prompt), model, tokenizer, prompt)
    texts = generate(model, rows, tokenizer, max_new_tokens=max_new_tokens, batch_size=batch_size, **writing)
    return frame.assign(written=[_first_line(text) for text in texts])


def score_transfer(frame: pd.DataFrame, classifier: Classifier,
                   language_models: Judge | Sequence[Judge] = ()) -> dict[str, float]:
    """How much of the style was changed, how much of the content kept, and how fluent it is.

    frame: from `transfer`; for one direction, `frame[frame.direction == ...]`.
    Returns, all but perplexities on a scale of 0 to 1:
        accuracy: share of `written` that the classifier takes for the wanted style (an empty text is never);
        source_accuracy: the same share of the sources: what doing nothing gives;
        classifier_accuracy: its accuracy on held-out sentences: it bounds what the first number can mean;
        bleu: to the human rewrites, where every row has one;  self_bleu: to the source;
        copied, empty: shares of texts that are the source again, or nothing;
        perplexity.NAME: of the texts that are not empty, by each language model; NaN where all are.

    Raises:
        ValueError: no rows, or no column `written`.  ImportError: sacrebleu is missing.
    """
    if "written" not in frame or not len(frame):
        raise ValueError(f"{len(frame)} rows with columns {list(frame.columns)}: give what `transfer` returned")
    written, sources = frame["written"].tolist(), frame["source"].tolist()
    wanted = frame["wanted"].tolist()
    full = [text for text in written if text]
    found = {"accuracy": _share(classifier, written, wanted), "source_accuracy": _share(classifier, sources, wanted),
             "classifier_accuracy": float(classifier.accuracy)}
    if all(len(many) for many in frame["references"]):
        found["bleu"] = metrics.bleu(written, [list(many) for many in frame["references"]])
    found["self_bleu"] = metrics.bleu(written, [[source] for source in sources])
    same = [metrics.words_of(a) == metrics.words_of(b) for a, b in zip(written, sources, strict=True)]
    found |= {"copied": sum(same) / len(same), "empty": 1 - len(full) / len(written)}
    judges = language_models if isinstance(language_models, Sequence) else [language_models]
    return found | {f"perplexity.{one.name}": one.perplexity(full) if full else float("nan") for one in judges}


def _sentences(data: str | pd.DataFrame, direction: str | None, n: int | None) -> pd.DataFrame:
    if isinstance(data, str):
        return load_transfer(data, direction, n)
    frame = data if direction is None else data[data["direction"] == direction]
    if not len(frame):
        raise ValueError(f"no sentence to rewrite: the frame has directions {sorted(set(data['direction']))}")
    return frame if n is None else frame.groupby("direction", sort=False).head(n)


def _asked(frame: pd.DataFrame, tokenizer: Any, prompt: str) -> list[str]:
    if prompt not in PROMPTS:
        raise ValueError(f"prompt '{prompt}' does not exist; choose 'alpaca' or 'chat'")
    if prompt == "alpaca":
        return prompts(frame)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("this tokenizer has no chat template: take prompt='alpaca'")
    asked = [f"{ask}\n\n{text}" for ask, text in zip(frame["instruction"], frame["source"], strict=True)]
    return [tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True,
                                          tokenize=False) for text in asked]


def _features(texts: Sequence[str], model: Any, tokenizer: Any, prompt: str) -> list[Feature]:
    """Prompts as `generate` takes them, and as the rows of a training have them: nothing in them is to be learned.

    A chat template writes the tokens that begin a text itself; what closes one is for an encoder alone.
    """
    if prompt == "chat":
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    elif model.config.is_encoder_decoder:
        ids = [tokenizer(text)["input_ids"] for text in texts]
    else:
        ids = [joined(text, "", tokenizer).ids for text in texts]
    return [{"input_ids": row, "attention_mask": [1] * len(row), "labels": [IGNORED] * len(row)} for row in ids]


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].strip("\"“”").strip() if lines else ""


def _share(classifier: Classifier, texts: Sequence[str], wanted: Sequence[int]) -> float:
    triples = zip(texts, classifier.predict(texts), wanted, strict=True)
    return sum(bool(text) and code == want for text, code, want in triples) / len(texts)

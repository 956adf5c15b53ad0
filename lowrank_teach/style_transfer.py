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

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from lowrank_teach import text_metrics
from lowrank_teach.features import IGNORED, Feature, joined
from lowrank_teach.fluency import CausalLM, NGram
from lowrank_teach.style_classifier import StyleClassifier, train_classifier
from lowrank_teach.tasks.transfers import TRANSFERS, load_transfer, prompts
from lowrank_teach.writing import generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TRANSFERS", "CausalLM", "NGram", "StyleClassifier", "load_transfer", "score_transfer", "train_classifier",
           "transfer"]
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
        found["bleu"] = text_metrics.bleu(written, [list(many) for many in frame["references"]])
    found["self_bleu"] = text_metrics.bleu(written, [[source] for source in sources])
    same = [text_metrics.words_of(a) == text_metrics.words_of(b) for a, b in zip(written, sources, strict=True)]
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

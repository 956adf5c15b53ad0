"""Scores of written text against one or more references, by sacrebleu, nltk, rouge-score and pycocoevalcap.

References of one input count together (multi-reference): a text is right if it is like any of them. All lie on the
scale of the papers divided by 100, but NIST and CIDEr, which have a scale of their own. Words are split and lowered
as mteval-13a does, which the E2E challenge's own script uses.
"""

# N texts, each with one or more references

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def bleu(texts: Texts, references: References) -> float:
    """Corpus BLEU-4: shared word groups of up to four words, with a penalty for brevity."""
    return _sacrebleu().corpus_bleu(list(texts), _streams(references), lowercase=True).score / 100


def ter(texts: Texts, references: References) -> float:
    """Translation edit rate: edits a reference word, the nearest reference counting; lower is better."""
    return _sacrebleu().corpus_ter(list(texts), _streams(references)).score / 100


def nist(texts: Texts, references: References) -> float:
    """NIST-5: as BLEU, with rare word groups counting more."""
    score = _need("nltk.translate.nist_score", "NIST").corpus_nist
    try:
        return float(score([[_words(one) for one in many] for many in references], [_words(t) for t in texts], n=5))
    except ZeroDivisionError:  # no text holds five words
        return 0.0


def meteor(texts: Texts, references: References) -> float:
    """Mean METEOR: words matched exactly, by stem, and by WordNet synonyms.

    Raises:
        ImportError: nltk or its WordNet is missing; without the synonyms it would be another measure.
    """
    score = _need("nltk.translate.meteor_score", "METEOR").meteor_score
    try:
        _need("nltk.corpus", "METEOR").wordnet.ensure_loaded()   # else it is asked for only where words differ
    except LookupError as error:
        raise ImportError("METEOR needs WordNet: python -m nltk.downloader wordnet omw-1.4 (with a network), or "
                          "copy corpora/wordnet.zip into a folder of nltk.data.path") from error
    return float(np.mean([score([_words(one) for one in many], _words(text))
                          for text, many in zip(texts, references, strict=True)]))


def cider(texts: Texts, references: References) -> float:
    """CIDEr: cosine of tf-idf weighted word groups with the references, times 10, the idf from these references."""
    scorer = _need("pycocoevalcap.cider.cider", "CIDEr").Cider()
    wanted = {i: [" ".join(_words(one)) for one in many] for i, many in enumerate(references)}
    return float(scorer.compute_score(wanted, {i: [" ".join(_words(text))] for i, text in enumerate(texts)})[0])


def rouge(kind: str) -> Callable[[Texts, References], float]:
    """Mean F of ROUGE-1, -2, -L or -Lsum, stemmed; of several references the best."""

    def mean_f(texts: Texts, references: References) -> float:
        scorer = _need("rouge_score.rouge_scorer", kind).RougeScorer([kind], use_stemmer=True, split_summaries=False)
        return float(np.mean([scorer.score_multi(list(many), text)[kind].fmeasure
                              for text, many in zip(texts, references, strict=True)]))

    return mean_f


def _streams(references: References) -> list[list[str | None]]:
    """sacrebleu's form: the first reference of every text, the second of every text, …; None where there is none."""
    most = max(len(many) for many in references)
    return [[many[i] if i < len(many) else None for many in references] for i in range(most)]


def _words(text: str) -> list[str]:
    return _tokenizer()(text.lower()).split()


@cache
def _tokenizer() -> Any:
    _sacrebleu()
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _sacrebleu() -> Any:
    return _need("sacrebleu", "BLEU, TER and the word splitting of the other scores")


def _need(module: str, what: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what}: {package} is missing; pip install 'lowrank-teach[text]'") from error

"""Scores of written text against one or more references, by sacrebleu, nltk, rouge-score and pycocoevalcap.

References of one input count together (multi-reference): a text is right if it is like any of them. All lie on the
scale of the papers divided by 100, but NIST and CIDEr, which have a scale of their own. Words are split and lowered
as mteval-13a does, which the E2E challenge's own script uses.
"""

# N texts, each with one or more references

from __future__ import annotations

import shutil
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
    score = need("nltk.translate.nist_score", "NIST").corpus_nist
    try:
        return float(score([[words_of(one) for one in many] for many in references],
                           [words_of(text) for text in texts], n=5))
    except ZeroDivisionError:  # no text holds five words
        return 0.0


def meteor(texts: Texts, references: References) -> float:
    """Mean METEOR of 2005 by nltk: words matched as they are, by stem, and by WordNet synonyms; the best reference.

    Not the METEOR of the E2E and WebNLG tables: that is `meteor_15`, with other weights and with paraphrases.
    """
    from lowrank_teach.synonyms import StemsAndSynonyms

    score = need("nltk.translate.meteor_score", "METEOR").meteor_score
    found = []
    for text, many in zip(texts, references, strict=True):
        words = StemsAndSynonyms()
        found.append(score([words_of(one) for one in many], words_of(text), stemmer=words, wordnet=words))
    return float(np.mean(found))


def meteor_15(texts: Texts, references: References) -> float:
    """METEOR 1.5 (Denkowski & Lavie 2014), the one of the E2E and WebNLG challenges: over all texts together.

    Its own Java program, from pycocoevalcap; it takes about 1.3 GB and some seconds to start, each time.

    Raises:
        ImportError: pycocoevalcap, or Java, is missing.
    """
    program = need("pycocoevalcap.meteor.meteor", "METEOR 1.5").Meteor
    if shutil.which("java") is None:
        raise ImportError("METEOR 1.5 is a Java program and there is no java on the path: install one (8 or newer), "
                          "or take 'meteor', the measure of 2005, which needs none")
    wanted = {i: [_one_line(one) for one in many] for i, many in enumerate(references)}
    return float(program().compute_score(wanted, {i: [_one_line(text)] for i, text in enumerate(texts)})[0])


def _one_line(text: str) -> str:
    """As the program reads it: one line, without the mark between texts."""
    return " ".join(text.replace("|||", " ").split())


def cider(texts: Texts, references: References) -> float:
    """CIDEr: cosine of tf-idf weighted word groups with the references, times 10, the idf from these references."""
    scorer = need("pycocoevalcap.cider.cider", "CIDEr").Cider()
    wanted = {i: [" ".join(words_of(one)) for one in many] for i, many in enumerate(references)}
    return float(scorer.compute_score(wanted, {i: [" ".join(words_of(text))] for i, text in enumerate(texts)})[0])


def rouge(kind: str) -> Callable[[Texts, References], float]:
    """Mean F of ROUGE-1, -2, -L or -Lsum, stemmed; of several references the best."""

    def mean_f(texts: Texts, references: References) -> float:
        scorer = need("rouge_score.rouge_scorer", kind).RougeScorer([kind], use_stemmer=True, split_summaries=False)
        return float(np.mean([scorer.score_multi(list(many), text)[kind].fmeasure
                              for text, many in zip(texts, references, strict=True)]))

    return mean_f


def _streams(references: References) -> list[list[str | None]]:
    """sacrebleu's form: the first reference of every text, the second of every text, …; None where there is none."""
    most = max(len(many) for many in references)
    return [[many[i] if i < len(many) else None for many in references] for i in range(most)]


def words_of(text: str) -> list[str]:
    """The words of a text, lowered, with punctuation apart: as mteval-13a splits them."""
    return _tokenizer()(text.lower()).split()


@cache
def _tokenizer() -> Any:
    _sacrebleu()
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def _sacrebleu() -> Any:
    return need("sacrebleu", "BLEU, TER and the word splitting of the other scores")


def need(module: str, what: str) -> Any:
    """A module of the extra `text`. Raises ImportError, naming the extra and what it is needed for."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what}: {package} is missing; pip install 'lowrank-teach[text]'") from error

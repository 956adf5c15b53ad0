"""Scores, by thin calls to scikit-learn, scipy, seqeval and rouge-score: no formula is written twice.

All but losses and perplexity lie on the scale of the papers divided by 100: 0.91 here is 91 there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from lowrank_teach import text_metrics as text
from lowrank_teach.methods.checks import require

if TYPE_CHECKING:
    from lowrank_teach.tasks import Task

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
    "bleu": Metric(True, "corpus BLEU-4, all references", text.bleu, by="text"),
    "ter": Metric(False, "edits a reference word", text.ter, by="text"),
    "nist": Metric(True, "NIST-5; its own scale", text.nist, by="text"),
    "meteor": Metric(True, "METEOR of 2005, with WordNet (nltk)", text.meteor, by="text"),
    "meteor_15": Metric(True, "METEOR 1.5, the challenges' own (Java)", text.meteor_15, by="text"),
    "cider": Metric(True, "CIDEr; its own scale, 0 to 10", text.cider, by="text"),
    "rouge1": Metric(True, "F of shared words, stemmed", text.rouge("rouge1"), by="text"),
    "rouge2": Metric(True, "F of shared word pairs, stemmed", text.rouge("rouge2"), by="text"),
    "rougeL": Metric(True, "F of the longest common subsequence, stemmed", text.rouge("rougeL"), by="text"),
    "rougeLsum": Metric(True, "the same, by lines of a summary", text.rouge("rougeLsum"), by="text"),
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

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

if TYPE_CHECKING:
    from lowrank_teach.tasks import Task

Scorer = Callable[[Sequence[Any], Sequence[Any]], float]  # (predictions, references)


@dataclass(frozen=True)
class Metric:
    """`function` is None for what follows from the loss, which `evaluate` computes."""

    higher_is_better: bool
    what: str
    function: Scorer | None = None


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


def _rouge(kind: str) -> Scorer:
    def mean_f(predictions: Sequence[Any], references: Sequence[Any]) -> float:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as error:
            raise ImportError(f"{kind} needs rouge-score: pip install 'lowrank-teach[lab]'") from error
        scorer = RougeScorer([kind], use_stemmer=True)
        pairs = zip(predictions, references, strict=True)
        return float(np.mean([scorer.score(reference, text)[kind].fmeasure for text, reference in pairs]))

    return mean_f


METRICS: dict[str, Metric] = {
    "accuracy": Metric(True, "share of right answers", _accuracy),
    "f1": Metric(True, "F1 of class 1, for two classes", _f1),
    "macro_f1": Metric(True, "mean of the F1 of each class that occurs", _macro_f1),
    "mcc": Metric(True, "Matthews correlation, -1 to 1", _mcc),
    "pearson": Metric(True, "linear correlation; 0 for constant predictions", _pearson),
    "spearman": Metric(True, "rank correlation; 0 for constant predictions", _spearman),
    "entity_f1": Metric(True, "F1 of whole entities", _entity_f1),
    "rouge1": Metric(True, "F of shared words, stemmed", _rouge("rouge1")),
    "rouge2": Metric(True, "F of shared word pairs, stemmed", _rouge("rouge2")),
    "rougeL": Metric(True, "F of the longest common subsequence, stemmed", _rouge("rougeL")),
    "loss": Metric(False, "mean loss a row (a token, for tags and texts)"),
    "perplexity": Metric(False, "exp of the mean loss a token"),
}


def score(
    metric_names: Sequence[str], predictions: Sequence[Any], references: Sequence[Any], task: Task
) -> dict[str, float]:
    """Each named metric of predictions against references.

    predictions, references: as many of one as of the other: class codes, numbers, lists of tag names, or texts.
    task: its classes decide whether f1 makes sense. For constant predictions pearson and spearman are 0.
    Raises ValueError for an unknown metric, one that `evaluate` takes from the loss, no rows or unequal
    numbers of them, and f1 for more than two classes; ImportError, naming the extra, for a missing package.
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(
            f"{task.name}: {len(predictions)} predictions for {len(references)} references; give as many of each"
        )
    return {name: _function(name, task)(predictions, references) for name in metric_names}


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

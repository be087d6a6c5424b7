"""Metrics of classifiers and regressors, each with n and a 95% interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from danlu.evaluate.intervals import WILSON, Bootstrap, bootstrap_name, wilson
from danlu.log import Metric

Rows = NDArray[np.int32]
Floats = NDArray[np.floating[Any]]
_BINS = 10


@dataclass(frozen=True, slots=True)
class Scored:
    """What one model said of one split.

    Attributes
    ----------
    model, split : str
    truth : NDArray
        int64 of shape (n,) for classes; bool of shape (n, C) for several
        labels; float64 of shape (n,) for values.
    answer : NDArray of float64
        Probabilities of shape (n, C), values of shape (n,), or of each row quantiles in
        rising order, shape (n, Q).
    quantiles : tuple of float
        Their levels, 0.5 among them; empty where there are none.
    """

    model: str
    split: str
    truth: NDArray[Any]
    answer: Floats
    quantiles: tuple[float, ...] = ()

    @property
    def said(self) -> Floats:
        """The answer, of quantiles the median alone."""
        return self.answer[:, self.quantiles.index(0.5)] if self.quantiles else self.answer


def f1(hits: Floats, predicted: Floats, actual: Floats) -> Floats:
    """Return the harmonic mean of precision and recall; 0 where a class never occurs."""
    total = predicted + actual
    return _ratio(2 * hits, total)


def expected_calibration_error(confidence: Floats, correct: NDArray[np.bool_]) -> float:
    """Return the mean gap of confidence and accuracy over ten equal bins.

    Source: Naeini et al., 2015; bins weighted by their rows. In [0, 1].
    """
    index = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    total = np.bincount(index, confidence, _BINS)
    hits = np.bincount(index, correct, _BINS)
    return float(np.abs(total - hits).sum() / len(confidence))


def class_metrics(truth: NDArray[np.int64], probability: Floats) -> dict[str, float]:
    """Return every scalar metric of a classifier on the rows given.

    Parameters
    ----------
    truth : NDArray of int64, shape (n,)
    probability : NDArray of float64, shape (n, C)
        With two classes the second one is the positive.

    Notes
    -----
    Macro averages are over the classes that occur. The Brier score sums over
    the classes (Brier, 1950), so with two it is twice the one-sided form.
    """
    n, num_classes = probability.shape
    chosen = probability.argmax(axis=1)
    confusion = np.bincount(truth * num_classes + chosen, minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes).astype(float)
    hits: Floats = np.diag(confusion)
    actual: Floats = confusion.sum(1)
    predicted: Floats = confusion.sum(0)
    occurs = (actual + predicted) > 0
    of_truth = np.clip(probability[np.arange(n), truth], 1e-15, 1.0)
    one_hot = np.eye(num_classes)[truth]
    found = {
        "accuracy": float(hits.sum() / n),
        "precision_macro": _macro(_ratio(hits, predicted), occurs),
        "recall_macro": _macro(_ratio(hits, actual), occurs),
        "f1_macro": _macro(f1(hits, predicted, actual), occurs),
        "log_loss": float(-np.log(of_truth).mean()),
        "brier": float(((probability - one_hot) ** 2).sum(1).mean()),
        "ece": expected_calibration_error(probability.max(axis=1), chosen == truth),
    }
    found |= _ranking(one_hot, probability, binary=num_classes == 2)
    for number in range(num_classes):
        found[f"precision[{number}]"] = float(_ratio(hits, predicted)[number])
        found[f"recall[{number}]"] = float(_ratio(hits, actual)[number])
        found[f"f1[{number}]"] = float(f1(hits, predicted, actual)[number])
    return found


def label_metrics(truth: NDArray[np.bool_], probability: Floats) -> dict[str, float]:
    """Return every scalar metric of a multi-label classifier on the rows given.

    Both arrays have the shape (n, C); a label is given from a probability of 0.5.
    """
    chosen = probability >= 0.5
    hits: Floats = (chosen & truth).sum(0).astype(float)
    predicted: Floats = chosen.sum(0).astype(float)
    actual: Floats = truth.sum(0).astype(float)
    occurs = (actual + predicted) > 0
    clipped = np.clip(probability, 1e-15, 1 - 1e-15)
    loss = -np.where(truth, np.log(clipped), np.log1p(-clipped)).mean()
    everything = f1(
        hits.sum(keepdims=True), predicted.sum(keepdims=True), actual.sum(keepdims=True)
    )
    found = {
        "accuracy": float((chosen == truth).all(1).mean()),
        "precision_macro": _macro(_ratio(hits, predicted), occurs),
        "recall_macro": _macro(_ratio(hits, actual), occurs),
        "f1_macro": _macro(f1(hits, predicted, actual), occurs),
        "f1_micro": float(everything[0]),
        "log_loss": float(loss),
        "brier": float(((probability - truth) ** 2).mean()),
    }
    return found | _ranking(truth.astype(float), probability, binary=False)


def value_metrics(truth: Floats, value: Floats) -> dict[str, float]:
    """Return the metrics of a regressor on the rows given, both of shape (n,)."""
    error = value - truth
    spread = ((truth - truth.mean()) ** 2).sum()
    return {
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1 - (error**2).sum() / spread) if spread > 0 else float("nan"),
    }


def quantile_metrics(
    truth: Floats, answer: Floats, quantiles: tuple[float, ...]
) -> dict[str, float]:
    """Return the metrics of a regressor that foretells quantiles, on the rows given.

    Parameters
    ----------
    truth : NDArray of float64, shape (n,)
    answer : NDArray of float64, shape (n, Q)
        Rising along each row.
    quantiles : tuple of float
        The levels, rising, 0.5 among them.

    Returns
    -------
    dict
        Those of :func:`value_metrics` for the median; ``pinball``, averaged over the levels
        (Koenker & Bassett, 1978); and of the outer interval, from the lowest level to the
        highest, ``interval_coverage``, the share of truths inside it, and ``interval_width``.
    """
    above = truth[:, None] - answer
    level = np.asarray(quantiles)
    inside = (answer[:, 0] <= truth) & (truth <= answer[:, -1])
    return value_metrics(truth, answer[:, quantiles.index(0.5)]) | {
        "pinball": float(np.maximum(level * above, (level - 1) * above).mean()),
        "interval_coverage": float(inside.mean()),
        "interval_width": float((answer[:, -1] - answer[:, 0]).mean()),
    }


def crossings(count: int, scored: Scored) -> Metric:
    """Return the share of rows whose quantiles crossed before they were put in order."""
    n = len(scored.truth)
    low, high = wilson(count, n)
    name = "quantiles_crossed"
    return Metric(
        "evaluate", scored.model, scored.split, name, count / n, low, high, n, "share", WILSON
    )


def _ratio(part: Floats, whole: Floats) -> Floats:
    out: Floats = np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
    return out


def _ranking(truth: Floats, probability: Floats, binary: bool) -> dict[str, float]:
    """Return areas under the ROC and precision-recall curves: the positive's, or macro."""
    if not ((truth.sum(0) > 0) & (truth.sum(0) < len(truth))).all():
        return {"roc_auc": float("nan"), "pr_auc": float("nan")}
    columns = [1] if binary else range(truth.shape[1])
    each = [areas(truth[:, c], probability[:, c]) for c in columns]
    roc, precision_recall = np.mean(each, axis=0)
    return {"roc_auc": float(roc), "pr_auc": float(precision_recall)}


def areas(truth: Floats, score: Floats) -> tuple[float, float]:
    """Return the area under the ROC curve and the average precision.

    The figures are scikit-learn's (a test compares them). Its functions check their input
    at length, and the bootstrap asks thousands of times.

    Parameters
    ----------
    truth : NDArray of float64, shape (n,)
        0 or 1, both present.
    score : NDArray of float64, shape (n,)

    Examples
    --------
    >>> areas(np.array([0.0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    (0.75, 0.8333333333333333)
    """
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of equal scores
    right = np.cumsum(truth[order])[ends]
    wrong = ends + 1 - right
    gained, lost = np.diff(right, prepend=0.0), np.diff(wrong, prepend=0.0)
    area = (lost * (right - gained / 2)).sum() / (right[-1] * wrong[-1])
    precision = (gained * right / (ends + 1)).sum() / right[-1]
    return float(area), float(precision)


def _macro(values: Floats, occurs: NDArray[np.bool_]) -> float:
    """Return the mean over the classes that occur, in truth or in answers."""
    return float(values[occurs].mean()) if occurs.any() else float("nan")


_FUNCTIONS: dict[str, Callable[[NDArray[Any], Floats], dict[str, float]]] = {
    "classify": class_metrics,
    "multilabel": label_metrics,
    "regress": value_metrics,
}
_UNITS = {
    "log_loss": "nats",
    "brier": "squared probability",
    "mae": "label",
    "rmse": "label",
    "pinball": "label",
    "interval_width": "label",
    "r2": "share of variance",
}


def measure(
    scored: list[Scored], task: str, names: list[str], bootstrap: Bootstrap
) -> tuple[list[Metric], dict[str, dict[str, Floats]]]:
    """Measure several models on one split.

    Parameters
    ----------
    scored : list of Scored
        All on the same rows.
    task : {"classify", "multilabel", "regress"}
    names : list of str
        The classes.
    bootstrap : Bootstrap

    Returns
    -------
    rows : list of Metric
    resampled : dict of str to dict of str to NDArray
        Model, metric and its values on the resamples, for paired differences.
    """
    rows, resampled = [], {}
    for one in scored:
        function = _FUNCTIONS[task]
        if one.quantiles:
            function = partial(quantile_metrics, quantiles=one.quantiles)
        values = function(one.truth, one.answer)
        each = [function(one.truth[r], one.answer[r]) for r in bootstrap.rows]
        resampled[one.model] = {name: np.asarray([draw[name] for draw in each]) for name in values}
        for name, value in values.items():
            if not np.isfinite(value):
                continue  # undefined on this split, and so not printed as measured
            draws = resampled[one.model][name]
            if name == "ece":
                # A resample's ECE is biased upwards (its bins are noisier than the sample's),
                # so the draws are moved back to the value before their quantiles are taken.
                draws = np.clip(draws - draws.mean() + value, 0.0, None)
            low, high, how, n = *bootstrap.interval(draws), "", len(one.truth)
            if exact := _rate_counts(one, task, name):
                if exact[1] == 0:
                    continue  # a rate of nothing was not measured
                (low, high), how, n = wilson(*exact), WILSON, exact[1]
            elif low is not None:
                how = bootstrap_name(bootstrap.resamples)
                how += ", corrected for bias" if name == "ece" else ""
            title = _named(name, names)
            unit = _UNITS.get(name, "share")
            rows.append(
                Metric("evaluate", one.model, one.split, title, value, low, high, n, unit, how)
            )
    return rows, resampled


def _named(metric: str, names: list[str]) -> str:
    """Put a class's name where its number stands."""
    head, bracket, rest = metric.partition("[")
    return f"{head}[{names[int(rest[:-1])]}]" if bracket else metric


def _rate_counts(scored: Scored, task: str, metric: str) -> tuple[int, int] | None:
    """Return successes and trials where a metric is a plain rate."""
    if metric == "accuracy":
        if task == "multilabel":
            right = ((scored.answer >= 0.5) == scored.truth).all(1)
        else:
            right = scored.answer.argmax(1) == scored.truth
        return int(right.sum()), len(right)
    if metric == "interval_coverage":
        inside = (scored.answer[:, 0] <= scored.truth) & (scored.truth <= scored.answer[:, -1])
        return int(inside.sum()), len(inside)
    head, bracket, rest = metric.partition("[")
    if not bracket or head not in ("precision", "recall"):
        return None
    number = int(rest[:-1])
    chosen, actual = scored.answer.argmax(1) == number, scored.truth == number
    whole = chosen if head == "precision" else actual
    return int((chosen & actual).sum()), int(whole.sum())


def differences(
    rows: list[Metric],
    resampled: dict[str, dict[str, Floats]],
    model: str,
    others: list[str],
    resamples: int,
) -> list[Metric]:
    """Return model − other for every shared scalar metric, with paired intervals."""
    found = []
    values = {(row.model, row.metric): row for row in rows}
    for other in others:
        for metric in resampled[model]:
            mine, theirs = values.get((model, metric)), values.get((other, metric))
            if mine is None or theirs is None or "[" in metric:
                continue
            draws = resampled[model][metric] - resampled[other][metric]
            low, high = Bootstrap.interval(draws)
            how = bootstrap_name(resamples, paired=True) if low is not None else ""
            name, gap = f"{metric} - {other}", mine.value - theirs.value
            found.append(
                Metric("evaluate", model, mine.split, name, gap, low, high, mine.n, mine.unit, how)
            )
    return found


def slices(
    scored: Scored,
    task: str,
    groups: dict[str, NDArray[np.bool_]],
    resamples: int = 1000,
    seed: int = 0,
) -> list[Metric]:
    """Return the accuracy (or MAE) on parts of the split, named in the split's column."""
    rows = []
    for name, inside in groups.items():
        n = int(inside.sum())
        if n == 0:
            continue
        split = f"{scored.split}[{name}]"
        part = Scored(scored.model, split, scored.truth[inside], scored.said[inside])
        if task == "regress":
            bootstrap = Bootstrap(n, resamples, seed)
            error = np.abs(part.answer - part.truth)
            draws = np.asarray([error[drawn].mean() for drawn in bootstrap.rows])
            low, high = bootstrap.interval(draws) if n > 1 else (None, None)
            how = bootstrap_name(resamples) if n > 1 else ""
            metric, value, unit = "mae", float(error.mean()), "label"
        else:
            counts = _rate_counts(part, task, "accuracy")
            assert counts is not None
            (low, high), how = wilson(*counts), WILSON
            metric, value, unit = "accuracy", counts[0] / n, "share"
        rows.append(Metric("evaluate", part.model, split, metric, value, low, high, n, unit, how))
    return rows


def curves(scored: Scored, task: str, names: list[str]) -> dict[str, Any]:
    """Return what the report draws: confusion, ROC and reliability."""
    if task == "regress":
        return {"points": [scored.truth.tolist(), scored.said.tolist()]}
    if task == "multilabel":
        return {}
    num_classes = len(names)
    chosen = scored.answer.argmax(1)
    confusion = np.bincount(scored.truth * num_classes + chosen, minlength=num_classes**2)
    confidence, correct = scored.answer.max(1), chosen == scored.truth
    index = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    reliability = [
        {
            "confidence": float(confidence[index == b].mean()),
            "accuracy": float(correct[index == b].mean()),
            "n": int((index == b).sum()),
        }
        for b in range(_BINS)
        if (index == b).any()
    ]
    found: dict[str, Any] = {
        "confusion": confusion.reshape(num_classes, num_classes).tolist(),
        "reliability": reliability,
        "roc": {},
    }
    for number in [1] if num_classes == 2 else range(num_classes):
        actual = scored.truth == number
        if 0 < actual.sum() < len(actual):
            wrong, right, _ = roc_curve(actual, scored.answer[:, number])
            keep = np.unique(np.linspace(0, len(wrong) - 1, 200).astype(int))
            found["roc"][names[number]] = [wrong[keep].tolist(), right[keep].tolist()]
    return found

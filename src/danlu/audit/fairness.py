"""Whether a model treats the groups of a protected attribute alike.

Demographic parity: equal selection rates (Dwork et al., 2012). Equalised odds: equal true and
false positive rates; equal opportunity: equal true positive rates alone (Hardt, Price and
Srebro, "Equality of Opportunity in Supervised Learning", 2016). Calibration: equal difference
of mean score and base rate. In general no model can satisfy all of them at once (Chouldechova,
2017), so all are shown, and the gate's author chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.data.protected import MISSING
from danlu.data.table import number
from danlu.errors import DataError
from danlu.evaluate.intervals import WILSON, Bootstrap, bootstrap_name, wilson
from danlu.log import Metric

Floats = NDArray[np.float64]
Figures = dict[str, tuple[Floats, NDArray[np.int64]]]
"""Of each figure the sum and the number of rows that it is the mean of, both of shape (G,)."""

GAPS: dict[str, tuple[str, ...]] = {
    "demographic_parity_gap": ("selection_rate",),
    "equal_opportunity_gap": ("true_positive_rate",),
    "equalised_odds_gap": ("true_positive_rate", "false_positive_rate"),
    "calibration_gap": ("calibration_error",),
    "accuracy_gap": ("accuracy",),
    "mae_gap": ("mae",),
    "mean_error_gap": ("mean_error",),
}
"""The largest difference between two groups, and of which figures; of several the larger one."""

_UNITS = {"mae": "label", "mean_error": "label", "mae_gap": "label", "mean_error_gap": "label"}
_MEANS = ("calibration_error", "mae", "mean_error")  # not rates, so not Wilson's
_FEW, _MOST = 12, 100  # different numbers that are cut into bands; groups of one attribute


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one attribute.

    Attributes
    ----------
    attribute : str
    names : list of str
        G of them.
    index : NDArray of int64, shape (n,)
        The group of each row.
    """

    attribute: str
    names: list[str]
    index: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said of a split, and what was true.

    Attributes
    ----------
    kind : {"classify", "multilabel", "regress"}
    truth : NDArray
        int64 (n,), bool (n, C) or float64 (n,).
    answer : NDArray of float64
        Probabilities (n, C), or values (n,).
    positive : int or None
        The class that it is good, or bad, to be given; None for values and several labels.
    """

    kind: str
    truth: NDArray[Any]
    answer: Floats
    positive: int | None = None

    def figures(self, index: NDArray[np.int64], num_groups: int) -> Callable[[Any], Figures]:
        """Return what sums the figures of each group over the rows it is given."""

        def mean_of(values: Floats) -> Callable[[Any], tuple[Floats, NDArray[np.int64]]]:
            def of(rows: Any) -> tuple[Floats, NDArray[np.int64]]:
                total: Floats = np.bincount(index[rows], values[rows], num_groups).astype(float)
                return total, np.bincount(index[rows], minlength=num_groups).astype(np.int64)

            return of

        if self.kind == "regress":
            error = self.answer - self.truth
            mae, bias = mean_of(np.abs(error)), mean_of(error)
            return lambda rows: {"mae": mae(rows), "mean_error": bias(rows)}
        if self.kind == "multilabel":
            right = mean_of(((self.answer >= 0.5) == self.truth).all(1).astype(float))
            return lambda rows: {"accuracy": right(rows)}
        chosen = self.answer.argmax(1)
        right = mean_of((chosen == self.truth).astype(float))
        if self.positive is None:
            return lambda rows: {"accuracy": right(rows)}
        actual = (self.truth == self.positive).astype(np.int64)
        selected = (chosen == self.positive).astype(np.int64)
        calibration = mean_of(self.answer[:, self.positive] - actual)
        code = 4 * index + 2 * actual + selected

        def rates(rows: Any) -> Figures:
            cells = np.bincount(code[rows], minlength=4 * num_groups).reshape(-1, 2, 2)
            n = cells.sum((1, 2))
            return {
                "base_rate": (cells[:, 1].sum(1).astype(float), n),
                "selection_rate": (cells[:, :, 1].sum(1).astype(float), n),
                "accuracy": right(rows),
                "true_positive_rate": (cells[:, 1, 1].astype(float), cells[:, 1].sum(1)),
                "false_positive_rate": (cells[:, 0, 1].astype(float), cells[:, 0].sum(1)),
                "calibration_error": calibration(rows),
            }

        return rates


def positive_class(named: str | None, classes: list[str], kind: str) -> int | None:
    """Return the class whose giving is measured: the named one, or the second of two.

    Raises
    ------
    DataError
        If there is no such class.
    """
    if kind != "classify":
        return None
    if named is None:
        return 1 if len(classes) == 2 else None
    if named not in classes:
        raise DataError(
            f"there is no class {named!r}; there are: {', '.join(map(repr, classes))}",
            where="audit.positive",
        )
    return classes.index(named)


def groups(attribute: str, cells: Sequence[Any], training: Sequence[Any]) -> Groups:
    """Return the groups of a split's rows; numbers are cut at the training split's quartiles.

    Parameters
    ----------
    attribute : str
    cells : sequence
        A cell for each row of the split; None where nothing stands.
    training : sequence
        The training split's.

    Raises
    ------
    DataError
        If there are too many groups for any of them to be measured.
    """
    seen = np.asarray([number(cell) for cell in training if cell is not None])
    if len(seen) and not np.isnan(seen).any() and len(np.unique(seen)) > _FEW:
        edges = np.unique(np.quantile(seen, [0.25, 0.5, 0.75]))
        titles = [f"up to {edges[0]:g}"]
        titles += [f"over {a:g} to {b:g}" for a, b in pairwise(edges)]
        titles += [f"over {edges[-1]:g}", MISSING]
        value = np.asarray([number(cell) for cell in cells])
        place = np.where(np.isnan(value), len(titles) - 1, np.searchsorted(edges, value))
        return _only_those_seen(attribute, titles, place)
    texts = [MISSING if cell is None else str(cell) for cell in cells]
    titles = sorted(set(texts))
    if len(titles) > _MOST:
        raise DataError(
            f"the protected attribute {attribute!r} has {len(titles)} different values",
            where="audit.protected",
            mend="name a column of few groups, or of numbers, which are cut into four",
        )
    place = np.asarray([titles.index(text) for text in texts], np.int64)
    return _only_those_seen(attribute, titles, place)


def _only_those_seen(attribute: str, titles: list[str], place: NDArray[np.int64]) -> Groups:
    found, index = np.unique(place, return_inverse=True)
    return Groups(attribute, [titles[n] for n in found], index.astype(np.int64))


def measure(
    answers: Answers, by: Groups, model: str, min_rows: int, bootstrap: Bootstrap
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """Measure every group of an attribute, and the gaps between them.

    Parameters
    ----------
    answers : Answers
    by : Groups
    model : str
        Its name, for the rows.
    min_rows : int
        A figure of fewer rows is not measured, and takes no part in a gap.
    bootstrap : Bootstrap
        Resamples of the split.

    Returns
    -------
    rows : list of Metric
        Named ``selection_rate[sex=Female]`` and ``demographic_parity_gap[sex]``.
    too_few : list of dict
        Of each figure that could not be measured: attribute, group, figure, and on how many rows
        it would have stood.

    Notes
    -----
    A gap is the largest figure less the smallest, as fairlearn's are (Weerts et al., 2023). It
    is above 0 by chance alone, and a resample's more so; the draws are therefore moved back to
    the value before their quantiles are taken, as for the calibration error.
    """
    figures = answers.figures(by.index, len(by.names))
    found = figures(np.arange(len(by.index)))
    draws = [figures(rows) for rows in bootstrap.rows]
    values: dict[str, Floats] = {}
    resampled: dict[str, Floats] = {}
    for name, (total, count) in found.items():
        values[name] = np.where(count >= min_rows, total / np.maximum(count, 1), np.nan)
        each = np.asarray([draw[name][0] for draw in draws])
        below = np.asarray([draw[name][1] for draw in draws])
        resampled[name] = np.where(below > 0, each / np.maximum(below, 1), np.nan)
    rows, too_few = [], []
    for group, title in enumerate(by.names):
        n = int((by.index == group).sum())
        label = f"[{by.attribute}={title}]"
        rows.append(Metric("audit", model, "test", f"rows{label}", n, None, None, n, "rows"))
        for name, (total, count) in found.items():
            on, value = int(count[group]), float(values[name][group])
            if on < min_rows:
                too_few.append(asdict(TooFew(by.attribute, title, name, on)))
                continue
            if name in _MEANS:
                (low, high), how = bootstrap.interval(resampled[name][:, group]), ""
                how = bootstrap_name(bootstrap.resamples) if low is not None else ""
            else:
                (low, high), how = wilson(round(float(total[group])), on), WILSON
            unit = _UNITS.get(name, "share")
            rows.append(
                Metric("audit", model, "test", name + label, value, low, high, on, unit, how)
            )
    return rows + _gaps(by, values, resampled, model, bootstrap), too_few


@dataclass(frozen=True, slots=True)
class TooFew:
    """A figure of a group that too few rows stand behind."""

    attribute: str
    group: str
    figure: str
    rows: int


def _gaps(
    by: Groups,
    values: dict[str, Floats],
    resampled: dict[str, Floats],
    model: str,
    bootstrap: Bootstrap,
) -> list[Metric]:
    """Return the gaps that two groups or more were measured for."""
    rows = []
    for gap, parts in GAPS.items():
        if not all(part in values for part in parts):
            continue
        measured = {part: np.isfinite(values[part]) for part in parts}
        if any(inside.sum() < 2 for inside in measured.values()):
            continue
        value = max(float(np.ptp(values[part][measured[part]])) for part in parts)
        each = np.max(
            [np.ptp(resampled[part][:, measured[part]], axis=1) for part in parts], axis=0
        )
        centred = np.clip(each - np.nanmean(each) + value, 0.0, None)
        low, high = bootstrap.interval(centred)
        how = (
            f"{bootstrap_name(bootstrap.resamples)}, corrected for bias" if low is not None else ""
        )
        inside = np.all(list(measured.values()), axis=0)
        n = int(np.isin(by.index, np.flatnonzero(inside)).sum())
        title = f"{gap}[{by.attribute}]"
        unit = _UNITS.get(gap, "share")
        rows.append(Metric("audit", model, "test", title, value, low, high, n, unit, how))
    return rows

"""From scores of windows to alarms, and how good they are: by steps, and by events.

The figures are *not* point-adjusted. Point adjustment counts every step of an event as found
when a single one was; even random scores then look good (Kim et al., "Towards a Rigorous
Evaluation of Time-Series Anomaly Detection", 2022).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest

from danlu.errors import DataError
from danlu.evaluate.forecast import BlockBootstrap
from danlu.evaluate.score import areas
from danlu.log import Metric

Floats = NDArray[np.floating[Any]]
Flags = NDArray[np.bool_]
Rows = NDArray[np.int64]


def spread(score_NT: Floats, start_N: Rows, num_steps: int) -> NDArray[np.float64]:
    """Average the scores that windows give to each step.

    Parameters
    ----------
    score_NT : NDArray of float, shape (N, T)
        Of each step of each window; NaN where it gives none.
    start_N : NDArray of int64, shape (N,)
        The first step of each window.
    num_steps : int

    Returns
    -------
    NDArray of float64, shape (num_steps,)
        NaN where no window gives a score.
    """
    step = (start_N[:, None] + np.arange(score_NT.shape[1])).ravel()
    score = score_NT.ravel()
    there = ~np.isnan(score)
    count = np.bincount(step[there], minlength=num_steps)
    total = np.bincount(step[there], score[there], num_steps)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def surprise(truth_NH: Floats, answer_NHQ: Floats, levels: tuple[float, ...]) -> Floats:
    """Return how far each foretold step lay from its median, in half widths of its interval.

    Parameters
    ----------
    truth_NH : NDArray of float, shape (N, H)
    answer_NHQ : NDArray of float, shape (N, H, Q)
        Quantiles, ascending.
    levels : tuple of float
        At least three, 0.5 among them.

    Returns
    -------
    NDArray of float64, shape (N, H)
        1 at the widest interval's end; NaN where nothing was measured.
    """
    middle = answer_NHQ[..., levels.index(0.5)]
    above = truth_NH >= middle
    half = np.where(above, answer_NHQ[..., -1] - middle, middle - answer_NHQ[..., 0])
    out: Floats = np.abs(truth_NH - middle) / np.maximum(half, np.finfo(np.float32).tiny)
    return out


def events(flags: Flags) -> NDArray[np.int64]:
    """Return where runs of true steps begin, and the step after they end.

    Parameters
    ----------
    flags : NDArray of bool, shape (L,)

    Returns
    -------
    NDArray of int64, shape (number of runs, 2)

    Examples
    --------
    >>> events(np.array([True, False, True, True])).tolist()
    [[0, 1], [2, 4]]
    """
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def point_scores(truth: Flags, flagged: Flags) -> dict[str, float]:
    """Return precision, recall and F1 of single steps, each 0 where it would be 0 / 0."""
    hits = int((truth & flagged).sum())
    return _three(hits, int(flagged.sum()), hits, int(truth.sum()), "")


def event_scores(truth: Flags, flagged: Flags) -> dict[str, float]:
    """Return precision, recall and F1 of events.

    Recall is the share of true events that an alarm overlaps in at least one step; precision
    is the share of alarms that overlap a true event. An alarm without end finds every event
    and is precise: read these figures beside those of single steps.
    """
    actual, alarms_ = events(truth), events(flagged)
    found = _overlaps(actual, flagged)
    right = _overlaps(alarms_, truth)
    return _three(right, len(alarms_), found, len(actual), "event_")


def _overlaps(runs: NDArray[np.int64], flags: Flags) -> int:
    before = np.append(0, np.cumsum(flags))
    return int((before[runs[:, 1]] > before[runs[:, 0]]).sum())


def _three(right: int, predicted: int, found: int, actual: int, prefix: str) -> dict[str, float]:
    precision = right / predicted if predicted else 0.0
    recall = found / actual if actual else 0.0
    both = precision + recall
    f1 = 2 * precision * recall / both if both else 0.0
    return {f"{prefix}precision": precision, f"{prefix}recall": recall, f"{prefix}f1": f1}


@dataclass(frozen=True, slots=True)
class Threshold:
    """From which score on a step is flagged.

    Attributes
    ----------
    value : float
    chosen_by : str
        How, for the report.
    """

    value: float
    chosen_by: str


def choose_threshold(score: Floats, truth: Flags | None, share: float = 0.01) -> Threshold:
    """Choose a threshold on the validation period.

    Parameters
    ----------
    score : NDArray of float, shape (L,)
        Of the validation period and of nothing else; NaN where there is none.
    truth : NDArray of bool, shape (L,), optional
        Its labels.
    share : float
        In (0, 1): steps to be flagged where no label says better.

    Returns
    -------
    Threshold
        The one of best F1 of single steps, halfway to the next lower score; the highest of
        equally good ones. Without a true step, that which flags `share` of the steps.

    Raises
    ------
    DataError
        If there is no score.
    """
    there = ~np.isnan(score)
    if not there.any():
        raise DataError("no step of the validation period has a score", where="data.split")
    found = np.asarray(score[there], np.float64)
    if truth is None or not truth[there].any():
        value = float(np.quantile(found, 1 - share))
        return Threshold(value, f"flags {share:.1%} of the validation steps; no label there")
    order = np.argsort(-found, kind="stable")
    ranked = found[order]
    hits = np.cumsum(truth[there][order])
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of equal scores
    f1 = 2 * hits[ends] / (ends + 1 + hits[-1])
    best = int(ends[f1.argmax()])
    lower = ranked[best + 1] if best + 1 < len(ranked) else ranked[best]
    return Threshold(float((ranked[best] + lower) / 2), "best F1 of single steps on validation")


@dataclass(frozen=True, slots=True)
class Alarm:
    """A run of flagged steps, in the user's times.

    Attributes
    ----------
    start, end : float
        The times of its first and last step.
    peak : float
        Its highest score.
    at : float
        The time of the peak.
    steps : int
    """

    start: float
    end: float
    peak: float
    at: float
    steps: int

    def to_dict(self) -> dict[str, float]:
        """Return it as plain values."""
        return asdict(self)


def alarms(score: Floats, threshold: float, time: Floats, gap: int = 0) -> list[Alarm]:
    """Gather flagged steps of one series into alarms.

    Parameters
    ----------
    score : NDArray of float, shape (L,)
        NaN flags nothing.
    threshold : float
        A step is flagged from it on.
    time : NDArray of float64, shape (L,)
    gap : int
        Alarms with at most so many unflagged steps between them are one.
    """
    flagged = score >= threshold
    runs = events(flagged).tolist()
    joined: list[list[int]] = []
    for begin, end in runs:
        if joined and begin - joined[-1][1] <= gap:
            joined[-1][1] = end
        else:
            joined.append([begin, end])
    found = []
    for begin, end in joined:
        peak = begin + int(np.nanargmax(score[begin:end]))
        first, last, at = (float(time[step]) for step in (begin, end - 1, peak))
        found.append(Alarm(first, last, float(score[peak]), at, end - begin))
    return found


def isolation_forest(training: Floats, windows: list[Floats], seed: int) -> list[Floats]:
    """Score windows with an isolation forest (Liu et al., 2008), the baseline.

    Parameters
    ----------
    training : NDArray of float, shape (n, F)
        The windows' numbers laid out in a row, of the training period.
    windows : list of NDArray of float, shape (m, F)
        Of other periods.
    seed : int

    Returns
    -------
    list of NDArray of float64, shape (m,)
        The higher the stranger, in (0, 1).
    """
    forest = IsolationForest(n_estimators=200, random_state=seed).fit(training)
    return [-forest.score_samples(part) for part in windows]


@dataclass(frozen=True, slots=True)
class Detected:
    """What one model said of the steps of one period.

    Attributes
    ----------
    model, split : str
    truth : NDArray of bool, shape (L,)
    score : NDArray of float, shape (L,)
        NaN where there is none; such a step is not flagged.
    threshold : float
        Chosen on validation.
    """

    model: str
    split: str
    truth: Flags
    score: Floats
    threshold: float


def step_metrics(truth: Flags, flagged: Flags, score: Floats) -> dict[str, float]:
    """Return precision, recall and F1 of steps and of events, and areas under curves."""
    found = point_scores(truth, flagged) | event_scores(truth, flagged)
    there = ~np.isnan(score)
    if 0 < truth[there].sum() < there.sum():
        roc, precision_recall = areas(truth[there].astype(np.float64), score[there])
        found |= {"roc_auc": roc, "pr_auc": precision_recall}
    return found


def measure(
    detected: list[Detected], bootstrap: BlockBootstrap
) -> tuple[list[Metric], dict[str, dict[str, Floats]]]:
    """Measure several detectors on the same steps.

    Parameters
    ----------
    detected : list of Detected
    bootstrap : BlockBootstrap
        Of the same steps. Figures of events have no interval: blocks cut events.

    Returns
    -------
    rows : list of Metric
    resampled : dict of str to dict of str to NDArray
        Model, metric and its values on the resamples, for paired differences.
    """
    how = f"circular block bootstrap, blocks of {bootstrap.block}, "
    how += f"{bootstrap.resamples} resamples, 95%"
    rows, resampled = [], {}
    for one in detected:
        flagged = one.score >= one.threshold
        draws = [_drawn(one, flagged, drawn) for drawn in bootstrap.rows]
        resampled[one.model] = {
            name: np.asarray([draw.get(name, np.nan) for draw in draws]) for name in draws[0]
        }
        for name, value in step_metrics(one.truth, flagged, one.score).items():
            low = high = None
            if name in resampled[one.model]:
                low, high = bootstrap.interval(resampled[one.model][name])
            rows.append(
                Metric(
                    "evaluate", one.model, one.split, name, value, low, high, len(one.truth),
                    "share", how if low is not None else "",
                )
            )  # fmt: skip
    return rows, resampled


def _drawn(one: Detected, flagged: Flags, rows: NDArray[np.int32]) -> dict[str, float]:
    truth = one.truth[rows]
    if not truth.any():
        return dict.fromkeys(("precision", "recall", "f1"), np.nan)
    return point_scores(truth, flagged[rows])


def errors_of(
    rebuild: Callable[[NDArray[np.bool_]], Floats], values: Floats, hidden: list[NDArray[np.bool_]]
) -> Floats:
    """Score patches by how badly they are filled in from the rest of their window.

    Parameters
    ----------
    rebuild : callable
        Given which patches are hidden, shape (N, P), returns all patches as the model fills
        them in, shape (N, P, K).
    values : NDArray of float, shape (N, P, K)
        The patches as they are; NaN where a number is missing.
    hidden : list of NDArray of bool, shape (N, P)
        Rounds of hiding; together they should hide every patch.

    Returns
    -------
    NDArray of float64, shape (N, P)
        Mean squared error over the rounds in which a patch was hidden, and over its numbers;
        NaN where it never was.
    """
    total = np.zeros(values.shape[:2])
    count = np.zeros(values.shape[:2])
    for mask in hidden:
        gap = (rebuild(mask) - values) ** 2
        there = ~np.isnan(gap)
        each = np.where(there, gap, 0.0).sum(2) / np.maximum(there.sum(2), 1)
        use = mask & there.any(2)
        total[use] += each[use]
        count += use
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def rounds(num_windows: int, num_patches: int, share: float) -> list[NDArray[np.bool_]]:
    """Return rounds of hiding evenly spaced patches, each patch in exactly one.

    Parameters
    ----------
    num_windows, num_patches : int
    share : float
        In (0, 1]: patches hidden at once.
    """
    times = min(num_patches, max(1, round(1 / share)))
    turn = np.arange(num_patches) % times
    return [np.broadcast_to(turn == n, (num_windows, num_patches)) for n in range(times)]

"""Metrics of forecasts with quantiles, each for every window, with intervals from blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.errors import DataError
from danlu.evaluate.intervals import Bootstrap
from danlu.log import Metric

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one model foretold, in the user's units.

    Attributes
    ----------
    model, split : str
    truth_NH : NDArray of float64, shape (N, H)
        NaN where nothing was measured.
    answer_NHQ : NDArray of float64, shape (N, H, Q)
        Quantiles, ascending along the last axis.
    levels : tuple of float
        Q, ascending; 0.5 is among them, and is the point forecast.
    scale_N : NDArray of float64, shape (N,)
        Of the window's series, see :func:`season_scale`.
    """

    model: str
    split: str
    truth_NH: Floats
    answer_NHQ: Floats
    levels: tuple[float, ...]
    scale_N: Floats

    @property
    def point(self) -> Floats:
        """The medians, shape (N, H)."""
        found: Floats = self.answer_NHQ[..., self.levels.index(0.5)]
        return found


def season_scale(training: Floats, season: int) -> float:
    """Return the mean absolute error of the seasonal naive forecast in the training period.

    Parameters
    ----------
    training : NDArray of float64, shape (L,)
        The series before validation begins; NaN where missing.
    season : int
        Steps; 1 compares each step with the one before.

    Raises
    ------
    DataError
        If it is 0 or cannot be computed: MASE would not be defined.
    """
    gaps = np.abs(training[season:] - training[:-season])
    gaps = gaps[~np.isnan(gaps)]
    if not len(gaps) or not gaps.mean() > 0:
        raise DataError(
            f"the training series says nothing about a season of {season} steps",
            where="series.season",
            mend="a shorter season, or a series that changes",
        )
    return float(gaps.mean())


def mase(truth_NH: Floats, point_NH: Floats, scale_N: Floats) -> Floats:
    """Return each window's mean absolute scaled error (Hyndman & Koehler, 2006).

    Below 1 it is better than the seasonal naive forecast one season ahead was, on average,
    in the training period. NaN where no step of the window was measured.
    """
    return _mean(np.abs(truth_NH - point_NH)) / scale_N


def smape(truth_NH: Floats, point_NH: Floats) -> Floats:
    """Return each window's symmetric mean absolute percentage error, from 0 to 200.

    Mean of 200 |y − f| / (|y| + |f|) (Makridakis, 1993); 0 where both are 0.
    """
    size = np.abs(truth_NH) + np.abs(point_NH)
    gap = np.abs(truth_NH - point_NH)
    return _mean(200 * np.divide(gap, size, out=gap.copy(), where=size != 0))


def pinball(truth_NH: Floats, answer_NHQ: Floats, levels: tuple[float, ...]) -> Floats:
    """Return each window's pinball loss of every level, shape (N, Q).

    Mean of q (y − f) where y ≥ f, and of (1 − q) (f − y) elsewhere (Koenker & Bassett, 1978);
    in the target's unit.
    """
    gap = truth_NH[..., None] - answer_NHQ
    q = np.asarray(levels)
    return _mean(np.maximum(q * gap, (q - 1) * gap))


def level_weights(levels: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the share of (0, 1) that is closer to each level than to any other.

    >>> level_weights((0.25, 0.5, 0.75))
    array([0.375, 0.25 , 0.375])
    """
    middles = (np.asarray(levels[1:]) + np.asarray(levels[:-1])) / 2
    return np.diff(np.concatenate([[0.0], middles, [1.0]]))


def crps(truth_NH: Floats, answer_NHQ: Floats, levels: tuple[float, ...]) -> Floats:
    """Return each window's continuous ranked probability score, in the target's unit.

    Notes
    -----
    The score is twice the integral of the pinball loss over all levels (Gneiting & Ranjan,
    2011). Here the integral is a sum over the levels at hand, each weighted with the share of
    (0, 1) that is closest to it. With few levels that is an approximation: compare only
    forecasts with the same levels.
    """
    found: Floats = 2 * pinball(truth_NH, answer_NHQ, levels) @ level_weights(levels)
    return found


def coverage(truth_NH: Floats, low_NH: Floats, high_NH: Floats) -> Floats:
    """Return each window's share of measured steps inside an interval, its ends included."""
    inside = ((truth_NH >= low_NH) & (truth_NH <= high_NH)).astype(np.float64)
    return _mean(np.where(np.isnan(truth_NH), np.nan, inside))


def _mean(values: Floats) -> Floats:
    """Average over the horizon, the second axis, leaving out what is NaN."""
    there = ~np.isnan(values)
    count = there.sum(1)
    total = np.where(there, values, 0.0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def intervals(levels: tuple[float, ...]) -> list[tuple[int, int, int]]:
    """Return each central interval that the levels hold: its per cent, and its two places.

    >>> intervals((0.05, 0.1, 0.5, 0.9, 0.95))
    [(90, 0, 4), (80, 1, 3)]
    """
    found = []
    for low, level in enumerate(levels):
        matching = [n for n, other in enumerate(levels) if abs(other - (1 - level)) < 1e-9]
        if level < 0.5 and matching:
            found.append((round(100 * (1 - 2 * level)), low, matching[0]))
    return found


def window_metrics(forecast: Forecast) -> dict[str, Floats]:
    """Return every metric of a forecast for each window, shape (N,)."""
    truth, answer, levels = forecast.truth_NH, forecast.answer_NHQ, forecast.levels
    found = {
        "mase": mase(truth, forecast.point, forecast.scale_N),
        "smape": smape(truth, forecast.point),
        "mae": _mean(np.abs(truth - forecast.point)),
        "pinball": pinball(truth, answer, levels).mean(1),
        "crps": crps(truth, answer, levels),
    }
    for percent, low, high in intervals(levels):
        found[f"coverage_{percent}"] = coverage(truth, answer[..., low], answer[..., high])
    return found


class BlockBootstrap(Bootstrap):
    """Resamples of windows in blocks of neighbours, shared by all models.

    Parameters
    ----------
    series : NDArray of int64, shape (n,)
        The series of each window.
    origin : NDArray of int64, shape (n,)
        Where each window's forecast begins.
    block : int
        Windows of a block, at least 1; a series with fewer windows is one block.
    resamples, seed : int

    Notes
    -----
    Windows that overlap, or follow each other, are not independent; a bootstrap of single
    windows would give intervals that are far too narrow. Blocks of neighbours keep their
    dependence (Künsch, 1989); within a series they go round in a circle, so that each window
    is drawn equally often (Politis & Romano, 1992).
    """

    def __init__(self, series: Rows, origin: Rows, block: int, resamples: int, seed: int) -> None:
        n = len(series)
        self.block = block = max(1, min(block, n))
        order = np.lexsort((origin, series))
        _, begin, size = np.unique(series[order], return_index=True, return_counts=True)
        of = np.repeat(np.arange(len(size)), size)
        generator = np.random.default_rng([seed, 0xB10C])
        first = generator.integers(0, n, (resamples, -(-n // block)))
        # The block's series is its first window's; a step past its last window is its first.
        which = of[first]
        place = (first - begin[which])[..., None] + np.arange(block)
        place = begin[which][..., None] + place % size[which][..., None]
        self.rows = order[place.reshape(resamples, -1)[:, :n]].astype(np.int32)


def block_length(horizon: int, stride: int, n: int) -> int:
    """Return how many neighbouring windows to draw together.

    As many as overlap in what they foretell, and n^(1/3) more, for what dependence is left.
    """
    return -(-horizon // stride) + int(np.ceil(n ** (1 / 3)))


_UNITS = {"mase": "ratio", "smape": "%"}


def measure(
    forecasts: list[Forecast], bootstrap: BlockBootstrap
) -> tuple[list[Metric], dict[str, dict[str, Floats]]]:
    """Measure several forecasts of the same windows.

    Parameters
    ----------
    forecasts : list of Forecast
    bootstrap : BlockBootstrap
        Of the same windows, in the same order.

    Returns
    -------
    rows : list of Metric
        Means over windows.
    resampled : dict of str to dict of str to NDArray
        Model, metric and its values on the resamples, for paired differences.
    """
    how = f"circular block bootstrap, blocks of {bootstrap.block}, "
    how += f"{bootstrap.resamples} resamples, 95%"
    rows: list[Metric] = []
    resampled: dict[str, dict[str, Floats]] = {}
    for one in forecasts:
        resampled[one.model] = draws = {}
        for name, each in window_metrics(one).items():
            there = ~np.isnan(each)
            if not there.any():
                continue  # nothing was measured, and so nothing is printed as measured
            found = _means(each, bootstrap.rows)
            draws[name] = found
            low, high = bootstrap.interval(found)
            unit = "share" if name.startswith("coverage") else _UNITS.get(name, "target")
            rows.append(
                Metric(
                    "evaluate", one.model, one.split, name, float(each[there].mean()), low, high,
                    int(there.sum()), unit, how if low is not None else "",
                )
            )  # fmt: skip
    return rows, resampled


def _means(each: Floats, rows: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.asarray(_mean(each[rows]), np.float64)

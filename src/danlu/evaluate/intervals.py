"""95% intervals: Wilson's for rates, the bootstrap for everything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Z = float(norm.ppf(0.975))
WILSON = "Wilson score, 95%"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95% score interval of a rate (Wilson, 1927).

    Examples
    --------
    >>> low, high = wilson(8, 10)
    >>> round(low, 4), round(high, 4)
    (0.4902, 0.9433)
    """
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    denominator = 1 + Z**2 / n
    centre = (rate + Z**2 / (2 * n)) / denominator
    half = Z * np.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n**2)) / denominator
    # At 0 and n successes a bound is exactly 0 or 1; rounding must not say otherwise.
    low = 0.0 if successes == 0 else max(0.0, float(centre - half))
    high = 1.0 if successes == n else min(1.0, float(centre + half))
    return low, high


def bootstrap_name(resamples: int, paired: bool = False) -> str:
    """Return how a bootstrap interval is called in reports."""
    return f"{'paired ' if paired else ''}percentile bootstrap, {resamples} resamples, 95%"


class Bootstrap:
    """One set of resamples shared by all metrics, so that differences are paired.

    Parameters
    ----------
    n : int
        Rows.
    resamples : int
    seed : int

    Notes
    -----
    The percentile bootstrap (Efron & Tibshirani, 1993). A resample on which a
    metric is undefined (one class only, say) is left out of that metric's
    percentiles.
    """

    def __init__(self, n: int, resamples: int, seed: int) -> None:
        generator = np.random.default_rng([seed, 0xB007])
        self.rows = generator.integers(0, n, (resamples, n), dtype=np.int32)

    @property
    def resamples(self) -> int:
        """How many there are."""
        return len(self.rows)

    def values(self, metric: Callable[[NDArray[np.int32]], float]) -> NDArray[np.float64]:
        """Return the metric on each resample; it is given the rows drawn."""
        return np.asarray([metric(rows) for rows in self.rows], np.float64)

    @staticmethod
    def interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
        """Return the 2.5% and 97.5% quantiles, None where too few are defined."""
        finite = values[np.isfinite(values)]
        if len(finite) < 0.9 * len(values):
            return None, None
        low, high = np.quantile(finite, [0.025, 0.975])
        return float(low), float(high)

"""Classical forecasts that always stand beside ours: last season's, and exponential smoothing."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from danlu.errors import DataError

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.int64]

_SEASONS = 60  # at the end of training that exponential smoothing is fitted on, at most
_MOST = 4_000  # steps, likewise


def filled(series: Floats, season: int) -> Floats:
    """Replace what is missing by what stood there a season before, or by the last number.

    Only the past is looked at, so that nothing of a later split gets into a forecast. Before
    the first measurement it is the first.

    Raises
    ------
    DataError
        If nothing was measured.
    """
    out = np.array(series, np.float64)
    missing = np.flatnonzero(np.isnan(out))
    if len(missing) == len(out):
        raise DataError("a series holds no measurement")
    if len(missing):
        out[: int(np.argmax(~np.isnan(out)))] = out[~np.isnan(out)][0]
    for step in missing.tolist():
        if np.isnan(out[step]):
            out[step] = out[step - season] if step >= season else out[step - 1]
    return out


def seasonal_naive(
    series: Floats,
    end: int,
    origins: Rows,
    horizon: int,
    season: int,
    levels: tuple[float, ...],
) -> Floats:
    """Say that all will be as it was a season ago.

    Parameters
    ----------
    series : NDArray of float64, shape (L,)
        NaN where missing.
    end : int
        Where the training period ends.
    origins : NDArray of int64, shape (n,)
        First step of each forecast; what lies before it is known.
    horizon, season : int
    levels : tuple of float

    Returns
    -------
    NDArray of float64, shape (n, horizon, number of levels)
        The last known value of the same place in the season, plus the quantiles of the errors
        that this forecast makes in the training period, equally many seasons ahead. The
        median is not corrected: it is the forecast itself.

    Raises
    ------
    DataError
        If training is shorter than a season, or an origin is.
    """
    known = filled(series, season)
    ahead = np.arange(horizon) // season + 1
    if len(origins) and origins.min() < season:
        raise DataError(f"a forecast begins before a season of {season} steps has passed")
    point = known[origins[:, None] + np.arange(horizon) - season * ahead]
    spread = np.empty((horizon, len(levels)))
    for seasons in np.unique(ahead).tolist():
        error = series[season * seasons : end] - series[: end - season * seasons]
        error = error[~np.isnan(error)]
        if not len(error):
            raise DataError(
                f"training holds no {seasons + 1} seasons of {season} steps", where="series.season"
            )
        found = np.quantile(error, levels)
        # A drift is not what "as a season ago" says: the errors are taken around their median.
        spread[ahead == seasons] = found - np.median(error)
    out: Floats = point[..., None] + spread
    return out


def exponential_smoothing(
    series: Floats,
    end: int,
    origins: Rows,
    horizon: int,
    season: int,
    levels: tuple[float, ...],
) -> tuple[Floats, dict[str, Any]]:
    """Forecast by exponential smoothing in state-space form (Hyndman et al., 2008).

    Parameters are as for :func:`seasonal_naive`.

    Returns
    -------
    answer : NDArray of float64, shape (n, horizon, number of levels)
    settings : dict
        ``form``, such as ``ETS(A,Ad,A)``, chosen by the corrected Akaike criterion among
        additive errors with and without a damped trend and a season; ``tried``; its
        parameters; ``fitted_on`` so many steps at the end of training.

    Raises
    ------
    DataError
        If statsmodels is not installed, or nothing was measured.

    Notes
    -----
    The parameters are fitted once, on training. The states at each origin are those of one
    pass over the series: a state depends on what came before it, and on nothing else. With
    additive errors the forecasts are normal, and their variances known (chapter 6, class 1).
    Multiplicative forms have no such closed form and are left out.
    """
    known = filled(series, season)
    if len(origins) and origins.min() < season:
        raise DataError(f"a forecast begins before a season of {season} steps has passed")
    earliest = int(origins.min()) - season if len(origins) else end
    begin = max(0, min(end - min(_MOST, _SEASONS * max(season, 2)), earliest))
    forms = [(None, False), ("add", True)]
    seasonal = [None, "add"] if season > 1 and end - begin >= 2 * season + 2 else [None]
    best: Any = None
    tried: dict[str, float] = {}
    for trend, damped in forms:
        for cycle in seasonal:
            fit = _fit(known[begin:end], trend, damped, cycle, season)
            name = f"ETS(A,{'Ad' if damped else 'N'},{'A' if cycle else 'N'})"
            tried[name] = float(fit.aicc)
            if best is None or fit.aicc < best[1].aicc:
                best = name, fit
    name, fit = best
    model = _model(known[begin:], *_FORMS[name], season)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = model.smooth(fit.params).states
    point, spread = _ahead(np.asarray(states), origins - begin, fit, horizon, season)
    answer = point[..., None] + spread[:, None] * norm.ppf(levels)
    settings = {
        "form": name,
        "chosen_by": "AICc on training",
        "tried": tried,
        "fitted_on": end - begin,
        **{key: float(value) for key, value in _parameters(fit).items()},
    }
    return answer, settings


_FORMS: dict[str, tuple[str | None, bool, str | None]] = {
    "ETS(A,N,N)": (None, False, None),
    "ETS(A,Ad,N)": ("add", True, None),
    "ETS(A,N,A)": (None, False, "add"),
    "ETS(A,Ad,A)": ("add", True, "add"),
}


def _model(series: Floats, trend: str | None, damped: bool, cycle: str | None, season: int) -> Any:
    try:
        from statsmodels.tsa.exponential_smoothing.ets import ETSModel
    except ImportError:
        raise DataError(
            "exponential smoothing needs statsmodels", mend="pip install 'danlu[series]'"
        ) from None
    return ETSModel(
        series,
        error="add",
        trend=trend,
        damped_trend=damped,
        seasonal=cycle,
        seasonal_periods=season if cycle else None,
        initialization_method="heuristic",
    )


def _fit(series: Floats, trend: str | None, damped: bool, cycle: str | None, season: int) -> Any:
    with warnings.catch_warnings():
        # Whether it converged is judged by what it foretells, as every model here is.
        warnings.simplefilter("ignore")
        return _model(series, trend, damped, cycle, season).fit(disp=False)


def _parameters(fit: Any) -> dict[str, float]:
    names = ("smoothing_level", "smoothing_trend", "smoothing_seasonal", "damping_trend")
    found = dict(zip(fit.param_names, fit.params, strict=False))
    return {name: found[name] for name in names if name in found} | {"variance": fit.scale}


def _ahead(
    states: Floats, origins: Rows, fit: Any, horizon: int, season: int
) -> tuple[Floats, Floats]:
    """Return the means, shape (n, horizon), and deviations, shape (horizon,), of forecasts.

    A row of `states` holds, after its step was seen, the level, the trend if there is one, and
    the seasonal part of that step if there is a season.
    """
    found = _parameters(fit)
    alpha, beta = found["smoothing_level"], found.get("smoothing_trend", 0.0)
    gamma, phi = found.get("smoothing_seasonal", 0.0), found.get("damping_trend", 0.0)
    now = states[origins - 1]
    damping = np.cumsum(phi ** np.arange(1, horizon + 1))  # φ + φ² + … + φʰ
    point = np.repeat(now[:, :1], horizon, axis=1)
    if "smoothing_trend" in found:
        point = point + now[:, 1:2] * damping
    steps = np.arange(horizon)
    if "smoothing_seasonal" in found:
        point = point + states[origins[:, None] - season + steps % season, -1]
    j = np.arange(1, horizon)
    effect = alpha + beta * damping[: horizon - 1] + gamma * (j % season == 0)
    variance = found["variance"] * np.append(1.0, 1.0 + np.cumsum(effect**2))
    return point, np.sqrt(variance)

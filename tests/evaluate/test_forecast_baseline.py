"""Seasonal naive by hand; exponential smoothing against statsmodels' own forecasts."""

from __future__ import annotations

import builtins
import math
import warnings

import numpy as np
import pytest

from danlu.errors import DataError
from danlu.evaluate import forecast_baseline
from danlu.evaluate.forecast_baseline import exponential_smoothing, filled, seasonal_naive

LEVELS = (0.1, 0.5, 0.9)


def seasonal_series(n=200, season=6, seed=0):
    generator = np.random.default_rng(seed)
    cycle = 5 * np.sin(2 * np.pi * np.arange(n) / season)
    return 20 + cycle + np.cumsum(generator.normal(0, 0.3, n)) + generator.normal(0, 1, n)


def test_seasonal_naive_by_hand():
    series = np.array([1.0, 2, 3, 5, 7, 9, 10, 10, 13, 0, 0, 0])
    found = seasonal_naive(series, 9, np.array([9]), 5, 3, (0.25, 0.5, 0.75))
    # One season ahead the errors in training are 4, 5, 6, 5, 3, 4; two ahead 9, 8, 10.
    np.testing.assert_array_equal(found[0, :, 1], [10, 10, 13, 10, 10])
    np.testing.assert_allclose(found[0, :3, 0] - found[0, :3, 1], [4 - 4.5] * 3)
    np.testing.assert_allclose(found[0, :3, 2] - found[0, :3, 1], [5 - 4.5] * 3)
    np.testing.assert_allclose(found[0, 3:, 0] - found[0, 3:, 1], [8.5 - 9] * 2)
    np.testing.assert_allclose(found[0, 3:, 2] - found[0, 3:, 1], [9.5 - 9] * 2)


def test_seasonal_naive_leaves_missing_errors_out_and_takes_the_season_before():
    nan = math.nan
    series = np.array([1.0, 2, 3, 5, 7, nan, 10, nan, 13, 0])
    found = seasonal_naive(series, 9, np.array([9]), 3, 3, (0.25, 0.5, 0.75))
    np.testing.assert_array_equal(found[0, :, 1], [10, 7, 13])
    np.testing.assert_allclose(found[0, :, 2] - found[0, :, 1], [0] * 3)  # of 4, 5, 5


def test_seasonal_naive_needs_as_many_seasons_as_it_looks_ahead():
    with pytest.raises(DataError, match="training holds no 3 seasons"):
        seasonal_naive(np.arange(9.0), 6, np.array([6]), 5, 3, LEVELS)


def test_missing_values_are_filled_from_the_past_alone():
    nan = math.nan
    assert filled(np.array([nan, nan, 3, nan, 5, nan]), 2).tolist() == [3, 3, 3, 3, 5, 3]
    series = seasonal_series()
    series[::7] = nan
    for cut in (50, 120):
        np.testing.assert_array_equal(filled(series, 6)[10:cut], filled(series[:cut], 6)[10:])
    with pytest.raises(DataError, match="no measurement"):
        filled(np.full(4, nan), 2)


def trending_series():
    """Return a season on a level whose slope wanders, and falls back towards none."""
    generator = np.random.default_rng(3)
    slope = [0.0]
    for shock in generator.normal(0, 0.3, 199):
        slope.append(0.9 * slope[-1] + shock)
    return seasonal_series() / 10 + np.cumsum(slope)


@pytest.mark.parametrize("season", [1, 6])
@pytest.mark.parametrize(("series", "trend"), [(seasonal_series(), "N"), (trending_series(), "Ad")])
def test_smoothing_foretells_what_statsmodels_does(season, series, trend):
    import pandas as pd
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    origin, horizon = 170, 15
    answer, settings = exponential_smoothing(
        series, 150, np.array([155, origin]), horizon, season, LEVELS
    )
    assert settings["form"].split(",")[1] == trend
    trend, damped, cycle = forecast_baseline._FORMS[settings["form"]]
    assert settings["tried"][settings["form"]] == min(settings["tried"].values())
    assert len(settings["tried"]) == (4 if season > 1 else 2)
    begin = 150 - settings["fitted_on"]
    keys = {
        "error": "add", "trend": trend, "damped_trend": damped, "seasonal": cycle,
        "seasonal_periods": season if cycle else None, "initialization_method": "heuristic",
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = ETSModel(series[begin:150], **keys).fit(disp=False)
        known = ETSModel(pd.Series(series[begin:origin]), **keys).smooth(fit.params)
        theirs = known.get_prediction(start=origin - begin, end=origin - begin + horizon - 1)
    np.testing.assert_allclose(answer[1, :, 1], theirs.predicted_mean, rtol=1e-6)
    # Theirs estimates the variance on all that it has seen, ours on training.
    ratio = math.sqrt(settings["variance"] / known.mse)
    table = theirs.summary_frame(alpha=0.2)
    np.testing.assert_allclose(
        answer[1, :, 2] - answer[1, :, 1], ratio * (table["pi_upper"] - table["mean"]), rtol=1e-3
    )


def test_a_forecast_knows_nothing_of_what_follows_its_origin():
    series = seasonal_series()
    changed = series.copy()
    changed[170:] = 1e3
    for method in (seasonal_naive, lambda *a: exponential_smoothing(*a)[0]):
        mine, theirs = (
            method(s, 150, np.array([160, 170]), 8, 6, LEVELS) for s in (series, changed)
        )
        np.testing.assert_allclose(mine, theirs, rtol=1e-9)


def test_smoothing_says_how_to_install_what_it_needs(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **keys):
        if name.startswith("statsmodels"):
            raise ImportError(name)
        return real(name, *rest, **keys)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"danlu\[series\]"):
        exponential_smoothing(seasonal_series(), 150, np.array([160]), 3, 6, LEVELS)


@pytest.mark.parametrize("method", [seasonal_naive, exponential_smoothing])
def test_a_forecast_before_the_first_season_has_passed_is_refused(method):
    with pytest.raises(DataError, match="before a season of 6"):
        method(seasonal_series(), 150, np.array([5]), 3, 6, LEVELS)

"""Forecast metrics against plain loops and closed forms; blocks of the bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import mean_pinball_loss

from danlu.errors import DataError
from danlu.evaluate.forecast import (
    BlockBootstrap,
    Forecast,
    block_length,
    coverage,
    crps,
    intervals,
    level_weights,
    mase,
    measure,
    pinball,
    season_scale,
    smape,
    window_metrics,
)

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


def forecast(n=30, horizon=6, seed=0, missing=0.1, model="mine"):
    generator = np.random.default_rng(seed)
    truth = generator.normal(10, 3, (n, horizon))
    truth[generator.random(truth.shape) < missing] = math.nan
    truth[0] = math.nan
    centre = generator.normal(10, 3, (n, horizon, 1))
    answer = centre + np.sort(generator.normal(0, 2, (n, horizon, len(LEVELS))), axis=2)
    return Forecast(model, "test", truth, answer, LEVELS, generator.uniform(1, 2, n))


def test_every_metric_agrees_with_a_loop_over_steps():
    one = forecast()
    found = window_metrics(one)
    for row in range(30):
        steps = [h for h in range(6) if not math.isnan(one.truth_NH[row, h])]
        if not steps:
            assert all(math.isnan(values[row]) for values in found.values())
            continue
        truth = [one.truth_NH[row, h] for h in steps]
        point = [one.answer_NHQ[row, h, 3] for h in steps]
        gaps = [abs(t - p) for t, p in zip(truth, point, strict=True)]
        assert found["mae"][row] == pytest.approx(np.mean(gaps))
        assert found["mase"][row] == pytest.approx(np.mean(gaps) / one.scale_N[row])
        shares = [200 * abs(t - p) / (abs(t) + abs(p)) for t, p in zip(truth, point, strict=True)]
        assert found["smape"][row] == pytest.approx(np.mean(shares))
        losses = [
            mean_pinball_loss(truth, [one.answer_NHQ[row, h, q] for h in steps], alpha=level)
            for q, level in enumerate(LEVELS)
        ]
        assert found["pinball"][row] == pytest.approx(np.mean(losses))
        width = [0.075, 0.1, 0.2, 0.25, 0.2, 0.1, 0.075]
        assert found["crps"][row] == pytest.approx(2 * np.dot(losses, width))
        for name, low, high in (
            ("coverage_90", 0, 6),
            ("coverage_80", 1, 5),
            ("coverage_50", 2, 4),
        ):
            inside = [
                one.answer_NHQ[row, h, low] <= one.truth_NH[row, h] <= one.answer_NHQ[row, h, high]
                for h in steps
            ]
            assert found[name][row] == pytest.approx(np.mean(inside))
    assert len(found) == 8


def test_the_seasonal_naive_forecast_has_a_mase_of_one_on_its_training_series():
    series = np.random.default_rng(0).normal(0, 1, 48 * 3)
    scale = season_scale(series, 12)
    truth = series[12:].reshape(-1, 12)
    naive = series[:-12].reshape(-1, 12)
    assert mase(truth, naive, np.full(len(truth), scale)).mean() == pytest.approx(1)


def test_the_scale_is_of_the_pairs_that_were_measured():
    series = np.array([1.0, 5, math.nan, 9, 2, 4])
    gaps = [abs(9 - 5), abs(4 - 9)]
    assert season_scale(series, 2) == pytest.approx(np.mean(gaps))


@pytest.mark.parametrize("series", [[1.0, 1, 1, 1], [1.0, 2], [math.nan] * 9])
def test_a_scale_that_would_be_zero_or_is_unknown_is_refused(series):
    with pytest.raises(DataError, match="season of 2 steps"):
        season_scale(np.array(series), 2)


def test_smape_goes_from_0_to_200():
    truth = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, -2.0]])
    point = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, -1.0]])
    np.testing.assert_allclose(smape(truth, point), [0, 200, 200 / 3])


@pytest.mark.parametrize("num_levels", [1, 2, 9, 200])
def test_the_levels_share_the_unit_interval(num_levels):
    levels = tuple(np.sort(np.random.default_rng(num_levels).uniform(0.01, 0.99, num_levels)))
    weights = level_weights(levels)
    assert weights.sum() == pytest.approx(1)
    grid = np.linspace(0, 1, 200_001)
    nearest = np.abs(grid[:, None] - np.asarray(levels)).argmin(1) if num_levels < 50 else None
    if nearest is not None:
        shares = np.bincount(nearest, minlength=num_levels) / len(grid)
        np.testing.assert_allclose(weights, shares, atol=1e-4)


def test_crps_of_many_quantiles_is_that_of_the_sample_they_are():
    generator = np.random.default_rng(1)
    sample = np.sort(generator.gamma(2, 3, (5, 3, 1000)), axis=2)
    truth = generator.gamma(2, 3, (5, 3))
    levels = tuple((np.arange(1000) + 0.5) / 1000)
    # E|X − y| − E|X − X'| / 2 over the empirical distribution (Gneiting & Raftery, 2007).
    expected = np.abs(sample - truth[..., None]).mean(2)
    expected -= np.abs(sample[..., None, :] - sample[..., :, None]).mean((2, 3)) / 2
    np.testing.assert_allclose(crps(truth, sample, levels), expected.mean(1), rtol=1e-9)


def test_crps_of_many_normal_quantiles_is_the_closed_form():
    levels = tuple((np.arange(2000) + 0.5) / 2000)
    truth = np.linspace(-3, 3, 13)[:, None]
    answer = np.broadcast_to(norm.ppf(levels), (13, 1, 2000))
    y = truth[:, 0]
    expected = y * (2 * norm.cdf(y) - 1) + 2 * norm.pdf(y) - 1 / math.sqrt(math.pi)
    np.testing.assert_allclose(crps(truth, answer, levels), expected, atol=1e-4)


def test_crps_of_a_certain_answer_is_its_absolute_error():
    truth = np.array([[1.0, 4.0]])
    answer = np.full((1, 2, 7), 2.0)
    assert crps(truth, answer, LEVELS)[0] == pytest.approx(1.5)


def test_true_quantiles_have_the_least_pinball_loss_and_cover_what_they_should():
    generator = np.random.default_rng(0)
    truth = generator.normal(0, 1, (400, 50))
    right = np.broadcast_to(norm.ppf(LEVELS), (400, 50, 7))
    best = pinball(truth, right, LEVELS).mean(0)
    for shift in (-0.3, 0.3):
        assert (pinball(truth, right + shift, LEVELS).mean(0) > best).all()
    for percent, low, high in intervals(LEVELS):
        share = coverage(truth, right[..., low], right[..., high]).mean()
        assert share == pytest.approx(percent / 100, abs=0.01)


def test_levels_without_a_counterpart_make_no_interval():
    assert intervals((0.1, 0.5, 0.8)) == []
    assert [percent for percent, *_ in intervals(LEVELS)] == [90, 80, 50]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=40), st.integers(1, 50), st.integers(0, 5))
def test_blocks_are_neighbours_of_one_series_going_round(series, block, seed):
    series = np.array(series)
    origin = np.random.default_rng(seed).permutation(len(series)) * 10
    bootstrap = BlockBootstrap(series, origin, block, 20, seed)
    assert bootstrap.rows.shape == (20, len(series))
    after = {}
    for number in set(series.tolist()):
        ordered = sorted(np.flatnonzero(series == number), key=lambda row: origin[row])
        after |= dict(zip(ordered, ordered[1:] + ordered[:1], strict=True))
    for draw in bootstrap.rows:
        for place in range(1, len(draw)):
            if place % bootstrap.block:
                assert draw[place] == after[draw[place - 1]]


def test_every_window_is_drawn_equally_often():
    series = np.repeat([0, 1, 2], [50, 7, 3])
    rows = BlockBootstrap(series, np.arange(60), 10, 4000, 0).rows
    count = np.bincount(rows.ravel(), minlength=60) / 4000
    np.testing.assert_allclose(count, 1, atol=0.15)


def test_the_interval_of_a_dependent_series_is_wider_than_that_of_single_windows():
    generator = np.random.default_rng(0)
    n, horizon = 600, 24
    noise = np.convolve(generator.normal(0, 1, n + 2 * horizon), np.ones(horizon), "same")
    truth = noise[np.arange(n)[:, None] + np.arange(horizon)]
    answer = np.zeros((n, horizon, 7)) + norm.ppf(LEVELS)
    one = Forecast("m", "test", truth, answer, LEVELS, np.ones(n))
    widths = []
    for block in (1, block_length(horizon, 1, n)):
        bootstrap = BlockBootstrap(np.zeros(n, int), np.arange(n), block, 300, 0)
        row = next(row for row in measure([one], bootstrap)[0] if row.metric == "mase")
        assert row.low < row.value < row.high
        widths.append(row.high - row.low)
    assert widths[1] > 3 * widths[0]


def test_rows_name_the_blocks_and_count_what_was_measured():
    mine, other = forecast(), forecast(seed=0, model="other")
    bootstrap = BlockBootstrap(np.zeros(30, int), np.arange(30), 5, 200, 0)
    rows, resampled = measure([mine, other], bootstrap)
    assert len(rows) == 16
    assert {row.n for row in rows} == {29}
    assert all("blocks of 5" in row.interval for row in rows)
    units = {row.metric: row.unit for row in rows}
    assert units["mase"] == "ratio"
    assert units["smape"] == "%"
    assert units["coverage_90"] == "share"
    # The same answers on the same resamples differ in nothing.
    np.testing.assert_array_equal(resampled["mine"]["crps"], resampled["other"]["crps"])


def test_nothing_measured_is_not_printed_as_measured():
    one = forecast(4)
    nothing = Forecast("m", "test", one.truth_NH * math.nan, one.answer_NHQ, LEVELS, one.scale_N)
    rows, _ = measure([nothing], BlockBootstrap(np.zeros(4, int), np.arange(4), 2, 100, 0))
    assert rows == []


def test_a_block_spans_what_overlaps_and_a_little_more():
    assert block_length(48, 1, 1000) == 58
    assert block_length(48, 48, 27) == 4
    assert block_length(10, 4, 8) == 5

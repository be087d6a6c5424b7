"""Wilson's interval against scipy, and the bootstrap against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from danlu.evaluate.intervals import Bootstrap, bootstrap_name, wilson


@pytest.mark.parametrize("n", [1, 2, 7, 50, 1000])
def test_wilson_agrees_with_scipy(n):
    for successes in sorted({0, 1, n // 3, n // 2, n - 1, n}):
        expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
        assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 17, 999_983])
def test_wilson_touches_the_ends_exactly(n):
    assert wilson(0, n)[0] == 0.0
    assert wilson(n, n)[1] == 1.0
    assert 0 < wilson(0, n)[1] < 1
    assert 0 < wilson(n, n)[0] < 1


def test_wilson_of_nothing_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_holds_the_rate_and_mirrors_for_failures():
    for successes in range(31):
        low, high = wilson(successes, 30)
        assert 0 <= low <= successes / 30 <= high <= 1
        mirrored = wilson(30 - successes, 30)
        assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)


def test_bootstrap_of_a_mean_covers_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(5)
    simulations, covered = 400, 0
    for number in range(simulations):
        sample = generator.normal(3.0, 2.0, 80)
        bootstrap = Bootstrap(80, 200, number)
        low, high = bootstrap.interval(bootstrap.values(lambda rows, x=sample: x[rows].mean()))
        covered += low <= 3.0 <= high
    assert 0.90 <= covered / simulations <= 0.98


def test_bootstrap_width_is_that_of_the_normal_theory():
    sample = np.random.default_rng(1).normal(0.0, 1.0, 2000)
    bootstrap = Bootstrap(2000, 1000, 0)
    low, high = bootstrap.interval(bootstrap.values(lambda rows: sample[rows].mean()))
    assert high - low == pytest.approx(2 * 1.96 * sample.std() / 2000**0.5, rel=0.1)


def test_paired_differences_are_narrower_than_unpaired_ones_for_correlated_models():
    generator = np.random.default_rng(2)
    hard = generator.random(300)
    first = (hard + generator.normal(0, 0.05, 300) < 0.80).astype(float)
    second = (hard + generator.normal(0, 0.05, 300) < 0.75).astype(float)
    one, other = Bootstrap(300, 500, 0), Bootstrap(300, 500, 1)
    draws = one.values(lambda rows: first[rows].mean())
    paired = draws - one.values(lambda rows: second[rows].mean())
    unpaired = draws - other.values(lambda rows: second[rows].mean())
    widths = [np.diff(Bootstrap.interval(values))[0] for values in (paired, unpaired)]
    assert widths[0] < 0.7 * widths[1]


def test_undefined_resamples_are_left_out_of_the_quantiles():
    values = np.arange(100.0)
    values[[3, 50]] = np.nan
    values[98] = np.inf
    finite = values[np.isfinite(values)]
    assert Bootstrap.interval(values) == pytest.approx(np.quantile(finite, [0.025, 0.975]))


def test_an_interval_of_too_few_defined_resamples_is_none():
    values = np.arange(100.0)
    values[:11] = np.nan
    assert Bootstrap.interval(values) == (None, None)
    assert Bootstrap.interval(np.full(50, np.nan)) == (None, None)


def test_a_seed_fixes_the_resamples_and_another_changes_them():
    same, again, other = Bootstrap(40, 100, 7), Bootstrap(40, 100, 7), Bootstrap(40, 100, 8)
    assert np.array_equal(same.rows, again.rows)
    assert not np.array_equal(same.rows, other.rows)
    assert same.rows.shape == (100, 40)
    assert same.resamples == 100
    assert set(np.unique(same.rows)) == set(range(40))


def test_the_name_says_how_many_resamples_and_whether_paired():
    assert "1000" in bootstrap_name(1000)
    assert "paired" not in bootstrap_name(1000)
    assert "paired" in bootstrap_name(300, paired=True)

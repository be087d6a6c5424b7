"""Scores of steps, thresholds, events and alarms against loops and scikit-learn."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import f1_score, precision_score, recall_score

from danlu.errors import DataError
from danlu.evaluate.anomaly import (
    Alarm,
    Detected,
    alarms,
    choose_threshold,
    errors_of,
    event_scores,
    events,
    isolation_forest,
    measure,
    point_scores,
    rounds,
    spread,
    step_metrics,
    surprise,
)
from danlu.evaluate.forecast import BlockBootstrap

flags = st.lists(st.booleans(), min_size=1, max_size=60).map(np.array)


def runs(found):
    """Group neighbours, as itertools does."""
    out, start = [], 0
    for value, group in groupby(found.tolist()):
        size = len(list(group))
        if value:
            out.append([start, start + size])
        start += size
    return out


@settings(deadline=None)
@given(flags)
def test_events_are_the_runs_of_true_steps(found):
    assert events(found).tolist() == runs(found)


@settings(deadline=None)
@given(flags, st.integers(0, 99))
def test_points_agree_with_scikit_learn_and_events_with_a_loop(truth, seed):
    flagged = np.random.default_rng(seed).random(len(truth)) < 0.4
    found = point_scores(truth, flagged)
    for name, function in (
        ("precision", precision_score), ("recall", recall_score), ("f1", f1_score),
    ):  # fmt: skip
        assert found[name] == pytest.approx(function(truth, flagged, zero_division=0))
    actual, raised = runs(truth), runs(flagged)
    caught = sum(any(flagged[step] for step in range(*run)) for run in actual)
    right = sum(any(truth[step] for step in range(*run)) for run in raised)
    by_event = event_scores(truth, flagged)
    assert by_event["event_recall"] == pytest.approx(caught / len(actual) if actual else 0)
    assert by_event["event_precision"] == pytest.approx(right / len(raised) if raised else 0)


def test_one_hit_in_a_long_event_is_not_counted_as_all_of_it():
    truth = np.array([False] * 10 + [True] * 90)
    flagged = np.arange(100) == 50
    assert point_scores(truth, flagged)["recall"] == pytest.approx(1 / 90)
    assert event_scores(truth, flagged)["event_recall"] == 1


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=50))
def test_no_other_threshold_has_a_better_f1(rows):
    score = np.array([row[0] for row in rows], float)
    truth = np.array([row[1] for row in rows])
    if not truth.any():
        return
    chosen = choose_threshold(score, truth)
    best = f1_score(truth, score >= chosen.value, zero_division=0)
    for other in np.unique(score):
        assert f1_score(truth, score >= other, zero_division=0) <= best + 1e-12
        if other > chosen.value:  # and no higher one is as good
            above = score >= np.nextafter(other, np.inf)
            assert f1_score(truth, above, zero_division=0) <= best + 1e-12
    assert "validation" in chosen.chosen_by


def test_a_threshold_lies_halfway_to_the_next_lower_score():
    chosen = choose_threshold(np.array([1.0, 2, 7, 9, math.nan]), np.array([0, 0, 1, 1, 1]) > 0)
    assert chosen.value == 4.5


@pytest.mark.parametrize("truth", [None, np.zeros(1000, bool)])
def test_without_a_label_a_share_of_the_validation_steps_is_flagged(truth):
    score = np.random.default_rng(0).normal(0, 1, 1000)
    chosen = choose_threshold(score, truth, share=0.02)
    assert (score >= chosen.value).sum() == 20
    assert "no label" in chosen.chosen_by


def test_a_validation_period_without_a_score_is_refused():
    with pytest.raises(DataError, match="validation"):
        choose_threshold(np.full(3, math.nan), None)


@settings(deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(0, 9))
def test_a_steps_score_is_the_mean_over_the_windows_that_score_it(length, starts, seed):
    generator = np.random.default_rng(seed)
    scores = generator.normal(0, 1, (len(starts), length))
    scores[generator.random(scores.shape) < 0.2] = math.nan
    found = spread(scores, np.array(starts), 30)
    for step in range(30):
        given_ = [
            scores[n, step - start] for n, start in enumerate(starts) if 0 <= step - start < length
        ]
        given_ = [score for score in given_ if not math.isnan(score)]
        if given_:
            assert found[step] == pytest.approx(np.mean(given_))
        else:
            assert math.isnan(found[step])


def test_surprise_counts_half_widths_on_the_side_that_the_truth_fell():
    answer = np.array([[[-1.0, 0, 4], [-1, 0, 4], [-1, 0, 4]]])
    found = surprise(np.array([[8.0, -3, math.nan]]), answer, (0.1, 0.5, 0.9))
    np.testing.assert_allclose(found, [[2, 3, math.nan]])
    sharp = surprise(np.ones((1, 1)), np.zeros((1, 1, 3)), (0.1, 0.5, 0.9))
    assert np.isfinite(sharp).all() and sharp[0, 0] > 1e30  # noqa: PT018


def test_alarms_tell_begin_end_and_peak_in_the_users_times():
    score = np.array([0, 3, math.nan, 5, 0, 0, 0, 9, 2, math.nan])
    time = 100.0 + 10 * np.arange(10)
    first = [Alarm(110, 110, 3, 110, 1), Alarm(130, 130, 5, 130, 1), Alarm(170, 180, 9, 170, 2)]
    assert alarms(score, 2, time) == first
    assert alarms(score, 2, time, gap=1) == [Alarm(110, 130, 5, 130, 3), first[2]]
    assert alarms(score, 2, time, gap=3) == [Alarm(110, 180, 9, 170, 8)]
    assert alarms(score, 10, time) == []
    assert first[0].to_dict() == {"start": 110, "end": 110, "peak": 3, "at": 110, "steps": 1}


def test_the_isolation_forest_finds_what_is_far_off_and_follows_from_its_seed():
    generator = np.random.default_rng(0)
    training = generator.normal(0, 1, (500, 4))
    usual, strange = generator.normal(0, 1, (50, 4)), generator.normal(0, 1, (50, 4)) + 6
    low, high = isolation_forest(training, [usual, strange], 3)
    assert low.max() < high.min()
    np.testing.assert_array_equal(low, isolation_forest(training, [usual], 3)[0])


def test_every_patch_is_hidden_once_and_scored_only_then():
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, (3, 7, 4))
    values[0, 0, :2] = math.nan
    values[1, 3] = math.nan
    hidden = rounds(3, 7, 0.3)
    assert len(hidden) == 3
    assert (np.sum(hidden, axis=0) == 1).all()
    guess = generator.normal(0, 1, values.shape)
    found = errors_of(lambda mask: np.where(mask[..., None], guess, values), values, hidden)
    expected = np.array([
        [np.nanmean((guess[n, p] - values[n, p]) ** 2) if (n, p) != (1, 3) else math.nan
         for p in range(7)] for n in range(3)
    ])  # fmt: skip
    np.testing.assert_allclose(found, expected)
    once = errors_of(lambda mask: guess, values, hidden[:1])
    np.testing.assert_array_equal(np.isnan(once), ~hidden[0] | np.isnan(expected))


def test_rows_have_intervals_for_steps_but_not_for_events():
    generator = np.random.default_rng(0)
    truth = np.zeros(600, bool)
    for begin in range(20, 600, 60):
        truth[begin : begin + 10] = True
    score = norm.cdf(generator.normal(0, 1, 600) + 2 * truth)
    score[:5] = math.nan
    one = Detected("mine", "test", truth, score, 0.9)
    bootstrap = BlockBootstrap(np.zeros(600, int), np.arange(600), 20, 300, 0)
    rows, resampled = measure([one], bootstrap)
    found = {row.metric: row for row in rows}
    expected = step_metrics(truth, score >= 0.9, score)
    assert found.keys() == expected.keys()
    for name in ("precision", "recall", "f1"):
        assert found[name].low < found[name].value == expected[name] < found[name].high
        assert "blocks of 20" in found[name].interval
        assert len(resampled["mine"][name]) == 300
    assert found["event_f1"].low is None
    assert found["event_f1"].interval == ""

"""The gate: each sign and bound, and that it fails wherever nothing was measured."""

from __future__ import annotations

import math

import pytest

from danlu.audit.gate import judge
from danlu.log import Metric


def _row(metric="accuracy", value=0.8, low=0.75, high=0.85, model="ours", split="test"):
    return Metric("evaluate", model, split, metric, value, low, high, 100, "share", "Wilson")


ROWS = [
    _row("accuracy", 0.95, 0.94, 0.96, model="tfidf-logreg"),
    _row(),
    _row("accuracy - tfidf-logreg", 0.02, -0.01, 0.05),
    _row("roc_auc", 0.9, None, None),
    _row("accuracy", 0.1, 0.05, 0.15, split="test[short]"),
]


def _one(condition, rows=ROWS, baseline="tfidf-logreg"):
    (verdict,) = judge([condition], rows, "ours", baseline)
    assert verdict.condition == condition
    assert verdict.reason
    return verdict


@pytest.mark.parametrize(
    ("sign", "below", "equal", "above"),
    [
        (">=", True, True, False),
        (">", True, False, False),
        ("<=", False, True, True),
        ("<", False, False, True),
    ],
)
def test_every_sign_means_what_it_says(sign, below, equal, above):
    for limit, expected in ((0.79, below), (0.8, equal), (0.81, above)):
        verdict = _one(f"test.accuracy {sign} {limit}")
        assert (verdict.passed, verdict.measured) == (expected, 0.8)


@pytest.mark.parametrize(
    ("bound", "number"), [("", 0.8), (".value", 0.8), (".low", 0.75), (".high", 0.85)]
)
def test_every_bound_is_the_row_s_own(bound, number):
    assert _one(f"test.accuracy{bound} >= 0").measured == number
    assert _one(f"test.accuracy{bound} >= {number}").passed
    assert not _one(f"test.accuracy{bound} > {number}").passed


@pytest.mark.parametrize(
    ("bound", "number"), [("", 0.02), (".value", 0.02), (".low", -0.01), (".high", 0.05)]
)
def test_beside_a_baseline_the_bound_is_the_paired_difference_s(bound, number):
    verdict = _one(f"test.accuracy{bound} - baseline > 0")
    assert (verdict.measured, verdict.passed) == (number, number > 0)
    assert _one(f"test.accuracy{bound} - baseline >= {number}").passed


def test_a_limit_may_be_negative_whole_or_without_a_leading_zero():
    assert _one("test.accuracy.low - baseline >= -0.02").passed
    assert not _one("test.accuracy.low - baseline >= -0.005").passed
    assert _one("test.accuracy >= .8").passed
    assert not _one("test.accuracy >= 1").passed
    assert _one("  test.accuracy>=0.8  ").passed


@pytest.mark.parametrize(
    "condition",
    [
        "test.f1_macro >= 0",
        "test.f1_macro - baseline >= -1",
        "test.accurac >= 0",
    ],
)
@pytest.mark.parametrize("sign", [">=", "<="])
def test_what_was_not_measured_fails(condition, sign):
    verdict = _one(condition.replace(">=", sign))
    assert (verdict.passed, verdict.measured) == (False, None)
    assert "not measured" in verdict.reason


def test_another_model_s_number_does_not_count():
    others = [row for row in ROWS if row.model != "ours"]
    assert not _one("test.accuracy >= 0", others).passed
    assert not _one("test.accuracy >= 0.9").passed


@pytest.mark.parametrize("sign", [">=", "<=", ">", "<"])
@pytest.mark.parametrize("bound", ["low", "high"])
def test_a_missing_interval_fails(sign, bound):
    verdict = _one(f"test.roc_auc.{bound} {sign} 0.5")
    assert (verdict.passed, verdict.measured) == (False, None)


@pytest.mark.parametrize("sign", [">=", "<=", ">", "<"])
def test_an_undefined_number_fails(sign):
    rows = [_row("f1_macro", math.nan, math.nan, math.nan)]
    for bound in ("", ".low", ".high"):
        assert not _one(f"test.f1_macro{bound} {sign} 0.5", rows).passed


def test_an_undefined_number_is_not_recorded_as_measured():
    """A verdict is written as JSON, which has no NaN."""
    assert _one("test.f1_macro >= 0", [_row("f1_macro", math.nan)]).measured is None


def test_a_comparison_without_a_baseline_fails():
    verdict = _one("test.accuracy - baseline > -1", baseline=None)
    assert (verdict.passed, verdict.measured) == (False, None)
    assert "baseline" in verdict.reason
    assert not _one("test.accuracy - baseline > -1", baseline="majority").passed


@pytest.mark.parametrize(
    "condition",
    [
        "",
        "accuracy >= 0",
        "train.accuracy >= 0",
        "test.accuracy",
        "test.accuracy == 0.8",
        "test.accuracy => 0.8",
        "test.accuracy >= high",
        "test.accuracy >= 0.5 or 1",
        "test.accuracy.middle >= 0",
        "test.accuracy >= 1e-9",
        "test.accuracy >= nan",
        "0.5 <= test.accuracy",
        "test.accuracy - majority > 0",
        "test.accuracy >= 0.1\ntest.accuracy >= 0.1",
        "not test.accuracy >= 0",
    ],
)
def test_what_cannot_be_read_fails(condition):
    verdict = _one(condition)
    assert (verdict.passed, verdict.measured) == (False, None)


def test_conditions_are_judged_one_by_one_in_order():
    conditions = ["test.accuracy >= 0.9", "test.accuracy >= 0.5", "nonsense"]
    verdicts = judge(conditions, ROWS, "ours", None)
    assert [verdict.condition for verdict in verdicts] == conditions
    assert [verdict.passed for verdict in verdicts] == [False, True, False]
    assert verdicts[1].to_dict()["measured"] == 0.8
    assert judge([], ROWS, "ours", None) == []


NAMED = [
    *ROWS,
    _row("recall[very bad]", 0.7, 0.6, 0.8),
    _row("demographic_parity_gap[sex]", 0.19, 0.15, 0.23),
    _row("accuracy[sex=Female]", 0.9, 0.88, 0.92),
    _row("accuracy - logreg", 0.1, 0.05, 0.15),
]


@pytest.mark.parametrize(
    ("condition", "measured", "passed"),
    [
        ("test.demographic_parity_gap[sex].high <= 0.2", 0.23, False),
        ("test.demographic_parity_gap[sex] <= 0.2", 0.19, True),
        ("test.accuracy[sex=Female].low >= 0.85", 0.88, True),
        ("test.recall[very bad] > 0.7", 0.7, False),
        ("test.accuracy - logreg > 0", 0.1, True),
        ("test.accuracy.low - tfidf-logreg > 0", -0.01, False),
        ("test.accuracy.low-logreg>0", 0.05, True),
        ("test.accuracy[sex=Male] > 0", None, False),
        ("test.accuracy - boosting > 0", None, False),
        ("test.recall[very bad] - baseline > 0", None, False),
    ],
)
def test_groups_classes_and_named_baselines_can_be_asked_for(condition, measured, passed):
    verdict = _one(condition, NAMED)
    assert (verdict.measured, verdict.passed) == (measured, passed)

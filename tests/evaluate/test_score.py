"""Every metric against scikit-learn or a plain formula, and the rows made of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as reference

from danlu.evaluate.intervals import WILSON, Bootstrap, wilson
from danlu.evaluate.score import (
    Scored,
    areas,
    class_metrics,
    crossings,
    curves,
    differences,
    expected_calibration_error,
    label_metrics,
    measure,
    quantile_metrics,
    slices,
    value_metrics,
)
from danlu.log import LOWER_IS_BETTER


def _classified(n, num_classes, seed=0):
    """Return labels and probabilities that know something of them."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, num_classes, n)
    raw = generator.normal(0, 1, (n, num_classes)) + 1.2 * np.eye(num_classes)[truth]
    return truth, np.exp(raw) / np.exp(raw).sum(1, keepdims=True)


def _calibration_error(confidence, correct):
    """Go through ten bins one by one."""
    total = 0.0
    for bin_ in range(10):
        inside = [
            (c, r)
            for c, r in zip(confidence, correct, strict=True)
            if bin_ / 10 <= c < (bin_ + 1) / 10 or (bin_ == 9 and c == 1)
        ]
        if inside:
            gap = np.mean([c for c, _ in inside]) - np.mean([r for _, r in inside])
            total += abs(gap) * len(inside) / len(confidence)
    return total


def _check_classes(truth, probability):
    num_classes = probability.shape[1]
    numbers, chosen = range(num_classes), probability.argmax(1)
    found = class_metrics(truth, probability)
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        truth, chosen, labels=list(numbers), zero_division=0
    )
    occurs = np.union1d(truth, chosen)  # as scikit-learn's own macro averages
    one_hot = np.eye(num_classes)[truth]
    columns = [1] if num_classes == 2 else numbers
    expected = {
        "accuracy": reference.accuracy_score(truth, chosen),
        "precision_macro": precision[occurs].mean(),
        "recall_macro": recall[occurs].mean(),
        "f1_macro": f1[occurs].mean(),
        "log_loss": -np.mean(
            [np.log(max(p[t], 1e-15)) for p, t in zip(probability, truth, strict=True)]
        ),
        "brier": sum(np.mean((probability[:, c] - (truth == c)) ** 2) for c in range(num_classes)),
        "ece": _calibration_error(probability.max(1), chosen == truth),
        "roc_auc": np.nan,
        "pr_auc": np.nan,
    }
    if set(truth) == set(numbers):
        expected["roc_auc"] = np.mean(
            [reference.roc_auc_score(one_hot[:, c], probability[:, c]) for c in columns]
        )
        expected["pr_auc"] = np.mean(
            [reference.average_precision_score(one_hot[:, c], probability[:, c]) for c in columns]
        )
    for c in numbers:
        expected[f"precision[{c}]"] = precision[c]
        expected[f"recall[{c}]"] = recall[c]
        expected[f"f1[{c}]"] = f1[c]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("n", [3, 40, 400])
def test_class_metrics_agree_with_scikit_learn(num_classes, n):
    for seed in range(4):
        _check_classes(*_classified(n, num_classes, seed))


@pytest.mark.parametrize("num_classes", [2, 5])
def test_class_metrics_are_right_where_a_class_never_occurs(num_classes):
    truth, probability = _classified(60, num_classes)
    _check_classes(np.where(truth == num_classes - 1, 0, truth), probability)


@pytest.mark.parametrize("num_classes", [2, 5])
def test_class_metrics_are_right_with_ties(num_classes):
    truth, probability = _classified(80, num_classes)
    tied = np.round(probability, 1)
    tied[:30] = 1 / num_classes
    _check_classes(truth, tied / tied.sum(1, keepdims=True))


@pytest.mark.parametrize("num_classes", [2, 5])
def test_class_metrics_are_right_for_certain_answers(num_classes):
    truth, probability = _classified(80, num_classes)
    certain = np.eye(num_classes)[probability.argmax(1)]
    assert (probability.argmax(1) != truth).any(), "some certain answers must be wrong"
    _check_classes(truth, certain)


def test_log_loss_agrees_with_scikit_learn_and_binary_brier_is_twice_its_own():
    truth, probability = _classified(200, 2)
    found = class_metrics(truth, probability)
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, probability))
    own = reference.brier_score_loss(truth, probability[:, 1])
    assert found["brier"] == pytest.approx(2 * own)


def test_calibration_error_of_plain_cases():
    half = np.array([True, False])
    assert expected_calibration_error(np.array([0.55, 0.55]), half) == pytest.approx(0.05)
    assert expected_calibration_error(np.ones(2), np.array([True, True])) == 0.0
    assert expected_calibration_error(np.ones(2), np.array([False, False])) == 1.0
    # Two bins that err in opposite directions do not cancel.
    confidence = np.array([0.65, 0.65, 0.95, 0.95])
    right = np.array([True, True, True, False])
    assert expected_calibration_error(confidence, right) == pytest.approx(0.4)


@pytest.mark.parametrize("n", [20, 300])
def test_label_metrics_agree_with_scikit_learn(n):
    generator = np.random.default_rng(n)
    truth = generator.random((n, 4)) < [0.5, 0.3, 0.7, 0.4]
    probability = np.clip(generator.random((n, 4)) * 0.7 + 0.3 * truth, 0, 1)
    chosen = probability >= 0.5
    found = label_metrics(truth, probability)
    macro = reference.precision_recall_fscore_support(
        truth, chosen, average="macro", zero_division=0
    )
    expected = {
        "accuracy": reference.accuracy_score(truth, chosen),
        "precision_macro": macro[0],
        "recall_macro": macro[1],
        "f1_macro": macro[2],
        "f1_micro": reference.f1_score(truth, chosen, average="micro"),
        "log_loss": np.mean([reference.log_loss(truth[:, c], probability[:, c]) for c in range(4)]),
        "brier": np.mean(
            [reference.brier_score_loss(truth[:, c], probability[:, c]) for c in range(4)]
        ),
        "roc_auc": reference.roc_auc_score(truth, probability),
        "pr_auc": reference.average_precision_score(truth, probability),
    }
    assert found == pytest.approx(expected)


def test_label_metrics_stay_finite_for_certain_and_absent_labels():
    truth = np.array([[True, False], [False, False], [True, False]])
    found = label_metrics(truth, np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert found["f1_macro"] == pytest.approx(0.25)  # 0.5 and, never borne, 0
    assert found["log_loss"] == pytest.approx(3 * -np.log(1e-15) / 6, rel=1e-3)
    assert np.isnan(found["roc_auc"]), "undefined for a label that no row bears"


def test_two_labels_of_which_each_row_bears_one_still_count_both():
    generator = np.random.default_rng(3)
    first = generator.random(60) < 0.5
    truth = np.column_stack([first, ~first])
    probability = generator.random((60, 2))
    found = label_metrics(truth, probability)
    assert found["roc_auc"] == pytest.approx(reference.roc_auc_score(truth, probability))
    assert found["pr_auc"] == pytest.approx(reference.average_precision_score(truth, probability))


def test_value_metrics_agree_with_scikit_learn():
    generator = np.random.default_rng(0)
    truth = generator.normal(5, 2, 70)
    value = truth + generator.normal(0.3, 1, 70)
    found = value_metrics(truth, value)
    assert found == pytest.approx({
        "mae": reference.mean_absolute_error(truth, value),
        "rmse": reference.root_mean_squared_error(truth, value),
        "r2": reference.r2_score(truth, value),
    })  # fmt: skip
    assert np.isnan(value_metrics(np.ones(3), np.zeros(3))["r2"]), "no variance to explain"


def _rows(task="classify", num_classes=3, n=150, names=None, resamples=60):
    truth, good = _classified(n, num_classes)
    worse = 0.5 * good + 0.5 * _classified(n, num_classes, 9)[1]
    names = names or [f"class {number}" for number in range(num_classes)]
    scored = [Scored("ours", "test", truth, good), Scored("theirs", "test", truth, worse)]
    bootstrap = Bootstrap(n, resamples, 1)
    rows, resampled = measure(scored, task, names, bootstrap)
    return scored, rows, resampled


def test_rows_are_finite_and_stand_in_their_intervals():
    scored, rows, _ = _rows()
    assert {row.model for row in rows} == {"ours", "theirs"}
    for row in rows:
        assert np.isfinite(row.value)
        assert row.low <= row.value <= row.high, row
        assert row.interval
        assert row.split == "test"
        assert row.unit
    values = {(row.model, row.metric): row.value for row in rows}
    for one in scored:
        assert values[one.model, "accuracy"] == (one.answer.argmax(1) == one.truth).mean()


def test_a_calibration_error_lies_in_its_own_interval():
    """In each bin exactly the promised share is right, so the measured error is nearly 0."""
    probability, truth = [], []
    for percent in (55, 65, 75, 85, 95):
        probability += [[percent / 100, 1 - percent / 100]] * 100
        truth += [0] * percent + [1] * (100 - percent)
    scored = Scored("ours", "test", np.asarray(truth), np.asarray(probability))
    rows, _ = measure([scored], "classify", ["a", "b"], Bootstrap(500, 100, 0))
    (row,) = (row for row in rows if row.metric == "ece")
    assert row.low is None or row.low <= row.value <= row.high


def test_rates_bear_wilson_intervals_and_their_own_n():
    scored, rows, _ = _rows()
    truth, chosen = scored[0].truth, scored[0].answer.argmax(1)
    found = {row.metric: row for row in rows if row.model == "ours"}
    for number in range(3):
        hits = int(((truth == number) & (chosen == number)).sum())
        for metric, trials in (("precision", chosen == number), ("recall", truth == number)):
            row = found[f"{metric}[class {number}]"]
            assert (row.n, row.interval) == (trials.sum(), WILSON)
            assert (row.low, row.high) == wilson(hits, int(trials.sum()))
            assert row.value == pytest.approx(hits / trials.sum())
    assert found["accuracy"].interval == WILSON
    assert found["accuracy"].n == found["f1_macro"].n == 150
    assert "bootstrap" in found["f1_macro"].interval


def test_a_rate_of_nothing_is_not_printed_as_measured():
    truth = np.array([0, 1] * 20)
    never = np.tile([0.6, 0.4], (40, 1))  # the second class is never said
    rows, _ = measure(
        [Scored("ours", "test", truth, never)], "classify", ["a", "b"], Bootstrap(40, 100, 0)
    )
    assert all(row.n > 0 for row in rows)


def test_per_class_rows_are_named_with_the_class_even_with_brackets():
    names = ["plain", "a[b]", "x] - y [0]"]
    _, rows, _ = _rows(names=names)
    found = {row.metric for row in rows if "[" in row.metric}
    assert found == {f"{m}[{name}]" for m in ("precision", "recall", "f1") for name in names}


def test_a_metric_undefined_on_the_split_has_no_row():
    truth = np.zeros(30, np.int64)
    answer = np.tile([0.7, 0.3], (30, 1))
    rows, _ = measure(
        [Scored("ours", "test", truth, answer)], "classify", ["a", "b"], Bootstrap(30, 100, 0)
    )
    metrics = {row.metric for row in rows}
    assert "accuracy" in metrics
    assert not metrics & {"roc_auc", "pr_auc"}


def _one_of_a_class():
    """Return two models on rows with a class so rare that many resamples lack it."""
    truth, good = _classified(40, 2)
    truth[:] = 0
    truth[7] = 1
    scored = [Scored("ours", "test", truth, good), Scored("theirs", "test", truth, good[::-1])]
    return measure(scored, "classify", ["a", "b"], Bootstrap(40, 200, 0))


def test_a_metric_undefined_on_many_resamples_has_a_value_and_no_interval():
    rows, _ = _one_of_a_class()
    (row,) = (row for row in rows if (row.model, row.metric) == ("ours", "roc_auc"))
    assert (row.low, row.high, row.interval) == (None, None, "")


def test_a_difference_without_an_interval_names_no_way_it_was_computed():
    rows, resampled = _one_of_a_class()
    found = differences(rows, resampled, "ours", ["theirs"], 200)
    (row,) = (row for row in found if row.metric == "roc_auc - theirs")
    assert (row.low, row.high) == (None, None)
    assert row.interval == ""


def test_differences_are_ours_minus_theirs_with_paired_intervals():
    _, rows, resampled = _rows(n=300)
    found = {row.metric: row for row in differences(rows, resampled, "ours", ["theirs"], 60)}
    values = {(row.model, row.metric): row for row in rows}
    assert not any("[" in metric for metric in found)
    for metric in ("accuracy", "log_loss", "brier", "roc_auc", "f1_macro"):
        row = found[f"{metric} - theirs"]
        ours, theirs = values["ours", metric], values["theirs", metric]
        assert row.value == pytest.approx(ours.value - theirs.value)
        assert (row.model, row.split, row.n, row.unit) == ("ours", "test", 300, ours.unit)
        better = -row.value if metric in LOWER_IS_BETTER else row.value
        assert better > 0, "the other model was made worse"
        assert row.low <= row.value <= row.high
        assert "paired" in row.interval
        draws = resampled["ours"][metric] - resampled["theirs"][metric]
        assert (row.low, row.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]))


def test_a_model_does_not_differ_from_its_double():
    truth, answer = _classified(60, 3)
    scored = [Scored(name, "test", truth, answer) for name in ("ours", "double")]
    rows, resampled = measure(scored, "classify", list("abc"), Bootstrap(60, 50, 0))
    found = differences(rows, resampled, "ours", ["double"], 100)
    assert found
    assert all((row.low, row.value, row.high) == (0, 0, 0) for row in found)


def test_label_rows_have_exact_accuracy_intervals():
    generator = np.random.default_rng(4)
    truth = generator.random((90, 3)) < 0.5
    answer = np.clip(0.6 * truth + 0.5 * generator.random((90, 3)), 0, 1)
    rows, _ = measure(
        [Scored("ours", "test", truth, answer)], "multilabel", list("abc"), Bootstrap(90, 60, 0)
    )
    found = {row.metric: row for row in rows}
    right = int(((answer >= 0.5) == truth).all(1).sum())
    assert (found["accuracy"].low, found["accuracy"].high) == wilson(right, 90)
    for row in rows:
        assert row.n == 90
        assert row.low <= row.value <= row.high


def test_value_rows_have_bootstrap_intervals_in_the_label_unit():
    generator = np.random.default_rng(4)
    truth = generator.normal(0, 1, 80)
    scored = Scored("ours", "test", truth, truth + generator.normal(0, 0.5, 80))
    rows, _ = measure([scored], "regress", [], Bootstrap(80, 200, 0))
    assert [(row.metric, row.unit) for row in rows] == [
        ("mae", "label"), ("rmse", "label"), ("r2", "share of variance"),
    ]  # fmt: skip
    assert all(row.low < row.value < row.high and row.n == 80 for row in rows)


def test_slices_measure_each_part_alone_and_leave_empty_ones_out():
    truth, answer = _classified(100, 3)
    first = np.arange(100) < 30
    groups = {"short": first, "long": ~first, "none": np.zeros(100, bool)}
    rows = slices(Scored("ours", "test", truth, answer), "classify", groups)
    assert [(row.split, row.n) for row in rows] == [("test[short]", 30), ("test[long]", 70)]
    right = answer.argmax(1) == truth
    for row, inside in zip(rows, (first, ~first), strict=True):
        assert row.metric == "accuracy"
        assert row.value == pytest.approx(right[inside].mean())
        assert (row.low, row.high) == wilson(int(right[inside].sum()), int(inside.sum()))


def test_slices_of_values_are_mean_errors():
    truth = np.arange(50.0)
    value = truth + np.where(truth < 25, 1.0, 3.0) + 0.1 * np.cos(truth)
    groups = {"low": truth < 25, "high": truth >= 25, "one": truth == 7}
    rows = slices(Scored("ours", "test", truth, value), "regress", groups)
    low, high, one = rows
    assert low.value == pytest.approx(np.abs(value - truth)[:25].mean())
    assert low.low < low.value < low.high < high.low
    assert (one.n, one.low, one.high, one.interval) == (1, None, None, "")


def test_the_interval_of_an_error_does_not_reach_below_zero():
    truth = np.zeros(3)
    scored = Scored("ours", "test", truth, np.array([0.0, 0.0, 9.0]))
    (row,) = slices(scored, "regress", {"all": np.ones(3, bool)})
    assert row.low is None or row.low >= 0


def test_curves_hold_the_confusion_the_reliability_and_the_roc():
    truth, answer = _classified(300, 2)
    found = curves(Scored("ours", "test", truth, answer), "classify", ["no", "yes"])
    chosen = answer.argmax(1)
    assert found["confusion"] == reference.confusion_matrix(truth, chosen).tolist()
    assert sum(point["n"] for point in found["reliability"]) == 300
    gaps = [abs(p["confidence"] - p["accuracy"]) * p["n"] / 300 for p in found["reliability"]]
    assert sum(gaps) == pytest.approx(class_metrics(truth, answer)["ece"])
    assert list(found["roc"]) == ["yes"]
    wrong, right = map(np.asarray, found["roc"]["yes"])
    assert (wrong[0], right[0], wrong[-1], right[-1]) == (0, 0, 1, 1)
    assert reference.auc(wrong, right) == pytest.approx(
        reference.roc_auc_score(truth, answer[:, 1]), abs=0.01
    )
    assert json.dumps(found, allow_nan=False)


def test_curves_of_many_classes_leave_out_an_absent_one():
    truth, answer = _classified(120, 4)
    truth = np.where(truth == 3, 0, truth)
    found = curves(Scored("ours", "test", truth, answer), "classify", list("abcd"))
    assert list(found["roc"]) == ["a", "b", "c"]
    assert np.asarray(found["confusion"]).shape == (4, 4)


def test_curves_of_values_are_points_and_of_labels_nothing():
    found = curves(Scored("m", "test", np.arange(3.0), np.ones(3)), "regress", [])
    assert found == {"points": [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]}
    labels = Scored("m", "test", np.ones((3, 2), bool), np.ones((3, 2)))
    assert curves(labels, "multilabel", ["a", "b"]) == {}


@pytest.mark.parametrize("decimals", [1, 3, 9])
def test_areas_are_those_of_scikit_learn(decimals):
    generator = np.random.default_rng(decimals)
    for size in (2, 5, 40, 1000):
        truth = (generator.random(size) < 0.4).astype(float)
        truth[:2] = 0, 1
        score = np.round(generator.random(size), decimals)  # few decimals: many ties
        expected = (
            reference.roc_auc_score(truth, score),
            reference.average_precision_score(truth, score),
        )
        assert areas(truth, score) == pytest.approx(expected, abs=1e-12)


LEVELS = (0.1, 0.5, 0.9)


def _foretold(n, seed=0):
    """Truths, and rising quantiles that know a little of them."""
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=n)
    middle = 0.5 * truth + 0.3 * generator.normal(size=n)
    return truth, middle[:, None] + generator.uniform(0.1, 1.5, (n, 3)).cumsum(1) - 1.0


def test_quantile_metrics_agree_with_scikit_learn_and_a_slow_loop():
    truth, answer = _foretold(60)
    found = quantile_metrics(truth, answer, LEVELS)
    each = [
        reference.mean_pinball_loss(truth, answer[:, q], alpha=level)
        for q, level in enumerate(LEVELS)
    ]
    inside = width = 0
    for actual, (low, _, high) in zip(truth, answer, strict=True):
        inside += low <= actual <= high
        width += high - low
    assert found["pinball"] == pytest.approx(np.mean(each), abs=1e-12)
    assert found["interval_coverage"] == inside / 60
    assert 0 < inside < 60
    assert found["interval_width"] == pytest.approx(width / 60, abs=1e-12)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(truth, answer[:, 1]))


def test_quantiles_are_measured_beside_a_model_that_has_none():
    truth, answer = _foretold(80)
    ours = Scored("ours", "test", truth, answer, LEVELS)
    other = Scored("mean", "test", truth, np.full(80, truth.mean()))
    rows, resampled = measure([ours, other], "regress", [], Bootstrap(80, 200, 0))
    by = {(row.model, row.metric): row for row in rows}
    assert ("mean", "pinball") not in by
    assert by["ours", "pinball"].low < by["ours", "pinball"].value < by["ours", "pinball"].high
    inside = int(((answer[:, 0] <= truth) & (truth <= answer[:, 2])).sum())
    coverage = by["ours", "interval_coverage"]
    assert (coverage.low, coverage.high) == wilson(inside, 80)
    assert (coverage.interval, coverage.unit) == (WILSON, "share")
    assert by["ours", "interval_width"].unit == "label"
    assert {"pinball", "interval_width", "quantiles_crossed"} <= LOWER_IS_BETTER
    names = {row.metric for row in differences(rows, resampled, "ours", ["mean"], 200)}
    assert names == {"mae - mean", "rmse - mean", "r2 - mean"}
    half = {"first": np.arange(80) < 40}
    (part,) = slices(ours, "regress", half)
    assert part.value == pytest.approx(np.abs(truth - answer[:, 1])[:40].mean())
    assert curves(ours, "regress", [])["points"][1] == answer[:, 1].tolist()


def test_crossed_quantiles_are_counted():
    row = crossings(3, Scored("ours", "test", *_foretold(60), LEVELS))
    assert (row.value, row.n, row.unit) == (0.05, 60, "share")
    assert (row.low, row.high) == wilson(3, 60)

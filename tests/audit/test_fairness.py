"""The fairness audit, against slow loops and the formulas as fairlearn states them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import danlu
from danlu.audit import fairness
from danlu.audit.fairness import Answers, Groups, groups, measure
from danlu.data import protected
from danlu.errors import CheckFailed, DataError, RecipeError
from danlu.evaluate.intervals import Bootstrap, wilson
from danlu.recipe import validate


@pytest.fixture(scope="module")
def people():
    """Return 600 people of three groups whom a model treats differently, one group tiny."""
    generator = np.random.default_rng(11)
    index = generator.choice(3, 600, p=[0.6, 0.37, 0.03])
    truth = (generator.random(600) < np.array([0.5, 0.3, 0.4])[index]).astype(np.int64)
    score = np.clip(0.25 * truth + 0.5 * generator.random(600) + 0.2 * (index == 0), 0, 1)
    return Groups("sex", ["a", "b", "c"], index), truth, np.stack([1 - score, score], 1)


def found(people, min_rows=30, **keys):
    by, truth, answer = people
    answers = Answers("classify", truth, answer, **({"positive": 1} | keys))
    rows, few = measure(answers, by, "ours", min_rows, Bootstrap(len(truth), 400, 0))
    return {row.metric: row for row in rows}, few


def test_each_figure_is_that_of_a_loop_over_people(people):
    by, truth, answer = people
    rows, _ = found(people, min_rows=1)
    for number, name in enumerate(by.names):
        told = right = base = 0
        of_true, of_false, gap = [], [], 0.0
        inside = [n for n in range(600) if by.index[n] == number]
        for n in inside:
            said = answer[n, 1] > answer[n, 0]
            told += said
            base += truth[n]
            right += said == truth[n]
            (of_true if truth[n] else of_false).append(bool(said))
            gap += answer[n, 1] - truth[n]
        expected = {
            "rows": len(inside),
            "selection_rate": told / len(inside),
            "base_rate": base / len(inside),
            "accuracy": right / len(inside),
            "true_positive_rate": sum(of_true) / len(of_true),
            "false_positive_rate": sum(of_false) / len(of_false),
            "calibration_error": gap / len(inside),
        }
        for figure, value in expected.items():
            assert rows[f"{figure}[sex={name}]"].value == pytest.approx(value, abs=1e-12)
        rate = rows[f"true_positive_rate[sex={name}]"]
        assert rate.n == len(of_true)
        assert (rate.low, rate.high) == wilson(sum(of_true), len(of_true))


def test_gaps_are_fairlearn_s_differences(people):
    """max - min of a rate; of equalised odds the larger of the two (fairlearn.metrics)."""
    by, truth, answer = people
    rows, _ = found(people, min_rows=1)
    said = answer[:, 1] > answer[:, 0]

    def rate(condition):
        return [said[(by.index == g) & condition].mean() for g in range(3)]

    selection, tpr, fpr = rate(truth >= 0), rate(truth == 1), rate(truth == 0)
    error = [(answer[by.index == g, 1] - truth[by.index == g]).mean() for g in range(3)]
    expected = {
        "demographic_parity_gap": max(selection) - min(selection),
        "equal_opportunity_gap": max(tpr) - min(tpr),
        "equalised_odds_gap": max(max(tpr) - min(tpr), max(fpr) - min(fpr)),
        "calibration_gap": max(error) - min(error),
    }
    for gap, value in expected.items():
        row = rows[f"{gap}[sex]"]
        assert row.value == pytest.approx(value, abs=1e-12)
        assert row.low <= row.value <= row.high


def test_groups_too_small_to_measure_are_named_and_take_no_part(people):
    by, truth, _ = people
    rows, few = found(people)
    assert rows["rows[sex=c]"].value == (by.index == 2).sum() < 30
    assert not [m for m in rows if m.endswith("[sex=c]") and not m.startswith("rows")]
    assert {item["group"] for item in few} == {"c"}
    lacking = next(i for i in few if i["figure"] == "true_positive_rate")
    assert lacking["rows"] == ((by.index == 2) & (truth == 1)).sum()
    between = abs(rows["selection_rate[sex=a]"].value - rows["selection_rate[sex=b]"].value)
    assert rows["demographic_parity_gap[sex]"].value == pytest.approx(between)
    assert rows["demographic_parity_gap[sex]"].n == (by.index < 2).sum()


def test_one_group_alone_has_no_gap(people):
    rows, _ = found(people, min_rows=300)
    assert "selection_rate[sex=a]" in rows
    assert not [m for m in rows if "_gap" in m]


def test_a_gap_s_interval_holds_the_true_gap_about_as_often_as_it_says():
    generator = np.random.default_rng(5)
    rates, held = np.array([0.5, 0.35]), 0
    for _ in range(200):
        index = generator.integers(0, 2, 400)
        score = (generator.random(400) < rates[index]).astype(float)
        answers = Answers("classify", np.zeros(400, np.int64), np.stack([1 - score, score], 1), 1)
        rows, _ = measure(answers, Groups("g", ["a", "b"], index), "m", 30, Bootstrap(400, 200, 1))
        gap = next(r for r in rows if r.metric == "demographic_parity_gap[g]")
        held += gap.low <= 0.15 <= gap.high
    assert 0.90 <= held / 200 <= 0.99  # 95%, and three standard errors of 200 trials


def test_equal_treatment_of_many_groups_is_not_called_a_gap():
    """Chance alone makes the largest differ from the smallest; the interval must reach down."""
    generator = np.random.default_rng(3)
    index = generator.integers(0, 6, 1200)
    score = generator.random(1200)
    answers = Answers("classify", np.zeros(1200, np.int64), np.stack([1 - score, score], 1), 1)
    rows, _ = measure(answers, Groups("g", list("abcdef"), index), "m", 30, Bootstrap(1200, 500, 1))
    gap = next(r for r in rows if r.metric == "demographic_parity_gap[g]")
    assert gap.low <= gap.value <= gap.high
    assert gap.low < 0.07 < gap.value + 0.07


def test_errors_of_values_are_measured_by_group():
    generator = np.random.default_rng(2)
    index = np.repeat([0, 1], 100)
    truth = generator.normal(size=200)
    answer = truth + generator.normal(size=200) + 2.0 * index
    rows, _ = measure(
        Answers("regress", truth, answer), Groups("site", ["x", "y"], index), "m", 30,
        Bootstrap(200, 300, 0),
    )  # fmt: skip
    by = {row.metric: row for row in rows}
    error = answer - truth
    assert by["mae[site=y]"].value == pytest.approx(np.abs(error[100:]).mean())
    gap = error[100:].mean() - error[:100].mean()
    assert by["mean_error_gap[site]"].value == pytest.approx(gap)
    assert by["mean_error_gap[site]"].low > 1.0
    assert by["mae[site=x]"].low < by["mae[site=x]"].value < by["mae[site=x]"].high


def test_of_several_classes_the_named_one_counts():
    truth = np.array([0, 1, 2] * 40)
    answer = np.eye(3)[np.roll(truth, 1)] * 0.8 + 0.1
    index = np.arange(120) % 2
    by = Groups("g", ["even", "odd"], index)
    for positive, names in ((None, {"rows", "accuracy"}), (2, {"selection_rate", "base_rate"})):
        answers = Answers("classify", truth, answer, positive)
        rows, _ = measure(answers, by, "m", 10, Bootstrap(120, 100, 0))
        assert names <= {r.metric.split("[")[0] for r in rows}
    selected = next(r for r in rows if r.metric == "selection_rate[g=odd]")
    assert selected.value == (answer.argmax(1) == 2)[index == 1].mean()


@pytest.mark.parametrize(
    ("named", "classes", "kind", "expected"),
    [
        (None, ["bad", "good"], "classify", 1),
        ("bad", ["bad", "good"], "classify", 0),
        (None, ["a", "b", "c"], "classify", None),
        (None, [], "regress", None),
    ],
)
def test_the_positive_class(named, classes, kind, expected):
    assert fairness.positive_class(named, classes, kind) == expected


def test_a_class_that_is_not_there_is_named():
    with pytest.raises(DataError, match="no class 'fine'; there are: 'bad', 'good'"):
        fairness.positive_class("fine", ["bad", "good"], "classify")


def test_numbers_are_cut_at_the_training_quartiles():
    training = [str(n) for n in range(1, 101)]
    by = groups("age", ["1", "25", "26", "99", "1000", None, "young"], training)
    edges = np.quantile(np.arange(1, 101), [0.25, 0.5, 0.75])
    assert by.names[0] == f"up to {edges[0]:g}"
    told = [by.names[g] for g in by.index]
    assert told[0] == told[1] == "up to 25.75"
    assert told[2] == "over 25.75 to 50.5"
    assert told[3] == told[4] == "over 75.25"
    assert told[5] == told[6] == "(not stated)"


def test_few_numbers_and_names_are_groups_as_they_are():
    by = groups("sex", [1, 2, None, 1], [1, 2, 2])
    assert by.names == ["(not stated)", "1", "2"]
    assert by.index.tolist() == [1, 2, 0, 1]


def test_an_attribute_of_as_many_values_as_people_is_refused():
    names = [f"person {n}" for n in range(200)]
    with pytest.raises(DataError, match="'name' has 200 different values"):
        groups("name", names, names)


@pytest.mark.parametrize(
    ("cells", "group"),
    [
        ({"race_A": "1", "race_B": "0"}, "A"),
        ({"race_A": 0, "race_B": 1.0}, "B"),
        ({"race_A": False, "race_B": True}, "B"),
        ({"race_A": "0", "race_B": "0"}, "(none)"),
        ({"race_A": "1", "race_B": "1"}, "(several)"),
        ({"race_A": "", "race_B": None}, None),
    ],
)
def test_columns_of_zeros_and_ones_name_a_group(cells, group):
    assert protected.of(cells | {"x": "1"}, ["race_*"]) == {"race": group}


def census(folder, ignore='["sex", "race_A", "race_B"]', gate="", audit=""):
    """Write a table in which pay depends on sex through the hours, and its recipe."""
    generator = np.random.default_rng(0)
    with (folder / "people.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["hours", "years", "sex", "race_A", "race_B", "paid"])
        for _ in range(900):
            man, race = generator.random() < 0.6, generator.random() < 0.98
            hours = generator.normal(40 + 6 * man, 5)
            years = generator.normal(10, 4)
            paid = hours + years + generator.normal(0, 4) > 54
            sex = "man" if man else "woman"
            cells = [sex, int(race), int(not race), "yes" if paid else "no"]
            out.writerow([f"{hours:.2f}", f"{years:.2f}", *cells])
    path = folder / "pay.toml"
    path.write_text(f"""
seed = 1
[data]
modality = "table"
task = "classify"
label = "paid"
sources = [{{ path = "people.csv" }}]
[data.split]
test = 0.4
[table]
ignore = {ignore}
[model]
backbone = "linear"
[pretrain]
objective = "none"
[finetune]
epochs = 3
learning_rate = 0.05
[evaluate]
bootstrap = 200
[audit]
protected = ["sex", "race_*"]
{audit}
[gate]
require = [{gate}]
""", encoding="utf-8")  # fmt: skip
    return path


def test_a_run_audits_what_the_model_never_saw(tmp_path):
    gate = '"test.demographic_parity_gap[sex].low > 0.1", "test.accuracy[sex=man] > 0.6"'
    result = danlu.run(census(tmp_path, gate=gate), tmp_path / "run")
    by = {(m.stage, m.metric): m for m in result.metrics}
    model = json.loads((tmp_path / "run" / "model" / "encoder.json").read_text())
    assert [c["name"] for c in model["columns"]] == ["hours", "years"]
    men, women = (by["audit", f"selection_rate[sex={s}]"] for s in ("man", "woman"))
    gap = by["audit", "demographic_parity_gap[sex]"]
    assert gap.value == pytest.approx(men.value - women.value)
    assert gap.low > 0.1
    assert not [m for m in result.metrics if "race]" in m.metric]  # too few of one race
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="fairness"' in html
    assert "too few" in html
    assert "told yes" in html
    card = (tmp_path / "run" / "card.md").read_text(encoding="utf-8")
    assert "| sex | demographic parity gap |" in card
    assert "| race | not measured: too few rows |" in card


def test_the_gate_closes_on_a_gap_and_on_one_that_was_not_measured(tmp_path):
    gate = '"test.demographic_parity_gap[sex].high <= 0.1", "test.equalised_odds_gap[race] <= 1"'
    with pytest.raises(CheckFailed) as caught:
        danlu.run(census(tmp_path, gate=gate), tmp_path / "run")
    assert "demographic_parity_gap[sex].high <= 0.1: measured" in str(caught.value)
    assert "test.equalised_odds_gap[race] was not measured" in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()


def test_another_audit_leaves_the_training_alone(tmp_path):
    danlu.run(census(tmp_path), tmp_path / "run")
    again = danlu.run(census(tmp_path, audit="min_rows = 100"), tmp_path / "run")
    assert again.built == ["audit", "report"]


def test_a_column_taken_back_from_the_ignored_is_read_again(tmp_path):
    danlu.run(census(tmp_path), tmp_path / "run")
    danlu.run(census(tmp_path, ignore='["race_A"]'), tmp_path / "run")
    model = json.loads((tmp_path / "run" / "model" / "encoder.json").read_text())
    assert "sex" in [c["name"] for c in model["columns"]]


@pytest.mark.parametrize("name", ["gender", "caste_*"])
def test_an_attribute_that_the_table_lacks_is_named(tmp_path, name):
    path = census(tmp_path)
    path.write_text(path.read_text().replace('"race_*"', f'"{name}"'))
    with pytest.raises(DataError, match=f"no column '{name[:5]}"):
        danlu.run(path, tmp_path / "run")


TABLE = {"modality": "table", "label": "y", "sources": [{"path": "a.csv"}]}


@pytest.mark.parametrize(
    ("data", "audit", "gate", "words"),
    [
        ({"task": "pretrain", "sources": [{"path": "a.txt"}]}, {"protected": ["sex"]}, [],
         "gives no answers"),
        (TABLE | {"task": "classify"}, {"protected": ["sex", "sex_*"]}, [], "the same attribute"),
        (TABLE | {"task": "regress"}, {"positive": "a"}, [], "only task 'classify'"),
        (TABLE | {"task": "classify", "modality": "text"}, {"protected": ["sex_*"]}, [],
         "a prefix is for tables"),
        (TABLE | {"task": "classify"}, {"protected": ["sex"]},
         ["test.calibration_gap[race] < 1"], "does not name 'race'"),
        (TABLE | {"task": "classify"}, {}, ["test.accuracy - forest > 0"], "no baseline 'forest'"),
        (TABLE | {"task": "classify"}, {"protected": ["se*x"]}, [], "pattern"),
    ],
)  # fmt: skip
def test_what_cannot_be_audited_is_told_beforehand(data, audit, gate, words):
    content = {"name": "x", "data": data, "audit": audit, "gate": {"require": gate}}
    if data.get("modality") == "table":
        content["pretrain"] = {"objective": "none"} if data["task"] != "pretrain" else {}
    with pytest.raises(RecipeError, match=words):
        validate(content, "here")


def test_texts_with_a_protected_column_are_audited_too(tmp_path):
    rows = [
        (f"{('bad', 'good')[n % 2]} w{n} x{n} y{n}", "ab"[n % 2], "mf"[n % 3 == 0])
        for n in range(240)
    ]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label", "sex"), *rows])
    path = tmp_path / "a.toml"
    path.write_text(
        '[data]\ntask = "classify"\nlabel = "label"\nsources = [{ path = "a.csv" }]\n'
        '[data.split]\ntest = 0.4\n[audit]\nprotected = ["sex"]\nmin_rows = 5\n'
        '[tokenizer]\nvocab_size = 300\nmax_length = 32\n[model]\ndepth = 1\n'
        '[pretrain]\nobjective = "none"\n'
    )  # fmt: skip
    result = danlu.run(path, tmp_path / "run")
    sexes = {m.metric for m in result.metrics if m.metric.startswith("rows[sex=")}
    assert sexes == {"rows[sex=f]", "rows[sex=m]"}

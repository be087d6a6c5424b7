"""A long table becomes series on a regular grid; whatever it did not hold is counted."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.clock import Step
from danlu.data.series import Panel, cuts, extend, read
from danlu.errors import DataError
from danlu.recipe.series import Series

BEGIN = datetime(2024, 2, 26)


def hourly(hours):
    return [(BEGIN + timedelta(hours=hour)).isoformat() for hour in hours]


def test_rows_are_sorted_and_gaps_stay_missing():
    table = {"time": hourly([5, 0, 1, 2]), "load": [50, 0, 10, None]}
    panel, report = read(table, Series())
    assert panel.step == Step(3600.0, "s")
    nan = math.nan
    np.testing.assert_array_equal(panel.values_LV[:, 0], [0, 10, nan, nan, nan, 50])
    assert report == {
        "rows": 4, "no_time": 0, "missing": 1, "unreadable": 0, "duplicates": 0, "series": 1,
        "steps": 6, "moved": 0, "collided": 0, "absent": 2,
    }  # fmt: skip


def test_the_last_row_of_an_instant_stands():
    table = {"time": [2, 1, 1, 3, 1], "x": [20, 10, 11, 30, 12]}
    panel, report = read(table, Series())
    assert panel.values_LV[:, 0].tolist() == [12, 20, 30]
    assert report["duplicates"] == 2


def test_irregular_times_go_to_the_nearest_step():
    table = {"time": [0.0, 10.2, 19.6, 30.0, 31.0], "x": [0, 1, 2, 3, 4]}
    panel, report = read(table, Series(frequency="10"))
    assert panel.values_LV[:, 0].tolist() == [0, 1, 2, 4]
    assert panel.time_L.tolist() == [0, 10, 20, 30]
    assert (report["moved"], report["collided"], report["absent"]) == (3, 1, 0)


def test_what_cannot_be_read_is_counted():
    table = {"time": [0, "?", 1, 2], "x": ["1", "2", "much", math.nan], "holiday": [0, 1, 0, ""]}
    panel, report = read(table, Series(variables=("x",), covariates=("holiday",)))
    assert report["no_time"] == 1
    assert report["unreadable"] == 1
    assert report["missing"] == 2
    np.testing.assert_array_equal(panel.values_LV[:, 0], [1, math.nan, math.nan])


def naive_grid(rows):
    """Place rows of (series, hour, value) by dictionaries."""
    found = {}
    for name in sorted({row[0] for row in rows}):
        last = {hour: value for of, hour, value in rows if of == name}
        hours = range(min(last), max(last) + 1)
        found[name] = [last.get(hour, math.nan) for hour in hours]
    return found


table_rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 40), st.integers(-9, 9)), min_size=1
)


@settings(deadline=None)
@given(table_rows)
def test_the_grid_is_what_dictionaries_make_of_the_rows(rows):
    table = {
        "time": hourly([row[1] for row in rows]),
        "shop": [row[0] for row in rows],
        "sales": [row[2] for row in rows],
    }
    panel, report = read(table, Series(series="shop", frequency="1h", variables=("sales",)))
    expected = naive_grid(rows)
    assert panel.names == tuple(expected)
    for number, name in enumerate(panel.names):
        part = slice(panel.offsets[number], panel.offsets[number + 1])
        np.testing.assert_array_equal(panel.values_LV[part, 0], expected[name])
        np.testing.assert_allclose(np.diff(panel.time_L[part]), 3600)
    assert report["duplicates"] == len(rows) - len({row[:2] for row in rows})
    assert report["absent"] == sum(np.isnan(part).sum() for part in expected.values())


def test_months_do_not_drift():
    months = [f"{2000 + n // 12}-{n % 12 + 1:02d}-01" for n in range(200)]
    del months[100:103]
    panel, report = read({"time": months, "x": range(197)}, Series())
    assert panel.step == Step(1, "month")
    assert (len(panel.time_L), report["absent"], report["moved"]) == (200, 3, 0)
    assert np.flatnonzero(np.isnan(panel.values_LV[:, 0])).tolist() == [100, 101, 102]


def test_the_ends_of_months_lie_on_a_grid_of_months():
    ends = ["2023-01-31", "2023-02-28", "2023-03-31", "2023-04-30", "2023-05-31"]
    panel, report = read({"time": ends, "x": range(5)}, Series())
    assert panel.values_LV[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert report["moved"] == 0


def test_counts_of_steps_become_dates():
    table = {"step": [1, 2, 3], "x": [1, 2, 3]}
    panel, _ = read(table, Series(time="step", start="2013-12-31T23:30", frequency="30min"))
    expected, _ = read(
        {"step": ["2014-01-01T00:00", "2014-01-01T00:30", "2014-01-01T01:00"], "x": [1, 2, 3]},
        Series(time="step"),
    )
    np.testing.assert_array_equal(panel.time_L, expected.time_L)
    np.testing.assert_array_equal(panel.known_LC, expected.known_LC)


def test_all_other_columns_of_numbers_are_variables():
    table = {
        "time": range(3), "shop": [1, 1, 1], "name": "abc", "holiday": [0, 0, 1],
        "state": [0, 1, 0], "b": [1, 2, 3], "a": [1.5, "", 2], "empty": [None] * 3,
    }  # fmt: skip
    panel, _ = read(table, Series(series="shop", covariates=("holiday",)), label="state")
    assert panel.variables == ("b", "a")
    assert panel.label_L.tolist() == ["0", "1", "0"]
    panel, _ = read(table, Series(series="shop", covariates=("holiday",), target="a"), "state")
    assert panel.variables == ("b", "a")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"time": "when"}, "no column 'when'"),
        ({"target": "z"}, "no column 'z'"),
        ({"covariates": ("x",)}, "no column holds measurements"),
        ({"frequency": "1"}, "a grid of 9,000,001 steps"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(keys, told):
    with pytest.raises(DataError, match=told):
        read({"time": [0, 1, 9_000_000], "x": [1, 2, 3]}, Series(**keys))


@pytest.mark.parametrize("times", [[], [1], [1, 1]])
def test_a_table_without_two_times_says_so(times):
    with pytest.raises(DataError, match=r"no cell is a time|two different times"):
        read({"time": times, "x": times}, Series(variables=("x",)))


def test_series_are_extended_at_both_ends():
    rows = [("a", 3, 1.0), ("a", 4, 2.0), ("b", 7, 3.0), ("b", 9, 4.0)]
    table = {"time": hourly([r[1] for r in rows]), "shop": [r[0] for r in rows],
             "x": [r[2] for r in rows]}  # fmt: skip
    panel, _ = read(table, Series(series="shop", frequency="1h", variables=("x",)), label="x")
    found = extend(panel, 1, 2)
    nan = math.nan
    np.testing.assert_array_equal(
        found.values_LV[:, 0], [nan, 1, 2, nan, nan, nan, 3, nan, 4, nan, nan]
    )
    expected, _ = read(
        {"time": hourly([2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11]), "shop": [*"aaaaabbbbbb"],
         "x": [0] * 11},
        Series(series="shop", frequency="1h"),
    )  # fmt: skip
    np.testing.assert_array_equal(found.time_L, expected.time_L)
    np.testing.assert_array_equal(found.known_LC, expected.known_LC)
    assert found.label_L.tolist() == [
        None, "1.0", "2.0", None, None, None, "3.0", None, "4.0", None, None,
    ]  # fmt: skip


def test_parts_begin_at_the_same_time_in_all_series_and_have_their_shares():
    table = {"time": [*range(100), *range(50, 150)], "id": ["a"] * 100 + ["b"] * 100,
             "x": [0] * 200}  # fmt: skip
    panel, _ = read(table, Series(series="id"))
    first, second = cuts(panel, 0.1, 0.2)
    assert (panel.time_L >= second).sum() == pytest.approx(0.2 * 200, abs=2)
    assert ((panel.time_L >= first) & (panel.time_L < second)).sum() == pytest.approx(20, abs=2)


@pytest.mark.parametrize("shares", [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5)])
def test_an_empty_part_is_refused(shares):
    panel, _ = read({"time": range(10), "x": [0] * 10}, Series())
    with pytest.raises(DataError, match="a part would be empty"):
        cuts(panel, *shares)


def test_a_panel_is_read_back_as_it_was_written(tmp_path):
    table = {"time": hourly([0, 1, 2, 4]), "x": [1, None, 3, 4], "kind": ["a", None, "b", "b"]}
    panel, _ = read(table, Series(), label="kind")
    panel.save(tmp_path)
    again = Panel.load(tmp_path)
    for name in ("offsets", "time_L", "values_LV", "known_LC", "row_L", "label_L"):
        np.testing.assert_array_equal(getattr(again, name), getattr(panel, name))
    for name in ("names", "variables", "known", "num_calendar", "step", "dates"):
        assert getattr(again, name) == getattr(panel, name)
    assert panel.row_L.tolist() == [0, 1, 2, -1, 3]


def test_rows_without_times_are_numbered_as_they_come():
    panel, report = read({"x": [5, 4, 3]}, Series(time="row"))
    assert panel.time_L.tolist() == [0, 1, 2]
    assert panel.variables == ("x",)
    assert report["absent"] == 0

"""Times are read, laid on a grid and placed in the calendar as datetime says."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.clock import Step, calendar, calendar_names, date_of, read_times, show
from danlu.errors import DataError
from tolerances import SIMPLE

moments = st.datetimes(datetime(1950, 1, 1), datetime(2080, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0)
)


@pytest.mark.parametrize(
    ("text", "size", "unit"),
    [("30min", 1800, "s"), ("h", 3600, "s"), ("2 D", 172_800, "s"), ("1W", 604_800, "s"),
     ("1M", 1, "month"), ("2Q", 6, "month"), ("1Y", 12, "month"), ("0.5s", 0.5, "s")],
)  # fmt: skip
def test_a_frequency_is_read(text, size, unit):
    assert Step.of(text, dates=True) == Step(size, unit)


@pytest.mark.parametrize(
    ("text", "dates"),
    [("", True), ("0min", True), ("1.5M", True), ("3", True), ("1h", False), ("0", False),
     ("", False), ("fast", True)],
)  # fmt: skip
def test_what_is_no_frequency_is_refused(text, dates):
    with pytest.raises(DataError, match="is no frequency"):
        Step.of(text, dates)


def test_a_plain_number_is_a_frequency_of_numbers():
    assert Step.of("2.5", dates=False) == Step(2.5)


@settings(deadline=None)
@given(moments, st.sampled_from([1.0, 60.0, 900.0, 86_400.0]), st.integers(0, 5000))
def test_steps_of_seconds_go_where_timedelta_goes(begin, size, count):
    origin = date_of(begin.isoformat())
    found = Step(size, "s").time(np.array([count]), origin)
    expected = begin + timedelta(seconds=size * count)
    assert show(found[0], dates=True) == expected.isoformat()
    assert Step(size, "s").index(found, origin)[0] == pytest.approx(count, abs=1e-6)


@settings(deadline=None)
@given(moments, st.sampled_from([1, 3, 12]), st.integers(0, 600))
def test_steps_of_months_keep_the_day_or_take_the_months_last(begin, size, count):
    origin = date_of(begin.isoformat())
    found = Step(size, "month").time(np.array([count]), origin)
    year, month = divmod(begin.month - 1 + size * count, 12)
    for day in range(begin.day, 27, -1):  # 31 January, 28 February
        try:
            expected = begin.replace(year=begin.year + year, month=month + 1, day=day)
            break
        except ValueError:
            continue
    else:
        expected = begin.replace(year=begin.year + year, month=month + 1)
    assert show(found[0], dates=True) == expected.isoformat()
    assert round(Step(size, "month").index(found, origin)[0]) == count


@pytest.mark.parametrize(
    ("days", "step"),
    [([31, 28, 31, 30, 31], Step(1, "month")), ([90, 91, 92, 92], Step(3, "month")),
     ([365, 366, 365], Step(12, "month")), ([7, 7, 14], Step(7 * 86_400.0, "s"))],
)  # fmt: skip
def test_the_frequency_is_the_median_gap_and_a_months_gap_is_a_month(days, step):
    assert Step.infer(np.array(days) * 86_400.0, dates=True) == step


def test_the_median_gap_of_numbers_stays_a_number():
    assert Step.infer(np.array([30.0, 30.0, 90.0]), dates=False) == Step(30.0)


def test_one_time_alone_has_no_frequency():
    with pytest.raises(DataError, match="two different times"):
        Step.infer(np.zeros(0), dates=True)


@settings(deadline=None)
@given(moments, st.integers(-14, 14))
def test_dates_are_seconds_since_1970_with_or_without_an_offset(moment, hours):
    plain, dates = read_times([moment.isoformat()])
    assert dates
    assert plain[0] == moment.replace(tzinfo=UTC).timestamp()
    sign, size = ("-" if hours < 0 else "+"), abs(hours)
    shifted, _ = read_times([f"{moment.isoformat()}{sign}{size:02d}:00"])
    assert shifted[0] == plain[0] - 3600 * hours


def test_cells_that_are_no_times_are_missing():
    found, dates = read_times(["2020-01-01", "soon", None, ""])
    assert dates
    assert np.isnan(found).tolist() == [False, True, True, True]
    found, dates = read_times(["3", 4.5, "x", math.inf])
    assert not dates
    np.testing.assert_array_equal(found, [3, 4.5, math.nan, math.nan])


def test_reading_numbers_leaves_the_callers_array_alone():
    cells = np.array([1.0, np.inf])
    read_times(cells)
    assert np.isinf(cells[1])


def test_times_with_and_without_an_offset_do_not_mix():
    with pytest.raises(DataError, match="offset"):
        read_times(["2020-01-01T00:00:00", "2020-01-01T00:00:00+08:00"])


def test_a_column_without_times_is_refused():
    with pytest.raises(DataError, match="no cell is a time"):
        read_times(["soon", "later"])


@settings(deadline=None)
@given(st.lists(moments, min_size=1, max_size=20))
def test_the_calendar_agrees_with_datetime(found):
    time, _ = read_times([moment.isoformat() for moment in found])
    rows = calendar(time, Step(60.0, "s"))
    for row, moment in zip(rows, found, strict=True):
        day = (moment.hour * 3600 + moment.minute * 60 + moment.second) / 86_400
        begin = datetime(moment.year, 1, 1)
        year = (moment - begin) / (datetime(moment.year + 1, 1, 1) - begin)
        angles = [2 * math.pi * share for share in (day, (moment.weekday() + day) / 7, year)]
        expected = [part(angle) for angle in angles for part in (math.sin, math.cos)]
        np.testing.assert_allclose(row, expected, atol=SIMPLE)


@pytest.mark.parametrize(
    ("step", "names"),
    [(Step(3600.0, "s"), ("day", "week", "year")), (Step(86_400.0, "s"), ("week", "year")),
     (Step(604_800.0, "s"), ("year",)), (Step(1, "month"), ("year",)), (Step(12, "month"), ()),
     (Step(1.0), ())],
)  # fmt: skip
def test_a_cycle_is_told_only_where_a_step_is_at_most_half_of_it(step, names):
    assert calendar_names(step) == names
    assert calendar(np.zeros(3), step).shape == (3, 2 * len(names))

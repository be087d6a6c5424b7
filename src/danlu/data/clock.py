"""Times: reading them, the regular grid that they lie on, and the calendar.

A time is a float64: seconds since 1970 (UTC) where the data hold dates, else the number itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from danlu.errors import DataError

Floats = NDArray[np.float64]

LARGEST = 1e150
"""A number must be smaller than this: deviations take its square, which would be none."""
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "D": 86_400.0, "W": 604_800.0}
_MONTHS = {"M": 1, "Q": 3, "Y": 12}
_DAY, _WEEK, _YEAR = _SECONDS["D"], _SECONDS["W"], 365.2425 * _SECONDS["D"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Step:
    """What lies between two neighbours on a regular grid.

    Attributes
    ----------
    size : float
        Above 0; whole for months.
    unit : {"", "s", "month"}
        Of a plain number, seconds, or months, which are not equally long.
    """

    size: float
    unit: Literal["", "s", "month"] = ""

    @classmethod
    def of(cls, text: str, dates: bool) -> Step:
        """Read what a recipe says, such as ``30min``.

        Raises
        ------
        DataError
            If it is not a step, or one of dates where the times are numbers.

        Examples
        --------
        >>> Step.of("30min", dates=True), Step.of("1Q", dates=True)
        (Step(size=1800.0, unit='s'), Step(size=3, unit='month'))
        """
        found = re.fullmatch(r"(\d*\.?\d*)\s*(\w*)", text.strip())
        number = float(found[1]) if found and found[1] not in ("", ".") else 1.0
        unit = found[2] if found else "?"
        if number > 0 and unit in _SECONDS and dates:
            return cls(number * _SECONDS[unit], "s")
        if number >= 1 and number == int(number) and unit in _MONTHS and dates:
            return cls(int(number) * _MONTHS[unit], "month")
        if number > 0 and found and found[1] and unit == "" and not dates:
            return cls(number)
        raise DataError(
            f"{text!r} is no frequency of {'dates' if dates else 'times that are numbers'}",
            where="series.frequency",
            mend="write one such as 30min, 1h, 1D, 1W, 1M, 1Q, 1Y; or a number for numbers",
        )

    @classmethod
    def infer(cls, gaps: Floats, dates: bool) -> Step:
        """Return the median of the gaps between neighbouring times, none of which is 0.

        Gaps of 28 to 31 days are months, and so on: a grid of equal steps would drift.

        Raises
        ------
        DataError
            If there is no gap.
        """
        if not len(gaps):
            raise DataError("no series has two different times", where="series.time")
        middle = float(np.median(gaps))
        if dates:
            for months, least, most in ((1, 28, 31), (3, 89, 92), (12, 365, 366)):
                if least * _DAY <= middle <= most * _DAY:
                    return cls(months, "month")
        return cls(middle, "s" if dates else "")

    def index(self, time: Floats, origin: float) -> Floats:
        """Return how many steps each time lies after the origin, fractions included."""
        if self.unit != "month":
            return np.asarray((time - origin) / self.size, np.float64)
        months, inside = _months(time)
        first, offset = _months(np.asarray([origin]))
        # The day of the month may slip (the 31st becomes the 30th): no more than half a month.
        slip = np.clip((inside - offset) / (31 * _DAY), -0.49, 0.49)
        slip[np.abs(inside - offset) <= 3 * _DAY] = 0.0
        return np.asarray((months - first + slip) / self.size, np.float64)

    def time(self, index: NDArray[np.int64], origin: float) -> Floats:
        """Return the time so many steps after the origin."""
        if self.unit != "month":
            return np.asarray(origin + self.size * index, np.float64)
        first, offset = _months(np.asarray([origin]))
        months = first.astype(np.int64) + index * int(self.size)
        begin = months.astype("datetime64[M]").astype("datetime64[s]").astype(np.float64)
        after = (months + 1).astype("datetime64[M]").astype("datetime64[s]").astype(np.float64)
        clock = offset % _DAY
        last: Floats = np.minimum(begin + offset, after - _DAY + clock)  # 31 January, 28 February
        return last

    @property
    def seconds(self) -> float:
        """Its length, a month's being the mean one; NaN where times are no dates."""
        if self.unit == "":
            return math.nan
        return self.size * (_YEAR / 12 if self.unit == "month" else 1.0)


def _months(time: Floats) -> tuple[Floats, Floats]:
    """Return the months since 1970, and the seconds since the month began."""
    begin = np.floor(time).astype(np.int64).astype("datetime64[s]").astype("datetime64[M]")
    seconds = begin.astype("datetime64[s]").astype(np.float64)
    return begin.astype(np.float64), time - seconds


def read_times(cells: Sequence[Any], where: str = "series.time") -> tuple[Floats, bool]:
    """Read a column of times.

    Parameters
    ----------
    cells : sequence
        Numbers, or dates in ISO 8601; dates without an offset are taken for UTC.
    where : str
        The recipe's key that names the column, for errors.

    Returns
    -------
    times : NDArray of float64, shape (n,)
        NaN where a cell is no time.
    dates : bool
        Whether they are dates.

    Raises
    ------
    DataError
        If no cell is a time, or some dates have an offset and others none.
    """
    numbers = read_numbers(cells)
    pairs = zip(cells, numbers, strict=True)
    moments = [_moment(cell) if math.isnan(number) else None for cell, number in pairs]
    given = [moment for moment in moments if moment is not None]
    num_numbers = int(np.isfinite(numbers).sum())
    if not given and not num_numbers:
        raise DataError("no cell is a time", where=where, mend="ISO 8601 dates or numbers")
    if num_numbers > len(given):
        return numbers, False
    if len({moment.tzinfo is None for moment in given}) > 1:
        raise DataError(
            "some times have an offset from UTC and others have none",
            where=where,
            mend="write all of them with an offset, or none",
        )
    seconds = [math.nan if m is None else _seconds(m) for m in moments]
    return np.asarray(seconds, np.float64), True


def read_numbers(cells: Sequence[Any]) -> Floats:
    """Return the number in each cell; NaN where there is none, or none below :data:`LARGEST`."""
    try:
        found = np.array(cells, np.float64)
    except (OverflowError, TypeError, ValueError):
        found = np.asarray([_number(cell) for cell in cells], np.float64)
    found[~(np.abs(found) < LARGEST)] = math.nan
    return found


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (OverflowError, TypeError, ValueError):
        return math.nan


def _moment(cell: Any) -> datetime | None:
    if isinstance(cell, datetime):
        return cell
    try:
        return datetime.fromisoformat(str(cell).strip())
    except ValueError:
        return None


def _seconds(moment: datetime) -> float:
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (aware - _EPOCH).total_seconds()


def date_of(text: str) -> float:
    """Return the time of a date in ISO 8601.

    Raises
    ------
    DataError
        If it is none.
    """
    moment = _moment(text)
    if moment is None:
        raise DataError(f"{text!r} is no date", where="series.start", mend="such as 2014-01-01")
    return _seconds(moment)


def show(time: float, dates: bool) -> str | float:
    """Return a time as its user wrote it: ISO 8601 (UTC), or a number.

    >>> show(86400.0, dates=True), show(3.0, dates=False)
    ('1970-01-02T00:00:00', 3.0)
    """
    if not dates:
        return time
    return datetime.fromtimestamp(time, UTC).replace(tzinfo=None).isoformat()


CYCLES = {"day": _DAY, "week": _WEEK, "year": _YEAR}
"""Seconds."""


def calendar_names(step: Step) -> tuple[str, ...]:
    """Return the cycles that a step is short enough to tell: day, week, year."""
    return tuple(name for name, length in CYCLES.items() if 2 * step.seconds <= length)


def calendar(time: Floats, step: Step) -> NDArray[np.float32]:
    """Return where in the day, week and year each time lies.

    Returns
    -------
    NDArray of float32, shape (n, 2 × number of cycles)
        Sine and cosine of the angle of each cycle of :func:`calendar_names`: midnight, the
        midnight before Monday and the year's first are at angle 0. No column where times are
        no dates.
    """
    names = calendar_names(step)
    parts: list[Floats] = []
    for name in names:
        if name == "day":
            share = time / _DAY
        elif name == "week":
            share = (time - 4 * _DAY) / _WEEK  # 1970-01-01 was a Thursday
        else:
            year = np.floor(time).astype(np.int64).astype("datetime64[s]").astype("datetime64[Y]")
            begin, end = ((year + n).astype("datetime64[s]").astype(np.float64) for n in (0, 1))
            share = (time - begin) / (end - begin)
        parts += [np.sin(2 * np.pi * share), np.cos(2 * np.pi * share)]
    if not parts:
        return np.zeros((len(time), 0), np.float32)
    return np.stack(parts, axis=1).astype(np.float32)

"""From a long table of measurements to series on a regular grid."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.data.clock import Step, calendar, calendar_names, date_of, read_numbers, read_times
from danlu.errors import DataError
from danlu.recipe.series import Series

Columns = Mapping[str, Sequence[Any]]
Floats = NDArray[np.float64]

ROW = "row"
"""The name of the times that number rows as they come, where no column is called so."""
_ARRAYS = ("offsets", "time_L", "values_LV", "known_LC", "row_L")
_SURE = 0.99  # share of a column's cells that must be numbers for it to be a variable
_ON_GRID = 1e-3  # steps that a time may lie beside the grid without counting as moved
_SPARSE = 100  # grid steps for each row from which on the frequency must be wrong


@dataclass(frozen=True, slots=True)
class Panel:
    """Several series laid end to end, each on a regular grid.

    Attributes
    ----------
    names : tuple of str
        S, the series.
    offsets : NDArray of int64, shape (S + 1,)
        Where each begins.
    time_L : NDArray of float64, shape (L,)
        See :mod:`danlu.data.clock`.
    values_LV : NDArray of float64, shape (L, V)
        The variables; NaN where missing.
    known_LC : NDArray of float64, shape (L, C)
        What is known in advance: the covariates, NaN where missing, then the calendar.
    variables, known : tuple of str
        The names of V and C.
    num_calendar : int
        So many of the last of C are the calendar's.
    label_L : NDArray of object, shape (L,), optional
        A label for each step; None where it has none.
    step : Step
    dates : bool
        Whether the times are dates.
    row_L : NDArray of int64, shape (L,)
        The row of the table that each step was read from; -1 where there was none.
    """

    names: tuple[str, ...]
    offsets: NDArray[np.int64]
    time_L: Floats
    values_LV: Floats
    known_LC: Floats
    variables: tuple[str, ...]
    known: tuple[str, ...]
    num_calendar: int
    label_L: NDArray[np.object_] | None
    step: Step
    dates: bool
    row_L: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def series_of(self) -> NDArray[np.int64]:
        """The number of the series that each step belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def save(self, folder: Path) -> None:
        """Write ``panel.npz`` and ``panel.json``."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        if self.label_L is not None:
            arrays["label_L"] = np.asarray([label or "" for label in self.label_L], np.str_)
        np.savez_compressed(folder / "panel.npz", **arrays)
        rest = {
            "names": self.names, "variables": self.variables, "known": self.known,
            "num_calendar": self.num_calendar, "step": [self.step.size, self.step.unit],
            "dates": self.dates,
        }  # fmt: skip
        (folder / "panel.json").write_text(json.dumps(rest, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Panel:
        """Read what :meth:`save` wrote."""
        rest = json.loads((folder / "panel.json").read_text(encoding="utf-8"))
        with np.load(folder / "panel.npz") as arrays:
            found = {name: arrays[name] for name in _ARRAYS}
            labels = None
            if "label_L" in arrays:
                labels = np.asarray([label or None for label in arrays["label_L"].tolist()], object)
        return cls(
            **found,
            names=tuple(rest["names"]), variables=tuple(rest["variables"]),
            known=tuple(rest["known"]), num_calendar=rest["num_calendar"], label_L=labels,
            step=Step(*rest["step"]), dates=rest["dates"],
        )  # fmt: skip


def _variables(columns: Columns, settings: Series, label: str | None) -> tuple[str, ...]:
    """Return the columns of measurements.

    Raises
    ------
    DataError
        If one is not there, or none is left.
    """
    named = (settings.time, settings.series, label, settings.target)
    for name in (*named, *settings.variables, *settings.covariates):
        if name is not None and name not in columns:
            raise DataError(
                f"there is no column {name!r}", where="series", mend=f"have: {', '.join(columns)}"
            )
    found = settings.variables
    if not found:
        used = {settings.time, settings.series, label, *settings.covariates}
        found = tuple(n for n in columns if n not in used and _is_numeric(columns[n]))
    if settings.target is not None and settings.target not in found:
        found = (settings.target, *found)
    if not found:
        raise DataError("no column holds measurements", where="series.variables")
    return found


def _is_numeric(cells: Sequence[Any]) -> bool:
    given = [cell for cell in cells if not _empty(cell)]
    return bool(given) and bool(np.isfinite(read_numbers(given)).mean() >= _SURE)


def _empty(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _times(cells: Sequence[Any], settings: Series) -> tuple[Floats, bool]:
    """Read the times; counts of steps become dates where a start says how."""
    time, dates = read_times(cells)
    if settings.start is None or dates:
        return time, dates
    step, origin = Step.of(settings.frequency or "", dates=True), date_of(settings.start)
    if step.unit == "s":
        return origin + step.size * time, True
    counts = np.round(np.nan_to_num(time)).astype(np.int64)
    return np.where(np.isnan(time), time, step.time(counts, origin)), True


def read(
    columns: Columns, settings: Series, label: str | None = None, step: Step | None = None
) -> tuple[Panel, dict[str, Any]]:
    """Read a long table: a row for each time (of each series).

    Parameters
    ----------
    columns : mapping of str to sequence
        Equally long columns.
    settings : Series
    label : str, optional
        Column of a label for each step.
    step : Step, optional
        That of the training data; overrules the settings.

    Returns
    -------
    panel : Panel
        Sorted by time. Of the rows of one instant the last stands.
    report : dict
        Counts of ``rows``, ``steps`` of the grid and ``series``; rows without a readable time
        (``no_time``); rows that another one of the same instant replaced (``duplicates``);
        rows whose time was ``moved`` to the grid, and of those that met another one there
        (``collided``); steps that no row was given for (``absent``); cells of variables and
        covariates that are ``missing`` in a row, or are no number (``unreadable``).

    Raises
    ------
    DataError
        If a column is missing, nothing can be read, or the frequency cannot be right.
    """
    if settings.time == ROW and ROW not in columns and columns:
        columns = {**columns, ROW: range(len(next(iter(columns.values()))))}
    names = _variables(columns, settings, label)
    time, dates = _times(columns[settings.time], settings)
    read_ = {name: read_numbers(columns[name]) for name in (*names, *settings.covariates)}
    missing = sum(sum(map(_empty, columns[name])) for name in read_)
    unreadable = sum(int(np.isnan(cells).sum()) for cells in read_.values()) - missing
    report: dict[str, Any] = {
        "rows": len(time),
        "no_time": int(np.isnan(time).sum()),
        "missing": missing,
        "unreadable": unreadable,
    }
    if settings.series is None:
        which, series = np.zeros(len(time), np.int64), ("",)
    else:
        found, which = np.unique([str(c) for c in columns[settings.series]], return_inverse=True)
        series = tuple(found.tolist())
    # By series, then by time; the sort is stable, so the last row of an instant stays the last.
    order = np.lexsort((time, which))
    order = order[~np.isnan(time[order])]
    same = (np.diff(which[order]) == 0) & (np.diff(time[order]) == 0)
    report["duplicates"] = int(same.sum())
    order = order[np.append(~same, True)] if len(order) else order
    if step is None:
        gaps = np.diff(time[order])[np.diff(which[order]) == 0]
        text = settings.frequency
        step = Step.infer(gaps, dates) if text is None else Step.of(text, dates)
    grid = _grid(time[order], which[order], len(series), step, report)
    numbers = np.stack([*read_.values()], axis=1)[order]
    laid = np.full((len(grid.time), numbers.shape[1]), math.nan)
    laid[grid.slot] = numbers
    row = np.full(len(grid.time), -1, np.int64)
    row[grid.slot] = order
    labels = None
    if label is not None:
        labels = np.full(len(grid.time), None, object)
        labels[grid.slot] = [None if _empty(c) else str(c) for c in _take(columns[label], order)]
    when = calendar(grid.time, step) if dates else np.zeros((len(grid.time), 0), np.float32)
    cycles = [f"{n} {part}" for n in calendar_names(step) for part in ("sine", "cosine")]
    panel = Panel(
        names=series,
        offsets=grid.offsets,
        time_L=grid.time,
        values_LV=laid[:, : len(names)],
        known_LC=np.hstack([laid[:, len(names) :], when]),
        variables=names,
        known=(*settings.covariates, *(cycles if dates else ())),
        num_calendar=when.shape[1],
        label_L=labels,
        step=step,
        dates=dates,
        row_L=row,
    )
    return panel, report


def _take(cells: Sequence[Any], order: NDArray[np.int64]) -> list[Any]:
    return [cells[row] for row in order.tolist()]


@dataclass(frozen=True, slots=True)
class _Grid:
    time: Floats
    slot: NDArray[np.int64]
    offsets: NDArray[np.int64]


def _grid(
    time: Floats, which: NDArray[np.int64], num_series: int, step: Step, report: dict[str, Any]
) -> _Grid:
    """Lay a grid from each series' first time, and place the rows on it."""
    slot = np.empty(len(time), np.int64)
    times: list[Floats] = []
    offsets = np.zeros(num_series + 1, np.int64)
    moved = collided = 0
    bounds = np.searchsorted(which, np.arange(num_series + 1))
    for number in range(num_series):
        rows = slice(bounds[number], bounds[number + 1])
        here = time[rows]
        if not len(here):
            offsets[number + 1] = offsets[number]
            continue
        exact = step.index(here, here[0])
        near = np.round(exact).astype(np.int64)
        if near[-1] > _SPARSE * (len(near) + 100):
            raise DataError(
                f"a grid of {near[-1] + 1:,} steps would hold {len(near):,} rows",
                where="series.frequency",
                mend="give the frequency, or look for a wrong time in the data",
            )
        moved += int((np.abs(exact - near) > _ON_GRID).sum())
        collided += len(near) - len(np.unique(near))
        slot[rows] = offsets[number] + near
        times.append(step.time(np.arange(near[-1] + 1), float(here[0])))
        offsets[number + 1] = offsets[number] + len(times[-1])
    total = int(offsets[-1])
    report |= {
        "series": num_series,
        "steps": total,
        "moved": moved,
        "collided": collided,
        "absent": total - len(time) + collided,
    }
    return _Grid(np.concatenate(times) if times else np.zeros(0), slot, offsets)


def extend(panel: Panel, before: int, after: int) -> Panel:
    """Add steps at both ends of every series, without measurements; the calendar goes on.

    Parameters
    ----------
    panel : Panel
    before, after : int
        Steps to add, at least 0.
    """
    total = before + after
    sizes = np.diff(panel.offsets)
    offsets = panel.offsets + total * np.arange(len(panel) + 1)
    old = np.arange(len(panel.time_L)) + before + total * panel.series_of
    time = np.empty(offsets[-1])
    for number, size in enumerate(sizes.tolist()):
        first = float(panel.time_L[panel.offsets[number]])
        index = np.arange(-before, size + after)
        time[offsets[number] : offsets[number + 1]] = panel.step.time(index, first)
    values = np.full((len(time), len(panel.variables)), math.nan)
    values[old] = panel.values_LV
    known = np.full((len(time), len(panel.known)), math.nan)
    known[old] = panel.known_LC
    if panel.num_calendar:
        known[:, -panel.num_calendar :] = calendar(time, panel.step)
    labels = None
    if panel.label_L is not None:
        labels = np.full(len(time), None, object)
        labels[old] = panel.label_L
    row = np.full(len(time), -1, np.int64)
    row[old] = panel.row_L
    return Panel(
        panel.names, offsets, time, values, known, panel.variables, panel.known,
        panel.num_calendar, labels, panel.step, panel.dates, row,
    )  # fmt: skip


def cuts(panel: Panel, validation: float, test: float) -> tuple[float, float]:
    """Return the times at which validation and test begin, the same for all series.

    Parameters
    ----------
    panel : Panel
    validation, test : float
        Shares of the steps.

    Raises
    ------
    DataError
        If a part would be empty.
    """
    times, count = np.unique(panel.time_L, return_counts=True)
    passed = (np.cumsum(count) - count / 2) / max(1, count.sum())
    first, second = (np.searchsorted(passed, 1 - share) for share in (validation + test, test))
    if not 0 < first < second < len(times):
        raise DataError(
            f"a part would be empty: there are {len(times):,} different times",
            where="data.split",
            mend="more data, or other shares",
        )
    return float(times[first]), float(times[second])

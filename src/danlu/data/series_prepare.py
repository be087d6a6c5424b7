"""The data stage of series: read, lay on a grid, cut by time.

Rows of a series are told apart by their times, so nothing is looked for among them but rows of
one instant. Everything that is set aside goes to ``rejects.parquet`` with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from danlu.artifact import write_json
from danlu.data import describe, split
from danlu.data.clock import read_times, show
from danlu.data.long_table import by_column, cells_of, keep_cells, land, readable, with_reasons
from danlu.data.series import ROW, Panel, cuts, read
from danlu.data.sources import Columns, File
from danlu.errors import DataError
from danlu.recipe import Recipe

Row = dict[str, Any]
LABELS = ("normal", "anomaly")
_MUCH = 0.01  # share of steps or cells from which on their absence is a finding


def named(recipe: Recipe) -> tuple[str, ...]:
    """Return the columns that the recipe names, but for the label's."""
    own = recipe.series
    found = (own.time, own.series, own.target, *own.variables, *own.covariates)
    return tuple(dict.fromkeys(n for n in found if n is not None and n != ROW))


def prepare(
    recipe: Recipe, files: list[File], folder: Path, say: Callable[[str], None] = lambda _: None
) -> None:
    """Write the data artifact of series.

    Parameters
    ----------
    recipe : Recipe
        Filled.
    files : list of File
        From :func:`danlu.data.sources.open_source`.
    folder : Path
        Receives what :func:`danlu.data.prepare.prepare` writes, and the panel of all periods;
        ``cuts`` in ``report.json`` are the times at which validation and test begin.
    say : callable
        Told of each step as it is done.

    Raises
    ------
    DataError
        If there is nothing to read, or a period is empty.
    """
    columns = Columns(None, recipe.data.label, others=named(recipe))
    records, rows = land(files, columns, folder, _refiner(recipe))
    usable = readable(rows)
    panel, counts = read(_columns(recipe, rows.take(usable)), recipe.series, recipe.data.label)
    settings = recipe.data.split
    bounds = cuts(panel, settings.validation, settings.test)
    panel.save(folder)
    rejects = _rejects(rows, usable, panel, recipe.series.time)
    pq.write_table(rejects, folder / "rejects.parquet")
    period = period_of(panel.time_L, bounds)
    splits: dict[str, Row] = {}
    for name in split.NAMES:
        here = period == name
        laid = panel.row_L[here]
        part = rows.take(usable[laid[laid >= 0]])
        pq.write_table(part, folder / f"{name}.parquet")
        splits[name] = {
            "rows": part.num_rows, "steps": int(here.sum()),
            "from": show(float(panel.time_L[here].min()), panel.dates),
            "to": show(float(panel.time_L[here].max()), panel.dates),
        }  # fmt: skip
        if recipe.data.task == "detect":
            splits[name]["labels"] = _labels(recipe, panel, here)
    _check_labels(recipe, splits)
    steps = [
        {"step": "read", "rows": rows.num_rows},
        {"step": "readable", "rows": len(usable)},
        {"step": "with a time", "rows": len(usable) - counts["no_time"]},
        {"step": "one row for each step", "rows": int((panel.row_L >= 0).sum())},
    ]
    for step in steps:
        say(f"{step['step']}: {step['rows']:,} rows")
    report = {
        "task": recipe.data.task,
        "classes": [],
        "files": records,
        "as_read": [],
        "funnel": steps,
        "rejects": describe.rejects(rejects),
        "series": counts | {"variables": panel.variables, "known": panel.known},
        "cuts": bounds,
        "clusters_of_several": 0,
        "splits": splits,
        "findings": _findings(counts, panel),
    }
    write_json(folder / "report.json", report)


def period_of(time_L: NDArray[np.float64], bounds: tuple[float, float]) -> NDArray[np.str_]:
    """Return the split that each time belongs to."""
    return np.asarray(split.NAMES)[np.searchsorted(bounds, time_L, side="right")]


def anomalies(recipe: Recipe, panel: Panel) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which steps are anomalies, and which have a label at all, both of shape (L,)."""
    assert panel.label_L is not None
    labelled = np.asarray([label is not None for label in panel.label_L], bool)
    normal = np.asarray([label == recipe.series.normal for label in panel.label_L], bool)
    return labelled & ~normal, labelled


def _refiner(recipe: Recipe) -> Callable[[Row], Row]:
    """Return what keeps the cells that may be read, as JSON."""
    data, own = recipe.data, recipe.series
    wanted = named(recipe) if own.variables else ()

    def refine(row: Row) -> Row:
        row = keep_cells(row, wanted, data.label)
        label = row.get("label")
        row["label"] = data.rename.get(label or "", label)
        return row

    return refine


def _columns(recipe: Recipe, rows: pa.Table) -> dict[str, list[Any]]:
    """Return the cells of the rows, a list for each column."""
    columns = by_column(cells_of(rows))
    if recipe.data.label is not None:
        columns[recipe.data.label] = rows["label"].to_pylist()
    return columns


def _rejects(rows: pa.Table, usable: NDArray[np.int64], panel: Panel, time: str) -> pa.Table:
    """Return the rows that no step of the grid holds, with their reasons."""
    laid = np.zeros(rows.num_rows, bool)
    laid[usable[panel.row_L[panel.row_L >= 0]]] = True
    found = rows.filter(~laid)
    reasons = found["reason"].to_pylist()
    cells = [row.get(time) for row in cells_of(found)]
    times = read_times(cells)[0] if any(cell is not None for cell in cells) else None
    for number, reason in enumerate(reasons):
        if reason is None:
            timeless = time != ROW and (times is None or math.isnan(times[number]))
            reasons[number] = "no readable time" if timeless else "a later row of this step stands"
    return with_reasons(found, reasons)


def _labels(recipe: Recipe, panel: Panel, here: NDArray[np.bool_]) -> dict[str, int]:
    strange, labelled = anomalies(recipe, panel)
    return {
        "normal": int((labelled & ~strange & here).sum()),
        "anomaly": int((strange & here).sum()),
        "unlabelled": int((~labelled & here).sum()),
    }


def _check_labels(recipe: Recipe, splits: dict[str, Row]) -> None:
    """Refuse a test period on which nothing could be measured."""
    if recipe.data.task != "detect":
        return
    labels = splits[split.TEST]["labels"]
    if not labels["normal"] or not labels["anomaly"]:
        raise DataError(
            f"the test period holds {labels['normal']:,} normal steps and {labels['anomaly']:,} "
            "anomalies; both are needed to measure a detector",
            where="data.split",
            mend="another share for the test, or series.normal",
        )


def _findings(counts: Row, panel: Panel) -> list[str]:
    """Say in sentences what is wrong with the table."""
    found = []
    if counts["absent"] > _MUCH * counts["steps"]:
        found.append(
            f"{counts['absent']:,} of {counts['steps']:,} steps have no row; they stand as missing."
        )
    for number, name in enumerate(panel.variables):
        missing = int(np.isnan(panel.values_LV[:, number]).sum())
        if missing > _MUCH * counts["steps"]:
            found.append(f"{name} is missing in {missing:,} of {counts['steps']:,} steps.")
    texts = {
        "unreadable": "cells that should be numbers are none.",
        "no_time": "rows have no readable time; they were set aside.",
        "duplicates": "rows were replaced by a later row of the same time.",
        "moved": "rows lay beside the regular grid and went to its nearest step.",
        "collided": "of those met another row there.",
    }
    found += [f"{counts[key]:,} {text}" for key, text in texts.items() if counts[key]]
    if not math.isnan(panel.step.seconds) and not panel.known:
        found.append("The steps are too long for a calendar of days, weeks or years.")
    return found

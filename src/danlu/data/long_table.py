"""Landed rows of long tables, of which many make one record: their cells, by row and by column."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from danlu.data.privacy import KINDS
from danlu.data.sources import Columns, File, landed
from danlu.data.table import tidy
from danlu.errors import DataError

Row = dict[str, Any]


def land(
    files: list[File], columns: Columns, folder: Path, refine: Callable[[Row], Row]
) -> tuple[list[Row], pa.Table]:
    """Return the files' records, and all their rows."""
    with landed(files, columns, folder, refine) as (records, shards):
        return records, pa.concat_tables(pq.read_table(s) for s in sorted(shards.iterdir()))


def keep_cells(row: Row, wanted: Sequence[str], without: str | None = None) -> Row:
    """Keep the wanted cells of a row, or all, as JSON in its text.

    >>> keep_cells({"record": {"a": 1, "b": " x "}}, ["a"])["text"]
    '{"a": 1}'
    """
    row |= dict.fromkeys(KINDS, 0)
    record = row.pop("record", None)
    row.pop("beside", None)
    if record is not None:
        cells = {name: tidy(record.get(name)) for name in wanted or record}
        cells.pop(without, None)
        row["text"] = json.dumps(cells, ensure_ascii=False, default=str)
    return row


def readable(rows: pa.Table) -> NDArray[np.int64]:
    """Return the rows that could be read.

    Raises
    ------
    DataError
        If there are none.
    """
    found = np.flatnonzero([reason is None for reason in rows["reason"].to_pylist()])
    if not len(found):
        raise DataError("no row can be read", where="data.sources")
    return found


def by_column(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Turn rows into columns; a cell that a row lacks is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def cells_of(rows: pa.Table) -> list[Row]:
    """Return the cells that :func:`keep_cells` kept; none of a row that could not be read."""
    return [json.loads(text) if text else {} for text in rows["text"].to_pylist()]


def with_reasons(rows: pa.Table, reasons: Sequence[str | None]) -> pa.Table:
    """Return the rows that have a reason to be set aside, with it."""
    column = rows.schema.get_field_index("reason")
    told = rows.set_column(column, "reason", pa.array(list(reasons), pa.string()))
    return told.filter(np.asarray([reason is not None for reason in reasons], bool))

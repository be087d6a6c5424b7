"""Tables: numbers, categories and dates, from a row to what a model sees.

Two layouts. *By column*: each column is a position whose id says which column it is, and which
category stands there or that a number does; a Transformer then looks from column to column.
*Whole*: the row is one position that carries one vector, for linear models and MLPs.
All that is counted, averaged or listed is of the training split.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from danlu.data.clock import LARGEST
from danlu.data.modality import NUM_SPECIAL, Grid, Spec
from danlu.errors import DataError
from danlu.recipe.sections import Table

Record = dict[str, Any]
Kind = Literal["number", "category", "date"]

FILE = "encoder.json"
CLIP = 10.0
"""Standard deviations beyond which a number is taken for this many."""
_SURE = 0.99  # share of a column's cells that must be of a kind for the column to be
_TEXT = 40  # characters; categories are shorter on average
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def number(cell: Any) -> float:
    """Return a cell's number; NaN where there is none, or none below :data:`LARGEST`.

    >>> number("3.5"), number(None), number("a lot")
    (3.5, nan, nan)
    """
    try:
        value = float(cell)
    except (OverflowError, TypeError, ValueError):
        return math.nan
    return value if abs(value) < LARGEST else math.nan


def date(cell: Any) -> datetime | None:
    """Return a cell's date, in ISO 8601; None where there is none."""
    try:
        return datetime.fromisoformat(str(cell))
    except ValueError:
        return None


def tidy(cell: Any) -> Any:
    """Return a cell as JSON can hold it; None where nothing stands in it, or a file's bytes."""
    if cell is None or cell != cell or isinstance(cell, bytes):  # NaN differs from itself
        return None
    if isinstance(cell, (bool, int, float)):
        return str(cell).lower() if isinstance(cell, bool) else cell
    return str(cell).strip() or None


@dataclass(frozen=True, slots=True)
class Column:
    """One column as the model reads it; a date makes three.

    Attributes
    ----------
    name : str
    source : str
        The column of the table that it is read from.
    part : {"", "days", "month", "weekday"}
        Of a date.
    kind : {"number", "category"}
    mean, std : float
        Of a number, over the training rows that have one.
    edges : tuple of float
        Ascending: quantiles that a number is placed among.
    categories : tuple of str
        The commonest first; all that are common enough.
    rare : bool
        Whether training holds others, which are read as "other".
    missing : bool
        Whether training holds rows without.
    """

    name: str
    source: str
    part: str
    kind: Literal["number", "category"]
    mean: float = 0.0
    std: float = 1.0
    edges: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    rare: bool = False
    missing: bool = False

    def cell(self, record: Record) -> Any:
        """Return what a record holds here: a number, a category, or None."""
        cell = tidy(record.get(self.source))
        if self.part and cell is not None:
            cell = _part_of(date(cell), self.part)
        if self.kind == "category":
            return None if cell is None else str(cell)
        return None if math.isnan(value := number(cell)) else value

    def numbers(self, cells: Sequence[Any]) -> NDArray[np.float32]:
        """Return each number's standardised value and its place among the edges.

        Parameters
        ----------
        cells : sequence of float or None

        Returns
        -------
        NDArray of float32, shape (n, max(1, number of edges))
            A column for the value, then one for each interval between edges: 0 before it,
            1 behind it, and the share gone inside it (Gorishniy et al., "On Embeddings for
            Numerical Features", 2022). 0 in all where there is no number.
        """
        value = np.asarray([math.nan if c is None else c for c in cells], np.float64)
        scaled = np.clip((value - self.mean) / self.std, -CLIP, CLIP)[:, None]
        edges = np.asarray(self.edges)
        placed = np.clip((value[:, None] - edges[:-1]) / np.diff(edges), 0.0, 1.0)
        found: NDArray[np.float32] = np.nan_to_num(np.hstack([scaled, placed])).astype(np.float32)
        return found

    def places(self, cells: Sequence[Any]) -> NDArray[np.int64]:
        """Return each category's place; -1 for none, and the number of categories for others."""
        place = {name: n for n, name in enumerate(self.categories)}
        other = len(self.categories)
        return np.asarray([-1 if c is None else place.get(c, other) for c in cells], np.int64)


def _part_of(moment: datetime | None, part: str) -> Any:
    if moment is None:
        return None
    if part == "days":
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        return moment.toordinal() + (moment - midnight).total_seconds() / 86_400
    return f"{moment.month:02d}" if part == "month" else _DAYS[moment.weekday()]


def _guess(cells: list[Any]) -> Kind | None:
    """Return the kind of a column's cells, none of which is missing; None for free text."""
    sure = _SURE * len(cells)
    if sum(not math.isnan(number(cell)) for cell in cells) >= sure:
        return "number"
    if sum("-" in str(cell) and date(cell) is not None for cell in cells) >= sure:
        return "date"
    different = len({str(cell) for cell in cells})
    mean_length = sum(len(str(cell)) for cell in cells) / len(cells)
    return None if mean_length > _TEXT and different > len(cells) / 2 else "category"


def edges_of(value: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Return the borders of at most `bins` intervals that hold about as many numbers each.

    A value that fills an interval by itself, such as the 0 of nine people in ten, is a border
    of its own and is counted out; the others are spread over what is left (as LightGBM's and
    scikit-learn's histograms are).

    >>> edges_of(np.array([0.0] * 90 + [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10]), 4).tolist()
    [0.0, 1.0, 4.0, 7.0, 10.0]
    """
    heavy: NDArray[np.float64] = np.empty(0)
    rest = value
    while len(rest) and bins > len(heavy):
        values, counts = np.unique(rest, return_counts=True)
        filling = values[counts * (bins - len(heavy)) >= len(rest)]
        if not len(filling):
            break
        heavy = np.append(heavy, filling)
        rest = rest[~np.isin(rest, filling)]
    left = max(bins - len(heavy), 1)
    spread = np.quantile(rest, np.linspace(0, 1, left + 1)) if len(rest) else rest
    return np.unique(np.concatenate([heavy, spread]))


def _fit_column(column: Column, records: Sequence[Record], settings: Table) -> Column | None:
    """Return the column with what training says of it; None if it says the same of all rows."""
    cells = [column.cell(record) for record in records]
    given = [cell for cell in cells if cell is not None]
    fields = asdict(column) | {"missing": len(given) < len(cells)}
    if len(set(given)) < 2 and not (given and len(given) < len(cells)):
        return None
    if column.kind == "category":
        counts = Counter(given)
        names = sorted((n for n, c in counts.items() if c >= settings.min_count),
                       key=lambda name: (-counts[name], name))  # fmt: skip
        return Column(**fields | {"categories": tuple(names), "rare": len(names) < len(counts)})
    value = np.asarray(given, np.float64)
    bins = settings.bins or 0
    edges = edges_of(value, bins).tolist() if bins else []
    std = float(value.std()) or 1.0
    return Column(**fields | {"mean": float(value.mean()), "std": std, "edges": tuple(edges)})


@dataclass(frozen=True, slots=True)
class TableEncoder:
    """Turns rows of a table into documents.

    Attributes
    ----------
    columns : tuple of Column
        Numbers first.
    whole : bool
        Whether a row is one vector.
    left_out : dict of str to str
        Columns of the table that are not read, and why.
    spec : Spec
    """

    columns: tuple[Column, ...]
    whole: bool
    left_out: dict[str, str] = field(default_factory=dict)
    spec: Spec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self._spec())

    @classmethod
    def fit(
        cls, records: Sequence[Record], settings: Table, whole: bool, *, alone: bool = True
    ) -> TableEncoder:
        """Look at the training split; without a column to read there must be more than cells.

        Raises
        ------
        DataError
            If no column is left to read and cells are `alone`.
        """
        names = settings.columns or tuple(dict.fromkeys(key for r in records for key in r))
        kinds: dict[str, Kind] = {
            **dict.fromkeys(settings.numeric, "number"),
            **dict.fromkeys(settings.categorical, "category"),
            **dict.fromkeys(settings.dates, "date"),
        }
        columns: list[Column] = []
        left_out: dict[str, str] = {}
        for name in (name for name in names if name not in settings.ignore):
            cells = [c for record in records if (c := tidy(record.get(name))) is not None]
            kind = kinds.get(name) or (_guess(cells) if cells else "category")
            if kind is None:
                left_out[name] = "free text"
                continue
            if kind == "date":
                parts = [("days", "number"), ("month", "category"), ("weekday", "category")]
            else:
                parts = [("", kind)]
            found = [
                _fit_column(Column(f"{name} {part}".strip(), name, part, of), records, settings)  # type: ignore[arg-type]
                for part, of in parts
            ]
            columns += [column for column in found if column is not None]
            if not any(found):
                left_out[name] = "the same in every training row"
        if alone and not columns:
            told = "; ".join(f"{name!r}: {why}" for name, why in left_out.items())
            raise DataError(f"no column is left to read ({told})", where="table.columns")
        return cls(tuple(sorted(columns, key=lambda c: c.kind != "number")), whole, left_out)

    @property
    def num_numbers(self) -> int:
        """How many of the columns are numbers."""
        return sum(column.kind == "number" for column in self.columns)

    def _spec(self) -> Spec:
        if self.whole:
            return Spec(NUM_SPECIAL + 1, sum(map(_width, self.columns)), 1)
        # Of each column: hidden, missing, and for a category other and all its names. The ids
        # that say that a number stands there come last.
        hidden = list(range(NUM_SPECIAL))
        begins = []
        for column in self.columns:
            begins.append(len(hidden))
            size = 2 + (1 + len(column.categories) if column.kind == "category" else 0)
            hidden += [begins[-1]] * size
        numbers = self.num_numbers
        dims = 1 + max((max(0, len(c.edges) - 1) for c in self.columns), default=0)
        hidden += begins[:numbers]
        if not numbers:
            return Spec(len(hidden), hidden=tuple(hidden))
        return Spec(len(hidden), dims, numbers, shared=False, hidden=tuple(hidden))

    def encode(self, records: Sequence[Record]) -> Grid:
        """Return the documents of rows of a table."""
        if self.whole:
            ids = np.full((len(records), 1), self.spec.first_value_id, np.int32)
            return Grid(ids, self.matrix(records)[:, None], self.spec.first_value_id)
        first = self.spec.first_value_id
        ids = np.empty((len(records), len(self.columns)), np.int32)
        values = np.zeros((len(records), self.num_numbers, self.spec.value_dims), np.float32)
        begin = NUM_SPECIAL
        for n, column in enumerate(self.columns):
            cells = [column.cell(record) for record in records]
            missing = begin + 1
            if column.kind == "number":
                ids[:, n] = [missing if cell is None else first + n for cell in cells]
                found = column.numbers(cells)
                values[:, n, : found.shape[1]] = found
                begin += 2
            else:
                place = column.places(cells)
                other = len(column.categories)
                ids[:, n] = np.where(place == other, begin + 2, begin + 3 + place)
                ids[place == -1, n] = missing
                begin += 3 + other
        return Grid(ids, values, first)

    def matrix(self, records: Sequence[Record]) -> NDArray[np.float32]:
        """Return rows as vectors, shape (n, K).

        Numbers are standardised, and 0 (the mean) where they are missing; a category is a
        column of zeros and ones for each name. Where training lacks a cell, a further column
        says so.
        """
        parts: list[NDArray[np.float32]] = []
        for column in self.columns:
            cells = [column.cell(record) for record in records]
            if column.kind == "number":
                parts.append(column.numbers(cells))
            else:
                width = len(column.categories) + column.rare
                found = np.zeros((len(records), width), np.float32)
                place = column.places(cells)
                seen = (place >= 0) & (place < width)
                found[seen, place[seen]] = 1.0
                parts.append(found)
            if column.missing:
                parts.append(np.asarray([[c is None] for c in cells], np.float32))
        return np.hstack(parts)

    def ordinal(self, records: Sequence[Record]) -> tuple[NDArray[np.float64], list[bool]]:
        """Return rows for a model of trees: numbers and places as they are, NaN where missing.

        Returns
        -------
        NDArray of float64, shape (n, number of columns)
        list of bool
            Which columns are categories.
        """
        parts = []
        for column in self.columns:
            cells = [column.cell(record) for record in records]
            if column.kind == "number":
                parts.append(np.asarray([math.nan if c is None else c for c in cells], np.float64))
            else:
                place = column.places(cells).astype(np.float64)
                parts.append(np.where(place < 0, math.nan, place))
        return np.stack(parts, axis=1), [column.kind == "category" for column in self.columns]

    def count(self, records: Sequence[Record]) -> dict[str, int]:
        """Count the cells that are missing, not as expected, unknown or extreme."""
        counts = dict.fromkeys(("missing", "unreadable", "unknown", "clipped"), 0)
        for column in self.columns:
            for record in records:
                cell = column.cell(record)
                if cell is None:
                    empty = tidy(record.get(column.source)) is None
                    counts["missing" if empty else "unreadable"] += 1
                elif column.kind == "category":
                    counts["unknown"] += cell not in column.categories and not column.rare
                else:
                    counts["clipped"] += abs(cell - column.mean) > CLIP * column.std
        return counts

    def describe(self) -> dict[str, Any]:
        """Return what a report says of the columns."""
        return {"columns": [asdict(c) for c in self.columns], "left_out": self.left_out}

    def save(self, folder: Path) -> None:
        """Write ``encoder.json``."""
        content = {"modality": "table", "whole": self.whole, **self.describe()}
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TableEncoder:
        """Read what :meth:`save` wrote."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        columns: list[Column] = []
        for fields in content["columns"]:
            lists = {key: tuple(fields[key]) for key in ("edges", "categories")}
            columns.append(Column(**fields | lists))
        return cls(tuple(columns), content["whole"], content["left_out"])

    def load_documents(self, folder: Path, name: str) -> Grid:
        """Map the documents of a split."""
        return Grid.load(folder, name, self.spec.first_value_id)


def _width(column: Column) -> int:
    """Return the numbers that a column takes in :meth:`TableEncoder.matrix`."""
    if column.kind == "number":
        return 1 + max(0, len(column.edges) - 1) + column.missing
    return len(column.categories) + column.rare + column.missing

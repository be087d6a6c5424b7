"""Reading the rows of one file, whatever its format.

A row that cannot be read is not fatal; it comes out with the reason why.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from danlu.data import arrays
from danlu.data.encoding import open_text
from danlu.data.sql import query
from danlu.errors import DataError
from danlu.recipe import Source

BINARY = ("parquet", "idx", "npz", "pandas", "media")
"""Formats that fix their own encoding."""

# Longer than any sane cell; the default of 128 KiB would refuse whole documents.
csv.field_size_limit(1 << 28)

Rows = Iterator[tuple[int, "dict[str, Any] | str"]]
"""Row number and its content, or the reason why it cannot be read."""


@dataclass(frozen=True, slots=True)
class File:
    """One file (or query) of a source, with what was found out about it.

    Attributes
    ----------
    source : Source
    path : Path or None
        None for SQL.
    name : str
        How reports call it.
    format : str
    encoding : str or None
        None where the format fixes it.
    digest : str
        SHA-256 of the content; of an idx file's with its labels' after it.
    labels : Path or None
        An idx file's labels.
    members : tuple of (str, Path)
        Names and paths of the images or sounds, which together are one file.
    """

    source: Source
    path: Path | None
    name: str
    format: str
    encoding: str | None
    digest: str
    labels: Path | None = None
    members: tuple[tuple[str, Path], ...] = ()

    def record(self) -> dict[str, Any]:
        """Return what the data report says of the file."""
        return {
            "source": self.source.name,
            "file": self.name,
            "format": self.format,
            "encoding": self.encoding,
            "sha256": self.digest,
            "licence": self.source.licence,
        }


def rows_of(file: File, wanted: dict[str, str]) -> Rows:
    """Yield a file's rows: number and content, or the reason why it cannot be read.

    Parameters
    ----------
    file : File
    wanted : dict of str to str
        Role and name of the columns that must be there; none asks for nothing.
    """
    readers: dict[str, Callable[[File, dict[str, str]], Rows]] = {
        "txt": _read_txt,
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "tsv": _read_csv,
        "parquet": _read_parquet,
        "idx": _read_idx,
        "npz": _read_npz,
        "pandas": _read_pandas,
        "media": _read_media,
        "sql": _read_sql,
    }
    return readers[file.format](file, wanted)


def check_columns(found: list[str], wanted: dict[str, str], file: File) -> None:
    """Refuse a file that lacks a column."""
    missing = [column for column in wanted.values() if column not in found]
    if missing:
        own = ("text", "label", "content")
        keys = [f"data.{role}" for role in own if wanted.get(role) in missing]
        raise DataError(
            f"no column {', '.join(map(repr, missing))}; there are: {', '.join(map(repr, found))}",
            where=str(file.path or file.name),
            mend=f"name the columns in the recipe ({', '.join(keys)}) as the file calls them"
            if keys
            else "name the columns in the recipe as the file calls them",
        )


def _read_txt(file: File, wanted: dict[str, str]) -> Rows:
    assert file.path is not None
    assert file.encoding is not None
    check_columns(["line"], wanted, file)
    with open_text(file.path, file.encoding) as lines:
        for number, line in enumerate(lines, 1):
            yield number, {"line": line.rstrip("\r\n")}


def _read_jsonl(file: File, wanted: dict[str, str]) -> Rows:
    assert file.path is not None
    assert file.encoding is not None
    with open_text(file.path, file.encoding) as lines:
        first = next((line for line in lines if line.strip()), "")
        lines.seek(0)
        if first.lstrip().startswith("["):  # one array rather than a line each
            yield from _read_json_array(file, lines.read(), wanted)
            return
        seen: set[str] = set()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                yield number, "not valid JSON"
                continue
            if isinstance(record, dict):
                seen |= record.keys()
            yield number, record if isinstance(record, dict) else "not a JSON object"
        # A record may lack a key; a key that every record lacks is a mistake in the recipe.
        if seen:
            check_columns(sorted(seen), wanted, file)


def _read_json_array(file: File, text: str, wanted: dict[str, str]) -> Rows:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=str(file.path)) from None
    if seen := {key for record in records if isinstance(record, dict) for key in record}:
        check_columns(sorted(seen), wanted, file)
    for number, record in enumerate(records, 1):
        yield number, record if isinstance(record, dict) else "not a JSON object"


def _read_csv(file: File, wanted: dict[str, str]) -> Rows:
    assert file.path is not None
    assert file.encoding is not None
    with open_text(file.path, file.encoding) as lines:
        for passed in range(file.source.skip):
            if not lines.readline():
                raise DataError(
                    f"skip passes over {file.source.skip} lines, and the file has {passed}",
                    where=str(file.path),
                )
        rows = csv.reader(lines, delimiter="\t" if file.format == "tsv" else ",")
        given = list(file.source.header)
        header = given or next(rows, [])
        if not header:
            return
        check_columns(header, wanted, file)
        if twice := {name for name in wanted.values() if header.count(name) > 1}:
            raise DataError(f"two columns are called {twice.pop()!r}", where=str(file.path))
        for number, row in _numbered(rows):
            if isinstance(row, str):
                yield number, row
            elif len(row) == len(header):
                yield number, dict(zip(header, row, strict=True))
            elif given and number == 1:  # it is the recipe that is wrong, not the row
                raise DataError(
                    f"the recipe names {len(given)} columns, and the first row has {len(row)}",
                    where=str(file.path),
                    mend="name every column in the source's header, or pass over lines with skip",
                )
            else:
                yield number, f"{len(row)} cells where the header has {len(header)}"


def _numbered(rows: Iterator[list[str]]) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the rows that are not blank, and why those that cannot be read cannot."""
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            number += 1
            yield number, f"not valid CSV: {error}"
            continue
        if row:  # a blank line is no row
            number += 1
            yield number, row


def _read_parquet(file: File, wanted: dict[str, str]) -> Rows:
    assert file.path
    try:
        table = pq.ParquetFile(file.path)
    except pa.ArrowInvalid as error:
        raise DataError(f"not a Parquet file: {error}", where=str(file.path)) from None
    check_columns(table.schema_arrow.names, wanted, file)
    number = 0
    for batch in table.iter_batches(columns=sorted(set(wanted.values())) or None):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def _read_sql(file: File, wanted: dict[str, str]) -> Rows:
    for number, row in enumerate(query(file.source), 1):
        if number == 1:
            check_columns(list(row), wanted, file)
        yield number, row


def _read_media(file: File, wanted: dict[str, str]) -> Rows:
    """Read each image or sound as a row: ``file`` holds its bytes, ``path`` and ``folder`` names.

    The groups of the source's pattern are further columns; all of them are missing where it is
    not found.
    """
    pattern = re.compile(file.source.pattern or "")
    names = list(pattern.groupindex)
    check_columns(["file", "path", "folder", *names], wanted, file)
    for number, (name, path) in enumerate(file.members, 1):
        found = pattern.search(name)
        columns = found.groupdict("") if found else dict.fromkeys(names)
        folder = PurePosixPath(name).parent.name
        yield number, {"file": path.read_bytes(), "path": name, "folder": folder, **columns}


def _read_idx(file: File, wanted: dict[str, str]) -> Rows:
    assert file.path
    check_columns(["image", *(["label"] if file.labels else [])], wanted, file)
    yield from enumerate(arrays.idx(file.path, file.labels), 1)


def _read_npz(file: File, wanted: dict[str, str]) -> Rows:  # noqa: ARG001 - what it holds is seen in its rows
    assert file.path
    yield from enumerate(arrays.npz(file.path), 1)


def _read_pandas(file: File, wanted: dict[str, str]) -> Rows:
    """Read a pickled data frame; :func:`danlu.data.sources.open_source` has checked its origin."""
    assert file.path
    try:
        import pandas
    except ImportError:
        raise DataError(
            "reading a pandas pickle needs pandas",
            where=str(file.path),
            mend="pip install 'danlu[recipes]'",
        ) from None
    try:
        frame = pandas.read_pickle(file.path, compression=None)  # noqa: S301 - trusted, see there
    except Exception as error:  # whatever the pickle's own code raises
        raise DataError(
            f"pandas cannot read it: {type(error).__name__}: {error}", where=str(file.path)
        ) from error
    if isinstance(frame, pandas.Series):
        frame = frame.to_frame(frame.name if frame.name is not None else "value")
    if not isinstance(frame, pandas.DataFrame):
        raise DataError(f"holds a {type(frame).__name__}, not a table", where=str(file.path))
    if not isinstance(frame.index, pandas.RangeIndex):
        frame = frame.reset_index()  # an index that says more than the row's number is a column
    frame.columns = [str(name) for name in frame.columns]
    check_columns(list(frame.columns), wanted, file)
    if twice := sorted(frame.columns[frame.columns.duplicated()]):
        raise DataError(f"two columns are called {twice[0]!r}", where=str(file.path))
    if wanted:
        frame = frame[sorted(set(wanted.values()))]
    for start in range(0, len(frame), _ROWS):
        part = frame.iloc[start : start + _ROWS]
        cells = [_plain(part[name]) for name in part.columns]
        for number, row in enumerate(zip(*cells, strict=True), start + 1):
            yield number, dict(zip(part.columns, row, strict=True))


_ROWS = 10_000  # of a frame that are plain values at once


def _plain(column: Any) -> list[Any]:
    """Return a pandas column as values of Python's own types; None for what is missing."""
    text = str(column.dtype) == "category"
    return [
        None if missing else str(value) if text else _native(value)
        for value, missing in zip(column.astype(object), column.isna(), strict=True)
    ]


def _native(value: Any) -> Any:
    if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
        return str(value)  # Python's own times end at the microsecond
    if hasattr(value, "to_pydatetime"):
        return value.to_pydatetime(warn=False)
    if hasattr(value, "to_pytimedelta"):
        return value.to_pytimedelta()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    known = isinstance(value, str | int | float | bool | bytes | list | dict | date | timedelta)
    return value if known else str(value)

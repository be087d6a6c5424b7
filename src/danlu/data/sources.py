"""Reading every kind of source into one shape of row, one file at a time.

A row keeps where it came from: source, file and number. A row that cannot be
read is not fatal; it comes out with the reason why.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from danlu.data.encoding import REPLACEMENT, detect, open_text
from danlu.data.privacy import KINDS
from danlu.data.sql import digest_query, query
from danlu.errors import DataError
from danlu.recipe import Source

SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "source": pa.string(),
        "file": pa.string(),
        "row": pa.int64(),
        "text": pa.string(),
        "label": pa.string(),
        "group": pa.string(),
        "time": pa.string(),
        "reason": pa.string(),
        "as_read": pa.int64(),
        **dict.fromkeys(KINDS, pa.int64()),
    }
)
"""A row on disk. `row` counts from 1; `reason` says why it cannot be used; `as_read` hashes the
text as it was, which is never written raw; the rest count what was redacted from it."""

_SHARD_ROWS = 50_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_SUFFIXES = {
    "txt": (".txt", ".text"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet", ".pq"),
}
# Longer than any sane cell; the default of 128 KiB would refuse whole documents.
csv.field_size_limit(1 << 28)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a source hold what; None where there is none.

    Attributes
    ----------
    text : str or None
        None where the whole row is wanted.
    label, group, time : str or None
    """

    text: str | None
    label: str | None = None
    group: str | None = None
    time: str | None = None


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
        SHA-256 of the content.
    """

    source: Source
    path: Path | None
    name: str
    format: str
    encoding: str | None
    digest: str

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


def open_source(source: Source) -> list[File]:
    """Find a source's files and take their fingerprints.

    Raises
    ------
    DataError
        If nothing is there, or the format cannot be told.
    """
    if source.format == "sql":
        return [File(source, None, source.name or "sql", "sql", None, digest_query(source))]
    files = []
    for path in _paths(source):
        kind = source.format or _format_of(path)
        encoding = None
        if kind != "parquet":
            encoding = source.encoding or detect(path)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        files.append(File(source, path, path.name, kind, encoding, content))
    return files


def _paths(source: Source) -> list[Path]:
    where = source.path
    if where.startswith("package:"):
        return [_package_file(where)]
    path = Path(where)
    if path.is_dir():
        known = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in known)
        if not found:
            raise DataError("the folder holds no file that danlu reads", where=where, mend=_known())
        return found
    if path.is_file():
        return [path]
    if found := sorted(Path(p) for p in glob.glob(where, recursive=True) if Path(p).is_file()):
        return found
    raise DataError(
        "there is no such file, folder or glob",
        where=where,
        mend="paths are relative to the recipe",
    )


def _package_file(where: str) -> Path:
    name, _, inside = where.removeprefix("package:").partition("/")
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise DataError(
            f"the package {name!r} is not installed", where=where, mend=f"pip install {name}"
        ) from None
    for file in files:
        # The path is given as from the site-packages folder, which begins with the module's name.
        if file.as_posix() in (inside, f"{name}/{inside}"):
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise DataError(f"the package {name!r} holds no file {inside!r}", where=where)


def _format_of(path: Path) -> str:
    for kind, suffixes in _SUFFIXES.items():
        if path.suffix.lower() in suffixes:
            return kind
    raise DataError(
        f"danlu cannot tell the format of a {path.suffix or 'nameless'} file",
        where=str(path),
        mend=f'{_known()}, or name it: format = "txt"',
    )


def _known() -> str:
    return "known: " + " ".join(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)


def ingest(
    files: list[File],
    columns: Columns,
    folder: Path,
    refine: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> list[dict[str, Any]]:
    """Copy the needed columns of all files into Parquet shards with provenance.

    Parameters
    ----------
    files : list of File
    columns : Columns
    folder : Path
        Receives ``00000.parquet``, ``00001.parquet``, …; memory holds one shard.
    refine : callable
        Cleans and redacts a row before it is written.

    Returns
    -------
    list of dict
        A record of each file, with its number of rows.

    Raises
    ------
    DataError
        If a file lacks a column or holds no row.
    """
    records: list[dict[str, Any]] = []
    shard: list[dict[str, Any]] = []
    number = rows = 0

    def flush() -> None:
        nonlocal number
        if shard:
            table = pa.Table.from_pylist(shard, schema=SCHEMA)
            pq.write_table(table, folder / f"{number:05d}.parquet")
            number += 1
            shard.clear()

    for file in files:
        before = rows
        for row in _read(file, columns):
            place = {"id": rows, "source": file.source.name, "file": file.name}
            shard.append(refine({**place, **row}))
            rows += 1
            if len(shard) == _SHARD_ROWS:
                flush()
        if rows == before:
            raise DataError("the file holds no rows", where=str(file.path or file.name))
        records.append({**file.record(), "rows": rows - before})
    flush()
    return records


def rows_of(file: File, wanted: dict[str, str]) -> Rows:
    """Yield a file's rows: number and content, or the reason why it cannot be read.

    Parameters
    ----------
    file : File
    wanted : dict of str to str
        Role and name of the columns that must be there; none asks for nothing.
    """
    reader = {
        "txt": _read_txt,
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "tsv": _read_csv,
        "parquet": _read_parquet,
        "sql": _read_sql,
    }[file.format]
    return reader(file, wanted)


def _read(file: File, columns: Columns) -> Iterator[dict[str, Any]]:
    roles = {"text": columns.text, "group": columns.group, "time": columns.time}
    if file.source.label is None:
        roles["label"] = columns.label
    wanted = {role: column for role, column in roles.items() if column is not None}
    whole = columns.text is None
    for number, record in rows_of(file, {} if whole else wanted):
        if isinstance(record, str):
            yield {"row": number, "reason": record}
            continue
        row: dict[str, Any] = {role: _text(record.get(name)) for role, name in wanted.items()}
        if whole:
            if number == 1:
                _check_columns(list(record), wanted, file)
            row["record"] = record
        if file.source.label is not None:
            row["label"] = file.source.label
        yield {"row": number, **row}


def _text(value: Any) -> str | None:
    """Return a cell as text; None where it is missing."""
    if value is None or value == "" or value != value:  # NaN differs from itself
        return None
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value, default=str, ensure_ascii=False)
    # Half a surrogate pair is no character; it is marked as broken bytes are.
    return _SURROGATE.sub(REPLACEMENT, str(value))


Rows = Iterator[tuple[int, "dict[str, Any] | str"]]
"""Row number and its content, or the reason why it cannot be read."""


def _check_columns(found: list[str], wanted: dict[str, str], file: File) -> None:
    missing = [column for column in wanted.values() if column not in found]
    if missing:
        raise DataError(
            f"no column {', '.join(map(repr, missing))}; there are: {', '.join(map(repr, found))}",
            where=str(file.path or file.name),
            mend="name the columns with data.text and data.label",
        )


def _read_txt(file: File, wanted: dict[str, str]) -> Rows:
    assert file.path is not None
    assert file.encoding is not None
    _check_columns(["line"], wanted, file)
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
            _check_columns(sorted(seen), wanted, file)


def _read_json_array(file: File, text: str, wanted: dict[str, str]) -> Rows:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", where=str(file.path)) from None
    if seen := {key for record in records if isinstance(record, dict) for key in record}:
        _check_columns(sorted(seen), wanted, file)
    for number, record in enumerate(records, 1):
        yield number, record if isinstance(record, dict) else "not a JSON object"


def _read_csv(file: File, wanted: dict[str, str]) -> Rows:
    assert file.path is not None
    assert file.encoding is not None
    with open_text(file.path, file.encoding) as lines:
        rows = csv.reader(lines, delimiter="\t" if file.format == "tsv" else ",")
        header = next(rows, None)
        if header is None:
            return
        _check_columns(header, wanted, file)
        if twice := {name for name in wanted.values() if header.count(name) > 1}:
            raise DataError(f"two columns are called {twice.pop()!r}", where=str(file.path))
        number = 0
        while True:
            number += 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"not valid CSV: {error}"
                continue
            if not row:
                number -= 1  # a blank line is no row
            elif len(row) != len(header):
                yield number, f"{len(row)} cells where the header has {len(header)}"
            else:
                yield number, dict(zip(header, row, strict=True))


def _read_parquet(file: File, wanted: dict[str, str]) -> Rows:
    assert file.path
    try:
        table = pq.ParquetFile(file.path)
    except pa.ArrowInvalid as error:
        raise DataError(f"not a Parquet file: {error}", where=str(file.path)) from None
    _check_columns(table.schema_arrow.names, wanted, file)
    number = 0
    for batch in table.iter_batches(columns=sorted(set(wanted.values())) or None):
        for record in batch.to_pylist():
            number += 1
            yield number, record


def _read_sql(file: File, wanted: dict[str, str]) -> Rows:
    for number, row in enumerate(query(file.source), 1):
        if number == 1:
            _check_columns(list(row), wanted, file)
        yield number, row

"""Reading every kind of source into one shape of row, one file at a time.

A row keeps where it came from: source, file and number. A row that cannot be
read is not fatal; it comes out with the reason why.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from danlu.data import protected
from danlu.data.archive import members, sha256, unpack
from danlu.data.encoding import REPLACEMENT, detect
from danlu.data.fetch import fetch as download
from danlu.data.pace import Pace
from danlu.data.privacy import KINDS
from danlu.data.readers import BINARY, File, check_columns, rows_of
from danlu.data.shards import Shards
from danlu.data.sql import digest_query
from danlu.errors import DataError
from danlu.recipe import Source, places

__all__ = ["SCHEMA", "Columns", "File", "ingest", "locate", "open_source", "rows_of"]

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
        "protected": pa.string(),
        "reason": pa.string(),
        "as_read": pa.int64(),
        **dict.fromkeys(KINDS, pa.int64()),
    }
)
"""A row on disk. `row` counts from 1; `protected` holds the audit's attributes as JSON, or
nothing; `reason` says why it cannot be used; `as_read` hashes the
text as it was, which is never written raw; the rest count what was redacted from it."""

BLOBS = "blobs"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a source hold what; None where there is none.

    Attributes
    ----------
    text : str or None
        None where the whole row is wanted.
    label, group, time : str or None
    others : tuple of str
        Columns that must be there as well, where the whole row is wanted.
    protected : tuple of str
        Columns of protected attributes, or prefixes; see :mod:`danlu.data.protected`.
    """

    text: str | None
    label: str | None = None
    group: str | None = None
    time: str | None = None
    others: tuple[str, ...] = ()
    protected: tuple[str, ...] = ()


def open_source(source: Source, *, fetch: bool = False) -> list[File]:
    """Find a source's files and take their fingerprints.

    Parameters
    ----------
    source : Source
    fetch : bool
        Whether the user has agreed to downloads; see :mod:`danlu.data.fetch`.

    Raises
    ------
    DataError
        If nothing is there, the format cannot be told, or a pickle is not to be trusted.
    """
    if source.format == "sql":
        return [File(source, None, source.name or "sql", "sql", None, digest_query(source))]
    found = locate(source, fetch=fetch)
    labels = _labels(source, fetch=fetch) if source.labels else None
    if labels and len(found) != 1:
        raise DataError("labels belong to one file of images", where=source.path)
    files = []
    media = [(n, p) for n, p in found if (source.format or places.format_of(p.name)) == "media"]
    if media:
        sums = json.dumps([[name, sha256(path)] for name, path in media]).encode()
        digest = hashlib.sha256(sums).hexdigest()
        name = source.name or f"{len(media):,} files"
        files = [File(source, None, name, "media", None, digest, members=tuple(media))]
    elif source.pattern:
        raise DataError("only files of images or sounds have a pattern", where=source.path)
    for name, path in (pair for pair in found if pair not in media):
        kind = source.format or _format_of(path)
        if kind == "pandas" and places.scheme(source.path) not in places.TRUSTED:
            raise DataError(places.NO_PICKLE, where=source.path)
        if (source.header or source.skip) and kind not in ("csv", "tsv"):
            raise DataError("only CSV and TSV have header and skip", where=str(path))
        if labels and kind != "idx":
            raise DataError(
                "only format 'idx' has labels in a file of their own", where=source.path
            )
        encoding = None
        if kind not in BINARY:
            encoding = source.encoding or detect(path)
        digest = _digest(path, labels) if labels else sha256(path)
        files.append(File(source, path, name, kind, encoding, digest, labels))
    return files


def locate(source: Source, *, fetch: bool = False) -> list[tuple[str, Path]]:
    """Return a source's files, uncompressed on disk, with the names that reports call them.

    Parameters
    ----------
    source : Source
        Not a SQL query. Any kind of file will do, whether danlu reads rows from it or not.
    fetch : bool
        Whether the user has agreed to downloads.

    Raises
    ------
    DataError
        If nothing is there.
    """
    found = _locate(source.path, source, fetch=fetch)
    plain = [(PurePosixPath(name), unpack(path)) for name, path in found]
    return [(name.with_name(path.name).as_posix(), path) for name, path in plain]


def _labels(source: Source, *, fetch: bool) -> Path:
    assert source.labels
    found = _locate(source.labels, source, fetch=fetch)
    if len(found) != 1:
        raise DataError(f"these are {len(found)} files of labels, not one", where=source.labels)
    return unpack(found[0][1])


def _digest(*paths: Path) -> str:
    """Return the SHA-256 of files as if they were one."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def _locate(where: str, source: Source, *, fetch: bool) -> list[tuple[str, Path]]:
    """Return names and files, compressed as they are."""
    if divided := places.split(where):
        outer, inner = divided
        archives = _locate(outer, source, fetch=fetch)
        return [found for _, archive in archives for found in members(archive, inner)]
    if place := places.parse(where):
        if source.sha256 is None:
            raise DataError("a download needs the archive's sha256", where=where)
        archive = download(
            place,
            source.sha256,
            source.licence,
            consent=fetch,
            runs_code="pandas" in (source.format, places.format_of(where)),
        )
        # A wheel or .deb lies as it is installed; the others have a folder around everything.
        return members(archive, place.inner, under_top=archive.suffix not in (".whl", ".deb"))
    if where.startswith("package:"):
        path = _package_file(where)
        return [(path.name, path)]
    return [(_name(path, Path(where)), path) for path in _plain_files(where)]


def _name(path: Path, folder: Path) -> str:
    """Return how a file is called: images and sounds with their folders, which may be labels."""
    if places.format_of(path.name) != "media":
        return path.name
    return path.relative_to(folder).as_posix() if folder.is_dir() else "/".join(path.parts[-2:])


def _plain_files(where: str) -> list[Path]:
    path = Path(where)
    if path.is_dir():
        known = {"txt", "jsonl", "csv", "tsv", "parquet", "npz", "media"}
        found = sorted(
            p for p in path.rglob("*") if p.is_file() and places.format_of(p.name) in known
        )
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


def package_files(where: str) -> tuple[str, str, list[metadata.PackagePath]]:
    """Return of ``package:NAME/PATH`` the name, the path, and all files of that package.

    Raises
    ------
    DataError
        If it is not installed.
    """
    name, _, inside = where.removeprefix("package:").partition("/")
    try:
        return name, inside, metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise DataError(
            f"the package {name!r} is not installed", where=where, mend=f"pip install {name}"
        ) from None


def _package_file(where: str) -> Path:
    name, inside, files = package_files(where)
    for file in files:
        # The path is given as from the site-packages folder, which begins with the module's name.
        if file.as_posix() in (inside, f"{name}/{inside}"):
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise DataError(f"the package {name!r} holds no file {inside!r}", where=where)


def _format_of(path: Path) -> str:
    if kind := places.format_of(path.name):
        return kind
    raise DataError(
        f"danlu cannot tell the format of a {path.suffix or 'nameless'} file",
        where=str(path),
        mend=f'{_known()}, or name it: format = "txt"',
    )


def _known() -> str:
    return "known: " + " ".join(ending for endings in places.FORMATS.values() for ending in endings)


@contextmanager
def landed(
    files: list[File],
    columns: Columns,
    folder: Path,
    refine: Callable[[dict[str, Any]], dict[str, Any]],
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[list[dict[str, Any]], Path]]:
    """Hold the rows of all files as shards in a folder of their own, and remove it in the end.

    After an interruption they stay, and the next attempt goes on behind them. Yields the records
    of the files and the shards' folder; see :func:`ingest`.
    """
    shards = folder / "shards"
    shards.mkdir(exist_ok=True)
    yield ingest(files, columns, shards, refine, say), shards
    shutil.rmtree(shards)


def ingest(
    files: list[File],
    columns: Columns,
    folder: Path,
    refine: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Copy the needed columns of all files into Parquet shards with provenance.

    Parameters
    ----------
    files : list of File
    columns : Columns
    folder : Path
        Receives the shards, see :class:`danlu.data.shards.Shards`. Images and sounds, which a
        refined row holds by column under ``blobs``, go into
        ``blobs-00000.parquet`` and so on beside it.
    refine : callable
        Cleans and redacts a row before it is written.
    say : callable
        Told now and then how far it is, and what was found done.

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
    shards = Shards(folder, SCHEMA, lambda n: folder.parent / f"{BLOBS}-{n:05d}.parquet")
    if before := shards.done:
        say(f"goes on behind {before:,} rows that were read before it was interrupted")
    rows, pace = 0, Pace(files, say)
    for file in files:
        first = rows
        for row in _read(file, columns):
            if rows >= before:
                place = {"id": rows, "source": file.source.name, "file": file.name}
                shards.add(refine({**place, **row}))
            rows += 1
            pace.row(rows)
        if rows == first:
            raise DataError("the file holds no rows", where=str(file.path or file.name))
        records.append({**file.record(), "rows": rows - first})
        pace.file(file)
    shards.flush()
    return records


def blobs(data: Path, ids: Iterable[int]) -> dict[int, dict[str, bytes]]:
    """Return the images or sounds of rows of a data artifact, by the row's id and the column."""
    wanted, found = set(ids), dict[int, dict[str, bytes]]()
    for shard in sorted(data.glob(f"{BLOBS}-*.parquet")):
        table = pq.read_table(shard)
        names = zip(
            table["id"].to_pylist(), table["column"].to_pylist(), table["blob"], strict=True
        )
        for number, column, blob in names:
            if number in wanted:
                found.setdefault(number, {})[column] = blob.as_py()
    return found


def _read(file: File, columns: Columns) -> Iterator[dict[str, Any]]:
    roles = {"text": columns.text, "group": columns.group, "time": columns.time}
    if file.source.label is None:
        roles["label"] = columns.label
    wanted = {role: column for role, column in roles.items() if column is not None}
    whole, kept_apart = columns.text is None, columns.protected
    beside = {f"protected {name}": name for name in kept_apart}
    for number, record in rows_of(file, {} if whole else wanted | beside):
        if isinstance(record, str):
            yield {"row": number, "reason": record}
            continue
        row: dict[str, Any] = {role: _text(record.get(name)) for role, name in wanted.items()}
        if whole:
            if number == 1:
                named = wanted | {name: name for name in columns.others}
                check_columns(list(record), named, file)
                _check_protected(list(record), kept_apart, file)
            row |= {"record": record, "beside": file.path}
        if kept_apart:
            row["protected"] = json.dumps(protected.of(record, kept_apart), ensure_ascii=False)
        if file.source.label is not None:
            row["label"] = file.source.label
        yield {"row": number, **row}


def _check_protected(found: list[str], names: tuple[str, ...], file: File) -> None:
    """Refuse a table that lacks a protected attribute."""
    if absent := protected.missing(names, found):
        raise DataError(
            f"no column {', '.join(map(repr, absent))}; there are: {', '.join(map(repr, found))}",
            where=str(file.path or file.name),
            mend="name the columns with audit.protected",
        )


def _text(value: Any) -> str | None:
    """Return a cell as text; None where it is missing."""
    if value is None or value == "" or value != value:  # NaN differs from itself
        return None
    if isinstance(value, bytes):
        raise DataError("a column of bytes holds no text", mend="name another with data.text")
    if isinstance(value, (dict, list, bool)):
        return json.dumps(value, default=str, ensure_ascii=False)
    # Half a surrogate pair is no character; it is marked as broken bytes are.
    return _SURROGATE.sub(REPLACEMENT, str(value))

"""``danlu new`` before it looks at a kind: which files there are, and what columns they have."""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from danlu.data.encoding import detect, open_text
from danlu.data.guess_base import Rows, Seen
from danlu.data.readers import File
from danlu.data.sources import open_source, rows_of
from danlu.data.table import date, number
from danlu.errors import DataError, InputError
from danlu.recipe import Source, places

SAMPLE = 5000
"""Rows that are looked at."""
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
"""Endings of images among those of media; the others are sounds'."""
TABLES = ("csv", "tsv", "jsonl", "parquet")

_BESIDE = 0.1  # share of a folder's files that may be something else, such as a licence
_SURE = 0.95  # share of a column's cells that are numbers, or dates
_HEAD = 1000  # rows that must have something in common with the first


@dataclass(frozen=True, slots=True)
class Folder:
    """What lies in a folder, or the one file that was named.

    Attributes
    ----------
    data : Path
    files : dict of str to list of Path
        By kind: ``image``, ``audio``, or a format; sorted. Hidden files are left out.
    others : list of Path
        Files that danlu does not read.
    """

    data: Path
    files: dict[str, list[Path]]
    others: list[Path]

    @classmethod
    def of(cls, data: Path) -> Folder:
        """Look at the names alone.

        Raises
        ------
        InputError
            If there is nothing of that name; DataError if danlu reads nothing of it.
        """
        if not data.exists():
            raise InputError("there is no such file or folder", where=str(data))
        found: dict[str, list[Path]] = {}
        others = []
        for path in sorted(data.rglob("*")) if data.is_dir() else [data]:
            hidden = any(part.startswith(".") for part in path.relative_to(data).parts)
            if hidden or not path.is_file():
                continue
            kind = kind_of(path.name)
            if kind is None and data.is_dir():
                others.append(path)
            else:
                found.setdefault(kind or "unknown", []).append(path)
        if not found:
            what = f"{len(others):,} files and none that danlu reads" if others else "no file"
            raise DataError(f"the folder holds {what}", where=str(data), mend=_known())
        return cls(data, found, others)

    def chief(self) -> str:
        """Return the kind that nearly all files are of.

        A table beside images or sounds is for the caller to look into.

        Raises
        ------
        DataError
            If there are several, and any of them may be meant.
        """
        counts = {kind: len(paths) for kind, paths in self.files.items()}
        most = max(counts, key=lambda kind: counts[kind])
        media = most in ("image", "audio")
        rest = {
            kind: n for kind, n in counts.items()
            if kind != most and not (media and kind in TABLES and n == 1)
        }  # fmt: skip
        if sum(rest.values()) > (_BESIDE * counts[most] if media else 0):
            told = ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.items()))
            one = next(iter(self.files[most]))
            raise DataError(
                f"the folder holds files of several kinds ({told}), and it is not clear which are "
                "meant",
                where=str(self.data),
                mend=f"name one file, such as {one}, or a folder that holds one kind",
            )
        return most

    def besides(self, *kinds: str) -> list[Path]:
        """Return the files that are not of the given kinds."""
        rest = [paths for kind, paths in self.files.items() if kind not in kinds]
        return [*itertools.chain(*rest), *self.others]


def kind_of(name: str) -> str | None:
    """Return `image`, `audio`, or the format that a file's ending tells.

    >>> kind_of("a/b.JPG"), kind_of("b.ogg"), kind_of("c.csv.gz"), kind_of("d.doc")
    ('image', 'audio', 'csv', None)
    """
    kind = places.format_of(name)
    if kind != "media":
        return kind
    return "image" if name.lower().endswith(IMAGES) else "audio"


def _known() -> str:
    return "known: " + " ".join(ending for endings in places.FORMATS.values() for ending in endings)


def look_into(data: Path, file: Path, reasons: list[str]) -> Seen:
    """Read the first rows of a table or a file of texts.

    Parameters
    ----------
    data : Path
        What the recipe is to name: the file itself, or its folder.
    file : Path
    reasons : list of str
        What is found out about the file is added.

    Raises
    ------
    DataError
        If it holds no rows, or cells that are divided by something else than commas or tabs.
    """
    source: dict[str, Any] = {"path": str(data)}
    if places.format_of(file.name) in ("csv", "tsv"):
        source |= _of_cells(file, reasons)
    opened = open_source(Source(**source | {"path": str(file)}))[0]
    rows = sample_of(opened)
    if not rows:
        raise DataError("the file holds no rows", where=str(file))
    if opened.encoding:
        reasons.append(f"encoding: {opened.encoding}, detected")
    return Seen(data, opened, [source], rows, _total(opened, rows))


def sample_of(file: File, most: int = SAMPLE) -> Rows:
    """Return the first rows that can be read."""
    rows = itertools.islice(rows_of(file, {}), most)
    return [record for _, record in rows if isinstance(record, dict)]


def _total(file: File, rows: Rows) -> int:
    """Return about how many rows a file has, from the size of the first."""
    if len(rows) < SAMPLE or file.path is None:
        return len(rows)
    each = sum(len(str(cell)) + 1 for row in rows for cell in row.values()) / len(rows)
    return max(len(rows), int(file.path.stat().st_size / max(1.0, each)))


def _of_cells(file: Path, reasons: list[str]) -> dict[str, Any]:
    """Return what a recipe must say of a CSV or TSV file besides its path."""
    plain = open_source(Source(path=str(file)))[0]
    assert plain.path is not None
    found: dict[str, Any] = {}
    with open_text(plain.path, plain.encoding or detect(plain.path)) as lines:
        line = lines.readline()
        tabs = plain.format == "tsv"
        if "\t" in line and not tabs and "," not in line:
            tabs, found["format"] = True, "tsv"
            reasons.append("cells: divided by tabs, whatever the file's name says")
        for sign in ";|" if "," not in line and "\t" not in line else "":
            if line.count(sign):
                raise DataError(
                    f"the cells are divided by {sign!r}, which danlu does not read",
                    where=str(file),
                    mend="save the table with commas or tabs between the cells",
                )
        lines.seek(0)
        rows = list(itertools.islice(csv.reader(lines, delimiter="\t" if tabs else ","), _HEAD))
    rows = [row for row in rows if row]
    if why := _no_header(rows):
        found["header"] = [f"column {number + 1}" for number in range(len(rows[0]))]
        reasons.append(f"no header: {why}, so the columns are called column 1, column 2, …")
    return found


def _no_header(rows: list[list[str]]) -> str:
    """Say why the first row looks like all others; return nothing if it names the columns.

    A name is no number where the column holds numbers, no date among dates, and does not come
    again below. Numbers that go up by one, as years do, may be names all the same.
    """
    if len(rows) < 3:
        return ""
    # A header that comes again, as where files were joined, is no row like the others.
    head, body = rows[0], [row for row in rows[1:] if len(row) == len(rows[0]) and row != rows[0]]
    if not body or (len(set(head)) == len(head) >= 3 and _run(head)):
        return ""
    for place, (name, cells) in enumerate(zip(head, zip(*body, strict=True), strict=True), 1):
        given = [cell for cell in cells if cell.strip()]
        if not name.strip() or not given:
            continue
        if not math.isnan(number(name)) and _most(given, _is_number):
            return f"{name!r} stands first among the numbers of column {place}"
        if date(name) is not None and _most(given, _is_date):
            return f"{name!r} stands first among the dates of column {place}"
        if Counter(given)[name] > 1 and math.isnan(number(name)):
            return f"{name!r} comes {Counter(given)[name]:,} times again in column {place}"
    return ""


def _run(head: Sequence[str]) -> bool:
    """Return whether three cells or more are whole numbers that go up by one."""
    found = [int(cell) for cell in head if cell.strip().isdecimal()]
    return len(found) >= 3 and all(b - a == 1 for a, b in pairwise(found))


def _most(cells: Sequence[str], fits: Callable[[str], bool]) -> bool:
    return sum(map(fits, cells)) >= _SURE * len(cells)


def _is_number(cell: str) -> bool:
    return not math.isnan(number(cell))


def _is_date(cell: str) -> bool:
    return date(cell) is not None

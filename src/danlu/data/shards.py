"""Rows on disk in files of bounded size, each of them whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_ROWS, _BYTES = 50_000, 1 << 26  # of a shard; memory holds one
_OPEN = ".new"


class Shards:
    """Takes rows, and writes them as ``00000.parquet``, ``00001.parquet``, ….

    What an interrupted attempt left is kept: whoever gives the same rows again, in the same
    order, begins behind :attr:`done`.

    Parameters
    ----------
    folder : Path
    schema : pa.Schema
    blobs : callable of int to Path
        Where the bytes that a shard's rows carry by column under ``"blobs"`` go.

    Attributes
    ----------
    done : int
        Rows that lie in whole shards.
    """

    def __init__(self, folder: Path, schema: pa.Schema, blobs: Callable[[int], Path]) -> None:
        self.folder, self.schema, self.blobs = folder, schema, blobs
        self._rows: list[dict[str, Any]] = []
        self._number = self._held = self.done = 0
        while (path := self._path()).is_file():
            self.done += pq.read_metadata(path).num_rows
            self._number += 1

    def add(self, row: dict[str, Any]) -> None:
        """Take a row."""
        self._rows.append(row)
        self._held += sum(map(len, row.get("blobs", {}).values()))
        if len(self._rows) == _ROWS or self._held > _BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows at hand."""
        if not self._rows:
            return
        triples = [(r["id"], *pair) for r in self._rows for pair in r.pop("blobs", {}).items()]
        if triples:
            columns = dict(zip(("id", "column", "blob"), zip(*triples, strict=True), strict=True))
            _write(pa.table(columns), self.blobs(self._number))
        table = pa.Table.from_pylist(self._rows, schema=self.schema)
        _write(table, self._path())  # last: a shard that is there has its blobs
        self.done += len(self._rows)
        self._rows.clear()
        self._number, self._held = self._number + 1, 0

    def _path(self) -> Path:
        return self.folder / f"{self._number:05d}.parquet"


def _write(table: pa.Table, path: Path) -> None:
    """Write a file aside, sync it, and give it its name."""
    aside = path.with_name(f"{path.name}{_OPEN}")
    pq.write_table(table, aside)
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)

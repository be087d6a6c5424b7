"""How far reading is, for a waiting person."""

from __future__ import annotations

import time
from collections.abc import Callable

from danlu.data.readers import File
from danlu.log import span


class Pace:
    """Tells how far reading is, every ten seconds.

    The time left is known once a file is done: by its bytes, and those of the others.
    """

    def __init__(self, files: list[File], say: Callable[[str], None]) -> None:
        self._say, self._count, self._read = say, len(files), 0
        self._began = self._spoke = time.perf_counter()
        self._all, self._bytes = sum(map(self._size, files)), 0

    @staticmethod
    def _size(file: File) -> int:
        paths = [file.path] if file.path else [path for _, path in file.members or ()]
        return sum(path.stat().st_size for path in paths)

    def row(self, rows: int) -> None:
        """Take note of a row."""
        if rows % 1000 or (now := time.perf_counter()) - self._spoke < 10:
            return
        self._spoke = now
        left = ""
        if self._bytes:
            seconds = (now - self._began) * (self._all - self._bytes) / self._bytes
            left = f", about {span(seconds)} left"
        files = f"{self._read + 1:,} of {self._count:,} files, " if self._count > 1 else ""
        self._say(f"reading: {files}{rows:,} rows{left}")

    def file(self, file: File) -> None:
        """Take note of a file's end."""
        self._read, self._bytes = self._read + 1, self._bytes + self._size(file)

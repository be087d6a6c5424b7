"""Which encoding a text file is in, and reading it without losing a row."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from danlu.errors import DataError

REPLACEMENT = "\ufffd"
"""Stands in a decoded text where its bytes meant nothing."""

_CHUNK = 1 << 20
_TOLERATED = 0.2  # share of broken non-ASCII lines up to which a file is still UTF-8


def detect(path: Path) -> str:
    """Return the encoding of a text file.

    Returns
    -------
    {"utf-8", "utf-8-sig", "gb18030", "big5", "latin-1"}
        A file with a few broken rows among many good UTF-8 ones is UTF-8.

    Raises
    ------
    DataError
        For UTF-16 and UTF-32, which a line-based reader would garble.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise DataError(
            "the file is UTF-16 or UTF-32",
            where=str(path),
            mend=f"iconv -f utf-16 -t utf-8 {path.name}",
        )
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if _is_utf8(path):
        return "utf-8"
    telling = _telling_lines(path)
    broken = sum(not _decodes(line, "utf-8") for line in telling)
    if broken <= _TOLERATED * len(telling):
        return "utf-8"
    return _guess_legacy(b"".join(telling))


def _telling_lines(path: Path) -> list[bytes]:
    """Return the lines that are not plain ASCII, up to a mebibyte of them."""
    found, size = [], 0
    with path.open("rb") as file:
        for line in file:
            if not line.isascii():
                found.append(line)
                size += len(line)
                if size >= _CHUNK:
                    break
    return found


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        try:
            while chunk := file.read(_CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def _guess_legacy(sample: bytes) -> str:
    """Choose among the encodings in which nearly any bytes can be read."""
    from charset_normalizer import from_bytes

    candidates = [name for name in ("gb18030", "big5") if _decodes(sample, name)]
    best = from_bytes(sample, cp_isolation=[*candidates, "latin-1"]).best()
    return best.encoding.replace("latin_1", "latin-1") if best else "latin-1"


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[TextIO]:
    """Open a text file so that broken bytes become :data:`REPLACEMENT`.

    Line ends are left as they are, as the :mod:`csv` module needs.
    """
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        yield file

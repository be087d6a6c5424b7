"""Folders of tensors that are whole or are not there: written aside, synced, renamed.

Tensors lie in safetensors, everything else in JSON: reading one runs no code. Both are verified
by SHA-256 before they are believed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from danlu.artifact import digest, digest_file, read_json, sync_entry, sync_tree, write_json

TENSORS, RECORD = "state.safetensors", "state.json"
WRITING, REMOVING = ".writing-", ".removing-"


class DamagedError(Exception):
    """A folder is not what was written into it; the message says in what."""


def write(final: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write a folder so that it bears its name only when all of it is on the disk.

    Parameters
    ----------
    final : Path
        If it is there, it is replaced.
    tensors : dict of str to Tensor
        On the CPU, contiguous.
    record : dict
        Plain values.
    """
    clear(final.parent)
    aside = final.with_name(f"{WRITING}{final.name}")
    aside.mkdir()
    try:
        save_file(tensors, aside / TENSORS)
        record = {**record, "sha256": digest_file(aside / TENSORS)}
        write_json(aside / RECORD, {**record, "record_sha256": digest(record)})
        sync_tree(aside)
        remove(final)
        aside.rename(final)
        sync_entry(final.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk is given back its room
        raise


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of a folder.

    Raises
    ------
    DamagedError
        If any of it is not as it was written.
    """
    try:
        record = read_json(folder / RECORD)
        if record.pop("record_sha256") != digest(record):
            raise DamagedError(f"{RECORD} was changed after it was written")
        if digest_file(folder / TENSORS) != record["sha256"]:
            raise DamagedError(f"{TENSORS} is cut short or was changed after it was written")
        return load_file(folder / TENSORS), record
    except FileNotFoundError as error:
        raise DamagedError(f"{Path(error.filename).name} is missing") from None
    except OSError as error:
        raise DamagedError(f"it cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{RECORD} is cut short or was changed after it was written") from None
    except SafetensorError as error:
        raise DamagedError(f"{TENSORS} cannot be read: {error}") from None


def remove(folder: Path) -> None:
    """Remove a folder such that no half of it is ever seen under its name."""
    if folder.exists():
        aside = folder.with_name(f"{REMOVING}{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside)


def clear(parent: Path) -> None:
    """Remove what a process that was killed left half written or half removed."""
    for prefix in (WRITING, REMOVING):
        for left in parent.glob(f"{prefix}*"):
            shutil.rmtree(left)

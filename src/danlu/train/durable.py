"""Folders of tensors that are whole or are not there: written aside, synced, renamed.

Tensors lie in safetensors, everything else in JSON: reading one runs no code. Both are verified
by SHA-256 before they are believed.

Of several processes each writes what it holds (torch's distributed checkpoint); a state is read
by any number of them, whatever number wrote it.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from danlu.artifact import digest, digest_file, read_json, sync_entry, sync_tree, write_json
from danlu.parallel.mesh import ALONE, Mesh

TENSORS, RECORD = "state.safetensors", "state.json"
WRITING, REMOVING = ".writing-", ".removing-"


class DamagedError(Exception):
    """A folder is not what was written into it; the message says in what."""


Like = Callable[[str, tuple[int, ...]], "Tensor | None"]
"""Given a tensor's name and shape, says how it is to be held: as which other one, if any."""


def write(
    final: Path, tensors: dict[str, Tensor], record: dict[str, Any], mesh: Mesh = ALONE
) -> None:
    """Write a folder so that it bears its name only when all of it is on the disk.

    Parameters
    ----------
    final : Path
        If it is there, it is replaced.
    tensors : dict of str to Tensor
        On the CPU, contiguous.
    record : dict
        Plain values.
    mesh : Mesh
        The processes that write together.
    """
    aside = final.with_name(f"{WRITING}{final.name}")
    if mesh.first:
        clear(final.parent)
        aside.mkdir()
    try:
        mesh.meet()
        if mesh.devices is None:
            save_file(tensors, aside / TENSORS)
        else:
            writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
            save(tensors, storage_writer=writer, process_group=mesh.beside)
        if mesh.first:
            digests = {path.name: digest_file(path) for path in _tensors(aside)}
            record = {**record, "sha256": digests}
            write_json(aside / RECORD, {**record, "record_sha256": digest(record)})
            sync_tree(aside)
            remove(final)
            aside.rename(final)
            sync_entry(final.parent)
        mesh.meet()
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk is given back its room
        raise


def read(
    folder: Path, like: Like = lambda *_: None, mesh: Mesh = ALONE
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record of a folder.

    Parameters
    ----------
    folder : Path
    like : callable
        How the tensors are divided among the processes.
    mesh : Mesh
        The processes that read together.

    Raises
    ------
    DamagedError
        If any of it is not as it was written.
    """
    if wrong := mesh.told(_wrong(folder) if mesh.first else ""):
        raise DamagedError(wrong)
    record = read_json(folder / RECORD)
    del record["record_sha256"]
    if mesh.devices is None and list(record["sha256"]) == [TENSORS]:
        return load_file(folder / TENSORS), record
    reader = HuggingFaceStorageReader(str(folder))
    tensors = {}
    for name, about in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        model = like(name, tuple(about.size))
        made = torch.empty(about.size) if model is None else torch.empty_like(model)
        tensors[name] = made.to(about.properties.dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is meant
        load(tensors, storage_reader=reader)
    return tensors, record


def _tensors(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _wrong(folder: Path) -> str:
    """Say in what a folder is not as it was written; nothing if it is."""
    try:
        record = read_json(folder / RECORD)
        if record.pop("record_sha256") != digest(record):
            return f"{RECORD} was changed after it was written"
        for name, expected in record["sha256"].items():
            if digest_file(folder / name) != expected:
                return f"{name} is cut short or was changed after it was written"
        for path in _tensors(folder):
            if path.name not in record["sha256"]:
                return f"{path.name} was put there later"
            with safe_open(path, "pt"):
                pass
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{RECORD} is cut short or was changed after it was written"
    except SafetensorError as error:
        return f"its tensors cannot be read: {error}"
    return ""


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

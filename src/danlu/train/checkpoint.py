"""Checkpoints: written aside, synced, renamed, and verified before they are believed.

Tensors lie in safetensors, everything else in JSON: loading one runs no code.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from danlu.artifact import digest, digest_file, read_json, sync_entry, sync_tree, write_json

_TENSORS, _RECORD = "state.safetensors", "state.json"


def pack(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], list[Any]]:
    """Flatten model and optimisers into named tensors and plain values.

    Tied tensors are stored once, under their first name.
    """
    tensors = {f"model.{name}": tensor for name, tensor in unique_tensors(model).items()}
    groups = []
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        groups.append(state["param_groups"])
        for index, slots in state["state"].items():
            for slot, value in slots.items():
                if value is not None:
                    key = f"optimizer.{number}.{index}.{slot}"
                    tensors[key] = value if isinstance(value, Tensor) else torch.tensor(value)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, groups


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by name, each once even where two names share it."""
    seen: set[int] = set()
    found = {}
    for name, tensor in _named(model):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return a model's tensors under all their names, as the very objects that it holds."""
    return list(model.state_dict(keep_vars=True).items())


def unpack(
    tensors: dict[str, Tensor],
    groups: list[Any],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    """Put back what :func:`pack` took."""
    weights = {k.removeprefix("model."): t for k, t in tensors.items() if k.startswith("model.")}
    stored = {id(tensor): name for name, tensor in _named(model) if name in weights}
    for name, tensor in _named(model):
        if name not in weights and id(tensor) in stored:  # another name of a tied tensor
            weights[name] = weights[stored[id(tensor)]]
    model.load_state_dict(weights)
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(f"optimizer.{number}."):
                index, slot = key.split(".", 3)[2:]
                state.setdefault(int(index), {})[slot] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": groups[number]})


class Checkpoints:
    """The checkpoints of one training stage.

    Parameters
    ----------
    folder : Path
        Holds ``step-N`` folders, and ``best``.
    keep : int
        How many of the latest are kept, beside the best.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        record: dict[str, Any],
        more: dict[str, Tensor] | None = None,
    ) -> None:
        """Write the state after `step` steps, `more` tensors included; keep the last few."""
        tensors, groups = pack(model, optimizers)
        tensors |= more or {}
        for folder in self._steps():
            if int(folder.name.removeprefix("step-")) > step:
                shutil.rmtree(folder)  # damaged: training would have gone on from it
        self._write(self.folder / f"step-{step:08d}", tensors, {**record, "groups": groups})
        for old in self._steps()[: -self.keep]:
            shutil.rmtree(old)

    def save_best(self, model: nn.Module, record: dict[str, Any]) -> None:
        """Write the weights that have scored best so far."""
        tensors, _ = pack(model, [])
        self._write(self.folder / "best", tensors, record)

    def _write(self, final: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
        for left in self.folder.glob(".writing-*"):
            shutil.rmtree(left)  # by a process that was killed
        aside = final.with_name(f".writing-{final.name}")
        aside.mkdir()
        save_file(tensors, aside / _TENSORS)
        record = {**record, "sha256": digest_file(aside / _TENSORS)}
        write_json(aside / _RECORD, {**record, "record_sha256": digest(record)})
        sync_tree(aside)
        if final.exists():
            # A rename onto a folder is refused; the old one steps aside for a moment.
            retired = final.with_name(f".retired-{final.name}")
            shutil.rmtree(retired, ignore_errors=True)
            final.rename(retired)
            aside.rename(final)
            sync_entry(self.folder)
            shutil.rmtree(retired)
        else:
            aside.rename(final)
            sync_entry(self.folder)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest checkpoint that is whole, or None."""
        for folder in reversed(self._steps()):
            if found := self._read(folder):
                return found
        return None

    def best(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the best weights, if they are whole."""
        return self._read(self.folder / "best") or self._read(self.folder / ".retired-best")

    @staticmethod
    def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        try:
            record = read_json(folder / _RECORD)
            if record.pop("record_sha256") != digest(record):
                return None
            if digest_file(folder / _TENSORS) != record["sha256"]:
                return None
            return load_file(folder / _TENSORS), record
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

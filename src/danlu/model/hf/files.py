"""The files of a checkpoint, read as if they came from an enemy.

Nothing is executed: weights are read from safetensors alone, and everything else is JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from danlu.errors import InputError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_ENDING = ".safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LARGEST_JSON = 64 << 20  # bytes
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.int64)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises
    ------
    InputError
        If there is no such file, or it is too large or not a JSON object.
    """
    if not path.is_file():
        raise InputError(f"the checkpoint has no {path.name}", where=str(path.parent))
    if path.stat().st_size > _LARGEST_JSON:
        raise InputError(f"{path.name} is too large to be what it says", where=str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is not valid JSON: {error}", where=str(path)) from None
    if not isinstance(content, dict):
        raise InputError(f"{path.name} holds no JSON object", where=str(path))
    return content


def refuse_code(content: dict[str, Any], path: Path) -> None:
    """Refuse a file that asks for code of its own to be run.

    Raises
    ------
    InputError
    """
    if content.get("auto_map"):
        raise InputError(
            f"{path.name} has an auto_map: the checkpoint asks to run code of its own, and danlu "
            "runs none",
            where=str(path),
            mend="choose a checkpoint of a family that danlu knows",
        )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold a checkpoint's weights.

    Raises
    ------
    InputError
        If there are none; if there are only pickles; if the index leads out of the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(_index(folder).values()))]
    pickles = sorted(p.name for p in folder.glob("*") if p.suffix.lower() in _PICKLES)
    if pickles:
        raise InputError(
            f"the weights are a pickle, {pickles[0]}, which runs code when it is read; danlu reads "
            "safetensors only",
            where=str(folder),
            mend="get the safetensors of the same checkpoint, or convert it where you trust it",
        )
    raise InputError(f"the checkpoint has neither {WEIGHTS} nor {INDEX}", where=str(folder))


def _index(folder: Path) -> dict[str, str]:
    """Return which file holds which tensor, by the index."""
    path = folder / INDEX
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{INDEX} has no weight_map", where=str(path))
    for tensor, name in names.items():
        plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
        if not plain or not name.endswith(_ENDING):
            raise InputError(
                f"{INDEX} sends {tensor!r} to {name!r}, which is no safetensors file beside it",
                where=str(path),
            )
        if not (folder / name).is_file():
            raise InputError(
                f"the checkpoint lacks {name}, where {tensor!r} should be", where=str(folder)
            )
    return names


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a checkpoint, from one file or from several.

    Raises
    ------
    InputError
        If a file is damaged, the index and the files do not agree, a tensor is of a type that
        holds no weights (quantised ones among them), or holds what is not a finite number.
    """
    found: dict[str, Tensor] = {}
    files = weight_files(folder)
    told = _index(folder) if files[0].name != WEIGHTS else {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except (SafetensorError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise InputError(
                f"{path.name} is damaged, or no safetensors file: {said}",
                where=str(path),
                mend="get it anew",
            ) from None
        wrong = sorted(set(own) ^ {name for name, at in told.items() if at == path.name})
        if told and wrong:
            raise InputError(
                f"{INDEX} and {path.name} disagree about {wrong[0]!r}", where=str(path)
            )
        found |= own
    for name, tensor in found.items():
        if tensor.dtype not in _NUMBERS:
            raise InputError(
                f"{name!r} is of type {str(tensor.dtype).removeprefix('torch.')}; danlu reads "
                "float32, float16 and bfloat16",
                where=str(folder),
                mend="get the checkpoint before it was quantised",
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name!r} holds what is no finite number", where=str(folder))
    return found


def save_tensors(folder: Path, tensors: dict[str, Tensor], shard: int) -> None:
    """Write weights as one file, or as several of about `shard` bytes with their index."""
    shards: list[dict[str, Tensor]] = [{}]
    held = 0
    for name, tensor in tensors.items():
        if shards[-1] and held + tensor.nbytes > shard:
            shards.append({})
            held = 0
        shards[-1][name] = tensor.contiguous()
        held += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, part in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}{_ENDING}"
        save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object as such checkpoints have it."""
    text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")

"""Open models, both ways: checkpoints in the layout of Hugging Face, read and written.

Key tables only: nothing here runs code that comes with a checkpoint, or imports the library
whose layout this is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from danlu.errors import InputError
from danlu.model.backbone import Backbone, BackboneConfig
from danlu.model.heads import Model, TokenHead
from danlu.model.hf import files
from danlu.model.hf.families import FAMILIES, family_for, family_of, supported
from danlu.model.hf.family import Family, HeadKind, Tensors
from danlu.model.hf.files import CONFIG, refuse_code
from danlu.model.hf.settings import Settings

__all__ = [
    "CONFIG",
    "FAMILIES",
    "Checkpoint",
    "Settings",
    "describe",
    "of_model",
    "read",
    "refuse_code",
    "supported",
    "write",
]

_FOR_LABELS = ("classifier.", "score.", "qa_outputs.")
_BUFFERS = (".position_ids", ".inv_freq")  # which hold nothing that was learnt
_NAMED = 6  # of the tensors that are missing or too many
_SHARD = 5 * 10**9  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """A model of an open family.

    Attributes
    ----------
    family : str
        A key of :data:`danlu.model.hf.families.FAMILIES`.
    settings : dict
        Its ``config.json``.
    config : BackboneConfig
    weights : dict of str to Tensor
        Under the names of a :class:`danlu.model.heads.Model`: ``backbone.…`` and ``head.…``,
        in float32.
    head : {"masked", "causal"}, optional
        What its head does; None where it has none that danlu takes over.
    rest : dict of str to Tensor
        Tensors that danlu has no use for, under their own names.
    prefix : str
        What stands before the names of the backbone there.
    dtypes : dict of str to torch.dtype
        Of tensors that are not stored in float32.
    """

    family: str
    settings: dict[str, Any]
    config: BackboneConfig
    weights: Tensors
    head: HeadKind | None = None
    rest: Tensors = field(default_factory=dict)
    prefix: str = ""
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @property
    def left_behind(self) -> list[str]:
        """What danlu has no use for, by module: other heads, poolers."""
        copies = FAMILIES[self.family].copies
        names = (n for n in self.rest if n not in copies and not n.endswith(_BUFFERS))
        return sorted({re.sub(r"\.(weight|bias)$", "", n.removeprefix(self.prefix)) for n in names})

    @property
    def longest(self) -> int | None:
        """Positions that the model was made for; None where nothing says so."""
        if self.config.num_positions:
            return self.config.num_positions - self.config.first_position
        said = self.settings.get("max_position_embeddings")
        return said if isinstance(said, int) else None


def describe(folder: Path) -> tuple[Family, BackboneConfig, dict[str, Any]]:
    """Return what a checkpoint's ``config.json`` says: the family, the backbone, and all of it.

    Raises
    ------
    InputError
        If danlu does not know the family, or the file asks for what danlu cannot compute or
        will not run.
    """
    path = folder / CONFIG
    content = files.read_json(path)
    refuse_code(content, path)
    settings = Settings(content, str(path))
    if content.get("quantization_config"):
        raise InputError(
            "the checkpoint is quantised; danlu reads float32, float16 and bfloat16",
            where=str(path),
        )
    family = family_of(settings)
    return family, family.config(settings), content


def read(folder: Path) -> Checkpoint:
    """Read a checkpoint's configuration and weights.

    Parameters
    ----------
    folder : Path
        With ``config.json``, and ``model.safetensors`` or its shards and their index.

    Raises
    ------
    InputError
        If the family is unknown, a file is damaged or hostile, or tensors are missing, too many
        or of another shape than the configuration says; all are named.
    """
    family, config, settings = describe(folder)
    tensors = {_modern(name): tensor for name, tensor in files.load_tensors(folder).items()}
    prefix = family.prefix if any(name.startswith(family.prefix) for name in tensors) else ""
    dtypes = {
        name: tensor.dtype for name, tensor in tensors.items() if tensor.dtype != torch.float32
    }
    found = _laid_out(config, tensors, prefix, family.unpack, folder)
    layers = {m[1] for name in found if (m := re.search(r"layers?\.(\d+)\.", name))}
    if len(layers) != config.num_layers:
        raise InputError(
            f"config.json says num_hidden_layers {config.num_layers}, and there are {len(layers)}",
            where=str(folder),
        )
    head = _head(family, config, found)
    parts = _parts(family, config, head, prefix)
    others = [re.compile(f"({re.escape(prefix)})?(?:{p})") for p in family.others]
    if family.head and not head:
        others += [re.compile(re.escape(name)) for name in _head_names(family)]
    missing = [name for name in parts if name not in found]
    surplus = [name for name in found if name not in parts]
    rest = {
        n: found[n] for n in surplus if n in family.copies or any(p.fullmatch(n) for p in others)
    }
    _complain(missing, [name for name in surplus if name not in rest], folder)
    weights: Tensors = {}
    for name, own in parts.items():
        rows = sum(shape[0] for shape in own.values())
        wanted = (rows, *next(iter(own.values()))[1:])
        if tuple(found[name].shape) != wanted:
            raise InputError(
                f"{name!r} has the shape {tuple(found[name].shape)}; by config.json it is {wanted}",
                where=str(folder),
            )
        pieces = torch.split(found[name].float(), [shape[0] for shape in own.values()])
        # A piece of a tensor is written as one of its own.
        weights |= {n: p.clone() if len(own) > 1 else p for n, p in zip(own, pieces, strict=True)}
    for name in rest:
        of = family.copies.get(name)
        if of in weights and not torch.equal(rest[name].float(), weights[of]):
            raise InputError(
                f"{name!r} should be the same as {of!r}, and is not",
                where=str(folder),
            )
    return Checkpoint(family.name, settings, config, weights, head, rest, prefix, dtypes)


def _modern(name: str) -> str:
    """Return a name as it is written today: BERT's norms once had a gamma and a beta."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _laid_out(
    config: BackboneConfig,
    tensors: Tensors,
    prefix: str,
    how: Callable[[Tensors, BackboneConfig], Tensors] | None,
    where: Path | None = None,
) -> Tensors:
    """Return the tensors with those of the backbone laid out anew, if the family has a way."""
    if how is None:
        return tensors
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    try:
        changed = {prefix + name: tensor for name, tensor in how(own, config).items()}
    except (InputError, RuntimeError, IndexError) as error:  # of tensors that have other shapes
        raise InputError(str(error), where=str(where or "")) from None
    return changed | {n: t for n, t in tensors.items() if not n.startswith(prefix)}


def _head_names(family: Family) -> list[str]:
    modules = [
        name for name in family.head_names.values() if not name.endswith((".bias", ".weight"))
    ]
    whole = [name for name in family.head_names.values() if name.endswith((".bias", ".weight"))]
    return whole + [f"{name}.{kind}" for name in modules for kind in ("weight", "bias")]


def _head(family: Family, config: BackboneConfig, tensors: Tensors) -> HeadKind | None:
    """Return what the checkpoint's head does, if danlu takes it over."""
    if family.head == "causal" and config.tie_embeddings:
        return "causal"  # the embedding is all of it
    if family.head == "masked" and config.activation not in ("gelu", "geglu"):
        return None  # danlu's bends with the exact GELU
    if family.head is None:
        return None
    own = set(_head_names(family)) - set(family.copies if config.tie_embeddings else ())
    last = family.head_names["weight" if family.head == "causal" else "bias"]
    for_labels = any(name.startswith(_FOR_LABELS) for name in tensors)
    if not own & set(tensors) or (for_labels and last not in tensors):
        return None  # a classifier may share the first layers of a head that fills in
    return family.head


def _parts(
    family: Family, config: BackboneConfig, head: HeadKind | None, prefix: str
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the tensors of a checkpoint, and which of danlu's lie in each, with their shapes."""
    with torch.device("meta"):
        tensors = {f"backbone.{n}": t for n, t in Backbone(config).state_dict().items()}
        if head:
            own = TokenHead(config, head == "masked").state_dict()
            tensors |= {f"head.{n}": t for n, t in own.items()}
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors.items():
        theirs = family.theirs(name)
        theirs = theirs if name.startswith("head.") else prefix + theirs
        parts.setdefault(theirs, {})[name] = tuple(tensor.shape)
    return parts


def _complain(missing: list[str], surplus: list[str], folder: Path) -> None:
    """Refuse a checkpoint that lacks tensors, or has some that its family does not have."""

    def named(names: list[str]) -> str:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        return ", ".join(names[:_NAMED]) + more

    said = [f"lacks {named(missing)}"] if missing else []
    said += [f"has {named(surplus)}, which its family does not have"] if surplus else []
    if said:
        raise InputError(
            f"the checkpoint {'; and it '.join(said)}",
            where=str(folder),
            mend="config.json and the weights may be of different models",
        )


def of_model(model: Model, max_length: int = 2048) -> Checkpoint:
    """Return a model of danlu's own as a checkpoint of the first family that computes the same.

    Parameters
    ----------
    model : Model
        Over a Transformer. A head that no family has is left out.
    max_length : int
        The longest document that it was trained on (positions).

    Raises
    ------
    InputError
        If no family computes what its backbone computes.
    """
    if not isinstance(model.backbone, Backbone):
        raise InputError("only a Transformer has a counterpart among the open families")
    config = model.backbone.config
    family = family_for(config)
    head: HeadKind | None = None
    weights = {f"backbone.{n}": t.detach() for n, t in model.backbone.state_dict().items()}
    if isinstance(model.head, TokenHead):
        kind: HeadKind = "causal" if model.head.bias is None else "masked"
        if family.head == kind:
            head = kind
            weights |= {f"head.{n}": t.detach() for n, t in model.head.state_dict().items()}
    settings = {
        "max_position_embeddings": max_length,
        **family.settings(config),
        "model_type": family.name,
        "architectures": [family.architectures[bool(head)]],
        "torch_dtype": "float32",
    }
    prefix = family.prefix if head else ""
    return Checkpoint(family.name, settings, config, weights, head, prefix=prefix)


def write(folder: Path, checkpoint: Checkpoint, shard: int = _SHARD) -> None:
    """Write a checkpoint, so that what :func:`read` read comes out as it was, to the bit.

    Parameters
    ----------
    folder : Path
        Receives ``config.json`` and the weights, in files of at most `shard` bytes.
    checkpoint : Checkpoint
    shard : int
        Bytes; a single tensor may be larger.
    """
    family, config, weights = FAMILIES[checkpoint.family], checkpoint.config, checkpoint.weights
    parts = _parts(family, config, checkpoint.head, checkpoint.prefix)
    tensors = {
        name: torch.cat([weights[n] for n in own]) if len(own) > 1 else weights[next(iter(own))]
        for name, own in parts.items()
    }
    tensors = _laid_out(config, tensors, checkpoint.prefix, family.pack)
    copies = {
        name: weights[of].clone()
        for name, of in family.copies.items()
        if name in checkpoint.rest and of in weights
    }
    tensors |= checkpoint.rest | copies
    stored = {
        name: tensor.to(checkpoint.dtypes.get(name, tensor.dtype))
        for name, tensor in tensors.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    files.save_tensors(folder, stored, shard)
    files.write_json(folder / CONFIG, checkpoint.settings)

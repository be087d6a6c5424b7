"""What a family of open models is to danlu, and what families have in common.

A family is two functions between its ``config.json`` and a :class:`BackboneConfig`, and a table
of names. In a table ``{n}`` is a layer's number; where several of danlu's parts have the same
name there, they lie in one tensor, one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from danlu.model.backbone import BackboneConfig
from danlu.model.hf.settings import Settings

HeadKind = Literal["masked", "causal"]
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes
    ----------
    name : str
        Its ``model_type``.
    known_as : str
        The models of it that people know.
    read : callable of Settings to dict
        Returns the fields of a :class:`BackboneConfig`.
    settings : callable of BackboneConfig to dict
        Returns what `read` reads.
    names : dict of str to str
        danlu's parts of a backbone, and what the family calls them.
    prefix : str
        Stands before these names in a checkpoint that has a head.
    architectures : tuple of str
        Of the bare model, and with the head.
    head : str, optional
        What the head does that danlu takes over.
    head_names : dict of str to str
        As `names`, for the head; no prefix stands before them.
    copies : dict of str to str
        Tensors that may be stored twice, and which of danlu's they are copies of.
    others : tuple of str
        Regular expressions of tensors that danlu has no use for; kept, and written again.
    unpack, pack : callable, optional
        Where no table of names will do: lay a backbone's tensors out as `names` has it, and as
        the family has it.
    """

    name: str
    known_as: str
    read: Callable[[Settings], dict[str, Any]]
    settings: Callable[[BackboneConfig], dict[str, Any]]
    names: dict[str, str]
    prefix: str
    architectures: tuple[str, str]
    head: HeadKind | None = None
    head_names: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    unpack: Callable[[Tensors, BackboneConfig], Tensors] | None = None
    pack: Callable[[Tensors, BackboneConfig], Tensors] | None = None

    def config(self, settings: Settings) -> BackboneConfig:
        """Return the backbone that a ``config.json`` describes.

        Raises
        ------
        InputError
            If it says what danlu cannot compute.
        """
        try:
            return BackboneConfig(**self.read(settings))
        except ValueError as error:
            raise settings.wrong(f"this describes no {self.name}: {error}") from None

    def theirs(self, name: str) -> str:
        """Return what the family calls one of danlu's parameters, without a prefix."""
        place, _, own = name.partition(".")
        table = self.head_names if place == "head" else self.names
        number = re.match(r"layers\.(\d+)\.", own)
        general = re.sub(r"^layers\.\d+\.", "layers.{n}.", own)
        if general in table:
            return table[general]
        module, _, kind = general.rpartition(".")
        return table[module].replace("{n}", number[1] if number else "") + f".{kind}"


ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
GATES = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
BIASES = ("qkv_bias", "output_bias", "hidden_bias")


def written(table: dict[str, str], activation: str) -> str:
    """Return the first name that a table has for an activation."""
    return next((name for name, own in table.items() if own == activation), activation)


def sizes(settings: Settings) -> dict[str, Any]:
    """Return the sizes that all families call alike."""
    dim, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    kv_heads = settings.size("num_key_value_heads", heads)
    if dim % heads and settings.given("head_dim") is None:
        raise settings.wrong(f"hidden_size ({dim}) is no multiple of num_attention_heads ({heads})")
    return {
        "num_layers": settings.size("num_hidden_layers"),
        "dim": dim,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": settings.size("head_dim", max(1, dim // heads)),
        "hidden_dim": settings.size("intermediate_size"),
    }


def sizes_of(config: BackboneConfig) -> dict[str, Any]:
    """Return what :func:`sizes` reads of every family."""
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden_dim,
    }


def layers(names: dict[str, str], theirs: str) -> dict[str, str]:
    """Return a layer's table for all layers, which stand under `theirs` there."""
    return {f"layers.{{n}}.{own}": f"{theirs}.{{n}}.{name}" for own, name in names.items()}

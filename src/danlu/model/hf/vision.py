"""ViT (Dosovitskiy et al., 2021): an encoder of patches, behind a class token."""

from __future__ import annotations

from typing import Any

import torch

from danlu.errors import InputError
from danlu.model.backbone import BackboneConfig
from danlu.model.hf.family import ACTIVATIONS, Family, Tensors, layers, sizes, sizes_of, written
from danlu.model.hf.settings import Settings


def _read(settings: Settings) -> dict[str, Any]:
    image, patch = (
        settings.size(key, usual) for key, usual in (("image_size", 224), ("patch_size", 16))
    )
    channels = settings.size("num_channels", 3)
    if image % patch:
        raise settings.wrong(f"image_size ({image}) is no multiple of patch_size ({patch})")
    bias = settings.flag("qkv_bias", True)
    return {
        **sizes(settings),
        "vocab_size": 2,  # the class token, and a patch
        "activation": settings.choice("hidden_act", ACTIVATIONS, "gelu"),
        "norm": "layer",
        "norm_epsilon": settings.number("layer_norm_eps", 1e-12),
        "qkv_bias": bias,
        "output_bias": True,
        "hidden_bias": True,
        "num_positions": 1 + (image // patch) ** 2,
        "value_dims": patch * patch * channels,
        "value_ids": 1,
    }


def _settings(config: BackboneConfig) -> dict[str, Any]:
    channels = next((c for c in (3, 1) if _root(config.value_dims / c)), 0)
    patch = _root(config.value_dims / channels) if channels else 0
    return {
        **sizes_of(config),
        "hidden_act": written(ACTIVATIONS, config.activation),
        "layer_norm_eps": config.norm_epsilon,
        "qkv_bias": config.qkv_bias,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * _root(config.num_positions - 1),
    }


def _root(square: float) -> int:
    """Return the whole square root, or 0 if there is none."""
    root = round(max(0.0, square) ** 0.5)
    return root if root * root == square else 0


_VIT_LAYER = {
    "attention_norm": "layernorm_before",
    **{
        f"attention.{own}_proj": f"attention.attention.{theirs}"
        for own, theirs in (("q", "query"), ("k", "key"), ("v", "value"))
    },
    "attention.o_proj": "attention.output.dense",
    "feed_forward_norm": "layernorm_after",
    "feed_forward.up_proj": "intermediate.dense",
    "feed_forward.down_proj": "output.dense",
}


_CLASS, _PLACES = "embeddings.cls_token", "embeddings.position_embeddings"
_PATCHES = "embeddings.patch_embeddings.projection"


def _unpack(tensors: Tensors, config: BackboneConfig) -> Tensors:
    """Make a table of two ids, the class token and "a patch", out of a vector and a bias.

    A convolution whose steps are as wide as its filters is a matrix over whole patches; danlu's
    have the channels of a pixel side by side.
    """
    found = dict(tensors)
    taken = [_CLASS, _PLACES, f"{_PATCHES}.weight", f"{_PATCHES}.bias"]
    if missing := [name for name in taken if name not in found]:
        raise InputError(f"the checkpoint lacks {', '.join(missing)}")
    token, places, filters, bias = (found.pop(name) for name in taken)
    if filters.ndim != 4 or filters[0].numel() != config.value_dims:
        raise InputError(f"{_PATCHES}.weight has the shape {tuple(filters.shape)}")
    found["embeddings.tokens.weight"] = torch.stack([token.flatten(), bias.flatten()])
    found["embeddings.positions.weight"] = places.flatten(0, -2)
    found["embeddings.patches.weight"] = filters.permute(2, 3, 1, 0).flatten(0, 2)[None]
    return found


def _pack(tensors: Tensors, config: BackboneConfig) -> Tensors:
    """Undo :func:`_unpack`."""
    found, settings = dict(tensors), _settings(config)
    size, channels = settings["patch_size"], settings["num_channels"]
    token, bias = found.pop("embeddings.tokens.weight")
    filters = found.pop("embeddings.patches.weight")[0].reshape(size, size, channels, -1)
    found[_CLASS], found[f"{_PATCHES}.bias"] = token[None, None], bias
    found[_PLACES] = found.pop("embeddings.positions.weight")[None]
    found[f"{_PATCHES}.weight"] = filters.permute(3, 2, 0, 1)
    return found


VIT = Family(
    "vit", "ViT", _read, _settings,
    {
        "embedding": "embeddings.tokens",
        "position_embedding": "embeddings.positions",
        "values": "embeddings.patches",
        **layers(_VIT_LAYER, "encoder.layer"),
        "norm": "layernorm",
    },
    "vit.", ("ViTModel", "ViTForImageClassification"),
    others=(
        r"pooler\.dense\.(weight|bias)", r"embeddings\.mask_token", r"classifier\..*",
        r"decoder\..*",
    ),
    unpack=_unpack, pack=_pack,
)  # fmt: skip

"""Models of llama.cpp: a GGUF file, taken apart into the layout of Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.errors import InputError
from danlu.model.hf.files import CONFIG, save_tensors, write_json

ENDING = ".gguf"
_MODULES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_NUMBERS = {
    "vocab_size": "vocab_size", "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count", "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
    "max_position_embeddings": "context_length", "head_dim": "attention.key_length",
}  # fmt: skip
_SHARD = 5 * 10**9  # bytes


def unpack(path: Path, folder: Path) -> dict[str, Any]:
    """Write a Llama's ``config.json`` and weights, in float32, as its GGUF file has them.

    Quantised weights become the numbers that they stand for; what was lost when they were
    quantised stays lost.

    Parameters
    ----------
    path : Path
    folder : Path
        Receives the checkpoint, for :func:`danlu.model.hf.read` to look at as at any other.

    Returns
    -------
    dict
        The file's own fields of the tokenizer (``tokenizer.ggml.…``).

    Raises
    ------
    InputError
        If it is damaged, or of another architecture than Llama's.
    """
    try:
        import gguf
    except ImportError:
        raise InputError(
            "reading GGUF needs the package gguf", where=str(path), mend="pip install danlu[gguf]"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            tensor.name: torch.from_numpy(
                np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
            )
            for tensor in reader.tensors
        }
    except Exception as error:  # the library checks little, and raises whatever comes of it
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path.name} is damaged, or no GGUF: {said}", where=str(path)) from None
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise InputError(
            f"the GGUF is of the architecture {architecture!r}; danlu reads llama", where=str(path)
        )
    given = {key: fields.get(f"llama.{name}") for key, name in _NUMBERS.items()}
    settings = {key: value for key, value in given.items() if value is not None}
    if scaled := sorted(name for name in fields if name.startswith("llama.rope.scaling")):
        raise InputError(f"the GGUF scales its positions: {scaled[0]}", where=str(path))
    settings |= {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    heads = {"attn_q": settings.get("num_attention_heads")}
    heads["attn_k"] = settings.get("num_key_value_heads", heads["attn_q"])
    write_json(folder / CONFIG, settings)
    try:
        found = {_theirs(name): _turned(name, tensor, heads) for name, tensor in tensors.items()}
    except (RuntimeError, TypeError) as error:
        what = f"the GGUF's tensors are not a Llama's: {error}"
        raise InputError(what, where=str(path)) from None
    save_tensors(folder, found, _SHARD)
    return {k: v for k, v in fields.items() if k.startswith("tokenizer.")}


def _theirs(name: str) -> str:
    """Return what Hugging Face calls a tensor of a GGUF, if it has one; or its name there."""
    block, _, rest = name.partition(".")
    number, _, part = rest.partition(".")
    module, _, kind = part.rpartition(".")
    if block == "blk" and module in _MODULES:
        return f"model.layers.{number}.{_MODULES[module]}.{kind}"
    return _WHOLE.get(name, name)


def _turned(name: str, tensor: Tensor, heads: dict[str, Any]) -> Tensor:
    """Put the rows of queries and keys back in the order of halves.

    llama.cpp rotates neighbouring pairs of coordinates, so its converter lays each head's two
    halves one row of this and one of that.
    """
    module = name.split(".")[-2]
    if module not in heads:
        return tensor
    pairs = tensor.reshape(heads[module], -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)

"""Decoders: Llama, and what others change of it."""

from __future__ import annotations

from typing import Any

from danlu.model.backbone import BackboneConfig
from danlu.model.hf.family import GATES, Family, layers, sizes, sizes_of, written
from danlu.model.hf.settings import Settings, rotary, rotary_settings


def _decoder(settings: Settings) -> dict[str, Any]:
    return {
        **sizes(settings),
        "vocab_size": settings.size("vocab_size"),
        "activation": settings.choice("hidden_act", GATES, "silu"),
        "causal": True,
        "norm_epsilon": settings.number("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.flag("tie_word_embeddings", False),
        **rotary(settings),
    }


def _llama(settings: Settings) -> dict[str, Any]:
    attention = settings.flag("attention_bias", False)
    return {
        **_decoder(settings),
        "qkv_bias": attention,
        "output_bias": attention,
        "hidden_bias": settings.flag("mlp_bias", False),
    }


def _windowed(settings: Settings, first: int, used: bool) -> dict[str, Any]:
    """Return the layers from `first` on as those that see no further than the window."""
    number = settings.size("num_hidden_layers")
    usual = tuple(range(min(first, number), min(number, 1 << 12))) if used else ()
    local = settings.local_layers(number, usual)
    # The window counts the position itself.
    window = settings.size("sliding_window", 4096, least=2) - 1 if local else 0
    return {"local_layers": local, "window": window}


def _mistral(settings: Settings) -> dict[str, Any]:
    windows = _windowed(settings, 0, settings.given("sliding_window") is not None)
    return {**_decoder(settings), **windows}


def _qwen2(settings: Settings) -> dict[str, Any]:
    used = settings.flag("use_sliding_window", False)
    windows = _windowed(settings, settings.size("max_window_layers", 28, least=0), used)
    return {**_decoder(settings), **windows, "qkv_bias": True}


def _qwen3(settings: Settings) -> dict[str, Any]:
    attention = settings.flag("attention_bias", False)
    sizes = {"head_dim": settings.size("head_dim", 128)}
    biases = {"qkv_bias": attention, "output_bias": attention}
    return {**_qwen2(settings), **sizes, **biases, "qk_norm": True}


def _decoder_settings(config: BackboneConfig) -> dict[str, Any]:
    found = {
        **sizes_of(config),
        "vocab_size": config.vocab_size,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": written(GATES, config.activation),
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.qkv_bias and config.output_bias,
        "mlp_bias": config.hidden_bias,
        **rotary_settings(config.rope_theta, config.rope_scaling),
        "sliding_window": config.window + 1 if config.window else None,
    }
    if config.window and len(config.local_layers) < config.num_layers:
        types = ["full_attention", "sliding_attention"]
        found["layer_types"] = [types[n in config.local_layers] for n in range(config.num_layers)]
    return found


def _qwen_settings(config: BackboneConfig) -> dict[str, Any]:
    first = min(config.local_layers, default=config.num_layers)
    windows = {"use_sliding_window": bool(config.window), "max_window_layers": first}
    return _decoder_settings(config) | windows


_DECODER_LAYER = {
    "attention_norm": "input_layernorm",
    **{f"attention.{part}_proj": f"self_attn.{part}_proj" for part in "qkvo"},
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward_norm": "post_attention_layernorm",
    **{f"feed_forward.{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}
_DECODER_NAMES = {"embedding": "embed_tokens", **layers(_DECODER_LAYER, "layers"), "norm": "norm"}


def _like_llama(
    name: str, known_as: str, architecture: str, read: Any, settings: Any = _decoder_settings
) -> Family:
    return Family(
        name, known_as, read, settings, _DECODER_NAMES, "model.",
        (f"{architecture}Model", f"{architecture}ForCausalLM"), "causal",
        {"weight": "lm_head.weight"}, {"lm_head.weight": "backbone.embedding.weight"},
        (r".*rotary_emb\.inv_freq", r"score\.weight", r"(classifier|qa_outputs)\..*"),
    )  # fmt: skip


LLAMA = _like_llama("llama", "Llama 2 and 3, SmolLM", "Llama", _llama)
MISTRAL = _like_llama("mistral", "Mistral", "Mistral", _mistral)
QWEN2 = _like_llama("qwen2", "Qwen2, Qwen2.5", "Qwen2", _qwen2, _qwen_settings)
QWEN3 = _like_llama("qwen3", "Qwen3", "Qwen3", _qwen3, _qwen_settings)

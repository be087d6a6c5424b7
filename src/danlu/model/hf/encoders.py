"""Encoders: BERT, those that only count positions differently, and ModernBERT."""

from __future__ import annotations

from typing import Any

from danlu.model.backbone import BackboneConfig
from danlu.model.hf.family import (
    ACTIVATIONS,
    BIASES,
    GATES,
    Family,
    layers,
    sizes,
    sizes_of,
    written,
)
from danlu.model.hf.settings import Settings


def _bert(settings: Settings) -> dict[str, Any]:
    settings.must_be("position_embedding_type", "absolute")
    settings.must_be("is_decoder", False)
    settings.must_be("tie_word_embeddings", True)
    return {
        **sizes(settings),
        "vocab_size": settings.size("vocab_size"),
        "num_kv_heads": settings.size("num_attention_heads"),
        "activation": settings.choice("hidden_act", ACTIVATIONS, "gelu"),
        "norm": "layer",
        "norm_place": "post",
        "norm_epsilon": settings.number("layer_norm_eps", 1e-12),
        "embedding_norm": True,
        **dict.fromkeys((*BIASES, "head_bias"), True),
        "num_positions": settings.size("max_position_embeddings", 512),
        "num_types": settings.size("type_vocab_size", 2),
    }


def _bert_settings(config: BackboneConfig) -> dict[str, Any]:
    return {
        **sizes_of(config),
        "vocab_size": config.vocab_size,
        "hidden_act": written(ACTIVATIONS, config.activation),
        "layer_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.num_positions,
        "type_vocab_size": config.num_types,
        "position_embedding_type": "absolute",
        "pad_token_id": max(0, config.first_position - 1),
    }


def _roberta(settings: Settings) -> dict[str, Any]:
    # Its positions are counted from behind the padding's id, which has a row of its own.
    first = settings.size("pad_token_id", 1, least=0) + 1
    return {**_bert(settings), "first_position": first}


_BERT_LAYER = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up_proj": "intermediate.dense",
    "feed_forward.down_proj": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


_BERT_NAMES = {
    "embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    **layers(_BERT_LAYER, "encoder.layer"),
}
_BERT_OTHERS = (
    r"pooler\.dense\.(weight|bias)", r"embeddings\.position_ids", r"cls\.seq_relationship\..*",
    r"(classifier|qa_outputs)\..*",
)  # fmt: skip


def _like_roberta(name: str, known_as: str, architecture: str) -> Family:
    return Family(
        name, known_as, _roberta, _bert_settings, _BERT_NAMES, "roberta.",
        (f"{architecture}Model", f"{architecture}ForMaskedLM"), "masked",
        {
            "transform.0": "lm_head.dense", "transform.2": "lm_head.layer_norm",
            "bias": "lm_head.bias",
        },
        {
            "lm_head.decoder.weight": "backbone.embedding.weight",
            "lm_head.decoder.bias": "head.bias",
        },
        _BERT_OTHERS,
    )  # fmt: skip


# ModernBERT (Warner et al., 2024).


def _modernbert(settings: Settings) -> dict[str, Any]:
    settings.must_be("decoder_bias", True)
    settings.must_be("classifier_activation", "gelu")
    number, every = (
        settings.size("num_hidden_layers"),
        settings.size("global_attn_every_n_layers", 3),
    )
    local = settings.local_layers(
        number, tuple(n for n in range(min(number, 1 << 12)) if n % every)
    )
    whole, near = (settings.number(f"{name}_rope_theta", theta) for name, theta in _THETAS)
    both = settings.part("rope_parameters")
    for kind in ("full_attention", "sliding_attention"):
        both.part(kind).must_be("rope_type", "default")
    attention = settings.flag("attention_bias", False)
    return {
        **sizes(settings),
        "vocab_size": settings.size("vocab_size"),
        "activation": settings.choice("hidden_activation", GATES, "gelu"),
        "norm": "layer",
        "norm_bias": settings.flag("norm_bias", False),
        "norm_epsilon": settings.number("norm_eps", 1e-5),
        "embedding_norm": True,
        "qkv_bias": attention,
        "output_bias": attention,
        "hidden_bias": settings.flag("mlp_bias", False),
        "head_bias": settings.flag("classifier_bias", False),
        "rope_theta": both.part("full_attention").number("rope_theta", whole),
        "tie_embeddings": settings.flag("tie_word_embeddings", True),
        "local_layers": local,
        "window": settings.size("local_attention", 128, least=2) // 2 if local else 0,
        "local_rope_theta": (
            both.part("sliding_attention").number("rope_theta", near) if local else None
        ),
    }


_THETAS = (("global", 160_000.0), ("local", 10_000.0))


def _modernbert_settings(config: BackboneConfig) -> dict[str, Any]:
    types = ["full_attention", "sliding_attention"]
    return {
        **sizes_of(config),
        "vocab_size": config.vocab_size,
        "hidden_activation": written(GATES, config.activation),
        "norm_bias": config.norm_bias,
        "norm_eps": config.norm_epsilon,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.hidden_bias,
        "classifier_bias": config.head_bias,
        "decoder_bias": True,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_types": [types[n in config.local_layers] for n in range(config.num_layers)],
        "local_attention": 2 * config.window or 128,
        "global_rope_theta": config.rope_theta,
        "local_rope_theta": config.local_rope_theta or config.rope_theta,
    }


_MODERNBERT_LAYER = {
    "attention_norm": "attn_norm",
    **{f"attention.{part}_proj": "attn.Wqkv" for part in "qkv"},
    "attention.o_proj": "attn.Wo",
    "feed_forward_norm": "mlp_norm",
    "feed_forward.gate_proj": "mlp.Wi",
    "feed_forward.up_proj": "mlp.Wi",
    "feed_forward.down_proj": "mlp.Wo",
}


BERT = Family(
    "bert", "BERT, MiniLM, BGE, E5, GTE", _bert, _bert_settings, _BERT_NAMES, "bert.",
    ("BertModel", "BertForMaskedLM"), "masked",
    {
        "transform.0": "cls.predictions.transform.dense",
        "transform.2": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
    {
        "cls.predictions.decoder.weight": "backbone.embedding.weight",
        "cls.predictions.decoder.bias": "head.bias",
    },
    _BERT_OTHERS,
)  # fmt: skip

ROBERTA = _like_roberta("roberta", "RoBERTa", "Roberta")
XLM_ROBERTA = _like_roberta("xlm-roberta", "XLM-R, BGE-M3, multilingual E5", "XLMRoberta")
MODERNBERT = Family(
    "modernbert", "ModernBERT", _modernbert, _modernbert_settings,
    {
        "embedding": "embeddings.tok_embeddings",
        "embedding_norm": "embeddings.norm",
        **layers(_MODERNBERT_LAYER, "layers"),
        "norm": "final_norm",
    },
    "model.", ("ModernBertModel", "ModernBertForMaskedLM"), "masked",
    {
        "transform.0": "head.dense", "transform.2": "head.norm",
        "bias": "decoder.bias", "weight": "decoder.weight",
    },
    {"decoder.weight": "backbone.embedding.weight"},
    (r"classifier\..*",),
)  # fmt: skip

"""Tiny models of every open family with random weights, made by the reference library."""

from __future__ import annotations

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the reference library's own dependencies
    import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCAB = 50
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "vocab_size": VOCAB,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def _rotary(**parameters):
    return {"rope_parameters": {"rope_theta": 500.0, **parameters}, "max_position_embeddings": 64}


# What of the reference library, and how it is configured; a name for each case.
CASES = {
    "bert": ("Bert", "ForMaskedLM", {}),
    "bert with a next-sentence head": ("Bert", "ForPreTraining", {}),
    "minilm": ("Bert", "Model", {"num_attention_heads": 4, "max_position_embeddings": 40}),
    "bert with tanh gelu": ("Bert", "Model", {"hidden_act": "gelu_new", "type_vocab_size": 1}),
    "roberta": ("Roberta", "ForMaskedLM", {"max_position_embeddings": 40}),
    "roberta classifier": ("Roberta", "ForSequenceClassification", {}),
    "xlm-roberta": ("XLMRoberta", "ForMaskedLM", {"type_vocab_size": 1}),
    "modernbert": ("ModernBert", "ForMaskedLM", {"local_attention": 8, "pad_token_id": 0}),
    "modernbert with biases": (
        "ModernBert", "ForMaskedLM",
        {
            "local_attention": 8, "pad_token_id": 0, "norm_bias": True, "attention_bias": True,
            "mlp_bias": True, "classifier_bias": True,
        },
    ),
    "modernbert classifier": (
        "ModernBert", "ForSequenceClassification", {"local_attention": 8, "pad_token_id": 0},
    ),
    "llama": ("Llama", "ForCausalLM", _rotary(rope_type="default")),
    "llama tied and grouped": (
        "Llama", "ForCausalLM",
        {"tie_word_embeddings": True, "num_key_value_heads": 1, **_rotary(rope_type="default")},
    ),
    "llama with biases": (
        "Llama", "ForCausalLM", {"attention_bias": True, "mlp_bias": True, "head_dim": 12},
    ),
    "llama bare": ("Llama", "Model", {}),
    "llama linear": ("Llama", "ForCausalLM", _rotary(rope_type="linear", factor=3.0)),
    "llama dynamic": (
        "Llama", "ForCausalLM",
        _rotary(rope_type="dynamic", factor=2.0) | {"max_position_embeddings": 16},
    ),
    "llama 3.1": ("Llama", "ForCausalLM", _rotary(**LLAMA3)),
    "llama yarn": ("Llama", "ForCausalLM", _rotary(**YARN)),
    "llama yarn with scales": (
        "Llama", "ForCausalLM",
        _rotary(**YARN, mscale=1.2, mscale_all_dim=0.8, beta_fast=16.0, beta_slow=2.0),
    ),
    "mistral": ("Mistral", "ForCausalLM", {"sliding_window": 6, "num_key_value_heads": 1}),
    "mistral without a window": (
        "Mistral", "ForCausalLM", {"sliding_window": None, "num_key_value_heads": 2},
    ),
    "qwen2": ("Qwen2", "ForCausalLM", {"num_key_value_heads": 1, **_rotary(**YARN)}),
    "qwen2 with a window": (
        "Qwen2", "ForCausalLM",
        {
            "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
            "num_key_value_heads": 2,
        },
    ),
    "qwen3": (
        "Qwen3", "ForCausalLM",
        {"num_key_value_heads": 1, "head_dim": 24, "tie_word_embeddings": True},
    ),
    "vit": ("ViT", "Model", {"image_size": 24, "patch_size": 4}),
    "vit classifier, grey": (
        "ViT", "ForImageClassification",
        {"image_size": 20, "patch_size": 4, "num_channels": 1, "qkv_bias": False},
    ),
}  # fmt: skip
OF_TEXTS = [name for name, case in CASES.items() if case[0] != "ViT"]


def make(name: str, seed: int = 0, **others: object):
    """Return a model of the reference library whose every number matters."""
    family, kind, settings = CASES[name]
    sizes = {k: v for k, v in SIZES.items() if family != "ViT" or k != "vocab_size"}
    config = getattr(transformers, f"{family}Config")(**(sizes | settings | others))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}{kind}")._from_config(
        config, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def again(folder, name: str):
    """Return the model that the reference library reads from a folder."""
    family, kind, _ = CASES[name]
    model = getattr(transformers, f"{family}{kind}").from_pretrained(
        folder, attn_implementation="eager", local_files_only=True
    )
    return model.eval()

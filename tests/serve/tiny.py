"""A released model that no one had to train: random weights, a real tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from danlu.artifact import write_json
from danlu.data import text
from danlu.model import heads
from danlu.model.backbone import BackboneConfig
from danlu.train.checkpoint import unique_tensors

MAX_LENGTH, MAX_CHARS = 48, 500
CLASSES = ["negative", "neutral", "positive"]
_ENGLISH = ["room", "staff", "breakfast", "view", "bed"]
_CHINESE = ["房间", "服务", "早餐", "风景", "床"]
SENTENCES = [
    *(f"the {thing} was {how}" for thing in _ENGLISH for how in ("clean", "dirty", "great", "bad")),
    *(f"{thing}{how}" for thing in _CHINESE for how in ("很干净", "太差了", "非常好", "不行")),
    *(f"write to [EMAIL] about the {thing}" for thing in _ENGLISH),
    *(f"{thing}请打电话[PHONE]" for thing in _CHINESE),
]
# From one letter to far more than the model sees.
MIXED = [
    "a",
    "床",
    "the room was clean",
    "房间很干净，早餐非常好，下次还来",
    "the staff was great but the bed was bad " * 3,
    "风景非常好 " * 9,
    "breakfast " * 40,
    "😀🏨",
    *(f"{sentence} {number}" for number, sentence in enumerate(SENTENCES[::2])),
]


def build(folder: Path, kind: heads.HeadKind = "classify", **changes: Any) -> Path:
    """Write a model folder as a run releases it; `changes` go into its configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = text.train(SENTENCES, 320)
    tokenizer.save(str(folder / text.FILE))
    torch.manual_seed(11)
    config = BackboneConfig(
        vocab_size=tokenizer.get_vocab_size(), num_layers=1, dim=16, num_heads=2,
        num_kv_heads=1, head_dim=8, hidden_dim=32,
    )  # fmt: skip
    classes = [] if kind in ("regress", "masked") else CLASSES
    model = heads.build(config, kind, num_outputs=len(classes) or 1)
    with torch.no_grad():
        model.backbone.embedding.weight.normal_(std=0.7)
        if isinstance(model.head, heads.DocumentHead):
            model.head.output.weight.normal_(std=1.5)
            model.head.output.bias.normal_(std=0.2)
    tensors = {name: value.contiguous() for name, value in unique_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    content = {
        "model_type": "danlu",
        "architectures": ["DanluModel"],
        "name": "tiny",
        "head": kind,
        "classes": classes,
        "scale": {"mean": 3.0, "std": 2.0} if kind == "regress" else None,
        "backbone": config.to_dict(),
        "modality": "text",
        "max_length": MAX_LENGTH,
        "unicode": "NFC",
        "max_chars": MAX_CHARS,
        "redact": ["emails", "phones"],
        "torch_dtype": "float32",
    }
    write_json(folder / "config.json", content | changes)
    return folder

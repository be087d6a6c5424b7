"""Small made-up documents and models, and the two ways of computing with them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from danlu.batch import Batch
from danlu.data.modality import BEGIN_ID, NUM_SPECIAL
from danlu.data.text import Documents
from danlu.model import heads, native
from danlu.model.backbone import BackboneConfig

VOCAB = 1000
FIELDS = ("ids_BT", "position_BT", "document_BT", "target_BT", "weight_BT", "label", "row_N")


def made_up(sizes: Iterable[int], seed: int = 0, vocab_size: int = VOCAB) -> Documents:
    """Return documents of the given sizes: ``<bos>``, then random tokens."""
    generator = np.random.default_rng(seed)
    return Documents.of([
        np.array([BEGIN_ID, *generator.integers(NUM_SPECIAL, vocab_size, size - 1)], np.int32)
        for size in sizes
    ])  # fmt: skip


def same(one: list[Batch], other: list[Batch]) -> bool:
    """Whether two lists of batches hold the same, to the bit."""
    for part, other_part in zip(one, other, strict=True):
        for name in FIELDS:
            value, other_value = getattr(part, name), getattr(other_part, name)
            if value is None or other_value is None:
                if value is not other_value:
                    return False
            elif not torch.equal(value, other_value):
                return False
    return True


def config(**others: object) -> BackboneConfig:
    """Return a backbone of two layers whose widths the fast kernels take."""
    fields: dict[str, object] = {
        "vocab_size": 96, "num_layers": 2, "dim": 32, "num_heads": 2, "num_kv_heads": 1,
        "head_dim": 16, "hidden_dim": 48,
    }  # fmt: skip
    return BackboneConfig(**fields | others)  # type: ignore[arg-type]


def model(kind: heads.HeadKind, seed: int = 0, **others: object) -> heads.Model:
    """Return a model whose weights are large enough for every part of it to matter."""
    torch.manual_seed(seed)
    made = heads.build(config(causal=kind == "causal", **others), kind, num_outputs=3)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        else:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return made


def write_table(path: Path, names: Sequence[str], x: Any, y: Any, target: str) -> None:
    """Write a CSV file with a header: a row's cells, and its target behind them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow([*names, target])
        out.writerows([*cells, value] for cells, value in zip(x, y, strict=True))


@contextmanager
def computing(*, with_kernels: bool) -> Iterator[None]:
    """Compute with the fast kernels, or with the plain operations, inside the context."""
    with pytest.MonkeyPatch.context() as patch:
        if with_kernels:
            patch.delenv(native.OFF, raising=False)
        else:
            patch.setenv(native.OFF, "1")
        try:
            native.library.cache_clear()
            native.multiplies_bfloat16.cache_clear()
            yield
        finally:
            patch.undo()
            native.library.cache_clear()
            native.multiplies_bfloat16.cache_clear()

"""The data of every contestant, as corpus.py wrote it: numpy and no more."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100  # the label that every framework's cross-entropy leaves out


def documents(folder: Path, split: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return all ids of a split laid end to end, and where each document begins."""
    ids = np.load(folder / f"{split}.ids.npy", mmap_mode="r")
    return ids, np.load(folder / f"{split}.offsets.npy")


def rows(folder: Path, split: str) -> list[NDArray[np.int32]]:
    """Return each document of a split."""
    ids, offsets = documents(folder, split)
    return [np.asarray(ids[a:b]) for a, b in pairwise(offsets)]


def meta(folder: Path) -> dict[str, Any]:
    """Return what corpus.py noted of a corpus."""
    found: dict[str, Any] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return found


def blocks(folder: Path, split: str, context: int, overlap: int = 0) -> NDArray[np.int64]:
    """Cut a split, its documents laid end to end, into rows of equal length.

    Parameters
    ----------
    folder, split : Path, str
    context : int
        Tokens from the beginning of one row to that of the next.
    overlap : int
        Tokens of the next row that a row also holds: 1 where the caller shifts targets.

    Returns
    -------
    NDArray of int64, shape (n, context + overlap)
    """
    ids, _ = documents(folder, split)
    count = (len(ids) - overlap) // context
    starts = np.arange(count)[:, None] * context
    return np.asarray(ids)[starts + np.arange(context + overlap)].astype(np.int64)


def block_batches(
    table: NDArray[np.int64], batch: int, steps: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Yield `steps` batches of rows, shuffled anew in each epoch."""
    generator = np.random.default_rng(seed)
    per_epoch = len(table) // batch
    if per_epoch == 0:
        raise SystemExit(f"{len(table)} rows do not fill one batch of {batch}")
    order: NDArray[np.int64] = np.empty(0, np.int64)
    for step in range(steps):
        position = step % per_epoch
        if position == 0:
            order = generator.permutation(len(table))
        yield table[order[position * batch : (position + 1) * batch]]


def padded_batches(
    rows_: Sequence[NDArray[np.int32]], tokens: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """Yield rows of like length, padded with 0: ``(numbers, ids_BT, sizes_B)``.

    `tokens` bounds the size of a batch, padding included.
    """
    sizes = np.array([len(row) for row in rows_])
    order = np.argsort(-sizes, kind="stable")
    at = 0
    while at < len(order):
        longest = int(sizes[order[at]])
        chosen = order[at : at + max(1, tokens // longest)]
        ids = np.zeros((len(chosen), longest), np.int64)
        for place, number in enumerate(chosen):
            ids[place, : sizes[number]] = rows_[number]
        yield chosen, ids, sizes[chosen]
        at += len(chosen)


def bits_per_byte(
    folder: Path, nats: Callable[[NDArray[np.int64], NDArray[np.int64]], float]
) -> float:
    """Return the validation split's bits per byte of text.

    Parameters
    ----------
    folder : Path
    nats : callable
        Given ``ids_BT``, one document a row, padded with 0, and ``targets_BT``, the
        token after each position or -100, returns the summed cross-entropy in nats.
    """
    total = 0.0
    for _, ids, sizes in padded_batches(rows(folder, "validation"), tokens=4096):
        targets = np.full_like(ids, IGNORED)
        for row, size in enumerate(sizes):
            targets[row, : size - 1] = ids[row, 1:size]
        total += nats(ids, targets)
    return float(total / math.log(2) / meta(folder)["validation_bytes"])

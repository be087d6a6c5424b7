"""From documents on disk to batches, by a counter instead of a state.

A batch is a pure function of (seed, epoch, position), its random masking
included, so an interrupted run that knows where it was loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.batch import PADDING, Batch
from danlu.data.text import BEGIN_ID, MASK_ID, NUM_SPECIAL, PAD_ID, Documents

_LENGTH_STEP = 16  # few different shapes, so that the kernels prepared for one are found again
_POOL = 50  # batches' worth of documents that are sorted by length together


def collate(
    documents: Sequence[NDArray[np.int32]],
    rows: NDArray[np.int64],
    labels: torch.Tensor | None = None,
) -> Batch:
    """Lay documents out in rows, one in each, padded to a common length.

    Parameters
    ----------
    documents : sequence of NDArray of int32
    rows : NDArray of int64, shape (n,)
        Their rows in the data set.
    labels : Tensor, optional
        Labels of just these documents.
    """
    longest = max(map(len, documents))
    length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    ids = np.full((len(documents), length), PAD_ID, np.int64)
    owner = np.full((len(documents), length), PADDING, np.int64)
    for number, document in enumerate(documents):
        ids[number, : len(document)] = document
        owner[number, : len(document)] = number
    return Batch(
        ids_BT=torch.from_numpy(ids),
        position_BT=torch.arange(length).expand(len(documents), length),
        document_BT=torch.from_numpy(owner),
        num_documents=len(documents),
        label=labels,
        row_N=torch.from_numpy(rows),
    )


def in_order(
    documents: Documents, batch_size: int, labels: torch.Tensor | None = None
) -> Iterator[Batch]:
    """Yield every document once, sorted by length so that little is padded."""
    order = np.argsort(documents.sizes, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        chosen = None if labels is None else labels[torch.from_numpy(rows)]
        yield collate([documents[row] for row in rows], rows, chosen)


def for_masked(batch: Batch, probability: float, vocab_size: int, generator: Any) -> Batch:
    """Hide tokens for the model to fill in (BERT: Devlin et al., 2018).

    Of the chosen tokens 80% become ``<mask>``, 10% a random token and 10% stay;
    all of them are targets. A document always has at least one.
    """
    ids = batch.ids_BT.numpy()
    open_ = (batch.document_BT.numpy() != PADDING) & (ids != BEGIN_ID)
    chosen = (generator.random(ids.shape) < probability) & open_
    owner = batch.document_BT.numpy()
    lucky = np.where(open_, generator.random(ids.shape), -1.0)
    for document in np.setdiff1d(owner[open_], owner[chosen]):  # few: short ones alone
        chosen.flat[np.where(owner == document, lucky, -1.0).argmax()] = True
    fate = generator.random(ids.shape)
    hidden = np.where(chosen & (fate < 0.8), MASK_ID, ids)
    random = generator.integers(NUM_SPECIAL, vocab_size, ids.shape)
    hidden = np.where(chosen & (fate >= 0.9), random, hidden)
    return replace(
        batch,
        ids_BT=torch.from_numpy(hidden),
        target_BT=batch.ids_BT,
        weight_BT=torch.from_numpy(chosen.astype(np.float32)),
    )


def for_causal(batch: Batch) -> Batch:
    """Make each token's target the one after it in the same document."""
    same = batch.document_BT[:, 1:] == batch.document_BT[:, :-1]
    weight = torch.zeros(batch.ids_BT.shape)
    weight[:, :-1] = (same & (batch.document_BT[:, :-1] != PADDING)).float()
    return replace(batch, target_BT=batch.ids_BT.roll(-1, dims=1), weight_BT=weight)


def hide(batch: Batch, probability: float, generator: Any) -> Batch:
    """Hide input tokens at random, so that a classifier cannot lean on a few."""
    ids = batch.ids_BT.numpy()
    chosen = (generator.random(ids.shape) < probability) & (ids >= NUM_SPECIAL)
    return replace(batch, ids_BT=torch.from_numpy(np.where(chosen, MASK_ID, ids)))


@dataclass(frozen=True)
class Loader:
    """Training batches by epoch and position.

    Attributes
    ----------
    documents : Documents
    batch_size : int
        Documents a step of the optimiser sees.
    accumulate : int
        Parts that it sees them in.
    seed : int
    objective : {"masked", "causal", "document"}
        What is to be predicted.
    mask_probability : float
        Share of tokens hidden (masked and document objectives).
    vocab_size : int
    labels : Tensor, optional
        One for each document.
    views : int
        How often each document stands in a batch, each time with other tokens
        hidden; the views follow each other as whole batches.
    """

    documents: Documents
    batch_size: int
    accumulate: int
    seed: int
    objective: str
    mask_probability: float
    vocab_size: int
    labels: torch.Tensor | None = None
    views: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in one pass."""
        return -(-len(self.documents) // self.batch_size)

    @lru_cache(maxsize=2)  # noqa: B019 - a loader lives as long as its stage
    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the rows of each batch: shuffled, of like lengths, shuffled again."""
        generator = np.random.default_rng([self.seed, epoch, 0])
        order = generator.permutation(len(self.documents))
        sizes = self.documents.sizes
        batches = []
        for start in range(0, len(order), _POOL * self.batch_size):
            pool = order[start : start + _POOL * self.batch_size]
            pool = pool[np.argsort(sizes[pool], kind="stable")]
            batches += [pool[i : i + self.batch_size] for i in range(0, len(pool), self.batch_size)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def __hash__(self) -> int:
        return id(self)

    def load(self, epoch: int, position: int) -> list[Batch]:
        """Return the parts of one step's batch."""
        rows = self._order(epoch)[position]
        parts = np.array_split(rows, min(self.accumulate, len(rows)))
        return [
            self._prepare(part, np.random.default_rng([self.seed, epoch, 1 + position, number]))
            for number, part in enumerate(parts)
        ]

    def _prepare(self, rows: NDArray[np.int64], generator: Any) -> Batch:
        rows = np.tile(rows, self.views)
        labels = None if self.labels is None else self.labels[torch.from_numpy(rows)]
        batch = collate([self.documents[row] for row in rows], rows, labels)
        if self.objective == "masked":
            return for_masked(batch, self.mask_probability, self.vocab_size, generator)
        if self.objective == "causal":
            return for_causal(batch)
        return hide(batch, self.mask_probability, generator) if self.mask_probability else batch

"""From documents on disk to batches, by a counter instead of a state.

A batch is a pure function of (seed, epoch, position), its random masking
included, so an interrupted run that knows where it was loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.batch import PADDING, Batch
from danlu.data import modality
from danlu.data.hide import for_causal, for_masked, hide
from danlu.data.mixup import mixup
from danlu.data.modality import PAD_ID, STEP, Spec
from danlu.data.pack import Rows, best_fit
from danlu.data.text import Documents

_SEARCH = 512  # documents looked through for one that makes a batch come out even


def lay(
    rows: Sequence[Sequence[NDArray[np.int32]]],
    length: int,
    numbers: NDArray[np.int64],
    labels: torch.Tensor | None = None,
) -> Batch:
    """Lay documents end to end in rows of one length; positions restart with each.

    Parameters
    ----------
    rows : sequence of sequences of NDArray of int32
        The documents of each row.
    length : int
        Tokens of a row; what is left free is padding.
    numbers : NDArray of int64, shape (n,)
        Rows in the data set of all documents, in the same order.
    labels : Tensor, optional
        Their labels.
    """
    ids = np.full((len(rows), length), PAD_ID, np.int64)
    owner = np.full((len(rows), length), PADDING, np.int64)
    position = np.zeros((len(rows), length), np.int64)
    document = 0
    for row, documents in enumerate(rows):
        start = 0
        for tokens in documents:
            here = slice(start, start + len(tokens))
            ids[row, here] = tokens
            owner[row, here] = document
            position[row, here] = np.arange(len(tokens))
            document, start = document + 1, start + len(tokens)
    return Batch(
        ids_BT=torch.from_numpy(ids),
        position_BT=torch.from_numpy(position),
        document_BT=torch.from_numpy(owner),
        num_documents=document,
        label=labels,
        row_N=torch.from_numpy(numbers),
    )


def in_order(
    documents: modality.Documents, batch_size: int, labels: torch.Tensor | None = None
) -> Iterator[Batch]:
    """Yield every document once, the shortest first."""
    order = np.argsort(documents.sizes, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        chosen = None if labels is None else labels[torch.from_numpy(rows)]
        yield replace(documents.lay(rows), label=chosen)


def _in_parts(
    rows: NDArray[np.int64],
    accumulate: int,
    seed: list[int],
    prepare: Callable[[NDArray[np.int64], Any], Batch],
) -> list[Batch]:
    """Prepare a step's rows in parts, each with a generator of its own."""
    parts = np.array_split(rows, min(accumulate, len(rows)))
    return [
        prepare(part, np.random.default_rng([*seed, number])) for number, part in enumerate(parts)
    ]


@dataclass(frozen=True, eq=False)
class PackedLoader:
    """Batches of full rows, for objectives over tokens.

    Documents are packed once, best-fit; every epoch takes the rows in another order.

    Attributes
    ----------
    documents : Documents
        None longer than `length`.
    rows : int
        Rows that a step of the optimiser sees.
    length : int
        Tokens of a row.
    accumulate : int
        Parts that a step sees them in.
    seed : int
    objective : {"masked", "causal"}
        What is to be predicted.
    mask_probability : float
        Share of tokens hidden, for ``"masked"``.
    spec : Spec
    """

    documents: Documents
    rows: int
    length: int
    accumulate: int
    seed: int
    objective: str
    mask_probability: float
    spec: Spec

    @cached_property
    def packed(self) -> Rows:
        """Which documents share a row; see :func:`danlu.data.pack.best_fit`."""
        return best_fit(self.documents.sizes, self.length)

    @property
    def fill(self) -> float:
        """Share of the rows' tokens that are not padding."""
        return float(self.documents.offsets[-1]) / (len(self.packed) * self.length)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in one pass."""
        return -(-len(self.packed) // self.rows)

    @lru_cache(maxsize=2)  # noqa: B019 - a loader lives as long as its stage
    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.packed))

    def load(self, epoch: int, position: int) -> list[Batch]:
        """Return the parts of one step's batch."""
        rows = self._order(epoch)[position * self.rows : (position + 1) * self.rows]
        return _in_parts(rows, self.accumulate, [self.seed, epoch, 1 + position], self._prepare)

    def _prepare(self, rows: NDArray[np.int64], generator: Any) -> Batch:
        numbers = [self.packed[row] for row in rows]
        tokens = [[self.documents[number] for number in row] for row in numbers]
        batch = lay(tokens, self.length, np.concatenate(numbers))
        if self.objective == "causal":
            return for_causal(batch)
        return for_masked(batch, self.mask_probability, self.spec, generator)


@dataclass(frozen=True, eq=False)
class DocumentLoader:
    """Batches of so many documents, laid end to end, for objectives over documents.

    They serve an objective over positions as well, where documents are not packed: to fill in
    what is hidden, or to foretell what comes next.

    The last document of a batch is chosen such that the tokens come out even, and no
    padding is computed with, unless no document at hand fits, as at the end of an epoch.
    A batch computed in parts has each part padded by itself.

    Attributes
    ----------
    documents : Documents
    labels : Tensor, optional
        One for each document; without them the objective is over positions.
    batch_size : int
        Documents that a step of the optimiser sees.
    accumulate : int
        Parts that it sees them in.
    seed : int
    spec : Spec
    mask_probability : float
        Share of positions hidden.
    objective : {"masked", "causal"}
        What is to be predicted without labels.
    views : int
        How often each document stands in a batch, each time with other tokens
        hidden; the views follow each other as whole batches.
    mixup : float
        α of the blending of a part's documents, see :func:`danlu.data.mixup.mixup`; 0 blends
        nothing.
    """

    documents: modality.Documents
    labels: torch.Tensor | None
    batch_size: int
    accumulate: int
    seed: int
    spec: Spec
    mask_probability: float = 0.0
    views: int = 1
    objective: str = "masked"
    mixup: float = 0.0

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimiser in one pass."""
        return -(-len(self.documents) // self.batch_size)

    @lru_cache(maxsize=2)  # noqa: B019 - a loader lives as long as its stage
    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the documents of an epoch in their order."""
        order = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.documents))
        size = self.documents.sizes[order] * self.views % STEP
        for last in range(self.batch_size - 1, len(order), self.batch_size):
            wanted = -size[last - self.batch_size + 1 : last].sum() % STEP
            fitting = np.flatnonzero(size[last : last + _SEARCH] == wanted)
            if len(fitting):
                pair = [last, last + fitting[0]]
                order[pair], size[pair] = order[pair[::-1]], size[pair[::-1]]
        return order

    def load(self, epoch: int, position: int) -> list[Batch]:
        """Return the parts of one step's batch."""
        rows = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        return _in_parts(rows, self.accumulate, [self.seed, epoch, 1 + position], self._prepare)

    def _prepare(self, rows: NDArray[np.int64], generator: Any) -> Batch:
        rows = np.tile(rows, self.views)
        batch = self.documents.lay(rows, generator)
        if self.labels is None and self.objective == "causal":
            return for_causal(batch)
        if self.labels is None:
            return for_masked(batch, self.mask_probability, self.spec, generator)
        batch = replace(batch, label=self.labels[torch.from_numpy(rows)])
        if self.mixup:
            batch = mixup(batch, self.mixup, generator)
        if self.mask_probability:
            batch = hide(batch, self.mask_probability, self.spec, generator)
        return batch

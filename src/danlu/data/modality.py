"""What every kind of data has in common, from a record to the positions that a model sees.

A *modality* is one kind of data. Its encoder is fitted on the training split alone and turns
records (a text, a table's row, the bytes of an image) into :class:`Documents`; these lay
themselves out as a :class:`danlu.batch.Batch`. The backbone never sees a modality's name: all
that it is told is a :class:`Spec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.batch import PADDING, Batch, ValueKind
from danlu.errors import DataError

PAD, MASK, BEGIN, END = "<pad>", "<mask>", "<bos>", "<eos>"
SPECIAL = (PAD, MASK, BEGIN, END)
PAD_ID, MASK_ID, BEGIN_ID, END_ID = range(4)
NUM_SPECIAL = len(SPECIAL)
"""Every kind of data keeps the first ids for these."""

STEP = 64  # batches come in multiples of so many positions: a kernel is made for each shape


@dataclass(frozen=True, slots=True)
class Spec:
    """What the positions of one kind of data hold.

    Attributes
    ----------
    vocab_size : int
        Discrete ids; the first four are padding, mask, begin and end.
    num_fixed : int
        So many of the first ids are never hidden, nor put in place of others.
    value_dims : int
        K, the numbers in a value; 0 where no position carries one.
    value_ids : int
        So many of the last ids say that their position carries a value.
    shared : bool
        Whether all values are of one kind (patches of an image), or those of each id are
        of their own (the columns of a table).
    hidden : tuple of int, optional
        For each id the one that stands in its place where it is hidden; ``<mask>`` for all
        if not given. It tells what is missing, such as a column or a place in an image.
    value_shape : tuple of int, optional
        H, W and C, where each value is a whole image: its numbers stand in that order, the
        channels of a pixel side by side.
    value_kinds : tuple of ValueKind
        Where values are of several kinds, in the order of their ids: `value_dims` is then the
        most numbers that one has, and `shared` says nothing.
    mask_id : int, optional
        What stands where an id is hidden, unless `hidden` says otherwise; None where the
        tokenizer that came with a checkpoint has nothing of the kind.
    special_ids : tuple of int, optional
        The ids that are never hidden; the first `num_fixed` if not given.
    """

    vocab_size: int
    value_dims: int = 0
    value_ids: int = 0
    shared: bool = True
    hidden: tuple[int, ...] | None = None
    value_shape: tuple[int, int, int] | None = None
    value_kinds: tuple[ValueKind, ...] = ()
    num_fixed: int = NUM_SPECIAL
    mask_id: int | None = MASK_ID
    special_ids: tuple[int, ...] | None = None

    @property
    def kinds(self) -> tuple[ValueKind, ...]:
        """The kinds of values, be they one or several, or none."""
        one = (ValueKind(self.value_ids, self.value_dims, self.shared),) if self.value_ids else ()
        return self.value_kinds or one

    @property
    def first_value_id(self) -> int:
        """The first id whose position carries a value."""
        return self.vocab_size - self.value_ids

    def hide(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the ids that stand for the given ones where they are hidden."""
        if self.hidden is not None:
            return np.asarray(self.hidden, np.int64)[ids]
        if self.mask_id is None:
            raise DataError("the tokenizer has no token that stands where another is hidden")
        return np.full_like(ids, self.mask_id)

    def ordinary(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which ids may be hidden: all that are not special."""
        if self.special_ids is None:
            return ids >= self.num_fixed
        return np.isin(ids, self.special_ids, invert=True)

    def to_dict(self) -> dict[str, Any]:
        """Return what a model's configuration keeps of it."""
        return {key: value for key, value in asdict(self).items() if key != "hidden"}


class Documents(Protocol):
    """One split of encoded records."""

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Positions of each document."""
        ...

    def lay(self, rows: NDArray[np.int64], generator: np.random.Generator | None = None) -> Batch:
        """Lay documents end to end in one row; a generator asks for augmentation."""
        ...

    def save(self, folder: Path, name: str) -> None:
        """Write the files of the split called `name`."""
        ...


class Encoder(Protocol):
    """What turns records into documents, in training and in serving alike."""

    @property
    def spec(self) -> Spec:
        """What the documents hold."""
        ...

    def encode(self, records: Sequence[Any]) -> Documents:
        """Return the documents of the records, in order."""
        ...

    def load_documents(self, folder: Path, name: str) -> Documents:
        """Map what :meth:`Documents.save` wrote."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was fitted."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what :meth:`save` wrote."""
        ...


def even(total: int) -> int:
    """Return the least number of positions that is not less than `total` and comes out even."""
    return -(-total // STEP) * STEP


def lay_end_to_end(
    ids: NDArray[np.integer[Any]],
    sizes: NDArray[np.int64],
    rows: NDArray[np.int64],
    values: NDArray[np.float32] | None = None,
    slots: NDArray[np.int64] | None = None,
    *,
    ordered: bool = True,
    position: NDArray[np.int64] | None = None,
) -> Batch:
    """Lay documents whose ids stand end to end in one row of a batch.

    Parameters
    ----------
    ids : NDArray of int, shape (total,)
    sizes : NDArray of int64, shape (n,)
        Positions of each document; their sum is `total`.
    rows : NDArray of int64, shape (n,)
        The documents' rows in the data set.
    values : NDArray of float32, shape (U, K), optional
    slots : NDArray of int64, shape (U,), optional
        Ascending, as the values.
    ordered : bool
        Whether the positions of a document have an order; without one all stand at 0.
    position : NDArray of int64, shape (total,), optional
        Where each stands, if neither is so.
    """
    total = len(ids)
    length = even(total)
    laid = np.full((1, length), PAD_ID, np.int64)
    owner = np.full((1, length), PADDING, np.int64)
    place = np.zeros((1, length), np.int64)
    laid[0, :total] = ids
    owner[0, :total] = np.repeat(np.arange(len(sizes)), sizes)
    if position is not None:
        place[0, :total] = position
    elif ordered:
        begins = np.cumsum(sizes) - sizes
        place[0, :total] = np.arange(total) - np.repeat(begins, sizes)
    batch = Batch(
        ids_BT=torch.from_numpy(laid),
        position_BT=torch.from_numpy(place),
        document_BT=torch.from_numpy(owner),
        num_documents=len(sizes),
        row_N=torch.from_numpy(np.asarray(rows, np.int64)),
    )
    if values is None or slots is None:
        return batch
    return replace(
        batch,
        values_UK=torch.from_numpy(np.ascontiguousarray(values, np.float32)),
        slots_U=torch.from_numpy(np.asarray(slots, np.int64)),
    )


@dataclass(frozen=True, slots=True)
class Grid:
    """Documents of equally many positions, such as the columns of a table.

    Attributes
    ----------
    ids : NDArray of int32, shape (n, T)
    values : NDArray of float32, shape (n, V, K)
        Of the first V positions of each document; what stands where an id carries no
        value is not read.
    first_value_id : int
        From which on an id carries a value.
    """

    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    first_value_id: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Positions of each document."""
        return np.full(len(self), self.ids.shape[1], np.int64)

    def lay(self, rows: NDArray[np.int64], generator: Any = None) -> Batch:  # noqa: ARG002 - nothing of it is drawn
        """Lay documents end to end in one row; their positions have no order."""
        ids = self.ids[rows]
        carried = ids >= self.first_value_id
        values = self.values[rows][carried[:, : self.values.shape[1]]]
        slots = np.flatnonzero(carried)
        return lay_end_to_end(ids.ravel(), self.sizes[rows], rows, values, slots, ordered=False)

    def save(self, folder: Path, name: str) -> None:
        """Write ``NAME.ids.npy`` and ``NAME.values.npy``."""
        np.save(folder / f"{name}.ids.npy", self.ids)
        np.save(folder / f"{name}.values.npy", self.values)

    @classmethod
    def load(cls, folder: Path, name: str, first_value_id: int) -> Grid:
        """Map what :meth:`save` wrote."""
        ids, values = (
            np.load(folder / f"{name}.{p}.npy", mmap_mode="r") for p in ("ids", "values")
        )
        return cls(ids, values, first_value_id)

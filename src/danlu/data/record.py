"""Documents of several kinds of data: a record's cells, then its texts and its images.

A record is one document. Its cells come first and have no order; then each text, token by
token, and each image, patch by patch, in the order in which the recipe names their columns.
:mod:`danlu.data.record_encoder` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from danlu.batch import PADDING, Batch
from danlu.data.modality import Documents, lay_end_to_end

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of data in a record: its cells, a text or an image.

    Attributes
    ----------
    name : str
        The column; empty for the cells.
    new_id : NDArray of int64, shape (ids of its own,)
        What each id of its own is called among those of the whole record.
    missing : int
        The id that says that a record has none; -1 of cells, which say so one by one.
    """

    name: str
    new_id: Ints
    missing: int = -1

    @property
    def ordered(self) -> bool:
        """Whether its positions have an order."""
        return self.missing >= 0


class _Laid(NamedTuple):
    """Positions of one part: their ids, the records (0 … N-1) that they are of, and so on."""

    ids: Ints
    owner: Ints
    position: Ints
    values: NDArray[np.float32]
    slots: Ints


@dataclass(frozen=True, slots=True)
class Held:
    """What the records of a split hold of one part.

    Attributes
    ----------
    part : Part
    documents : Documents or None
        Of the records that have one; None if none has.
    place : NDArray of int64, shape (n,)
        Which of the documents is each record's; -1 where there is none.
    tokens : NDArray of int64, optional
        Of texts that were just encoded: how many tokens each had before it was cut.
    """

    part: Part
    documents: Documents | None
    place: Ints
    tokens: Ints | None = None

    @property
    def sizes(self) -> Ints:
        """Positions in each record; where there is none, one that says so."""
        sizes = np.ones(len(self.place), np.int64)
        if self.documents is not None:
            there = self.place >= 0
            sizes[there] = self.documents.sizes[self.place[there]]
        return sizes

    def lay(self, rows: Ints, generator: Any, value_dims: int) -> list[_Laid]:
        """Lay what there is in the records of some rows, and what stands for the missing."""
        place, laid = self.place[rows], []
        given, lacking = np.flatnonzero(place >= 0), np.flatnonzero(place < 0)
        if len(given):
            assert self.documents is not None
            batch = self.documents.lay(place[given], generator)
            real = batch.document_BT.numpy()[0] != PADDING
            values = np.zeros((0, value_dims), np.float32)
            slots = np.zeros(0, np.int64)
            if batch.values_UK is not None and batch.slots_U is not None:
                found, slots = batch.values_UK.numpy(), batch.slots_U.numpy()
                values = np.pad(found, ((0, 0), (0, value_dims - found.shape[1])))
            laid.append(_Laid(
                self.part.new_id[batch.ids_BT.numpy()[0, real]],
                given[batch.document_BT.numpy()[0, real]],
                batch.position_BT.numpy()[0, real],
                values,
                slots,
            ))  # fmt: skip
        if len(lacking):
            ids, none = np.full(len(lacking), self.part.missing), np.zeros(0, np.int64)
            nothing = np.zeros((0, value_dims), np.float32)
            laid.append(_Laid(ids, lacking, np.zeros_like(lacking), nothing, none))
        return laid


@dataclass(frozen=True, slots=True)
class Records:
    """Records of one split: each is a document of all its parts.

    Attributes
    ----------
    parts : tuple of Held
    value_dims : int
        K, the most numbers in a value.
    """

    parts: tuple[Held, ...]
    value_dims: int

    def __len__(self) -> int:
        return len(self.parts[0].place)

    @property
    def sizes(self) -> Ints:
        """Positions of each record."""
        total: Ints = np.sum([held.sizes for held in self.parts], axis=0, dtype=np.int64)
        return total

    def lay(self, rows: Ints, generator: np.random.Generator | None = None) -> Batch:
        """Lay records end to end in one row; a generator asks for augmentation.

        Cells stand at position 0. What has an order goes on counting where the part before it
        in the record ended, so that no two tokens or patches of a record share a position.
        """
        laid: list[_Laid] = []
        before, total = np.zeros(len(rows), np.int64), 0
        for held in self.parts:
            for one in held.lay(rows, generator, self.value_dims):
                behind = before[one.owner] if held.part.ordered else 0
                laid.append(one._replace(position=one.position + behind, slots=one.slots + total))
                total += len(one.ids)
            if held.part.ordered:
                before += held.sizes[rows]
        ids, owner, position, values, slots = (
            np.concatenate(each) for each in zip(*laid, strict=True)
        )
        order = owner.argsort(kind="stable")  # from part by part to record by record
        moved = np.empty_like(order)
        moved[order] = np.arange(total)
        ascending = moved[slots].argsort()
        return lay_end_to_end(
            ids[order],
            np.bincount(owner, minlength=len(rows)),
            rows,
            values[ascending] if self.value_dims else None,
            moved[slots][ascending],
            position=position[order],
        )

    def save(self, folder: Path, name: str) -> None:
        """Write each part's documents, and ``NAME.PART.place.npy``."""
        for number, held in enumerate(self.parts):
            np.save(folder / f"{name}.{number}.place.npy", held.place)
            if held.documents is not None:
                held.documents.save(folder, f"{name}.{number}")

"""Histories of interactions, from items' names to what a model continues.

A document is one user's history; :mod:`danlu.data.interactions` makes them of a table.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danlu.batch import Batch
from danlu.data.modality import BEGIN_ID, NUM_SPECIAL, SPECIAL, Spec, lay_end_to_end
from danlu.errors import DataError

Ints = NDArray[np.int64]
FILE = "encoder.json"


@dataclass(frozen=True, slots=True)
class EventsDocuments:
    """Histories as ids, memory-mapped: one long row, and the stretch of it that each lays.

    Attributes
    ----------
    ids : NDArray of int32, shape (total,)
        All of every history, ``<bos>`` excluded.
    history_N2 : NDArray of int64, shape (n, 2)
        From where to where in `ids` the history of each document is.
    stretch_N2 : NDArray of int64, shape (n, 2)
        From where to where the document itself is, inside its history.
    counts : dict of str to int
        ``histories``; ``empty`` ones; items ``unknown`` to the encoder and left out; and of
        what is too long, the histories and items ``cut`` and ``cut_items``.
    """

    ids: NDArray[np.int32]
    history_N2: Ints
    stretch_N2: Ints
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.stretch_N2)

    @property
    def sizes(self) -> Ints:
        """Positions of each document: ``<bos>`` and its items."""
        found: Ints = self.stretch_N2[:, 1] - self.stretch_N2[:, 0] + 1
        return found

    def lay(self, rows: Ints, generator: np.random.Generator | None = None) -> Batch:
        """Lay documents end to end in one row, each from ``<bos>``.

        With a generator each is another stretch of its history, of the same length and from
        anywhere in it (sub-sequences as augmentation: Tan et al., "Improved Recurrent Neural
        Networks for Session-based Recommendations", 2016).
        """
        begins, ends = self.stretch_N2[rows].T
        items = ends - begins
        if generator is not None:
            first, last = self.history_N2[rows].T
            begins = generator.integers(first, last - items, endpoint=True)
        ids = np.full(int(items.sum()) + len(rows), BEGIN_ID, np.int32)
        at = 0
        for begin, size in zip(begins.tolist(), items.tolist(), strict=True):
            ids[at + 1 : at + 1 + size] = self.ids[begin : begin + size]
            at += 1 + size
        return lay_end_to_end(ids, items + 1, rows)

    def save(self, folder: Path, name: str) -> None:
        """Write ``NAME.ids.npy``, ``NAME.bounds.npy`` and ``NAME.json``."""
        np.save(folder / f"{name}.ids.npy", self.ids)
        np.save(folder / f"{name}.bounds.npy", np.stack([self.history_N2, self.stretch_N2]))
        (folder / f"{name}.json").write_text(json.dumps(self.counts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str) -> EventsDocuments:
        """Map what :meth:`save` wrote."""
        counts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        ids = np.load(folder / f"{name}.ids.npy", mmap_mode="r")
        history, stretch = np.load(folder / f"{name}.bounds.npy")
        return cls(ids, history, stretch, counts)


@dataclass(frozen=True, slots=True)
class EventsEncoder:
    """Turns histories, lists of items' names, into documents.

    Attributes
    ----------
    items : tuple of str
        The catalogue: item n has the id 4 + n. The commonest first.
    count_I : tuple of int
        Training interactions of each, for baselines and for drawing negatives.
    max_length : int
        Longest document in positions, ``<bos>`` included.
    rare : int
        Items of the training split that are not in the catalogue.
    spec : Spec
    """

    items: tuple[str, ...]
    count_I: tuple[int, ...]
    max_length: int
    rare: int = 0
    spec: Spec = field(init=False)
    _id_of: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", Spec(NUM_SPECIAL + len(self.items)))
        ids = {name: NUM_SPECIAL + n for n, name in enumerate(self.items)}
        object.__setattr__(self, "_id_of", ids)

    @classmethod
    def fit(
        cls, histories: Sequence[Sequence[str]], max_length: int = 50, min_item: int = 1
    ) -> EventsEncoder:
        """List the items of the training histories.

        Raises
        ------
        DataError
            If fewer than two items are common enough.
        """
        counts = Counter(name for history in histories for name in history)
        kept = sorted(
            (n for n, c in counts.items() if c >= min_item), key=lambda n: (-counts[n], n)
        )
        if len(kept) < 2:
            raise DataError(
                f"{len(kept)} of {len(counts)} items have {min_item} training interactions; "
                "to recommend, two are needed",
                where="events.min_item",
                mend="lower it, or bring more interactions",
            )
        return cls(tuple(kept), tuple(counts[n] for n in kept), max_length, len(counts) - len(kept))

    def encode(self, records: Sequence[Sequence[str]]) -> EventsDocuments:
        """Return the documents of histories, in order: the latest items of each."""
        ids, bounds = self._known(records)
        stretch = bounds.copy()
        stretch[:, 0] = np.maximum(bounds[:, 0], bounds[:, 1] - (self.max_length - 1))
        return EventsDocuments(ids, bounds, stretch, self._count(records, bounds, stretch))

    def encode_pieces(self, records: Sequence[Sequence[str]]) -> EventsDocuments:
        """Return documents that together hold all of every history, to train on.

        A history that is too long goes on in several documents; all are full but the one
        that holds its oldest items.
        """
        ids, bounds = self._known(records)
        room = self.max_length - 1
        number = np.maximum(-(-np.diff(bounds)[:, 0] // room), 1)
        history = np.repeat(bounds, number, axis=0)
        later = np.repeat(number.cumsum(), number) - 1 - np.arange(len(history))
        ends = history[:, 1] - later * room
        stretch = np.stack([np.maximum(history[:, 0], ends - room), ends], axis=1)
        return EventsDocuments(ids, history, stretch, self._count(records, bounds, bounds))

    def _known(self, records: Sequence[Sequence[str]]) -> tuple[NDArray[np.int32], Ints]:
        """Return the ids of all known items, and from where to where each record's are."""
        known = [
            [self._id_of[name] for name in record if name in self._id_of] for record in records
        ]
        ends = np.fromiter(map(len, known), np.int64, len(known)).cumsum()
        ids = np.fromiter((i for own in known for i in own), np.int32)
        return ids, np.stack([np.append(0, ends[:-1])[: len(ends)], ends], axis=1)

    def _count(
        self, records: Sequence[Sequence[str]], bounds: Ints, stretch: Ints
    ) -> dict[str, int]:
        items, laid = np.diff(bounds)[:, 0], np.diff(stretch)[:, 0]
        return {
            "histories": len(records),
            "empty": int((items == 0).sum()),
            "unknown": sum(map(len, records)) - int(items.sum()),
            "cut": int((laid < items).sum()),
            "cut_items": int((items - laid).sum()),
        }

    def places(self, records: Sequence[Sequence[str]]) -> tuple[list[list[int]], Ints]:
        """Return each record's items as places in the catalogue, and how many are not in it."""
        known = [[i - NUM_SPECIAL for name in r if (i := self._id_of.get(name))] for r in records]
        missing = [len(r) - len(k) for r, k in zip(records, known, strict=True)]
        return known, np.asarray(missing, np.int64)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the name of each id, for people to look at."""
        return [*map((SPECIAL + self.items).__getitem__, map(int, ids))]

    def save(self, folder: Path) -> None:
        """Write ``encoder.json``."""
        content = {"modality": "events", "items": self.items, "count": self.count_I,
                   "max_length": self.max_length, "rare": self.rare}  # fmt: skip
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> EventsEncoder:
        """Read what :meth:`save` wrote."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        items, count = tuple(content["items"]), tuple(content["count"])
        return cls(items, count, content["max_length"], content["rare"])

    def load_documents(self, folder: Path, name: str) -> EventsDocuments:
        """Map the documents of a split."""
        return EventsDocuments.load(folder, name)

"""Interactions as a kind of data: a record is a history, the names of items, the oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danlu.data.events import FILE, EventsDocuments, EventsEncoder
from danlu.data.interactions import Cases, load, name_of, training_histories
from danlu.data.modality import Spec
from danlu.data.split import NAMES, TRAIN
from danlu.errors import DataError, InputError
from danlu.recipe import Recipe

Row = dict[str, Any]
_SHOWN, _POPULAR = 5, 10  # training documents and items that the report shows
MAX_HISTORY = 100_000
"""Most items in a question."""


class EventsReader:
    """Reads histories."""

    def __init__(self, encoder: EventsEncoder) -> None:
        self.encoder, self.spec = encoder, encoder.spec

    def clean(self, record: Sequence[Any]) -> list[str]:
        """Return the names of the items; nothing remains of empty ones."""
        if isinstance(record, str):  # it would be read as a list of letters
            raise InputError("a history is a list of items, not one", mend='predict([["item", …]])')
        return [name for cell in record if (name := name_of(cell))]

    def read(self, records: Sequence[Sequence[str]]) -> tuple[EventsDocuments, list[Row]]:
        """Encode histories; an answer counts items that are unknown, and those left behind."""
        documents = self.encoder.encode(records)
        known = np.diff(documents.history_N2)[:, 0]
        laid = np.diff(documents.stretch_N2)[:, 0]
        notes = [
            {"unknown": len(record) - int(n), "cut": int(n - seen)}
            for record, n, seen in zip(records, known, laid, strict=True)
        ]
        return documents, notes

    def parse(self, question: Any) -> list[str]:
        """Take a list of items: strings, or numbers as they print."""
        good = isinstance(question, list) and all(
            isinstance(cell, (str, int, float)) and not isinstance(cell, bool) for cell in question
        )
        if not good:
            raise InputError("a history is a list of items, the oldest first: [item, …]")
        if len(question) > MAX_HISTORY:
            raise DataError(f"a history has {len(question):,} items; the limit is {MAX_HISTORY:,}")
        return list(question)


class Events:
    """Tables of who did something with what, and when."""

    files: tuple[str, ...] = (FILE,)

    def encode(self, recipe: Recipe, data: Path, folder: Path) -> Row:
        """List the training items, and encode the histories of every split.

        A training document is a piece of a user's history; one of another split is all that is
        known when a question is asked, see :class:`danlu.data.interactions.Cases`.
        """
        events, part = load(data)
        training, own = training_histories(events, part), recipe.events
        encoder = EventsEncoder.fit(training, own.max_length, own.min_item)
        encoder.save(folder)
        report: Row = {
            "vocab_size": encoder.spec.vocab_size,
            "items": len(encoder.items),
            "rare": encoder.rare,
            "popular": list(zip(encoder.items, encoder.count_I, strict=True))[:_POPULAR],
            "splits": {},
        }
        for name in NAMES:
            if name == TRAIN:
                documents, targets, outside = encoder.encode_pieces(training), 0, 0
                targets = int((documents.sizes - 1).sum())
                report["samples"] = _samples(encoder, documents)
            else:
                cases = Cases.of(events, part, name)
                documents, truth = encoder.encode(cases.histories(events)), cases.truth(events)
                outside, targets = int(encoder.places(truth)[1].sum()), sum(map(len, truth))
            documents.save(folder, name)
            report["splits"][name] = {
                "documents": len(documents), **documents.counts,
                "targets": targets, "outside": outside,
            }  # fmt: skip
        return report

    def seen(self, recipe: Recipe, report: Row) -> str:
        """Say how many items and histories there are."""
        train = report["splits"][TRAIN]
        rare = f" ({report['rare']:,} rarer ones left out)" if report["rare"] else ""
        return (
            f"{report['items']:,} items{rare}; {train['histories']:,} training histories in "
            f"{train['documents']:,} pieces of up to {recipe.events.max_length - 1} items"
        )

    def documents(self, folder: Path, name: str) -> EventsDocuments:
        """Map the histories of a split."""
        return EventsDocuments.load(folder, name)

    def spec(self, folder: Path) -> Spec:
        """Return the size of the catalogue."""
        return EventsEncoder.load(folder).spec

    def reader(self, folder: Path, config: Row) -> EventsReader:  # noqa: ARG002 - the encoder's file holds all
        """Read the encoder."""
        return EventsReader(EventsEncoder.load(folder))


def _samples(encoder: EventsEncoder, documents: EventsDocuments) -> list[Row]:
    """Return a few training documents as the model sees them."""
    rows = np.unique(np.linspace(0, len(documents) - 1, _SHOWN).astype(np.int64))
    found = []
    for begin, end in documents.stretch_N2[rows].tolist():
        found.append({"pieces": ["<bos>", *encoder.pieces(documents.ids[begin:end].tolist())]})
    return found

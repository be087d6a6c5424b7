"""What turns records with texts and images, beside a table's cells, into documents.

The ids of all kinds stand side by side: first those that are never hidden (of each text that it
begins here or that there is none, of each image that there is none), then the discrete ids of
cells, tokens and patches, and last the ids that carry values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from danlu.batch import ValueKind
from danlu.data import modality, text
from danlu.data.image import FILE as IMAGE_FILE
from danlu.data.image import ImageEncoder
from danlu.data.modality import BEGIN_ID, NUM_SPECIAL, SPECIAL, Spec
from danlu.data.record import Held, Ints, Part, Records
from danlu.data.table import FILE, Record, TableEncoder

FILES = (FILE, text.FILE, IMAGE_FILE)


@dataclass(frozen=True)
class RecordEncoder:
    """Turns records with texts and images into documents, in training and serving alike.

    Attributes
    ----------
    cells : TableEncoder
        Perhaps of no column.
    texts, images : tuple of str
        Columns.
    tokenizer : text.Encoder, optional
        Of all texts; there must be one if there are any.
    image : ImageEncoder, optional
        Of all images, likewise.
    """

    cells: TableEncoder
    texts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    tokenizer: text.Encoder | None = None
    image: ImageEncoder | None = None
    _specs: tuple[Spec, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        specs = [self.cells.spec] if self.cells.columns else []
        if self.tokenizer is not None:
            specs.append(Spec(self.tokenizer.tokenizer.get_vocab_size()))
        if self.image is not None:
            specs += [self.image.spec] * len(self.images)
        object.__setattr__(self, "_specs", tuple(specs))

    @cached_property
    def _begins(self) -> tuple[list[int], list[int]]:
        """Where the discrete ids of each kind begin, and where those that carry values do."""
        fixed = NUM_SPECIAL + 2 * len(self.texts) + len(self.images)
        discrete = np.cumsum([fixed, *(s.first_value_id - NUM_SPECIAL for s in self._specs)])
        valued = np.cumsum([discrete[-1], *(s.value_ids for s in self._specs)])
        return discrete.tolist(), valued.tolist()

    @cached_property
    def _new_ids(self) -> list[Ints]:
        """For each kind, what its own ids are called in a record."""
        found = []
        for spec, discrete, valued in zip(self._specs, *self._begins, strict=False):
            own = np.arange(spec.vocab_size)
            new = np.where(own < NUM_SPECIAL, own, own - NUM_SPECIAL + discrete)
            first = spec.first_value_id
            found.append(np.where(own < first, new, own - first + valued))
        return found

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of a record, in their order."""
        new_ids, free = list(self._new_ids), NUM_SPECIAL
        found = [Part("", new_ids.pop(0))] if self.cells.columns else []
        if self.texts:
            tokens = new_ids.pop(0)
            for name in self.texts:
                of_text = tokens.copy()
                of_text[BEGIN_ID] = free
                found.append(Part(name, of_text, missing=free + 1))
                free += 2
        for name, new_id in zip(self.images, new_ids, strict=True):
            found.append(Part(name, new_id, missing=free))
            free += 1
        return tuple(found)

    @cached_property
    def spec(self) -> Spec:
        """What a position of a record holds."""
        discrete, valued = self._begins
        hidden = np.arange(valued[-1])
        for spec, new_id in zip(self._specs, self._new_ids, strict=True):
            own = np.arange(NUM_SPECIAL, spec.vocab_size)
            hidden[new_id[own]] = new_id[spec.hide(own)]
        kinds = [*self.cells.spec.kinds] if self.cells.columns else []
        if self.image is not None:  # one matrix for the patches of all images
            of = self.image.spec
            kinds.append(ValueKind(of.value_ids * len(self.images), of.value_dims, shared=True))
        return Spec(
            vocab_size=valued[-1],
            value_dims=max((kind.dims for kind in kinds), default=0),
            value_ids=valued[-1] - discrete[-1],
            shared=all(kind.shared for kind in kinds),
            hidden=tuple(hidden.tolist()),
            value_kinds=tuple(kinds) if len(kinds) > 1 else (),
            num_fixed=discrete[0],
        )

    def encode(self, records: Sequence[Record]) -> Records:
        """Return the documents of cleaned records; an image is its file's bytes.

        Raises
        ------
        DataError
            An image cannot be decoded.
        """
        held = tuple(self._held(part, records) for part in self.parts)
        return Records(held, self.spec.value_dims)

    def _held(self, part: Part, records: Sequence[Record]) -> Held:
        if not part.ordered:
            return Held(part, self.cells.encode(records), np.arange(len(records)))
        given = self.given(part.name, records)
        there = np.asarray([cell is not None for cell in given], bool)
        place = np.where(there, there.cumsum() - 1, -1)
        if not there.any():
            return Held(part, None, place)
        cells = [cell for cell in given if cell is not None]
        if part.name in self.images:
            assert self.image is not None
            return Held(part, self.image.encode(cells), place)
        assert self.tokenizer is not None
        documents, tokens = self.tokenizer(cells)
        return Held(part, text.Documents.of(documents), place, tokens)

    def given(self, name: str, records: Sequence[Record]) -> list[Any]:
        """Return the texts, or the bytes of the images, of a column; None where there is none."""
        wanted = bytes if name in self.images else str
        cells = [record.get(name) for record in records]
        return [cell if isinstance(cell, wanted) and cell else None for cell in cells]

    def count(self, records: Sequence[Record]) -> dict[str, int]:
        """Count the cells that are missing, not as expected, unknown or extreme.

        Texts and images are cells, too; an image that cannot be used is unreadable.
        """
        counts = self.cells.count(records)
        for name in (*self.texts, *self.images):
            cells = [record.get(name) for record in records]
            given = [cell is not None for cell in self.given(name, records)]
            counts["missing"] += sum(not cell for cell in cells)
            counts["unreadable"] += sum(
                bool(c) and not g for c, g in zip(cells, given, strict=True)
            )
        return counts

    def cut(self, records: Records) -> Ints:
        """Return how many texts of each record, which was just encoded, were cut."""
        total = np.zeros(len(records), np.int64)
        for held in records.parts:
            if held.tokens is not None and self.tokenizer is not None:
                there = held.place >= 0
                total[there] += held.tokens[held.place[there]] > self.tokenizer.max_length
        return total

    @cached_property
    def names(self) -> list[str]:
        """What each id says, for people to look at."""
        names = [*SPECIAL]
        for name in self.texts:
            names += [f"<{name}>", f"<no {name}>"]
        names += [f"<no {name}>" for name in self.images]
        names += [""] * (self.spec.vocab_size - len(names))
        own = [_cell_names(self.cells)] if self.cells.columns else []
        if self.tokenizer is not None:
            own.append(self.tokenizer.pieces(range(self.tokenizer.tokenizer.get_vocab_size())))
        for name in self.images:
            assert self.image is not None
            places = range(1, self.image.positions + 1)
            own.append([*SPECIAL, *(f"[{name} {n}{sign}]" for sign in ("?", "") for n in places)])
        for new_id, said in zip(self._new_ids, own, strict=True):
            for number, word in list(zip(new_id.tolist(), said, strict=True))[NUM_SPECIAL:]:
                names[number] = word
        return names

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return what each of the ids says, for people to look at."""
        return [self.names[i] for i in ids]

    def describe(self) -> dict[str, Any]:
        """Return what a report says of the columns."""
        about = self.cells.describe() | {"texts": list(self.texts), "images": list(self.images)}
        if self.tokenizer is not None:
            about["max_length"] = self.tokenizer.max_length
        return about

    def save(self, folder: Path) -> None:
        """Write ``encoder.json`` and, where there are texts or images, their encoders' files."""
        content = {"modality": "table", "whole": False, **self.describe()}
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        if self.tokenizer is not None:
            self.tokenizer.tokenizer.save(str(folder / text.FILE))
        if self.image is not None:
            self.image.save(folder)

    @classmethod
    def load(cls, folder: Path) -> RecordEncoder:
        """Read what :meth:`save` wrote."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        texts, images = tuple(content["texts"]), tuple(content["images"])
        tokenizer = None
        if texts:
            tokenizer = text.Encoder.load(folder / text.FILE, content["max_length"], causal=False)
        image = ImageEncoder.load(folder) if images else None
        return cls(TableEncoder.load(folder), texts, images, tokenizer, image)

    def load_documents(self, folder: Path, name: str) -> Records:
        """Map the documents of a split."""
        held = []
        for number, part in enumerate(self.parts):
            place = np.load(folder / f"{name}.{number}.place.npy")
            documents = None
            if place.max() >= 0:
                documents = self._documents(part, folder, f"{name}.{number}")
            held.append(Held(part, documents, place))
        return Records(tuple(held), self.spec.value_dims)

    def _documents(self, part: Part, folder: Path, name: str) -> modality.Documents:
        if not part.ordered:
            return self.cells.load_documents(folder, name)
        if part.name in self.texts:
            return text.Documents.load(folder, name)
        assert self.image is not None
        return self.image.load_documents(folder, name)


def _cell_names(cells: TableEncoder) -> list[str]:
    """Return what each id of a table's own says."""
    names = [*SPECIAL]
    for column in cells.columns:
        names += [f"[{column.name}?]", f"[no {column.name}]"]
        if column.kind == "category":
            names += [f"[{column.name}: {name}]" for name in ("other", *column.categories)]
    return [*names, *(f"[{column.name}]" for column in cells.columns[: cells.num_numbers])]


def load(folder: Path) -> TableEncoder | RecordEncoder:
    """Read the encoder of a table, be it of cells alone or with texts and images."""
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return RecordEncoder.load(folder) if "texts" in content else TableEncoder.load(folder)

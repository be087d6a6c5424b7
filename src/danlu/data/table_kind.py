"""Tables as a kind of data: a record is a row, which may hold texts and images beside its cells."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from danlu.data import record_encoder, text
from danlu.data.clean import scrub
from danlu.data.media import content, describe_images, fit_images, png_of
from danlu.data.modality import Documents, Spec
from danlu.data.privacy import KINDS
from danlu.data.raster import fault
from danlu.data.record import Records
from danlu.data.record_encoder import RecordEncoder
from danlu.data.sources import blobs
from danlu.data.split import NAMES, TRAIN, cells
from danlu.data.table import TableEncoder, tidy
from danlu.errors import DataError, InputError
from danlu.recipe import Recipe

Row = dict[str, Any]
_SAMPLES, _SHOWN = 5, 60  # training records that the report shows, and how many positions of those


def clean_text(cell: Any, form: str, kinds: Iterable[str]) -> tuple[str | None, dict[str, int]]:
    r"""Return a cell as a text, normalised and redacted, and how much was redacted.

    >>> clean_text("  two\u200b words ", "NFC", ()), clean_text(None, "NFC", ())
    (('two words', {}), (None, {}))
    """
    if (plain := tidy(cell)) is None:
        return None, {}
    # Half a surrogate pair is no character, and no encoding can hold it.
    found, counts = scrub(str(plain).encode(errors="replace").decode(), form, kinds)
    return found or None, counts


class TableReader:
    """Reads rows of a table."""

    def __init__(self, encoder: TableEncoder) -> None:
        self.encoder, self.spec = encoder, encoder.spec

    def clean(self, record: Row) -> Row | None:
        """Keep the cells; nothing remains of a row in which all are empty."""
        found = {name: tidy(cell) for name, cell in record.items()}
        return None if all(cell is None for cell in found.values()) else found

    def read(self, records: Sequence[Row]) -> tuple[Documents, list[Row]]:
        """Encode rows; an answer counts what was missing, unreadable, unknown or extreme."""
        return self.encoder.encode(records), [self.encoder.count([r]) for r in records]

    def parse(self, question: Any) -> Row:
        """Take an object with a cell for each column."""
        return _with_a_known_column(question, {column.source for column in self.encoder.columns})


def _with_a_known_column(question: Any, known: set[str]) -> Row:
    if not isinstance(question, dict):
        raise InputError("a row is an object: {column: value, …}")
    if not known & question.keys():
        names = ", ".join(sorted(known))
        raise InputError(f"the row has none of the columns that the model reads: {names}")
    return question


class RecordReader:
    """Reads rows with texts and images."""

    def __init__(self, encoder: RecordEncoder, config: Row) -> None:
        self.encoder, self.spec, self.config = encoder, encoder.spec, config

    @property
    def images(self) -> tuple[str, ...]:
        """The columns that hold images."""
        return self.encoder.images

    def clean(self, record: Row) -> Row | None:
        """Clean and redact texts, look at images, keep the cells."""
        apart = {*self.encoder.texts, *self.encoder.images}
        found = {name: tidy(cell) for name, cell in record.items() if name not in apart}
        for name in self.encoder.texts:
            form, kinds = self.config["unicode"], self.config["redact"]
            found[name] = clean_text(record.get(name), form, kinds)[0]
        for name in self.encoder.images:
            found[name] = self._image(record.get(name))
        return None if all(cell is None for cell in found.values()) else found

    def _image(self, cell: Any) -> bytes | str | None:
        """Return the bytes of a file that can be used; or why it cannot, which is unreadable."""
        if not isinstance(cell, bytes):
            return None if tidy(cell) is None else str(cell)
        assert self.encoder.image is not None
        return fault(cell, self.encoder.image.max_pixels) or cell

    def read(self, records: Sequence[Row]) -> tuple[Records, list[Row]]:
        """Encode records; an answer also says whether one of the texts was cut."""
        documents = self.encoder.encode(records)
        notes: list[Row] = [dict(self.encoder.count([record])) for record in records]
        if self.encoder.texts:
            for note, cut in zip(notes, self.encoder.cut(documents), strict=True):
                note["truncated"] = bool(cut)
        return documents, notes

    def parse(self, question: Any) -> Row:
        """Take an object with a cell for each column: a string for a text, base64 for an image."""
        own = self.encoder
        known = {column.source for column in own.cells.columns} | {*own.texts, *own.images}
        row = dict(_with_a_known_column(question, known))
        for name in own.texts:
            cell = row.get(name)
            if cell is not None and not isinstance(cell, str):
                raise InputError(f"{name!r} is a text, and a text is a string")
            try:
                (cell or "").encode()
            except UnicodeEncodeError:
                raise InputError(f"{name!r} holds half a surrogate pair") from None
        for name in own.images:
            cell = row.get(name)
            if isinstance(cell, str):
                try:
                    row[name] = base64.b64decode(cell, validate=True) or None  # an empty cell
                except (ValueError, binascii.Error):
                    raise InputError(f"{name!r} is a file, and a file is sent in base64") from None
            elif cell is not None and not isinstance(cell, bytes):
                raise InputError(f"{name!r} is a file, and a file is sent in base64")
        return row

    def fetched(self, record: Row, beside: Path) -> Row:
        """Return a row of a file with the images that it names; an empty one where it cannot."""
        found = dict(record)
        for name in self.encoder.images:
            if record.get(name):
                image = content(record, name, beside)
                found[name] = image if isinstance(image, bytes) else b""
        return found


class Table:
    """Tables."""

    files: tuple[str, ...] = record_encoder.FILES

    def named(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the columns that are to be read, or are given a kind."""
        own = recipe.table
        named = own.columns + own.numeric + own.categorical + own.dates + own.apart
        return tuple(dict.fromkeys(named))

    def refiner(self, recipe: Recipe) -> Callable[[Row], None]:
        """Keep the cells that may be read, as JSON; an image is told there by its SHA-256."""
        data, own = recipe.data, recipe.table
        kind, _, column = (data.split.by or "").partition(":")
        away = {data.label, *own.ignore, *([column] if kind in ("group", "time") else [])}
        redacted = [kind for kind in KINDS if getattr(data.redact, kind)]

        def refine(row: Row) -> None:
            record, beside = row.pop("record", None), row.pop("beside", None)
            if record is None:
                return
            names = [name for name in own.wanted or record if name not in away]
            found = {name: tidy(record.get(name)) for name in names if name not in own.apart}
            for name in own.texts:
                found[name], counts = clean_text(record.get(name), data.clean.unicode, redacted)
                row.update({kind: row.get(kind, 0) + n for kind, n in counts.items()})
            for name in own.images:
                image = content(record, name, beside)
                if isinstance(image, bytes):
                    image = fault(image, recipe.image.max_pixels) or image
                if isinstance(image, bytes):
                    row.setdefault("blobs", {})[name] = image
                    image = hashlib.sha256(image).hexdigest()
                found[name] = image if record.get(name) else None
            given = any(cell is not None for cell in found.values())
            row["text"] = json.dumps(found, ensure_ascii=False) if given else None

        return refine

    def records(self, data: Path, name: str) -> list[Row]:
        """Return the rows of a split, with the bytes of their images."""
        ids, rows = cells(data, name, "id"), cells(data, name, "text")
        found = blobs(data, ids)
        pairs = zip(ids, rows, strict=True)
        return [json.loads(row) | found.get(number, {}) for number, row in pairs]

    def picture(self, folder: Path, record: Any) -> Row:  # noqa: ARG002 - a row's text is its cells
        """Return nothing."""
        return {}

    def encode(self, recipe: Recipe, data: Path, folder: Path) -> Row:
        """Fit the columns on the training split, and encode every split."""
        train = self.records(data, TRAIN)
        encoder = self._fit(recipe, train)
        encoder.save(folder)
        report: Row = {"vocab_size": encoder.spec.vocab_size, "splits": {}, **encoder.describe()}
        if isinstance(encoder, RecordEncoder):
            report |= _about(encoder, train, cells(data, TRAIN, "label"))
        for name in NAMES:
            records = train if name == TRAIN else self.records(data, name)
            documents = encoder.encode(records)
            documents.save(folder, name)
            report["splits"][name] = {"documents": len(records), **encoder.count(records)}
            if isinstance(encoder, RecordEncoder) and isinstance(documents, Records):
                _describe_split(encoder, name, records, documents, train, report)
        return report

    def _fit(self, recipe: Recipe, train: list[Row]) -> TableEncoder | RecordEncoder:
        own = recipe.table
        if not own.apart:
            return TableEncoder.fit(train, own, recipe.model.backbone != "transformer")
        of_cells = TableEncoder.fit(train, own.of_cells, whole=False, alone=False)
        encoder = RecordEncoder(of_cells, own.texts, own.images)
        tokenizer, image = None, None
        if own.texts:
            texts = _all_given(encoder, own.texts, train)
            settings = recipe.tokenizer
            tokenizer = text.Encoder(text.train(texts, settings.vocab_size), settings.max_length)
        if own.images:
            image = fit_images(recipe, _all_given(encoder, own.images, train))
        return replace(encoder, tokenizer=tokenizer, image=image)

    def seen(self, recipe: Recipe, report: Row) -> str:
        """Say how many columns of each kind there are, and what of texts is cut."""
        of_kind = [column["kind"] for column in report["columns"]]
        train = report["splits"][TRAIN]
        left = f"; left out: {', '.join(report['left_out'])}" if report["left_out"] else ""
        more = f", {len(recipe.table.texts)} of texts" if recipe.table.texts else ""
        more += f", {len(recipe.table.images)} of images" if recipe.table.images else ""
        if "truncated" in train:
            left += (
                f"; {train['truncated']:,} training texts are cut at {report['max_length']} tokens"
            )
        return (
            f"{of_kind.count('number')} columns of numbers, {of_kind.count('category')} of "
            f"categories{more}; {train['missing']:,} training cells are missing{left}"
        )

    def documents(self, folder: Path, name: str) -> Documents:
        """Map the documents of a split."""
        return record_encoder.load(folder).load_documents(folder, name)

    def spec(self, folder: Path) -> Spec:
        """Return what the columns came to."""
        return record_encoder.load(folder).spec

    def reader(self, folder: Path, config: Row) -> TableReader | RecordReader:
        """Read the encoder."""
        encoder = record_encoder.load(folder)
        if isinstance(encoder, RecordEncoder):
            return RecordReader(encoder, config)
        return TableReader(encoder)


def _all_given(encoder: RecordEncoder, names: Sequence[str], records: Sequence[Row]) -> list[Any]:
    """Return all texts, or all images, of some columns.

    Raises
    ------
    DataError
        If there is none.
    """
    found = [cell for name in names for cell in encoder.given(name, records) if cell is not None]
    if not found:
        kind = "images" if names == encoder.images else "texts"
        raise DataError(
            f"no training row has anything to read in {', '.join(map(repr, names))}",
            where=f"table.{kind}",
            mend="look at what `danlu check` says of the column, or leave it out",
        )
    return found


def _about(encoder: RecordEncoder, train: Sequence[Row], labels: Sequence[Any]) -> Row:
    """Return what a report says of records, whatever the split."""
    about: Row = {
        "samples": _samples(encoder, train[:_SAMPLES], labels),
        "of_texts": {name: {} for name in encoder.texts},
    }
    if encoder.tokenizer is not None:
        about["of_tokens"] = encoder.tokenizer.tokenizer.get_vocab_size()
    if encoder.image is not None:
        about["of_images"] = describe_images(encoder.image)
    return about


def _describe_split(
    encoder: RecordEncoder,
    split: str,
    records: Sequence[Row],
    documents: Records,
    train: Sequence[Row],
    report: Row,
) -> None:
    """Add to a report how the texts of a split are cut, and how many training knows."""
    report["splits"][split]["positions"] = int(documents.sizes.sum())
    if encoder.texts:
        report["splits"][split]["truncated"] = int(encoder.cut(documents).sum())
    for held in documents.parts:
        name = held.part.name
        if held.tokens is not None and isinstance(held.documents, text.Documents):
            texts = [cell for cell in encoder.given(name, records) if cell is not None]
            known = {*encoder.given(name, train)}
            report["of_texts"][name][split] = {
                **text.coverage(texts, held.tokens, held.documents),
                "in_training": sum(cell in known for cell in texts),
            }


def _samples(encoder: RecordEncoder, records: Sequence[Row], labels: Sequence[Any]) -> list[Row]:
    """Return a few records as the model sees them."""
    documents, found = encoder.encode(records), []
    for row, label in zip(range(len(records)), labels, strict=False):
        batch = documents.lay(np.asarray([row]))
        ids = batch.ids_BT[batch.document_BT == 0].tolist()
        pieces = encoder.pieces(ids[:_SHOWN])
        pictures = [
            png_of(encoder.image, blob)
            for name in encoder.images
            if encoder.image and (blob := encoder.given(name, records[row : row + 1])[0])
        ]
        found.append(
            {"pieces": pieces, "cut": len(ids) > _SHOWN, "label": label, "images": pictures}
        )
    return found

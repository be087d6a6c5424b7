"""The kinds of data that danlu reads, each behind the same few questions.

A kind says how a row is cleaned, how an encoder is fitted and every split encoded, and how a
question put to the released model becomes a record. :mod:`danlu.data.modality` says what an
encoder makes of records.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from danlu.data import text
from danlu.data.clean import scrub
from danlu.data.events_kind import Events
from danlu.data.media import Audio, Image
from danlu.data.modality import Documents, Spec
from danlu.data.privacy import KINDS
from danlu.data.series_kind import Series
from danlu.data.split import NAMES, TRAIN, cells
from danlu.data.table_kind import Table
from danlu.errors import DataError, InputError
from danlu.recipe import Recipe

Row = dict[str, Any]
_SAMPLES, _SHOWN = 5, 60  # training texts that the report shows as tokens, and how many of those


class Reader(Protocol):
    """What reads the questions put to a released model."""

    @property
    def spec(self) -> Spec:
        """What the documents hold."""
        ...

    def clean(self, record: Any) -> Any:
        """Return a record as training cleaned it; something empty if nothing remains of it."""
        ...

    def read(self, records: Sequence[Any]) -> tuple[Documents, list[dict[str, Any]]]:
        """Return documents of cleaned records, and what an answer says of each of them."""
        ...

    def parse(self, question: Any) -> Any:
        """Return the record that a question in JSON is about.

        Raises
        ------
        InputError
            If it is not one; DataError if it is one that the model does not take.
        """
        ...


class Kind(Protocol):
    """One kind of data."""

    files: tuple[str, ...]
    """What goes into the released model's folder, of those files that the encoder writes."""

    def encode(self, recipe: Recipe, data: Path, folder: Path) -> Row:
        """Fit an encoder on the training split, encode every split, and report."""
        ...

    def documents(self, folder: Path, name: str) -> Documents:
        """Map the documents of a split that :meth:`encode` wrote."""
        ...

    def spec(self, folder: Path) -> Spec:
        """Return what the documents hold."""
        ...

    def seen(self, recipe: Recipe, report: Row) -> str:
        """Say in a line what the model will see, from what :meth:`encode` reported."""
        ...

    def reader(self, folder: Path, config: Row) -> Reader:
        """Return what reads questions; `config` is the released model's."""
        ...


class RowKind(Kind, Protocol):
    """A kind of data each row of which is a record by itself."""

    def named(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the columns that the recipe names, besides those of all kinds."""
        ...

    def refiner(self, recipe: Recipe) -> Callable[[Row], None]:
        """Return what turns a row as read into one with a ``text`` that tells rows apart."""
        ...

    def records(self, data: Path, name: str) -> list[Any]:
        """Return a split's rows as a released model is asked about them."""
        ...

    def picture(self, folder: Path, record: Any) -> Row:
        """Return what shows a record to people, if its text does not; `folder` is an encoder's."""
        ...


class TextReader:
    """Cleans, redacts and tokenises texts."""

    def __init__(self, encoder: text.Encoder, config: Row) -> None:
        self.encoder, self.config = encoder, config
        self.spec = encoder.spec

    def clean(self, record: str) -> str:
        """Clean and redact a text as training did."""
        return scrub(record, self.config["unicode"], self.config["redact"])[0]

    def read(self, records: Sequence[str]) -> tuple[text.Documents, list[Row]]:
        """Tokenise texts; an answer says how long each was, and whether it was cut."""
        documents, lengths = self.encoder(records)
        notes = [
            {"tokens": int(n), "truncated": bool(n > self.encoder.max_length)} for n in lengths
        ]
        return text.Documents.of(documents), notes

    def parse(self, question: Any) -> str:
        """Take a string."""
        if not isinstance(question, str):
            raise InputError("a text is a string")
        try:
            question.encode()
        except UnicodeEncodeError:
            raise InputError("a text holds half a surrogate pair") from None
        limit = self.config["max_chars"]
        if len(question) > limit:
            raise DataError(f"a text has {len(question):,} characters; the limit is {limit:,}")
        return question


class Text:
    """Texts, as the tokens of a byte-level BPE, or of the tokenizer that came with a checkpoint."""

    files: tuple[str, ...] = (text.FILE, text.ROLES)

    def named(self, recipe: Recipe) -> tuple[str, ...]:  # noqa: ARG002 - the text's column is named by itself
        """Return none."""
        return ()

    def refiner(self, recipe: Recipe) -> Callable[[Row], None]:
        """Normalise and redact."""
        form = recipe.data.clean.unicode
        kinds = [kind for kind in KINDS if getattr(recipe.data.redact, kind)]

        def refine(row: Row) -> None:
            if (found := row.get("text")) is not None:
                row["text"], counts = scrub(found, form, kinds)
                row.update(counts)

        return refine

    def records(self, data: Path, name: str) -> list[str]:
        """Return the texts of a split."""
        return [str(cell) for cell in cells(data, name, "text")]

    def picture(self, folder: Path, record: Any) -> Row:  # noqa: ARG002 - a text shows itself
        """Return nothing."""
        return {}

    def encode(self, recipe: Recipe, data: Path, folder: Path) -> Row:
        """Train the tokenizer on the training split, and tokenise every split.

        A checkpoint's tokenizer is not trained: it lies in the folder already.
        """
        settings = recipe.tokenizer
        if not (folder / text.ROLES).is_file():
            trained = text.train(self.records(data, TRAIN), settings.vocab_size)
            trained.save(str(folder / text.FILE))
        # Of a text with a label, the model sees one document; a text by itself goes on in pieces.
        in_pieces = recipe.data.task == "pretrain"
        longest = sys.maxsize if in_pieces else settings.max_length
        encoder = text.Encoder.load(folder / text.FILE, longest, bool(recipe.model.causal))
        report: Row = {"vocab_size": encoder.spec.vocab_size, "splits": {}}
        for name in NAMES:
            texts = self.records(data, name)
            encoded, lengths = encoder(texts)
            if name == TRAIN:
                labels = cells(data, name, "label")
                report["samples"] = [
                    {
                        "pieces": encoder.pieces(ids[:_SHOWN].tolist()),
                        "cut": len(ids) > _SHOWN,
                        "label": label,
                    }
                    for ids, label in zip(encoded[:_SAMPLES], labels, strict=False)
                ]
            if in_pieces:
                documents = text.Documents.in_pieces(encoded, settings.max_length, encoder.marks)
            else:
                documents = text.Documents.of(encoded)
            documents.save(folder, name)
            report["splits"][name] = text.coverage(texts, lengths, documents, encoder.marks)
        return report

    def seen(self, recipe: Recipe, report: Row) -> str:
        """Say how many tokens there are, and how many texts are too long for them."""
        train, longest = report["splits"][TRAIN], f"{recipe.tokenizer.max_length} tokens"
        long = f"{train['truncated']:,} of {train['documents']:,} training texts are cut at"
        if train["pieces"]:
            long = f"long texts go on in {train['pieces']:,} further pieces of"
        tokens = f"{report['vocab_size']:,} tokens of {train['bytes_per_token']:.2f} bytes"
        return f"{tokens}; {long} {longest}"

    def documents(self, folder: Path, name: str) -> text.Documents:
        """Map the tokens of a split."""
        return text.Documents.load(folder, name)

    def spec(self, folder: Path) -> Spec:
        """Return the size of the vocabulary, and what of it is special."""
        return text.Encoder.load(folder / text.FILE, 0, False).spec

    def reader(self, folder: Path, config: Row) -> TextReader:
        """Read the tokenizer."""
        path = folder / text.FILE
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path.name}")
        causal = bool(config["backbone"]["causal"])
        return TextReader(text.Encoder.load(path, config["max_length"], causal), config)


_OF_ROWS: dict[str, RowKind] = {
    "text": Text(), "table": Table(), "image": Image(), "audio": Audio(),
}  # fmt: skip
_ALL: dict[str, Kind] = {**_OF_ROWS, "series": Series(), "events": Events()}


def of(modality: str) -> Kind:
    """Return the kind of data that a recipe names."""
    return _ALL[modality]


def of_rows(modality: str) -> RowKind:
    """Return the kind of data that a recipe names, if its rows are records."""
    return _OF_ROWS[modality]

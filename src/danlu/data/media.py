"""Images and sounds as kinds of data: a record is the bytes of a file."""

from __future__ import annotations

import base64
import binascii
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from danlu.batch import Batch
from danlu.data.audio import FILE as AUDIO_FILE
from danlu.data.audio import AudioEncoder, refusal
from danlu.data.augment import Augment
from danlu.data.clips import clip_html, picture
from danlu.data.image import FILE as IMAGE_FILE
from danlu.data.image import ImageEncoder, usual_shape
from danlu.data.modality import Documents, Encoder, Spec
from danlu.data.raster import encode_png, fault
from danlu.data.sources import File, blobs, rows_of
from danlu.data.split import NAMES, TRAIN, cells
from danlu.data.transcripts import canonical
from danlu.errors import DataError, InputError
from danlu.recipe import Recipe

Row = dict[str, Any]
_SAMPLES = 8  # training records that the report shows
_COLUMNS = ("file", "image", "audio", "bytes", "path")


class MediaReader:
    """Reads the bytes of files; an answer notes nothing.

    Parameters
    ----------
    encoder : Encoder
    refuse : callable of bytes to str or None
        Why a file cannot be used.
    """

    def __init__(self, encoder: Encoder, refuse: Callable[[bytes], str | None]) -> None:
        self.encoder, self.spec, self.refuse = encoder, encoder.spec, refuse

    def clean(self, record: bytes) -> bytes:
        """Leave the bytes as they are."""
        return record

    def read(self, records: Sequence[bytes]) -> tuple[Documents, list[Row]]:
        """Decode files."""
        return self.encoder.encode(records), [{} for _ in records]

    def parse(self, question: Any) -> bytes:
        """Take a file's bytes, or a string that holds them in base64."""
        if isinstance(question, str):
            try:
                question = base64.b64decode(question, validate=True)
            except (ValueError, binascii.Error):
                raise InputError("a file is sent in base64") from None
        if not isinstance(question, bytes):
            raise InputError("a file is sent in base64")
        if reason := self.refuse(question):
            raise DataError(reason)
        return question


def content(record: Row, column: str | None, beside: Path | None) -> bytes | str:
    """Return the bytes that a row holds or points to, or why there are none.

    Parameters
    ----------
    record : dict
        A row; bytes may stand in a dict under ``"bytes"``, as image data sets keep them.
    column : str or None
        Where they stand; None takes the first column with a usual name.
    beside : Path or None
        The file that the row is of: a path in it begins at its folder, and must not leave it.
    """
    name = column or next((name for name in _COLUMNS if name in record), None)
    cell = record.get(name) if name else None
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return cell
    if not isinstance(cell, str) or not cell:
        return "no file"
    if beside is None:
        return "a path that leads nowhere"
    folder = beside.parent.resolve()
    path = (folder / cell).resolve()
    if not path.is_relative_to(folder):
        return "a path out of the data's folder"
    return path.read_bytes() if path.is_file() else "no such file"


def image_shape(recipe: Recipe, records: Iterable[bytes]) -> tuple[int, int, Literal[1, 3]]:
    """Return height, width and channels as the recipe says, or as most training images have."""
    given = recipe.image
    if given.height and given.width and given.channels:
        return given.height, given.width, given.channels
    usual = usual_shape(records)
    return given.height or usual[0], given.width or usual[1], given.channels or usual[2]


def fit_images(recipe: Recipe, records: Sequence[bytes]) -> ImageEncoder:
    """Return the encoder that the recipe describes, fitted on training images."""
    given = recipe.image
    height, width, channels = image_shape(recipe, records)
    return ImageEncoder(
        height=height,
        width=width,
        channels=channels,
        patch=given.patch,
        whole=recipe.model.backbone != "transformer",
        fit=given.fit,
        max_pixels=given.max_pixels,
        augment=Augment(**given.augment.model_dump()),
    ).fitted(records)


def describe_images(encoder: ImageEncoder) -> Row:
    """Return what a report says of how images are read."""
    kept = ("height", "width", "channels", "patch", "whole", "fit", "mean", "std")
    return {name: getattr(encoder, name) for name in kept} | {"positions": encoder.positions}


def png_of(encoder: ImageEncoder, record: bytes) -> str:
    """Return an image as the model sees it, as a PNG file in base64."""
    laid = encoder.encode([record]).lay(np.zeros(1, np.int64))
    return _png(encoder.draw(_values(laid))[0])


def digest_named(files: Sequence[File], columns: Sequence[str | None]) -> str:
    """Return a digest of the files that tables point to; their own says nothing of these.

    `columns` are those that name files; None for the first with a usual name.
    """
    total = hashlib.sha256()
    for file in files:
        if file.format in ("csv", "tsv", "jsonl", "parquet"):
            for number, record in rows_of(file, {}):
                if isinstance(record, str):
                    continue
                for column in columns:
                    found = content(record, column, file.path)
                    total.update(hashlib.sha256(f"{number} {found!r}".encode()).digest())
    return total.hexdigest()


class _Media(ABC):
    """What images and sounds have in common."""

    def named(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the column of the files."""
        return (recipe.data.content,) if recipe.data.content else ()

    def refiner(self, recipe: Recipe) -> Callable[[Row], None]:
        """Take the bytes, see whether they can be used, and tell them by their SHA-256."""
        refuse = self._refuse(recipe)

        def refine(row: Row) -> None:
            record, beside = row.pop("record", None), row.pop("beside", None)
            if record is None:
                return
            if isinstance(path := record.get("path"), str):
                row["file"] = path
            found = content(record, recipe.data.content, beside)
            reason = found if isinstance(found, str) else refuse(found, row.get("label"))
            if reason:
                row["reason"] = reason
            if isinstance(found, bytes):
                row["text"] = hashlib.sha256(found).hexdigest()
                row["blobs"] = {} if reason else {"": found}

        return refine

    def records(self, data: Path, name: str) -> list[bytes]:
        """Return the files of a split."""
        ids = cells(data, name, "id")
        found = blobs(data, ids)
        return [found[number][""] for number in ids]

    def picture(self, folder: Path, record: bytes) -> Row:
        """Return what a report shows of a file."""
        return self._sample(self._load(folder), record)

    def encode(self, recipe: Recipe, data: Path, folder: Path) -> Row:
        """Fit the encoder on the training split, and encode every split."""
        train = self.records(data, TRAIN)
        encoder = self._fit(recipe, train)
        encoder.save(folder)
        report: Row = {"vocab_size": encoder.spec.vocab_size, "splits": {}}
        for name in NAMES:
            records = train if name == TRAIN else self.records(data, name)
            documents = encoder.encode(records)
            documents.save(folder, name)
            counts = getattr(documents, "counts", None)
            report["splits"][name] = {
                "documents": len(documents), "positions": int(documents.sizes.sum()),
                **(asdict(counts) if counts is not None else {}),
            }  # fmt: skip
            if name == TRAIN:
                labels = cells(data, name, "label")
                # Files lie class by class, so the first ones would be of one class.
                spread = np.linspace(0, len(records) - 1, _SAMPLES).round().astype(int)
                report["samples"] = [
                    {"label": labels[row], **self._sample(encoder, records[row])}
                    for row in np.unique(spread).tolist()
                ]
        return report | self._describe(encoder)

    def documents(self, folder: Path, name: str) -> Documents:
        """Map the documents of a split."""
        return self._load(folder).load_documents(folder, name)

    def spec(self, folder: Path) -> Spec:
        """Return what the documents hold."""
        return self._load(folder).spec

    @abstractmethod
    def _refuse(self, recipe: Recipe) -> Callable[[bytes, str | None], str | None]:
        """Return what says why a file with a label, if it has one, cannot be used."""

    @abstractmethod
    def _fit(self, recipe: Recipe, records: list[bytes]) -> Encoder: ...

    @abstractmethod
    def _load(self, folder: Path) -> Encoder: ...

    @abstractmethod
    def _describe(self, encoder: Any) -> Row:
        """Return what a report says of the encoder."""

    @abstractmethod
    def _sample(self, encoder: Any, record: bytes) -> Row:
        """Return what a report shows of a record."""


class Image(_Media):
    """Images, as patches or as a whole."""

    files: tuple[str, ...] = (IMAGE_FILE,)

    def seen(self, recipe: Recipe, report: Row) -> str:  # noqa: ARG002 - the report says it all
        """Say what every image is brought to."""
        colours = "grey" if report["channels"] == 1 else "RGB"
        layout = "as a whole" if report["whole"] else f"in {report['positions']} patches"
        return f"{report['height']} × {report['width']} pixels, {colours}, {layout}"

    def reader(self, folder: Path, config: Row) -> MediaReader:  # noqa: ARG002 - the encoder's file holds all
        """Read the encoder."""
        encoder = ImageEncoder.load(folder)
        return MediaReader(encoder, lambda blob: fault(blob, encoder.max_pixels))

    def _refuse(self, recipe: Recipe) -> Callable[[bytes, str | None], str | None]:
        return lambda blob, _: fault(blob, recipe.image.max_pixels)

    def _fit(self, recipe: Recipe, records: list[bytes]) -> ImageEncoder:
        return fit_images(recipe, records)

    def _load(self, folder: Path) -> ImageEncoder:
        return ImageEncoder.load(folder)

    def _describe(self, encoder: ImageEncoder) -> Row:
        return describe_images(encoder)

    def _sample(self, encoder: ImageEncoder, record: bytes) -> Row:
        documents, rows = encoder.encode([record]), np.zeros(1, np.int64)
        batches = {
            "image": documents.lay(rows),
            "augmented": documents.lay(rows, np.random.default_rng(0)),
        }
        return {name: _png(encoder.draw(_values(batch))[0]) for name, batch in batches.items()}


class Audio(_Media):
    """Sounds, as log-mel frames."""

    files: tuple[str, ...] = (AUDIO_FILE,)

    def seen(self, recipe: Recipe, report: Row) -> str:  # noqa: ARG002 - the report says it all
        """Say how much there is to hear."""
        train = report["splits"][TRAIN]
        return (
            f"{train['seconds']:,.0f} s of training clips in {train['positions']:,} positions of "
            f"{report['stack'] * report['hop_ms']:g} ms; {train['cut']:,} cut at "
            f"{report['max_seconds']:g} s"
        )

    def reader(self, folder: Path, config: Row) -> MediaReader:
        """Read the encoder; a recogniser takes no clip that it would hear in part."""
        encoder = AudioEncoder.load(folder)
        said = "" if config.get("head") == "transcribe" else None
        return MediaReader(encoder, lambda blob: refusal(blob, encoder.settings, said))

    def _refuse(self, recipe: Recipe) -> Callable[[bytes, str | None], str | None]:
        if recipe.data.task != "transcribe":
            return lambda blob, _: refusal(blob, recipe.audio)
        names = recipe.data.rename

        def refuse(blob: bytes, label: str | None) -> str | None:
            transcript = canonical(names.get(label or "", label or ""))
            return refusal(blob, recipe.audio, transcript or "")

        return refuse

    def _fit(self, recipe: Recipe, records: list[bytes]) -> AudioEncoder:
        return AudioEncoder.fit(records, recipe.audio)

    def _load(self, folder: Path) -> AudioEncoder:
        return AudioEncoder.load(folder)

    def _describe(self, encoder: AudioEncoder) -> Row:
        return encoder.settings.model_dump(mode="json") | {"columns": len(encoder.mean)}

    def _sample(self, encoder: AudioEncoder, record: bytes) -> Row:
        frames = encoder.columns(encoder.encode([record])[0])[:, : encoder.settings.num_mels]
        drawn = picture(frames)
        return {"image": _png(drawn[..., None]), "player": clip_html(record, encoder.settings.rate)}


def _values(batch: Batch) -> NDArray[np.float32]:
    assert batch.values_UK is not None
    return batch.values_UK.numpy()


def _png(image: NDArray[np.uint8]) -> str:
    """Return pixels, of shape (H, W, C), as a PNG file in base64."""
    return base64.b64encode(encode_png(image)).decode()

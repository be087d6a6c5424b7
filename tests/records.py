"""Small made-up records of every kind, and what encodes them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from danlu.data import text
from danlu.data.image import ImageEncoder
from danlu.data.record_encoder import RecordEncoder
from danlu.data.table import TableEncoder
from danlu.recipe.sections import Table

WORDS = ["small", "large", "quiet", "noisy", "flat", "house", "near", "far", "station", "park"]


def png(generator: np.random.Generator, size: int = 8) -> bytes:
    """Return a random grey picture."""
    out = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (size, size), np.uint8)).save(out, "PNG")
    return out.getvalue()


def records(n: int = 40, seed: int = 0) -> list[dict]:
    """Return flats: cells, two texts and a photo, each of which is missing now and then."""
    generator = np.random.default_rng(seed)
    return [
        {
            "area": None if row % 11 == 3 else float(generator.normal(80, 20)),
            "city": ("Xi'an", "Kunming", "Lhasa")[row % 3],
            "title": " ".join(generator.choice(WORDS, generator.integers(1, 4))),
            "story": None if row % 5 == 1 else " ".join(generator.choice(WORDS, 1 + row % 9)),
            "photo": None if row % 4 == 2 else png(generator),
        }
        for row in range(n)
    ]


def encoder(
    train: list[dict] | None = None,
    *,
    texts: tuple[str, ...] = ("title", "story"),
    images: tuple[str, ...] = ("photo",),
    cells: tuple[str, ...] = ("area", "city"),
    max_length: int = 7,
    bins: int = 4,
) -> RecordEncoder:
    """Return an encoder of flats that reads some of their columns."""
    train = records() if train is None else train
    settings = Table(columns=cells + texts + images, texts=texts, images=images, bins=bins)
    if not cells:
        settings = settings.model_copy(
            update={"ignore": ("area", "city", "title", "story", "photo")}
        )
    table = TableEncoder.fit(train, settings.of_cells, whole=False, alone=False)
    found = RecordEncoder(table, texts, images)
    tokenizer = image = None
    if texts:
        given = [cell for name in texts for cell in found.given(name, train) if cell]
        tokenizer = text.Encoder(text.train(given, 300), max_length)
    if images:
        given = [cell for name in images for cell in found.given(name, train) if cell]
        image = ImageEncoder(8, 8, 1, patch=4).fitted(given)
    return RecordEncoder(table, texts, images, tokenizer, image)

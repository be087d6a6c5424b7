"""Real images and sounds for tests: scikit-learn's digits, and spoken syllables."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from danlu.data.raster import encode_png
from danlu.data.sources import locate
from danlu.errors import DanluError
from danlu.recipe import Source

VOICES = Source(
    path="deb:gcin-voice=0~20170223-3/usr/share/gcin-voice/ogg/*/*.ogg",
    sha256="6a0353f0294d06f7bd901bada3d5d9eec63b66c2ec029f92da3124d93d45de70",
)
TONES = {"": "first", "2": "second", "3": "third", "4": "fourth"}


def digits(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first of scikit-learn's digits: 8 × 8 pixels as bytes, and what they show."""
    data = load_digits()
    return (data.images[:number] * 255 / 16).astype(np.uint8), data.target[:number]


def pngs(number: int) -> list[bytes]:
    """Return the first digits as PNG files."""
    return [encode_png(image[..., None]) for image in digits(number)[0]]


def put(path: Path, content: bytes) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def voices(folder: Path, each: int) -> Path:
    """Write so many recordings of each tone of Mandarin, a folder a tone; skip without them."""
    try:
        found = locate(VOICES, fetch=True)
    except DanluError as error:
        if os.environ.get("DANLU_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"no recordings: {error.what}")
    left = dict.fromkeys(TONES.values(), each)
    for name, path in sorted(found, key=lambda pair: hash_of(pair[0])):
        syllable, speaker = Path(name).parent.name, Path(name).stem
        tone = TONES.get(syllable[-1] if syllable[-1].isdecimal() else "")
        if tone and left[tone]:
            left[tone] -= 1
            put(folder / tone / f"{syllable}-{speaker}.ogg", path.read_bytes())
    return folder


def hash_of(name: str) -> int:
    """Return a number that has nothing to do with the order of names."""
    return int.from_bytes(name.encode()[-12:], "big") * 2654435761 % 2**32

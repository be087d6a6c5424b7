"""Transcripts: from text to the labels that a recogniser writes, and back.

A label stands for a character (a Unicode code point of the NFC form), the space among them.
Label 0 is the blank of connectionist temporal classification (Graves et al., 2006): it stands
for nothing, keeps equal neighbours apart, and fills rows up.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

BLANK = 0


def canonical(text: str) -> str | None:
    r"""Return a transcript in its one form: NFC, single spaces, none at the ends.

    >>> canonical("  nǐ \t hǎo "), canonical(" ")
    ('nǐ hǎo', None)
    """
    return " ".join(unicodedata.normalize("NFC", text).split()) or None


def alphabet(texts: Iterable[str]) -> list[str]:
    """Return the characters of the training split's transcripts, sorted; label 1 is the first."""
    return sorted({character for text in texts for character in text})


def encode(texts: Sequence[str], characters: Sequence[str]) -> NDArray[np.int64]:
    """Return labels of shape (n, S), each row filled up with blanks.

    A character that the training split lacks has no label and is passed over; see
    :func:`count_unknown`.

    >>> encode(["ab", "b?"], ["a", "b"]).tolist()
    [[1, 2], [2, 0]]
    """
    place = {character: number for number, character in enumerate(characters, 1)}
    rows = [[place[character] for character in text if character in place] for text in texts]
    found = np.full((len(rows), max([1, *map(len, rows)])), BLANK, np.int64)
    for row, labels in enumerate(rows):
        found[row, : len(labels)] = labels
    return found


def count_unknown(texts: Iterable[str], characters: Iterable[str]) -> dict[str, int]:
    """Count the characters that the training split lacks.

    >>> count_unknown(["ab?", "??"], ["a", "b"])
    {'?': 3}
    """
    known, found = set(characters), dict[str, int]()
    for text in texts:
        for character in text:
            if character not in known:
                found[character] = found.get(character, 0) + 1
    return found


def spell(labels: Iterable[int], characters: Sequence[str]) -> str:
    """Return the text of labels, in its canonical form.

    >>> spell([2, 1], ["a", "b"])
    'ba'
    """
    return canonical("".join(characters[label - 1] for label in labels if label != BLANK)) or ""


def positions_needed(text: str) -> int:
    """Return the fewest positions in which a transcript can be read.

    One for each character, and one for the blank between two equal ones.

    >>> positions_needed("hello"), positions_needed("")
    (6, 0)
    """
    return len(text) + sum(one == other for one, other in pairwise(text))

"""Test rows that also stand in the training split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NOT_WORD = re.compile(r"[\W_]+")


def bare(text: str) -> str:
    """Return a text's letters and digits in lower case.

    >>> bare("Very good!!") == bare("very  good")
    True
    """
    # A text of signs alone keeps them: otherwise all such texts would be the same.
    return _NOT_WORD.sub("", text.lower()) or text


def find(train: Iterable[str], held_out: Sequence[str]) -> list[int]:
    """Return the rows of `held_out` whose text stands in `train`, but for case and signs.

    Parameters
    ----------
    train : iterable of str
    held_out : sequence of str

    Returns
    -------
    list of int
        Row numbers, from 0.
    """
    seen = {bare(text) for text in train}
    return [row for row, text in enumerate(held_out) if bare(text) in seen]

"""Test rows that also stand in the training split."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def bare(text: str) -> str:
    """Return a text's letters and digits in lower case.

    >>> bare("Very good!!") == bare("very  good")
    True
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    # Letters, digits, and the marks that some scripts write their vowels with.
    kept = "".join(c for c in folded if unicodedata.category(c)[0] in "LNM")
    # A text of signs alone keeps them: otherwise all such texts would be the same.
    return kept or text


def find(train: Iterable[str], held_out: Sequence[str], *, exactly: bool = False) -> list[int]:
    """Return the rows of `held_out` that stand in `train`.

    Parameters
    ----------
    train : iterable of str
    held_out : sequence of str
    exactly : bool
        Whether only the same letters count; texts are compared but for case and signs.

    Returns
    -------
    list of int
        Row numbers, from 0.
    """
    form = str if exactly else bare
    seen = {form(text) for text in train}
    return [row for row, text in enumerate(held_out) if form(text) in seen]

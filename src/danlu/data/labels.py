"""From label cells to arrays that a model can learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.data import transcripts


def split_cell(text: str, separator: str | None) -> list[str]:
    """Return the labels that a label cell holds.

    >>> split_cell("red; blue", ";"), split_cell("red", None)
    (['red', 'blue'], ['red'])
    """
    if separator is None:
        return [text]
    return [part.strip() for part in text.split(separator) if part.strip()]


def canonical(cell: str, kind: str, separator: str | None) -> str | None:
    """Return a label cell in the one form in which equal labels are equal text.

    >>> canonical(" a ", "classify", None), canonical("b; a;b", "multilabel", ";")
    ('a', 'a;b')
    >>> canonical("3.0", "regress", None) == canonical("3", "regress", None)
    True
    """
    if kind == "transcribe":
        return transcripts.canonical(cell)
    if kind == "regress":
        try:
            return repr(float(cell))
        except ValueError:
            return cell
    if separator is None:
        return cell.strip() or None
    return separator.join(sorted(set(split_cell(cell, separator)))) or None


def encode(
    cells: Sequence[str], kind: str, classes: Sequence[str], separator: str | None
) -> NDArray[Any]:
    """Return labels as numbers.

    Returns
    -------
    NDArray
        classify: int64 of shape (n,), the class's place in `classes`;
        multilabel: bool of shape (n, C); regress: float64 of shape (n,); transcribe: int64
        of shape (n, S), see :func:`danlu.data.transcripts.encode`.
    """
    if kind == "transcribe":
        return transcripts.encode(cells, classes)
    if kind == "regress":
        return np.asarray([float(cell) for cell in cells], np.float64)
    place = {name: number for number, name in enumerate(classes)}
    if kind == "classify":
        return np.asarray([place[cell] for cell in cells], np.int64)
    found = np.zeros((len(cells), len(classes)), bool)
    for row, cell in enumerate(cells):
        for label in split_cell(cell, separator):
            found[row, place[label]] = True
    return found

"""Documents of any length into rows of one length, with little left empty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rows:
    """Which documents share a row.

    Attributes
    ----------
    documents : NDArray of int64, shape (n,)
        Every document once, row by row.
    offsets : NDArray of int64, shape (rows + 1,)
        Where each row's documents begin in `documents`.
    """

    documents: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        return self.documents[self.offsets[row] : self.offsets[row + 1]]


def best_fit(sizes: NDArray[np.int64], length: int) -> Rows:
    """Put each document, the longest first, into the row that it fills best.

    Parameters
    ----------
    sizes : NDArray of int64, shape (n,)
        Tokens of each document, from 1 to `length`.
    length : int
        Tokens that a row holds.

    Notes
    -----
    Best-fit decreasing, which Ding et al., "Fewer Truncations Improve Language
    Modeling", 2024, use for the same end. The free spaces are the bits of one whole
    number, so that the smallest that is large enough is found at once.

    Examples
    --------
    >>> rows = best_fit(np.array([3, 5, 2, 4, 2]), 8)
    >>> [rows[i].tolist() for i in range(len(rows))]
    [[1, 0], [3, 2, 4]]
    """
    if len(sizes) and not 1 <= sizes.min() <= sizes.max() <= length:
        raise ValueError(f"documents must hold 1 to {length} tokens")
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by tokens still free
    free = 0  # bit i: some row has i tokens free
    row_of = np.empty(len(sizes), np.int64)
    count = 0
    order = np.argsort(-sizes, kind="stable")
    for document, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = free >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row = open_rows[space].pop()
            if not open_rows[space]:
                free &= ~(1 << space)
        else:
            space, row, count = length, count, count + 1
        row_of[document] = row
        if left := space - size:
            open_rows[left].append(row)
            free |= 1 << left
    # Within a row the longest stand first.
    by_row = order[np.argsort(row_of[order], kind="stable")]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(row_of, minlength=count))))
    return Rows(by_row, offsets.astype(np.int64))

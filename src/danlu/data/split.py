"""Setting rows apart so that nothing in the test split was seen in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from danlu.errors import DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
NAMES = (TRAIN, VALIDATION, TEST)


def cells(data: Path, name: str, column: str) -> list[Any]:
    """Return a column of one split of a data artifact."""
    found: list[Any] = pq.read_table(data / f"{name}.parquet", columns=[column])[column].to_pylist()
    return found


def by_cluster(
    cluster: NDArray[np.int64],
    label: NDArray[np.str_],
    test: float,
    validation: float,
    seed: int,
) -> NDArray[np.str_]:
    """Assign whole clusters to splits, keeping the labels' shares.

    Parameters
    ----------
    cluster : NDArray of int64, shape (n,)
        Rows of one cluster stay together.
    label : NDArray of str, shape (n,)
        What the shares are kept of; all alike where there is nothing to stratify.
    test, validation : float
        Shares of the rows.
    seed : int

    Returns
    -------
    NDArray of str, shape (n,)
        ``train``, ``validation`` or ``test``.
    """
    numbers, index, size = np.unique(cluster, return_inverse=True, return_counts=True)
    # A cluster's stratum is the label of most of its rows; ties go to the first by name.
    names, code = np.unique(label, return_inverse=True)
    pair, count = np.unique(index.astype(np.int64) * len(names) + code, return_counts=True)
    stratum = np.zeros(len(numbers), np.int64)
    order = np.lexsort((-(pair % len(names)), count))  # the last written wins
    stratum[pair[order] // len(names)] = pair[order] % len(names)

    assigned = np.full(len(numbers), TRAIN, dtype="<U10")
    generator = np.random.default_rng([seed, 0x5B117])
    for code_ in range(len(names)):
        members = generator.permutation(np.flatnonzero(stratum == code_))
        # A cluster goes where the middle of its rows falls, so that large ones cannot overshoot.
        filled = np.cumsum(size[members])
        middle = (filled - size[members] / 2) / max(1, filled[-1] if len(filled) else 1)
        assigned[members[middle < test + validation]] = VALIDATION
        assigned[members[middle < test]] = TEST
    return assigned[index]


def by_time(time: NDArray[np.float64], test: float, validation: float) -> NDArray[np.str_]:
    """Assign the earliest rows to training and the latest to the test.

    Rows of one instant stay together, so no split is cut through a moment.
    """
    _, index, size = np.unique(time, return_inverse=True, return_counts=True)
    middle = (np.cumsum(size) - size / 2) / size.sum()
    assigned = np.full(len(size), TRAIN, dtype="<U10")
    assigned[middle >= 1 - test - validation] = VALIDATION
    assigned[middle >= 1 - test] = TEST
    return assigned[index]


def check(assigned: NDArray[np.str_]) -> None:
    """Refuse a split that leaves a part empty.

    Raises
    ------
    DataError
    """
    counts = {name: int((assigned == name).sum()) for name in NAMES}
    if empty := [name for name, count in counts.items() if count == 0]:
        raise DataError(
            f"the {' and '.join(empty)} split would be empty: "
            f"{len(assigned)} rows remain after cleaning",
            where="data.split",
            mend="add rows, or change data.split.test and data.split.validation",
        )

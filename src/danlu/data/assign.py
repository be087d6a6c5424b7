"""Which split each row goes to, and which rows must go together.

How many rows a split takes is :mod:`danlu.data.split`'s business; here is what a recipe asks of
it, and what a row is told apart by.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from danlu.data import duplicates, split
from danlu.errors import DataError
from danlu.recipe import Recipe


def assign(recipe: Recipe, table: pa.Table, cluster: NDArray[np.int64]) -> NDArray[np.str_]:
    """Assign every row to a split."""
    rule = recipe.data.split
    kind = rule_of(recipe)[0]
    if kind == "time":
        return split.by_time(_instants(table), rule.test, rule.validation)
    alone = cluster
    if kind == "random" and recipe.data.modality == "text":
        cluster = np.arange(table.num_rows)
    elif kind == "group":  # a group's rows, and near-duplicates across groups, stay together
        group = np.unique(table["group"].to_numpy().astype(str), return_inverse=True)[1]
        offset = int(cluster.max()) + 1
        joined = duplicates.join_groups(offset + int(group.max()) + 1, cluster, offset + group)
        cluster = joined[cluster]
    if recipe.data.task == "classify":
        label = table["label"].to_numpy().astype(str)
    else:
        label = np.full(table.num_rows, "")
    if rule.hold_out:
        assigned = np.full(table.num_rows, split.TEST, dtype="<U10")
        names = [pseudonym(name) for name in rule.hold_out]
        rest = ~np.isin(table["group"].to_numpy().astype(str), names)
        assigned[rest] = split.by_cluster(
            alone[rest], label[rest], 0.0, rule.validation, recipe.seed
        )
        return assigned
    return split.by_cluster(cluster, label, rule.test, rule.validation, recipe.seed)


def equal(table: pa.Table) -> NDArray[np.int64]:
    """Return a number for each row that equal rows share.

    Where most rows have an equal, as in a table of a few categories, being equal says nothing
    of where a row came from, and each has a number of its own.
    """
    same = table["text"].combine_chunks().dictionary_encode()
    if 2 * len(same.dictionary) < table.num_rows:
        return np.arange(table.num_rows)
    return np.asarray(same.indices, np.int64)


def leaks_from_the_past(
    recipe: Recipe, assigned: NDArray[np.str_], cluster: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Find later rows that resemble an earlier split's; only a split by time has them."""
    late = np.zeros(len(assigned), bool)
    if rule_of(recipe)[0] == "time":
        seen = cluster[assigned == split.TRAIN]
        late |= (assigned != split.TRAIN) & np.isin(cluster, seen)
        seen = cluster[(assigned == split.VALIDATION) & ~late]
        late |= (assigned == split.TEST) & np.isin(cluster, seen)
    return late


def rule_of(recipe: Recipe) -> tuple[str, str, str]:
    """Return the kind of split, and its column if there is one."""
    return (recipe.data.split.by or "random").partition(":")


def _instants(table: pa.Table) -> NDArray[np.float64]:
    """Return the time column as numbers: as they are, or seconds of ISO 8601 dates.

    Raises
    ------
    DataError
        If it holds anything else: sorted as text, 120 would come before 7.
    """
    cells = table["time"].to_pylist()
    for parse in (float, _seconds):
        try:
            return np.asarray([parse(cell) for cell in cells], np.float64)
        except ValueError:
            continue
    raise DataError(
        "the time column holds neither numbers alone nor ISO dates alone",
        where="data.split.by",
        mend="write times as 2026-11-22 or 2026-11-22T08:30:00",
    )


def _seconds(text: str) -> float:
    instant = datetime.fromisoformat(text)
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def pseudonym(group: str) -> str:
    """Return what tells groups apart and names none."""
    return f"{digest(group) & 0xFFFFFFFFFFFFFFFF:016x}"


def digest(text: str) -> int:
    """Return 64 bits that tell texts apart."""
    bits = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(bits, "big", signed=True)

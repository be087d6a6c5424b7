"""Recommenders without a network: what is popular, and what stands near what was seen.

They are strong where they are tuned (Ferrari Dacrema et al., "Are We Really Making Much
Progress?", 2019; Ludewig & Jannach, 2018), and tuned they are here, on the validation split.
Shape suffixes: I, J items of the catalogue, U users, N training interactions, C cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from danlu.evaluate.ranking import Questions, Ranked, Scorer, rank

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Lists = Sequence[Sequence[int]]

_FULL = 0.05  # share of entries from which a matrix is multiplied faster as a full one,
_CELLS = 1 << 23  # unless it has so many of them that it would take gigabytes

DECAYS = (None, 1.0, 3.0, 10.0, 30.0)
"""Half-lives of a history's items, in items from its end; None weighs all alike."""


@dataclass(frozen=True, slots=True)
class Histories:
    """Lists of places in the catalogue, end to end.

    Attributes
    ----------
    item_N : NDArray of int64, shape (N,)
        The oldest of each list first.
    offsets : NDArray of int64, shape (U + 1,)
    num_items : int
    time_N : NDArray of float64, shape (N,), optional
    """

    item_N: Ints
    offsets: Ints
    num_items: int
    time_N: Floats | None = None

    @classmethod
    def of(cls, lists: Lists, num_items: int, time_N: Floats | None = None) -> Histories:
        """Lay lists end to end."""
        sizes = np.fromiter(map(len, lists), np.int64, len(lists))
        item_N = np.fromiter((i for own in lists for i in own), np.int64, int(sizes.sum()))
        return cls(item_N, np.append(0, sizes.cumsum()), num_items, time_N)

    @property
    def owners(self) -> Ints:
        """Which list each interaction is of."""
        found: Ints = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        return found

    def matrix(self, half_life: float | None = None) -> csr_array:
        """Return the matrix of lists by items.

        Parameters
        ----------
        half_life : float, optional
            In items: an item that stands so many before the last of its list weighs half of
            it. All weigh 1 if not given. The latest of several of one item counts.
        """
        row = self.owners
        after = self.offsets[row + 1] - 1 - np.arange(len(row))
        # Of equal pairs the last in `order` is the latest, and the only one kept.
        key = row * self.num_items + self.item_N
        _, from_end = np.unique(key[::-1], return_index=True)
        kept = len(key) - 1 - from_end
        weight = np.ones(len(kept)) if half_life is None else 0.5 ** (after[kept] / half_life)
        shape = (len(self.offsets) - 1, self.num_items)
        return csr_array((weight, (row[kept], self.item_N[kept])), shape=shape)


def popularity(item_N: Ints, num_items: int) -> Floats:
    """Return how often each item occurs, shape (I,)."""
    return np.bincount(item_N, minlength=num_items).astype(np.float64)


def recent_popularity(item_N: Ints, time_N: Floats, num_items: int, half_life: float) -> Floats:
    """Return how often each item occurs, an interaction a half-life old counting half.

    Parameters
    ----------
    item_N : NDArray of int64, shape (N,)
    time_N : NDArray of float64, shape (N,)
        In any unit; ages are counted from the latest.
    num_items : int
    half_life : float
        In the unit of `time_N`; positive.
    """
    weight = 0.5 ** ((time_N.max() - time_N) / half_life)
    found: Floats = np.bincount(item_N, weight, minlength=num_items).astype(np.float64)
    return found


def nearest(similar_IJ: csr_array, neighbors: int) -> csr_array:
    """Keep each row's largest entries off the diagonal; of ties those that stand first."""
    similar = csr_array(similar_IJ)
    row = np.repeat(np.arange(similar.shape[0]), np.diff(similar.indptr))
    column, value = similar.indices, similar.data
    order = np.lexsort((column, -value, row))
    order = order[row[order] != column[order]]
    begin = np.searchsorted(row[order], np.arange(similar.shape[0]))
    order = order[np.arange(len(order)) - begin[row[order]] < neighbors]
    return csr_array((value[order], (row[order], column[order])), shape=similar.shape)


def cosine(matrix_UI: csr_array, shrinkage: float = 0.0) -> csr_array:
    """Return the items' cosine similarity, ``x·y / (|x||y| + shrinkage)``.

    Parameters
    ----------
    matrix_UI : csr_array of float64, shape (U, I)
        Users by items: zeros and ones, or weights.
    shrinkage : float
        Not negative: it draws items that few users link towards 0.

    Returns
    -------
    csr_array of float64, shape (I, I)
        Sarwar et al., "Item-based Collaborative Filtering", 2001; Deshpande & Karypis, 2004.
    """
    product_IJ = csr_array(matrix_UI.T @ matrix_UI)
    norm_I = np.sqrt(product_IJ.diagonal())
    row = np.repeat(np.arange(product_IJ.shape[0]), np.diff(product_IJ.indptr))
    scale = norm_I[row] * norm_I[product_IJ.indices] + shrinkage
    product_IJ.data = np.divide(
        product_IJ.data, scale, out=np.zeros_like(scale), where=scale > 0
    )  # fmt: skip
    return product_IJ


def sequential(
    histories: Histories,
    half_life: float,
    *,
    both_ways: bool = True,
    popular: float = 0.5,
    window: int = 50,
) -> csr_array:
    """Return how much each item follows each other closely.

    Parameters
    ----------
    histories : Histories
    half_life : float
        In items: a pair that stands d apart counts ``2 ** (-(d - 1) / half_life)``.
    both_ways : bool
        Whether a pair counts in both directions.
    popular : float
        From 0 to 1: the power of its frequency that an item's column is divided by; its row
        is divided by the square root.
    window : int
        The farthest apart that is counted.

    Returns
    -------
    csr_array of float64, shape (I, I)
        From an item (row) to what follows. A sequential rule (Kamehkhosh et al., "A Comparison
        of Frequent Pattern Techniques and a Deep Learning Method for Session-Based
        Recommendation", 2017) with the normalisation of item-item similarity.
    """
    item_N, owner_N, num = histories.item_N, histories.owners, histories.num_items
    total = csr_array((num, num))
    for apart in range(1, min(window, int(np.diff(histories.offsets).max(initial=1)) - 1) + 1):
        same = owner_N[apart:] == owner_N[:-apart]
        first, then = item_N[:-apart][same], item_N[apart:][same]
        weight = np.full(len(first), 0.5 ** ((apart - 1) / half_life))
        total = total + csr_array((weight, (first, then)), shape=(num, num))
    if both_ways:
        total = total + total.T
    number_I = np.maximum(popularity(item_N, num), 1.0)
    return csr_array(diags_array(number_I**-0.5) @ total @ diags_array(number_I**-popular))


def popular_scorer(score_I: Floats) -> Scorer:
    """Recommend the same to everyone."""
    return lambda cases: np.tile(score_I, (len(cases), 1))


def neighbor_scorer(history_CI: csr_array, similar_IJ: csr_array) -> Scorer:
    """Score an item by the sum of what links it with the history."""
    if similar_IJ.nnz > _FULL * np.prod(similar_IJ.shape) and similar_IJ.nnz < _CELLS:
        dense_IJ = similar_IJ.toarray()
        return lambda cases: np.asarray(history_CI[cases] @ dense_IJ)
    return lambda cases: (history_CI[cases] @ similar_IJ).toarray()


@dataclass(frozen=True, slots=True)
class Baseline:
    """A recommender as it was chosen on the validation split.

    Attributes
    ----------
    name : {"popular", "popular-recent", "item-knn", "item-knn-recency", "item-knn-sequential"}
    settings : dict
        What was chosen.
    score : float
        Its ndcg@k on validation.
    tried : int
        Settings that it was chosen from.
    similar_IJ : csr_array, optional
    popular_I : NDArray of float64, shape (I,), optional
    """

    name: str
    settings: dict[str, Any]
    score: float
    tried: int
    similar_IJ: csr_array | None = None
    popular_I: Floats | None = None

    def scorer(self, histories: Histories) -> Scorer:
        """Return what scores the items for these histories."""
        if self.popular_I is not None:
            return popular_scorer(self.popular_I)
        assert self.similar_IJ is not None
        return neighbor_scorer(histories.matrix(self.settings["decay"]), self.similar_IJ)


def _candidates(training: Histories) -> Iterator[Baseline]:
    """Yield everything that is tried, one similarity at a time."""
    item_N, num = training.item_N, training.num_items
    yield Baseline("popular", {}, 0.0, 0, popular_I=popularity(item_N, num))
    if training.time_N is not None and np.ptp(training.time_N) > 0:
        for share in (0.003, 0.01, 0.03, 0.1, 0.3):
            half_life = share * float(np.ptp(training.time_N))
            found = recent_popularity(item_N, training.time_N, num, half_life)
            yield Baseline("popular-recent", {"half_life": half_life}, 0.0, 0, popular_I=found)
    matrix = training.matrix()
    for shrinkage in (0.0, 10.0, 50.0):
        similar = cosine(matrix, shrinkage)
        for neighbors in (20, 50, 100, 200, num):
            kept = nearest(similar, neighbors)
            for decay in DECAYS:
                name = "item-knn" if decay is None else "item-knn-recency"
                chosen = {"shrinkage": shrinkage, "neighbors": neighbors, "decay": decay}
                yield Baseline(name, chosen, 0.0, 0, kept)
    for half_life, both, power in product((2.0, 5.0, 10.0), (True, False), (0.3, 0.5, 0.7)):
        similar = sequential(training, half_life, both_ways=both, popular=power)
        for decay in DECAYS[1:]:
            chosen = {"half_life": half_life, "both_ways": both, "popular": power, "decay": decay}
            yield Baseline("item-knn-sequential", chosen, 0.0, 0, similar)


def tune(
    training: Histories,
    histories: Histories,
    questions: Questions,
    k: int = 10,
    *,
    exclude_seen: bool = True,
) -> list[Baseline]:
    """Choose the settings of every baseline by its ndcg@k on the validation split.

    Parameters
    ----------
    training : Histories
        With times for ``popular-recent``.
    histories : Histories
        Those of the validation cases, in order.
    questions : Questions
        The validation cases.
    k : int
    exclude_seen : bool

    Returns
    -------
    list of Baseline
        One of each name. ``item-knn`` weighs all of a history alike, ``item-knn-recency`` its
        latest items more.
    """
    best: dict[str, Baseline] = {}
    tried: dict[str, int] = {}
    for candidate in _candidates(training):
        found = rank(candidate.scorer(histories), questions, k, exclude_seen=exclude_seen)
        score = float(found.values[f"ndcg@{k}"].mean())
        name = candidate.name
        tried[name] = tried.get(name, 0) + 1
        if name not in best or score > best[name].score:
            best[name] = replace(candidate, score=score)
    return [replace(chosen, tried=tried[name]) for name, chosen in best.items()]


def judge(
    baselines: Sequence[Baseline],
    histories: Histories,
    questions: Questions,
    k: int = 10,
    *,
    exclude_seen: bool = True,
    split: str = "test",
) -> list[Ranked]:
    """Rank the catalogue by each baseline."""
    return [
        rank(
            baseline.scorer(histories), questions, k,
            exclude_seen=exclude_seen, model=baseline.name, split=split,
        )
        for baseline in baselines
    ]  # fmt: skip

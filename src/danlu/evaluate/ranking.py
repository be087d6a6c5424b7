"""Metrics of recommenders: the whole catalogue ranked for every case.

There are no metrics over sampled candidates here: they need not even order two models as the
full ranking does (Krichene & Rendle, "On Sampled Metrics for Item Recommendation", 2020).
Shape suffixes: C cases, I items of the catalogue, U users, R resamples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from danlu.evaluate.intervals import Bootstrap, bootstrap_name
from danlu.log import Metric

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scorer = Callable[[Ints], NDArray[np.floating[Any]]]
"""Given cases, the scores of all items, shape (cases, I); higher is better."""

_CELLS = 1 << 24  # scores at hand at once: 64 MiB of float32


@dataclass(frozen=True, slots=True)
class Questions:
    """What is to be recommended to whom, as places in the catalogue.

    Attributes
    ----------
    user_C : NDArray of int64, shape (C,)
        Any numbers; cases of one user are averaged first.
    history_CI : csr_array of float64, shape (C, I)
        More than 0 at items that were seen.
    truth_CI : csr_array of float64, shape (C, I)
        1 at items to be found.
    outside_C : NDArray of int64, shape (C,)
        Items to be found that are not in the catalogue. They count as missed: leaving them
        out would flatter whoever cannot recommend what is new.
    """

    user_C: Ints
    history_CI: csr_array
    truth_CI: csr_array
    outside_C: Ints

    def __len__(self) -> int:
        return len(self.user_C)

    @property
    def num_items(self) -> int:
        """I, the items of the catalogue."""
        return int(self.truth_CI.shape[1])

    @classmethod
    def of(
        cls,
        user_C: Ints,
        histories: Sequence[Sequence[int]],
        truths: Sequence[Sequence[int]],
        outside_C: Ints,
        num_items: int,
    ) -> Questions:
        """Build the matrices from places in the catalogue, the oldest first.

        An item that is to be found twice in one case is to be found once.
        """
        history = indicator(histories, num_items)
        return cls(user_C, history, indicator(truths, num_items), outside_C)


def indicator(lists: Sequence[Sequence[int]], num_items: int) -> csr_array:
    """Return the matrix that is 1 where a row's list holds the column."""
    sizes = np.fromiter(map(len, lists), np.int64, len(lists))
    column = np.fromiter((i for own in lists for i in own), np.int64, int(sizes.sum()))
    row = np.repeat(np.arange(len(lists)), sizes)
    found = csr_array((np.ones(len(row)), (row, column)), shape=(len(lists), num_items))
    found.sum_duplicates()
    found.data[:] = 1.0
    return found


@dataclass(frozen=True, slots=True)
class Ranked:
    """How well one recommender answered.

    Attributes
    ----------
    model, split : str
    k : int
    user_U : NDArray of int64, shape (U,)
        Ascending.
    values : dict of str to NDArray of float64, shape (U,)
        Each user's mean over the cases: ``hr@k`` (any was found), ``recall@k`` (the share
        found), ``ndcg@k``, ``mrr@k`` and ``mrr`` (of the first found).
    coverage : float
        Share of the catalogue that was recommended to anyone.
    counts : dict of str to int
        ``cases``, ``users``, ``items``, ``targets``; of these ``outside`` the catalogue and
        ``seen``, which are never recommended again where seen items are left out; both are
        missed.
    case_C, user_C : NDArray of int64, shape (C,)
        The cases that were asked, ascending, and whose each is.
    value_CM : NDArray of float64, shape (C, 5)
        The values of each, in the order of `values`.
    """

    model: str
    split: str
    k: int
    user_U: Ints
    values: dict[str, Floats]
    coverage: float
    counts: dict[str, int]
    case_C: Ints
    user_C: Ints
    value_CM: Floats

    @classmethod
    def of(
        cls, model: str, split: str, k: int, coverage: float, counts: dict[str, int],
        case_C: Ints, user_C: Ints, value_CM: Floats,
    ) -> Ranked:  # fmt: skip
        """Average each user's cases."""
        users, of_user = np.unique(user_C, return_inverse=True)
        number = np.bincount(of_user)
        names = (f"hr@{k}", f"recall@{k}", f"ndcg@{k}", f"mrr@{k}", "mrr")
        columns = zip(names, value_CM.T, strict=True)
        means = {name: np.bincount(of_user, column) / number for name, column in columns}
        return cls(model, split, k, users, means, coverage, counts, case_C, user_C, value_CM)

    def save(self, folder: Path) -> None:
        """Write ``MODEL.npz``."""
        about = json.dumps([self.model, self.split, self.k, self.coverage, self.counts])
        np.savez_compressed(
            folder / f"{self.model}.npz",
            about=np.asarray(about),
            case_C=self.case_C, user_C=self.user_C, value_CM=self.value_CM,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: Path, model: str) -> Ranked:
        """Read what :meth:`save` wrote."""
        with np.load(folder / f"{model}.npz") as found:
            arrays = [found[name] for name in ("case_C", "user_C", "value_CM")]
            return cls.of(*json.loads(str(found["about"])), *arrays)

    def within(self, case_C: Ints, split: str) -> Ranked:
        """Return how well it answered some of the cases; coverage and counts stay the whole's."""
        here = np.isin(self.case_C, case_C)
        return Ranked.of(
            self.model, split, self.k, self.coverage, self.counts,
            self.case_C[here], self.user_C[here], self.value_CM[here],
        )  # fmt: skip


def rank(
    scorer: Scorer,
    questions: Questions,
    k: int = 10,
    *,
    exclude_seen: bool = True,
    model: str = "",
    split: str = "test",
) -> Ranked:
    """Rank the whole catalogue for every case.

    Parameters
    ----------
    scorer : callable
        It is given ascending case numbers, as many as fit in memory.
    questions : Questions
        Cases with nothing to be found are left out.
    k : int
    exclude_seen : bool
        Whether the items of a case's history are no candidates.
    model, split : str
        Names for reports.

    Raises
    ------
    ValueError
        If a score is not a number, or the shape is wrong, or nothing is to be found.

    Notes
    -----
    A tie is lost: an item's rank counts all candidates that score no less, so that a model
    which scores all alike finds nothing. Of ndcg (Järvelin & Kekäläinen, 2002) the ideal has
    min(k, items to be found) at the top.
    """
    wanted_C = np.asarray(questions.truth_CI.sum(1)).ravel().astype(np.int64)
    wanted_C = wanted_C + questions.outside_C
    cases = np.flatnonzero(wanted_C)
    if not len(cases):
        raise ValueError("nothing is to be found in any case")
    block = max(1, _CELLS // questions.num_items)
    recommended = np.zeros(questions.num_items, bool)
    found: list[Floats] = []
    seen = 0
    for start in range(0, len(cases), block):
        rows = cases[start : start + block]
        score = _scores(scorer, rows, questions, exclude_seen)
        truth = questions.truth_CI[rows].tocoo()
        place = _places(score, truth.row, truth.col)
        seen += int(np.isinf(place).sum())
        found.append(_measure(place, truth.row, wanted_C[rows], k))
        recommended[_top(score, k)] = True
    counts = {
        "cases": len(cases), "users": len(np.unique(questions.user_C[cases])),
        "items": questions.num_items, "targets": int(wanted_C.sum()),
        "outside": int(questions.outside_C.sum()), "seen": seen,
    }  # fmt: skip
    return Ranked.of(
        model, split, k, float(recommended.mean()), counts,
        cases, questions.user_C[cases], np.concatenate(found),
    )  # fmt: skip


def _scores(scorer: Scorer, rows: Ints, questions: Questions, exclude: bool) -> NDArray[Any]:
    """Return scores of the candidates; minus infinity for items that are none."""
    score = np.array(scorer(rows))  # a copy, since it is written to
    if score.shape != (len(rows), questions.num_items):
        raise ValueError(f"scores of shape {score.shape}, not {(len(rows), questions.num_items)}")
    if not np.isfinite(score).all():
        raise ValueError("scores must be finite numbers")
    score = score.astype(np.float32 if score.dtype == np.float32 else np.float64, copy=False)
    if exclude:
        history = questions.history_CI[rows].tocoo()
        seen = history.data > 0
        score[history.row[seen], history.col[seen]] = -np.inf
    return score


def _places(score: NDArray[Any], row: Ints, column: Ints) -> Floats:
    """Return each pair's rank from 1, a tie lost; infinite where it is no candidate."""
    own = score[row, column]
    place = np.empty(len(own))
    step = max(1, _CELLS // score.shape[1])
    for start in range(0, len(own), step):
        here = slice(start, start + step)
        place[here] = (score[row[here]] >= own[here, None]).sum(1)
    place[np.isneginf(own)] = np.inf
    return place


def _measure(place: Floats, row: Ints, wanted: Ints, k: int) -> Floats:
    """Return the five metrics of each case, shape (cases, 5)."""
    n = len(wanted)
    hit = place <= k
    hits = np.bincount(row[hit], minlength=n)
    gain = np.bincount(row[hit], 1 / np.log2(1 + place[hit]), minlength=n)
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[np.minimum(wanted, k) - 1]
    first = np.full(n, np.inf)
    np.minimum.at(first, row, place)
    reciprocal = 1 / first
    at_k = np.where(first <= k, reciprocal, 0.0)
    return np.stack([hits > 0, hits / wanted, gain / ideal, at_k, reciprocal], axis=1)


def _top(score: NDArray[Any], k: int) -> Ints:
    """Return the items among the k best of any row; of ties those that stand first."""
    best = top(score, k)
    found: Ints = np.unique(best[np.isfinite(np.take_along_axis(score, best, 1))])
    return found


def top(score: NDArray[Any], k: int) -> Ints:
    """Return the columns of each row's k best scores, the best first; of ties the first.

    >>> top(np.array([[1.0, 3.0, 3.0, 2.0]]), 3).tolist()
    [[1, 2, 3]]
    """
    k = min(k, score.shape[1])
    # All that are no worse than the k-th, so that ties are broken the same way every time.
    edge = -np.partition(-score, k - 1, axis=1)[:, k - 1 : k]
    found = np.empty((len(score), k), np.int64)
    for row, (own, least) in enumerate(zip(score, edge, strict=True)):
        column = np.flatnonzero(own >= least)
        found[row] = column[np.argsort(-own[column], kind="stable")[:k]]
    return found


def metrics(ranked: Ranked, resamples: int = 1000, seed: int = 0) -> list[Metric]:
    """Return the means over users, with intervals that resample users."""
    bootstrap = Bootstrap(len(ranked.user_U), resamples, seed)
    rows = []
    for name, value_U in ranked.values.items():
        low, high = _interval(bootstrap, value_U)
        rows.append(_row(ranked, name, float(value_U.mean()), low, high, bootstrap_name(resamples)))
    coverage = Metric(
        "evaluate", ranked.model, ranked.split, f"coverage@{ranked.k}", ranked.coverage,
        None, None, ranked.counts["items"], "share",
    )  # fmt: skip
    return [*rows, coverage]


def differences(
    ranked: Ranked, other: Ranked, resamples: int = 1000, seed: int = 0
) -> list[Metric]:
    """Return by how much one recommender beats another on the same users, paired by user.

    Raises
    ------
    ValueError
        If they were not judged on the same users.
    """
    if not np.array_equal(ranked.user_U, other.user_U):
        raise ValueError(f"{ranked.model} and {other.model} were judged on different users")
    bootstrap = Bootstrap(len(ranked.user_U), resamples, seed)
    rows = []
    for name in ranked.values:
        gap_U = ranked.values[name] - other.values[name]
        low, high = _interval(bootstrap, gap_U)
        how = bootstrap_name(resamples, paired=True)
        rows.append(_row(ranked, f"{name} - {other.model}", float(gap_U.mean()), low, high, how))
    return rows


def _interval(bootstrap: Bootstrap, value_U: Floats) -> tuple[float | None, float | None]:
    return bootstrap.interval(bootstrap.values(lambda rows: float(value_U[rows].mean())))


def _row(
    ranked: Ranked, name: str, value: float, low: float | None, high: float | None, how: str
) -> Metric:
    units = {"mrr": "reciprocal rank", "ndcg": "share of the ideal gain"}
    unit = units.get(name.partition("@")[0], "share")
    n = len(ranked.user_U)
    if n < 2:
        low, high, how = None, None, ""
    return Metric("evaluate", ranked.model, ranked.split, name, value, low, high, n, unit, how)

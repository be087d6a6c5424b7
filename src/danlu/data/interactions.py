"""Interactions: who did something with which item, and when; and how they are split.

A table of interactions becomes one long row, user by user and each in the order of time, so
that a history, and what came after it, are slices of that row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from danlu.data.clock import read_times
from danlu.data.split import NAMES, TEST, TRAIN, VALIDATION, by_time, check
from danlu.errors import DataError

Ints = NDArray[np.int64]

REASONS = ("no user", "no item", "no readable time", "a copy of a row before")
"""Why a row is set aside; the first of several counts. Copies are alike in user, item and time."""
_ARRAYS = ("users", "items", "user_N", "item_N", "time_N", "row_N", "dates")
_FILE = "events.npz"


@dataclass(frozen=True, slots=True)
class Interactions:
    """A table of interactions, sorted by user and then by time.

    Attributes
    ----------
    users, items : NDArray of str
        Names, ascending.
    user_N, item_N : NDArray of int64, shape (n,)
        Whose each interaction is, and with what: places in `users` and `items`.
    time_N : NDArray of float64, shape (n,)
        In the table's unit; in seconds since 1970, UTC, where the table has dates.
    row_N : NDArray of int64, shape (n,)
        The row of the table.
    dates : bool
        Whether the times are dates.
    """

    users: NDArray[np.str_]
    items: NDArray[np.str_]
    user_N: Ints
    item_N: Ints
    time_N: NDArray[np.float64]
    row_N: Ints
    dates: bool

    def __len__(self) -> int:
        return len(self.user_N)

    def where(self, kept_N: NDArray[np.bool_]) -> Interactions:
        """Return those interactions; users and items keep their places."""
        columns = ("user_N", "item_N", "time_N", "row_N")
        return replace(self, **{name: getattr(self, name)[kept_N] for name in columns})

    def names(self, begin: int, end: int) -> list[str]:
        """Return the names of the items from one interaction up to another."""
        found: list[str] = self.items[self.item_N[begin:end]].tolist()
        return found


def gather(
    user: Sequence[Any], item: Sequence[Any], time: Sequence[Any]
) -> tuple[Interactions, dict[str, int], NDArray[np.object_]]:
    """Read a long table of interactions, one in each row.

    Parameters
    ----------
    user, item : sequence
        Names; what is not a string is taken as it prints.
    time : sequence of float, str or datetime
        See :func:`danlu.data.clock.read_times`.

    Returns
    -------
    Interactions
        Interactions of one user and instant stand in the order of the table.
    counts : dict of str to int
        ``rows``; those set aside for each of :data:`REASONS`; ``kept``; and of these ``repeats``
        (a user with an item once more) and ``tied`` (no later than the same user's interaction
        before, so that their order is the table's).
    reason_R : NDArray of str or None, shape (rows,)
        Why each row was set aside.

    Raises
    ------
    DataError
        If the columns differ in length, no time can be read, or nothing is left.
    """
    for name, column in {"item": item, "time": time}.items():
        if len(column) != len(user):
            raise DataError(
                f"{len(user)} users but {len(column)} cells of {name}", where=f"events.{name}"
            )
    moment_R, dates = read_times(time, "events.time") if len(time) else (np.empty(0), False)
    user_R, item_R = list(map(name_of, user)), list(map(name_of, item))
    reason_R = np.full(len(user), None, object)
    unfit = (np.isnan(moment_R), [not n for n in item_R], [not n for n in user_R])
    for reason, there in zip(REASONS[2::-1], unfit, strict=True):
        reason_R[np.asarray(there, bool)] = reason  # the first of several is written last
    row_N = np.flatnonzero(reason_R == None)  # noqa: E711 - of each element
    if not len(row_N):
        told = ", ".join(f"{(reason_R == r).sum()} with {r}" for r in REASONS[:3])
        raise DataError(
            f"none of {len(user):,} rows has a user, an item and a time ({told})",
            where="events",
            mend="name the columns in events.user, events.item and events.time",
        )
    users, user_N = np.unique([user_R[row] for row in row_N], return_inverse=True)
    items, item_N = np.unique([item_R[row] for row in row_N], return_inverse=True)
    order = np.lexsort((row_N, moment_R[row_N], user_N))
    found = Interactions(
        users, items, user_N[order], item_N[order], moment_R[row_N][order], row_N[order], dates
    )
    first = _first_of(found.user_N, found.item_N, found.time_N)
    reason_R[found.row_N[~first]] = REASONS[3]
    found = found.where(first)
    counts = {"rows": len(user)} | {r: int((reason_R == r).sum()) for r in REASONS}
    counts["kept"] = len(found)
    counts["repeats"] = int((~_first_of(found.user_N, found.item_N)).sum())
    same = (np.diff(found.user_N) == 0) & (np.diff(found.time_N) == 0)
    counts["tied"] = int(same.sum())
    return found, counts, reason_R


def name_of(cell: Any) -> str:
    """Return a name without the space around it; empty where nothing stands there.

    >>> name_of(" 7"), name_of(7), name_of(None)
    ('7', '7', '')
    """
    return "" if cell is None or cell != cell else str(cell).strip()  # NaN differs from itself


def _first_of(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Say of each row whether it is the first that holds these cells."""
    order = np.lexsort(columns[::-1])  # stable: of equal rows the first stands first
    differs = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    first = np.empty(len(order), bool)
    first[order] = np.concatenate(([True], differs))
    return first


def save(folder: Path, events: Interactions, part_N: NDArray[np.str_]) -> None:
    """Write interactions, and the split of each, to ``events.npz``."""
    arrays: dict[str, Any] = {name: getattr(events, name) for name in _ARRAYS}
    np.savez_compressed(folder / _FILE, part_N=part_N, **arrays)


def load(folder: Path) -> tuple[Interactions, NDArray[np.str_]]:
    """Read what :func:`save` wrote."""
    with np.load(folder / _FILE) as arrays:
        return Interactions(**{name: arrays[name] for name in _ARRAYS}), arrays["part_N"]


Assigned = tuple[Interactions, NDArray[np.str_], dict[str, int]]


def split_last(events: Interactions, min_user: int = 5) -> Assigned:
    """Test on each user's last interaction, validate on the one before, train on the rest.

    Parameters
    ----------
    events : Interactions
    min_user : int
        At least 3. The interactions of users with fewer are set aside.

    Returns
    -------
    events : Interactions
        Those that are left.
    part_N : NDArray of str, shape (n,)
        ``train``, ``validation`` or ``test``.
    counts : dict of str to int
        ``few_users`` and ``few_events`` set aside; interactions in each split;
        ``tied_test``, users whose last interaction is no later than the one before, so that
        only the table's order makes it the last; and ``later_train``, training interactions
        that are later than the earliest tested one: the leak.

    Raises
    ------
    DataError
        If no user has enough.

    Notes
    -----
    This is the custom of the literature, and it leaks: a user's last interaction may be years
    old, and the model has then been trained on what others did afterwards, such as on items
    that did not exist (Ji et al., "A Critical Study on Data Leakage in Recommender System
    Offline Evaluation", 2023; Meng et al., "Exploring Data Splitting Strategies for the
    Evaluation of Recommendation Models", 2020). Its figures cannot be had in service; those
    of :func:`split_time`, the default of recipes, can.
    """
    if min_user < 3:
        raise DataError("three interactions are needed to set two apart", where="events.min_user")
    kept_N, counts = _of_many(events.user_N, min_user)
    events = events.where(kept_N)
    if not len(events):
        raise DataError(
            f"no user has {min_user} interactions", where="events.min_user", mend="lower it"
        )
    last = np.append(events.user_N[1:] != events.user_N[:-1], True)
    part_N = np.full(len(events), TRAIN, dtype="<U10")
    part_N[last] = TEST
    part_N[np.flatnonzero(last) - 1] = VALIDATION
    counts |= {name: int((part_N == name).sum()) for name in NAMES}
    at = np.flatnonzero(last)
    counts["tied_test"] = int((events.time_N[at] == events.time_N[at - 1]).sum())
    late = events.time_N > events.time_N[part_N == TEST].min()
    counts["later_train"] = int((late & (part_N == TRAIN)).sum())
    return events, part_N, counts


def split_time(
    events: Interactions, min_user: int = 5, test: float = 0.1, validation: float = 0.1
) -> Assigned:
    """Test on all interactions after one moment and validate on those before, since another.

    Parameters
    ----------
    events : Interactions
    min_user : int
        Users with fewer training interactions are set aside from training; of what they
        do later nothing is set aside.
    test, validation : float
        Shares of the interactions. Those of one instant stay together.

    Returns
    -------
    events, part_N
        See :func:`split_last`.
    counts : dict of str to int
        ``few_users`` and ``few_events`` set aside; interactions in each split, and
        ``test_users``; ``new_users``, those of them that do nothing before the test, for
        whom nobody can know a thing at its beginning.

    Raises
    ------
    DataError
        If a split would be empty.

    Notes
    -----
    Nothing after the moment is seen in training, as in service; see :func:`split_last` on
    why this is the honest figure (Ji et al., 2023; Meng et al., 2020).
    """
    part_N = by_time(events.time_N, test, validation)
    before = part_N == TRAIN
    kept_N, counts = _of_many(events.user_N, min_user, before)
    events, part_N = events.where(kept_N), part_N[kept_N]
    if before.any() and not (part_N == TRAIN).any():
        raise DataError(
            f"no user has {min_user} interactions in the training period, of which there are "
            f"{int(before.sum()):,}",
            where="events.min_user",
            mend="lower it, or bring more of each user's history",
        )
    check(part_N)
    counts |= {name: int((part_N == name).sum()) for name in NAMES}
    tested = np.unique(events.user_N[part_N == TEST])
    counts["test_users"] = len(tested)
    counts["new_users"] = len(np.setdiff1d(tested, events.user_N[part_N != TEST]))
    return events, part_N, counts


def _of_many(
    user_N: Ints, minimum: int, counted_N: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Say which interactions stay where users with few of the counted ones lose these."""
    counted_N = np.ones(len(user_N), bool) if counted_N is None else counted_N
    number = np.bincount(user_N[counted_N], minlength=user_N.max(initial=-1) + 1)
    lost_N = counted_N & (number < minimum)[user_N]
    return ~lost_N, {
        "few_users": int(((number > 0) & (number < minimum)).sum()),
        "few_events": int(lost_N.sum()),
    }


@dataclass(frozen=True, slots=True)
class Cases:
    """What is asked of a recommender: to continue each history.

    All are slices of the interactions: the history of case c is ``begin_C[c]:cut_C[c]`` and
    the truth ``cut_C[c]:end_C[c]``.

    Attributes
    ----------
    user_C : NDArray of int64, shape (C,)
        Whose history it is; a user may have several.
    begin_C, cut_C, end_C : NDArray of int64, shape (C,)
    counts : dict of str to int
        ``cases``, their ``users``, and the cases ``without_history``.
    """

    user_C: Ints
    begin_C: Ints
    cut_C: Ints
    end_C: Ints
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.user_C)

    @classmethod
    def of(
        cls,
        events: Interactions,
        part_N: NDArray[np.str_],
        part: str,
        target: Literal["next", "all"] = "next",
    ) -> Cases:
        """Return the questions of a split.

        Parameters
        ----------
        events : Interactions
        part_N : NDArray of str, shape (n,)
        part : {"train", "validation", "test"}
        target : {"next", "all"}
            ``next`` asks at each instant of the user for what is done at it, and tells all
            that the user did before it, in the tested period too, as a service knows it.
            ``all`` asks once, at the period's beginning, for all that the user does in it.

        Notes
        -----
        Interactions of one instant are asked for together: none of them is told. Where they
        lie in different splits, as they may when split by the last interaction, the order of
        the table decides what came before.
        """
        asked = np.flatnonzero(part_N == part)
        new = np.ones(len(asked), bool)
        if len(asked):
            same_user = np.diff(events.user_N[asked]) == 0
            same_time = np.diff(events.time_N[asked]) == 0
            new[1:] = ~(same_user & same_time) if target == "next" else ~same_user
        cut_C = asked[new]
        end_C = np.append(asked[np.flatnonzero(new)[1:] - 1], asked[-1:]) + 1
        user_C = events.user_N[cut_C]
        begin_C = events.user_N.searchsorted(user_C)
        counts = {
            "cases": len(cut_C),
            "users": len(np.unique(user_C)),
            "without_history": int((begin_C == cut_C).sum()),
        }
        return cls(user_C, begin_C, cut_C, end_C, counts)

    def histories(self, events: Interactions) -> list[list[str]]:
        """Return the names of the items of each history, the oldest first."""
        pairs = zip(self.begin_C.tolist(), self.cut_C.tolist(), strict=True)
        return [events.names(begin, cut) for begin, cut in pairs]

    def truth(self, events: Interactions) -> list[list[str]]:
        """Return the names of the items that came next in each case."""
        pairs = zip(self.cut_C.tolist(), self.end_C.tolist(), strict=True)
        return [events.names(cut, end) for cut, end in pairs]


def training_histories(events: Interactions, part_N: NDArray[np.str_]) -> list[list[str]]:
    """Return the names of each user's training interactions, the oldest first."""
    rows = np.flatnonzero(part_N == TRAIN)
    bounds = np.flatnonzero(np.diff(events.user_N[rows])) + 1
    return [events.items[events.item_N[own]].tolist() for own in np.split(rows, bounds) if len(own)]

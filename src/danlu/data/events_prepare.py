"""The data stage of interactions: read, put in order, split.

A user is often a person: what reaches the disk tells users apart and names none. Everything that
is set aside goes to ``rejects.parquet`` with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from danlu.artifact import write_json
from danlu.data import describe
from danlu.data.assign import pseudonym, rule_of
from danlu.data.clock import show
from danlu.data.interactions import (
    REASONS,
    Interactions,
    gather,
    name_of,
    save,
    split_last,
    split_time,
)
from danlu.data.long_table import by_column, cells_of, keep_cells, land, readable, with_reasons
from danlu.data.sources import Columns, File
from danlu.data.split import NAMES, TEST
from danlu.recipe import Recipe

Row = dict[str, Any]
_MUCH = 0.01  # share of the interactions from which on a peculiarity is a finding


def prepare(
    recipe: Recipe, files: list[File], folder: Path, say: Callable[[str], None] = lambda _: None
) -> None:
    """Write the data artifact of interactions.

    Parameters
    ----------
    recipe : Recipe
        Filled.
    files : list of File
        From :func:`danlu.data.sources.open_source`.
    folder : Path
        Receives what :func:`danlu.data.prepare.prepare` writes, and all interactions with their
        splits, see :func:`danlu.data.interactions.save`.
    say : callable
        Told of each step as it is done.

    Raises
    ------
    DataError
        If there is nothing to read, no user has enough interactions, or a split is empty.
    """
    own = recipe.events
    named = (own.user, own.item, own.time)
    records, rows = land(files, Columns(None, others=named), folder, _refiner(recipe))
    usable = readable(rows)
    columns = by_column(cells_of(rows.take(usable)))
    found, counts, why = gather(*(columns[name] for name in named))
    if rule_of(recipe)[0] == "last":
        events, part, assigned = split_last(found, own.min_user)
    else:
        shares = recipe.data.split
        events, part, assigned = split_time(found, own.min_user, shares.test, shares.validation)
    few = np.setdiff1d(found.row_N, events.row_N)
    why[few] = f"of a user with fewer than {own.min_user} interactions to train on"
    save(folder, events, part)
    reasons = np.asarray(rows["reason"].to_pylist(), object)
    reasons[usable] = why
    rejects = with_reasons(rows, reasons.tolist())
    pq.write_table(rejects, folder / "rejects.parquet")
    splits = {}
    for name in NAMES:
        pq.write_table(rows.take(usable[events.row_N[part == name]]), folder / f"{name}.parquet")
        splits[name] = _split_report(events, part == name)
    steps = [
        {"step": "read", "rows": rows.num_rows},
        {"step": "readable", "rows": len(usable)},
        {"step": "with user, item and time", "rows": len(found) + counts[REASONS[3]]},
        {"step": "without copies", "rows": len(found)},
        {"step": "of users with enough", "rows": len(events)},
    ]
    for step in steps:
        say(f"{step['step']}: {step['rows']:,} rows")
    report = {
        "task": recipe.data.task,
        "classes": [],
        "files": records,
        "as_read": [],
        "funnel": steps,
        "rejects": describe.rejects(rejects),
        "events": counts | {key: value for key, value in assigned.items() if key not in NAMES},
        "clusters_of_several": 0,
        "splits": splits,
        "findings": _findings(recipe, counts, assigned),
    }
    write_json(folder / "report.json", report)


def _refiner(recipe: Recipe) -> Callable[[Row], Row]:
    """Return what keeps the three cells of a row, the user's under another name."""
    own = recipe.events
    wanted = (own.user, own.item, own.time)

    def refine(row: Row) -> Row:
        if (record := row.get("record")) is not None:
            name = name_of(record.get(own.user))
            row["record"] = {**record, own.user: pseudonym(name) if name else None}
        return keep_cells(row, wanted)

    return refine


def _split_report(events: Interactions, here: NDArray[np.bool_]) -> Row:
    time = events.time_N[here]
    bounds = [show(float(t), events.dates) for t in (time.min(), time.max())]
    first, last = (int(t) if isinstance(t, float) and t.is_integer() else t for t in bounds)
    return {
        "rows": int(here.sum()),
        "users": len(np.unique(events.user_N[here])),
        "items": len(np.unique(events.item_N[here])),
        "from": first,
        "to": last,
    }


def _findings(recipe: Recipe, counts: dict[str, int], assigned: dict[str, int]) -> list[str]:
    """Say in sentences what is peculiar about the interactions."""
    found = [f"{counts[r]:,} rows were set aside: {r}." for r in REASONS if counts[r]]
    if assigned["few_events"]:
        found.append(
            f"Interactions set aside because their users have fewer than {recipe.events.min_user}: "
            f"{assigned['few_events']:,}, of {assigned['few_users']:,} users."
        )
    if counts["tied"] > _MUCH * counts["kept"]:
        found.append(
            f"{counts['tied']:,} of {counts['kept']:,} interactions are no later than their "
            "user's one before: the file's order is theirs, and the test asks for them together."
        )
    if counts["repeats"]:
        never = "; what is repeated is never recommended, and counts as missed"
        found.append(
            f"{counts['repeats']:,} interactions repeat an item of the same user"
            f"{never if recipe.events.exclude_seen else ''}."
        )
    if assigned.get("new_users"):
        found.append(
            f"{assigned['new_users']:,} of {assigned['test_users']:,} test users do nothing "
            "before the test begins; their first interaction is foretold from nothing."
        )
    if assigned.get("later_train"):
        found.append(
            f"THE SPLIT LEAKS: {assigned['later_train']:,} training interactions are later than "
            f"the earliest of {assigned[TEST]:,} tested ones; no service could know them. Split "
            f"by 'time:{recipe.events.time}' for figures that can be had."
        )
    return found

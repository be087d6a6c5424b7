"""Protected attributes: which group a row belongs to, kept beside what the model reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from danlu.data.table import number, tidy
from danlu.recipe.rules import attribute

NONE, SEVERAL, MISSING = "(none)", "(several)", "(not stated)"
"""Groups of rows whose columns of zeros and ones name no group, or more than one; and of rows
in which nothing stands."""


def missing(names: Iterable[str], columns: Sequence[str]) -> list[str]:
    """Return the names of attributes that no column answers to."""

    def there(name: str) -> bool:
        if name.endswith("*"):
            return any(column.startswith(name[:-1]) for column in columns)
        return name in columns

    return [name for name in names if not there(name)]


def of(record: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a row's cell for each attribute.

    Parameters
    ----------
    record : dict
        A row of a table.
    names : iterable of str
        Columns; or, with ``*`` at the end, prefixes of columns of zeros and ones, of which the
        one that is above a half names the group.

    Examples
    --------
    >>> of({"age": 31, "race_Black": "1", "race_White": "0"}, ["age", "race_*"])
    {'age': 31, 'race': 'Black'}
    """
    return {
        attribute(name): _chosen(record, name[:-1])
        if name.endswith("*")
        else tidy(record.get(name))
        for name in names
    }


def _chosen(record: dict[str, Any], prefix: str) -> str | None:
    cells = {key.removeprefix(prefix): cell for key, cell in record.items()
             if key.startswith(prefix)}  # fmt: skip
    cells = {key: tidy(cell) for key, cell in cells.items()}
    if all(cell is None for cell in cells.values()):
        return None
    chosen = [key for key, cell in cells.items() if cell == "true" or number(cell) > 0.5]
    return chosen[0] if len(chosen) == 1 else SEVERAL if chosen else NONE

"""What ``danlu new`` finds out of every kind of data, and how it becomes a recipe."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from danlu.data.readers import File

Rows = list[dict[str, Any]]

CLASSES = 30
"""Most different values that a label may have without being a number to foretell."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Tables that were looked into.

    Attributes
    ----------
    data : Path
        What the user named.
    file : File
        The first of its files.
    sources : list of dict
        What a recipe must say to read them.
    rows : list of dict
        The first rows.
    total : int
        About how many rows there are.
    """

    data: Path
    file: File
    sources: list[dict[str, Any]]
    rows: Rows
    total: int

    @property
    def names(self) -> list[str]:
        """The columns."""
        return list(self.rows[0])

    def cells(self, name: str) -> list[Any]:
        """Return one column."""
        return [row.get(name) for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class Guess(ABC):
    """What was seen, what it suggests, and why.

    Attributes
    ----------
    data : Path
    task : str
    label : str or None
        Column.
    sources : list of dict
        As the recipe has them; paths as the user gave them.
    rows : int
        At least; of tables only a sample is read.
    reasons : list of str
    """

    modality: ClassVar[str]

    data: Path
    task: str
    label: str | None
    sources: list[dict[str, Any]]
    rows: int
    reasons: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the guess as plain values."""
        return asdict(self) | {"data": str(self.data), "modality": self.modality}

    @abstractmethod
    def reads(self) -> str:
        """Return the lines of ``[data]`` that are this kind's own, each with its line end."""

    @abstractmethod
    def sections(self) -> str:
        """Return the sections behind ``[data]``; a tab stands before each comment."""

    def recipe(self, base: Path) -> str:
        """Return the recipe, for a file in the folder `base`."""
        reasons = "\n".join(f"#   {reason}" for reason in self.reasons)
        sources = "\n".join(f"  {_table(source, base)}," for source in self.sources)
        label = f"label = {quote(self.label)}\n" if self.label else ""
        content = f"""# Written by `danlu new` after a look at {self.data.name}:
{reasons}
# `danlu check` shows every value that is derived; `danlu schema` lists every key.
seed = 0

[data]
modality = "{self.modality}"
task = "{self.task}"
{self.reads()}{label}sources = [\t# say where they come from: the licence goes into the model card
{sources}
]

{self.sections().strip()}
"""
        return "\n".join(map(_aligned, content.split("\n")))


def _aligned(line: str) -> str:
    """Return a line whose comment, told by the tab before it, stands below the others.

    No string of a recipe holds a tab: JSON writes it as two characters.
    """
    text, tab, comment = line.partition("\t")
    return f"{text:<28} {comment}" if tab else line


def _table(source: dict[str, Any], base: Path) -> str:
    """Return what a recipe says of one source, its paths as seen from the recipe's folder."""
    places = ("path", "labels")
    told = {key: _seen_from(base, cell) if key in places else cell for key, cell in source.items()}
    cells = {"licence": "not stated"}
    return f"{{ {', '.join(f'{key} = {_value(cell)}' for key, cell in (told | cells).items())} }}"


def _seen_from(base: Path, path: str) -> str:
    return os.path.relpath(Path(path).resolve(), base)


def _value(cell: str | list[str]) -> str:
    if isinstance(cell, list):
        return f"[{', '.join(map(quote, cell))}]"
    # What holds backslashes is a regular expression, which reads better as it is.
    return f"'{cell}'" if "\\" in cell and not re.search("['\x00-\x1f\x7f]", cell) else quote(cell)


def quote(text: str) -> str:
    """Return a string as TOML writes it."""
    # A JSON string is a TOML string, but for the one control character that JSON leaves alone.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")

"""``danlu new`` for interactions: whether rows say who did something with which item, and when."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from danlu.data.clock import read_times
from danlu.data.guess_base import Guess, Rows, Seen, quote
from danlu.data.interactions import name_of
from danlu.errors import DataError

_KEY = r"s?[ _-]?(id|name|key|no|number|code)?"
_USERS = re.compile(
    r"((user|customer|client|member|visitor|session|reader|listener|viewer|buyer|shopper|account"
    rf"|player|student|who){_KEY}|uid)|(用户|客户|顾客|会员)(id|编号|号)?",
    re.IGNORECASE,
)
_ITEMS = re.compile(
    r"((item|product|movie|film|article|book|song|track|artist|game|video|page|course|recipe|app"
    rf"|stock|content|what){_KEY}|sku|asin|isbn|goods|news)|(商品|物品|产品|电影|文章|书)(id|编号|号)?",
    re.IGNORECASE,
)
_TIMES = re.compile(
    r"((event|order|invoice|rating|review|unix|purchase|view|click|start)?[ _-]?"
    r"(time|timestamp|ts|date|datetime|date_time)s?|(created|ordered|bought|played|watched)"
    r"[ _-]?at|when)|(时间|日期|时间戳)",
    re.IGNORECASE,
)
_SURE = 0.99  # share of cells that hold a name, or a time
_AGAIN = 0.5  # most different users for each row: a history has several rows
_PAGE = 60  # mean characters from which cells are texts
_FEW = 5  # interactions of a user that make a history worth learning from


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what, and the interactions that a user needs."""

    user: str
    item: str
    time: str
    min_user: int


@dataclass(frozen=True, kw_only=True)
class EventsGuess(Guess):
    """Interactions.

    Attributes
    ----------
    columns : Columns
    """

    modality: ClassVar[str] = "events"

    columns: Columns

    def reads(self) -> str:
        """Say nothing: the columns have a section of their own."""
        return ""

    def sections(self) -> str:
        """Return the sections behind ``[data]``."""
        small = self.rows < 5000
        return f"""
[data.split]\t# by time: what is recommended must lie ahead
test = 0.1
validation = 0.1

[events]
user = {quote(self.columns.user)}
item = {quote(self.columns.item)}
time = {quote(self.columns.time)}
min_user = {self.columns.min_user}\t# interactions that a user needs to be learnt from
k = 10\t# items recommended, and judged
exclude_seen = true\t# false, where people come back to the same items

[model]
backbone = "gru"\t# or transformer
depth = 1
width = {64 if small else 128}

[pretrain]
objective = "none"

[finetune]
epochs = {30 if small else 24}
batch_size = {16 if small else 32}\t# pieces of histories
optimizer = "adamw"
learning_rate = 3e-3
weight_decay = 0.1
layer_dropout = 0.5
dropout = 0.0
precision = "float32"

[gate]\t# what must hold before the model is released; `- item-knn` or
require = ["test.ndcg@10 - popular > 0"]\t# `- baseline` asks for more than `- popular`
"""


def of_table(seen: Seen, target: str | None, reasons: list[str]) -> EventsGuess | None:
    """Return what a table of interactions suggests; None if it is none, or asks for more."""
    if target is not None:
        return None
    whole = not seen.data.is_dir() and seen.total == len(seen.rows)
    found = find(seen.rows, seen.names, whole, reasons)
    if found is None:
        return None
    return EventsGuess(
        data=seen.data, task="rank", label=None, sources=seen.sources, rows=seen.total,
        reasons=reasons, columns=found,
    )  # fmt: skip


def find(rows: Rows, names: Sequence[str], whole: bool, reasons: list[str]) -> Columns | None:
    """Return the columns of a table of interactions; None if it is none.

    Parameters
    ----------
    rows : list of dict
        The first rows.
    names : sequence of str
        The columns. What follows a colon is the type of it, as RecBole writes.
    whole : bool
        Whether there are no others.
    reasons : list of str
        Receives what was seen.

    Notes
    -----
    Columns are known by their names, for ids look alike; and users and items must come back, and
    times be readable. Where texts stand beside, such as reviews, it is they that are to be read.
    """

    def named(pattern: re.Pattern[str]) -> list[str]:
        return [name for name in names if pattern.fullmatch(name.partition(":")[0].strip())]

    def cells(name: str) -> list[str]:
        return [cell for row in rows if (cell := name_of(row.get(name)))]

    users = [n for n in named(_USERS) if len(set(own := cells(n))) <= _AGAIN * len(own)]
    items = [n for n in named(_ITEMS) if n not in users and len(set(own := cells(n))) < len(own)]
    times = [n for n in named(_TIMES) if _are_times([row.get(n) for row in rows])]
    found = [names_[0] for names_ in (users, items, times) if names_]
    if any(sum(map(len, cells(name))) >= _PAGE * len(rows) for name in names):
        return None
    if len(found) < 3 or any(len(cells(name)) < _SURE * len(rows) for name in found):
        return None
    user, item, time = found
    number = Counter(cells(user))
    often = sum(n for n in number.values() if n >= _FEW)
    min_user = _FEW if not whole or often >= len(rows) / 2 else 2
    reasons.append(f"events: {user!r} says who, {item!r} with what, {time!r} when")
    reasons.append(
        f"{'' if whole else 'the first '}{len(rows):,} rows: {len(number):,} users, "
        f"{len(set(cells(item))):,} items"
    )
    reasons.append("task: rank, what comes next (or name a column to foretell with --target)")
    return Columns(user, item, time, min_user)


def _are_times(cells: list[Any]) -> bool:
    try:
        times, _ = read_times(cells)
    except DataError:
        return False
    return bool(np.isfinite(times).mean() >= _SURE and len(np.unique(times)) > 2)

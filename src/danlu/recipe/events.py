"""The section of a recipe that says how interactions are read, split and judged."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from danlu.recipe.base import Count, Positive, Section


class Events(Section):
    """Who did something with which item, and when; what is asked for is the next item."""

    user: str = "user"
    """Column that says who."""
    item: str = "item"
    """Column that says with what."""
    time: str = "time"
    """Column that says when: a number (seconds, or any unit that grows), or ISO 8601."""
    min_user: Annotated[int, Field(ge=2)] = 5
    """Interactions that a user needs (of the training period, when split by time); the
    interactions of others are set aside."""
    min_item: Positive = 1
    """Training interactions that an item needs to be in the catalogue."""
    split: Literal["time", "last"] = "time"
    """`time` tests on all that comes after a moment, and trains on nothing of it; `last` tests
    on each user's last interaction, and lets the model see what others did after it."""
    max_length: Annotated[int, Field(ge=2)] = 50
    """Positions of a history that the model sees, the latest; one is taken by its beginning."""
    k: Positive = 10
    """Items recommended, and judged."""
    exclude_seen: bool = True
    """Whether an item of a user's history is never recommended to the user again."""
    negatives: Count = 0
    """Items drawn to stand for the rest of the catalogue in the training loss, for catalogues of
    a hundred thousand items and more; 0 for all of them."""

"""The section of a recipe that says how interactions are read, and how a recommender is judged."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from danlu.recipe.base import Count, Positive, Section


class Events(Section):
    """Who did something with which item, and when; what is asked for is the next item."""

    user: str = "user"
    """Column that says who."""
    item: str = "item"
    """Column that says with what."""
    time: str = "time"
    """Column that says when: ISO 8601 dates, or numbers of any unit that grows."""
    min_user: Annotated[int, Field(ge=2)] = 5
    """Interactions that a user needs (of the training period, when split by time); the
    interactions of others are set aside."""
    min_item: Positive = 1
    """Training interactions that an item needs to be in the catalogue."""
    max_length: Annotated[int, Field(ge=2)] = 50
    """Positions of a history that the model sees, the latest; one is taken by its beginning."""
    k: Positive = 10
    """Items recommended, and judged."""
    exclude_seen: bool = True
    """Whether an item of a user's history is never recommended to the user again."""
    negatives: Count = 0
    """Items drawn to stand for the rest of the catalogue in the training loss, for catalogues of
    a hundred thousand items and more; 0 for all of them. What a user has seen is then a negative
    like any other."""

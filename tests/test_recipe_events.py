"""The recipe's section on interactions: what it takes, and what it refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from danlu.recipe.events import Events


def test_it_is_honest_unless_asked_otherwise():
    section = Events()
    assert section.split == "time"
    assert section.exclude_seen is True
    assert section.negatives == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "random"},
        {"min_user": 1},
        {"min_item": 0},
        {"max_length": 1},
        {"k": 0},
        {"negatives": -1},
        {"users": "user"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Events(**wrong)


def test_every_key_says_what_it_is_for():
    assert all(field.description for field in Events.model_fields.values())

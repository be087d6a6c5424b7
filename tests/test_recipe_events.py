"""The recipe's section on interactions: what it takes, and what it refuses."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from danlu.recipe import fill, validate
from danlu.recipe.events import Events


def test_it_is_honest_unless_asked_otherwise():
    section = Events()
    assert section.exclude_seen is True
    assert section.negatives == 0
    data = {"modality": "events", "task": "rank", "sources": [{"path": "a.csv"}]}
    recipe, derived = fill(
        validate({"name": "x", "data": data, "pretrain": {"objective": "none"}}, "it")
    )
    assert recipe.data.split.by == "time:time"
    assert "data.split.by" in derived
    assert recipe.model.causal is True
    assert recipe.finetune.choose_by == "ndcg"


@pytest.mark.parametrize(
    "wrong",
    [
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

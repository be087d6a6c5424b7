"""What a report says of the steps that training did not take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from danlu.artifact import Artifact
from danlu.log import Metric

STAGES = ("pretrain", "finetune")
_REASONS = {
    "loss": "because their loss was not finite",
    "gradient": "because their gradient was not finite",
    "spike": "because their loss was far above those before",
}


def counts(artifacts: Iterable[Artifact]) -> dict[str, dict[str, Any]]:
    """Return of each training stage its ``steps``, those skipped by reason, and its rewinds."""
    return {a.stage: a.json("training.json") for a in artifacts if a.stage in STAGES}


def rows(found: dict[str, dict[str, Any]], model: str) -> list[Metric]:
    """Return the counts as metric rows."""
    names = {reason: f"steps_skipped[{reason}]" for reason in _REASONS} | {"rewinds": "rewinds"}
    return [
        Metric(stage, model, "train", name, one[key], None, None, one["steps"], "steps")
        for stage, one in found.items()
        for key, name in names.items()
    ]


def told(found: dict[str, dict[str, Any]]) -> list[str]:
    """Say which steps were skipped, in a line for each stage and reason; nothing if none was.

    >>> told({"pretrain": {"steps": 2000, "loss": 0, "gradient": 1, "spike": 0, "rewinds": 2}})
    ['pretrain: 1 of 2,000 steps skipped because their gradient was not finite', 'pretrain: went \
back to a checkpoint 2 times']
    """
    lines = []
    for stage, one in found.items():
        lines += [
            f"{stage}: {one[reason]:,} of {one['steps']:,} steps skipped {why}"
            for reason, why in _REASONS.items()
            if one[reason]
        ]
        if one["rewinds"]:
            lines.append(f"{stage}: went back to a checkpoint {one['rewinds']:,} times")
    return lines

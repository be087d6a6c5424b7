"""The release gate: conditions on measured numbers, and it fails closed."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from danlu.log import Metric
from danlu.recipe.sections import GATE_PATTERN

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """One condition and what came of it.

    Attributes
    ----------
    condition : str
    passed : bool
    measured : float or None
        None where nothing was measured, which is a failure.
    reason : str
        In words.
    """

    condition: str
    passed: bool
    measured: float | None
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as plain values."""
        return asdict(self)


def judge(
    conditions: Sequence[str], rows: Sequence[Metric], model: str, baseline: str | None
) -> list[Verdict]:
    """Judge every condition.

    Parameters
    ----------
    conditions : sequence of str
        Such as ``test.accuracy.low >= 0.83``. With ``- baseline``, or the name of one, the
        number is the paired difference, and a bound is that of its interval.
    rows : sequence of Metric
    model : str
        The released model's name.
    baseline : str or None
        The strongest baseline's name.
    """
    return [_judge(condition, rows, model, baseline) for condition in conditions]


def _judge(condition: str, rows: Sequence[Metric], model: str, baseline: str | None) -> Verdict:
    match = re.match(GATE_PATTERN, condition)
    if match is None:
        return Verdict(condition, False, None, "not a condition that danlu can read")
    metric = match["metric"]
    if other := match["minus"]:
        if other == "baseline" and baseline is None:
            return Verdict(condition, False, None, "there is no baseline to compare with")
        metric = f"{metric} - {baseline if other == 'baseline' else other}"
    for row in rows:
        if (row.model, row.split, row.metric) == (model, match["split"], metric):
            number: float | None = getattr(row, match["bound"] or "value")
            if number is None or not math.isfinite(number):
                return Verdict(condition, False, None, "it has no finite value there")
            passed = _SIGNS[match["sign"]](number, float(match["limit"]))
            return Verdict(condition, passed, number, f"measured {number:.4g}")
    return Verdict(condition, False, None, f"{match['split']}.{metric} was not measured")

"""Where training stands."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """Where training stands; saved with every checkpoint, which is always between two steps.

    Attributes
    ----------
    step : int
        Steps of the optimiser done, skipped ones among them.
    batch : int
        Batches drawn, which with the seed is the sampler's whole state: more than the steps
        where training went back to a checkpoint.
    best : float or None
        Lowest badness (or loss) on the validation split so far.
    best_step : int
        When it was reached; 0 for never.
    stale : int
        Evaluations since then.
    counts : dict of str to int
        Steps that were skipped, by reason, and returns to a checkpoint; filled in the end.
    """

    step: int = 0
    batch: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    counts: dict[str, int] = field(default_factory=dict)

"""What keeps a bad batch out of the weights, and stops a training that went astray."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danlu.batch import Batch
from danlu.errors import DivergedError
from danlu.recipe.training import Training

_WINDOW, _LEVEL = 64, 16  # losses whose spread is taken, and the last of them, whose level is
_LEAST = 0.1  # the least spread of the logarithms: a smaller one is chance
_NORMAL = 1.4826  # a normal distribution's deviation in median absolute deviations

Fault = Literal["loss", "gradient", "spike"]
_SAID = {
    "loss": "the loss is not finite",
    "gradient": "the gradient is not finite",
    "spike": "the loss is far above those before",
}


class Guard:
    """Says which steps may be taken, and counts those that may not.

    A loss is compared with the last ones that were learnt from, by their median and a median
    absolute deviation: neither moves much for a few strange ones. Both are of logarithms, which
    serves losses that vary by orders of magnitude as they come near zero; the deviation is that
    of the change from one to the next, so that a loss that falls quickly, as at the beginning,
    has no larger one. A batch smaller than usual, as at the end of an epoch, is allowed to vary
    by as much more as a mean of fewer does.

    Parameters
    ----------
    settings : Training
        ``on_spike``, ``spike_threshold`` and ``max_skipped`` of it.
    model : nn.Module
        Its running statistics are kept from batches that were skipped.

    Attributes
    ----------
    fault : str
        Why the last step was not taken; empty if it was.
    counts : dict of str to int
        Steps skipped, by reason, and rewinds.
    """

    def __init__(self, settings: Training, model: nn.Module) -> None:
        self.settings = settings
        self.fault: Fault | Literal[""] = ""
        self.counts = {"loss": 0, "gradient": 0, "spike": 0, "rewinds": 0}
        self._in_a_row = self._rewinds = 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._running: list[Tensor] = [b for b in model.buffers() if b.is_floating_point()]
        self._before: list[Tensor] = []

    @torch.no_grad()
    def watch(self) -> None:
        """Remember what the forward pass of the next step will change."""
        self._before = [buffer.clone() for buffer in self._running]

    def allows(self, loss: float, norm: float, count: float) -> bool:
        """Say whether a step may be taken; put back the running statistics if not.

        Parameters
        ----------
        loss : float
            Mean loss of the batch.
        norm : float
            Norm of its gradient.
        count : float
            How much the mean is taken over.
        """
        self.fault = ""
        if not math.isfinite(loss):
            self.fault = "loss"
        elif not math.isfinite(norm):
            self.fault = "gradient"
        elif self.settings.on_spike != "keep" and self._is_spike(loss, count):
            self.fault = "spike"
        if not self.fault:
            self._in_a_row = 0
            if loss > 0:
                self._recent.append((math.log(loss), count))
            return True
        self._in_a_row += 1
        self.counts[self.fault] += 1
        with torch.no_grad():
            for buffer, before in zip(self._running, self._before, strict=True):
                buffer.copy_(before)
        return False

    def _is_spike(self, loss: float, count: float) -> bool:
        if loss <= 0 or len(self._recent) <= _LEVEL:
            return False
        logs, counts = map(list[float], zip(*self._recent, strict=True))
        changes = [after - before for before, after in itertools.pairwise(logs)]
        middle = statistics.median(changes)
        # The change of two independent numbers deviates by √2 times as much as either.
        spread = _NORMAL * statistics.median(abs(c - middle) for c in changes) / math.sqrt(2)
        fewer = math.sqrt(max(1.0, statistics.median(counts) / max(count, 1e-9)))
        far = self.settings.spike_threshold * max(_LEAST, spread) * fewer
        return math.log(loss) - statistics.median(logs[-_LEVEL:]) > far

    @property
    def skipped(self) -> int:
        """Steps that were not taken so far."""
        return sum(self.counts[reason] for reason in _SAID)

    def row(self, step: int, loss: float, norm: float, parts: Sequence[Batch]) -> dict[str, Any]:
        """Return what the log says of a skipped step: why, and of which documents it was."""
        given = [part.row_N for part in parts if part.row_N is not None]
        rows = sorted({row for part in given for row in part.tolist()})
        why = _SAID[self.fault or "loss"]
        return {
            "event": "skipped", "step": step, "reason": self.fault, "why": why,
            "loss": _finite(loss), "gradient_norm": _finite(norm), "rows": rows,
        }  # fmt: skip

    def stop_if_astray(self, total: int) -> None:
        """End training if too many steps in a row had to be skipped.

        Parameters
        ----------
        total : int
            Steps in all: not one taken is too few, however many may be skipped.

        Raises
        ------
        DivergedError
        """
        if self._in_a_row >= min(self.settings.max_skipped, total):
            self._stop(f"{self._in_a_row} steps in a row were skipped")

    def rewind(self, state: dict[str, Any]) -> None:
        """Go back to what was known at a checkpoint, and count that.

        Raises
        ------
        DivergedError
            If training went back to this one too often.
        """
        self.counts["rewinds"] += 1
        self._rewinds += 1
        if self._rewinds > self.settings.max_skipped:
            self._stop(f"training went back to the same checkpoint {self._rewinds} times")
        self._recall(state)

    def arrived(self) -> None:
        """Take note of a checkpoint that may be gone back to."""
        self._rewinds = 0

    def _stop(self, what: str) -> None:
        advice = {
            "loss": "see whether the rows named in events.jsonl hold numbers that are not finite "
            'or very large; otherwise lower learning_rate, or set precision = "float32"',
            "gradient": 'lower learning_rate, or set precision = "float32"',
            "spike": 'lower learning_rate or gradient_clip, raise warmup, set on_spike = "rewind", '
            "or raise spike_threshold if such losses belong to the data",
        }
        raise DivergedError(
            f"{what}, at last because {_SAID[self.fault or 'loss']}",
            where="training",
            mend=advice[self.fault or "loss"],
        )

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to decide as this one would."""
        return {
            "counts": dict(self.counts), "in_a_row": self._in_a_row, "rewinds": self._rewinds,
            "recent": [list(pair) for pair in self._recent],
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state` gave."""
        self.counts, self._rewinds = dict(state["counts"]), state["rewinds"]
        self._recall(state)

    def _recall(self, state: dict[str, Any]) -> None:
        self._in_a_row = state["in_a_row"]
        self._recent = deque(((log, n) for log, n in state["recent"]), maxlen=_WINDOW)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""Batches for the training loop, each made while the one before is computed with."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from danlu.batch import Batch
from danlu.recipe.training import Training


class BatchSource(Protocol):
    """What the loop asks of its data: batches by counter, see :mod:`danlu.data.load`."""

    @property
    def steps_per_epoch(self) -> int: ...
    def load(self, epoch: int, position: int) -> list[Batch]: ...


def num_steps(settings: Training, source: BatchSource) -> int:
    """Return the steps of the optimiser that the settings come to, at most."""
    return settings.steps or settings.epochs * source.steps_per_epoch


def ahead(source: BatchSource, start: int, stop: int) -> Iterator[list[Batch]]:
    """Yield the batches from one to before another; while one is in use, the next is made."""
    with ThreadPoolExecutor(1) as worker:
        waiting: deque[Future[list[Batch]]] = deque()
        for number in range(start, stop):
            waiting.append(worker.submit(source.load, *divmod(number, source.steps_per_epoch)))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

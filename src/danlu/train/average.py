"""A moving average of the weights along training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from danlu.parallel.shard import plain_name

PREFIX = "average."


class Average:
    """An exponential moving average of a model's parameters, and of its running statistics.

    The mean of the last steps lies in a flatter, quieter place than the last
    step itself (Polyak & Juditsky, 1992), which shows most on small corpora.

    The running mean and variance of a batch norm belong to the weights that they were
    measured under. Those of the average would take a pass over the data to measure (as for
    stochastic weight averaging, Izmailov et al., 2018); averaged as the weights are, over
    the same steps, they come near to them, and no batch is computed for it. Whole numbers
    among the buffers have no mean, and are left as they are.

    Parameters
    ----------
    model : nn.Module
    decay : float
        In [0, 1): about ``1 / (1 - decay)`` steps are averaged; 0 follows the
        weights themselves. The first steps are averaged over fewer.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        named: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        named |= {n: b for n, b in model.named_buffers() if b.is_floating_point()}
        self._names, self._parameters = [plain_name(n) for n in named], list(named.values())
        self._values = [p.detach().clone() for p in self._parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` steps."""
        if self.decay:
            share = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._values, [p.detach() for p in self._parameters], share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the model for the time of the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Without decay there are no values, and nothing is swapped.
        for parameter, value in zip(self._parameters, self._values, strict=False):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Return the average as named tensors; the names are the model's, after a prefix."""
        names = zip(self._names, self._values, strict=False)
        return {f"{PREFIX}{name}": value for name, value in names}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` gave."""
        for name, value in self.state().items():
            value.copy_(tensors[name])

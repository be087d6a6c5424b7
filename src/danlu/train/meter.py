"""What a row of the training log is computed from."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from danlu.parallel.shard import whole


class Meter:
    """Mean loss and speed since it was last read."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._tokens, self._began = 0, time.perf_counter()

    def add(self, loss: float, tokens: int) -> None:
        """Take in a step that was taken."""
        self._losses.append(loss)
        self._tokens += tokens

    def pause(self, seconds: float) -> None:
        """Leave the seconds of an evaluation out of the speed."""
        self._began += seconds

    def read(self) -> tuple[float | None, float]:
        """Return the mean loss, None if no step was taken, and the tokens a second."""
        seconds = max(1e-9, time.perf_counter() - self._began)
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        speed = round(self._tokens / seconds, 1)
        self._losses, self._tokens, self._began = [], 0, time.perf_counter()
        return loss, speed


class Stride:
    """How far a step moves the weights, beside their size.

    The copy that it takes is held while a step's activations are not, so it adds nothing to
    the most that is held at once.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module) -> None:
        self._weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._before = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def ratio(self) -> float:
        """Return the norm of the change since it was made, over the norm of the weights then.

        About 1e-3 is usual (in the middle of a training); 1e-1 is a network that forgets.
        """
        size = nn.utils.get_total_norm(self._before)
        torch._foreach_sub_(self._before, [weight.detach() for weight in self._weights])
        return float(whole(nn.utils.get_total_norm(self._before) / size.clamp(min=1e-12)))

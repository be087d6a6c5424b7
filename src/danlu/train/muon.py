"""Muon: steps of momentum, made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from danlu.model import fast
from danlu.parallel.shard import divided_as, whole
from danlu.train.machine import working_dtype


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised, for the matrices of a network's layers.

    Source: Jordan et al., "Muon", 2024; steps scaled to the size of AdamW's as in Liu et
    al., "Muon is Scalable for LLM Training", 2025, so that one learning rate serves both.
    torch's own takes one matrix at a time and cannot fold the clipping in; this one takes
    all matrices of a shape together.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        Matrices.
    lr : float
        Learning rate, as one would give AdamW.
    momentum : float
        In [0, 1); Nesterov's.
    weight_decay : float
        Decoupled.
    precision : {"auto", "float32", "bfloat16"}
        That the steps are made orthogonal in; see :class:`danlu.recipe.training.Training`.

    Attributes
    ----------
    grad_scale : Tensor, optional
        The gradients are divided by it, as torch's fused optimisers do.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: str = "auto",
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.precision = precision
        self.grad_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step."""
        assert closure is None, "Muon does not evaluate a closure"
        scale = 1.0 if self.grad_scale is None else 1.0 / float(self.grad_scale)
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    # A matrix and its transpose are worked on alike.
                    shapes.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
            for (low, high), parameters in shapes.items():
                buffers = [self._buffer(parameter) for parameter in parameters]
                gradients = [p.grad for p in parameters if p.grad is not None]
                momentum, rate = group["momentum"], group["lr"]
                torch._foreach_mul_(buffers, momentum)
                torch._foreach_add_(buffers, gradients, alpha=(1 - momentum) * scale)
                where = parameters[0].device
                dtype = working_dtype(self.precision, where)
                stack = torch.empty(len(parameters), low, high, dtype=dtype, device=where)
                for row, gradient, buffer in zip(stack, gradients, buffers, strict=True):
                    # Orthogonal are the rows of a whole matrix, not those of its parts.
                    ahead = whole(buffer * momentum + gradient * ((1 - momentum) * scale))
                    row.copy_(ahead if ahead.shape == row.shape else ahead.mT)
                torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
                size = 0.2 * math.sqrt(high)
                for row, parameter in zip(fast.orthogonalize(stack), parameters, strict=True):
                    update = row if row.shape == parameter.shape else row.mT
                    parameter.add_(divided_as(update, parameter), alpha=-rate * size)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer

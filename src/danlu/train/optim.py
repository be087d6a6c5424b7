"""Optimisers and schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from danlu.parallel.shard import whole
from danlu.recipe.training import Training
from danlu.train.muon import Muon


class DecoupledSGD(torch.optim.SGD):
    """SGD whose weight decay shrinks the weights and never enters the momentum.

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019
    (SGDW). torch's own SGD adds the decay to the gradient.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Shrink, then step as SGD without decay."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            if group["params"]:
                torch._foreach_mul_(group["params"], 1 - group["lr"] * decay)
            group["weight_decay"] = 0.0
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay


def build(model: nn.Module, settings: Training) -> list[torch.optim.Optimizer]:
    """Return the optimisers that together own every parameter once.

    Parameters
    ----------
    model : nn.Module
    settings : Training
        With its learning rate filled in.

    Notes
    -----
    Adam: Kingma & Ba, 2015, whose decay is a share of the weights added to the gradient
    (L2). AdamW: Loshchilov & Hutter, 2019. Muon: Jordan et al., 2024, with updates
    scaled to AdamW's size (Liu et al., 2025), for the matrices of the layers;
    embeddings, heads and vectors stay with AdamW. Vectors (norms, biases) are
    not decayed: pulling a scale towards zero regularises nothing. All of them are fused,
    and divide the gradients by `grad_scale`, see :func:`step`.
    """
    rate = settings.learning_rate
    assert rate is not None, "the recipe has not been filled"
    named = list(model.named_parameters())
    inner = {n for n, p in named if p.ndim == 2 and ".layers." in f".{n}"}
    muon = settings.optimizer == "muon"
    groups = decay_groups((p for n, p in named if not (muon and n in inner)), settings.weight_decay)
    if settings.optimizer == "sgd":
        # torch has no fused SGD of divided parameters.
        fused = not any(isinstance(p, DTensor) for _, p in named)
        return [DecoupledSGD(groups, lr=rate, momentum=settings.momentum, fused=fused)]
    if settings.optimizer == "adam":
        return [torch.optim.Adam(groups, lr=rate, betas=settings.betas, fused=True)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate, betas=settings.betas, fused=True)
    ]
    if muon and inner:
        matrices = [p for n, p in named if n in inner]
        decay, precision = settings.weight_decay, settings.precision
        optimizers.append(Muon(matrices, rate, weight_decay=decay, precision=precision))
    return optimizers


def step(
    optimizers: list[torch.optim.Optimizer],
    clip: float,
    rate: float,
    l1: float = 0.0,
    allowed: Callable[[float], bool] = math.isfinite,
) -> float:
    """Take one step with the gradients at hand, and clear them.

    Clipping costs no pass of its own: the optimisers divide by it as they read.

    Parameters
    ----------
    optimizers : list of Optimizer
        As :func:`build` gives them.
    clip : float
        Largest norm of the gradient; 0 clips nothing.
    rate : float
        Learning rate.
    l1 : float
        Weight of the sum of the matrices' absolute values, see :func:`towards_zero`.
    allowed : callable of float to bool
        Told the norm before anything is changed: whether the step is to be taken.

    Returns
    -------
    float
        Norm of the gradient before clipping. If it is not finite, no step is taken.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    norm = float(whole(nn.utils.get_total_norm(gradients)))
    if not (allowed(norm) and math.isfinite(norm)):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm
    scale = torch.tensor(max(1.0, norm / clip)) if clip else None
    if scale is not None and any(isinstance(gradient, DTensor) for gradient in gradients):
        # torch's fused optimisers take no scale of divided gradients.
        torch._foreach_div_(gradients, float(scale))
        scale = None
    for optimizer in optimizers:
        # torch's fused optimisers look for it without declaring it.
        optimizer.grad_scale = scale  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        if l1:
            for group in optimizer.param_groups:
                towards_zero(group["params"], rate * l1)
        optimizer.zero_grad(set_to_none=True)
    return norm


def state_bytes(model: nn.Module, settings: Training) -> int:
    """Return the bytes that the optimisers of a model will hold once they have taken a step."""
    found = 0
    for optimizer in build(model, settings):
        # Adam (AdamW is one) keeps a mean and a mean of squares, the others a momentum.
        adam = isinstance(optimizer, torch.optim.Adam)
        for group in optimizer.param_groups:
            slots = 2 if adam else int(group["momentum"] > 0)
            found += slots * sum(p.numel() * p.element_size() for p in group["params"])
    return found


@torch.no_grad()
def towards_zero(parameters: Iterable[nn.Parameter], distance: float) -> None:
    """Move the numbers of matrices towards zero by `distance`, and no further.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        Vectors among them, and what has no gradient, are left as they are.
    distance : float
        Learning rate times the weight of the penalty.

    Notes
    -----
    The proximal step of an L1 penalty, taken after the optimiser's (iterative
    shrinkage-thresholding: Daubechies et al., 2004; Tibshirani's lasso, 1996). Its sign added
    to the gradient would never come to rest at zero, and Adam would divide it by the
    gradient's size, so that the same penalty meant another for each weight; so it stands
    beside the gradient, as the decoupled weight decay does.
    """
    for parameter in parameters:
        if parameter.ndim > 1 and parameter.grad is not None:
            parameter.copy_(F.softshrink(parameter, distance))


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into matrices, which decay, and vectors, which do not."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def rate_factor(step: int, total: int, warmup: float, schedule: str) -> float:
    """Return the share of the peak learning rate at a step.

    Parameters
    ----------
    step : int
        From 0.
    total : int
        Steps in all.
    warmup : float
        In [0, 1): share of the steps in which the rate rises linearly.
    schedule : {"cosine", "linear", "constant"}
        How it falls afterwards; cosine as in Loshchilov & Hutter, 2017.

    Examples
    --------
    >>> [round(rate_factor(step, 10, 0.2, "linear"), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    rising = math.ceil(warmup * total - 1e-9)  # 0.07 * 100 is a little over 7
    if step < rising:
        return (step + 1) / rising
    gone = (step - rising) / max(1, total - rising)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * gone))
    return 1 - gone if schedule == "linear" else 1.0

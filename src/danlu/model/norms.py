"""What keeps the numbers between a classic backbone's layers at one size.

Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.model.backbone import RMSNorm

NormKind = Literal["none", "batch", "layer", "rms"]


class BatchNorm(nn.Module):
    """Each channel less its mean, over its deviation, learnt scale and shift after.

    In training mean and deviation are those of what is computed at once, be it a batch or
    one of its parts; in use they are running ones, so that no answer depends on what it is
    computed with.

    Parameters
    ----------
    dim : int
        Channels: the second axis of what is normed.
    epsilon : float
        Added to the variance.
    momentum : float
        In (0, 1]: how far the running statistics move towards each new one.

    Notes
    -----
    Source: Ioffe & Szegedy, "Batch Normalization", 2015. As in torch's, the running variance
    is the unbiased one. A batch computed in parts has the statistics of each part ("ghost
    batches": Hoffer et al., "Train longer, generalize better", 2017), so its gradient is not
    quite that of the whole. Where a channel has a single value there is no deviation: the
    running statistics are used in its place, and stay as they are. There is no count of
    batches: it would serve another momentum only.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, dim: int, epsilon: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_variance", torch.ones(dim))
        self.epsilon, self.momentum = epsilon, momentum

    def forward(self, x: Tensor) -> Tensor:
        several = x.numel() > x.shape[1]
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_variance,
            self.weight,
            self.bias,
            self.training and several,
            self.momentum,
            self.epsilon,
        )


class OverChannels(nn.Module):
    """A norm over the last axis, for images: each pixel by itself, over its channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x_UCHW: Tensor) -> Tensor:
        out: Tensor = self.norm(x_UCHW.movedim(1, -1)).movedim(-1, 1)
        return out


def norm(kind: NormKind, dim: int, epsilon: float) -> nn.Module:
    """Return a norm of vectors of `dim` numbers that stand in the last axis.

    ``layer`` is that of Ba et al., "Layer Normalization", 2016, ``rms`` that of Zhang &
    Sennrich, 2019. ``batch`` takes an input of shape (n, dim), and has a guard of its own.
    """
    if kind == "batch":
        return BatchNorm(dim)
    if kind == "layer":
        return nn.LayerNorm(dim, eps=epsilon)
    return RMSNorm(dim, epsilon) if kind == "rms" else nn.Identity()

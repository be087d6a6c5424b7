"""How much room on the disk, and in memory, the checkpoints of a training will take."""

from __future__ import annotations

from torch import nn

from danlu.recipe.training import Training
from danlu.train import optim
from danlu.train.checkpoint import unique_tensors


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's tensors."""
    return sum(t.numel() * t.element_size() for t in unique_tensors(model).values())


def state_bytes(model: nn.Module, settings: Training) -> int:
    """Return the bytes of one checkpoint: weights, their average, and what optimisers keep."""
    weights = weight_bytes(model) * (2 if settings.average else 1)
    return weights + optim.state_bytes(model, settings)


def disk_bytes(model: nn.Module, settings: Training) -> int:
    """Return the most bytes that a training stage's folder will hold.

    Beside those that are kept: one checkpoint between two scheduled ones and one that is being
    written, for each of them the best weights, and the weights that the stage ends with.
    """
    held = settings.keep_checkpoints + 2
    return held * state_bytes(model, settings) + (held + 1) * weight_bytes(model)

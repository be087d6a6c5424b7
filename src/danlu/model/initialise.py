"""How the matrices of a fresh backbone are drawn, where its own way is not wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from danlu.model.values import Values

Initialiser = Literal["default", "he", "glorot", "normal", "orthogonal"]
NORMAL_STD = 0.02

_DRAW: dict[str, Callable[[Tensor], Any]] = {
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "glorot": nn.init.xavier_uniform_,
    "normal": partial(nn.init.normal_, std=NORMAL_STD),
    "orthogonal": nn.init.orthogonal_,
}


@torch.no_grad()
def initialise(backbone: nn.Module, how: Initialiser) -> None:
    """Draw the matrices of a backbone anew, from the global generator.

    Parameters
    ----------
    backbone : nn.Module
    how : {"default", "he", "glorot", "normal", "orthogonal"}
        ``default`` leaves each backbone as it drew itself. ``he``: normal with variance
        2 / inputs (He et al., 2015); ``glorot``: uniform with variance 2 / (inputs + outputs)
        (Glorot & Bengio, 2010); ``normal``: with the standard deviation 0.02 (as BERT);
        ``orthogonal``: rows or columns, whichever are fewer, of length 1 and at right angles
        (Saxe et al., 2014).

    Notes
    -----
    Matrices are those of layers and of what takes values in; of a convolution the filters,
    whose inputs are all that a window sees; of an LSTM or GRU those of each gate by itself.
    Embeddings are tables, not matrices, and stay; so do norms, biases and heads. A
    Transformer's own way makes what writes to the residual stream smaller by its depth; the
    others do not.
    """
    if how == "default":
        return
    for weight in matrices(backbone):
        drawn = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        _DRAW[how](drawn)
        weight.copy_(drawn)


def matrices(backbone: nn.Module) -> Iterator[Tensor]:
    """Yield every matrix as a view of shape (outputs, inputs, ...) into its parameter."""
    for module in backbone.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            yield module.weight
        elif isinstance(module, Values):
            yield from (weight.mT for weight in module.weight)
        elif isinstance(module, nn.LSTM | nn.GRU):
            gates = 4 if isinstance(module, nn.LSTM) else 3
            for name, parameter in module.named_parameters():
                if name.startswith("weight"):
                    yield from parameter.chunk(gates)

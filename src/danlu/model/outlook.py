"""Heads for series: what lies ahead, and what stands there.

Shape suffixes: see :mod:`danlu.batch`; here also H steps of the horizon, Q quantiles, W steps of
a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danlu.batch import PADDING, Batch


def positions(batch: Batch, last: int) -> Tensor:
    """Return the last positions of each document, counted over the rows laid end to end.

    Parameters
    ----------
    batch : Batch
        Its documents stand one after another, each at least `last` positions long.
    last : int

    Returns
    -------
    Tensor of int64, shape (N, last)
    """
    document = batch.document_BT.reshape(-1)
    real = (document != PADDING).nonzero()[:, 0]
    size_N = torch.bincount(document[real], minlength=batch.num_documents)
    place = size_N.cumsum(0)[:, None] - last + torch.arange(last, device=real.device)
    return real[place]


class ForecastHead(nn.Module):
    """Quantiles of every step of the horizon, read out where the step stands.

    Pooling a window into one vector, as :class:`danlu.model.heads.DocumentHead` does, loses
    which step is which: on half-hourly demand it made the error a third larger.

    Parameters
    ----------
    dim : int
    horizon, patch : int
        Steps to foretell, and steps at one position.
    levels : sequence of float
        Of the quantiles, ascending.
    dropout : float
        Before the output layer.
    """

    def __init__(
        self, dim: int, horizon: int, patch: int, levels: Sequence[float], dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.horizon, self.patch = horizon, patch
        self.ahead = -(-horizon // patch)
        self.num_levels = len(levels)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(dim, patch * self.num_levels)
        nn.init.zeros_(self.output.weight)
        # An untrained head says the normal distribution of what is standardised.
        normal = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64))
        self.output.bias.data = normal.float().repeat(patch)

    def forward(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Return float32 quantiles of shape (N, H, Q), scaled, in no order that is sure."""
        hidden = hidden_BTD.flatten(0, 1)[positions(batch, self.ahead)]
        out: Tensor = self.output(self.dropout(hidden)).float()
        return out.reshape(batch.num_documents, -1, self.num_levels)[:, : self.horizon]


class RebuildHead(nn.Module):
    """The measurements that a position holds, from the few numbers that are let through.

    Before the bottleneck stands whatever the backbone is; over an MLP of one layer this is an
    autoencoder of three hidden layers (Hinton & Salakhutdinov, 2006). What is rare does not fit
    through, and is rebuilt badly.

    Parameters
    ----------
    dim, bottleneck : int
    patch, variables : int
        Steps at a position, and measurements of each step.
    dropout : float
        Before the output layer.
    """

    def __init__(
        self, dim: int, bottleneck: int, patch: int, variables: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.variables = variables
        self.narrow = nn.Linear(dim, bottleneck)
        self.widen = nn.Linear(bottleneck, dim)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(dim, patch * variables)

    def forward(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Return float32 measurements of shape (N, W, V), scaled.

        The documents of a batch are equally long.
        """
        count = batch.num_tokens // batch.num_documents
        hidden = hidden_BTD.flatten(0, 1)[positions(batch, count)]
        wide = nn.functional.gelu(self.widen(self.narrow(hidden)))
        out: Tensor = self.output(self.dropout(wide)).float()
        return out.reshape(batch.num_documents, -1, self.variables)


def measurements(batch: Batch, patch: int, variables: int) -> tuple[Tensor, Tensor]:
    """Return what a batch of equally long windows holds, and whether each was measured.

    Parameters
    ----------
    batch : Batch
        With a value at every position, as :class:`danlu.data.windows.SeriesDocuments` lays them.
    patch, variables : int

    Returns
    -------
    values_NWV : Tensor of float32
        0 where missing.
    there_NWV : Tensor of bool
    """
    assert batch.values_UK is not None
    values = batch.values_UK.reshape(batch.num_documents, -1, batch.values_UK.shape[1] // patch)
    return values[..., :variables], values[..., variables : 2 * variables] == 0

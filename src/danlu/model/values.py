"""Continuous values on their way into a backbone, and out of it.

Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Intake(nn.Module, ABC):
    """What takes the values of positions in: from K numbers to a vector each."""

    @abstractmethod
    def multiply_adds(self, num_values: int) -> int:
        """Return those of taking so many values in, see :func:`danlu.model.flops.useful`."""


class Values(Intake):
    """A matrix for all values, or one for each id that carries a value.

    Used both ways: from K numbers to the width, and from the width to K numbers.

    Parameters
    ----------
    num_in, num_out : int
    first_id, num_ids : int
        The ids that carry a value are `num_ids` from `first_id` on.
    shared : bool
        Whether they share one matrix.

    Notes
    -----
    There is no bias on the way in: the id's own embedding is one. With a matrix for each
    column of a table this is the feature tokeniser of Gorishniy et al., "Revisiting Deep
    Learning Models for Tabular Data", 2021; with one for all, the patch embedding of
    Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.
    """

    def __init__(
        self, num_in: int, num_out: int, first_id: int, num_ids: int, shared: bool
    ) -> None:
        super().__init__()
        self.first_id, self.shared = first_id, shared
        groups = 1 if shared else num_ids
        self.weight = nn.Parameter(torch.empty(groups, num_in, num_out))
        nn.init.normal_(self.weight, std=num_in**-0.5)

    def forward(self, x_UI: Tensor, id_U: Tensor) -> Tensor:
        """Return the products of values, shape (U, num_out), with the matrices of their ids."""
        if self.shared:
            return x_UI @ self.weight[0]
        # Sorted by id, so that each matrix is used once, however often its id occurs.
        group_U = id_U - self.first_id
        order_U = group_U.argsort(stable=True)
        counts = torch.bincount(group_U, minlength=len(self.weight)).tolist()
        sorted_UI = torch.split(x_UI[order_U], counts)
        parts = [part @ weight for part, weight in zip(sorted_UI, self.weight, strict=True)]
        return torch.cat(parts)[order_U.argsort()]

    def multiply_adds(self, num_values: int) -> int:
        """Return those of so many products."""
        return num_values * self.weight[0].numel()


def placed(x_BTD: Tensor, values_UD: Tensor, slots_U: Tensor) -> Tensor:
    """Return the rows with each value's vector added at its position."""
    flat = x_BTD.flatten(0, 1).index_add(0, slots_U, values_UD.to(x_BTD.dtype))
    return flat.view_as(x_BTD)

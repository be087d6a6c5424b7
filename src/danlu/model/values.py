"""Continuous values on their way into a backbone, and out of it.

Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.batch import ValueKind


class Intake(nn.Module, ABC):
    """What takes the values of positions in: from K numbers to a vector each."""

    @abstractmethod
    def multiply_adds(self, id_U: Tensor) -> int:
        """Return those of taking in the values of ids, see :func:`danlu.model.flops.useful`."""


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
        self.first_id, self.num_ids, self.shared = first_id, num_ids, shared
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

    def multiply_adds(self, id_U: Tensor) -> int:
        """Return those of the products."""
        return len(id_U) * self.weight[0].numel()

    def share(self, id_U: Tensor) -> Tensor:
        """Return which share of the numbers that come out each value has, shape (U,)."""
        return torch.ones(len(id_U), device=id_U.device)


class SeveralValues(Intake):
    """:class:`Values` for each of several kinds, which differ in length.

    Parameters
    ----------
    parts : sequence of Values
        In the order of their ids.

    Notes
    -----
    A value that is shorter than the longest is filled up with zeros, on the way in and out.
    """

    def __init__(self, parts: Sequence[Values]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.num_out = max(part.weight.shape[2] for part in parts)

    def forward(self, x_UI: Tensor, id_U: Tensor) -> Tensor:
        """Return the products of values, shape (U, the most numbers that come out)."""
        found, rows = [], []
        for part, row in zip(self.parts, self._rows(id_U), strict=True):
            assert isinstance(part, Values)
            num_in, num_out = part.weight.shape[1:]
            product = part(x_UI[row, :num_in], id_U[row])
            found.append(F.pad(product, (0, self.num_out - num_out)))
            rows.append(row)
        return torch.cat(found)[torch.cat(rows).argsort()]

    def _rows(self, id_U: Tensor) -> list[Tensor]:
        """Return which of the values are of each kind; each of them is of one."""
        begins = torch.tensor([part.first_id for part in self.parts], device=id_U.device)
        kind_U = torch.bucketize(id_U, begins, right=True) - 1
        return [(kind_U == number).nonzero()[:, 0] for number in range(len(begins))]

    def multiply_adds(self, id_U: Tensor) -> int:
        """Return those of the products."""
        total = 0
        for part, row in zip(self.parts, self._rows(id_U), strict=True):
            assert isinstance(part, Values)
            total += part.multiply_adds(row)
        return total

    def share(self, id_U: Tensor) -> Tensor:
        """Return which share of the numbers that come out each value has, shape (U,)."""
        share = torch.empty(len(id_U), device=id_U.device)
        for part, row in zip(self.parts, self._rows(id_U), strict=True):
            assert isinstance(part, Values)
            share[row] = part.weight.shape[2] / self.num_out
        return share


def matrices(
    kinds: Sequence[ValueKind], width: int, first_id: int, *, out: bool = False
) -> Values | SeveralValues:
    """Return what takes values of some kinds to the width or, if `out`, from it."""
    parts = []
    for kind in kinds:
        sizes = (width, kind.dims) if out else (kind.dims, width)
        parts.append(Values(*sizes, first_id, kind.num_ids, kind.shared))
        first_id += kind.num_ids
    return parts[0] if len(parts) == 1 else SeveralValues(parts)


def placed(x_BTD: Tensor, values_UD: Tensor, slots_U: Tensor) -> Tensor:
    """Return the rows with each value's vector added at its position."""
    flat = x_BTD.flatten(0, 1).index_add(0, slots_U, values_UD.to(x_BTD.dtype))
    return flat.view_as(x_BTD)

"""Items that a history already holds, as no candidates for what comes next.

Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def exclude_seen(
    logit_MV: Tensor, ids_BT: Tensor, position_BT: Tensor, slot_M: Tensor, target_M: Tensor
) -> Tensor:
    """Give the ids up to each scored position no chance to be its target.

    A recommender that never repeats an item is asked for the best of the others; trained on
    the whole catalogue, it spends its capacity on learning what it is not asked for. The
    target itself stays, where a user does repeat it.

    Parameters
    ----------
    logit_MV : Tensor, shape (M, V)
    ids_BT : Tensor of int64, shape (B, T)
        Documents, each laid in one piece.
    position_BT : Tensor of int64, shape (B, T)
        Position inside the document, from 0.
    slot_M : Tensor of int64, shape (M,)
        The scored positions, of the flattened rows.
    target_M : Tensor of int64, shape (M,)

    Returns
    -------
    Tensor, shape (M, V)
        Minus infinity at ids that stand in the document at or before the position.

    Examples
    --------
    >>> ids = torch.tensor([[2, 4, 5, 4]])
    >>> position = torch.arange(4)[None]
    >>> exclude_seen(torch.zeros(1, 7), ids, position, torch.tensor([2]), torch.tensor([4]))
    tensor([[0., 0., -inf, 0., 0., -inf, 0.]])
    """
    size_M = position_BT.flatten()[slot_M] + 1
    row = torch.arange(len(slot_M), device=slot_M.device).repeat_interleave(size_M)
    begin_M = slot_M - size_M + 1
    before_M = size_M.cumsum(0) - size_M
    slot = torch.arange(len(row), device=row.device) - before_M[row] + begin_M[row]
    seen_MV = torch.zeros_like(logit_MV, dtype=torch.bool)
    seen_MV[row, ids_BT.flatten()[slot]] = True
    seen_MV[torch.arange(len(target_M), device=target_M.device), target_M] = False
    return logit_MV.masked_fill(seen_MV, float("-inf"))

"""What a recommender is trained to make small."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from danlu.batch import Batch
from danlu.train.objective import Objective, tokens
from danlu.train.sampled import Proposal, sampled_softmax
from danlu.train.seen import exclude_seen


def next_item(
    first: int, exclude: bool = True, negatives: int = 0, proposal: Proposal | None = None
) -> Objective:
    """Cross-entropy over the catalogue of what comes next, in nats an item.

    Parameters
    ----------
    first : int
        The id from which on ids are items.
    exclude : bool
        Whether what a history holds already is no candidate, see
        :func:`danlu.train.seen.exclude_seen`.
    negatives : int
        If positive, the softmax is over so many items drawn from `proposal`, see
        :func:`danlu.train.sampled.sampled_softmax`, and nothing is excluded.
    proposal : Proposal, optional

    Notes
    -----
    Draws are seeded by torch's global generator, which the loop seeds at each step.
    """

    def total(scores: Any, batch: Batch) -> Tensor:
        assert batch.target_BT is not None
        assert batch.weight_BT is not None
        bears = batch.weight_BT.flatten()[scores.position_M] != 0
        slot_M, hidden_MD = scores.position_M[bears], scores.hidden_MD[bears]
        target_M = batch.target_BT.flatten()[slot_M]
        if negatives:
            generator = np.random.default_rng(int(torch.randint(2**62, ())))
            return sampled_softmax(
                hidden_MD, scores.weight_VD, scores.bias_V, target_M, negatives, generator, proposal
            )
        logit_MV = F.linear(hidden_MD, scores.weight_VD, scores.bias_V).float()
        if exclude:
            logit_MV = exclude_seen(logit_MV, batch.ids_BT, batch.position_BT, slot_M, target_M)
        return F.cross_entropy(logit_MV[:, first:], target_M - first, reduction="sum")

    return Objective("next item", "nats/item", total, tokens().count)

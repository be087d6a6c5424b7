"""Examples blended with each other, and their labels alike (mixup: Zhang et al., 2018)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from danlu.batch import Batch


def mixup(batch: Batch, alpha: float, generator: np.random.Generator) -> Batch:
    """Blend every document's values with another's, and its label by the same share.

    Parameters
    ----------
    batch : Batch
        Of documents whose positions all carry a value, as images and sounds have it. Its label
        is a float32 of shape (N, C): zeros and ones, or any targets that may be averaged.
    alpha : float
        Of the Beta(α, α) distribution that each document's share is drawn from; above 0.
    generator : numpy.random.Generator

    Returns
    -------
    Batch
        With blended values and labels. Of two sounds the second is cut where the first ends,
        and begins again where it is the shorter one: the first one's length stays.
    """
    assert batch.values_UK is not None
    assert batch.slots_U is not None
    assert batch.label is not None
    n = batch.num_documents
    other = torch.from_numpy(generator.permutation(n))
    share = torch.from_numpy(generator.beta(alpha, alpha, n).astype(np.float32))[:, None]
    owner_U = batch.document_BT.flatten()[batch.slots_U]
    size = torch.bincount(owner_U, minlength=n)
    begin = size.cumsum(0) - size
    inside_U = torch.arange(len(owner_U)) - begin[owner_U]
    partner_U = begin[other[owner_U]] + inside_U % size[other[owner_U]]
    share_U = share[owner_U]
    return replace(
        batch,
        values_UK=share_U * batch.values_UK + (1 - share_U) * batch.values_UK[partner_U],
        label=share * batch.label + (1 - share) * batch.label[other],
    )

"""What is taken from a batch for the model to foretell, or to do without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.batch import PADDING, Batch
from danlu.data.modality import Spec


def for_causal(batch: Batch) -> Batch:
    """Make each token's target the one after it in the same document."""
    same = batch.document_BT[:, 1:] == batch.document_BT[:, :-1]
    weight = torch.zeros(batch.ids_BT.shape)
    weight[:, :-1] = (same & (batch.document_BT[:, :-1] != PADDING)).float()
    return replace(batch, target_BT=batch.ids_BT.roll(-1, dims=1), weight_BT=weight)


def for_masked(batch: Batch, probability: float, spec: Spec, generator: Any) -> Batch:
    """Hide positions for the model to fill in.

    Of the chosen positions with a discrete id 80% become their hidden form, 10% a random
    id and 10% stay, and all are targets (BERT: Devlin et al., 2018). A chosen value is
    always taken away (He et al., "Masked Autoencoders", 2022): a value left as it is
    would be copied, not foretold. A document always has at least one chosen position.
    """
    ids, owner = batch.ids_BT.numpy(), batch.document_BT.numpy()
    open_ = (owner != PADDING) & spec.ordinary(ids)
    chosen = (generator.random(ids.shape) < probability) & open_
    lucky = np.where(open_, generator.random(ids.shape), -1.0)
    for document in np.setdiff1d(owner[open_], owner[chosen]):  # few: short ones alone
        chosen.flat[np.where(owner == document, lucky, -1.0).argmax()] = True
    valued = ids >= spec.first_value_id
    fate = np.where(valued, 0.0, generator.random(ids.shape))
    hidden = np.where(chosen & (fate < 0.8), spec.hide(ids), ids)
    random = generator.integers(
        spec.num_fixed, max(spec.first_value_id, spec.num_fixed + 1), ids.shape
    )
    hidden = np.where(chosen & (fate >= 0.9), random, hidden)
    return replace(
        _without(batch, chosen),
        ids_BT=torch.from_numpy(hidden),
        target_BT=batch.ids_BT,
        weight_BT=torch.from_numpy((chosen & ~valued).astype(np.float32)),
    )


def hide(batch: Batch, probability: float, spec: Spec, generator: Any) -> Batch:
    """Hide input positions at random, so that a model cannot lean on a few."""
    ids = batch.ids_BT.numpy()
    chosen = (generator.random(ids.shape) < probability) & spec.ordinary(ids)
    batch = _without(batch, chosen)
    hidden = np.where(chosen, spec.hide(ids), ids)
    return replace(batch, ids_BT=torch.from_numpy(hidden), hidden_UK=None, hidden_slots_U=None)


def _without(batch: Batch, chosen: NDArray[np.bool_]) -> Batch:
    """Move the values of the chosen positions to those that are hidden."""
    if batch.values_UK is None or batch.slots_U is None:
        return batch
    gone = torch.from_numpy(chosen.reshape(-1)[batch.slots_U.numpy()])
    return replace(
        batch,
        values_UK=batch.values_UK[~gone],
        slots_U=batch.slots_U[~gone],
        hidden_UK=batch.values_UK[gone],
        hidden_slots_U=batch.slots_U[gone],
    )

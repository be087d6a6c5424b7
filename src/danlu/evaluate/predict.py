"""Running a trained model over documents, always in float32."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from danlu.batch import Batch


@torch.inference_mode()
def outputs(
    model: nn.Module, batches: Iterable[Batch], num_rows: int, device: torch.device
) -> NDArray[np.float64]:
    """Return a document model's raw outputs in the order of the data set.

    Parameters
    ----------
    model : nn.Module
        On `device`; left in evaluation mode.
    batches : iterable of Batch
        Together they hold every row from 0 to ``num_rows - 1`` once.
    num_rows : int
    device : torch.device

    Returns
    -------
    NDArray of float64, shape (num_rows, ...)

    Notes
    -----
    In float32 without autocast: the score of a document may not depend on its
    neighbours in a batch, and in half precision it visibly would.
    """
    model.eval()
    found: NDArray[np.float64] | None = None
    for batch in batches:
        out_NC = model(batch.to(device)).float().cpu().numpy()
        if found is None:
            found = np.full((num_rows, *out_NC.shape[1:]), np.nan)
        assert batch.row_N is not None, "batches of documents name their rows"
        found[batch.row_N.numpy()] = out_NC
    assert found is not None, "there was nothing to predict"
    return found


def probabilities(raw: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    """Turn raw outputs into probabilities.

    Parameters
    ----------
    raw : NDArray of float64, shape (n, C)
    task : {"classify", "multilabel"}
        Softmax over the classes, or a sigmoid for each label.
    """
    if task == "multilabel":
        return 1 / (1 + np.exp(-raw))
    shifted = np.exp(raw - raw.max(axis=1, keepdims=True))
    normal: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return normal


def quantiles(raw: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Put quantiles in rising order.

    Parameters
    ----------
    raw : NDArray of float64, shape (..., Q)
        As the head gives them, the lowest level first: nothing keeps them from crossing.

    Returns
    -------
    rising : NDArray of float64, shape (..., Q)
        Sorted, which never makes the pinball loss larger (Chernozhukov et al., "Quantile and
        Probability Curves Without Crossing", 2010).
    crossed : NDArray of bool, shape (...,)
        Which were not in order.
    """
    crossed: NDArray[np.bool_] = np.any(np.diff(raw, axis=-1) < 0, axis=-1)
    return np.sort(raw, axis=-1), crossed

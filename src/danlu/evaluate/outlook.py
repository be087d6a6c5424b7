"""Running a trained model of series: its quantiles, and how badly it rebuilds each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.data.load import in_order
from danlu.data.windows import SeriesDocuments
from danlu.evaluate import predict
from danlu.evaluate.anomaly import spread
from danlu.model.heads import Model
from danlu.model.outlook import measurements

Floats = NDArray[np.float64]


def quantiles(
    model: Model, documents: SeriesDocuments, batch_size: int, device: torch.device
) -> Floats:
    """Return what is foretold for each window.

    Returns
    -------
    NDArray of float64, shape (n, horizon, Q)
        In the user's units and in rising order, see :func:`danlu.evaluate.predict.quantiles`.
    """
    raw = predict.outputs(model, in_order(documents, batch_size), len(documents), device)
    return predict.quantiles(documents.restore(np.arange(len(documents)), raw))[0]


@torch.inference_mode()
def scores(
    model: Model,
    documents: SeriesDocuments,
    shape: dict[str, Any],
    batch_size: int,
    device: torch.device,
) -> Floats:
    """Return how badly each step is rebuilt.

    Parameters
    ----------
    model : Model
        On `device`; left in evaluation mode.
    documents : SeriesDocuments
        Windows of equal length.
    shape : dict
        ``patch`` and ``variables``, see :func:`danlu.model.outlook.measurements`.
    batch_size : int
    device : torch.device

    Returns
    -------
    NDArray of float64, shape (L,)
        For each step of the series that the windows are of: the mean absolute error over its
        measurements, in deviations, and over the windows that hold it. NaN where there is none.
    """
    model.eval()
    length = int(documents.length[0])
    found = np.full((len(documents), length), np.nan)
    for batch in in_order(documents, batch_size):
        rebuilt = model(on_device := batch.to(device))
        truth, there = measurements(on_device, shape["patch"], shape["variables"])
        error = ((rebuilt - truth).abs() * there).sum(-1) / there.sum(-1)  # 0 / 0 is NaN
        assert batch.row_N is not None
        found[batch.row_N.numpy()] = error[:, :length].double().cpu().numpy()
    return spread(found, np.asarray(documents.start), len(documents.time))

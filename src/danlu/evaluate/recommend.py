"""Running a trained recommender: its scores of the whole catalogue after each history.

Shape suffixes: C cases, I items of the catalogue.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp

from danlu.batch import Batch
from danlu.data.events import EventsDocuments
from danlu.data.modality import NUM_SPECIAL
from danlu.evaluate.ranking import Questions, Scorer
from danlu.model.heads import Model, Scores
from danlu.model.outlook import positions

Scored = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


def scorer(
    model: Model, documents: EventsDocuments, batch_size: int, device: torch.device
) -> Scorer:
    """Return what scores the items after each of some histories.

    Parameters
    ----------
    model : Model
        On `device`; left in evaluation mode.
    documents : EventsDocuments
    batch_size : int
        Histories at once; but for rounding no score depends on it.
    device : torch.device

    Returns
    -------
    callable
        Given rows of `documents`, float32 of shape (rows, I): logarithms of probabilities, but
        for a constant of each row.
    """

    @torch.inference_mode()
    def score(rows: Ints) -> Scored:
        model.eval()
        items = model.backbone.config.vocab_size - NUM_SPECIAL
        found = np.empty((len(rows), items), np.float32)
        order = np.argsort(documents.sizes[rows], kind="stable")  # like lengths together
        for start in range(0, len(order), batch_size):
            here = order[start : start + batch_size]
            found[here] = _after(model, documents.lay(rows[here]).to(device))
        return found

    return score


def _after(model: Model, batch: Batch) -> Scored:
    """Return the items' scores after the last position of each document."""
    last_N = positions(batch, 1)[:, 0]
    weight_BT = torch.zeros(batch.ids_BT.shape, device=last_N.device)
    weight_BT.view(-1)[last_N] = 1.0
    scores = model(replace(batch, weight_BT=weight_BT))
    assert isinstance(scores, Scores)
    place = torch.zeros(weight_BT.numel(), dtype=torch.int64, device=last_N.device)
    place[scores.position_M] = torch.arange(len(scores.position_M), device=last_N.device)
    logit_NI = scores.logits()[place[last_N], NUM_SPECIAL:].float()
    found: Scored = logit_NI.cpu().numpy()
    return found


def surprise(
    score_CI: Scored, questions: Questions, rows: Ints, exclude: bool
) -> tuple[float, int]:
    """Return the summed cross-entropy of what was to be found, and of how many items.

    Parameters
    ----------
    score_CI : NDArray of float, shape (C, I)
    questions : Questions
    rows : NDArray of int64, shape (C,)
        The cases that were scored.
    exclude : bool
        Whether items of the history are no candidates, unless they are to be found: as in
        training.
    """
    truth = questions.truth_CI[rows].tocoo()
    score = score_CI.astype(np.float64)
    own = score[truth.row, truth.col]
    if exclude:
        history = questions.history_CI[rows].tocoo()
        score[history.row, history.col] = -np.inf
        score[truth.row, truth.col] = own
    return float((logsumexp(score, axis=1)[truth.row] - own).sum()), len(own)

"""The head of a recogniser: what each position may be heard as.

Shape suffixes: see :mod:`danlu.batch`; here C are the labels of characters, the blank first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from danlu.batch import PADDING, Batch


class Heard(NamedTuple):
    """Scores of every position, the documents of a batch side by side.

    Attributes
    ----------
    logits_NLC : Tensor of float32
        0 beyond a document's end.
    length_N : Tensor of int64
        Positions of each document.
    """

    logits_NLC: Tensor
    length_N: Tensor


class TranscriptHead(nn.Module):
    """Scores over the characters, and the blank, at every position.

    Parameters
    ----------
    dim, num_characters : int
    dropout : float
        Before the output layer.
    """

    def __init__(self, dim: int, num_characters: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(dim, 1 + num_characters)
        # An untrained head finds everything equally likely.
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden_BTD: Tensor, batch: Batch) -> Heard:
        """Return the scores of the batch's documents."""
        real_BT = batch.document_BT != PADDING
        place = (batch.document_BT[real_BT], batch.position_BT[real_BT])
        logits_MC = self.output(self.dropout(hidden_BTD[real_BT])).float()
        length_N = torch.bincount(place[0], minlength=batch.num_documents)
        shape = (batch.num_documents, int(length_N.max()), logits_MC.shape[-1])
        return Heard(logits_MC.new_zeros(shape).index_put(place, logits_MC), length_N)

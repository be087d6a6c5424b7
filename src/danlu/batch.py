"""The one shape in which data reaches a model, an objective or a scorer.

Legend of the shape suffixes used throughout danlu:

== =====================================================================
B  rows of a batch
T  positions in a row
N  documents in a batch (a row may hold several); in `ops.attention`, its tokens
S  documents in a layout, or matrices in a stack
L  positions in a document
D  width of the backbone
H  width of one attention head (G: half of it)
A  attention heads (K: key/value heads)
F  hidden width of the feed-forward layer
V  vocabulary
C  classes or outputs
P  slices of the width that are pooled by themselves
M  masked (scored) positions
U  positions that carry a value
K  numbers in a value
== =====================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

PADDING = -1


class ValueKind(NamedTuple):
    """Values that are of one length and are taken in alike.

    Attributes
    ----------
    num_ids : int
        So many ids, one after the other, say that their position carries one.
    dims : int
        The numbers in it.
    shared : bool
        Whether all go through one matrix (patches of an image), or those of each id through
        their own (the columns of a table).
    """

    num_ids: int
    dims: int
    shared: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents laid out in rows, and what is to be learnt about them.

    Attributes
    ----------
    ids_BT : Tensor of int64, shape (B, T)
        Discrete ids; any id at padding positions.
    position_BT : Tensor of int64, shape (B, T)
        Position inside the document, from 0; restarts with every document.
    document_BT : Tensor of int64, shape (B, T)
        Which document of the batch (0 … N-1) a position belongs to, or
        ``PADDING``. Attention never crosses documents.
    num_documents : int
        N, the number of documents in the batch.
    target_BT : Tensor of int64, shape (B, T), optional
        Id to be predicted at each position, for objectives over tokens.
    weight_BT : Tensor of float32, shape (B, T), optional
        Weight of each position's loss; 0 where none is borne.
    values_UK : Tensor of float32, shape (U, K), optional
        Continuous values: an image's patches, a sound's frames, a table's numbers. Where
        they are of several kinds, the shorter ones are filled up with zeros.
    slots_U : Tensor of int64, shape (U,), optional
        The position that each value stands at, counted over the rows laid end to end.
    hidden_UK, hidden_slots_U : Tensor, optional
        As the two before: values that were taken away, to be filled in.
    label : Tensor, optional
        What is to be predicted about each document: int64 of shape (N,) for
        classes, float32 of shape (N, C) for multi-label or regression targets, int64 of
        shape (N, S) for the characters of transcripts, filled up with 0.
    row_N : Tensor of int64, shape (N,), optional
        Row of each document in the data set, to find it again.
    """

    ids_BT: Tensor
    position_BT: Tensor
    document_BT: Tensor
    num_documents: int
    target_BT: Tensor | None = None
    weight_BT: Tensor | None = None
    values_UK: Tensor | None = None
    slots_U: Tensor | None = None
    hidden_UK: Tensor | None = None
    hidden_slots_U: Tensor | None = None
    label: Tensor | None = None
    row_N: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    @property
    def num_tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.document_BT != PADDING).sum())

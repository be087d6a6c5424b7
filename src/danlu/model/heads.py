"""What turns hidden vectors into answers: over tokens, or over whole documents.

Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from danlu.batch import PADDING, Batch
from danlu.model import fast
from danlu.model.backbone import Backbone, BackboneConfig, RMSNorm, values_of
from danlu.model.block import norm_of
from danlu.model.classic import Classic, ClassicConfig
from danlu.model.initialise import Initialiser, initialise
from danlu.model.outlook import ForecastHead, RebuildHead
from danlu.model.transcript import Heard, TranscriptHead
from danlu.model.values import SeveralValues, Values

Config = BackboneConfig | ClassicConfig


def read_config(fields: dict[str, Any]) -> Config:
    """Return the configuration that ``to_dict`` wrote."""
    return ClassicConfig(**fields) if "kind" in fields else BackboneConfig(**fields)


class Scores(NamedTuple):
    """What is said about chosen positions: a layer over the vocabulary, not yet applied.

    A loss can then be worked out without ever holding all logits.

    Attributes
    ----------
    hidden_MD : Tensor, shape (M, D)
        Of the chosen positions.
    weight_VD, bias_V : Tensor
        The layer; there may be no bias.
    position_M : Tensor of int64, shape (M,)
        Which positions, counted over the rows of the batch laid end to end. Every one
        whose weight is not 0 is among them, and some others may be.
    """

    hidden_MD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    position_M: Tensor

    def logits(self) -> Tensor:
        """Return logits_MV."""
        return F.linear(self.hidden_MD, self.weight_VD, self.bias_V)

    def loss(self, target_BT: Tensor, weight_BT: Tensor) -> Tensor:
        """Return the summed, weighted cross-entropy of a batch's targets, in nats."""
        target_M = target_BT.reshape(-1)[self.position_M]
        weight_M = weight_BT.reshape(-1)[self.position_M]
        return fast.cross_entropy(self.hidden_MD, self.weight_VD, self.bias_V, target_M, weight_M)


_STEP = 64  # positions are chosen in multiples: a kernel is prepared for each shape it meets


def scored_positions(weight_BT: Tensor) -> Tensor:
    """Return the positions to score: those that bear weight, and a few to come out even.

    Returns
    -------
    Tensor of int64, shape (M,)
        Ascending, except for those added; all of them if most bear weight.
    """
    bears = weight_BT.reshape(-1) != 0
    count = int(bears.sum())
    if 2 * count > len(bears):
        return torch.arange(len(bears), device=bears.device)
    return bears.to(torch.int8).argsort(descending=True, stable=True)[: -(-count // _STEP) * _STEP]


class Filled(NamedTuple):
    """What is said about positions that were hidden: their ids, and their values.

    Attributes
    ----------
    scores : Scores
        Of the positions that hold an id alone.
    values_UK : Tensor
        Of the positions that carry a value, in the batch's order.
    share_U : Tensor
        In (0, 1]: the share of the K numbers that each value has; the others are zeros.
    """

    scores: Scores
    values_UK: Tensor
    share_U: Tensor


class TokenHead(nn.Module):
    """Scores over the vocabulary at chosen positions.

    With ``transform`` (masked language modelling) a dense layer stands between and a
    bias is added, as in BERT (Devlin et al., 2018). With tied embeddings the output
    matrix is the backbone's input embedding and is stored once.

    Parameters
    ----------
    config : BackboneConfig or ClassicConfig
    transform : bool
    bias : bool
        Whether to add one without the dense layer, too.
    dropout : float
        Before the output matrix.
    """

    def __init__(
        self, config: Config, transform: bool, bias: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.transform: nn.Module = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.bias: nn.Parameter | None = None
        if transform:
            biased = isinstance(config, BackboneConfig) and config.head_bias
            norm: nn.Module = RMSNorm(config.dim, config.norm_epsilon)
            if isinstance(config, BackboneConfig):
                norm = norm_of(config)
            dense = nn.Linear(config.dim, config.dim, bias=biased)
            nn.init.normal_(dense.weight, std=config.dim**-0.5)
            if biased:
                nn.init.zeros_(dense.bias)
            self.transform = nn.Sequential(dense, nn.GELU(), norm)
        if transform or bias:
            self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.weight: nn.Parameter | None = None
        if not config.tie_embeddings:
            self.weight = nn.Parameter(torch.empty(config.vocab_size, config.dim).normal_(std=0.02))

    def forward(self, hidden_BTD: Tensor, weight_BT: Tensor, embedding_VD: Tensor) -> Scores:
        """Return the scores of the positions whose weight is not 0."""
        position_M = scored_positions(weight_BT)
        hidden_MD = self.dropout(self.transform(hidden_BTD.flatten(0, 1)[position_M]))
        weight_VD = embedding_VD if self.weight is None else self.weight
        return Scores(hidden_MD, weight_VD, self.bias, position_M)


def pool_documents(hidden_BTD: Tensor, batch: Batch, score_BTP: Tensor | None = None) -> Tensor:
    """Average the hidden vectors of each document, weighted by the softmax of scores.

    Parameters
    ----------
    hidden_BTD : Tensor, shape (B, T, D)
    batch : Batch
        Says which position belongs to which document.
    score_BTP : Tensor, shape (B, T, P), optional
        A score for each position and each of P equal slices of the width; every
        slice is averaged with weights of its own. Without scores all weigh alike.

    Returns
    -------
    Tensor of float32, shape (N, D)
        In float32 whatever the dtype of `hidden_BTD`: a sum over hundreds of
        positions is where half precision loses most.
    """
    real_BT = batch.document_BT != PADDING
    document_M = batch.document_BT[real_BT]
    hidden_MD = hidden_BTD[real_BT].float()
    if score_BTP is None:
        score_BTP = hidden_BTD.new_zeros(*real_BT.shape, 1)
    score_MP = score_BTP[real_BT].float()
    num_slices = score_MP.shape[1]
    # The largest score of each document is taken off first, so that no exponential overflows.
    index_MP = document_M.unsqueeze(-1).expand_as(score_MP)
    largest_NP = score_MP.new_zeros(batch.num_documents, num_slices)
    largest_NP = largest_NP.scatter_reduce(
        0, index_MP, score_MP.detach(), "amax", include_self=False
    )
    weight_MP = (score_MP - largest_NP[document_M]).exp()
    total_NP = torch.zeros_like(largest_NP).index_add(0, document_M, weight_MP)
    per_slice = hidden_MD.shape[-1] // num_slices
    weighted_MD = hidden_MD * weight_MP.repeat_interleave(per_slice, dim=-1)
    summed_ND = hidden_MD.new_zeros(batch.num_documents, hidden_MD.shape[-1])
    summed_ND = summed_ND.index_add(0, document_M, weighted_MD)
    return summed_ND / total_NP.clamp(min=1e-9).repeat_interleave(per_slice, dim=-1)


class DocumentHead(nn.Module):
    """One vector of outputs for each document: class scores or values.

    A document is the weighted mean of its positions, and the weights are learnt
    (attentive pooling: Lin et al., 2017), a set for each slice of the width. They
    start alike. A Transformer's last norm gives all positions the same length, so a
    plain mean could not let the few words that matter outweigh the many.
    """

    def __init__(self, dim: int, num_outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Linear(dim, 4 if dim % 4 == 0 else 1, bias=False)
        self.output = nn.Linear(dim, num_outputs)
        # Zero, so that an untrained head says "all alike" and the first
        # gradients into the backbone are small.
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, hidden_BTD: Tensor, batch: Batch) -> Tensor:
        """Return float32 outputs of shape (N, C)."""
        pooled_ND = pool_documents(hidden_BTD, batch, self.score(hidden_BTD))
        out: Tensor = self.output(self.dropout(pooled_ND))
        return out.float()


class FillingHead(nn.Module):
    """Says of hidden positions which id stood there, and which value.

    The ids as :class:`TokenHead` with its dense layer; the values by a matrix, or one for
    each id that carries a value.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = TokenHead(config, transform=True)
        values = values_of(config, out=True)
        assert values is not None, "there are no values to fill in"
        self.values: Values | SeveralValues = values
        for weight in self.values.parameters():
            nn.init.zeros_(weight)  # an untrained head says the mean of everything

    def forward(self, hidden_BTD: Tensor, batch: Batch, embedding_VD: Tensor) -> Filled:
        """Return what was hidden in the batch."""
        weight_BT, slots_U = batch.weight_BT, batch.hidden_slots_U
        assert weight_BT is not None
        assert batch.target_BT is not None
        assert slots_U is not None, "the batch hides no values"
        scores = self.tokens(hidden_BTD, weight_BT, embedding_VD)
        hidden_UD = hidden_BTD.flatten(0, 1)[slots_U].float()
        id_U = batch.target_BT.reshape(-1)[slots_U]
        return Filled(scores, self.values(hidden_UD, id_U), self.values.share(id_U))


Head = TokenHead | FillingHead | DocumentHead | ForecastHead | RebuildHead | TranscriptHead


class Model(nn.Module):
    """A backbone with the one head that the present objective needs."""

    def __init__(self, backbone: Backbone | Classic, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def hidden(self, batch: Batch) -> Tensor:
        """Return hidden_BTD for the batch."""
        out: Tensor = self.backbone(
            batch.ids_BT, batch.position_BT, batch.document_BT, batch.values_UK, batch.slots_U
        )
        return out

    def forward(self, batch: Batch) -> Tensor | Scores | Filled | Heard:
        """Return the head's outputs: (N, …), or what is said of positions."""
        hidden_BTD = self.hidden(batch)
        if isinstance(self.head, TranscriptHead):
            heard: Heard = self.head(hidden_BTD, batch)
            return heard
        if isinstance(self.head, (DocumentHead, ForecastHead, RebuildHead)):
            out: Tensor = self.head(hidden_BTD, batch)
            return out
        embedding_VD = self.backbone.embedding.weight
        if isinstance(self.head, FillingHead):
            filled: Filled = self.head(hidden_BTD, batch, embedding_VD)
            return filled
        assert batch.weight_BT is not None, "an objective over tokens needs weight_BT"
        scores: Scores = self.head(hidden_BTD, batch.weight_BT, embedding_VD)
        return scores


HeadKind = Literal[
    "masked", "causal", "classify", "multilabel", "regress", "forecast", "detect", "rank",
    "transcribe",
]  # fmt: skip


def build(
    config: Config,
    kind: HeadKind,
    num_outputs: int = 0,
    dropout: float = 0.0,
    initialiser: Initialiser = "default",
    shape: dict[str, Any] | None = None,
) -> Model:
    """Assemble a model with fresh weights drawn from the global generator.

    Parameters
    ----------
    config : BackboneConfig or ClassicConfig
    kind : HeadKind
        The objective that the head serves; that of ``rank`` is ``causal`` with a bias for each
        item, which says how popular it is.
    num_outputs : int
        Classes or values a document is given, or characters to write; unused over tokens.
    dropout : float
        In [0, 1), before the output layer of a document's head or of ``rank``.
    initialiser : str
        See :func:`danlu.model.initialise.initialise`.
    shape : dict, optional
        What else the heads of series are given, see :mod:`danlu.model.outlook`.
    """
    backbone = Classic(config) if isinstance(config, ClassicConfig) else Backbone(config)
    initialise(backbone, initialiser)
    if kind == "masked" and config.value_dims:
        return Model(backbone, FillingHead(config))
    if kind in ("masked", "causal"):
        return Model(backbone, TokenHead(config, transform=kind == "masked"))
    if kind == "rank":
        return Model(backbone, TokenHead(config, transform=False, bias=True, dropout=dropout))
    if kind == "forecast":
        return Model(backbone, ForecastHead(config.dim, dropout=dropout, **(shape or {})))
    if kind == "detect":
        return Model(backbone, RebuildHead(config.dim, dropout=dropout, **(shape or {})))
    if kind == "transcribe":
        return Model(backbone, TranscriptHead(config.dim, num_outputs, dropout))
    return Model(backbone, DocumentHead(config.dim, num_outputs, dropout))

"""Backbones from before the Transformer: a small problem deserves a small model.

They take what :class:`danlu.model.backbone.Backbone` takes and return what it returns,
one hidden vector for every position, and no position ever sees another document.
Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from danlu.batch import PADDING
from danlu.model.backbone import Inputs, values_of
from danlu.model.convnet import ConvNet
from danlu.model.fast import ACTIVATIONS, Layout
from danlu.model.norms import BatchNorm, NormKind, norm
from danlu.model.values import Intake, placed

ClassicKind = Literal["linear", "mlp", "cnn", "lstm", "gru"]


@dataclass(frozen=True, slots=True)
class ClassicConfig:
    """Everything that fixes the shape and the mathematics of a classic backbone.

    Attributes
    ----------
    kind : {"linear", "mlp", "cnn", "lstm", "gru"}
        ``linear`` is the embeddings alone: before a document's head, which weighs them by a
        learnt attention, a bag of tokens; of values it is the values themselves. ``mlp`` looks
        at each position by itself. The others are named as they are known; where whole images
        are the values, ``cnn`` is a network of two axes, see
        :class:`danlu.model.convnet.ConvNet`.
    vocab_size, num_layers, dim : int
        As of a Transformer; ``linear`` has no layers, whatever `num_layers` says. The first
        layer of an MLP is what takes the input to its width.
    hidden_dim : int
        Units of a recurrent layer, in each direction.
    window : int
        Odd: the positions that a convolution looks at.
    activation : str
        Of a convolution or an MLP; a key of :data:`danlu.model.ops.ACTIVATIONS`.
    norm : {"none", "batch", "layer", "rms"}, optional
        Of a convolution's input (of images: its output), or of what an MLP's activations are
        given; see :func:`danlu.model.norms.norm`. If it is not given, as in models of before
        there was a choice, ``rms`` for a convolution and ``none`` for the others.
    value_shape : tuple of int, optional
        H, W and C, where each value is a whole image; for ``cnn``.
    causal : bool
        Whether a recurrent layer reads forwards only.
    dropout : float
        In [0, 1): on the embeddings (but of an MLP), on the branch of each convolution, and
        on the output of each recurrence and each layer of an MLP.
    norm_epsilon, tie_embeddings, value_dims, value_ids, shared_values
        As of a Transformer.
    """

    kind: ClassicKind
    vocab_size: int
    num_layers: int
    dim: int
    hidden_dim: int
    window: int = 3
    activation: str = "relu"
    norm: NormKind | None = None
    value_shape: tuple[int, int, int] | None = None
    causal: bool = False
    dropout: float = 0.0
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    value_dims: int = 0
    value_ids: int = 0
    shared_values: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(ClassicKind):
            raise ValueError(f"kind must be one of {', '.join(get_args(ClassicKind))}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}")
        for name in ("vocab_size", "num_layers", "dim", "hidden_dim", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.window % 2 == 0:
            raise ValueError(f"window must be odd, not {self.window}")
        if self.causal and self.kind == "cnn":
            raise ValueError("a convolution sees both sides; it cannot be causal")
        if self.norm is None:
            object.__setattr__(self, "norm", "rms" if self.kind == "cnn" else "none")
        if self.norm not in get_args(NormKind):
            raise ValueError(f"norm must be one of {', '.join(get_args(NormKind))}")
        if self.value_shape is not None:
            if self.kind != "cnn" or math.prod(self.value_shape) != self.value_dims:
                raise ValueError(
                    f"value_shape is for a cnn whose values have {math.prod(self.value_shape)} "
                    "numbers"
                )
            object.__setattr__(self, "value_shape", tuple(self.value_shape))  # JSON has lists

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, for JSON."""
        return asdict(self)


class Dense(nn.Module):
    """``activation(norm(matrix(x)))``; the first layer's matrix is the input's own.

    The matrices are drawn as by He et al., "Delving Deep into Rectifiers", 2015.
    """

    def __init__(self, config: ClassicConfig, first: bool) -> None:
        super().__init__()
        self.matrix: nn.Module = nn.Identity()
        if not first:  # the input's own matrix comes before
            self.matrix = nn.Linear(config.dim, config.dim)
            nn.init.kaiming_normal_(self.matrix.weight, nonlinearity="relu")
            nn.init.zeros_(self.matrix.bias)
        self.norm = norm(config.norm or "none", config.dim, config.norm_epsilon)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_ND: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.activation(self.norm(self.matrix(x_ND))))
        return out


class Convolution(nn.Module):
    """``x + activation(convolution(norm(x)))``, inside each document.

    Source: LeCun et al., 1989, over time as in Collobert et al., "Natural Language
    Processing (Almost) from Scratch", 2011; the addition is of He et al., 2016.
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        self.norm = norm(config.norm or "none", config.dim, config.norm_epsilon)
        self.filter = nn.Conv1d(config.dim, config.dim, config.window, padding="same")
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_SLD: Tensor, inside_SL: Tensor) -> Tensor:
        # Beyond a document's end there is nothing, and nothing must be seen there, nor be
        # counted in a batch's mean.
        if isinstance(self.norm, BatchNorm):
            inside_ND = self.norm(x_SLD[inside_SL])
            normed = torch.zeros_like(x_SLD, dtype=inside_ND.dtype)
            normed = normed.index_put((inside_SL,), inside_ND)
        else:
            normed = self.norm(x_SLD) * inside_SL.unsqueeze(-1)
        branch: Tensor = self.dropout(self.activation(self.filter(normed.mT).mT))
        return x_SLD + branch


class Recurrence(nn.Module):
    """An LSTM or a GRU, forwards only or both ways, and a matrix back to the width.

    Sources: Hochreiter & Schmidhuber, "Long Short-Term Memory", 1997, with the forget
    gate of Gers et al., 2000; Cho et al., "GRU", 2014, whose reset gate is taken here, as by
    torch and cuDNN, after the matrix; both ways: Schuster & Paliwal, 1997.
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        cell = nn.LSTM if config.kind == "lstm" else nn.GRU
        units = config.hidden_dim * (1 if config.causal else 2)
        self.cell = cell(
            config.dim, config.hidden_dim, batch_first=True, bidirectional=not config.causal
        )
        self.out: nn.Module = nn.Identity()
        if units != config.dim:
            self.out = nn.Linear(units, config.dim, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_SLD: Tensor, inside_SL: Tensor) -> Tensor:
        length_S = inside_SL.sum(1)  # the longest first, see Layout
        packed = nn.utils.rnn.pack_padded_sequence(x_SLD, length_S.cpu(), batch_first=True)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(
            self.cell(packed)[0], batch_first=True, total_length=x_SLD.shape[1]
        )
        out: Tensor = self.dropout(self.out(hidden))
        return out


def _layer(config: ClassicConfig, number: int) -> nn.Module:
    """Return a layer; the first has the number 0."""
    if config.kind == "mlp":
        return Dense(config, first=number == 0)
    return Convolution(config) if config.kind == "cnn" else Recurrence(config)


def _intake(config: ClassicConfig) -> Intake | None:
    """Return what takes the values in, if there are values."""
    if config.value_shape is None:
        return values_of(config)
    return ConvNet(
        config.value_shape,
        config.num_layers,
        config.dim,
        norm_kind=config.norm or "none",
        activation=config.activation,
        dropout=config.dropout,
        epsilon=config.norm_epsilon,
    )


class Classic(Inputs):
    """Ids and values in, one hidden vector for every position out.

    Examples
    --------
    >>> config = ClassicConfig("gru", vocab_size=32, num_layers=1, dim=8, hidden_dim=4)
    >>> ids = torch.tensor([[5, 6, 7]])
    >>> Classic(config)(ids, torch.arange(3)[None], torch.zeros_like(ids)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: ClassicConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint = False  # these hold too little for it to be worth computing twice
        kind = config.kind
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        nn.init.normal_(self.embedding.weight, std={"linear": 0.02, "mlp": 0.02}.get(kind, 0.1))
        self.values = _intake(config)
        self.plain = kind == "linear" and bool(config.value_dims)
        if self.plain:  # a linear model of the values, without a matrix before the head's
            if config.value_dims != config.dim:
                raise ValueError(f"the width must be that of the values, {config.value_dims}")
            self.embedding.weight.requires_grad_(False).zero_()
            self.values = None
        beforehand = kind != "mlp" and config.value_shape is None
        self.dropout = nn.Dropout(config.dropout if beforehand else 0.0)
        self.layers = nn.ModuleList(
            _layer(config, n)
            for n in range(0 if kind == "linear" or config.value_shape else config.num_layers)
        )

    def forward(
        self,
        ids_BT: Tensor,
        position_BT: Tensor,  # noqa: ARG002 - the order is all that these know of positions
        document_BT: Tensor,
        values_UK: Tensor | None = None,
        slots_U: Tensor | None = None,
    ) -> Tensor:
        """Return hidden_BTD, shape (B, T, D); zero at padding, unless positions stand alone."""
        x_BTD: Tensor = self.dropout(self.embed(ids_BT, values_UK, slots_U))
        if self.plain and values_UK is not None and slots_U is not None:
            return placed(x_BTD, self.dropout(values_UK), slots_U)
        if self.config.kind in ("linear", "mlp") or self.config.value_shape is not None:
            return self._each_alone(x_BTD, document_BT)
        x_ND = x_BTD.flatten(0, 1)
        out_ND = torch.zeros_like(x_ND, dtype=torch.float32)
        layout = Layout.of(document_BT, self.config.causal)
        # A recurrence takes lengths as they are; a convolution computes the padding too.
        # A batch's mean is over all documents, and so they must be computed together.
        alike = self.config.kind == "cnn" and self.config.norm != "batch"
        for token_SL, inside_SL in layout.side_by_side if alike else [layout.all_side_by_side]:
            x_SLD = x_ND[token_SL]
            for layer in self.layers:
                x_SLD = layer(x_SLD, inside_SL)
            out_ND = out_ND.index_put((token_SL[inside_SL],), x_SLD[inside_SL].float())
        return out_ND.view_as(x_BTD)

    def _each_alone(self, x_BTD: Tensor, document_BT: Tensor) -> Tensor:
        """Apply the layers to each position by itself."""
        if self.config.norm == "batch" and len(self.layers):
            real_BT = document_BT != PADDING  # padding must not enter a batch's mean
            x_ND = x_BTD[real_BT]
            for layer in self.layers:
                x_ND = layer(x_ND)
            return torch.zeros_like(x_BTD, dtype=x_ND.dtype).index_put((real_BT,), x_ND)
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD

    def multiply_adds(self, document_BT: Tensor) -> int:
        """Return those of a forward pass, see :func:`danlu.model.flops.useful`."""
        tokens = int((document_BT >= 0).sum())
        return tokens * sum(p.numel() for p in self.layers.parameters() if p.ndim > 1)

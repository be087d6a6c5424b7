"""The Transformer that every kind of data shares.

A pre-norm Transformer: RMSNorm, rotary positions, grouped-query attention,
optional QK-norm, SwiGLU or GELU, bidirectional or causal by configuration.
Attention never crosses documents, however many a row holds. What else the configuration
allows (LayerNorm, norms after the addition, biases, learnt positions, windows) is there for
the checkpoints of others, see :mod:`danlu.model.hf`.
Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu.batch import ValueKind
from danlu.model import fast, rotary
from danlu.model.block import Block, PostNormBlock, RMSNorm, Unnormed, norm_of
from danlu.model.fast import ACTIVATIONS, GATED, Layout
from danlu.model.values import Intake, SeveralValues, Values, matrices, placed

__all__ = ["BRANCHES", "SPLIT", "Backbone", "BackboneConfig", "Inputs", "RMSNorm", "values_of"]

SPLIT = {
    "q_proj.weight": 0, "k_proj.weight": 0, "v_proj.weight": 0, "o_proj.weight": 1,
    "gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1,
}  # fmt: skip
"""How a layer without biases may be divided among processes: the dimension that each matrix is
cut along, so that heads and hidden units stay whole."""
BRANCHES = ("attention", "feed_forward")
"""The parts of a layer whose outputs are then sums over processes."""


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Everything that fixes the shape and the mathematics of a backbone.

    Attributes
    ----------
    vocab_size : int
        Number of discrete ids.
    num_layers, dim, num_heads, num_kv_heads, head_dim, hidden_dim : int
        Sizes, all positive; `num_heads` is a multiple of `num_kv_heads`.
    activation : str
        The feed-forward layer: gated (``swiglu``, ``geglu``: Shazeer, 2020), or plain with one
        of :data:`danlu.model.ops.ACTIVATIONS`.
    causal : bool
        Whether a position sees only what stands before it.
    qk_norm : bool
        RMSNorm over each head's queries and keys (Henry et al., 2020).
    dropout : float
        In [0, 1): on the embeddings and on each residual branch.
    rope_theta, norm_epsilon : float
        Base of the rotary wavelengths; guard of the norm's division.
    tie_embeddings : bool
        Whether the output matrix over the vocabulary is the input embedding.
    value_dims, value_ids, shared_values
        Of continuous values, see :class:`danlu.batch.ValueKind`; 0 where there are none.
    value_kinds : tuple of ValueKind
        Where they are of several kinds, in the order of their ids: `value_dims` is then the
        most that one has, and `value_ids` all of them.
    norm : {"rms", "layer"}
        RMSNorm, or LayerNorm (Ba et al., 2016), the latter with `norm_bias` or without.
    norm_place : {"pre", "post"}
        Before each branch, and once more at the end; or after each addition, as in Vaswani
        et al., 2017.
    embedding_norm : bool
        Whether the embeddings are normed; with ``pre`` the first attention is then not.
    qkv_bias, output_bias, hidden_bias, head_bias : bool
        Whether there are biases: of queries, keys and values; of the attention's output; of the
        feed-forward layer; of the dense layer of a head that fills in.
    num_positions, first_position : int
        Rows of a table of learnt positions, and the row of a document's beginning; 0 rows for
        rotary positions.
    num_types : int
        Kinds of segments that positions may be of; 0 where they are not told apart.
    rope_scaling : Scaling, optional
        See :class:`danlu.model.rotary.Scaling`; not of local layers.
    window, local_layers, local_rope_theta
        The layers, counted from 0, in which a position sees no further than `window`, and the
        base of their rotary wavelengths.
    """

    vocab_size: int
    num_layers: int
    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_dim: int
    activation: str = "swiglu"
    causal: bool = False
    qk_norm: bool = False
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    value_dims: int = 0
    value_ids: int = 0
    shared_values: bool = True
    value_kinds: tuple[ValueKind, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    norm_place: Literal["pre", "post"] = "pre"
    embedding_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    hidden_bias: bool = False
    head_bias: bool = False
    num_positions: int = 0
    first_position: int = 0
    num_types: int = 0
    rope_scaling: rotary.Scaling | None = None
    window: int = 0
    local_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None

    def __post_init__(self) -> None:
        scaling: Any = self.rope_scaling
        if isinstance(scaling, dict):  # JSON has neither classes nor tuples
            object.__setattr__(self, "rope_scaling", rotary.Scaling(**scaling))
        object.__setattr__(self, "local_layers", tuple(self.local_layers))
        kinds = tuple(ValueKind(*kind) for kind in self.value_kinds)  # JSON has lists
        object.__setattr__(self, "value_kinds", kinds)
        if kinds and self.value_ids != sum(kind.num_ids for kind in kinds):
            raise ValueError("value_kinds must have value_ids in all")
        if kinds and self.value_dims != max(kind.dims for kind in kinds):
            raise ValueError("value_dims must be the most numbers of value_kinds")
        sizes = "vocab_size num_layers dim num_heads num_kv_heads head_dim hidden_dim"
        for name in sizes.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads ({self.num_kv_heads}) must divide num_heads ({self.num_heads})"
            )
        if self.activation not in GATED and self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join([*GATED, *ACTIVATIONS])}")
        if self.norm not in ("rms", "layer") or self.norm_place not in ("pre", "post"):
            raise ValueError("norm must be rms or layer, norm_place pre or post")
        if bool(self.window) != bool(self.local_layers) or self.window < 0:
            raise ValueError("a window is for local_layers, and they need one")
        if self.head_dim % 2 and not self.num_positions:
            raise ValueError(f"head_dim must be even for rotary positions, not {self.head_dim}")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain values, for JSON."""
        return asdict(self)


class Inputs(nn.Module):
    """Ids, and the values that some of them carry, as vectors.

    What every backbone begins with.
    """

    embedding: nn.Embedding
    values: Intake | None

    def embed(
        self, ids_BT: Tensor, values_UK: Tensor | None = None, slots_U: Tensor | None = None
    ) -> Tensor:
        """Return the vector of every position, shape (B, T, D)."""
        x_BTD: Tensor = self.embedding(ids_BT)
        if self.values is None or values_UK is None or slots_U is None:
            return x_BTD
        return placed(x_BTD, self.values(values_UK, ids_BT.reshape(-1)[slots_U]), slots_U)


def values_of(config: Any, *, out: bool = False) -> Values | SeveralValues | None:
    """Return the matrices that take the values in (or give them, if `out`), if there are any."""
    if not config.value_dims:
        return None
    one = ValueKind(config.value_ids, config.value_dims, config.shared_values)
    kinds = getattr(config, "value_kinds", ()) or (one,)
    return matrices(kinds, config.dim, config.vocab_size - config.value_ids, out=out)


class Backbone(Inputs):
    """Ids and values in, one hidden vector for every position out.

    Attributes
    ----------
    checkpoint : bool
        Whether training keeps only what passes between layers, and computes the rest
        again for the gradient (Chen et al., 2016): less memory, a third more work.

    Examples
    --------
    >>> config = BackboneConfig(vocab_size=32, num_layers=1, dim=8, num_heads=2,
    ...                         num_kv_heads=1, head_dim=4, hidden_dim=16)
    >>> ids = torch.tensor([[5, 6, 7]])
    >>> Backbone(config)(ids, torch.arange(3)[None], torch.zeros_like(ids)).shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpoint = False
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.values = values_of(config)
        self.dropout = nn.Dropout(config.dropout)
        if config.num_positions:
            self.position_embedding = nn.Embedding(config.num_positions, config.dim)
        if config.num_types:
            self.type_embedding = nn.Embedding(config.num_types, config.dim)
        if config.embedding_norm:
            self.embedding_norm = norm_of(config)
        post = config.norm_place == "post"
        block = PostNormBlock if post else Block
        self.layers = nn.ModuleList(block(config, n) for n in range(config.num_layers))
        self.norm = Unnormed() if post else norm_of(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights from the global generator.

        Matrices: normal with variance 1 / (5 × inputs), so that a tied output
        starts near uniform predictions; those that write to the residual
        stream are shrunk by sqrt(2 × layers), which keeps its variance
        independent of depth (Radford et al., GPT-2, 2019).
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                std = (5 * module.in_features) ** -0.5
                if name.endswith(("o_proj", "down_proj")):
                    std /= (2 * self.config.num_layers) ** 0.5
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding) and module is not self.embedding:
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Values):
                # As large as the ids they stand with: a patch must not drown its place.
                nn.init.normal_(module.weight, std=0.02 * module.weight.shape[1] ** -0.5)

    def forward(
        self,
        ids_BT: Tensor,
        position_BT: Tensor,
        document_BT: Tensor,
        values_UK: Tensor | None = None,
        slots_U: Tensor | None = None,
    ) -> Tensor:
        """Return hidden_BTD, shape (B, T, D), normed."""
        config = self.config
        layout = Layout.of(document_BT, config.causal)
        everywhere = (*self._tables(position_BT, document_BT), layout)
        nearby = everywhere
        if config.local_layers:
            nearby = (*self._tables(position_BT, document_BT, True), layout.within(config.window))
        x_BTD = self.embed(ids_BT, values_UK, slots_U)
        x_BTD = self.dropout(self._placed(x_BTD, position_BT))
        delta_BTD: Tensor | None = None
        for layer in self.layers:
            seen = nearby if layer.local else everywhere
            if self.checkpoint and torch.is_grad_enabled():
                x_BTD, delta_BTD = checkpoint(layer, x_BTD, delta_BTD, *seen, use_reentrant=False)
            else:
                x_BTD, delta_BTD = layer(x_BTD, delta_BTD, *seen)
        _, hidden_BTD = self.norm.add(x_BTD, delta_BTD)
        return hidden_BTD

    def _tables(
        self, position_BT: Tensor, document_BT: Tensor, local: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return cosines and sines, if positions are rotary."""
        config = self.config
        if config.num_positions:
            return None, None
        theta, scaling = config.rope_theta, config.rope_scaling
        if local and config.local_rope_theta is not None:
            theta, scaling = config.local_rope_theta, None
        return rotary.tables(position_BT, document_BT, config.head_dim, theta, scaling)

    def _placed(self, x_BTD: Tensor, position_BT: Tensor) -> Tensor:
        """Add what is learnt of positions and of the first type, and norm the sum."""
        config = self.config
        if config.num_types:
            x_BTD = x_BTD + self.type_embedding.weight[0]
        if config.num_positions:
            x_BTD = x_BTD + self.position_embedding(position_BT + config.first_position)
        return self.embedding_norm(x_BTD) if config.embedding_norm else x_BTD

    def without_kernels(self, longest: int) -> list[str]:
        """Return what of it the fast kernels do not take, for documents of up to `longest`."""
        config = self.config
        widths = {"dim": config.dim, "head_dim": config.head_dim, "hidden_dim": config.hidden_dim}
        plain = [f"{name} {width}" for name, width in widths.items() if not fast.takes(width)]
        if config.norm == "layer":
            plain.append("LayerNorm")
        if config.activation not in ("swiglu", "geglu", "gelu"):
            plain.append(config.activation)
        if config.local_layers and longest > config.window + 1:
            plain.append(f"attention within {config.window} positions")
        return plain

    def multiply_adds(self, document_BT: Tensor) -> int:
        """Return those of a forward pass, see :func:`danlu.model.flops.useful`."""
        config = self.config
        layers = sum(p.numel() for p in self.layers.parameters() if p.ndim == 2)
        length_S = Layout.of(document_BT, config.causal).length_S
        local = len(config.local_layers)
        pairs = (config.num_layers - local) * self._pairs(length_S, 0)
        pairs += local * self._pairs(length_S, config.window)
        return layers * int(length_S.sum()) + 2 * pairs * config.num_heads * config.head_dim

    def _pairs(self, length_S: Tensor, window: int) -> int:
        """Return how many pairs of positions may see each other."""
        far_S = length_S - 1
        far_S = far_S.clamp(max=window) if window else far_S
        if self.config.causal:
            each_S = (far_S + 1) * (far_S + 2) // 2 + (length_S - far_S - 1) * (far_S + 1)
        else:
            each_S = length_S * (2 * far_S + 1) - far_S * (far_S + 1)
        return int(each_S.sum())

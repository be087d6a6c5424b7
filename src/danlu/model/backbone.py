"""The Transformer that every kind of data shares.

A pre-norm Transformer: RMSNorm, rotary positions, grouped-query attention,
optional QK-norm, SwiGLU or GELU, bidirectional or causal by configuration.
Attention never crosses documents, however many a row holds.
Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu.batch import ValueKind
from danlu.model import fast
from danlu.model.fast import ACTIVATIONS, Layout
from danlu.model.values import Intake, SeveralValues, Values, matrices, placed

SPLIT = {
    "q_proj.weight": 0, "k_proj.weight": 0, "v_proj.weight": 0, "o_proj.weight": 1,
    "gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1,
}  # fmt: skip
"""How a layer may be divided among processes: the dimension that each matrix is cut along, so
that heads and hidden units stay whole."""
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
        The feed-forward layer: ``swiglu``, gated SiLU (Shazeer, 2020), or plain with one of
        :data:`danlu.model.ops.ACTIVATIONS`.
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

    def __post_init__(self) -> None:
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
        if self.activation != "swiglu" and self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be swiglu or one of {', '.join(ACTIVATIONS)}")
        if self.head_dim % 2:
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


class RMSNorm(nn.Module):
    """:func:`danlu.model.ops.rms_norm` with a learnt scale that starts at one."""

    def __init__(self, dim: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return fast.rms_norm(x, self.weight, self.epsilon)

    def add(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the sum and its norm; see :func:`danlu.model.ops.add_rms_norm`."""
        return fast.add_rms_norm(x, delta, self.weight, self.epsilon)


class Attention(nn.Module):
    """Self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, queries, bias=False)
        self.k_proj = nn.Linear(config.dim, keys, bias=False)
        self.v_proj = nn.Linear(config.dim, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.dim, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_epsilon)
            self.k_norm = RMSNorm(config.head_dim, config.norm_epsilon)

    def forward(self, x_BTD: Tensor, cos_BTG: Tensor, sin_BTG: Tensor, layout: Layout) -> Tensor:
        config = self.config
        joint = fast.linear(x_BTD, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        heads = joint.view(*joint.shape[:2], -1, config.head_dim)
        # Counted by what is there: of a divided layer, a process holds some of the heads.
        num_groups = heads.shape[2] // (config.num_heads // config.num_kv_heads + 2)
        num_queries = heads.shape[2] - 2 * num_groups
        each = [num_queries, num_groups, num_groups]
        q_BTAH, k_BTKH, v_BTKH = torch.split(heads, each, dim=2)
        if config.qk_norm:
            q_BTAH, k_BTKH = self.q_norm(q_BTAH), self.k_norm(k_BTKH)
        out_BTAH = fast.attention(q_BTAH, k_BTKH, v_BTKH, cos_BTG, sin_BTG, layout)
        out: Tensor = self.o_proj(out_BTAH.flatten(-2))
        return out


class FeedForward(nn.Module):
    """SwiGLU, ``down(silu(gate(x)) * up(x))``, or ``down(activation(up(x)))``."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gated = config.activation == "swiglu"
        self.activation = fast.swiglu if self.gated else ACTIVATIONS[config.activation]
        if self.gated:
            self.gate_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gated:
            gate_up = fast.linear(x_BTD, self.gate_proj.weight, self.up_proj.weight)
            hidden_BTF = self.activation(gate_up)
        else:
            hidden_BTF = self.activation(self.up_proj(x_BTD))
        out: Tensor = self.down_proj(hidden_BTF)
        return out


class Block(nn.Module):
    """One layer: attention and feed-forward, each normed before and added after.

    The addition of a branch is left to the norm that follows, which reads the sum
    anyway; a block hands on the residual stream and the branch not yet added.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_epsilon)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.dim, config.norm_epsilon)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        delta_BTD: Tensor | None,
        cos_BTG: Tensor,
        sin_BTG: Tensor,
        layout: Layout,
    ) -> tuple[Tensor, Tensor]:
        x_BTD, normed_BTD = self.attention_norm.add(x_BTD, delta_BTD)
        delta_BTD = self.dropout(self.attention(normed_BTD, cos_BTG, sin_BTG, layout))
        x_BTD, normed_BTD = self.feed_forward_norm.add(x_BTD, delta_BTD)
        return x_BTD, self.dropout(self.feed_forward(normed_BTD))


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
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_epsilon)
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
        cos_BTG, sin_BTG = fast.rotary_table(position_BT, config.head_dim, config.rope_theta)
        layout = Layout.of(document_BT, config.causal)
        x_BTD: Tensor = self.dropout(self.embed(ids_BT, values_UK, slots_U))
        delta_BTD: Tensor | None = None
        for layer in self.layers:
            if self.checkpoint and torch.is_grad_enabled():
                x_BTD, delta_BTD = checkpoint(
                    layer, x_BTD, delta_BTD, cos_BTG, sin_BTG, layout, use_reentrant=False
                )
            else:
                x_BTD, delta_BTD = layer(x_BTD, delta_BTD, cos_BTG, sin_BTG, layout)
        _, hidden_BTD = self.norm.add(x_BTD, delta_BTD)
        return hidden_BTD

    def multiply_adds(self, document_BT: Tensor) -> int:
        """Return those of a forward pass, see :func:`danlu.model.flops.useful`."""
        config = self.config
        layers = sum(p.numel() for p in self.layers.parameters() if p.ndim == 2)
        length_S = Layout.of(document_BT, config.causal).length_S
        pairs = int((length_S * (length_S + 1) // 2 if config.causal else length_S**2).sum())
        seen = 2 * pairs * config.num_layers * config.num_heads * config.head_dim
        return layers * int(length_S.sum()) + seen

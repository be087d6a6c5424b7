"""One layer of the Transformer, and the norms that it and the backbone share.

Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from danlu.model import fast
from danlu.model.fast import ACTIVATIONS, GATED, Layout

if TYPE_CHECKING:
    from danlu.model.backbone import BackboneConfig


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


class LayerNorm(nn.LayerNorm):
    """torch's, adding as :class:`RMSNorm` does."""

    def add(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the sum and its norm."""
        total = x if delta is None else x + delta
        return total, self(total)


def norm_of(config: BackboneConfig) -> RMSNorm | LayerNorm:
    """Return a norm over the width, as the configuration has it."""
    if config.norm == "rms":
        return RMSNorm(config.dim, config.norm_epsilon)
    return LayerNorm(config.dim, eps=config.norm_epsilon, bias=config.norm_bias)


class Unnormed(nn.Identity):
    """Adds, and norms nothing."""

    def add(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the sum twice."""
        total = x if delta is None else x + delta
        return total, total


class Attention(nn.Module):
    """Self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        queries = config.num_heads * config.head_dim
        keys = config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.dim, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.dim, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.dim, bias=config.output_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.norm_epsilon)
            self.k_norm = RMSNorm(config.head_dim, config.norm_epsilon)

    def forward(
        self, x_BTD: Tensor, cos_BTG: Tensor | None, sin_BTG: Tensor | None, layout: Layout
    ) -> Tensor:
        config = self.config
        joint = _joint(x_BTD, self.q_proj, self.k_proj, self.v_proj)
        heads = joint.view(*joint.shape[:2], -1, config.head_dim)
        # Counted by what is there: of a divided layer, a process holds some of the heads.
        num_groups = heads.shape[2] // (config.num_heads // config.num_kv_heads + 2)
        each = [heads.shape[2] - 2 * num_groups, num_groups, num_groups]
        q_BTAH, k_BTKH, v_BTKH = torch.split(heads, each, dim=2)
        if config.qk_norm:
            q_BTAH, k_BTKH = self.q_norm(q_BTAH), self.k_norm(k_BTKH)
        out_BTAH = fast.attention(q_BTAH, k_BTKH, v_BTKH, cos_BTG, sin_BTG, layout)
        out: Tensor = self.o_proj(out_BTAH.flatten(-2))
        return out


def _joint(x_BTD: Tensor, *layers: nn.Linear) -> Tensor:
    """Return what several layers make of the same input, side by side."""
    biases = [layer.bias for layer in layers if layer.bias is not None]
    return fast.linear(x_BTD, *(layer.weight for layer in layers), biases=biases)


class FeedForward(nn.Module):
    """Gated, such as SwiGLU's ``down(silu(gate(x)) * up(x))``, or ``down(activation(up(x)))``."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gated, bias = config.activation in GATED, config.hidden_bias
        self.activation = (GATED if self.gated else ACTIVATIONS)[config.activation]
        if self.gated:
            self.gate_proj = nn.Linear(config.dim, config.hidden_dim, bias=bias)
        self.up_proj = nn.Linear(config.dim, config.hidden_dim, bias=bias)
        self.down_proj = nn.Linear(config.hidden_dim, config.dim, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gated:
            hidden_BTF = self.activation(_joint(x_BTD, self.gate_proj, self.up_proj))
        else:
            hidden_BTF = self.activation(self.up_proj(x_BTD))
        out: Tensor = self.down_proj(hidden_BTF)
        return out


class Block(nn.Module):
    """One layer: attention and feed-forward, each normed before and added after.

    The addition of a branch is left to the norm that follows, which reads the sum
    anyway; a block hands on the residual stream and the branch not yet added.
    """

    def __init__(self, config: BackboneConfig, number: int = 0) -> None:
        super().__init__()
        normed = number == 0 and config.embedding_norm and config.norm_place == "pre"
        self.attention_norm = Unnormed() if normed else norm_of(config)
        self.attention = Attention(config)
        self.feed_forward_norm = norm_of(config)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)
        self.local = number in config.local_layers

    def forward(
        self,
        x_BTD: Tensor,
        delta_BTD: Tensor | None,
        cos_BTG: Tensor | None,
        sin_BTG: Tensor | None,
        layout: Layout,
    ) -> tuple[Tensor, Tensor | None]:
        x_BTD, normed_BTD = self.attention_norm.add(x_BTD, delta_BTD)
        delta_BTD = self.dropout(self.attention(normed_BTD, cos_BTG, sin_BTG, layout))
        x_BTD, normed_BTD = self.feed_forward_norm.add(x_BTD, delta_BTD)
        return x_BTD, self.dropout(self.feed_forward(normed_BTD))


class PostNormBlock(Block):
    """One layer: attention and feed-forward, each added and then normed."""

    def forward(
        self,
        x_BTD: Tensor,
        delta_BTD: Tensor | None,
        cos_BTG: Tensor | None,
        sin_BTG: Tensor | None,
        layout: Layout,
    ) -> tuple[Tensor, Tensor | None]:
        branch_BTD = self.dropout(self.attention(x_BTD, cos_BTG, sin_BTG, layout))
        _, x_BTD = self.attention_norm.add(x_BTD, branch_BTD)
        _, x_BTD = self.feed_forward_norm.add(x_BTD, self.dropout(self.feed_forward(x_BTD)))
        return x_BTD, delta_BTD

"""The few operations a Transformer is made of, plainly written.

They run anywhere and are the reference of :mod:`danlu.model.fast`, which holds quicker
forms of the same names. Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor

from danlu.batch import PADDING


def rms_norm(x: Tensor, weight_D: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Divide by the root mean square over the last dimension, then scale.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019.
    The mean is taken in float32 whatever the dtype of `x`, because squares of
    half-precision numbers lose their small terms.
    """
    x32 = x.float()
    scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    return (x32 * scale).to(x.dtype) * weight_D.to(x.dtype)


def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight_D: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and norm the sum.

    Parameters
    ----------
    x : Tensor of float32, shape (..., D)
        The residual stream.
    delta : Tensor, same shape, optional
        What a branch adds to it; nothing for the first norm of a stack.
    weight_D : Tensor, shape (D,)
    epsilon : float

    Returns
    -------
    total, normed : Tensor, shape (..., D)
        The stream after the addition, and its :func:`rms_norm`.
    """
    total = x if delta is None else x + delta
    return total, rms_norm(total, weight_D, epsilon)


def linear(x: Tensor, *weights: Tensor, biases: Sequence[Tensor] = ()) -> Tensor:
    """Multiply by several matrices at once; their outputs stand side by side.

    Parameters
    ----------
    x : Tensor, shape (..., D)
    weights : Tensor, shape (F_i, D) each
    biases : sequence of Tensor, shape (F_i,) each, optional

    Returns
    -------
    Tensor, shape (..., sum of F_i)
        In training the matrices are joined first, so that `x` is read once; without
        gradients the outputs are joined, which costs less for a few rows.
    """
    if not torch.is_grad_enabled():
        each = zip_longest(weights, biases)
        return torch.cat([F.linear(x, weight, bias) for weight, bias in each], dim=-1)
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    bias = torch.cat([bias.to(dtype) for bias in biases]) if biases else None
    return F.linear(x, torch.cat([weight.to(dtype) for weight in weights]), bias)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) * up``, where gate and up are the halves of the last dimension.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def geglu(gate_up: Tensor) -> Tensor:
    """Return ``gelu(gate) * up``, as :func:`swiglu` does with ``silu``."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gelu(gate) * up


def gelu(x: Tensor) -> Tensor:
    """Return each number times the share of the normal distribution below it.

    Source: Hendrycks & Gimpel, "Gaussian Error Linear Units", 2016; the exact form.
    """
    return F.gelu(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "gelu": gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""What bends a layer's output, by name: Nair & Hinton, 2010; Maas et al., 2013 (slope 0.01);
Hendrycks & Gimpel, 2016 (``gelu_tanh`` is their approximation); Elfwing et al., 2018."""
GATED: dict[str, Callable[[Tensor], Tensor]] = {"swiglu": swiglu, "geglu": geglu}
"""Feed-forward layers whose one half opens the other, by name."""


def rotary_table(position_BT: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary position embedding.

    Parameters
    ----------
    position_BT : Tensor of int64, shape (B, T)
        Positions, from 0.
    head_dim : int
        Width of a head; even.
    theta : float
        Base of the geometric series of wavelengths, > 1.

    Returns
    -------
    cos_BTG, sin_BTG : Tensor of float32, shape (B, T, head_dim / 2)

    Notes
    -----
    Source: Su et al., "RoFormer", 2021, in the half-split layout that the
    Llama family uses: coordinate ``g`` turns with ``g + head_dim / 2``.
    """
    exponent = torch.arange(0, head_dim, 2, device=position_BT.device).float() / head_dim
    angle_BTG = position_BT.float().unsqueeze(-1) * theta**-exponent
    return angle_BTG.cos(), angle_BTG.sin()


def rotate(x_BTAH: Tensor, cos_BTG: Tensor, sin_BTG: Tensor) -> Tensor:
    """Turn each pair of coordinates of every head by its position's angle."""
    first, second = x_BTAH.chunk(2, dim=-1)
    cos, sin = cos_BTG.unsqueeze(2).to(x_BTAH.dtype), sin_BTG.unsqueeze(2).to(x_BTAH.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@dataclass(frozen=True)
class Layout:
    """Where the documents of a batch lie, and who may see whom.

    Attributes
    ----------
    first_S, length_S : Tensor of int64, shape (S,)
        First token of each document, counted over the rows of the batch laid end to
        end, and its length; the longest documents first. Padding is in none.
    causal : bool
        Whether a position may only see itself and what stands before it.
    window : int
        How far a position sees, at most; 0 for all of its document.
    """

    first_S: Tensor
    length_S: Tensor
    causal: bool
    window: int = 0

    @classmethod
    def of(cls, document_BT: Tensor, causal: bool) -> Layout:
        """Find the runs of equal document numbers; see :class:`danlu.batch.Batch`."""
        begins = torch.ones_like(document_BT, dtype=torch.bool)
        begins[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
        first = begins.reshape(-1).nonzero().squeeze(-1)
        end = torch.cat((first[1:], first.new_tensor([document_BT.numel()])))
        real = document_BT.reshape(-1)[first] != PADDING
        length_S, order = (end - first)[real].sort(descending=True, stable=True)
        return cls(first[real][order], length_S, causal)

    def within(self, window: int) -> Layout:
        """Return the layout of a layer that sees so far; itself where all documents are short."""
        longest = int(self.length_S[0]) if len(self.length_S) else 0
        return self if not window or longest <= window + 1 else replace(self, window=window)

    @cached_property
    def side_by_side(self) -> list[tuple[Tensor, Tensor]]:
        """Each group of :meth:`alike` as token_SL and inside_SL, worked out once a batch.

        A place that no token of the document takes (``inside_SL`` is false) holds its first.
        """
        return [_beside(*group) for group in self.alike()]

    @cached_property
    def all_side_by_side(self) -> tuple[Tensor, Tensor]:
        """All documents as one group of :attr:`side_by_side`, however they differ."""
        return _beside(self.first_S, self.length_S)

    def alike(self) -> list[tuple[Tensor, Tensor]]:
        """Return the documents in groups whose lengths differ by less than a half."""
        groups, start, lengths = [], 0, self.length_S.tolist()
        for number, length in enumerate([*lengths, 0]):
            if number > start and 2 * length < lengths[start] + 1:
                groups.append((self.first_S[start:number], self.length_S[start:number]))
                start = number
        return groups


def _beside(first_S: Tensor, length_S: Tensor) -> tuple[Tensor, Tensor]:
    offset_L = torch.arange(int(length_S[0]), device=first_S.device)
    inside_SL = offset_L < length_S.unsqueeze(1)
    return torch.where(inside_SL, first_S.unsqueeze(1) + offset_L, first_S[:, None]), inside_SL


def attention(
    q_BTAH: Tensor,
    k_BTKH: Tensor,
    v_BTKH: Tensor,
    cos_BTG: Tensor | None,
    sin_BTG: Tensor | None,
    layout: Layout,
) -> Tensor:
    """Scaled dot-product attention inside each document, with rotary positions.

    Sources: Vaswani et al., "Attention Is All You Need", 2017; Ainslie et al.,
    "GQA", 2023. Query head ``a`` reads key/value head ``a // (A / K)``.

    Parameters
    ----------
    q_BTAH, k_BTKH, v_BTKH : Tensor
        Before rotation.
    cos_BTG, sin_BTG : Tensor, optional
        See :func:`rotary_table`; without them nothing is rotated.
    layout : Layout
        Attention never crosses the documents that it names.

    Returns
    -------
    Tensor, shape (B, T, A, H)
        Zero at padding.

    Notes
    -----
    Documents of like lengths are laid side by side, so that little is computed for
    nothing and nothing grows with the square of a row. On a CPU this runs in float32
    even under autocast: torch 2.13's bf16 backward is up to five times slower there
    below 256 positions (NOTEBOOK.md, 2026-11-22), and the softmax gains precision.
    """
    given = q_BTAH.dtype
    in_float32 = q_BTAH.device.type == "cpu" and given == torch.bfloat16
    with torch.autocast(q_BTAH.device.type, enabled=False):
        if in_float32:
            q_BTAH, k_BTKH, v_BTKH = q_BTAH.float(), k_BTKH.float(), v_BTKH.float()
        if cos_BTG is not None and sin_BTG is not None:
            q_BTAH, k_BTKH = (rotate(x, cos_BTG, sin_BTG) for x in (q_BTAH, k_BTKH))
        q_NAH, k_NKH = q_BTAH.flatten(0, 1), k_BTKH.flatten(0, 1)
        v_NKH = v_BTKH.flatten(0, 1)
        out_NAH = torch.zeros_like(q_NAH)
        for token_SL, inside_SL in layout.side_by_side:
            mask = inside_SL[:, None, None, :]
            if layout.causal:
                mask = mask & torch.ones_like(mask[0, 0].expand(mask.shape[-1], -1)).tril()
            if layout.window:
                place_L = torch.arange(mask.shape[-1], device=mask.device)
                mask = mask & ((place_L[:, None] - place_L).abs() <= layout.window)
            q, k, v = (x[token_SL].transpose(1, 2) for x in (q_NAH, k_NKH, v_NKH))
            grouped = q.shape[1] != k.shape[1]
            answer_SALH = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=grouped)
            answer_MAH = answer_SALH.transpose(1, 2)[inside_SL]
            out_NAH = out_NAH.index_put((token_SL[inside_SL],), answer_MAH)
    return out_NAH.to(given).view_as(q_BTAH)


def cross_entropy(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_M: Tensor,
    weight_M: Tensor,
) -> Tensor:
    """Return the summed, weighted cross-entropy of a linear layer over the vocabulary.

    Parameters
    ----------
    hidden_MD : Tensor, shape (M, D)
    weight_VD, bias_V : Tensor
        The linear layer.
    target_M : Tensor of int64, shape (M,)
    weight_M : Tensor of float32, shape (M,)

    Returns
    -------
    Tensor of float32, shape ()
        In nats.
    """
    logits_MV = F.linear(hidden_MD, weight_VD, bias_V).float()
    return (F.cross_entropy(logits_MV, target_M, reduction="none") * weight_M).sum()


# Odd polynomials of degree five, each the best for the singular values that the one before
# leaves; together they take [0.001, 1] to about 1.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# bfloat16 may push a singular value past 1, where these polynomials explode.
POLAR_SAFETY = 1.01


def polar_polynomials() -> list[tuple[float, float, float]]:
    """Return the coefficients of x, x^3 and x^5 of each step, kept on the safe side."""
    s = POLAR_SAFETY
    safe = [(a / s, b / s**3, c / s**5) for a, b, c in POLAR_EXPRESS[:-1]]
    return [*safe, POLAR_EXPRESS[-1]]


def orthogonalize(x_SMN: Tensor) -> Tensor:
    """Return about ``U V^T`` of each matrix ``U S V^T`` of a stack.

    Parameters
    ----------
    x_SMN : Tensor, shape (S, M, N)
        With M <= N, in the precision to work in; bfloat16 suffices. It may be overwritten.

    Notes
    -----
    Source: Amsel et al., "The Polar Express", 2025: the Newton–Schulz iteration of Muon
    with the polynomial that is best at each step.
    """
    norm = torch.linalg.vector_norm(x_SMN, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x = x_SMN / (norm * POLAR_SAFETY + 1e-7).to(x_SMN.dtype)
    for a, b, c in polar_polynomials():
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    out: Tensor = x
    return out

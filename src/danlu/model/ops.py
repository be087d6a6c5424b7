"""The few operations a Transformer is made of, plainly written.

Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight_D: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Divide by the root mean square over the last dimension, then scale.

    Source: Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019.
    The mean is taken in float32 whatever the dtype of `x`, because squares of
    half-precision numbers lose their small terms.
    """
    x32 = x.float()
    scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + epsilon)
    return (x32 * scale).to(x.dtype) * weight_D.to(x.dtype)


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
    cos_BTH, sin_BTH : Tensor of float32, shape (B, T, head_dim)
        The two halves of the last dimension repeat each other.

    Notes
    -----
    Source: Su et al., "RoFormer", 2021, in the half-split layout that the
    Llama family uses.
    """
    exponent = torch.arange(0, head_dim, 2, device=position_BT.device).float() / head_dim
    angle = position_BT.float().unsqueeze(-1) * theta**-exponent
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def rotate(x_BTAH: Tensor, cos_BTH: Tensor, sin_BTH: Tensor) -> Tensor:
    """Turn each pair of coordinates of every head by its position's angle."""
    first, second = x_BTAH.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    cos, sin = cos_BTH.unsqueeze(2).to(x_BTAH.dtype), sin_BTH.unsqueeze(2).to(x_BTAH.dtype)
    return x_BTAH * cos + turned * sin


def document_mask(document_BT: Tensor, causal: bool) -> Tensor:
    """Which position may look at which: same document, and not ahead if causal.

    Parameters
    ----------
    document_BT : Tensor of int64, shape (B, T)
        Document of each position; padding is a document of its own, so that a
        padding row sees something and its softmax stays finite.
    causal : bool
        Whether a position may only see itself and what stands before it.

    Returns
    -------
    mask_B1TT : Tensor of bool, shape (B, 1, T, T)
        True where the query (third axis) may see the key (last axis).
    """
    mask = document_BT.unsqueeze(2) == document_BT.unsqueeze(1)
    if causal:
        mask = mask.tril()
    return mask.unsqueeze(1)


def attention(
    q_BTAH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, mask_B1TT: Tensor, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention with grouped key/value heads.

    Sources: Vaswani et al., "Attention Is All You Need", 2017; Ainslie et al.,
    "GQA", 2023. Query head ``a`` reads key/value head ``a // (A / K)``.

    Returns
    -------
    Tensor, shape (B, T, A, H)

    Notes
    -----
    On a CPU the kernel runs in float32 even under autocast: torch 2.13's bf16
    backward is up to five times slower there below 256 positions (NOTEBOOK.md,
    2026-11-22), and the softmax gains precision.
    """
    if q_BTAH.device.type == "cpu":
        dtype = q_BTAH.dtype
        with torch.autocast("cpu", enabled=False):
            return _attention(
                q_BTAH.float(), k_BTKH.float(), v_BTKH.float(), mask_B1TT, dropout
            ).to(dtype)
    return _attention(q_BTAH, k_BTKH, v_BTKH, mask_B1TT, dropout)


def _attention(
    q_BTAH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, mask_B1TT: Tensor, dropout: float
) -> Tensor:
    out_BATH = F.scaled_dot_product_attention(
        q_BTAH.transpose(1, 2),
        k_BTKH.transpose(1, 2),
        v_BTKH.transpose(1, 2),
        attn_mask=mask_B1TT,
        dropout_p=dropout,
        enable_gqa=q_BTAH.shape[2] != k_BTKH.shape[2],
    )
    return out_BATH.transpose(1, 2)

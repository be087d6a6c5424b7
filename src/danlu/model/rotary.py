"""Rotary positions beyond the plain ones: how open models stretch them to longer texts.

Shape suffixes: see :mod:`danlu.batch`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from danlu.batch import PADDING
from danlu.model import ops

ScalingKind = Literal["linear", "dynamic", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class Scaling:
    """How the rotary frequencies of a model are changed, so that it takes longer texts.

    Attributes
    ----------
    kind : {"linear", "dynamic", "llama3", "yarn"}
        ``linear`` turns everything slower (Chen et al., "Extending Context Window", 2023);
        ``dynamic`` raises the base with the length of each document beyond
        `original_positions` (NTK-aware scaling), so that what a document's end adds changes
        its beginning; ``llama3`` turns only long waves slower (Llama 3.1, 2024); ``yarn`` does
        so between two numbers of turns, and scales the attention (Peng et al., 2023).
    factor : float
        At least 1: how many times as long the texts are.
    original_positions : int
        Positions that the model was trained on before; of no use to ``linear``.
    low, high : float
        For ``llama3``: turns within `original_positions` below which a wave is slowed in full,
        and above which it is left alone. For ``yarn`` its ``beta_slow`` and ``beta_fast``,
        which mean the same.
    attention_factor : float
        For ``yarn``: what cosines and sines are multiplied by.
    whole_bounds : bool
        For ``yarn``: whether the bounds between waves are rounded outwards to whole numbers.
    """

    kind: ScalingKind
    factor: float
    original_positions: int = 0
    low: float = 1.0
    high: float = 4.0
    attention_factor: float = 1.0
    whole_bounds: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScalingKind):
            raise ValueError(f"rotary scaling is one of {', '.join(get_args(ScalingKind))}")
        if not self.factor >= 1:
            raise ValueError(f"a rotary factor is at least 1, not {self.factor}")
        if self.kind != "linear" and self.original_positions < 1:
            raise ValueError(f"rotary scaling {self.kind!r} needs original_positions")
        if self.kind in ("llama3", "yarn") and not 0 < self.low < self.high:
            raise ValueError("rotary scaling needs 0 < low < high")


def tables(
    position_BT: Tensor,
    document_BT: Tensor,
    head_dim: int,
    theta: float,
    scaling: Scaling | None = None,
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, as :func:`danlu.model.ops.rotary_table` does without scaling.

    Parameters
    ----------
    position_BT, document_BT : Tensor of int64, shape (B, T)
        See :class:`danlu.batch.Batch`.
    head_dim : int
        Width of a head; even.
    theta : float
        Base of the geometric series of wavelengths, > 1.
    scaling : Scaling, optional

    Returns
    -------
    cos_BTG, sin_BTG : Tensor of float32, shape (B, T, head_dim / 2)
    """
    if scaling is None:
        return ops.rotary_table(position_BT, head_dim, theta)
    exponent_G = torch.arange(0, head_dim, 2, device=position_BT.device).float() / head_dim
    if scaling.kind == "dynamic":
        excess_BT1 = _lengths(document_BT).unsqueeze(-1) / scaling.original_positions
        stretch_BT1 = scaling.factor * excess_BT1.clamp(min=1) - (scaling.factor - 1)
        frequency = (theta * stretch_BT1 ** (head_dim / (head_dim - 2))) ** -exponent_G
    else:
        frequency = _SLOWED[scaling.kind](theta**-exponent_G, head_dim, theta, scaling)
    angle_BTG = position_BT.float().unsqueeze(-1) * frequency
    return angle_BTG.cos() * scaling.attention_factor, angle_BTG.sin() * scaling.attention_factor


def _lengths(document_BT: Tensor) -> Tensor:
    """Return at each position how long its document is; padding counts as 1."""
    real_BT = document_BT != PADDING
    count_N = torch.bincount(document_BT[real_BT])
    lengths_BT = torch.ones_like(document_BT)
    lengths_BT[real_BT] = count_N[document_BT[real_BT]]
    return lengths_BT.float()


def _linear(frequency_G: Tensor, _dim: int, _theta: float, scaling: Scaling) -> Tensor:
    return frequency_G / scaling.factor


def _llama3(frequency_G: Tensor, _dim: int, _theta: float, scaling: Scaling) -> Tensor:
    turns_G = scaling.original_positions * frequency_G / (2 * math.pi)
    kept_G = ((turns_G - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return frequency_G * (kept_G + (1 - kept_G) / scaling.factor)


def _yarn(frequency_G: Tensor, head_dim: int, theta: float, scaling: Scaling) -> Tensor:
    def place(turns: float) -> float:
        """Return the number of the wave that turns so often within the original positions."""
        length = scaling.original_positions / (turns * 2 * math.pi)
        return head_dim * math.log(length) / (2 * math.log(theta))

    first, last = place(scaling.high), place(scaling.low)
    if scaling.whole_bounds:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    number_G = torch.arange(len(frequency_G), device=frequency_G.device).float()
    slowed_G = ((number_G - first) / max(last - first, 1e-3)).clamp(0, 1)
    return frequency_G * (1 - slowed_G + slowed_G / scaling.factor)


_SLOWED = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}

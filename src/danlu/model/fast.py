"""Quicker forms of :mod:`danlu.model.ops`, under the same names and signatures.

On a CPU they call the kernels of :mod:`danlu.model.native`; where a kernel does not fit
(another device or dtype, a width that is no multiple of 16, no compiler), the plain
operation answers. Numbers agree with it up to rounding, gradients included.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from danlu.model import native, ops
from danlu.model.ops import Layout, linear, rms_norm, rotary_table

__all__ = [
    "ACTIVATIONS", "GATED", "Layout", "add_rms_norm", "attention", "cross_entropy", "geglu", "gelu",
    "linear", "orthogonalize", "rms_norm", "rotary_table", "swiglu",
]  # fmt: skip

_STEP = 16  # the kernels take widths in multiples of this
_WIDEST_HEAD = 1024
_LOGITS = 2**23  # logits held at once by the cross-entropy; 16 MB of bfloat16


def add_rms_norm(
    x: Tensor, delta: Tensor | None, weight_D: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """See :func:`danlu.model.ops.add_rms_norm`; one pass over the rows each way.

    Under autocast the normed rows come in its dtype, as the next matrix wants them.
    """
    if not _fits(x, x.shape[-1]) or x.dtype != torch.float32 or weight_D.dtype != torch.float32:
        return ops.add_rms_norm(x, delta, weight_D, epsilon)
    if delta is not None:
        delta = (delta if delta.dtype in _TYPES else delta.to(x.dtype)).expand_as(x)
    total, normed = _apply(_AddRMSNorm, x, delta, weight_D, epsilon, _working_dtype(x))
    return (x if delta is None else total), normed


def swiglu(gate_up: Tensor) -> Tensor:
    """See :func:`danlu.model.ops.swiglu`; saves nothing but its input."""
    if not _fits(gate_up, gate_up.shape[-1] // 2):
        return ops.swiglu(gate_up)
    out: Tensor = _apply(_SwiGLU, gate_up)
    return out


def gelu(x: Tensor) -> Tensor:
    """See :func:`danlu.model.ops.gelu`."""
    if not _fits(x, x.shape[-1]):
        return ops.gelu(x)
    out: Tensor = _apply(_GELU, x)
    return out


def geglu(gate_up: Tensor) -> Tensor:
    """See :func:`danlu.model.ops.geglu`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gelu(gate) * up


ACTIVATIONS = {**ops.ACTIVATIONS, "gelu": gelu}
"""See :data:`danlu.model.ops.ACTIVATIONS`."""
GATED = {"swiglu": swiglu, "geglu": geglu}
"""See :data:`danlu.model.ops.GATED`."""


def attention(
    q_BTAH: Tensor,
    k_BTKH: Tensor,
    v_BTKH: Tensor,
    cos_BTG: Tensor | None,
    sin_BTG: Tensor | None,
    layout: Layout,
) -> Tensor:
    """See :func:`danlu.model.ops.attention`; document by document, without a mask or a window."""
    width, alike = q_BTAH.shape[-1], q_BTAH.dtype == k_BTKH.dtype == v_BTKH.dtype
    if layout.window or not (_fits(q_BTAH, width) and alike and width <= _WIDEST_HEAD):
        return ops.attention(q_BTAH, k_BTKH, v_BTKH, cos_BTG, sin_BTG, layout)
    given = q_BTAH.dtype
    if given == torch.bfloat16 and not native.multiplies_bfloat16():
        q_BTAH, k_BTKH, v_BTKH = q_BTAH.float(), k_BTKH.float(), v_BTKH.float()
    out: Tensor = _apply(_Attention, q_BTAH, k_BTKH, v_BTKH, cos_BTG, sin_BTG, layout)
    return out.to(given)


def cross_entropy(
    hidden_MD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    target_M: Tensor,
    weight_M: Tensor,
) -> Tensor:
    """See :func:`danlu.model.ops.cross_entropy`; never holds all logits.

    The gradients are worked out in the forward pass, a few rows at a time, while
    these rows' logits are at hand (as in Liger Kernel: Hsu et al., 2024).
    """
    if not _fits(hidden_MD, _STEP) or weight_VD.dtype not in _TYPES:
        return ops.cross_entropy(hidden_MD, weight_VD, bias_V, target_M, weight_M)
    if not bool(((target_M >= 0) & (target_M < len(weight_VD))).all()):
        raise IndexError(f"targets must be from 0 to {len(weight_VD) - 1}")
    loss: Tensor = _apply(
        _CrossEntropy,
        hidden_MD,
        weight_VD,
        bias_V,
        target_M,
        weight_M,
        _working_dtype(hidden_MD),
        torch.is_grad_enabled(),
    )
    return loss


def orthogonalize(x_SMN: Tensor) -> Tensor:
    """See :func:`danlu.model.ops.orthogonalize`; in place, a matrix to a core."""
    even = all(size % _STEP == 0 for size in x_SMN.shape[1:])
    if not (even and x_SMN.dtype == torch.bfloat16 and x_SMN.is_contiguous()):
        return ops.orthogonalize(x_SMN)
    if not (_fits(x_SMN, _STEP) and native.multiplies_bfloat16()):
        return ops.orthogonalize(x_SMN)
    polynomials = torch.tensor(ops.polar_polynomials(), dtype=torch.float32)
    _call("orthogonalize", *x_SMN.shape, x_SMN, polynomials, len(polynomials))
    return x_SMN


_TYPES = {torch.float32: 0, torch.bfloat16: 1}


def takes(width: int) -> bool:
    """Whether the kernels take rows of so many numbers."""
    return width % _STEP == 0


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)  # torch leaves it without types


def _fits(x: Tensor, width: int) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype in _TYPES
        and takes(width)
        and native.library() is not None
    )


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _working_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        return dtype if dtype in _TYPES else x.dtype
    return x.dtype


def _call(name: str, *arguments: Any) -> None:
    """Call a kernel: tensors by address, whole numbers as 64 bits, then the threads."""
    library = native.library()
    assert library is not None
    converted: list[Any] = []
    for argument in arguments:
        if argument is None:
            converted.append(ctypes.c_void_p(None))
        elif isinstance(argument, Tensor):
            converted.append(ctypes.c_void_p(argument.data_ptr()))
        elif isinstance(argument, float):
            converted.append(ctypes.c_float(argument))
        else:
            converted.append(ctypes.c_int64(argument))
    getattr(library, name)(*converted, ctypes.c_int64(torch.get_num_threads()))


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor | None,
        weight_D: Tensor,
        epsilon: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        width = x.shape[-1]
        rows = x.numel() // width
        x, weight_D = x.contiguous(), weight_D.contiguous()
        total = x
        if delta is not None:
            delta, total = delta.contiguous(), torch.empty_like(x)
        normed = torch.empty_like(x, dtype=dtype)
        inverse = x.new_empty(rows)
        ctx.delta_type = delta.dtype if delta is not None else x.dtype
        _call(
            "add_rms_norm_forward", rows, width, x, delta, _TYPES[ctx.delta_type], weight_D,
            epsilon, total, normed, _TYPES[dtype], inverse,
        )  # fmt: skip
        ctx.save_for_backward(total, inverse, weight_D)
        ctx.has_delta = delta is not None
        ctx.set_materialize_grads(False)
        if delta is None:
            total = x.new_empty(0)  # the caller goes on with x itself
            ctx.mark_non_differentiable(total)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        d_total, d_normed = gradients
        total, inverse, weight_D = ctx.saved_tensors
        if d_normed is None:
            d_delta = d_total.to(ctx.delta_type) if ctx.has_delta and d_total is not None else None
            return d_total, d_delta, None, None, None
        width = total.shape[-1]
        d_x, d_weight_D = torch.empty_like(total), torch.empty_like(weight_D)
        d_delta = d_x
        if ctx.has_delta and ctx.delta_type != d_x.dtype:
            d_delta = torch.empty_like(total, dtype=ctx.delta_type)
        _call(
            "add_rms_norm_backward", total.numel() // width, width, total, inverse, weight_D,
            None if d_total is None or not ctx.has_delta else d_total.contiguous(),
            d_normed.contiguous(), _TYPES[d_normed.dtype], d_x,
            None if d_delta is d_x else d_delta, _TYPES[d_delta.dtype], d_weight_D,
        )  # fmt: skip
        return d_x, d_delta if ctx.has_delta else None, d_weight_D, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        out = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        _call("swiglu_forward", *_rows(out), gate_up, out, _TYPES[out.dtype])
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        (d_out,) = gradients
        d_gate_up = torch.empty_like(gate_up)
        _call(
            "swiglu_backward", *_rows(d_out), gate_up, d_out.contiguous(), d_gate_up,
            _TYPES[gate_up.dtype],
        )  # fmt: skip
        return d_gate_up


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        _call("gelu_forward", *_rows(x), x, out, _TYPES[x.dtype])
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_x = torch.empty_like(x)
        _call("gelu_backward", *_rows(x), x, gradients[0].contiguous(), d_x, _TYPES[x.dtype])
        return d_x


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        layout: Layout,
    ) -> Tensor:
        q, k, v = (_by_token(x) for x in (q, k, v))
        if cos is not None and sin is not None:  # without them the kernel rotates nothing
            cos, sin = (x.expand(*q.shape[:2], -1).contiguous() for x in (cos, sin))
        out = q.new_zeros(q.shape)  # padding, which is in no document, stays zero
        lse_BTA = q.new_empty(q.shape[:3], dtype=torch.float32)
        _call(
            f"attention_forward_{_NAMES[q.dtype]}", *_sizes(q, k, layout), *_places(q, k, v),
            cos, sin, out, lse_BTA,
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, cos, sin, out, lse_BTA)
        ctx.layout = layout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cos, sin, out, lse_BTA = ctx.saved_tensors
        d_q, d_k, d_v = (x.new_zeros(x.shape) for x in (q, k, v))
        _call(
            f"attention_backward_{_NAMES[q.dtype]}", *_sizes(q, k, ctx.layout),
            *_places(q, k, v), cos, sin, out, lse_BTA, gradients[0].contiguous(),
            *_places(d_q, d_k, d_v),
        )  # fmt: skip
        return d_q, d_k, d_v, None, None, None


_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def _by_token(x: Tensor) -> Tensor:
    """Return `x` (B, T, A, H) such that one stride leads from token to token."""
    batch, length, _, width = x.shape
    dense = x.stride(-1) == 1 and x.stride(-2) == width
    even = batch == 1 or x.stride(0) == length * x.stride(1)
    return x if dense and even else x.contiguous()


def _sizes(q: Tensor, k: Tensor, layout: Layout) -> tuple[Any, ...]:
    heads, width = q.shape[-2:]
    documents = len(layout.first_S)
    return (
        documents, layout.first_S, layout.length_S, heads, k.shape[-2], width,
        int(layout.causal), width**-0.5,
    )  # fmt: skip


def _places(*tensors: Tensor) -> list[Tensor | int]:
    # The stride of a dimension of size one says nothing.
    return [value for x in tensors for value in (x, x.stride(1 if x.shape[1] > 1 else 0))]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        target_M: Tensor,
        weight_M: Tensor,
        dtype: torch.dtype,
        in_training: bool,
    ) -> Tensor:
        needed = in_training and any(ctx.needs_input_grad[:3])
        size, width = hidden_MD.shape
        vocab_size = len(weight_VD)
        matrix_VD = weight_VD.to(dtype)
        vector_V = None if bias_V is None else bias_V.to(dtype)
        loss_M = hidden_MD.new_empty(size, dtype=torch.float32)
        target_M, weight_M = target_M.long().contiguous(), weight_M.float().contiguous()
        if needed:
            d_hidden_MD = hidden_MD.new_empty(size, width, dtype=dtype)
            d_weight_VD = torch.zeros_like(weight_VD)
            d_bias_V = None if bias_V is None else torch.zeros_like(bias_V)
        with torch.autocast("cpu", enabled=False):
            for start in range(0, size, step := max(1, _LOGITS // vocab_size)):
                rows = slice(start, min(start + step, size))
                hidden = hidden_MD[rows].to(dtype)
                logits = F.linear(hidden, matrix_VD, vector_V)
                _call(
                    "cross_entropy", len(logits), vocab_size, logits, _TYPES[dtype],
                    target_M[rows], weight_M[rows], loss_M[rows], int(needed),
                )  # fmt: skip
                if needed:
                    torch.mm(logits, matrix_VD, out=d_hidden_MD[rows])
                    d_weight_VD += logits.t() @ hidden
                    if d_bias_V is not None:
                        d_bias_V += logits.sum(0, dtype=torch.float32)
        if needed:
            ctx.save_for_backward(d_hidden_MD, d_weight_VD, d_bias_V)
            ctx.hidden_dtype = hidden_MD.dtype
        return loss_M.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden_MD, d_weight_VD, d_bias_V = ctx.saved_tensors
        scale = gradients[0]
        d_bias_V = None if d_bias_V is None else d_bias_V * scale
        d_hidden_MD = (d_hidden_MD * scale).to(ctx.hidden_dtype)
        return d_hidden_MD, d_weight_VD * scale, d_bias_V, None, None, None, None

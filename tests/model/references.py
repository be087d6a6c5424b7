"""The model's mathematics in float64, one document at a time: what the tests compare with."""

import math

import torch

from danlu.batch import PADDING
from tolerances import SIMPLE

THETA = 10_000.0


def reference_norm(x, weight, epsilon):
    return weight * x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + epsilon)


def reference_rotate(x_BTAH, position_BT):
    """Rotary embedding as a product of complex numbers."""
    half = x_BTAH.shape[-1] // 2
    frequency = torch.tensor([THETA ** (-i / half) for i in range(half)], dtype=torch.float64)
    angle = position_BT.double()[:, :, None, None] * frequency
    number = torch.complex(x_BTAH[..., :half], x_BTAH[..., half:])
    turned = number * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1)


def reference_attention(q_BTAH, k_BTKH, v_BTKH, position_BT, document_BT, causal):
    """Softmax attention with rotary positions, one document and one head at a time."""
    q_BTAH, k_BTKH = (reference_rotate(x, position_BT) for x in (q_BTAH, k_BTKH))
    group = q_BTAH.shape[2] // k_BTKH.shape[2]
    rows = []
    for b, document_T in enumerate(document_BT):
        out_TAH = torch.zeros_like(q_BTAH[b])
        for document in set(document_T.tolist()) - {PADDING}:
            inside = (document_T == document).nonzero().squeeze(1)
            for head in range(q_BTAH.shape[2]):
                query, key = q_BTAH[b, inside, head], k_BTKH[b, inside, head // group]
                score = query @ key.t() / math.sqrt(query.shape[-1])
                if causal:
                    ahead = torch.ones_like(score).triu(1).bool()
                    score = score.masked_fill(ahead, -math.inf)
                power = torch.exp(score - score.amax(1, keepdim=True))
                answer = power / power.sum(1, keepdim=True) @ v_BTKH[b, inside, head // group]
                out_TAH = out_TAH.index_put((inside, torch.tensor(head)), answer)
        rows.append(out_TAH)
    return torch.stack(rows)


def reference_feed_forward(x, weights, activation=None):
    up = torch.einsum("...d,fd->...f", x, weights["up_proj.weight"])
    if "gate_proj.weight" in weights:
        gate = torch.einsum("...d,fd->...f", x, weights["gate_proj.weight"])
        hidden = (activation or (lambda y: y / (1 + torch.exp(-y))))(gate) * up
    else:
        hidden = (activation or (lambda y: y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))))(up)
    return torch.einsum("...f,df->...d", hidden, weights["down_proj.weight"])


def reference_block(x, weights, position, document, config):
    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

    def project(name, num_heads):
        flat = torch.einsum("btd,nd->btn", normed, weights[f"attention.{name}.weight"])
        return flat.reshape(*flat.shape[:2], num_heads, config.head_dim)

    epsilon = config.norm_epsilon
    normed = reference_norm(x, weights["attention_norm.weight"], epsilon)
    q, k = project("q_proj", config.num_heads), project("k_proj", config.num_kv_heads)
    v = project("v_proj", config.num_kv_heads)
    if config.qk_norm:
        q = reference_norm(q, weights["attention.q_norm.weight"], epsilon)
        k = reference_norm(k, weights["attention.k_norm.weight"], epsilon)
    out = reference_attention(q, k, v, position, document, config.causal)
    out = out.reshape(*x.shape[:2], -1)
    x = x + torch.einsum("btn,dn->btd", out, weights["attention.o_proj.weight"])
    normed = reference_norm(x, weights["feed_forward_norm.weight"], epsilon)
    return x + reference_feed_forward(normed, part("feed_forward."))


def reference_cross_entropy(hidden_MD, weight_VD, bias_V, target_M, weight_M):
    """The loss of one row at a time, summed with its weights."""
    total = torch.zeros((), dtype=torch.float64)
    for hidden_D, target, weight in zip(hidden_MD, target_M, weight_M.double(), strict=True):
        logit_V = weight_VD @ hidden_D
        if bias_V is not None:
            logit_V = logit_V + bias_V
        peak = logit_V.max().detach()
        total = total + weight * (peak + (logit_V - peak).exp().sum().log() - logit_V[target])
    return total


def place(rows):
    """Return position_BT and document_BT for rows of documents of the given lengths.

    Every row is filled up with padding to the longest; the numbers of documents go on
    from row to row.
    """
    length = max(sum(row) for row in rows)
    document = torch.full((len(rows), length), PADDING)
    position = torch.zeros(len(rows), length, dtype=torch.int64)
    number = 0
    for b, row in enumerate(rows):
        start = 0
        for size in row:
            document[b, start : start + size] = number
            position[b, start : start + size] = torch.arange(size)
            number, start = number + 1, start + size
    return position, document


def close(actual, expected):
    """As near as SIMPLE asks, number by number."""
    torch.testing.assert_close(
        actual.double(), expected, rtol=SIMPLE, atol=SIMPLE, check_dtype=True
    )


def near(actual, expected, tolerance=SIMPLE):
    """No number is off by more than `tolerance` times the largest one that is expected."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    if expected.numel():
        off = (actual.double() - expected.double()).abs().max()
        assert off <= tolerance * expected.abs().max(), f"{off} of {expected.abs().max()}"


def agree(function, reference, *inputs, compare=close, dtype=torch.float32):
    """Compare the outputs, and the gradient of every input, of two functions.

    The reference is given the very numbers that the function is given, in float64.
    """
    ours = [x.detach().clone().requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in inputs]
    out, expected = function(*ours), reference(*theirs)
    assert out.dtype == dtype
    compare(out, expected)
    direction = torch.randn(out.shape).to(dtype)
    found = torch.autograd.grad(out, ours, direction)
    wanted = torch.autograd.grad(expected, theirs, direction.double())
    for gradient, wanted_gradient, x in zip(found, wanted, ours, strict=True):
        assert gradient.dtype == x.dtype
        compare(gradient, wanted_gradient)

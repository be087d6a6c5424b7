"""The operations and the block against float64 references, gradients included."""

import math

import pytest
import torch

from danlu.batch import PADDING
from danlu.model import ops
from danlu.model.backbone import BackboneConfig, Block, FeedForward, RMSNorm
from tolerances import SIMPLE

HEADS = [(1, 1), (4, 4), (4, 2), (4, 1)]
LENGTHS = [1, 7, 33]
THETA = 10_000.0


def layout(length):
    """Two rows: one document; and two documents with padding behind them."""
    document = torch.zeros(2, length, dtype=torch.int64)
    position = torch.arange(length).repeat(2, 1)
    if length >= 7:
        cut, end = length // 3, length - 2
        document[1, :cut], document[1, cut:end], document[1, end:] = 1, 2, PADDING
        position[1] = torch.cat((torch.arange(cut), torch.arange(length - cut)))
    return position, document


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


def reference_attention(q_BTAH, k_BTKH, v_BTKH, document_BT, causal):
    """Softmax attention, one query at a time over the keys that it may see."""
    num_rows, length, num_heads, head_dim = q_BTAH.shape
    group = num_heads // k_BTKH.shape[2]
    rows = []
    for b in range(num_rows):
        for t in range(length):
            seen = [
                s
                for s in range(length)
                if document_BT[b, s] == document_BT[b, t] and (s <= t or not causal)
            ]
            for a in range(num_heads):
                keys, values = k_BTKH[b, seen, a // group], v_BTKH[b, seen, a // group]
                power = torch.exp(keys @ q_BTAH[b, t, a] / math.sqrt(head_dim))
                rows.append((power / power.sum()) @ values)
    return torch.stack(rows).reshape(q_BTAH.shape)


def reference_feed_forward(x, weights):
    up = torch.einsum("...d,fd->...f", x, weights["up_proj.weight"])
    if "gate_proj.weight" in weights:
        gate = torch.einsum("...d,fd->...f", x, weights["gate_proj.weight"])
        hidden = gate / (1 + torch.exp(-gate)) * up
    else:
        hidden = up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))
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
    q, k = reference_rotate(q, position), reference_rotate(k, position)
    out = reference_attention(q, k, v, document, config.causal)
    out = out.reshape(*x.shape[:2], -1)
    x = x + torch.einsum("btn,dn->btd", out, weights["attention.o_proj.weight"])
    normed = reference_norm(x, weights["feed_forward_norm.weight"], epsilon)
    return x + reference_feed_forward(normed, part("feed_forward."))


def close(actual, expected):
    torch.testing.assert_close(
        actual.double(), expected, rtol=SIMPLE, atol=SIMPLE, check_dtype=True
    )


def agree(function, reference, *inputs):
    """Compare the outputs, and the gradient of every input, of two functions."""
    ours = [x.clone().requires_grad_() for x in inputs]
    theirs = [x.double().requires_grad_() for x in inputs]
    out, expected = function(*ours), reference(*theirs)
    assert out.dtype == torch.float32
    close(out, expected)
    direction = torch.randn(out.shape)
    found = torch.autograd.grad(out, ours, direction)
    wanted = torch.autograd.grad(expected, theirs, direction.double())
    for gradient, wanted_gradient in zip(found, wanted, strict=True):
        close(gradient, wanted_gradient)


def agree_module(module, reference, x):
    """As :func:`agree`, with the parameters of a module among the inputs."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name or name == "weight":  # ones would hide a forgotten scale
                parameter.uniform_(0.5, 1.5)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))

    agree(
        function,
        lambda x, *weights: reference(x, dict(zip(names, weights, strict=True))),
        x,
        *(parameter.detach() for parameter in module.parameters()),
    )


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_attention_agrees_with_one_query_at_a_time(num_heads, num_kv_heads, length, causal):
    _, document = layout(length)
    q = torch.randn(2, length, num_heads, 8)
    k, v = torch.randn(2, 2, length, num_kv_heads, 8)
    agree(
        lambda q, k, v: ops.attention(q, k, v, ops.document_mask(document, causal)),
        lambda q, k, v: reference_attention(q, k, v, document, causal),
        q,
        k,
        v,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_the_mask_is_true_only_inside_a_document_and_not_ahead(causal):
    document = torch.tensor([[0, 0, 1, 1, 1, PADDING], [2, 2, 2, 2, 2, 2]])
    mask = ops.document_mask(document, causal)
    assert mask.shape == (2, 1, 6, 6)
    for b in range(2):
        for query in range(6):
            for key in range(6):
                same = document[b, query] == document[b, key]
                assert bool(mask[b, 0, query, key]) == bool(same and (not causal or key <= query))


def test_no_gradient_crosses_from_one_document_to_another():
    _, document = layout(33)
    q, k, v = torch.randn(3, 2, 33, 4, 8).requires_grad_().unbind()
    out = ops.attention(q, k, v, ops.document_mask(document, causal=False))
    found = torch.autograd.grad(out[1][document[1] == 1].sum(), (k, v))
    for gradient in found:
        assert gradient[1][document[1] == 1].abs().sum() > 0
        assert not gradient[1][document[1] != 1].any()
        assert not gradient[0].any()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("num_heads", [1, 4])
def test_rotary_positions_agree_with_complex_multiplication(num_heads, length):
    position, _ = layout(length)
    agree(
        lambda x: ops.rotate(x, *ops.rotary_table(position, 8, THETA)),
        lambda x: reference_rotate(x, position),
        torch.randn(2, length, num_heads, 8),
    )


def test_rotated_dot_products_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 16)

    def product(query_position, key_position):
        turned = [
            ops.rotate(x, *ops.rotary_table(torch.tensor([[position]]), 16, THETA))
            for x, position in ((q, query_position), (k, key_position))
        ]
        return (turned[0] * turned[1]).sum()

    for distance in (0, 1, 5):
        wanted = product(distance, 0)
        for shift in (1, 4, 27):
            torch.testing.assert_close(
                product(distance + shift, shift), wanted, rtol=SIMPLE, atol=SIMPLE
            )
    assert abs(product(5, 0) - product(0, 0)) > 0.01
    assert abs(product(5, 0) - product(0, 5)) > 0.01


def test_rotation_leaves_position_zero_and_every_length_as_they_were():
    x = torch.randn(1, 9, 2, 8)
    turned = ops.rotate(x, *ops.rotary_table(torch.arange(9)[None], 8, THETA))
    assert torch.equal(turned[:, 0], x[:, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rms_norm_agrees_with_its_formula(length, scale):
    x = scale * torch.randn(2, length, 24)
    if scale < 1:  # gradients grow by 1 / scale, and so does what float32 can resolve
        module, direction = RMSNorm(24, 1e-6), torch.randn(2, length, 24)
        ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
        out, expected = module(ours), reference_norm(theirs, torch.ones(24).double(), 1e-6)
        close(out, expected)
        (found,) = torch.autograd.grad(out, ours, direction)
        (wanted,) = torch.autograd.grad(expected, theirs, direction.double())
        close(found * scale, wanted * scale)
    else:
        agree_module(RMSNorm(24, 1e-6), lambda x, w: reference_norm(x, w["weight"], 1e-6), x)


def test_rms_norm_of_nothing_is_nothing():
    x = torch.zeros(3, 8, requires_grad=True)
    out = ops.rms_norm(x, torch.ones(8))
    out.sum().backward()
    assert not out.any()
    assert torch.isfinite(x.grad).all()


def test_rms_norm_averages_half_precision_in_float32():
    x = torch.full((1, 4096), 300.0, dtype=torch.float16)  # 300² is beyond float16
    out = ops.rms_norm(x, torch.ones(4096))
    assert out.dtype == torch.float16
    torch.testing.assert_close(out, torch.ones_like(out), rtol=1e-3, atol=0)


def make(num_heads=4, num_kv_heads=2, **others):
    fields = {"vocab_size": 9, "num_layers": 1, "dim": 12, "head_dim": 6, "hidden_dim": 20}
    return BackboneConfig(num_heads=num_heads, num_kv_heads=num_kv_heads, **fields | others)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_feed_forward_layer_agrees_with_its_formula(activation, length):
    module = FeedForward(make(activation=activation))
    assert len(list(module.parameters())) == (3 if activation == "swiglu" else 2)
    agree_module(module, reference_feed_forward, torch.randn(2, length, 12))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_a_whole_block_agrees_with_its_formula(num_heads, num_kv_heads, length, qk_norm, causal):
    activation = "gelu" if causal else "swiglu"
    config = make(num_heads, num_kv_heads, qk_norm=qk_norm, causal=causal, activation=activation)
    position, document = layout(length)
    cos, sin = ops.rotary_table(position, config.head_dim, config.rope_theta)
    mask = ops.document_mask(document, causal)

    class Fixed(torch.nn.Module):
        """A block whose positions and mask are given, so that one input is left."""

        def __init__(self):
            super().__init__()
            self.block = Block(config)

        def forward(self, x):
            return self.block(x, cos, sin, mask)

    def reference(x, weights):
        weights = {name.removeprefix("block."): value for name, value in weights.items()}
        return reference_block(x, weights, position, document, config)

    agree_module(Fixed(), reference, torch.randn(2, length, 12))

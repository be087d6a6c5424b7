"""The operations and the block against float64 references, gradients included."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from references import (
    THETA,
    agree,
    close,
    reference_attention,
    reference_block,
    reference_cross_entropy,
    reference_feed_forward,
    reference_norm,
    reference_rotate,
)  # fmt: skip

from danlu.batch import PADDING
from danlu.model import ops
from danlu.model.backbone import BackboneConfig
from danlu.model.block import Block, FeedForward, RMSNorm
from tolerances import SIMPLE

HEADS = [(1, 1), (4, 4), (4, 2), (4, 1)]
LENGTHS = [1, 7, 33]


def layout(length):
    """Two rows: one document; and two documents with padding behind them."""
    document = torch.zeros(2, length, dtype=torch.int64)
    position = torch.arange(length).repeat(2, 1)
    if length >= 7:
        cut, end = length // 3, length - 2
        document[1, :cut], document[1, cut:end], document[1, end:] = 1, 2, PADDING
        position[1] = torch.cat((torch.arange(cut), torch.arange(length - cut)))
    return position, document


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
def test_attention_agrees_with_one_document_at_a_time(num_heads, num_kv_heads, length, causal):
    position, document = layout(length)
    q = torch.randn(2, length, num_heads, 8)
    k, v = torch.randn(2, 2, length, num_kv_heads, 8)
    table = ops.rotary_table(position, 8, THETA)
    agree(
        lambda q, k, v: ops.attention(q, k, v, *table, ops.Layout.of(document, causal)),
        lambda q, k, v: reference_attention(q, k, v, position, document, causal),
        q,
        k,
        v,
    )


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


@pytest.mark.parametrize("length", LENGTHS)
def test_add_rms_norm_agrees_with_its_formula(length):
    def function(x, weight, delta=None):
        return torch.cat(ops.add_rms_norm(x, delta, weight), dim=-1)

    def reference(x, weight, delta=0):
        return torch.cat((x + delta, reference_norm(x + delta, weight, 1e-6)), dim=-1)

    x, delta = torch.randn(2, 2, length, 24)
    agree(function, reference, x, torch.rand(24))
    agree(function, reference, x, torch.rand(24), delta)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (0,)])
@pytest.mark.parametrize("sizes", [(7,), (8, 8), (6, 2, 2)])
def test_linear_lays_the_products_of_several_matrices_side_by_side(sizes, shape):
    x, weights = torch.randn(*shape, 12), [torch.randn(size, 12) for size in sizes]
    agree(
        ops.linear,
        lambda x, *weights: torch.cat([x @ weight.t() for weight in weights], dim=-1),
        x,
        *weights,
    )
    with torch.no_grad():
        found = ops.linear(x, *weights)
    torch.testing.assert_close(found, ops.linear(x, *weights), rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("grad", [False, True])
def test_linear_follows_autocast(grad):
    x, one, two = torch.randn(5, 12), torch.randn(3, 12), torch.randn(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(grad):
        found = ops.linear(x, one, two)
        wanted = F.linear(x, torch.cat((one, two)))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("width", [1, 16, 20])
def test_swiglu_agrees_with_its_formula(width):
    def reference(gate_up):
        gate, up = gate_up[..., :width], gate_up[..., width:]
        return gate / (1 + torch.exp(-gate)) * up

    agree(ops.swiglu, reference, 3 * torch.randn(2, 7, 2 * width))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [0, 1, 9])
def test_cross_entropy_agrees_with_its_formula(size, bias):
    target = torch.randint(0, 21, (size,))
    importance = torch.rand(size) * (torch.rand(size) < 0.7)
    inputs = [torch.randn(size, 12), torch.randn(21, 12), *([torch.randn(21)] * bias)]

    def bound(function):
        def loss(hidden, weight, bias=None):
            return function(hidden, weight, bias, target, importance)

        return loss

    found = bound(ops.cross_entropy)(*inputs)
    assert found.shape == ()
    if size:
        agree(bound(ops.cross_entropy), bound(reference_cross_entropy), *inputs)
    else:
        assert found == 0


SIZES = {
    "any": {"dim": 12, "head_dim": 6, "hidden_dim": 20},
    "kernels": {"dim": 32, "head_dim": 16, "hidden_dim": 48},  # multiples of 16
}


def make(num_heads=4, num_kv_heads=2, sizes="any", **others):
    fields = {"vocab_size": 9, "num_layers": 1, **SIZES[sizes]}
    return BackboneConfig(num_heads=num_heads, num_kv_heads=num_kv_heads, **fields | others)


ACTIVATIONS = {
    "relu": lambda x: torch.where(x > 0, x, 0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "gelu": lambda x: x * torch.special.ndtr(x),
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "tanh": lambda x: 1 - 2 / (torch.exp(2 * x) + 1),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("name", ops.ACTIVATIONS)
def test_an_activation_agrees_with_its_formula(name):
    agree(ops.ACTIVATIONS[name], ACTIVATIONS[name], 3 * torch.randn(40, 3))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("activation", ["swiglu", "geglu", *ACTIVATIONS])
@pytest.mark.parametrize("length", LENGTHS)
def test_the_feed_forward_layer_agrees_with_its_formula(activation, length, sizes):
    config = make(activation=activation, sizes=sizes)
    module = FeedForward(config)
    gate = {"swiglu": "silu", "geglu": "gelu"}.get(activation)
    assert len(list(module.parameters())) == (3 if gate else 2)
    reference = partial(reference_feed_forward, activation=ACTIVATIONS[gate or activation])
    agree_module(module, reference, torch.randn(2, length, config.dim))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_a_whole_block_agrees_with_its_formula(
    num_heads, num_kv_heads, length, qk_norm, causal, sizes
):
    activation = "gelu" if causal else "swiglu"
    config = make(
        num_heads, num_kv_heads, sizes, qk_norm=qk_norm, causal=causal, activation=activation
    )
    position, document = layout(length)
    cos, sin = ops.rotary_table(position, config.head_dim, config.rope_theta)
    share = 0.25 if qk_norm else 0  # of the input, that stands in the branch not yet added

    class Fixed(torch.nn.Module):
        """A block whose positions and documents are given, so that one input is left."""

        def __init__(self):
            super().__init__()
            self.block = Block(config)

        def forward(self, x):
            delta = share * x if share else None
            x = (1 - share) * x
            return sum(self.block(x, delta, cos, sin, ops.Layout.of(document, causal)))

    def reference(x, weights):
        weights = {name.removeprefix("block."): value for name, value in weights.items()}
        return reference_block(x, weights, position, document, config)

    agree_module(Fixed(), reference, torch.randn(2, length, config.dim))

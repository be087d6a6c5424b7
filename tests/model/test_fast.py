"""The kernels over rows against float64 references; attention's are in test_attention."""

import contextlib
from functools import partial

import pytest
import torch
from references import agree, close, near, reference_cross_entropy, reference_norm
from torch.utils._python_dispatch import TorchDispatchMode

from danlu.model import fast, native, ops
from tolerances import BFLOAT16, SIMPLE

WIDTHS = [16, 48, 384, 20, 7]  # the last two are no multiple of 16, and fall back
TOLERANCE = {torch.float32: SIMPLE, torch.bfloat16: BFLOAT16}
DTYPES = [torch.float32, torch.bfloat16]
BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.fixture(autouse=True)
def _seeded():
    assert native.library() is not None, "the kernels must be built to be tested"
    torch.manual_seed(7)


@contextlib.contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def autocast(dtype):
    """Autocast to bfloat16, or nothing for float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def rounded(*shape):
    """Float32 numbers that bfloat16 holds too, so that rounding an input loses nothing."""
    return torch.randn(*shape).bfloat16().float()


def test_both_modules_have_the_same_names_and_signatures():
    for name in fast.__all__:
        ours, plain = getattr(fast, name), getattr(ops, name)
        if callable(ours) and ours is not plain:
            assert ours.__annotations__ == plain.__annotations__


def reference_add(x, weight, delta=0):
    return torch.cat((x + delta, reference_norm(x + delta, weight, 1e-6)), dim=-1)


def add(x, weight, delta=None):
    return torch.cat(fast.add_rms_norm(x, delta, weight), dim=-1)


@pytest.mark.parametrize("shape", [(5,), (2, 33), (0,), ()])
@pytest.mark.parametrize("width", WIDTHS)
def test_add_rms_norm_agrees_with_its_formula(width, shape):
    x, delta, weight = torch.randn(*shape, width), torch.randn(*shape, width), torch.rand(width)
    agree(add, reference_add, x, weight, compare=near)
    agree(add, reference_add, x, weight, delta, compare=near)


@pytest.mark.parametrize("width", [16, 384])
@pytest.mark.parametrize("delta_dtype", [None, *DTYPES])
def test_add_rms_norm_under_autocast_keeps_the_stream_in_float32(delta_dtype, width):
    x, weight = torch.randn(9, width).requires_grad_(), torch.rand(width).requires_grad_()
    inputs = [x, weight]
    if delta_dtype is not None:
        inputs.append(torch.randn(9, width).to(delta_dtype).requires_grad_())
    with autocast(torch.bfloat16):
        total, normed = fast.add_rms_norm(x, inputs[2] if inputs[2:] else None, weight)
    assert total.dtype == torch.float32
    assert normed.dtype == torch.bfloat16
    theirs = [y.detach().double().requires_grad_() for y in inputs]
    expected = reference_add(*theirs)
    near(total, expected[:, :width])
    near(normed, expected[:, width:], BFLOAT16)
    directions = rounded(9, width), rounded(9, width)
    found = torch.autograd.grad([total, normed], inputs, [directions[0], directions[1].bfloat16()])
    wanted = torch.autograd.grad(expected, theirs, torch.cat(directions, dim=-1).double())
    for gradient, wanted_gradient, y in zip(found, wanted, inputs, strict=True):
        assert gradient.dtype == y.dtype
        near(gradient, wanted_gradient, TOLERANCE[y.dtype])


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("given", [False, True])
def test_add_rms_norm_when_only_one_of_its_outputs_is_used(given, used):
    x, weight, delta = torch.randn(5, 16), torch.rand(16), torch.randn(5, 16)
    inputs = [y.clone().requires_grad_() for y in (x, weight, delta)[: 2 + given]]
    theirs = [y.detach().double().requires_grad_() for y in inputs]
    out = fast.add_rms_norm(inputs[0], inputs[2] if given else None, inputs[1])[used]
    expected = reference_add(*theirs).chunk(2, dim=-1)[used]
    near(out, expected)
    direction = torch.randn(5, 16)
    found = torch.autograd.grad(out, inputs, direction, allow_unused=True)
    wanted = torch.autograd.grad(expected, theirs, direction.double(), materialize_grads=True)
    for gradient, wanted_gradient in zip(found, wanted, strict=True):
        near(torch.zeros(()) + (0 * wanted_gradient if gradient is None else gradient),
             wanted_gradient)  # fmt: skip


def test_strides_do_not_matter():
    wide = torch.randn(6, 5, 64)
    views = [wide[::2, :, ::2], wide[:3].transpose(0, 1)[..., :32].transpose(0, 1)]
    weight = torch.rand(32, 2)[:, 0]
    for x in views:
        for y in (None, *views):
            delta = None if y is None else y.contiguous()
            for found, wanted in zip(
                fast.add_rms_norm(x, y, weight),
                fast.add_rms_norm(x.contiguous(), delta, weight.contiguous()),
                strict=True,
            ):
                assert torch.equal(found, wanted)
        for function in (fast.swiglu, fast.gelu):
            assert torch.equal(function(x), function(x.contiguous()))


@pytest.mark.parametrize("shape", [(5,), (2, 33), (0,)])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_agrees_with_its_formula(dtype, width, shape):
    def reference(gate_up):
        gate, up = gate_up[..., :width], gate_up[..., width:]
        return gate / (1 + torch.exp(-gate)) * up

    gate_up = (3 * torch.randn(*shape, 2 * width)).to(dtype)
    compare = partial(near, tolerance=TOLERANCE[dtype])
    agree(fast.swiglu, reference, gate_up, compare=compare, dtype=dtype)


@pytest.mark.parametrize("shape", [(5,), (2, 33), (0,)])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_agrees_with_its_formula(dtype, width, shape):
    def reference(x):
        return x * torch.special.ndtr(x)

    x = (3 * torch.randn(*shape, width)).to(dtype)
    compare = partial(near, tolerance=TOLERANCE[dtype])
    agree(fast.gelu, reference, x, compare=compare, dtype=dtype)


def test_gelu_and_its_slope_everywhere():
    x = torch.linspace(-15, 15, 3008).requires_grad_()
    theirs = x.detach().double().requires_grad_()
    out, expected = fast.gelu(x), theirs * torch.special.ndtr(theirs)
    close(out, expected)
    near(out[x < -2], expected[x < -2])  # a few hundredths at most: of the tail by itself
    close(torch.autograd.grad(out.sum(), x)[0], torch.autograd.grad(expected.sum(), theirs)[0])
    far = torch.tensor([1e2, 1e20, 1e37, 0.0] * 4)
    for sign in (1, -1):
        x = (sign * far).requires_grad_()
        assert torch.equal(fast.gelu(x), x.relu())
        (slope,) = torch.autograd.grad(fast.gelu(x).sum(), x)
        assert torch.equal(slope, torch.where(x == 0, 0.5, (x > 0).float()))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_swiglu_far_from_zero(size):
    gate = torch.tensor([size, -size] * 8).requires_grad_()
    out = fast.swiglu(torch.cat((gate, torch.ones(16))))
    near(out, gate.relu())
    near(torch.autograd.grad(out.sum(), gate)[0], (gate > 0).float())


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_agrees_with_its_formula(dtype):
    x, *weights = rounded(9, 24), rounded(7, 24), rounded(16, 24)
    with autocast(dtype):
        out = fast.linear(x, *weights)
    assert out.dtype == dtype
    wanted = torch.cat([x.double() @ weight.double().t() for weight in weights], dim=-1)
    near(out, wanted, TOLERANCE[dtype])


def bound(function, target, importance, dtype=torch.float32):
    def loss(hidden, weight, bias=None):
        with autocast(dtype):
            return function(hidden, weight, bias, target, importance)

    return loss


def draw(size, vocab_size, width, bias=True):
    """Inputs, targets and weights of a cross-entropy; every third row weighs nothing."""
    importance = torch.rand(size)
    importance[::3] = 0
    inputs = [rounded(size, width), rounded(vocab_size, width)]
    if bias:
        inputs.append(rounded(vocab_size))
    target = torch.randint(0, vocab_size, (size,))
    target[: min(size, 2)] = torch.tensor([vocab_size - 1, 0])[:size]  # the last is in the tail
    return inputs, target, importance


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("logits", [2**23, 5 * 1003, 1])  # held at once: all, a few rows, one
@pytest.mark.parametrize("vocab_size", [7, 16, 64, 1003])
@pytest.mark.parametrize("width", [16, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_agrees_with_its_formula(dtype, width, vocab_size, logits, bias, monkeypatch):
    monkeypatch.setattr(fast, "_LOGITS", logits)
    inputs, target, importance = draw(12, vocab_size, width, bias)
    agree(
        bound(fast.cross_entropy, target, importance, dtype),
        bound(reference_cross_entropy, target, importance),
        *inputs,
        compare=partial(near, tolerance=TOLERANCE[dtype]),
    )


def test_cross_entropy_of_bfloat16_tensors_without_autocast():
    inputs, target, importance = draw(12, 1003, 16)
    agree(
        bound(fast.cross_entropy, target, importance),
        bound(reference_cross_entropy, target, importance),
        *(x.bfloat16() for x in inputs),
        compare=partial(near, tolerance=BFLOAT16),
    )


class Largest(TorchDispatchMode):
    """Keep the size of the largest tensor that any operation returns, and what was called."""

    def __init__(self):
        super().__init__()
        self.size, self.called = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.called.append(str(function))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.numel())
        return out


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_never_holds_all_logits(dtype):
    size, vocab_size = 1100, 8209
    assert size * vocab_size > fast._LOGITS
    inputs, target, importance = draw(size, vocab_size, 16)
    ours = [x.requires_grad_() for x in inputs]
    theirs = [x.detach().double().requires_grad_() for x in inputs]
    with Largest() as seen:
        loss = bound(fast.cross_entropy, target, importance, dtype)(*ours)
        loss.backward()
    assert 0 < seen.size <= fast._LOGITS
    wanted = ops.cross_entropy(*theirs, target, importance.double())
    wanted.backward()
    near(loss, wanted, TOLERANCE[dtype])
    for x, y in zip(ours, theirs, strict=True):
        near(x.grad, y.grad, TOLERANCE[dtype])


def test_cross_entropy_without_gradients_does_not_work_them_out():
    inputs, target, importance = draw(30, 1003, 16)
    ours = [x.requires_grad_() for x in inputs]
    wanted = fast.cross_entropy(*ours, target, importance)
    with torch.no_grad(), Largest() as seen:
        found = fast.cross_entropy(*ours, target, importance)
    assert not found.requires_grad
    assert torch.equal(found, wanted)
    assert not [name for name in seen.called if "aten.mm" in name], seen.called


def test_cross_entropy_of_frozen_inputs_gives_the_others_their_gradients():
    inputs, target, importance = draw(12, 50, 16)
    for frozen in range(3):
        agree(
            lambda *rest, n=frozen: fast.cross_entropy(
                *rest[:n], inputs[n], *rest[n:], target, importance
            ),
            lambda *rest, n=frozen: reference_cross_entropy(
                *rest[:n], inputs[n].double(), *rest[n:], target, importance
            ),
            *(x for n, x in enumerate(inputs) if n != frozen),
            compare=near,
        )


def test_the_gradient_of_a_scaled_loss_is_scaled_and_may_be_asked_for_twice():
    inputs, target, importance = draw(12, 50, 16)
    ours = [x.requires_grad_() for x in inputs]
    loss = fast.cross_entropy(*ours, target, importance)
    once = torch.autograd.grad(loss, ours, retain_graph=True)
    scaled = torch.autograd.grad(loss / 8, ours)
    for x, y in zip(once, scaled, strict=True):
        assert torch.equal(x / 8, y)


@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy_of_no_rows_is_zero(bias):
    inputs, target, importance = draw(0, 50, 16, bias)
    ours = [x.requires_grad_() for x in inputs]
    loss = bound(fast.cross_entropy, target, importance)(*ours)
    assert loss == 0
    loss.backward()
    for x in ours:
        assert x.grad.shape == x.shape
        assert not x.grad.any()


@pytest.mark.parametrize("target", [50, -1, 10**6, -100])
def test_a_target_outside_the_vocabulary_is_an_error(target):
    """And never a look at whatever lies in memory beside the logits."""
    inputs, targets, importance = draw(12, 50, 16)
    targets[5] = target
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        fast.cross_entropy(*inputs, targets, importance)


@pytest.mark.parametrize("vocab_size", [64, 1003])
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits_do_not_overflow(dtype, vocab_size):
    inputs, target, importance = draw(12, vocab_size, 16)
    inputs[0], inputs[1] = 64 * inputs[0], 32 * inputs[1]
    inputs[2][target[4]] = 1e4
    agree(
        bound(fast.cross_entropy, target, importance, dtype),
        bound(reference_cross_entropy, target, importance),
        *inputs,
        compare=partial(near, tolerance=TOLERANCE[dtype]),
    )


KERNELS = {
    "add_rms_norm": (lambda x: fast.add_rms_norm(x, None, torch.ones(32))[1], (4, 32)),
    "add_rms_norm of delta": (
        lambda x: fast.add_rms_norm(torch.ones(4, 32), x, torch.ones(32))[1], (4, 32)
    ),
    "add_rms_norm of weight": (
        lambda x: fast.add_rms_norm(torch.ones(4, 32), None, x)[1], (32,)
    ),
    "swiglu": (fast.swiglu, (4, 32)),
    "gelu": (fast.gelu, (4, 32)),
    "cross_entropy": (
        lambda x: fast.cross_entropy(
            x, torch.ones(50, 32), None, torch.arange(4), torch.ones(4)
        ), (4, 32)
    ),
    "cross_entropy of weight": (
        lambda x: fast.cross_entropy(
            torch.ones(4, 32), x, None, torch.arange(4), torch.ones(4)
        ), (50, 32)
    ),
    "cross_entropy of bias": (
        lambda x: fast.cross_entropy(
            torch.ones(4, 32), torch.ones(50, 32), x, torch.arange(4), torch.ones(4)
        ), (50,)
    ),
    "cross_entropy of importance": (
        lambda x: fast.cross_entropy(
            torch.ones(4, 32), torch.ones(50, 32), None, torch.arange(4), x
        ), (4,)
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", [0, -1])
@pytest.mark.parametrize("name", KERNELS)
def test_a_number_that_is_none_stays_none(name, where, dtype):
    function, shape = KERNELS[name]
    x = torch.rand(shape)
    x[-1].view(-1)[where] = float("nan")  # at the end of a row, in the tail of a vocabulary
    x.requires_grad_()
    with autocast(dtype):
        out = function(x.to(dtype) if name in ("swiglu", "gelu") else x)
    assert out.isnan().any()
    if name not in ("add_rms_norm of weight", "cross_entropy of importance"):
        assert torch.autograd.grad(out.float().sum(), x)[0].isnan().any()


@pytest.mark.parametrize("bad", [float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["add_rms_norm", "add_rms_norm of delta", "swiglu", "gelu"])
def test_what_is_infinite_is_not_made_finite(name, bad):
    function, shape = KERNELS[name]
    x = torch.rand(shape)
    x[2, 5] = bad
    out = function(x)
    assert not torch.isfinite(out[2]).all()
    assert torch.isfinite(out[[0, 1, 3]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [3, 49])  # in the body of a row, and in its tail
def test_an_infinite_logit_shows_in_the_loss(place, dtype):
    inputs, target, importance = draw(12, 50, 16)
    inputs[2][place] = float("inf")
    loss = bound(fast.cross_entropy, target, importance, dtype)(*inputs)
    assert not torch.isfinite(loss)
    inputs[2][place] = float("-inf")  # what can never be; only as a target it costs infinitely
    target[:] = 7
    assert torch.isfinite(bound(fast.cross_entropy, target, importance, dtype)(*inputs))
    target[4] = place
    assert bound(fast.cross_entropy, target, importance, dtype)(*inputs) == float("inf")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_input_gives_the_same_bits_on_any_number_of_threads(dtype):
    inputs, target, importance = draw(41, 1003, 64)
    delta, gate_up = torch.randn(41, 64), torch.randn(41, 128).to(dtype)
    ours = [x.requires_grad_() for x in (*inputs, delta, gate_up, torch.rand(64))]

    def run():
        with autocast(dtype):
            total, normed = fast.add_rms_norm(ours[0], ours[3], ours[5])
            hidden = normed + fast.gelu(fast.swiglu(ours[4])) + total
            loss = fast.cross_entropy(hidden, *ours[1:3], target, importance)
        return loss, *torch.autograd.grad(loss, ours)

    runs = []
    for number in (1, 1, 2, 2):
        with threads(number):
            runs.append(run())
    for one, again, two, again_two in zip(*runs, strict=True):
        assert torch.equal(one, again)
        assert torch.equal(two, again_two)
        near(two, one, TOLERANCE[dtype])


def test_a_second_derivative_is_refused_rather_than_wrong():
    inputs, target, importance = draw(12, 50, 16)
    hidden = inputs[0].requires_grad_()
    loss = fast.cross_entropy(hidden, *inputs[1:], target, importance)
    (gradient,) = torch.autograd.grad(loss**2, hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), hidden)

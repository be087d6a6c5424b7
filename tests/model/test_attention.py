"""Attention, plain and by kernel, against a float64 reference of one document at a time."""

from functools import partial

import pytest
import torch
from references import THETA, agree, near, place, reference_attention

from danlu.batch import PADDING
from danlu.model import fast, native, ops
from danlu.model.ops import Layout, rotary_table
from tolerances import BFLOAT16, SIMPLE

ROWS = {
    "short": [[1, 2, 3]],
    "middling": [[17, 64, 5]],
    "long": [[49, 190, 333]],
    "padded": [[16, 33], [1], [48, 7, 7, 2], [], [65]],
}


@pytest.fixture(params=["ops", "fast"])
def attention(request):
    """Both forms, which keep the same promises."""
    if request.param == "fast":
        assert native.library() is not None, "the kernels must be built to be tested"
        return fast.attention
    return ops.attention


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(6)


def draw(shape, num_heads, num_kv_heads, width, dtype=torch.float32):
    """Queries, keys and values as views of one joint tensor, as a fused projection gives."""
    joint = torch.randn(*shape, num_heads + 2 * num_kv_heads, width).to(dtype)
    return joint.split([num_heads, num_kv_heads, num_kv_heads], dim=2)


def attend(attention, position, document, causal, q, k, v):
    table = rotary_table(position, q.shape[-1], THETA)
    return attention(q, k, v, *table, Layout.of(document, causal))


def with_gradients(attention, position, document, causal, inputs, direction):
    inputs = [x.detach().requires_grad_() for x in inputs]  # still views, with their strides
    out = attend(attention, position, document, causal, *inputs)
    return out.detach(), *torch.autograd.grad(out, inputs, direction)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(6, 6), (4, 2), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_agrees_with_one_document_at_a_time(
    attention, dtype, num_heads, num_kv_heads, width, rows, causal
):
    position, document = place(ROWS[rows])
    inputs = draw(position.shape, num_heads, num_kv_heads, width, dtype)
    agree(
        partial(attend, attention, position, document, causal),
        lambda q, k, v: reference_attention(q, k, v, position, document, causal),
        *inputs,
        compare=partial(near, tolerance=SIMPLE if dtype == torch.float32 else BFLOAT16),
        dtype=dtype,
    )


@pytest.mark.parametrize("width", [8, 24, 48, 80])
def test_any_even_width_of_a_head_will_do(attention, width):
    position, document = place([[20, 3], [9]])
    agree(
        partial(attend, attention, position, document, False),
        lambda q, k, v: reference_attention(q, k, v, position, document, False),
        *draw(position.shape, 4, 2, width),
        compare=near,
    )


@pytest.mark.parametrize("causal", [False, True])
def test_large_scores_do_not_overflow(attention, causal):
    position, document = place([[50, 7], [3]])
    q, k, v = draw(position.shape, 2, 2, 16)
    found = attend(attention, position, document, causal, 1e3 * q, 1e3 * k, v)
    with torch.no_grad():
        wanted = reference_attention(
            1e3 * q.double(), 1e3 * k.double(), v.double(), position, document, causal
        )
    assert torch.isfinite(found).all()
    # Almost a hard choice: a tie that rounding decides otherwise moves a whole value.
    assert ((found - wanted).abs() > 1e-2).float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_do_not_matter(attention, dtype):
    """Views of a joint tensor, of every second token, head or number, and turned ones."""
    position, document = place([[17, 5], [30], [8]])
    batch, length = position.shape
    dense = torch.randn(3, batch, length, 4, 16).to(dtype)
    direction = torch.randn(batch, length, 4, 16).to(dtype)
    run = partial(with_gradients, attention, position, document, False, direction=direction)
    wanted = run(list(dense))

    def strided(step, dim):
        shape = list(dense.shape[1:])
        shape[dim] *= step
        wide = [torch.full(shape, float("nan"), dtype=dtype) for _ in range(3)]
        views = [x[(slice(None),) * dim + (slice(None, None, step),)] for x in wide]
        for view, x in zip(views, dense, strict=True):
            view.copy_(x)
        return views

    joint = torch.cat(list(dense), dim=2).split(4, dim=2)
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in dense]
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in dense]
    for views in (joint, turned, heads_first, *(strided(2, dim) for dim in range(4))):
        for found, expected in zip(run(views), wanted, strict=True):
            assert torch.equal(found, expected)
    spread = direction.transpose(0, 1).contiguous().transpose(0, 1)
    for found, expected in zip(run(list(dense), direction=spread), wanted, strict=True):
        assert torch.equal(found, expected)


def test_rows_of_one_token_may_lie_at_any_stride(attention):
    """A dimension of size one may have any stride and still be called contiguous."""
    position, document = place([[1], [1], [1]])
    x = torch.randn(1, 3, 2, 16).transpose(0, 1)
    assert x.is_contiguous()
    assert torch.equal(attend(attention, position, document, False, x, x, x), x)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_zero_and_has_no_gradient(attention, dtype, causal):
    position, document = place([[16, 33], [1], [], [48, 7]])
    inputs = draw(position.shape, 4, 2, 16, dtype)
    inputs = [x.clone() for x in inputs]
    for x in inputs:
        x[document == PADDING] = float("nan")  # nobody may even look at it
    direction = torch.randn(*position.shape, 4, 16).to(dtype)
    for x in with_gradients(attention, position, document, causal, inputs, direction):
        assert not x[document == PADDING].any()
        assert torch.isfinite(x).all()


def test_a_batch_of_nothing_but_padding_is_zero(attention):
    for length in (0, 4):
        document, position = torch.full((2, length), PADDING), torch.zeros(2, length)
        inputs = [x.requires_grad_() for x in torch.randn(3, 2, length, 2, 16).unbind()]
        out = attend(attention, position, document, False, *inputs)
        assert out.shape == (2, length, 2, 16)
        assert not out.any()
        (out.sum() + inputs[0].sum()).backward()
        assert torch.equal(inputs[0].grad, torch.ones_like(inputs[0]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [1.0, 1e4, float("nan"), float("inf")])
def test_a_document_changes_no_other_by_a_single_bit(attention, change, dtype, causal):
    position, document = place([[17, 20, 3], [19], [64, 18]])
    inputs = draw(position.shape, 4, 2, 16, dtype)
    direction = torch.randn(*position.shape, 4, 16).to(dtype)
    run = partial(with_gradients, attention, position, document, causal)
    before = run(inputs, direction=direction)
    for number in range(6):
        inside = document == number
        changed = [x.clone() for x in (*inputs, direction)]
        for x in changed:
            x[inside] += change
        after = run(changed[:3], direction=changed[3])
        for x, y in zip(before, after, strict=True):
            assert torch.equal(x[~inside], y[~inside])
            assert number == 5 or not torch.equal(x[inside], y[inside])


@pytest.mark.parametrize("causal", [False, True])
def test_each_position_sees_its_own_document_and_nothing_ahead(attention, causal):
    document = torch.tensor([[0, 0, 1, 1, 1, PADDING], [2, 2, 2, 2, 2, 2]])
    position = torch.arange(6).repeat(2, 1)
    q, k, v = draw((2, 6), 2, 1, 16)
    v.requires_grad_()
    out = attend(attention, position, document, causal, q, k, v)
    for b in range(2):
        for query in range(6):
            (d_v,) = torch.autograd.grad(out[b, query].sum(), v, retain_graph=True)
            for row in range(2):
                for key in range(6):
                    same = document[row, key] == document[b, query] != PADDING
                    seen = row == b and same and (not causal or key <= query)
                    assert bool(d_v[row, key].any()) == bool(seen)


def test_no_gradient_crosses_from_one_document_to_another(attention):
    position, document = place([[33], [11, 20]])
    q, k, v = torch.randn(3, 2, 33, 4, 16).requires_grad_().unbind()
    out = attend(attention, position, document, False, q, k, v)
    found = torch.autograd.grad(out[1][document[1] == 1].sum(), (k, v))
    for gradient in found:
        assert gradient[1][document[1] == 1].abs().sum() > 0
        assert not gradient[1][document[1] != 1].any()
        assert not gradient[0].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_packed_documents_are_as_if_each_were_alone(attention, rows, causal):
    position, document = place(ROWS[rows])
    inputs = draw(position.shape, 4, 2, 32)
    direction = torch.randn(*position.shape, 4, 32)
    packed = with_gradients(attention, position, document, causal, inputs, direction)
    for number in range(int(document.max()) + 1):
        b, start = (int(i) for i in (document == number).nonzero()[0])
        end = start + int((document == number).sum())
        alone = with_gradients(
            attention,
            torch.arange(end - start)[None],
            torch.zeros(1, end - start, dtype=torch.int64),
            causal,
            [x[b : b + 1, start:end] for x in inputs],
            direction[b : b + 1, start:end],
        )
        for x, y in zip(packed, alone, strict=True):
            near(x[b, start:end], y[0])
            if attention is fast.attention:
                assert torch.equal(x[b, start:end], y[0])


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_is_not_swallowed(attention, dtype, bad, which):
    position, document = place([[20, 7]])
    inputs = [x.clone() for x in draw(position.shape, 2, 1, 16, dtype)]
    inputs[which][0, 18, 0, 3] = bad
    direction = torch.randn(1, 27, 2, 16).to(dtype)
    for causal in (False, True):
        out, *gradients = with_gradients(attention, position, document, causal, inputs, direction)
        assert not torch.isfinite(out[0, 18]).all()
        assert not torch.isfinite(gradients[0][0, 18]).all() or bad == float("-inf")
        assert torch.isfinite(out[0, 20:]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_a_number_stays_none(attention, dtype):
    position, document = place([[20, 7]])
    inputs = draw(position.shape, 2, 1, 16, dtype)
    direction = torch.zeros(1, 27, 2, 16, dtype=dtype)
    direction[0, 5, 1, 2] = float("nan")
    _, d_q, d_k, d_v = with_gradients(attention, position, document, False, inputs, direction)
    assert d_q[0, 5, 1].isnan().all()
    assert d_k[0, :20].isnan().all()
    assert d_v[0, :20, 0, 2].isnan().all()
    for gradient in (d_q, d_k, d_v):
        assert not gradient[0, 20:].any()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_inputs_of_different_dtypes_are_not_taken_for_one_another(attention, which):
    """They may be refused or converted, but memory is never read as what it is not."""
    position, document = place([[8]])
    inputs = [torch.randn(1, 8, 2, 16) for _ in range(3)]
    inputs[which] = inputs[which].bfloat16()
    wanted = reference_attention(*(x.double() for x in inputs), position, document, False)
    try:
        found = attend(attention, position, document, False, *inputs)
    except RuntimeError:
        return
    near(found, wanted, BFLOAT16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_input_gives_the_same_bits_on_any_number_of_threads(attention, dtype):
    position, document = place(ROWS["padded"])
    inputs = draw(position.shape, 6, 3, 32, dtype)
    direction = torch.randn(*position.shape, 6, 32).to(dtype)
    threads = torch.get_num_threads()
    runs = []
    try:
        for number in (1, 1, 2, 2):
            torch.set_num_threads(number)
            runs.append(with_gradients(attention, position, document, True, inputs, direction))
    finally:
        torch.set_num_threads(threads)
    for one, again, two, again_two in zip(*runs, strict=True):
        assert torch.equal(one, again)
        assert torch.equal(two, again_two)
        near(two, one, SIMPLE if dtype == torch.float32 else BFLOAT16)
        if attention is fast.attention:
            assert torch.equal(one, two)


def test_without_gradients_the_answer_is_the_same(attention):
    position, document = place(ROWS["middling"])
    inputs = [x.requires_grad_() for x in torch.randn(3, 1, 86, 4, 16).unbind()]
    with torch.no_grad():
        found = attend(attention, position, document, False, *inputs)
    assert not found.requires_grad
    assert torch.equal(found, attend(attention, position, document, False, *inputs))


def test_a_layout_names_every_document_once_longest_first():
    document = torch.tensor([[4, 4, 7, PADDING, PADDING], [2, 9, 9, 9, PADDING], [1, 1, 1, 1, 1]])
    layout = Layout.of(document, causal=True)
    assert layout.causal
    assert layout.length_S.tolist() == [5, 3, 2, 1, 1]
    assert layout.first_S.tolist() == [10, 6, 0, 2, 5]
    nothing = Layout.of(torch.full((2, 3), PADDING), causal=False)
    assert nothing.first_S.numel() == nothing.length_S.numel() == 0
    assert nothing.alike() == []


def test_a_document_ends_with_its_row_even_if_the_next_row_has_its_number():
    layout = Layout.of(torch.zeros(3, 4, dtype=torch.int64), causal=False)
    assert layout.first_S.tolist() == [0, 4, 8]
    assert layout.length_S.tolist() == [4, 4, 4]


def test_documents_are_grouped_so_that_padding_never_makes_up_half():
    lengths = torch.randint(1, 200, (50,)).tolist()
    _, document = place([lengths])
    layout = Layout.of(document, causal=False)
    groups = layout.alike()
    assert torch.equal(torch.cat([first for first, _ in groups]), layout.first_S)
    assert torch.equal(torch.cat([length for _, length in groups]), layout.length_S)
    for _, length_S in groups:
        assert 2 * int(length_S.min()) >= int(length_S.max())

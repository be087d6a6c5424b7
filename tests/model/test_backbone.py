"""The backbone as a whole: packing, masks, positions, initial weights, configuration."""

import pytest
import torch
from references import place

from danlu.batch import PADDING
from danlu.model import native
from danlu.model.backbone import Backbone, BackboneConfig
from danlu.model.heads import build
from tolerances import BFLOAT16, COMPOSED, SIMPLE

VOCAB = 40
# The smallest sizes that all kernels take; the others are computed by the plain operations.
KERNELS = {"dim": 32, "head_dim": 16, "hidden_dim": 48}
SIZES = pytest.mark.parametrize("sizes", [{}, KERNELS], ids=["plain", "kernels"])


def make(**others):
    fields = {
        "vocab_size": VOCAB,
        "num_layers": 2,
        "dim": 16,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 4,
        "hidden_dim": 24,
    }
    return BackboneConfig(**fields | others)


def draw(config):
    """A backbone whose embeddings are of size one, as after training.

    At their initial 0.02 the first norm multiplies gradients by fifty, and
    with them the rounding that an absolute tolerance is to bound.
    """
    backbone = Backbone(config)
    torch.nn.init.normal_(backbone.embedding.weight)
    return backbone


def alone(backbone, ids):
    """Hidden vectors of one document that has a row to itself."""
    ids = ids[None]
    return backbone(ids, torch.arange(ids.shape[1])[None], torch.zeros_like(ids))[0]


@pytest.fixture
def ids():
    torch.manual_seed(2)
    return torch.randint(4, VOCAB, (20,))


@SIZES
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [4, 1])
@pytest.mark.parametrize(("first", "second"), [(1, 1), (7, 13), (33, 7)])
def test_two_documents_in_one_row_are_as_if_each_were_alone(
    first, second, num_kv_heads, qk_norm, causal, sizes
):
    torch.manual_seed(3)
    backbone = draw(make(num_kv_heads=num_kv_heads, qk_norm=qk_norm, causal=causal, **sizes))
    one, two = torch.randint(4, VOCAB, (first,)), torch.randint(4, VOCAB, (second,))
    direction = torch.randn(first + second, backbone.config.dim)
    weights = list(backbone.parameters())

    packed = backbone(
        torch.cat((one, two))[None],
        torch.cat((torch.arange(first), torch.arange(second)))[None],
        torch.tensor([[0] * first + [1] * second]),
    )[0]
    apart = torch.cat((alone(backbone, one), alone(backbone, two)))

    torch.testing.assert_close(packed, apart, rtol=SIMPLE, atol=SIMPLE)
    found = torch.autograd.grad(packed, weights, direction)
    wanted = torch.autograd.grad(apart, weights, direction)
    for gradient, wanted_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=COMPOSED, atol=COMPOSED)


@SIZES
def test_a_row_without_document_borders_is_something_else(ids, sizes):
    backbone = Backbone(make(**sizes))
    packed = backbone(
        ids[None],
        torch.cat((torch.arange(8), torch.arange(12)))[None],
        torch.zeros(1, 20, dtype=torch.int64),
    )[0]
    assert (packed[:8] - alone(backbone, ids[:8])).abs().max() > 100 * SIMPLE


@SIZES
@pytest.mark.parametrize("causal", [False, True])
def test_a_later_token_changes_what_stands_before_it_only_without_causality(ids, causal, sizes):
    backbone = Backbone(make(causal=causal, **sizes))
    changed = ids.clone()
    changed[12] = (ids[12] + 1 - 4) % (VOCAB - 4) + 4
    before, after = alone(backbone, ids), alone(backbone, changed)
    moved = (before - after).abs().amax(dim=1)
    assert (moved[12:] > 0).all()
    if causal:
        assert not moved[:12].any()
    else:
        assert (moved[:12] > 0).all()


@SIZES
def test_a_causal_gradient_never_comes_from_behind(ids, sizes):
    backbone = Backbone(make(causal=True, **sizes))
    found = {}

    def keep(_module, _inputs, out):
        found["embedded"] = out
        out.retain_grad()

    backbone.embedding.register_forward_hook(keep)
    alone(backbone, ids)[7].sum().backward()
    size = found["embedded"].grad[0].abs().sum(dim=1)
    assert (size[:8] > 0).all()
    assert not size[8:].any()


@SIZES
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", [1, 11])
def test_padding_changes_neither_outputs_nor_gradients(ids, extra, causal, sizes):
    backbone = draw(make(causal=causal, **sizes))
    weights, direction = list(backbone.parameters()), torch.randn(20, backbone.config.dim)
    padded = backbone(
        torch.cat((ids, torch.randint(0, VOCAB, (extra,))))[None],
        torch.arange(20 + extra)[None],
        torch.tensor([[0] * 20 + [PADDING] * extra]),
    )[0]
    assert torch.isfinite(padded).all()
    plain = alone(backbone, ids)
    torch.testing.assert_close(padded[:20], plain, rtol=SIMPLE, atol=SIMPLE)
    found = torch.autograd.grad(padded[:20], weights, direction)
    wanted = torch.autograd.grad(plain, weights, direction)
    for gradient, wanted_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=COMPOSED, atol=COMPOSED)


@SIZES
def test_the_order_of_tokens_matters(ids, sizes):
    backbone = Backbone(make(**sizes))
    turned = alone(backbone, ids.flip(0)).flip(0)
    assert (alone(backbone, ids) - turned).abs().max() > 100 * SIMPLE


@SIZES
def test_a_token_stands_where_its_position_says_and_not_where_the_row_holds_it(ids, sizes):
    backbone = Backbone(make(**sizes))
    order = torch.randperm(20)
    document = torch.zeros(1, 20, dtype=torch.int64)
    mixed = backbone(ids[order][None], order[None], document)[0]
    torch.testing.assert_close(mixed, alone(backbone, ids)[order], rtol=SIMPLE, atol=SIMPLE)
    stretched = backbone(ids[None], 2 * torch.arange(20)[None], document)[0]
    assert (stretched - alone(backbone, ids)).abs().max() > 100 * SIMPLE


@SIZES
def test_a_row_does_not_depend_on_the_rows_beside_it(ids, sizes):
    backbone = Backbone(make(**sizes))
    rows = torch.stack((ids, ids.flip(0)))
    document = torch.arange(2)[:, None].expand(2, 20)
    both = backbone(rows, torch.arange(20).expand(2, 20), document)
    torch.testing.assert_close(both[0], alone(backbone, ids), rtol=SIMPLE, atol=SIMPLE)


ROWS = [[49, 20], [3, 66], [70], [17, 1, 2, 16], []]


def learn(backbone, autocast=False):
    """Outputs and parameter gradients for rows of documents with padding behind them."""
    position, document = place(ROWS)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(4, VOCAB, position.shape, generator=generator)
    direction = torch.randn(*ids.shape, backbone.config.dim, generator=generator)
    direction[document == PADDING] = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = backbone(ids, position, document)
    weights = list(backbone.parameters())
    return out.detach(), torch.autograd.grad(out, weights, direction.to(out.dtype))


CONFIGS = [
    {"causal": True, "num_kv_heads": 4},
    {"qk_norm": True, "num_kv_heads": 1},
    {"activation": "gelu"},
]


@pytest.mark.parametrize("config", CONFIGS, ids=["causal", "qk_norm", "gelu"])
def test_many_packed_rows_are_as_if_each_document_were_alone(config):
    torch.manual_seed(3)
    backbone = draw(make(**KERNELS | config))
    position, document = place(ROWS)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(4, VOCAB, position.shape, generator=generator)
    direction = torch.randn(*ids.shape, 32, generator=generator)
    packed, found = learn(backbone)
    total = 0
    for number in range(int(document.max()) + 1):
        inside = document == number
        out = alone(backbone, ids[inside])
        torch.testing.assert_close(packed[inside], out, rtol=SIMPLE, atol=SIMPLE)
        total = total + (out * direction[inside]).sum()
    wanted = torch.autograd.grad(total, list(backbone.parameters()))
    for gradient, wanted_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=COMPOSED, atol=COMPOSED)


@pytest.mark.parametrize("config", CONFIGS, ids=["causal", "qk_norm", "gelu"])
def test_the_kernels_and_the_plain_operations_agree(config, monkeypatch):
    torch.manual_seed(3)
    backbone = draw(make(**KERNELS | config))
    assert native.library() is not None
    out, found = learn(backbone)
    half, _ = learn(backbone, autocast=True)
    monkeypatch.setattr(native, "library", lambda: None)
    plain, wanted = learn(backbone)
    assert not torch.equal(out, plain)  # or the kernels were not asked
    torch.testing.assert_close(out, plain, rtol=SIMPLE, atol=SIMPLE)
    for gradient, wanted_gradient in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=COMPOSED, atol=COMPOSED)
    # A dozen operations in bfloat16 lie between, each with an error of its own.
    error = (half.float() - plain)[place(ROWS)[1] != PADDING]
    assert error.pow(2).mean().sqrt() < BFLOAT16 * plain.pow(2).mean().sqrt()


@SIZES
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_computing_layers_again_changes_no_bit_of_a_gradient(sizes, dropout, autocast):
    torch.manual_seed(3)
    backbone = draw(make(dropout=dropout, num_layers=3, **sizes))
    results = []
    for checkpoint in (False, True):
        backbone.checkpoint = checkpoint
        torch.manual_seed(9)  # of the dropout
        results.append(learn(backbone, autocast))
    (out, gradients), (other_out, other_gradients) = results
    assert torch.equal(out, other_out)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        assert torch.equal(gradient, other)


def test_layers_are_computed_again_for_a_gradient_and_only_then(ids):
    backbone, calls = Backbone(make(num_layers=3)), []
    for layer in backbone.layers:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    for checkpoint, wanted in ((False, 3), (True, 6)):
        backbone.checkpoint = checkpoint
        calls.clear()
        alone(backbone, ids).sum().backward()
        assert len(calls) == wanted
        calls.clear()
        with torch.no_grad():
            alone(backbone, ids)
        assert len(calls) == 3


def test_dropout_acts_in_training_and_rests_in_evaluation(ids):
    backbone = Backbone(make(dropout=0.5))
    assert not torch.equal(alone(backbone, ids), alone(backbone, ids))
    backbone.eval()
    assert torch.equal(alone(backbone, ids), alone(backbone, ids))


def test_one_seed_gives_the_same_weights_and_another_gives_others():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in Backbone(make()).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_initial_weights_have_the_spread_that_is_documented():
    torch.manual_seed(0)
    backbone = Backbone(make(num_layers=8, dim=128, head_dim=32, hidden_dim=256))
    block = backbone.layers[3]
    wide, narrow = (5 * 128) ** -0.5, (5 * 256) ** -0.5
    wanted = {
        block.attention.q_proj: wide,
        block.feed_forward.up_proj: wide,
        block.attention.o_proj: wide / 4,
        block.feed_forward.down_proj: narrow / 4,
        backbone.embedding: 0.02,
    }
    for module, std in wanted.items():
        weight = module.weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.06)
        assert abs(float(weight.mean())) < 0.06 * std


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_tied_embeddings_are_stored_once(kind):
    tied, untied = (build(make(tie_embeddings=tie), kind) for tie in (True, False))
    shape = (VOCAB, 16)
    assert sum(p.shape == shape for p in tied.parameters()) == 1
    assert sum(t.shape == shape for t in tied.state_dict().values()) == 1
    assert sum(t.shape == shape for t in untied.state_dict().values()) == 2
    sizes = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert sizes[1] - sizes[0] == VOCAB * 16


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_heads": 4, "num_kv_heads": 3}, r"num_kv_heads \(3\) must divide num_heads \(4\)"),
        ({"num_heads": 2, "num_kv_heads": 4}, r"num_kv_heads \(4\) must divide num_heads \(2\)"),
        ({"head_dim": 5}, "head_dim must be even"),
    ],
)
def test_a_configuration_that_cannot_be_built_says_why(wrong, words):
    with pytest.raises(ValueError, match=words):
        make(**wrong)


@pytest.mark.parametrize(
    "name", ["vocab_size", "num_layers", "dim", "num_kv_heads", "head_dim", "hidden_dim"]
)
def test_a_size_of_nothing_is_a_configuration_error(name):
    with pytest.raises(ValueError, match=name):
        make(**{name: 0})


def test_a_configuration_survives_its_dictionary():
    config = make(causal=True, qk_norm=True, dropout=0.25, activation="gelu")
    assert BackboneConfig(**config.to_dict()) == config

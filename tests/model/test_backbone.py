"""The backbone as a whole: packing, masks, positions, initial weights, configuration."""

import pytest
import torch

from danlu.batch import PADDING
from danlu.model.backbone import Backbone, BackboneConfig
from danlu.model.heads import build
from tolerances import COMPOSED, SIMPLE

VOCAB = 40


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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [4, 1])
@pytest.mark.parametrize(("first", "second"), [(1, 1), (7, 13), (33, 7)])
def test_two_documents_in_one_row_are_as_if_each_were_alone(
    first, second, num_kv_heads, qk_norm, causal
):
    torch.manual_seed(3)
    backbone = draw(make(num_kv_heads=num_kv_heads, qk_norm=qk_norm, causal=causal))
    one, two = torch.randint(4, VOCAB, (first,)), torch.randint(4, VOCAB, (second,))
    direction = torch.randn(first + second, 16)
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


def test_a_row_without_document_borders_is_something_else(ids):
    backbone = Backbone(make())
    packed = backbone(
        ids[None],
        torch.cat((torch.arange(8), torch.arange(12)))[None],
        torch.zeros(1, 20, dtype=torch.int64),
    )[0]
    assert (packed[:8] - alone(backbone, ids[:8])).abs().max() > 100 * SIMPLE


@pytest.mark.parametrize("causal", [False, True])
def test_a_later_token_changes_what_stands_before_it_only_without_causality(ids, causal):
    backbone = Backbone(make(causal=causal))
    changed = ids.clone()
    changed[12] = (ids[12] + 1 - 4) % (VOCAB - 4) + 4
    before, after = alone(backbone, ids), alone(backbone, changed)
    moved = (before - after).abs().amax(dim=1)
    assert (moved[12:] > 0).all()
    if causal:
        assert not moved[:12].any()
    else:
        assert (moved[:12] > 0).all()


def test_a_causal_gradient_never_comes_from_behind(ids):
    backbone = Backbone(make(causal=True))
    found = {}

    def keep(_module, _inputs, out):
        found["embedded"] = out
        out.retain_grad()

    backbone.embedding.register_forward_hook(keep)
    alone(backbone, ids)[7].sum().backward()
    size = found["embedded"].grad[0].abs().sum(dim=1)
    assert (size[:8] > 0).all()
    assert not size[8:].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("extra", [1, 11])
def test_padding_changes_neither_outputs_nor_gradients(ids, extra, causal):
    backbone = draw(make(causal=causal))
    weights, direction = list(backbone.parameters()), torch.randn(20, 16)
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


def test_the_order_of_tokens_matters(ids):
    backbone = Backbone(make())
    turned = alone(backbone, ids.flip(0)).flip(0)
    assert (alone(backbone, ids) - turned).abs().max() > 100 * SIMPLE


def test_a_token_stands_where_its_position_says_and_not_where_the_row_holds_it(ids):
    backbone = Backbone(make())
    order = torch.randperm(20)
    document = torch.zeros(1, 20, dtype=torch.int64)
    mixed = backbone(ids[order][None], order[None], document)[0]
    torch.testing.assert_close(mixed, alone(backbone, ids)[order], rtol=SIMPLE, atol=SIMPLE)
    stretched = backbone(ids[None], 2 * torch.arange(20)[None], document)[0]
    assert (stretched - alone(backbone, ids)).abs().max() > 100 * SIMPLE


def test_a_row_does_not_depend_on_the_rows_beside_it(ids):
    backbone = Backbone(make())
    rows = torch.stack((ids, ids.flip(0)))
    document = torch.arange(2)[:, None].expand(2, 20)
    both = backbone(rows, torch.arange(20).expand(2, 20), document)
    torch.testing.assert_close(both[0], alone(backbone, ids), rtol=SIMPLE, atol=SIMPLE)


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

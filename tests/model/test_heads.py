"""Heads against numpy, and what a model returns for each kind of objective."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from danlu.batch import PADDING, Batch
from danlu.model.backbone import BackboneConfig
from danlu.model.heads import (
    DocumentHead,
    Scores,
    TokenHead,
    build,
    pool_documents,
    scored_positions,
)
from small import computing
from tolerances import SIMPLE

CONFIG = BackboneConfig(
    vocab_size=30, num_layers=1, dim=12, num_heads=2, num_kv_heads=1, head_dim=6, hidden_dim=16
)
DOCUMENT = torch.tensor([[0, 0, 0, 1, 1, PADDING], [2, 3, 3, 3, 3, 3], [4, 4, *[PADDING] * 4]])
POSITION = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
ENDS = [(0, 0, 3), (0, 3, 5), (1, 0, 1), (1, 1, 6), (2, 0, 2)]  # row, start, stop


def batch(**others):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 30, DOCUMENT.shape, generator=generator)
    return Batch(ids, POSITION, DOCUMENT, num_documents=5, **others)


def test_pooling_is_the_mean_over_each_document():
    hidden = torch.randn(3, 6, 12)
    wanted = np.stack([hidden.double().numpy()[r, a:b].mean(axis=0) for r, a, b in ENDS])
    pooled = pool_documents(hidden, batch())
    np.testing.assert_allclose(pooled.numpy(), wanted, rtol=SIMPLE, atol=SIMPLE)


def test_pooling_shares_the_gradient_equally_and_gives_padding_none():
    hidden = torch.randn(3, 6, 12, requires_grad=True)
    direction = torch.randn(5, 12)
    pool_documents(hidden, batch()).backward(direction)
    wanted = np.zeros((3, 6, 12))
    for number, (row, start, stop) in enumerate(ENDS):
        wanted[row, start:stop] = direction[number].double().numpy() / (stop - start)
    np.testing.assert_allclose(hidden.grad.numpy(), wanted, rtol=SIMPLE, atol=SIMPLE)


def test_pooling_sums_in_float32_where_bfloat16_would_stand_still():
    # In bfloat16 256 + 1 is 256, so a running sum of ones could not pass it.
    long = Batch(*(torch.zeros(1, 1000, dtype=torch.int64) for _ in range(3)), num_documents=1)
    pooled = pool_documents(torch.ones(1, 1000, 2, dtype=torch.bfloat16), long)
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [[1.0, 1.0]]


def test_a_document_without_positions_pools_to_zero_and_not_to_nan():
    gap = batch()
    gap = Batch(gap.ids_BT, gap.position_BT, gap.document_BT, num_documents=7)
    pooled = pool_documents(torch.randn(3, 6, 12), gap)
    assert pooled.shape == (7, 12)
    assert not pooled[5:].any()


@pytest.mark.parametrize("kind", ["classify", "multilabel", "regress"])
def test_an_untrained_document_head_says_all_alike(kind):
    torch.manual_seed(0)
    outputs = build(CONFIG, kind, num_outputs=4, dropout=0.3)(batch())
    assert outputs.shape == (5, 4)
    assert outputs.dtype == torch.float32
    assert not outputs.any()


def test_a_document_head_is_a_linear_map_of_the_pooled_vectors():
    torch.manual_seed(0)
    head, hidden = DocumentHead(12, 3), torch.randn(3, 6, 12)
    torch.nn.init.normal_(head.output.weight)
    torch.nn.init.normal_(head.output.bias)
    weight, bias = head.output.weight.detach().double(), head.output.bias.detach().double()
    means = torch.stack([hidden.double()[r, a:b].mean(0) for r, a, b in ENDS])
    wanted = torch.einsum("nd,cd->nc", means, weight) + bias
    torch.testing.assert_close(head(hidden, batch()).double(), wanted, rtol=SIMPLE, atol=SIMPLE)


def test_a_document_head_drops_out_in_training_only():
    torch.manual_seed(0)
    head, hidden = DocumentHead(12, 3, dropout=0.5), torch.randn(3, 6, 12)
    torch.nn.init.normal_(head.output.weight)
    assert not torch.equal(head(hidden, batch()), head(hidden, batch()))
    head.eval()
    assert torch.equal(head(hidden, batch()), head(hidden, batch()))


def weights(shape, share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(shape, generator=generator)
    return torch.where(drawn < share, drawn + 0.1, 0.0)


@given(
    rows=st.integers(1, 5),
    length=st.integers(1, 150),
    share=st.sampled_from([0.0, 0.02, 0.15, 0.4, 0.6, 1.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=150)
def test_all_positions_that_bear_weight_are_scored_and_a_few_to_come_out_even(
    rows, length, share, seed
):
    weight = weights((rows, length), share, seed)
    total, bearing = weight.numel(), weight.reshape(-1).nonzero().squeeze(1).tolist()
    positions = scored_positions(weight).tolist()
    assert len(set(positions)) == len(positions)
    assert set(bearing) <= set(positions) <= set(range(total))
    if 2 * len(bearing) > total:
        assert positions == list(range(total))
    else:
        assert positions[: len(bearing)] == bearing
        assert len(positions) == min(total, -(-len(bearing) // 64) * 64)


@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("transform", [True, False])
def test_a_token_head_agrees_with_its_formula(transform, tie, share):
    torch.manual_seed(0)
    fields = CONFIG.to_dict() | {"tie_embeddings": tie}
    head = TokenHead(BackboneConfig(**fields), transform)
    bias = torch.zeros(30)
    if transform:
        bias = torch.nn.init.normal_(head.bias).detach()
    hidden, embedding = torch.randn(2, 70, 12), torch.randn(30, 12)
    weight = weights((2, 70), share)
    x = hidden.flatten(0, 1).double()
    if transform:
        x = x @ head.transform[0].weight.detach().double().T
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + CONFIG.norm_epsilon)
    output = (embedding if tie else head.weight.detach()).double()
    wanted = x @ output.T + bias.double()
    scores = head(hidden, weight, embedding)
    assert torch.equal(scores.position_M, scored_positions(weight))
    found = scores.logits().detach().double()
    torch.testing.assert_close(found, wanted[scores.position_M], rtol=SIMPLE, atol=SIMPLE)


def test_a_causal_head_has_no_bias_and_a_masked_one_starts_at_zero():
    assert TokenHead(CONFIG, transform=False).bias is None
    assert not TokenHead(CONFIG, transform=True).bias.any()


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("dim", "share"), [(16, 0.1), (16, 0.9), (12, 0.3), (16, 0.0)])
def test_the_loss_of_scores_is_the_weighted_sum_of_surprises(dim, share, biased, with_kernels):
    torch.manual_seed(0)
    shape = (3, 50)
    weight, target = weights(shape, share), torch.randint(0, 30, shape)
    hidden = torch.randn(*shape, dim, requires_grad=True)
    matrix = torch.randn(30, dim, requires_grad=True)
    bias = torch.randn(30, requires_grad=True) if biased else None
    leaves = [leaf for leaf in (hidden, matrix, bias) if leaf is not None]
    positions = scored_positions(weight)
    with computing(with_kernels=with_kernels):
        scores = Scores(hidden.flatten(0, 1)[positions], matrix, bias, positions)
        loss = scores.loss(target, weight)
        found = torch.autograd.grad(loss, leaves)

    slow = [leaf.detach().double().requires_grad_() for leaf in leaves]
    logits = slow[0] @ slow[1].T + (slow[2] if biased else 0.0)
    surprise = -log_softmax(logits.detach().numpy(), axis=-1)
    by_hand = np.take_along_axis(surprise, target.numpy()[..., None], -1)[..., 0]
    by_hand = float((by_hand * weight.double().numpy()).sum())
    assert float(loss.detach()) == pytest.approx(by_hand, rel=SIMPLE, abs=SIMPLE)
    chance = torch.log_softmax(logits, -1).gather(-1, target[..., None])[..., 0]
    wanted = torch.autograd.grad(-(chance * weight.double()).sum(), slow)
    for mine, theirs in zip(found, wanted, strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        torch.testing.assert_close(mine.double() / scale, theirs / scale, rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_model_scores_where_there_is_weight(kind):
    torch.manual_seed(0)
    weight = torch.zeros(3, 6)
    chosen = [(0, 1), (1, 0), (1, 4), (2, 1)]
    for row, column in chosen:
        weight[row, column] = 0.5
    model = build(CONFIG, kind).eval()
    weighted = batch(weight_BT=weight)
    scores, hidden = model(weighted), model.hidden(weighted)
    everywhere = model.head.transform(hidden) @ model.backbone.embedding.weight.T
    if kind == "masked":
        everywhere = everywhere + model.head.bias
    assert scores.position_M[:4].tolist() == [6 * row + column for row, column in chosen]
    wanted = torch.stack([everywhere[row, column] for row, column in chosen])
    torch.testing.assert_close(scores.logits()[:4], wanted, rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_positions_scored_to_come_out_even_change_neither_loss_nor_gradient(kind):
    torch.manual_seed(0)
    model = build(CONFIG, kind)
    weight = weights((3, 6), 0.2, seed=3)
    assert 0 < int((weight != 0).sum()) < 9
    weighted = batch(weight_BT=weight, target_BT=torch.randint(0, 30, (3, 6)))
    found = []
    for exact in (False, True):
        model.zero_grad()
        scores = model(weighted)
        if exact:
            bears = weight.reshape(-1)[scores.position_M] != 0
            scores = scores._replace(
                hidden_MD=scores.hidden_MD[bears], position_M=scores.position_M[bears]
            )
            assert len(scores.position_M) < 9
        loss = scores.loss(weighted.target_BT, weight)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for even, wanted in zip(*found, strict=True):
        torch.testing.assert_close(even, wanted, rtol=SIMPLE, atol=SIMPLE)


def test_the_tied_matrix_learns_from_both_its_uses():
    torch.manual_seed(0)
    weight = torch.zeros(3, 6)
    weight[0, 1] = 1
    model = build(CONFIG, "causal")
    chosen = batch(weight_BT=weight, target_BT=torch.zeros(3, 6, dtype=torch.int64))
    model(chosen).loss(chosen.target_BT, weight).backward()
    size = model.backbone.embedding.weight.grad.abs().sum(dim=1)
    assert (size[:4] > 0).all()  # ids below 4 stand nowhere in the input
    assert (size[chosen.ids_BT[0, :3]] > 0).all()


def test_an_objective_over_tokens_needs_weights():
    with pytest.raises(AssertionError, match="weight_BT"):
        build(CONFIG, "masked")(batch())

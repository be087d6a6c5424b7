"""Heads against numpy, and what a model returns for each kind of objective."""

import numpy as np
import pytest
import torch

from danlu.batch import PADDING, Batch
from danlu.model.backbone import BackboneConfig
from danlu.model.heads import DocumentHead, TokenHead, build, pool_documents
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


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("transform", [True, False])
def test_a_token_head_agrees_with_its_formula(transform, tie):
    torch.manual_seed(0)
    fields = CONFIG.to_dict() | {"tie_embeddings": tie}
    head = TokenHead(BackboneConfig(**fields), transform)
    torch.nn.init.normal_(head.bias)
    hidden, embedding = torch.randn(7, 12), torch.randn(30, 12)
    x = hidden.double()
    if transform:
        x = x @ head.transform[0].weight.detach().double().T
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5))
        x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + CONFIG.norm_epsilon)
    output = (embedding if tie else head.weight.detach()).double()
    wanted = x @ output.T + head.bias.detach().double()
    found = head(hidden, embedding).detach()
    torch.testing.assert_close(found.double(), wanted, rtol=SIMPLE, atol=SIMPLE)


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_tokens_are_scored_only_where_there_is_weight(kind):
    torch.manual_seed(0)
    weight = torch.zeros(3, 6)
    chosen = [(0, 1), (1, 0), (1, 4), (2, 1)]
    for row, column in chosen:
        weight[row, column] = 0.5
    model = build(CONFIG, kind).eval()
    weighted = batch(weight_BT=weight)
    logits, hidden = model(weighted), model.hidden(weighted)
    everywhere = model.head(hidden, model.backbone.embedding.weight)
    wanted = torch.stack([everywhere[row, column] for row, column in chosen])
    assert logits.shape == (4, 30)
    torch.testing.assert_close(logits, wanted, rtol=SIMPLE, atol=SIMPLE)


def test_the_tied_matrix_learns_from_both_its_uses():
    torch.manual_seed(0)
    weight = torch.zeros(3, 6)
    weight[0, 1] = 1
    model, chosen = build(CONFIG, "causal"), batch(weight_BT=weight)
    model(chosen)[0, :4].sum().backward()  # ids below 4 stand nowhere in the input
    size = model.backbone.embedding.weight.grad.abs().sum(dim=1)
    assert (size[:4] > 0).all()
    assert (size[chosen.ids_BT[0, :3]] > 0).all()


def test_an_objective_over_tokens_needs_weights():
    with pytest.raises(AssertionError, match="weight_BT"):
        build(CONFIG, "masked")(batch())

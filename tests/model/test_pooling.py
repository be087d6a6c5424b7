"""Attentive pooling against a plain loop, gradients included."""

from __future__ import annotations

import torch

from danlu.batch import PADDING, Batch
from danlu.model.heads import DocumentHead, pool_documents
from tolerances import SIMPLE


def batch_of(document: torch.Tensor) -> Batch:
    ids = torch.zeros_like(document)
    return Batch(ids, ids, document, int(document.max()) + 1)


def test_it_is_the_softmax_weighted_mean_of_each_document_and_slice():
    torch.manual_seed(0)
    document = torch.tensor([[0, 0, 0, 1, 1, PADDING], [2, 3, 3, 3, 3, PADDING]])
    hidden = torch.randn(2, 6, 8, requires_grad=True)
    score = (3 * torch.randn(2, 6, 4)).requires_grad_()
    pooled = pool_documents(hidden, batch_of(document), score)
    target = torch.randn(4, 8)
    found = torch.autograd.grad((pooled * target).sum(), [hidden, score])

    slow_hidden = hidden.detach().double().requires_grad_()
    slow_score = score.detach().double().requires_grad_()
    rows = []
    for number in range(4):
        inside = document == number
        vectors, scores = slow_hidden[inside], slow_score[inside]
        slices = []
        for part in range(4):
            weights = scores[:, part].exp() / scores[:, part].exp().sum()
            slices.append((weights[:, None] * vectors[:, 2 * part : 2 * part + 2]).sum(0))
        rows.append(torch.cat(slices))
    expected = torch.stack(rows)
    wanted = torch.autograd.grad((expected * target.double()).sum(), [slow_hidden, slow_score])
    torch.testing.assert_close(pooled.double(), expected, rtol=SIMPLE, atol=SIMPLE)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=SIMPLE, atol=SIMPLE)


def test_huge_scores_overflow_nothing():
    document = torch.tensor([[0, 0, 1, 1]])
    hidden = torch.ones(1, 4, 4)
    score = torch.tensor([[[1e4], [-1e4], [-1e4], [-1e4]]])
    pooled = pool_documents(hidden, batch_of(document), score)
    torch.testing.assert_close(pooled, torch.ones(2, 4), rtol=SIMPLE, atol=SIMPLE)


def test_a_new_head_weighs_all_positions_alike():
    document = torch.tensor([[0, 0, 0, 1]])
    hidden = torch.randn(1, 4, 8)
    head = DocumentHead(8, 3)
    even = pool_documents(hidden, batch_of(document), head.score(hidden))
    torch.testing.assert_close(
        even, pool_documents(hidden, batch_of(document)), rtol=SIMPLE, atol=SIMPLE
    )


def test_a_width_that_four_does_not_divide_is_pooled_as_a_whole():
    assert DocumentHead(6, 2).score.weight.shape == (1, 6)


def test_it_does_not_matter_how_documents_are_laid_in_rows():
    torch.manual_seed(0)
    sizes = [3, 5, 1, 4]
    words, scores = torch.randn(sum(sizes), 8), torch.randn(sum(sizes), 4)
    found = []
    for width in (16, 5):  # end to end in one row, and each in a row of its own
        document, row, start = torch.full((4, width), PADDING), 0, 0
        if width == 16:
            document = torch.full((1, width), PADDING)
        for number, size in enumerate(sizes):
            if width == 5:
                row, start = number, 0
            document[row, start : start + size] = number
            start += size
        real = document != PADDING
        hidden, score = torch.zeros(*document.shape, 8), torch.zeros(*document.shape, 4)
        hidden[real], score[real] = words, scores
        found.append(pool_documents(hidden, batch_of(document), score))
    torch.testing.assert_close(*found, rtol=SIMPLE, atol=SIMPLE)

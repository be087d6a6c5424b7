"""Blended examples, and what a model loses on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from danlu.batch import Batch
from danlu.data.image import ImageEncoder
from danlu.data.load import DocumentLoader
from danlu.data.mixup import mixup
from danlu.data.modality import lay_end_to_end
from danlu.recipe.rules import contradictions
from danlu.recipe.sections import Recipe
from danlu.train import objective
from pictures import digits, pngs
from tolerances import SIMPLE


def batch(sizes, labels, seed=0) -> Batch:
    values = np.random.default_rng(seed).standard_normal((sum(sizes), 3)).astype(np.float32)
    laid = lay_end_to_end(np.full(len(values), 4), np.asarray(sizes), np.arange(len(sizes)), values,
                          np.arange(len(values)))  # fmt: skip
    return Batch(**{name: getattr(laid, name) for name in Batch.__slots__} | {"label": labels})


def by_hand(laid: Batch, sizes, alpha: float, seed: int):
    """Blend document by document, in lists."""
    draw = np.random.default_rng(seed)
    other, share = draw.permutation(len(sizes)), draw.beta(alpha, alpha, len(sizes))
    begin = np.cumsum(sizes) - sizes
    values, labels = laid.values_UK.double().numpy(), laid.label.double().numpy()
    blended = [
        share[d] * values[begin[d] + t]
        + (1 - share[d]) * values[begin[other[d]] + t % sizes[other[d]]]
        for d, size in enumerate(sizes)
        for t in range(size)
    ]
    told = [share[d] * labels[d] + (1 - share[d]) * labels[other[d]] for d in range(len(sizes))]
    return np.stack(blended), np.stack(told)


@pytest.mark.parametrize("sizes", [[4] * 8, [3, 7, 1, 4, 2, 9, 5, 1]], ids=["images", "sounds"])
def test_values_and_labels_are_blended_by_the_same_shares(sizes):
    laid = batch(sizes, torch.eye(8))
    mixed = mixup(laid, 0.4, np.random.default_rng(2))
    values, labels = by_hand(laid, sizes, 0.4, 2)
    np.testing.assert_allclose(mixed.values_UK.numpy(), values, atol=SIMPLE)
    np.testing.assert_allclose(mixed.label.numpy(), labels, atol=SIMPLE)
    assert torch.equal(mixed.ids_BT, laid.ids_BT)
    assert torch.equal(mixed.slots_U, laid.slots_U)
    assert not torch.equal(mixed.values_UK, laid.values_UK)
    again, another = (mixup(laid, 0.4, np.random.default_rng(seed)).values_UK for seed in (2, 3))
    assert torch.equal(again, mixed.values_UK)
    assert not torch.equal(another, mixed.values_UK)


def test_shares_follow_their_beta_distribution():
    n = 5000
    label = torch.stack([torch.arange(n).float(), torch.zeros(n)], 1)  # tells who was blended
    soft = mixup(batch([1] * n, label), 0.4, np.random.default_rng(0)).label[:, 0].double().numpy()
    other = np.random.default_rng(0).permutation(n)
    apart = np.abs(np.arange(n) - other) > 50  # or rounding would be seen in the share
    share = (soft - other)[apart] / (np.arange(n) - other)[apart]
    assert stats.kstest(share, stats.beta(0.4, 0.4).cdf).pvalue > 0.001


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_blend_is_the_blend_of_the_losses(smoothing):
    """By the definition of the paper, in float64: λ · loss(y) + (1 − λ) · loss(y′)."""
    sizes, classes = [2] * 6, torch.tensor([0, 1, 2, 3, 1, 0])
    laid = batch(sizes, torch.nn.functional.one_hot(classes, 4).float())
    mixed = mixup(laid, 0.7, np.random.default_rng(5))
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    own = objective.classes(smoothing)
    assert own.count(mixed) == 6
    (gradient,) = torch.autograd.grad(loss := own.total(logits, mixed), logits)

    draw = np.random.default_rng(5)
    other, share = draw.permutation(6), torch.from_numpy(draw.beta(0.7, 0.7, 6))
    exact = logits.detach().double().requires_grad_()
    logs = exact - torch.logsumexp(exact, 1, keepdim=True)

    def each(target):
        rows = -logs[torch.arange(6), target]
        return (1 - smoothing) * rows - smoothing * logs.mean(1)

    expected = (share * each(classes) + (1 - share) * each(classes[other])).sum()
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=SIMPLE)
    np.testing.assert_allclose(gradient.numpy(), expected_gradient.numpy(), atol=SIMPLE)
    assert own.right(mixed.label, mixed).all()


def test_a_loader_blends_what_it_has_laid_and_nothing_without_being_asked():
    encoder = ImageEncoder(8, 8, 1).fitted(pngs(40))
    documents, shown = encoder.encode(pngs(40)), torch.from_numpy(digits(40)[1])
    labels = torch.nn.functional.one_hot(shown, 10).float()
    plain, mixed = (
        DocumentLoader(documents, labels, 16, 2, 7, encoder.spec, mixup=alpha).load(0, 1)
        for alpha in (0.0, 0.3)
    )
    assert len(mixed) == 2
    for part, whole in zip(mixed, plain, strict=True):
        assert torch.equal(part.row_N, whole.row_N)
        assert torch.equal(whole.label, labels[whole.row_N])
        assert torch.allclose(part.label.sum(1), torch.ones(len(part.row_N)))
        assert ((part.label > 0).sum(1) <= 2).all()
        assert not torch.equal(part.values_UK, whole.values_UK)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"modality": "text"}, "is for classes of images or sounds"),
        ({"modality": "image", "task": "regress"}, "is for classes of images or sounds"),
        ({"modality": "image", "loss": "hinge"}, "have no hinge loss"),
        ({"modality": "audio", "consistency": 1.0}, "two views of a blend would differ"),
        ({"modality": "audio"}, None),
    ],
)
def test_where_nothing_can_be_blended_the_recipe_is_refused(keys, told):
    of_data = {k: v for k, v in keys.items() if k in ("modality", "task")}
    rest = {k: v for k, v in keys.items() if k not in of_data}
    recipe = Recipe.model_validate({
        "name": "x",
        "data": {"task": "classify", "label": "a", "sources": [{"path": "a.csv"}]} | of_data,
        "pretrain": {"objective": "none"},
        "finetune": {"mixup": 0.2} | rest,
    })  # fmt: skip
    found = [text for path, text in contradictions(recipe) if path == "finetune.mixup"]
    assert (told in found[0]) if told else not found

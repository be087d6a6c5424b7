"""The sampled softmax against the full one: in the limit, without bias, gradients included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from danlu.train.sampled import Proposal, sampled_softmax
from tolerances import SIMPLE


def _problem(m=6, v=12, d=5, seed=0):
    torch.manual_seed(seed)
    hidden, weight = torch.randn(m, d), torch.randn(v, d)
    return hidden, weight, torch.randn(v), torch.randint(0, v, (m,))


def _popularity(v=12, seed=0):
    return Proposal.of(np.random.default_rng(seed).integers(1, 20, v))


def _by_hand(hidden, weight, bias, target, drawn, probability):
    """Return the loss by a loop over positions and drawn ids, in float64."""
    total = 0.0
    hidden, weight, bias = (x.double().numpy() for x in (hidden, weight, bias))
    for h, t in zip(hidden, target.tolist(), strict=True):
        own = np.exp(h @ weight[t] + bias[t])
        others = sum(
            np.exp(h @ weight[j] + bias[j]) / (len(drawn) * probability[j]) for j in drawn if j != t
        )
        total -= np.log(own / (own + others))
    return total


@pytest.mark.parametrize("proposal", [Proposal.uniform(12), _popularity()], ids=["uniform", "pop"])
def test_it_is_the_formula_on_the_ids_drawn(proposal):
    hidden, weight, bias, target = _problem()
    loss = sampled_softmax(hidden, weight, bias, target, 7, np.random.default_rng(3), proposal)
    drawn = proposal.draw(7, np.random.default_rng(3)).tolist()
    probability = np.diff(proposal.cumulative_V, prepend=0)
    expected = _by_hand(hidden, weight, bias, target, drawn, probability)
    assert loss.item() == pytest.approx(expected, rel=SIMPLE)


@pytest.mark.parametrize("proposal", [None, _popularity()], ids=["uniform", "popularity"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_tends_to_the_full_softmax_with_its_gradients(proposal, with_bias):
    hidden, weight, bias, target = _problem()
    leaves = [hidden, weight, *([bias] if with_bias else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    bias = bias if with_bias else None
    full = F.cross_entropy(F.linear(hidden, weight, bias), target, reduction="sum")
    expected = torch.autograd.grad(full, leaves)
    loss = sampled_softmax(
        hidden, weight, bias, target, 400_000, np.random.default_rng(0), proposal
    )
    # The relative error of the mean of S draws is about 1/sqrt(S) times a small number.
    assert loss.item() == pytest.approx(full.item(), rel=5e-3)
    for found, wanted in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        assert (found - wanted).abs().max() < 2e-2 * wanted.abs().max()


@pytest.mark.parametrize("proposal", [None, _popularity()], ids=["uniform", "popularity"])
def test_the_denominator_is_estimated_without_bias_from_few_draws(proposal):
    """exp(loss of one position) - 1 is the sum of the others over the target's own term."""
    hidden, weight, bias, target = _problem(m=1)
    hidden = hidden / 4  # so that no single term is nearly all of the sum
    generator = np.random.default_rng(1)
    found = np.array([
        sampled_softmax(hidden, weight, bias, target, 8, generator, proposal).double().expm1()
        for _ in range(20_000)
    ])  # fmt: skip
    full = F.cross_entropy(F.linear(hidden, weight, bias).double(), target).expm1().item()
    standard_error = found.std() / np.sqrt(len(found))
    assert standard_error < 0.02 * full, "the test must be able to tell"
    assert abs(found.mean() - full) < 4 * standard_error


def test_leaving_out_the_correction_would_be_noticed():
    """Uncorrected logits under a skewed proposal tend elsewhere."""
    hidden, weight, bias, target = _problem()
    proposal = _popularity()
    full = F.cross_entropy(F.linear(hidden, weight, bias), target, reduction="sum").item()
    as_uniform = Proposal(proposal.cumulative_V, Proposal.uniform(12).log_probability_V)
    loss = sampled_softmax(
        hidden, weight, bias, target, 400_000, np.random.default_rng(0), as_uniform
    )
    assert abs(loss.item() - full) > 0.02 * full


def test_ids_of_no_weight_are_never_drawn():
    proposal = Proposal.of(np.array([0, 2, 0, 1, 0]))
    drawn = proposal.draw(10_000, np.random.default_rng(0)).numpy()
    assert np.unique(drawn).tolist() == [1, 3]
    assert (drawn == 1).mean() == pytest.approx(2 / 3, abs=0.02)
    assert np.unique(Proposal.uniform(6, first=4).draw(100, np.random.default_rng(0))).tolist() == [
        4,
        5,
    ]


def test_a_sample_of_nothing_but_the_target_costs_nothing():
    hidden, weight, bias, _ = _problem()
    target = torch.full((6,), 4)
    weight = weight.requires_grad_()
    loss = sampled_softmax(
        hidden, weight, bias, target, 5, np.random.default_rng(0), Proposal.of(np.eye(12)[4])
    )
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(weight.grad).all()


def test_large_logits_do_not_overflow():
    hidden, weight, bias, target = _problem()
    loss = sampled_softmax(
        hidden * 1000, weight, bias, target, 50, np.random.default_rng(0), Proposal.uniform(12)
    )
    assert torch.isfinite(loss)


@pytest.mark.parametrize("weight", [[0, 0], [1, -1], [1, np.nan]])
def test_weights_that_are_no_distribution_are_refused(weight):
    with pytest.raises(ValueError, match="weights must be"):
        Proposal.of(np.array(weight))


def test_no_negatives_are_refused():
    hidden, weight, bias, target = _problem()
    with pytest.raises(ValueError, match="num_negatives must be positive"):
        sampled_softmax(hidden, weight, bias, target, 0, np.random.default_rng(0))

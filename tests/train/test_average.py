"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from danlu.train.average import Average
from tolerances import SIMPLE


def test_it_is_the_exponential_average_that_its_docstring_says():
    model = nn.Linear(3, 2)
    average = Average(model, 0.9)
    expected = [p.detach().double().clone() for p in model.parameters()]
    for step in range(1, 40):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [
            decay * mean + (1 - decay) * p.detach().double()
            for mean, p in zip(expected, model.parameters(), strict=True)
        ]
    with average.applied():
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.double(), wanted, rtol=SIMPLE, atol=SIMPLE)


def test_the_weights_come_back_to_the_bit():
    model = nn.Linear(3, 2)
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    average.update(1)
    before = model.weight.detach().clone()
    with average.applied():
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


def test_without_decay_nothing_is_kept_or_swapped():
    model = nn.Linear(3, 2)
    average = Average(model, 0.0)
    average.update(1)
    before = model.weight.detach().clone()
    with average.applied():
        assert torch.equal(model.weight, before)
    assert average.state() == {}


def test_its_state_goes_round():
    model = nn.Linear(3, 2)
    first = Average(model, 0.5)
    with torch.no_grad():
        model.weight.add_(1)
    first.update(1)
    second = Average(model, 0.5)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    for name, tensor in first.state().items():
        assert torch.equal(second.state()[name], tensor)

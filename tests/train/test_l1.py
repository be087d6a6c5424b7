"""The L1 penalty: its step by hand, and where it leads against scikit-learn's lasso."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fit import Fit
from sklearn.linear_model import Lasso
from torch import nn

from danlu.recipe.training import Training
from danlu.train import optim
from tolerances import COMPOSED, SIMPLE


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_each_number_of_a_matrix_moves_towards_zero_and_stops_there(optimizer):
    torch.manual_seed(0)
    rate, l1 = 0.03, 2.0
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(5, 4)]), "frozen": nn.Linear(2, 2)})
    plain = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(5, 4)]), "frozen": nn.Linear(2, 2)})
    plain.load_state_dict(model.state_dict())
    settings = Training(optimizer=optimizer, learning_rate=rate)
    gradient = torch.randn(4, 5)
    for made, penalty in ((model, l1), (plain, 0.0)):
        made["layers"][0].weight.grad = gradient.clone()
        made["layers"][0].bias.grad = torch.ones(4)
        optim.step(optim.build(made, settings), 0.0, rate, penalty)
    wanted = plain["layers"][0].weight.detach().clone()
    for row in wanted:
        for place in range(5):
            value = float(row[place])
            row[place] = np.sign(value) * max(0.0, abs(value) - rate * l1)
    found = model["layers"][0].weight
    torch.testing.assert_close(found, wanted, rtol=SIMPLE, atol=SIMPLE)
    assert (found == 0).any()
    assert (found != 0).any()
    assert torch.equal(model["layers"][0].bias, plain["layers"][0].bias), (
        "vectors are not penalised"
    )
    assert torch.equal(model["frozen"].weight, plain["frozen"].weight), "nor what has no gradient"


@pytest.mark.parametrize("l1", [0.02, 0.3, 1.0])
def test_gradient_descent_with_it_comes_to_the_lasso(l1):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(80, 10)).astype(np.float32)
    y = (x[:, :3] @ np.array([1.0, -2.0, 0.5]) + generator.normal(0, 0.3, 80)).astype(np.float32)
    lasso = Lasso(alpha=l1 / 2, tol=1e-10)  # which makes half the mean squared error small
    lasso.fit(x.astype(np.float64), y.astype(np.float64))
    model = nn.Linear(10, 1)
    settings = Training(optimizer="sgd", learning_rate=0.05, momentum=0.0, weight_decay=0.0)
    optimizers = optim.build(model, settings)
    inputs, wanted = torch.from_numpy(x), torch.from_numpy(y)[:, None]
    for _ in range(1500):
        ((model(inputs) - wanted) ** 2).mean().backward()
        optim.step(optimizers, 0.0, 0.05, l1)
    found = model.weight.detach().numpy()[0]
    np.testing.assert_allclose(found, lasso.coef_, rtol=COMPOSED, atol=COMPOSED)
    np.testing.assert_array_equal(found == 0, lasso.coef_ == 0)
    assert (found == 0).any() or l1 < 0.1


def test_a_training_run_applies_it(tmp_path):
    plain = Fit(tmp_path / "plain").run(epochs=2)
    penalised = Fit(tmp_path / "penalised").run(epochs=2, l1=0.5)
    share = []
    for one in (plain, penalised):
        matrices = torch.cat([value.flatten() for value in one.weights.values() if value.ndim > 1])
        share.append(float((matrices == 0).float().mean()))
    assert share[1] > share[0] + 0.2

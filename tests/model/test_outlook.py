"""Heads of series, and their losses, against loops and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import mean_pinball_loss

from danlu.data.series import read
from danlu.data.series_encoder import SeriesEncoder
from danlu.model import heads
from danlu.model.backbone import BackboneConfig
from danlu.model.classic import ClassicConfig
from danlu.model.outlook import ForecastHead, RebuildHead, measurements, positions
from danlu.recipe.series import Series
from danlu.train import objective as objectives
from tolerances import COMPOSED, SIMPLE

LEVELS = (0.1, 0.5, 0.9)


def windows(horizon=5, patch=3, context=6):
    generator = np.random.default_rng(2)
    table = {
        "time": list(range(60)),
        "x": generator.normal(size=60),
        "y": generator.normal(size=60),
    }
    table["x"][[8, 20, 21]] = np.nan
    settings = Series(context=context, horizon=horizon, patch=patch, scale="global")
    panel, _ = read(table, settings)
    encoder = SeriesEncoder.fit(panel, settings)
    return encoder.windows(panel)[0], encoder.spec


def config(spec, **others):
    fields = {
        "vocab_size": spec.vocab_size, "num_layers": 1, "dim": 16, "num_heads": 2,
        "num_kv_heads": 2, "head_dim": 8, "hidden_dim": 32, "value_dims": spec.value_dims,
        "value_ids": spec.value_ids,
    }  # fmt: skip
    return BackboneConfig(**fields | others)


def test_a_forecast_is_read_out_at_the_positions_of_the_horizon():
    documents, spec = windows()
    batch = documents.lay(np.array([4, 0, 9]))
    assert positions(batch, 2).tolist() == [[2, 3], [6, 7], [10, 11]]
    model = heads.build(
        config(spec), "forecast", shape={"horizon": 5, "patch": 3, "levels": LEVELS}
    )
    torch.nn.init.normal_(model.head.output.weight)
    hidden = model.hidden(batch)
    expected = np.stack([
        np.concatenate([
            model.head.output(hidden[0, place]).detach().numpy().reshape(3, 3)
            for place in (first, first + 1)
        ])[:5]
        for first in (2, 6, 10)
    ])  # fmt: skip
    np.testing.assert_allclose(model(batch).detach().numpy(), expected, rtol=COMPOSED)


def test_an_untrained_forecast_is_the_normal_distribution():
    head = ForecastHead(16, 5, 3, LEVELS)
    documents, _ = windows()
    batch = documents.lay(np.array([0, 1]))
    said = head(torch.randn(*batch.ids_BT.shape, 16), batch)
    expected = np.broadcast_to(norm.ppf(LEVELS), (2, 5, 3))
    np.testing.assert_allclose(said.detach().numpy(), expected, rtol=SIMPLE)


def test_the_pinball_loss_is_scikit_learns_and_leaves_out_what_is_missing():
    torch.manual_seed(0)
    documents, _ = windows()
    truth, answer = torch.randn(3, 5), torch.randn(3, 5, 3, requires_grad=True)
    truth[1, 2] = torch.nan
    batch = replace(documents.lay(np.arange(3)), label=truth)
    objective = objectives.pinball(LEVELS)
    there = ~truth.isnan().numpy()
    expected = np.mean([
        mean_pinball_loss(truth.numpy()[there], answer.detach().numpy()[there][:, n], alpha=q)
        for n, q in enumerate(LEVELS)
    ])  # fmt: skip
    total = objective.total(answer, batch)
    assert objective.count(batch) == 14
    assert float(total.detach()) / 14 == pytest.approx(expected, rel=SIMPLE)
    total.backward()
    assert answer.grad.isfinite().all()
    assert (answer.grad[1, 2] == 0).all()


def test_what_a_window_holds_comes_back_out_of_its_batch():
    documents, _ = windows(horizon=0)
    rows = np.array([0, 7, 30])
    found, there = measurements(documents.lay(rows), 3, 2)
    for number, row in enumerate(rows.tolist()):
        seen = documents.values[documents.start[row] : documents.start[row] + 6]
        scaled = (seen - documents.mean[0]) / documents.deviation[0]
        np.testing.assert_array_equal(there[number], ~np.isnan(seen))
        np.testing.assert_allclose(found[number], np.nan_to_num(scaled), rtol=COMPOSED, atol=SIMPLE)


@pytest.mark.parametrize("trim", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["absolute", "squared"])
def test_rebuilding_leaves_out_the_worst_windows(kind, trim):
    torch.manual_seed(1)
    documents, _ = windows(horizon=0)
    batch = documents.lay(np.arange(8))
    rebuilt = torch.randn(8, 6, 2)
    truth, there = measurements(batch, 3, 2)
    each = []
    for n in range(8):
        gap = (rebuilt[n] - truth[n])[there[n]].numpy()
        each.append(np.mean(np.abs(gap) if kind == "absolute" else gap**2))
    kept = sorted(each)[: 6 if trim else 8]
    objective = objectives.rebuilding(3, 2, kind, trim)
    assert objective.count(batch) == len(kept)
    assert float(objective.total(rebuilt, batch)) == pytest.approx(sum(kept), rel=COMPOSED)


def test_over_an_mlp_of_one_layer_rebuilding_is_an_autoencoder_of_three():
    documents, spec = windows(horizon=0, patch=1, context=1)
    backbone = ClassicConfig(
        "mlp", spec.vocab_size, 1, 8, 8, activation="gelu", norm="none", value_dims=spec.value_dims,
        value_ids=spec.value_ids,
    )  # fmt: skip
    torch.manual_seed(3)
    model = heads.build(backbone, "detect", shape={"bottleneck": 2, "patch": 1, "variables": 2})
    assert isinstance(model.head, RebuildHead)
    batch = documents.lay(np.arange(5))
    first, head = model.backbone, model.head
    bias = first.embedding.weight[spec.first_value_id]
    hidden = torch.nn.functional.gelu(batch.values_UK @ first.values.weight[0] + bias)
    wide = torch.nn.functional.gelu(head.widen(head.narrow(hidden)))
    expected = head.output(wide).detach().numpy()[:, None]
    np.testing.assert_allclose(model(batch).detach().numpy(), expected, rtol=COMPOSED, atol=SIMPLE)

"""Continuous values on their way into a backbone and out of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from danlu.batch import Batch
from danlu.model import heads
from danlu.model.backbone import Backbone, BackboneConfig
from danlu.model.classic import Classic, ClassicConfig
from danlu.model.values import Values
from danlu.train import objective as objectives
from small import config
from tolerances import SIMPLE

FIRST, IDS, DIMS = 90, 6, 4


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=SIMPLE, atol=SIMPLE)


def values(shared):
    return {"value_dims": DIMS, "value_ids": IDS, "shared_values": shared}


def batch(seed=0, rows=2, length=8):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, FIRST + IDS, (rows, length), generator=generator)
    slots = (ids.flatten() >= FIRST).nonzero().flatten()
    return Batch(
        ids_BT=ids,
        position_BT=torch.arange(length).expand(rows, -1),
        document_BT=torch.arange(rows)[:, None].expand(-1, length),
        num_documents=rows,
        values_UK=torch.randn(len(slots), DIMS, generator=generator),
        slots_U=slots,
    )


@pytest.mark.parametrize("shared", [True, False])
def test_each_value_meets_the_matrix_of_its_id(shared):
    torch.manual_seed(1)
    layer = Values(DIMS, 3, FIRST, IDS, shared).double()
    x = torch.randn(40, DIMS, dtype=torch.float64, requires_grad=True)
    id_U = torch.randint(FIRST, FIRST + IDS - 1, (40,))  # one id never occurs
    out = layer(x, id_U)
    weight = layer.weight.detach().clone().requires_grad_()
    expected = torch.stack([
        v @ weight[0 if shared else int(i) - FIRST] for v, i in zip(x, id_U, strict=True)
    ])  # fmt: skip
    close(out, expected)
    (out**2).sum().backward()
    own, x.grad = x.grad, None
    (expected**2).sum().backward()
    close(own, x.grad)
    close(layer.weight.grad, weight.grad)


@pytest.mark.parametrize("kind", ["transformer", "mlp", "lstm"])
def test_a_position_is_its_id_and_its_value(kind):
    torch.manual_seed(2)
    if kind == "transformer":
        model = Backbone(config(**values(shared=False)))
    else:
        model = Classic(ClassicConfig(kind, 96, 2, 32, 16, **values(shared=False)))
    one = batch()
    x = model.embed(one.ids_BT, one.values_UK, one.slots_U).flatten(0, 1)
    for place, id_ in enumerate(one.ids_BT.flatten().tolist()):
        expected = model.embedding.weight[id_].clone()
        where = (one.slots_U == place).nonzero().flatten()
        if len(where):
            expected += one.values_UK[where[0]] @ model.values.weight[id_ - FIRST]
        close(x[place], expected)


def test_a_linear_model_of_values_is_one_matrix():
    torch.manual_seed(3)
    one = ClassicConfig("linear", 5, 1, DIMS, DIMS, value_dims=DIMS, value_ids=1)
    model = heads.build(one, "regress", num_outputs=1)
    nn.init.normal_(model.head.output.weight)
    x = torch.randn(7, DIMS)
    ids = torch.full((1, 7), 4)
    whole = Batch(ids, torch.zeros_like(ids), torch.arange(7)[None], 7,
                  values_UK=x, slots_U=torch.arange(7))  # fmt: skip
    close(model(whole), x @ model.head.output.weight.T + model.head.output.bias)
    assert not model.backbone.embedding.weight.requires_grad


def test_an_mlp_equals_torch_layers():
    torch.manual_seed(4)
    one = ClassicConfig("mlp", 5, 2, 16, 16, norm="none", value_dims=DIMS, value_ids=1)
    model = heads.build(one, "classify", num_outputs=3)
    nn.init.normal_(model.head.output.weight)
    x = torch.randn(7, DIMS)
    ids = torch.full((1, 7), 4)
    whole = Batch(ids, torch.zeros_like(ids), torch.arange(7)[None], 7,
                  values_UK=x, slots_U=torch.arange(7))  # fmt: skip
    first, second, last = nn.Linear(DIMS, 16), nn.Linear(16, 16), nn.Linear(16, 3)
    with torch.no_grad():
        first.weight.copy_(model.backbone.values.weight[0].T)
        first.bias.copy_(model.backbone.embedding.weight[4])
        dense = model.backbone.layers[1].matrix
        second.load_state_dict(dense.state_dict())
        last.load_state_dict(model.head.output.state_dict())
    close(model(whole), nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)(x))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("tokens", [True, False])
def test_what_was_hidden_is_scored_by_hand(shared, tokens):
    torch.manual_seed(5)
    model = heads.build(config(**values(shared)), "masked")
    nn.init.normal_(model.head.values.weight, std=0.3)
    one = batch(rows=3, length=16)
    weight = torch.zeros(one.ids_BT.shape)
    if tokens:
        weight[(one.ids_BT < FIRST) & (torch.rand(one.ids_BT.shape) < 0.5)] = 1.0
    one = replace(one, target_BT=one.ids_BT, weight_BT=weight, hidden_UK=one.values_UK[::2],
                  hidden_slots_U=one.slots_U[::2], values_UK=one.values_UK[1::2],
                  slots_U=one.slots_U[1::2])  # fmt: skip
    objective = objectives.filling()
    loss = objective.total(model(one), one)
    hidden = model.hidden(one).flatten(0, 1)
    expected = torch.zeros(())
    logits = model.head.tokens.transform(hidden) @ model.backbone.embedding.weight.T
    logits = logits + model.head.tokens.bias
    for place in weight.flatten().nonzero().flatten():
        expected = expected - logits[place].log_softmax(-1)[one.ids_BT.flatten()[place]]
    for slot, value in zip(one.hidden_slots_U, one.hidden_UK, strict=True):
        group = 0 if shared else int(one.ids_BT.flatten()[slot]) - FIRST
        said = hidden[slot] @ model.head.values.weight[group]
        expected = expected + 0.5 * ((said - value) ** 2).mean()
    close(loss, expected)
    assert objective.count(one) == int(weight.sum()) + len(one.hidden_UK)
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "head" in n or tokens)


def test_documents_with_values_do_not_see_each_other():
    torch.manual_seed(6)
    model = heads.build(config(**values(shared=True)), "classify", num_outputs=3)
    nn.init.normal_(model.head.output.weight)
    one = batch(rows=4)
    alone = []
    for row in range(4):
        inside = (one.slots_U // 8) == row
        alone.append(model(Batch(
            one.ids_BT[row : row + 1], one.position_BT[:1], torch.zeros(1, 8, dtype=torch.long), 1,
            values_UK=one.values_UK[inside], slots_U=one.slots_U[inside] - 8 * row,
        )))  # fmt: skip
    close(model(one), torch.cat(alone))


def test_the_width_of_a_linear_model_is_that_of_its_values():
    with pytest.raises(ValueError, match="width"):
        Classic(ClassicConfig("linear", 5, 1, 8, 8, value_dims=4, value_ids=1))


def test_an_untrained_filler_says_the_mean():
    model = heads.build(BackboneConfig(**{**config().to_dict(), **values(shared=True)}), "masked")
    one = batch()
    one = replace(one, target_BT=one.ids_BT, weight_BT=torch.zeros(one.ids_BT.shape),
                  hidden_UK=one.values_UK, hidden_slots_U=one.slots_U)  # fmt: skip
    assert np.allclose(model(one).values_UK.detach(), 0)

"""Values of several kinds in one batch: cells of a few numbers, patches of many."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from danlu.batch import ValueKind
from danlu.data.hide import for_masked
from danlu.model import flops, heads
from danlu.model.backbone import BackboneConfig
from danlu.model.values import SeveralValues, Values, matrices
from danlu.train import objective as objectives
from records import encoder, records
from small import config
from tolerances import SIMPLE

KINDS = (ValueKind(3, 2, shared=False), ValueKind(4, 5, shared=True))
FIRST = 10


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=SIMPLE, atol=SIMPLE)


def ours(spec):
    """Return a small backbone for what a spec says."""
    return replace(
        config(),
        vocab_size=spec.vocab_size,
        value_dims=spec.value_dims,
        value_ids=spec.value_ids,
        shared_values=spec.shared,
        value_kinds=spec.value_kinds,
    )


def by_hand(layer, x, id_U):
    """Multiply value by value."""
    of_cells, of_patches = (part.weight for part in layer.parts)
    rows = []
    for value, id_ in zip(x, id_U.tolist(), strict=True):
        place = id_ - FIRST
        weight = of_cells[place] if place < 3 else of_patches[0]
        out = value[: weight.shape[0]] @ weight
        rows.append(torch.cat([out, torch.zeros(layer.num_out - len(out), dtype=out.dtype)]))
    return torch.stack(rows)


@pytest.mark.parametrize("out", [False, True])
def test_each_value_meets_the_matrix_of_its_kind(out):
    torch.manual_seed(0)
    layer = matrices(KINDS, 6, FIRST, out=out).double()
    x = torch.randn(50, 6 if out else 5, dtype=torch.float64, requires_grad=True)
    id_U = torch.randint(FIRST, FIRST + 7, (50,))
    found = layer(x, id_U)
    close(found, by_hand(layer, x, id_U))
    (found**2).sum().backward()
    own = [x.grad.clone(), *(part.weight.grad.clone() for part in layer.parts)]
    for tensor in (x, *layer.parameters()):
        tensor.grad = None
    (by_hand(layer, x, id_U) ** 2).sum().backward()
    for mine, theirs in zip(own, [x.grad, *(p.weight.grad for p in layer.parts)], strict=True):
        close(mine, theirs)


def test_a_kind_that_a_batch_lacks_does_no_harm():
    layer = matrices(KINDS, 6, FIRST)
    for ids in ([], [FIRST], [FIRST + 6] * 3):
        assert layer(torch.ones(len(ids), 5), torch.tensor(ids, dtype=torch.long)).shape == (
            len(ids), 6,
        )  # fmt: skip


def test_one_kind_is_what_it_was():
    torch.manual_seed(0)
    one = matrices(KINDS[:1], 6, FIRST)
    assert isinstance(one, Values)
    assert list(one.state_dict()) == ["weight"]
    torch.manual_seed(0)
    assert torch.equal(one.weight, Values(2, 6, FIRST, 3, shared=False).weight)


def test_filling_is_scored_by_hand_over_each_value_s_own_numbers():
    own, train = encoder(), records()
    spec = own.spec
    torch.manual_seed(1)
    model = heads.build(ours(spec), "masked")
    assert isinstance(model.head.values, SeveralValues)
    for weight in model.head.values.parameters():
        nn.init.normal_(weight, std=0.3)
    laid = own.encode(train).lay(np.arange(12))
    batch = for_masked(laid, 0.5, spec, np.random.default_rng(0))
    loss = objectives.filling().total(model(batch), batch)
    hidden = model.hidden(batch).flatten(0, 1)
    logits = model.head.tokens.transform(hidden) @ model.backbone.embedding.weight.T
    logits = logits + model.head.tokens.bias
    expected = torch.zeros(())
    for place in batch.weight_BT.flatten().nonzero().flatten():
        expected = expected - logits[place].log_softmax(-1)[batch.target_BT.flatten()[place]]
    of_cells, of_patches = (part.weight for part in model.head.values.parts)
    seen = set()
    for slot, value in zip(batch.hidden_slots_U, batch.hidden_UK, strict=True):
        place = int(batch.target_BT.flatten()[slot]) - spec.first_value_id
        weight = of_cells[place] if place < len(of_cells) else of_patches[0]
        error = hidden[slot] @ weight - value[: weight.shape[1]]
        expected = expected + 0.5 * (error**2).mean()
        seen.add(weight.shape[1])
    assert len(seen) == 2
    close(loss, expected)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def by_kind(own, batch, slots_U):
    """Return the multiplications of the values that stood at some positions."""
    ids = batch.ids_BT.flatten()[slots_U]
    cells = int((ids == own.spec.first_value_id).sum())
    assert 0 < cells < len(ids)
    return 32 * (cells * own.cells.spec.value_dims + (len(ids) - cells) * 16)


def test_multiplications_are_counted_by_kind():
    own = encoder()
    batch = own.encode(records()).lay(np.arange(9))
    model = heads.build(ours(own.spec), "classify", num_outputs=2)
    without = replace(batch, values_UK=None, slots_U=None)
    taken_in = flops.useful(model, batch) - flops.useful(model, without)
    assert taken_in == 6 * by_kind(own, batch, batch.slots_U)


def test_multiplications_of_filling_are_counted_by_kind():
    own = encoder()
    plain = own.encode(records()).lay(np.arange(9))
    model = heads.build(ours(own.spec), "masked")
    batch = for_masked(plain, 0.5, own.spec, np.random.default_rng(0))
    none = batch.hidden_slots_U[:0]
    given = flops.useful(model, batch) - flops.useful(model, replace(batch, hidden_slots_U=none))
    assert given == 6 * by_kind(own, plain, batch.hidden_slots_U)


def test_the_configuration_survives_json():
    made = ours(encoder().spec)
    again = heads.read_config(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert isinstance(again, BackboneConfig)
    assert again.value_kinds[1].shared


def test_a_configuration_that_contradicts_itself_is_refused():
    fields = config().to_dict()
    with pytest.raises(ValueError, match="value_ids in all"):
        BackboneConfig(**fields | {"value_kinds": KINDS, "value_ids": 6, "value_dims": 5})
    with pytest.raises(ValueError, match="the most numbers"):
        BackboneConfig(**fields | {"value_kinds": KINDS, "value_ids": 7, "value_dims": 4})


def test_values_are_drawn_as_large_as_the_ids_whatever_their_length():
    torch.manual_seed(3)
    model = heads.build(ours(encoder().spec), "classify", num_outputs=2)
    for part in model.backbone.values.parts:
        expected = 0.02 * part.weight.shape[1] ** -0.5
        assert float(part.weight.detach().std()) == pytest.approx(expected, rel=0.2)


def test_records_do_not_see_each_other():
    own = encoder()
    documents = own.encode(records())
    torch.manual_seed(2)
    model = heads.build(ours(own.spec), "classify", num_outputs=3).eval()
    nn.init.normal_(model.head.output.weight)
    rows = np.arange(20)
    together = model(documents.lay(rows))
    alone = torch.cat([model(documents.lay(rows[n : n + 1])) for n in rows])
    close(together, alone)

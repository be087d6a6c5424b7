"""Which ids are no candidates, against a loop over documents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from danlu.data.events import EventsEncoder
from danlu.data.hide import for_causal
from danlu.train.seen import exclude_seen


@pytest.mark.parametrize("seed", range(5))
def test_what_stands_before_in_the_same_document_is_left_out(seed):
    generator = np.random.default_rng(seed)
    histories = [generator.choice(list("abcdef"), n).tolist() for n in (5, 0, 1, 9, 3)]
    encoder = EventsEncoder.fit(histories)
    documents = encoder.encode(histories)
    batch = for_causal(documents.lay(np.arange(len(histories))))
    slots = batch.weight_BT.flatten().nonzero().squeeze(1)
    target = batch.target_BT.flatten()[slots]
    logit = torch.randn(len(slots), encoder.spec.vocab_size, generator=torch.manual_seed(seed))
    found = exclude_seen(logit, batch.ids_BT, batch.position_BT, slots, target)
    row = 0
    for history in histories:
        ids = [2, *(4 + encoder.items.index(name) for name in history)]
        for place in range(len(history)):
            out = set(ids[: place + 1]) - {ids[place + 1]}
            for id_ in range(encoder.spec.vocab_size):
                expected = -torch.inf if id_ in out else logit[row, id_]
                assert found[row, id_] == expected
            row += 1
    assert row == len(slots) == 18


def test_the_loss_and_its_gradient_stay_finite():
    """All other items seen: the last is certain, and teaches nothing."""
    ids, position = torch.tensor([[2, 4, 5, 6, 7]]), torch.arange(5)[None]
    logit = torch.randn(1, 8, requires_grad=True)
    found = exclude_seen(logit, ids, position, torch.tensor([3]), torch.tensor([7]))
    loss = F.cross_entropy(found[:, 4:], torch.tensor([3]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logit.grad, torch.zeros_like(logit))

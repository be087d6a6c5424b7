"""What a recommender makes small, against loops over histories; gradients included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from danlu.data.events import EventsEncoder
from danlu.data.hide import for_causal
from danlu.data.modality import NUM_SPECIAL
from danlu.model import heads
from danlu.model.classic import ClassicConfig
from danlu.train.next_item import next_item
from danlu.train.sampled import Proposal
from tolerances import COMPOSED

HISTORIES = [list("abcab"), [], list("d"), list("fedcba"), list("aa")]


@pytest.fixture
def parts():
    encoder = EventsEncoder.fit(HISTORIES)
    torch.manual_seed(0)
    config = ClassicConfig("gru", encoder.spec.vocab_size, num_layers=1, dim=8, hidden_dim=8,
                           causal=True)  # fmt: skip
    model = heads.build(config, "rank")
    torch.nn.init.normal_(model.head.bias)
    batch = for_causal(encoder.encode(HISTORIES).lay(np.arange(len(HISTORIES))))
    return encoder, model, batch


def by_hand(encoder, model, exclude):
    """Return the loss, one history and one position at a time, in float64."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for history in HISTORIES:
        ids = [2, *(NUM_SPECIAL + encoder.items.index(name) for name in history)]
        one = torch.tensor([ids])
        hidden = model.backbone(one, torch.arange(len(ids))[None], torch.zeros_like(one))[0]
        score = (hidden @ model.backbone.embedding.weight.T + model.head.bias).double()
        for place in range(len(ids) - 1):
            target = ids[place + 1]
            seen = set(ids[: place + 1]) - {target} if exclude else set()
            left = [n for n in range(NUM_SPECIAL, score.shape[1]) if n not in seen]
            total = total + torch.logsumexp(score[place, left], 0) - score[place, target]
            count += 1
    return total, count


@pytest.mark.parametrize("exclude", [True, False])
def test_it_is_the_cross_entropy_of_the_next_item_among_the_candidates(parts, exclude):
    encoder, model, batch = parts
    expected, count = by_hand(encoder, model, exclude)
    objective = next_item(NUM_SPECIAL, exclude)
    found = objective.total(model(batch), batch)
    assert objective.count(batch) == count == 14
    assert found.item() == pytest.approx(expected.item(), rel=COMPOSED)
    parameters = list(model.parameters())
    pairs = zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    )
    for mine, theirs in pairs:
        assert (mine - theirs).abs().max() <= COMPOSED * theirs.abs().max()


def test_no_item_is_ever_a_special_id(parts):
    _, model, batch = parts
    found = next_item(NUM_SPECIAL).total(model(batch), batch)
    model.head.bias.data[:NUM_SPECIAL] += 50
    assert torch.equal(next_item(NUM_SPECIAL).total(model(batch), batch), found)


def test_a_sample_is_drawn_anew_at_each_seed_and_tends_to_the_whole(parts):
    encoder, model, batch = parts
    weight = np.append(np.zeros(NUM_SPECIAL), encoder.count_I)
    few = next_item(NUM_SPECIAL, negatives=3, proposal=Proposal.of(weight))
    scores = model(batch)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(few.total(scores, batch).item())
    assert drawn[0] == drawn[1] != drawn[2]
    many = next_item(NUM_SPECIAL, negatives=200_000, proposal=Proposal.of(weight))
    whole = next_item(NUM_SPECIAL, exclude=False)
    assert many.total(scores, batch).item() == pytest.approx(
        whole.total(scores, batch).item(), rel=5e-3
    )

"""A recommender's scores: those of each history alone, whatever stands beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from danlu.data.events import EventsEncoder
from danlu.data.modality import NUM_SPECIAL
from danlu.evaluate.ranking import Questions
from danlu.evaluate.recommend import scorer, surprise
from danlu.model import heads
from danlu.model.backbone import BackboneConfig
from danlu.model.classic import ClassicConfig
from tolerances import COMPOSED

HISTORIES = [list("abcab"), [], list("d"), list("fedcbafed"), list("zz"), list("ab")]


def _model(kind, vocab_size):
    torch.manual_seed(1)
    if kind == "gru":
        config = ClassicConfig("gru", vocab_size, num_layers=1, dim=16, hidden_dim=16, causal=True)
    else:
        config = BackboneConfig(
            vocab_size=vocab_size, num_layers=2, dim=16, num_heads=1, num_kv_heads=1, head_dim=16,
            hidden_dim=16, causal=True,
        )  # fmt: skip
    model = heads.build(config, "rank", dropout=0.5)
    torch.nn.init.normal_(model.head.bias)
    return model


@pytest.mark.parametrize("kind", ["gru", "transformer"])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_score_is_the_one_after_the_last_item_of_its_history(kind, batch_size):
    encoder = EventsEncoder.fit([list("abcdef")], max_length=6)
    model = _model(kind, encoder.spec.vocab_size)
    documents = encoder.encode(HISTORIES)
    rows = np.array([3, 0, 1, 5, 2, 4])
    found = scorer(model, documents, batch_size, torch.device("cpu"))(rows)
    assert found.shape == (6, 6)
    model.eval()
    for row, own in zip(rows, found, strict=True):
        known = [encoder.items.index(name) for name in HISTORIES[row] if name in encoder.items]
        ids = torch.tensor([[2, *(NUM_SPECIAL + n for n in known[-5:])]])
        with torch.inference_mode():
            hidden = model.backbone(ids, torch.arange(ids.shape[1])[None], torch.zeros_like(ids))
            expected = hidden[0, -1] @ model.backbone.embedding.weight.T + model.head.bias
        np.testing.assert_allclose(own, expected[NUM_SPECIAL:].numpy(), rtol=0, atol=COMPOSED)


@pytest.mark.parametrize("exclude", [True, False])
def test_surprise_is_the_cross_entropy_over_the_candidates(exclude):
    generator = np.random.default_rng(0)
    histories, truths = [[0, 1], [], [2], [3, 4]], [[2], [0, 3], [2], []]
    questions = Questions.of(np.arange(4), histories, truths, np.zeros(4, np.int64), 5)
    score = generator.normal(size=(3, 5)).astype(np.float32)
    rows = np.array([2, 0, 1])
    total, count = surprise(score, questions, rows, exclude)
    expected = 0.0
    for own, row in zip(score.astype(float), rows, strict=True):
        out = set(histories[row]) - set(truths[row]) if exclude else set()
        left = [n for n in range(5) if n not in out]
        expected += sum(np.log(np.exp(own[left]).sum()) - own[item] for item in truths[row])
    assert count == 4
    assert total == pytest.approx(expected, rel=1e-12)

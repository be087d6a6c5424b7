"""Language-model metrics against a computation by hand, document by document."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from danlu.data.hide import for_causal, for_masked
from danlu.data.load import in_order
from danlu.data.modality import BEGIN_ID, END_ID, Spec
from danlu.data.text import Documents
from danlu.evaluate.intervals import Bootstrap
from danlu.evaluate.tokens import measure
from danlu.model import heads
from danlu.model.backbone import BackboneConfig

VOCAB = 40
TEXTS = ["short", "a little longer 文本", "the longest of the three texts 三"]


def _documents(sizes=(4, 9, 20), seed=0):
    generator = np.random.default_rng(seed)
    return [
        np.asarray([BEGIN_ID, *generator.integers(4, VOCAB, size), END_ID], np.int32)
        for size in sizes
    ]


def _model(kind):
    torch.manual_seed(3)
    config = BackboneConfig(
        vocab_size=VOCAB, num_layers=1, dim=16, num_heads=2, num_kv_heads=1, head_dim=8,
        hidden_dim=32, causal=kind == "causal",
    )  # fmt: skip
    model = heads.build(config, kind)
    with torch.no_grad():
        model.backbone.embedding.weight.normal_(std=0.5)
    return model


def _batches(kind, documents, batch_size=2):
    generator = np.random.default_rng(1)
    return [
        for_causal(batch) if kind == "causal" else for_masked(batch, 0.3, Spec(VOCAB), generator)
        for batch in in_order(Documents.of(documents), batch_size)
    ]


def _train_ids():
    return np.asarray([5] * 30 + [6] * 10 + list(range(4, VOCAB)), np.int32)


def _measure(kind, documents=None, **changes):
    documents = documents or _documents()
    changes = {"text_N": np.arange(len(documents))} | changes
    settings = {
        "train_ids": _train_ids(), "name": "ours", "objective": kind,
        "seen_bytes": np.asarray([len(text.encode()) for text in TEXTS]),
        "vocab_size": VOCAB, "device": torch.device("cpu"), "resamples": 100, "seed": 0,
    } | changes  # fmt: skip
    rows = measure(_model(kind), _batches(kind, documents), **settings)
    return {(row.model, row.metric): row for row in rows}


def _by_hand(kind):
    """Return each document's losses, unigram losses and hits, in the order of the texts."""
    model, found = _model(kind).eval(), [None] * len(TEXTS)
    counts = np.bincount(_train_ids(), minlength=VOCAB) + 1
    for batch in _batches(kind, _documents()):
        with torch.no_grad():
            hidden = model.head.transform(model.hidden(batch))
            everywhere = hidden @ model.backbone.embedding.weight.T
            if model.head.bias is not None:
                everywhere = everywhere + model.head.bias
        chance = torch.log_softmax(everywhere.double(), -1)
        for number, row in enumerate(batch.row_N.tolist()):
            own = (batch.document_BT == number) & (batch.weight_BT != 0)
            places = [tuple(place) for place in own.nonzero().tolist()]
            targets = [int(batch.target_BT[place]) for place in places]
            both = list(zip(places, targets, strict=True))
            found[row] = (
                [-float(chance[(*place, goal)]) for place, goal in both],
                [-np.log(counts[goal] / counts.sum()) for goal in targets],
                [int(everywhere[place].argmax()) == goal for place, goal in both],
            )
    return found


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_loss_and_accuracy_agree_with_a_computation_by_hand(kind):
    rows, hand = _measure(kind), _by_hand(kind)
    losses = [loss for document in hand for loss in document[0]]
    unigram = [loss for document in hand for loss in document[1]]
    hits = [hit for document in hand for hit in document[2]]
    accuracy = "next_token_accuracy" if kind == "causal" else "masked_token_accuracy"
    assert rows["ours", "loss"].value == pytest.approx(np.mean(losses), abs=1e-5)
    assert rows["unigram", "loss"].value == pytest.approx(np.mean(unigram), abs=1e-9)
    assert rows["ours", accuracy].value == pytest.approx(np.mean(hits))
    difference = np.mean(losses) - np.mean(unigram)
    assert rows["ours", "loss - unigram"].value == pytest.approx(difference, abs=1e-5)
    assert all(row.n == len(losses) for row in rows.values())


def test_every_token_but_the_first_is_a_causal_target():
    rows = _measure("causal")
    assert rows["ours", "loss"].n == sum(len(document) - 1 for document in _documents())


def test_perplexity_and_bits_per_byte_follow_from_the_loss():
    rows, hand = _measure("causal"), _by_hand("causal")
    for who, part in (("ours", 0), ("unigram", 1)):
        losses = [loss for document in hand for loss in document[part]]
        size = sum(len(text.encode()) for text in TEXTS)
        perplexity = rows[who, "perplexity"]
        assert perplexity.value == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
        bits = rows[who, "bits_per_byte"]
        assert bits.value == pytest.approx(sum(losses) / np.log(2) / size, rel=1e-5)
        assert bits.unit == "bits/byte"


def test_a_masked_model_has_no_perplexity():
    assert not {metric for _, metric in _measure("masked")} & {"perplexity", "bits_per_byte"}


def test_intervals_come_from_resampling_documents():
    documents = _documents([5] * 20, seed=2)
    rows = _measure("causal", documents, seen_bytes=np.full(20, 4))
    for row in rows.values():
        assert row.low < row.value < row.high
        assert "over texts" in row.interval
    again = _measure("causal", documents, seen_bytes=np.full(20, 4))
    assert again == rows
    assert _measure("causal", documents, seen_bytes=np.full(20, 4), seed=1) != rows


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_an_interval_is_that_of_losses_summed_document_by_document(kind):
    rows, hand = _measure(kind), _by_hand(kind)
    loss = np.asarray([sum(document[0]) for document in hand])
    count = np.asarray([len(document[0]) for document in hand])
    draws = [loss[r].sum() / count[r].sum() for r in Bootstrap(len(TEXTS), 100, 0).rows]
    found = rows["ours", "loss"]
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-5)


def test_the_order_of_batches_changes_nothing():
    documents = _documents()
    seen = np.asarray([len(text.encode()) for text in TEXTS])
    settings = ("ours", "causal", VOCAB, torch.device("cpu"), 100, 0)
    model, batches = _model("causal"), _batches("causal", documents, 1)
    forward = measure(model, batches, _train_ids(), seen, np.arange(3), *settings)
    backward = measure(model, batches[::-1], _train_ids(), seen, np.arange(3), *settings)
    assert [row.value for row in forward] == pytest.approx([row.value for row in backward])


@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_pieces_of_one_text_are_resampled_together(kind):
    # The second and third document are pieces of one text.
    rows, hand = _measure(kind, text_N=np.array([0, 1, 1])), _by_hand(kind)
    apart = _measure(kind)
    texts = [hand[0], tuple(a + b for a, b in zip(hand[1], hand[2], strict=True))]
    loss = np.asarray([sum(text[0]) for text in texts])
    count = np.asarray([len(text[0]) for text in texts])
    draws = [loss[r].sum() / count[r].sum() for r in Bootstrap(2, 100, 0).rows]
    found = rows["ours", "loss"]
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=1e-5)
    for key, row in rows.items():  # how texts are cut changes no value, only its interval
        assert row.value == pytest.approx(apart[key].value)
        assert row.n == apart[key].n


def test_an_unseen_token_has_a_finite_unigram_loss():
    documents = [np.asarray([BEGIN_ID, 7, 8, 9, END_ID], np.int32)] * 3
    rows = _measure("causal", documents, train_ids=np.full(100, 5, np.int32))
    assert rows["unigram", "loss"].value == pytest.approx(np.log(100 + VOCAB), rel=1e-6)

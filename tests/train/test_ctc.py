"""Connectionist temporal classification against the sum over every way to write a transcript."""

import itertools
from dataclasses import replace

import pytest
import torch

from danlu.batch import PADDING, Batch
from danlu.model.classic import ClassicConfig
from danlu.model.heads import build
from danlu.model.transcript import Heard, TranscriptHead
from danlu.train.objective import transcripts
from tolerances import COMPOSED, SIMPLE

LENGTHS, LABELS = [5, 3, 4, 6], [[1, 2], [3], [2, 2], [1, 3, 1]]


def written(path):
    return [label for label, _ in itertools.groupby(path) if label]


def slow(logits_LC, labels):
    """Sum the probabilities of all paths that read as the labels, one by one."""
    log_LC = logits_LC.double().log_softmax(-1)
    paths = itertools.product(range(log_LC.shape[1]), repeat=len(log_LC))
    ways = [path for path in paths if written(path) == labels]
    rows = torch.arange(len(log_LC))
    return -torch.stack([log_LC[rows, list(path)].sum() for path in ways]).logsumexp(0)


def labelled(labels):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(one) for one in labels], batch_first=True)


def batch_of(lengths, labels, seed=0):
    """Documents end to end in one row, with padding behind."""
    total = sum(lengths)
    ids = torch.zeros(1, total + 7, dtype=torch.int64)
    ids[0, :total] = torch.randint(4, 9, (total,), generator=torch.Generator().manual_seed(seed))
    document, position = torch.full_like(ids, PADDING), torch.zeros_like(ids)
    document[0, :total] = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    position[0, :total] = torch.cat([torch.arange(length) for length in lengths])
    return Batch(ids, position, document, len(lengths), label=labelled(labels))


def test_the_loss_and_its_gradient_are_those_of_all_paths_one_by_one():
    torch.manual_seed(1)
    logits = (2 * torch.randn(4, 6, 4)).requires_grad_()
    batch, objective = batch_of(LENGTHS, LABELS), transcripts()
    found = objective.total(Heard(logits, torch.tensor(LENGTHS)), batch)
    wanted = sum(
        slow(logits[n, :length], labels)
        for n, (length, labels) in enumerate(zip(LENGTHS, LABELS, strict=True))
    )
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=SIMPLE)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=SIMPLE, atol=SIMPLE)
    assert (ours[1, 3:] == 0).all()  # beyond a document's end
    assert objective.count(batch) == 8
    assert objective.unit == "nats/character"


def model():
    torch.manual_seed(2)
    config = ClassicConfig(
        kind="lstm", vocab_size=9, num_layers=1, dim=6, hidden_dim=5, window=3,
        activation="relu", causal=False,
    )  # fmt: skip
    made = build(config, "transcribe", 3)
    for parameter in made.head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def test_the_head_lays_documents_side_by_side_and_mixes_none():
    made, batch = model(), batch_of(LENGTHS, LABELS)
    heard = made(batch)
    assert heard.logits_NLC.shape == (4, 6, 4)
    assert heard.length_N.tolist() == LENGTHS
    start = 0
    for number, length in enumerate(LENGTHS):
        here = slice(start, start + length)
        alone = Batch(batch.ids_BT[:, here], batch.position_BT[:, here],
                      torch.zeros(1, length, dtype=torch.int64), 1)  # fmt: skip
        torch.testing.assert_close(
            made(alone).logits_NLC[0], heard.logits_NLC[number, :length], rtol=SIMPLE, atol=SIMPLE
        )
        assert (heard.logits_NLC[number, length:] == 0).all()
        start += length


def test_a_batch_in_parts_has_the_gradient_of_the_whole():
    made, objective = model(), transcripts()
    whole = batch_of(LENGTHS, LABELS)
    parts, start = [], 0
    for rows in (slice(0, 1), slice(1, 4)):
        end = start + sum(LENGTHS[rows])
        owner = whole.document_BT[:, start:end] - rows.start
        parts.append(
            Batch(whole.ids_BT[:, start:end], whole.position_BT[:, start:end], owner,
                  rows.stop - rows.start, label=whole.label[rows])
        )  # fmt: skip
        start = end
    assert sum(map(objective.count, parts)) == objective.count(whole)
    weights = list(made.parameters())
    one = torch.autograd.grad(objective.total(made(whole), whole), weights, allow_unused=True)
    other = torch.autograd.grad(
        sum(objective.total(made(part), part) for part in parts), weights, allow_unused=True
    )
    for a, b in zip(one, other, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=COMPOSED, atol=COMPOSED)


def test_an_untrained_head_finds_everything_equally_likely():
    head = TranscriptHead(6, 3)
    batch = replace(batch_of(LENGTHS, LABELS))
    heard = head(torch.randn(*batch.ids_BT.shape, 6), batch)
    assert (heard.logits_NLC == 0).all()


def test_a_transcript_that_does_not_fit_has_an_infinite_loss():
    batch = batch_of([2], [[1, 1]])
    loss = transcripts().total(Heard(torch.zeros(1, 2, 4), torch.tensor([2])), batch)
    assert torch.isinf(loss)

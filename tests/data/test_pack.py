"""Packing: nothing lost, nothing split, little empty, and a loss that does not notice."""

from __future__ import annotations

import math
import time
from bisect import insort

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.batch import PADDING, Batch
from danlu.data.load import PackedLoader, for_causal, lay
from danlu.data.modality import BEGIN_ID, PAD_ID, Spec
from danlu.data.pack import best_fit
from danlu.train import objective as objectives
from small import VOCAB, computing, made_up, model, same
from tolerances import COMPOSED, SIMPLE

SIZES = st.integers(1, 48).flatmap(
    lambda length: st.tuples(
        st.just(length), st.lists(st.integers(1, length), min_size=1, max_size=60)
    )
)


def levels(rows, sizes):
    return [int(sizes[rows[number]].sum()) for number in range(len(rows))]


def best_fit_by_search(sizes, length):
    """Best-fit decreasing, looking through all rows for each document."""
    free = []  # ascending
    for size in sorted(sizes, reverse=True):
        fitting = [space for space in free if space >= size]
        if fitting:
            free.remove(fitting[0])
        insort(free, (fitting[0] if fitting else length) - size)
    return [length - space for space in free]


def first_fit(sizes, length):
    """Count the rows if each document goes, as it comes, into the first one with room."""
    free = np.zeros(len(sizes), np.int64)
    count = 0
    for size in sizes:
        fitting = np.flatnonzero(free[:count] >= size)
        row = fitting[0] if len(fitting) else count
        if row == count:
            free[row], count = length, count + 1
        free[row] -= size
    return count


@given(SIZES)
@settings(deadline=None, max_examples=200)
def test_every_document_has_a_place_once_and_no_row_overflows(given_sizes):
    length, sizes = given_sizes[0], np.array(given_sizes[1])
    rows = best_fit(sizes, length)
    assert sorted(rows.documents.tolist()) == list(range(len(sizes)))
    assert rows.offsets[0] == 0
    assert rows.offsets[-1] == len(sizes)
    assert all(1 <= level <= length for level in levels(rows, sizes))


@given(SIZES)
@settings(deadline=None, max_examples=200)
def test_rows_are_as_full_as_those_of_best_fit_by_search(given_sizes):
    length, sizes = given_sizes[0], np.array(given_sizes[1])
    found = sorted(levels(best_fit(sizes, length), sizes))
    assert found == sorted(best_fit_by_search(sizes.tolist(), length))
    # Two rows that fit into one would not have been opened both.
    assert len(found) == 1 or found[0] + found[1] > length
    assert len(found) >= math.ceil(sizes.sum() / length)


@pytest.mark.parametrize("length", [128, 512])
def test_hardly_more_rows_are_taken_than_the_tokens_ask_for(length):
    generator = np.random.default_rng(length)
    sizes = generator.lognormal(math.log(length / 6), 0.9, 5000).astype(np.int64).clip(2, length)
    rows, least = best_fit(sizes, length), math.ceil(sizes.sum() / length)
    assert least <= len(rows) <= 1.001 * least + 1
    assert len(rows) < first_fit(sizes.tolist(), length)


def test_documents_of_over_half_a_row_stand_alone_with_what_fits_beside():
    sizes = np.array([6, 6, 6, 4, 4, 3, 1])
    rows = best_fit(sizes, 10)
    assert sorted(levels(rows, sizes)) == [10, 10, 10]


def test_packing_depends_on_the_sizes_alone():
    sizes = np.random.default_rng(1).integers(1, 65, 1000)
    one, again = best_fit(sizes, 64), best_fit(sizes.copy(), 64)
    assert np.array_equal(one.documents, again.documents)
    assert np.array_equal(one.offsets, again.offsets)


@pytest.mark.parametrize("length", [256, 4096])
def test_three_hundred_thousand_documents_are_packed_in_seconds(length):
    generator = np.random.default_rng(0)
    sizes = generator.lognormal(math.log(length / 4), 1.0, 300_000).astype(np.int64)
    sizes = sizes.clip(1, length)
    times = []
    for _ in range(2):
        began = time.perf_counter()
        rows = best_fit(sizes, length)
        times.append(time.perf_counter() - began)
    assert min(times) < 3, times
    assert len(rows.documents) == 300_000


@pytest.mark.parametrize("sizes", [[3, 0], [-1], [3, 9], [9]])
def test_sizes_that_no_row_holds_are_refused(sizes):
    with pytest.raises(ValueError, match="1 to 8 tokens"):
        best_fit(np.array(sizes), 8)


def test_no_documents_take_no_rows():
    assert len(best_fit(np.array([], np.int64), 8)) == 0


LENGTH = 64
DOCUMENTS = made_up(np.random.default_rng(3).integers(2, LENGTH + 1, 131))


def loader(objective="causal", documents=DOCUMENTS, **others):
    chosen = {"rows": 6, "length": LENGTH, "accumulate": 1, "seed": 5, "mask_probability": 0.15}
    return PackedLoader(documents, objective=objective, **{"spec": Spec(VOCAB)} | chosen | others)


def places(one, epochs=1):
    return [(e, p) for e in range(epochs) for p in range(one.steps_per_epoch)]


@pytest.mark.parametrize("objective", ["masked", "causal"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batch_depends_on_seed_epoch_and_position_alone(objective, accumulate):
    one = loader(objective, accumulate=accumulate)
    forward = {place: one.load(*place) for place in places(one, 3)}
    other = loader(objective, accumulate=accumulate)
    np.random.default_rng(0).random(3)
    torch.manual_seed(77)
    for place in reversed(forward):  # another order, another object, another global state
        assert same(other.load(*place), forward[place])


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_seed_and_epoch_change_what_a_batch_holds(objective):
    first = loader(objective).load(0, 0)
    assert not same(first, loader(objective).load(1, 0))
    assert not same(first, loader(objective, seed=6).load(0, 0))


def test_the_same_rows_are_masked_otherwise_in_another_epoch():
    one = loader("masked", documents=made_up([LENGTH] * 4), rows=4)
    (first,), (second,) = one.load(0, 0), one.load(1, 0)
    in_order = [batch.row_N.argsort() for batch in (first, second)]
    assert torch.equal(first.target_BT[in_order[0]], second.target_BT[in_order[1]])
    assert not torch.equal(first.weight_BT[in_order[0]], second.weight_BT[in_order[1]])


@given(
    number=st.integers(1, 80),
    rows=st.integers(1, 9),
    accumulate=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=40)
def test_every_document_comes_once_an_epoch(number, rows, accumulate, epoch):
    documents = made_up(np.random.default_rng(number).integers(1, 17, number))
    one = loader(documents=documents, rows=rows, accumulate=accumulate, length=16)
    seen = []
    for position in range(one.steps_per_epoch):
        parts = one.load(epoch, position)
        assert 1 <= len(parts) <= accumulate
        lines = sum(len(part.ids_BT) for part in parts)
        assert lines <= rows
        assert lines == rows or position == one.steps_per_epoch - 1
        seen += [int(row) for part in parts for row in part.row_N]
    assert sorted(seen) == list(range(number))


def test_positions_restart_with_each_document_and_the_rest_is_padding():
    one = loader()
    tokens = 0
    for place in places(one):
        (batch,) = one.load(*place)
        assert batch.ids_BT.shape[1] == LENGTH
        assert batch.num_documents == len(batch.row_N)
        for number, row in enumerate(batch.row_N.tolist()):
            where = (batch.document_BT == number).nonzero()
            assert len(where[:, 0].unique()) == 1  # in one row, and without a gap
            assert (where[:, 1].diff() == 1).all()
            own = batch.document_BT == number
            assert batch.ids_BT[own].tolist() == DOCUMENTS[row].tolist()
            assert batch.position_BT[own].tolist() == list(range(len(DOCUMENTS[row])))
        empty = batch.document_BT == PADDING
        assert (batch.ids_BT[empty] == PAD_ID).all()
        assert not batch.weight_BT[empty].any()
        assert batch.num_tokens == sum(DOCUMENTS.sizes[batch.row_N])
        tokens += batch.num_tokens
    assert tokens == DOCUMENTS.sizes.sum()


def test_fill_is_the_share_of_tokens_that_are_real():
    one = loader()
    batches = [one.load(*place)[0] for place in places(one)]
    real = sum(batch.num_tokens for batch in batches)
    room = sum(batch.ids_BT.numel() for batch in batches)
    assert one.fill == pytest.approx(real / room)
    assert 0.9 < one.fill <= 1


@pytest.mark.parametrize("accumulate", [2, 4, 6])
def test_the_parts_of_a_causal_step_are_together_its_whole(accumulate):
    whole, cut = loader(), loader(accumulate=accumulate)
    for place in places(whole):
        (wanted,), parts = whole.load(*place), cut.load(*place)
        for name in ("ids_BT", "position_BT", "target_BT", "weight_BT", "row_N"):
            together = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(together, getattr(wanted, name)), name
        before = 0
        owners = []
        for part in parts:
            owner = part.document_BT
            owners.append(torch.where(owner == PADDING, PADDING, owner + before))
            before += part.num_documents
        assert torch.equal(torch.cat(owners), wanted.document_BT)


def test_a_masked_step_holds_the_same_documents_in_however_many_parts():
    whole, cut = loader("masked"), loader("masked", accumulate=4)
    for place in places(whole):
        (wanted,), parts = whole.load(*place), cut.load(*place)
        assert torch.equal(torch.cat([part.row_N for part in parts]), wanted.row_N)
        assert torch.equal(torch.cat([part.target_BT for part in parts]), wanted.target_BT)


def alone(batch):
    """Return each document of a packed batch in a batch of its own."""
    for number in range(batch.num_documents):
        own = batch.document_BT == number
        ids, position, target, weight = (
            value[own][None]
            for value in (batch.ids_BT, batch.position_BT, batch.target_BT, batch.weight_BT)
        )
        yield Batch(ids, position, torch.zeros_like(ids), 1, target, weight)


@pytest.mark.parametrize("with_kernels", [True, False])
@pytest.mark.parametrize("kind", ["masked", "causal"])
@pytest.mark.parametrize("dim", [32, 24])  # the kernels take one of them, and not the other
def test_packing_changes_neither_the_loss_nor_its_gradients(kind, dim, with_kernels):
    documents = made_up(np.random.default_rng(1).integers(2, LENGTH + 1, 24), vocab_size=96)
    one = loader(kind, documents, rows=4, spec=Spec(96))
    tokens = objectives.tokens()
    count = sum(tokens.count(one.load(*place)[0]) for place in places(one))
    found = []
    with computing(with_kernels=with_kernels):
        for cut in (lambda batch: [batch], alone):
            net, loss = model(kind, dim=dim), 0.0
            for place in places(one):
                for part in cut(one.load(*place)[0]):
                    part_loss = tokens.total(net(part), part) / count
                    part_loss.backward()
                    loss += float(part_loss.detach())
            found.append((loss, {name: p.grad for name, p in net.named_parameters()}))
    (packed, gradients), (single, wanted) = found
    assert packed == pytest.approx(single, rel=SIMPLE)
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=COMPOSED, atol=COMPOSED)


def test_a_row_of_one_document_is_laid_as_the_document_itself():
    rows = [[DOCUMENTS[0]], [DOCUMENTS[1], DOCUMENTS[2]]]
    batch = for_causal(lay(rows, 3 * LENGTH, np.array([0, 1, 2])))
    assert batch.num_documents == 3
    first, second, third = (len(DOCUMENTS[n]) for n in range(3))
    assert (batch.document_BT[0, :first] == 0).all()
    assert (batch.document_BT[1, :second] == 1).all()
    assert (batch.document_BT[1, second : second + third] == 2).all()
    assert batch.weight_BT.sum() == first + second + third - 3
    assert (batch.ids_BT[batch.position_BT == 0] == BEGIN_ID).sum() == 3

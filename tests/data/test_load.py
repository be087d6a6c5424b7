"""Batches by counter: what is in them, and that nothing but the counter decides it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.batch import PADDING, Batch
from danlu.data.hide import for_causal, for_masked, hide
from danlu.data.load import DocumentLoader, in_order, lay
from danlu.data.modality import BEGIN_ID, END_ID, MASK_ID, NUM_SPECIAL, PAD_ID, Spec
from small import VOCAB, made_up, same

STEP = 64  # tokens of which a batch holds a multiple
SIZES = np.random.default_rng(3).integers(2, 40, 53)
DOCUMENTS = made_up(SIZES)


def loader(mask=0.0, documents=DOCUMENTS, **others):
    chosen = {
        "batch_size": 8,
        "accumulate": 1,
        "seed": 5,
        "spec": Spec(VOCAB),
        "labels": torch.arange(len(documents)),
    }
    return DocumentLoader(documents, mask_probability=mask, **chosen | others)


@pytest.mark.parametrize("mask", [0.0, 0.2])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_depends_on_seed_epoch_and_position_alone(mask, views, accumulate):
    one = loader(mask, views=views, accumulate=accumulate)
    forward = {(e, p): one.load(e, p) for e in range(3) for p in range(one.steps_per_epoch)}
    other = loader(mask, views=views, accumulate=accumulate)
    np.random.default_rng(0).random(3)
    torch.manual_seed(77)
    for place in reversed(forward):  # another order, another object, another global state
        assert same(other.load(*place), forward[place])


@pytest.mark.parametrize("mask", [0.0, 0.2])
def test_seed_and_epoch_change_what_a_batch_holds(mask):
    first = loader(mask).load(0, 0)
    assert not same(first, loader(mask).load(1, 0))
    assert not same(first, loader(mask, seed=6).load(0, 0))


def test_the_same_documents_are_hidden_otherwise_in_another_epoch():
    one = loader(0.3, documents=made_up([64] * 4), batch_size=4)
    hidden = []
    for epoch in range(2):
        (batch,) = one.load(epoch, 0)
        order = batch.row_N.argsort()
        hidden.append((batch.ids_BT.view(4, 64) == MASK_ID)[order])
    assert not torch.equal(*hidden)


@given(
    number=st.integers(1, 130),
    batch_size=st.integers(1, 20),
    accumulate=st.integers(1, 5),
    epoch=st.integers(0, 3),
    longest=st.sampled_from([6, 200]),
)
@settings(deadline=None, max_examples=60)
def test_every_document_comes_once_an_epoch_in_batches_of_the_size_asked_for(
    number, batch_size, accumulate, epoch, longest
):
    documents = made_up(np.random.default_rng(number).integers(2, longest, number))
    one = loader(documents=documents, batch_size=batch_size, accumulate=accumulate)
    rows = []
    assert one.steps_per_epoch == -(-number // batch_size)
    for position in range(one.steps_per_epoch):
        parts = one.load(epoch, position)
        assert 1 <= len(parts) <= accumulate
        assert all(part.num_documents for part in parts)
        left = number - position * batch_size
        assert sum(part.num_documents for part in parts) == min(batch_size, left)
        rows += [int(row) for part in parts for row in part.row_N]
    assert sorted(rows) == list(range(number))


@pytest.mark.parametrize("views", [1, 2])
def test_nearly_all_batches_come_out_even_and_none_is_padded_by_a_step(views):
    documents = made_up(np.random.default_rng(0).integers(5, 200, 6000))
    one = loader(documents=documents, batch_size=32, views=views)
    even = padding = tokens = 0
    for position in range(one.steps_per_epoch):
        (batch,) = one.load(1, position)
        assert batch.ids_BT.shape[0] == 1
        assert batch.ids_BT.shape[1] % STEP == 0
        empty = batch.ids_BT.shape[1] - batch.num_tokens
        assert 0 <= empty < STEP
        even += empty == 0
        padding, tokens = padding + empty, tokens + batch.num_tokens
    assert tokens == views * documents.sizes.sum()
    assert even >= 0.97 * one.steps_per_epoch, f"{even} of {one.steps_per_epoch}"
    assert padding < 1e-3 * tokens


def test_batches_are_random_although_they_come_out_even():
    # Which documents meet in a batch is to differ from epoch to epoch.
    documents = made_up(np.random.default_rng(0).integers(5, 200, 640))
    one = loader(documents=documents, batch_size=32)

    def company(epoch):
        found = set()
        for position in range(one.steps_per_epoch):
            rows = sorted(one.load(epoch, position)[0].row_N.tolist())
            found |= {(a, b) for a in rows for b in rows if a < b}
        return found

    first, second = company(0), company(1)
    by_chance = len(first) * 31 / 639
    assert len(first & second) < 1.3 * by_chance


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_rows_labels_and_ids_stay_together(accumulate, views):
    labels = torch.arange(len(SIZES)) * 10
    one = loader(accumulate=accumulate, labels=labels, views=views)
    for position in range(one.steps_per_epoch):
        for part in one.load(0, position):
            assert torch.equal(part.label, part.row_N * 10)
            assert part.num_documents == len(part.row_N)
            for number, row in enumerate(part.row_N.tolist()):
                held = part.ids_BT[part.document_BT == number].numpy()
                np.testing.assert_array_equal(held, DOCUMENTS[row])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_views_follow_each_other_as_whole_batches(accumulate):
    one = loader(0.3, views=2, accumulate=accumulate)
    for position in range(one.steps_per_epoch):
        for part in one.load(0, position):
            first, second = part.row_N.chunk(2)
            assert torch.equal(first, second)
            assert len(first.unique()) == len(first)


def test_a_step_holds_the_same_rows_in_however_many_parts():
    documents = made_up(np.random.default_rng(0).integers(5, 200, 400))
    whole, parts = (loader(documents=documents, accumulate=number) for number in (1, 4))
    for position in range(whole.steps_per_epoch):
        wanted = whole.load(2, position)[0].row_N.tolist()
        assert [row for part in parts.load(2, position) for row in part.row_N.tolist()] == wanted


def assert_laid(batch, documents):
    """Each document stands in one piece, positions from 0, and the rest is padding."""
    assert batch.num_documents == len(documents)
    assert batch.num_tokens == sum(map(len, documents))
    for number, tokens in enumerate(documents):
        own = batch.document_BT == number
        where = own.nonzero()
        assert len(where[:, 0].unique()) == 1
        assert where[:, 1].tolist() == list(range(where[0, 1], where[0, 1] + len(tokens)))
        assert batch.ids_BT[own].tolist() == tokens.tolist()
        assert batch.position_BT[own].tolist() == list(range(len(tokens)))
    assert (batch.ids_BT[batch.document_BT == PADDING] == PAD_ID).all()


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_documents_laid_flat_share_one_row_of_a_multiple_of_64_tokens(sizes):
    documents = made_up(sizes)
    rows = np.arange(len(sizes))[::-1].copy()
    batch = documents.lay(rows)
    assert_laid(batch, [documents[row] for row in rows])
    assert batch.ids_BT.shape == (1, -(-sum(sizes) // STEP) * STEP)
    assert batch.row_N.tolist() == rows.tolist()


@given(rows=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_documents_laid_in_rows_stand_in_the_rows_given(rows):
    documents = made_up([size for row in rows for size in row] or [1])
    numbers = iter(range(len(documents)))
    laid = [[documents[next(numbers)] for _ in row] for row in rows]
    total = sum(map(len, rows))
    batch = lay(laid, 36, np.arange(total))
    assert batch.ids_BT.shape == (len(rows), 36)
    assert_laid(batch, [tokens for row in laid for tokens in row])
    for number, row in enumerate(rows):
        owners = batch.document_BT[number].unique()
        assert (owners != PADDING).sum() == len(row)


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40), batch_size=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_in_order_covers_every_row_once_from_short_to_long(sizes, batch_size):
    documents, labels = made_up(sizes), torch.arange(len(sizes)) * 3
    batches = list(in_order(documents, batch_size, labels))
    rows = torch.cat([batch.row_N for batch in batches])
    assert sorted(rows.tolist()) == list(range(len(sizes)))
    assert torch.equal(torch.cat([batch.label for batch in batches]), rows * 3)
    lengths = [sizes[row] for row in rows]
    assert lengths == sorted(lengths)
    assert sum(batch.num_tokens for batch in batches) == sum(sizes)


def masked(sizes, probability=0.15, seed=0):
    documents = made_up(sizes)
    rows = np.arange(len(sizes))
    plain = lay([[documents[row]] for row in rows], max(sizes), rows)
    return plain, for_masked(plain, probability, Spec(VOCAB), np.random.default_rng(seed))


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_tokens_are_chosen_and_hidden_in_the_shares_of_the_paper(probability):
    plain, batch = masked([101] * 200, probability)
    chosen = batch.weight_BT == 1
    assert ((batch.weight_BT == 0) | chosen).all()

    def near(share, wanted, count):  # five standard deviations of a binomial share
        assert abs(share - wanted) < 5 * (wanted * (1 - wanted) / count) ** 0.5

    near(float(chosen.sum()) / 20_000, probability, 20_000)
    before, after = plain.ids_BT[chosen], batch.ids_BT[chosen]
    count = len(before)
    near(float((after == MASK_ID).sum()) / count, 0.8, count)
    stays = 0.1 + 0.1 / (VOCAB - NUM_SPECIAL)  # a random token may be the old one
    near(float((after == before).sum()) / count, stays, count)
    other = after[(after != before) & (after != MASK_ID)]
    near(len(other) / count, 0.2 - stays, count)
    assert (other >= NUM_SPECIAL).all()
    words = VOCAB - NUM_SPECIAL
    assert len(other.unique()) > 0.9 * words * (1 - np.exp(-len(other) / words))
    assert torch.equal(batch.ids_BT[~chosen], plain.ids_BT[~chosen])
    assert torch.equal(batch.target_BT, plain.ids_BT)


def test_every_place_is_chosen_as_often_as_any_other():
    _, batch = masked([21] * 2000)
    share = batch.weight_BT[:, 1:21].mean(dim=0)
    spread = (share.mean() * (1 - share.mean()) / 2000) ** 0.5
    assert ((share - share.mean()).abs() < 5 * spread).all()


@given(
    sizes=st.lists(st.integers(2, 25), min_size=1, max_size=20),
    probability=st.sampled_from([0.001, 0.15, 0.99]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_each_document_has_a_target_that_is_neither_its_beginning_nor_padding(
    sizes, probability, seed
):
    plain, batch = masked(sizes, probability, seed)
    assert (batch.weight_BT.sum(dim=1) >= 1).all()
    never = (plain.document_BT == PADDING) | (plain.ids_BT == BEGIN_ID)
    assert not batch.weight_BT[never].any()
    assert torch.equal(batch.ids_BT[never], plain.ids_BT[never])


def test_a_document_of_its_beginning_alone_has_no_target():
    _, batch = masked([1, 5])
    assert not batch.weight_BT[0].any()
    assert batch.weight_BT[1].any()


def packed():
    """Two documents in one row, then padding; and one that fills its row."""
    document = torch.tensor([[0, 0, 0, 1, 1, PADDING, PADDING], [2] * 7])
    position = torch.tensor([[0, 1, 2, 0, 1, 0, 1], list(range(7))])
    ids = torch.tensor(
        [
            [BEGIN_ID, 10, END_ID, BEGIN_ID, 11, PAD_ID, PAD_ID],
            [BEGIN_ID, 12, 13, 14, 15, 16, END_ID],
        ]
    )
    return Batch(ids, position, document, num_documents=3)


def test_each_of_several_documents_in_a_row_has_a_target():
    generator = np.random.default_rng(0)
    for _ in range(20):
        batch = for_masked(packed(), 0.05, Spec(VOCAB), generator)
        for document in range(3):
            assert batch.weight_BT[batch.document_BT == document].any()


def test_causal_targets_are_the_next_token_and_never_of_another_document():
    plain = packed()
    batch = for_causal(plain)
    assert batch.weight_BT.tolist() == [[1, 1, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]]
    for row, column in batch.weight_BT.nonzero().tolist():
        assert batch.target_BT[row, column] == plain.ids_BT[row, column + 1]
        assert plain.document_BT[row, column] == plain.document_BT[row, column + 1]
    assert torch.equal(batch.ids_BT, plain.ids_BT)


def test_causal_batches_score_every_token_but_the_first_of_each_document():
    for plain in in_order(DOCUMENTS, 8):
        batch = for_causal(plain)
        for number, row in enumerate(batch.row_N.tolist()):
            bears = (batch.weight_BT != 0) & (batch.document_BT == number)
            np.testing.assert_array_equal(batch.target_BT[bears], DOCUMENTS[row][1:])


def test_hiding_spares_special_tokens_and_padding():
    documents = made_up([101] * 100)
    plain = documents.lay(np.arange(100))
    batch = hide(plain, 0.2, Spec(VOCAB), np.random.default_rng(0))
    changed = batch.ids_BT != plain.ids_BT
    assert (batch.ids_BT[changed] == MASK_ID).all()
    assert (plain.ids_BT[changed] >= NUM_SPECIAL).all()
    assert abs(float(changed.sum()) / 10_000 - 0.2) < 5 * (0.2 * 0.8 / 10_000) ** 0.5
    assert batch.target_BT is None
    assert batch.weight_BT is None

"""Batches by counter: what is in them, and that nothing but the counter decides it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.batch import PADDING, Batch
from danlu.data.load import Loader, collate, for_causal, for_masked, hide, in_order
from danlu.data.text import BEGIN_ID, END_ID, MASK_ID, NUM_SPECIAL, PAD_ID, Documents

VOCAB = 1000
OBJECTIVES = [("masked", 0.15), ("causal", 0.15), ("document", 0.0), ("document", 0.2)]
FIELDS = ("ids_BT", "position_BT", "document_BT", "target_BT", "weight_BT", "label", "row_N")


def made_up(sizes, seed=0):
    generator = np.random.default_rng(seed)
    return Documents.of(
        [
            np.array([BEGIN_ID, *generator.integers(NUM_SPECIAL, VOCAB, size - 1)], np.int32)
            for size in sizes
        ]
    )


SIZES = np.random.default_rng(3).integers(2, 40, 53)
DOCUMENTS = made_up(SIZES)


def loader(objective="document", mask=0.0, documents=DOCUMENTS, **others):
    chosen = {"batch_size": 8, "accumulate": 1, "seed": 5, "vocab_size": VOCAB, "labels": None}
    chosen = chosen | others
    return Loader(documents=documents, objective=objective, mask_probability=mask, **chosen)


def same(one, other):
    for part, other_part in zip(one, other, strict=True):
        for name in FIELDS:
            value, other_value = getattr(part, name), getattr(other_part, name)
            if value is None or other_value is None:
                if value is not other_value:
                    return False
            elif not torch.equal(value, other_value):
                return False
    return True


@pytest.mark.parametrize(("objective", "mask"), OBJECTIVES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_depends_on_seed_epoch_and_position_alone(objective, mask, accumulate):
    one = loader(objective, mask, accumulate=accumulate)
    forward = {(e, p): one.load(e, p) for e in range(3) for p in range(one.steps_per_epoch)}
    other = loader(objective, mask, accumulate=accumulate)
    np.random.default_rng(0).random(3)
    torch.manual_seed(77)
    for place in reversed(forward):  # another order, another object, another global state
        assert same(other.load(*place), forward[place])


@pytest.mark.parametrize(("objective", "mask"), OBJECTIVES)
def test_seed_and_epoch_change_what_a_batch_holds(objective, mask):
    first = loader(objective, mask).load(0, 0)
    assert not same(first, loader(objective, mask).load(1, 0))
    assert not same(first, loader(objective, mask, seed=6).load(0, 0))


def test_the_same_rows_are_masked_otherwise_in_another_epoch():
    # One batch of documents that all differ in length has one order in every epoch.
    one = loader("masked", 0.15, documents=made_up(range(5, 37)), batch_size=32)
    (first,), (second,) = one.load(0, 0), one.load(1, 0)
    assert torch.equal(first.row_N, second.row_N)
    assert torch.equal(first.target_BT, second.target_BT)
    assert not torch.equal(first.weight_BT, second.weight_BT)


@given(
    number=st.integers(1, 130),
    batch_size=st.integers(1, 20),
    accumulate=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
@settings(deadline=None, max_examples=40)
def test_every_row_comes_once_an_epoch(number, batch_size, accumulate, epoch):
    documents = made_up(np.random.default_rng(number).integers(2, 6, number))
    one = loader(documents=documents, batch_size=batch_size, accumulate=accumulate)
    rows = []
    assert one.steps_per_epoch == -(-number // batch_size)
    for position in range(one.steps_per_epoch):
        parts = one.load(epoch, position)
        assert 1 <= len(parts) <= accumulate
        assert all(part.num_documents for part in parts)
        assert sum(part.num_documents for part in parts) <= batch_size
        rows += [int(row) for part in parts for row in part.row_N]
    assert sorted(rows) == list(range(number))


def test_more_rows_than_one_pool_still_come_once_an_epoch():
    documents = made_up(np.random.default_rng(0).integers(2, 6, 233))  # pools of 50 × 2
    one = loader(documents=documents, batch_size=2)
    rows = [int(row) for p in range(117) for row in one.load(0, p)[0].row_N]
    assert one.steps_per_epoch == 117
    assert sorted(rows) == list(range(233))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_rows_labels_and_ids_stay_together(accumulate):
    labels = torch.arange(len(SIZES)) * 10
    one = loader(accumulate=accumulate, labels=labels)
    for position in range(one.steps_per_epoch):
        for part in one.load(0, position):
            assert torch.equal(part.label, part.row_N * 10)
            for number, row in enumerate(part.row_N.tolist()):
                held = part.ids_BT[part.document_BT == number].numpy()
                np.testing.assert_array_equal(held, DOCUMENTS[row])


def test_a_step_holds_the_same_rows_in_however_many_parts():
    whole, parts = loader(accumulate=1), loader(accumulate=4)
    for position in range(whole.steps_per_epoch):
        wanted = whole.load(2, position)[0].row_N.tolist()
        assert [row for part in parts.load(2, position) for row in part.row_N.tolist()] == wanted


def test_collated_documents_are_padded_to_a_common_length():
    batch = collate([DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[2]], np.array([0, 1, 2]))
    num_rows, length = batch.ids_BT.shape
    assert num_rows == batch.num_documents == 3
    assert length % 16 == 0
    assert length - 16 < max(SIZES[:3]) <= length
    assert batch.num_tokens == SIZES[:3].sum()
    for number in range(3):
        real = batch.document_BT[number] == number
        assert int(real.sum()) == SIZES[number]
        assert (batch.document_BT[number][~real] == PADDING).all()
        assert (batch.ids_BT[number][~real] == PAD_ID).all()
        assert batch.position_BT[number].tolist() == list(range(length))


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
    plain = collate([documents[row] for row in rows], rows)
    return plain, for_masked(plain, probability, VOCAB, np.random.default_rng(seed))


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
        batch = for_masked(packed(), 0.05, VOCAB, generator)
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
    one = loader("causal")
    for position in range(one.steps_per_epoch):
        (batch,) = one.load(0, position)
        for number, row in enumerate(batch.row_N.tolist()):
            bears = batch.weight_BT[number] != 0
            np.testing.assert_array_equal(batch.target_BT[number][bears], DOCUMENTS[row][1:])


def test_hiding_spares_special_tokens_and_padding():
    documents = made_up([101] * 100)
    plain = collate([documents[row] for row in range(100)], np.arange(100))
    batch = hide(plain, 0.2, np.random.default_rng(0))
    changed = batch.ids_BT != plain.ids_BT
    assert (batch.ids_BT[changed] == MASK_ID).all()
    assert (plain.ids_BT[changed] >= NUM_SPECIAL).all()
    assert abs(float(changed.sum()) / 10_000 - 0.2) < 5 * (0.2 * 0.8 / 10_000) ** 0.5
    assert batch.target_BT is None
    assert batch.weight_BT is None

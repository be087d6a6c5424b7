"""Histories as ids and back; what is left out and cut is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.batch import PADDING
from danlu.data.events import EventsDocuments, EventsEncoder
from danlu.data.modality import BEGIN_ID, NUM_SPECIAL
from danlu.errors import DataError

HISTORIES = st.lists(st.lists(st.sampled_from("abcdef"), max_size=12), min_size=1, max_size=6)


def _encoder(max_length=8):
    return EventsEncoder.fit([list("abcab"), list("aabd")], max_length)


def _documents(batch):
    """Return the ids of each document of a batch."""
    owner, ids = batch.document_BT[0].numpy(), batch.ids_BT[0].numpy()
    return [ids[owner == n].tolist() for n in range(batch.num_documents)]


def test_the_catalogue_is_the_training_items_the_commonest_first():
    encoder = _encoder()
    assert encoder.items == ("a", "b", "c", "d")
    assert encoder.count_I == (4, 3, 1, 1)
    assert encoder.spec.vocab_size == NUM_SPECIAL + 4
    assert encoder.spec.value_dims == 0


def test_items_that_are_rare_in_training_are_left_out_and_counted():
    encoder = EventsEncoder.fit([list("abcab"), list("aabd")], min_item=2)
    assert encoder.items == ("a", "b")
    assert encoder.rare == 2
    with pytest.raises(DataError, match="1 of 4 items have 4 training interactions"):
        EventsEncoder.fit([list("abcab"), list("aabd")], min_item=4)


@given(HISTORIES, st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_a_document_is_the_latest_items_from_the_beginning_token(histories, max_length):
    encoder = _encoder(max_length)
    documents = encoder.encode(histories)
    rows = np.arange(len(histories))
    batch = documents.lay(rows)
    known = [[name for name in history if name in "abcd"] for history in histories]
    expected = [["<bos>", *names[-(max_length - 1) :]] for names in known]
    assert [encoder.pieces(ids) for ids in _documents(batch)] == expected
    assert documents.sizes.tolist() == [len(names) for names in expected]
    over = [max(0, len(names) - (max_length - 1)) for names in known]
    assert documents.counts == {
        "histories": len(histories),
        "empty": sum(not names for names in known),
        "unknown": sum(map(len, histories)) - sum(map(len, known)),
        "cut": sum(n > 0 for n in over),
        "cut_items": sum(over),
    }


def test_positions_restart_and_padding_is_marked():
    batch = _encoder().encode([list("ab"), [], list("cd")]).lay(np.array([2, 0, 1]))
    assert batch.ids_BT.shape[1] % 64 == 0
    assert batch.position_BT[0, :7].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert batch.document_BT[0, :7].tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert (batch.document_BT[0, 7:] == PADDING).all()
    assert batch.row_N.tolist() == [2, 0, 1]
    assert _documents(batch)[2] == [BEGIN_ID]


def test_a_generator_draws_another_stretch_of_a_history_that_is_too_long():
    letters = list("abcdefgh")
    encoder = EventsEncoder.fit([letters], max_length=4)
    documents = encoder.encode([letters, list("ab")])
    rows = np.array([0, 1])
    generator = np.random.default_rng(0)
    drawn = {
        "".join(encoder.pieces(_documents(documents.lay(rows, generator))[0][1:]))
        for _ in range(100)
    }
    assert drawn == {"abc", "bcd", "cde", "def", "efg", "fgh"}
    batches = [documents.lay(rows, np.random.default_rng(5)).ids_BT for _ in range(2)]
    assert batches[0].equal(batches[1]), "one seed, one batch"
    short = _documents(documents.lay(rows, generator))[1]
    assert encoder.pieces(short) == ["<bos>", "a", "b"], "a short one is laid whole"


@given(HISTORIES, st.integers(2, 9))
@settings(max_examples=60, deadline=None)
def test_pieces_hold_every_item_once_in_order(histories, max_length):
    encoder = _encoder(max_length)
    documents = encoder.encode_pieces(histories)
    laid = [encoder.pieces(d)[1:] for d in _documents(documents.lay(np.arange(len(documents))))]
    known = [[name for name in history if name in "abcd"] for history in histories]
    at = 0
    for names in known:
        number = max(1, -(-len(names) // (max_length - 1)))
        assert [name for piece in laid[at : at + number] for name in piece] == names
        assert all(len(piece) == max_length - 1 for piece in laid[at + 1 : at + number])
        at += number
    assert at == len(documents)
    assert documents.sizes.tolist() == [len(piece) + 1 for piece in laid]
    assert (documents.counts["cut"], documents.counts["cut_items"]) == (0, 0)
    assert documents.counts["unknown"] == sum(map(len, histories)) - sum(map(len, known))


def test_a_piece_with_a_generator_is_from_anywhere_in_its_own_history():
    letters = list("abcdefgh")
    encoder = EventsEncoder.fit([letters], max_length=4)
    documents = encoder.encode_pieces([list("ha"), letters])
    assert documents.sizes.tolist() == [3, 3, 4, 4]
    generator = np.random.default_rng(0)
    drawn = [set() for _ in range(4)]
    for _ in range(200):
        for found, ids in zip(
            drawn, _documents(documents.lay(np.arange(4), generator)), strict=True
        ):
            found.add("".join(encoder.pieces(ids[1:])))
    assert drawn[0] == {"ha"}
    assert drawn[1] == {"abcdefgh"[n : n + 2] for n in range(7)}
    assert drawn[2] == drawn[3] == {"abcdefgh"[n : n + 3] for n in range(6)}


def test_nothing_to_encode_is_no_document():
    encoder = _encoder()
    assert len(encoder.encode([])) == len(encoder.encode_pieces([])) == 0


def test_it_is_the_same_from_disk(tmp_path):
    encoder = _encoder()
    documents = encoder.encode([list("abcdabcdabcd"), list("zb")])
    encoder.save(tmp_path)
    documents.save(tmp_path, "train")
    again = EventsEncoder.load(tmp_path)
    assert again == encoder
    loaded = again.load_documents(tmp_path, "train")
    assert isinstance(loaded, EventsDocuments)
    assert isinstance(loaded.ids, np.memmap)
    assert loaded.counts == documents.counts
    rows = np.array([1, 0])
    assert loaded.lay(rows).ids_BT.equal(documents.lay(rows).ids_BT)
    assert again.encode([list("dcx")]).ids.tolist() == encoder.encode([list("dcx")]).ids.tolist()


def test_places_are_those_of_the_catalogue_and_strangers_are_counted():
    places, missing = _encoder().places([list("azb"), [], ["z", "z"]])
    assert places == [[0, 1], [], []]
    assert missing.tolist() == [1, 0, 2]


def test_names_that_spell_special_tokens_are_items():
    encoder = EventsEncoder.fit([["<bos>", "<pad>", "x"]])
    document = _documents(encoder.encode([["<pad>", "<bos>"]]).lay(np.array([0])))[0]
    assert document[0] == BEGIN_ID
    assert min(document[1:]) >= NUM_SPECIAL

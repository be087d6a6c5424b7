"""Transcripts as labels, and the fewest positions they fit into."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from danlu.data import transcripts
from danlu.data.labels import canonical, encode

TEXTS = st.lists(st.text("abc 字", max_size=8), min_size=1, max_size=5)


@given(TEXTS, TEXTS)
def test_what_is_known_comes_back_and_what_is_not_is_counted(train, other):
    train, other = ([transcripts.canonical(t) or "" for t in part] for part in (train, other))
    characters = transcripts.alphabet(train)
    assert characters == sorted(set("".join(train)))
    labels = transcripts.encode(train, characters)
    assert labels.shape == (len(train), max([1, *map(len, train)]))
    assert [transcripts.spell(row, characters) for row in labels.tolist()] == train
    unknown = transcripts.count_unknown(other, characters)
    kept = (transcripts.encode(other, characters) != transcripts.BLANK).sum()
    assert kept + sum(unknown.values()) == sum(map(len, other))
    assert set(unknown) == set("".join(other)) - set(characters)


def test_one_form_of_the_same_text():
    assert transcripts.canonical("cafe\u0301 \n au  lait ") == "caf\u00e9 au lait"
    assert canonical(" \t", "transcribe", None) is None
    assert encode(["b", "ab"], "transcribe", ["a", "b"], None).tolist() == [[2, 0], [1, 2]]


@given(st.text("ab", max_size=4))
def test_no_fewer_positions_can_spell_it(text):
    """Against all ways of filling positions with letters and the blank."""

    def read(path):
        return "".join(label for label, _ in itertools.groupby(path) if label != "-")

    needed = transcripts.positions_needed(text)
    for length in range(needed + 1):
        spelt = text in map(read, itertools.product("-ab", repeat=length))
        assert spelt == (length == needed)


def test_labels_are_integers_that_a_loss_takes():
    assert transcripts.encode(["", "?"], []).dtype == np.int64
    assert transcripts.encode(["", "?"], []).tolist() == [[0], [0]]

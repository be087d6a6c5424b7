"""Near-duplicates are found, and only they, as sets of 5-grams tell."""

import random

import daft
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.duplicates import Pairs, clusters, find_pairs, join_groups, later_copies

WORDS = [f"word{i}" for i in range(5000)]
IDEOGRAPHS = [chr(0x4E00 + i) for i in range(3000)]


def pairs_of(texts, seed=0, ids=None):
    ids = list(range(len(texts))) if ids is None else ids
    frame = daft.from_pydict({"id": ids, "text": texts})
    return find_pairs(frame.with_column("id", daft.col("id").cast(daft.DataType.int64())), seed)


def as_dict(pairs):
    keys = zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)
    return dict(zip(keys, pairs.similarity.tolist(), strict=True))


def made_pairs(*edges):
    first, second = (np.array([e[i] for e in edges], np.int64) for i in (0, 1))
    return Pairs(first, second, np.ones(len(edges)))


def shingles(words):
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def jaccard(a, b):
    return len(shingles(a) & shingles(b)) / len(shingles(a) | shingles(b))


def planted(vocabulary, number, size, changed, seed):
    """Return texts as word lists: originals, then a copy of each with an end of its own."""
    generator = random.Random(seed)
    originals = [generator.choices(vocabulary, k=size) for _ in range(number)]
    copies = [words[: size - changed] + generator.choices(vocabulary, k=changed)
              for words in originals]  # fmt: skip
    return originals + copies


@pytest.mark.parametrize(("vocabulary", "between"), [(WORDS, " "), (IDEOGRAPHS, "")])
def test_planted_copies_are_found_and_unrelated_texts_are_not(vocabulary, between):
    number = 60
    texts = planted(vocabulary, number, 100, 5, seed=1)
    found = as_dict(pairs_of([between.join(words) for words in texts]))
    expected = {(i, i + number) for i in range(number)}
    assert set(found) <= expected
    # At this similarity (0.91) one text in some 10^4 is missed.
    assert len(found) >= number - 1


@pytest.mark.parametrize("changed", [3, 8, 15])
@pytest.mark.parametrize(("vocabulary", "between"), [(WORDS, " "), (IDEOGRAPHS, "")])
def test_the_estimated_similarity_is_near_the_true_one(vocabulary, between, changed):
    number = 40
    texts = planted(vocabulary, number, 100, changed, seed=changed)
    found = as_dict(pairs_of([between.join(words) for words in texts]))
    true = {(i, i + number): jaccard(texts[i], texts[i + number]) for i in range(number)}
    assert len(found) > number / 2
    errors = np.array([found[pair] - true[pair] for pair in found])
    assert np.abs(errors).max() < 0.15
    assert abs(errors.mean()) < 0.05


def test_case_punctuation_and_space_do_not_count():
    base = " ".join(WORDS[:40])
    changed = base.upper().replace(" ", ",  ") + "!"
    assert min(as_dict(pairs_of([base, changed])).values()) > 0.9


def test_texts_of_fewer_than_five_words_are_paired_only_when_equal():
    texts = ["很好", "很差", "很好", "good hotel", "good hotels", "Good hotel"]
    found = as_dict(pairs_of(texts).at_least(0.8))
    assert found == {(0, 2): 1.0, (3, 5): 1.0}


def test_texts_of_signs_alone_are_paired_only_when_equal():
    assert as_dict(pairs_of(["!!!", "???", "……", "!!!"]).at_least(0.8)) == {(0, 3): 1.0}


def test_the_result_depends_on_nothing_but_texts_and_seed():
    texts = [" ".join(words) for words in planted(WORDS, 30, 40, 4, seed=3)]
    first, second = pairs_of(texts, seed=7), pairs_of(texts, seed=7)
    assert as_dict(first) == as_dict(second)
    assert as_dict(first) != as_dict(pairs_of(texts, seed=8))


def test_pairs_are_sorted_and_their_first_is_the_lower_id():
    texts = [" ".join(words) for words in planted(WORDS, 20, 60, 2, seed=5)]
    ids = random.Random(0).sample(range(1000), len(texts))
    pairs = pairs_of(texts, ids=ids)
    assert (pairs.first < pairs.second).all()
    keys = list(as_dict(pairs))
    assert keys == sorted(keys)
    expected = {tuple(sorted((ids[i], ids[i + 20]))) for i in range(20)}
    assert len(keys) >= 18
    assert set(keys) <= expected


@pytest.mark.parametrize("texts", [[], ["only one text of several words here"]])
def test_few_texts_have_no_pairs(texts):
    frame = daft.from_pydict({"id": [1, 2], "text": ["x", "y"]}).limit(0)
    pairs = find_pairs(frame, 0) if not texts else pairs_of(texts)
    assert len(pairs.first) == len(pairs.second) == len(pairs.similarity) == 0


def test_many_copies_of_one_text_are_all_paired_with_the_first():
    found = as_dict(pairs_of([" ".join(WORDS[:20])] * 50))
    assert found == {(0, i): 1.0 for i in range(1, 50)}


def test_later_copies_keeps_the_first_and_every_other_label():
    pairs = made_pairs((0, 1), (0, 2), (0, 3))
    assert later_copies(pairs, {0: "a", 1: "a", 2: "b", 3: "a"}) == {1, 3}


def test_later_copies_drops_a_text_only_for_one_that_stays():
    pairs = made_pairs((0, 1), (1, 2))
    assert later_copies(pairs, dict.fromkeys(range(3), "a")) == {1}
    assert later_copies(made_pairs((0, 1)), {}) == {1}


def test_of_two_alike_with_one_label_one_goes_though_the_first_has_another_label():
    base = " ".join(WORDS[:30])
    pairs = pairs_of([base, base + "!", base + "?"]).at_least(0.8)
    assert later_copies(pairs, {0: "bad", 1: "good", 2: "good"}) == {2}


def test_clusters_join_what_is_linked_through_others():
    ids = np.array([3, 5, 8, 9, 20])
    found = clusters(ids, made_pairs((3, 8), (8, 20)))
    assert found[0] == found[2] == found[4]
    assert len({found[0], found[1], found[3]}) == 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=20))
def test_groups_are_the_connected_components(edges):
    found = join_groups(
        15, np.array([a for a, _ in edges], int), np.array([b for _, b in edges], int)
    )
    parts = [{node} for node in range(15)]
    for a, b in edges:
        one, other = (next(p for p in parts if node in p) for node in (a, b))
        if one is not other:
            parts.remove(other)
            one |= other
    assert len(set(found.tolist())) == len(parts)
    assert all(len(set(found[list(part)].tolist())) == 1 for part in parts)

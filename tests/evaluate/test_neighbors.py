"""The recommenders without a network, against loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.metrics.pairwise import cosine_similarity

from danlu.evaluate import neighbors
from danlu.evaluate.neighbors import (
    Histories,
    cosine,
    judge,
    nearest,
    neighbor_scorer,
    popularity,
    recent_popularity,
    sequential,
    tune,
)
from danlu.evaluate.ranking import Questions, rank

ITEMS = 7
LISTS = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=9), min_size=1, max_size=6)


def _follow_by_hand(lists, half_life, both, popular, window):
    total = np.zeros((ITEMS, ITEMS))
    for own in lists:
        for i, first in enumerate(own):
            for j in range(i + 1, min(len(own), i + 1 + window)):
                weight = 2 ** (-(j - i - 1) / half_life)
                total[first, own[j]] += weight
                if both:
                    total[own[j], first] += weight
    number = np.maximum([sum(own.count(i) for own in lists) for i in range(ITEMS)], 1)
    return total / np.sqrt(number)[:, None] / number[None] ** popular


@given(LISTS, st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_what_follows_is_counted_as_by_a_loop(lists, both, popular, window):
    histories = Histories.of(lists, ITEMS)
    found = sequential(histories, 2.0, both_ways=both, popular=popular, window=window)
    expected = _follow_by_hand(lists, 2.0, both, popular, window)
    assert found.toarray() == pytest.approx(expected)


@given(LISTS, st.sampled_from([None, 0.5, 3.0]))
@settings(max_examples=60, deadline=None)
def test_a_history_weighs_an_item_by_its_latest_place(lists, half_life):
    expected = np.zeros((len(lists), ITEMS))
    for row, own in enumerate(lists):
        for place, item in enumerate(own):
            after = len(own) - 1 - place
            expected[row, item] = 1.0 if half_life is None else 0.5 ** (after / half_life)
    assert Histories.of(lists, ITEMS).matrix(half_life).toarray() == pytest.approx(expected)


@pytest.mark.parametrize("binary", [True, False])
def test_the_cosine_is_that_of_scikit_learn(binary):
    generator = np.random.default_rng(0)
    matrix = generator.random((30, ITEMS)) * (generator.random((30, ITEMS)) < 0.4)
    matrix[:, 3] = 0  # an item that nobody has
    matrix = (matrix > 0).astype(float) if binary else matrix
    found = cosine(csr_array(matrix)).toarray()
    assert found == pytest.approx(cosine_similarity(matrix.T))


def test_shrinkage_is_added_to_the_norms():
    matrix = np.random.default_rng(1).integers(0, 2, (20, ITEMS)).astype(float)
    expected = np.empty((ITEMS, ITEMS))
    for i in range(ITEMS):
        for j in range(ITEMS):
            a, b = matrix[:, i], matrix[:, j]
            expected[i, j] = a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + 5)
    assert cosine(csr_array(matrix), 5.0).toarray() == pytest.approx(expected)


@given(st.integers(0, 1000), st.integers(1, ITEMS))
@settings(max_examples=50, deadline=None)
def test_the_nearest_are_the_largest_off_the_diagonal(seed, number):
    similar = np.random.default_rng(seed).integers(0, 5, (ITEMS, ITEMS)).astype(float)
    expected = np.zeros_like(similar)
    for row, own in enumerate(similar):
        order = sorted((c for c in range(ITEMS) if c != row and own[c]), key=lambda c: (-own[c], c))
        for column in order[:number]:
            expected[row, column] = own[column]
    assert nearest(csr_array(similar), number).toarray().tolist() == expected.tolist()


def test_an_item_is_scored_by_what_links_it_with_the_history():
    generator = np.random.default_rng(2)
    similar = generator.random((ITEMS, ITEMS))
    lists = [[0, 2], [], [5]]
    score = neighbor_scorer(Histories.of(lists, ITEMS).matrix(), csr_array(similar))
    expected = [sum((similar[i] for i in own), np.zeros(ITEMS)) for own in lists]
    assert score(np.array([0, 2])) == pytest.approx(np.array(expected)[[0, 2]])
    assert score(np.array([1])).tolist() == [[0.0] * ITEMS]


def test_a_sparse_similarity_scores_as_a_full_one(monkeypatch):
    generator = np.random.default_rng(3)
    similar = csr_array(generator.random((ITEMS, ITEMS)) * (generator.random((ITEMS, ITEMS)) < 0.3))
    history = Histories.of([[0, 2], [], [5, 5, 1]], ITEMS).matrix(2.0)
    full = neighbor_scorer(history, similar)(np.arange(3))
    monkeypatch.setattr(neighbors, "_FULL", 1.0)
    sparse = neighbor_scorer(history, similar)(np.arange(3))
    assert full == pytest.approx(history.toarray() @ similar.toarray())
    assert sparse == pytest.approx(full)


def test_popularity_counts_and_recent_popularity_fades():
    item, time = np.array([0, 0, 0, 1, 1]), np.array([0.0, 0, 10, 30, 40])
    assert popularity(item, 3).tolist() == [3, 2, 0]
    found = recent_popularity(item, time, 3, half_life=10.0)
    assert found == pytest.approx([2 * 2**-4 + 2**-3, 2**-1 + 1, 0])


def _chains(users=150, items=20, seed=0):
    """Users who walk up the catalogue, mostly by one, and sometimes jump."""
    generator = np.random.default_rng(seed)
    lists = []
    for _ in range(users):
        at, own = int(generator.integers(items)), []
        for _ in range(8):
            own.append(at)
            at = int(generator.integers(items)) if generator.random() < 0.15 else (at + 1) % items
        lists.append(own)
    return lists


def _asked(lists, items=20):
    histories, truths = [own[:-1] for own in lists], [own[-1:] for own in lists]
    outside = np.zeros(len(lists), np.int64)
    questions = Questions.of(np.arange(len(lists)), histories, truths, outside, items)
    return Histories.of(histories, items), questions


def test_every_baseline_is_the_best_of_what_was_tried_on_validation():
    train = Histories.of(_chains(), 20)
    validation, asked = _asked(_chains(40, seed=1))
    test, wanted = _asked(_chains(200, seed=2))
    chosen = {b.name: b for b in tune(train, validation, asked, k=3)}
    assert list(chosen) == ["popular", "item-knn", "item-knn-recency", "item-knn-sequential"]
    for baseline in chosen.values():
        again = rank(baseline.scorer(validation), asked, 3).values["ndcg@3"].mean()
        assert baseline.score == pytest.approx(again)
    for shrinkage in (0.0, 50.0):
        for number in (20, 200):
            similar = nearest(cosine(train.matrix(), shrinkage), number)
            other = rank(neighbor_scorer(validation.matrix(), similar), asked, 3)
            assert chosen["item-knn"].score >= other.values["ndcg@3"].mean() - 1e-12
    assert chosen["item-knn"].tried == 15
    assert chosen["item-knn"].settings["decay"] is None
    ranked = judge(list(chosen.values()), test, wanted, k=3)
    score = {r.model: r.values["ndcg@3"].mean() for r in ranked}
    assert score["popular"] < score["item-knn"] < score["item-knn-recency"]
    assert score["item-knn-sequential"] > 0.6, "what comes next is what the chains tell"
    assert chosen["item-knn-sequential"].settings["both_ways"] is False


def test_times_bring_the_recently_popular():
    """A fashion that turns: all was item 0 once, and all is item 1 at the end."""
    lists = [[2, 0]] * 60 + [[2, 1]] * 20
    times = np.repeat(np.arange(80.0), 2)
    train = Histories.of(lists, 5)
    train = Histories(train.item_N, train.offsets, 5, times)
    histories, asked = _asked([[2, 1]] * 10, items=5)
    chosen = {b.name: b for b in tune(train, histories, asked, k=1)}
    assert chosen["popular"].score == 0
    assert chosen["popular-recent"].score == 1

"""Ranking metrics against a loop over a sorted list, scikit-learn, and cases done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from danlu.evaluate import ranking
from danlu.evaluate.ranking import Questions, Ranked, differences, metrics, rank, top


def _questions(user, histories, truths, outside=None, num_items=8):
    outside = np.zeros(len(user), np.int64) if outside is None else np.array(outside)
    return Questions.of(np.array(user), histories, truths, outside, num_items)


def _random(seed, cases=12, num_items=15, ties=False):
    generator = np.random.default_rng(seed)
    score = generator.normal(size=(cases, num_items)).astype(np.float32)
    if ties:
        score = score.round(0)
    histories = [generator.integers(0, num_items, generator.integers(0, 5)) for _ in range(cases)]
    truths = [generator.integers(0, num_items, generator.integers(0, 4)) for _ in range(cases)]
    user, outside = generator.integers(0, 5, cases), generator.integers(0, 2, cases)
    return score, _questions(user, histories, truths, outside, num_items), histories, truths


def _by_hand(score, user, histories, truths, outside, k, exclude):
    """Return each user's mean metrics, by sorting a list with ties to the target's loss."""
    per_user = {}
    for own, u, history, truth, beyond in zip(score, user, histories, truths, outside, strict=True):
        truth, history = set(map(int, truth)), set(map(int, history)) if exclude else set()
        if not truth and not beyond:
            continue
        candidates = [i for i in range(len(own)) if i not in history]
        places = []
        for item in truth:
            order = sorted(candidates, key=lambda i: (-own[i], i == item))
            if item in order:
                places.append(order.index(item) + 1)
        hits = [p for p in places if p <= k]
        wanted = len(truth) + int(beyond)
        ideal = sum(1 / math.log2(1 + p) for p in range(1, min(k, wanted) + 1))
        first = min(places, default=math.inf)
        row = [
            float(bool(hits)),
            len(hits) / wanted,
            sum(1 / math.log2(1 + p) for p in hits) / ideal,
            1 / first if first <= k else 0.0,
            1 / first,
        ]
        per_user.setdefault(int(u), []).append(row)
    return np.array([np.mean(per_user[u], axis=0) for u in sorted(per_user)])


@given(st.integers(0, 10_000), st.integers(1, 20), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_it_is_a_sorted_list_with_ties_lost(seed, k, exclude, ties):
    score, questions, histories, truths = _random(seed, ties=ties)
    expected = _by_hand(score, questions.user_C, histories, truths, questions.outside_C, k, exclude)
    found = rank(lambda cases: score[cases], questions, k, exclude_seen=exclude)
    assert np.stack(list(found.values.values()), axis=1) == pytest.approx(expected)
    assert list(found.values) == [f"hr@{k}", f"recall@{k}", f"ndcg@{k}", f"mrr@{k}", "mrr"]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_ndcg_is_that_of_scikit_learn(k):
    generator = np.random.default_rng(0)
    score = generator.normal(size=(40, 25))
    truth = generator.random((40, 25)) < 0.1
    truth[:, 0] |= ~truth.any(1)
    lists = [np.flatnonzero(own).tolist() for own in truth]
    questions = _questions(range(40), [[]] * 40, lists, num_items=25)
    found = rank(lambda cases: score[cases], questions, k).values[f"ndcg@{k}"]
    assert found.mean() == pytest.approx(ndcg_score(truth.astype(float), score, k=k))


def test_a_small_catalogue_at_a_time_is_the_same(monkeypatch):
    score, questions, _, _ = _random(3, cases=50)
    asked = []

    def scorer(cases):
        asked.append(len(cases))
        return score[cases]

    whole = rank(scorer, questions, 5)
    assert len(asked) == 1
    monkeypatch.setattr(ranking, "_CELLS", 4 * 15)
    asked.clear()
    parts = rank(scorer, questions, 5)
    assert max(asked) == 4
    assert whole.coverage == parts.coverage
    assert whole.counts == parts.counts
    for name, values in whole.values.items():
        assert np.array_equal(values, parts.values[name])


def test_a_model_that_scores_all_alike_finds_nothing():
    questions = _questions([0, 1], [[], []], [[0], [7]])
    found = rank(lambda cases: np.zeros((len(cases), 8)), questions, 5)
    assert not found.values["hr@5"].any()
    assert found.values["mrr"].tolist() == [1 / 8, 1 / 8]


def test_items_that_were_seen_make_room_or_do_not():
    score = np.arange(8.0)[None]
    questions = _questions([0], [[7, 6]], [[5, 6]])
    without = rank(lambda cases: score, questions, 1)
    with_ = rank(lambda cases: score, questions, 1, exclude_seen=False)
    assert without.values["hr@1"].tolist() == [1.0]
    assert without.counts["seen"] == 1, "6 was seen and can be found no more"
    assert with_.values["hr@1"].tolist() == [0.0]
    assert with_.values["mrr"].tolist() == [0.5]
    assert with_.counts["seen"] == 0
    assert score.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]], "the model's own scores stay"


def test_what_is_not_in_the_catalogue_is_missed():
    score = np.arange(8.0)[None].repeat(2, 0)
    questions = _questions([0, 1], [[], []], [[], [7]], [1, 1])
    found = rank(lambda cases: score[cases], questions, 3)
    assert found.values["hr@3"].tolist() == [0.0, 1.0]
    assert found.values["recall@3"].tolist() == [0.0, 0.5]
    assert found.counts["outside"] == 2
    assert found.counts["targets"] == 3


def test_coverage_is_the_share_of_the_catalogue_recommended():
    score = np.array([[9.0, 8, 7, 0, 0, 0, 0, 0], [9, 0, 0, 8, 0, 0, 0, 0]])
    questions = _questions([0, 1], [[1], []], [[5], [5]])
    assert rank(lambda cases: score[cases], questions, 2).coverage == 3 / 8
    full = _questions([0], [list(range(8))], [[5]])
    assert rank(lambda cases: score[cases], full, 2).coverage == 0, "nothing is left to recommend"


@given(st.integers(0, 1000), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_the_top_is_a_stable_sort(seed, k):
    score = np.random.default_rng(seed).integers(0, 4, (6, 9)).astype(float)
    score[:, 2] = -np.inf
    assert top(score, k).tolist() == np.argsort(-score, axis=1, kind="stable")[:, :k].tolist()


def test_intervals_resample_users_and_not_cases():
    """A user of many cases counts once: one of two users is always right, the other never."""
    score = np.tile(np.arange(8.0), (60, 1))
    user = [0] * 50 + list(range(1, 11))
    questions = _questions(user, [[]] * 60, [[7]] * 50 + [[0]] * 10)
    rows = {r.metric: r for r in metrics(rank(lambda cases: score[cases], questions, 1))}
    row = rows["hr@1"]
    assert (row.value, row.n) == (pytest.approx(1 / 11), 11)
    assert row.low == 0.0
    assert 0.2 < row.high < 0.35
    assert rows["coverage@1"].value == 1 / 8
    assert rows["coverage@1"].low is None


def test_a_difference_is_paired_by_user():
    """Two noisy models that differ by one place for every user: the gap is certain."""
    generator = np.random.default_rng(0)
    score = generator.random((200, 30))
    target = generator.integers(0, 30, 200)
    questions = _questions(range(200), [[]] * 200, [[t] for t in target], num_items=30)
    better = score.copy()
    better[np.arange(200), target] += 0.1
    first = rank(lambda cases: score[cases], questions, 30, model="first")
    second = rank(lambda cases: better[cases], questions, 30, model="second")
    gap = {row.metric: row for row in differences(second, first)}["ndcg@30 - first"]
    own = {row.metric: row for row in metrics(second)}["ndcg@30"]
    assert gap.value == pytest.approx(
        second.values["ndcg@30"].mean() - first.values["ndcg@30"].mean()
    )
    assert 0 < gap.low < gap.value < gap.high
    assert gap.high - gap.low < own.high - own.low


def test_one_user_has_no_interval():
    score = np.arange(8.0)[None]
    found = rank(lambda cases: score, _questions([0], [[]], [[7]]), 1)
    assert {row.low for row in metrics(found)} == {None}


def test_different_users_are_not_compared():
    score = np.arange(8.0)[None]
    first, second = (rank(lambda c: score, _questions([u], [[]], [[7]]), 1) for u in (0, 1))
    with pytest.raises(ValueError, match="different users"):
        differences(first, second)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(bad):
    score = np.zeros((1, 8))
    score[0, 3] = bad
    with pytest.raises(ValueError, match="finite"):
        rank(lambda cases: score, _questions([0], [[]], [[7]]), 1)


def test_scores_of_another_shape_and_no_questions_are_refused():
    with pytest.raises(ValueError, match=r"shape \(1, 7\)"):
        rank(lambda cases: np.zeros((1, 7)), _questions([0], [[]], [[7]]), 1)
    with pytest.raises(ValueError, match="nothing is to be found"):
        rank(lambda cases: np.zeros((1, 8)), _questions([0], [[]], [[]]), 1)


def test_whole_numbers_are_scores_too():
    found = rank(lambda cases: np.arange(8)[None], _questions([0], [[7]], [[6]]), 1)
    assert found.values["hr@1"].tolist() == [1.0]


def test_a_part_of_the_cases_is_measured_as_if_they_alone_were_asked(tmp_path):
    generator = np.random.default_rng(3)
    score = generator.normal(size=(12, 9))
    user = np.repeat([4, 2, 7], 4)
    histories = [generator.choice(9, 3, replace=False).tolist() for _ in user]
    truths = [generator.choice(9, 1).tolist() for _ in user]
    everything = Questions.of(user, histories, truths, np.zeros(12, np.int64), 9)
    ranked = rank(lambda cases: score[cases], everything, 3, model="x")
    chosen = np.array([0, 2, 5, 6, 7])
    some = Questions.of(
        user[chosen], [histories[c] for c in chosen], [truths[c] for c in chosen],
        np.zeros(5, np.int64), 9,
    )  # fmt: skip
    alone = rank(lambda cases: score[chosen[cases]], some, 3)
    ranked.save(tmp_path)
    again = Ranked.load(tmp_path, "x")
    assert (again.model, again.split, again.k, again.counts) == ("x", "test", 3, ranked.counts)
    assert again.coverage == ranked.coverage
    for found, expected in ((again, ranked), (again.within(chosen, "test[x]"), alone)):
        assert found.user_U.tolist() == expected.user_U.tolist()
        for name, value in expected.values.items():
            np.testing.assert_array_equal(found.values[name], value)

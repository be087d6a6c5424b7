"""Splits keep clusters whole, labels in proportion and time in order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.split import NAMES, by_cluster, by_time, check
from danlu.errors import DataError

clustered = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=1, max_size=80
).map(lambda rows: (np.array([r[0] for r in rows]), np.array([r[1] for r in rows])))
shares = st.sampled_from([(0.2, 0.1), (0.1, 0.1), (0.3, 0.3), (0.05, 0.5)])


def count(assigned, name):
    return int((assigned == name).sum())


@settings(deadline=None)
@given(clustered, shares, st.integers(0, 5))
def test_a_cluster_is_never_cut(data, share, seed):
    cluster, label = data
    assigned = by_cluster(cluster, label, *share, seed)
    for number in set(cluster.tolist()):
        assert len(set(assigned[cluster == number].tolist())) == 1
    assert set(assigned.tolist()) <= set(NAMES)
    assert len(assigned) == len(cluster)


@settings(deadline=None)
@given(clustered, shares, st.integers(0, 5))
def test_the_shares_hold_to_within_the_largest_cluster(data, share, seed):
    cluster, _ = data
    label = np.full(len(cluster), "")
    assigned = by_cluster(cluster, label, *share, seed)
    largest = np.unique(cluster, return_counts=True)[1].max()
    for name, wanted in (("test", share[0]), ("validation", share[1])):
        assert abs(count(assigned, name) - wanted * len(cluster)) <= largest


def test_the_shares_are_exact_where_each_row_is_its_own_cluster():
    assigned = by_cluster(np.arange(1000), np.full(1000, ""), 0.2, 0.1, 0)
    assert [count(assigned, name) for name in NAMES] == [700, 100, 200]


@pytest.mark.parametrize("seed", range(3))
def test_every_label_keeps_its_share_in_every_split(seed):
    label = np.array(["common"] * 800 + ["rare"] * 100 + ["scarce"] * 20)
    assigned = by_cluster(np.arange(920), label, 0.2, 0.1, seed)
    for name, size in (("common", 800), ("rare", 100), ("scarce", 20)):
        found = [count(assigned[label == name], part) for part in NAMES]
        assert found == [round(0.7 * size), round(0.1 * size), round(0.2 * size)]


def test_a_cluster_of_mixed_labels_counts_for_that_of_most_rows():
    # All clusters but 0 are of "b"; cluster 0 is mostly "a", and alone in that stratum.
    cluster = np.array([0, 0, 0, *range(1, 21)])
    label = np.array(["a", "a", "b"] + ["b"] * 20)
    for seed in range(20):
        assigned = by_cluster(cluster, label, 0.2, 0.1, seed)
        assert set(assigned[:3].tolist()) == {"train"}
        assert count(assigned[3:], "test") == 4


def test_one_enormous_cluster_does_not_swallow_the_test_split():
    cluster = np.array([0] * 500 + list(range(1, 501)))
    for seed in range(10):
        assigned = by_cluster(cluster, np.full(1000, ""), 0.2, 0.1, seed)
        assert count(assigned, "test") <= 200 + 500
        assert count(assigned, "train") > 0


def test_the_split_follows_from_the_seed():
    cluster, label = np.arange(200), np.array(["a", "b"] * 100)
    first = by_cluster(cluster, label, 0.2, 0.1, 1)
    assert (first == by_cluster(cluster, label, 0.2, 0.1, 1)).all()
    assert (first != by_cluster(cluster, label, 0.2, 0.1, 2)).any()


@settings(deadline=None)
@given(
    st.lists(st.integers(2000, 2020), min_size=1, max_size=60), shares, st.permutations(range(60))
)
def test_time_runs_forward_and_no_instant_is_cut(years, share, order):
    time = np.array([f"{year}-01-01" for year in years])
    assigned = by_time(time, *share)
    spans = [time[assigned == name].tolist() for name in NAMES]
    spans = [span for span in spans if span]
    for earlier, later in pairwise(spans):
        assert max(earlier) < min(later)
    shuffled = np.array([i for i in order if i < len(time)])
    assert (by_time(time[shuffled], *share) == assigned[shuffled]).all()


def test_the_shares_of_a_split_by_time_are_exact_where_instants_differ():
    time = np.array([f"{i:04d}" for i in range(1000)])
    assigned = by_time(time, 0.2, 0.1)
    assert [count(assigned, name) for name in NAMES] == [700, 100, 200]
    assert assigned.tolist() == sorted(assigned.tolist(), key=NAMES.index)


@pytest.mark.parametrize(
    ("assigned", "empty"),
    [
        (["train", "test"], "validation"),
        (["train", "validation"], "test"),
        (["test", "validation"], "train"),
        (["train"], "validation and test"),
    ],
)
def test_an_empty_split_is_refused_by_name(assigned, empty):
    with pytest.raises(DataError, match=f"the {empty} split would be empty") as caught:
        check(np.array(assigned))
    assert caught.value.where == "data.split"
    assert caught.value.mend


def test_a_full_split_passes():
    check(np.array(list(NAMES)))

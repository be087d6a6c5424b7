"""A table of interactions against loops over dictionaries, and the splits' promises."""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.interactions import (
    REASONS,
    Cases,
    gather,
    load,
    save,
    split_last,
    split_time,
    training_histories,
)
from danlu.errors import DataError

ROWS = st.lists(
    st.tuples(st.sampled_from("ABCD"), st.sampled_from("pqrst"), st.integers(0, 9)), min_size=1
)


def _by_hand(rows):
    """Return each user's (time, row, item), sorted, without copies."""
    seen, found = set(), defaultdict(list)
    for number, (user, item, time) in enumerate(rows):
        if (user, item, time) not in seen:
            seen.add((user, item, time))
            found[user].append((time, number, item))
    return {user: sorted(own, key=lambda row: row[:2]) for user, own in found.items()}


def _random(n=400, users=20, items=30, seed=0):
    generator = np.random.default_rng(seed)
    user = [f"u{x}" for x in generator.integers(0, users, n)]
    item = [f"i{x}" for x in generator.integers(0, items, n)]
    return user, item, generator.integers(0, 200, n).tolist()


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_a_table_becomes_histories_in_the_order_of_time(rows):
    events, counts, _ = gather(*zip(*rows, strict=True))
    expected = _by_hand(rows)
    assert events.users.tolist() == sorted(expected)
    for number, user in enumerate(events.users):
        own = events.user_N == number
        assert events.items[events.item_N[own]].tolist() == [row[2] for row in expected[user]]
        assert events.row_N[own].tolist() == [row[1] for row in expected[user]]
        assert events.time_N[own].tolist() == [row[0] for row in expected[user]]
    assert counts["rows"] == len(rows)
    assert counts[REASONS[3]] == len(rows) - len(set(rows))
    assert counts["kept"] == len(events) == len(set(rows))
    assert counts["repeats"] == len(set(rows)) - len({row[:2] for row in rows})
    tied = sum(a[0] == b[0] for own in expected.values() for a, b in pairwise(own))
    assert counts["tied"] == tied


def test_rows_without_a_user_item_or_time_are_counted_by_the_first_reason():
    events, counts, reasons = gather(
        ["a", None, "b", "c", " ", "d", "a"],
        ["x", "y", "", "z", None, math.nan, "x "],
        [1, 2, 3, "soon", 5, None, 1.0],
    )
    assert [counts[reason] for reason in REASONS] == [2, 2, 1, 1]
    assert reasons.tolist() == [
        None, REASONS[0], REASONS[1], REASONS[2], REASONS[0], REASONS[1], REASONS[3],
    ]  # fmt: skip
    assert counts["kept"] == len(events) == 1
    assert events.users.tolist() == ["a"]


def test_names_are_taken_as_they_print():
    events, *_ = gather([7, 7], [3, 2], [2, 1])
    assert events.users.tolist() == ["7"]
    assert events.names(0, 2) == ["2", "3"]


def test_times_are_numbers_or_dates():
    day = datetime(1970, 1, 2, tzinfo=UTC)
    events, *_ = gather("aaa", "xyz", ["12.5", 12, 13])
    assert (events.time_N.tolist(), events.dates) == ([12.0, 12.5, 13.0], False)
    events, *_ = gather("aaa", "xyz", ["1970-01-01T09:00:00+08:00", day, day.isoformat()])
    assert (events.time_N.tolist(), events.dates) == ([3600.0, 86_400.0, 86_400.0], True)
    with pytest.raises(DataError, match="have an offset") as error:
        gather("aa", "xy", ["1970-01-01", day])
    assert error.value.where == "events.time"


def test_a_table_with_nothing_in_it_is_refused():
    with pytest.raises(DataError, match="no cell is a time"):
        gather(["a"], ["x"], ["soon"])
    with pytest.raises(DataError, match=r"none of 2 rows has a user.*1 with no user, 1 with no i"):
        gather(["a", ""], [None, "x"], [1, 2])
    with pytest.raises(DataError, match="none of 0 rows"):
        gather([], [], [])
    with pytest.raises(DataError, match="2 users but 1 cells of time"):
        gather(["a", "b"], ["x", "y"], [1])


def test_they_are_the_same_from_disk(tmp_path):
    events, *_ = gather(*_random())
    left, part, _ = split_time(events)
    save(tmp_path, left, part)
    again, of = load(tmp_path)
    assert of.tolist() == part.tolist()
    for name in ("users", "items", "user_N", "item_N", "time_N", "row_N", "dates"):
        np.testing.assert_array_equal(getattr(again, name), getattr(left, name))


def test_leave_one_out_takes_the_last_two_of_every_user():
    events, *_ = gather(*_random())
    left, part, counts = split_last(events, min_user=3)
    for user in np.unique(left.user_N):
        own = part[left.user_N == user].tolist()
        assert own == ["train"] * (len(own) - 2) + ["validation", "test"]
    assert counts["train"] + counts["validation"] + counts["test"] == len(left)


def test_leave_one_out_counts_what_it_leaks():
    """User b goes on when a has long stopped; the model sees all of b but the last two."""
    user = ["a"] * 3 + ["b"] * 5
    events, *_ = gather(user, list("pqrpqrst"), [1, 2, 3, 1, 4, 5, 6, 6])
    _, part, counts = split_last(events, min_user=3)
    assert part.tolist() == ["train", "validation", "test"] + ["train"] * 3 + ["validation", "test"]
    assert counts["later_train"] == 2, "b's at 4 and 5 are later than a's test at 3"
    assert counts["tied_test"] == 1, "b's last two are of one instant"


def test_users_with_few_interactions_are_set_aside():
    user = ["a"] * 3 + ["b"] * 4
    events, *_ = gather(user, list("pqrpqrs"), range(7))
    left, _, counts = split_last(events, min_user=4)
    assert left.users[np.unique(left.user_N)].tolist() == ["b"]
    assert (counts["few_users"], counts["few_events"]) == (1, 3)
    with pytest.raises(DataError, match="no user has 5 interactions"):
        split_last(events, min_user=5)
    with pytest.raises(DataError, match="three interactions are needed"):
        split_last(events, min_user=2)


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_time_split_trains_on_nothing_after_the_moment(seed):
    events, *_ = gather(*_random(seed=seed))
    left, part, counts = split_time(events, min_user=2)
    latest = {name: left.time_N[part == name].max() for name in ("train", "validation")}
    earliest = {name: left.time_N[part == name].min() for name in ("validation", "test")}
    assert latest["train"] < earliest["validation"]
    assert latest["validation"] < earliest["test"]
    assert counts["test"] == (part == "test").sum()


def test_a_time_split_counts_new_users_and_keeps_their_tests():
    user = ["a"] * 6 + ["b"] * 2 + ["c"]
    events, *_ = gather(user, list("pqrstupqp"), [1, 2, 3, 4, 5, 9, 8, 9, 6])
    left, part, counts = split_time(events, min_user=2, test=0.34, validation=0.2)
    assert sorted(left.time_N[part == "test"].tolist()) == [8, 9, 9]
    assert (counts["test_users"], counts["new_users"]) == (2, 1)
    assert training_histories(left, part) == [list("pqrs")]


def test_a_time_split_sets_few_interactions_aside_in_training_only():
    user = ["a"] * 5 + ["b"] + ["b", "a", "b"]
    events, *_ = gather(user, list("pqrstpqrs"), [1, 2, 3, 4, 5, 6, 7, 8, 9])
    left, part, counts = split_time(events, min_user=2, test=0.2, validation=0.15)
    assert (counts["few_users"], counts["few_events"]) == (1, 1)
    assert left.names(0, len(left)) == list("pqrstrqs")
    assert part.tolist() == ["train"] * 5 + ["test", "validation", "test"]


def test_a_split_that_is_empty_is_refused():
    events, *_ = gather(["a"] * 4, list("pqrs"), [1, 1, 1, 1])
    with pytest.raises(DataError, match="split would be empty"):
        split_time(events, min_user=2)
    with pytest.raises(
        DataError, match="no user has 5 interactions in the training period"
    ) as error:
        split_time(events)
    assert error.value.where == "events.min_user"


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_case_tells_all_that_was_before_and_nothing_of_its_own_instant(seed):
    events, *_ = gather(*_random(n=200, seed=seed))
    left, part, _ = split_time(events, min_user=2)
    cases = Cases.of(left, part, "test")
    seen = 0
    for case in range(len(cases)):
        begin, cut, end = cases.begin_C[case], cases.cut_C[case], cases.end_C[case]
        assert (left.user_N[begin:end] == cases.user_C[case]).all()
        assert begin == 0 or left.user_N[begin - 1] != cases.user_C[case]
        assert len(set(left.time_N[cut:end].tolist())) == 1
        assert (left.time_N[begin:cut] < left.time_N[cut]).all()
        assert (part[cut:end] == "test").all()
        seen += end - cut
    assert seen == (part == "test").sum(), "every tested interaction is asked for once"
    assert cases.counts["without_history"] == sum(not h for h in cases.histories(left))


def test_all_at_once_asks_each_user_one_question():
    events, *_ = gather(*_random())
    left, part, _ = split_time(events, min_user=2)
    cases = Cases.of(left, part, "test", "all")
    assert cases.user_C.tolist() == np.unique(left.user_N[part == "test"]).tolist()
    for user, history, truth in zip(
        cases.user_C, cases.histories(left), cases.truth(left), strict=True
    ):
        own = left.user_N == user
        names = left.items[left.item_N]
        assert history == names[own & (part != "test")].tolist()
        assert truth == names[own & (part == "test")].tolist()


def test_the_last_interaction_is_asked_for_given_all_before_it():
    events, *_ = gather(*_random())
    left, part, _ = split_last(events, min_user=3)
    cases = Cases.of(left, part, "test")
    for user, history, truth in zip(
        cases.user_C, cases.histories(left), cases.truth(left), strict=True
    ):
        assert history + truth == left.items[left.item_N[left.user_N == user]].tolist()
        assert len(truth) == 1


def test_a_split_without_interactions_asks_nothing():
    events, *_ = gather(["a"] * 3, list("pqr"), [1, 2, 3])
    cases = Cases.of(events, np.array(["train"] * 3), "test")
    assert len(cases) == 0
    assert cases.histories(events) == []
    assert cases.counts == {"cases": 0, "users": 0, "without_history": 0}

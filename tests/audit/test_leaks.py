"""Leaks are found in spite of case and signs, and nothing else is called one."""

from __future__ import annotations

import pytest

from danlu.audit.leaks import bare, find


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("The room was clean.", "the ROOM was clean"),
        ("房间很干净，服务热情！", "房间很干净 服务热情"),
        ("Very good", "very -- good!!!"),
        ("It's 5 stars", "its 5 stars…"),
        ("snake_case", "snake case"),
        ("ÜBER alles", "über alles"),
        (" padded\n", "padded"),
    ],
)
def test_a_copy_is_found_in_spite_of_case_and_signs(train, held_out):
    assert find(["something else", train], [held_out]) == [0]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("the room was clean", "the room was not clean"),
        ("5 stars", "4 stars"),
        ("房间干净", "房间不干净"),
        ("good", "goods"),
        ("!!!", "???"),
        ("😀", "😡"),
    ],
)
def test_a_different_text_is_no_leak(train, held_out):
    assert find([train], [held_out]) == []


def test_vowel_signs_are_part_of_a_word():
    """The two words differ in nothing but a vowel, which Devanagari writes as a mark."""
    assert find(["दिन"], ["दान"]) == []


def test_rows_are_numbered_from_zero_in_order_and_each_is_listed():
    held_out = ["new", "Old!", "newer", "old", "OLD"]
    assert find(iter(["old", "older"]), held_out) == [1, 3, 4]


def test_texts_of_signs_alone_match_only_themselves():
    assert find(["!!!", "。。。"], ["!!!", "!!", "。。。", "?"]) == [0, 2]
    assert bare("?!") == "?!"
    assert bare("___") == "___"


def test_nothing_leaks_from_or_into_an_empty_split():
    assert find([], ["a", ""]) == []
    assert find(["a"], []) == []

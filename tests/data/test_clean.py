"""What is done to every text before anything else sees it."""

import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.data.clean import normalise, scrub
from danlu.data.privacy import KINDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cafe\u0301", "Café"),
        ("ＡＢＣ１２３，", "ＡＢＣ１２３，"),
        ("a\x00b\x07c\x7fd\x9fe", "abcde"),
        ("好\u200b评\u200e\ufeff", "好评"),
        ("a\u202eb\u2066c", "abc"),
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"),
        ("  a \t\u3000 b\xa0c  ", "a b c"),
        ("a\r\nb\rc\nd", "a\nb\nc\nd"),
        ("a \n \n\n b", "a\nb"),
        ("\n\t \r\n", ""),
        ("", ""),
    ],
)
def test_nfc_text_is_tidied(text, expected):
    assert normalise(text, "NFC") == expected


def test_nfkc_folds_full_width_letters_and_nfc_does_not():
    assert normalise("ＡＢＣ１２３ﬁ", "NFKC") == "ABC123fi"
    assert normalise("ＡＢＣ１２３ﬁ", "NFC") == "ＡＢＣ１２３ﬁ"


def test_none_leaves_the_form_but_still_tidies():
    assert normalise("Cafe\u0301 \x00 x", "none") == "Cafe\u0301 x"


def test_a_form_feed_between_two_words_does_not_join_them():
    clean = normalise("end of page\x0cnext page", "NFC")
    assert clean.split() == ["end", "of", "page", "next", "page"]


@settings(deadline=None)
@given(st.text(), st.sampled_from(["NFC", "NFKC", "none"]))
@example("e\u200b\u0301", "NFC")
@example("가\x00\u11a8", "NFC")
def test_normalising_twice_is_normalising_once(text, form):
    once = normalise(text, form)
    assert normalise(once, form) == once


@settings(deadline=None)
@given(st.text())
def test_what_remains_has_no_controls_and_no_runs_of_space(text):
    clean = normalise(text, "NFC")
    assert clean == clean.strip()
    assert "  " not in clean
    assert "\n\n" not in clean
    assert not any(unicodedata.category(c) == "Cc" for c in clean.replace("\n", ""))


@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)))
def test_ideographs_are_never_changed(text):
    assert normalise(text, "NFC") == text


def test_scrub_finds_a_number_that_invisible_characters_cut():
    assert scrub("138\u200b0013\u200b8000", "NFC", KINDS) == ("[PHONE]", {"phones": 1})


def test_scrub_replaces_only_the_kinds_that_are_wanted():
    assert scrub("a@b.cn 13800138000", "NFC", ("phones",)) == ("a@b.cn [PHONE]", {"phones": 1})


def test_full_width_digits_are_found_under_nfkc():
    assert scrub("１３８００１３８０００", "NFKC", KINDS)[0] == "[PHONE]"

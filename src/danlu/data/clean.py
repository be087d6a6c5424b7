r"""What is done to every text, in training and in serving alike.

>>> scrub("Cafe\u0301  is\x00 fine", "NFC", ())
('Café is fine', {})
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Literal, cast

from danlu.data.privacy import redact

# Controls that are not space; zero-width and bidirectional marks; the byte
# order mark. The zero-width joiner stays: emoji and Indic scripts need it.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)
_SPACES = re.compile(r"[^\S\n]+")
_LINES = re.compile(r" ?\n[ \n]*")


def normalise(text: str, form: str) -> str:
    """Return the text in one Unicode form, without invisible characters or runs of space.

    Parameters
    ----------
    text : str
    form : {"NFC", "NFKC", "none"}
        Unicode normal form (Unicode Standard Annex 15).
    """
    text = _INVISIBLE.sub("", text)  # first: what stood between two characters may join them
    if form != "none":
        text = unicodedata.normalize(cast(Literal["NFC", "NFKC"], form), text)
    text = _SPACES.sub(" ", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _LINES.sub("\n", text).strip()


def scrub(text: str, form: str, kinds: Iterable[str]) -> tuple[str, dict[str, int]]:
    """Normalise, then redact; return the text and how much of each kind was redacted."""
    return redact(normalise(text, form), kinds)

"""Finding personal data in text and replacing them by a placeholder.

>>> redact("Write to li.lei@example.com or 13800138000.")
('Write to [EMAIL] or [PHONE].', {'emails': 1, 'phones': 1})
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date
from ipaddress import ip_address

KINDS = ("emails", "identity_numbers", "bank_cards", "ip_addresses", "phones")
"""What can be redacted, in the order in which it is looked for: the stricter first."""

PLACEHOLDERS = {
    "emails": "[EMAIL]",
    "identity_numbers": "[ID]",
    "bank_cards": "[CARD]",
    "ip_addresses": "[IP]",
    "phones": "[PHONE]",
}

# \d would also match other scripts' digits, on which checksums are undefined.
# The guards use [0-9] rather than \b because Chinese text has no spaces: a
# number directly follows and precedes ideographs, which are \w.
_PATTERNS = {
    "emails": re.compile(
        r"(?<![A-Za-z0-9])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@"
        r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}"
    ),
    "identity_numbers": re.compile(r"(?<![0-9])[1-9][0-9]{16}(?:[0-9](?![0-9])|[Xx])"),
    "bank_cards": re.compile(
        r"(?<![0-9])(?:[2-6][0-9]{12,18}(?![0-9])"
        r"|[2-6][0-9]{3}([ -])[0-9]{4}(?:\1[0-9]{4}){1,2}"
        r"(?:\1[0-9]{1,4})?(?:\1[0-9]{1,3})?(?![0-9])"
        r"|3[47][0-9]{2}([ -])[0-9]{6}\2[0-9]{5}(?![0-9]))"
    ),
    "ip_addresses": re.compile(
        r"(?:(?<![0-9A-Za-z:.])|(?<=[G-Zg-z]:))(?:[0-9A-Fa-f]{0,4}:){2,7}"
        r"(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}|[0-9A-Fa-f]{0,4})(?![0-9A-Za-z])"
        r"|(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])"
    ),
    "phones": re.compile(
        r"(?<![0-9+])(?<![0-9]\.)(?:(?:\+|00)?86[ -]?)?"
        r"1[3-9][0-9][ -]?[0-9]{4}[ -]?[0-9]{4}(?![0-9])"
        r"|(?<![0-9-])(?:0[1-9][0-9]{1,2}-|\(0[1-9][0-9]{1,2}\) ?)[2-9][0-9]{6,7}(?![0-9])"
        r"|(?<![0-9+])\+[1-9](?:[ ()-]{0,2}[0-9]){7,14}(?![0-9])"
    ),
}


def luhn(number: str) -> bool:
    """Whether a digit string passes the checksum of ISO/IEC 7812-1.

    >>> luhn("4111111111111111"), luhn("4111111111111112")
    (True, False)
    """
    digits = [int(digit) for digit in reversed(number)]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def valid_identity_number(number: str) -> bool:
    """Whether 18 characters are a Chinese resident identity number (GB 11643-1999).

    The birth date must exist and the ISO 7064 MOD 11-2 check character match.

    >>> valid_identity_number("11010519491231002X")
    True
    """
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) << (17 - place) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _card_length(match: str) -> int:
    """Return how much of a match is a card: an expiry date or a code may follow the number."""
    ends = [len(match), *(m.start() for m in re.finditer(r"[ -]", match))]
    for end in sorted(ends, reverse=True):
        digits = re.sub(r"[ -]", "", match[:end])
        if 13 <= len(digits) <= 19 and luhn(digits):
            return end
    return 0


def _address_length(match: str) -> int:
    """Return how much of a match is an IP address: a colon may follow it."""
    for end in (len(match), len(match) - 1):
        text = match[:end]
        # "::" and times such as 12:30:45 are no addresses that anybody writes.
        if ":" in text and ((text.count(":") < 7 and "::" not in text) or len(text) < 4):
            continue
        try:
            ip_address(text)
        except ValueError:
            continue
        return end
    return 0


_LENGTH: dict[str, Callable[[str], int]] = {
    "identity_numbers": lambda match: len(match) * valid_identity_number(match),
    "bank_cards": _card_length,
    "ip_addresses": _address_length,
}


def redact(text: str, kinds: Iterable[str] = KINDS) -> tuple[str, dict[str, int]]:
    """Replace personal data by placeholders.

    Parameters
    ----------
    text : str
    kinds : iterable of str
        A subset of :data:`KINDS`.

    Returns
    -------
    text : str
        With ``[EMAIL]``, ``[PHONE]``, ``[ID]``, ``[CARD]`` or ``[IP]`` instead.
    counts : dict of str to int
        How many of each kind were replaced; kinds that were not found are absent.
    """
    wanted = [kind for kind in KINDS if kind in set(kinds)]
    counts: dict[str, int] = {}
    while True:
        before = text
        for kind in wanted:
            text = _redact_kind(text, kind, counts)
        if text == before:  # what was glued to one item is found once that is gone
            return text, counts


def _redact_kind(text: str, kind: str, counts: dict[str, int]) -> str:
    length = _LENGTH.get(kind, len)

    def replace(match: re.Match[str]) -> str:
        size = length(match[0])
        if size == 0:
            return match[0]
        counts[kind] = counts.get(kind, 0) + 1
        return PLACEHOLDERS[kind] + match[0][size:]

    return _PATTERNS[kind].sub(replace, text)

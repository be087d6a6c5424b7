"""The tokens that stand around a text and say nothing of it, in one's own tokenizer and others'."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from danlu.data.modality import BEGIN_ID, END_ID, MASK_ID, NUM_SPECIAL
from danlu.errors import InputError

ROLES = "tokenizer_config.json"
"""Stands beside a tokenizer that came with a checkpoint; says what its special tokens are for."""

_KEYS = (
    "pad_token", "mask_token", "bos_token", "eos_token", "cls_token", "sep_token", "unk_token",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Marks:
    """The special tokens of a tokenizer.

    Attributes
    ----------
    prefix, suffix : tuple of int
        Stand before and behind every document, and every piece of one.
    end : int, optional
        Closes a text, where generation is learnt.
    mask : int, optional
        Stands where a token is hidden.
    special : tuple of int
        All ids that are no text.
    unknown : int, optional
        Stands for what the vocabulary has no token for.
    """

    prefix: tuple[int, ...] = (BEGIN_ID,)
    suffix: tuple[int, ...] = ()
    end: int | None = END_ID
    mask: int | None = MASK_ID
    special: tuple[int, ...] = tuple(range(NUM_SPECIAL))
    unknown: int | None = None

    @property
    def count(self) -> int:
        """How many tokens stand around a document."""
        return len(self.prefix) + len(self.suffix)

    def as_text(self, ids: list[int]) -> list[int]:
        """Return the ids of a text's own with none of a special token among them.

        A text that spells one is text, but a unigram model has its special tokens among its
        pieces, and finds them.
        """
        if self.unknown is None or not (found := set(ids) & set(self.special)):
            return ids
        return [self.unknown if number in found else number for number in ids]

    @property
    def nothing(self) -> list[int]:
        """What a text becomes of which no token is left, for a document is never empty."""
        return [self.special[0] if self.special else 0]

    @classmethod
    def of(cls, tokenizer: Tokenizer, roles: Mapping[str, str], causal: bool) -> Marks:
        """Return the marks of a tokenizer that came with a checkpoint.

        Parameters
        ----------
        tokenizer : Tokenizer
        roles : mapping of str to str
            From :func:`roles_of`.
        causal : bool
            Whether the model foretells: then what its tokenizer puts behind a text closes the
            text, and not each of its pieces.

        Notes
        -----
        What stands around a text is seen by tokenising one.
        """
        probe = "a"
        bare = tokenizer.encode(probe, add_special_tokens=False).ids
        whole = tokenizer.encode(probe, add_special_tokens=True).ids
        ids = {role: tokenizer.token_to_id(token) for role, token in roles.items()}
        added = tokenizer.get_added_tokens_decoder()
        special = {number for number, token in added.items() if token.special}
        special |= {number for number in ids.values() if number is not None}
        first = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), len(whole))
        prefix, suffix = whole[:first], whole[first + len(bare) :]
        end = ids.get("eos_token", ids.get("sep_token"))
        if causal:
            end = suffix[-1] if suffix else end
            suffix = []
        mask, unknown = ids.get("mask_token"), ids.get("unk_token")
        return cls(tuple(prefix), tuple(suffix), end, mask, tuple(sorted(special)), unknown)


OWN = Marks()
"""Those of a tokenizer that danlu trained."""


def roles_of(*contents: Mapping[str, Any]) -> dict[str, str]:
    """Return which token serves as what, from the JSON files beside a tokenizer.

    Parameters
    ----------
    contents : mapping
        Such as ``special_tokens_map.json`` and ``tokenizer_config.json``; the later count.
    """
    found = {}
    for content in contents:
        for key in _KEYS:
            token = content.get(key)
            if isinstance(token, Mapping):
                token = token.get("content")
            if isinstance(token, str):
                found[key] = token
    return found


def read_roles(path: Path) -> dict[str, str]:
    """Return what :func:`write_roles` wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return roles_of(content)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path.name} is damaged: {error}", where=str(path)) from None


def write_roles(path: Path, roles: Mapping[str, str]) -> None:
    """Write which token serves as what, as the Hugging Face layout has it."""
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

"""The tokenizer that lies inside a GGUF file, as a ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from danlu.data.marks import ROLES, write_roles
from danlu.data.text import FILE
from danlu.errors import InputError

_CONTROL = 3  # the kind of a token that stands for no text
_FIELD = "tokenizer.ggml."
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
_CUT: dict[str, list[Any]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)],
    "gpt-2": [pre_tokenizers.ByteLevel(False)],
}
"""How texts are cut before pairs are merged, by what GGUF calls it."""


def write(fields: Mapping[str, Any], folder: Path, where: str) -> None:
    """Write ``tokenizer.json`` and what its special tokens are for.

    Parameters
    ----------
    fields : mapping
        ``tokenizer.ggml.…`` of the file.
    folder : Path
    where : str
        The file, for messages.

    Raises
    ------
    InputError
        If it is of a kind that danlu does not know, or not whole.
    """
    kind, cut = fields.get(f"{_FIELD}model"), fields.get(f"{_FIELD}pre", "gpt-2")
    if kind != "gpt2" or cut not in _CUT:
        raise InputError(
            f"the GGUF's tokenizer is {kind!r}, cut as {cut!r}; danlu knows 'gpt2', cut as "
            f"{' or '.join(map(repr, _CUT))}",
            where=where,
        )
    try:
        tokens, kinds = fields[f"{_FIELD}tokens"], fields[f"{_FIELD}token_type"]
        merges = [tuple(merge.split(" ")) for merge in fields[f"{_FIELD}merges"]]
        vocab = {token: number for number, token in enumerate(tokens)}
        tokenizer = Tokenizer(models.BPE(vocab, merges))
        special = [t for t, of in zip(tokens, kinds, strict=True) if of == _CONTROL]
        ids = {role: fields.get(f"{_FIELD}{name}_token_id") for role, name in _ROLES.items()}
        roles = {role: tokens[number] for role, number in ids.items() if number is not None}
    except Exception as error:  # the tokenizers library raises nothing narrower
        said = " ".join(str(error).split())[:200]
        raise InputError(f"the GGUF's tokenizer is damaged: {said}", where=where) from None
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_CUT[cut])
    tokenizer.decoder = decoders.ByteLevel()
    if fields.get(f"{_FIELD}add_bos_token") and "bos_token" in roles:
        begin = roles["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, vocab[begin])]
        )
    tokenizer.save(str(folder / FILE))
    write_roles(folder / ROLES, roles)

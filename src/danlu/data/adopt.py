"""What comes with a checkpoint besides its weights: a place on disk, and a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from danlu.data.archive import sha256
from danlu.data.marks import ROLES, roles_of, write_roles
from danlu.data.sources import package_files
from danlu.data.text import FILE
from danlu.errors import InputError

_PADDING = 0.05  # share of the rows of an embedding that may be without a token
GGUF = ".gguf"
_OLDER = "special_tokens_map.json"
TOLD = (FILE, ROLES, _OLDER)
"""The files that say something of a checkpoint's texts."""


def locate(where: str) -> Path:
    """Return the folder of a checkpoint, or the file that is one.

    Parameters
    ----------
    where : str
        A folder or a GGUF file, or ``package:NAME/PATH`` of one inside an installed package.

    Raises
    ------
    InputError
        If there is no such package or folder.
    """
    if not where.startswith("package:"):
        path = Path(where)
        if not path.is_dir() and not (path.is_file() and path.suffix == GGUF):
            raise InputError(
                "there is no such folder",
                where=where,
                mend="model.start names a checkpoint's folder",
            )
        return path
    name, inside, files = package_files(where)
    for file in files:
        if inside.endswith(GGUF) and file.as_posix() in (inside, f"{name}/{inside}"):
            return Path(str(file.locate()))
        if file.parent.as_posix() in (inside.rstrip("/"), f"{name}/{inside}".rstrip("/")):
            return Path(str(file.locate())).parent
    raise InputError(f"the package {name!r} holds no folder {inside!r}", where=where)


def fingerprint(files: list[Path]) -> str:
    """Return a hash of the names and contents of files."""
    sums = [f"{path.name} {sha256(path)}" for path in sorted(files)]
    return hashlib.sha256("\n".join(sums).encode()).hexdigest()


def adopt(
    folder: Path, told: Mapping[str, Mapping[str, Any]], rows: int, target: Path
) -> tuple[dict[str, str], int]:
    """Copy a checkpoint's tokenizer, after seeing that it is one and fits the model.

    Parameters
    ----------
    folder : Path
        The checkpoint's.
    told : mapping
        The JSON files beside the tokenizer, by name.
    rows : int
        Of the model's embedding.
    target : Path
        Receives ``tokenizer.json``, which neither cuts nor pads, and what its special tokens
        are for.

    Returns
    -------
    roles : dict of str to str
        See :func:`danlu.data.marks.roles_of`.
    idle : int
        Rows of the embedding that no token has.

    Raises
    ------
    InputError
        If there is none, if it is damaged, or if it is another model's.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"the checkpoint has no {FILE}",
            where=str(folder),
            mend="save its tokenizer in the fast format; danlu reads no other",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{FILE} is damaged: {said}", where=str(path)) from None
    size = 1 + max(tokenizer.get_vocab().values(), default=-1)
    if size > rows or size < (1 - _PADDING) * rows:
        raise InputError(
            f"{FILE} has {size:,} tokens and the model's embedding {rows:,} rows: they are of "
            "different models",
            where=str(path),
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    roles = roles_of(*(told.get(name, {}) for name in (_OLDER, ROLES)))
    absent = [token for token in roles.values() if tokenizer.token_to_id(token) is None]
    if absent:
        raise InputError(f"{FILE} lacks the special token {absent[0]!r}", where=str(path))
    tokenizer.save(str(target / FILE))
    write_roles(target / ROLES, roles)
    return roles, rows - size

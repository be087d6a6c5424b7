"""From text to ids: the tokenizer, and tokenised documents on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from danlu.batch import Batch
from danlu.data.marks import OWN, ROLES, Marks, read_roles
from danlu.data.modality import SPECIAL, Spec, lay_end_to_end
from danlu.errors import DataError

__all__ = ["FILE", "ROLES", "Documents", "Encoder", "coverage", "train"]

FILE = "tokenizer.json"


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer (Sennrich et al., 2016; Radford et al., 2019).

    Parameters
    ----------
    texts : iterable of str
        The training split, and nothing else.
    vocab_size : int
        At least 256 bytes and the special tokens; the result is smaller where
        the texts hold fewer pairs worth merging.

    Returns
    -------
    Tokenizer
        All 256 bytes are in its alphabet, so no text has an unknown token.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True, slots=True)
class Encoder:
    """Turns texts into the ids that the model sees.

    Attributes
    ----------
    tokenizer : Tokenizer
    max_length : int
        Longest document in tokens, special tokens included.
    causal : bool
        Whether a text is closed by an end token, as generation needs.
    marks : Marks
        What stands around a text.
    """

    tokenizer: Tokenizer
    max_length: int
    causal: bool = False
    marks: Marks = OWN

    def __post_init__(self) -> None:
        # A text that spells "<mask>" is text, not a command to the model.
        self.tokenizer.encode_special_tokens = True

    @classmethod
    def load(cls, path: Path, max_length: int, causal: bool) -> Encoder:
        """Read a ``tokenizer.json``, and what is said beside it if it came with a checkpoint."""
        tokenizer, marks = Tokenizer.from_file(str(path)), OWN
        if (roles := path.with_name(ROLES)).is_file():
            marks = Marks.of(tokenizer, read_roles(roles), causal)
        return cls(tokenizer, max_length, causal, marks)

    @property
    def spec(self) -> Spec:
        """What the documents hold."""
        size = 1 + max(self.tokenizer.get_vocab().values())
        if self.marks == OWN:
            return Spec(size)
        return Spec(size, mask_id=self.marks.mask, special_ids=self.marks.special)

    def __call__(self, texts: Sequence[str]) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
        """Encode texts.

        Returns
        -------
        documents : list of NDArray of int32
            At most `max_length` ids each, from ``<bos>`` (or what a checkpoint's tokenizer has).
        lengths : NDArray of int64, shape (n,)
            Tokens before anything was cut; above `max_length` where it was.
        """
        prefix, suffix = self.marks.prefix, self.marks.suffix
        closing = [self.marks.end] if self.causal and self.marks.end is not None else []
        documents, lengths = [], []
        for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            ids = [*prefix, *self.marks.as_text(encoding.ids), *closing]
            lengths.append(len(ids) + len(suffix))
            ids = [*ids[: self.max_length - len(suffix)], *suffix]
            documents.append(np.asarray(ids or self.marks.nothing, np.int32))
        return documents, np.asarray(lengths, np.int64)

    def bytes_of(self, ids: NDArray[np.int32]) -> int:
        """Return how many bytes of text the ids hold; special tokens hold none."""
        plain = [i for i in ids.tolist() if i not in self.marks.special]
        if not isinstance(self.tokenizer.decoder, decoders.ByteLevel):
            return len(self.tokenizer.decode(plain).encode())
        # In the byte-level alphabet a token has one letter for each byte.
        return sum(len(self.tokenizer.id_to_token(i) or "") for i in plain)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the readable text of each id, for people to look at.

        A token that holds part of a character's bytes reads as ``·``.
        """
        return [
            (self.tokenizer.id_to_token(i) or "")
            if i in self.marks.special
            else self.tokenizer.decode([i]).replace("\ufffd", "·")
            for i in map(int, ids)
        ]


@dataclass(frozen=True, slots=True)
class Documents:
    """Tokenised documents, memory-mapped: one long row of ids and where each begins.

    Attributes
    ----------
    ids : NDArray of int32, shape (total,)
    offsets : NDArray of int64, shape (n + 1,)
    text_N : NDArray of int64, shape (n,)
        The text that each document is, or is a piece of; ascending.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    text_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[row] : self.offsets[row + 1]]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens in each document."""
        return np.diff(self.offsets)

    def lay(self, rows: NDArray[np.int64], generator: Any = None) -> Batch:  # noqa: ARG002 - nothing about a text's own form is drawn
        """Lay documents end to end in a single row."""
        ids = np.concatenate([self[row] for row in rows.tolist()])
        return lay_end_to_end(ids, self.sizes[rows], rows)

    @classmethod
    def of(
        cls, documents: Sequence[NDArray[np.int32]], text_N: NDArray[np.int64] | None = None
    ) -> Documents:
        """Lay documents end to end; without `text_N` each is a text of its own."""
        if not documents:
            raise DataError("there is no document to tokenise")
        sizes = np.fromiter(map(len, documents), np.int64, len(documents))
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        text_N = np.arange(len(documents)) if text_N is None else text_N
        return cls(np.concatenate(documents), offsets, text_N)

    @classmethod
    def in_pieces(
        cls, documents: Sequence[NDArray[np.int32]], length: int, marks: Marks = OWN
    ) -> Documents:
        """Cut documents into pieces of at most `length` tokens, each between its marks.

        Every token between a text's marks stands in one piece, and in one only.
        """
        pieces: list[NDArray[np.int32]] = []
        text_N: list[int] = []
        prefix, suffix = (np.array(ids, np.int32) for ids in (marks.prefix, marks.suffix))
        room = length - marks.count
        for number, document in enumerate(documents):
            body = document[len(prefix) : len(document) - len(suffix)]
            starts = range(0, max(1, len(body)), room)
            pieces += [np.concatenate((prefix, body[i : i + room], suffix)) for i in starts]
            text_N += [number] * len(starts)
        return cls.of(pieces, np.asarray(text_N, np.int64))

    @classmethod
    def load(cls, folder: Path, name: str) -> Documents:
        """Map the documents that :meth:`save` wrote."""
        ids = np.load(folder / f"{name}.ids.npy", mmap_mode="r")
        offsets, text_N = (np.load(folder / f"{name}.{part}.npy") for part in ("offsets", "texts"))
        return cls(ids, offsets, text_N)

    def save(self, folder: Path, name: str) -> None:
        """Write ``NAME.ids.npy``, ``NAME.offsets.npy`` and ``NAME.texts.npy``."""
        np.save(folder / f"{name}.ids.npy", self.ids)
        np.save(folder / f"{name}.offsets.npy", self.offsets)
        np.save(folder / f"{name}.texts.npy", self.text_N)


def coverage(
    texts: Sequence[str],
    lengths: NDArray[np.int64],
    documents: Documents,
    marks: Marks = OWN,
) -> dict[str, Any]:
    """Return what a report says of one split's tokens.

    Parameters
    ----------
    texts : sequence of str
    lengths : NDArray of int64, shape (n,)
        Tokens of each text, before anything was cut.
    documents : Documents
        What became of them.
    marks : Marks
        What stands around each.

    Returns
    -------
    dict
        ``tokens`` as the model sees them, ``bytes_per_token`` (UTF-8), the documents that
        texts go on in (``pieces``), ``truncated`` texts and the share of tokens cut.
    """
    total, pieces = int(lengths.sum()), len(documents) - len(texts)
    seen = np.bincount(documents.text_N, documents.sizes, minlength=len(texts))
    again = np.bincount(documents.text_N, minlength=len(texts)) - 1
    seen -= marks.count * again  # of each further piece
    size = sum(len(text.encode()) for text in texts)
    return {
        "documents": len(texts),
        "pieces": pieces,
        "tokens": int(documents.offsets[-1]),
        "bytes_per_token": round(size / max(1, total - marks.count * len(texts)), 4),
        "p50_tokens": int(np.quantile(lengths, 0.5)),
        "p95_tokens": int(np.quantile(lengths, 0.95)),
        "truncated": int((seen < lengths).sum()),
        "truncated_token_share": round(1 - float(seen.sum()) / total, 5),
    }

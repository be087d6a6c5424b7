"""From a recogniser's frames to words, and how wrong they are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from danlu.errors import DataError

Floats = NDArray[np.floating]


def ctc_greedy(
    scores: Floats, lengths: NDArray[np.int64] | None = None, blank: int = 0
) -> list[list[int]]:
    """Read the likeliest label of every frame: repeats become one, blanks none.

    Parameters
    ----------
    scores : NDArray of float, shape (n, T, V)
        Probabilities or their logarithms, or unnormalised scores.
    lengths : NDArray of int64, shape (n,), optional
        Frames of each utterance; all of T if not given.
    blank : int
        The label that stands for nothing.

    Returns
    -------
    list of list of int
        The labels of each utterance.

    Raises
    ------
    DataError
        If the shapes do not agree, or a score is not a number.

    Notes
    -----
    Best-path decoding (Graves et al., "Connectionist temporal classification", 2006).

    Examples
    --------
    >>> frames = [1, 1, 0, 1, 2, 2, 0]  # 0 is the blank
    >>> ctc_greedy(np.eye(3)[frames][None])
    [[1, 1, 2]]
    """
    if scores.ndim != 3 or not 0 <= blank < scores.shape[2]:
        raise DataError(
            f"scores of shape {scores.shape} with blank {blank} cannot be read",
            mend="give (utterances, frames, labels), and a blank among the labels",
        )
    n, longest, _ = scores.shape
    lengths = np.full(n, longest, np.int64) if lengths is None else np.asarray(lengths)
    if lengths.shape != (n,) or (lengths < 0).any() or (lengths > longest).any():
        raise DataError(f"lengths must be {n} numbers from 0 to {longest}")
    inside = np.arange(longest) < lengths[:, None]
    if np.isnan(scores[inside]).any():
        raise DataError("a score is not a number", mend="look at the training log for divergence")
    best = scores.argmax(axis=2)
    before = np.concatenate((np.full((n, 1), -1), best[:, :-1]), axis=1) if longest else best
    keep = inside & (best != before) & (best != blank)
    return [row[kept].tolist() for row, kept in zip(best, keep, strict=True)]


@dataclass(frozen=True, slots=True)
class EditCounts:
    """Errors of each utterance, ready to be resampled.

    Attributes
    ----------
    substitutions, insertions, deletions : NDArray of int64, shape (n,)
        Of a shortest way from what was said to what was heard. Their sum is unique; how it is
        split is not always.
    units : NDArray of int64, shape (n,)
        Words or characters that were said.
    """

    substitutions: NDArray[np.int64]
    insertions: NDArray[np.int64]
    deletions: NDArray[np.int64]
    units: NDArray[np.int64]

    @property
    def errors(self) -> NDArray[np.int64]:
        """Edits of each utterance."""
        return self.substitutions + self.insertions + self.deletions

    def rate(self, rows: NDArray[np.integer] | slice = slice(None)) -> float:
        """Return errors over units of all utterances, or of those given (a resample).

        It may exceed 1; without any unit it is not a number.
        """
        said = self.units[rows].sum()
        return float(self.errors[rows].sum() / said) if said else float("nan")


def count_edits(
    said: Sequence[Sequence[Hashable]], heard: Sequence[Sequence[Hashable]]
) -> EditCounts:
    """Compare utterances unit by unit.

    Parameters
    ----------
    said, heard : sequence of sequences
        What was to be recognised, and what was. Units are words, characters or ids.

    Raises
    ------
    DataError
        If there is not one answer for each utterance.

    Examples
    --------
    >>> counts = count_edits([["the", "cat", "sat"]], [["the", "bat"]])
    >>> int(counts.substitutions[0]), int(counts.deletions[0]), round(counts.rate(), 3)
    (1, 1, 0.667)
    """
    if len(said) != len(heard):
        raise DataError(f"{len(said)} utterances, but {len(heard)} answers")
    found = np.zeros((len(said), 3), np.int64)
    column = {"replace": 0, "insert": 1, "delete": 2}
    for row, (truth, answer) in enumerate(zip(said, heard, strict=True)):
        for edit in Levenshtein.editops(truth, answer):
            found[row, column[edit.tag]] += 1
    units = np.fromiter(map(len, said), np.int64, len(said))
    return EditCounts(found[:, 0], found[:, 1], found[:, 2], units)


def word_errors(said: Sequence[str], heard: Sequence[str]) -> EditCounts:
    """Compare texts word by word, words being what stands between spaces (WER)."""
    return count_edits([text.split() for text in said], [text.split() for text in heard])


def character_errors(said: Sequence[str], heard: Sequence[str]) -> EditCounts:
    """Compare texts character by character, runs of spaces counting as one (CER)."""
    return count_edits(*([" ".join(text.split()) for text in texts] for texts in (said, heard)))

"""From a recogniser's positions to text, and how wrong it is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from sklearn.neighbors import NearestNeighbors
from torch import nn

from danlu.batch import Batch
from danlu.errors import DataError
from danlu.evaluate.baseline import Answer
from danlu.evaluate.intervals import WILSON, Bootstrap, bootstrap_name, wilson
from danlu.log import Metric

Floats = NDArray[np.floating[Any]]


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


@torch.inference_mode()
def heard(
    model: nn.Module, batches: Iterable[Batch], num_rows: int, device: torch.device
) -> list[list[int]]:
    """Return the labels that a recogniser hears in each document, in the data set's order.

    Parameters
    ----------
    model : nn.Module
        On `device`; left in evaluation mode. Its outputs are
        :class:`danlu.model.transcript.Heard`.
    batches : iterable of Batch
        Together they hold every row from 0 to ``num_rows - 1`` once.
    num_rows : int
    device : torch.device
    """
    model.eval()
    found: list[list[int]] = [[] for _ in range(num_rows)]
    for batch in batches:
        said = model(batch.to(device))
        labels = ctc_greedy(said.logits_NLC.cpu().numpy(), said.length_N.cpu().numpy())
        assert batch.row_N is not None, "batches of documents name their rows"
        for row, one in zip(batch.row_N.tolist(), labels, strict=True):
            found[row] = one
    return found


def baselines(
    features: dict[str, NDArray[np.float64]], texts: dict[str, Sequence[str]]
) -> list[Answer]:
    """Say what is said most often; and what was said in the training clip that is most alike.

    Parameters
    ----------
    features : dict of str to NDArray of float64, shape (n, d)
        Standardised statistics of the splits' clips.
    texts : dict of str to sequence of str
        The splits' transcripts.
    """
    train = np.asarray(texts["train"])
    each, count = np.unique(train, return_counts=True)
    commonest = np.full(len(texts["test"]), each[count.argmax()])
    search = NearestNeighbors(n_neighbors=1).fit(features["train"])
    nearest = train[search.kneighbors(features["test"], return_distance=False)[:, 0]]
    about = {"neighbours": 1, "numbers_of_a_clip": features["train"].shape[1]}
    return [Answer("majority", commonest, {}), Answer("nearest-clip", nearest, about)]


def measure(
    said: Sequence[str], answers: dict[str, Sequence[str]], bootstrap: Bootstrap
) -> tuple[list[Metric], dict[str, dict[str, Floats]]]:
    """Measure what several models heard in one split.

    Parameters
    ----------
    said : sequence of str
        The transcripts.
    answers : dict of str to sequence of str
        What each model wrote instead.
    bootstrap : Bootstrap
        Resamples clips.

    Returns
    -------
    rows : list of Metric
        The character and the word error rate (``cer``, ``wer``); how the former's edits are of
        three kinds; and the share of transcripts without an error (``exact_match``).
    resampled : dict of str to dict of str to NDArray
        Model, metric and its values on the resamples, for paired differences.
    """
    rows: list[Metric] = []
    resampled: dict[str, dict[str, Floats]] = {}
    for model, texts in answers.items():
        characters, words = character_errors(said, texts), word_errors(said, texts)
        right = (characters.errors == 0).astype(np.int64)
        parts = {
            "cer": (characters.errors, characters.units),
            "wer": (words.errors, words.units),
            "substitutions": (characters.substitutions, characters.units),
            "insertions": (characters.insertions, characters.units),
            "deletions": (characters.deletions, characters.units),
            "exact_match": (right, np.ones_like(right)),
        }
        resampled[model] = {}
        for name, (count, of) in parts.items():
            draws = count[bootstrap.rows].sum(1) / of[bootstrap.rows].sum(1)
            resampled[model][name], value = draws, float(count.sum() / of.sum())
            (low, high), how = bootstrap.interval(draws), bootstrap_name(bootstrap.resamples)
            if name == "exact_match":
                (low, high), how = wilson(int(right.sum()), len(right)), WILSON
            rows.append(
                Metric("evaluate", model, "test", name, value, low, high, len(said), "share", how)
            )
    return rows, resampled


def compared(said: str, heard: str) -> list[dict[str, str]]:
    """Return a transcript beside what was heard, piece by piece.

    Examples
    --------
    >>> [tuple(piece.values()) for piece in compared("cat", "bats")]
    [('replace', 'c', 'b'), ('equal', 'at', 'at'), ('insert', '', 's')]
    """
    return [
        {
            "edit": one.tag,
            "said": said[one.src_start : one.src_end],
            "heard": heard[one.dest_start : one.dest_end],
        }
        for one in Levenshtein.opcodes(said, heard)
    ]

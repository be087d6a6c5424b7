"""The cheap classical models that always stand beside ours."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

from danlu.recipe.sections import Baseline

_SPACED = re.compile(r"\s")
_WORD = re.compile(r"(?u)\b\w+\b")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a baseline says of the test split.

    Attributes
    ----------
    model : str
    answer : NDArray of float64
        Probabilities of shape (n, C), or values of shape (n,).
    settings : dict
        What was chosen, and how.
    """

    model: str
    answer: NDArray[np.float64]
    settings: dict[str, Any]


def analyzer(texts: list[str], wanted: str) -> tuple[str, tuple[int, int]]:
    """Return the unit and lengths of the n-grams.

    A script written without spaces has fewer than one space in 20 characters.
    """
    if wanted == "auto":
        sample = "".join(texts[:1000])
        spaces = len(_SPACED.findall(sample)) / max(1, len(sample))
        wanted = "word" if spaces > 0.05 else "char"
    return wanted, ((1, 3) if wanted == "char" else (1, 2))


def fit(
    texts: dict[str, list[str]],
    truth: dict[str, NDArray[Any]],
    task: str,
    settings: Baseline,
    seed: int,
) -> list[Answer]:
    """Fit every baseline on the training split.

    Parameters
    ----------
    texts : dict of str to list of str
        The splits' texts.
    truth : dict of str to NDArray
        The splits' labels: int64 (n,), bool (n, C) or float64 (n,).
    task : {"classify", "multilabel", "regress"}
    settings : Baseline
    seed : int

    Returns
    -------
    list of Answer
        The trivial one (``majority`` or ``mean``) and the linear one.

    Notes
    -----
    The regularisation is chosen on the validation split, as our own
    checkpoints are: a baseline that was not tuned proves nothing.
    """
    trivial = _trivial(truth["train"], len(texts["test"]), task)
    unit, lengths = analyzer(texts["train"], settings.analyzer)
    if unit == "word" and not any(map(_WORD.search, texts["train"])):
        unit, lengths = "char", (1, 3)  # texts of signs alone hold no word
    # Rare n-grams only add noise, except where the whole corpus is small.
    rare = 2 if len(texts["train"]) >= 1000 else 1
    vectorizer = TfidfVectorizer(
        analyzer=unit, ngram_range=lengths, min_df=rare, sublinear_tf=True,
        token_pattern=_WORD.pattern if unit == "word" else None,
    )  # fmt: skip
    features = {"train": vectorizer.fit_transform(texts["train"])}
    features |= {name: vectorizer.transform(texts[name]) for name in ("validation", "test")}
    best: tuple[float, float, Any] | None = None
    for strength in settings.inverse_regularization:
        model = _linear(task, strength, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # judged by its score below
            warnings.filterwarnings("ignore", "Label .* is present in all training examples")
            model.fit(features["train"], truth["train"])
        score = _validation_score(model, features["validation"], truth["validation"], task)
        if best is None or score > best[0]:
            best = score, strength, model
    assert best is not None
    score, strength, model = best
    chosen = {
        "analyzer": unit,
        "ngrams": list(lengths),
        "features": len(vectorizer.vocabulary_),
        "inverse_regularization": strength,
        "chosen_on": "validation",
        "tried": list(settings.inverse_regularization),
    }
    if task == "regress":
        return [trivial, Answer("tfidf-ridge", model.predict(features["test"]), chosen)]
    return [trivial, Answer("tfidf-logreg", model.predict_proba(features["test"]), chosen)]


def _trivial(truth: NDArray[Any], n: int, task: str) -> Answer:
    """Say for every row what is most common in training."""
    if task == "regress":
        return Answer("mean", np.full(n, truth.mean()), {})
    shares = truth.mean(0) if task == "multilabel" else np.bincount(truth) / len(truth)
    return Answer("majority", np.tile(shares, (n, 1)), {})


def _linear(task: str, strength: float, seed: int) -> Any:
    if task == "regress":
        return Ridge(alpha=1 / strength, random_state=seed)
    model = LogisticRegression(C=strength, max_iter=1000, random_state=seed)
    return OneVsRestClassifier(model) if task == "multilabel" else model


def _validation_score(model: Any, features: Any, truth: NDArray[Any], task: str) -> float:
    """Return the accuracy, or minus the squared error; higher is better."""
    answer = model.predict(features)
    if task == "regress":
        return -float(((answer - truth) ** 2).mean())
    return float((answer == truth).mean())

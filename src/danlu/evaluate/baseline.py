"""The cheap classical models that always stand beside ours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import mean_pinball_loss
from sklearn.multiclass import OneVsRestClassifier

from danlu.recipe.sections import Baseline

_MOST = 255
_SPACED = re.compile(r"\s")
_WORD = re.compile(r"(?u)\b\w+\b")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a baseline says of the test split.

    Attributes
    ----------
    model : str
    answer : NDArray
        Probabilities of shape (n, C), values of shape (n,), or quantiles of shape (n, Q); or
        of each row a text.
    settings : dict
        What was chosen, and how.
    """

    model: str
    answer: NDArray[Any]
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
    features, about = tfidf(texts, settings)
    name = "tfidf-ridge" if task == "regress" else "tfidf-logreg"
    strengths = settings.inverse_regularization
    return [trivial, _chosen(name, features, truth, task, strengths, seed, about)]


def tfidf(texts: dict[str, list[str]], settings: Baseline) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the splits' texts as sparse vectors of n-grams, and how they were made.

    Counted and weighed on the training split alone (Spärck Jones, 1972).
    """
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
    return features, {"analyzer": unit, "ngrams": list(lengths)}


def mixed(
    blocks: Sequence[dict[str, Any]],
    truth: dict[str, NDArray[Any]],
    task: str,
    settings: Baseline,
    seed: int,
    about: dict[str, Any],
    *,
    with_texts: bool,
) -> list[Answer]:
    """Fit the trivial model, and a linear one on several sets of features side by side.

    Parameters
    ----------
    blocks : sequence of dict of str to array or sparse array, shape (n, d)
        The splits' rows as vectors, for each kind of data.
    truth, task, seed
        As for :func:`fit`.
    settings : Baseline
    about : dict
        What the settings are to say of the features.
    with_texts : bool
        Whether TF-IDF is among them, which gives the linear model its name.
    """
    features = {
        name: sparse.hstack([sparse.csr_array(block[name]) for block in blocks], format="csr")
        for name in blocks[0]
    }
    name = ("tfidf-" if with_texts else "") + ("ridge" if task == "regress" else "logreg")
    strengths = settings.inverse_regularization
    trivial = _trivial(truth["train"], features["test"].shape[0], task)
    return [trivial, _chosen(name, features, truth, task, strengths, seed, about)]


def linear(
    features: dict[str, NDArray[np.float32]],
    truth: dict[str, NDArray[Any]],
    task: str,
    strengths: Sequence[float],
    seed: int,
) -> list[Answer]:
    """Fit the trivial model, and a linear one: in closed form where values are foretold.

    Parameters
    ----------
    features : dict of str to NDArray of float32, shape (n, d)
        The splits' rows as vectors.
    truth, task, seed
        As for :func:`fit`.
    strengths : sequence of float
        C of the logistic regression; the validation split chooses.

    Notes
    -----
    Least squares without regularisation (numpy's ``lstsq``): where columns depend on each
    other, the solution of least norm.
    """
    trivial = _trivial(truth["train"], len(features["test"]), task)
    if task != "regress":
        return [trivial, _chosen("logreg", features, truth, task, strengths, seed, {})]
    wide = {k: np.hstack([np.ones((len(v), 1)), v]) for k, v in features.items() if len(v)}
    weights = np.linalg.lstsq(wide["train"].astype(np.float64), truth["train"], rcond=None)[0]
    about = {"features": features["train"].shape[1], "form": "closed"}
    return [trivial, Answer("least-squares", wide["test"] @ weights, about)]


def boosting(
    cells: dict[str, NDArray[np.float64]],
    categorical: list[bool],
    truth: dict[str, NDArray[Any]],
    task: str,
    seed: int,
    quantiles: Sequence[float] = (),
) -> Answer:
    """Fit histogram gradient boosting (Ke et al., "LightGBM", 2017; scikit-learn's).

    Parameters
    ----------
    cells : dict of str to NDArray of float64, shape (n, columns)
        Numbers, and categories as places; NaN where missing.
    categorical : list of bool
        Which columns are categories.
    truth, task, seed
        As for :func:`fit`. The validation split chooses rate, leaves and number of trees.
    quantiles : sequence of float
        If there are any, a model for each, chosen by its pinball loss; the answers of a row
        are put in rising order.
    """
    # A histogram has 255 bins, which is the most that a category may have.
    named = [is_one and np.nanmax(column, initial=0) < _MOST
             for is_one, column in zip(categorical, cells["train"].T, strict=True)]  # fmt: skip
    fixed = {"categorical_features": named, "early_stopping": False, "random_state": seed}
    about = {"chosen_on": "validation"}
    if not quantiles:
        options, model = _boosted(cells, truth, task, fixed)
        answer = model.predict if task == "regress" else model.predict_proba
        return Answer("boosting", answer(cells["test"]), options | about)
    each = []
    for level in quantiles:
        options, model = _boosted(cells, truth, task, fixed, level)
        about[f"at {level:g}"] = ", ".join(f"{k} {v}" for k, v in options.items())
        each.append(model.predict(cells["test"]))
    return Answer("boosting", np.sort(np.stack(each, axis=1), axis=1), about)


def _boosted(
    cells: dict[str, NDArray[np.float64]],
    truth: dict[str, NDArray[Any]],
    task: str,
    fixed: dict[str, Any],
    level: float | None = None,
) -> tuple[dict[str, Any], Any]:
    """Return the options that do best on the validation split, and the model."""
    made = HistGradientBoostingRegressor if task == "regress" else HistGradientBoostingClassifier
    aim = {} if level is None else {"loss": "quantile", "quantile": level}
    best: tuple[float, dict[str, Any], Any] | None = None
    for rate in (0.05, 0.1):
        for leaves in (15, 31):
            for trees in (100, 300):
                options = {"learning_rate": rate, "max_leaf_nodes": leaves, "max_iter": trees}
                model = made(**options, **fixed, **aim)
                if task == "multilabel":
                    model = OneVsRestClassifier(model)
                model.fit(cells["train"], truth["train"])
                if level is None:
                    score = _validation_score(model, cells["validation"], truth["validation"], task)
                else:
                    said = model.predict(cells["validation"])
                    score = -float(mean_pinball_loss(truth["validation"], said, alpha=level))
                if best is None or score > best[0]:
                    best = score, options, model
    assert best is not None
    return best[1:]


def quantiles(train: NDArray[np.float64], n: int, levels: Sequence[float]) -> Answer:
    """Say of every one of `n` rows the quantiles of the training split."""
    return Answer("quantiles", np.tile(np.quantile(train, levels), (n, 1)), {})


def _chosen(
    name: str,
    features: dict[str, Any],
    truth: dict[str, NDArray[Any]],
    task: str,
    strengths: Sequence[float],
    seed: int,
    about: dict[str, Any],
) -> Answer:
    """Return a linear model whose regularisation the validation split chose."""
    best: tuple[float, float, Any] | None = None
    for strength in strengths:
        model = _linear(task, strength, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # judged by its score below
            warnings.filterwarnings("ignore", "Label .* is present in all training examples")
            model.fit(features["train"], truth["train"])
        score = _validation_score(model, features["validation"], truth["validation"], task)
        if best is None or score > best[0]:
            best = score, strength, model
    assert best is not None
    _, strength, model = best
    chosen = about | {
        "features": features["train"].shape[1],
        "inverse_regularization": strength,
        "chosen_on": "validation",
        "tried": list(strengths),
    }
    answer = model.predict if task == "regress" else model.predict_proba
    return Answer(name, answer(features["test"]), chosen)


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

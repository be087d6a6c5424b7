"""The baselines against a pipeline built by hand on the same n-grams."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from danlu.evaluate import baseline
from danlu.evaluate.baseline import analyzer, fit
from danlu.recipe.sections import Baseline

GOOD = ["clean room and kind staff", "lovely breakfast", "great view and quiet nights"]
BAD = ["dirty room and rude staff", "cold breakfast", "noisy street and thin walls"]


def _corpus(n=40, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, n)
    truth[:2] = 0, 1
    texts = [
        f"{(BAD, GOOD)[label][generator.integers(3)]} visit{generator.integers(9)}"
        for label in truth
    ]
    return texts, truth


def _splits():
    found = {name: _corpus(n, n) for name, n in (("train", 40), ("validation", 16), ("test", 12))}
    return {k: v[0] for k, v in found.items()}, {k: v[1] for k, v in found.items()}


def _vectorized(texts, **settings):
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=1, **settings)
    train = vectorizer.fit_transform(texts["train"])
    return train, vectorizer.transform(texts["validation"]), vectorizer.transform(texts["test"])


def test_the_trivial_classifier_says_the_training_shares():
    texts, truth = _splits()
    truth["train"] = np.array([0] * 30 + [1] * 10)
    trivial, _ = fit(texts, truth, "classify", Baseline(), 0)
    assert trivial.model == "majority"
    assert trivial.answer == pytest.approx(np.tile([0.75, 0.25], (12, 1)))


def test_the_linear_classifier_is_a_logistic_regression_on_words_and_pairs():
    texts, truth = _splits()
    _, ours = fit(texts, truth, "classify", Baseline(inverse_regularization=(4.0,)), 3)
    train, _, test = _vectorized(texts, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    model = LogisticRegression(C=4.0, max_iter=1000).fit(train, truth["train"])
    assert ours.model == "tfidf-logreg"
    assert ours.answer == pytest.approx(model.predict_proba(test), abs=1e-6)
    assert ours.settings["analyzer"] == "word"
    assert ours.settings["features"] == train.shape[1]


def test_the_linear_classifier_of_characters_counts_one_to_three():
    texts, truth = _splits()
    settings = Baseline(analyzer="char", inverse_regularization=(1.0,))
    _, ours = fit(texts, truth, "classify", settings, 0)
    train, _, test = _vectorized(texts, ngram_range=(1, 3), analyzer="char")
    model = LogisticRegression(C=1.0, max_iter=1000).fit(train, truth["train"])
    assert ours.answer == pytest.approx(model.predict_proba(test), abs=1e-6)
    assert ours.settings["ngrams"] == [1, 3]


def test_it_learns_what_can_be_learnt():
    texts, truth = _splits()
    trivial, ours = fit(texts, truth, "classify", Baseline(), 0)
    assert (ours.answer.argmax(1) == truth["test"]).mean() == 1.0
    assert (trivial.answer.argmax(1) == truth["test"]).mean() < 1.0


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        (["这家酒店的早餐很难吃", "房间干净，服务热情，下次还来"], "char"),
        (["the breakfast was cold", "a kind and helpful staff"], "word"),
        (["ห้องสะอาดมาก", "อาหารเช้าไม่อร่อย"], "char"),
        (["이 호텔의 아침은 맛이 없다", "방이 깨끗하다 다시 오고 싶다"], "word"),
        ([""], "char"),
    ],
)
def test_the_unit_follows_the_script(texts, unit):
    assert analyzer(texts, "auto") == (unit, (1, 3) if unit == "char" else (1, 2))


def test_the_unit_that_is_asked_for_wins_over_the_script():
    assert analyzer(["这家酒店的早餐很难吃"], "word") == ("word", (1, 2))
    assert analyzer(["the breakfast was cold"], "char") == ("char", (1, 3))


def test_the_regularisation_is_the_one_best_on_validation():
    """The validation split alone decides: opposite labels there turn the choice round."""
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(30)]
    texts = {
        name: [" ".join(generator.choice(words, 4)) for _ in range(n)]
        for name, n in (("train", 60), ("validation", 60), ("test", 20))
    }
    truth = {name: generator.integers(0, 2, len(rows)) for name, rows in texts.items()}
    strengths = (0.01, 1.0, 100.0)
    train, validation, test = _vectorized(texts, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    models = {
        c: LogisticRegression(C=c, max_iter=1000).fit(train, truth["train"]) for c in strengths
    }
    chosen = set()
    for labels in (truth["validation"], 1 - truth["validation"]):
        truth["validation"] = labels
        scores = {c: model.score(validation, labels) for c, model in models.items()}
        best = max(strengths, key=scores.__getitem__)
        assert sorted(scores.values())[-1] > sorted(scores.values())[-2], "the case must be clear"
        settings = Baseline(inverse_regularization=strengths)
        _, ours = fit(texts, truth, "classify", settings, 0)
        assert ours.settings["inverse_regularization"] == best
        assert ours.settings["tried"] == list(strengths)
        assert ours.answer == pytest.approx(models[best].predict_proba(test), abs=1e-6)
        chosen.add(best)
    assert len(chosen) == 2


def test_the_regressor_is_a_ridge_and_the_trivial_one_the_training_mean():
    texts, classes = _splits()
    truth = {name: labels * 3.0 + np.arange(len(labels)) / 9 for name, labels in classes.items()}
    trivial, ours = fit(texts, truth, "regress", Baseline(inverse_regularization=(4.0,)), 0)
    train, _, test = _vectorized(texts, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    expected = Ridge(alpha=0.25).fit(train, truth["train"]).predict(test)
    assert (trivial.model, ours.model) == ("mean", "tfidf-ridge")
    assert trivial.answer == pytest.approx(np.full(12, truth["train"].mean()))
    assert ours.answer == pytest.approx(expected, abs=1e-4)


def test_several_labels_are_a_regression_for_each():
    texts, classes = _splits()
    truth = {
        name: np.column_stack([
            labels == 1,
            ["breakfast" in text for text in texts[name]],
            ["room" in text or "view" in text for text in texts[name]],
        ])
        for name, labels in classes.items()
    }  # fmt: skip
    settings = Baseline(inverse_regularization=(4.0,))
    trivial, ours = fit(texts, truth, "multilabel", settings, 0)
    train, _, test = _vectorized(texts, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    assert trivial.answer == pytest.approx(np.tile(truth["train"].mean(0), (12, 1)))
    for column in range(3):
        model = LogisticRegression(C=4.0, max_iter=1000).fit(train, truth["train"][:, column])
        assert ours.answer[:, column] == pytest.approx(model.predict_proba(test)[:, 1], abs=1e-6)


def test_a_label_that_every_training_row_bears_is_no_trouble():
    texts, classes = _splits()
    truth = {
        name: np.column_stack([labels == 1, np.ones(len(labels), bool)])
        for name, labels in classes.items()
    }
    _, ours = fit(texts, truth, "multilabel", Baseline(), 0)
    assert ours.answer.shape == (12, 2)
    assert (ours.answer[:, 1] > 0.9).all()


def test_a_handful_of_rows_is_enough():
    texts = {"train": ["good", "bad"], "validation": ["good"], "test": ["bad", "unseen words"]}
    truth = {"train": np.array([1, 0]), "validation": np.array([1]), "test": np.array([0, 1])}
    trivial, ours = fit(texts, truth, "classify", Baseline(analyzer="word"), 0)
    assert trivial.answer == pytest.approx(np.full((2, 2), 0.5))
    assert ours.answer.sum(1) == pytest.approx(1)
    assert ours.answer[0].argmax() == 0
    assert ours.answer[1] == pytest.approx([0.5, 0.5], abs=1e-3), "it knows no word of it"


def test_texts_without_a_single_word_still_have_a_baseline():
    """Ratings that are all signs, spaced like words."""
    texts = {"train": ["! ! !", "? ? ?", "! !", "? ?"], "validation": ["! !"], "test": ["? ?"]}
    truth = {"train": np.array([1, 0, 1, 0]), "validation": np.array([1]), "test": np.array([0])}
    _, ours = fit(texts, truth, "classify", Baseline(), 0)
    assert ours.answer.shape == (1, 2)


def test_rare_n_grams_are_left_out_only_of_large_corpora():
    texts, truth = _splits()
    large = {**texts, "train": texts["train"] * 25 + ["onceonly"] * 1}
    labels = {**truth, "train": np.append(np.tile(truth["train"], 25), 0)}
    settings = Baseline(inverse_regularization=(1.0,))
    _, small = fit(texts, truth, "classify", settings, 0)
    _, big = fit(large, labels, "classify", settings, 0)
    assert big.settings["features"] == small.settings["features"]
    assert "onceonly" in large["train"]
    assert len(large["train"]) >= 1000


def table(n, seed):
    """Rows of three numbers, one of them often missing, and a category."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, 4))
    x[:, 3] = generator.integers(0, 3, n)
    y = x[:, 0] - 2 * (x[:, 1] > 0) + x[:, 3] + 0.1 * generator.normal(size=n)
    x[generator.random(n) < 0.2, 2] = np.nan
    return x, y


def tables(regress=True):
    found = {name: table(n, n) for name, n in (("train", 400), ("validation", 80), ("test", 90))}
    cells = {name: x for name, (x, _) in found.items()}
    truth = {name: y if regress else (y > 0).astype(np.int64) for name, (_, y) in found.items()}
    return cells, truth


def test_least_squares_leave_an_error_that_no_column_explains():
    cells, truth = tables()
    filled = {name: np.nan_to_num(x) for name, x in cells.items()}
    filled["test"], truth["test"] = filled["train"], truth["train"]
    _, answer = baseline.linear(filled, truth, "regress", (1.0,), 0)
    left = truth["train"] - answer.answer
    assert answer.model == "least-squares"
    np.testing.assert_allclose(filled["train"].T @ left, 0, atol=1e-8)
    assert abs(left.mean()) < 1e-10


def test_boosting_sees_the_step_that_a_line_cannot():
    cells, truth = tables()
    filled = {name: np.nan_to_num(x) for name, x in cells.items()}
    _, line = baseline.linear(filled, truth, "regress", (1.0,), 0)
    trees = baseline.boosting(cells, [False, False, False, True], truth, "regress", 0)
    errors = [((a.answer - truth["test"]) ** 2).mean() for a in (line, trees)]
    assert errors[1] < 0.7 * errors[0]


def test_boosting_gives_probabilities_and_says_what_it_chose():
    cells, truth = tables(regress=False)
    trees = baseline.boosting(cells, [False, False, False, True], truth, "classify", 0)
    np.testing.assert_allclose(trees.answer.sum(1), 1)
    assert trees.settings["learning_rate"] in (0.05, 0.1)
    assert ((trees.answer[:, 1] > 0.5) == truth["test"]).mean() > 0.85

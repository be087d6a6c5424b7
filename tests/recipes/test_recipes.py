"""Every shipped recipe is read, and runs small where its data are at hand."""

from __future__ import annotations

import pytest

import danlu
from danlu.artifact import read_json
from danlu.data.archive import cache
from danlu.recipe import load

SMALL = ["evaluate.bootstrap=100", "gate.require=[]"]
RUNS = {
    "two-features": ["finetune.epochs=2"],
    "clinic": ["finetune.epochs=2"],
    "credit": [
        "finetune.epochs=1",
        "model.width=16",
        "table.bins=0",
        "data.split.test=0.6",
        "data.split.validation=0.3",
    ],
    "houses": ["finetune.epochs=2"],
    "houses-linear": ["finetune.epochs=2"],
    "birds": [
        "pretrain.epochs=1",
        "finetune.epochs=1",
        "model.width=32",
        "model.head_dim=16",
        "data.split.test=0.8",
        "data.split.validation=0.15",
    ],
    "movies": [
        "finetune.steps=20",
        "model.width=16",
        "events.max_length=20",
        "data.split.test=0.01",
        "data.split.validation=0.01",
    ],
}
MEASURED = {"regress": ("mae", "boosting"), "rank": ("ndcg@10", "item-knn")}
"""The headline of a task, and a baseline that stands beside; else of a classifier."""


def at_hand(recipe):
    """Skip where a recipe's data would have to be downloaded."""
    for source in recipe.data.sources:
        archive = cache() / "archives" / str(source.sha256)
        if source.sha256 and not (archive.is_dir() and any(archive.iterdir())):
            package = source.path.partition("/")[0]
            pytest.skip(f"{package} is not in danlu's cache, and tests download nothing")


@pytest.mark.parametrize("name", [*RUNS, "reviews-minilm"])
def test_it_is_read_and_says_where_its_data_come_from(root, name):
    path = root / "recipes" / f"{name}.toml"
    recipe, _ = load(path)
    assert recipe.gate.require
    assert all(source.licence != "not stated" for source in recipe.data.sources)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_small(root, tmp_path, name):
    path = root / "recipes" / f"{name}.toml"
    recipe, _ = load(path, [*SMALL, *RUNS[name]])
    at_hand(recipe)
    result = danlu.run(path, tmp_path / "run", overrides=[*SMALL, *RUNS[name]])
    measured = {(m.model, m.split, m.metric) for m in result.metrics}
    headline, other = MEASURED.get(recipe.data.task, ("accuracy", "boosting"))
    assert (name, "test", headline) in measured
    assert (other, "test", headline) in measured
    for protected in recipe.audit.protected:
        assert any(protected[:3] in metric for _, _, metric in measured)


def test_pictures_that_are_brought_by_hand_are_told_how(root):
    recipe, _ = load(root / "recipes" / "clipart.toml")
    assert (recipe.table.texts, recipe.table.images) == (("title",), ("file",))
    assert len({source.label for source in recipe.data.sources}) == 8
    assert all(source.licence != "not stated" for source in recipe.data.sources)
    content = (root / "recipes" / "clipart.toml").read_text(encoding="utf-8")
    assert content.startswith("# ")
    assert "dpkg-deb -x" in content


def test_the_clinic_s_columns_are_scikit_learn_s(root):
    from sklearn.datasets import load_breast_cancer

    recipe, _ = load(root / "recipes" / "clinic.toml")
    *header, label = recipe.data.sources[0].header
    ours = [sorted(name.split()) for name in header]
    theirs = load_breast_cancer().feature_names
    assert ours == [sorted(name.split()) for name in theirs]
    assert label == recipe.data.label


def test_the_answer_is_not_among_the_questions(root):
    recipe, _ = load(root / "recipes" / "credit.toml")
    assert "salary_<=50K" in recipe.table.ignore
    assert recipe.data.label == "salary_>50K"


def test_what_is_said_is_written_down(root, tmp_path):
    small = [*SMALL, "finetune.epochs=1", "model.width=16", "model.depth=1", "audio.pitch=none"]
    recipe, _ = load(root / "recipes" / "speech-text.toml", small)
    at_hand(recipe)
    result = danlu.run(root / "recipes" / "speech-text.toml", tmp_path / "run", overrides=small)
    measured = {(m.model, m.metric): m for m in result.metrics}
    assert measured["speech-text", "cer"].n > 400
    assert 0 < measured["nearest-clip", "cer"].value < 1
    data = next((result.folder / "stages").glob("data-*"))
    report = read_json(data / "report.json")
    assert len(report["classes"]) == 37 + 4  # letters, and the digits of all tones but the first

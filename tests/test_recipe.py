"""Recipes: read, overridden, checked, filled, saved."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from danlu.errors import InputError, RecipeError
from danlu.recipe import Recipe, dump, fill, load, schema, validate

MINIMAL = {"name": "x", "data": {"task": "pretrain", "sources": [{"path": "a.txt"}]}}


def write(folder: Path, text: str) -> Path:
    path = folder / "r.toml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(content: dict) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        validate(content, "test")
    return dict(caught.value.problems)


def test_every_shipped_recipe_is_valid(root):
    paths = sorted((root / "recipes").glob("*.toml"))
    assert paths
    for path in paths:
        recipe, _ = load(path)
        assert recipe.name == path.stem


def test_a_misspelt_key_is_refused_with_the_nearest_known_one():
    found = problems(MINIMAL | {"pretrain": {"epoch": 3}})
    assert found == {"pretrain.epoch": "unknown key; did you mean 'epochs'?"}


def test_a_misspelt_key_inside_a_source_is_found_too():
    data = {"task": "pretrain", "sources": [{"path": "a.txt", "licens": "MIT"}]}
    assert "'licence'" in problems({"name": "x", "data": data})["data.sources.0.licens"]


def test_the_batch_of_pre_training_is_counted_in_tokens():
    found = problems(MINIMAL | {"pretrain": {"batch_size": 8}})
    assert found == {"pretrain.batch_size": "unknown key; did you mean 'batch_tokens'?"}
    assert "finetune.batch_tokens" in problems(MINIMAL | {"finetune": {"batch_tokens": 8}})
    assert validate(MINIMAL | {"finetune": {"batch_size": 8}}, "").finetune.batch_size == 8


@pytest.mark.parametrize("tokens", [1, 127])
def test_a_batch_smaller_than_a_row_is_refused_with_what_it_must_hold(tokens):
    content = MINIMAL | {
        "tokenizer": {"max_length": 128},
        "pretrain": {"batch_tokens": tokens},
    }
    (problem,) = problems(content).items()
    assert problem[0] == "pretrain.batch_tokens"
    assert "at least one row of tokenizer.max_length tokens" in problem[1]
    validate(content | {"pretrain": {"batch_tokens": 128}}, "test")


@pytest.mark.parametrize(("length", "tokens"), [(256, 4096), (8, 4096), (5000, 5000)])
def test_a_batch_holds_4096_tokens_or_a_row_if_nothing_is_said(length, tokens):
    recipe, derived = fill(validate(MINIMAL | {"tokenizer": {"max_length": length}}, "test"))
    assert recipe.pretrain.batch_tokens == tokens
    assert "pretrain.batch_tokens" in derived


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize(
    ("key", "bad", "good"),
    [("steps", -1, 100), ("memory_limit", -0.5, 3.5), ("recompute", "much", True)],
)
def test_what_bounds_a_training_is_checked(stage, key, bad, good):
    assert set(problems(MINIMAL | {stage: {key: bad}})) == {f"{stage}.{key}"}
    recipe = validate(MINIMAL | {stage: {key: good}}, "test")
    assert getattr(getattr(recipe, stage), key) == good


def test_an_unlike_key_lists_the_known_ones():
    assert "known keys: " in problems(MINIMAL | {"zzzz": 1})["zzzz"]


def test_all_problems_are_told_at_once():
    content = MINIMAL | {
        "seed": -1,
        "model": {"rope": 1.5, "dept": 2},
        "finetune": {"optimizer": "adamax"},
    }
    assert set(problems(content)) == {"seed", "model.rope", "model.dept", "finetune.optimizer"}


@pytest.mark.parametrize(
    ("section", "value", "path"),
    [
        ("data", {"task": "classify", "sources": [{"path": "a"}]}, "data.label"),
        ("data", {"task": "pretrain", "sources": []}, "data.sources"),
        ("data", MINIMAL["data"] | {"split": {"test": 0.6, "validation": 0.5}}, "data.split"),
        ("data", MINIMAL["data"] | {"split": {"test": 0}}, "data.split.test"),
        ("data", MINIMAL["data"] | {"split": {"by": "group"}}, "data.split.by"),
        (
            "data",
            MINIMAL["data"] | {"clean": {"exact_duplicates": "keep"}},
            "data.clean.near_duplicates",
        ),
        ("name", "majority", "name"),
        ("data", {"task": "tag", "sources": [{"path": "a"}]}, "data.task"),
        ("pretrain", {"objective": "none"}, "pretrain.objective"),
        ("model", {"causal": True}, "model.causal"),
        ("gate", {"require": ["accuracy is good"]}, "gate.require.0"),
    ],
)
def test_what_cannot_work_is_refused_where_it_stands(section, value, path):
    assert path in problems(MINIMAL | {section: value})


def test_a_password_in_a_url_is_refused_and_not_repeated():
    source = {"path": "postgresql://me:hunter2@db/x", "query": "select 1"}
    found = problems({"name": "x", "data": {"task": "pretrain", "sources": [source]}})
    assert "${DB_PASSWORD}" in found["data.sources.0.path"]
    assert "hunter2" not in found["data.sources.0.path"]


def test_a_variable_in_a_url_is_kept_as_it_is():
    source = {"path": "postgresql://me:${PW}@db/x", "query": "select 1"}
    recipe, _ = fill(validate({"name": "x", "data": {"task": "pretrain", "sources": [source]}}, ""))
    assert "${PW}" in dump(recipe)


def test_the_size_dial_fills_the_sizes_and_says_how():
    recipe, derived = fill(validate(MINIMAL | {"model": {"depth": 6}}, "test"))
    model = recipe.model
    assert (model.width, model.heads, model.kv_heads, model.hidden) == (384, 6, 6, 1024)
    assert derived["model.width"] == "64 × depth"
    assert recipe.pretrain.learning_rate > 0


def test_what_the_user_sets_is_not_derived():
    recipe, derived = fill(validate(MINIMAL | {"model": {"depth": 6, "width": 128}}, "test"))
    assert recipe.model.width == 128
    assert "model.width" not in derived


def test_key_value_heads_that_do_not_divide_are_refused():
    with pytest.raises(RecipeError, match=r"model\.kv_heads"):
        fill(validate(MINIMAL | {"model": {"depth": 4, "kv_heads": 3}}, "test"))


def test_the_saved_recipe_reads_back_as_itself(root, tmp_path):
    recipe, _ = load(root / "recipes" / "reviews.toml")
    again, derived = load(write(tmp_path, dump(recipe)))
    assert again == recipe
    assert derived == {}


def test_overrides_set_keys_of_every_depth(root):
    recipe, _ = load(
        root / "recipes" / "reviews.toml",
        ["seed=3", "finetune.learning_rate=2e-3", "data.sources.1.label=bad", "gate.require=[]"],
    )
    assert (recipe.seed, recipe.finetune.learning_rate) == (3, 2e-3)
    assert recipe.data.sources[1].label == "bad"
    assert recipe.gate.require == ()


LABELLED = {"task": "classify", "label": "b", "sources": [{"path": "a.csv"}]}


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({"model": {"backbone": "linear"}}, "pretrain.objective"),
        ({"model": {"backbone": "cnn"}, "pretrain": {"objective": "causal"}}, "model.backbone"),
        ({"model": {"backbone": "cnn", "causal": True}}, "model.causal"),
        ({"model": {"backbone": "cnn", "activation": "swiglu"}}, "model.activation"),
        ({"model": {"backbone": "lstm", "activation": "tanh"}}, "model.activation"),
        ({"model": {"backbone": "gru", "heads": 4}}, "model.heads"),
        ({"model": {"backbone": "cnn", "hidden": 64}}, "model.hidden"),
        ({"model": {"window": 5}}, "model.window"),
        ({"model": {"backbone": "cnn"}, "finetune": {"optimizer": "muon"}}, "finetune.optimizer"),
        ({"model": {"backbone": "cnn", "window": 4}}, "model.window"),
        ({"model": {"backbone": "gru"}, "pretrain": {"recompute": True}}, "pretrain.recompute"),
        ({"finetune": {"loss": "huber"}}, "finetune.loss"),
        ({"finetune": {"loss": "hinge", "label_smoothing": 0.1}}, "finetune.loss"),
        ({"data": LABELLED | {"task": "regress"}, "finetune": {"loss": "hinge"}}, "finetune.loss"),
    ],
)  # fmt: skip
def test_backbones_and_losses_that_do_not_fit_are_refused(content, path):
    assert set(problems(MINIMAL | {"data": LABELLED} | content)) == {path}


@pytest.mark.parametrize(
    ("backbone", "hidden", "activation", "optimizer"),
    [
        ("transformer", 384, "swiglu", "muon"),
        ("lstm", 128, None, "muon"),
        ("gru", 128, None, "muon"),
        ("cnn", None, "relu", "adamw"),
        ("linear", None, None, "adamw"),
    ],
)
def test_each_backbone_derives_what_it_uses_and_comes_back(
    backbone, hidden, activation, optimizer, tmp_path
):
    content = MINIMAL | {"data": LABELLED, "model": {"backbone": backbone, "width": 128}}
    recipe, derived = fill(validate(content | {"pretrain": {"objective": "none"}}, "test"))
    assert (recipe.model.hidden, recipe.model.activation) == (hidden, activation)
    assert recipe.finetune.optimizer == optimizer
    assert ("finetune.optimizer" in derived) == (optimizer == "adamw")
    assert ("model.heads" in derived) == (backbone == "transformer")
    again, derived = load(write(tmp_path, dump(recipe)))
    assert again.model == recipe.model
    assert again.finetune == recipe.finetune
    assert "finetune.optimizer" not in derived


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=1", "data.sources.9.path=a"])
def test_an_override_that_goes_nowhere_is_refused(root, override):
    with pytest.raises(InputError):
        load(root / "recipes" / "reviews.toml", [override])


def test_paths_are_relative_to_the_recipe(tmp_path):
    text = '[data]\ntask = "pretrain"\nsources = [{ path = "data/a.txt" }]'
    recipe, _ = load(write(tmp_path, text))
    assert recipe.data.sources[0].path == str(tmp_path / "data" / "a.txt")
    assert recipe.name == "r"


@pytest.mark.parametrize("text", ["name = ", "[data\n", "a = 1\na = 2"])
def test_broken_toml_is_refused(tmp_path, text):
    with pytest.raises(RecipeError, match="not valid TOML"):
        load(write(tmp_path, text))


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such recipe"):
        load(tmp_path / "none.toml")


def test_the_schema_knows_every_section_and_describes_every_key():
    content = schema()
    json.dumps(content)
    assert set(content["properties"]) == set(Recipe.model_fields)
    for name, definition in content["$defs"].items():
        assert definition["additionalProperties"] is False
        for key, value in definition["properties"].items():
            assert value.get("description") or "$ref" in value, f"{name}.{key}"


def test_a_filled_recipe_has_no_value_left_open(root):
    recipe, _ = load(root / "recipes" / "reviews.toml")
    content = tomllib.loads(dump(recipe))
    for section in ("model", "pretrain", "finetune"):
        assert set(content[section]) == set(type(getattr(recipe, section)).model_fields)

"""Whole runs that foretell quantiles: from a table to a served model."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from sklearn.metrics import mean_pinball_loss

import danlu
from danlu.errors import RecipeError
from danlu.recipe import fill, load, validate
from danlu.serve.files import predict_file
from small import write_table

LEVELS = [0.1, 0.5, 0.9]
RECIPE = """
seed = 3
[data]
modality = "table"
task = "regress"
label = "y"
sources = [{ path = "table.csv" }]
[model]
backbone = "mlp"
depth = 1
width = 32
norm = "batch"
initialiser = "he"
[pretrain]
objective = "none"
[finetune]
quantiles = [0.1, 0.5, 0.9]
epochs = 30
learning_rate = 0.01
dropout = 0.0
weight_decay = 0.0
l1 = 1e-4
precision = "float32"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Values whose spread grows with one column: a mean alone would hide it."""
    folder = tmp_path_factory.mktemp("quantiles")
    generator = np.random.default_rng(0)
    x = generator.uniform(0, 1, (900, 2))
    y = 3 * x[:, 0] + (0.2 + 2 * x[:, 1]) * generator.normal(size=900)
    write_table(folder / "table.csv", ["a", "b"], x, y, "y")
    (folder / "made.toml").write_text(RECIPE, encoding="utf-8")
    return danlu.run(folder / "made.toml", folder / "run")


def stage(result, name):
    return next((result.folder / "stages").glob(f"{name}-*"))


def questions(result):
    cells = pq.read_table(stage(result, "data") / "test.parquet")
    return [json.loads(t) for t in cells["text"].to_pylist()], np.array(
        [float(v) for v in cells["label"].to_pylist()]
    )


def test_the_metrics_are_those_of_the_answers_on_record(run):
    found = {(m.model, m.metric): m for m in run.metrics if m.split == "test"}
    said = np.array(
        pq.read_table(stage(run, "evaluate") / "predictions.parquet")["answer"].to_pylist()
    )
    _, truth = questions(run)
    each = [mean_pinball_loss(truth, said[:, q], alpha=level) for q, level in enumerate(LEVELS)]
    assert found["made", "pinball"].value == pytest.approx(np.mean(each))
    assert found["made", "mae"].value == pytest.approx(np.abs(truth - said[:, 1]).mean())
    inside = ((said[:, 0] <= truth) & (truth <= said[:, 2])).mean()
    assert found["made", "interval_coverage"].value == pytest.approx(inside)
    assert found["made", "interval_coverage"].low < 0.8 < found["made", "interval_coverage"].high
    assert found["made", "pinball"].value < 0.8 * found["quantiles", "pinball"].value
    assert ("boosting", "pinball") in found
    assert ("made", "pinball - boosting") in found
    assert ("least-squares", "mae") in found
    assert ("least-squares", "pinball") not in found
    assert 0 <= found["made", "quantiles_crossed"].value < 0.2


def test_the_interval_is_wider_where_the_spread_is(run):
    records, _ = questions(run)
    answers = danlu.load(run.folder).predict(records)
    width = np.array([a["quantiles"]["0.9"] - a["quantiles"]["0.1"] for a in answers])
    b = np.array([float(record["b"]) for record in records])
    assert width[b > 0.7].mean() > 2 * width[b < 0.3].mean()


def test_serving_says_what_the_evaluation_did_whatever_the_batch(run):
    records, _ = questions(run)
    said = pq.read_table(stage(run, "evaluate") / "predictions.parquet")["answer"].to_pylist()
    for size in (1, 7, 200):
        answers = danlu.load(run.folder).predict(records, batch_size=size)
        for answer, expected in zip(answers, said, strict=True):
            np.testing.assert_allclose(list(answer["quantiles"].values()), expected, atol=1e-5)
            assert answer["value"] == answer["quantiles"]["0.5"]
    assert danlu.load(run.folder).engine.answers([]).shape == (0, 3)


def test_the_report_says_what_the_interval_is_to_hold(run):
    for name in ("report.html", "card.md"):
        text = (run.folder / name).read_text(encoding="utf-8")
        assert "quantiles 0.1, 0.5, 0.9" in text
        assert "80%" in text
        assert "batch norm" in text
        assert "interval coverage" in text


def test_quantiles_that_cross_are_put_in_order_and_counted(run, tmp_path):
    """A head whose lowest and highest outputs are exchanged crosses on every row."""
    model = tmp_path / "model"
    shutil.copytree(run.folder / "model", model)
    tensors = load_file(model / "model.safetensors")
    for name in ("head.output.weight", "head.output.bias"):
        tensors[name] = tensors[name][[2, 1, 0]].contiguous()
    save_file(tensors, model / "model.safetensors")
    records, _ = questions(run)
    right, crossed = danlu.load(run.folder).predict(records), danlu.load(model).predict(records)
    assert all(answer["crossed"] for answer in crossed)
    assert not all(answer["crossed"] for answer in right)
    for one, other in zip(right, crossed, strict=True):
        assert list(one["quantiles"].values()) == list(other["quantiles"].values())
    _, count = danlu.load(model).engine.answers_and_crossings(records)
    assert count == len(records)
    path = tmp_path / "ask.csv"
    path.write_text("a,b\n0.5,0.1\n0.2,0.9\n", encoding="utf-8")
    output, rows, counts = predict_file(danlu.load(model).engine, path, "text", None)
    assert (rows, counts["crossed"]) == (2, 2)
    header, first, _ = csv.reader(output.read_text(encoding="utf-8").splitlines())
    assert header == ["a", "b", "predicted_value", *(f"predicted_quantile_{q:g}" for q in LEVELS)]
    assert float(first[3]) < float(first[4]) == float(first[2]) < float(first[5])


def test_the_command_line_shows_the_outer_quantiles(run):
    command = [sys.executable, "-m", "danlu", "predict", str(run.folder)]
    question = '{"a": 0.5, "b": 0.5}'
    found = subprocess.run([*command, question], capture_output=True, text=True, check=True)
    value, low, high = found.stdout.strip().split("\t")
    assert low.startswith("q0.1 ")
    assert high.startswith("q0.9 ")
    assert float(low[5:]) < float(value) < float(high[5:])


DATA = {"task": "regress", "label": "y", "modality": "table", "sources": [{"path": "a.csv"}]}
BASE = {"name": "x", "data": DATA, "pretrain": {"objective": "none"}}


@pytest.mark.parametrize(
    ("finetune", "loss", "quantiles"),
    [
        ({}, "squared", ()),
        ({"loss": "quantile"}, "quantile", (0.1, 0.5, 0.9)),
        ({"quantiles": [0.25, 0.5]}, "quantile", (0.25, 0.5)),
        ({"loss": "huber"}, "huber", ()),
    ],
)
def test_loss_and_quantiles_are_derived_from_each_other(finetune, loss, quantiles, tmp_path):
    recipe, _ = fill(validate(BASE | {"finetune": finetune}, "test"))
    assert (recipe.finetune.loss, recipe.finetune.quantiles) == (loss, quantiles)
    (tmp_path / "r.toml").write_text(danlu.recipe.dump(recipe), encoding="utf-8")
    again, derived = load(tmp_path / "r.toml")
    assert again.finetune == recipe.finetune
    assert not any(key.startswith("finetune") for key in derived)


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ({"finetune": {"quantiles": [0.1, 0.9]}}, "finetune.quantiles"),
        ({"finetune": {"quantiles": [0.5, 0.1]}}, "finetune.quantiles"),
        ({"finetune": {"quantiles": [0.1, 0.5, 0.5]}}, "finetune.quantiles"),
        ({"finetune": {"quantiles": [0.1, 0.5], "loss": "huber"}}, "finetune.quantiles"),
        ({"finetune": {"quantiles": [], "loss": "quantile"}}, "finetune.quantiles"),
        ({"finetune": {"quantiles": [0.0, 0.5]}}, "finetune.quantiles.0"),
        ({"finetune": {"l1": -1}}, "finetune.l1"),
        ({"model": {"norm": "batch"}}, "model.norm"),
        ({"model": {"backbone": "linear", "norm": "batch"}}, "model.norm"),
        ({"model": {"backbone": "linear", "initialiser": "he"}}, "model.initialiser"),
        ({"data": DATA | {"task": "classify"}, "finetune": {"quantiles": [0.5]}},
         "finetune.quantiles"),
        ({"data": DATA | {"task": "classify"}, "finetune": {"loss": "quantile"}},
         "finetune.loss"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(content, path):
    with pytest.raises(RecipeError) as caught:
        validate(BASE | content, "test")
    assert path in dict(caught.value.problems)

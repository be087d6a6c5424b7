"""A whole run over images by the network of two axes: from files to a served model."""

from __future__ import annotations

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import danlu
from danlu.artifact import digest_file, read_json
from pages import look_at, needs_browser

RECIPE = """
seed = 3
[data]
modality = "image"
task = "classify"
label = "folder"
sources = [{ path = "digits/*/*.png" }]
[model]
backbone = "cnn"
depth = 2
width = 32
[pretrain]
objective = "none"
[finetune]
epochs = 15
optimizer = "adamw"
learning_rate = 0.01
average = 0.9
precision = "float32"
[evaluate]
bootstrap = 100
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    for number in range(900):
        place = folder / "digits" / f"digit {data.target[number]}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = (data.images[number] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    (folder / "made.toml").write_text(RECIPE, encoding="utf-8")
    return folder, danlu.run(folder / "made.toml", folder / "run")


def test_it_tells_digits_apart(made):
    _, run = made
    found = {(m.model, m.metric): m.value for m in run.metrics if m.split == "test"}
    assert found["made", "accuracy"] > 0.96
    assert found["made", "accuracy"] > found["logreg", "accuracy"]


def test_it_is_batch_normed_and_its_statistics_are_released(made):
    _, run = made
    config = read_json(run.folder / "model" / "config.json")["backbone"]
    assert (config["norm"], config["value_shape"]) == ("batch", [8, 8, 1])
    tensors = load_file(run.folder / "model" / "model.safetensors")
    mean = tensors["backbone.values.norms.1.running_mean"]
    assert mean.shape == (32,)
    assert mean.abs().max() > 0
    html = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "CNN of 2 stages up to width 32, relu, batch norm, images of 8 × 8 × 1" in html


def test_serving_answers_as_the_evaluation_did_whatever_the_batch(made):
    _, run = made
    table = next((run.folder / "stages").glob("evaluate-*")) / "predictions.parquet"
    said = pq.read_table(table)["answer"].to_pylist()
    data = next((run.folder / "stages").glob("data-*"))
    test = pq.read_table(data / "test.parquet")
    from danlu.data import kinds

    records = kinds.of("image").records(data, "test")
    assert len(records) == len(test)
    predictor = danlu.load(run.folder)
    for size in (1, 7, 300):
        answers = predictor.predict(records, batch_size=size)
        for answer, expected in zip(answers, said, strict=True):
            np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)


def test_the_same_recipe_gives_the_same_bits(made):
    folder, run = made
    again = danlu.run(folder / "made.toml", folder / "again")
    assert digest_file(again.folder / "model" / "model.safetensors") == digest_file(
        run.folder / "model" / "model.safetensors"
    )


@pytest.mark.browser
@needs_browser
def test_the_report_shows_images_and_mistakes(made):
    _, run = made
    html = (run.folder / "report.html").read_text(encoding="utf-8")
    wrong = read_json(next((run.folder / "stages").glob("evaluate-*")) / "mistakes.json")
    assert html.count("<img") == 2 * 8 + len(wrong) > 16
    charts = ("funnel", "compared", "confusion", "roc", "reliability")
    told = look_at(run.folder / "report.html", charts, "made: accuracy")
    seen = told.split("What the model sees")[-1].split("Training")[0]
    assert len(set(re.findall(r"digit \d", seen))) > 4  # and not the first class alone

"""A whole run over sounds: from recordings of Mandarin to a served model and its page."""

from __future__ import annotations

import base64

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

import danlu
from danlu.artifact import digest_file, read_json
from danlu.data import kinds
from danlu.serve.http import application
from pages import look_at, needs_browser
from pictures import put, voices

RECIPE = """
seed = 3
[data]
modality = "audio"
task = "classify"
label = "folder"
sources = [{ path = "tones", licence = "GPL-3/LGPL-3, CC-BY-3" }]
[data.split]
test = 0.3
validation = 0.15
[audio]
pitch = "relative"
num_mels = 40
[model]
backbone = "cnn"
depth = 2
width = 64
window = 5
[pretrain]
objective = "none"
[finetune]
epochs = 25
optimizer = "adamw"
learning_rate = 4e-3
average = 0.9
precision = "float32"
mixup = 0.2
[evaluate]
bootstrap = 100
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    voices(folder / "tones", 40)
    put(folder / "tones" / "first" / "broken.ogg", b"OggS" + bytes(300))
    (folder / "made.toml").write_text(RECIPE, encoding="utf-8")
    return folder, danlu.run(folder / "made.toml", folder / "run")


def stage(run, name):
    return next((run.folder / "stages").glob(f"{name}-*"))


def test_it_tells_tones_apart(made):
    _, run = made
    found = {(m.model, m.metric): m for m in run.metrics if m.split == "test"}
    assert found["made", "accuracy"].low > found["majority", "accuracy"].high
    assert found["made", "accuracy"].value > 0.6
    assert found["logreg", "accuracy"].value > 0.6


def test_a_recording_that_cannot_be_read_is_set_aside_and_counted(made):
    _, run = made
    report = read_json(stage(run, "data") / "report.json")
    assert [(r["reason"], r["rows"]) for r in report["rejects"]] == [
        ("damaged or truncated: it cannot be decoded", 1)
    ]
    assert report["rejects"][0]["examples"][0]["file"] == "first/broken.ogg"


def test_serving_answers_as_the_evaluation_did(made):
    _, run = made
    said = pq.read_table(stage(run, "evaluate") / "predictions.parquet")["answer"].to_pylist()
    records = kinds.of("audio").records(stage(run, "data"), "test")
    predictor = danlu.load(run.folder)
    for size in (1, 200):
        answers = predictor.predict(records, batch_size=size)
        for answer, expected in zip(answers, said, strict=True):
            np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)
    with TestClient(application(predictor.engine)) as client:
        sent = base64.b64encode(records[0]).decode()
        answer = client.post("/v1/predict", json={"clips": [sent]}).json()["predictions"][0]
    np.testing.assert_allclose(list(answer["probabilities"].values()), said[0], atol=1e-5)


def test_the_same_recipe_gives_the_same_bits(made):
    folder, run = made
    again = danlu.run(folder / "made.toml", folder / "again")
    weights = "model/model.safetensors"
    assert digest_file(again.folder / weights) == digest_file(run.folder / weights)


@pytest.mark.browser
@needs_browser
def test_the_report_can_be_listened_to(made):
    _, run = made
    html = (run.folder / "report.html").read_text(encoding="utf-8")
    assert html.count("<audio") == 8 + len(read_json(stage(run, "evaluate") / "mistakes.json"))
    told = look_at(run.folder / "report.html", ("funnel", "compared", "confusion", "roc"), "made")
    assert "equal byte for byte" in told
    assert {"first", "second", "third", "fourth"} <= set(told.split())

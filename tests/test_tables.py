"""Whole runs over tables: from a CSV file to a served model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import nn

import danlu
from danlu.artifact import digest_file, read_json
from danlu.errors import InputError
from danlu.log import read_events
from pages import look_at, needs_browser
from small import write_table

QUICK = {"precision": '"float32"', "average": 0.0, "dropout": 0.0, "weight_decay": 0.0}


def recipe(folder, body, task="regress", label="progression"):
    path = folder / "made.toml"
    path.write_text(f"""
seed = 3
[data]
modality = "table"
task = "{task}"
label = "{label}"
sources = [{{ path = "table.csv" }}]
{body}
""", encoding="utf-8")  # fmt: skip
    return path


def finetune(**keys):
    lines = "\n".join(f"{key} = {value}" for key, value in (QUICK | keys).items())
    return f'[pretrain]\nobjective = "none"\n[finetune]\n{lines}\n'


@pytest.fixture
def diabetes(tmp_path):
    data = load_diabetes(scaled=False)
    write_table(tmp_path / "table.csv", data.feature_names, data.data, data.target, "progression")
    return tmp_path


@pytest.fixture(scope="module")
def cancer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cancer")
    data = load_breast_cancer()
    names = [data.target_names[y] for y in data.target]
    write_table(folder / "table.csv", data.feature_names[:8], data.data[:, :8], names, "diagnosis")
    body = "[model]\ndepth = 1\nwidth = 64\n[pretrain]\nepochs = 2\n[finetune]\nepochs = 6\n"
    path = recipe(folder, body, "classify", "diagnosis")
    return path, danlu.run(path, folder / "run")


def test_a_linear_model_by_gradient_descent_reaches_the_closed_form(diabetes):
    body = '[model]\nbackbone = "linear"\n' + finetune(
        optimizer='"sgd"', learning_rate=0.05, epochs=4000, batch_size=512, momentum=0.9,
        schedule='"constant"', warmup=0.0, gradient_clip=0.0, checkpoint_every=4000, log_every=4000,
    )  # fmt: skip
    result = danlu.run(recipe(diabetes, body), diabetes / "run")
    found = {(m.model, m.metric): m.value for m in result.metrics if m.split == "test"}
    for metric in ("rmse", "mae", "r2"):
        assert found["made", metric] == pytest.approx(found["least-squares", metric], rel=1e-3)


def test_a_run_equals_a_loop_written_by_hand(diabetes):
    """An MLP by SGD, epoch by epoch, to 1e-6."""
    body = '[model]\nbackbone = "mlp"\nwidth = 8\ndepth = 1\n' + finetune(
        optimizer='"sgd"', learning_rate=0.02, epochs=5, batch_size=32, momentum=0.9,
        schedule='"constant"', warmup=0.0, gradient_clip=0.0, log_every=1,
    )  # fmt: skip
    run = danlu.run(recipe(diabetes, body), diabetes / "run").folder
    from danlu.data.load import DocumentLoader
    from danlu.data.table import TableEncoder
    from danlu.model import heads
    from danlu.model.classic import ClassicConfig
    from danlu.stages import read_split

    tokens = next((run / "stages").glob("tokenizer-*"))
    data = next((run / "stages").glob("data-*"))
    encoder = TableEncoder.load(tokens)
    grid = encoder.load_documents(tokens, "train")
    x = torch.from_numpy(np.array(grid.values[:, 0]))
    y = torch.tensor([float(v) for v in read_split(data, "train")["label"].to_pylist()])
    y = (y - y.mean()) / y.std(unbiased=False)
    torch.manual_seed(3)
    width = encoder.spec.value_dims
    start = heads.build(
        ClassicConfig("mlp", 5, 1, 8, 8, value_dims=width, value_ids=1), "regress", 1
    )
    hand = nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        hand[0].weight.copy_(start.backbone.values.weight[0].T)
        hand[0].bias.copy_(start.backbone.embedding.weight[4])
        hand[2].load_state_dict(start.head.output.state_dict())
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.02, momentum=0.9)
    order = DocumentLoader(grid, torch.zeros(len(y)), 32, 1, 3, encoder.spec)
    expected = []
    for epoch in range(5):
        for position in range(order.steps_per_epoch):
            (batch,) = order.load(epoch, position)
            loss = ((hand(x[batch.row_N])[:, 0] - y[batch.row_N]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            expected.append(float(loss.detach()))
    found = [e["loss"] for e in read_events(run / "events.jsonl") if e["event"] == "step"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_report_says_how_each_column_is_read(cancer):
    path, result = cancer
    html = (result.folder / "report.html").read_text(encoding="utf-8")
    for name in load_breast_cancer().feature_names[:8]:
        assert name in html
    assert "boosting" in html
    rows = read_json(result.folder / "metrics.json")
    assert {"missing", "clipped"} <= {r["metric"] for r in rows if r["stage"] == "tokenizer"}
    assert path.stem == "made"


@pytest.mark.browser
@needs_browser
def test_the_report_opens_on_a_desk_and_a_telephone(cancer):
    charts = ("funnel", "compared", "confusion", "roc", "reliability")
    look_at(cancer[1].folder / "report.html", charts)


def test_serving_answers_as_the_evaluation_did(cancer):
    import pyarrow.parquet as pq

    _, result = cancer
    stage = {p.name.rsplit("-", 1)[0]: p for p in (result.folder / "stages").iterdir()}
    said = pq.read_table(stage["evaluate"] / "predictions.parquet")["answer"].to_pylist()
    records = [
        json.loads(t) for t in pq.read_table(stage["data"] / "test.parquet")["text"].to_pylist()
    ]
    answers = danlu.load(result.folder).predict(records, batch_size=7)
    for answer, expected in zip(answers, said, strict=True):
        np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)


def test_a_row_that_lacks_cells_is_answered_and_says_so(cancer):
    predictor = danlu.load(cancer[1].folder)
    answer = predictor.predict([{"mean radius": 12.0, "mean texture": "rough"}])[0]
    assert answer["missing"] == 6
    assert answer["unreadable"] == 1
    with pytest.raises(InputError, match="none of the columns"):
        predictor.engine.reader.parse({"radius": 1})


def test_the_same_recipe_gives_the_same_bits(cancer, tmp_path):
    path, result = cancer
    again = danlu.run(path, tmp_path / "again")
    assert digest_file(again.folder / "model" / "model.safetensors") == digest_file(
        result.folder / "model" / "model.safetensors"
    )
    assert danlu.run(path, result.folder).built == []


def test_equal_rows_stay_on_one_side(tmp_path):
    generator = np.random.default_rng(0)
    x = np.round(generator.normal(size=(300, 2)), 1)
    twice = np.vstack([x, x[:60]])
    write_table(tmp_path / "table.csv", ["a", "b"], twice, (twice[:, 0] > 0).astype(int), "y")
    body = '[model]\nbackbone = "linear"\n' + finetune(epochs=2)
    result = danlu.run(recipe(tmp_path, body, "classify", "y"), tmp_path / "run")
    shared = [m for m in result.metrics if m.stage == "audit"]
    assert [m.value for m in shared] == [0, 0]


def test_masked_cells_are_learnt_from_the_others(cancer):
    """Eight measurements of a cell depend on each other, so guessing is not the best."""
    rows = [
        e for e in read_events(cancer[1].folder / "events.jsonl")
        if e["stage"] == "pretrain" and e["event"] == "validation"
    ]  # fmt: skip
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('[tokenizer]\nmax_length = 32', "tokenizer"),
        ('[model]\nbackbone = "lstm"\n[pretrain]\nobjective = "none"', "no order"),
        ('[table]\nnumeric = ["a"]\ncategorical = ["a"]', "two kinds"),
        ('[data.split]\nby = "near-duplicate"', "texts alone"),
        ('[model]\nbackbone = "mlp"', "one position at a time"),
    ],
)  # fmt: skip
def test_what_a_table_cannot_be_asked_for_is_refused(diabetes, body, words):
    with pytest.raises(InputError, match=words):
        danlu.run(recipe(diabetes, body), diabetes / "run")


def test_a_table_without_a_task_is_refused_before_anything_is_trained(diabetes):
    with pytest.raises(InputError, match="must be learnt for a task"):
        danlu.run(recipe(diabetes, "", task="pretrain"), diabetes / "run")
    assert not (diabetes / "run").exists()


def test_a_column_of_another_kind_makes_other_baselines(diabetes):
    body = '[model]\nbackbone = "linear"\n' + finetune(epochs=2)
    path = recipe(diabetes, body)
    danlu.run(path, diabetes / "run")
    again = danlu.run(path, diabetes / "run", overrides=['table.categorical=["sex"]'])
    assert "data" not in again.built
    assert "baseline" in again.built


def test_a_missing_column_is_named(diabetes):
    with pytest.raises(InputError, match="height"):
        danlu.run(recipe(diabetes, '[table]\ncolumns = ["age", "height"]'), diabetes / "run")

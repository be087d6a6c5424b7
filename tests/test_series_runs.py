"""Whole runs over series: from a CSV file to served forecasts and alarms."""

from __future__ import annotations

import csv
import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from starlette.testclient import TestClient

import danlu
from danlu.artifact import digest_file, read_json
from danlu.data.fetch import cache
from danlu.data.windows import SeriesDocuments
from danlu.errors import CheckFailed, InputError
from danlu.log import read_events
from danlu.serve.files import predict_file
from danlu.serve.http import application
from pages import look_at, needs_browser

BEGIN = datetime(2024, 1, 1)
HOURS = 24 * 40
QUICK = """
[pretrain]
objective = "none"
[finetune]
steps = 250
batch_size = 32
optimizer = "adamw"
learning_rate = 3e-3
precision = "float32"
average = 0.0
checkpoint_every = 125
"""
FORECAST = '[series]\ncontext = 48\nhorizon = 12\npatch = 6\nseason = 24\ncovariates = ["open"]\n'
SMALL = "[model]\ndepth = 1\nwidth = 32\nhead_dim = 16\n"
DETECT = '[series]\ncontext = 4\npatch = 4\nhorizon = 0\nscale = "global"\n'
AUTOENCODER = '[model]\nbackbone = "mlp"\ndepth = 1\nwidth = 32\nactivation = "gelu"\n'


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def shop(hours=HOURS, seed=0, strange=()):
    """Sales by the hour: a day's rise and fall, more when the shop is open, and noise."""
    generator = np.random.default_rng(seed)
    rows = []
    for hour in range(hours):
        is_open = int(generator.random() < 0.5)
        sales = 10 + 4 * np.sin(2 * np.pi * hour / 24) + 3 * is_open + generator.normal(0, 0.3)
        rows.append({
            "time": (BEGIN + timedelta(hours=hour)).isoformat(),
            "sales": round(float(sales + (6 if hour in strange else 0)), 4),
            "visits": round(float(5 * sales + generator.normal(0, 1)), 4),
            "open": is_open,
        })  # fmt: skip
    return rows


def recipe(folder, body, task="forecast", more=""):
    path = folder / "made.toml"
    path.write_text(f"""
seed = 3
[data]
modality = "series"
task = "{task}"
{more}
sources = [{{ path = "table.csv" }}]
{body}
""", encoding="utf-8")  # fmt: skip
    return path


def stages(run):
    return {p.name.rsplit("-", 1)[0]: p for p in (run / "stages").iterdir()}


@pytest.fixture(scope="module")
def sales(tmp_path_factory):
    """A forecast of data with gaps; rows in no order, some of them twice or without a number."""
    folder = tmp_path_factory.mktemp("sales")
    rows = shop()
    for n in (100, 101, 500):
        rows[n]["sales"] = ""
    del rows[300:303]
    rows.append(rows[10] | {"sales": rows[10]["sales"]})
    rows.append({"time": "one day", "sales": 1, "visits": 1, "open": 1})
    np.random.default_rng(1).shuffle(rows)
    write(folder / "table.csv", rows)
    path = recipe(folder, FORECAST + SMALL + QUICK)
    return path, danlu.run(path, folder / "run")


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """A detector; the strange hours are labelled, and validation and test hold some of them."""
    folder = tmp_path_factory.mktemp("faults")
    generator = np.random.default_rng(5)
    strange = set(generator.choice(HOURS, 40, replace=False).tolist())
    rows = shop(strange=strange)
    labelled = [
        {k: v for k, v in row.items() if k != "open"} | {"fault": int(hour in strange)}
        for hour, row in enumerate(rows)
    ]
    write(folder / "table.csv", labelled)
    body = DETECT + AUTOENCODER + QUICK + "trim = 0.1\ndropout = 0.0\n"
    path = recipe(folder, body, "detect", 'label = "fault"')
    return path, danlu.run(path, folder / "run"), labelled


def test_a_forecast_beats_last_season_where_something_is_known_in_advance(sales):
    found = {(m.model, m.metric): m for m in sales[1].metrics if m.split == "test"}
    own = found["made", "mase"]
    assert own.low <= own.value <= own.high
    assert found["made", "mase - seasonal-naive"].high < 0
    assert found["made", "mase - ets"].high < 0
    assert 0.7 < found["made", "coverage_90"].value <= 1
    assert "it beats" in sales[1].headline


def test_the_matrices_are_drawn_as_the_recipe_says(sales, tmp_path):
    keys = ['model.initialiser="orthogonal"', "finetune.steps=1", "finetune.learning_rate=1e-9"]
    run = danlu.run(sales[0], tmp_path / "run", overrides=keys).folder
    matrix = load_file(stages(run)["finetune"] / "model.safetensors")
    drawn = matrix["backbone.layers.0.attention.q_proj.weight"].numpy()
    square = drawn @ drawn.T
    np.testing.assert_allclose(square, square[0, 0] * np.eye(len(drawn)), atol=1e-5)


def test_the_metrics_are_those_of_the_answers_that_were_kept(sales):
    """MASE again, by hand, from predictions.parquet and the CSV file."""
    path, result = sales
    known = {}
    with (path.parent / "table.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["time"] != "one day" and row["sales"]:
                known[datetime.fromisoformat(row["time"])] = float(row["sales"])
    said = pq.read_table(stages(result.folder)["evaluate"] / "predictions.parquet").to_pylist()
    cut = read_json(stages(result.folder)["data"] / "report.json")["cuts"][0]
    first = datetime(1970, 1, 1) + timedelta(seconds=cut)
    naive = [
        abs(known[hour] - known[hour - timedelta(hours=24)])
        for hour in known if hour < first and hour - timedelta(hours=24) in known
    ]  # fmt: skip
    each = []
    for row in said:
        begin, gaps = datetime.fromisoformat(row["origin"]), []
        for step, values in enumerate(row["answer"]):
            if (hour := begin + timedelta(hours=step)) in known:
                gaps.append(abs(known[hour] - values[6]))
        each.append(np.mean(gaps) / np.mean(naive))
    found = next(m for m in result.metrics if m.metric == "mase" and m.model == "made")
    assert found.value == pytest.approx(np.mean(each), rel=1e-9)
    assert found.n == len(said)


def test_what_the_table_lacked_is_counted(sales):
    report = read_json(stages(sales[1].folder)["data"] / "report.json")
    assert report["series"]["absent"] == 3
    assert report["series"]["missing"] == 3
    assert report["series"]["duplicates"] == 1
    reasons = {item["reason"]: item["rows"] for item in report["rejects"]}
    assert reasons == {"no readable time": 1, "a later row of this step stands": 1}
    assert sum(part["rows"] for part in report["splits"].values()) == HOURS - 3
    tokens = read_json(stages(sales[1].folder)["tokenizer"] / "report.json")
    assert tokens["splits"]["train"]["untold"] > 0


def test_training_sees_nothing_of_what_lies_ahead(sales, tmp_path):
    """Every number after validation begins is changed; the trained weights stay the same."""
    path, result = sales
    cut = read_json(stages(result.folder)["data"] / "report.json")["cuts"]
    with (path.parent / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    epoch = datetime(1970, 1, 1)
    for row in rows:
        if row["time"] != "one day" and row["sales"]:
            late = (datetime.fromisoformat(row["time"]) - epoch).total_seconds() >= cut[0]
            row["sales"] = float(row["sales"]) + 50 * late
    write(tmp_path / "table.csv", rows)
    again = recipe(tmp_path, FORECAST + SMALL + QUICK + "\n[gate]\n")
    again.write_text(again.read_text().replace("checkpoint_every = 125", "checkpoint_every = 250"))
    danlu.run(again, tmp_path / "run")
    first = [e["loss"] for e in read_events(result.folder / "events.jsonl") if e["event"] == "step"]
    then = [
        e["loss"] for e in read_events(tmp_path / "run" / "events.jsonl") if e["event"] == "step"
    ]
    assert first == then
    windows = {
        name: SeriesDocuments.load(stages(result.folder)["tokenizer"], name)
        for name in ("train", "validation", "test")
    }
    for name, bound in (("train", cut[0]), ("validation", cut[1])):
        part = windows[name]
        assert part.times(np.arange(len(part))).max() < bound
    part = windows["test"]
    assert part.times(np.arange(len(part))).min() >= cut[1]
    assert read_json(stages(result.folder)["evaluate"] / "leaks.json") == {
        "train": 0, "validation": 0,
    }  # fmt: skip


def test_the_same_recipe_gives_the_same_bits(sales, tmp_path):
    path, result = sales
    again = danlu.run(path, tmp_path / "again")
    assert digest_file(again.folder / "model" / "model.safetensors") == digest_file(
        result.folder / "model" / "model.safetensors"
    )
    assert danlu.run(path, result.folder).built == []


def test_a_served_forecast_is_the_evaluated_one(sales, tmp_path):
    """History up to an origin, in the user's file, gives what the test period was given."""
    path, result = sales
    said = pq.read_table(stages(result.folder)["evaluate"] / "predictions.parquet").to_pylist()
    with (path.parent / "table.csv").open(encoding="utf-8") as file:
        rows = [r for r in csv.DictReader(file) if r["time"] != "one day"]
    predictor = danlu.load(result.folder)
    kept = [row for row in said if row["answer"][0][0] is not None][3::40]
    histories = []
    for row in kept:
        begin = datetime.fromisoformat(row["origin"])
        until = begin + timedelta(hours=12)
        history = []
        for one in rows:
            time = datetime.fromisoformat(one["time"])
            if time < begin:
                history.append(one)
            elif time < until:  # known in advance
                history.append({"time": one["time"], "open": one["open"]})
        histories.append(history)
    answers = predictor.predict(histories, batch_size=2)
    for answer, row in zip(answers, kept, strict=True):
        assert answer["times"][0] == row["origin"]
        np.testing.assert_allclose(answer["quantiles"], row["answer"], rtol=1e-5, atol=1e-5)
    with TestClient(application(predictor.engine)) as client:
        reply = client.post("/v1/predict", json={"histories": histories[:1]})
        assert reply.json()["predictions"] == predictor.predict(histories[:1])
        assert client.post("/v1/predict", json={"histories": [[]]}).status_code == 422
        short = client.post("/v1/predict", json={"history": [{"time": "2024-01-01", "open": 1}]})
        assert short.status_code == 422
    write(tmp_path / "history.csv", [dict.fromkeys(rows[0], "") | row for row in histories[0]])
    output, count, _ = predict_file(predictor.engine, tmp_path / "history.csv", "text", None)
    with output.open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert (count, written[0]["time"]) == (12, kept[0]["origin"])
    medians = [float(row["sales_0.5"]) for row in written]
    np.testing.assert_allclose(medians, [step[6] for step in kept[0]["answer"]], atol=1e-4)


def test_quantiles_never_cross(sales):
    said = pq.read_table(stages(sales[1].folder)["evaluate"] / "predictions.parquet")["answer"]
    assert (np.diff(np.asarray(said.to_pylist()), axis=-1) >= 0).all()


def test_the_report_draws_forecasts_and_windows(sales, faults):
    html = (sales[1].folder / "report.html").read_text(encoding="utf-8")
    for words in ("Error by step ahead", "Calibration of the quantiles", "the worst window"):
        assert words in html
    html = (faults[1].folder / "report.html").read_text(encoding="utf-8")
    assert "Score over the test period" in html
    assert "alarms with the highest scores" in html


@pytest.mark.browser
@needs_browser
def test_reports_open_on_a_desk_and_a_telephone(sales, faults):
    charts = ("funnel", "compared", "by_step", "coverage")
    look_at(sales[1].folder / "report.html", charts, "made: mase")
    told = look_at(faults[1].folder / "report.html", ("funnel", "compared", "scores"), "made: f1")
    assert "– … –" not in told


def test_masked_patches_are_learnt_before_the_forecast(sales, tmp_path):
    write(tmp_path / "table.csv", shop())
    body = FORECAST + SMALL + QUICK.replace(
        'objective = "none"', 'epochs = 3\nlearning_rate = 3e-3'
    ).replace("steps = 250", "steps = 10")  # fmt: skip
    result = danlu.run(recipe(tmp_path, body), tmp_path / "run")
    rows = [
        e["loss"] for e in read_events(result.folder / "events.jsonl")
        if e["stage"] == "pretrain" and e["event"] == "validation"
    ]  # fmt: skip
    assert rows[-1] < rows[0]


def test_a_detector_finds_what_is_strange(faults):
    found = {(m.model, m.metric): m for m in faults[1].metrics if m.split == "test"}
    # Chance would flag as many steps as there are anomalies: an F1 of about 0.04.
    assert found["made", "roc_auc"].value > 0.9
    assert found["made", "f1"].value > 0.5
    assert found["made", "f1"].low <= found["made", "f1"].value <= found["made", "f1"].high
    assert ("made", "f1 - isolation-forest") in found


def test_scores_and_alarms_are_served_as_they_were_measured(faults, tmp_path):
    _, result, rows = faults
    said = pq.read_table(stages(result.folder)["evaluate"] / "predictions.parquet").to_pylist()
    predictor = danlu.load(result.folder)
    first = said[0]["row"]
    unlabelled = [{k: v for k, v in row.items() if k != "fault"} for row in rows[first:]]
    (answer,) = predictor.predict([unlabelled])
    np.testing.assert_allclose(answer["scores"], [row["score"] for row in said], rtol=1e-5)
    assert answer["times"] == [row["time"] for row in said]
    flagged = [score >= answer["threshold"] for score in answer["scores"]]
    assert sum(alarm["steps"] for alarm in answer["alarms"]) == sum(flagged)
    write(tmp_path / "readings.csv", unlabelled)
    output, count, counts = predict_file(
        predictor.engine, tmp_path / "readings.csv", "text", tmp_path / "out.csv"
    )
    with output.open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert count == len(unlabelled)
    assert counts == {"alarms": len(answer["alarms"]), "unscored": 0}
    assert [row["predicted_alarm"] == "true" for row in written] == flagged


@pytest.mark.parametrize(
    ("task", "more", "body", "words"),
    [
        ("classify", 'label = "x"', "", "forecast, or searched"),
        ("forecast", "", '[data.split]\nby = "random"', "split by their time"),
        ("forecast", "", "[series]\nhorizon = 0", "nothing to foretell"),
        ("forecast", "", '[model]\nbackbone = "mlp"', "one position"),
        ("forecast", "", "[finetune]\ntrim = 0.1", "is for task 'detect'"),
        ("forecast", "", '[data.clean]\nexact_duplicates = "drop"', "told apart by their times"),
        ("forecast", "", '[finetune]\nloss = "squared"', "not a loss"),
        ("detect", "", "[series]\nhorizon = 0", "needs the column"),
        ("detect", 'label = "x"', "", "foretells nothing"),
        ("detect", 'label = "x"', "[series]\nhorizon = 0\ncontext = 1\npatch = 1", "by itself"),
    ],
)  # fmt: skip
def test_what_series_cannot_be_asked_for_is_refused(tmp_path, task, more, body, words):
    with pytest.raises(InputError, match=words):
        danlu.run(recipe(tmp_path, body, task, more), tmp_path / "run")


def test_a_series_too_short_for_a_window_is_refused(tmp_path):
    write(tmp_path / "table.csv", shop(60))
    with pytest.raises(InputError, match="no whole window"):
        danlu.run(recipe(tmp_path, FORECAST + SMALL + QUICK), tmp_path / "run")


def test_several_series_are_told_apart(tmp_path):
    rows = [{**row, "shop": name} for name, seed in (("a", 0), ("b", 1)) for row in shop(500, seed)]
    for row in rows[500:]:
        row["sales"] += 100
    write(tmp_path / "table.csv", rows)
    body = FORECAST + 'series = "shop"\nvariables = ["sales"]\n' + SMALL + QUICK
    result = danlu.run(recipe(tmp_path, body), tmp_path / "run")
    history = [row for row in rows if row["time"] < "2024-01-15"]
    write(tmp_path / "history.csv", history)
    engine = danlu.load(result.folder).engine
    output, count, _ = predict_file(engine, tmp_path / "history.csv", "text", None)
    assert count == 24
    with output.open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    first, second = (
        np.mean([float(r["sales_0.5"]) for r in found if r["shop"] == name]) for name in "ab"
    )
    assert 90 < second - first < 110


RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.mark.parametrize("name", ["demand", "sensors"])
def test_the_shipped_recipes_run_small(name, tmp_path):
    from danlu.recipe import load

    loaded, _ = load(RECIPES / f"{name}.toml")
    archive = cache() / "archives" / str(loaded.data.sources[0].sha256)
    if not any(archive.glob("*")):
        pytest.skip(f"{loaded.data.sources[0].path} is not in the cache; --fetch downloads it")
    pytest.importorskip("pandas")
    quick = ["finetune.steps=60", "finetune.checkpoint_every=60", "evaluate.bootstrap=100"]
    result = danlu.run(RECIPES / f"{name}.toml", tmp_path / "run", [*quick, "gate.require=[]"])
    assert result.released
    assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))


def test_a_gate_on_the_error_of_a_forecast_closes(sales, tmp_path):
    path, _ = sales
    (tmp_path / "table.csv").write_bytes((path.parent / "table.csv").read_bytes())
    body = FORECAST + SMALL + QUICK.replace("steps = 250", "steps = 1")
    body += '[gate]\nrequire = ["test.mase - baseline < -0.1"]\n'
    with pytest.raises(CheckFailed):
        danlu.run(recipe(tmp_path, body), tmp_path / "run")

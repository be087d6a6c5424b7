"""Whole runs over records of several kinds: a CSV file with texts, numbers and paths of images."""

from __future__ import annotations

import base64
import csv
import json
import shutil
import threading
import time
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

import danlu
from danlu.artifact import digest_file, read_json
from danlu.data import kinds
from danlu.errors import DataError, InputError
from danlu.log import Screen, read_events
from danlu.preflight import check, show
from danlu.recipe import load, validate
from danlu.serve.engine import Engine
from danlu.serve.files import predict_file
from danlu.serve.http import application

CHROMIUM = shutil.which("chromium")
RECIPE = """
seed = 3
[data]
modality = "table"
task = "classify"
label = "sold"
sources = [{ path = "flats.csv" }]
[table]
texts = ["story"]
images = ["photo"]
[tokenizer]
vocab_size = 300
max_length = 12
[model]
depth = 1
width = 32
head_dim = 16
[pretrain]
objective = "masked"
epochs = 1
precision = "float32"
[finetune]
epochs = 12
batch_size = 16
optimizer = "adamw"
learning_rate = 0.01
mask_probability = 0.0
choose_by = "loss"
average = 0.0
precision = "float32"
[evaluate]
bootstrap = 100
"""
NAMES = ["story", "city", "area", "photo", "sold"]
FILLERS = ["lift", "door", "kitchen", "window", "garden", "bath", "street", "floor"]


def flats(folder, n=360, seed=0):
    """Write flats that are sold where two of three hold: quiet, near, and bright in the photo."""
    generator = np.random.default_rng(seed)
    (folder / "photos").mkdir()
    with (folder / "flats.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(NAMES)
        for row in range(n):
            quiet, near, bright = (int(flag) for flag in generator.integers(0, 2, 3))
            words = [*generator.choice(FILLERS, 3), "quiet" if quiet else "noisy"]
            story = " ".join(generator.permutation(words))
            level = (150 if bright else 30) + generator.integers(0, 60, (8, 8))
            Image.fromarray(level.astype(np.uint8)).save(folder / "photos" / f"{row}.png")
            photo = f"photos/{row}.png"
            if row % 40 == 7:
                story = ""
            if row % 40 == 8:
                photo = ""
            if row % 40 == 9:
                photo = "photos/lost.png"
            if row % 40 == 10:
                (folder / photo).write_bytes(b"this is no picture")
            area = f"{generator.normal(80, 20):.1f}"
            city = "near" if near else "far"
            out.writerow([story, city, area, photo, "yes" if quiet + near + bright > 1 else "no"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flats")
    flats(folder)
    (folder / "made.toml").write_text(RECIPE, encoding="utf-8")
    return folder, danlu.run(folder / "made.toml", folder / "run")


def stage(run, name):
    return next((run.folder / "stages").glob(f"{name}-*"))


@cache
def test_records(run_folder):
    data = next((run_folder / "stages").glob("data-*"))
    return tuple(kinds.of_rows("table").records(data, "test"))


test_records.__test__ = False


def test_the_model_reads_all_three(made):
    """No two of the three settle the answer, so that whoever lacks one is right in 3 of 4."""
    _, run = made
    found = {(m.model, m.metric): m.value for m in run.metrics if m.split == "test"}
    assert found["made", "accuracy"] > 0.9
    assert {"tfidf-logreg", "boosting", "majority"} <= {model for model, _ in found}
    assert found["made", "accuracy"] > found["boosting", "accuracy"] + 0.1


def test_the_linear_baseline_reads_all_three(made):
    _, run = made
    about = read_json(stage(run, "baseline") / "report.json")["tfidf-logreg"]
    assert about["analyzer of story"] == "word"
    assert about["pixels of photo"] == "8 × 8"
    assert about["cells"] >= 3
    assert about["features"] > about["cells"] + 64


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_serving_answers_as_the_evaluation_did_whatever_the_batch(made, batch_size):
    _, run = made
    said = pq.read_table(stage(run, "evaluate") / "predictions.parquet")["answer"].to_pylist()
    answers = danlu.load(run.folder).predict(test_records(run.folder), batch_size=batch_size)
    for answer, expected in zip(answers, said, strict=True):
        np.testing.assert_allclose(list(answer["probabilities"].values()), expected, atol=1e-5)


def test_both_stages_learn(made):
    _, run = made
    rows = read_events(run.folder / "events.jsonl")
    for name in ("pretrain", "finetune"):
        losses = [e["loss"] for e in rows if e["stage"] == name and e["event"] == "validation"]
        assert losses[-1] < losses[0] or len(losses) == 1
        steps = [e["loss"] for e in rows if e["stage"] == name and e["event"] == "step"]
        assert np.isfinite(steps).all()


def test_what_is_missing_is_counted_by_split(made):
    _, run = made
    report = read_json(stage(run, "tokenizer") / "report.json")["splits"]
    assert sum(part["missing"] for part in report.values()) == 9 + 9
    assert sum(part["unreadable"] for part in report.values()) == 9 + 9
    rows = {m.metric: m for m in run.metrics if m.stage == "tokenizer" and m.split == "test"}
    assert rows["missing"].value == report["test"]["missing"]
    assert {"missing", "unreadable", "truncated"} <= rows.keys()


def test_texts_of_the_test_split_that_training_knows_are_counted(made):
    _, run = made
    found = read_json(stage(run, "tokenizer") / "report.json")["of_texts"]["story"]
    train, test = (
        [row["story"] for row in kinds.of_rows("table").records(stage(run, "data"), name)]
        for name in ("train", "test")
    )
    expected = sum(story in set(train) for story in test if story)
    assert found["test"]["in_training"] == expected > 0


def test_the_report_and_the_card_show_what_the_model_sees(made):
    _, run = made
    html = (run.folder / "report.html").read_text(encoding="utf-8")
    for word in ("&lt;story&gt;", "[city: near]", "[photo 1]", "brought to 8 × 8 pixels, grey"):
        assert word in html
    assert "data:image/png;base64," in html
    card = (run.folder / "card.md").read_text(encoding="utf-8")
    assert "the texts story, each up to 12 tokens" in card
    assert "the images photo, brought to 8 × 8" in card


def test_check_shows_positions_of_every_kind_and_which_bear_loss(made, capsys):
    folder, _ = made
    found = check(*load(folder / "made.toml"), Screen(quiet=True))
    assert found["problems"] == []
    assert found["of_texts"]["story"]["train"]["truncated"] >= 0
    bearing = [
        target
        for example in found["examples"]
        for target, bears in zip(example["targets"], example["bears_loss"], strict=True)
        if bears
    ]
    assert not any(word.startswith("<") for word in bearing)
    hidden = [piece for example in found["examples"] for piece in example["pieces"]]
    assert any(word.endswith("?]") for word in hidden)
    show(found)
    out = capsys.readouterr().out
    assert "story" in out
    assert "4 patches" in out


def test_the_same_recipe_gives_the_same_bits(made, tmp_path):
    folder, run = made
    again = danlu.run(folder / "made.toml", tmp_path / "again")
    weights = [one.folder / "model" / "model.safetensors" for one in (run, again)]
    assert digest_file(weights[0]) == digest_file(weights[1])
    assert danlu.run(folder / "made.toml", run.folder).built == []


def test_a_file_is_answered_row_by_row_with_its_images(made):
    folder, run = made
    engine = danlu.load(run.folder).engine
    output, rows, counts = predict_file(engine, folder / "flats.csv", "text", None)
    assert rows == 360
    assert counts["unreadable"] == 18
    assert counts["missing"] == 18
    with output.open(encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    right = [row["sold"] == row["predicted_label"] for row in answers]
    assert np.mean(right) > 0.9
    assert answers[0]["photo"] == "photos/0.png"
    assert answers[0]["predicted_truncated"] == "false"


def test_a_path_out_of_the_file_s_folder_is_not_followed(made, tmp_path):
    folder, run = made
    engine = danlu.load(run.folder).engine
    photo = (folder / "photos" / "0.png").read_bytes()
    (tmp_path / "secret.png").write_bytes(photo)
    (tmp_path / "in").mkdir()
    cells = {"story": "quiet", "city": "near", "photo": "../secret.png"}
    (tmp_path / "in" / "a.jsonl").write_text(json.dumps(cells) + "\n", encoding="utf-8")
    *_, counts = predict_file(engine, tmp_path / "in" / "a.jsonl", "text", None)
    assert counts["unreadable"] == 1


def test_the_service_takes_a_row_with_a_file_in_base64(made):
    folder, run = made
    engine = danlu.load(run.folder).engine
    client = TestClient(application(engine))
    blob = (folder / "photos" / "0.png").read_bytes()
    row = {"story": "quiet garden", "city": "near", "photo": base64.b64encode(blob).decode()}
    said = client.post("/v1/predict", json={"row": row}).json()["predictions"][0]
    direct = engine.predict([row | {"photo": blob}])[0]
    assert said["probabilities"] == pytest.approx(direct["probabilities"])
    assert (said["missing"], said["unreadable"], said["truncated"]) == (1, 0, False)
    for odd, status in [
        ({"photo": "photos/0.png"}, 400),
        ({"story": 5}, 400),
        ({"story": "\ud800"}, 400),
        ({"photo": 7}, 400),
        ({"nothing": 1}, 400),
        ({"story": "  "}, 422),
        ([1], 400),
    ]:
        # JSON may spell half a surrogate pair, which no UTF-8 can hold.
        body = json.dumps({"row": odd})
        assert client.post("/v1/predict", content=body).status_code == status, odd
    broken = base64.b64encode(b"no picture").decode()
    answer = client.post("/v1/predict", json={"row": {"story": "quiet", "photo": broken}}).json()
    assert answer["predictions"][0]["unreadable"] == 1


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_page_sends_a_row_with_an_image(made):
    from playwright.sync_api import sync_playwright

    folder, run = made
    engine = danlu.load(run.folder).engine
    photo = folder / "photos" / "0.png"
    row = {"story": "quiet door", "city": "near"}
    direct = engine.predict([row | {"photo": photo.read_bytes()}])[0]
    server = uvicorn.Server(
        uvicorn.Config(application(engine), port=0, log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    problems = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.goto(f"http://127.0.0.1:{port}/")
        page.fill("#text", json.dumps(row))
        page.set_input_files("#files input[name=photo]", photo)
        page.click("#go")
        page.wait_for_selector(".bar.top")
        said = page.locator(".bar.top").inner_text().split()
        page.set_input_files("#files input[name=photo]", folder / "flats.csv")
        page.click("#go")
        page.wait_for_selector(".error")
        assert "could not be read" in page.locator(".error").inner_text()
        browser.close()
    server.should_exit = True
    thread.join()
    assert problems == []
    assert said[0] == direct["label"]
    assert said[-1] == f"{100 * direct['probability']:.1f}%"


def test_the_command_line_takes_a_row_with_a_path(made, capsys, monkeypatch):
    from typer.testing import CliRunner

    from danlu.cli import app

    folder, run = made
    monkeypatch.chdir(folder)
    row = {"story": "quiet door", "city": "near", "photo": "photos/0.png"}
    said = CliRunner().invoke(app, ["predict", str(run.folder), json.dumps(row), "--json"])
    assert said.exit_code == 0
    assert json.loads(said.stdout)[0]["unreadable"] == 0
    lost = CliRunner().invoke(app, ["predict", str(run.folder), '{"photo": "lost.png"}'])
    assert lost.exit_code == 2


def test_any_record_is_answered(made):
    _, run = made
    engine = danlu.load(run.folder).engine
    odd = [
        {"story": "quiet " * 5000, "area": 1e300, "city": "Mars", "photo": b""},
        {"story": "\ud800 half"},
        {"area": "nan", "story": "<mask> <bos>"},
        {"photo": b"\x89PNG\r\n\x1a\n"},
        {"city": "near", "photo": None, "story": 12.5},
    ]
    for answer in engine.predict(odd):
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
    assert engine.predict(odd)[0]["truncated"]


def test_a_text_is_redacted_as_in_training(tmp_path):
    flats(tmp_path, 120)
    path = tmp_path / "flats.csv"
    path.write_text(path.read_text().replace("quiet", "quiet write to ada@example.org"))
    (tmp_path / "made.toml").write_text(RECIPE)
    quick = ["pretrain.objective=none", "finetune.epochs=1", "gate.require=[]"]
    run = danlu.run(tmp_path / "made.toml", tmp_path / "run", overrides=quick)
    for name in ("train", "validation", "test"):
        assert "ada@" not in str(pq.read_table(stage(run, "data") / f"{name}.parquet")["text"])
    assert read_json(stage(run, "data") / "report.json")["redactions"]["emails"] > 40
    engine = Engine.load(run.folder / "model")
    clean = engine.reader.clean({"story": "write to bob@example.org"})
    assert "bob@" not in clean["story"]


@pytest.mark.parametrize("task", [{"table.images": '["photo"]'}, {"table.texts": '["story"]'}])
def test_either_kind_alone_and_a_number_to_foretell(tmp_path, task):
    flats(tmp_path, 120)
    text = RECIPE.replace('texts = ["story"]\nimages = ["photo"]\n', "")
    text = text.replace('"classify"', '"regress"').replace('"sold"', '"area"')
    section = "tokenizer" if "table.images" in task else "image"
    if section == "tokenizer":
        text = text.replace("[tokenizer]\nvocab_size = 300\nmax_length = 12\n", "")
    (tmp_path / "made.toml").write_text(text)
    overrides = [f"{key}={value}" for key, value in task.items()] + ["finetune.epochs=1"]
    overrides += ['table.ignore=["photo"]'] if section == "image" else []
    run = danlu.run(tmp_path / "made.toml", tmp_path / "run", overrides=overrides)
    linear = "ridge" if section == "tokenizer" else "tfidf-ridge"
    assert linear in {m.model for m in run.metrics}
    assert "value" in danlu.load(run.folder).predict([{"city": "near"}])[0]


def test_records_of_texts_alone_need_no_cell(tmp_path):
    flats(tmp_path, 120)
    overrides = ['table.columns=["story"]', "table.images=[]", "finetune.epochs=1"]
    (tmp_path / "made.toml").write_text(RECIPE)
    run = danlu.run(tmp_path / "made.toml", tmp_path / "run", overrides=overrides)
    models = {m.model for m in run.metrics}
    assert "tfidf-logreg" in models
    assert "boosting" not in models
    files = {path.name for path in (run.folder / "model").iterdir()}
    assert {"encoder.json", "tokenizer.json"} <= files
    assert "image.json" not in files


def test_a_column_without_a_text_in_training_is_refused(tmp_path):
    flats(tmp_path, 60)
    path = tmp_path / "flats.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([rows[0], *(["", *row[1:]] for row in rows[1:])])
    (tmp_path / "made.toml").write_text(RECIPE)
    with pytest.raises(DataError, match="no training row has anything to read in 'story'"):
        danlu.run(tmp_path / "made.toml", tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"backbone": "mlp"}, "pretrain": {"objective": "none"}}, "one vector"),
        ({"model": {"backbone": "linear"}, "pretrain": {"objective": "none"}}, "one vector"),
        ({"model": {"backbone": "cnn"}}, "no order"),
        ({"model": {"backbone": "lstm"}}, "no order"),
        ({"table": {"texts": ["story"], "images": ["story"]}}, "two kinds"),
        ({"table": {"texts": ["story"], "categorical": ["story"]}}, "two kinds"),
        ({"table": {"images": ["photo"]}}, "tokenizer"),
        ({"pretrain": {"objective": "causal"}}, "no order"),
        ({"data": {"text": "story"}}, "texts alone"),
    ],
)
def test_what_records_cannot_be_asked_for_is_refused(change, words):
    import tomllib

    content = tomllib.loads(RECIPE) | {"name": "made"}
    for section, keys in change.items():
        replaced = section == "table"
        content[section] = keys if replaced else content[section] | keys
    with pytest.raises(InputError, match=words):
        validate(content, "made.toml")


def test_a_named_column_that_is_not_there_is_named(tmp_path):
    flats(tmp_path, 60)
    (tmp_path / "made.toml").write_text(RECIPE.replace('["photo"]', '["picture"]'))
    with pytest.raises(InputError, match="picture"):
        danlu.run(tmp_path / "made.toml", tmp_path / "run")

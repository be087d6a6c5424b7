"""Task `transcribe` from sound files to a served recogniser: letters that are whistled."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from starlette.testclient import TestClient
from typer.testing import CliRunner

import danlu
from danlu.artifact import read_json
from danlu.cli import app
from danlu.errors import RecipeError
from danlu.recipe import load
from danlu.serve.http import application

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RATE = 8000
HZ = dict(zip("abcde", (300, 520, 900, 1500, 2500), strict=True))
RECIPE = """
name = "whistle"
seed = 3

[data]
task = "transcribe"
modality = "audio"
label = "said"
sources = [{ path = "clips", licence = "made up", pattern = '(?P<said>[^/_]+)_(?P<part>[a-z]+)' }]

[data.split]
by = "group:part"
hold_out = ["test"]
validation = 0.15

[audio]
rate = 8000
num_mels = 24
max_seconds = 1.0
augment.shift_ms = 0
augment.frequency_masks = 0
augment.time_masks = 0

[model]
backbone = "lstm"
depth = 1
width = 48

[pretrain]
objective = "none"

[finetune]
epochs = 14
batch_size = 16
optimizer = "adamw"
learning_rate = 1e-2
precision = "float32"

[evaluate]
bootstrap = 200

[gate]
require = ["test.cer.high < 0.3", "test.cer - baseline < 0"]
"""


def whistled(text, generator, letter=0.08, gap=0.04):
    """Return a WAV file; a space is silence."""
    parts = [np.zeros(int(0.05 * RATE))]
    for character in text:
        time = np.arange(int(letter * generator.uniform(0.8, 1.2) * RATE)) / RATE
        hz = HZ.get(character, 3500 if character == "z" else 0) * generator.uniform(0.97, 1.03)
        parts += [0.3 * np.sin(2 * np.pi * hz * time), np.zeros(int(gap * RATE))]
    sound = np.concatenate(parts)
    stream = io.BytesIO()
    noise = 0.003 * generator.standard_normal(len(sound))
    soundfile.write(stream, sound + noise, RATE, format="WAV")
    return stream.getvalue()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Some 300 clips; three cannot be learnt from, and one has a letter of its own."""
    folder = tmp_path_factory.mktemp("whistle") / "clips"
    folder.mkdir()
    generator = np.random.default_rng(0)
    words = {"".join(generator.choice(list(HZ), generator.integers(1, 5))) for _ in range(600)}
    for number, word in enumerate(sorted(words)):
        part = "test" if number % 5 == 0 else f"p{chr(97 + number % 26)}"
        (folder / f"{word}_{part}_{number}.wav").write_bytes(whistled(word, generator))
    (folder / "aaaaaaaaaaaa_pa_short.wav").write_bytes(whistled("a", generator))
    (folder / "ab_pb_long.wav").write_bytes(whistled("ab" * 10, generator))
    (folder / "bez_test_new.wav").write_bytes(whistled("bez", generator))
    (folder.parent / "whistle.toml").write_text(RECIPE, encoding="utf-8")
    return folder.parent


@pytest.fixture(scope="module")
def run(clips):
    return danlu.run(clips / "whistle.toml", clips / "run")


def stage(run, name):
    return next((run.folder / "stages").glob(f"{name}-*"))


def test_it_learns_to_write_what_is_whistled_and_beats_its_baselines(run):
    rows = {(m.model, m.metric): m for m in run.metrics if m.stage == "evaluate"}
    ours, nearest = rows["whistle", "cer"], rows["nearest-clip", "cer"]
    assert ours.low <= ours.value <= ours.high < nearest.low
    assert rows["majority", "exact_match"].value < 0.1
    assert rows["whistle", "cer - nearest-clip"].high < 0
    parts = [rows["whistle", name].value for name in ("substitutions", "insertions", "deletions")]
    assert sum(parts) == pytest.approx(ours.value)
    assert run.released
    assert "character error rate" in run.headline
    assert "beats nearest-clip" in run.headline


def test_the_figures_are_of_the_answers_that_are_kept(run):
    said = pq.read_table(stage(run, "evaluate") / "predictions.parquet")
    right = np.equal(said["truth"].to_pylist(), said["answer"].to_pylist())
    row = next(m for m in run.metrics if (m.model, m.metric) == ("whistle", "exact_match"))
    assert (row.value, row.n) == (right.mean(), len(right))
    again = danlu.load(run.folder).predict(
        [(run.folder.parent / "clips" / file).read_bytes() for file in files(run)]
    )
    assert [answer["text"] for answer in again] == said["answer"].to_pylist()


def files(run):
    table = pq.read_table(stage(run, "data") / "test.parquet")
    return [name.rsplit("/", 1)[-1] for name in table["file"].to_pylist()]


def test_clips_that_no_transcript_fits_are_set_aside_and_said(run):
    report = read_json(stage(run, "data") / "report.json")
    reasons = {item["reason"]: item for item in report["rejects"]}
    assert reasons["too short for its transcript"]["rows"] == 1
    assert reasons["too short for its transcript"]["examples"][0]["label"] == "aaaaaaaaaaaa"
    (long,) = (reason for reason in reasons if reason.startswith("longer than 1 s"))
    assert reasons[long]["rows"] == 1


def test_characters_that_training_lacks_are_counted_and_held_against_the_model(run):
    report = read_json(stage(run, "data") / "report.json")
    assert report["classes"] == list("abcde")
    assert report["unknown_characters"] == {"train": {}, "validation": {}, "test": {"z": 1}}
    assert any("'z' (1)" in finding for finding in report["findings"])
    said = pq.read_table(stage(run, "evaluate") / "predictions.parquet").to_pylist()
    assert next(row for row in said if row["truth"] == "bez")["answer"] != "bez"


def test_the_report_shows_what_was_said_and_what_was_heard(run):
    html = (run.folder / "report.html").read_text(encoding="utf-8")
    shown = html.split('id="heard"')[1].split("</table>")[0]
    assert shown.count("<audio") == shown.count("<tr><td")
    assert "<del>" in shown
    assert "characters: a, b, c, d, e" in (run.folder / "card.md").read_text(encoding="utf-8")


def test_it_answers_on_the_command_line_and_over_http(run, clips, tmp_path):
    generator = np.random.default_rng(5)
    wanted, blob = "ace", whistled("ace", generator)
    path = tmp_path / "clip.wav"
    path.write_bytes(blob)
    predictor = danlu.load(run.folder)
    (answer,) = predictor.predict([blob])
    assert set(answer) == {"text"}
    found = CliRunner().invoke(app, ["predict", str(run.folder), str(path)])
    assert found.exit_code == 0
    assert found.stdout.strip() == answer["text"] == wanted
    client = TestClient(application(predictor.engine))
    sent = base64.b64encode(blob).decode()
    reply = client.post("/v1/predict", content=json.dumps({"clip": sent}))
    assert reply.json()["predictions"] == [{"text": wanted}]
    long = base64.b64encode(whistled("ab" * 10, generator)).decode()
    reply = client.post("/v1/predict", content=json.dumps({"clip": long}))
    assert reply.status_code == 422
    assert "longer than 1 s" in reply.json()["error"]


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("data.modality=text", "data.task"),
        ("finetune.loss=cross_entropy", "finetune.loss"),
        ("finetune.choose_by=accuracy", "finetune.choose_by"),
        ("finetune.label_smoothing=0.1", "finetune.label_smoothing"),
        ('audit.protected=["part"]', "audit.protected"),
    ],
)
def test_what_has_no_meaning_is_refused(clips, override, where):
    with pytest.raises(RecipeError) as caught:
        load(clips / "whistle.toml", [override])
    assert where in str(caught.value)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_the_report_and_transcribes_what_is_uploaded(run, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "clip.wav"
    path.write_bytes(whistled("ace", np.random.default_rng(5)))
    command = [sys.executable, "-m", "danlu", "serve", str(run.folder), "--port", "0", "--json"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service,
        sync_api.sync_playwright() as play,
    ):
        try:
            assert service.stdout is not None
            address = json.loads(service.stdout.readline())["url"]
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page, errors = browser.new_page(), []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"file://{run.folder / 'report.html'}")
            assert page.locator("#heard tbody tr").count() > 5
            assert page.locator("#heard del").first.is_visible()
            page.set_viewport_size({"width": 390, "height": 800})
            wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, "the page scrolls sideways on a telephone"
            page.goto(address)
            page.set_input_files("#file", str(path))
            page.click("#go")
            page.wait_for_selector("#answer .value")
            assert page.inner_text("#answer") == "ace"
            assert not errors
            browser.close()
        finally:
            service.terminate()

"""Whole runs over interactions: from a CSV file to served recommendations."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from starlette.testclient import TestClient
from typer.testing import CliRunner

import danlu
from danlu.artifact import digest_file, read_json
from danlu.cli import app
from danlu.data import events_prepare
from danlu.data.interactions import load
from danlu.data.split import TEST, TRAIN
from danlu.errors import CheckFailed, InputError
from danlu.log import read_events
from danlu.serve.files import predict_file
from danlu.serve.http import application

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ITEMS, USERS, LENGTH = 40, 150, 14
QUICK = """
[model]
backbone = "gru"
depth = 1
width = 32
[pretrain]
objective = "none"
[finetune]
epochs = 6
batch_size = 8
optimizer = "adamw"
learning_rate = 1e-2
layer_dropout = 0.1
dropout = 0.1
precision = "float32"
average = 0.0
[evaluate]
bootstrap = 100
"""


def shop(seed=0, step=lambda time: 7):
    """Histories in which an item is mostly followed by the one `step` further on."""
    generator = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        time, item = generator.uniform(0, 1000), int(generator.integers(ITEMS))
        for _ in range(LENGTH):
            rows.append({"who": f"user{user}", "what": f"thing{item}", "when": round(time, 3)})
            time += float(generator.exponential(5.0))
            follows = (item + step(time)) % ITEMS
            item = follows if generator.random() < 0.8 else int(generator.integers(ITEMS))
    generator.shuffle(rows)
    return rows


def write(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def recipe(folder, body=QUICK, events="", data=""):
    path = folder / "made.toml"
    path.write_text(f"""
seed = 3
[data]
modality = "events"
task = "rank"
{data}
sources = [{{ path = "table.csv" }}]
[events]
user = "who"
item = "what"
time = "when"
max_length = 12
{events}
{body}
""", encoding="utf-8")  # fmt: skip
    return path


def stages(run):
    return {p.name.rsplit("-", 1)[0]: p for p in (run / "stages").iterdir()}


def of_test(result, model="made"):
    return {m.metric: m for m in result.metrics if m.split == "test" and m.model == model}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Rows in no order; some are copies, some lack a user, an item or a time."""
    folder = tmp_path_factory.mktemp("events")
    rows = shop()
    rows += [dict(rows[5]), rows[6] | {"who": ""}, rows[7] | {"what": " "}]
    rows += [rows[8] | {"when": "soon"}, {"who": "once", "what": "thing1", "when": 1.0}]
    write(folder / "table.csv", rows)
    path = recipe(folder)
    return path, danlu.run(path, folder / "run"), rows


@pytest.fixture(scope="module")
def said(made):
    """The answers about the test that the evaluation kept."""
    return pq.read_table(stages(made[1].folder)["evaluate"] / "predictions.parquet").to_pylist()


def test_it_learns_what_follows(made):
    own = of_test(made[1])
    assert own["ndcg@10"].low <= own["ndcg@10"].value <= own["ndcg@10"].high
    assert own["ndcg@10"].value > 0.5
    for other in ("popular", "popular-recent", "item-knn", "item-knn-recency"):
        assert own[f"ndcg@10 - {other}"].low > 0
    assert "ndcg@10 - item-knn-sequential" in own
    assert "ndcg@10" in made[1].headline
    assert "test users" in made[1].headline


def test_every_figure_says_on_how_many_and_how_sure(made):
    metrics = [m for m in made[1].metrics if m.stage == "evaluate"]
    assert {m.model for m in metrics} == {
        "made", "popular", "popular-recent", "item-knn", "item-knn-recency", "item-knn-sequential",
    }  # fmt: skip
    ranked = [m for m in metrics if m.metric.split("@")[0] in ("hr", "recall", "ndcg", "mrr")]
    assert ranked
    assert all(m.low <= m.value <= m.high and m.n > 0 and m.unit and m.interval for m in ranked)
    assert of_test(made[1])["coverage@10"].n == ITEMS


def test_the_metrics_are_those_of_the_answers_that_were_kept(made, said):
    """HR, recall, NDCG and MRR again, by hand, from predictions.parquet alone."""
    by_user = {}
    for row in said:
        truth = set(row["truth"])
        hits = [place for place, item in enumerate(row["items"], 1) if item in truth]
        gain = sum(1 / np.log2(1 + place) for place in hits)
        ideal = sum(1 / np.log2(2 + place) for place in range(min(10, len(truth))))
        of = (bool(hits), len(hits) / len(truth), gain / ideal, 1 / hits[0] if hits else 0.0)
        by_user.setdefault(row["user"], []).append(of)
    means = np.mean([np.mean(cases, 0) for cases in by_user.values()], 0)
    own = of_test(made[1])
    for name, value in zip(("hr@10", "recall@10", "ndcg@10", "mrr@10"), means, strict=True):
        assert own[name].value == pytest.approx(value, rel=1e-12), name
        assert own[name].n == len(by_user)
    recommended = {item for row in said for item in row["items"]}
    assert own["coverage@10"].value == pytest.approx(len(recommended) / ITEMS)


def test_nothing_of_a_history_is_recommended_again(said):
    assert all(not set(row["items"]) & set(row["history"]) for row in said)
    assert all(len(row["items"]) == 10 for row in said)


def test_what_was_set_aside_is_told_and_nobody_is_named(made):
    _, result, rows = made
    data = stages(result.folder)["data"]
    report = read_json(data / "report.json")
    reasons = {item["reason"]: item["rows"] for item in report["rejects"]}
    assert reasons.pop("of a user with fewer than 5 interactions to train on") >= 1
    assert reasons == {
        "no user": 1, "no item": 1, "no readable time": 1, "a copy of a row before": 1,
    }  # fmt: skip
    kept = sum(part["rows"] for part in report["splits"].values())
    assert kept + sum(item["rows"] for item in report["rejects"]) == len(rows)
    assert report["funnel"][2]["rows"] == len(rows) - 3
    for file in result.folder.rglob("*"):
        if file.is_file():
            assert b"user14" not in file.read_bytes(), file
    for file in data.glob("*.parquet"):
        assert "user14" not in json.dumps(pq.read_table(file).to_pylist()), file
    assert not any("user" in name for name in load(data)[0].users)


def late(rows, cut):
    return [row for row in rows if row["when"] != "soon" and float(row["when"]) >= cut]


def test_training_sees_nothing_of_what_lies_ahead(made, tmp_path):
    """All that is done after training ends is changed; the losses stay what they were."""
    _, result, rows = made
    cut = read_json(stages(result.folder)["data"] / "report.json")["splits"]["validation"]["from"]
    strange = [row | {"what": "thing0"} if row in late(rows, cut) else row for row in rows]
    write(tmp_path / "table.csv", strange)
    again = danlu.run(recipe(tmp_path), tmp_path / "run")
    losses = [
        [e["loss"] for e in read_events(run / "events.jsonl") if e["event"] == "step"]
        for run in (result.folder, again.folder)
    ]
    assert losses[0] == losses[1]
    assert of_test(again)["ndcg@10"].value < 0.3, "and the answers are wrong now"
    assert read_json(stages(result.folder)["evaluate"] / "leaks.json") == {
        "train": 0, "validation": 0,
    }  # fmt: skip


def test_a_planted_leak_is_seen(tmp_path, monkeypatch):
    """After training ends things follow each other otherwise: only a leak could tell how."""
    write(tmp_path / "table.csv", shop(step=lambda time: 7 if time < 800 else 17))
    data = "[data.split]\ntest = 0.2\nvalidation = 0.05\n"
    path = recipe(tmp_path, QUICK.replace("[model]", data + "[model]"))
    honest = danlu.run(path, tmp_path / "honest")
    split = events_prepare.split_time

    def leaking(*args):
        events, part, counts = split(*args)
        leaked = (part == TEST) & (np.arange(len(part)) % 4 != 0)
        return events, np.where(leaked, TRAIN, part), counts

    monkeypatch.setattr(events_prepare, "split_time", leaking)
    leaky = danlu.run(path, tmp_path / "leaky")
    assert of_test(honest)["ndcg@10"].value < 0.35
    assert of_test(leaky)["ndcg@10"].value > of_test(honest)["ndcg@10"].value + 0.15
    told = {m.metric: m.value for m in leaky.metrics if m.stage == "audit"}
    assert told["rows no later than train"] > 0, "the count of leaks would have told"
    told = {m.metric: m.value for m in honest.metrics if m.stage == "audit"}
    assert told == {"rows no later than train": 0, "rows no later than validation": 0}


def test_the_same_recipe_gives_the_same_bits(made, tmp_path):
    path, result, _ = made
    again = danlu.run(path, tmp_path / "again")
    weights = [digest_file(r.folder / "model" / "model.safetensors") for r in (result, again)]
    assert weights[0] == weights[1]
    assert danlu.run(path, result.folder).built == []


def test_an_interrupted_run_goes_on_to_the_same_weights(made, tmp_path, monkeypatch):
    from danlu import events_fitting

    path, result, _ = made
    judged, judge = [], events_fitting.Judge.__call__

    def dies(self, model, where):
        judged.append(1)
        if len(judged) == 4:
            raise KeyboardInterrupt
        return judge(self, model, where)

    monkeypatch.setattr(events_fitting.Judge, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        danlu.run(path, tmp_path / "run")
    done = danlu.run(path, tmp_path / "run")
    assert "data" not in done.built
    assert len(judged) == 3 + 1 + 3, "three epochs, the interrupted evaluation, three more"
    first, then = (load_file(r.folder / "model" / "model.safetensors") for r in (result, done))
    assert all(first[name].equal(then[name]) for name in first)


def test_what_is_served_is_what_was_evaluated(made, said):
    predictor = danlu.load(made[1].folder)
    kept = [row for row in said if row["history"]][::7]
    answers = predictor.predict([row["history"] for row in kept], batch_size=3)
    for answer, row in zip(answers, kept, strict=True):
        assert [one["item"] for one in answer["items"]] == row["items"]
        found = [one["probability"] for one in answer["items"]]
        np.testing.assert_allclose(found, row["probabilities"], rtol=1e-4)
        assert found == sorted(found, reverse=True)
        assert answer["unknown"] == 0
        assert answer["cut"] == max(0, len(row["history"]) - 11)
    with TestClient(application(predictor.engine)) as client:
        histories = [row["history"] for row in kept]
        reply = client.post("/v1/predict", json={"histories": histories})
        assert [
            [one["item"] for one in answer["items"]] for answer in reply.json()["predictions"]
        ] == [row["items"] for row in kept]
        assert "History" in client.get("/").text


def test_unknown_items_in_a_question_are_counted_and_left_out(made):
    predictor = danlu.load(made[1].folder)
    known, strange = predictor.predict([["thing3", "thing10"], ["thing3", "nothing", "thing10"]])
    assert (known["unknown"], strange["unknown"]) == (0, 1)
    assert known["items"] == strange["items"]
    (only,) = predictor.predict([["nothing"]])
    assert only["unknown"] == 1
    assert len(only["items"]) == 10
    every = [f"thing{n}" for n in range(ITEMS)]
    few, all_ = predictor.predict([every[:-3], every])
    assert {one["item"] for one in few["items"]} == set(every[-3:])
    assert len(all_["items"]) == 10, "where nothing is left, all are candidates again"


def test_bad_questions_are_refused(made):
    engine = danlu.load(made[1].folder).engine
    with TestClient(application(engine)) as client:
        for wrong, status in (
            ({"histories": ["thing1"]}, 400),
            ({"history": [["thing1"]]}, 400),
            ({"history": [True]}, 400),
            ({"history": {"who": "user1"}}, 400),
            ({"texts": ["thing1"]}, 400),
            ({"history": []}, 422),
            ({"history": [" "]}, 422),
            ({"history": ["a"] * 100_001}, 422),
        ):
            assert client.post("/v1/predict", json=wrong).status_code == status, wrong
        assert client.post("/v1/predict", json={"history": [3, "thing3"]}).status_code == 200


def test_an_item_in_place_of_a_history_is_refused(made):
    with pytest.raises(InputError, match="a list of items, not one"):
        danlu.load(made[1].folder).predict(["thing3"])


def test_the_command_line_answers(made):
    run = str(made[1].folder)
    answer = CliRunner().invoke(app, ["predict", run, '["thing3", "nothing"]'])
    assert answer.exit_code == 0
    lines = answer.stdout.splitlines()
    assert lines[0] == "(1 of the items are unknown)"
    assert len(lines) == 11
    assert CliRunner().invoke(app, ["predict", run, "thing3"]).exit_code == 2
    assert CliRunner().invoke(app, ["predict", run, "[]"]).exit_code == 2


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_of_interactions_gives_each_user_s_recommendations(made, said, tmp_path, ending):
    result = made[1]
    wanted = next(row for row in said if len(row["history"]) > 3)
    table = [
        {"who": name, "what": item, "when": place}
        for name, history in (("ann", wanted["history"]), ("bob", ["thing1", "nothing"]))
        for place, item in enumerate(history)
    ]
    file = tmp_path / f"asked.{ending}"
    if ending == "csv":
        table = [row | {"when": str(row["when"])} for row in table] + [{"who": "", "what": "x"}]
        write(file, table)
    else:
        pq.write_table(pa.Table.from_pylist(table), file)
    engine = danlu.load(result.folder).engine
    output, count, counts = predict_file(engine, file, "text", None)
    assert count == 20
    assert counts == {"users": 2, "unknown": 1, "set aside": int(ending == "csv")}
    if ending == "csv":
        with output.open(encoding="utf-8") as lines:
            found = list(csv.DictReader(lines))
    else:
        found = pq.read_table(output).to_pylist()
    ann = [row["what"] for row in found if row["who"] == "ann"]
    assert ann == wanted["items"]
    assert [int(row["place"]) for row in found] == [*range(1, 11)] * 2
    bare = tmp_path / "bare.csv"
    write(bare, [{"who": "ann", "what": "thing1"}])
    with pytest.raises(InputError, match="no column 'when'"):
        predict_file(engine, bare, "text", None)


def test_the_report_and_the_card_say_what_it_is(made):
    html = (made[1].folder / "report.html").read_text(encoding="utf-8")
    for words in (
        "the whole catalogue of 40 items is ranked", "item-knn-sequential", "coverage@10",
        "A few test cases", "0 tested interactions are no later", "Users are told apart by a hash",
    ):  # fmt: skip
        assert words in html, words
    card = (made[1].folder / "card.md").read_text(encoding="utf-8")
    assert "answers the 10 of 40 items" in card
    assert "It knows items and no users" in card


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_pages_work_in_a_browser(made, said):
    from playwright.sync_api import sync_playwright

    row = next(row for row in said if row["history"])
    command = [sys.executable, "-m", "danlu", "serve", str(made[1].folder), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server, sync_playwright() as play:
        try:
            url = json.loads(server.stdout.readline())["url"]
            browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            errors = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(url)
            page.fill("#text", json.dumps([*row["history"], "nothing"]))
            page.click("#go")
            page.wait_for_selector(".bar")
            shown = [line.split("\n")[0] for line in page.locator(".bar").all_inner_texts()]
            assert shown == row["items"]
            assert "1 of these items are not known" in page.inner_text("#answer")
            page.goto((made[1].folder / "report.html").resolve().as_uri())
            assert page.locator("#chart-compared svg").count() == 1
            assert "item-knn-sequential" in page.inner_text("#result")
            assert errors == []
            browser.close()
        finally:
            server.kill()


def test_a_transformer_learns_what_follows_too(made, tmp_path):
    (tmp_path / "table.csv").write_bytes((made[0].parent / "table.csv").read_bytes())
    body = QUICK.replace('backbone = "gru"', 'backbone = "transformer"\nhead_dim = 16')
    result = danlu.run(
        recipe(tmp_path, body.replace("epochs = 6", "epochs = 12")), tmp_path / "run"
    )
    assert of_test(result)["ndcg@10 - item-knn"].low > 0


def test_a_sampled_softmax_learns_what_follows_too(made, tmp_path):
    (tmp_path / "table.csv").write_bytes((made[0].parent / "table.csv").read_bytes())
    result = danlu.run(recipe(tmp_path, events="negatives = 16"), tmp_path / "run")
    assert of_test(result)["ndcg@10 - item-knn"].low > 0


def test_a_split_by_the_last_interaction_says_that_it_leaks(made, tmp_path):
    (tmp_path / "table.csv").write_bytes((made[0].parent / "table.csv").read_bytes())
    body = QUICK.replace("[model]", '[data.split]\nby = "last:who"\n[model]', 1)
    result = danlu.run(recipe(tmp_path, body.replace("epochs = 6", "epochs = 1")), tmp_path / "run")
    report = read_json(stages(result.folder)["data"] / "report.json")
    assert report["splits"]["test"]["rows"] == USERS
    assert any("THE SPLIT LEAKS" in finding for finding in report["findings"])
    told = {m.metric: m.value for m in result.metrics if m.stage == "audit"}
    assert told["rows no later than train"] > 0.9 * USERS


def test_a_gate_on_the_ranking_closes(made, tmp_path):
    (tmp_path / "table.csv").write_bytes((made[0].parent / "table.csv").read_bytes())
    body = QUICK + '[gate]\nrequire = ["test.ndcg@10.low - item-knn > 0.9"]\n'
    with pytest.raises(CheckFailed, match="ndcg@10"):
        danlu.run(recipe(tmp_path, body.replace("epochs = 6", "epochs = 1")), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("data", "events", "body", "words"),
    [
        ('label = "x"', "", "", "has no label"),
        ("", "", '[data.split]\nby = "random"', "split events by 'time:when'"),
        ("", "", '[data.split]\nby = "last:who"\ntest = 0.3', "shares say nothing"),
        ("", "min_user = 2", '[data.split]\nby = "last:who"', "3 are needed"),
        ("", "", '[pretrain]\nobjective = "causal"', "itself learns what comes next"),
        ("", "", '[model]\nbackbone = "mlp"', "all that came before"),
        ("", "", "[model]\ncausal = false", "nothing to foretell"),
        ("", "", '[finetune]\nchoose_by = "accuracy"', "judged by 'ndcg'"),
        ("", "", "[finetune]\nmask_probability = 0.1", "have no meaning for task 'rank'"),
        ("", "", '[data.clean]\nexact_duplicates = "drop"', "told apart by user"),
        ("", "", '[audit]\nprotected = ["who"]', "no answers whose fairness"),
        ("", "", '[table]\nignore = ["x"]', "has no meaning for data.modality 'events'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path, data, events, body, words):
    with pytest.raises(InputError, match=words):
        danlu.run(recipe(tmp_path, body, events, data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "events", "words"),
    [
        (lambda row: {k: v for k, v in row.items() if k != "when"}, "", "no column 'when'"),
        (lambda row: row | {"when": "soon"}, "", "no cell is a time"),
        (lambda row: row | {"who": ""}, "", "none of 2,100 rows has a user"),
        (lambda row: row, "min_user = 15", "no user has 15 interactions in the training period"),
        (lambda row: row, "min_item = 10000", "to recommend, two are needed"),
        (lambda row: row | {"when": 5}, "", "split would be empty"),
    ],
)
def test_a_table_that_will_not_do_is_refused(tmp_path, change, events, words):
    write(tmp_path / "table.csv", [change(row) for row in shop()])
    with pytest.raises(InputError, match=words):
        danlu.run(recipe(tmp_path, QUICK, events), tmp_path / "run")
    if "min_item" in events:  # the data were good, and are kept
        assert set(stages(tmp_path / "run")) == {"data"}
    else:
        assert not (tmp_path / "run").exists()


def test_check_shows_histories_and_trains_nothing(made):
    answer = CliRunner().invoke(app, ["check", str(made[0])])
    assert answer.exit_code == 0, answer.output
    assert "<bos>│thing" in answer.stdout
    found = json.loads(CliRunner().invoke(app, ["check", str(made[0]), "--json"]).stdout)
    assert found["settings"]["items"] == ITEMS
    assert len(found["histories"]) == 5

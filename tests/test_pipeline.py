"""The whole run on real reviews, at a small size."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path

import pytest

import danlu
from danlu.artifact import digest_file, read_json
from danlu.errors import ArtifactError, CheckFailed, InputError

RECIPE = Path(__file__).parent.parent / "recipes" / "reviews.toml"
STAGES = ["data", "tokenizer", "pretrain", "finetune", "baseline", "evaluate", "report"]


def weights(run: Path) -> str:
    return digest_file(run / "model" / "model.safetensors")


def test_a_run_leaves_what_users_and_tools_read(finished):
    for name in ("recipe.toml", "metrics.json", "report.html", "card.md", "events.jsonl"):
        assert (finished / name).stat().st_size > 0, name
    assert {path.name for path in (finished / "model").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert sorted(p.name.rsplit("-", 1)[0] for p in (finished / "stages").iterdir()) == sorted(
        STAGES
    )


def test_metrics_follow_the_contract(finished):
    rows = read_json(finished / "metrics.json")
    keys = {"stage", "model", "split", "metric", "value", "low", "high", "n", "unit"}
    for row in rows:
        assert keys <= set(row), row
        assert isinstance(row["value"], (int, float))
        assert math.isfinite(row["value"])
        assert isinstance(row["n"], int)
        assert row["n"] > 0
        assert row["unit"]
        if row["low"] is not None:
            assert row["low"] <= row["value"] <= row["high"], row
            assert row["interval"]
    test = {(r["model"], r["metric"]) for r in rows if r["split"] == "test"}
    for model in ("reviews", "majority", "tfidf-logreg"):
        assert {(model, "accuracy"), (model, "roc_auc"), (model, "log_loss")} <= test
    assert ("reviews", "accuracy - tfidf-logreg") in test


def test_every_evaluated_number_has_an_interval(finished):
    rows = [r for r in read_json(finished / "metrics.json") if r["split"].startswith("test")]
    rows = [r for r in rows if r["stage"] == "evaluate"]
    assert len(rows) > 40
    assert [r for r in rows if r["low"] is None] == []


def test_the_model_learnt_something(finished):
    rows = read_json(finished / "metrics.json")
    value = {(r["model"], r["split"], r["metric"]): r for r in rows}
    own = value["reviews", "test", "roc_auc"]
    assert own["low"] > 0.6
    losses = [
        row["loss"]
        for row in map(json.loads, (finished / "events.jsonl").read_text().splitlines())
        if row["stage"] == "pretrain" and row["event"] == "step"
    ]
    assert losses[-1] < losses[0]


def test_the_data_report_counts_every_row(finished):
    report = read_json(next((finished / "stages").glob("data-*")) / "report.json")
    kept = sum(part["rows"] for part in report["splits"].values())
    assert kept + sum(item["rows"] for item in report["rejects"]) == report["funnel"][0]["rows"]
    assert any("exact duplicates" in finding for finding in report["findings"])


def test_a_second_run_trains_nothing_and_is_quick(finished, small):
    before = {p: p.stat().st_mtime_ns for p in (finished / "stages").rglob("*")}
    began = time.perf_counter()
    result = danlu.run(RECIPE, finished, small)
    assert time.perf_counter() - began < 5
    assert result.built == []
    assert before == {p: p.stat().st_mtime_ns for p in (finished / "stages").rglob("*")}


def test_another_learning_rate_remakes_fine_tuning_and_what_follows(finished, small, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    result = danlu.run(RECIPE, run, [*small, "finetune.learning_rate=0.001", "finetune.epochs=1"])
    assert result.built == ["finetune", "evaluate", "report"]


def test_two_runs_with_one_seed_give_the_same_weights_to_the_bit(finished, small, tmp_path):
    danlu.run(RECIPE, tmp_path / "again", small)
    assert weights(tmp_path / "again") == weights(finished)


def test_another_seed_gives_other_weights(finished, small, tmp_path):
    danlu.run(RECIPE, tmp_path / "other", [*small, "seed=8", "pretrain.objective=none"])
    assert weights(tmp_path / "other") != weights(finished)


def test_batch_size_changes_no_score(finished):
    model = danlu.load(finished)
    data = next((finished / "stages").glob("data-*"))
    import pyarrow.parquet as pq

    texts = pq.read_table(data / "test.parquet")["text"].to_pylist()[:200]
    reference = model.engine.answers(texts, 32)
    for size in (1, 7):
        answers = model.engine.answers(texts, size)
        assert abs(answers - reference).max() <= 1e-5
        assert (answers.argmax(1) == reference.argmax(1)).all()


def test_python_and_the_stored_evaluation_agree(finished):
    import numpy as np
    import pyarrow.parquet as pq

    stages = finished / "stages"
    table = pq.read_table(next(stages.glob("data-*")) / "test.parquet")
    stored = pq.read_table(next(stages.glob("evaluate-*")) / "predictions.parquet")
    answers = danlu.load(finished).predict(table["text"].to_pylist())
    mine = np.asarray([list(answer["probabilities"].values()) for answer in answers])
    assert abs(mine - np.asarray(stored["answer"].to_pylist())).max() <= 1e-5


def test_a_gate_that_does_not_hold_releases_nothing(finished, small, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    strict = [*small, 'gate.require=["test.accuracy >= 0.999"]']
    with pytest.raises(CheckFailed, match="measured 0"):
        danlu.run(RECIPE, run, strict)
    assert not (run / "model").exists()
    assert "not released" in (run / "report.html").read_text(encoding="utf-8")
    result = danlu.run(RECIPE, run, small)
    assert result.released
    assert (run / "model").is_dir()


def test_a_gate_on_something_unmeasured_fails(finished, small, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with pytest.raises(CheckFailed, match="was not measured"):
        danlu.run(RECIPE, run, [*small, 'gate.require=["test.happiness > 0"]'])


def test_a_pretraining_task_is_measured_beside_a_unigram_model(small, tmp_path):
    extra = ["data.task=pretrain", "pretrain.objective=causal", "pretrain.learning_rate=0.004"]
    result = danlu.run(RECIPE, tmp_path / "run", [*small, *extra])
    found = {(row.model, row.metric): row for row in result.metrics if row.split == "test"}
    assert found["reviews", "bits_per_byte"].value < found["unigram", "bits_per_byte"].value
    assert found["reviews", "perplexity"].value == pytest.approx(
        math.exp(found["reviews", "loss"].value)
    )
    with pytest.raises(InputError, match="only pre-trained"):
        danlu.load(tmp_path / "run")


def test_a_pretraining_task_takes_long_texts_in_pieces_and_loses_nothing(tmp_path):
    import pyarrow.parquet as pq

    lines = [" ".join(f"w{(7 * n + k) % 97}x{k % 11}" for k in range(60)) for n in range(120)]
    (tmp_path / "d.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "r.toml").write_text(
        '[data]\ntask = "pretrain"\ntext = "line"\nsources = [{ path = "d.txt" }]\n'
        '[data.clean]\nnear_duplicates = "keep"\n'
        "[tokenizer]\nmax_length = 32\nvocab_size = 300\n"
        "[model]\ndepth = 1\nwidth = 32\nhead_dim = 16\n"
        '[pretrain]\nobjective = "causal"\nbatch_tokens = 512\nsteps = 7\nepochs = 9\n'
        "log_every = 1\n[evaluate]\nbootstrap = 100\n"
    )
    result = danlu.run(tmp_path / "r.toml", tmp_path / "run")
    stages = tmp_path / "run" / "stages"
    split = read_json(next(stages.glob("tokenizer-*")) / "report.json")["splits"]["test"]
    assert split["pieces"] > split["documents"]
    assert split["truncated"] == 0
    found = {(row.model, row.metric): row for row in result.metrics if row.split == "test"}
    loss = found["r", "loss"]
    assert loss.n == split["tokens"] - split["documents"] - split["pieces"]  # all but <bos>
    assert "over texts" in loss.interval
    table = pq.read_table(next(stages.glob("data-*")) / "test.parquet")
    size = sum(len(text.encode()) for text in table["text"].to_pylist())
    bits = loss.value * loss.n / math.log(2) / size
    assert found["r", "bits_per_byte"].value == pytest.approx(bits)
    lines = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = list(map(json.loads, lines))
    rows = [row for row in events if row["stage"] == "pretrain" and row["event"] == "step"]
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert all(row["peak_memory_bytes"] > 2**20 for row in rows)


def test_regression_and_several_labels_run_end_to_end(tmp_path):
    import csv
    import random

    draw = random.Random(1)
    words = ["good", "bad", "fine", "poor", "nice", "awful", "clean", "dirty"]
    rows = []
    for number in range(240):
        chosen = draw.sample(words, 4)
        value = sum(word in ("good", "fine", "nice", "clean") for word in chosen)
        tags = ";".join(
            sorted({"up" if value >= 2 else "down", "even" if value % 2 == 0 else "odd"})
        )
        rows.append([" ".join([*chosen, f"room {number}"]), value + draw.random() / 10, tags])
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "value", "tags"], *rows])
    tiny = (
        "[tokenizer]\nvocab_size = 300\n[model]\ndepth = 1\nwidth = 32\nhead_dim = 16\n"
        '[pretrain]\nobjective = "none"\n[finetune]\nepochs = 20\nlearning_rate = 0.005\n'
        "[evaluate]\nbootstrap = 100\n"
    )
    for name, keys in {
        "regress": 'task = "regress"\nlabel = "value"',
        "several": 'task = "classify"\nlabel = "tags"\nlabel_separator = ";"',
    }.items():
        path = tmp_path / f"{name}.toml"
        path.write_text(f'[data]\n{keys}\nsources = [{{ path = "d.csv" }}]\n{tiny}')
        result = danlu.run(path, tmp_path / name)
        found = {
            (row.model, row.metric): row.value for row in result.metrics if row.split == "test"
        }
        answer = danlu.load(tmp_path / name).predict(["good fine nice clean"])[0]
        if name == "regress":
            assert found["regress", "mae"] < found["mean", "mae"]
            assert 2 < answer["value"] < 6
        else:
            assert found["several", "f1_macro"] > found["majority", "f1_macro"]
            assert set(answer["probabilities"]) == {"up", "down", "even", "odd"}


def test_an_interrupted_run_goes_on_where_it_was_and_ends_the_same(finished, small, tmp_path):
    import subprocess
    import sys

    run = tmp_path / "run"
    overrides = [*small, "pretrain.checkpoint_every=10", "pretrain.log_every=5"]
    command = [sys.executable, "-m", "danlu", "run", str(RECIPE), "--out", str(run), "-q"]
    command += [part for override in overrides for part in ("--set", override)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((run / "stages").glob(".partial-pretrain-*/checkpoints/step-*")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    danlu.run(RECIPE, run, overrides)
    danlu.run(RECIPE, tmp_path / "whole", overrides)
    assert weights(run) == weights(tmp_path / "whole")


def test_a_released_model_that_was_tampered_with_is_refused(finished, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(finished / "model", model)
    config = read_json(model / "config.json")
    config["backbone"]["hidden_dim"] += 64
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="do not fit"):
        danlu.load(model)


def test_a_profile_is_a_part_of_the_report_and_trains_nothing_again(finished, tmp_path, small):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    result = danlu.run(RECIPE, run, small, profile=True)
    assert set(result.built) == {"profile", "report"}
    rows = [r for r in read_json(run / "metrics.json") if r["stage"] == "profile"]
    # "all" is what the stage itself cost.
    assert {r["split"] for r in rows} == {"pretrain", "finetune", "all"}
    by_metric = {r["metric"]: r for r in rows if r["split"] == "pretrain"}
    assert by_metric["tokens_per_second"]["unit"] == "tokens/s"
    assert 0 < by_metric["share_of_peak"]["value"] < 1.5
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'id="speed"' in page
    assert 'id="chart-step"' in page
    assert 'id="speed"' not in (finished / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("backbone", ["lstm", "cnn", "linear"])
def test_a_classic_backbone_goes_from_recipe_to_answers(tmp_path, small, backbone):
    overrides = [f"model.backbone={backbone}", "pretrain.objective=none"]
    small = [override for override in small if "head_dim" not in override]
    danlu.run(RECIPE, tmp_path / "run", [*small, *overrides])
    assert read_json(tmp_path / "run" / "model" / "config.json")["backbone"]["kind"] == backbone
    model = danlu.load(tmp_path / "run")
    texts = ["房间干净，服务热情，下次还来", "很差", "这家酒店的早餐很难吃" * 9]
    together = [answer["probability"] for answer in model.predict(texts)]
    alone = [model.predict([text])[0]["probability"] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)
    rows = read_json(tmp_path / "run" / "metrics.json")
    rows = [r for r in rows if r["metric"] == "accuracy" and r["split"] == "test"]
    accuracy = {r["model"]: r["value"] for r in rows}
    assert accuracy["reviews"] > accuracy["majority"]

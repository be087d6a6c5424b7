"""The command line: exit codes, messages, JSON, speed."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from danlu.artifact import Artifact, verify

RECIPE = Path(__file__).parent.parent / "recipes" / "reviews.toml"


def danlu(
    *arguments: str | Path, cwd: Path | None = None, stdin: str = ""
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "danlu", *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, input=stdin, env=environment, timeout=300
    )


def flags(overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def write_recipe(folder: Path, source: str, extra: str = "", keys: str = 'label = "label"') -> Path:
    path = folder / "r.toml"
    path.write_text(
        f'[data]\ntask = "classify"\n{keys}\nsources = [{{ path = "{source}" }}]\n{extra}',
        encoding="utf-8",
    )
    return path


def write_csv(folder: Path, labels: list[str], name: str = "d.csv") -> None:
    # Different words in each row, so that none is a duplicate of another.
    rows = [f"w{n}a w{n}b w{n}c w{n}d w{n}e w{n}f,{label}" for n, label in enumerate(labels)]
    (folder / name).write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")


def test_help_is_quick_and_lists_the_commands():
    times = []
    for _ in range(5):
        began = time.perf_counter()
        found = danlu("--help")
        times.append(time.perf_counter() - began)
    assert found.returncode == 0
    for command in ("new", "check", "run", "report", "predict", "serve", "schema"):
        assert f" {command} " in found.stdout
    assert min(times) < 0.3, statistics.median(times)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, danlu.cli, danlu.errors; "
        "heavy = ('torch', 'daft', 'sklearn', 'pyarrow', 'pydantic', 'altair'); "
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_schema_is_json():
    assert json.loads(danlu("schema").stdout)["title"] == "Recipe"


def refused(found: subprocess.CompletedProcess, code: int, *words: str) -> None:
    """Assert one clear message on stderr, and no traceback."""
    assert found.returncode == code, found.stderr
    assert "Traceback" not in found.stderr
    assert found.stderr.count("danlu: ") == 1
    for word in words:
        assert word in found.stderr, found.stderr


def test_a_misspelt_key_exits_2_and_writes_nothing(tmp_path):
    write_csv(tmp_path, ["a", "b"] * 50)
    recipe = write_recipe(tmp_path, "d.csv", "[finetune]\nepoch = 3\n")
    refused(danlu("run", recipe, cwd=tmp_path), 2, "finetune.epoch", "did you mean 'epochs'?")
    assert not (tmp_path / "runs").exists()


def test_a_key_that_moved_is_refused_with_the_new_one(tmp_path):
    write_csv(tmp_path, ["a", "b"] * 50)
    recipe = write_recipe(tmp_path, "d.csv", "[pretrain]\nbatch_size = 32\n")
    refused(danlu("run", recipe, cwd=tmp_path), 2, "pretrain.batch_size", "'batch_tokens'")
    extra = "[tokenizer]\nmax_length = 512\n[pretrain]\nbatch_tokens = 256\n"
    recipe = write_recipe(tmp_path, "d.csv", extra)
    refused(danlu("check", recipe, cwd=tmp_path), 2, "pretrain.batch_tokens", "at least one row")


def test_more_memory_than_allowed_exits_3_with_what_to_change(tmp_path):
    write_csv(tmp_path, ["a", "b"] * 60)
    extra = '[model]\ndepth = 1\n[pretrain]\nobjective = "none"\n[finetune]\nmemory_limit = 0.01\n'
    recipe = write_recipe(tmp_path, "d.csv", extra)
    found = danlu("run", recipe, "-q", cwd=tmp_path)
    refused(found, 3, "memory_limit allows 0.01 GB", "recompute = true", "accumulate")
    finished = [path.name.split("-")[0] for path in (tmp_path / "runs/r/stages").glob("[!.]*")]
    assert "finetune" not in finished
    assert not (tmp_path / "runs" / "r" / "model").exists()


def test_a_missing_file_exits_2_and_writes_nothing(tmp_path):
    recipe = write_recipe(tmp_path, "none.csv")
    refused(danlu("run", recipe, cwd=tmp_path), 2, "no such file", "none.csv")
    assert not (tmp_path / "runs").exists()


def test_a_wrong_column_exits_2_and_writes_nothing(tmp_path):
    write_csv(tmp_path, ["a", "b"] * 50)
    recipe = write_recipe(tmp_path, "d.csv", keys='label = "labell"')
    refused(danlu("run", recipe, cwd=tmp_path), 2, "no column 'labell'", "'label'", "d.csv")
    assert not (tmp_path / "runs" / "r").exists()


def test_an_empty_file_exits_2_and_writes_nothing(tmp_path):
    (tmp_path / "d.csv").write_bytes(b"")
    refused(danlu("run", write_recipe(tmp_path, "d.csv"), cwd=tmp_path), 2, "no rows", "d.csv")
    assert not (tmp_path / "runs" / "r").exists()


def test_one_class_only_exits_2_and_writes_nothing(tmp_path):
    write_csv(tmp_path, ["a"] * 100)
    refused(danlu("run", write_recipe(tmp_path, "d.csv"), cwd=tmp_path), 2, "only one class, 'a'")
    assert not (tmp_path / "runs" / "r").exists()


def test_an_empty_test_split_exits_2_and_writes_nothing(tmp_path):
    write_csv(tmp_path, ["a", "b", "a"])
    recipe = write_recipe(tmp_path, "d.csv", "[data.split]\ntest = 0.1\n")
    refused(danlu("run", recipe, cwd=tmp_path), 2, "would be empty")
    assert not (tmp_path / "runs" / "r").exists()


def test_several_labels_in_one_recipe_error_are_told_together(tmp_path):
    write_csv(tmp_path, ["a", "b"])
    recipe = write_recipe(tmp_path, "d.csv", "[model]\nwidht = 3\n[pretrain]\nepochs = 0\n")
    refused(danlu("run", recipe, cwd=tmp_path), 2, "2 problems", "model.widht", "pretrain.epochs")


def test_errors_are_json_when_asked_for(tmp_path):
    found = danlu("run", tmp_path / "none.toml", "--json")
    assert found.returncode == 2
    assert json.loads(found.stderr)["exit"] == 2


def test_a_broken_row_among_good_ones_is_set_aside_and_counted(tmp_path):
    write_csv(tmp_path, ["a", "b"] * 60)
    content = (tmp_path / "d.csv").read_bytes().split(b"\n")
    content[5] = b"w\xff\xfe broken row,a"
    content = [line.replace(b"a w", " 酒店 w".encode()) for line in content]
    (tmp_path / "d.csv").write_bytes(b"\n".join(content))
    found = danlu("check", write_recipe(tmp_path, "d.csv"), "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert any("1 rows held bytes" in line for line in json.loads(found.stdout)["findings"])


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_exits_3_and_leaves_nothing_half_written(tmp_path):
    write_csv(tmp_path, ["a", "b"] * 1500)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small file system")
    try:
        recipe = write_recipe(tmp_path, "d.csv")
        found = danlu("run", recipe, "--out", disk / "run", "-q", cwd=tmp_path)
        refused(found, 3, "disk is full")
        finished = list((disk / "run").glob("stages/[!.]*"))
        assert {path.name.split("-")[0] for path in finished} <= {"data", "tokenizer"}
        for path in finished:
            verify(Artifact(*path.name.split("-"), path))
        assert not (disk / "run" / "model").exists()
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_exits_3(tmp_path):
    write_csv(tmp_path, ["a", "b"] * 50)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    found = danlu("run", write_recipe(tmp_path, "d.csv"), "--out", locked / "run")
    refused(found, 3, "not allowed")


def test_two_runs_in_one_folder_do_not_mix(tmp_path):
    import fcntl

    write_csv(tmp_path, ["a", "b"] * 50)
    run = tmp_path / "run"
    run.mkdir()
    with (run / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = danlu("run", write_recipe(tmp_path, "d.csv"), "--out", run)
    refused(found, 3, "another run")


def test_check_shows_what_bears_loss_and_trains_nothing(small, tmp_path):
    found = danlu("check", RECIPE, *flags(small), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "nothing stands in the way" in found.stdout
    assert "derived model.hidden" in found.stdout
    assert list(tmp_path.iterdir()) == []
    content = json.loads(danlu("check", RECIPE, "--json", *flags(small), cwd=tmp_path).stdout)
    assert len(content["examples"]) == 5
    for example in content["examples"]:
        assert any(example["bears_loss"])
        assert not example["bears_loss"][0], "<bos> is no target"
    assert content["problems"] == []


def test_check_shows_long_texts_of_a_pretraining_task_in_pieces(tmp_path):
    lines = [" ".join(f"w{(7 * n + k) % 97}x{k % 11}" for k in range(60)) for n in range(80)]
    (tmp_path / "d.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[data]\ntask = "pretrain"\ntext = "line"\nsources = [{ path = "d.txt" }]\n'
        '[data.clean]\nnear_duplicates = "keep"\n'
        '[tokenizer]\nmax_length = 32\nvocab_size = 300\n[pretrain]\nobjective = "causal"\n'
    )
    found = danlu("check", recipe, "--json", cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    content = json.loads(found.stdout)
    assert content["problems"] == []
    for part in content["tokens"].values():
        assert part["truncated"] == part["truncated_token_share"] == 0
        assert part["pieces"] > part["documents"]
    for example in content["examples"]:
        assert len(example["pieces"]) <= 32
        assert example["pieces"][0] == "<bos>"
        assert example["bears_loss"] == [True] * (len(example["pieces"]) - 1) + [False]
    assert danlu("check", recipe, cwd=tmp_path).returncode == 0


def test_check_stops_on_a_test_row_that_also_stands_in_train(tmp_path):
    lines = [f"word{n} other{n} third{n},{'ab'[n % 2]}" for n in range(60)]
    lines += [line.replace("word", "WORD") + "" for line in lines]
    (tmp_path / "d.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    extra = '[data.split]\nby = "random"\n[data.clean]\nnear_duplicates = "keep"\n'
    found = danlu("check", write_recipe(tmp_path, "d.csv", extra), cwd=tmp_path)
    assert found.returncode == 1
    assert "also stand in train" in found.stdout


def test_predict_answers_texts_stdin_and_json(finished):
    found = danlu("predict", finished, "这家酒店的早餐很难吃", "很好")
    assert found.returncode == 0, found.stderr
    lines = [line.split("\t") for line in found.stdout.splitlines()]
    assert [line[0] in ("positive", "negative") for line in lines] == [True, True]
    content = json.loads(
        danlu("predict", finished, "这家酒店的早餐很难吃", "很好", "--json").stdout
    )
    assert [answer["label"] for answer in content] == [line[0] for line in lines]
    piped = danlu("predict", finished, "-", stdin="这家酒店的早餐很难吃\n\n很好\n")
    assert piped.stdout == found.stdout


def test_predict_says_when_a_text_was_cut(finished):
    assert "cut: too long" in danlu("predict", finished, "很好" * 2000).stdout


def test_predict_writes_the_file_with_columns_added(finished, tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id,review\n1,很好\n2,很差\n", encoding="utf-8")
    found = danlu("predict", finished, "--file", path, "--column", "review")
    assert found.returncode == 0, found.stderr
    lines = (tmp_path / "in.predicted.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert "predicted_label" in lines[0]


@pytest.mark.parametrize(
    "arguments", [[], ["text", "--file", "x.csv"], [" "], ["--file", "none.csv"]]
)
def test_predict_refuses_what_it_cannot_answer(finished, arguments):
    refused(danlu("predict", finished, *arguments), 2)


def test_commands_on_a_folder_without_a_run_exit_2(tmp_path):
    for command in (["predict", tmp_path, "x"], ["report", tmp_path], ["serve", tmp_path]):
        refused(danlu(*command), 2)


def test_report_prints_the_figures(finished):
    assert "roc_auc" in danlu("report", finished).stdout
    assert json.loads(danlu("report", finished, "--json").stdout)[0]["stage"] == "data"


def test_new_writes_a_recipe_that_runs_as_it_is(tmp_path):
    import random

    draw = random.Random(0)
    good, bad = ["good", "fine", "nice", "clean"], ["bad", "poor", "awful", "dirty"]
    rows = [
        f"{' '.join(draw.choices(words, k=3))} place number {n},{label}"
        for n in range(150)
        for words, label in ((good, "up"), (bad, "down"))
    ]
    (tmp_path / "places.csv").write_text("review,mood\n" + "\n".join(rows) + "\n")
    found = danlu("new", "places.csv", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "task: classify" in found.stdout
    text = (tmp_path / "places.toml").read_text(encoding="utf-8")
    assert "label: column 'mood'" in text
    refused(danlu("new", "places.csv", cwd=tmp_path), 2, "exists already")
    quick = [
        "pretrain.objective=none",
        "finetune.epochs=4",
        "gate.require=[]",
        "evaluate.bootstrap=100",
    ]
    found = danlu("run", "places.toml", "-q", *flags(quick), cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    answer = danlu("predict", "runs/places", "nice clean fine place", cwd=tmp_path).stdout
    assert answer.split("\t")[0] in ("up", "down")


def test_run_shows_the_result_and_where_to_go_next(finished, small):
    found = danlu("run", RECIPE, "--out", finished, *flags(small))
    assert found.returncode == 0, found.stderr
    assert "reviews: accuracy" in found.stdout
    assert "unchanged" in found.stderr
    content = json.loads(danlu("run", RECIPE, "--out", finished, "--json", *flags(small)).stdout)
    assert content["built"] == []
    assert content["released"] is True


def test_a_gate_that_fails_exits_1(finished, small, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    strict = [*small, 'gate.require=["test.accuracy > 0.999"]']
    refused(danlu("run", RECIPE, "--out", run, "-q", *flags(strict)), 1, "gate", "measured 0")

"""Real runs in several processes: equal to one, resumed in another number, killed, on Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import danlu
from danlu.errors import InputError
from danlu.log import read_events

CLOSE = 1e-5
RECIPE = """
name = "verse"
seed = 3
[data]
task = "pretrain"
text = "line"
sources = [{ path = "verse.txt" }]
[data.split]
by = "random"
[tokenizer]
vocab_size = 300
max_length = 32
[model]
depth = 2
width = 32
head_dim = 16
[pretrain]
objective = "masked"
steps = 40
batch_tokens = 256
accumulate = 2
precision = "float32"
checkpoint_every = 10
log_every = 1
layer_dropout = 0.1
[evaluate]
bootstrap = 100
"""
SLOW = {"steps": 400, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verse")
    words = "the moon rises over a quiet river while two old friends drink wine".split()  # noqa: SIM905
    lines = [
        " ".join(
            words[(row * 7 + place * (row % 5 + 1)) % len(words)] for place in range(9 + row % 8)
        )
        + f" {row}"
        for row in range(300)
    ]
    (folder / "verse.txt").write_text("\n".join(lines), encoding="utf-8")
    path = folder / "verse.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    """The run in one process, uninterrupted; read only."""
    out = tmp_path_factory.mktemp("alone") / "verse"
    danlu.run(recipe, out)
    return out


def overrides(**keys):
    return [f"launch.{key}={value}" for key, value in keys.items()]


def losses(run):
    rows = [r for r in read_events(run / "events.jsonl") if r["event"] == "step"]
    return [row["loss"] for row in sorted(rows, key=lambda row: row["step"])]


def weights(run):
    (stage,) = (run / "stages").glob("pretrain-*")
    return load_file(stage / "model.safetensors")


def prepared(alone, folder):
    """A run folder in which all but the training is done already."""
    (folder / "stages").mkdir(parents=True)
    for stage in (alone / "stages").iterdir():
        if stage.name.startswith(("data-", "tokenizer-")):
            shutil.copytree(stage, folder / "stages" / stage.name)
    return folder


def same(run, alone, steps=10):
    assert losses(run)[:steps] == pytest.approx(losses(alone)[:steps], abs=CLOSE)
    found, expected = weights(run), weights(alone)
    assert found.keys() == expected.keys()
    assert max(float((found[k] - expected[k]).abs().max()) for k in found) < 1e-3


@pytest.mark.parametrize("keys", [{}, {"shard": 2}, {"tensor": 2}], ids=["ddp", "fsdp", "tp"])
def test_two_processes_equal_one(recipe, alone, tmp_path, keys):
    out = prepared(alone, tmp_path / "run")
    danlu.run(recipe, out, overrides(processes=2, **keys))
    same(out, alone)


def start(recipe, out, *sets, before=()):
    command = [*(before or (sys.executable, "-m", "danlu")), "run", str(recipe), "--out", str(out)]
    for each in sets:
        command += ["--set", each]
    with (out / "stdout").open("w") as heard, (out / "stderr").open("w") as said:
        return subprocess.Popen(command, stdout=heard, stderr=said)


def ended(process, out, patience=300):
    """Return a process's exit status and what it wrote on stderr."""
    return process.wait(patience), (out / "stderr").read_text()


def wait_for(out, step, process):
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        rows = read_events(out / "events.jsonl")
        if any(row["event"] == "step" and row["step"] >= step for row in rows):
            return
        assert process.poll() is None, (out / "stderr").read_text()
        time.sleep(0.05)
    raise AssertionError(f"step {step} was never reached")


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    names = {}
    for pid in path.read_text().split():
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode()
        if "spawn_main" in command:
            names[int(pid)] = command
    return list(names)


def test_a_run_goes_on_in_another_number_of_processes(recipe, alone, tmp_path):
    """Two processes, then one, then two again: the losses of one that was never stopped."""
    slow = [f"pretrain.{key}={value}" for key, value in SLOW.items()]
    whole = prepared(alone, tmp_path / "whole")
    danlu.run(recipe, whole, slow)
    out = prepared(alone, tmp_path / "run")
    for keys, until in (({"processes": 2, "shard": 2}, 20), ({}, 60)):
        process = start(recipe, out, *slow, *overrides(**keys))
        wait_for(out, until, process)
        process.send_signal(signal.SIGTERM)
        status, said = ended(process, out)
        assert status == 143, said
        assert "saved after step" in said
    danlu.run(recipe, out, slow + overrides(processes=2, tensor=2))
    steps = [r["step"] for r in read_events(out / "events.jsonl") if r["event"] == "step"]
    assert sorted(set(steps)) == list(range(1, 401))
    assert sum(r["event"] == "resumed" for r in read_events(out / "events.jsonl")) == 2
    assert losses(out)[:100] == pytest.approx(losses(whole)[:100], abs=CLOSE)


def test_a_lost_process_ends_the_run_and_restarts_go_on(recipe, alone, tmp_path):
    slow = [f"pretrain.{key}={value}" for key, value in SLOW.items()]
    out = prepared(alone, tmp_path / "run")
    process = start(recipe, out, *slow, *overrides(processes=2))
    wait_for(out, 12, process)
    os.kill(children(process)[1], signal.SIGKILL)
    status, said = ended(process, out)
    assert status == 3, said
    assert "lost a process" in said
    assert "SIGKILL" in said
    process = start(recipe, out, *slow, *overrides(processes=2, restarts=1))
    wait_for(out, 40, process)
    os.kill(children(process)[1], signal.SIGKILL)
    status, said = ended(process, out)
    assert status == 0, said
    resumed = [r["step"] for r in read_events(out / "events.jsonl") if r["event"] == "resumed"]
    assert len(resumed) == 2
    assert resumed[0] >= 5
    assert resumed[1] >= 35


def test_no_process_outlives_the_one_that_started_it(recipe, alone, tmp_path):
    slow = [f"pretrain.{key}={value}" for key, value in SLOW.items()]
    out = prepared(alone, tmp_path / "run")
    process = start(recipe, out, *slow, *overrides(processes=2))
    wait_for(out, 3, process)
    ranks = children(process)
    assert len(ranks) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_torchrun_starts_the_same(recipe, alone, tmp_path):
    out = prepared(alone, tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    process = start(
        recipe, out, "launch.shard=2", before=[*torchrun, "--rdzv-endpoint=127.0.0.1:0",
        "--rdzv-backend=c10d", "-m", "danlu"],
    )  # fmt: skip
    status, said = ended(process, out)
    assert status == 0, said
    assert (out / "stdout").read_text().count("report:") == 1  # one of them speaks
    same(out, alone)


def test_ray_starts_the_same(recipe, alone, tmp_path):
    pytest.importorskip("ray", reason="Ray is an extra")
    out = prepared(alone, tmp_path / "run")
    process = start(recipe, out, *overrides(processes=2, on="ray"))
    status, said = ended(process, out)
    assert status == 0, said
    same(out, alone)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"processes": 3, "shard": 2}, "multiple of shard"),
        ({"processes": 4, "tensor": 4}, "must divide model.heads"),
        ({"processes": 16}, "cannot share"),
    ],
)
def test_what_does_not_divide_is_refused_with_the_reason(recipe, alone, tmp_path, keys, said):
    with pytest.raises(InputError, match=said):
        danlu.run(recipe, prepared(alone, tmp_path / "run"), overrides(**keys))


def test_metrics_do_not_say_how_many_processes_trained(recipe, alone, tmp_path):
    out = prepared(alone, tmp_path / "run")
    danlu.run(recipe, out, overrides(processes=2))
    one, two = (json.loads((run / "metrics.json").read_text()) for run in (alone, out))
    for row, other in zip(one, two, strict=True):
        if row["unit"] in ("seconds", "bytes"):
            continue
        assert row["value"] == pytest.approx(other["value"], rel=1e-3, abs=1e-3), row

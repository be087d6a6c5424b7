"""Where the time of a step goes: what is slow is what the profile says is slow."""

from __future__ import annotations

import time

import pytest
import torch
from fit import CPU, Fit

from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train.profile import profile


def measured(tmp_path, *, slow_loading=0.0, slow_step=0.0, monkeypatch=None):
    run = Fit(tmp_path)
    source = run.source(8, 1)

    class Slow:
        steps_per_epoch = source.steps_per_epoch

        def load(self, epoch, position):
            time.sleep(slow_loading)
            return source.load(epoch, position)

    if slow_step:
        whole = torch.optim.AdamW.step

        def step(self, *arguments, **named):
            time.sleep(slow_step)
            return whole(self, *arguments, **named)

        monkeypatch.setattr(torch.optim.AdamW, "step", step)
    settings = Training(epochs=9, learning_rate=0.01, precision="float32", optimizer="adamw")
    return profile(
        run.model, objectives.classes(), Slow(), settings, lambda batch: 1000 * batch.num_tokens,
        CPU, 1,
    )  # fmt: skip


def test_the_parts_add_up(tmp_path):
    found = measured(tmp_path)
    assert sum(part["share"] for part in found["parts"]) == pytest.approx(1)
    assert sum(part["seconds"] for part in found["parts"]) == pytest.approx(
        found["step_seconds"], rel=0.5
    )
    shares = [part["share"] for part in found["parts"]]
    assert shares == sorted(shares, reverse=True)
    assert found["precision"] == "float32"
    assert found["steps"] == 12
    assert found["flops_per_second"] == pytest.approx(1000 * found["tokens_per_second"])
    assert found["share_of_peak"] == found["flops_per_second"] / found["peak_flops_per_second"]
    assert found["peak_memory_bytes"] > 1e7
    assert found["peak_flops_per_second"] > 1e9


def test_slow_loading_is_called_waiting(tmp_path):
    found = measured(tmp_path, slow_loading=0.1)
    assert found["parts"][0]["name"] == "waiting for data"
    assert found["parts"][0]["seconds"] == pytest.approx(0.1, rel=0.5)


def test_a_slow_optimiser_is_called_one(tmp_path, monkeypatch):
    found = measured(tmp_path, slow_step=0.1, monkeypatch=monkeypatch)
    assert found["parts"][0]["name"] == "optimiser"

"""What bounds a training run: steps, memory, the batches that are made meanwhile."""

from __future__ import annotations

import threading
import time

import pytest
from fit import BATCH, Fit, losses, same

from danlu.errors import MachineError
from danlu.train.feed import ahead


class Told(Exception):
    """What a source says when it cannot go on."""


class Source:
    """The real source, which notes what it is asked for and may fail."""

    def __init__(self, fit, fails_at=None):
        self.inner, self.fails_at, self.asked = fit.source(BATCH, 1), fails_at, []
        self.steps_per_epoch = self.inner.steps_per_epoch

    def load(self, epoch, position):
        self.asked.append((epoch, position))
        if len(self.asked) - 1 == self.fails_at:
            raise Told("the disk went away")
        return self.inner.load(epoch, position)


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")]


@pytest.mark.parametrize(("steps", "epochs"), [(7, 4), (7, 1), (13, 1)])
def test_steps_take_the_place_of_epochs(tmp_path, steps, epochs):
    fit = Fit(tmp_path / "c").run(steps=steps, epochs=epochs, warmup=0.0, schedule="linear")
    rows = fit.of("step")
    assert fit.progress.step == steps
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    rates = [row["learning_rate"] / 0.02 for row in rows]  # the schedule ends with them too
    assert rates == pytest.approx([1 - n / steps for n in range(steps)])
    assert [row["step"] for row in fit.of("validation")] == sorted({*range(5, steps, 5), steps})
    assert fit.checkpoints.latest()[1]["step"] == steps


def test_no_steps_count_epochs(tmp_path):
    assert Fit(tmp_path / "c").run(steps=0, epochs=2).progress.step == 10


def test_each_batch_is_asked_for_once_and_in_order(tmp_path):
    fit = Fit(tmp_path / "c")
    source = Source(fit)
    fit.run(source=source, steps=12)
    assert source.asked == [divmod(step, 5) for step in range(12)]


def test_a_resumed_run_asks_for_the_batches_that_are_left(tmp_path):
    Fit(tmp_path / "c").run(steps=10)
    fit = Fit(tmp_path / "c")
    source = Source(fit)
    fit.run(source=source, steps=12)
    assert source.asked == [(2, 0), (2, 1)]


def test_no_more_than_the_next_batch_is_made_ahead(tmp_path):
    fit = Fit(tmp_path / "c")
    source = Source(fit)
    seen = []
    fit.run(source=source, steps=12, log=lambda row: seen.append((row["step"], len(source.asked))))
    assert all(asked <= min(12, step + 1) for step, asked in seen)


def test_the_next_batch_is_made_while_one_is_computed_with():
    class Slow:
        steps_per_epoch = 4

        def load(self, epoch, position):
            time.sleep(0.1)
            return [(epoch, position)]

    began, found = time.perf_counter(), []
    for parts in ahead(Slow(), 0, 6):
        time.sleep(0.1)  # stands for a step
        found += parts
    took = time.perf_counter() - began
    assert found == [divmod(step, 4) for step in range(6)]
    assert took < 0.1 + 6 * 0.1 + 0.3, "one after the other it would be 1.2 s"


@pytest.mark.parametrize("at", [0, 3, 11])
def test_an_error_in_the_making_of_a_batch_is_the_run_s(tmp_path, at):
    fit = Fit(tmp_path / "c")
    with pytest.raises(Told, match="the disk went away"):
        fit.run(source=Source(fit, fails_at=at), steps=12)
    assert [row["step"] for row in fit.of("step")] == list(range(1, at + 1))
    resumed = Fit(tmp_path / "c").run(steps=12)  # and is no longer there after it
    assert resumed.progress.step == 12
    whole = Fit(tmp_path / "whole").run(steps=12)
    assert same(resumed.weights, whole.weights)


@pytest.mark.parametrize("how", ["end", "patience", "error"])
def test_no_thread_is_left_behind(tmp_path, how):
    before, fit = workers(), Fit(tmp_path / "c")
    if how == "error":
        with pytest.raises(Told):
            fit.run(source=Source(fit, fails_at=3))
    elif how == "patience":
        fit.run(validate=losses([1.0, 2.0, 3.0, 4.0]), patience=1)
        assert fit.progress.step == 10
    else:
        fit.run(steps=3)
    deadline = time.monotonic() + 5
    while workers() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers() == before


def test_past_the_memory_limit_training_stops_with_what_to_change(tmp_path):
    fit = Fit(tmp_path / "c")
    with pytest.raises(MachineError, match=r"memory_limit allows 0\.001 GB") as caught:
        fit.run(memory_limit=0.001)
    assert caught.value.exit_code == 3
    assert caught.value.where == "training"
    for word in ("recompute", "accumulate", "batch"):
        assert word in caught.value.mend
    assert fit.checkpoints.latest() is None


def test_under_the_memory_limit_training_goes_on(tmp_path):
    assert Fit(tmp_path / "c").run(steps=3, memory_limit=1000).progress.step == 3


def test_the_log_tells_the_memory_held(tmp_path):
    fit = Fit(tmp_path / "c").run(steps=6)
    held = [row["peak_memory_bytes"] for row in fit.of("step")]
    assert all(isinstance(value, int) for value in held)
    # Weights, gradients and the optimiser's two moments are held at once.
    assert min(held) > 4 * sum(p.numel() * p.element_size() for p in fit.model.parameters())
    assert held == sorted(held)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_trains_the_same_model_to_the_bit(tmp_path, dropout, optimizer):
    found = []
    for recompute in (False, True):
        fit = Fit(tmp_path / str(recompute), dropout=dropout, mask=0.2)
        fit.model.backbone.checkpoint = recompute
        fit.run(steps=8, optimizer=optimizer, recompute=recompute)
        found.append(fit)
    assert same(found[0].weights, found[1].weights)
    rows = [[(row["loss"], row["gradient_norm"]) for row in fit.of("step")] for fit in found]
    assert rows[0] == rows[1]

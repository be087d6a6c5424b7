"""Saving beside training: what is saved is one moment's, and never too far behind."""

from __future__ import annotations

import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from fit import Fit, same

from danlu.errors import Interrupted
from danlu.interrupt import Interruption
from danlu.train import checkpoint, durable
from danlu.train.checkpoint import Checkpoints

NOISY = {"dropout": 0.3, "mask": 0.2}
OPTIONS = {"epochs": 3, "checkpoint_every": 2, "keep_checkpoints": 100, "average": 0.9}


def states(folder):
    """Every checkpoint, by its name."""
    return {path.name: durable.read(path) for path in sorted(folder.glob("[!.]*"))}


def in_the_thread():
    return threading.current_thread() is not threading.main_thread()


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_a_copy_that_takes_long_is_still_of_one_moment(tmp_path, monkeypatch, optimizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "free_memory", lambda: 0)  # so each save is waited for
        Fit(tmp_path / "waited", **NOISY).run(optimizer=optimizer, **OPTIONS)
    real = checkpoint._copy

    def copy(tensors, buffers, keys):
        for key in sorted(keys):
            real(tensors, buffers, {key})
            if in_the_thread():
                time.sleep(0.002)

    monkeypatch.setattr(checkpoint, "_copy", copy)
    Fit(tmp_path / "beside", **NOISY).run(optimizer=optimizer, **OPTIONS)
    wanted, found = states(tmp_path / "waited"), states(tmp_path / "beside")
    assert len(wanted) > 7
    assert found.keys() == wanted.keys()
    for name, (tensors, record) in wanted.items():
        assert same(found[name][0], tensors), name
        assert found[name][1] == record


def test_never_more_than_the_one_that_was_due_is_missing(tmp_path, monkeypatch):
    real = durable.write

    def write(*arguments):
        time.sleep(0.3)  # longer than the steps between two
        real(*arguments)

    monkeypatch.setattr(durable, "write", write)
    behind = []

    def log(row):
        if row["event"] == "step":
            last = max((int(p.name[5:]) for p in (tmp_path / "c").glob("step-*")), default=0)
            behind.append(row["step"] // 4 * 4 - last)

    Fit(tmp_path / "c").run(steps=20, checkpoint_every=4, log=log)
    assert set(behind) == {0, 4}


def test_what_the_disk_refuses_ends_training_at_the_next_step(tmp_path, monkeypatch):
    def write(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(durable, "write", write)
    steps = []

    def log(row):
        steps.append(row["step"])
        time.sleep(0.05)

    with pytest.raises(checkpoint.MachineError, match="checkpoint of step 5 could not be written"):
        Fit(tmp_path / "c").run(epochs=4, log=log)
    assert max(steps) <= 7


def test_time_that_goes_by_makes_a_checkpoint_of_its_own(tmp_path):
    seen = []

    def log(row):
        seen.append(sorted(path.name for path in (tmp_path / "c").glob("pause-*")))
        time.sleep(0.02)

    fit = Fit(tmp_path / "c").run(epochs=1, checkpoint_minutes=1e-9, log=log)
    assert any(seen)
    assert not list((tmp_path / "c").glob("pause-*")), "the last scheduled one took its place"
    assert fit.checkpoints.latest()[1]["step"] == 5


@pytest.mark.parametrize("at", [1, 4, 7, 12])
def test_a_run_that_was_asked_to_leave_goes_on_to_the_bit(tmp_path, at):
    options = OPTIONS | {"checkpoint_every": 4}
    whole = Fit(tmp_path / "whole", **NOISY).run(**options)
    broken = Fit(tmp_path / "broken", **NOISY)
    steps = []

    def stopping():
        return len(steps) >= at

    def log(row):
        if row["event"] == "step":
            steps.append(row["step"])

    with pytest.raises(Interrupted, match=f"saved after step {at} of 15"):
        broken.run(log=log, stopping=stopping, **options)
    assert broken.checkpoints.latest()[1]["step"] == at
    torch.manual_seed(99)
    resumed = Fit(tmp_path / "broken", **NOISY).run(**options)
    assert resumed.of("resumed") == [{"event": "resumed", "step": at}]
    assert resumed.progress == whole.progress
    assert same(resumed.weights, whole.weights)
    wanted = whole.checkpoints.latest()
    assert same(resumed.checkpoints.latest()[0], wanted[0])
    assert resumed.checkpoints.latest()[1] == wanted[1]


def test_the_best_of_a_checkpoint_before_a_damaged_one_is_the_best_of_then(tmp_path):
    losses = iter([1.0, 3.0, 0.5])
    fit = Fit(tmp_path / "c").run(epochs=3, validate=lambda: {"loss": next(losses), "n": 1})
    assert fit.progress.best_step == 15
    for path in (tmp_path / "c").glob("*-00000015/state.safetensors"):
        path.write_bytes(b"nothing")
    (before,) = (durable.read(p)[0] for p in (tmp_path / "c").glob("best-00000005"))
    later = iter([2.0])
    again = Fit(tmp_path / "c").run(epochs=3, validate=lambda: {"loss": next(later), "n": 1})
    assert again.progress.best_step == 5
    assert torch.equal(again.weights["head.output.weight"], before["model.head.output.weight"])


def test_a_best_that_is_damaged_is_not_the_best_any_more(tmp_path):
    Fit(tmp_path / "c").run(epochs=1, validate=lambda: {"loss": 1.0, "n": 1})
    (tmp_path / "c" / "best-00000005" / "state.json").write_text("{}")
    fit = Fit(tmp_path / "c").run(epochs=2, validate=lambda: {"loss": 7.0, "n": 1})
    assert (fit.progress.best, fit.progress.best_step) == (7.0, 10)


def test_what_draws_from_any_global_generator_is_the_same_after_a_resumption(tmp_path):
    drawn = {}

    def run(folder, name, stop):
        fit = Fit(tmp_path / folder)

        def log(row):
            if row["event"] == "step":
                draws = (random.random(), np.random.random(), float(torch.rand(())))
                drawn.setdefault(name, {})[row["step"]] = draws
                if row["step"] == stop:
                    raise KeyboardInterrupt

        fit.run(epochs=2, checkpoint_every=3, log=log)

    run("whole", "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run("broken", "first", 7)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    run("broken", "second", None)
    assert drawn["second"].keys() == {7, 8, 9, 10}
    assert all(drawn["second"][step] == drawn["whole"][step] for step in drawn["second"])


def test_signals_are_heard_once_and_given_back():
    before, one, seen = signal.getsignal(signal.SIGTERM), Interruption(quiet=True), []

    def at_work():
        with one.listening(), one.deferred():
            signal.raise_signal(signal.SIGTERM)
            seen.append((one.asked, signal.getsignal(signal.SIGTERM)))

    with pytest.raises(Interrupted) as caught:
        at_work()
    assert seen == [(True, signal.SIG_DFL)]
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_program_with_its_own_way_of_ending_keeps_it():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        one = Interruption(quiet=True)
        with one.listening():
            signal.raise_signal(signal.SIGTERM)
        assert heard == [1]
        assert not one.asked
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_thread_is_left_behind(tmp_path):
    Fit(tmp_path / "c").run(epochs=1)
    assert not [t for t in threading.enumerate() if t.name.startswith("checkpoints")]
    assert Checkpoints(tmp_path / "c", 1).latest()[1]["step"] == 5

"""Ctrl-C, SIGTERM, a closed terminal: saved, said, and gone on from to the bit."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
import runs

from danlu.artifact import digest_file

STEPS = 60


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("recipe"), steps=STEPS, every=25, width=32)


@pytest.fixture(scope="module")
def wanted(recipe, tmp_path_factory):
    """The SHA-256 of the weights of a run that was left alone."""
    with runs.Driver(recipe, tmp_path_factory.mktemp("whole") / "run") as driver:
        assert driver.run("-q") == 0, driver.said
        return digest_file(driver.weights)


@pytest.fixture
def driver(recipe, tmp_path):
    with runs.Driver(recipe, tmp_path / "run") as made:
        yield made


def stop_at(driver, step, number, *flags):
    child = driver.start(*flags)
    runs.wait_for(lambda: driver.reached >= step, child)
    os.kill(child, number)
    return child


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_asked_to_end_a_run_saves_says_so_and_goes_on(driver, wanted, number, code):
    stop_at(driver, 10, number)
    assert driver.status() == code, driver.said
    (saved,) = driver.checkpoints.glob("pause-*")
    step = int(saved.name.removeprefix("pause-"))
    assert step >= 10
    assert f"training is saved after step {step} of {STEPS}; run the same command" in driver.said
    assert "a second one leaves at once" in driver.said
    assert "Traceback" not in driver.said
    assert driver.run() == 0, driver.said
    assert f"goes on from step {step}" in driver.said
    assert digest_file(driver.weights) == wanted


def test_machines_are_told_in_json(driver):
    stop_at(driver, 10, signal.SIGTERM, "--json")
    assert driver.status() == 143
    told = json.loads(driver.said)
    assert told["exit"] == 143
    assert "saved after step" in told["error"]
    assert "same command" in told["mend"]


def test_a_second_ctrl_c_leaves_at_once(driver, wanted):
    child = stop_at(driver, 30, signal.SIGINT)
    os.kill(child, signal.SIGINT)  # both are there before the first can be answered
    began = time.monotonic()
    assert driver.status() in (-signal.SIGINT, 130)
    assert time.monotonic() - began < 5
    assert driver.run("-q") == 0, driver.said
    assert digest_file(driver.weights) == wanted


def test_before_training_a_run_leaves_at_once_and_goes_on(driver, wanted):
    child = driver.start()
    runs.wait_for(lambda: (driver.out / "stages").exists(), child)
    os.kill(child, signal.SIGINT)
    assert driver.status() == 130, driver.said
    assert "stages that were finished are kept" in driver.said
    assert driver.run("-q") == 0, driver.said
    assert digest_file(driver.weights) == wanted

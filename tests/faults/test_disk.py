"""Disks that fill up, refuse, or change what was written: said, and nothing lost."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager

import pytest
import runs

from danlu.artifact import digest_file
from danlu.train import durable

STEPS, EVERY = 60, 10
FLAGS = ("--set", "pretrain.keep_checkpoints=2")


@contextmanager
def small_disk(folder, megabytes):
    """Mount a disk of its own, which takes the right to do so."""
    folder.mkdir()
    options = f"size={megabytes}m"
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "danlu", str(folder)],
                          capture_output=True, text=True)  # fmt: skip
    if made.returncode:
        pytest.skip(f"mounting a small disk takes root: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("recipe"), steps=STEPS, every=EVERY, width=64)


@pytest.fixture(scope="module")
def wanted(recipe, tmp_path_factory):
    """The SHA-256 of the weights of a run that was left alone."""
    with runs.Driver(recipe, tmp_path_factory.mktemp("whole") / "run") as driver:
        assert driver.run("-q") == 0, driver.said
        return digest_file(driver.weights)


def whole(driver):
    """The steps of the checkpoints, each of them loaded."""
    return sorted(durable.read(path)[1]["step"] for path in driver.checkpoints.glob("step-*"))


def wait_for_a_checkpoint(driver, child):
    """Return when the first is there, and training goes on."""

    def there():
        return driver.reached > EVERY and any(driver.checkpoints.glob("step-*"))

    runs.wait_for(there, child)


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(recipe, wanted, tmp_path):
    with (
        small_disk(tmp_path / "disk", 64) as disk,
        runs.Driver(recipe, disk / "run") as driver,
    ):
        driver.stderr = tmp_path / "stderr"
        child = driver.start()
        wait_for_a_checkpoint(driver, child)
        with (disk / "filler").open("wb") as filler:  # somebody else's file
            try:
                while True:
                    filler.write(b"x" * 65536)
                    filler.flush()
            except OSError:
                pass
        assert driver.status() == 3, driver.said
        # It is a checkpoint that finds no room, or a row of the log just before.
        assert "danlu: the disk is full" in driver.said
        kept = whole(driver)[-1]
        if told := re.search(r"checkpoint of step (\d+) could not .*", driver.said, re.DOTALL):
            assert kept < int(told[1])
            assert f"the same command goes on from step {kept}" in told[0]
        assert "Traceback" not in driver.said
        assert not list(driver.checkpoints.glob(".writing-*")), "its room was given back"
        recipe_kept = (driver.out / "recipe.toml").read_bytes()
        assert driver.run("-q") == 3, "it is still full"
        assert (driver.out / "recipe.toml").read_bytes() == recipe_kept
        assert whole(driver)[-1] == kept
        (disk / "filler").unlink()
        assert driver.run() == 0, driver.said
        assert f"goes on from step {kept}" in driver.said
        assert digest_file(driver.weights) == wanted


def test_too_small_a_disk_is_refused_before_training(recipe, tmp_path):
    with (
        small_disk(tmp_path / "disk", 8) as disk,
        runs.Driver(recipe, disk / "run") as driver,
    ):
        driver.stderr = tmp_path / "stderr"
        assert driver.run() == 3
        assert "the run's checkpoints need 0.0" in driver.said
        assert "keep_checkpoints" in driver.said
        assert driver.reached == 0


def test_a_folder_that_may_not_be_written_to_is_said(recipe, tmp_path):
    with (
        small_disk(tmp_path / "disk", 8) as disk,
        runs.Driver(recipe, disk / "run") as driver,
    ):
        driver.stderr = tmp_path / "stderr"
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert driver.run() == 3
        assert "not allowed: Read-only file system" in driver.said
        assert "choose another folder" in driver.said
        assert "Traceback" not in driver.said


def test_a_folder_that_is_locked_while_training_stops_the_run(recipe, wanted, tmp_path):
    with runs.Driver(recipe, tmp_path / "run") as driver:
        child = driver.start()
        wait_for_a_checkpoint(driver, child)
        folder = driver.checkpoints
        with locked(folder):
            assert driver.status() == 3, driver.said
            assert "not allowed" in driver.said
            kept = whole(driver)
            assert f"goes on from step {kept[-1]}" in driver.said
        assert driver.run() == 0, driver.said
        assert digest_file(driver.weights) == wanted


@contextmanager
def locked(folder):
    """Let nobody write into a folder: root neither, where the file system can say so."""
    root = os.geteuid() == 0
    lock, unlock = (
        (["chattr", "+i"], ["chattr", "-i"]) if root else (["chmod", "555"], ["chmod", "755"])
    )
    if subprocess.run([*lock, str(folder)], capture_output=True).returncode:
        pytest.skip("this file system cannot lock a folder against root")
    try:
        yield
    finally:
        subprocess.run([*unlock, str(folder)], check=True)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_are_passed_over_for_the_one_before(recipe, wanted, tmp_path):
    with runs.Driver(recipe, tmp_path / "run") as driver:
        for damage, goal in ((cut, 25), (flip, 45)):
            child = driver.start("-q", *FLAGS)
            runs.wait_for(lambda: driver.reached >= goal, child)  # noqa: B023 - used here
            os.kill(child, 9)
            driver.status()
            before, last = whole(driver)
            damage(driver.checkpoints / f"step-{last:08d}" / durable.TENSORS)
        assert driver.run(*FLAGS) == 0, driver.said
        assert f"checkpoint step-{last:08d} is damaged and is passed over" in driver.said
        assert f"goes on from step {before}" in driver.said
        assert digest_file(driver.weights) == wanted

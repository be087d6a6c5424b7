"""SIGKILL at random moments, half of them while a checkpoint is being written."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from pathlib import Path

import runs

from danlu.artifact import digest_file
from danlu.train import durable

KILLS = int(os.environ.get("DANLU_KILLS", "20"))  # `make faults` asks for 200
EVERY = 5


def writing(driver: runs.Driver) -> bool:
    """Whether a checkpoint is being written, or was when the process ended."""
    folder = driver.checkpoints
    return folder is not None and next(folder.glob(f"{durable.WRITING}*"), None) is not None


def wait_for_the_moment(
    driver: runs.Driver, child: int, draw: random.Random, *, in_a_save: bool
) -> None:
    """Sleep until it is time to kill."""
    if in_a_save:
        for _ in range(draw.randint(1, 2)):
            runs.wait_for(lambda: not writing(driver), child)
            runs.wait_for(lambda: writing(driver), child)
    elif draw.random() < 0.25:
        time.sleep(draw.random())  # perhaps before the first step
    else:
        goal = driver.reached + draw.randint(1, 2 * EVERY)
        runs.wait_for(lambda: driver.reached >= goal, child)
    time.sleep(draw.random() * 0.03)


def whole(folder: Path) -> list[int]:
    """Load every checkpoint that bears its name; return the steps of those to go on from."""
    steps = []
    for path in folder.glob("[!.]*"):
        _, record = durable.read(path)
        if not path.name.startswith("best-"):
            steps.append(record["step"])
            best = record["progress"]["best_step"]
            assert not best or (folder / f"best-{best:08d}").is_dir(), "its best is gone"
    return sorted(steps)


def test_killed_again_and_again_a_run_ends_as_one_that_was_not(tmp_path):
    draw = random.Random(11)
    recipe = runs.write(tmp_path, steps=12 * KILLS, every=EVERY)
    inside = outside = behind = most = 0
    with (
        runs.Driver(recipe, tmp_path / "whole") as undisturbed,
        runs.Driver(recipe, tmp_path / "broken") as driver,
    ):
        undisturbed.start("-q")
        for number in itertools.count():
            if inside >= KILLS // 2 and outside >= KILLS - KILLS // 2:
                break
            child = driver.start("-q")
            aimed = inside < KILLS // 2 and (number % 2 == 0 or outside >= KILLS // 2)
            wait_for_the_moment(driver, child, draw, in_a_save=aimed)
            os.kill(child, signal.SIGKILL)
            assert driver.status() == -signal.SIGKILL, "it ended before it could be killed"
            hit = writing(driver)
            inside, outside = inside + hit, outside + (not hit)
            if (folder := driver.checkpoints) is not None:
                done, last = driver.reached, max(whole(folder), default=0)
                due = done // EVERY * EVERY
                behind, most = max(behind, (due - last) // EVERY), max(most, done - last)
                assert due - last <= EVERY, f"after {done} steps one had to go on from {last}"
        assert driver.run("-q") == 0, driver.said
        assert undisturbed.status() == 0, undisturbed.said
        sums = [digest_file(one.weights) for one in (undisturbed, driver)]
    told = {
        "kills": inside + outside, "inside a save": inside, "checkpoints behind at most": behind,
        "steps lost at most": most, "interval": EVERY, "sha256": sums,
    }  # fmt: skip
    print(json.dumps(told))
    assert sums[0] == sums[1]

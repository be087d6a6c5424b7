"""SIGKILL at random moments, half of them while a checkpoint is being written."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import runs

from danlu.artifact import digest_file
from danlu.train import durable

KILLS = int(os.environ.get("DANLU_KILLS", "20"))  # `make faults` asks for 200
EVERY = 5


class Driver:
    """Children that run one recipe into one folder, and may be killed."""

    def __init__(self, recipe: Path, out: Path) -> None:
        script = Path(__file__).with_name("driver.py")
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(recipe), str(out)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=runs.environment(),
        )  # fmt: skip

    def start(self) -> int:
        """Start a child and return its process number."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        """Wait for the child's end and return its exit code."""
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End the driver."""
        with self.process:
            self.process.stdin.close()

    @property
    def checkpoints(self) -> Path | None:
        """Where the run in progress keeps its checkpoints."""
        return next(self.out.glob("stages/.partial-pretrain-*/checkpoints"), None)


def writing(folder: Path | None) -> bool:
    return folder is not None and next(folder.glob(f"{durable.WRITING}*"), None) is not None


def wait_for(happened: Callable[[], bool], child: int) -> None:
    """Return as soon as something has happened, or the child is gone."""
    deadline = time.monotonic() + 60
    while not happened() and Path(f"/proc/{child}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def reached(folder: Path | None) -> int:
    """Return the last step that the log knows to be done."""
    path = folder.parent / "events.jsonl" if folder else None
    if path is None or not path.is_file():
        return 0
    found = [json.loads(row) for row in path.read_bytes().split(b"\n")[:-1]]
    steps = [row["step"] for row in found if row["event"] in ("step", "resumed")]
    return max(steps[-1:], default=0)


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
    undisturbed, driver = Driver(recipe, tmp_path / "whole"), Driver(recipe, tmp_path / "broken")
    undisturbed.start()
    inside = outside = behind = most = 0
    for number in itertools.count():
        if inside >= KILLS // 2 and outside >= KILLS - KILLS // 2:
            break
        child = driver.start()
        aimed = inside < KILLS // 2 and (number % 2 == 0 or outside >= KILLS // 2)
        if aimed:
            for _ in range(draw.randint(1, 2)):
                wait_for(lambda: not writing(driver.checkpoints), child)
                wait_for(lambda: writing(driver.checkpoints), child)
            time.sleep(draw.random() * 0.03)
        elif draw.random() < 0.25:
            time.sleep(draw.random())  # perhaps before the first step
        else:
            goal = reached(driver.checkpoints) + draw.randint(1, 2 * EVERY)
            wait_for(lambda: reached(driver.checkpoints) >= goal, child)  # noqa: B023 - used here
            time.sleep(draw.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        assert driver.status() == -signal.SIGKILL, "it ended before it could be killed"
        if (folder := driver.checkpoints) is None:
            outside += 1
            continue
        hit = writing(folder)
        inside, outside = inside + hit, outside + (not hit)
        steps, done = whole(folder), reached(folder)
        due = done // EVERY * EVERY
        last = max(steps, default=0)
        behind, most = max(behind, (due - last) // EVERY), max(most, done - last)
        assert due - last <= EVERY, f"{done} steps were done, and {last} can be gone on from"
    driver.start()
    assert driver.status() == 0
    assert undisturbed.status() == 0
    ends = [
        next((tmp_path / name / "stages").glob("pretrain-*")) / "model.safetensors"
        for name in ("whole", "broken")
    ]
    told = {
        "kills": inside + outside, "inside a save": inside, "checkpoints behind at most": behind,
        "steps lost at most": most, "interval": EVERY, "sha256": digest_file(ends[0]),
    }  # fmt: skip
    print(json.dumps(told))
    assert digest_file(ends[0]) == digest_file(ends[1])
    for one in (undisturbed, driver):
        one.close()

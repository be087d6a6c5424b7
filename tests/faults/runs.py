"""A small run on made-up text, for tests that break it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RECIPE = """
seed = 5
[data]
task = "pretrain"
text = "line"
sources = [{{ path = "text.txt" }}]
[data.clean]
near_duplicates = "keep"
[data.split]
by = "random"
[tokenizer]
vocab_size = {vocabulary}
max_length = 64
[model]
depth = 1
width = {width}
head_dim = 32
tie_embeddings = true
[pretrain]
batch_tokens = 128
steps = {steps}
accumulate = 2
layer_dropout = 0.1
average = 0.9
checkpoint_every = {every}
log_every = 1
[evaluate]
bootstrap = 100
"""


def write(
    folder: Path, *, steps: int, every: int, vocabulary: int = 4000, width: int = 192
) -> Path:
    """Write a recipe and its text; by default the model has about a million parameters."""
    draw = random.Random(3)
    syllables = [a + b for a in "bdfghklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "or")]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(3000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    lines = [" ".join(draw.choices(words, weights, k=draw.randint(5, 25))) for _ in range(500)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    path = folder / "made-up.toml"
    sizes = {"steps": steps, "every": every, "vocabulary": vocabulary, "width": width}
    path.write_text(RECIPE.format(**sizes), encoding="utf-8")
    return path


class Driver:
    """Starts ``danlu run`` for one recipe and folder, time and again, in processes of its own."""

    def __init__(self, recipe: Path, out: Path) -> None:
        self.recipe, self.out = recipe, out
        self.stderr = out.with_name(f"{out.name}.stderr")
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("driver.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"},
        )  # fmt: skip

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.stdin.close()

    def start(self, *flags: str) -> int:
        """Start a run and return its process number."""
        self.stderr.unlink(missing_ok=True)
        arguments = ["run", str(self.recipe), "--out", str(self.out), *flags]
        told = {"arguments": arguments, "stderr": str(self.stderr)}
        self._process.stdin.write(json.dumps(told) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def status(self) -> int:
        """Wait for the run's end and return its exit code."""
        return int(self._process.stdout.readline())

    def run(self, *flags: str) -> int:
        """Run to the end and return the exit code."""
        self.start(*flags)
        return self.status()

    @property
    def said(self) -> str:
        """What the last run wrote to stderr."""
        return self.stderr.read_text(encoding="utf-8")

    @property
    def checkpoints(self) -> Path | None:
        """Where the run in progress keeps its checkpoints."""
        return next(self.out.glob("stages/.partial-pretrain-*/checkpoints"), None)

    @property
    def reached(self) -> int:
        """The last step that the log of the run in progress knows to be done."""
        path = self.checkpoints.parent / "events.jsonl" if self.checkpoints else None
        if path is None or not path.is_file():
            return 0
        found = [json.loads(row) for row in path.read_bytes().split(b"\n")[:-1]]
        steps = [row["step"] for row in found if row["event"] in ("step", "resumed")]
        return max(steps[-1:], default=0)

    @property
    def weights(self) -> Path:
        """The weights of the finished run."""
        return next(self.out.glob("stages/pretrain-*")) / "model.safetensors"


def wait_for(happened: Callable[[], bool], child: int) -> None:
    """Return as soon as something has happened, or the child is gone."""
    deadline = time.monotonic() + 120
    while not happened() and Path(f"/proc/{child}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.0005)

"""A small run on made-up text, for tests that break it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
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
    folder: Path, *, steps: int, every: int, vocabulary: int = 4000, width: int = 160
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


def environment() -> dict[str, str]:
    """Return one in which two processes are not in each other's way."""
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}


def command(recipe: Path, out: Path, *flags: str) -> list[str]:
    """Return the command line of a run."""
    return [sys.executable, "-m", "danlu", "run", str(recipe), "--out", str(out), *flags]


def run(recipe: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe to its end."""
    line = command(recipe, out, *flags)
    return subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=300)

"""How fast this machine multiplies bfloat16 matrices: the roof over every contestant.

Writes the best GFLOP/s over square shapes and over those of the models measured.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F

# (rows, inputs, outputs)
SHAPES = [
    (1024, 1024, 1024),
    (2048, 2048, 2048),
    (4096, 384, 1152),
    (4096, 384, 2048),
    (4096, 1024, 384),
    (4096, 384, 8192),
]


@torch.no_grad()
def gflops(rows: int, inputs: int, outputs: int, seconds: float) -> float:
    """Return the speed of the fastest single product within `seconds`."""
    x = torch.randn(rows, inputs, dtype=torch.bfloat16)
    weight = torch.randn(outputs, inputs, dtype=torch.bfloat16)
    F.linear(x, weight)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        F.linear(x, weight)
        best = min(best, time.perf_counter() - began)
    return 2 * rows * inputs * outputs / best / 1e9


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.7, help="for each shape")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {
        "×".join(map(str, shape)): round(gflops(*shape, options.seconds), 1) for shape in SHAPES
    }
    record = {"best_gflops": max(found.values()), "shapes": found}
    options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How long the demo takes and how well it does, run after run.

    python benchmarks/demo.py --runs 3

Runs recipes/reviews.toml from nothing in a temporary folder, once for each seed,
and prints medians and spread as JSON; writes them to benchmarks/results/ too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import danlu
from danlu.artifact import machine_record

ROOT = Path(__file__).parent.parent


def measure(seed: int, folder: Path) -> dict[str, float]:
    """Run the demo from nothing; return its seconds and its test figures."""
    began = time.perf_counter()
    result = danlu.run(
        ROOT / "recipes" / "reviews.toml", folder, [f"seed={seed}", "gate.require=[]"]
    )
    found = {"seconds": time.perf_counter() - began, "seed": seed}
    for row in result.metrics:
        wanted = row.metric in ("accuracy", "roc_auc") or row.metric == "accuracy - tfidf-logreg"
        if row.split == "test" and wanted:
            found[f"{row.model} {row.metric}"] = row.value
        if row.metric == "seconds":
            found[f"{row.stage} seconds"] = row.value
    return found


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="runs, each with a seed of its own")
    parser.add_argument("--first-seed", type=int, default=7)
    options = parser.parse_args()
    runs = []
    for number in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(options.first_seed + number, Path(folder) / "run"))
            print(json.dumps(runs[-1]), flush=True)
    summary = {
        key: {
            "median": statistics.median(run[key] for run in runs),
            "low": min(run[key] for run in runs),
            "high": max(run[key] for run in runs),
        }
        for key in runs[0]
        if key != "seed"
    }
    content = {
        "benchmark": "demo",
        "runs": runs,
        "summary": summary,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        **machine_record(),
    }
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "demo.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()

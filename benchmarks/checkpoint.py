"""What a checkpoint costs training: written meanwhile, or waited for.

    python benchmarks/checkpoint.py --rounds 5

The same model and steps without checkpoints, with one every few steps that training waits for,
and with one that is written while training goes on. For each save: how long training stood
still for it, how long it took from the copy to the last sync, and, from the time of all steps
against those without checkpoints, what it cost in all: writing takes cores from the steps.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

import charts
import common
import corpus
from common import Contestant

NONE, WAITED, MEANWHILE = "no checkpoints", "danlu, waited for", "danlu, written meanwhile"


def summarise(rounds: list[dict[str, Any]], every: int) -> dict[str, Any]:
    """Return the spread over the rounds so far; within a round the median of its saves."""
    for contestants in rounds:
        for name, record in contestants.items():
            if name == NONE or "error" in record:
                continue
            record["stall"] = statistics.median(record["stall_seconds"])
            record["save"] = statistics.median(record["save_seconds"])
            without = contestants.get(NONE, {"error": "not run"})
            if "error" not in without:
                more = record["seconds"] - without["seconds"]
                record["cost"] = more / (len(record["step_seconds"]) / every)
    found: dict[str, Any] = {
        key: {
            name: common.spread(common.by_round(rounds, name, key).values())
            for name in (WAITED, MEANWHILE)
        }
        for key in ("stall", "save")
    }
    found["cost"] = {
        name: common.spread(r[name]["cost"] for r in rounds if "cost" in r.get(name, {}))
        for name in (WAITED, MEANWHILE)
    }
    # Both of one round: the stall when written meanwhile, beside a whole save that is waited for.
    a, b = (common.by_round(rounds, name, "stall") for name in (MEANWHILE, WAITED))
    found["stall_share"] = common.spread(a[number] / b[number] for number in a.keys() & b.keys())
    found["peak_rss_mb"] = {
        name: common.spread(common.by_round(rounds, name, "peak_rss_mb").values())
        for name in (NONE, WAITED, MEANWHILE)
    }
    return found


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    summary, rounds = content["summary"], content["rounds"]
    sizes = [r["checkpoint_bytes"] for one in rounds for r in one.values() if "error" not in r]
    size = f"{sizes[0] / 1e6:,.0f} MB" if sizes else "unknown"
    text = common.header("Checkpoints", content)
    text += f"A checkpoint of {size} every {content['settings']['every']} steps, AdamW. "
    text += f"Median (lowest–highest) over {len(rounds)} rounds, of each the median of its saves "
    text += "but the first, which also makes the buffers, and the last.\n\n"
    text += "| | waited for | written meanwhile |\n|---|---|---|\n"
    for label, key, form in (
        ("training stands still, s a save", "stall", ".3f"),
        ("copy to last sync, s a save", "save", ".3f"),
        ("steps take longer by, s a save", "cost", ".3f"),
        ("peak memory, MiB", "peak_rss_mb", ",.0f"),
    ):
        cells = " | ".join(common.cell(summary[key][name], form) for name in (WAITED, MEANWHILE))
        text += f"| {label} | {cells} |\n"
    share = summary["stall_share"]
    text += f"\nStanding still, written meanwhile / waited for: {common.cell(share, '.1%')}. "
    without = common.cell(summary["peak_rss_mb"][NONE])
    return text + f"Peak memory without checkpoints: {without} MiB.\n"


def main() -> None:
    """Run the rounds."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=40, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them")
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    options = parser.parse_args()
    shape = common.LANGUAGE_MODEL
    if options.short:
        options.rounds, options.steps, options.every = 1, 8, 2
        options.warm_up, options.documents = 2, common.SHORT_DOCUMENTS
        shape = shape | common.SHORT
    data = corpus.prepare("poems", options.documents)
    modes = {NONE: "none", WAITED: "waited for", MEANWHILE: "meanwhile"}
    entrants = common.chosen(
        [
            Contestant(name, "checkpoint_run.py", sys.executable, ("--mode", mode))
            for name, mode in modes.items()
        ],
        options.only,
    )
    shared = ["--data", str(data), "--shape", json.dumps(shape), "--every", str(options.every)]
    shared += ["--steps", str(options.steps), "--warm-up", str(options.warm_up)]

    def after(content: dict[str, Any]) -> None:
        rounds = content["rounds"]
        content["summary"] = summarise(rounds, options.every)
        stalls = {
            name: list(common.by_round(rounds, name, "stall").values())
            for name in (WAITED, MEANWHILE)
        }
        title = "Training stands still for a checkpoint"
        chart = charts.bars(stalls, title, "seconds a save, each dot a round", ".3f")
        common.write(common.result_name("checkpoint", options), content, table(content), chart)

    common.play("checkpoint", options, shape, entrants, shared, after)


if __name__ == "__main__":
    main()

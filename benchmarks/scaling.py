"""What grows with what, in danlu alone.

    python benchmarks/scaling.py --rounds 5

- a step of 8192 tokens against one of 4096: twice the time, at most;
- a corpus written ten times over against the corpus: the same time and memory a token;
- a second process: from its start to the end of its first step, against a later step.
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

BASE, AGAIN = "danlu, 4096 tokens a step", "danlu, a second process"
DOUBLE, TENFOLD = "danlu, 8192 tokens a step", "danlu, the corpus ten times over"


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the spread of every figure over the rounds so far."""
    # Of steps the median within a round: one that stumbled says nothing of scaling.
    # Of tokens the mean, for steps hold different numbers of them.
    for contestants in rounds:
        for record in contestants.values():
            if "error" not in record:
                steps = record["step_seconds"]
                record["median_step_seconds"] = statistics.median(steps)
                record["token_seconds"] = record["seconds"] / record["tokens"]
                if record["start_to_first_step_seconds"] is not None:
                    record["start_overhead_seconds"] = (
                        record["start_to_first_step_seconds"] - record["median_step_seconds"]
                    )
    return {
        "step_seconds": {
            name: common.spread(common.by_round(rounds, name, "median_step_seconds").values())
            for name in (BASE, DOUBLE, TENFOLD, AGAIN)
        },
        "step_8192_over_4096": common.ratio(rounds, DOUBLE, BASE, "median_step_seconds"),
        "token_seconds_tenfold_over_once": common.ratio(rounds, TENFOLD, BASE, "token_seconds"),
        "memory_tenfold_over_once": common.ratio(rounds, TENFOLD, BASE, "peak_rss_mb"),
        "second_process_start_overhead_seconds": common.spread(
            common.by_round(rounds, AGAIN, "start_overhead_seconds").values()
        ),
    }


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    summary = content["summary"]
    text = common.header("Scaling", content)
    text += f"Median (lowest–highest) over {len(content['rounds'])} rounds.\n\n"
    text += "| figure | value |\n|---|---|\n"
    rows = {
        "step of 8192 tokens / step of 4096": ("step_8192_over_4096", ".2f"),
        "seconds a token, corpus ten times over / once": ("token_seconds_tenfold_over_once", ".3f"),
        "peak memory, corpus ten times over / once": ("memory_tenfold_over_once", ".3f"),
        "second process, start to first step less a later step, s": (
            "second_process_start_overhead_seconds",
            ".1f",
        ),
    }
    for label, (key, form) in rows.items():
        text += f"| {label} | {common.cell(summary[key], form)} |\n"
    for name, found in summary["step_seconds"].items():
        text += f"| seconds a step: {name} | {common.cell(found, '.3f')} |\n"
    return text


def main() -> None:
    """Run the rounds."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=20, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them")
    parser.add_argument("--optimizer", default="adamw")
    options = parser.parse_args()
    shape = common.LANGUAGE_MODEL
    if options.short:
        options.rounds, options.steps, options.warm_up = 1, 3, 2
        options.documents = common.SHORT_DOCUMENTS
        shape = shape | common.SHORT
    data = corpus.prepare("poems", options.documents)
    tenfold = corpus.repeated(data, 10)
    double = json.dumps(shape | {"batch": 2 * shape["batch"]})
    entrants = common.chosen(
        [
            Contestant(BASE, "danlu_run.py", sys.executable),
            Contestant(AGAIN, "danlu_run.py", sys.executable),
            Contestant(DOUBLE, "danlu_run.py", sys.executable, ("--shape", double)),
            Contestant(TENFOLD, "danlu_run.py", sys.executable, ("--data", str(tenfold))),
        ],
        options.only,
    )
    shared = ["--task", "pretrain", "--data", str(data), "--shape", json.dumps(shape)]
    shared += ["--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    shared += ["--optimizer", options.optimizer]

    def after(content: dict[str, Any]) -> None:
        rounds = content["rounds"]
        content["summary"] = summarise(rounds)
        steps = {
            e.name: list(common.by_round(rounds, e.name, "median_step_seconds").values())
            for e in entrants
        }
        chart = charts.bars(steps, "Scaling: seconds a step", "s, each dot a round", ".2f")
        common.write(common.result_name("scaling", options), content, table(content), chart)

    common.play("scaling", options, shape, entrants, shared, after)


if __name__ == "__main__":
    main()

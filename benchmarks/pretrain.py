"""How many tokens a second each framework pre-trains on, and in how much memory.

    python benchmarks/pretrain.py --rounds 5 --steps 30

The same Llama-shaped model of 13.8 million parameters on the same documents, 4096
tokens a step. Every round runs every contestant once, so that a machine that slows
down slows all of them. A round's ratios come from that round alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import charts
import common
import corpus
from common import Contestant

PROBE = Contestant("probe", "probe.py", sys.executable)
OURS = ("danlu, AdamW", "danlu, default optimizer")


def contestants(options: argparse.Namespace) -> list[Contestant]:
    """Return those asked for, each with its interpreter."""
    everyone = [
        Contestant(OURS[0], "danlu_run.py", sys.executable, ("--optimizer", "adamw")),
        Contestant(OURS[1], "danlu_run.py", sys.executable, ("--optimizer", "default")),
        Contestant("Hugging Face Trainer, defaults", "hf_trainer.py", "hf", ("--flags", "default")),
        Contestant("Hugging Face Trainer, best flags", "hf_trainer.py", "hf"),
        Contestant("plain PyTorch loop", "plain_loop.py", sys.executable),
        Contestant("LitGPT", "litgpt_run.py", "litgpt"),
    ]
    return common.resolved(common.chosen(everyone, options.only), options)


def summarise(content: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the spread of every figure over the rounds so far."""
    rounds = content["rounds"]
    roofs = common.by_round(rounds, PROBE.name, "best_gflops")
    summary: dict[str, Any] = {"probe_gflops": common.spread(roofs.values()), "contestants": {}}
    for name in names:
        speeds = common.by_round(rounds, name, "tokens/seconds")
        work = common.by_round(rounds, name, "flops_per_token")
        useful = {number: speeds[number] * work[number] / 1e9 for number in speeds}
        found: dict[str, Any] = {
            "tokens_per_second": common.spread(speeds.values()),
            "useful_gflops": common.spread(useful.values()),
            "share_of_probe": common.spread(useful[n] / roofs[n] for n in useful if n in roofs),
        }
        for key in ("peak_rss_mb", "first_step_seconds"):
            found[key] = common.spread(common.by_round(rounds, name, key).values())
        summary["contestants"][name] = found
    summary["ratios"] = {
        f"{ours} / {theirs}": {
            "speed": common.ratio(rounds, ours, theirs, "tokens/seconds"),
            "memory": common.ratio(rounds, ours, theirs, "peak_rss_mb"),
        }
        for ours in names
        if ours in OURS
        for theirs in names
        if theirs not in OURS
    }
    return summary


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    summary = content["summary"]
    text = common.header(f"Pre-training speed ({content['settings']['corpus']})", content)
    text += "Median (lowest–highest) over "
    text += f"{len(content['rounds'])} rounds of {content['settings']['steps']} timed steps.\n\n"
    text += "| contestant | tokens/s | peak memory, MB | useful GFLOP/s | share of a bare "
    text += "matrix product | first step, s |\n|---|---|---|---|---|---|\n"
    for name, found in summary["contestants"].items():
        text += (
            f"| {name} | {common.cell(found['tokens_per_second'])} "
            f"| {common.cell(found['peak_rss_mb'])} | {common.cell(found['useful_gflops'])} "
            f"| {common.cell(found['share_of_probe'], '.1%')} "
            f"| {common.cell(found['first_step_seconds'], '.1f')} |\n"
        )
    if summary["ratios"]:
        text += "\n| ratio | speed | peak memory |\n|---|---|---|\n"
    for name, found in summary["ratios"].items():
        cells = [common.cell(found[key], ".2f") for key in ("speed", "memory")]
        text += f"| {name} | {' | '.join(cells)} |\n"
    text += f"\nBest bfloat16 matrix product: {common.cell(summary['probe_gflops'])} GFLOP/s.\n"
    return text


def main() -> None:
    """Run the rounds."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=30, help="timed steps")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them")
    parser.add_argument("--corpus", choices=["poems", "brown"], default="poems")
    options = parser.parse_args()
    shape = common.LANGUAGE_MODEL
    extra: list[str] = []
    if options.short:
        options.rounds, options.steps, options.warm_up = 1, 3, 2
        options.documents = common.SHORT_DOCUMENTS
        shape = shape | common.SHORT
        extra = ["--no-compile"]
    limit = options.documents if options.corpus == "poems" else 0
    data = corpus.prepare(options.corpus, limit)
    entrants = contestants(options)
    names = [contestant.name for contestant in entrants]
    shared = ["--task", "pretrain", "--data", str(data), "--shape", json.dumps(shape)]
    shared += ["--steps", str(options.steps), "--warm-up", str(options.warm_up), *extra]
    name = "pretrain" if options.corpus == "poems" else f"pretrain-{options.corpus}"

    def before() -> dict[str, Any]:
        seconds = ["--seconds", "0.05"] if options.short else []
        return {PROBE.name: common.run(PROBE, seconds, options.threads)}

    def after(content: dict[str, Any]) -> None:
        content["summary"] = summarise(content, names)
        rounds = content["rounds"]
        speeds = {n: list(common.by_round(rounds, n, "tokens/seconds").values()) for n in names}
        chart = charts.bars(speeds, "Pre-training: tokens a second", "tokens/s, each dot a round")
        common.write(common.result_name(name, options), content, table(content), chart)

    common.play("pretrain", options, shape, entrants, shared, after, before)


if __name__ == "__main__":
    main()

"""How long one epoch of fine-tuning a classifier takes, and how well it does.

    python benchmarks/finetune.py --rounds 5

Reviews of every length, batches of 32, a BERT-sized model from random weights. The
peer is the Hugging Face Trainer with its best flags: bfloat16, fused AdamW, batches of
like length, padded only to their longest. Each round has a seed of its own.

Two questions: how much sooner danlu ends its epoch, and how much sooner it is as good as
the peer at the end of its own. For the second both are evaluated as they go, the clock
stopped; what counts for either is the evaluation from which on none falls below that mark.
A round whose peer ends near chance sets no mark.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import charts
import common
import corpus
from common import Contestant

OURS, PEER, COMPILED = (
    "danlu, AdamW",
    "Hugging Face Trainer, best flags",
    "Hugging Face Trainer, best flags, compiled",
)
NEAR_CHANCE = 0.6  # of two classes, the larger of which has 0.53 of the test split


def as_good(curve: list[list[float]], mark: float) -> float | None:
    """Return the seconds of the evaluation from which on none is below the mark."""
    since = None
    for _, seconds, found in curve:
        since = (since or seconds) if found >= mark else None
    return since


def sooner(rounds: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """Return how many times sooner danlu is as good as a peer at its end, in each round.

    0 where danlu never is.
    """
    found = []
    for contestants in rounds:
        ours, theirs = contestants.get(OURS, {}), contestants.get(name, {})
        if "curve" in theirs and theirs["accuracy"] > NEAR_CHANCE:
            there = as_good(theirs["curve"], theirs["accuracy"])
            here = as_good(ours.get("curve", []), theirs["accuracy"])
            found.append(there / here if there and here else 0.0)
    return common.spread(found)


def summarise(content: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the spread of every figure over the rounds so far."""
    rounds = content["rounds"]
    keys = ("seconds", "tokens/seconds", "accuracy", "peak_rss_mb", "first_step_seconds")
    return {
        "contestants": {
            name: {key: common.spread(common.by_round(rounds, name, key).values()) for key in keys}
            for name in names
        },
        "ratios": {
            f"{OURS} / {name}": {
                "speed": common.ratio(rounds, OURS, name, "tokens/seconds"),
                "time": common.ratio(rounds, OURS, name, "seconds"),
                "sooner": sooner(rounds, name),
                "memory": common.ratio(rounds, OURS, name, "peak_rss_mb"),
            }
            for name in names
            if name != OURS and OURS in names
        },
    }


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    text = common.header("Fine-tuning: one epoch", content)
    text += f"Median (lowest–highest) over {len(content['rounds'])} rounds.\n\n"
    text += "| contestant | epoch, s | real tokens/s | test accuracy | peak memory, MB |\n"
    text += "|---|---|---|---|---|\n"
    for name, found in content["summary"]["contestants"].items():
        text += (
            f"| {name} | {common.cell(found['seconds'], ',.1f')} "
            f"| {common.cell(found['tokens/seconds'])} "
            f"| {common.cell(found['accuracy'], '.4f')} | {common.cell(found['peak_rss_mb'])} |\n"
        )
    text += "\n| ratio | speed | time of an epoch | times sooner at the peer's last accuracy "
    text += "(0: never) | peak memory |\n"
    text += "|---|---|---|---|---|\n"
    for name, found in content["summary"]["ratios"].items():
        cells = [common.cell(found[key], ".2f") for key in ("speed", "time", "sooner", "memory")]
        text += f"| {name} | {' | '.join(cells)} |\n"
    return text


def main() -> None:
    """Run the rounds."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=0, help="0 is the whole epoch")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of danlu")
    # The best of 1e-4, 2e-4 and 3e-4 (NOTEBOOK.md, 2026-11-25).
    parser.add_argument("--peer-learning-rate", type=float, default=2e-4)
    parser.add_argument("--evaluate-every", type=int, default=62, help="steps")
    parser.add_argument("--compiled", action="store_true", help="the peer once more, compiled")
    parser.add_argument("--pad-to", type=int, help="the peer's lengths become multiples of this")
    # The corpus of reviews is small; all of it is one epoch.
    parser.set_defaults(documents=0)
    options = parser.parse_args()
    shape = common.CLASSIFIER
    if options.short:
        options.rounds, options.steps, options.documents = 1, 4, common.SHORT_DOCUMENTS
        options.evaluate_every = 2
        shape = shape | common.SHORT | {"batch": 8}
    data = corpus.prepare("reviews", options.documents)
    theirs = ["--learning-rate", str(options.peer_learning_rate)]
    theirs += ["--pad-to", str(options.pad_to)] if options.pad_to else []
    ours = ["--optimizer", "adamw", "--learning-rate", str(options.learning_rate)]
    everyone = [
        Contestant(OURS, "danlu_run.py", sys.executable, tuple(ours)),
        Contestant(PEER, "hf_trainer.py", "hf", ("--no-compile", *theirs)),
    ]
    if options.compiled:
        everyone.append(Contestant(COMPILED, "hf_trainer.py", "hf", ("--compile", *theirs)))
    entrants = common.resolved(common.chosen(everyone, options.only), options)
    names = [entrant.name for entrant in entrants]
    shared = ["--task", "finetune", "--data", str(data), "--shape", json.dumps(shape)]
    shared += ["--steps", str(options.steps), "--evaluate-every", str(options.evaluate_every)]

    def after(content: dict[str, Any]) -> None:
        content["summary"] = summarise(content, names)
        rounds = content["rounds"]
        seconds = {n: list(common.by_round(rounds, n, "seconds").values()) for n in names}
        chart = charts.bars(seconds, "Fine-tuning: one epoch", "s, each dot a round", ",.1f")
        common.write(common.result_name("finetune", options), content, table(content), chart)

    common.play("finetune", options, shape, entrants, shared, after)


if __name__ == "__main__":
    main()

"""How long danlu trains to reach what the peer reaches.

    python benchmarks/quality.py --steps 1500 --danlu-steps 700

The peer (Hugging Face Trainer, best flags) trains a whole cosine schedule. Its lowest
bits per byte on the validation split is the mark; danlu's time is that of its first
evaluation at or below the mark. Evaluations are left out of both times. So is the
peer's compilation from the ratio that leads, for a longer run would hide it.
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

PEER = "Hugging Face Trainer, best flags"


def first_at(curve: list[list[float]], mark: float) -> tuple[float, float] | None:
    """Return step and training seconds of the first evaluation at or below the mark."""
    return next(((step, seconds) for step, seconds, bits in curve if bits <= mark), None)


def compilation(record: dict[str, Any]) -> float:
    """Return by how many seconds the first step was longer than the usual one."""
    usual = statistics.median(record["step_seconds"])
    return float(max(0.0, record["first_step_seconds"] - usual))


def summarise(rounds: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Return the mark, the times to it and their ratio, in each round."""
    summary: dict[str, Any] = {}
    for name in names:
        times, ratios, with_compilation, steps, best = [], [], [], [], []
        for contestants in rounds:
            peer, ours = contestants.get(PEER, {}), contestants.get(name, {})
            if "curve" not in ours:
                continue
            best.append(min(bits for *_, bits in ours["curve"]))
            if "curve" not in peer:
                continue
            mark = min(bits for *_, bits in peer["curve"])
            here, there = first_at(ours["curve"], mark), first_at(peer["curve"], mark)
            if here and there:
                steps.append(here[0])
                times.append(here[1] - compilation(ours))
                ratios.append((there[1] - compilation(peer)) / times[-1])
                with_compilation.append(there[1] / here[1])
        summary[name] = {
            "best_bits_per_byte": common.spread(best),
            "steps_to_mark": common.spread(steps),
            "seconds_to_mark": common.spread(times),
            "times_as_fast": common.spread(ratios),
            "times_as_fast_with_compilation": common.spread(with_compilation),
            "rounds_that_reached_the_mark": len(ratios),
        }
    return summary


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    text = common.header("Time to the same quality", content)
    text += f"{content['settings']['steps']} steps of the peer, whose best is the mark; "
    text += f"{content['settings']['danlu_steps']} of danlu. {len(content['rounds'])} rounds.\n\n"
    text += "| contestant | best bits/byte | steps to the mark | seconds to the mark "
    text += "| times as fast | … with compilation |\n|---|---|---|---|---|---|\n"
    for name, found in content["summary"].items():
        text += (
            f"| {name} | {common.cell(found['best_bits_per_byte'], '.4f')} "
            f"| {common.cell(found['steps_to_mark'])} | {common.cell(found['seconds_to_mark'])} "
            f"| {common.cell(found['times_as_fast'], '.2f')} "
            f"| {common.cell(found['times_as_fast_with_compilation'], '.2f')} |\n"
        )
    return text


def draw(rounds: list[dict[str, Any]], names: list[str]) -> str | None:
    """Return the curves of the last round."""
    found = {n: rounds[-1][n]["curve"] for n in names if "curve" in rounds[-1].get(n, {})}
    if not found:
        return None
    level = min(bits for *_, bits in found.get(PEER, next(iter(found.values()))))
    points = {n: [(seconds, bits) for _, seconds, bits in curve] for n, curve in found.items()}
    title = "Validation bits per byte while training; dashed: the peer's best"
    return charts.curves(points, title, "training seconds", "bits per byte", level)


def main() -> None:
    """Run the rounds."""
    parser = common.parser(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=1500, help="of the peer: ten minutes or more")
    parser.add_argument("--danlu-steps", type=int, help="by default as many")
    parser.add_argument("--evaluate-every", type=int, default=50)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of danlu")
    parser.add_argument("--peer-learning-rate", type=float, default=1e-3)
    parser.add_argument("--optimizers", nargs="+", default=["default"], help="of danlu")
    parser.add_argument("--corpus", choices=["poems", "brown"], default="poems")
    options = parser.parse_args()
    shape = common.LANGUAGE_MODEL
    extra: list[str] = []
    if options.short:
        options.rounds, options.steps, options.evaluate_every = 1, 4, 2
        options.danlu_steps, options.documents = 4, common.SHORT_DOCUMENTS
        shape, extra = shape | common.SHORT, ["--no-compile"]
    options.danlu_steps = options.danlu_steps or options.steps
    data = corpus.prepare(options.corpus, options.documents if options.corpus == "poems" else 0)
    rates = ("--learning-rate", str(options.learning_rate), "--steps", str(options.danlu_steps))
    everyone = [
        Contestant(
            f"danlu, {name} optimizer",
            "danlu_run.py",
            sys.executable,
            ("--optimizer", name, *rates),
        )
        for name in options.optimizers
    ]
    peer_rate = ("--learning-rate", str(options.peer_learning_rate))
    everyone.append(Contestant(PEER, "hf_trainer.py", "hf", peer_rate))
    entrants = common.resolved(common.chosen(everyone, options.only), options)
    names = [entrant.name for entrant in entrants]
    shared = ["--task", "quality", "--data", str(data), "--shape", json.dumps(shape)]
    shared += ["--steps", str(options.steps), *extra]
    shared += ["--evaluate-every", str(options.evaluate_every)]

    def after(content: dict[str, Any]) -> None:
        content["summary"] = summarise(content["rounds"], names)
        chart = draw(content["rounds"], names)
        common.write(common.result_name("quality", options), content, table(content), chart)

    common.play("quality", options, shape, entrants, shared, after)


if __name__ == "__main__":
    main()

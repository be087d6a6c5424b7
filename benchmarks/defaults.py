"""Which optimiser and learning rate win in time to quality, at each depth of the size dial.

    python benchmarks/defaults.py --depths 2 4 8 12 --seconds 45

At every depth each candidate trains for about the same time on the same poems, a whole
cosine schedule; its bits per byte on the validation split are compared. Learning rates
are multiples of the recipe's default. A deeper model is given more time, in proportion.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import common
import corpus
from common import Contestant

from danlu.recipe import fill
from danlu.recipe.sections import Recipe

# AdamW's best rates were found lower than Muon's (NOTEBOOK.md, 2026-11-22).
MULTIPLES = {"muon": (1.0, 2.0, 4.0), "adamw": (0.5, 1.0)}
UNIT = 4  # the depth that is given --seconds
PILOT = 6  # steps from which the speed of a candidate is told


def sizes(depth: int) -> tuple[dict[str, int], float]:
    """Return a depth's shape and default learning rate, as a filled recipe has them."""
    content = {
        "name": "x",
        "data": {"task": "pretrain", "sources": [{"path": "x.txt"}]},
        "model": {"depth": depth},
        "pretrain": {"objective": "causal"},
    }
    recipe, _ = fill(Recipe.model_validate(content))
    model = recipe.model
    shape = {
        "vocab_size": 8192, "width": model.width, "layers": depth, "heads": model.heads,
        "hidden": model.hidden, "context": 512, "batch": 8,
    }  # fmt: skip
    return shape, recipe.pretrain.learning_rate or 0.0


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    text = common.header("Optimiser and learning rate by depth", content)
    text += "| depth | optimiser | learning rate | steps | seconds | validation bits per byte |\n"
    text += "|---|---|---|---|---|---|\n"
    for row in content["rows"]:
        rate = f"{row['learning_rate']:.3g} ({row['multiple']:g} × default)"
        text += (
            f"| {row['depth']} | {row['optimizer']} | {rate} "
            f"| {row['steps']} | {row['seconds']:.0f} | {row['bits_per_byte']:.4f} |\n"
        )
    return text


def main() -> None:
    """Run the candidates, the depths one after the other."""
    parser = common.parser(__doc__, rounds=1)
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 6, 8, 12])
    parser.add_argument("--seconds", type=float, default=60, help="for a candidate at depth 4")
    options = parser.parse_args()
    if options.short:
        options.depths, options.seconds, options.documents = [1], 2, common.SHORT_DOCUMENTS
    data = corpus.prepare("poems", options.documents)
    content: dict[str, Any] = {
        "benchmark": "defaults",
        "settings": common.settings(options),
        "machine": common.machine(),
        "rows": [],
    }
    for depth in options.depths:
        shape, rate = sizes(depth)
        shared = ["--data", str(data), "--shape", json.dumps(shape)]
        for optimizer, multiples in MULTIPLES.items():
            one = Contestant(f"depth {depth}, {optimizer}", "danlu_run.py", sys.executable)
            arguments = [*shared, "--optimizer", optimizer]
            pilot = common.run(one, [*arguments, "--steps", str(PILOT), "--warm-up", "2"])
            steps = max(4, round(options.seconds * depth / UNIT / (pilot["seconds"] / PILOT)))
            for multiple in multiples:
                more = ["--task", "quality", "--steps", str(steps), "--evaluate-every", str(steps)]
                more += ["--learning-rate", str(rate * multiple)]
                found = common.run(one, [*arguments, *more])
                content["rows"].append({
                    "depth": depth, "optimizer": optimizer, "multiple": multiple,
                    "learning_rate": rate * multiple, "steps": steps, "seconds": found["seconds"],
                    "bits_per_byte": found["curve"][-1][2],
                })  # fmt: skip
                name = common.result_name("defaults", options)
                common.write(name, content, table(content), None)
    print(table(content))


if __name__ == "__main__":
    main()

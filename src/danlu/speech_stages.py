"""Measuring a recogniser: what is said in the test clips, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from danlu.artifact import read_json, write_json
from danlu.data import kinds
from danlu.data.clips import clip_html
from danlu.data.split import TEST
from danlu.recipe import Recipe

_WORST, _OTHERS = 10, 6  # test clips that the report shows


def evaluate(
    recipe: Recipe,
    paths: dict[str, Path],
    folder: Path,
    where: torch.device,
    leaks: dict[str, int],
) -> None:
    """Measure the model and the baselines on the test split."""
    from danlu.evaluate.intervals import Bootstrap
    from danlu.evaluate.score import differences
    from danlu.evaluate.transcribe import measure
    from danlu.serve.engine import Engine

    table = pq.read_table(paths["data"] / f"{TEST}.parquet")
    said: list[str] = table["label"].to_pylist()
    clips = kinds.of_rows("audio").records(paths["data"], TEST)
    engine = Engine.load(paths["finetune"], paths["tokenizer"], where)
    heard = engine.transcripts(clips, recipe.evaluate.batch_size)
    others = list(read_json(paths["baseline"] / "report.json"))
    answers = {name: np.load(paths["baseline"] / f"{name}.npy").tolist() for name in others}
    bootstrap = Bootstrap(len(said), recipe.evaluate.bootstrap, recipe.seed)
    rows, resampled = measure(said, {recipe.name: heard, **answers}, bootstrap)
    rows += differences(rows, resampled, recipe.name, others, bootstrap.resamples)
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    write_json(folder / "leaks.json", leaks)
    write_json(folder / "curves.json", {"heard": _shown(recipe, table, clips, heard)})
    write_json(folder / "mistakes.json", [])
    predictions = {"id": table["id"], "truth": table["label"], "answer": pa.array(heard)}
    pq.write_table(pa.table(predictions), folder / "predictions.parquet")


def _shown(
    recipe: Recipe, table: pa.Table, clips: list[bytes], heard: list[str]
) -> list[dict[str, Any]]:
    """Return the clips that were heard worst, and a few others as they come."""
    from danlu.evaluate.transcribe import character_errors, compared

    said: list[str] = table["label"].to_pylist()
    counts = character_errors(said, heard)
    order = np.argsort(-counts.errors / np.maximum(counts.units, 1), kind="stable")
    worst = [row for row in order[:_WORST].tolist() if counts.errors[row]]
    spread = np.linspace(0, len(said) - 1, min(_OTHERS, len(said))).astype(int).tolist()
    return [
        {
            "worst": row in worst,
            "pieces": compared(said[row], heard[row]),
            "errors": int(counts.errors[row]),
            "player": clip_html(clips[row], recipe.audio.rate),
            "file": table["file"][row].as_py(),
        }
        for row in dict.fromkeys([*worst, *spread])
    ]

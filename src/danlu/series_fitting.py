"""What is learnt from series: quantiles of what lies ahead, or to rebuild what stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from danlu.artifact import read_json
from danlu.data import kinds
from danlu.data.load import DocumentLoader, in_order
from danlu.data.series import Panel
from danlu.data.series_encoder import SeriesEncoder
from danlu.data.series_prepare import anomalies, period_of
from danlu.data.split import VALIDATION
from danlu.data.windows import SeriesDocuments
from danlu.evaluate.anomaly import choose_threshold
from danlu.evaluate.outlook import scores
from danlu.lesson import Judge, Lesson
from danlu.model import heads
from danlu.recipe import Recipe
from danlu.stages import VALIDATION_BATCH, backbone_config, device, take_over
from danlu.train import objective as objectives


def finetune(recipe: Recipe, paths: dict[str, Path]) -> Lesson:
    """Learn to foretell, or to rebuild."""
    settings, task = recipe.finetune, recipe.data.kind
    assert task in ("forecast", "detect")
    tokens, kind = paths["tokenizer"], kinds.of("series")
    encoder, spec = SeriesEncoder.load(tokens), kind.spec(tokens)
    documents = {name: SeriesDocuments.load(tokens, name) for name in ("train", VALIDATION)}
    shape = _shape(recipe, encoder)
    torch.manual_seed(recipe.seed)
    config = backbone_config(recipe, spec, settings.layer_dropout)
    initialiser = recipe.model.initialiser
    model = heads.build(
        config, task, dropout=settings.dropout, initialiser=initialiser, shape=shape
    )
    take_over(model, paths, "none")
    if task == "forecast":
        objective = objectives.pinball(shape["levels"])
    else:
        loss = settings.loss or "absolute"
        objective = objectives.rebuilding(shape["patch"], shape["variables"], loss, settings.trim)
    labels = {name: _targets(part, task) for name, part in documents.items()}
    loader = DocumentLoader(
        documents=documents["train"],
        labels=labels["train"],
        batch_size=settings.batch_size or 1,
        accumulate=settings.accumulate or 1,
        seed=recipe.seed,
        spec=spec,
        mask_probability=settings.mask_probability,
    )
    held_out = list(in_order(documents[VALIDATION], VALIDATION_BATCH, labels[VALIDATION]))
    judge = Judge(objective, held_out, by_accuracy=False, precision=settings.precision)

    def finish(trained: heads.Model) -> dict[str, Any]:
        if task == "forecast":
            return {"shape": shape}
        return {"shape": shape} | _threshold(recipe, paths["data"], documents, trained, shape)

    return Lesson(model, objective, loader, judge, task, [], finish=finish)


def _shape(recipe: Recipe, encoder: SeriesEncoder) -> dict[str, Any]:
    """Return what the head is built with, see :mod:`danlu.model.outlook`."""
    own = encoder.settings
    if recipe.data.kind == "forecast":
        return {"horizon": own.horizon, "patch": own.patch, "levels": list(own.quantiles)}
    measured = own.patch * len(own.variables)
    bottleneck = recipe.model.bottleneck or max(1, measured // 4)
    return {"bottleneck": bottleneck, "patch": own.patch, "variables": len(own.variables)}


def _targets(documents: SeriesDocuments, task: str) -> torch.Tensor:
    """Return what is to be said of each window; one that is rebuilt is its own target."""
    rows = np.arange(len(documents))
    if task == "detect":
        return torch.from_numpy(rows)
    return torch.from_numpy(documents.targets(rows).astype(np.float32))


def _threshold(
    recipe: Recipe,
    data: Path,
    documents: dict[str, SeriesDocuments],
    model: heads.Model,
    shape: dict[str, Any],
) -> dict[str, Any]:
    """Choose, on the validation period, from which score on a step is flagged."""
    panel, bounds = Panel.load(data), read_json(data / "report.json")["cuts"]
    score = scores(model, documents[VALIDATION], shape, recipe.evaluate.batch_size, device())
    strange, labelled = anomalies(recipe, panel)
    here = (period_of(panel.time_L, bounds) == VALIDATION) & labelled
    found = choose_threshold(score[here], strange[here])
    return {"threshold": found.value, "chosen_by": found.chosen_by}

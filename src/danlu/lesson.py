"""All that a training stage starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from danlu.batch import Batch
from danlu.data.load import DocumentLoader, PackedLoader
from danlu.model import heads
from danlu.train import objective as objectives
from danlu.train.machine import autocast


@dataclass(frozen=True, slots=True)
class Judge:
    """What says how good a model is on the validation split."""

    objective: objectives.Objective
    held_out: list[Batch]
    by_accuracy: bool
    precision: str

    def __call__(self, model: heads.Model, where: torch.device) -> dict[str, float]:
        # As training computes: what is reported in the end is measured again in float32.
        with autocast(self.precision, where):
            found = objectives.figures(model, self.objective, self.held_out, where)
        return found | {"badness": -found["accuracy"] if self.by_accuracy else found["loss"]}


@dataclass(frozen=True, slots=True)
class Lesson:
    """All that a training stage starts from.

    Attributes
    ----------
    model : Model
        With fresh or pre-trained weights.
    objective : Objective
    loader : DocumentLoader or PackedLoader
    judge : callable
        Such as a `Judge`: given the model and its device, figures of the validation split.
    kind : str
        The head's objective.
    classes : list of str
    scale : dict, optional
        Mean and standard deviation of a regressor's values.
    finish : callable, optional
        Given the trained model, returns what else its configuration keeps.
    said : list of str
        What a person should know of the weights that it begins with.
    """

    model: heads.Model
    objective: objectives.Objective
    loader: DocumentLoader | PackedLoader
    judge: Callable[[heads.Model, torch.device], dict[str, float]]
    kind: str
    classes: list[str]
    scale: dict[str, float] | None = None
    finish: Callable[[heads.Model], dict[str, Any]] | None = None
    said: list[str] = field(default_factory=list)

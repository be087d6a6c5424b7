"""What is learnt from interactions: which item comes next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from danlu.data.events import EventsDocuments, EventsEncoder
from danlu.data.load import DocumentLoader
from danlu.data.modality import NUM_SPECIAL
from danlu.data.split import TRAIN, VALIDATION
from danlu.evaluate import recommend
from danlu.evaluate.ranking import Questions, rank
from danlu.events_stages import BATCH, questions
from danlu.lesson import Lesson
from danlu.model import heads
from danlu.recipe import Recipe
from danlu.stages import backbone_config, take_over
from danlu.train.machine import autocast
from danlu.train.next_item import next_item
from danlu.train.sampled import Proposal


@dataclass(frozen=True, slots=True)
class Judge:
    """What says how well a recommender ranks the catalogue for the validation split."""

    documents: EventsDocuments
    questions: Questions
    k: int
    exclude_seen: bool
    by_ndcg: bool
    precision: str

    def __call__(self, model: heads.Model, where: torch.device) -> dict[str, float]:
        scorer = recommend.scorer(model, self.documents, BATCH, where)
        total, count = 0.0, 0

        def overheard(rows: NDArray[np.int64]) -> recommend.Scored:
            nonlocal total, count
            found = scorer(rows)
            sum_, n = recommend.surprise(found, self.questions, rows, self.exclude_seen)
            total, count = total + sum_, count + n
            return found

        with autocast(self.precision, where):
            found = rank(overheard, self.questions, self.k, exclude_seen=self.exclude_seen)
        loss, ndcg = total / (count or 1), float(found.values[f"ndcg@{self.k}"].mean())
        badness = -ndcg if self.by_ndcg else loss
        return {"loss": loss, "n": count, f"ndcg@{self.k}": ndcg, "badness": badness}


def finetune(recipe: Recipe, paths: dict[str, Path]) -> Lesson:
    """Learn to foretell each item of the training histories from those before it."""
    settings, own = recipe.finetune, recipe.events
    encoder = EventsEncoder.load(paths["tokenizer"])
    spec = encoder.spec
    torch.manual_seed(recipe.seed)
    config = backbone_config(recipe, spec, settings.layer_dropout)
    model = heads.build(
        config, "rank", dropout=settings.dropout, initialiser=recipe.model.initialiser
    )
    count_I = torch.tensor(encoder.count_I, dtype=torch.float64)
    # An untrained model says how popular each item is.
    assert isinstance(model.head, heads.TokenHead)
    assert model.head.bias is not None
    model.head.bias.data[NUM_SPECIAL:] = (count_I / count_I.sum()).log().float()
    take_over(model, paths, "none")
    proposal = Proposal.of(np.append(np.zeros(NUM_SPECIAL), np.power(encoder.count_I, 0.75)))
    objective = next_item(NUM_SPECIAL, own.exclude_seen, own.negatives, proposal)
    documents = {n: EventsDocuments.load(paths["tokenizer"], n) for n in (TRAIN, VALIDATION)}
    loader = DocumentLoader(
        documents=documents[TRAIN],
        labels=None,
        batch_size=settings.batch_size or 1,
        accumulate=settings.accumulate or 1,
        seed=recipe.seed,
        spec=spec,
        objective="causal",
    )
    judge = Judge(
        documents[VALIDATION],
        questions(paths["data"], encoder, VALIDATION).matrices,
        own.k,
        own.exclude_seen,
        settings.choose_by == "ndcg",
        settings.precision,
    )
    kept: dict[str, Any] = own.model_dump(include={"user", "item", "time", "k", "exclude_seen"})
    return Lesson(model, objective, loader, judge, "rank", [], finish=lambda _: {"events": kept})

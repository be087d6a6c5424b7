"""The stages of interactions that stand beside and behind training: baselines, measuring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from danlu.artifact import read_json, write_json
from danlu.data.clock import show
from danlu.data.events import EventsEncoder
from danlu.data.interactions import Cases, load, training_histories
from danlu.data.split import NAMES, TEST, TRAIN, VALIDATION
from danlu.evaluate.ranking import Questions, Ranked, differences, metrics, rank
from danlu.log import Metric
from danlu.recipe import Recipe

BATCH = 256  # histories at once; no score depends on it
_EXAMPLES, _LAST = 6, 8  # test cases that the report shows, and how many items of each history
_LENGTHS = (("no history", 0, 0), ("1–9 items known", 1, 9), ("10–49 items known", 10, 49),
            ("50 items known and more", 50, np.inf))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What a split asks.

    Attributes
    ----------
    cases : Cases
    histories, truths : list of lists of str
        Names of items.
    places : list of lists of int
        Of the histories' known items in the catalogue.
    matrices : Questions
    """

    cases: Cases
    histories: list[list[str]]
    truths: list[list[str]]
    places: list[list[int]]
    matrices: Questions


def questions(data: Path, encoder: EventsEncoder, name: str) -> Asked:
    """Return what a split of a data artifact asks."""
    events, part = load(data)
    cases = Cases.of(events, part, name)
    histories, truths = cases.histories(events), cases.truth(events)
    known, _ = encoder.places(histories)
    wanted, outside = encoder.places(truths)
    matrices = Questions.of(cases.user_C, known, wanted, outside, len(encoder.items))
    return Asked(cases, histories, truths, known, matrices)


def baseline(recipe: Recipe, paths: dict[str, Path], folder: Path) -> None:
    """Choose the settings of recommenders without a network, and ask them what the test asks."""
    from danlu.evaluate.neighbors import Histories, judge, tune

    encoder, own = EventsEncoder.load(paths["tokenizer"]), recipe.events
    events, part = load(paths["data"])
    number = len(encoder.items)
    known = np.isin(events.items, encoder.items)[events.item_N] & (part == TRAIN)
    places, _ = encoder.places(training_histories(events, part))
    training = Histories.of(places, number, events.time_N[known])
    asked = {name: questions(paths["data"], encoder, name) for name in (VALIDATION, TEST)}
    lists = {name: Histories.of(one.places, number) for name, one in asked.items()}
    how: dict[str, Any] = {"exclude_seen": own.exclude_seen}
    tuned = tune(training, lists[VALIDATION], asked[VALIDATION].matrices, own.k, **how)
    for ranked in judge(tuned, lists[TEST], asked[TEST].matrices, own.k, **how):
        ranked.save(folder)
    settings = {}
    for one in tuned:
        chosen = {f"validation ndcg@{own.k}": f"{one.score:.4f}", "settings tried": one.tried}
        kept = {key: value for key, value in one.settings.items() if value is not None}
        settings[one.name] = kept | chosen
    write_json(folder / "report.json", settings)


def evaluate(recipe: Recipe, paths: dict[str, Path], folder: Path, where: torch.device) -> None:
    """Rank the whole catalogue for every case of the test; compare with the baselines."""
    from danlu.evaluate import recommend
    from danlu.serve import events as service
    from danlu.serve.engine import Engine

    own, resamples, seed = recipe.events, recipe.evaluate.bootstrap, recipe.seed
    engine = Engine.load(paths["finetune"], paths["tokenizer"], where)
    encoder = EventsEncoder.load(paths["tokenizer"])
    asked = questions(paths["data"], encoder, TEST)
    documents = encoder.load_documents(paths["tokenizer"], TEST)
    scorer = recommend.scorer(engine.model, documents, BATCH, where)
    how: dict[str, Any] = {"exclude_seen": own.exclude_seen}
    ours = rank(scorer, asked.matrices, own.k, model=recipe.name, **how)
    others = [
        Ranked.load(paths["baseline"], name)
        for name in read_json(paths["baseline"] / "report.json")
    ]
    rows = [row for one in (ours, *others) for row in metrics(one, resamples, seed)]
    rows += [row for other in others for row in differences(ours, other, resamples, seed)]
    rows += _counts(ours) + _parts(ours, asked, paths["data"], resamples, seed)
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    answers = service.predict(engine, asked.histories, BATCH)
    write_json(folder / "leaks.json", _leaks(paths["data"]))
    write_json(folder / "curves.json", {"examples": _examples(asked, answers)})
    write_json(folder / "mistakes.json", [])
    pq.write_table(_predictions(paths["data"], asked, answers), folder / "predictions.parquet")


def _counts(ranked: Ranked) -> list[Metric]:
    """Return what was asked, and how much of it no recommender here could find."""
    found = ranked.counts
    texts = {"cases": "cases", "targets": "items to be found",
             "outside": "items to be found outside the catalogue",
             "seen": "items to be found that were seen before"}  # fmt: skip
    return [
        Metric(
            "evaluate", ranked.model, TEST, text, found[key], None, None, found["cases"],
            "cases" if key == "cases" else "interactions",
        )
        for key, text in texts.items()
    ]  # fmt: skip


def _parts(ranked: Ranked, asked: Asked, data: Path, resamples: int, seed: int) -> list[Metric]:
    """Return the headline's figure for users of each kind, and histories of each length."""
    events, part = load(data)
    size_C = np.asarray(list(map(len, asked.places)))
    trained_C = np.isin(asked.cases.user_C, events.user_N[part == TRAIN])
    groups = {name: (least <= size_C) & (size_C <= most) for name, least, most in _LENGTHS}
    groups |= {"users of the training period": trained_C, "other users": ~trained_C}
    rows: list[Metric] = []
    for name, here in groups.items():
        found = ranked.within(np.flatnonzero(here), f"{TEST}[{name}]")
        if len(found.user_U):
            own = metrics(found, resamples, seed)
            rows += [row for row in own if row.metric == f"ndcg@{ranked.k}"]
    return rows


def _leaks(data: Path) -> dict[str, int]:
    """Count the tested interactions that are no later than all that was learnt or chosen from."""
    events, part = load(data)
    time = {name: events.time_N[part == name] for name in NAMES}
    return {name: int((time[TEST] <= time[name].max()).sum()) for name in (TRAIN, VALIDATION)}


def _examples(asked: Asked, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a few cases of different users, as the report shows them."""
    first = np.unique(asked.cases.user_C, return_index=True)[1]
    middle = (first + np.append(first[1:], len(asked.cases))) // 2
    chosen = middle[np.unique(np.linspace(0, len(middle) - 1, _EXAMPLES).astype(int))]
    return [
        {
            "earlier": max(0, len(asked.histories[case]) - _LAST),
            "history": asked.histories[case][-_LAST:],
            "items": answers[case]["items"],
            "truth": asked.truths[case],
        }
        for case in chosen.tolist()
    ]


def _predictions(data: Path, asked: Asked, answers: list[dict[str, Any]]) -> pa.Table:
    events, _ = load(data)
    times = events.time_N[asked.cases.cut_C].tolist()
    return pa.table({
        "user": events.users[asked.cases.user_C].tolist(),
        "time": [show(time, events.dates) for time in times],
        "history": asked.histories,
        "truth": asked.truths,
        "items": [[one["item"] for one in answer["items"]] for answer in answers],
        "probabilities": [[one["probability"] for one in a["items"]] for a in answers],
    })  # fmt: skip

"""Answers about histories: what to recommend next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from danlu.data.events import EventsDocuments
from danlu.data.events_kind import EventsReader
from danlu.data.interactions import gather
from danlu.data.modality import NUM_SPECIAL
from danlu.errors import DataError
from danlu.evaluate import recommend
from danlu.evaluate.ranking import top

if TYPE_CHECKING:
    from danlu.serve.engine import Engine

Row = dict[str, Any]
_CELLS = 1 << 24  # scores at hand at once


def predict(engine: Engine, records: Sequence[Any], batch_size: int = 64) -> list[Row]:
    """Answer about each of several histories.

    Returns
    -------
    list of dict
        The best ``items``, each an ``item`` and the ``probability`` that it comes next (among
        all that may be recommended); how many items of the history are ``unknown`` to the model;
        and how many lie further back than it looks (``cut``).
    """
    reader = engine.reader
    assert isinstance(reader, EventsReader)
    documents, notes = reader.read([reader.clean(record) for record in records])
    score = recommend.scorer(engine.model, documents, batch_size, engine.device)
    settings, names = engine.config["events"], reader.encoder.items
    found: list[Row] = []
    block = max(1, _CELLS // len(names))
    for start in range(0, len(documents), block):
        rows = np.arange(start, min(start + block, len(documents)))
        logit = score(rows).astype(np.float64)
        if settings["exclude_seen"]:
            _exclude(logit, documents, rows)
        best = top(logit, settings["k"])
        odds = np.exp(logit - logit.max(1, keepdims=True))
        share = odds / odds.sum(1, keepdims=True)
        for row, line in enumerate(best):
            items = [
                {"item": names[place], "probability": float(share[row, place])}
                for place in line.tolist()
                if np.isfinite(logit[row, place])
            ]
            found.append({"items": items, **notes[start + row]})
    return found


def _exclude(logit: NDArray[np.float64], documents: EventsDocuments, rows: Any) -> None:
    """Make what a history holds no candidate, however far back; unless that is everything."""
    for row, (begin, end) in enumerate(documents.history_N2[rows].tolist()):
        seen = np.unique(documents.ids[begin:end]) - NUM_SPECIAL
        if len(seen) < logit.shape[1]:
            logit[row, seen] = -np.inf


def recommended_rows(
    engine: Engine, rows: Sequence[Row], where: str
) -> tuple[list[Row], dict[str, int]]:
    """Return a row for each recommendation to each user of a long table, and counts.

    Raises
    ------
    DataError
        If it lacks a column, or nothing in it can be read.
    """
    own = engine.config["events"]
    names = (own["user"], own["item"], own["time"])
    if missing := [name for name in names if not any(name in row for row in rows)]:
        raise DataError(f"no column {', '.join(map(repr, missing))}", where=where)
    events, counts, _ = gather(*([row.get(name) for row in rows] for name in names))
    begins = np.flatnonzero(np.diff(events.user_N, prepend=-1)).tolist()
    ends = [*begins[1:], len(events)]
    histories = [events.names(*bounds) for bounds in zip(begins, ends, strict=True)]
    answers = predict(engine, histories)
    out = [
        {own["user"]: str(user), "place": place, own["item"]: one["item"],
         "probability": one["probability"]}
        for user, answer in zip(events.users, answers, strict=True)
        for place, one in enumerate(answer["items"], 1)
    ]  # fmt: skip
    told = {"users": len(histories), "unknown": sum(answer["unknown"] for answer in answers)}
    return out, told | {"set aside": counts["rows"] - counts["kept"]}

"""Answers about series: forecasts in the user's units and times, scores and alarms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.data.clock import show
from danlu.data.series import read
from danlu.data.series_kind import SeriesReader
from danlu.errors import DataError
from danlu.evaluate import outlook
from danlu.evaluate.anomaly import alarms

if TYPE_CHECKING:
    from danlu.serve.engine import Engine

Row = dict[str, Any]


def predict(engine: Engine, records: Sequence[Any], batch_size: int = 64) -> list[Row]:
    """Answer about each of several long tables of one series.

    Returns
    -------
    list of dict
        Of a forecast the ``target``, the ``times`` of the horizon, the ``levels`` and the
        ``quantiles`` of each time, and how many measurements the model looked back on were
        ``missing``. Of a detector the ``times`` and ``scores`` of the steps (None where nothing
        was measured), the ``threshold`` from which on a step is flagged, the ``rows`` that the
        steps were read from (None where there was none), and the ``alarms``.
    """
    reader = engine.reader
    assert isinstance(reader, SeriesReader)
    tables = [reader.clean(record) for record in records]
    if engine.kind == "detect":
        return [_detect(engine, reader, table, batch_size) for table in tables]
    documents, notes = reader.read(tables)
    found = outlook.quantiles(engine.model, documents, batch_size, engine.device)
    times, dates = documents.times(np.arange(len(documents))), reader.encoder.step.unit != ""
    return [
        {
            "target": reader.encoder.settings.target,
            "times": [show(float(time), dates) for time in times[row]],
            "levels": list(reader.encoder.settings.quantiles),
            "quantiles": found[row].tolist(),
            **note,
        }
        for row, note in enumerate(notes)
    ]


def _detect(engine: Engine, reader: SeriesReader, table: Row, batch_size: int) -> Row:
    encoder = reader.encoder
    panel, _ = read(table, encoder.settings, step=encoder.step)
    if len(panel) != 1:
        raise DataError("a record holds several series")
    documents, _ = encoder.windows(panel)
    if not len(documents):
        raise DataError(f"the table is shorter than a window of {encoder.settings.context} steps")
    config = engine.config
    score = outlook.scores(engine.model, documents, config["shape"], batch_size, engine.device)
    threshold = float(config["threshold"])

    def at(time: float) -> str | float:
        return show(time, panel.dates)

    found = alarms(score, threshold, panel.time_L)
    return {
        "times": [at(float(time)) for time in panel.time_L],
        "scores": [None if np.isnan(value) else float(value) for value in score],
        "threshold": threshold,
        "rows": [None if row < 0 else int(row) for row in panel.row_L],
        "alarms": [
            one.to_dict() | {"start": at(one.start), "end": at(one.end), "at": at(one.at)}
            for one in found
        ],
    }


def by_series(rows: Sequence[Row], column: str | None) -> dict[str, list[int]]:
    """Return the numbers of the rows of each series, in the order in which they first occur."""
    found: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        found.setdefault("" if column is None else str(row.get(column)), []).append(number)
    return found


def foretold_rows(engine: Engine, rows: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """Return a row for each step of each series' horizon, and how much was missing."""
    settings = _settings(engine)
    groups = by_series(rows, settings.series)
    answers = predict(engine, [[rows[number] for number in of] for of in groups.values()])
    out: list[Row] = []
    for name, answer in zip(groups, answers, strict=True):
        first = {} if settings.series is None else {settings.series: name}
        for time, values in zip(answer["times"], answer["quantiles"], strict=True):
            levels = zip(answer["levels"], values, strict=True)
            each = {f"{answer['target']}_{level:g}": value for level, value in levels}
            out.append({**first, settings.time: time, **each})
    return out, {"missing": sum(answer["missing"] for answer in answers)}


def scored_rows(engine: Engine, rows: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """Return what is added to each row: its score, and whether it is part of an alarm."""
    out: list[Row] = [{"predicted_score": None, "predicted_alarm": None} for _ in rows]
    count = 0
    for numbers in by_series(rows, _settings(engine).series).values():
        (answer,) = predict(engine, [[rows[number] for number in numbers]])
        count += len(answer["alarms"])
        for row, score in zip(answer["rows"], answer["scores"], strict=True):
            if row is not None and score is not None:
                flagged = score >= answer["threshold"]
                out[numbers[row]] = {"predicted_score": score, "predicted_alarm": flagged}
    unscored = sum(row["predicted_score"] is None for row in out)
    return out, {"alarms": count, "unscored": unscored}


def _settings(engine: Engine) -> Any:
    assert isinstance(engine.reader, SeriesReader)
    return engine.reader.encoder.settings

"""The stages of series that stand beside and behind training: baselines, measuring."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from danlu.artifact import read_json, write_json
from danlu.data.clock import show
from danlu.data.series import Panel
from danlu.data.series_prepare import anomalies, period_of
from danlu.data.split import NAMES, TEST, TRAIN, VALIDATION
from danlu.data.windows import SeriesDocuments
from danlu.errors import DataError
from danlu.log import Metric
from danlu.recipe import Recipe

Floats = NDArray[np.float64]
_BATCH = 256  # windows at once; no score depends on it
_FANS = 5  # test windows that the report draws, and the worst one


def baseline(recipe: Recipe, paths: dict[str, Path], folder: Path) -> None:
    """Fit the classical models on the same periods, and answer about the same windows."""
    panel, bounds = Panel.load(paths["data"]), read_json(paths["data"] / "report.json")["cuts"]
    windows = {name: SeriesDocuments.load(paths["tokenizer"], name) for name in NAMES}
    make = _forecasts if recipe.data.task == "forecast" else _forest
    answers, settings = make(recipe, panel, bounds, windows)
    for name, answer in answers.items():
        np.save(folder / f"{name}.npy", answer)
    write_json(folder / "report.json", settings)


def _forecasts(
    recipe: Recipe, panel: Panel, bounds: list[float], windows: dict[str, SeriesDocuments]
) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Say that all will be as it was, and smooth exponentially, with each season given."""
    from danlu.evaluate.forecast_baseline import exponential_smoothing, seasonal_naive

    own, test = recipe.series, windows[TEST]
    parts = _parts(panel, test, bounds[0])
    size = (len(test), own.horizon, len(own.quantiles))
    answers: dict[str, Floats] = {}
    settings: dict[str, Any] = {}
    for season, ending in ((own.season, ""), (own.long_season, "-long")):
        if not season:
            continue
        shape = (own.horizon, season, own.quantiles)
        naive, smooth = np.empty(size), np.empty(size)
        for rows, series, end, origins in parts:
            naive[rows] = seasonal_naive(series, end, origins, *shape)
        answers[f"seasonal-naive{ending}"] = naive
        settings[f"seasonal-naive{ending}"] = {"season": season}
        forms = set()
        try:
            for rows, series, end, origins in parts:
                smooth[rows], chosen = exponential_smoothing(series, end, origins, *shape)
                forms.add(str(chosen["form"]))
        except DataError as error:  # statsmodels is an extra; that it is not there is told
            settings[f"ets{ending}"] = {"left_out": error.what}
            continue
        answers[f"ets{ending}"] = smooth
        settings[f"ets{ending}"] = {"form": "; ".join(sorted(forms)), "season": season}
    return answers, settings


def _parts(
    panel: Panel, windows: SeriesDocuments, end: float
) -> list[tuple[NDArray[np.int64], Floats, int, NDArray[np.int64]]]:
    """Return for each series its windows, its numbers, where training ends, and the origins."""
    found = []
    for number in range(len(panel)):
        low, high = int(panel.offsets[number]), int(panel.offsets[number + 1])
        rows = np.flatnonzero(windows.series == number)
        if len(rows):
            trained = int(np.searchsorted(panel.time_L[low:high], end))
            series = panel.values_LV[low:high, windows.target]
            found.append((rows, series, trained, windows.origins(rows) - low))
    return found


def _forest(
    recipe: Recipe, panel: Panel, bounds: list[float], windows: dict[str, SeriesDocuments]
) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Score windows with an isolation forest; its threshold is chosen as ours is."""
    from danlu.evaluate.anomaly import choose_threshold, isolation_forest, spread

    rows = {name: part.matrix(np.arange(len(part))) for name, part in windows.items()}
    found = isolation_forest(rows[TRAIN], [rows[VALIDATION], rows[TEST]], recipe.seed)
    validation, test = (
        spread(
            np.repeat(np.asarray(score)[:, None], recipe.series.context, axis=1),
            windows[name].start, len(panel.time_L),
        )
        for name, score in zip((VALIDATION, TEST), found, strict=True)
    )  # fmt: skip
    strange, labelled = anomalies(recipe, panel)
    here = (period_of(panel.time_L, (bounds[0], bounds[1])) == VALIDATION) & labelled
    threshold = choose_threshold(validation[here], strange[here])
    settings = {"trees": 200, "threshold": threshold.value, "chosen_by": threshold.chosen_by}
    return {"isolation-forest": test}, {"isolation-forest": settings}


def evaluate(recipe: Recipe, paths: dict[str, Path], folder: Path, where: torch.device) -> None:
    """Measure the model and the baselines on the test period."""
    from danlu.serve.engine import Engine

    engine = Engine.load(paths["finetune"], paths["tokenizer"], where)
    windows = SeriesDocuments.load(paths["tokenizer"], TEST)
    panel, bounds = Panel.load(paths["data"]), read_json(paths["data"] / "report.json")["cuts"]
    settings = read_json(paths["baseline"] / "report.json")
    others = {
        name: np.load(path)
        for name in settings
        if (path := paths["baseline"] / f"{name}.npy").is_file()
    }
    measure = _measure_forecast if recipe.data.task == "forecast" else _measure_detect
    rows, curves, predictions = measure(recipe, engine, windows, panel, bounds, others, settings)
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    write_json(folder / "leaks.json", _leaks(recipe, paths["tokenizer"], windows))
    write_json(folder / "curves.json", curves)
    write_json(folder / "mistakes.json", [])
    pq.write_table(predictions, folder / "predictions.parquet")


def _leaks(recipe: Recipe, tokens: Path, test: SeriesDocuments) -> dict[str, int]:
    """Count the steps that the test judges and that training or validation learnt from."""

    def judged(documents: SeriesDocuments) -> NDArray[np.int64]:
        forecast = recipe.data.task == "forecast"
        begin = documents.start + (documents.length if forecast else 0)
        width = documents.horizon if forecast else int(documents.length[0])
        found = np.zeros(len(documents.time) + 1, np.int64)
        np.add.at(found, begin, 1)
        np.add.at(found, begin + width, -1)
        return np.flatnonzero(np.cumsum(found)[:-1])

    own = judged(test)
    return {
        name: len(np.intersect1d(own, judged(SeriesDocuments.load(tokens, name))))
        for name in NAMES[:2]
    }


def _paired(
    rows: list[Metric], drawn: dict[str, dict[str, Any]], model: str, others: list[str], count: int
) -> list[Metric]:
    """Return the paired differences; the resamples are blocks, and the rows say so."""
    from danlu.evaluate.score import differences

    how = {(row.model, row.metric): row.interval for row in rows}
    return [
        replace(row, interval=f"paired {how[model, row.metric.split(' - ')[0]]}")
        for row in differences(rows, drawn, model, others, count)
    ]


def _measure_forecast(
    recipe: Recipe, engine: Any, windows: SeriesDocuments, panel: Panel, bounds: list[float],
    others: dict[str, Floats], settings: dict[str, Any],  # noqa: ARG001 - one signature for both
) -> tuple[list[Metric], dict[str, Any], pa.Table]:  # fmt: skip
    from danlu.evaluate import forecast as metrics
    from danlu.evaluate.outlook import quantiles

    own, rows = recipe.series, np.arange(len(windows))
    truth = windows.targets(rows, scaled=False)
    training = [
        panel.values_LV[
            (panel.series_of == number) & (panel.time_L < bounds[0]), windows.target
        ]
        for number in range(len(panel))
    ]  # fmt: skip
    scales = {
        number: metrics.season_scale(training[number], own.season)
        for number in np.unique(windows.series).tolist()
    }
    scale = np.asarray([scales[number] for number in windows.series.tolist()])
    answer = quantiles(engine.model, windows, _BATCH, engine.device)
    said = {recipe.name: answer, **others}
    forecasts = [
        metrics.Forecast(name, TEST, truth, found, own.quantiles, scale)
        for name, found in said.items()
    ]
    block = metrics.block_length(own.horizon, own.stride, len(windows))
    bootstrap = metrics.BlockBootstrap(
        np.asarray(windows.series), windows.origins(rows), block,
        recipe.evaluate.bootstrap, recipe.seed,
    )  # fmt: skip
    found, drawn = metrics.measure(forecasts, bootstrap)
    found += _paired(found, drawn, recipe.name, list(others), bootstrap.resamples)
    worst = int(np.nanargmax(metrics.window_metrics(forecasts[0])["mase"]))
    curves = {
        "models": {one.model: _curve(one) for one in forecasts},
        "fans": _fans(windows, answer, own.quantiles, panel.dates, worst),
    }
    origins = windows.times(rows)[:, 0]
    predictions = pa.table({
        "series": [panel.names[number] for number in windows.series.tolist()],
        "origin": [show(float(time), panel.dates) for time in origins],
        "answer": pa.array(answer.tolist()),
    })  # fmt: skip
    return found, curves, predictions


def _curve(one: Any) -> dict[str, Any]:
    """Return the error at each step ahead, and how often the truth lies below each quantile."""
    there = ~np.isnan(one.truth_NH)
    error = np.where(there, np.abs(one.truth_NH - one.point), 0.0) / one.scale_N[:, None]
    below = (one.truth_NH[..., None] <= one.answer_NHQ)[there]
    steps = error.sum(0) / np.maximum(there.sum(0), 1)
    return {
        "by_step": steps.tolist(),
        "reliability": [list(pair) for pair in zip(one.levels, below.mean(0), strict=True)],
    }


def _fans(
    windows: SeriesDocuments, answer: Floats, levels: tuple[float, ...], dates: bool, worst: int
) -> list[dict[str, Any]]:
    """Return a few test windows, and the worst one, as they are drawn."""
    from danlu.evaluate.forecast import intervals

    chosen = np.unique(np.linspace(0, len(windows) - 1, _FANS).astype(int)).tolist()
    found = []
    for row, title in [*((row, "") for row in chosen), (worst, "the worst window")]:
        origin = int(windows.origins(np.asarray([row]))[0])
        begin = max(int(windows.start[row]), origin - 2 * windows.horizon)
        end = origin + windows.horizon
        values = windows.values[begin:end, windows.target]
        times = [show(float(time), dates) for time in windows.time[begin:end]]
        bands = {
            str(percent): [answer[row, :, low].tolist(), answer[row, :, high].tolist()]
            for percent, low, high in intervals(levels)
        }
        found.append({
            "title": title or f"from {times[origin - begin]}",
            "time": times,
            "truth": [None if np.isnan(value) else float(value) for value in values],
            "past": origin - begin,
            "median": answer[row, :, levels.index(0.5)].tolist(),
            "bands": bands,
        })  # fmt: skip
    return found


def _measure_detect(
    recipe: Recipe, engine: Any, windows: SeriesDocuments, panel: Panel, bounds: list[float],
    others: dict[str, Floats], settings: dict[str, Any],
) -> tuple[list[Metric], dict[str, Any], pa.Table]:  # fmt: skip
    from danlu.evaluate import anomaly
    from danlu.evaluate.forecast import BlockBootstrap, block_length
    from danlu.evaluate.outlook import scores

    score = scores(engine.model, windows, engine.config["shape"], _BATCH, engine.device)
    strange, labelled = anomalies(recipe, panel)
    here = (period_of(panel.time_L, (bounds[0], bounds[1])) == TEST) & labelled
    steps = np.flatnonzero(here)
    thresholds = {recipe.name: float(engine.config["threshold"])}
    thresholds |= {name: float(settings[name]["threshold"]) for name in others}
    said = {recipe.name: score, **others}
    detected = [
        anomaly.Detected(name, TEST, strange[steps], found[steps], thresholds[name])
        for name, found in said.items()
    ]
    block = block_length(recipe.series.context, 1, len(steps))
    bootstrap = BlockBootstrap(
        panel.series_of[steps], steps, block, recipe.evaluate.bootstrap, recipe.seed
    )
    rows, drawn = anomaly.measure(detected, bootstrap)
    rows += _paired(rows, drawn, recipe.name, list(others), bootstrap.resamples)
    unscored = int(np.isnan(score[steps]).sum())
    count = Metric(
        "evaluate", recipe.name, TEST, "steps without a score", unscored, None, None,
        len(steps), "steps",
    )  # fmt: skip
    curves = {
        "threshold": thresholds[recipe.name],
        "chosen_by": engine.config["chosen_by"],
        "score": _thinned(score[steps], strange[steps], panel.time_L[steps], panel.dates),
        "alarms": _alarms(panel, score, np.isin(np.arange(len(score)), steps), thresholds, recipe),
    }
    predictions = pa.table({
        "row": panel.row_L[steps],
        "time": [show(float(time), panel.dates) for time in panel.time_L[steps]],
        "truth": strange[steps],
        "score": score[steps],
    })  # fmt: skip
    return [*rows, count], curves, predictions


_DRAWN = 1500  # points of the score over time


def _thinned(
    score: Floats, strange: NDArray[np.bool_], time: Floats, dates: bool
) -> list[dict[str, Any]]:
    """Return the highest score of each of many equal parts of the test, and what was true there.

    A mean would hide what is looked for.
    """
    found = []
    for part in np.array_split(np.arange(len(score)), min(_DRAWN, len(score))):
        if np.isnan(score[part]).all():
            continue
        highest = part[int(np.nanargmax(score[part]))]
        found.append({
            "time": show(float(time[highest]), dates), "score": float(score[highest]),
            "anomaly": bool(strange[highest]),
        })  # fmt: skip
    return found


def _alarms(
    panel: Panel, score: Floats, here: NDArray[np.bool_], thresholds: dict[str, float],
    recipe: Recipe,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the alarms of the test with the highest peaks, in the user's times."""
    from danlu.evaluate.anomaly import alarms

    strange, _ = anomalies(recipe, panel)
    found: list[dict[str, Any]] = []
    for number, name in enumerate(panel.names):
        part = slice(int(panel.offsets[number]), int(panel.offsets[number + 1]))
        judged = np.where(here[part], score[part], np.nan)
        time = panel.time_L[part]
        for one in alarms(judged, thresholds[recipe.name], time):
            inside = (time >= one.start) & (time <= one.end)
            found.append({
                "series": name, "steps": one.steps, "peak": one.peak,
                "true": int(strange[part][inside].sum()),
                **{k: show(getattr(one, k), panel.dates) for k in ("start", "end", "at")},
            })  # fmt: skip
    return sorted(found, key=lambda one: -one["peak"])[:20]

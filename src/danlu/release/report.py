"""The report, the card and ``metrics.json``, all from the same records."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from danlu import __version__
from danlu.artifact import Artifact, write_json
from danlu.audit.gate import Verdict, judge
from danlu.log import LOWER_IS_BETTER, Metric, read_events
from danlu.recipe import Recipe, dump
from danlu.release import charts, series_charts, training
from danlu.release.words import day, figure, network, told

HEADLINE = {
    "classify": "accuracy", "multilabel": "f1_macro", "regress": "mae", "pretrain": "loss",
    "forecast": "mase", "detect": "f1", "rank": "ndcg@{k}", "transcribe": "cer",
}  # fmt: skip
_SHOWN = {
    "classify": (
        "accuracy roc_auc pr_auc f1_macro precision_macro recall_macro log_loss brier ece"
    ),
    "multilabel": "accuracy f1_macro f1_micro roc_auc pr_auc log_loss brier",
    "regress": "mae rmse r2 pinball interval_coverage interval_width quantiles_crossed",
    "forecast": "mase smape mae crps pinball coverage_95 coverage_90 coverage_80 coverage_60",
    "detect": ("f1 precision recall event_f1 event_precision event_recall roc_auc pr_auc"),
    "rank": "ndcg@{k} hr@{k} recall@{k} mrr@{k} mrr coverage@{k}",
    "transcribe": "cer wer exact_match substitutions insertions deletions",
    "pretrain": "loss perplexity bits_per_byte masked_token_accuracy next_token_accuracy",
}


def headline_metric(recipe: Recipe) -> str:
    """Return the figure that a report begins with."""
    return HEADLINE[recipe.data.kind].format(k=recipe.events.k)


_HINGE = (
    " It was trained with the hinge loss: its probabilities, and what is measured of them, are a "
    "softmax of margins that stop growing at 1."
)


def _loss_note(recipe: Recipe) -> str:
    """Say what is peculiar to answers of the recipe's loss."""
    if recipe.finetune.loss == "hinge":
        return _HINGE
    levels = recipe.finetune.quantiles or ()
    if not levels:
        return ""
    told = ", ".join(f"{level:g}" for level in levels)
    return (
        f" It foretells the quantiles {told}; its value is the median, and its outer interval is "
        f"to hold {levels[-1] - levels[0]:.0%} of the truths."
    )


_COUNTED = {
    "text": {"bytes_per_token": "bytes/token", "truncated": "documents"},
    "table": dict.fromkeys(("missing", "unreadable", "unknown", "clipped"), "cells")
    | {"truncated": "texts"},
    "image": {},
    "audio": dict.fromkeys(("cut", "silent", "clipped", "unvoiced"), "clips") | {"seconds": "s"},
    "series": dict.fromkeys(("missing", "clipped", "untold"), "measurements")
    | {
        "windows": "windows",
        "empty": "windows",
    },
    "events": dict.fromkeys(("empty", "cut"), "histories")
    | dict.fromkeys(("unknown", "cut_items", "targets", "outside"), "interactions"),
}
"""What the encoder counts in each split, and in which unit."""


def write(recipe: Recipe, artifacts: list[Artifact], folder: Path) -> None:
    """Write ``metrics.json``, ``report.html``, ``card.md`` and ``summary.json``.

    Parameters
    ----------
    recipe : Recipe
        Filled.
    artifacts : list of Artifact
        The run's stages, in order.
    folder : Path
        Receives the files.
    """
    by_name = {artifact.stage: artifact for artifact in artifacts}
    measured = [by_name[name] for name in ("evaluate", "audit") if name in by_name]
    rows = [Metric(**row) for stage in measured for row in stage.json("metrics.json")]
    strongest = _strongest(recipe, rows)
    verdicts = judge(recipe.gate.require, rows, recipe.name, strongest)
    headline, beaten = _headline(recipe, rows, strongest)
    rows = _data_rows(by_name, recipe) + rows + _cost_rows(artifacts, recipe)
    rows += training.rows(training.counts(artifacts), recipe.name)
    if "profile" in by_name:
        rows += _speed_rows(by_name["profile"], recipe)
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    facts = _facts(recipe, by_name, rows, verdicts, strongest)
    facts |= {"headline": headline, "beaten": beaten}
    pages = Environment(
        loader=PackageLoader("danlu.release"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    pages.filters |= {"figure": figure, "count": lambda n: f"{n:,}", "day": day, "told": told}
    html = pages.get_template("report.html").render(**facts, charts=_charts(recipe, by_name, rows))
    (folder / "report.html").write_text(html, encoding="utf-8")
    plain = pages.overlay(autoescape=False)
    card = plain.get_template("card.md").render(**facts)
    (folder / "card.md").write_text(re.sub(r"\n{3,}", "\n\n", card), encoding="utf-8")
    summary = {
        "headline": headline,
        "strongest_baseline": strongest,
        "verdicts": [verdict.to_dict() for verdict in verdicts],
    }
    write_json(folder / "summary.json", summary)


def _origin(recipe: Recipe, start: Artifact | None) -> str:
    """Return what a model that was not drawn at random began from."""
    if start is None:
        return ""
    family, digest = start.json("config.json")["family"], start.manifest["inputs"]["checkpoint"]
    return f", begun from the {family} checkpoint {recipe.model.start} (SHA-256 {digest[:16]}…)"


def _strongest(recipe: Recipe, rows: list[Metric]) -> str | None:
    """Return the baseline that does best on the headline metric."""
    metric = headline_metric(recipe)
    others = [
        row
        for row in rows
        if row.metric == metric and row.model != recipe.name and row.split == "test"
    ]
    if not others:
        return None
    choose = min if metric in LOWER_IS_BETTER else max
    return choose(others, key=lambda row: row.value).model


def _find(rows: list[Metric], model: str, metric: str) -> Metric | None:
    wanted = (model, "test", metric)
    return next((row for row in rows if (row.model, row.split, row.metric) == wanted), None)


def _headline(recipe: Recipe, rows: list[Metric], strongest: str | None) -> tuple[str, bool]:
    """Say in one line what was reached; return it, and whether the baseline was beaten."""
    metric = headline_metric(recipe)
    own = _find(rows, recipe.name, metric)
    if own is None:
        return f"{recipe.name}: {metric} could not be measured.", False
    what = {"cer": "character error rate"}.get(metric, metric.replace("_", " "))
    line = (
        f"{recipe.name}: {what} {figure(own.value, own.unit)} "
        f"[{figure(own.low, own.unit)}, {figure(own.high, own.unit)}] on {own.n:,} "
        f"{_counted(recipe, own)}"
    )
    difference = _find(rows, recipe.name, f"{metric} - {strongest}")
    if difference is None or difference.low is None or difference.high is None:
        return f"{line}; not compared with a baseline.", False
    low, high = difference.low, difference.high
    gap = (
        f"{100 * difference.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
        if own.unit == "share"
        else f"{difference.value:+.3g} [{low:+.3g}, {high:+.3g}]"
    )
    if metric in LOWER_IS_BETTER:
        low, high = -high, -low
    if low > 0:
        return f"{line}; it beats {strongest} by {gap}.", True
    if high < 0:
        return f"{line}; IT IS WORSE THAN {strongest}: {gap}.", False
    return f"{line}; NOT SHOWN TO BEAT {strongest}: {gap}, and the interval holds 0.", False


def _counted(recipe: Recipe, row: Metric) -> str:
    """Return what a figure was measured on so many of."""
    if row.unit.endswith("token"):
        return "tokens"
    words = {"forecast": "test windows", "detect": "test steps", "rank": "test users"}
    return words.get(recipe.data.kind, "test rows")


def _data_rows(by_name: dict[str, Artifact], recipe: Recipe) -> list[Metric]:
    """Return the counts of the data and tokenizer stages as metric rows."""
    report = by_name["data"].json("report.json")

    def count(stage: str, split: str, metric: str, value: float, n: int, unit: str) -> Metric:
        return Metric(stage, recipe.name, split, metric, value, None, None, n, unit)

    read = report["funnel"][0]["rows"]
    rows = [
        count("data", "all", f"rows {s['step']}", s["rows"], read, "rows") for s in report["funnel"]
    ]
    rows += [
        count("data", "rejects", f"rows {item['reason']}", item["rows"], read, "rows")
        for item in report["rejects"]
    ]
    tokens = by_name["tokenizer"].json("report.json")["splits"]
    for split, found in report["splits"].items():
        rows.append(count("data", split, "rows", found["rows"], found["rows"], "rows"))
        of = tokens[split]
        rows += [
            count("tokenizer", split, metric, of[metric], of["documents"], unit)
            for metric, unit in _COUNTED[recipe.data.modality].items()
            if metric in of  # a table need not have texts
        ]
    test = report["splits"]["test"]["rows"]
    for split, found in by_name["evaluate"].json("leaks.json").items():
        also = "rows no later than" if recipe.data.modality == "events" else "rows also in"
        rows.append(count("audit", "test", f"{also} {split}", found, test, "rows"))
    return rows


def _cost_rows(artifacts: list[Artifact], recipe: Recipe) -> list[Metric]:
    """Return what each stage cost when it was made."""
    rows = []
    for artifact in artifacts:
        made = artifact.manifest
        for metric, value, unit in (
            ("seconds", made["seconds"], "seconds"),
            ("peak_memory", made["peak_memory_bytes"], "bytes"),
            ("disk", made["bytes"], "bytes"),
        ):
            rows.append(
                Metric(artifact.stage, recipe.name, "all", metric, value, None, None, 1, unit)
            )
    return rows


def _speed_rows(artifact: Artifact, recipe: Recipe) -> list[Metric]:
    """Return what the profile measured."""
    units = {
        "step_seconds": "seconds", "tokens_per_second": "tokens/s", "flops_per_second": "FLOP/s",
        "peak_flops_per_second": "FLOP/s", "share_of_peak": "share", "peak_memory_bytes": "bytes",
    }  # fmt: skip
    return [
        Metric(
            "profile", recipe.name, stage, metric, found[metric], None, None, found["steps"], unit
        )
        for stage, found in artifact.json("profile.json").items()
        for metric, unit in units.items()
    ]


def _facts(
    recipe: Recipe,
    by_name: dict[str, Artifact],
    rows: list[Metric],
    verdicts: list[Verdict],
    strongest: str | None,
) -> dict[str, Any]:
    """Return everything that the templates show."""
    measured = [row for row in rows if row.stage == "evaluate" and row.split == "test"]
    models = list(dict.fromkeys(row.model for row in measured))
    table = []
    for metric in _SHOWN[recipe.data.kind].format(k=recipe.events.k).split():
        cells = [_find(rows, model, metric) for model in models]
        if any(cells):
            difference = _find(rows, recipe.name, f"{metric} - {strongest}") if strongest else None
            table.append(
                {
                    "metric": metric,
                    "lower": metric in LOWER_IS_BETTER,
                    "cells": cells,
                    "difference": difference,
                }
            )
    per_class = [row for row in measured if row.model == recipe.name and "[" in row.metric]
    tokens = by_name["tokenizer"].json("report.json")
    trained = by_name.get("finetune") or by_name["pretrain"]
    baselines = by_name["baseline"].json("report.json")
    return {
        "recipe": recipe,
        "recipe_toml": dump(recipe),
        "version": __version__,
        "strongest": strongest,
        "verdicts": verdicts,
        "released": all(verdict.passed for verdict in verdicts),
        "data": by_name["data"].json("report.json"),
        "tokens": tokens,
        "samples": tokens.get("samples", []),
        "models": models,
        "table": table,
        "per_class": _by_class(per_class),
        "slices": [
            row for row in rows if row.stage == "evaluate" and row.split.startswith("test[")
        ],
        "leaks": by_name["evaluate"].json("leaks.json"),
        "mistakes": by_name["evaluate"].json("mistakes.json"),
        "baselines": baselines,
        "config": (config := trained.json("config.json")),
        "network": network(config["backbone"]) + _origin(recipe, by_name.get("start")),
        "loss_note": _loss_note(recipe),
        "profile": by_name["profile"].json("profile.json") if "profile" in by_name else {},
        "fairness": _fairness(by_name["audit"], rows) if "audit" in by_name else {},
        "stages": [artifact.manifest for artifact in by_name.values()],
        "machine": trained.manifest,
        "skipped": training.told(training.counts(by_name.values())),
        "intervals": sorted({row.interval for row in measured if row.interval}),
        "alarms": (shown := by_name["evaluate"].json("curves.json")).get("alarms", []),
        "examples": shown.get("examples", []),
        "heard": shown.get("heard", []),
    }


def _fairness(audit: Artifact, rows: list[Metric]) -> dict[str, Any]:
    """Arrange ``accuracy[sex=Female]`` by attribute, group and figure, and the gaps beside."""
    by: dict[str, Any] = {}
    rows = [row for row in rows if row.stage == "audit" and "[" in row.metric]
    for row in rows:
        figure, _, rest = row.metric.partition("[")
        attribute, is_group, group = rest.removesuffix("]").partition("=")
        one = by.setdefault(attribute, {"groups": {}, "gaps": {}})
        if is_group:
            one["groups"].setdefault(group, {})[figure] = row
        else:
            one["gaps"][figure] = row
    names = [row.metric.partition("[")[0] for row in rows if "=" in row.metric]
    figures = [name for name in dict.fromkeys(names) if name != "rows"]
    about: dict[str, Any] = audit.json("report.json")
    return about | {"attributes": by, "figures": figures}


def _by_class(rows: list[Metric]) -> dict[str, dict[str, Metric]]:
    """Arrange ``precision[x]`` rows by class and metric."""
    found: dict[str, dict[str, Metric]] = {}
    for row in rows:
        metric, _, name = row.metric.partition("[")
        found.setdefault(name.removesuffix("]"), {})[metric] = row
    return found


def _charts(recipe: Recipe, by_name: dict[str, Artifact], rows: list[Metric]) -> dict[str, Any]:
    """Draw everything that there is to draw."""
    found: dict[str, Any] = {
        "funnel": charts.funnel(by_name["data"].json("report.json")["funnel"]),
        "losses": [],
    }
    for stage in ("pretrain", "finetune"):
        if stage in by_name:
            events = read_events(by_name[stage].path / "events.jsonl")
            unit = next((e["loss_unit"] for e in events if "loss_unit" in e), "loss")
            found["losses"].append(charts.losses(events, unit, stage))
    if "profile" in by_name:
        found["step_time"] = charts.step_time(by_name["profile"].json("profile.json"))
    metric = headline_metric(recipe)
    shown = [
        row for row in rows if row.metric == metric and row.split == "test" and row.low is not None
    ]
    if shown:
        found["compared"] = charts.compared(
            [row.to_dict() for row in shown], metric.replace("_", " ")
        )
    curves = by_name["evaluate"].json("curves.json")
    if recipe.data.kind == "classify":
        found["roc"] = charts.roc({model: c["roc"] for model, c in curves.items()})
        found["reliability"] = charts.reliability(
            {m: c["reliability"] for m, c in curves.items() if m != "majority"}
        )
        classes = by_name["data"].json("report.json")["classes"]
        found["confusion"] = charts.confusion(curves[recipe.name]["confusion"], classes)
    if recipe.data.modality == "series":
        found |= _of_series(recipe, curves, by_name["tokenizer"].json("report.json"))
    if recipe.data.kind == "regress":
        found["points"] = charts.points(*curves[recipe.name]["points"])
    return {
        k: [Markup(x) for x in v] if isinstance(v, list) else Markup(v) for k, v in found.items()
    }


def _of_series(recipe: Recipe, curves: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
    """Draw what there is to draw of series."""
    several = recipe.series.context + recipe.series.horizon > 1
    samples = seen["samples"] if several else []
    found: dict[str, Any] = {
        "windows": [series_charts.window(sample, seen["target"]) for sample in samples]
    }
    if recipe.data.task == "detect":
        return found | {"scores": series_charts.scores(curves["score"], curves["threshold"])}
    return found | {
        "fans": [series_charts.fan(one, seen["target"]) for one in curves["fans"]],
        "by_step": series_charts.by_step(curves["models"]),
        "coverage": series_charts.coverage(curves["models"]),
    }

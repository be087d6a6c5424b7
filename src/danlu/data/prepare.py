"""The data stage: read, clean, find duplicates and contradictions, redact, split.

Everything that is set aside goes to ``rejects.parquet`` with its reason and
where it came from. Personal data are redacted before any step can write them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from daft import DataFrame, DataType, col, lit
from daft.functions import contains, count_distinct, is_null, length, strip, try_cast, when
from numpy.typing import NDArray

from danlu.artifact import write_json
from danlu.data import duplicates, split
from danlu.data.clean import scrub
from danlu.data.encoding import REPLACEMENT
from danlu.data.labels import split_cell
from danlu.data.privacy import KINDS
from danlu.data.sources import Columns, File, ingest
from danlu.errors import DataError
from danlu.recipe import Recipe

REPORT = "report.json"
REJECTS = "rejects.parquet"
_EXAMPLES = 5


@dataclass
class _Funnel:
    """Counts rows as they pass, and tells the watcher."""

    say: Callable[[str], None]
    steps: list[dict[str, Any]] = field(default_factory=list)

    def add(self, step: str, rows: int) -> None:
        self.steps.append({"step": step, "rows": rows})
        self.say(f"{step}: {rows:,} rows")


def columns(recipe: Recipe) -> Columns:
    """Return the columns that the recipe reads."""
    kind, _, column = recipe.data.split.by.partition(":")
    return Columns(
        text=recipe.data.text,
        label=recipe.data.label,
        group=column if kind == "group" else None,
        time=column if kind == "time" else None,
    )


def prepare(
    recipe: Recipe, files: list[File], folder: Path, say: Callable[[str], None] = lambda _: None
) -> None:
    """Write the data artifact.

    Parameters
    ----------
    recipe : Recipe
        Filled.
    files : list of File
        From :func:`danlu.data.sources.open_source`.
    folder : Path
        Receives ``train``, ``validation``, ``test`` and ``rejects.parquet``, and
        ``report.json``.
    say : callable
        Told of each step as it is done.

    Raises
    ------
    DataError
        If what remains cannot train what was asked.
    """
    data, funnel = recipe.data, _Funnel(say)
    shards = folder / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir()
    records = ingest(files, columns(recipe), shards)
    funnel.add("read", sum(record["rows"] for record in records))

    raw = daft.read_parquet(f"{shards}/*.parquet")
    as_read = _profile(raw)
    rows = _mark_unusable(_scrub(raw, recipe), recipe).collect()
    usable = rows.where(is_null(col("reason")))
    reasons = _by_text(usable, recipe)
    funnel.add("readable", usable.count_rows())
    ids, texts_of = _survivors(usable, reasons)
    contradictory = sum(reason == "contradiction" for reason in reasons.values())
    funnel.add("after contradictions", usable.count_rows() - contradictory)
    funnel.add("after exact duplicates", len(ids))

    pairs = duplicates.find_pairs(texts_of, recipe.seed).at_least(duplicates.RELATED)
    labels = dict(
        zip(*(texts_of.select("id", "label").to_pydict()[k] for k in ("id", "label")), strict=True)
    )
    similar = pairs.at_least(data.clean.similarity)
    opposed = sum(
        labels[a] != labels[b]
        for a, b in zip(similar.first.tolist(), similar.second.tolist(), strict=True)
    )
    if data.clean.near_duplicates == "drop":
        dropped = duplicates.later_copies(similar, labels)
        reasons.update(dict.fromkeys(sorted(dropped), "near-duplicate"))
        funnel.add("after near-duplicates", len(ids) - len(dropped))

    kept = _with_reasons(rows, reasons).collect()
    table = kept.where(is_null(col("reason"))).sort("id").to_arrow()
    if table.num_rows == 0:
        raise DataError(
            "no row remains after cleaning", where="data", mend="look at the reasons in rejects"
        )
    cluster = duplicates.clusters(ids, pairs)[np.searchsorted(ids, table["id"].to_numpy())]
    assigned = _assign(recipe, table, cluster)
    late = _leaks_from_the_past(recipe, assigned, cluster)
    if late.any():
        reasons.update(
            dict.fromkeys(table["id"].to_numpy()[late].tolist(), "near-duplicate of training row")
        )
        kept = _with_reasons(rows, reasons).collect()
        table, assigned, cluster = table.filter(~late), assigned[~late], cluster[~late]
        funnel.add("after leaks from the past", table.num_rows)
    split.check(assigned)
    classes = _classes(recipe, table, assigned)

    table = table.drop_columns(["reason"]).append_column("cluster", pa.array(cluster))
    for name in split.NAMES:
        pq.write_table(table.filter(assigned == name), folder / f"{name}.parquet")
    rejects = kept.where(~is_null(col("reason"))).sort("id").to_arrow()
    pq.write_table(rejects, folder / REJECTS)
    shutil.rmtree(shards)

    report = {
        "task": data.task,
        "classes": classes,
        "files": records,
        "as_read": as_read,
        "funnel": funnel.steps,
        "rejects": _rejects(rejects),
        "redactions": _redactions(rows),
        "contradictory_texts": len(
            set(
                rejects.filter(pa.compute.equal(rejects["reason"], "contradiction"))[
                    "text"
                ].to_pylist()
            )
        ),
        "opposed_near_duplicates": opposed,
        "clusters_of_several": int((np.unique(cluster, return_counts=True)[1] > 1).sum()),
        "splits": {
            name: _split_report(recipe, table.filter(assigned == name)) for name in split.NAMES
        },
    }
    report["findings"] = _findings(report)
    write_json(folder / REPORT, report)


def _profile(raw: DataFrame) -> list[dict[str, Any]]:
    """Count rows and different texts for each label, before any cleaning."""
    trimmed = raw.select(col("label"), strip(col("text")).alias("text")).where(
        length(col("text")) > lit(0)
    )
    counts = (
        trimmed.groupby("label")
        .agg(col("text").count().alias("rows"), count_distinct(col("text")).alias("different"))
        .sort("label")
    )
    return list(counts.to_pylist())


def _scrub(raw: DataFrame, recipe: Recipe) -> DataFrame:
    """Normalise and redact every text; count what was redacted."""
    form = recipe.data.clean.unicode
    kinds = [kind for kind in KINDS if getattr(recipe.data.redact, kind)]
    returns = DataType.struct(
        {"text": DataType.string(), **{kind: DataType.int64() for kind in KINDS}}
    )

    @daft.func.batch(return_dtype=returns, unnest=True, use_process=False)
    def scrub_all(texts: daft.Series) -> Any:
        out = []
        for text in texts.to_pylist():
            clean, counts = scrub(text, form, kinds) if text is not None else (None, {})
            out.append({"text": clean, **{kind: counts.get(kind, 0) for kind in KINDS}})
        return pa.array(out, returns.to_arrow_dtype())

    others = [name for name in raw.column_names if name != "text"]
    return raw.select(*others, scrub_all(col("text")))


def _mark_unusable(rows: DataFrame, recipe: Recipe) -> DataFrame:
    """Give a reason to every row that cannot be used by itself."""
    clean, task = recipe.data.clean, recipe.data.task
    size = length(col("text"))
    rules = [
        (~is_null(col("reason")), col("reason")),
        (is_null(col("text")) | (size == lit(0)), lit("empty text")),
        (contains(col("text"), REPLACEMENT), lit("undecodable bytes")),
        (size < lit(clean.min_chars), lit(f"shorter than {clean.min_chars} characters")),
        (size > lit(clean.max_chars), lit(f"longer than {clean.max_chars} characters")),
    ]
    if task != "pretrain":
        rules.append((is_null(col("label")), lit("no label")))
    if task == "regress":
        value = try_cast(col("label"), DataType.float64())
        bad = is_null(value) | value.is_nan() | value.is_inf()
        rules.append((bad, lit("label is not a number")))
    kind = recipe.data.split.by.partition(":")[0]
    if kind in ("group", "time"):
        rules.append((is_null(col(kind)), lit(f"no {kind}")))
    expression = lit(None).cast(DataType.string())
    for condition, reason in reversed(rules):
        expression = when(condition, reason).otherwise(expression)
    return rows.with_column("reason", expression)


def _by_text(usable: DataFrame, recipe: Recipe) -> dict[int, str]:
    """Give a reason to each copy of a text, and to texts with several labels."""
    clean, task = recipe.data.clean, recipe.data.task
    same = usable.groupby("text").agg(
        col("id").min().alias("first"),
        col("id").count().alias("copies"),
        count_distinct(col("label")).alias("labels"),
    )
    repeated = usable.select("id", "text").join(same.where(col("copies") > lit(1)), on="text")
    found = repeated.select("id", "first", "labels").sort("id").to_pydict()
    reasons: dict[int, str] = {}
    for number, first, labels in zip(found["id"], found["first"], found["labels"], strict=True):
        if labels > 1 and task != "pretrain" and clean.contradictions == "set-aside":
            reasons[number] = "contradiction"
        elif number != first and clean.exact_duplicates == "drop":
            reasons[number] = "exact duplicate"
    return reasons


def _with_reasons(rows: DataFrame, reasons: dict[int, str]) -> DataFrame:
    """Write the reasons found since into the rows."""
    if not reasons:
        return rows
    found = daft.from_pydict({"id": list(reasons), "later": list(reasons.values())})
    joined = rows.join(found, on="id", how="left")
    reason = when(is_null(col("reason")), col("later")).otherwise(col("reason"))
    return joined.with_column("reason", reason).exclude("later")


def _survivors(usable: DataFrame, reasons: dict[int, str]) -> tuple[NDArray[np.int64], DataFrame]:
    kept = _with_reasons(usable, reasons).where(is_null(col("reason")))
    kept = kept.select("id", "text", "label").sort("id").collect()
    return np.asarray(kept.to_pydict()["id"], np.int64), kept


def _assign(recipe: Recipe, table: pa.Table, cluster: NDArray[np.int64]) -> NDArray[np.str_]:
    """Assign every row to a split."""
    rule = recipe.data.split
    kind = rule.by.partition(":")[0]
    if kind == "time":
        return split.by_time(table["time"].to_numpy().astype(str), rule.test, rule.validation)
    if kind == "random":
        cluster = np.arange(table.num_rows)
    elif kind == "group":  # a group's rows, and near-duplicates across groups, stay together
        group = np.unique(table["group"].to_numpy().astype(str), return_inverse=True)[1]
        offset = int(cluster.max()) + 1
        joined = duplicates.join_groups(offset + int(group.max()) + 1, cluster, offset + group)
        cluster = joined[cluster]
    if recipe.data.task == "classify":
        label = table["label"].to_numpy().astype(str)
    else:
        label = np.full(table.num_rows, "")
    return split.by_cluster(cluster, label, rule.test, rule.validation, recipe.seed)


def _leaks_from_the_past(
    recipe: Recipe, assigned: NDArray[np.str_], cluster: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Find later rows that resemble an earlier split's; only a split by time has them."""
    late = np.zeros(len(assigned), bool)
    if recipe.data.split.by.startswith("time:"):
        seen = cluster[assigned == split.TRAIN]
        late |= (assigned != split.TRAIN) & np.isin(cluster, seen)
        seen = cluster[(assigned == split.VALIDATION) & ~late]
        late |= (assigned == split.TEST) & np.isin(cluster, seen)
    return late


def _classes(recipe: Recipe, table: pa.Table, assigned: NDArray[np.str_]) -> list[str]:
    """Return the classes, sorted, after seeing that each can be learnt and measured."""
    data = recipe.data
    if data.task != "classify":
        return []

    def seen(name: str | None) -> set[str]:
        part = table if name is None else table.filter(assigned == name)
        cells = part["label"].unique().to_pylist()
        return {label for cell in cells for label in split_cell(cell, data.label_separator)}

    classes = sorted(seen(None))
    if len(classes) < 2:
        raise DataError(
            f"there is only one class, {classes[0]!r}" if classes else "no row has a label",
            where="data.label",
            mend="a classifier needs at least two; check the label column and the sources' labels",
        )
    if len(classes) > max(50, table.num_rows // 10):
        raise DataError(
            f"{len(classes)} labels in {table.num_rows} rows look like values, not classes",
            where="data.label",
            mend='choose another column, or task = "regress"',
        )
    if missing := sorted(set(classes) - seen(split.TRAIN)):
        raise DataError(
            f"no training row has the label {', '.join(map(repr, missing))}",
            where="data.split",
            mend="add rows of it, or leave it out",
        )
    return classes


def _rejects(rejects: pa.Table) -> list[dict[str, Any]]:
    """Count the reasons, with a few examples of each."""
    reason = np.asarray(rejects["reason"].to_pylist(), dtype=object)
    found = []
    for name in sorted(set(reason), key=lambda name: (-(reason == name).sum(), name)):
        part = rejects.filter(reason == name)
        examples = part.slice(0, _EXAMPLES).select(["file", "row", "label", "text"]).to_pylist()
        found.append({"reason": name, "rows": part.num_rows, "examples": examples})
    return found


def _redactions(rows: DataFrame) -> dict[str, int]:
    sums = rows.agg(*(col(kind).sum().alias(kind) for kind in KINDS)).to_pydict()
    return {kind: int(sums[kind][0] or 0) for kind in KINDS}


def _split_report(recipe: Recipe, table: pa.Table) -> dict[str, Any]:
    size = pa.compute.utf8_length(table["text"]).to_numpy()
    report: dict[str, Any] = {
        "rows": table.num_rows,
        "characters": {
            "total": int(size.sum()),
            **{f"p{q}": int(np.quantile(size, q / 100)) for q in (5, 50, 95)},
            "max": int(size.max()),
        },
    }
    if recipe.data.task == "classify":
        cells = table["label"].value_counts().to_pylist()
        counts: dict[str, int] = {}
        for cell in cells:
            for label in split_cell(cell["values"], recipe.data.label_separator):
                counts[label] = counts.get(label, 0) + cell["counts"]
        report["labels"] = dict(sorted(counts.items()))
    return report


def _findings(report: dict[str, Any]) -> list[str]:
    """Say in sentences what is wrong with the corpus."""
    total = report["funnel"][0]["rows"]
    rows = {item["reason"]: item["rows"] for item in report["rejects"]}
    findings = []
    if copies := rows.get("exact duplicate"):
        findings.append(
            f"{copies / total:.0%} of the rows ({copies:,} of {total:,}) are exact duplicates of "
            "earlier ones."
        )
    for item in report["as_read"]:
        if item["different"] < 0.9 * item["rows"]:
            label = f"label {item['label']!r}: " if item["label"] else ""
            findings.append(
                f"{label}{item['rows']:,} rows as read, {item['different']:,} different texts."
            )
    if near := rows.get("near-duplicate"):
        findings.append(
            f"{near:,} more rows are near-duplicates of earlier ones with the same label."
        )
    if texts := report["contradictory_texts"]:
        findings.append(
            f"{texts:,} texts carry more than one label ({rows['contradiction']:,} rows); "
            "they were set aside."
        )
    if opposed := report["opposed_near_duplicates"]:
        findings.append(
            f"{opposed:,} pairs of near-duplicates carry different labels; both were kept."
        )
    if broken := rows.get("undecodable bytes"):
        findings.append(f"{broken:,} rows held bytes that mean nothing in their file's encoding.")
    redacted = {kind: count for kind, count in report["redactions"].items() if count}
    if redacted:
        what = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in redacted.items())
        findings.append(f"Personal data were redacted: {what}.")
    labels = report["splits"]["train"].get("labels")
    if labels and max(labels.values()) > 3 * min(labels.values()):
        findings.append(
            f"The classes are out of balance: {max(labels.values()):,} to "
            f"{min(labels.values()):,} training rows."
        )
    return findings

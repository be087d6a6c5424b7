"""The data stage: read, clean, find duplicates and contradictions, redact, split.

Everything that is set aside goes to ``rejects.parquet`` with its reason and
where it came from. Personal data are redacted before any step can write them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import daft
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from daft import DataFrame, DataType, col, lit
from daft.functions import contains, count_distinct, is_null, length, try_cast, when
from numpy.typing import NDArray

from danlu.artifact import write_json
from danlu.data import describe, duplicates, kinds, split, transcripts
from danlu.data.assign import (
    assign,
    digest,
    equal,
    leaks_from_the_past,
    pseudonym,
    rule_of,
)
from danlu.data.clock import LARGEST
from danlu.data.encoding import REPLACEMENT
from danlu.data.labels import canonical, split_cell
from danlu.data.privacy import KINDS
from danlu.data.sources import Columns, File, landed
from danlu.errors import DataError
from danlu.recipe import Recipe

REPORT = "report.json"
REJECTS = "rejects.parquet"
_SEEN = "near-duplicate of training row"


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
    kind, _, column = rule_of(recipe)
    return Columns(
        text=recipe.data.text if recipe.data.modality == "text" else None,
        label=recipe.data.label,
        group=column if kind == "group" else None,
        time=column if kind == "time" else None,
        others=kinds.of_rows(recipe.data.modality).named(recipe),
        protected=recipe.audit.protected,
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
    funnel = _Funnel(say)
    with landed(files, columns(recipe), folder, _refiner(recipe), say) as (records, shards):
        funnel.add("read", sum(record["rows"] for record in records))
        # Daft takes a path for a glob, and the folder's own name may hold brackets.
        pattern = re.sub(r"([][*?{}])", r"[\1]", str(shards))
        frame = daft.read_parquet(f"{pattern}/*.parquet")
        as_read = _profile(frame, by_label=recipe.data.task == "classify")
        rows = _mark_unusable(frame, recipe).collect()
    usable = rows.where(is_null(col("reason")))
    funnel.add("readable", usable.count_rows())
    reasons = _by_text(usable, recipe)
    texts = _with_reasons(usable, reasons).where(is_null(col("reason")))
    texts = texts.select("id", "text", "label").sort("id").collect()
    contradictory = sum(reason == "contradiction" for reason in reasons.values())
    funnel.add("after contradictions", usable.count_rows() - contradictory)
    funnel.add("after exact duplicates", texts.count_rows())
    pairs, opposed = None, 0
    if recipe.data.modality == "text":
        pairs, opposed = _near_duplicates(recipe, texts, reasons)
    if recipe.data.clean.near_duplicates == "drop":
        funnel.add("after near-duplicates", usable.count_rows() - len(reasons))

    kept = _with_reasons(rows, reasons).collect()
    table = _survivors(kept)
    _check_labels(recipe, table)
    if pairs is not None:
        ids = np.asarray(texts.to_pydict()["id"], np.int64)
        cluster = duplicates.clusters(ids, pairs)[np.searchsorted(ids, table["id"].to_numpy())]
    else:
        cluster = equal(table)
    assigned = assign(recipe, table, cluster)
    late = leaks_from_the_past(recipe, assigned, cluster)
    if late.any():
        reasons |= dict.fromkeys(table["id"].to_numpy()[late].tolist(), _SEEN)
        kept = _with_reasons(rows, reasons).collect()
        table, assigned, cluster = table.filter(~late), assigned[~late], cluster[~late]
        funnel.add("after leaks from the past", table.num_rows)
    split.check(assigned)
    classes = _classes(recipe, table, assigned)

    table = table.append_column("cluster", pa.array(cluster))
    parts = {name: table.filter(assigned == name) for name in split.NAMES}
    for name, part in parts.items():
        pq.write_table(part, folder / f"{name}.parquet")
    rejects = kept.where(~is_null(col("reason"))).sort("id").exclude("as_read").to_arrow()
    pq.write_table(rejects, folder / REJECTS)
    contradictions = rejects.filter(pa.compute.equal(rejects["reason"], "contradiction"))
    report = {
        "task": recipe.data.task,
        "classes": classes,
        "files": records,
        "as_read": as_read,
        "funnel": funnel.steps,
        "rejects": describe.rejects(rejects),
        "redactions": describe.redactions(rows),
        "contradictory_texts": len(contradictions["text"].unique()),
        "opposed_near_duplicates": opposed,
        "clusters_of_several": int((np.unique(cluster, return_counts=True)[1] > 1).sum()),
        "splits": {name: describe.split_report(recipe, part) for name, part in parts.items()},
    }
    if recipe.data.task == "transcribe":
        report["unknown_characters"] = {
            name: transcripts.count_unknown(part["label"].to_pylist(), classes)
            for name, part in parts.items()
        }
    write_json(folder / REPORT, report | {"findings": describe.findings(report)})


def _near_duplicates(
    recipe: Recipe, texts: DataFrame, reasons: dict[int, str]
) -> tuple[duplicates.Pairs, int]:
    """Give a reason to near-duplicates; return related pairs, and how many differ in label."""
    clean = recipe.data.clean
    pairs = duplicates.find_pairs(texts, recipe.seed).at_least(duplicates.RELATED)
    similar = pairs.at_least(clean.similarity)
    found = texts.select("id", "label").to_pydict()
    labels = dict(zip(found["id"], found["label"], strict=True))
    if recipe.data.task == "pretrain":
        labels = dict.fromkeys(labels)
    opposed = sum(
        labels[first] != labels[second]
        for first, second in zip(similar.first.tolist(), similar.second.tolist(), strict=True)
    )
    if clean.near_duplicates == "drop":
        dropped = duplicates.later_copies(similar, labels)
        reasons |= dict.fromkeys(sorted(dropped), "near-duplicate")
    return pairs, opposed


def _survivors(kept: DataFrame) -> pa.Table:
    """Return the rows without a reason to go, in order.

    Raises
    ------
    DataError
        If there are none, with the commonest reasons.
    """
    table = kept.where(is_null(col("reason"))).sort("id").exclude("reason", "as_read").to_arrow()
    if table.num_rows == 0:
        counts = kept.groupby("reason").agg(col("id").count().alias("rows")).to_pylist()
        counts = sorted(counts, key=lambda item: -item["rows"])[:3]
        told = ", ".join(f"{item['reason']} ({item['rows']:,})" for item in counts)
        raise DataError(
            f"no row remains after cleaning: {told}",
            where="data",
            mend="change data.clean, or the columns' names",
        )
    return table


def _refiner(recipe: Recipe) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what cleans, redacts and canonicalises a row before it reaches the disk."""
    data, own = recipe.data, kinds.of_rows(recipe.data.modality).refiner(recipe)

    def refine(row: dict[str, Any]) -> dict[str, Any]:
        row |= dict.fromkeys(KINDS, 0)
        if text := (row.get("text") or "").strip():
            row["as_read"] = digest(text)
        own(row)
        label = row.get("label")
        row["label"] = data.rename.get(label or "", label)
        if "as_read" not in row and (text := row.get("text")):
            row["as_read"] = digest(text)
        if (label := row.get("label")) is not None:
            row["label"] = canonical(label, data.kind, data.label_separator)
        if (group := row.get("group")) is not None:
            # Only whether two groups are the same matters, and a group is often a person.
            row["group"] = pseudonym(group)
        return row

    return refine


def _profile(landed: DataFrame, by_label: bool) -> list[dict[str, Any]]:
    """Count rows and different texts (for each label, if asked) before any cleaning."""
    label = col("label") if by_label else lit(None).cast(DataType.string())
    counts = (
        landed.where(~is_null(col("as_read")))
        .select(label.alias("label"), col("as_read"))
        .groupby("label")
        .agg(
            col("as_read").count().alias("rows"),
            count_distinct(col("as_read")).alias("different"),
        )
        .sort("label")
    )
    return list(counts.to_pylist())


def _mark_unusable(rows: DataFrame, recipe: Recipe) -> DataFrame:
    """Give a reason to every row that cannot be used by itself."""
    clean, task = recipe.data.clean, recipe.data.task
    size, what = length(col("text")), {"text": "text"}.get(recipe.data.modality, "row")
    rules = [
        (~is_null(col("reason")), col("reason")),
        (is_null(col("text")) | (size == lit(0)), lit(f"empty {what}")),
        (contains(col("text"), REPLACEMENT), lit("undecodable bytes")),
    ]
    if recipe.data.modality == "text":
        rules += [
            (size < lit(clean.min_chars), lit(f"shorter than {clean.min_chars} characters")),
            (size > lit(clean.max_chars), lit(f"longer than {clean.max_chars} characters")),
        ]
    if task != "pretrain":
        rules.append((is_null(col("label")), lit("no label")))
    if task == "regress":
        value = try_cast(col("label"), DataType.float64())
        bad = is_null(value) | value.is_nan() | (abs(value) >= lit(LARGEST))
        rules.append((bad, lit("label is not a number")))
    kind = rule_of(recipe)[0]
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


def _labels(recipe: Recipe, table: pa.Table) -> set[str]:
    """Return the different labels of a table."""
    cells = table["label"].unique().to_pylist()
    return {label for cell in cells for label in split_cell(cell, recipe.data.label_separator)}


def _check_labels(recipe: Recipe, table: pa.Table) -> None:
    """Refuse labels that no classifier can learn.

    Raises
    ------
    DataError
    """
    if recipe.data.task != "classify":
        return
    found = sorted(_labels(recipe, table))
    if len(found) < 2:
        raise DataError(
            f"there is only one class, {found[0]!r}",
            where="data.label",
            mend="a classifier needs at least two; check the label column and the sources' labels",
        )
    if len(found) > max(50, table.num_rows // 10):
        raise DataError(
            f"{len(found)} labels in {table.num_rows} rows look like values, not classes",
            where="data.label",
            mend='choose another column, or task = "regress"',
        )


def _classes(recipe: Recipe, table: pa.Table, assigned: NDArray[np.str_]) -> list[str]:
    """Return the classes, sorted, after seeing that each can be learnt; or the characters."""
    if recipe.data.task == "transcribe":
        return transcripts.alphabet(table.filter(assigned == split.TRAIN)["label"].to_pylist())
    if recipe.data.task != "classify":
        return []
    classes = sorted(_labels(recipe, table))
    if missing := sorted(set(classes) - _labels(recipe, table.filter(assigned == split.TRAIN))):
        raise DataError(
            f"no training row has the label {', '.join(map(repr, missing))}",
            where="data.split",
            mend="add rows of it, or leave it out",
        )
    return classes

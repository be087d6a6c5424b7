"""What the data stage says of its work, for people and for the report."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from daft import DataFrame, col

from danlu.data.labels import split_cell
from danlu.data.privacy import KINDS
from danlu.recipe import Recipe

_EXAMPLES = 5


def rejects(rejects: pa.Table) -> list[dict[str, Any]]:
    """Count the reasons, with a few examples of each."""
    reason = np.asarray(rejects["reason"].to_pylist(), dtype=object)
    found = []
    for name in sorted(set(reason), key=lambda name: (-(reason == name).sum(), name)):
        part = rejects.filter(reason == name)
        examples = part.slice(0, _EXAMPLES).select(["file", "row", "label", "text"]).to_pylist()
        found.append({"reason": name, "rows": part.num_rows, "examples": examples})
    return found


def redactions(rows: DataFrame) -> dict[str, int]:
    """Count what was redacted, by kind."""
    sums = rows.agg(*(col(kind).sum().alias(kind) for kind in KINDS)).to_pydict()
    return {kind: int(sums[kind][0] or 0) for kind in KINDS}


def split_report(recipe: Recipe, table: pa.Table) -> dict[str, Any]:
    """Return a split's rows and labels, and the lengths of texts (or transcripts) in characters."""
    report: dict[str, Any] = {"rows": table.num_rows}
    transcripts = recipe.data.task == "transcribe"
    if transcripts or recipe.data.modality == "text":
        size = pa.compute.utf8_length(table["label" if transcripts else "text"]).to_numpy()
        report["characters"] = {
            "total": int(size.sum()),
            **{f"p{q}": int(np.quantile(size, q / 100)) for q in (5, 50, 95)},
            "max": int(size.max()),
        }
    if recipe.data.task == "classify":
        cells = table["label"].value_counts().to_pylist()
        counts: dict[str, int] = {}
        for cell in cells:
            for label in split_cell(cell["values"], recipe.data.label_separator):
                counts[label] = counts.get(label, 0) + cell["counts"]
        report["labels"] = dict(sorted(counts.items()))
    return report


def findings(report: dict[str, Any]) -> list[str]:
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
                f"{label}{item['rows']:,} rows as read, {item['different']:,} different."
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
    for name, unknown in report.get("unknown_characters", {}).items():
        if unknown:
            told = ", ".join(f"{character!r} ({count:,})" for character, count in unknown.items())
            findings.append(
                f"The transcripts of the {name} split hold characters that no training transcript "
                f"does, and that can therefore not be written: {told}."
            )
    labels = report["splits"]["train"].get("labels")
    if labels and max(labels.values()) > 3 * min(labels.values()):
        findings.append(
            f"The classes are out of balance: {max(labels.values()):,} to "
            f"{min(labels.values()):,} training rows."
        )
    return findings

"""Where a model is weak: parts of a split, and the worst mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def groups(table: pa.Table, by_length: bool) -> dict[str, NDArray[np.bool_]]:
    """Return the parts of a split that are measured alone: by a text's length, by source."""
    groups: dict[str, NDArray[np.bool_]] = {}
    if by_length:
        groups = _by_length(table)
    sources = np.asarray(table["source"].to_pylist())
    if len(names := np.unique(sources)) > 1:
        groups |= {f"source {name}": sources == name for name in names}
    return groups


def _by_length(table: pa.Table) -> dict[str, NDArray[np.bool_]]:
    size = pa.compute.utf8_length(table["text"]).to_numpy()
    low, high = (int(value) for value in np.quantile(size, [1 / 3, 2 / 3]))
    return {
        f"up to {low} characters": size <= low,
        f"{low + 1} to {high} characters": (size > low) & (size <= high),
        f"over {high} characters": size > high,
    }


def mistakes(
    table: pa.Table,
    actual: NDArray[Any],
    answer: NDArray[np.floating[Any]],
    classes: list[str],
    kind: str,
) -> list[dict[str, Any]]:
    """Return the ten rows on which the model is most confidently wrong; `index` is the place."""
    if kind == "regress":
        badness = np.abs(answer - actual)
    elif kind == "multilabel":
        badness = np.abs(answer - actual).max(axis=1)
    else:
        badness = np.where(answer.argmax(1) != actual, answer.max(1), 0.0)
    found = []
    for row in np.argsort(-badness, kind="stable")[:10]:
        if badness[row] == 0:
            break
        if kind == "regress":
            said = f"{answer[row]:.4g}"
        elif kind == "multilabel":
            said = (
                ", ".join(c for c, p in zip(classes, answer[row], strict=True) if p >= 0.5)
                or "(none)"
            )
        else:
            said = classes[int(answer[row].argmax())]
        found.append({
            "index": int(row),
            "text": table["text"][int(row)].as_py(), "truth": table["label"][int(row)].as_py(),
            "said": said, "badness": float(badness[row]),
            "file": table["file"][int(row)].as_py(), "row": table["row"][int(row)].as_py(),
        })  # fmt: skip
    return found

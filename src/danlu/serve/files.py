"""Answering about every row of a file: the same file comes out, with columns added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from danlu.data.encoding import detect, open_text
from danlu.errors import DataError, InputError
from danlu.serve.engine import Engine


def predict_file(
    engine: Engine, path: Path, column: str, output: Path | None
) -> tuple[Path, int, int]:
    """Write a copy of a file with the model's answers beside each row.

    Parameters
    ----------
    engine : Engine
    path : Path
        JSONL, CSV, TSV or Parquet.
    column : str
        Holds the text; a row without one gets empty answers.
    output : Path, optional
        ``NAME.predicted.ENDING`` if not given.

    Returns
    -------
    output : Path
    rows, truncated : int
    """
    if not path.is_file():
        raise InputError("there is no such file", where=str(path))
    ending = path.suffix.lower()
    if ending not in _READERS:
        raise InputError(f"danlu predicts {', '.join(_READERS)} files", where=str(path))
    output = output or path.with_name(f"{path.stem}.predicted{path.suffix}")
    if output.resolve() == path.resolve():
        raise InputError("the output would overwrite the input", where=str(output))
    table = _READERS[ending](path)
    if column not in table.column_names:
        raise DataError(
            f"no column {column!r}; there are: {', '.join(map(repr, table.column_names))}",
            where=str(path),
            mend="name it with --column",
        )
    texts = [str(text) if text is not None else "" for text in table[column].to_pylist()]
    given = [row for row, text in enumerate(texts) if text.strip()]
    answers: list[dict[str, Any]] = [{} for _ in texts]
    for row, answer in zip(given, engine.predict([texts[row] for row in given]), strict=True):
        answers[row] = _flat(answer)
    for name in dict.fromkeys(key for answer in answers for key in answer):
        if name in table.column_names:
            raise DataError(f"the file already has a column {name!r}", where=str(path))
        table = table.append_column(name, pa.array([answer.get(name) for answer in answers]))
    aside = output.with_name(f".{output.name}.new")
    _write(table, aside, ending)
    aside.replace(output)
    return output, len(texts), sum(bool(answer.get("predicted_truncated")) for answer in answers)


def _flat(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as columns."""
    columns: dict[str, Any] = {}
    for key, value in answer.items():
        if key == "probabilities":
            columns |= {f"probability_{name}": p for name, p in value.items()}
        elif key == "labels":
            columns["predicted_labels"] = "; ".join(value)
        elif key != "tokens":
            columns[f"predicted_{key}"] = value
    return columns


def _read_jsonl(path: Path) -> pa.Table:
    rows = []
    with open_text(path, detect(path)) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    raise DataError("not valid JSON", where=f"{path}:{number}") from None
    return pa.Table.from_pylist(rows)


def _read_csv(path: Path) -> pa.Table:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    encoding = detect(path).replace("utf-8-sig", "utf-8")  # Arrow skips the mark itself
    try:
        return pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(encoding=encoding),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"not valid CSV: {error}", where=str(path)) from None


_READERS = {
    ".jsonl": _read_jsonl, ".csv": _read_csv, ".tsv": _read_csv, ".parquet": pq.read_table,
}  # fmt: skip


def _write(table: pa.Table, path: Path, ending: str) -> None:
    if ending == ".parquet":
        pq.write_table(table, path)
    elif ending == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for row in table.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
    else:
        options = pyarrow.csv.WriteOptions(delimiter="\t" if ending == ".tsv" else ",")
        pyarrow.csv.write_csv(table, path, options)

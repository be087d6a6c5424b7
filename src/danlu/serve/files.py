"""Answering about every row of a file: the same file comes out, with columns added."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from danlu.data.encoding import detect, open_text
from danlu.data.table_kind import RecordReader
from danlu.errors import DataError, InputError
from danlu.serve import events, series
from danlu.serve.engine import Engine

Rows = list[dict[str, Any]]


def predict_file(
    engine: Engine, path: Path, column: str, output: Path | None
) -> tuple[Path, int, dict[str, int]]:
    """Write a copy of a file with the model's answers beside each row.

    Parameters
    ----------
    engine : Engine
    path : Path
        JSONL, CSV, TSV or Parquet; what stands in it is written back as it was. A cell of
        images holds a file's bytes, or a path from the file's own folder and not out of it.
    column : str
        Holds the text, for a model of texts; a row without one gets empty answers.
    output : Path, optional
        ``NAME.predicted.ENDING`` if not given; of the same format as the input.

    Returns
    -------
    output : Path
    rows : int
    counts : dict of str to int
        Over the rows: in how many a text was ``truncated``, of tables how many cells were
        ``missing``, ``unreadable``, ``unknown`` or ``clipped``, and of how many rows the
        quantiles ``crossed``; of a forecast how many
        measurements were ``missing``, of a detector the ``alarms`` and the ``unscored`` rows;
        of histories the ``users``, the ``unknown`` items, and the rows ``set aside``.

    Notes
    -----
    A file for a model of series or events is a long table. A forecast's file holds the quantiles
    of each step of the horizon in place of the rows; where there are covariates, the file may hold
    them beyond the last measurement. A recommender's holds what to recommend to each user.

    Raises
    ------
    InputError
        If there is no such file or format, or nothing may be written there.
    DataError
        If a row cannot be read or the columns do not fit.
    """
    if engine.modality in ("image", "audio"):
        raise InputError(
            "a model of images or sounds is asked about the files themselves",
            where=str(path),
            mend="danlu predict RUN FILE…",
        )
    output, ending = _place(path, output), path.suffix.lower()
    rows, names = _READERS[ending](path)
    if engine.modality == "series":
        return _series(engine, path, rows, names, output)
    if engine.modality == "events":
        return _in_place(path, output, *events.recommended_rows(engine, rows, str(path)))
    added = _columns(engine)
    of_texts = engine.modality == "text"
    if of_texts and column not in names:
        there = ", ".join(map(repr, names))
        raise DataError(
            f"no column {column!r}; there are: {there}",
            where=str(path),
            mend="name it with --column",
        )
    if both := sorted(set(added) & set(names)):
        raise DataError(f"the file already has a column {both[0]!r}", where=str(path))
    records: list[Any] = rows
    if of_texts:
        records = ["" if row.get(column) is None else str(row[column]) for row in rows]
    elif rows:
        engine.reader.parse(dict.fromkeys(names))  # at least one of the model's must be there
        if isinstance(engine.reader, RecordReader):
            records = [engine.reader.fetched(row, path) for row in rows]
    given = [n for n, record in enumerate(records) if engine.reader.clean(record)]
    answers: Rows = [dict.fromkeys(added) for _ in records]
    counts: dict[str, int] = {}
    for row, answer in zip(given, engine.predict([records[n] for n in given]), strict=True):
        answers[row] |= _flat(answer)
        for what in _COUNTED & answer.keys():
            counts[what] = counts.get(what, 0) + answer[what]
    _written(output, _WRITERS[ending], path, rows, answers, [*names, *added])
    return output, len(records), counts


def _place(path: Path, output: Path | None) -> Path:
    """Return where the answers about a file go, or refuse the file or the place."""
    if not path.is_file():
        raise InputError("there is no such file", where=str(path))
    ending = path.suffix.lower()
    if ending not in _READERS:
        raise InputError(f"danlu predicts {', '.join(_READERS)} files", where=str(path))
    output = output or path.with_name(f"{path.stem}.predicted{path.suffix}")
    if output.resolve() == path.resolve():
        raise InputError("the output would overwrite the input", where=str(output))
    if output.suffix.lower() != ending:
        raise InputError(f"the output is a {ending} file as the input is", where=str(output))
    return output


def _written(output: Path, writer: Callable[..., None], *content: Any) -> None:
    """Write beside the output's place, then put it there as a whole."""
    aside = output.with_name(f".{output.name}.new")
    try:
        writer(aside, *content)
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)


def _series(
    engine: Engine, path: Path, rows: Rows, names: list[str], output: Path
) -> tuple[Path, int, dict[str, int]]:
    """Write a forecast's steps, or the rows with their scores."""
    if not rows:
        raise DataError("the file holds no rows", where=str(path))
    engine.reader.parse(rows)
    if engine.kind == "detect":
        added, counts = series.scored_rows(engine, rows)
        columns = [*names, *added[0]]
        if both := sorted(set(added[0]) & set(names)):
            raise DataError(f"the file already has a column {both[0]!r}", where=str(path))
        _written(output, _WRITERS[path.suffix.lower()], path, rows, added, columns)
        return output, len(rows), counts
    return _in_place(path, output, *series.foretold_rows(engine, rows))


def _in_place(
    path: Path, output: Path, found: Rows, counts: dict[str, int]
) -> tuple[Path, int, dict[str, int]]:
    """Write rows of their own in place of the file's."""
    if path.suffix.lower() == ".parquet":
        _written(output, lambda to: pq.write_table(pa.Table.from_pylist(found), to))
    else:
        writer, nothing = _WRITERS[path.suffix.lower()], [dict[str, Any]() for _ in found]
        _written(output, writer, path, found, nothing, list(found[0]))
    return output, len(found), counts


_COUNTED = {"truncated", "crossed", "missing", "unreadable", "unknown", "clipped"}


def _columns(engine: Engine) -> list[str]:
    """Return the names of the columns that an answer adds."""
    each = [f"probability_{name}" for name in engine.classes]
    spread = [f"quantile_{q:g}" for q in engine.quantiles]
    first = {"regress": ["value", *spread], "multilabel": ["labels"]}
    heads = first.get(engine.kind, ["label", "probability"])
    cut = ["predicted_truncated"] if "max_length" in engine.config else []  # it reads texts
    return [*(f"predicted_{name}" for name in heads), *each, *cut]


def _flat(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer as columns."""
    columns: dict[str, Any] = {}
    for key, value in answer.items():
        if key == "probabilities":
            columns |= {f"probability_{name}": p for name, p in value.items()}
        elif key == "quantiles":
            columns |= {f"predicted_quantile_{level}": v for level, v in value.items()}
        elif key == "labels":
            columns["predicted_labels"] = "; ".join(value)
        elif key in ("label", "probability", "value", "truncated"):
            columns[f"predicted_{key}"] = value
    return columns


def _read_jsonl(path: Path) -> tuple[Rows, list[str]]:
    rows: Rows = []
    with open_text(path, detect(path)) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError("not valid JSON", where=f"{path}:{number}") from None
            if not isinstance(row, dict):
                raise DataError("not a JSON object", where=f"{path}:{number}")
            rows.append(row)
    return rows, list(dict.fromkeys(key for row in rows for key in row))


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _read_csv(path: Path) -> tuple[Rows, list[str]]:
    with open_text(path, detect(path)) as lines:
        reader = csv.reader(lines, delimiter=_delimiter(path))
        names = next(reader, [])
        rows = []
        for number, cells in enumerate(reader, 1):
            if cells and len(cells) != len(names):
                raise DataError(
                    f"{len(cells)} cells where the header has {len(names)}",
                    where=f"{path}, row {number}",
                )
            if cells:
                rows.append(dict(zip(names, cells, strict=True)))
    return rows, names


def _read_parquet(path: Path) -> tuple[Rows, list[str]]:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"not a Parquet file: {error}", where=str(path)) from None
    return table.to_pylist(), table.column_names


def _write_jsonl(path: Path, _: Path, rows: Rows, answers: Rows, __: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row, answer in zip(rows, answers, strict=True):
            file.write(json.dumps(row | answer, ensure_ascii=False) + "\n")


def _write_csv(path: Path, source: Path, rows: Rows, answers: Rows, names: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter=_delimiter(source), lineterminator="\n")
        writer.writeheader()
        for row, answer in zip(rows, answers, strict=True):
            # JSON's words for truth rather than Python's: other tools read this.
            words = {k: str(v).lower() if isinstance(v, bool) else v for k, v in answer.items()}
            writer.writerow(row | words)


def _write_parquet(path: Path, source: Path, _: Rows, answers: Rows, __: list[str]) -> None:
    table = pq.read_table(source)  # not the rows: they have lost their types
    for name in answers[0] if answers else ():
        table = table.append_column(name, pa.array([answer[name] for answer in answers]))
    pq.write_table(table, path)


_READERS: dict[str, Callable[[Path], tuple[Rows, list[str]]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Callable[[Path, Path, Rows, Rows, list[str]], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".tsv": _write_csv,
    ".parquet": _write_parquet,
}

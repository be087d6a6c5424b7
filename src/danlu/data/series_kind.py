"""Series as a kind of data: a record is a long table of one series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danlu.artifact import read_json
from danlu.data.clock import show
from danlu.data.long_table import by_column
from danlu.data.modality import Spec
from danlu.data.series import Panel
from danlu.data.series_encoder import FILE, SeriesEncoder
from danlu.data.split import NAMES, TRAIN
from danlu.data.windows import SeriesDocuments
from danlu.errors import DataError, InputError
from danlu.recipe import Recipe

Row = dict[str, Any]
_SHOWN = 4  # training windows that the report draws


def periods(bounds: Sequence[float]) -> dict[str, tuple[float, float]]:
    """Return from when to when each split goes."""
    first, second = bounds
    times = ((-np.inf, first), (first, second), (second, np.inf))
    return dict(zip(NAMES, times, strict=True))


class SeriesReader:
    """Reads long tables of one series each."""

    def __init__(self, encoder: SeriesEncoder) -> None:
        self.encoder, self.spec = encoder, encoder.spec

    def clean(self, record: Any) -> Any:
        """Return the table by columns; nothing remains of one without rows."""
        if isinstance(record, Mapping):
            return {name: list(cells) for name, cells in record.items()}
        return by_column(record)

    def read(self, records: Sequence[Any]) -> tuple[SeriesDocuments, list[Row]]:
        """Return one window for each table: the one that ends with its last measurement."""
        documents = self.encoder.encode(records)
        return documents, [self._note(documents, row) for row in range(len(documents))]

    def _note(self, documents: SeriesDocuments, row: int) -> Row:
        """Count what the window lacks of measurements."""
        begin = int(documents.start[row])
        seen = documents.values[begin : begin + int(documents.length[row])]
        return {"missing": int(np.isnan(seen).sum())}

    def parse(self, question: Any) -> list[Row]:
        """Take a list of rows, each an object with a cell for each column."""
        if not isinstance(question, list) or not all(isinstance(row, dict) for row in question):
            raise InputError("a history is a list of rows: [{column: value, …}, …]")
        own = self.encoder.settings
        if question and own.time != "row" and not any(own.time in row for row in question):
            raise DataError(f"no row has the column of times, {own.time!r}")
        return question


class Series:
    """Tables of measurements over time."""

    files: tuple[str, ...] = (FILE,)

    def encode(self, recipe: Recipe, data: Path, folder: Path) -> Row:
        """Fit scales on the training period, and enumerate the windows of every split."""
        panel, bounds = Panel.load(data), read_json(data / "report.json")["cuts"]
        encoder = SeriesEncoder.fit(panel, recipe.series, bounds[0])
        encoder.save(folder)
        settings = encoder.settings
        report: Row = {
            "vocab_size": encoder.spec.vocab_size,
            "step": [panel.step.size, panel.step.unit],
            "variables": settings.variables,
            "target": settings.target,
            "known": encoder.known,
            "left_out": [name for name in panel.known if name not in encoder.known],
            "scale": settings.scale,
            "mean": encoder.mean[-1].tolist(),
            "deviation": encoder.deviation[-1].tolist(),
            "splits": {},
        }
        for name, (begin, end) in periods(bounds).items():
            documents, counts = encoder.windows(panel, begin, end)
            if not len(documents):
                raise DataError(
                    f"the {name} period holds no whole window of {settings.context} steps to look "
                    f"back on and {settings.horizon} to foretell",
                    where="series.context",
                    mend="a shorter context or horizon, or more data",
                )
            documents.save(folder, name)
            found = documents.count() | counts
            rows = np.arange(len(documents))
            found["untold"] = int(np.isnan(documents.targets(rows)).sum())
            report["splits"][name] = {
                "documents": len(documents), "positions": int(documents.sizes.sum()), **found,
            }  # fmt: skip
            if name == TRAIN:
                report["samples"] = [
                    sample(documents, row, panel.dates)
                    for row in np.unique(np.linspace(0, len(documents) - 1, _SHOWN).astype(int))
                ]
        return report

    def seen(self, recipe: Recipe, report: Row) -> str:
        """Say how many windows there are, and what they lack."""
        train = report["splits"][TRAIN]
        return (
            f"{train['windows']:,} training windows of {recipe.series.context} steps and "
            f"{recipe.series.horizon} ahead; {train['empty']:,} left out, "
            f"{train['untold']:,} of what is to be foretold is missing"
        )

    def documents(self, folder: Path, name: str) -> SeriesDocuments:
        """Map the windows of a split."""
        return SeriesDocuments.load(folder, name)

    def spec(self, folder: Path) -> Spec:
        """Return what a position holds."""
        return SeriesEncoder.load(folder).spec

    def reader(self, folder: Path, config: Row) -> SeriesReader:  # noqa: ARG002 - the encoder's file holds all
        """Read the encoder."""
        return SeriesReader(SeriesEncoder.load(folder))


def sample(documents: SeriesDocuments, row: int, dates: bool) -> Row:
    """Return one window's target variable, in the user's units and times, for a picture."""
    begin, length = int(documents.start[row]), int(documents.length[row])
    end = begin + length + documents.horizon
    values = documents.values[begin:end, documents.target]
    return {
        "time": [show(float(time), dates) for time in documents.time[begin:end]],
        "value": [None if np.isnan(value) else float(value) for value in values],
        "past": length,
        "patch": documents.patch,
    }

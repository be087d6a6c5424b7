"""Fitting and using what turns series into windows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.data.clock import CYCLES, Step
from danlu.data.modality import Spec
from danlu.data.series import Columns, Panel, extend, read
from danlu.data.windows import CLIP, VALUE_ID, SeriesDocuments, starts
from danlu.errors import DataError
from danlu.recipe.series import Series

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

FILE = "encoder.json"


@dataclass(frozen=True, slots=True)
class SeriesEncoder:
    """Turns series into windows; fitted on the training period alone.

    Attributes
    ----------
    settings : Series
        With `variables` and `target` filled in.
    step : Step
    known : tuple of str
        What is known in advance, the calendar included. A cycle of the calendar is left out
        where training does not see it twice: it would tell training's months apart, and say
        nothing of those to come.
    names : tuple of str
        The training series.
    mean, deviation : NDArray of float64, shape (S + 1, V)
        The variables' in each training series, and in all of them together.
    known_mean, known_deviation : NDArray of float64, shape (C,)
    """

    settings: Series
    step: Step
    known: tuple[str, ...]
    names: tuple[str, ...]
    mean: Floats
    deviation: Floats
    known_mean: Floats
    known_deviation: Floats

    @classmethod
    def fit(cls, panel: Panel, settings: Series, end: float = math.inf) -> SeriesEncoder:
        """Look at the steps before `end`, where validation begins.

        Raises
        ------
        DataError
            If a variable was not measured by then.
        """
        of = panel.time_L < end
        values = panel.values_LV[of]
        together = _moments(values)
        if len(bad := np.flatnonzero(np.isnan(together[0]))):
            name = panel.variables[bad[0]]
            raise DataError(f"{name!r} was never measured in training", where="series.variables")
        means, deviations = [], []
        for number in range(len(panel)):
            mean, deviation = _moments(values[panel.series_of[of] == number])
            known = ~np.isnan(mean) & (settings.scale != "global")
            means.append(np.where(known, mean, together[0]))
            deviations.append(np.where(known & (deviation > 0), deviation, together[1]))
        kept = _seen_twice(panel, float(np.ptp(panel.time_L[of])))
        known_mean, known_deviation = _moments(panel.known_LC[of][:, kept])
        known_mean = np.nan_to_num(known_mean)
        known_deviation = np.where(known_deviation > 0, known_deviation, 1.0)
        cycles = kept >= len(panel.known) - panel.num_calendar
        known_mean[cycles], known_deviation[cycles] = 0.0, 1.0
        target = settings.target or panel.variables[0]
        return cls(
            settings=settings.model_copy(update={"variables": panel.variables, "target": target}),
            step=panel.step,
            known=tuple(panel.known[place] for place in kept),
            names=panel.names,
            mean=np.stack([*means, together[0]]),
            deviation=np.stack([*deviations, np.where(together[1] > 0, together[1], 1.0)]),
            known_mean=known_mean,
            known_deviation=known_deviation,
        ).checked()

    def checked(self) -> SeriesEncoder:
        """Replace deviations of 0, of what never changes, by 1."""
        return replace(self, deviation=np.where(self.deviation > 0, self.deviation, 1.0))

    @property
    def spec(self) -> Spec:
        """What the documents hold."""
        dims = self.settings.patch * (2 * len(self.settings.variables) + len(self.known))
        return Spec(VALUE_ID + self.places, dims, self.places)

    @property
    def places(self) -> int:
        """Positions of a window; 1 where they differ, see :class:`SeriesDocuments`."""
        own = self.settings
        return 1 if own.whole else -(-own.context // own.patch) - (-own.horizon // own.patch)

    @property
    def target(self) -> int:
        """The place of the variable to foretell."""
        return self.settings.variables.index(self.settings.target or "")

    def windows(
        self, panel: Panel, begin: float = -math.inf, end: float = math.inf
    ) -> tuple[SeriesDocuments, dict[str, int]]:
        """Return the windows of one period, see :func:`starts`, and its counts."""
        series, start, length, counts = starts(panel, self.settings, begin, end)
        return self._documents(panel, series, start, length), counts

    def _documents(self, panel: Panel, series: Rows, start: Rows, length: Rows) -> SeriesDocuments:
        place = {name: number for number, name in enumerate(self.names)}
        rows = np.asarray([place.get(name, len(self.names)) for name in panel.names], np.int64)
        places = [panel.known.index(name) for name in self.known]
        known = (panel.known_LC[:, places] - self.known_mean) / self.known_deviation
        return SeriesDocuments(
            values=panel.values_LV,
            known=np.clip(np.nan_to_num(known), -CLIP, CLIP).astype(np.float32),
            time=panel.time_L,
            mean=self.mean[rows],
            deviation=self.deviation[rows],
            series=series,
            start=start,
            length=length,
            patch=self.settings.patch,
            horizon=self.settings.horizon,
            target=self.target,
            scale=self.settings.scale,
            jitter=self.settings.jitter,
            places=self.places,
        )

    def encode(self, records: Sequence[Columns]) -> SeriesDocuments:
        """Return one window for each record, as a released model is asked.

        Parameters
        ----------
        records : sequence of mapping of str to sequence
            Each a long table of one series, see :func:`danlu.data.series.read`. The window
            looks back from its last measurement of the target; what a table lacks of the
            context stands for missing. Later rows may give covariates of the horizon.

        Raises
        ------
        DataError
            If a record holds several series, or no measurement of the target.
        """
        panels, lengths, begins = [], [], []
        for number, record in enumerate(records):
            panel, _ = read(record, self.settings, step=self.step)
            measured = np.flatnonzero(~np.isnan(panel.values_LV[:, self.target]))
            if len(panel) != 1 or not len(measured):
                what = "several series" if len(panel) != 1 else "no measurement of the target"
                raise DataError(f"a record holds {what}", where=f"record {number + 1}")
            length = len(panel.time_L) if self.settings.whole else self.settings.context
            after = max(0, int(measured[-1]) + 1 + self.settings.horizon - len(panel.time_L))
            before = 0 if self.settings.whole else max(0, length - int(measured[-1]) - 1)
            panels.append(extend(panel, before, after))
            begins.append(0 if self.settings.whole else before + int(measured[-1]) + 1 - length)
            lengths.append(length)
        if not panels:
            raise DataError("there is no series to encode")
        sizes = [len(panel.time_L) for panel in panels]
        offsets = np.append(0, np.cumsum(sizes))
        joined = replace(
            panels[0],
            names=tuple(panel.names[0] for panel in panels),
            offsets=offsets,
            time_L=np.concatenate([panel.time_L for panel in panels]),
            values_LV=np.concatenate([panel.values_LV for panel in panels]),
            known_LC=np.concatenate([panel.known_LC for panel in panels]),
            label_L=None,
            row_L=np.concatenate([panel.row_L for panel in panels]),
        )
        start = offsets[:-1] + np.asarray(begins, np.int64)
        return self._documents(joined, np.arange(len(panels)), start, np.asarray(lengths, np.int64))

    def load_documents(self, folder: Path, name: str) -> SeriesDocuments:
        """Map the documents of a split."""
        return SeriesDocuments.load(folder, name)

    def save(self, folder: Path) -> None:
        """Write ``encoder.json``."""
        content: dict[str, Any] = {
            "modality": "series",
            "settings": self.settings.model_dump(mode="json"),
            "step": [self.step.size, self.step.unit],
            "known": self.known,
            "names": self.names,
        }
        arrays = ("mean", "deviation", "known_mean", "known_deviation")
        content |= {name: getattr(self, name).tolist() for name in arrays}
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SeriesEncoder:
        """Read what :meth:`save` wrote."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(
            settings=Series(**content["settings"]),
            step=Step(*content["step"]),
            known=tuple(content["known"]),
            names=tuple(content["names"]),
            mean=np.asarray(content["mean"], np.float64),
            deviation=np.asarray(content["deviation"], np.float64),
            known_mean=np.asarray(content["known_mean"], np.float64),
            known_deviation=np.asarray(content["known_deviation"], np.float64),
        )


def _seen_twice(panel: Panel, span: float) -> Rows:
    """Return the places of what is known, without cycles longer than half of the time."""
    first = len(panel.known) - panel.num_calendar
    places = range(len(panel.known))
    return np.asarray(
        [n for n in places if n < first or 2 * CYCLES[panel.known[n].split()[0]] <= span], np.int64
    )


def _moments(values: Floats) -> tuple[Floats, Floats]:
    """Return each column's mean and deviation; NaN where nothing was measured."""
    there = ~np.isnan(values)
    count = np.maximum(there.sum(0), 1)
    mean = np.where(there, values, 0.0).sum(0) / count
    squares = np.where(there, values - mean, 0.0) ** 2
    nothing = ~there.any(0)
    return (
        np.where(nothing, math.nan, mean),
        np.where(nothing, math.nan, np.sqrt(squares.sum(0) / count)),
    )

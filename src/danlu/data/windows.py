"""Windows of series as documents: a few steps, a *patch*, stand at each position.

A value holds, for each step of its patch, the variables, whether each is missing (0 or 1), and
what is known in advance. Windows are told by where they begin; nothing is copied until a batch
is laid out.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from danlu.batch import Batch
from danlu.data.modality import NUM_SPECIAL, lay_end_to_end
from danlu.data.series import Panel
from danlu.errors import DataError
from danlu.recipe.series import Series

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

CLIP = 10.0
"""Deviations beyond which a measurement that the model sees is taken for this many."""
_FLAT = 0.01  # of training's deviation: the least that a window is scaled with
VALUE_ID = NUM_SPECIAL
_ARRAYS = ("values", "known", "time", "mean", "deviation", "series", "start", "length")


@dataclass(frozen=True, slots=True)
class SeriesDocuments:
    """Windows of series; memory-mapped where they were loaded.

    Attributes
    ----------
    values : NDArray of float64, shape (L, V)
        The series end to end in the user's units; NaN where missing.
    known : NDArray of float32, shape (L, C)
        What is known in advance, scaled; 0 where missing.
    time : NDArray of float64, shape (L,)
    mean, deviation : NDArray of float64, shape (S, V)
        Of each series over the training period.
    series, start, length : NDArray of int64, shape (n,)
        Of each window: its series, its first step in L, and the steps that it looks back on.
    patch, horizon, target : int
        `target` is a place in V.
    scale : {"series", "global", "window"}
    jitter : float
        Noise added to measurements where a generator is given (deviations).
    places : int
        Positions of a window, where all have equally many: each has an id of its own, and with
        it a learnt embedding, which tells the model how far back or ahead it stands. 1 where
        windows differ in length: all positions have the same id.
    """

    values: Floats
    known: NDArray[np.float32]
    time: Floats
    mean: Floats
    deviation: Floats
    series: Rows
    start: Rows
    length: Rows
    patch: int
    horizon: int
    target: int
    scale: str
    jitter: float = 0.0
    places: int = 1

    def __len__(self) -> int:
        return len(self.start)

    @property
    def sizes(self) -> Rows:
        """Positions of each window: patches that it looks back on, and those of the horizon."""
        return -(-self.length // self.patch) + -(-self.horizon // self.patch)

    def _steps(self, rows: Rows) -> tuple[Rows, NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the step at each place of the windows' patches.

        Returns
        -------
        step : NDArray of int64, shape (number of patches, patch)
            Any step where there is none.
        there : NDArray of bool, same shape
            Whether there is one: a last patch may be part empty.
        past : NDArray of bool, same shape
            Whether it is looked back on.
        """
        before = -(-self.length[rows] // self.patch)
        sizes = self.sizes[rows]
        window = np.repeat(np.arange(len(rows)), sizes)
        place = np.arange(len(window)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        past = place < before[window]
        ahead = place - before[window]
        begin = np.where(past, place, ahead) * self.patch
        inside = begin[:, None] + np.arange(self.patch)
        limit = np.where(past, self.length[rows][window], self.horizon)
        there = inside < limit[:, None]
        offset = self.start[rows][window] + np.where(past, 0, self.length[rows][window])
        step = np.minimum(offset[:, None] + inside, len(self.time) - 1)
        return step, there, np.broadcast_to(past[:, None], there.shape)

    def scales(self, rows: Rows) -> tuple[Floats, Floats]:
        """Return the mean and deviation that each window's variables are scaled with.

        Returns
        -------
        mean, deviation : NDArray of float64, shape (n, V)
            Scaled numbers × deviation + mean are in the user's units.

        Notes
        -----
        Scaling a window by itself and scaling its answer back is what reversible instance
        normalisation does (Kim et al., 2022), without learnt parameters. A window in which
        a variable never changes is scaled with 1% of training's deviation.
        """
        mean, deviation = self.mean[self.series[rows]], self.deviation[self.series[rows]]
        if self.scale != "window":
            return mean, deviation
        means, deviations = mean.copy(), deviation.copy()
        for length in np.unique(self.length[rows]).tolist():
            of = np.flatnonzero(self.length[rows] == length)
            seen = self.values[self.start[rows[of], None] + np.arange(length)]
            there = ~np.isnan(seen)
            count = there.sum(1)
            total = np.where(there, seen, 0.0).sum(1)
            middle = np.where(count > 0, total / np.maximum(count, 1), mean[of])
            squares = np.where(there, seen - middle[:, None], 0.0) ** 2
            own = np.sqrt(squares.sum(1) / np.maximum(count, 1))
            means[of], deviations[of] = middle, np.maximum(own, _FLAT * deviation[of])
        return means, deviations

    def lay(self, rows: Rows, generator: np.random.Generator | None = None) -> Batch:
        """Lay windows end to end in one row.

        A value is, for each step of its patch in turn, V variables (0 where missing), V
        numbers that are 1 where a variable is missing, and C that are known in advance. In
        the patches of the horizon all variables are missing.

        Parameters
        ----------
        rows : NDArray of int64, shape (n,)
        generator : Generator, optional
            Draws the noise of `jitter`.
        """
        rows = np.asarray(rows, np.int64)
        step, there, past = self._steps(rows)
        window = np.repeat(np.arange(len(rows)), self.sizes[rows])
        mean, deviation = self.scales(rows)
        scaled = (self.values[step] - mean[window, None]) / deviation[window, None]
        if generator is not None and self.jitter:
            scaled += self.jitter * generator.standard_normal(scaled.shape)
        missing = np.isnan(scaled) | ~(there & past)[..., None]
        scaled = np.where(missing, 0.0, np.clip(scaled, -CLIP, CLIP))
        known = np.where(there[..., None], self.known[step], 0.0)
        values = np.concatenate([scaled, missing, known], axis=2).reshape(len(step), -1)
        sizes = self.sizes[rows]
        place = np.arange(len(values)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        ids = (VALUE_ID + place % self.places).astype(np.int32)
        slots = np.arange(len(values), dtype=np.int64)
        return lay_end_to_end(ids, self.sizes[rows], rows, values.astype(np.float32), slots)

    def matrix(self, rows: Rows) -> NDArray[np.float32]:
        """Return windows of equal length as the rows of a matrix, for classical models.

        Raises
        ------
        DataError
            If they are not equally long.
        """
        sizes = self.sizes[rows]
        if len(np.unique(sizes)) > 1:
            raise DataError("the series are not equally long", where="series.whole")
        values = self.lay(rows).values_UK
        assert values is not None
        return np.asarray(values.numpy().reshape(len(rows), -1), np.float32)

    def origins(self, rows: Rows) -> Rows:
        """Return the step in L after the last that each window looks back on."""
        found: Rows = self.start[rows] + self.length[rows]
        return found

    def targets(self, rows: Rows, scaled: bool = True) -> Floats:
        """Return the target variable over the horizon, shape (n, horizon); NaN where missing."""
        truth = self.values[self.origins(rows)[:, None] + np.arange(self.horizon), self.target]
        if not scaled:
            return np.asarray(truth, np.float64)
        mean, deviation = self.scales(rows)
        found: Floats = (truth - mean[:, [self.target]]) / deviation[:, [self.target]]
        return found

    def restore(self, rows: Rows, scaled: Floats) -> Floats:
        """Turn answers about the target variable back into the user's units.

        Parameters
        ----------
        rows : NDArray of int64, shape (n,)
        scaled : NDArray of float, shape (n, ...)
        """
        shape = (len(rows),) + (1,) * (scaled.ndim - 1)
        mean, deviation = (part[:, self.target].reshape(shape) for part in self.scales(rows))
        return scaled * deviation + mean

    def times(self, rows: Rows) -> Floats:
        """Return the times of the horizon, shape (n, horizon)."""
        found: Floats = self.time[self.origins(rows)[:, None] + np.arange(self.horizon)]
        return found

    def count(self) -> dict[str, int]:
        """Count windows, steps and measurements that the windows look back on.

        Of the measurements, ``missing`` and ``clipped`` ones are counted once for each window
        that sees them.
        """
        found = {"windows": len(self), "steps": len(self.time), "missing": 0, "clipped": 0}
        for begin in range(0, len(self), 1024):
            rows = np.arange(begin, min(begin + 1024, len(self)))
            step, there, past = self._steps(rows)
            window = np.repeat(np.arange(len(rows)), self.sizes[rows])
            mean, deviation = self.scales(rows)
            scaled = (self.values[step] - mean[window, None]) / deviation[window, None]
            seen = scaled[there & past]
            found["missing"] += int(np.isnan(seen).sum())
            found["clipped"] += int((np.abs(seen) > CLIP).sum())
        return found

    def save(self, folder: Path, name: str) -> None:
        """Write ``NAME.PART.npy`` for each array, and ``NAME.json``."""
        for part in _ARRAYS:
            np.save(folder / f"{name}.{part}.npy", getattr(self, part))
        rest = {
            "patch": self.patch, "horizon": self.horizon, "target": self.target,
            "scale": self.scale, "jitter": self.jitter, "places": self.places,
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(rest), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str) -> SeriesDocuments:
        """Map what :meth:`save` wrote."""
        arrays = {part: np.load(folder / f"{name}.{part}.npy", mmap_mode="r") for part in _ARRAYS}
        return cls(**arrays, **json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))


def starts(
    panel: Panel, settings: Series, begin: float = -math.inf, end: float = math.inf
) -> tuple[Rows, Rows, Rows, dict[str, int]]:
    """Enumerate the windows of one period.

    Parameters
    ----------
    panel : Panel
    settings : Series
    begin, end : float
        The period: from `begin`, and before `end`. What a window foretells lies in it; what it
        looks back on may lie before it, for that is known by then. A window that foretells
        nothing lies in the period altogether.

    Returns
    -------
    series, start, length : NDArray of int64, shape (n,)
        See :class:`SeriesDocuments`.
    counts : dict
        ``windows``; ``short``, series without one; and ``empty``, windows left out because
        nothing of what they look back on, or of the target, was measured.
    """
    target = panel.variables.index(settings.target) if settings.target else 0
    measured = ~np.isnan(panel.values_LV)
    any_before = np.append(0, np.cumsum(measured.any(1)))
    target_before = np.append(0, np.cumsum(measured[:, target]))
    found: list[tuple[Rows, Rows, Rows]] = []
    short = empty = 0
    for number in range(len(panel)):
        low, high = int(panel.offsets[number]), int(panel.offsets[number + 1])
        time = panel.time_L[low:high]
        first, last = (low + int(np.searchsorted(time, bound)) for bound in (begin, end))
        context = last - first if settings.whole else settings.context
        if settings.horizon:
            first = max(low, first - context)
        start = np.arange(first, last - context - settings.horizon + 1, settings.stride)
        if not len(start) or not context:
            short += 1
            continue
        origin = start + context
        good = any_before[origin] > any_before[start]
        if settings.horizon:
            good &= target_before[origin + settings.horizon] > target_before[origin]
        empty += int((~good).sum())
        start = start[good]
        found.append((np.full_like(start, number), start, np.full_like(start, context)))
    parts = [np.concatenate(part) for part in zip(*found, strict=True)]
    series, start, length = parts or [np.zeros(0, np.int64)] * 3
    return series, start, length, {"windows": len(start), "short": short, "empty": empty}


def labels(panel: Panel, documents: SeriesDocuments) -> NDArray[np.object_]:
    """Return each window's label: that of its last step; None where it has none.

    Raises
    ------
    DataError
        If there is no column of labels.
    """
    if panel.label_L is None:
        raise DataError("there is no column of labels", where="data.label")
    last = documents.start + documents.length - 1
    return np.asarray(panel.label_L[last], object)

"""``danlu new`` for time series: whether rows follow each other in time, and what is asked of them.

Rows are a series if a column of times, perhaps of each value of another column, goes on in steps
that are mostly alike. A table in which dates come twice or at random is none.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from danlu.data.clock import Step, read_numbers, read_times
from danlu.data.guess_base import CLASSES, Guess, Rows, Seen, quote
from danlu.data.guess_table import TARGETS, counts_rows, texts_of
from danlu.data.table import tidy
from danlu.errors import DataError

Floats = NDArray[np.float64]

_TIMES = re.compile(
    r"^(time|times|timestamp|date|datetime|date_?time|ds|day|week|month|quarter|year|period|hour"
    r"|时间|日期)$",
    re.IGNORECASE,
)
_STRANGE = re.compile(
    r"^(is_?)?(anomaly|anomalies|anomalous|outlier|fault|attack|abnormal|alarm|failure|label)$",
    re.IGNORECASE,
)
_FORETOLD = re.compile(
    r"^(target|value|y|ot|demand|sales|load|price|close|count|volume)$", re.IGNORECASE
)
_ALIKE, _NEAR = 0.75, 0.1  # share of steps alike (working days: 0.78), and how near the median
_SURE = 0.99  # share of cells that are times or numbers, and of times that come once
_SHORTEST = 40  # steps of a series
_RARE = 0.2  # share of rows up to which a label says what is strange
_PERIODIC = 0.4  # autocorrelation from which a lag is a season
_UNITS = (("W", 604_800), ("D", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_MONTHS = {1: "1M", 3: "1Q", 12: "1Y"}


@dataclass(frozen=True, kw_only=True)
class SeriesGuess(Guess):
    """Series.

    Attributes
    ----------
    time : str
        Column.
    series : str or None
        Column that tells them apart.
    variables : list of str
        Columns of measurements.
    target : str or None
        The one that is to be foretold.
    normal : str or None
        The label of what is normal.
    frequency : str
    season, long_season, context, horizon, patch : int
        Steps.
    test : float
        Share of the steps.
    """

    modality: ClassVar[str] = "series"

    time: str
    series: str | None
    variables: list[str]
    target: str | None
    normal: str | None
    frequency: str
    season: int
    long_season: int
    context: int
    horizon: int
    patch: int
    test: float

    def reads(self) -> str:
        """Say nothing: the columns have a section of their own."""
        return ""

    def sections(self) -> str:
        """Return the sections behind ``[data]``."""
        key = f"series = {quote(self.series)}\n" if self.series else ""
        own = self._foretell() if self.task == "forecast" else self._detect()
        return f"""
[data.split]\t# by time: what is foretold must lie ahead
test = {self.test:g}
validation = 0.1

[series]
time = {quote(self.time)}
{key}frequency = {quote(self.frequency)}
variables = [{", ".join(map(quote, self.variables))}]
{own.strip()}
"""

    def _foretell(self) -> str:
        small = self.rows < 2000
        longer = f"long_season = {self.long_season}\n" if self.long_season else ""
        return f"""
target = {quote(self.target or "")}
covariates = []\t# columns known in advance, such as holidays
context = {self.context}\t# steps that the model looks back on
horizon = {self.horizon}\t# steps to foretell
patch = {self.patch}\t# steps at a position
season = {self.season}\t# for the baselines
{longer}
[model]
depth = 1
width = {32 if small else 64}
head_dim = {16 if small else 32}

[pretrain]
objective = "none"

[finetune]
steps = {300 if small else 800}
batch_size = 64
optimizer = "adamw"
learning_rate = 1e-3
checkpoint_every = {50 if small else 100}

[gate]\t# what must hold before the model is released; `- baseline` asks
require = ["test.mase - seasonal-naive < 0"]\t# for more than the strongest classical one
"""

    def _detect(self) -> str:
        return f"""
normal = {quote(self.normal or "")}\t# every other label is an anomaly
context = {self.context}\t# steps of a window, which is judged as a whole
patch = {self.patch}
horizon = 0
scale = "{"series" if self.series else "global"}"

[model]
backbone = "mlp"\t# an autoencoder: what it rebuilds badly is strange
depth = 1
width = 64
activation = "gelu"

[pretrain]
objective = "none"

[finetune]
steps = {400 if self.rows < 2000 else 1000}
batch_size = 128
optimizer = "adamw"
learning_rate = 2e-3
dropout = 0.0
trim = 0.1\t# the tenth of each batch that is rebuilt worst teaches nothing
checkpoint_every = 100

[gate]\t# what must hold before the model is released; for more than the
require = ["test.roc_auc > 0.5"]\t# classical one: test.f1 - baseline > 0
"""


@dataclass(frozen=True, slots=True)
class _Order:
    """How rows follow each other: the columns, the step, and each row's series and time."""

    time: str
    key: str | None
    step: Step
    series: NDArray[np.int64]
    times: Floats

    @property
    def num_series(self) -> int:
        return int(self.series.max()) + 1

    def steps(self, total: int) -> int:
        """Return about how many steps the middle one of the series has, of `total` rows."""
        sizes = np.bincount(self.series)
        if (np.diff(self.times) >= 0).all():  # all series side by side
            return total // len(sizes)
        return int(np.median(sizes[:-1] if len(sizes) > 1 else sizes))


def of_table(seen: Seen, target: str | None, reasons: list[str]) -> SeriesGuess | None:
    """Return what a table of measurements over time suggests; None if it is none.

    Raises
    ------
    DataError
        If a column may be a label, or what is to be foretold, and it is not clear which.
    """
    if seen.file.format == "txt" or len(seen.rows) < _SHORTEST:
        return None
    if texts_of(seen.rows, seen.names, target or ""):
        return None  # where texts stand beside, it is they that are to be read
    order = _order(seen)
    if order is None:
        return None
    used = {order.time, order.key}
    label = _label(seen, used, target)
    numbers = [n for n in seen.names if n not in {*used, label} and _measures(seen.cells(n))]
    if not numbers or (target is not None and target not in {label, *numbers}):
        return None
    _tell_order(order, reasons)
    away = [n for n in seen.names if n not in {*used, label, *numbers}]
    if away:
        reasons.append(f"left out: {', '.join(map(repr, away))}, for no numbers vary there")
    common: dict[str, Any] = {
        "data": seen.data, "sources": seen.sources, "rows": seen.total, "reasons": reasons,
        "time": order.time, "series": order.key, "frequency": _written(order.step),
    }  # fmt: skip
    if label is not None:
        return _to_detect(seen, order, label, numbers, common)
    return _to_forecast(seen, order, target, numbers, common)


def _order(seen: Seen) -> _Order | None:
    """Find the column of times, and the one that tells series apart."""
    named = [name for name in seen.names if _TIMES.match(name)]
    for name in [*named, *(name for name in seen.names if name not in named)]:
        cells = seen.cells(name)
        if name not in named and not _looks_dated(cells):
            continue
        try:
            times, dates = read_times(cells)
        except DataError:
            continue
        if np.isfinite(times).mean() < _SURE:
            continue
        for key in [None, *_keys(seen.rows, seen.names, name)]:
            series = np.zeros(len(times), np.int64)
            if key is not None:
                series = np.unique([str(cell) for cell in seen.cells(key)], return_inverse=True)[1]
            step = _steady(times, series.astype(np.int64), dates)
            if step is not None:
                return _Order(name, key, step, series.astype(np.int64), times)
    return None


def _looks_dated(cells: Sequence[Any]) -> bool:
    texts = [str(cell) for cell in cells[:20] if tidy(cell) is not None]
    return bool(texts) and all(re.match(r"\d{4}-?\d\d(-?\d\d|$)", text) for text in texts)


def _keys(rows: Rows, names: list[str], time: str) -> list[str]:
    """Return the columns that may tell series apart, those of fewest values first."""
    different = {name: len({str(row.get(name)) for row in rows}) for name in names if name != time}
    most = len(rows) / _SHORTEST
    return sorted((n for n, d in different.items() if 2 <= d <= most), key=different.__getitem__)


def _steady(times: Floats, series: NDArray[np.int64], dates: bool) -> Step | None:
    """Return the step in which most rows of each series follow each other; None if none is."""
    order = np.lexsort((times, series))
    order = order[np.isfinite(times[order])]
    gaps = np.diff(times[order])[np.diff(series[order]) == 0]
    apart = gaps[gaps > 0]
    if len(apart) < _SURE * len(gaps) or np.median(np.bincount(series)) < _SHORTEST:
        return None
    middle = float(np.median(apart))
    if (np.abs(apart - middle) <= _NEAR * middle).mean() < _ALIKE:
        return None
    return Step.infer(apart, dates)


def _label(seen: Seen, used: set[str | None], target: str | None) -> str | None:
    """Return the column that says which steps are strange; None if there is none.

    Raises
    ------
    DataError
        If a column looks like a label, and not like one of that kind.
    """
    names = [target] if target is not None else [n for n in seen.names if n not in used]
    for name in names:
        values = Counter(str(c) for cell in seen.cells(name) if (c := tidy(cell)) is not None)
        common = values.most_common(1)[0][1] if values else 0
        two = len(values) == 2
        if two and (target is not None or _STRANGE.match(name)):
            return name
        words = sum(not math.isnan(float(n)) for n in read_numbers(list(values))) < len(values)
        if target is None and words and 2 <= len(values) <= CLASSES and TARGETS.match(name):
            if two and values.total() - common <= _RARE * values.total():
                return name
            raise DataError(
                f"the rows are a series over time, and the column {name!r} may be their label",
                where=str(seen.data),
                mend=f"say what is to be foretold: --target {name!r}, or a column of measurements",
            )
    return None


def _measures(cells: Sequence[Any]) -> bool:
    """Return whether a column holds numbers that vary, and do not only count the rows."""
    given = [c for cell in cells if (c := tidy(cell)) is not None]
    found = read_numbers(given) if given else np.zeros(0)
    sure = len(found) and np.isfinite(found).mean() >= _SURE and len(np.unique(found)) > 1
    return bool(sure) and not counts_rows(found.tolist())


def _tell_order(order: _Order, reasons: list[str]) -> None:
    reasons.append(f"a series: column {order.time!r} goes on in steps of {_written(order.step)}")
    if order.key is not None:
        reasons.append(f"series: column {order.key!r} tells {order.num_series} of them apart")


def _written(step: Step) -> str:
    """Return a step as a recipe has it.

    >>> _written(Step(1800.0, "s")), _written(Step(3, "month")), _written(Step(2.0))
    ('30min', '1Q', '2')
    """
    if step.unit == "month":
        return _MONTHS.get(int(step.size), f"{int(step.size)}M")
    if step.unit == "":
        return f"{step.size:.12g}"
    unit, size = next((u for u in _UNITS if step.size % u[1] == 0), _UNITS[-1])
    return f"{step.size / size:.12g}{unit}"


def _to_detect(
    seen: Seen, order: _Order, label: str, variables: list[str], common: dict[str, Any]
) -> SeriesGuess:
    cells = [str(tidy(cell)) if tidy(cell) is not None else None for cell in seen.cells(label)]
    normal = Counter(cell for cell in cells if cell is not None).most_common(1)[0][0]
    strange = np.asarray([cell is not None and cell != normal for cell in cells])
    common["reasons"].append(
        f"task: detect, for {label!r} is {normal!r} in {1 - strange.mean():.1%} of the rows"
    )
    test = 0.2
    if len(cells) == seen.total:  # all rows were seen
        late = np.sort(order.times[strange])
        times = np.sort(order.times)
        cut = {share: times[int((1 - share) * (len(times) - 1))] for share in (0.2, 0.3, 0.4, 0.5)}
        test = next((share for share, begin in cut.items() if (late > begin).sum() >= 2), 0.0)
        if not test:
            raise DataError(
                "the later half of the rows holds no two anomalies to test a detector on",
                where=label,
                mend="more data, or a column to forecast: --target COLUMN",
            )
        if test > 0.2:
            common["reasons"].append(f"split: the last {test:.0%}, to hold some anomalies")
    context = 8 if order.steps(seen.total) >= 400 else 4
    return SeriesGuess(
        task="detect", label=label, variables=variables, target=None, normal=normal, season=1,
        long_season=0, context=context, horizon=0, patch=context, test=test, **common,
    )  # fmt: skip


def _to_forecast(
    seen: Seen, order: _Order, target: str | None, variables: list[str], common: dict[str, Any]
) -> SeriesGuess:
    reasons, steps = common["reasons"], order.steps(seen.total)
    if target is None:
        target = next((name for name in variables if _FORETOLD.match(name)), variables[0])
        if len(variables) > 1:
            reasons.append(
                f"target: column {target!r} of {len(variables)} (or another by --target)"
            )
    reasons.append(f"task: forecast, for {target!r} holds numbers")
    first = order.series == 0
    values = read_numbers(seen.cells(target))[first][np.argsort(order.times[first])]
    season, longer, why = _seasons(order.step, values)
    reasons.append(f"season: {season} steps, {why}")
    # The test split must hold what is foretold, and training many windows of both.
    horizon = max(1, min(season if season > 1 else 12, steps // 12, 96))
    context = max(2, min(7 * season if season > 1 else 48, steps // 4, 512))
    patch = max(1, context // 28)
    context -= context % patch
    reasons.append(f"windows: {horizon} steps are foretold from {context}, of about {steps:,}")
    return SeriesGuess(
        task="forecast", label=None, variables=variables, target=target, normal=None,
        season=season, long_season=longer if longer < steps // 4 else 0, context=context,
        horizon=horizon, patch=patch, test=0.2, **common,
    )  # fmt: skip


def _seasons(step: Step, values: Floats) -> tuple[int, int, str]:
    """Return the season, a longer one or 0, and where they come from."""
    if step.unit == "month":
        months = int(step.size)
        return max(1, 12 // months), 0, "a year"
    day, week = (round(seconds / step.size) for seconds in (86_400, 604_800))
    if step.unit == "s" and step.size <= 43_200:
        return (day, week if week <= 2016 else 0, "a day") if day <= 288 else (
            max(1, round(3600 / step.size)), 0, "an hour"
        )  # fmt: skip
    if step.unit == "s" and week >= 2:
        return week, 0, "a week"
    lag = _lag(values)
    return (lag, 0, "after which the numbers resemble themselves") if lag else (1, 0, "none seen")


def _lag(values: Floats) -> int:
    """Return the lag at which a series resembles itself most, if it does so clearly; 0 if not."""
    given = np.nan_to_num(np.diff(values))
    given = given - given.mean()
    n = len(given)
    power = np.abs(np.fft.rfft(given, 2 * n)) ** 2
    correlation = np.fft.irfft(power)[: n // 3]
    if len(correlation) < 4 or correlation[0] <= 0:
        return 0
    correlation = correlation / correlation[0]
    peaks = [
        lag for lag in range(2, len(correlation) - 1)
        if correlation[lag] >= max(correlation[lag - 1], correlation[lag + 1])
    ]  # fmt: skip
    best = max(peaks, key=correlation.__getitem__, default=0)
    return best if best and correlation[best] >= _PERIODIC else 0

"""Numbers with units: metric rows, training events, and progress for a waiting person."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LOWER_IS_BETTER = frozenset(
    {
        *("log_loss", "brier", "ece", "mae", "rmse", "loss", "perplexity", "bits_per_byte"),
        *("pinball", "interval_width", "quantiles_crossed", "mase", "smape", "crps"),
        *("cer", "wer", "substitutions", "insertions", "deletions"),
    }
)
"""Metrics of which less is better."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured number: a row of ``metrics.json``, a public contract.

    Attributes
    ----------
    stage : str
        The stage that measured it.
    model : str
        Who was measured: a baseline's name, or the recipe's for the released model.
    split : str
        On which data.
    metric : str
    value : float
    low, high : float or None
        95% interval; None where a count or a cost has none.
    n : int
        How many rows (or tokens) it was measured on.
    unit : str
        Such as ``share``, ``nats``, ``seconds``, ``bytes``.
    interval : str
        How the interval was computed; empty where there is none.
    """

    stage: str
    model: str
    split: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    unit: str
    interval: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)


class Events:
    """An append-only log, one JSON object a line, flushed as it is written.

    Parameters
    ----------
    *paths : Path
        Files that each row goes to.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, with the time in seconds since the epoch."""
        line = json.dumps({"time": round(time.time(), 3), **row}, ensure_ascii=False)
        for path in self._paths:
            with path.open("ab+") as file:
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    file.write(b"\n")  # after a line cut short by a crash
                file.write(line.encode() + b"\n")


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a log; a line cut short by a crash is left out."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Screen:
    """What a person sees while a run is at work; silent for machines.

    Parameters
    ----------
    quiet : bool
        Whether to show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """Print a line of markup."""
        self.console.print(text)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Head a stage's lines with its name, and close them with its time."""
        began = time.perf_counter()
        self.say(f"[bold]{name}[/]")
        yield
        self.say(f"  [dim]{time.perf_counter() - began:.1f} s[/]")

    @contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Bar]:
        """Show a bar with figures and the time left."""
        with Progress(
            SpinnerColumn(),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(f"{unit} · {{task.description}}"),
            TimeElapsedColumn(),
            TextColumn("· left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=self.console.quiet or not self.console.is_terminal,
        ) as progress:
            task = progress.add_task("", total=total)
            yield Bar(progress, task, self, total)


class Bar:
    """A progress bar; without a terminal, a line every so often instead."""

    def __init__(self, progress: Progress, task: Any, screen: Screen, total: int) -> None:
        self._progress, self._task, self._screen, self._total = progress, task, screen, total
        self._began = self._spoke = time.perf_counter()
        self._from = 0

    def begin(self, done: int) -> None:
        """Say how much was done before, so that it does not count for the speed."""
        self._progress.reset(self._task, total=self._total, completed=done)
        self._began, self._from = time.perf_counter(), done

    def update(self, done: int, text: str) -> None:
        """Show how much is done, and a few figures."""
        self._progress.update(self._task, completed=done, description=text)
        now = time.perf_counter()
        if self._progress.disable and now - self._spoke >= 15:
            self._spoke = now
            left = (now - self._began) / max(1, done - self._from) * (self._total - done)
            self._screen.say(f"  {done:,}/{self._total:,} · {text} · left {span(left)}")


def span(seconds: float) -> str:
    """Return a time as a person says it.

    >>> span(42.3), span(754), span(9000)
    ('42 s', '13 min', '2 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def fail(text: str) -> None:
    """Write an error to stderr."""
    print(text, file=sys.stderr)  # noqa: T201 - this is where errors are printed

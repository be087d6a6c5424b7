"""The recipe's section for time series."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from danlu.recipe.base import Count, Positive, Section

Level = Annotated[float, Field(gt=0, lt=1)]


class Series(Section):
    """How a table of measurements becomes series, and series windows."""

    time: str = "time"
    """Column of the times: ISO 8601 dates, or numbers."""
    series: str | None = None
    """Column that tells several series apart."""
    variables: tuple[str, ...] = ()
    """Columns of measurements; all columns of numbers that have no other use if none are named."""
    target: str | None = None
    """The variable to foretell; the first one."""
    covariates: tuple[str, ...] = ()
    """Columns of numbers that are known in advance, such as holidays."""
    start: str | None = None
    """Where the times count steps of `frequency`: the date of time 0 (ISO 8601)."""
    frequency: Annotated[str, Field(pattern=r"^\d*\.?\d*\s*(s|min|h|D|W|M|Q|Y)?$")] | None = None
    """Time from one step to the next, such as `30min`, `1h`, `1D`, `1W`, `1M`, `1Q`, `1Y`, or a
    plain number where the times are numbers; the median of what is found if not given."""
    context: Positive = 96
    """Steps that the model looks back on."""
    horizon: Count = 24
    """Steps to foretell; 0 foretells nothing."""
    patch: Positive = 8
    """Steps that stand at one position; divides `context`."""
    stride: Positive = 1
    """Steps from one window to the next."""
    whole: bool = False
    """Whether each series is one document with one label, however long it is."""
    season: Positive = 1
    """Steps in a season, such as 24 for days of hours; 1 for none. For the baselines and MASE."""
    quantiles: Annotated[tuple[Level, ...], Field(min_length=1)] = (
        0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975,
    )  # fmt: skip
    """Levels of the forecast's quantiles, ascending; 0.5 is among them."""
    scale: Literal["series", "global", "window"] = "window"
    """Measurements are standardised with the training period's mean and deviation, of each series
    by itself or of all together, or with those of the window's own context."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Noise added to the measurements in training (deviations)."""

    @model_validator(mode="after")
    def _fits(self) -> Series:
        if self.context % self.patch and not self.whole:
            raise ValueError(f"context ({self.context}) is not a multiple of patch ({self.patch})")
        if self.whole and self.horizon:
            raise ValueError("a whole series leaves nothing to foretell: set horizon = 0")
        if list(self.quantiles) != sorted(set(self.quantiles)) or 0.5 not in self.quantiles:
            raise ValueError("quantiles must ascend, and 0.5 must be among them")
        if self.start is not None and self.frequency is None:
            raise ValueError("start needs a frequency")
        return self

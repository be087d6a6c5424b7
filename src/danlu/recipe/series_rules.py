"""What no single key of a recipe about time series shows to be wrong."""

from __future__ import annotations

from danlu.recipe.sections import Recipe

Problems = list[tuple[str, str]]


def of_series(recipe: Recipe) -> Problems:
    """Return the path and the text of each problem."""
    data, series, finetune = recipe.data, recipe.series, recipe.finetune
    forecast, detect = data.task == "forecast", data.task == "detect"
    if data.modality != "series":
        rules = [
            (forecast or detect, "data.task", f"{data.task!r} is for data.modality 'series'"),
            (recipe.model.bottleneck > 0, "model.bottleneck", "is for task 'detect'"),
            (finetune.trim > 0, "finetune.trim", "is for task 'detect'"),
        ]
        return [(path, text) for broken, path, text in rules if broken]
    by = data.split.by
    rules = [
        (
            not (forecast or detect),
            "data.task",
            "series are forecast, or searched for anomalies: choose 'forecast' or 'detect'",
        ),
        (
            by is not None and by not in ("near-duplicate", f"time:{series.time}"),
            "data.split.by",
            f"series are split by their time; leave it out, or say 'time:{series.time}'",
        ),
        (
            data.clean.exact_duplicates == "drop" or data.clean.contradictions == "set-aside",
            "data.clean",
            "rows are told apart by their times: of one instant the last stands, and is counted",
        ),
        (
            forecast and data.label is not None,
            "data.label",
            "task 'forecast' has no label; name series.target",
        ),
        (forecast and series.horizon == 0, "series.horizon", "0 steps leave nothing to foretell"),
        (
            forecast and recipe.model.backbone in ("linear", "mlp"),
            "model.backbone",
            "sees one position at a time; choose transformer, cnn, lstm or gru",
        ),
        (
            detect and series.horizon > 0,
            "series.horizon",
            "task 'detect' rebuilds what it sees and foretells nothing: set 0",
        ),
        (
            detect and series.whole,
            "series.whole",
            "task 'detect' looks at windows of `context` steps",
        ),
        (
            detect and series.context == 1 and series.scale == "window",
            "series.scale",
            "a window of one step cannot be scaled by itself; choose 'global' or 'series'",
        ),
        (
            detect and finetune.mask_probability > 0,
            "finetune.mask_probability",
            "what task 'detect' rebuilds must be seen; model.bottleneck keeps it from copying",
        ),
        (
            not detect and recipe.model.bottleneck > 0,
            "model.bottleneck",
            "is for task 'detect'",
        ),
        (not detect and finetune.trim > 0, "finetune.trim", "is for task 'detect'"),
    ]
    return [(path, text) for broken, path, text in rules if broken]

"""What no single key of a recipe that writes down speech shows to be wrong."""

from __future__ import annotations

from danlu.recipe.sections import Recipe

Problems = list[tuple[str, str]]


def of_transcripts(recipe: Recipe) -> Problems:
    """Return the path and the text of each problem."""
    data, finetune = recipe.data, recipe.finetune
    if data.task != "transcribe":
        return []
    rules = [
        (
            data.modality != "audio",
            "data.task",
            "'transcribe' is for data.modality 'audio'",
        ),
        (
            data.label is None,
            "data.label",
            "task 'transcribe' needs the column that holds what is said",
        ),
        (
            finetune.label_smoothing > 0,
            "finetune.label_smoothing",
            "only task 'classify' has it",
        ),
        (
            finetune.choose_by == "accuracy",
            "finetune.choose_by",
            "task 'transcribe' is chosen by its loss",
        ),
    ]
    return [(path, text) for broken, path, text in rules if broken]

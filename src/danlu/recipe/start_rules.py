"""What a recipe says that the checkpoint it begins from has settled."""

from __future__ import annotations

from danlu.recipe.sections import Recipe

Problems = list[tuple[str, str]]


def of_start(recipe: Recipe) -> Problems:
    """Return the path and the text of each problem."""
    if not recipe.model.start:
        return []
    if recipe.data.modality != "text":
        return [("model.start", "a checkpoint to begin from reads texts")]
    settled = {
        "model": set(type(recipe.model).model_fields) - {"start", "causal"},
        "tokenizer": {"vocab_size"},
    }
    return [
        (f"{name}.{key}", "is the checkpoint's own where model.start is given")
        for name, keys in settled.items()
        for key in sorted(keys)
        if getattr(section := getattr(recipe, name), key) != type(section).model_fields[key].default
    ]

"""What of a recipe shapes each stage: the sections that its key is the hash of.

Too little here, and a stage is taken for current that is not; too much, and work is done again.
Sources' paths stand in none of them: what a file holds shapes an artifact, not where it lies.
"""

from __future__ import annotations

from typing import Any

from danlu.recipe import Recipe

Section = dict[str, Any]
_PLACES = ("path", "labels", "sha256")


def of_data(recipe: Recipe) -> Section:
    """Return what reading, cleaning and splitting follow."""
    section = recipe.data.model_dump(mode="json")
    _without_places(section)
    section["protected"] = recipe.audit.protected
    if recipe.data.modality == "table":  # the cells that are kept of a row
        kept = {"columns", "ignore", "texts", "images"}
        section["columns"] = recipe.table.model_dump(include=kept)
        if recipe.table.images:  # and the files
            section["max_pixels"] = recipe.image.max_pixels
    if recipe.data.modality == "series":  # they say how a table becomes series
        section["series"] = recipe.series.model_dump(mode="json")
    if recipe.data.modality == "events":  # likewise histories
        section["events"] = recipe.events.model_dump(include={"user", "item", "time", "min_user"})
    return section


def of_encoding(recipe: Recipe) -> Section:
    """Return what an encoder (of texts: a tokenizer) is fitted by."""
    modality = recipe.data.modality
    own = recipe.tokenizer if modality == "text" else getattr(recipe, modality)
    section: Section = own.model_dump(mode="json")
    if recipe.table.texts:
        section["tokenizer"] = recipe.tokenizer.model_dump(mode="json")
    if recipe.table.images:
        section["image"] = recipe.image.model_dump(mode="json")
    section["causal"] = recipe.model.causal
    section["task"] = recipe.data.task
    if modality != "text":
        section["backbone"] = recipe.model.backbone  # the layout is for it
    return section


def of_training(recipe: Recipe, *stages: str) -> Section:
    """Return what a model, and one or more stages of its training, follow.

    Not in how many processes: what comes of them does not depend on it.
    """
    section = {"model": recipe.model.model_dump(mode="json", exclude={"start"})}
    return section | {name: getattr(recipe, name).model_dump(mode="json") for name in stages}


def of_baseline(recipe: Recipe) -> Section:
    """Return what the classical models are fitted by."""
    section = recipe.baseline.model_dump(mode="json")
    section["quantiles"] = recipe.finetune.quantiles
    if recipe.data.modality == "table":
        section["table"] = recipe.table.model_dump(mode="json")
        seen = {"height", "width", "channels", "fit"}  # of pictures in a row
        section["image"] = recipe.image.model_dump(include=seen)
    return section


def of_evaluation(recipe: Recipe) -> Section:
    """Return what is measured; the size of a batch is left out, for no score depends on it."""
    section = recipe.evaluate.model_dump(mode="json", exclude={"batch_size"})
    return section | {"name": recipe.name}


def of_audit(recipe: Recipe) -> Section:
    """Return whose treatment is measured, and how."""
    about = {"name": recipe.name, "bootstrap": recipe.evaluate.bootstrap}
    return recipe.audit.model_dump(mode="json") | about


def of_report(recipe: Recipe) -> Section:
    """Return all that a report shows of a recipe."""
    section = recipe.model_dump(mode="json")
    _without_places(section["data"])
    return section


def _without_places(data: Section) -> None:
    for source in data["sources"]:
        for key in _PLACES:
            del source[key]

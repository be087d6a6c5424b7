"""The stage that begins from a checkpoint of others: read, checked, and laid out as danlu's own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from danlu.artifact import read_json, write_json
from danlu.data import gguf_tokenizer
from danlu.data.adopt import TOLD, adopt, fingerprint
from danlu.errors import InputError, RecipeError
from danlu.model import hf
from danlu.model.backbone import BackboneConfig
from danlu.model.heads import Model
from danlu.model.hf import gguf
from danlu.model.hf.files import read_json as read_foreign
from danlu.model.hf.files import weight_files
from danlu.recipe import Recipe

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def digest(folder: Path) -> str:
    """Return a hash of everything that is read of a checkpoint."""
    if folder.is_file():
        return fingerprint([folder])
    hf.describe(folder)  # a folder that holds none is refused before anything is hashed
    told = [folder / name for name in TOLD if (folder / name).is_file()]
    return fingerprint([folder / hf.CONFIG, *told, *weight_files(folder)])


def section(recipe: Recipe) -> dict[str, Any]:
    """Return what of the recipe decides whether the checkpoint will do."""
    return {
        "objective": recipe.pretrain.objective,
        "mask_probability": recipe.finetune.mask_probability,
        "max_length": recipe.tokenizer.max_length,
    }


def begin(recipe: Recipe, checkpoint: Path, folder: Path) -> None:
    """Write the stage's artifact: weights, configuration and tokenizer.

    Parameters
    ----------
    recipe : Recipe
        Filled.
    checkpoint : Path
        The checkpoint's folder, or a GGUF file, which is taken apart into one.
    folder : Path
        Receives the artifact.

    Raises
    ------
    InputError
        If the checkpoint is damaged or hostile, or cannot learn what the recipe asks.
    """
    if checkpoint.is_file():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".gguf-") as aside:
            fields = gguf.unpack(checkpoint, Path(aside))
            gguf_tokenizer.write(fields, Path(aside), str(checkpoint))
            begin(recipe, Path(aside), folder)
        return
    told = {
        name: read_foreign(checkpoint / name) for name in TOLD[1:] if (checkpoint / name).is_file()
    }
    for name, content in told.items():
        hf.refuse_code(content, checkpoint / name)
    found = hf.read(checkpoint)
    if found.config.value_dims:
        raise InputError(
            f"a checkpoint of {found.family} reads no texts, and model.start is for texts",
            where=str(checkpoint),
        )
    roles, idle = adopt(checkpoint, told, found.config.vocab_size, folder)
    _check(recipe, found, "mask_token" in roles, str(checkpoint))
    save_file(found.weights, folder / WEIGHTS, metadata={"format": "pt"})
    about = {
        "family": found.family,
        "settings": found.settings,
        "backbone": found.config.to_dict(),
        "head": found.head,
        "left_behind": found.left_behind,
        "idle_rows": idle,
    }
    write_json(folder / CONFIG, about)


def _check(recipe: Recipe, found: hf.Checkpoint, masks: bool, where: str) -> None:
    """Refuse what the checkpoint cannot learn."""
    objective, causal = recipe.pretrain.objective, found.config.causal
    kind = "a decoder, which sees only what stands before" if causal else "an encoder"
    hides = objective == "masked" or recipe.finetune.mask_probability > 0
    longest = recipe.tokenizer.max_length
    if objective != "none" and causal != (objective == "causal"):
        raise InputError(
            f"the checkpoint is {kind}; pretrain.objective {objective!r} is for the other",
            where="pretrain.objective",
            mend="causal" if causal else "masked",
        )
    if hides and not masks:
        raise InputError(
            "the checkpoint's tokenizer has no token that stands where another is hidden",
            where="pretrain.objective, finetune.mask_probability",
            mend="set the objective 'none' or 'causal', and mask_probability = 0",
        )
    if found.longest is not None and longest > found.longest:
        raise InputError(
            f"the checkpoint is for {found.longest} positions, tokenizer.max_length is {longest}",
            where=where,
            mend=f"tokenizer.max_length = {found.longest}",
        )


def lines(about: dict[str, Any]) -> list[str]:
    """Return what a person should know of the checkpoint."""
    said = [f"a checkpoint of the family {about['family']}"]
    if about["left_behind"]:
        said.append(f"left behind: {', '.join(about['left_behind'])}")
    if about["idle_rows"]:
        said.append(f"{about['idle_rows']:,} rows of its embedding have no token")
    return said


def settled(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with what only the checkpoint knows."""
    causal = bool(read_json(folder / CONFIG)["backbone"]["causal"])
    if recipe.model.causal is not None and recipe.model.causal != causal:
        raise RecipeError([("model.causal", f"the checkpoint's is {causal}")], recipe.name)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"causal": causal})})


def backbone_of(folder: Path, dropout: float) -> BackboneConfig:
    """Return the configuration of the checkpoint's backbone."""
    return BackboneConfig(**read_json(folder / CONFIG)["backbone"] | {"dropout": dropout})


def take_over(model: Model, folder: Path, kind: str) -> str:
    """Give a model the checkpoint's weights, the head's too if it serves; say which head it has.

    Parameters
    ----------
    model : Model
        With a backbone of :func:`backbone_of`.
    folder : Path
        The stage's artifact.
    kind : str
        The head's objective.
    """
    stored = load_file(folder / WEIGHTS)
    own = {n.removeprefix("backbone."): t for n, t in stored.items() if n.startswith("backbone.")}
    model.backbone.load_state_dict(own)
    if read_json(folder / CONFIG)["head"] == kind:
        head = {n.removeprefix("head."): t for n, t in stored.items() if n.startswith("head.")}
        model.head.load_state_dict(head)
        return f"the head ({kind}) is the checkpoint's"
    return f"the head ({kind}) is new, and knows nothing yet"

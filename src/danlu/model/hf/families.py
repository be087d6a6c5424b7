"""The families of open models that danlu reads and writes."""

from __future__ import annotations

from danlu.errors import InputError
from danlu.model.backbone import BackboneConfig
from danlu.model.hf.decoders import LLAMA, MISTRAL, QWEN2, QWEN3
from danlu.model.hf.encoders import BERT, MODERNBERT, ROBERTA, XLM_ROBERTA
from danlu.model.hf.family import Family
from danlu.model.hf.settings import Settings
from danlu.model.hf.vision import VIT

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        BERT, ROBERTA, XLM_ROBERTA, MODERNBERT, LLAMA, MISTRAL, QWEN2, QWEN3, VIT,
    )
}  # fmt: skip


def supported() -> str:
    """Return the families, for messages."""
    return "; ".join(f"{family.name} ({family.known_as})" for family in FAMILIES.values())


def family_of(settings: Settings) -> Family:
    """Return the family that a ``config.json`` names.

    Raises
    ------
    InputError
        If danlu does not know it.
    """
    name = settings.given("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    said = f"of the family {name!r}" if name else "of no family: config.json has no model_type"
    raise InputError(
        f"the checkpoint is {said}; danlu reads {supported()}",
        where=settings.where,
        mend="choose a checkpoint of one of these families",
    )


def family_for(config: BackboneConfig) -> Family:
    """Return the first family whose models can compute what a backbone computes.

    Raises
    ------
    InputError
        If there is none.
    """
    for family in FAMILIES.values():
        try:
            back = BackboneConfig(**family.read(Settings(family.settings(config), family.name)))
        except (InputError, ValueError):
            continue
        if back.to_dict() | {"dropout": config.dropout} == config.to_dict():
            return family
    raise InputError(
        f"no family of open models computes what this model computes; there are {supported()}"
    )

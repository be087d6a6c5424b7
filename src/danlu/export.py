"""A released model in the layout of an open family, for tools that know danlu not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer, processors

from danlu.artifact import read_json, sync_tree
from danlu.data import text
from danlu.data.marks import write_roles
from danlu.data.modality import BEGIN, BEGIN_ID, END, MASK, PAD
from danlu.errors import InputError
from danlu.model import heads, hf

_ROLES = {"pad_token": PAD, "mask_token": MASK, "bos_token": BEGIN, "eos_token": END}


def export(run: Path, folder: Path) -> dict[str, Any]:
    """Write a released model of texts as a checkpoint of an open family.

    Parameters
    ----------
    run : Path
        A run folder, or the ``model`` folder inside one.
    folder : Path
        Where to; must not exist.

    Returns
    -------
    dict
        ``folder``, ``family``, ``architecture``, and the ``head`` that has no counterpart there
        and stays behind, if it does.

    Raises
    ------
    InputError
        If there is no such model, it is not one of texts, no family computes what it computes,
        or something stands at `folder`.
    """
    model_folder = run if (run / "config.json").is_file() else run / "model"
    if not (model_folder / "config.json").is_file():
        raise InputError("there is no released model here", where=str(run), mend="danlu run RECIPE")
    if folder.exists():
        raise InputError("something is there already", where=str(folder), mend="name another")
    config = read_json(model_folder / "config.json")
    if config["modality"] != "text":
        raise InputError("only models of texts are exported", where=str(model_folder))
    outputs = len(config["classes"]) or len(config["quantiles"]) or 1
    model = heads.build(heads.read_config(config["backbone"]), config["head"], outputs)
    model.load_state_dict(load_file(model_folder / "model.safetensors"))
    checkpoint = hf.of_model(model, config["max_length"])
    aside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    hf.write(aside, checkpoint)
    _write_tokenizer(model_folder, aside)
    sync_tree(aside)
    aside.rename(folder)
    return {
        "folder": str(folder),
        "family": checkpoint.family,
        "architecture": checkpoint.settings["architectures"][0],
        "left_behind": None if checkpoint.head else config["head"],
    }


def _write_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer; one of danlu's own is told to put its mark before a text."""
    if (source / text.ROLES).is_file():
        for name in (text.FILE, text.ROLES):
            shutil.copyfile(source / name, target / name)
        return
    tokenizer = Tokenizer.from_file(str(source / text.FILE))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, BEGIN_ID)]
    )
    tokenizer.save(str(target / text.FILE))
    write_roles(target / text.ROLES, _ROLES)


def line(found: dict[str, Any]) -> str:
    """Return what was exported, for a person."""
    left = found["left_behind"]
    return f"{found['folder']}: {found['architecture']}" + (
        f"; the head ({left}) has no counterpart there and was left behind" if left else ""
    )

"""The two training stages: what is learnt, from what, and how it is written down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from danlu import events_fitting, series_fitting
from danlu.artifact import read_json, write_json
from danlu.data import kinds, text
from danlu.data.load import DocumentLoader, PackedLoader, in_order
from danlu.data.privacy import KINDS
from danlu.errors import DataError
from danlu.journal import journal
from danlu.lesson import Judge, Lesson
from danlu.log import Events, Screen
from danlu.model import flops, heads, native
from danlu.model.backbone import BRANCHES, SPLIT, Backbone
from danlu.parallel.mesh import ALONE, Mesh
from danlu.parallel.shard import divide, whole
from danlu.recipe import Recipe
from danlu.recipe.training import Training
from danlu.stages import (
    CONFIG,
    VALIDATION_BATCH,
    WEIGHTS,
    backbone_config,
    device,
    held_out_batches,
    take_over,
    truth,
)
from danlu.train import objective as objectives
from danlu.train import room
from danlu.train.checkpoint import Checkpoints, unique_tensors
from danlu.train.feed import num_steps
from danlu.train.loop import train
from danlu.train.machine import use_granted_cores, working_dtype
from danlu.train.profile import profile as profile_training


def pretrain(recipe: Recipe, paths: dict[str, Path]) -> Lesson:
    """Learn from the text alone."""
    settings, tokens = recipe.pretrain, paths["tokenizer"]
    assert settings.objective != "none"
    kind = kinds.of(recipe.data.modality)
    spec, documents = kind.spec(tokens), kind.documents(tokens, "train")
    torch.manual_seed(recipe.seed)
    config = backbone_config(recipe, spec, settings.layer_dropout, paths.get("start"))
    loader: DocumentLoader | PackedLoader
    if isinstance(documents, text.Documents):
        length = recipe.tokenizer.max_length
        loader = PackedLoader(
            documents=documents,
            rows=(settings.batch_tokens or length) // length,
            length=length,
            accumulate=settings.accumulate or 1,
            seed=recipe.seed,
            objective=settings.objective,
            mask_probability=settings.mask_probability,
            spec=spec,
        )
    else:
        positions = float(documents.sizes.mean())
        loader = DocumentLoader(
            documents=documents,
            labels=None,
            batch_size=max(1, round((settings.batch_tokens or 1) / positions)),
            accumulate=settings.accumulate or 1,
            seed=recipe.seed,
            spec=spec,
            mask_probability=settings.mask_probability,
        )
    held_out = list(held_out_batches(recipe, tokens, "validation"))
    objective = objectives.filling() if spec.value_dims else objectives.tokens()
    judge = Judge(objective, held_out, by_accuracy=False, precision=settings.precision)
    initialiser = recipe.model.initialiser
    model = heads.build(config, settings.objective, initialiser=initialiser)
    said = take_over(model, paths, settings.objective)
    return Lesson(model, objective, loader, judge, settings.objective, [], said=said)


_OWN: dict[str, Callable[[Recipe, dict[str, Path]], Lesson]] = {
    "series": series_fitting.finetune, "events": events_fitting.finetune,
}  # fmt: skip


def finetune(recipe: Recipe, paths: dict[str, Path]) -> Lesson:
    """Learn from the labels, from the pre-trained weights if there are any."""
    settings, kind = recipe.finetune, recipe.data.kind
    if own := _OWN.get(recipe.data.modality):
        return own(recipe, paths)
    assert kind != "pretrain"
    data, tokens = paths["data"], paths["tokenizer"]
    classes = read_json(data / "report.json")["classes"]
    modality = kinds.of(recipe.data.modality)
    spec = modality.spec(tokens)
    torch.manual_seed(recipe.seed)
    config = backbone_config(recipe, spec, settings.layer_dropout, paths.get("start"))
    outputs = len(classes) or len(settings.quantiles or ()) or 1
    model = heads.build(config, kind, outputs, settings.dropout, recipe.model.initialiser)
    said = take_over(model, paths, kind)
    targets = {name: truth(recipe, data, name) for name in ("train", "validation")}
    scale = _scale(targets["train"]) if kind == "regress" else None
    tensors = {name: _target(values, kind, scale) for name, values in targets.items()}
    shown = tensors["train"]
    if settings.mixup and kind == "classify":  # shares of classes can be blended, numbers cannot
        shown = torch.nn.functional.one_hot(shown, len(classes)).float()
    loader = DocumentLoader(
        documents=modality.documents(tokens, "train"),
        labels=shown,
        batch_size=settings.batch_size or 1,
        accumulate=settings.accumulate or 1,
        seed=recipe.seed,
        spec=spec,
        mask_probability=settings.mask_probability,
        views=2 if settings.consistency else 1,
        mixup=settings.mixup,
    )
    if settings.loss == "quantile":
        held_out_objective = objectives.pinball(settings.quantiles or ())
    elif kind == "regress":
        held_out_objective = objectives.error(settings.loss or "squared")
    elif kind == "multilabel":
        held_out_objective = objectives.several_labels()
    elif kind == "transcribe":
        held_out_objective = objectives.transcripts()
    elif settings.loss == "hinge":
        held_out_objective = objectives.hinge()
    else:
        held_out_objective = objectives.classes(settings.label_smoothing)
    documents = modality.documents(tokens, "validation")
    held_out = list(in_order(documents, VALIDATION_BATCH, tensors["validation"]))
    objective = held_out_objective
    if settings.consistency:
        objective = objectives.classes(settings.label_smoothing, settings.consistency)
    judge = Judge(
        held_out_objective, held_out, settings.choose_by == "accuracy", settings.precision
    )
    return Lesson(model, objective, loader, judge, kind, classes, scale, said=said)


def how_computed(settings: Training, where: torch.device) -> dict[str, Any]:
    """Return what speed and the last digits depend on; builds the kernels if need be."""
    return {
        "precision": str(working_dtype(settings.precision, where)).removeprefix("torch."),
        "kernels": "danlu" if where.type == "cpu" and native.library() else "plain",
        "threads": torch.get_num_threads(),
    }


def _plainly(recipe: Recipe, lesson: Lesson, where: torch.device) -> dict[str, str]:
    """Return what of a checkpoint's network the kernels do not take, if they are used."""
    backbone = lesson.model.backbone
    if not isinstance(backbone, Backbone) or where.type != "cpu" or native.library() is None:
        return {}
    plain = backbone.without_kernels(recipe.tokenizer.max_length)
    return {"plain": " and ".join(plain)} if plain else {}


COUNTS = "training.json"
STAGES = {"pretrain": pretrain, "finetune": finetune}


def _scale(values: NDArray[np.float64]) -> dict[str, float]:
    """Return the training split's mean and standard deviation."""
    spread = float(values.std())
    if spread == 0:
        raise DataError("every training row has the same value", where="data.label")
    return {"mean": float(values.mean()), "std": spread}


def _target(values: NDArray[Any], kind: str, scale: dict[str, float] | None) -> torch.Tensor:
    if kind in ("classify", "transcribe"):
        return torch.from_numpy(values)
    if scale is not None:
        values = ((values - scale["mean"]) / scale["std"])[:, None]
    return torch.from_numpy(values.astype(np.float32))


def fit(
    stage: str,
    recipe: Recipe,
    paths: dict[str, Path],
    folder: Path,
    events: Events | None,
    screen: Screen,
    stopping: Callable[[], bool] = lambda: False,
    mesh: Mesh = ALONE,
) -> None:
    """Train a model, and write its best weights.

    Parameters
    ----------
    stage : {"pretrain", "finetune"}
    recipe : Recipe
        Filled.
    paths : dict of str to Path
        Folders of the stages before.
    folder : Path
        Receives the weights, the configuration, and checkpoints along the way.
    events, screen
        Where progress is written and shown; nothing is written without `events`.
    stopping : callable
        Says when to save and leave.
    mesh : Mesh
        Where this process stands among those that train; the first of them writes.
    """
    settings: Training = getattr(recipe, stage)
    lesson = STAGES[stage](recipe, paths)
    model, loader = lesson.model, lesson.loader
    where = device()
    model.to(where)
    model.backbone.checkpoint = settings.recompute
    parameters = sum(tensor.numel() for tensor in unique_tensors(model).values())
    packed = ""
    if isinstance(loader, PackedLoader):
        packed = f" in {len(loader.packed):,} rows, {loader.fill:.1%} full, {loader.rows} a step"
    documents = f"{len(loader.documents):,} documents{packed}"
    screen.say(f"  {parameters:,} parameters on {where}, {documents}")
    for line in lesson.said:
        screen.say(f"  {line}")
    use_granted_cores()
    ran = how_computed(settings, where) | _plainly(recipe, lesson, where)
    screen.say(f"  {', '.join(f'{key} {value}' for key, value in ran.items())}")
    checkpoints = Checkpoints(
        folder / "checkpoints", settings.keep_checkpoints,
        lambda line: screen.say(f"  ! {line}"), mesh,
    )  # fmt: skip
    checkpoints.reserve(_disk_bytes(stage, recipe, model))
    size = room.state_bytes(model, settings) / 1e6
    screen.say(f"  checkpoints of {size:,.1f} MB; as much memory is taken to write them meanwhile")
    if mesh.devices is not None:
        divide(model, mesh, SPLIT, BRANCHES)
    log = journal(stage, settings, folder, events, screen, loader)
    log({"event": "begin", "step": 0, **ran})
    with screen.progress(num_steps(settings, loader), "steps") as bar:
        progress = train(
            model,
            lesson.objective,
            loader,
            lambda: lesson.judge(model, where),
            settings,
            seed=recipe.seed,
            device=where,
            checkpoints=checkpoints,
            log=log,
            bar=bar,
            stopping=stopping,
            mesh=mesh,
        )
    more = lesson.finish(model) if lesson.finish else {}
    tensors = {name: whole(t).cpu().contiguous() for name, t in unique_tensors(model).items()}
    if mesh.first:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, _config(recipe, lesson) | more)
        write_json(folder / COUNTS, {"steps": progress.step, **progress.counts})


def profile(
    recipe: Recipe, paths: dict[str, Path], folder: Path, stages: list[str], screen: Screen
) -> None:
    """Measure a few steps of each training stage, with weights that are thrown away."""
    found = {}
    for stage in stages:
        settings: Training = getattr(recipe, stage)
        lesson = STAGES[stage](recipe, paths)
        lesson.model.to(where := device())
        lesson.model.backbone.checkpoint = settings.recompute
        found[stage] = profile_training(
            lesson.model,
            lesson.objective,
            lesson.loader,
            settings,
            partial(flops.useful, lesson.model),
            where,
            recipe.seed,
        )
        it = found[stage]
        screen.say(
            f"  {stage}: {it['tokens_per_second']:,.0f} tokens/s, "
            f"{it['flops_per_second'] / 1e9:,.0f} useful GFLOP/s, {it['share_of_peak']:.0%} of the "
            f"machine's best {it['precision']} matrix product"
        )
        for part in it["parts"]:
            bar = "█" * round(30 * part["share"])
            screen.say(f"    {part['name']:<22} {part['share']:>5.1%} {bar}")
    write_json(folder / "profile.json", found)


def _disk_bytes(stage: str, recipe: Recipe, model: heads.Model) -> int:
    """Return the most that the checkpoints of this stage and of those after it will take.

    A stage after this one has the same backbone, and a head that hardly counts.
    """
    stages = ["pretrain", "finetune"] if recipe.data.task != "pretrain" else ["pretrain"]
    to_come = stages[stages.index(stage) :]
    return sum(room.disk_bytes(model, getattr(recipe, name)) for name in to_come)


def _config(recipe: Recipe, lesson: Lesson) -> dict[str, Any]:
    """Return everything but the weights that it takes to predict."""
    return {
        "model_type": "danlu",
        "architectures": ["DanluModel"],
        "head": lesson.kind,
        "classes": lesson.classes,
        "scale": lesson.scale,
        "quantiles": list(recipe.finetune.quantiles or ()),
        "backbone": lesson.model.backbone.config.to_dict(),
        "modality": recipe.data.modality,
        "torch_dtype": "float32",
    } | (of_texts(recipe) if recipe.data.modality == "text" or recipe.table.texts else {})


def of_texts(recipe: Recipe) -> dict[str, Any]:
    """Return what must be done to a text before it is tokenised."""
    return {
        "max_length": recipe.tokenizer.max_length,
        "unicode": recipe.data.clean.unicode,
        "max_chars": recipe.data.clean.max_chars,
        "redact": [kind for kind in KINDS if getattr(recipe.data.redact, kind)],
    }

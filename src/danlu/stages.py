"""What each stage does inside its folder; :mod:`danlu.pipeline` says when."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from danlu import events_stages, series_stages, speech_stages, start
from danlu.artifact import read_json, write_json
from danlu.audit import leaks
from danlu.batch import Batch
from danlu.data import kinds, labels, text
from danlu.data.audio import AudioEncoder, statistics
from danlu.data.hide import for_causal, for_masked
from danlu.data.image import ImageEncoder, flatten
from danlu.data.load import in_order
from danlu.data.media import image_shape
from danlu.data.modality import Spec
from danlu.data.split import NAMES
from danlu.data.table import TableEncoder
from danlu.errors import DataError
from danlu.log import Metric
from danlu.model import heads
from danlu.model.backbone import BackboneConfig
from danlu.model.classic import ClassicConfig
from danlu.recipe import Recipe

_OWN: dict[str, Any] = {"series": series_stages, "events": events_stages}
"""The stages of kinds whose rows are not records."""
WEIGHTS, CONFIG = "model.safetensors", "config.json"
VALIDATION_BATCH = 128


def device() -> torch.device:
    """Return the device that training runs on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def read_split(data: Path, name: str) -> pa.Table:
    """Return one split of a data artifact."""
    return pq.read_table(data / f"{name}.parquet")


def truth(recipe: Recipe, data: Path, name: str) -> NDArray[Any]:
    """Return one split's labels as numbers."""
    classes = read_json(data / "report.json")["classes"]
    cells = read_split(data, name)["label"].to_pylist()
    return labels.encode(cells, recipe.data.kind, classes, recipe.data.label_separator)


def tokenize(recipe: Recipe, paths: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Fit an encoder (of texts: train a tokenizer) on the training split; encode every split.

    The tokenizer of a checkpoint that the recipe begins from is taken as it is.
    """
    kind = kinds.of(recipe.data.modality)
    for name in kind.files if "start" in paths else ():
        shutil.copyfile(paths["start"] / name, folder / name)
    report = kind.encode(recipe, paths["data"], folder)
    write_json(folder / "report.json", report)
    return report


def backbone_config(
    recipe: Recipe, spec: Spec, dropout: float = 0.0, begun: Path | None = None
) -> heads.Config:
    """Return the backbone that the filled recipe describes, for what `spec` says it sees.

    `begun` is the artifact of the checkpoint that the recipe begins from, if it names one.
    """
    model = recipe.model
    if begun is not None:
        return start.backbone_of(begun, dropout)
    values: dict[str, Any] = {
        "value_dims": spec.value_dims,
        "value_ids": spec.value_ids,
        "shared_values": spec.shared,
    }
    if model.backbone != "transformer":
        if spec.value_kinds:
            raise DataError(
                f"a backbone of kind {model.backbone!r} takes values of one kind, and the records "
                f"hold {len(spec.value_kinds)}",
                where="model.backbone",
                mend='choose "transformer"',
            )
        plain = model.backbone == "linear" and bool(spec.value_dims)
        width = spec.value_dims if plain else model.width
        assert width is not None, "the recipe has not been filled"
        of_images = spec.value_shape if model.backbone == "cnn" else None
        return ClassicConfig(
            kind=model.backbone,
            vocab_size=spec.vocab_size,
            num_layers=model.depth,
            dim=width,
            hidden_dim=model.hidden or width,
            window=model.window,
            activation=model.activation or "relu",
            norm=model.norm,
            value_shape=of_images,
            causal=bool(model.causal),
            dropout=dropout,
            tie_embeddings=model.tie_embeddings,
            **values,
        )
    sizes = (model.width, model.heads, model.kv_heads, model.hidden)
    assert None not in sizes, "the recipe has not been filled"
    width, num_heads, kv_heads, hidden = (int(size or 0) for size in sizes)
    return BackboneConfig(
        vocab_size=spec.vocab_size,
        num_layers=model.depth,
        dim=width,
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        head_dim=model.head_dim,
        hidden_dim=hidden,
        activation=model.activation or "swiglu",
        causal=bool(model.causal),
        qk_norm=model.qk_norm,
        dropout=dropout,
        tie_embeddings=model.tie_embeddings,
        value_kinds=spec.value_kinds,
        **values,
    )


def take_over(model: heads.Model, paths: dict[str, Path], kind: str) -> list[str]:
    """Give the backbone its pre-trained weights, if there are any; return what is to be said."""
    if "pretrain" not in paths and "start" in paths:
        return [start.take_over(model, paths["start"], kind)]
    if "pretrain" in paths:
        stored = load_file(paths["pretrain"] / WEIGHTS)
        own = {
            k.removeprefix("backbone."): v for k, v in stored.items() if k.startswith("backbone.")
        }
        model.backbone.load_state_dict(own)
    return []


def held_out_batches(recipe: Recipe, tokens: Path, name: str) -> list[Batch]:
    """Return a held-out split's batches, masked the same way every time."""
    kind = kinds.of(recipe.data.modality)
    documents, spec = kind.documents(tokens, name), kind.spec(tokens)
    generator = np.random.default_rng([recipe.seed, 0xE7A1])
    settings = recipe.pretrain
    return [
        for_causal(batch)
        if settings.objective == "causal"
        else for_masked(batch, settings.mask_probability, spec, generator)
        for batch in in_order(documents, VALIDATION_BATCH)
    ]


def _of_texts(recipe: Recipe, paths: dict[str, Path], values: Any) -> list[Any]:
    from danlu.evaluate import baseline as baselines

    rows = _records(recipe, paths)
    return baselines.fit(rows, values, recipe.data.kind, recipe.baseline, recipe.seed)


def _of_tables(recipe: Recipe, paths: dict[str, Path], values: Any) -> list[Any]:
    from danlu.evaluate import baseline as baselines

    rows, plain = _records(recipe, paths), recipe.table.of_cells.model_copy(update={"bins": 0})
    encoder = TableEncoder.fit(rows["train"], plain, True, alone=not recipe.table.apart)
    matrices = {}
    if encoder.columns:
        matrices = {name: encoder.matrix(part) for name, part in rows.items()}
    if recipe.table.apart:
        answers = _of_records(recipe, rows, values, matrices)
    else:
        answers = _linear(recipe, matrices, values)
    if not encoder.columns:
        return answers
    cells = {name: encoder.ordinal(part)[0] for name, part in rows.items()}
    categories = encoder.ordinal(rows["test"][:1])[1]
    best = baselines.boosting(
        cells, categories, values, recipe.data.kind, recipe.seed, recipe.finetune.quantiles or ()
    )
    return [*answers, best]


def _of_records(recipe: Recipe, rows: Any, values: Any, cells: dict[str, Any]) -> list[Any]:
    """Fit a linear model on cells, n-grams of texts and pixels of images side by side."""
    from danlu.evaluate import baseline as baselines

    blocks, about = [cells] if cells else [], {"cells": cells["train"].shape[1] if cells else 0}
    for column in recipe.table.texts:
        texts = {name: [row.get(column) or "" for row in part] for name, part in rows.items()}
        features, how = baselines.tfidf(texts, recipe.baseline)
        blocks.append(features)
        about |= {f"{key} of {column}": value for key, value in how.items()}
    for column in recipe.table.images:
        files = {name: [row.get(column) for row in part] for name, part in rows.items()}
        shape = image_shape(recipe, (blob for blob in files["train"] if isinstance(blob, bytes)))
        encoder = ImageEncoder(*shape, whole=True, fit=recipe.image.fit)
        blocks.append({name: _pixels(encoder, part) for name, part in files.items()})
        about[f"pixels of {column}"] = f"{shape[0]} × {shape[1]}"
    return baselines.mixed(
        blocks, values, recipe.data.kind, recipe.baseline, recipe.seed, about,
        with_texts=bool(recipe.table.texts),
    )  # fmt: skip


def _pixels(encoder: ImageEncoder, files: list[Any]) -> NDArray[np.float32]:
    """Return each image as a row of features; zeros where there is none."""
    there = [row for row, blob in enumerate(files) if isinstance(blob, bytes)]
    found = np.zeros((len(files), int(np.prod(encoder.shape))), np.float32)
    if there:
        found[there] = flatten(encoder.encode([files[row] for row in there]).images)
    return found


def _of_images(recipe: Recipe, paths: dict[str, Path], values: Any) -> list[Any]:
    tokens = paths["tokenizer"]
    encoder = ImageEncoder.load(tokens)
    found = {name: encoder.load_documents(tokens, name).images for name in NAMES}
    return _linear(recipe, {name: flatten(images) for name, images in found.items()}, values)


def _of_sounds(recipe: Recipe, paths: dict[str, Path], values: Any) -> list[Any]:
    tokens = paths["tokenizer"]
    encoder = AudioEncoder.load(tokens)
    found = {name: statistics(encoder, encoder.load_documents(tokens, name)) for name in NAMES}
    mean, std = found["train"].mean(0), found["train"].std(0)
    features = {name: (part - mean) / np.where(std > 0, std, 1) for name, part in found.items()}
    if recipe.data.task == "transcribe":
        from danlu.evaluate.transcribe import baselines

        said = {name: read_split(paths["data"], name)["label"].to_pylist() for name in NAMES}
        return list(baselines(features, said))
    return _linear(recipe, features, values)


def _records(recipe: Recipe, paths: dict[str, Path]) -> dict[str, list[Any]]:
    kind = kinds.of_rows(recipe.data.modality)
    return {name: kind.records(paths["data"], name) for name in NAMES}


def _linear(recipe: Recipe, features: Any, values: Any) -> list[Any]:
    from danlu.evaluate import baseline as baselines

    strengths = recipe.baseline.inverse_regularization
    return baselines.linear(features, values, recipe.data.kind, strengths, recipe.seed)


_BASELINES = {
    "text": _of_texts, "table": _of_tables, "image": _of_images, "audio": _of_sounds,
}  # fmt: skip


def baseline(recipe: Recipe, paths: dict[str, Path], folder: Path) -> None:
    """Fit the classical models on the same split."""
    answers = []
    if own := _OWN.get(recipe.data.modality):
        own.baseline(recipe, paths, folder)
        return
    if recipe.data.task != "pretrain":
        values = {name: truth(recipe, paths["data"], name) for name in NAMES}
        answers = _BASELINES[recipe.data.modality](recipe, paths, values)
        if levels := recipe.finetune.quantiles:
            from danlu.evaluate.baseline import quantiles

            answers.append(quantiles(values["train"], len(values["test"]), levels))
    for answer in answers:
        np.save(folder / f"{answer.model}.npy", answer.answer)
    write_json(folder / "report.json", {answer.model: answer.settings for answer in answers})


def evaluate(recipe: Recipe, paths: dict[str, Path], folder: Path) -> None:
    """Measure the model and the baselines on the test split."""
    if recipe.data.task == "pretrain":
        _evaluate_tokens(recipe, paths, folder)
        return
    if own := _OWN.get(recipe.data.modality):
        own.evaluate(recipe, paths, folder, device())
        return
    if recipe.data.task == "transcribe":
        leaks = _leaks(recipe, paths["data"])
        speech_stages.evaluate(recipe, paths, folder, device(), leaks)
        return
    from danlu.evaluate import examine, score
    from danlu.evaluate.intervals import Bootstrap
    from danlu.serve.engine import Engine

    kind, name = recipe.data.kind, recipe.name
    table, actual = read_split(paths["data"], "test"), truth(recipe, paths["data"], "test")
    engine = Engine.load(paths["finetune"], paths["tokenizer"], device())
    records = kinds.of_rows(recipe.data.modality).records(paths["data"], "test")
    answer, crossed = engine.answers_and_crossings(records, recipe.evaluate.batch_size)
    levels = tuple(engine.quantiles)
    others = read_json(paths["baseline"] / "report.json")
    scored = [score.Scored(name, "test", actual, answer, levels)]
    for other in others:
        said = np.load(paths["baseline"] / f"{other}.npy")
        # A baseline that foretells means alone is not measured by quantiles.
        own = levels if levels and said.ndim > 1 else ()
        scored.append(score.Scored(other, "test", actual, said, own))
    bootstrap = Bootstrap(len(actual), recipe.evaluate.bootstrap, recipe.seed)
    rows, resampled = score.measure(scored, kind, engine.classes, bootstrap)
    rows += [score.crossings(crossed, scored[0])] if levels else []
    rows += score.differences(rows, resampled, name, list(others), bootstrap.resamples)
    rows += score.slices(
        scored[0],
        kind,
        examine.groups(table, recipe.data.modality == "text"),
        bootstrap.resamples,
        recipe.seed,
    )
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    write_json(folder / "leaks.json", _leaks(recipe, paths["data"]))
    curves = {one.model: score.curves(one, kind, engine.classes) for one in scored}
    write_json(folder / "curves.json", curves)
    answers = pa.array(list(answer) if answer.ndim > 1 else answer)
    columns = {"id": table["id"], "truth": table["label"], "answer": answers}
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    wrong = examine.mistakes(table, actual, scored[0].said, engine.classes, kind)
    picture = kinds.of_rows(recipe.data.modality).picture
    shown = [row | picture(paths["tokenizer"], records[row["index"]]) for row in wrong]
    write_json(folder / "mistakes.json", shown)


def audit(recipe: Recipe, paths: dict[str, Path], folder: Path) -> None:
    """Measure whether the model treats the groups of each protected attribute alike."""
    from danlu.audit import fairness
    from danlu.evaluate.intervals import Bootstrap

    said = pq.read_table(paths["evaluate"] / "predictions.parquet")["answer"].to_pylist()
    classes = read_json(paths["data"] / "report.json")["classes"]
    positive = fairness.positive_class(recipe.audit.positive, classes, recipe.data.kind)
    actual = truth(recipe, paths["data"], "test")
    if levels := recipe.finetune.quantiles:
        said = [row[levels.index(0.5)] for row in said]  # the median is the answer's value
    answers = fairness.Answers(recipe.data.kind, actual, np.asarray(said), positive)
    bootstrap = Bootstrap(len(actual), recipe.evaluate.bootstrap, recipe.seed)
    cells = {
        name: [json.loads(row) for row in read_split(paths["data"], name)["protected"].to_pylist()]
        for name in ("train", "test")
    }
    rows: list[Metric] = []
    too_few: list[dict[str, Any]] = []
    for name in cells["train"][0]:
        by = fairness.groups(name, *([row[name] for row in cells[s]] for s in ("test", "train")))
        found, lacking = fairness.measure(
            answers, by, recipe.name, recipe.audit.min_rows, bootstrap
        )
        rows, too_few = rows + found, too_few + lacking
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    about = {"positive": None if positive is None else classes[positive], "too_few": too_few}
    write_json(folder / "report.json", about)


def _leaks(recipe: Recipe, data: Path) -> dict[str, int]:
    """Count the test rows that also stand in training or validation."""
    test, exactly = read_split(data, "test")["text"].to_pylist(), recipe.data.modality != "text"
    return {
        name: len(leaks.find(read_split(data, name)["text"].to_pylist(), test, exactly=exactly))
        for name in ("train", "validation")
    }


def _evaluate_tokens(recipe: Recipe, paths: dict[str, Path], folder: Path) -> None:
    """Measure a language model by what it makes of unseen text."""
    from danlu.evaluate.tokens import measure

    settings, spec = recipe.pretrain, kinds.of(recipe.data.modality).spec(paths["tokenizer"])
    assert settings.objective != "none"
    config = backbone_config(recipe, spec, begun=paths.get("start"))
    model = heads.build(config, settings.objective)
    model.load_state_dict(load_file(paths["pretrain"] / WEIGHTS))
    model.to(where := device())
    tokens = paths["tokenizer"]
    train_ids = text.Documents.load(tokens, "train").ids
    causal = settings.objective == "causal"
    encoder = text.Encoder.load(tokens / text.FILE, recipe.tokenizer.max_length, causal)
    # What is never foretold may take no mass.
    never = encoder.marks.prefix if causal else encoder.marks.special
    train_ids = train_ids[np.isin(train_ids, never, invert=True)]
    batches = held_out_batches(recipe, tokens, "test")
    documents = text.Documents.load(tokens, "test")
    seen_bytes = np.asarray([encoder.bytes_of(documents[row]) for row in range(len(documents))])
    rows: list[Metric] = measure(
        model, batches, train_ids, seen_bytes, documents.text_N, recipe.name,
        settings.objective, spec.vocab_size, where, recipe.evaluate.bootstrap, recipe.seed,
    )  # fmt: skip
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    write_json(folder / "leaks.json", _leaks(recipe, paths["data"]))
    write_json(folder / "curves.json", {})
    write_json(folder / "mistakes.json", [])

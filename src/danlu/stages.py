"""What each stage does inside its folder; :mod:`danlu.pipeline` says when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from danlu.artifact import read_json, write_json
from danlu.audit import leaks
from danlu.batch import Batch
from danlu.data import labels, text
from danlu.data.load import Loader, for_causal, for_masked, in_order
from danlu.data.privacy import KINDS
from danlu.data.split import NAMES
from danlu.errors import DataError
from danlu.log import Events, Metric, Screen
from danlu.model import heads
from danlu.model.backbone import BackboneConfig
from danlu.recipe import Recipe
from danlu.recipe.sections import Training
from danlu.train import objective as objectives
from danlu.train.checkpoint import Checkpoints, unique_tensors
from danlu.train.loop import train

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_VALIDATION_BATCH = 128
_SAMPLES, _SHOWN = 5, 60  # training texts that the report shows as tokens, and how many of those


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


def tokenize(recipe: Recipe, data: Path, folder: Path) -> dict[str, Any]:
    """Train the tokenizer on the training split, and tokenise every split."""
    settings = recipe.tokenizer
    tokenizer = text.train(read_split(data, "train")["text"].to_pylist(), settings.vocab_size)
    tokenizer.save(str(folder / text.FILE))
    encoder = text.Encoder(tokenizer, settings.max_length, bool(recipe.model.causal))
    report: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "splits": {}}
    for name in NAMES:
        table = read_split(data, name)
        texts = table["text"].to_pylist()
        documents, lengths = encoder(texts)
        if name == "train":
            report["samples"] = [
                {
                    "pieces": encoder.pieces(ids[:_SHOWN].tolist()),
                    "cut": len(ids) > _SHOWN,
                    "label": label,
                }
                for ids, label in zip(
                    documents[:_SAMPLES], table["label"].to_pylist(), strict=False
                )
            ]
        text.Documents.of(documents).save(folder, name)
        report["splits"][name] = text.coverage(texts, lengths, settings.max_length)
    write_json(folder / "report.json", report)
    return report


def backbone_config(recipe: Recipe, vocab_size: int, dropout: float = 0.0) -> BackboneConfig:
    """Return the backbone that the filled recipe describes."""
    model = recipe.model
    sizes = (model.width, model.heads, model.kv_heads, model.hidden)
    assert None not in sizes, "the recipe has not been filled"
    width, num_heads, kv_heads, hidden = (int(size or 0) for size in sizes)
    return BackboneConfig(
        vocab_size=vocab_size,
        num_layers=model.depth,
        dim=width,
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        head_dim=model.head_dim,
        hidden_dim=hidden,
        activation=model.activation,
        causal=bool(model.causal),
        qk_norm=model.qk_norm,
        dropout=dropout,
        tie_embeddings=model.tie_embeddings,
    )


def pretrain(
    recipe: Recipe, paths: dict[str, Path], folder: Path, events: Events, screen: Screen
) -> None:
    """Learn from the text alone."""
    settings, tokens = recipe.pretrain, paths["tokenizer"]
    assert settings.objective != "none"
    vocab_size = read_json(tokens / "report.json")["vocab_size"]
    torch.manual_seed(recipe.seed)
    model = heads.build(
        backbone_config(recipe, vocab_size, settings.layer_dropout), settings.objective
    )
    loader = Loader(
        documents=text.Documents.load(tokens, "train"),
        batch_size=settings.batch_size or 1,
        accumulate=settings.accumulate,
        seed=recipe.seed,
        objective=settings.objective,
        mask_probability=settings.mask_probability,
        vocab_size=vocab_size,
    )
    held_out = list(token_batches(recipe, tokens, "validation", vocab_size))
    objective = objectives.tokens()
    judge = _Judge(objective, held_out, by_accuracy=False)
    _fit("pretrain", recipe, model, objective, loader, judge, folder, events, screen)
    write_json(folder / CONFIG, _config(recipe, model, settings.objective, []))


def token_batches(recipe: Recipe, tokens: Path, name: str, vocab_size: int) -> list[Batch]:
    """Return a held-out split's batches, masked the same way every time."""
    documents = text.Documents.load(tokens, name)
    generator = np.random.default_rng([recipe.seed, 0xE7A1])
    settings = recipe.pretrain
    return [
        for_causal(batch)
        if settings.objective == "causal"
        else for_masked(batch, settings.mask_probability, vocab_size, generator)
        for batch in in_order(documents, _VALIDATION_BATCH)
    ]


def finetune(
    recipe: Recipe, paths: dict[str, Path], folder: Path, events: Events, screen: Screen
) -> None:
    """Learn from the labels, from the pre-trained weights if there are any."""
    settings, kind = recipe.finetune, recipe.data.kind
    assert kind != "pretrain"
    data, tokens = paths["data"], paths["tokenizer"]
    classes = read_json(data / "report.json")["classes"]
    vocab_size = read_json(tokens / "report.json")["vocab_size"]
    torch.manual_seed(recipe.seed)
    config = backbone_config(recipe, vocab_size, settings.layer_dropout)
    model = heads.build(config, kind, num_outputs=len(classes) or 1, dropout=settings.dropout)
    if "pretrain" in paths:
        stored = load_file(paths["pretrain"] / WEIGHTS)
        own = {
            k.removeprefix("backbone."): v for k, v in stored.items() if k.startswith("backbone.")
        }
        model.backbone.load_state_dict(own)
    targets = {name: truth(recipe, data, name) for name in ("train", "validation")}
    scale = _scale(targets["train"]) if kind == "regress" else None
    tensors = {name: _target(values, kind, scale) for name, values in targets.items()}
    loader = Loader(
        documents=text.Documents.load(tokens, "train"),
        batch_size=settings.batch_size or 1,
        accumulate=settings.accumulate,
        seed=recipe.seed,
        objective="document",
        mask_probability=settings.mask_probability,
        vocab_size=vocab_size,
        labels=tensors["train"],
        views=2 if settings.consistency else 1,
    )
    held_out_objective = {
        "classify": lambda: objectives.classes(settings.label_smoothing),
        "multilabel": objectives.several_labels,
        "regress": objectives.squared_error,
    }[kind]()
    held_out = list(
        in_order(
            text.Documents.load(tokens, "validation"), _VALIDATION_BATCH, tensors["validation"]
        )
    )
    objective = held_out_objective
    if settings.consistency:
        objective = objectives.classes(settings.label_smoothing, settings.consistency)
    judge = _Judge(held_out_objective, held_out, settings.choose_by == "accuracy")
    _fit("finetune", recipe, model, objective, loader, judge, folder, events, screen)
    write_json(folder / CONFIG, _config(recipe, model, kind, classes, scale))


def _scale(values: NDArray[np.float64]) -> dict[str, float]:
    """Return the training split's mean and standard deviation."""
    spread = float(values.std())
    if spread == 0:
        raise DataError("every training row has the same value", where="data.label")
    return {"mean": float(values.mean()), "std": spread}


def _target(values: NDArray[Any], kind: str, scale: dict[str, float] | None) -> torch.Tensor:
    if kind == "classify":
        return torch.from_numpy(values)
    if scale is not None:
        values = ((values - scale["mean"]) / scale["std"])[:, None]
    return torch.from_numpy(values.astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Judge:
    """What says how good a model is on the validation split."""

    objective: objectives.Objective
    held_out: list[Batch]
    by_accuracy: bool

    def __call__(self, model: heads.Model, where: torch.device) -> dict[str, float]:
        found = objectives.figures(model, self.objective, self.held_out, where)
        return found | {"badness": -found["accuracy"] if self.by_accuracy else found["loss"]}


def _fit(
    stage: str,
    recipe: Recipe,
    model: heads.Model,
    objective: objectives.Objective,
    loader: Loader,
    judge: _Judge,
    folder: Path,
    events: Events,
    screen: Screen,
) -> None:
    """Train a model, and write its best weights."""
    settings: Training = getattr(recipe, stage)
    where = device()
    model.to(where)
    parameters = sum(tensor.numel() for tensor in unique_tensors(model).values())
    screen.say(f"  {parameters:,} parameters on {where}, {len(loader.documents):,} documents")
    write = _writers(stage, settings, folder, events)

    def log(row: dict[str, Any]) -> None:
        write({"stage": stage, **row})
        if row["event"] == "validation":
            best = " [green]best[/]" if row["best"] else ""
            accuracy = f", accuracy {row['accuracy']:.4f}" if "accuracy" in row else ""
            screen.say(f"  step {row['step']:,}: validation loss {row['loss']:.4f}{accuracy}{best}")

    total = settings.epochs * loader.steps_per_epoch
    with screen.progress(total, "steps") as bar:
        train(
            model,
            objective,
            loader,
            lambda: judge(model, where),
            settings,
            seed=recipe.seed,
            device=where,
            checkpoints=Checkpoints(folder / "checkpoints", settings.keep_checkpoints),
            log=log,
            bar=bar,
        )
    tensors = {name: tensor.cpu().contiguous() for name, tensor in unique_tensors(model).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def _writers(
    stage: str, settings: Training, folder: Path, events: Events
) -> Callable[[dict[str, Any]], None]:
    """Return what writes a row to the log, and to TensorBoard if asked for."""
    if not settings.tensorboard:
        return events.write
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder / "tensorboard"))

    def write(row: dict[str, Any]) -> None:
        events.write(row)
        for name, value in row.items():
            if isinstance(value, float):
                board.add_scalar(f"{stage}/{row['event']}/{name}", value, row["step"])
        board.flush()

    return write


def _config(
    recipe: Recipe,
    model: heads.Model,
    kind: str,
    classes: list[str],
    scale: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Return everything but the weights that it takes to predict."""
    return {
        "model_type": "danlu",
        "architectures": ["DanluModel"],
        "head": kind,
        "classes": classes,
        "scale": scale,
        "backbone": model.backbone.config.to_dict(),
        "max_length": recipe.tokenizer.max_length,
        "unicode": recipe.data.clean.unicode,
        "max_chars": recipe.data.clean.max_chars,
        "redact": [kind for kind in KINDS if getattr(recipe.data.redact, kind)],
        "torch_dtype": "float32",
    }


def baseline(recipe: Recipe, data: Path, folder: Path) -> None:
    """Fit the classical models on the same split."""
    from danlu.evaluate import baseline as baselines

    texts = {name: read_split(data, name)["text"].to_pylist() for name in NAMES}
    if recipe.data.task == "pretrain":
        answers = []
    else:
        values = {name: truth(recipe, data, name) for name in NAMES}
        answers = baselines.fit(texts, values, recipe.data.kind, recipe.baseline, recipe.seed)
    for answer in answers:
        np.save(folder / f"{answer.model}.npy", answer.answer)
    write_json(folder / "report.json", {answer.model: answer.settings for answer in answers})


def evaluate(recipe: Recipe, paths: dict[str, Path], folder: Path) -> None:
    """Measure the model and the baselines on the test split."""
    if recipe.data.task == "pretrain":
        _evaluate_tokens(recipe, paths, folder)
        return
    from danlu.evaluate import examine, score
    from danlu.evaluate.intervals import Bootstrap
    from danlu.serve.engine import Engine

    kind, name = recipe.data.kind, recipe.name
    table, actual = read_split(paths["data"], "test"), truth(recipe, paths["data"], "test")
    engine = Engine.load(paths["finetune"], paths["tokenizer"] / text.FILE, device())
    answer = engine.answers(table["text"].to_pylist(), recipe.evaluate.batch_size)
    others = read_json(paths["baseline"] / "report.json")
    scored = [score.Scored(name, "test", actual, answer)]
    scored += [
        score.Scored(other, "test", actual, np.load(paths["baseline"] / f"{other}.npy"))
        for other in others
    ]
    bootstrap = Bootstrap(len(actual), recipe.evaluate.bootstrap, recipe.seed)
    rows, resampled = score.measure(scored, kind, engine.classes, bootstrap)
    rows += score.differences(rows, resampled, name, list(others), bootstrap.resamples)
    rows += score.slices(scored[0], kind, examine.groups(table), bootstrap.resamples, recipe.seed)
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    write_json(folder / "leaks.json", _leaks(paths["data"]))
    curves = {one.model: score.curves(one, kind, engine.classes) for one in scored}
    write_json(folder / "curves.json", curves)
    answers = pa.array(list(answer) if answer.ndim > 1 else answer)
    columns = {"id": table["id"], "truth": table["label"], "answer": answers}
    pq.write_table(pa.table(columns), folder / "predictions.parquet")
    write_json(
        folder / "mistakes.json", examine.mistakes(table, actual, answer, engine.classes, kind)
    )


def _leaks(data: Path) -> dict[str, int]:
    """Count the test rows that also stand in training or validation."""
    test = read_split(data, "test")["text"].to_pylist()
    return {
        name: len(leaks.find(read_split(data, name)["text"].to_pylist(), test))
        for name in ("train", "validation")
    }


def _evaluate_tokens(recipe: Recipe, paths: dict[str, Path], folder: Path) -> None:
    """Measure a language model by what it makes of unseen text."""
    from danlu.evaluate.tokens import measure

    vocab_size = read_json(paths["tokenizer"] / "report.json")["vocab_size"]
    settings = recipe.pretrain
    assert settings.objective != "none"
    model = heads.build(backbone_config(recipe, vocab_size), settings.objective)
    model.load_state_dict(load_file(paths["pretrain"] / WEIGHTS))
    model.to(where := device())
    tokens = paths["tokenizer"]
    train_ids = text.Documents.load(tokens, "train").ids
    train_ids = train_ids[train_ids != text.BEGIN_ID]  # never foretold, so it may take no mass
    batches = token_batches(recipe, tokens, "test", vocab_size)
    encoder = text.Encoder.load(tokens / text.FILE, recipe.tokenizer.max_length, False)
    documents = text.Documents.load(tokens, "test")
    seen_bytes = np.asarray([encoder.bytes_of(documents[row]) for row in range(len(documents))])
    rows: list[Metric] = measure(
        model, batches, train_ids, seen_bytes, recipe.name, settings.objective, vocab_size,
        where, recipe.evaluate.bootstrap, recipe.seed,
    )  # fmt: skip
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    write_json(folder / "leaks.json", _leaks(paths["data"]))
    write_json(folder / "curves.json", {})
    write_json(folder / "mistakes.json", [])

"""What each stage does inside its folder; :mod:`danlu.pipeline` says when."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from danlu.artifact import read_json, write_json
from danlu.audit import leaks
from danlu.batch import Batch
from danlu.data import labels, text
from danlu.data.load import for_causal, for_masked, in_order
from danlu.data.split import NAMES
from danlu.log import Metric
from danlu.model import heads
from danlu.model.backbone import BackboneConfig
from danlu.model.classic import ClassicConfig
from danlu.recipe import Recipe

WEIGHTS, CONFIG = "model.safetensors", "config.json"
VALIDATION_BATCH = 128
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
    # Of a text with a label, the model sees one document; a text by itself goes on in pieces.
    in_pieces = recipe.data.task == "pretrain"
    longest = sys.maxsize if in_pieces else settings.max_length
    encoder = text.Encoder(tokenizer, longest, bool(recipe.model.causal))
    report: dict[str, Any] = {"vocab_size": tokenizer.get_vocab_size(), "splits": {}}
    for name in NAMES:
        table = read_split(data, name)
        texts = table["text"].to_pylist()
        encoded, lengths = encoder(texts)
        if name == "train":
            report["samples"] = [
                {
                    "pieces": encoder.pieces(ids[:_SHOWN].tolist()),
                    "cut": len(ids) > _SHOWN,
                    "label": label,
                }
                for ids, label in zip(encoded[:_SAMPLES], table["label"].to_pylist(), strict=False)
            ]
        if in_pieces:
            documents = text.Documents.in_pieces(encoded, settings.max_length)
        else:
            documents = text.Documents.of(encoded)
        documents.save(folder, name)
        report["splits"][name] = text.coverage(texts, lengths, documents)
    write_json(folder / "report.json", report)
    return report


def backbone_config(recipe: Recipe, vocab_size: int, dropout: float = 0.0) -> heads.Config:
    """Return the backbone that the filled recipe describes."""
    model = recipe.model
    if model.backbone != "transformer":
        assert model.width is not None, "the recipe has not been filled"
        return ClassicConfig(
            kind=model.backbone,
            vocab_size=vocab_size,
            num_layers=model.depth,
            dim=model.width,
            hidden_dim=model.hidden or model.width,
            window=model.window,
            activation=model.activation or "relu",
            causal=bool(model.causal),
            dropout=dropout,
            tie_embeddings=model.tie_embeddings,
        )
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
        activation=model.activation or "swiglu",
        causal=bool(model.causal),
        qk_norm=model.qk_norm,
        dropout=dropout,
        tie_embeddings=model.tie_embeddings,
    )


def token_batches(recipe: Recipe, tokens: Path, name: str, vocab_size: int) -> list[Batch]:
    """Return a held-out split's batches, masked the same way every time."""
    documents = text.Documents.load(tokens, name)
    generator = np.random.default_rng([recipe.seed, 0xE7A1])
    settings = recipe.pretrain
    return [
        for_causal(batch)
        if settings.objective == "causal"
        else for_masked(batch, settings.mask_probability, vocab_size, generator)
        for batch in in_order(documents, VALIDATION_BATCH)
    ]


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
        model, batches, train_ids, seen_bytes, documents.text_N, recipe.name,
        settings.objective, vocab_size, where, recipe.evaluate.bootstrap, recipe.seed,
    )  # fmt: skip
    write_json(folder / "metrics.json", [row.to_dict() for row in rows])
    write_json(folder / "leaks.json", _leaks(paths["data"]))
    write_json(folder / "curves.json", {})
    write_json(folder / "mistakes.json", [])

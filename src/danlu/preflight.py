"""``danlu check``: what the model will see, and what would go wrong. Trains no model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from danlu.artifact import read_json
from danlu.audit import leaks
from danlu.batch import Batch
from danlu.data import kinds, record_encoder, text
from danlu.data.hide import for_causal, for_masked
from danlu.data.modality import Documents, Spec
from danlu.data.record_encoder import RecordEncoder
from danlu.log import Screen
from danlu.pipeline import prepare_data
from danlu.recipe import Recipe
from danlu.stages import read_split

_EXAMPLES, _TOKENS, _NAMED, _WIDE = 5, 48, 6, 300


def check(
    recipe: Recipe, derived: dict[str, str], screen: Screen, fetch: bool = False
) -> dict[str, Any]:
    """Read, clean and tokenise in a temporary folder, and look for trouble.

    Parameters
    ----------
    recipe : Recipe
        Filled.
    derived : dict of str to str
        Path and rule of each derived value.
    screen : Screen
    fetch : bool
        Whether sources that the recipe names and the cache lacks may be downloaded.

    Returns
    -------
    dict
        ``problems`` (any of them stops), ``findings``, ``derived``, ``splits``,
        ``tokens`` and ``examples`` with the positions that bear loss.

    Raises
    ------
    DataError
        For what leaves nothing to check: no rows, one class only, an empty split.
    """
    with tempfile.TemporaryDirectory(prefix="danlu-check-") as folder:
        paths = prepare_data(recipe, Path(folder), screen, fetch)
        modality = recipe.data.modality
        data = read_json(paths["data"] / "report.json")
        tokens = read_json(paths["tokenizer"] / "report.json")
        train = read_split(paths["data"], "train")
        problems = []
        texts = train["text"].to_pylist()
        for name in ("validation", "test"):
            held_out = read_split(paths["data"], name)["text"].to_pylist()
            if found := leaks.find(texts, held_out) if modality == "text" else []:
                problems.append(
                    f"{len(found):,} {name} rows also stand in train, such as "
                    f'{held_out[found[0]][:60]!r}; set data.split.by = "near-duplicate"'
                )
        seen = _SEEN.get(modality, _files)(recipe, paths, train)
    if idle := seen.pop("idle", 0):
        problems.append(f"{idle:,} training documents bear no loss: they would train nothing")
    return {
        "recipe": recipe.name,
        "problems": problems,
        "findings": data["findings"],
        "derived": derived,
        "splits": {name: part["rows"] for name, part in data["splits"].items()},
        "classes": data["classes"],
        "task": recipe.data.kind,
        "tokens": tokens["splits"],
        **seen,
    }


def _texts(recipe: Recipe, paths: dict[str, Path], train: pa.Table) -> dict[str, Any]:
    """Return what the model will see of texts, and how many would train nothing."""
    spec = kinds.of("text").spec(paths["tokenizer"])
    length = recipe.tokenizer.max_length
    path = paths["tokenizer"] / text.FILE
    encoder = text.Encoder.load(path, length, bool(recipe.model.causal))
    documents = text.Documents.load(paths["tokenizer"], "train")
    labels = train["label"].to_pylist()
    return {
        "max_length": length,
        "idle": _without_loss(recipe, documents, spec),
        "examples": _examples(
            recipe, documents, lambda row: labels[documents.text_N[row]], encoder.pieces, spec
        ),
    }


def _rows(recipe: Recipe, paths: dict[str, Path], train: pa.Table) -> dict[str, Any]:
    """Return how the model will read each column, and a few rows."""
    report = read_json(paths["tokenizer"] / "report.json")
    found = {"columns": report["columns"], "left_out": report["left_out"]}
    encoder = record_encoder.load(paths["tokenizer"])
    if not isinstance(encoder, RecordEncoder):
        rows = train.slice(0, _EXAMPLES).select(["row", "text", "label"])
        return found | {"examples": rows.to_pylist()}
    documents, labels = encoder.load_documents(paths["tokenizer"], "train"), train["label"]
    examples = _examples(
        recipe, documents, lambda row: labels[row].as_py(), encoder.pieces, encoder.spec
    )
    kept = {key: report[key] for key in ("of_texts", "of_images", "max_length") if key in report}
    return found | kept | {"examples": examples}


def _files(recipe: Recipe, paths: dict[str, Path], train: pa.Table) -> dict[str, Any]:  # noqa: ARG001 - one signature for all kinds
    """Return what images or sounds are brought to."""
    report = read_json(paths["tokenizer"] / "report.json")
    return {"settings": {k: v for k, v in report.items() if k not in ("samples", "splits")}}


def _histories(recipe: Recipe, paths: dict[str, Path], train: pa.Table) -> dict[str, Any]:
    """Return the catalogue's size, and a few histories as the model will see them."""
    report = read_json(paths["tokenizer"] / "report.json")
    pieces = [sample["pieces"][:_TOKENS] for sample in report["samples"]]
    return _files(recipe, paths, train) | {"histories": pieces}


_SEEN = {"text": _texts, "table": _rows, "events": _histories}


def _targets(recipe: Recipe, batch: Batch, spec: Spec) -> Batch:
    """Return the batch as pre-training sees it."""
    if recipe.pretrain.objective == "causal":
        return for_causal(batch)
    generator = np.random.default_rng([recipe.seed, 0xC4EC])
    return for_masked(batch, recipe.pretrain.mask_probability, spec, generator)


def _without_loss(recipe: Recipe, documents: text.Documents, spec: Spec) -> int:
    """Count the training rows of which no position bears loss."""
    if recipe.pretrain.objective == "none":  # the label itself bears it
        return int((documents.sizes < 2).sum())
    idle = 0
    for start in range(0, len(documents), 512):
        rows = np.arange(start, min(start + 512, len(documents)))
        batch = documents.lay(rows)
        batch = _targets(recipe, batch, spec)
        assert batch.weight_BT is not None
        bears = batch.document_BT[batch.weight_BT != 0]
        idle += len(rows) - len(np.unique(bears.numpy()))
    return idle


def _examples(
    recipe: Recipe,
    documents: Documents,
    label_of: Callable[[int], str | None],
    pieces: Callable[[Sequence[int]], list[str]],
    spec: Spec,
) -> list[dict[str, Any]]:
    """Return five rows as the model will see them, spread over the training split."""
    rows = np.unique(np.linspace(0, len(documents) - 1, _EXAMPLES).astype(np.int64))
    plain = batch = documents.lay(rows)
    bears = None
    if recipe.pretrain.objective != "none":
        batch = _targets(recipe, plain, spec)
        assert batch.weight_BT is not None
        bears = batch.weight_BT != 0
        if batch.hidden_slots_U is not None:
            bears.view(-1)[batch.hidden_slots_U] = True
    found = []
    for number, row in enumerate(rows.tolist()):
        own = batch.document_BT == number
        found.append({
            "row": row,
            "label": label_of(row),
            "pieces": pieces(batch.ids_BT[own].tolist()),
            "targets": pieces(plain.ids_BT[own].tolist()),
            "bears_loss": [] if bears is None else bears[own].tolist(),
        })  # fmt: skip
    return found


def show(found: dict[str, Any]) -> None:
    """Print what :func:`check` found, for a person."""
    console = Console(highlight=False)
    splits = " · ".join(f"{rows:,} {name}" for name, rows in found["splits"].items())
    console.print(f"[bold]{found['recipe']}[/]: {splits}")
    if found["classes"]:
        what = "characters" if found["task"] == "transcribe" else "classes"
        console.print(f"{what}: {', '.join(found['classes'])}", markup=False)
    for finding in found["findings"]:
        console.print(Text.assemble(("! ", "yellow"), finding))
    show = _show_rows if "columns" in found else _show_texts
    (_show_files if "settings" in found else show)(found, console)
    for path, rule in found["derived"].items():
        console.print(f"[dim]derived {path}: {rule}[/]")
    for problem in found["problems"]:
        console.print(Text.assemble(("✗ ", "red"), problem))
    if not found["problems"]:
        console.print("[green]✓[/] nothing stands in the way of a run")


def _show_files(found: dict[str, Any], console: Console) -> None:
    """Print what images, sounds or histories are brought to, and what each split came to."""
    for name, value in found["settings"].items():
        console.print(Text(f"{name}: {value}"))
    table = Table("split", *found["tokens"]["train"])
    for name, part in found["tokens"].items():
        table.add_row(name, *(f"{value:,.7g}" for value in part.values()))
    console.print(table)
    for pieces in found.get("histories", []):
        console.print(Text("│".join(pieces)))


def _show_rows(found: dict[str, Any], console: Console) -> None:
    """Print how each column is read, and a few rows."""
    table = Table("column", "read as", "what training says of it", "missing in training")
    for column in found["columns"]:
        what = f"mean {column['mean']:.4g}, standard deviation {column['std']:.4g}"
        if column["kind"] == "category":
            names = ", ".join(column["categories"][:_NAMED])
            more = len(column["categories"]) - _NAMED
            what = names + (f" and {more} more" if more > 0 else "")
            what += "; rare ones together" if column["rare"] else ""
        elif column["edges"]:
            what += f", {len(column['edges']) - 1} bins"
        table.add_row(
            column["name"], column["kind"], Text(what), "yes" if column["missing"] else ""
        )
    if found["columns"]:  # there may be texts and images alone
        console.print(table)
    for name, why in found["left_out"].items():
        console.print(Text.assemble(("! ", "yellow"), f"column {name!r} is left out: {why}"))
    splits = found["tokens"].items()
    counts = Table("split", "rows", "cells missing", "unreadable", "unknown", "clipped")
    for name, part in splits:
        keys = ("documents", "missing", "unreadable", "unknown", "clipped")
        counts.add_row(name, *(f"{part[key]:,}" for key in keys))
    console.print(counts)
    if images := found.get("of_images"):
        console.print(
            f"images: {images['height']} × {images['width']} pixels of {images['channels']} "
            f"channels, in {images['positions']} patches"
        )
    for column, parts in found.get("of_texts", {}).items():
        _show_tokens(parts, found["max_length"], f"{column}: split", console)
    if "pieces" in found["examples"][0]:
        _show_pieces(found["examples"], console)
        return
    for example in found["examples"]:
        console.print(Text(f"{example['text'][:_WIDE]} → {example['label']}"))


def _show_texts(found: dict[str, Any], console: Console) -> None:
    """Print how texts are cut into tokens, and which of a few bear loss."""
    _show_tokens(found["tokens"], found["max_length"], "split", console)
    _show_pieces(found["examples"], console)


def _show_tokens(splits: dict[str, Any], longest: int, head: str, console: Console) -> None:
    """Print how the texts of each split are cut into tokens."""
    table = Table(
        head, "documents", "tokens", "bytes/token", "p95 tokens",
        f"cut at {longest}", "further pieces",
    )  # fmt: skip
    for name, part in splits.items():
        share = part["truncated"] / part["documents"]
        table.add_row(
            name, f"{part['documents']:,}", f"{part['tokens']:,}", f"{part['bytes_per_token']:.2f}",
            str(part["p95_tokens"]), f"{part['truncated']:,} ({share:.1%})",
            f"{part['pieces']:,}",
        )  # fmt: skip
    console.print(table)


def _show_pieces(examples: list[dict[str, Any]], console: Console) -> None:
    """Print a few documents as the model sees them."""
    console.print(
        "What the model will see; [bold red]red[/] bears loss in pre-training, → is the label:"
    )
    for example in examples:
        line = Text()
        bears = example["bears_loss"] or [False] * len(example["pieces"])
        for piece, target, loss in list(
            zip(example["pieces"], example["targets"], bears, strict=True)
        )[:_TOKENS]:
            line.append(
                f"{piece}←{target}" if loss and piece != target else piece,
                "bold red" if loss else "",
            )
            line.append("│", "dim")
        if len(example["pieces"]) > _TOKENS:
            line.append(f" … {len(example['pieces']) - _TOKENS} more", "dim")
        if example["label"] is not None:
            line.append(f" → {example['label']}", "bold")
        console.print(line)

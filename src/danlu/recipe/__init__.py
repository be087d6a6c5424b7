"""The recipe: read, override, check, fill, save.

>>> recipe, derived = fill(validate({"name": "x", "data": {"task": "pretrain",
...     "sources": [{"path": "a.txt"}]}}, "example"))
>>> recipe.model.width, derived["model.width"]
(256, '64 × depth')
"""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from danlu.errors import InputError, RecipeError
from danlu.recipe import places
from danlu.recipe.base import Section
from danlu.recipe.launch import of_launch
from danlu.recipe.rules import LOSSES, USES, WITHOUT_MATRICES, contradictions, step_tokens
from danlu.recipe.sections import Recipe, Source

__all__ = ["Recipe", "Source", "dump", "fill", "load", "read_toml", "schema", "validate"]


def load(path: Path | str, overrides: list[str] | None = None) -> tuple[Recipe, dict[str, str]]:
    """Read, override, check and fill a recipe file.

    Parameters
    ----------
    path : path-like
        A TOML file.
    overrides : list of str, optional
        ``path=value`` pairs; values are TOML (``3``, ``0.1``, ``true``,
        ``["a"]``), anything else is taken as a string.

    Returns
    -------
    recipe : Recipe
        With every value filled in, and source paths made absolute.
    derived : dict of str to str
        Recipe path and rule of each value that was derived.

    Raises
    ------
    RecipeError
        With all the problems at once.
    """
    path = Path(path)
    content = read_toml(path)
    for override in overrides or []:
        _apply(content, override)
    content.setdefault("name", re.sub(r"[^\w.-]", "-", path.stem))
    recipe, derived = fill(validate(content, str(path)))
    return _resolve(recipe, path.resolve().parent), derived


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's content, or say in the user's terms why not."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(
            "there is no such recipe", where=str(path), mend="`danlu new DATA` writes one"
        ) from None
    except IsADirectoryError:
        raise InputError("this is a folder, not a recipe", where=str(path)) from None
    except UnicodeDecodeError:
        raise InputError(
            "the recipe is not UTF-8", where=str(path), mend="save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError([("", f"not valid TOML: {error}")], str(path)) from None


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one ``path=value`` in the raw content."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {override!r} is not of the form path=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    node: Any = content
    for parent in parents:
        if isinstance(node, list) and parent.isdigit() and int(parent) < len(node):
            node = node[int(parent)]
        elif isinstance(node, dict):
            node = node.setdefault(parent, {})
        else:
            raise InputError(f"--set {key}: {parent} is not a section")
    if not isinstance(node, dict):
        raise InputError(f"--set {key}: {'.'.join(parents)} is not a section")
    node[last] = value


def validate(content: dict[str, Any], source: str) -> Recipe:
    """Check raw content against the sections.

    Raises
    ------
    RecipeError
        Naming every problem, with the nearest known key for a misspelt one.
    """
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        problems = [
            (".".join(map(str, item["loc"])), _explain(item["loc"], item["type"], item["msg"]))
            for item in error.errors(include_url=False)
            # A tuple whose only item is wrong is also told to be too short; once is enough.
            if item["type"] != "too_short" or not item["input"]
        ]
        raise RecipeError(problems, source) from None
    if problems := contradictions(recipe):
        raise RecipeError(problems, source)
    return recipe


def _explain(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    if kind == "missing":
        return "is required"
    if kind != "extra_forbidden":
        return message.removeprefix("Value error, ")
    known = sorted(_section_at(loc[:-1]).model_fields)
    near = difflib.get_close_matches(str(loc[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key; {hint}"


def _section_at(loc: tuple[int | str, ...]) -> type[BaseModel]:
    """Return the section that stands at a path of the recipe."""
    section: type[BaseModel] = Recipe
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Section))
    return section


_STARTED = (
    768,
    12,
)  # the width and depth that a step's parts are reckoned for, unknown as they are


def num_parts(tokens: int, row: int, width: int, depth: int) -> int:
    """Return in how many parts a step is computed by default.

    So many that the activations of a part take about 100 MB; a part holds at least a row.
    Smaller parts cost little on a CPU: their activations stay nearer to the caches.

    Parameters
    ----------
    tokens, row : int
        Tokens of a step and of a row.
    width, depth : int
        Of the model.
    """
    kept = 36 * width * depth  # bytes for a token, measured in bfloat16
    return max(1, min(-(-tokens * kept // 10**8), tokens // row))


def _round_up(number: float, step: int) -> int:
    return max(step, -(-int(number) // step) * step)


def fill(recipe: Recipe) -> tuple[Recipe, dict[str, str]]:
    """Work out every value that the user left to danlu.

    Returns
    -------
    recipe : Recipe
        Without a ``None`` that matters.
    derived : dict of str to str
        Recipe path and rule of each value worked out.

    Notes
    -----
    The rules of the size dial. Width grows with depth, so that layers and
    width stay in proportion (Kaplan et al., 2020); the learning rate falls
    with the square root of the width (Yang et al., muP, 2022, as AdamW with
    shared matrices needs it); the batch is what a small corpus can feed often
    enough. NOTEBOOK.md holds the measurements.
    """
    derived: dict[str, str] = {}
    updates: dict[str, Any] = {}

    def derive(section: Any, path: str, **rules: tuple[Any, str]) -> Any:
        found = {key: value for key, (value, _) in rules.items() if getattr(section, key) is None}
        derived.update({f"{path}.{key}": rules[key][1] for key in found})
        return section.model_copy(update=found)

    started = bool(recipe.model.start)
    model = recipe.model if started else _fill_model(recipe, derive)
    updates["model"] = model
    width, depth = _STARTED if started else (model.width or 1, model.depth)
    narrow, row = (256 / width) ** 0.5, recipe.tokenizer.max_length
    tokens = step_tokens(recipe)

    def training(stage: str) -> Any:
        section, found = getattr(recipe, stage), {}
        if model.backbone in WITHOUT_MATRICES:
            found["optimizer"] = ("adamw", "the layers have no matrices for muon")
        if started:
            found["optimizer"] = ("adamw", "as open checkpoints were trained")
            if stage == "pretrain" and recipe.data.task != "pretrain":
                found["objective"] = ("none", "the checkpoint is pre-trained already")
        found = {k: rule for k, rule in found.items() if k not in section.model_fields_set}
        derived.update({f"{stage}.{key}": rule for key, (_, rule) in found.items()})
        return section.model_copy(update={key: value for key, (value, _) in found.items()})

    def rate(scratch: float, words: str) -> tuple[float, str]:
        if started:
            return 1e-4, "1e-4 from a checkpoint"
        return float(f"{scratch * narrow:.3g}"), f"{words} × sqrt(256 / width)"

    updates["pretrain"] = derive(
        training("pretrain"),
        "pretrain",
        batch_tokens=(tokens, "4,096 tokens, or one row if that is longer"),
        accumulate=(
            num_parts(tokens, row, width, depth),
            "parts whose activations take about 100 MB, at least a row each",
        ),
        learning_rate=rate(3e-3, "3e-3"),
    )
    updates["finetune"] = derive(
        training("finetune"),
        "finetune",
        batch_size=(32, "32 documents"),
        accumulate=(1, "all documents of a step at once"),
        learning_rate=rate(7e-4, "7e-4"),
        loss=(
            _usual_loss(recipe),
            "the task's usual one; quantile where quantiles are given",
        ),
        quantiles=(
            (0.1, 0.5, 0.9)
            if recipe.data.task == "regress" and recipe.finetune.loss == "quantile"
            else (),
            "0.1, 0.5 and 0.9 for loss 'quantile' of task 'regress', otherwise none",
        ),
        choose_by=(
            {"classify": "accuracy", "rank": "ndcg"}.get(recipe.data.kind, "loss"),
            "accuracy where a row has one class, ndcg where items are ranked, loss otherwise",
        ),
    )
    updates["data"] = _fill_data(recipe, derive)
    if recipe.data.modality == "table":
        alone = model.backbone != "transformer"
        bins = (0, "none for a row as one vector") if alone else (16, "16 for a Transformer")
        updates["table"] = derive(recipe.table, "table", bins=bins)
    filled = recipe.model_copy(update=updates)
    if problems := of_launch(filled):
        raise RecipeError(problems, recipe.name)
    return filled, derived


def _fill_model(recipe: Recipe, derive: Any) -> Any:
    """Return the model's section with its sizes worked out from the dial."""
    model = derive(recipe.model, "model", width=(64 * recipe.model.depth, "64 × depth"))
    uses, classic = USES[model.backbone], model.backbone != "transformer"
    gated = model.activation in (None, "swiglu")
    heads = model.heads or max(1, model.width // model.head_dim)
    factor, words = (8 / 3, "8/3") if gated else (4, "4")
    hidden = (_round_up(model.width * factor, 64), f"{words} × width, in steps of 64")
    rules = {
        "heads": (heads, "width / head_dim"),
        "kv_heads": (heads, "as many as heads"),
        "hidden": (model.width, "width") if classic else hidden,
        "activation": ("relu", "of a CNN or an MLP") if classic else ("swiglu", "of a Transformer"),
        "norm": (_usual_norm(recipe), "none of an MLP, batch of a CNN over images, rms otherwise"),
        "causal": (
            recipe.pretrain.objective == "causal" or recipe.data.task == "rank",
            "true for a causal objective and for task 'rank'",
        ),
    }
    model = derive(model, "model", **{key: rule for key, rule in rules.items() if key in uses})
    if not classic and model.heads % model.kv_heads:
        raise RecipeError(
            [("model.kv_heads", f"must divide heads ({model.heads}), {model.kv_heads} does not")],
            recipe.name,
        )
    return model


def _usual_norm(recipe: Recipe) -> str:
    of_images = str(recipe.data.modality) == "image"
    return {"mlp": "none", "cnn": "batch" if of_images else "rms"}.get(recipe.model.backbone, "rms")


def _usual_loss(recipe: Recipe) -> str:
    if recipe.data.kind == "regress" and recipe.finetune.quantiles:
        return "quantile"
    return LOSSES.get(recipe.data.task, ("cross_entropy",))[0]


def _fill_data(recipe: Recipe, derive: Any) -> Any:
    """Return the data section with its sources, cleaning and splitting worked out."""
    text, series = recipe.data.modality == "text", recipe.data.modality == "series"
    events = recipe.data.modality == "events"
    table = recipe.data.modality == "table" or series or events
    copies = ("keep", "kept in tables") if table else ("drop", "dropped, but in tables")
    against = ("keep", "kept in tables") if table else ("set-aside", "set aside, but in tables")
    near = ("drop" if text else "keep", "looked for in texts alone")
    clean = derive(
        recipe.data.clean, "data.clean",
        exact_duplicates=copies, near_duplicates=near, contradictions=against,
    )  # fmt: skip
    by = ("near-duplicate", "of texts") if text else ("random", "but for texts")
    if series:
        by = (f"time:{recipe.series.time}", "what is foretold must lie ahead")
    if events:
        by = (f"time:{recipe.events.time}", "what is recommended must lie ahead")
    split = derive(recipe.data.split, "data.split", by=by)
    sources = tuple(
        derive(
            source,
            f"data.sources.{number}",
            name=(_source_name(source.path), "from the path"),
            format=(places.format_of(source.path), "from the path"),
        )
        for number, source in enumerate(recipe.data.sources)
    )
    return recipe.data.model_copy(update={"sources": sources, "clean": clean, "split": split})


def _source_name(path: str) -> str:
    if "://" in path:
        return path.split("://")[1].split("@")[-1].split("?")[0].strip("/") or "sql"
    return places.file_name(path)


def _resolve(recipe: Recipe, base: Path) -> Recipe:
    """Make the sources' relative paths absolute; they are relative to the recipe."""

    def absolute(path: str) -> str:
        kind, (scheme, _, rest) = places.scheme(path), path.partition("://")
        if kind == "sql" and scheme == "sqlite":
            database = rest.removeprefix("/")
            return f"sqlite:///{base / database}" if database else path
        return str(base / Path(path).expanduser()) if kind == "file" else path

    def resolved(source: Source) -> Source:
        labels = source.labels and absolute(source.labels)
        return source.model_copy(update={"path": absolute(source.path), "labels": labels})

    sources = tuple(resolved(source) for source in recipe.data.sources)
    data = recipe.data.model_copy(update={"sources": sources})
    start = recipe.model.start and absolute(recipe.model.start)
    model = recipe.model.model_copy(update={"start": start})
    return recipe.model_copy(update={"data": data, "model": model})


def dump(recipe: Recipe) -> str:
    """Return the filled recipe as TOML."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors."""
    content = Recipe.model_json_schema()
    content["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    # A file's name is the default name, so an editor must not ask for it.
    content["required"] = [key for key in content.get("required", []) if key != "name"]
    return content

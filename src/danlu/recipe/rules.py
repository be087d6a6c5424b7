"""What no single key of a recipe shows to be wrong: keys against each other."""

from __future__ import annotations

import re

from danlu.recipe import places
from danlu.recipe.events_rules import of_events
from danlu.recipe.sections import GATE_PATTERN, Recipe, Source
from danlu.recipe.series_rules import of_series
from danlu.recipe.start_rules import of_start
from danlu.recipe.transcript_rules import of_transcripts


def attribute(name: str) -> str:
    """Return what reports call the attribute that ``audit.protected`` names.

    >>> attribute("race_*"), attribute("sex")
    ('race', 'sex')
    """
    return name.removesuffix("*").rstrip("_-.:= ") if name.endswith("*") else name


RESERVED = frozenset({
    "majority", "mean", "unigram", "tfidf-logreg", "tfidf-ridge", "logreg", "ridge",
    "least-squares", "boosting", "quantiles", "seasonal-naive", "seasonal-naive-long", "ets",
    "ets-long", "isolation-forest", "popular", "popular-recent", "item-knn", "item-knn-recency",
    "item-knn-sequential", "nearest-clip",
})  # fmt: skip
"""Names of baselines, which stand beside the recipe's own in ``metrics.json``."""

LOSSES = {
    "classify": ("cross_entropy", "hinge"),
    "regress": ("squared", "absolute", "huber", "quantile"),
    "forecast": ("quantile",),
    "detect": ("absolute", "squared", "huber"),
    "rank": ("cross_entropy",),
    "transcribe": ("ctc",),
}
"""The losses of each task, the default first."""

USES = {
    "transformer": {
        *("heads", "kv_heads", "head_dim", "qk_norm", "hidden", "activation", "causal"),
        *("norm", "initialiser"),
    },
    "lstm": {"hidden", "causal", "initialiser"},
    "gru": {"hidden", "causal", "initialiser"},
    "cnn": {"window", "activation", "norm", "initialiser"},
    "mlp": {"activation", "norm", "initialiser"},
    "linear": set[str](),
}
"""The keys of `model` that not every backbone has a use for, and which has."""
WITHOUT_MATRICES = ("cnn", "linear")
"""The backbones whose layers hold nothing that Muon could make orthogonal."""


def contradictions(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the path and the text of each problem that no single key shows."""
    data, split, objective = recipe.data, recipe.data.split, recipe.pretrain.objective
    backbone, finetune = recipe.model.backbone, recipe.finetune
    quantiles = list(finetune.quantiles or ())
    labelled = data.label is not None or all(s.label is not None for s in data.sources)
    rules = [
        (
            data.task not in ("pretrain", "forecast", "rank") and not labelled,
            "data.label",
            f"task {data.task!r} needs a label: name its column, or label every source",
        ),
        (
            data.task in ("regress", "detect") and data.label is None,
            "data.label",
            f"task {data.task!r} needs the column that holds what is to be told",
        ),
        (
            data.modality == "text"
            and data.clean.exact_duplicates == "keep"
            and data.clean.near_duplicates in (None, "drop"),
            "data.clean.near_duplicates",
            "must be 'keep' where exact duplicates are kept",
        ),
        (
            recipe.name in RESERVED,
            "name",
            f"{recipe.name!r} is a baseline's name; choose another",
        ),
        (
            data.label_separator is not None and data.task != "classify",
            "data.label_separator",
            "only task 'classify' has several labels",
        ),
        (
            recipe.finetune.consistency > 0 and data.kind not in ("classify", "pretrain"),
            "finetune.consistency",
            "only task 'classify' with one label a row has it",
        ),
        (
            finetune.loss is not None
            and data.task != "pretrain"
            and finetune.loss not in LOSSES[data.task],
            "finetune.loss",
            f"{finetune.loss!r} is not a loss of task {data.task!r}",
        ),
        (
            finetune.loss == "hinge"
            and (data.kind == "multilabel" or finetune.label_smoothing + finetune.consistency > 0),
            "finetune.loss",
            "'hinge' is for one class a row, without label_smoothing or consistency",
        ),
        (
            bool(quantiles) and (data.task != "regress" or finetune.loss not in (None, "quantile")),
            "finetune.quantiles",
            "are for task 'regress' with loss 'quantile'",
        ),
        (
            bool(quantiles) and (0.5 not in quantiles or quantiles != sorted(set(quantiles))),
            "finetune.quantiles",
            "must rise, and hold the median, 0.5",
        ),
        (
            finetune.loss == "quantile" and finetune.quantiles == (),
            "finetune.quantiles",
            "loss 'quantile' needs some, such as [0.1, 0.5, 0.9]",
        ),
        (
            backbone == "transformer" and recipe.model.norm not in (None, "rms"),
            "model.norm",
            "a Transformer's is 'rms'",
        ),
        (
            split.test + split.validation >= 1,
            "data.split",
            "test and validation leave nothing to train on",
        ),
        (
            bool(split.hold_out) and not (split.by or "").startswith("group:"),
            "data.split.hold_out",
            "names groups; say by which column: data.split.by = 'group:COLUMN'",
        ),
        (
            split.test == 0,
            "data.split.test",
            "0 leaves nothing to measure the model on; try 0.2",
        ),
        (
            split.validation == 0,
            "data.split.validation",
            "0 leaves nothing to choose checkpoints on; try 0.1",
        ),
        (
            data.task == "pretrain" and data.modality not in ("text", "series", "events"),
            "data.task",
            f"{data.modality!r} must be learnt for a task; choose classify or regress",
        ),
        (
            data.task == "pretrain" and objective == "none",
            "pretrain.objective",
            "task 'pretrain' needs an objective: masked or causal",
        ),
        (
            objective == "masked" and recipe.model.causal is True,
            "model.causal",
            "a masked objective needs a model that sees both sides",
        ),
        (
            backbone in ("linear", "mlp") and objective != "none",
            "pretrain.objective",
            f"{backbone!r} sees one position at a time and cannot be pre-trained; set 'none'",
        ),
        (
            data.modality not in ("text", "events") and objective == "causal",
            "pretrain.objective",
            f"{data.modality!r} has no order in which to foretell; set 'masked' or 'none'",
        ),
        (
            data.modality == "table" and backbone in ("cnn", "lstm", "gru"),
            "model.backbone",
            "a table's columns have no order; choose transformer, mlp or linear",
        ),
        (
            bool(recipe.table.apart) and backbone in ("mlp", "linear"),
            "model.backbone",
            f"{backbone!r} takes a row as one vector; texts and images need a transformer",
        ),
        (
            data.modality == "image" and backbone in ("lstm", "gru"),
            "model.backbone",
            "an image is not read in one direction; choose transformer, cnn, mlp or linear",
        ),
        (
            data.content is not None and data.modality not in ("image", "audio"),
            "data.content",
            "is for images and sounds",
        ),
        (
            finetune.mixup > 0
            and (data.modality not in ("image", "audio") or data.task != "classify"),
            "finetune.mixup",
            "is for classes of images or sounds",
        ),
        (
            finetune.mixup > 0 and (finetune.loss == "hinge" or finetune.consistency > 0),
            "finetune.mixup",
            "shares of classes have no hinge loss, and two views of a blend would differ in it",
        ),
        (
            backbone == "cnn" and objective == "causal",
            "model.backbone",
            "a CNN sees both sides and cannot be causal",
        ),
        (
            backbone in ("cnn", "mlp") and recipe.model.activation == "swiglu",
            "model.activation",
            "'swiglu' is a Transformer's feed-forward layer",
        ),
        (recipe.model.window % 2 == 0, "model.window", "must be odd, so that it has a middle"),
        (
            objective == "causal" and recipe.model.causal is False,
            "model.causal",
            "a causal objective needs a causal model",
        ),
        (
            (recipe.pretrain.batch_tokens or 2**62) < recipe.tokenizer.max_length,
            "pretrain.batch_tokens",
            "must hold at least one row of tokenizer.max_length tokens",
        ),
        (
            (recipe.pretrain.accumulate or 1)
            > max(1, step_tokens(recipe) // recipe.tokenizer.max_length),
            "pretrain.accumulate",
            "a step holds fewer rows of tokenizer.max_length tokens than that",
        ),
        (
            (recipe.finetune.accumulate or 1) > (recipe.finetune.batch_size or 32),
            "finetune.accumulate",
            "a step holds fewer documents than that",
        ),
    ]
    problems = [(path, text) for broken, path, text in rules if broken]
    problems += _idle_keys(recipe) + _idle_sections(recipe) + _in_audit(recipe)
    problems += of_start(recipe) + of_series(recipe) + of_events(recipe)
    problems += of_transcripts(recipe)
    for number, source in enumerate(data.sources):
        problems += [(f"data.sources.{number}.{key}", text) for key, text in _in_source(source)]
    return problems


def _in_source(source: Source) -> list[tuple[str, str]]:
    """Return the keys of one source that do not fit together, and why."""
    place = places.parse(source.path)
    labels = source.labels and places.parse(source.labels)
    kind = source.format or places.format_of(source.path)
    rules = [
        (
            (source.query is not None) != ("://" in source.path),
            "query",
            "a SQL URL needs a query, and only a SQL URL has one",
        ),
        (
            place is not None and source.sha256 is None,
            "sha256",
            "is required for what is downloaded: the archive's, as `sha256sum` prints it",
        ),
        (
            place is None and source.sha256 is not None,
            "sha256",
            "only a path of `pypi:`, `npm:` or `deb:` has one",
        ),
        (
            source.labels is not None and kind not in ("idx", None),
            "labels",
            "only format 'idx' keeps its labels in a file of their own",
        ),
        *(
            (
                bool(getattr(source, key)) and kind not in ("csv", "tsv", None),
                key,
                "only formats 'csv' and 'tsv' have it",
            )
            for key in ("header", "skip")
        ),
        (
            bool(labels) and str(labels) != str(place),
            "labels",
            "must come from the same package as the path: sha256 is of one archive",
        ),
        (
            kind == "pandas" and places.scheme(source.path) not in places.TRUSTED,
            "format",
            places.NO_PICKLE,
        ),
    ]
    return [(key, text) for broken, key, text in rules if broken]


def _in_audit(recipe: Recipe) -> list[tuple[str, str]]:
    """Return what cannot be audited, and conditions on what is not going to be measured."""
    audit, data = recipe.audit, recipe.data
    names = [attribute(name) for name in audit.protected]
    rules = [
        (
            bool(audit.protected) and data.task == "pretrain",
            "audit.protected",
            "task 'pretrain' gives no answers whose fairness could be measured",
        ),
        (
            bool(audit.protected) and data.task == "transcribe",
            "audit.protected",
            "is not measured for task 'transcribe'",
        ),
        (
            data.modality == "text" and any(name.endswith("*") for name in audit.protected),
            "audit.protected",
            "a prefix is for tables; name a column",
        ),
        (
            len(set(names)) < len(names),
            "audit.protected",
            "two of these are the same attribute",
        ),
        (
            audit.positive is not None and data.kind != "classify",
            "audit.positive",
            "only task 'classify' with one label a row has it",
        ),
    ]
    problems = [(path, text) for broken, path, text in rules if broken]
    for number, condition in enumerate(recipe.gate.require):
        match = re.match(GATE_PATTERN, condition)
        assert match is not None, "the section has checked it"
        minus, gap = match["minus"], re.match(r"\w+_gap\[(.+)\]", match["metric"])
        if minus and minus not in RESERVED | {"baseline"}:
            known = ", ".join(sorted(RESERVED))
            problems.append((f"gate.require.{number}", f"no baseline {minus!r}; known: {known}"))
        if gap and gap[1] not in names:
            problems.append((f"gate.require.{number}", f"audit.protected does not name {gap[1]!r}"))
    return problems


def _idle_keys(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the keys that the backbone would ignore."""
    backbone, model = recipe.model.backbone, recipe.model
    idle = set().union(*USES.values()) - USES[backbone]
    problems = [
        (f"model.{key}", f"has no meaning for a backbone of kind {backbone!r}")
        for key in sorted(idle)
        if getattr(model, key) != type(model).model_fields[key].default
    ]
    for stage in ("pretrain", "finetune"):
        training = getattr(recipe, stage)
        if backbone != "transformer" and training.recompute:
            problems.append((f"{stage}.recompute", "only a Transformer's layers are recomputed"))
        if (
            backbone in WITHOUT_MATRICES
            and training.optimizer == "muon"
            and "optimizer" in training.model_fields_set
        ):
            problems.append((f"{stage}.optimizer", f"{backbone!r} has no matrices for 'muon'"))
    return problems


def _idle_sections(recipe: Recipe) -> list[tuple[str, str]]:
    """Return what is said about a kind of data that the recipe does not read."""
    fields = type(recipe).model_fields
    given = {
        n
        for n in ("tokenizer", "table", "image", "audio", "series", "events")
        if getattr(recipe, n) != fields[n].default
    }
    table = recipe.table
    own = {{"text": "tokenizer"}.get(recipe.data.modality, recipe.data.modality)}
    own |= {"tokenizer"} if table.texts else set()
    own |= {"image"} if table.images else set()
    problems = [
        (name, f"has no meaning for data.modality {recipe.data.modality!r}")
        for name in sorted(given - own)
    ]
    if recipe.data.modality != "text":
        problems += [
            (f"data.{key}", "is for texts alone")
            for key in (("text",) if table.texts else ("redact", "text"))
            if getattr(recipe.data, key) != type(recipe.data).model_fields[key].default
        ]
        if recipe.data.clean.near_duplicates == "drop" or recipe.data.split.by == "near-duplicate":
            problems.append(("data", "near-duplicates are looked for in texts alone"))
    kinds = [*table.numeric, *table.categorical, *table.dates, *table.ignore, *table.apart]
    if twice := sorted({name for name in kinds if kinds.count(name) > 1}):
        problems.append(("table", f"the column {twice[0]!r} is given two kinds"))
    return problems


def step_tokens(recipe: Recipe) -> int:
    """Return the tokens of a step of pre-training, as given or by default."""
    return recipe.pretrain.batch_tokens or max(4096, recipe.tokenizer.max_length)

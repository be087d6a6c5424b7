"""What no single key of a recipe about interactions shows to be wrong."""

from __future__ import annotations

from danlu.recipe.sections import Recipe

Problems = list[tuple[str, str]]


def of_events(recipe: Recipe) -> Problems:
    """Return the path and the text of each problem."""
    data, events, finetune = recipe.data, recipe.events, recipe.finetune
    if data.modality != "events":
        rules = [
            (data.task == "rank", "data.task", "'rank' is for data.modality 'events'"),
            (finetune.choose_by == "ndcg", "finetune.choose_by", "'ndcg' is for task 'rank'"),
            (
                (data.split.by or "").startswith("last:"),
                "data.split.by",
                "'last:COLUMN' is for data.modality 'events'",
            ),
        ]
        return [(path, text) for broken, path, text in rules if broken]
    split, usual = data.split, type(data.split).model_fields
    last = split.by == f"last:{events.user}"
    shares = (split.test, split.validation) != (usual["test"].default, usual["validation"].default)
    rules = [
        (data.task != "rank", "data.task", "events are recommended from: choose 'rank'"),
        (
            split.by not in (None, f"time:{events.time}", f"last:{events.user}"),
            "data.split.by",
            f"split events by 'time:{events.time}', or (which leaks) by 'last:{events.user}'",
        ),
        (
            last and shares,
            "data.split",
            "shares say nothing of a split by 'last': one interaction of each user is tested",
        ),
        (last and events.min_user < 3, "events.min_user", "3 are needed to set two apart"),
        (
            len({events.user, events.item, events.time}) < 3,
            "events",
            "user, item and time are three columns",
        ),
        (
            data.label is not None,
            "data.label",
            "task 'rank' has no label: what comes next is its answer",
        ),
        (
            data.clean.exact_duplicates == "drop" or data.clean.contradictions == "set-aside",
            "data.clean",
            "rows are told apart by user, item and time; later copies are set aside and counted",
        ),
        (
            recipe.pretrain.objective != "none",
            "pretrain.objective",
            "task 'rank' itself learns what comes next; set 'none'",
        ),
        (
            recipe.model.backbone in ("linear", "mlp", "cnn"),
            "model.backbone",
            "what comes next is told from all that came before; choose transformer, lstm or gru",
        ),
        (
            recipe.model.causal is False,
            "model.causal",
            "a model that sees what comes next has nothing to foretell",
        ),
        (
            finetune.choose_by == "accuracy",
            "finetune.choose_by",
            "task 'rank' is judged by 'ndcg' or 'loss'",
        ),
        (
            finetune.mask_probability + finetune.label_smoothing > 0,
            "finetune",
            "mask_probability and label_smoothing have no meaning for task 'rank'",
        ),
        (
            bool(recipe.audit.protected),
            "audit.protected",
            "task 'rank' gives no answers whose fairness is measured",
        ),
    ]
    return [(path, text) for broken, path, text in rules if broken]

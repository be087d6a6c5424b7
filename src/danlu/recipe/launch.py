"""The section of a recipe that says how many processes train, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from danlu.errors import RecipeError
from danlu.recipe.base import Count, Positive, Section

if TYPE_CHECKING:
    from danlu.recipe.sections import Recipe


class Launch(Section):
    """In how many processes the training stages run.

    What comes of them does not depend on it but for rounding, where `accumulate` is a multiple of
    the processes that share a batch; otherwise a batch has more parts, and other tokens are
    hidden. A run goes on in another number of processes than it began in.
    """

    processes: Positive = 1
    """All of them. Under `torchrun` their number is its own, and this key is left out."""
    shard: Positive = 1
    """Weights, gradients and moments are divided among so many processes (FSDP), which saves
    memory; each sees documents of its own. What remains of `processes` holds copies (DDP)."""
    tensor: Positive = 1
    """Each layer is divided among so many processes, which see the same documents (tensor
    parallel); for a Transformer whose heads divide evenly."""
    on: Annotated[str, Field(pattern=r"^(local|ray|ray://\S+)$")] = "local"
    """`local`: this machine; `ray`: a Ray cluster on this machine, made if there is none;
    `ray://HOST:PORT`: that cluster, whose machines must see the run folder."""
    restarts: Count = 0
    """How often training begins anew from its last checkpoint after a process was lost."""

    @property
    def shares(self) -> int:
        """How many processes each batch is shared out to."""
        return self.processes // self.tensor


def of_launch(recipe: Recipe) -> list[tuple[str, str]]:
    """Return the path and the text of each problem."""
    launch, model = recipe.launch, recipe.model
    if launch.processes == 1 and launch.shard == launch.tensor == 1:
        return []
    group = launch.shard * launch.tensor
    if launch.processes % group:
        text = f"must be a multiple of shard × tensor, {group}; {launch.processes} is not"
        return [("launch.processes", text)]
    problems = []
    if launch.tensor > 1:
        if model.backbone != "transformer":
            problems.append(
                ("launch.tensor", f"a backbone of kind {model.backbone!r} is not divided")
            )
        if model.start:
            text = "layers of a checkpoint may have biases, which are not divided; use shard"
            problems.append(("launch.tensor", text))
        for name in ("heads", "kv_heads", "hidden"):
            size = getattr(model, name)
            if size and size % launch.tensor:
                text = f"must divide model.{name} ({size}) evenly; {launch.tensor} does not"
                problems.append(("launch.tensor", text))
    if model.norm == "batch":
        problems.append((
            "model.norm",
            "a batch norm measures each process's documents by themselves; choose layer or rms",
        ))  # fmt: skip
    return problems


def shared_out(recipe: Recipe, stage: str, shares: int) -> Recipe:
    """Return a filled recipe in which each of so many processes has a part of a stage's batch.

    Raises
    ------
    RecipeError
        If a batch holds fewer documents or rows than there are processes.
    """
    settings = getattr(recipe, stage)
    key = "batch_size" if stage == "finetune" else "batch_tokens"
    most = settings.batch_size if stage == "finetune" else settings.batch_tokens
    if stage == "pretrain" and recipe.data.modality == "text":
        most //= recipe.tokenizer.max_length
    if shares > max(1, most):
        text = f"comes to {most} documents or rows a step, which {shares} processes cannot share"
        raise RecipeError([(f"{stage}.{key}", text)], recipe.name)
    parts = -(-(settings.accumulate or 1) // shares) * shares
    return recipe.model_copy(update={stage: settings.model_copy(update={"accumulate": parts})})

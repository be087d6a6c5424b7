"""danlu: its loader, its loop, its optimisers, on the same documents.

Checkpoints are not written, as the peers are told to write none.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import documents
import numpy as np
import torch

import danlu
from danlu.batch import Batch
from danlu.data.load import DocumentLoader, PackedLoader, in_order
from danlu.data.modality import Spec
from danlu.data.text import Documents
from danlu.log import Screen
from danlu.model import flops, heads
from danlu.model.backbone import BackboneConfig
from danlu.recipe import num_parts
from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train.checkpoint import pack
from danlu.train.feed import num_steps
from danlu.train.loop import train

CPU = torch.device("cpu")
NEVER = 10**9


@dataclass
class NoCheckpoints:
    """Keeps nothing: what is measured is training, and the last weights are as good as any."""

    model: heads.Model

    def latest(self) -> None:
        """There is none."""

    def best(self, _: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the model as it stands."""
        return pack(self.model, [])[0], {}

    def save(self, *_: Any, **__: Any) -> None:
        """Write nothing."""

    def copied(self) -> None:
        """Nothing is copied."""

    def settle(self, wait: bool = True) -> None:
        """Nothing is being written."""

    def close(self) -> None:
        """There is nothing to close."""


@dataclass
class Counted:
    """A loader that remembers what it gave."""

    loader: DocumentLoader | PackedLoader
    given: list[tuple[int, list[Batch]]]

    @property
    def steps_per_epoch(self) -> int:
        """As the loader says."""
        return self.loader.steps_per_epoch

    def load(self, epoch: int, position: int) -> list[Batch]:
        """As the loader does; the tokens of each step are noted."""
        parts = self.loader.load(epoch, position)
        self.given.append((sum(part.num_tokens for part in parts), parts))
        return parts


def backbone(shape: dict[str, int], causal: bool) -> BackboneConfig:
    """Return the peers' shape in danlu's terms."""
    return BackboneConfig(
        vocab_size=shape["vocab_size"],
        num_layers=shape["layers"],
        dim=shape["width"],
        num_heads=shape["heads"],
        num_kv_heads=shape["heads"],
        head_dim=shape["width"] // shape["heads"],
        hidden_dim=shape["hidden"],
        activation="swiglu" if shape.get("gated", True) else "gelu",
        causal=causal,
    )


@torch.inference_mode()
def bits_per_byte(model: heads.Model, folder: Path) -> float:
    """Return the validation split's bits per byte in float32, summed as all sum it."""
    model.eval()

    def nats(ids: np.ndarray, targets: np.ndarray) -> float:
        real = torch.from_numpy(ids != 0)
        owner = torch.where(real, torch.arange(len(ids))[:, None], -1)
        position = torch.arange(ids.shape[1]).expand(ids.shape)
        weight = torch.from_numpy((targets != documents.IGNORED).astype(np.float32))
        target = torch.from_numpy(np.maximum(targets, 0))
        batch = Batch(torch.from_numpy(ids), position, owner, len(ids), target, weight)
        return float(objectives.tokens().total(model(batch), batch))

    return documents.bits_per_byte(folder, nats)


@torch.inference_mode()
def accuracy(model: heads.Model, folder: Path) -> float:
    """Return the share of test documents answered rightly, in float32."""
    model.eval()
    label = np.load(folder / "test.labels.npy")
    right = 0
    for batch in in_order(Documents.load(folder, "test"), 64):
        rows = batch.row_N.numpy()
        right += int((model(batch).argmax(-1).numpy() == label[rows]).sum())
    return right / len(label)


def main() -> None:
    """Train and write the answer."""
    options = common.parser(__doc__).parse_args()
    shape: dict[str, int] = options.shape
    folder: Path = options.data
    torch.manual_seed(options.seed)
    tuning = options.task == "finetune"
    split, spec = Documents.load(folder, "train"), Spec(shape["vocab_size"])
    objective: objectives.Objective
    if tuning:
        label = torch.from_numpy(np.load(folder / "train.labels.npy").astype(np.int64))
        loader: DocumentLoader | PackedLoader = DocumentLoader(
            split, label, shape["batch"], 1, options.seed, spec
        )
        model = heads.build(backbone(shape, causal=False), "classify", 2)
        objective = objectives.classes()
    else:
        rows, row = shape["batch"], shape["context"]
        parts = num_parts(rows * row, row, shape["width"], shape["layers"])
        loader = PackedLoader(split, rows, row, parts, options.seed, "causal", 0.15, spec)
        model = heads.build(backbone(shape, causal=True), "causal")
        objective = objectives.tokens()
    optimizer = Training().optimizer if options.optimizer == "default" else options.optimizer
    settings = Training(
        steps=options.steps and options.warm_up + options.steps,
        optimizer=optimizer,
        learning_rate=options.learning_rate,
        betas=common.BETAS,
        weight_decay=common.WEIGHT_DECAY,
        warmup=options.schedule_warm_up,
        gradient_clip=common.GRADIENT_CLIP,
        log_every=1,
        checkpoint_every=options.evaluate_every or NEVER,
        precision="auto" if options.flags == "best" else "float32",
    )
    clock, given = common.Clock(options.warm_up), []
    source = Counted(loader, given)
    curve: list[list[float]] = []
    operations: list[float] = []

    def log(row: dict[str, Any]) -> None:
        if row["event"] == "step":
            tokens, _ = given[row["step"] - 1]
            clock.step(tokens, row["loss"])

    def validate() -> dict[str, float]:
        if not options.evaluate_every:
            return {"loss": 0.0}
        seconds, step = clock.seconds, len(clock.record()["step_seconds"]) + options.warm_up
        with clock.pause():
            found = (accuracy if tuning else bits_per_byte)(model, folder)
        curve.append([step, seconds, found])
        return {"loss": 1 - found if tuning else found}

    total = num_steps(settings, source)
    with Screen(quiet=True).progress(total, "steps") as bar:
        clock.begin()
        train(
            model, objective, source, validate, settings, seed=options.seed, device=CPU,
            checkpoints=NoCheckpoints(model), log=log, bar=bar,  # type: ignore[arg-type]
        )  # fmt: skip
    for tokens, parts_of_step in given[:20]:
        operations.append(sum(flops.useful(model, part) for part in parts_of_step) / tokens)
    more: dict[str, Any] = {}
    if tuning:
        more["accuracy"] = curve[-1][2] if curve else accuracy(model, folder)
    if curve:
        more["curve"] = curve
    common.write_result(
        options.out,
        f"danlu, {optimizer}",
        clock,
        versions={"danlu": danlu.__version__, "torch": torch.__version__},
        settings={
            "optimizer": optimizer,
            "learning_rate": options.learning_rate,
            "precision": settings.precision,
            "threads": torch.get_num_threads(),
            "kernels": "DANLU_NO_KERNELS" not in os.environ,
        },
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_token=math.fsum(operations) / len(operations),
        **more,
    )


if __name__ == "__main__":
    main()

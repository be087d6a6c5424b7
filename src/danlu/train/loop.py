"""The training loop: one for every objective and every kind of data."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from danlu.batch import Batch
from danlu.errors import DanluError, MachineError
from danlu.log import Bar
from danlu.recipe.training import Training
from danlu.train import optim
from danlu.train.average import Average
from danlu.train.checkpoint import Checkpoints, unpack
from danlu.train.machine import (
    autocast,
    forget_peak,
    kept_memory,
    peak_memory,
    use_granted_cores,
)
from danlu.train.objective import Objective


class BatchSource(Protocol):
    """What the loop asks of its data: batches by counter, see :mod:`danlu.data.load`."""

    @property
    def steps_per_epoch(self) -> int: ...
    def load(self, epoch: int, position: int) -> list[Batch]: ...


class DivergedError(DanluError):
    """The loss or its gradient is no longer a number."""


@dataclass(slots=True)
class Progress:
    """Where training stands; saved with every checkpoint.

    Attributes
    ----------
    step : int
        Steps of the optimiser done.
    best : float
        Lowest badness (or loss) on the validation split so far.
    stale : int
        Evaluations since it was reached.
    """

    step: int = 0
    best: float = math.inf
    stale: int = 0


@kept_memory()
def train(
    model: nn.Module,
    objective: Objective,
    source: BatchSource,
    validate: Callable[[], dict[str, float]],
    settings: Training,
    *,
    seed: int,
    device: torch.device,
    checkpoints: Checkpoints,
    log: Callable[[dict[str, Any]], None],
    bar: Bar,
) -> Progress:
    """Train `model` in place and leave it with its best weights.

    Parameters
    ----------
    model : nn.Module
        On `device`.
    objective : Objective
    source : BatchSource
    validate : callable
        Returns figures of the model as it stands, ``loss`` among them; the
        lowest ``badness`` (or loss, if there is none) is the best.
    settings : Training
        Filled.
    seed : int
        With the step it fixes everything drawn at random, so that a resumed
        run draws what an uninterrupted one would have.
    device : torch.device
    checkpoints : Checkpoints
        If it holds one, training goes on from there.
    log : callable
        Given a row for each logged step and each evaluation.
    bar : Bar
        Shows progress.

    Raises
    ------
    DivergedError
        If the gradient is not finite; the last checkpoint stays as it was.
    MachineError
        If more memory is held than `settings` allow.
    """
    use_granted_cores()
    forget_peak(device)
    optimizers = optim.build(model, settings)
    average = Average(model, settings.average)
    progress = Progress()
    if found := checkpoints.latest():
        tensors, record = found
        unpack(tensors, record["groups"], model, optimizers)
        average.restore(tensors)
        best = math.inf if record["best"] is None else record["best"]
        progress = Progress(record["step"], best, record["stale"])
    per_epoch = source.steps_per_epoch
    total = num_steps(settings, source)
    every = settings.checkpoint_every or per_epoch
    meter = _Meter()
    batches = ahead(source, progress.step, total)
    while progress.step < total and not _exhausted(progress, settings):
        factor = optim.rate_factor(progress.step, total, settings.warmup, settings.schedule)
        torch.manual_seed(seed * 1_000_003 + progress.step)
        loss, norm, tokens = _step(
            model, objective, next(batches), optimizers, settings, factor, device
        )
        progress.step += 1
        average.update(progress.step)
        meter.add(loss, tokens)
        if progress.step % settings.log_every == 0 or progress.step == total:
            row = meter.read()
            log({
                "event": "step", "step": progress.step, "epoch": progress.step / per_epoch,
                "loss": row["loss"], "loss_unit": objective.unit, "gradient_norm": norm,
                "learning_rate": factor * (settings.learning_rate or 0.0),
                "tokens_per_second": row["tokens_per_second"],
                "peak_memory_bytes": _checked(peak_memory(device), settings.memory_limit),
            })  # fmt: skip
            text = f"loss {row['loss']:.3f} · {row['tokens_per_second']:,.0f} tokens/s"
            bar.update(progress.step, text)
        if progress.step % every == 0 or progress.step == total:
            paused = time.perf_counter()
            with average.applied():
                _evaluate(model, validate, progress, checkpoints, log)
            best = progress.best if math.isfinite(progress.best) else None
            record = {"step": progress.step, "stale": progress.stale, "best": best}
            checkpoints.save(progress.step, model, optimizers, record, average.state())
            meter.pause(time.perf_counter() - paused)
    if kept := checkpoints.best():
        unpack(kept[0], [], model, [])
    return progress


def _step(
    model: nn.Module,
    objective: Objective,
    parts: list[Batch],
    optimizers: list[torch.optim.Optimizer],
    settings: Training,
    factor: float,
    device: torch.device,
) -> tuple[float, float, int]:
    """Take one step; return the mean loss, the gradient's norm and the tokens seen."""
    loss = forward_and_backward(model, objective, parts, settings, device)
    rate = factor * (settings.learning_rate or 0.0)
    norm = optim.step(optimizers, settings.gradient_clip, rate, settings.l1)
    if not math.isfinite(norm):
        raise DivergedError(
            "the gradient is no longer finite",
            where="training",
            mend='lower learning_rate, or set precision = "float32"',
        )
    return loss, norm, sum(part.num_tokens for part in parts)


def forward_and_backward(
    model: nn.Module,
    objective: Objective,
    parts: list[Batch],
    settings: Training,
    device: torch.device,
    mark: Callable[[str], None] = lambda _: None,
) -> float:
    """Add a batch's gradient to the model's; return its mean loss.

    `mark` is told after each ``"forward"`` and ``"backward"`` pass.
    """
    model.train()
    # A batch in which nothing is to be predicted has the loss 0 and moves nothing.
    count = sum(objective.count(part) for part in parts) or 1.0
    loss = torch.zeros((), device=device)
    for part in parts:
        with autocast(settings.precision, device):
            outputs = model(on_device := part.to(device))
            part_loss = objective.total(outputs, on_device) / count
        mark("forward")
        part_loss.backward()  # type: ignore[no-untyped-call]
        mark("backward")
        loss += part_loss.detach()
    return float(loss)


def num_steps(settings: Training, source: BatchSource) -> int:
    """Return the steps of the optimiser that the settings come to, at most."""
    return settings.steps or settings.epochs * source.steps_per_epoch


def ahead(source: BatchSource, start: int, total: int) -> Iterator[list[Batch]]:
    """Yield the batches from a step on; while one is computed with, the next is made."""
    with ThreadPoolExecutor(1) as worker:
        waiting: deque[Future[list[Batch]]] = deque()
        for step in range(start, total):
            waiting.append(worker.submit(source.load, *divmod(step, source.steps_per_epoch)))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _checked(held: int, limit: float) -> int:
    if limit and held > limit * 1e9:
        raise MachineError(
            f"training holds {held / 1e9:.2f} GB of memory; memory_limit allows {limit:g} GB",
            where="training",
            mend="raise accumulate, lower the batch, or (Transformers) set recompute = true",
        )
    return held


def _evaluate(
    model: nn.Module,
    validate: Callable[[], dict[str, float]],
    progress: Progress,
    checkpoints: Checkpoints,
    log: Callable[[dict[str, Any]], None],
) -> None:
    model.eval()
    figures = validate()
    badness = figures.pop("badness", figures["loss"])
    improved = badness < progress.best
    progress.stale = 0 if improved else progress.stale + 1
    if improved:
        progress.best = badness
        checkpoints.save_best(model, {"step": progress.step, **figures})
    log({"event": "validation", "step": progress.step, "best": improved, **figures})


def _exhausted(progress: Progress, settings: Training) -> bool:
    return bool(settings.patience) and progress.stale >= settings.patience


class _Meter:
    """Mean loss and speed since it was last read."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._tokens, self._began = 0, time.perf_counter()

    def add(self, loss: float, tokens: int) -> None:
        self._losses.append(loss)
        self._tokens += tokens

    def pause(self, seconds: float) -> None:
        """Leave the seconds of an evaluation out of the speed."""
        self._began += seconds

    def read(self) -> dict[str, float]:
        seconds = max(1e-9, time.perf_counter() - self._began)
        found = {
            "loss": sum(self._losses) / max(1, len(self._losses)),
            "tokens_per_second": round(self._tokens / seconds, 1),
        }
        self._losses, self._tokens, self._began = [], 0, time.perf_counter()
        return found

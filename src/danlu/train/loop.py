"""The training loop: one for every objective and every kind of data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from danlu.batch import Batch
from danlu.errors import ArtifactError, Interrupted
from danlu.log import Bar
from danlu.parallel.mesh import ALONE, Mesh
from danlu.parallel.shard import exchange_gradients
from danlu.recipe.training import Training
from danlu.train import optim
from danlu.train.average import Average
from danlu.train.checkpoint import Checkpoints, template, unpack
from danlu.train.feed import BatchSource, ahead, num_steps
from danlu.train.guard import Guard
from danlu.train.machine import (
    autocast,
    forget_peak,
    kept_memory,
    peak_memory,
    reseed,
    use_granted_cores,
    within_limit,
)
from danlu.train.meter import Meter, Stride
from danlu.train.objective import Objective
from danlu.train.progress import Progress


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
    stopping: Callable[[], bool] = lambda: False,
    mesh: Mesh = ALONE,
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
        With the batch's number it fixes everything drawn at random, so that a resumed
        run draws what an uninterrupted one would have.
    device : torch.device
    checkpoints : Checkpoints
        If it holds one, training goes on from there.
    log : callable
        Given a row for each logged step, each evaluation, each step that is skipped, and
        each time that training goes on from a checkpoint.
    bar : Bar
        Shows progress.
    stopping : callable
        Asked after every step whether to save and leave.
    mesh : Mesh
        Where this process stands among those that train; `model` is divided accordingly.

    Raises
    ------
    DivergedError
        If too many steps in a row had to be skipped; the last checkpoint stays as it was.
    Interrupted
        If it was asked to leave; where it stood is saved.
    MachineError
        If more memory is held than `settings` allow, or the disk refuses a checkpoint.
    """
    use_granted_cores()
    forget_peak(device)
    run = _Run(model, objective, source, settings, seed, device, checkpoints, log, mesh)
    run.resume(bar)
    total, every = run.total, settings.checkpoint_every or source.steps_per_epoch
    with closing(checkpoints):
        while (done := run.progress).step < total and not _exhausted(done, settings):
            # Now, not after the step: then no more than one checkpoint is ever behind.
            checkpoints.settle(wait=(done.step + 1) % every == 0)
            if not run.step():
                continue
            done = run.progress
            if done.step % settings.log_every == 0 or done.step == total:
                bar.update(done.step, run.report())
            stop = mesh.anywhere(stopping())
            if done.step % every == 0 or done.step == total:
                run.evaluate(validate)
            elif stop or mesh.anywhere(run.is_late()):
                run.save(scheduled=False)
            if stop:
                checkpoints.settle()
                raise Interrupted(f"training is saved after step {done.step:,} of {total:,}")
        checkpoints.settle()
        run.take_best()
    return run.progress


class _Run:
    """Everything that changes while training, and what is done with it."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        source: BatchSource,
        settings: Training,
        seed: int,
        device: torch.device,
        checkpoints: Checkpoints,
        log: Callable[[dict[str, Any]], None],
        mesh: Mesh,
    ) -> None:
        self.model, self.objective, self.source, self.settings = model, objective, source, settings
        self.seed, self.device, self.checkpoints, self.log = seed, device, checkpoints, log
        self.mesh = mesh
        self.total = num_steps(settings, source)
        self.optimizers = optim.build(model, settings)
        self.average = Average(model, settings.average)
        self.guard, self.progress, self.meter = Guard(settings, model), Progress(), Meter()
        self.batches: Iterator[list[Batch]] = iter(())
        self.saved = time.monotonic()
        self.norm = self.ratio = self.factor = 0.0

    def resume(self, bar: Bar) -> None:
        """Go on from the last checkpoint, if there is one."""
        if found := self.checkpoints.latest(template(self.model)):
            self._restore(*found)
            self.guard.restore(found[1]["guard"])
            bar.begin(self.progress.step)
            self.log({"event": "resumed", "step": self.progress.step})
            if self.progress.best_step and not self._best():
                self.checkpoints.say("the best weights are lost; the best from here on are kept")
                self.progress.best, self.progress.best_step, self.progress.stale = None, 0, 0
        self._draw()

    def _best(self) -> dict[str, torch.Tensor] | None:
        found = self.checkpoints.best(self.progress.best_step, template(self.model))
        return found[0] if found else None

    def _restore(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        if record["seed"] != self.seed:
            where = str(self.checkpoints.folder)
            raise ArtifactError(
                "the checkpoints are of another seed", where=where, mend="delete them"
            )
        unpack(tensors, record["groups"], self.model, self.optimizers)
        self.average.restore(tensors)
        self.progress = Progress(**record["progress"])

    def _draw(self) -> None:
        done = self.progress
        self.batches = ahead(self.source, done.batch, done.batch + self.total - done.step)

    def step(self) -> bool:
        """Take a step, or skip it; return False where training went back instead."""
        done, settings = self.progress, self.settings
        self.factor = optim.rate_factor(done.step, self.total, settings.warmup, settings.schedule)
        number = self.seed * 1_000_003 + done.batch
        parts = next(self.batches)
        done.batch += 1
        self.guard.watch()
        loss = forward_and_backward(
            self.model, self.objective, parts, settings, self.device, number=number, mesh=self.mesh
        )
        logged = (done.step + 1) % settings.log_every == 0 or done.step + 1 == self.total
        stride = Stride(self.model) if logged else None
        count = sum(self.objective.count(part) for part in parts)
        self.checkpoints.copied()  # now the weights will change
        self.norm = optim.step(
            self.optimizers, settings.gradient_clip, self.factor * (settings.learning_rate or 0.0),
            settings.l1, lambda norm: self.guard.allows(loss, norm, count),
        )  # fmt: skip
        self.ratio = stride.ratio() if stride else 0.0
        if self.guard.fault:
            self.log(self.guard.row(done.step + 1, loss, self.norm, parts))
            self.guard.stop_if_astray(self.total)
            if self.guard.fault == "spike" and settings.on_spike == "rewind" and self._rewind():
                return False
        done.step += 1
        if not self.guard.fault:
            self.average.update(done.step)
            self.meter.add(loss, sum(part.num_tokens for part in parts))
        return True

    def _rewind(self) -> bool:
        """Go back to the last scheduled checkpoint, but not to its batches."""
        if (found := self.checkpoints.latest(template(self.model), scheduled=True)) is None:
            return False
        left = self.progress
        self.guard.rewind(found[1]["guard"])
        self._restore(*found)
        self.progress.batch = left.batch
        self.log({"event": "rewound", "step": left.step + 1, "to": self.progress.step})
        self._draw()
        return True

    def report(self) -> str:
        """Log what the last steps came to; return it in words."""
        (loss, speed), done = self.meter.read(), self.progress
        self.log({
            "event": "step", "step": done.step, "epoch": done.batch / self.source.steps_per_epoch,
            "loss": loss, "loss_unit": self.objective.unit,
            "gradient_norm": self.norm if math.isfinite(self.norm) else None,
            "update_ratio": self.ratio,
            "learning_rate": self.factor * (self.settings.learning_rate or 0.0),
            "tokens_per_second": speed, "skipped": self.guard.skipped,
            "peak_memory_bytes": within_limit(peak_memory(self.device), self.settings.memory_limit),
        })  # fmt: skip
        told = "all skipped" if loss is None else f"loss {loss:.3f}"
        return f"{told} · {speed:,.0f} tokens/s"

    def evaluate(self, validate: Callable[[], dict[str, float]]) -> None:
        """Measure the model on the validation split; save a checkpoint."""
        paused, done = time.perf_counter(), self.progress
        self.model.eval()
        with self.average.applied():
            figures = validate()
        badness = figures.pop("badness", figures["loss"])
        improved = badness < (math.inf if done.best is None else done.best)
        done.stale = 0 if improved else done.stale + 1
        if improved:
            done.best, done.best_step = badness, done.step
        self.save({"step": done.step, **figures} if improved else None)
        self.log({"event": "validation", "step": done.step, "best": improved, **figures})
        self.meter.pause(time.perf_counter() - paused)

    def save(self, best: dict[str, Any] | None = None, *, scheduled: bool = True) -> None:
        """Save a checkpoint, which is written while training goes on."""
        if scheduled:
            self.guard.arrived()
        record = {"progress": asdict(self.progress), "seed": self.seed, "guard": self.guard.state()}
        self.checkpoints.save(
            self.progress.step, self.model, self.optimizers, record, self.average, best,
            scheduled=scheduled,
        )  # fmt: skip
        self.saved = time.monotonic()

    def is_late(self) -> bool:
        """Whether more time went by since the last checkpoint than may be lost."""
        minutes = self.settings.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self.saved > 60 * minutes

    def take_best(self) -> None:
        """Put the best weights into the model."""
        self.progress.counts = dict(self.guard.counts)
        if self.progress.best_step:
            if (kept := self._best()) is None:
                raise ArtifactError(
                    "the best weights were damaged after they were written",
                    where=str(self.checkpoints.folder),
                    mend="delete that folder and run again",
                )
            unpack(kept, [], self.model, [])


def forward_and_backward(
    model: nn.Module,
    objective: Objective,
    parts: list[Batch],
    settings: Training,
    device: torch.device,
    mark: Callable[[str], None] = lambda _: None,
    *,
    number: int = 0,
    mesh: Mesh = ALONE,
) -> float:
    """Add a batch's gradient to the model's; return its mean loss.

    `mark` is told after each ``"forward"`` and ``"backward"`` pass. `number` and a part's own
    fix what is drawn at random in it, whichever process computes it.
    """
    model.train()
    # A batch in which nothing is to be predicted has the loss 0 and moves nothing.
    count = sum(objective.count(part) for part in parts) or 1.0
    loss = torch.zeros((), device=device)
    own = list(enumerate(parts))[mesh.share :: mesh.shares]
    # All processes take part in every step: one that has nothing left adds nothing.
    weight, own = (1.0, own) if own else (0.0, [(0, parts[0])])
    for place, part in own:
        reseed((number + (place << 52)) % 2**63)
        exchange_gradients(model, place == own[-1][0])
        with autocast(settings.precision, device):
            outputs = model(on_device := part.to(device))
            part_loss = objective.total(outputs, on_device) * (weight / count)
        mark("forward")
        part_loss.backward()  # type: ignore[no-untyped-call]
        mark("backward")
        loss += part_loss.detach()
    return float(mesh.added(loss))


def _exhausted(progress: Progress, settings: Training) -> bool:
    return bool(settings.patience) and progress.stale >= settings.patience

"""What every contestant shares: its arguments, its clock and its answer.

Only the standard library is imported here (and numpy by ``documents.py``), for
contestants run in environments where danlu is not installed.

The contract
------------
A contestant is a script that is run in a process of its own::

    PYTHON peers/NAME.py --task pretrain --data DIR --shape JSON --steps N --warm-up K --out FILE

It does ``K`` steps that are not timed, then ``N`` that are, and writes one JSON object:

name : str
    The contestant and its settings, as shown in tables.
versions : dict of str
    Of every library that bears on speed.
settings : dict
    What was chosen: precision, compilation, optimizer, learning rate, threads.
tokens : int
    Real tokens trained on in the timed steps; padding is not counted.
seconds : float
    Of the timed steps, from the end of the last warm-up step; evaluations left out.
step_seconds : list of float
    The same, one figure a step. Loading a batch is part of its step.
losses : list of float
    Nats per target, all steps, warm-up included.
first_step_seconds : float
    From the start of training to the end of the first step: it holds compilation.
start_to_first_step_seconds : float or None
    From the start of the process, when the caller put it in ``BENCHMARK_STARTED``.
peak_rss_mb : float
    Most memory the process held, in units of 2**20 bytes.
parameters : int
    Tied matrices counted once.
flops_per_token : float
    Useful floating-point operations, see :func:`flops_per_token`.

``--task finetune`` trains one epoch (``--steps 0``), all steps are timed unless
``--warm-up`` says otherwise, and adds ``accuracy`` on the test split. ``--task quality``
trains ``--steps`` steps on a cosine schedule. With ``--evaluate-every`` both add
``curve``, a list of ``[step, training seconds so far, figure]``: the accuracy, or the bits
per byte of the validation split.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
GRADIENT_CLIP = 1.0


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the arguments that every contestant takes."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--task", choices=["pretrain", "finetune", "quality"], default="pretrain")
    made.add_argument("--data", type=Path, required=True, help="a folder corpus.py has written")
    made.add_argument(
        "--shape",
        type=json.loads,
        required=True,
        help="JSON: vocab_size, width, layers, heads, hidden, context (tokens), batch (rows)",
    )
    made.add_argument("--steps", type=int, default=0, help="timed steps; 0 is one epoch")
    made.add_argument("--warm-up", type=int, default=0, help="steps before the timed ones")
    made.add_argument("--out", type=Path, required=True, help="where the JSON goes")
    made.add_argument("--flags", choices=["default", "best"], default="best")
    made.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    made.add_argument("--optimizer", default="adamw", help="adamw, or what the contestant has")
    made.add_argument("--learning-rate", type=float, default=1e-3)
    made.add_argument("--schedule-warm-up", type=float, default=0.05, help="share of all steps")
    made.add_argument("--evaluate-every", type=int, default=0, help="steps; 0 is never")
    made.add_argument("--seed", type=int, default=0)
    return made


class Clock:
    """Times steps, and leaves evaluations out.

    Parameters
    ----------
    warm_up : int
        Steps at the beginning that do not count.

    Examples
    --------
    >>> clock = Clock(warm_up=1)
    >>> clock.begin()
    >>> for _ in range(3):
    ...     clock.step(tokens=10, loss=2.0)
    >>> clock.record()["tokens"], len(clock.record()["step_seconds"])
    (20, 2)
    """

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self._ends: list[float] = []
        self._tokens: list[int] = []
        self._losses: list[Any] = []
        self._paused = 0.0
        self._began = time.perf_counter()
        self._first_at: float | None = None

    def begin(self) -> None:
        """Training starts now."""
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training seconds so far."""
        return time.perf_counter() - self._began - self._paused

    def step(self, tokens: int, loss: Any) -> None:
        """Note the end of a step; `loss` may be a tensor, read only at the end."""
        self._ends.append(self.seconds)
        self._tokens.append(tokens)
        self._losses.append(loss)
        if self._first_at is None:
            self._first_at = time.time()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time spent inside."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began

    def record(self) -> dict[str, Any]:
        """Return the figures that :func:`write_result` asks for."""
        ends = [0.0, *self._ends]
        started = os.environ.get("BENCHMARK_STARTED")
        first_at = self._first_at
        return {
            "tokens": int(sum(self._tokens[self.warm_up :])),
            "seconds": ends[-1] - ends[self.warm_up],
            "step_seconds": [
                round(end - start, 5)
                for start, end in zip(ends[self.warm_up :], ends[self.warm_up + 1 :], strict=False)
            ],
            "losses": [round(float(loss), 5) for loss in self._losses],
            "first_step_seconds": ends[1],
            "start_to_first_step_seconds": first_at - float(started)
            if started and first_at
            else None,
        }


def write_result(
    path: Path,
    name: str,
    clock: Clock,
    *,
    versions: dict[str, str],
    settings: dict[str, Any],
    parameters: int,
    flops_per_token: float,
    **more: Any,
) -> None:
    """Write a contestant's answer; the head of this file says what is in it."""
    record = {
        "name": name,
        "versions": versions,
        "settings": settings,
        "parameters": parameters,
        "flops_per_token": flops_per_token,
        "peak_rss_mb": peak_rss_mb(),
        **clock.record(),
        **more,
    }
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")


def peak_rss_mb() -> float:
    """Return the most memory this process has held, in units of 2**20 bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands a child its parent's ru_maxrss; VmHWM belongs to this program alone.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def flops_per_token(shape: dict[str, int], attended: float, head: bool = True) -> float:
    """Return the useful floating-point operations of training on one token.

    Two for each weight of a matrix product forwards and four backwards, and the
    same for the products of attention, with `attended` positions seen by a token
    on average: half the length under a causal mask, all of it without (Narayanan
    et al., 2021; Chowdhery et al., 2022). Looking up an embedding costs nothing.
    """
    gated = 3 if shape.get("gated", True) else 2
    width, hidden = shape["width"], shape["hidden"]
    matrices = shape["layers"] * (4 * width * width + gated * width * hidden)
    if head:
        matrices += shape["vocab_size"] * width
    return 6.0 * matrices + 12.0 * shape["layers"] * width * attended


def schedule(step: int, steps: int, warm_up: float, floor: float = 0.0) -> float:
    """Return a step's share of the learning rate: a linear rise, then a cosine."""
    rise = max(1, round(warm_up * steps))
    if step < rise:
        return (step + 1) / rise
    angle = math.pi * (step - rise) / max(1, steps - rise)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(angle))

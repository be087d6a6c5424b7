"""danlu with checkpoints: none, or one every few steps that is waited for or written meanwhile."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import torch
from danlu_run import CPU, NoCheckpoints, backbone

import danlu
from danlu.data.load import PackedLoader
from danlu.data.modality import Spec
from danlu.data.text import Documents
from danlu.log import Screen
from danlu.model import heads
from danlu.recipe import num_parts
from danlu.recipe.training import Training
from danlu.train import objective as objectives
from danlu.train import room
from danlu.train.checkpoint import Checkpoints
from danlu.train.loop import train


class Timed(Checkpoints):
    """Checkpoints that note how long training stood still for each, and how long each took.

    Parameters
    ----------
    folder : Path
    wait : bool
        Whether a save is waited for, as if nothing were done meanwhile.
    """

    def __init__(self, folder: Path, wait: bool) -> None:
        super().__init__(folder, 2)
        self._beside = not wait  # as where memory is too short for copies
        self.took, self.stalls = [], []
        self._still, self._inside = 0.0, False

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Take the time of the outermost call."""
        outermost, self._inside, began = not self._inside, True, time.perf_counter()
        yield
        if outermost:
            self._inside, self._still = False, self._still + time.perf_counter() - began

    def save(self, *arguments: Any, **options: Any) -> None:
        """Save; what training stood still since the save before belongs to that one."""
        self.stalls.append(self._still)
        self._still = 0.0
        with self._standing_still():
            super().save(*arguments, **options)

    def copied(self) -> None:
        """Wait for a copy that has not ended."""
        with self._standing_still():
            super().copied()

    def settle(self, wait: bool = True) -> None:
        """Wait for a save that has not ended."""
        with self._standing_still():
            super().settle(wait)

    def _write(self, *arguments: Any) -> None:
        began = time.perf_counter()
        super()._write(*arguments)
        self.took.append(time.perf_counter() - began)


def main() -> None:
    """Train and write the answer."""
    parser = common.parser(__doc__)
    parser.add_argument("--mode", choices=["none", "waited for", "meanwhile"], required=True)
    parser.add_argument("--every", type=int, required=True, help="steps between checkpoints")
    options = parser.parse_args()
    shape: dict[str, int] = options.shape
    torch.manual_seed(options.seed)
    rows, row = shape["batch"], shape["context"]
    parts = num_parts(rows * row, row, shape["width"], shape["layers"])
    documents = Documents.load(options.data, "train")
    spec = Spec(shape["vocab_size"])
    source = PackedLoader(documents, rows, row, parts, options.seed, "causal", 0.15, spec)
    model = heads.build(backbone(shape, causal=True), "causal")
    settings = Training(
        steps=options.warm_up + options.steps, optimizer="adamw", learning_rate=1e-3, log_every=1,
        checkpoint_every=options.every,
    )  # fmt: skip
    # Beside this file: a temporary folder may lie in memory, which is no disk.
    folder = Path(tempfile.mkdtemp(dir=Path(__file__).parent.parent / ".work"))
    checkpoints: Any = NoCheckpoints(model)
    if options.mode != "none":
        checkpoints = Timed(folder, options.mode == "waited for")
    clock = common.Clock(options.warm_up)

    def log(row: dict[str, Any]) -> None:
        if row["event"] == "step":
            clock.step(round(rows * shape["context"] * source.fill), row["loss"])

    try:
        with Screen(quiet=True).progress(settings.steps, "steps") as bar:
            clock.begin()
            train(
                model, objectives.tokens(), source, lambda: {"loss": math.inf}, settings,
                seed=options.seed, device=CPU, checkpoints=checkpoints, log=log, bar=bar,
            )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    timed = isinstance(checkpoints, Timed)
    common.write_result(
        options.out,
        options.mode,
        clock,
        versions={"danlu": danlu.__version__, "torch": torch.__version__},
        settings={"every": options.every, "threads": torch.get_num_threads()},
        parameters=sum(p.numel() for p in model.parameters()),
        flops_per_token=0.0,
        checkpoint_bytes=room.state_bytes(model, settings),
        stall_seconds=checkpoints.stalls[2:] if timed else [],  # the first save makes the buffers
        save_seconds=checkpoints.took[1:] if timed else [],
    )


if __name__ == "__main__":
    main()

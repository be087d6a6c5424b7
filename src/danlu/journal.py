"""What a training stage writes down and shows while it is at work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from danlu.data import text
from danlu.data.load import DocumentLoader, PackedLoader
from danlu.log import Events, Screen
from danlu.recipe.training import Training

Row = dict[str, Any]
_NAMED = 8  # rows of a skipped batch that the screen names; the log has them all


def journal(
    stage: str,
    settings: Training,
    folder: Path,
    events: Events | None,
    screen: Screen,
    loader: DocumentLoader | PackedLoader,
) -> Callable[[Row], None]:
    """Return what takes a row: to the log, to TensorBoard if asked for, and to the screen."""
    if events is None:  # of several processes one writes
        return lambda _: None
    write = _writer(stage, settings, folder, events)

    def log(row: Row) -> None:
        row = {"stage": stage, **row}
        if "rows" in row and isinstance(loader.documents, text.Documents):
            # A text may go on in several documents; what can be looked up is the text.
            row["rows"] = sorted({int(loader.documents.text_N[number]) for number in row["rows"]})
        write(row)
        if row["event"] in _LINES:
            screen.say(_LINES[row["event"]](row))

    return log


def _writer(stage: str, settings: Training, folder: Path, events: Events) -> Callable[[Row], None]:
    if not settings.tensorboard:
        return events.write
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder / "tensorboard"))

    def write(row: Row) -> None:
        events.write(row)
        for name, value in row.items():
            if isinstance(value, float):
                board.add_scalar(f"{stage}/{row['event']}/{name}", value, row["step"])
        board.flush()

    return write


def _validation(row: Row) -> str:
    best = " [green]best[/]" if row["best"] else ""
    others = [name for name in row if name == "accuracy" or name.startswith("ndcg@")]
    told = "".join(f", {name} {row[name]:.4f}" for name in others)
    return f"  step {row['step']:,}: validation loss {row['loss']:.4f}{told}{best}"


def _skipped(row: Row) -> str:
    rows = row["rows"]
    more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    named = f"training rows {', '.join(map(str, rows[:_NAMED]))}{more}"
    loss = "" if row["loss"] is None else f" (loss {row['loss']:.4g})"
    return f"  [yellow]![/] step {row['step']:,} is skipped: {row['why']}{loss}; {named}"


def _rewound(row: Row) -> str:
    return f"  [yellow]![/] back to step {row['to']:,}; the batches since then are passed over"


_LINES: dict[str, Callable[[Row], str]] = {
    "validation": _validation,
    "skipped": _skipped,
    "rewound": _rewound,
    "resumed": lambda row: f"  goes on from step {row['step']:,}",
}

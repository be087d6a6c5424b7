"""``danlu new``: looking at data and writing the recipe that fits it.

Each kind of data says by itself whether a table, or a folder, is of it; they are asked in turn,
and the first that knows the data for its own answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from danlu.data import guess_events, guess_media, guess_series, guess_table, guess_text
from danlu.data.guess_base import CLASSES, Guess, Seen
from danlu.data.guess_files import SAMPLE, Folder, look_into, sample_of
from danlu.data.sources import open_source
from danlu.errors import DataError, InputError
from danlu.recipe import Source, load

__all__ = ["Guess", "look", "write"]

_OF_TABLES: tuple[Callable[[Seen, str | None, list[str]], Guess | None], ...] = (
    guess_media.of_table,
    guess_events.of_table,
    guess_series.of_table,
    guess_table.of_table,
    guess_text.of_table,
)
"""Who is asked about a table, in this order: what is rarer comes first, texts take what is left."""


def look(data: Path, target: str | None) -> Guess:
    """Guess the kind, the task and the label of a file or folder, and what fits its size.

    Parameters
    ----------
    data : Path
    target : str or None
        The column to be predicted, if the user knows it.

    Raises
    ------
    InputError
        If there is nothing to read, no such column, or it is not clear what is meant.
    """
    reasons: list[str] = []
    folder = Folder.of(data)
    kind = folder.chief()
    if kind in ("image", "audio"):
        tables = [path for table in ("csv", "tsv", "jsonl", "parquet")
                  for path in folder.files.get(table, [])]  # fmt: skip
        if not tables:
            _no_columns(target, data)
            return guess_media.of_folder(folder, kind, reasons)
        data, folder = tables[0], Folder.of(tables[0])
        reasons.append(f"table: {data.name} says what the files beside it are")
    elif kind in ("idx", "npz"):
        _no_columns(target, data)
        return guess_media.of_arrays(folder, kind, reasons)
    elif kind == "txt" and data.is_dir() and target is None and (guess := _classes_of_texts(data)):
        return guess
    seen = look_into(data, next(iter(folder.files.values()))[0], reasons)
    if target is not None and target not in seen.names:
        names = ", ".join(seen.names)
        raise InputError(f"no column {target!r}; there are: {names}", where=str(data))
    for ask in _OF_TABLES:
        found: list[str] = []
        if guess := ask(seen, target, found):
            guess.reasons[:0] = reasons
            return guess
    raise DataError("danlu cannot tell what this is", where=str(data))


def _no_columns(target: str | None, data: Path) -> None:
    if target is not None:
        raise InputError(
            f"there is no column {target!r}: the labels are told from the files", where=str(data)
        )


def _classes_of_texts(data: Path) -> Guess | None:
    """Recognise one text file, or one folder of them, for each class."""
    folders = sorted(p for p in data.iterdir() if p.is_dir() and any(p.rglob("*.txt")))
    texts = sorted(p for p in data.iterdir() if p.suffix.lower() == ".txt")
    parts = folders if 2 <= len(folders) <= CLASSES and not texts else texts
    if not 2 <= len(parts) <= CLASSES:
        return None
    each = SAMPLE // len(parts)
    samples = [sample_of(open_source(Source(path=str(part)))[0], each) for part in parts]
    what = "folder" if parts is folders else "text file"
    return guess_text.of_labelled(data, parts, samples, what)


def write(guess: Guess, output: Path | None) -> Path:
    """Write the recipe, and make sure that it can be read.

    Raises
    ------
    InputError
        If the file exists: somebody may have worked on it.
    """
    path = output or Path(f"{guess.data.stem or 'recipe'}.toml")
    if path.exists():
        raise InputError("this file exists already", where=str(path), mend="give another with -o")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(guess.recipe(path.resolve().parent), encoding="utf-8")
    try:
        load(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    return path

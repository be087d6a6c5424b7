"""``danlu new`` for images and sounds: which files they are, and where their labels stand."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.data.guess_base import CLASSES, Seen
from danlu.data.guess_files import Folder, kind_of, sample_of
from danlu.data.guess_sizes import ImageGuess, MediaGuess, SoundGuess
from danlu.data.guess_table import TARGETS, target_of
from danlu.data.media import content
from danlu.data.sources import open_source
from danlu.errors import DataError
from danlu.recipe import Source

_LOOKED_AT = 200  # files that are opened, spread over all
_FEW = 4  # files that a class needs at least, for one to be in each split
_HELD_OUT = ("test", "testing", "val", "valid", "validation")
_IN_NAMES = (
    r"(?:^|/)(?P<label>[^/\W_]+)[ ._-][^/]*$",
    r"(?:^|/)(?P<label>[^/\W\d_]+)\d+[.]\w+$",
)
"""Where a label may stand in a file's name: before the first mark, or before a number."""
_GROUPS = re.compile(
    r"^(speaker|speaker_?id|client_?id|user_?id|patient|patient_?id|subject|subject_?id|person)$",
    re.IGNORECASE,
)
_MANY_GROUPS = 10  # of which a fifth can be tested on


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Where labels stand, and how rows are to be split."""

    label: str
    task: str = "classify"
    split: str = "random"
    hold_out: str | None = None
    pattern: str | None = None


def of_folder(folder: Folder, kind: str, reasons: list[str]) -> MediaGuess:
    """Return what a folder of images or sounds suggests, whose labels stand in their names.

    Raises
    ------
    DataError
        If it holds no labels, or no file can be read.
    """
    paths = folder.files[kind]
    names = [path.relative_to(folder.data).as_posix() for path in paths]
    labels = _in_folders(folder.data, names, reasons) or _in_file_names(names, reasons)
    if labels is None:
        raise DataError(
            f"the {_WORDS[kind]} carry no labels",
            where=str(folder.data),
            mend="put those of each class into a folder called as the class, or write a CSV file "
            "with a column of their paths and one of their labels",
        )
    besides = folder.besides(kind)
    if besides:
        more = f" and {len(besides) - 1} more" if len(besides) > 1 else ""
        reasons.append(f"left out: {besides[0].name}{more}, for the {_WORDS[kind]} are many")
        # A glob for each ending, for the folder as a whole would be all that lies in it.
        endings = sorted({path.suffix for path in paths})
        sources = [{"path": f"{folder.data}/**/*{ending}"} for ending in endings]
    else:
        sources = [{"path": str(folder.data)}]
    if labels.pattern:
        sources = [source | {"pattern": labels.pattern} for source in sources]
    step = -(-len(paths) // _LOOKED_AT)
    blobs = [path.read_bytes() for path in paths[::step]]
    return _finish(folder.data, kind, labels, None, sources, len(paths), blobs, reasons)


_WORDS = {"image": "images", "audio": "sounds"}


def _in_folders(data: Path, names: Sequence[str], reasons: list[str]) -> Labels | None:
    """Recognise a folder for each class, perhaps inside folders called train and test."""
    parts = [name.split("/") for name in names]
    classes = Counter(path[-2] if len(path) > 1 else "" for path in parts)
    if len(classes) < 2:
        return None
    if "" in classes:
        raise DataError(
            f"{classes['']:,} files lie beside the folders of the classes",
            where=str(data),
            mend="move them into the folder of their class, or elsewhere",
        )
    _check(classes, "folder", data)
    reasons.append(
        f"label: {len(classes)} folders, so each folder's name is the label of its files"
    )
    outer = Counter(path[0].lower() for path in parts if len(path) > 2)
    kept = next((name for name in _HELD_OUT if name in outer), None)
    if kept is None or not 2 <= len(outer) <= 4 or sum(outer.values()) < len(names):
        return Labels(label="folder")
    kept = next(path[0] for path in parts if path[0].lower() == kept)
    reasons.append(
        f"split: {outer[kept.lower()]:,} files in the folder {kept!r} are the test split"
    )
    pattern = r"(?:^|/)(?P<part>[^/]+)/[^/]+/[^/]+$"
    return Labels(label="folder", split="group:part", hold_out=kept, pattern=pattern)


def _in_file_names(names: Sequence[str], reasons: list[str]) -> Labels | None:
    """Recognise names that begin with a label, such as ``cat.12.jpg``."""
    for pattern in _IN_NAMES:
        matches = [re.search(pattern, name) for name in names]
        found = Counter(match["label"] for match in matches if match)
        if sum(found.values()) < len(names) or not 2 <= len(found) <= CLASSES:
            continue
        if min(found.values()) >= _FEW:
            few = ", ".join(sorted(found)[:5])
            reasons.append(
                f"label: each file's name begins with one of {len(found)}, such as {few}"
            )
            return Labels(label="label", pattern=pattern)
    return None


def _check(classes: Counter[str], what: str, data: Path) -> None:
    """Refuse so many classes that they must be something else."""
    if len(classes) > max(50, classes.total() // 10):
        raise DataError(
            f"{len(classes):,} {what}s hold {classes.total():,} files: too many to be classes",
            where=str(data),
            mend="write a CSV file with a column of their paths and one of their labels",
        )


def of_table(seen: Seen, target: str | None, reasons: list[str]) -> MediaGuess | None:
    """Return what a table of files, or of where they lie, suggests; None if it holds none.

    Raises
    ------
    DataError
        If none of the files is there, or nothing looks like a label.
    """
    found = next((name for name in seen.names if name != target and _kind(seen.cells(name))), None)
    if found is None:
        return None
    kind = _kind(seen.cells(found))
    assert kind
    step = -(-len(seen.rows) // _LOOKED_AT)
    contents = [content(row, found, seen.file.path) for row in seen.rows[::step]]
    blobs = [cell for cell in contents if isinstance(cell, bytes)]
    if not blobs:
        raise DataError(
            f"the column {found!r} names {_WORDS[kind]}, and none is there: {contents[0]!s}",
            where=str(seen.file.path),
            mend="paths begin at the folder of the table, and do not leave it",
        )
    inside = isinstance(seen.cells(found)[0], (bytes, dict))
    told = f"in column {found!r}" if inside else f"where column {found!r} says"
    reasons.append(f"{_WORDS[kind]}: {told}")
    if missing := len(contents) - len(blobs):
        reasons.append(f"missing: {missing:,} of {len(contents):,} files looked for")
    rows = [{key: cell for key, cell in row.items() if key != found} for row in seen.rows]
    if not rows[0]:
        raise DataError("there is no column beside them to be told from them", where=found)
    target = target or _label_of(seen, found, reasons)
    label, task = target_of(rows, list(rows[0]), target, reasons)
    split = _split_of(seen, label, reasons)
    labels = Labels(label=label, task=task, split=split)
    return _finish(seen.data, kind, labels, found, seen.sources, seen.total, blobs, reasons)


def _label_of(seen: Seen, files: str, reasons: list[str]) -> str | None:
    """Return the only column that may be the label; None where a name tells it.

    Raises
    ------
    DataError
        If several may be, or none.
    """
    if any(TARGETS.match(name) for name in seen.names):
        return None
    different = {name: len(set(map(str, seen.cells(name)))) for name in seen.names}
    may = [
        name
        for name, count in different.items()
        if name != files
        and not _GROUPS.match(name)
        and 2 <= count <= min(CLASSES, len(seen.rows) / _FEW)
    ]
    if len(may) != 1:
        which = f"any of {', '.join(map(repr, may))} may be" if may else "no column looks like"
        raise DataError(
            f"{which} what is to be told from the files",
            where=", ".join(seen.names),
            mend="name it with --target",
        )
    reasons.append(f"label: column {may[0]!r}, for it has only {different[may[0]]} values")
    return may[0]


def _kind(cells: Sequence[Any]) -> str | None:
    """Return `image` or `audio` if a column holds files, or where they lie."""
    kinds = Counter(map(_kind_of_cell, cells))
    kind, count = kinds.most_common(1)[0]
    return kind if kind and count >= 0.9 * len(cells) else None


def _kind_of_cell(cell: Any) -> str | None:
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return "audio" if cell[:4] in (b"fLaC", b"OggS") or cell[8:12] == b"WAVE" else "image"
    kind = kind_of(cell) if isinstance(cell, str) else None
    return kind if kind in _WORDS else None


def _split_of(seen: Seen, label: str, reasons: list[str]) -> str:
    """Keep a speaker's or a patient's rows together, where there are enough of them."""
    name = next((name for name in seen.names if name != label and _GROUPS.match(name)), None)
    if name is None:
        return "random"
    groups = len(set(map(str, seen.cells(name))))
    if groups < _MANY_GROUPS:
        reasons.append(f"split: random, for {groups} of column {name!r} are too few to set apart")
        return "random"
    reasons.append(f"split: those of one {name!r} stay together, so that the test asks of others")
    return f"group:{name}"


def of_arrays(folder: Folder, kind: str, reasons: list[str]) -> MediaGuess:
    """Return what idx or npz files of images suggest.

    Raises
    ------
    DataError
        If they have no labels.
    """
    sources: list[dict[str, Any]] = []
    for path in folder.files[kind]:
        if kind == "npz":
            sources.append({"path": str(path)})
            continue
        labels = path.with_name(path.name.replace("idx3", "idx1").replace("images", "labels"))
        if not labels.is_file():
            raise DataError("no file of labels stands beside it", where=str(path),
                            mend=f"it is expected as {labels.name}")  # fmt: skip
        sources.append({"path": str(path), "labels": str(labels)})
    rows: list[dict[str, Any]] = []
    for source in sources:
        for file in open_source(Source(**source)):
            rows += sample_of(file, 100_000)
    if "label" not in rows[0]:
        raise DataError(
            "no array holds the labels of the images",
            where=sources[0]["path"],
            mend=f"call one as {rows[0]['array']!r}, with y or labels for x or images",
        )
    told = "labels in files of their own" if kind == "idx" else "an array of labels"
    reasons.append(f"label: {told}, with {len({row['label'] for row in rows})} different values")
    held_out = Labels(label="label")
    names = Counter(row.get("array", "") for row in rows)
    if kept := next((n for n in names if any(part in n.lower() for part in _HELD_OUT[:2])), None):
        reasons.append(f"split: the {names[kept]:,} images of {kept!r} are the test split")
        held_out = Labels(label="label", split="group:array", hold_out=kept)
    step = -(-len(rows) // _LOOKED_AT)
    blobs = [row["image"] for row in rows[::step]]
    return _finish(folder.data, "image", held_out, None, sources, len(rows), blobs, reasons)


def _finish(
    data: Path,
    kind: str,
    labels: Labels,
    column: str | None,
    sources: list[dict[str, Any]],
    rows: int,
    blobs: list[bytes],
    reasons: list[str],
) -> MediaGuess:
    make = {"image": ImageGuess.of, "audio": SoundGuess.of}[kind]
    return make(
        blobs, reasons, data=data, task=labels.task, label=labels.label, sources=sources,
        rows=rows, content=column, split=labels.split, hold_out=labels.hold_out,
    )  # fmt: skip

"""``danlu new``: looking at data and writing the recipe that fits it."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from danlu.data import guess_events, guess_table
from danlu.data.guess_table import CLASSES as _CLASSES
from danlu.data.guess_table import quote as _quote
from danlu.data.sources import File, open_source, rows_of
from danlu.errors import DataError, InputError
from danlu.recipe import Source, load

_SAMPLE = 5000
_LABEL_NAMES = re.compile(
    r"^(label|labels|target|class|category|sentiment|tag|y|stars?|rating|score|intent|topic|spam|price)$",
    re.I,
)


@dataclass
class Guess:
    """What was seen, what it suggests, and why.

    Attributes
    ----------
    data : Path
    task : str
    text : str or None
        Column; None for a table.
    label : str or None
        Column.
    sources : list of dict
    language : str
    depth : int
    rows : int
        At least; only a sample is read.
    reasons : list of str
    modality : {"text", "table", "events"}
    ignore, texts : list of str
        Columns of a table that are not to be read, and those of long texts.
    events : Columns, optional
        Of a table of interactions.
    """

    data: Path
    task: str
    text: str | None
    label: str | None
    sources: list[dict[str, str]]
    language: str
    depth: int
    rows: int
    reasons: list[str] = field(default_factory=list)
    modality: str = "text"
    ignore: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    events: guess_events.Columns | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the guess as plain values."""
        return asdict(self) | {"data": str(self.data)}


def look(data: Path, target: str | None) -> Guess:
    """Guess the text, the label, the task and the language of a file or folder, or its table.

    Parameters
    ----------
    data : Path
    target : str or None
        The column to be predicted, if the user knows it.

    Raises
    ------
    InputError
        If there is nothing to read, or no such column.
    """
    if not data.exists():
        raise InputError("there is no such file or folder", where=str(data))
    reasons: list[str] = []
    if data.is_dir() and target is None and (found := _labelled_folder(data, reasons)):
        sources, sample = found
        return _finish(
            data, "classify", "line", None, sources, [r["line"] for r in sample], reasons
        )
    files = open_source(Source(path=str(data)))
    sample = _sample(files[0])
    if not sample:
        raise DataError("the file holds no rows", where=str(files[0].path))
    if files[0].encoding:
        reasons.append(f"encoding: {files[0].encoding}, detected")
    names = list(sample[0])
    if target is not None and target not in names:
        raise InputError(f"no column {target!r}; there are: {', '.join(names)}", where=str(data))
    whole = len(files) == 1 and len(sample) < _SAMPLE
    if target is None and (events := guess_events.find(sample, names, whole, reasons)):
        sources, rows = [{"path": str(data)}], len(sample)
        return Guess(
            data, "rank", None, None, sources, "", 1, rows, reasons, "events", events=events
        )
    if files[0].format != "txt" and guess_table.is_table(sample, names, target):
        return _of_table(data, sample, names, target, reasons)
    text = _text_column(sample, names, target, reasons)
    label, task = _label_column(sample, names, text, target, reasons)
    texts = [str(row[text]) for row in sample if row.get(text)]
    return _finish(data, task, text, label, [{"path": str(data)}], texts, reasons)


def _of_table(
    data: Path,
    sample: list[dict[str, Any]],
    names: list[str],
    target: str | None,
    reasons: list[str],
) -> Guess:
    label, task = guess_table.target_of(sample, names, target, reasons)
    texts = guess_table.texts_of(sample, names, label)
    cells = [name for name in names if name not in texts]
    left_out = guess_table.left_out(sample, cells, label)
    read = [name for name in names if name != label and name not in left_out]
    if not read:
        raise DataError("no column is left to foretell from", where=", ".join(names))
    what = f"{len(texts)} of them of long texts" if texts else "none of them holds long texts"
    reasons.insert(0, f"a table of {len(read)} columns: {what}")
    reasons += [f"text: column {name!r}, which is read beside the cells" for name in texts]
    reasons += [f"left out: column {name!r}, for {why}" for name, why in left_out.items()]
    sources = [{"path": str(data)}]
    return Guess(
        data, task, None, label, sources, "", 2, len(sample), reasons, "table", [*left_out], texts
    )


def _sample(file: File) -> list[dict[str, Any]]:
    rows = itertools.islice(rows_of(file, {}), _SAMPLE)
    return [record for _, record in rows if isinstance(record, dict)]


def _labelled_folder(
    data: Path, reasons: list[str]
) -> tuple[list[dict[str, str]], list[dict[str, Any]]] | None:
    """Recognise one text file, or one folder of them, for each class."""
    folders = sorted(p for p in data.iterdir() if p.is_dir() and any(p.rglob("*.txt")))
    texts = sorted(p for p in data.iterdir() if p.suffix.lower() == ".txt")
    others = [
        p
        for p in data.iterdir()
        if p.is_file() and p.suffix.lower() in (".csv", ".jsonl", ".parquet", ".tsv")
    ]
    parts = folders if 2 <= len(folders) <= _CLASSES and not texts else texts
    if others or not 2 <= len(parts) <= _CLASSES:
        return None
    what = "folder" if parts is folders else "text file"
    reasons.append(f"label: {len(parts)} {what}s, so each {what}'s name is the label of its lines")
    sample: list[dict[str, Any]] = []
    for part in parts:
        sample += _sample(open_source(Source(path=str(part)))[0])[: _SAMPLE // len(parts)]
    return [
        {"path": str(part), "label": part.name if part.is_dir() else part.stem} for part in parts
    ], sample


def _text_column(
    sample: list[dict[str, Any]], names: list[str], target: str | None, reasons: list[str]
) -> str:
    """Choose the column with the longest values that are text."""
    lengths = {}
    for name in names:
        values = [row.get(name) for row in sample]
        strings = [value for value in values if isinstance(value, str) and not _is_number(value)]
        if name != target and len(strings) > len(values) / 2:
            lengths[name] = sum(map(len, strings)) / len(strings)
    if not lengths:
        raise DataError("no column holds text", where=", ".join(names))
    best = max(lengths, key=lengths.__getitem__)
    if len(names) > 1:
        reasons.append(
            f"text: column {best!r}, whose values are the longest ({lengths[best]:.0f} characters)"
        )
    else:
        reasons.append("text: one text a line" if best == "line" else f"text: column {best!r}")
    return best


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _label_column(
    sample: list[dict[str, Any]],
    names: list[str],
    text: str,
    target: str | None,
    reasons: list[str],
) -> tuple[str | None, str]:
    """Choose the label's column and the task that it makes."""

    def values(name: str) -> list[str]:
        return [str(row[name]) for row in sample if row.get(name) not in (None, "")]

    label = target
    if label is None:
        named = [name for name in names if name != text and _LABEL_NAMES.match(name)]
        few = [
            name for name in names
            if name != text and 2 <= len(set(values(name))) <= min(_CLASSES, len(sample) / 5)
        ]  # fmt: skip
        label = next(iter(named or few), None)
        if label is None:
            reasons.append(
                "task: pretrain, for no column looks like a label (name one with --target)"
            )
            return None, "pretrain"
        why = (
            "its name says so"
            if named
            else f"it has only {len(set(values(label)))} different values"
        )
        reasons.append(f"label: column {label!r}, for {why}")
    found = values(label)
    different = len(set(found))
    if different > _CLASSES and all(map(_is_number, found)):
        reasons.append(f"task: regress, for {label!r} holds {different} different numbers")
        return label, "regress"
    if different < 2:
        raise DataError(
            f"the column {label!r} has only one value", where="--target", mend="choose another"
        )
    reasons.append(f"task: classify, for {label!r} has {different} different values")
    return label, "classify"


def _finish(
    data: Path,
    task: str,
    text: str,
    label: str | None,
    sources: list[dict[str, str]],
    texts: list[str],
    reasons: list[str],
) -> Guess:
    joined = "".join(texts[:1000])
    share = len(re.findall(r"[\u3400-\u9fff]", joined)) / max(1, len(joined))
    latin = len(re.findall(r"[A-Za-z]", joined)) / max(1, len(joined))
    language = (
        "Chinese" if share > 0.3 else "written in Latin letters" if latin > 0.5 else "unknown"
    )
    reasons.append(f"language: {language} ({share:.0%} ideographs, {latin:.0%} Latin letters)")
    depth = 2 if len(texts) < 2000 else 4
    reasons.append(
        f"size: depth {depth}, for {'a small corpus' if depth == 2 else 'a corpus of this size'}"
    )
    return Guess(data, task, text, label, sources, language, depth, len(texts), reasons)


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
    aside.write_text(_render(guess, path.resolve().parent), encoding="utf-8")
    try:
        load(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _render(guess: Guess, base: Path) -> str:
    def line(source: dict[str, str]) -> str:
        path = os.path.relpath(Path(source["path"]).resolve(), base)
        label = f", label = {_quote(source['label'])}" if "label" in source else ""
        return f'  {{ path = {_quote(path)}{label}, licence = "not stated" }},'

    sources = "\n".join(map(line, guess.sources))
    small = guess.rows < 2000
    label = f"\nlabel = {_quote(guess.label)}" if guess.label else ""
    reasons = "\n".join(f"#   {reason}" for reason in guess.reasons)
    if guess.events is not None:
        return guess_events.render(guess, guess.events, sources, reasons)
    if guess.text is None:
        return guess_table.render(guess, sources, reasons)
    pretrain = 'objective = "masked"         # causal, to write text; none, to skip\nepochs = 4'
    finetune = "" if guess.task == "pretrain" else f"\n[finetune]\nepochs = {8 if small else 4}\n"
    condition = {"classify": "accuracy - baseline >", "regress": "mae - baseline <"}
    require = f"test.{condition.get(guess.task, 'loss - baseline <')} 0"
    return f"""# Written by `danlu new` after a look at {guess.data.name}:
{reasons}
# `danlu check` shows every value that is derived; `danlu schema` lists every key.
seed = 0

[data]
task = "{guess.task}"
text = {_quote(guess.text)}{label}
sources = [                  # say where the data come from: the licence goes into the model card
{sources}
]

[data.split]
by = "near-duplicate"        # random, group:COLUMN or time:COLUMN
test = 0.2
validation = 0.1

[tokenizer]
vocab_size = {2048 if small else 4096}
max_length = 256             # tokens; longer texts are cut and counted

[model]
depth = {guess.depth}                    # the size dial: width, heads and rates derive from it

[pretrain]
{pretrain}
{finetune}
[gate]                       # what must hold before the model is released
require = ["{require}"]
"""

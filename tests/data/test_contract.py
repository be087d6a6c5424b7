"""What every kind of data must hold to, from raw files to the positions that a model sees.

One suite for all kinds: a new kind adds a case, and no test. What one kind alone claims (how a
pitch is followed, how a row becomes a vector) is tested beside it.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import resource
import shutil
import signal
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from danlu.artifact import MANIFEST, read_json
from danlu.batch import PADDING
from danlu.data import kinds
from danlu.data.clock import show
from danlu.data.raster import encode_png
from danlu.data.series import Panel
from danlu.data.split import NAMES
from danlu.errors import InputError, MachineError, from_machine
from danlu.fitting import of_texts
from danlu.log import Screen
from danlu.pipeline import prepare_data
from danlu.recipe import Recipe, load
from pictures import pngs, put

ROWS = 60
RANDOM = np.random.default_rng(11)
WORDS = ["the", "room", "was", "clean", "very", "small", "房间", "很", "干净", "下次", "还来"]
READ, REFUSED, NOTHING = "read", "refused", "nothing remains"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)


def drawn(n: int) -> np.random.Generator:
    return np.random.default_rng([11, n])


def texts(folder: Path) -> None:
    rows = [
        {"text": " ".join(drawn(n).choice(WORDS, 5 + n % 40)), "label": "ab"[n % 2]}
        for n in range(ROWS)
    ]
    write_rows(folder / "data.csv", rows)


def cells(folder: Path) -> None:
    rows = []
    for n in range(ROWS):
        draw = drawn(n)
        rows.append({
            "area": round(float(draw.normal(90, 20)), 3),
            "price": "" if n % 7 == 0 else int(draw.integers(1, 500)),
            "city": ("Beijing", "Xi'an", "Kunming", "")[int(draw.integers(4))],
            "sold": (date(2024, 1, 1) + timedelta(days=int(draw.integers(700)))).isoformat(),
            "label": "ab"[n % 2],
        })  # fmt: skip
    write_rows(folder / "data.csv", rows)


def notes(folder: Path) -> None:
    """Cells with a text and a picture beside them."""
    shown, rows = pngs(ROWS), []
    for n, png in enumerate(shown):
        put(folder / "files" / f"{n}.png", png)
        note = " ".join(drawn(n).choice(WORDS, 5 + n % 20)) if n % 9 else ""
        rows.append({
            "area": round(float(drawn(n).normal(90, 20)), 3), "note": note,
            "picture": f"files/{n}.png" if n % 7 else "", "label": "ab"[n % 2],
        })  # fmt: skip
    write_rows(folder / "data.csv", rows)


def images(folder: Path) -> None:
    for n, png in enumerate(pngs(ROWS)):
        put(folder / "data" / "ab"[n % 2] / f"{n}.png", png)


def wav(samples: Any, rate: int = 8000, subtype: str = "FLOAT") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.asarray(samples), rate, format="WAV", subtype=subtype)
    return stream.getvalue()


def tone(n: int) -> bytes:
    time = np.arange(1600 + 97 * (n % 9)) / 8000
    noise = drawn(n).normal(0, 0.01, len(time))
    return wav(0.3 * np.sin(2 * np.pi * (150 + 40 * (n % 5)) * time) + noise)


def sounds(folder: Path) -> None:
    for n in range(ROWS):
        put(folder / "data" / "ab"[n % 2] / f"{n}.wav", tone(n))


def measurements(folder: Path) -> None:
    rows = []
    for n in range(240):
        draw = drawn(n)
        level = 10 + 4 * math.sin(2 * math.pi * n / 24) + draw.normal(0, 0.3)
        rows.append({
            "time": (datetime(2024, 1, 1) + timedelta(hours=n)).isoformat(),
            "sales": "" if n % 31 == 0 else round(float(level), 3),
            "visits": round(float(5 * level), 3),
            "open": int(draw.random() < 0.5),
            "fault": int(draw.random() < 0.2),
        })  # fmt: skip
    write_rows(folder / "data.csv", rows)


def upside_down(row: str) -> str:
    return row[::-1]


def far_away(row: str) -> str:
    cells = json.loads(row)
    return json.dumps({
        name: cell + "?" if isinstance(cell, str) and not cell[:1].isdigit() else 1e6
        for name, cell in cells.items()
    })  # fmt: skip


def negative(blob: bytes) -> bytes:
    from PIL import Image

    return encode_png(255 - np.asarray(Image.open(io.BytesIO(blob)))[..., None])


def louder(blob: bytes) -> bytes:
    samples, rate = soundfile.read(io.BytesIO(blob))
    return wav(np.clip(50 * samples, -1, 1), rate)


@dataclass(frozen=True)
class Case:
    """One kind of data as a recipe reads it.

    Attributes
    ----------
    make : callable
        Writes the files.
    recipe : str
        What comes behind ``sources``.
    spoil : callable
        Makes something altogether different of a row's text, or of a file's bytes.
    asked : list
        Odd and extreme questions, and what comes of each.
    odd : list
        Rows, or files, that may lie among the data.
    """

    make: Callable[[Path], None]
    recipe: str
    spoil: Callable[[Any], Any] | None
    asked: list[tuple[Any, str]]
    odd: list[Any]


QUIET = '[pretrain]\nobjective = "none"\n'
TEXT = """
text = "text"
label = "label"
[tokenizer]
vocab_size = 300
max_length = 32
[data.split]
by = "random"
test = 0.3
"""
ASKED_OF_TEXTS = [
    ("", NOTHING), (" \t\u3000\n", NOTHING), ("a", READ), ("a" * 20_000, READ),
    ("a" * 20_001, REFUSED), ("\ud800", REFUSED), (None, REFUSED), (3, REFUSED), ([], REFUSED),
    ("\x00\x07", NOTHING), ("👩‍👩‍👧" * 500, READ), ("<mask><pad>", READ), ("e\u0301" * 99, READ),
]  # fmt: skip
TABLE = '\nmodality = "table"\nlabel = "label"\n[data.split]\ntest = 0.3\n'
NONE = dict.fromkeys(("area", "price", "city", "sold"))
ASKED_OF_TABLES = [
    ({}, REFUSED), ([], REFUSED), ("x", REFUSED), ({"nobody": 1}, REFUSED), (NONE, NOTHING),
    ({"area": math.nan, "city": " "}, NOTHING), ({"area": 1e308, "price": -1e308}, READ),
    ({"area": 10**400}, READ), ({"area": "1e400"}, READ), ({"area": "-inf"}, READ),
    ({"area": True}, READ), ({"area": [1, 2]}, READ), ({"area": {"a": 1}}, READ),
    ({"city": "x" * 10**5}, READ), ({"city": 3}, READ), ({"sold": "9999-12-31"}, READ),
    ({"sold": "0001-01-01"}, READ), ({"sold": "one day"}, READ), ({"area": 5}, READ),
]  # fmt: skip
IMAGE = """
modality = "image"
label = "folder"
[image]
patch = 4
[image.augment]
shift = 0.2
flip = true
[data.split]
test = 0.3
"""


def declared(width: int, height: int) -> bytes:
    """Return a PNG file that declares a size and holds nothing."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    parts = (head, b"IDAT" + zlib.compress(b""), b"IEND")
    sums = [(len(p) - 4).to_bytes(4, "big") + p + zlib.crc32(p).to_bytes(4, "big") for p in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sums)


PNG = pngs(1)[0]
ASKED_OF_IMAGES = [
    (b"", REFUSED), (b"junk", REFUSED), ("no base64!", REFUSED), (None, REFUSED), (3, REFUSED),
    ("", REFUSED), (PNG, READ), (base64.b64encode(PNG).decode(), READ), (PNG[:60], REFUSED),
    (encode_png(np.zeros((1, 1, 1), np.uint8)), READ), (declared(60_000, 60_000), REFUSED),
    (encode_png(np.full((3, 900, 3), 255, np.uint8)), READ), (declared(0, 5), REFUSED),
]  # fmt: skip
AUDIO = """
modality = "audio"
label = "folder"
[audio]
rate = 8000
num_mels = 20
max_seconds = 1.0
pitch = "relative"
[data.split]
test = 0.3
"""
ASKED_OF_SOUNDS = [
    (b"", REFUSED), (b"junk", REFUSED), ("no base64!", REFUSED), (None, REFUSED),
    (tone(3), READ), (base64.b64encode(tone(3)).decode(), READ), (tone(3)[:500], REFUSED),
    (wav([0.5]), READ), (wav(np.zeros(4000)), READ), (wav(np.full(4000, np.nan)), REFUSED),
    (wav(np.ones(50_000)), READ), (wav(np.zeros((100, 9))), REFUSED), (wav([]), REFUSED),
]  # fmt: skip
HOUR = "2024-02-01T00:00:00"
ASKED_OF_SERIES = [
    ([], NOTHING), ("x", REFUSED), ({}, REFUSED), ([3], REFUSED), ([{}], REFUSED),
    ([{"time": HOUR, "sales": None, "visits": 1, "open": 1}], REFUSED),
    ([{"time": "one day", "sales": 1, "visits": 1, "open": 1}], REFUSED),
    ([{"time": HOUR, "sales": 1, "visits": None, "open": None}], READ),
    ([{"time": HOUR, "sales": 1e149, "visits": -1e308, "open": 1}] * 2, READ),
    ([{"time": HOUR, "sales": 1e308, "visits": 1, "open": 1}], REFUSED),
    ([{"time": t, "sales": 1, "visits": 1, "open": 1} for t in ("1900-01-01", "2100-01-01")],
     REFUSED),
    ([{"time": "2024-02-01T05:00:00", "sales": 2, "visits": 1, "open": 0},
      {"time": HOUR, "sales": 10**400, "visits": 1, "open": 0}], READ),
]  # fmt: skip
SERIES = """
modality = "series"
[series]
context = 12
patch = 6
variables = ["sales", "visits"]
covariates = ["open"]
jitter = 0.1
"""
TREE = "[model]\ndepth = 1\nwidth = 32\nhead_dim = 16\n"
NOTES = """
modality = "table"
label = "label"
[table]
texts = ["note"]
images = ["picture"]
[tokenizer]
vocab_size = 300
max_length = 16
[data.split]
test = 0.3
"""
MLP = '[model]\nbackbone = "mlp"\n' + QUIET

ODD_TEXTS = [{"text": "", "label": "a"}, {"text": "good", "label": ""},
             {"text": "\x00", "label": "a"}, {"text": "x" * 30_000, "label": "b"}]  # fmt: skip
ODD_CELLS = [NONE | {"label": "a"}, {"area": "1e400", "city": "x" * 9000, "label": "a"},
             {"area": "1e308", "price": "cheap", "sold": "one day", "label": "b"},
             {"area": 3}]  # fmt: skip
ODD_IMAGES = [b"", b"junk", PNG[:60], declared(60_000, 60_000)]
ODD_SOUNDS = [b"", b"junk", tone(3)[:500], wav(np.zeros((100, 9))), wav([])]
ODD_HOURS = [{"time": "one day", "sales": 1}, {"sales": 1},
             {"time": "2024-01-03T00:00:00", "sales": "1e300", "visits": "-1e300"},
             {"time": "2024-01-03T00:00:00", "sales": "1e308", "visits": "many"}]  # fmt: skip

ASKED_OF_NOTES = [
    ({}, REFUSED), ({"nobody": 1}, REFUSED), ({"area": None, "note": " ", "picture": ""}, NOTHING),
    ({"area": 10**400}, READ), ({"note": "x " * 9000}, READ), ({"note": "\ud800"}, REFUSED),
    ({"note": 3}, REFUSED), ({"note": "<mask><pad>", "picture": PNG}, READ),
    ({"picture": base64.b64encode(PNG).decode()}, READ), ({"area": 5, "picture": PNG[:60]}, READ),
]  # fmt: skip
ODD_NOTES = [{"area": "1e400", "note": "", "picture": "", "label": "a"},
             {"area": 3, "note": "x" * 9000, "picture": "files/none.png", "label": "b"},
             {"area": "", "note": "", "picture": "", "label": "a"},
             {"area": 4, "note": "good", "picture": "../../x.png", "label": ""}]  # fmt: skip

CLASSIFY, FORECAST, DETECT = (f'task = "{task}"\n' for task in ("classify", "forecast", "detect"))
OF_CELLS = (far_away, ASKED_OF_TABLES, ODD_CELLS)
OF_IMAGES = (negative, ASKED_OF_IMAGES, ODD_IMAGES)
OF_HOURS = (None, ASKED_OF_SERIES, ODD_HOURS)
SEARCHED = 'label = "fault"' + SERIES + 'horizon = 0\nscale = "global"\n' + MLP
CASES = {
    "text": Case(texts, CLASSIFY + TEXT, upside_down, ASKED_OF_TEXTS, ODD_TEXTS),
    "table by column": Case(cells, CLASSIFY + TABLE, *OF_CELLS),
    "table as vectors": Case(cells, CLASSIFY + TABLE + MLP, *OF_CELLS),
    "table with texts and pictures": Case(
        notes, CLASSIFY + NOTES + TREE, negative, ASKED_OF_NOTES, ODD_NOTES
    ),
    "image in patches": Case(images, CLASSIFY + IMAGE, *OF_IMAGES),
    "image as a whole": Case(images, CLASSIFY + IMAGE + MLP, *OF_IMAGES),
    "audio": Case(sounds, CLASSIFY + AUDIO, louder, ASKED_OF_SOUNDS, ODD_SOUNDS),
    "series to forecast": Case(measurements, FORECAST + SERIES + "horizon = 6\n" + TREE, *OF_HOURS),
    "series to search": Case(measurements, DETECT + SEARCHED, *OF_HOURS),
}


@dataclass(frozen=True)
class Made:
    """A case whose data were prepared and encoded."""

    case: Case
    recipe: Recipe
    data: Path
    tokens: Path
    root: Path

    @property
    def kind(self) -> kinds.Kind:
        return kinds.of(self.recipe.data.modality)

    def reader(self) -> kinds.Reader:
        config = of_texts(self.recipe) | {"backbone": {"causal": bool(self.recipe.model.causal)}}
        return self.kind.reader(self.tokens, config)


def prepared(recipe: Recipe, folder: Path) -> dict[str, Path]:
    return prepare_data(recipe, folder, Screen(quiet=True))


@pytest.fixture(scope="module", params=CASES)
def made(request, tmp_path_factory) -> Made:
    case, root = CASES[request.param], tmp_path_factory.mktemp("contract")
    case.make(root)
    recipe = recipe_of(case, root)
    paths = prepared(recipe, root / "run")
    return Made(case, recipe, paths["data"], paths["tokenizer"], root)


def recipe_of(case: Case, root: Path) -> Recipe:
    source = "data.csv" if (root / "data.csv").is_file() else "data"
    head, _, rest = case.recipe.partition("\n")
    body = f'seed = 5\n[data]\n{head}\nsources = [{{ path = "{source}" }}]\n{rest}'
    (root / "made.toml").write_text(body, encoding="utf-8")
    return load(root / "made.toml")[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a stage, but for the manifest, which holds times."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != MANIFEST}


def apart(batch: Any) -> list[tuple[torch.Tensor, ...]]:
    """Return what each document of a batch is made of."""
    owner = batch.document_BT.flatten()
    assert (batch.ids_BT.flatten()[owner == PADDING] == 0).all()
    found = []
    for number in range(batch.num_documents):
        here = owner == number
        parts = [batch.ids_BT.flatten()[here], batch.position_BT.flatten()[here]]
        if batch.values_UK is not None:
            mine = here[batch.slots_U]
            places = batch.slots_U[mine] - torch.nonzero(here)[0]
            parts += [batch.values_UK[mine], places]
        found.append(tuple(parts))
    return found


def same(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> bool:
    """Whether documents are equal to the bit."""
    return len(one) == len(other) and all(
        torch.equal(a, b)
        for x, y in zip(one, other, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def every(documents: Any) -> np.ndarray:
    return np.arange(len(documents))


def test_what_is_saved_is_what_is_read_and_saving_it_again_changes_no_byte(made, tmp_path):
    for name in NAMES:
        documents = made.kind.documents(made.tokens, name)
        documents.save(tmp_path, name)
        again = made.kind.documents(made.tokens, name)
        assert same(apart(documents.lay(every(documents))), apart(again.lay(every(again))))
    assert contents(tmp_path)
    stored = contents(made.tokens)
    assert all(stored[name] == content for name, content in contents(tmp_path).items())


def test_the_same_files_give_the_same_bytes(made, tmp_path):
    again = prepared(made.recipe, tmp_path / "run")
    assert contents(again["tokenizer"]) == contents(made.tokens)
    for name in NAMES:
        tables = [pq.read_table(p / f"{name}.parquet") for p in (again["data"], made.data)]
        assert tables[0].equals(tables[1])


def spoilt(made: Made, folder: Path) -> Path:
    """Return a copy of the data in which all that was held out is something else."""
    shutil.copytree(made.data, folder)
    if made.recipe.data.modality == "series":
        panel, cut = Panel.load(folder), read_json(folder / "report.json")["cuts"][0]
        late = panel.time_L >= cut
        panel.values_LV[late] = 1e3 - 7 * panel.values_LV[late]
        panel.save(folder)
        return folder
    held_out = [pq.read_table(folder / f"{name}.parquet") for name in ("validation", "test")]
    ids = {number for table in held_out for number in table["id"].to_pylist()}
    shards = sorted(folder.glob("blobs-*.parquet"))
    paths, column = (shards, "blob") if shards else (
        [folder / f"{name}.parquet" for name in ("validation", "test")], "text"
    )  # fmt: skip
    for path in paths:
        table = pq.read_table(path)
        pairs = zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True)
        changed = [made.case.spoil(cell) if n in ids else cell for n, cell in pairs]
        place = table.schema.get_field_index(column)
        pq.write_table(
            table.set_column(place, column, pa.array(changed, table.schema.field(column).type)),
            path,
        )
    return folder


def test_what_is_held_out_teaches_the_encoder_nothing(made, tmp_path):
    data, tokens = spoilt(made, tmp_path / "data"), tmp_path / "tokens"
    tokens.mkdir()
    made.kind.encode(made.recipe, data, tokens)
    fitted = [name for name in made.kind.files if (made.tokens / name).is_file()]
    assert fitted
    for name in fitted:
        assert (tokens / name).read_bytes() == (made.tokens / name).read_bytes()
    laid = {}
    for name in NAMES:
        both = [made.kind.documents(folder, name) for folder in (made.tokens, tokens)]
        laid[name] = [apart(documents.lay(every(documents))) for documents in both]
    assert same(*laid["train"])
    assert not same(*laid["test"])


def test_an_encoding_that_broke_off_is_made_again(made, tmp_path):
    """The disk takes no file larger than half of the largest."""
    whole = contents(made.tokens)
    shutil.copytree(made.root / "run", tmp_path / "run")
    stage = tmp_path / "run" / "stages" / made.tokens.name
    shutil.rmtree(stage)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        limit = max(map(len, whole.values())) // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(Exception, match=r"File too large|requested and \d+ written") as caught:
            prepared(made.recipe, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    refused = from_machine(caught.value)
    assert isinstance(refused, MachineError)
    assert "the disk is full" in refused.what or "File too large" in refused.what
    assert not stage.exists()
    assert any(stage.parent.glob(".partial-tokenizer-*"))
    assert prepared(made.recipe, tmp_path / "run")["tokenizer"] == stage
    assert contents(stage) == whole


def questions(made: Made, name: str) -> tuple[list[Any], np.ndarray]:
    """Return a split's records as a released model is asked about them, and which they are."""
    documents = made.kind.documents(made.tokens, name)
    if made.recipe.data.modality != "series":
        return kinds.of_rows(made.recipe.data.modality).records(made.data, name), every(documents)
    panel, rows, found = Panel.load(made.data), every(documents)[::5], []
    for row in rows:
        last = int(documents.origins(np.array([row]))[0])
        if np.isnan(documents.values[last - 1, documents.target]):
            continue  # a question ends with its last measurement
        table = []
        for step in range(int(documents.start[row]), last + documents.horizon):
            values = dict(zip(panel.variables, panel.values_LV[step], strict=True))
            cells = {n: float(v) for n, v in values.items() if step < last and not np.isnan(v)}
            known = {"open": float(panel.known_LC[step, 0])}
            table.append({"time": show(panel.time_L[step], dates=True), **cells, **known})
        found.append((row, table))
    return [table for _, table in found], np.asarray([row for row, _ in found])


@pytest.mark.parametrize("name", NAMES)
def test_a_question_reads_as_the_record_was_encoded(made, name):
    records, rows = questions(made, name)
    reader, stored = made.reader(), made.kind.documents(made.tokens, name)
    assert reader.spec == made.kind.spec(made.tokens)
    assert len(records) > 2
    for record, row in zip(records, rows, strict=True):
        documents, notes = reader.read([reader.clean(reader.parse(record))])
        assert len(notes) == 1
        asked, kept = documents.lay(np.zeros(1, np.int64)), stored.lay(np.array([row]))
        assert same(apart(asked), apart(kept))


def test_a_document_is_the_same_alone_and_among_others(made):
    documents = made.kind.documents(made.tokens, "train")
    rows = RANDOM.choice(len(documents), 9)
    among = apart(documents.lay(rows))
    alone = [apart(documents.lay(rows[n : n + 1]))[0] for n in range(len(rows))]
    assert same(among, alone)
    assert [len(part[0]) for part in among] == documents.sizes[rows].tolist()


def test_ids_and_values_are_what_the_model_is_told(made):
    spec = made.kind.spec(made.tokens)
    for name in NAMES:
        documents = made.kind.documents(made.tokens, name)
        batch = documents.lay(every(documents))
        assert batch.row_N.tolist() == every(documents).tolist()
        assert int(batch.ids_BT.max()) < spec.vocab_size
        carried = batch.ids_BT.flatten() >= spec.first_value_id if spec.value_ids else None
        if carried is None:
            assert batch.values_UK is None
            continue
        assert torch.equal(torch.nonzero(carried).flatten(), batch.slots_U)
        assert batch.values_UK.shape == (int(carried.sum()), spec.value_dims)
        assert batch.values_UK.dtype == torch.float32
        assert batch.values_UK.isfinite().all()


def test_only_a_generator_varies_what_is_seen_and_it_alone_decides(made):
    documents = made.kind.documents(made.tokens, "train")
    rows = np.arange(min(12, len(documents)))
    plain = apart(documents.lay(rows))
    one, again, other = (
        apart(documents.lay(rows, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert same(plain, apart(documents.lay(rows)))
    varied = made.recipe.data.modality in ("image", "audio", "series")
    assert same(one, plain) is not varied
    assert same(one, other) is not varied


def test_odd_and_extreme_questions_are_read_or_refused(made):
    reader = made.reader()
    for question, expected in made.case.asked:
        told = f"{question!r:.80}"
        if expected == REFUSED:
            with pytest.raises(InputError):
                reader.read([reader.clean(reader.parse(question))])
            continue
        record = reader.clean(reader.parse(question))
        if expected == NOTHING:
            assert not record, told
            continue
        assert record, told
        documents, notes = reader.read([record])
        assert len(documents) == len(notes) == 1, told
        batch = documents.lay(np.zeros(1, np.int64))
        assert int(batch.ids_BT.max()) < reader.spec.vocab_size, told
        assert batch.values_UK is None or batch.values_UK.isfinite().all(), told


def test_each_question_of_a_batch_is_read_by_itself(made):
    """An odd neighbour changes nothing."""
    records, _ = questions(made, "test")
    reader = made.reader()
    odd = [q for q, expected in made.case.asked if expected == READ]
    parsed = [reader.clean(reader.parse(q)) for q in [records[0], *odd, records[1]]]
    together = reader.read(parsed)[0]
    alone = [reader.read([record])[0] for record in parsed]
    each = [apart(documents.lay(np.zeros(1, np.int64)))[0] for documents in alone]
    assert same(apart(together.lay(every(together))), each)


def test_every_row_is_kept_or_set_aside_with_a_reason(made, tmp_path):
    made.case.make(tmp_path)
    if (table := tmp_path / "data.csv").is_file():
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        write_rows(table, [*rows, *made.case.odd])
    for number, blob in enumerate(made.case.odd if not table.is_file() else []):
        ending = next((tmp_path / "data" / "a").iterdir()).suffix
        put(tmp_path / "data" / "a" / f"odd{number}{ending}", blob)
    recipe = recipe_of(made.case, tmp_path)
    paths = prepared(recipe, tmp_path / "run")
    report = read_json(paths["data"] / "report.json")
    rejects = pq.read_table(paths["data"] / "rejects.parquet")
    kept = sum(part["rows"] for part in report["splits"].values())
    assert kept + rejects.num_rows == report["funnel"][0]["rows"]
    assert all(rejects["reason"].to_pylist())
    told = {item["reason"]: item["rows"] for item in report["rejects"]}
    assert sum(told.values()) == rejects.num_rows >= 2
    spec = made.kind.spec(paths["tokenizer"])
    for name in NAMES:
        batch = (documents := made.kind.documents(paths["tokenizer"], name)).lay(every(documents))
        assert int(batch.ids_BT.max()) < spec.vocab_size
        assert batch.values_UK is None or batch.values_UK.isfinite().all()

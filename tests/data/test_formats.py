"""MNIST's idx files, NumPy's npz and pandas pickles, whole and broken."""

import io
import struct
import sys
import zipfile
from datetime import datetime, timedelta
from decimal import Decimal
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from danlu.data.sources import Columns, ingest, open_source, rows_of
from danlu.errors import DataError
from danlu.recipe import Source


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    """Give each test a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_idx(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> tuple[Path, Path]:
    images, answers = folder / "x-idx3-ubyte", folder / "x-idx1-ubyte"
    images.write_bytes(struct.pack(">IIII", 2051, *pixels.shape) + pixels.tobytes())
    answers.write_bytes(struct.pack(">II", 2049, *labels.shape) + labels.tobytes())
    return images, answers


@pytest.fixture
def digits(tmp_path) -> tuple[np.ndarray, np.ndarray, Path, Path]:
    """Write seven small pictures that are taller than wide."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (7, 5, 3), np.uint8)
    labels = generator.integers(0, 10, 7, np.uint8)
    return pixels, labels, *write_idx(tmp_path, pixels, labels)


def read(path: Path | str, labels: Path | None = None, wanted: dict[str, str] | None = None):
    source = Source(path=str(path), labels=labels and str(labels))
    (file,) = open_source(source)
    return list(rows_of(file, wanted or {}))


def test_idx_gives_pictures_and_labels_as_they_were(digits):
    pixels, labels, images, answers = digits
    rows = read(images, answers, {"text": "image", "label": "label"})
    assert [number for number, _ in rows] == list(range(1, 8))
    assert [row["label"] for _, row in rows] == [str(label) for label in labels]
    for (_, row), expected in zip(rows, pixels, strict=True):
        picture = Image.open(io.BytesIO(row["image"]))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (3, 5))
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_idx_without_labels_has_only_pictures(digits):
    _, _, images, _ = digits
    assert {tuple(row) for _, row in read(images)} == {("image",)}
    with pytest.raises(DataError, match="no column 'label'"):
        read(images, wanted={"label": "label"})


def test_the_digest_of_idx_follows_both_files(digits):
    _, labels, images, answers = digits
    source = Source(path=str(images), labels=str(answers))
    before = open_source(source)[0].digest
    answers.write_bytes(answers.read_bytes()[:-1] + bytes([(labels[-1] + 1) % 10]))
    assert open_source(source)[0].digest != before


@pytest.mark.parametrize("change", [-1, -100, 1])
@pytest.mark.parametrize("which", ["images", "labels"])
def test_an_idx_file_of_another_size_than_promised_is_refused(digits, which, change):
    _, _, images, answers = digits
    path = images if which == "images" else answers
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0")
    with pytest.raises(DataError, match=r"promises|begins with|ends within") as caught:
        read(images, answers)
    assert caught.value.where == str(path)


def test_a_wrong_magic_number_is_refused(digits):
    _, _, images, answers = digits
    for swapped in ((answers, images), (answers, answers), (images, images)):
        source = Source(path=str(swapped[0]), labels=str(swapped[1]), format="idx")
        with pytest.raises(DataError, match="begins with 0x0000080"):
            list(rows_of(open_source(source)[0], {}))


def test_more_labels_than_pictures_are_refused(digits, tmp_path):
    pixels, labels, images, _ = digits
    other = tmp_path / "other"
    other.mkdir()
    _, answers = write_idx(other, pixels[:6], labels[:6])
    with pytest.raises(DataError, match="7 images and 6 labels"):
        read(images, answers)


def test_labels_of_their_own_belong_to_idx_only(digits, tmp_path):
    _, _, _, answers = digits
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("a\n")
    with pytest.raises(DataError, match="only format 'idx'"):
        open_source(Source(path=str(tmp_path / "d"), labels=str(answers)))
    with pytest.raises(DataError, match="one file of images"):
        open_source(Source(path=f"{tmp_path}/*-ubyte", labels=str(answers), format="idx"))


def test_a_file_of_no_pictures_has_no_rows(tmp_path):
    images, answers = write_idx(tmp_path, np.empty((0, 5, 3), np.uint8), np.empty(0, np.uint8))
    assert read(images, answers) == []


def test_pictures_are_not_taken_for_text(digits, tmp_path):
    _, _, images, _ = digits
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match="bytes holds no text"):
        ingest(open_source(Source(path=str(images))), Columns("image"), tmp_path / "shards")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a package for which a test can write files."""
    site = tmp_path / "site"
    (site / "danlu_tables").mkdir(parents=True)
    info = site / "danlu_tables-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: danlu-tables\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])

    def put(name: str, frame, **options) -> str:
        frame.to_pickle(site / "danlu_tables" / name, **options)
        (info / "RECORD").write_text(f"danlu_tables/{name},,\n")
        assert metadata.files("danlu-tables")
        return f"package:danlu-tables/danlu_tables/{name}"

    return put


FRAME = pd.DataFrame(
    {
        "whole": np.array([1, 2, 3], np.int64),
        "real": np.array([1.5, np.nan, -2.0], np.float32),
        "nullable": pd.array([7, None, 9], "Int64"),
        "truth": [True, False, True],
        "text": ["a", None, "好"],
        "class": pd.Categorical([3, None, 5]),
        "when": pd.to_datetime(["2024-01-02 03:04:05", None, "2024-01-03"], format="ISO8601"),
        "long": pd.to_timedelta(["1 days", None, "2 hours"]),
        "object": [Decimal("1.5"), [1, 2], pd.Timestamp("2024-01-01 00:00:00.000000001")],
        "month": pd.period_range("2024-01", periods=3, freq="M"),
    }
)
VALUES = {
    "whole": [1, 2, 3],
    "real": [1.5, None, -2.0],
    "nullable": [7, None, 9],
    "truth": [True, False, True],
    "text": ["a", None, "好"],
    "class": ["3", None, "5"],
    "when": [datetime(2024, 1, 2, 3, 4, 5), None, datetime(2024, 1, 3)],
    "long": [timedelta(days=1), None, timedelta(hours=2)],
    "object": ["1.5", [1, 2], "2024-01-01 00:00:00.000000001"],
    "month": ["2024-01", "2024-02", "2024-03"],
}


@pytest.mark.parametrize(
    ("name", "compression"),
    [("t.pkl", None), ("t.pkl.xz", "xz"), ("t.pkl.gz", "gzip"), ("t.pkl.compress", "xz")],
)
def test_a_pickled_frame_gives_plain_values(package, name, compression):
    path = package(name, FRAME, compression=compression)
    rows = read(path)
    assert [number for number, _ in rows] == [1, 2, 3]
    for column, expected in VALUES.items():
        found = [row[column] for _, row in rows]
        assert found == expected, column
        assert [type(value) for value in found] == [type(value) for value in expected], column


def test_a_frame_longer_than_a_piece_is_read_whole(package):
    path = package("t.pkl", pd.DataFrame({"n": np.arange(25_001), "more": 0}))
    rows = read(path, wanted={"text": "n"})
    assert [(number - 1, {"n": number - 1}) for number, _ in rows] == [
        (row["n"], row) for _, row in rows
    ]
    assert len(rows) == 25_001


def test_an_index_that_says_something_is_a_column(package):
    frame = pd.DataFrame({"x": [1, 2]}, index=pd.Index(["a", "b"], name="who"))
    assert [row for _, row in read(package("t.pkl", frame))] == [
        {"who": "a", "x": 1},
        {"who": "b", "x": 2},
    ]
    assert read(package("s.pkl", frame["x"]))[0] == (1, {"who": "a", "x": 1})


def test_a_pickle_that_is_no_table_or_broken_or_without_the_column_is_refused(package, tmp_path):
    with pytest.raises(DataError, match="two columns are called 'x'"):
        read(package("t.pkl", pd.DataFrame([[1, 2]], columns=["x", "x"])))
    with pytest.raises(DataError, match="no column 'y'; there are: 'x'"):
        read(package("u.pkl", pd.DataFrame({"x": [1]})), wanted={"label": "y"})
    pd.to_pickle(pd.Index([1]), tmp_path / "site/danlu_tables/u.pkl")
    with pytest.raises(DataError, match=r"holds a .*Index, not a table"):
        read("package:danlu-tables/danlu_tables/u.pkl")
    (tmp_path / "site/danlu_tables/u.pkl").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(DataError, match="pandas cannot read it"):
        read("package:danlu-tables/danlu_tables/u.pkl")


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("name", "given"), [("t.pkl", None), ("t.pkl.xz", None), ("t.csv", "pandas")]
)
def test_a_pickle_from_elsewhere_is_refused_and_not_run(tmp_path, name, given):
    compression = "xz" if name.endswith("xz") else None
    pd.to_pickle(Trap(tmp_path / "sprung"), tmp_path / name, compression=compression)
    places = [str(tmp_path / name), str(tmp_path / f"{name[:2]}*")]
    for path in places:
        with pytest.raises(DataError, match="runs code when it is read") as caught:
            open_source(Source(path=path, format=given))
        assert "Parquet" in caught.value.what
    assert not (tmp_path / "sprung").exists()
    pd.read_pickle(tmp_path / name, compression=compression)
    assert (tmp_path / "sprung").exists()  # the trap is a real one


def test_a_folder_leaves_pickles_alone(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    pd.to_pickle(Trap(tmp_path / "sprung"), folder / "t.pkl")
    (folder / "a.txt").write_text("a\n")
    assert [file.name for file in open_source(Source(path=str(folder)))] == ["a.txt"]
    assert not (tmp_path / "sprung").exists()


def npz(path, **arrays):
    np.savez(path, **arrays)
    return list(rows_of(open_source(Source(path=str(path)))[0], {}))


def test_npz_gives_pictures_with_their_labels(tmp_path):
    draw = np.random.default_rng(0)
    grey, colour = (draw.integers(0, 256, shape, np.uint8) for shape in ((5, 4, 6), (3, 4, 6, 3)))
    rows = npz(tmp_path / "a.npz", x_train=grey, y_train=np.arange(5), x_test=colour,
               y_test=np.array([["a"], ["b"], ["c"]]), note=np.arange(9))  # fmt: skip
    assert [number for number, _ in rows] == [*range(1, 9)]
    for (_, row), pixels in zip(rows[:5], grey, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(rows[6][1]["image"]))), colour[1])
    told = [(row["array"], row["label"]) for _, row in rows]
    assert told[3:6] == [("x_train", "3"), ("x_train", "4"), ("x_test", "a")]


def test_npz_of_one_array_keeps_what_is_said_of_each_picture(tmp_path):
    first = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 5), np.uint8)
    (_, row), *_ = npz(tmp_path / "a.npz", pictures=first, digit=np.arange(4), who=np.arange(4) % 2)
    assert {key: row[key] for key in row if key != "image"} == {
        "array": "pictures", "digit": "0", "who": "0",
    }  # fmt: skip
    shown = np.asarray(Image.open(io.BytesIO(row["image"])))
    assert np.array_equal(shown, np.moveaxis(first[0], 0, -1))


def test_a_hostile_npz_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no array holds images; there are: x float64\(3, 4, 4\)"):
        npz(tmp_path / "floats.npz", x=np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match="damaged one: Object arrays cannot be loaded"):
        npz(tmp_path / "objects.npz", x=np.array([{}], object))
    path = tmp_path / "promise.npz"
    np.savez(path, x=np.zeros((1, 2, 2), np.uint8))
    with zipfile.ZipFile(path) as archive:
        cells = archive.read("x.npy").replace(b"(1, 2, 2)", b"(9, 9, 9)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", cells)
    with pytest.raises(DataError, match="promises more than it holds"):
        list(rows_of(open_source(Source(path=str(path)))[0], {}))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(80 << 20))
    with pytest.raises(DataError, match="unpacks to too much"):
        list(rows_of(open_source(Source(path=str(path)))[0], {}))

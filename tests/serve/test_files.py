"""Files of every kind: the same rows come out, with the engine's own answers beside them."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import CLASSES, build

from danlu.errors import DanluError, DataError, InputError
from danlu.serve.engine import Engine
from danlu.serve.files import predict_file

TEXTS = [
    "the room was clean",
    "房间，很干净",
    'a "quoted", bad bed',
    "two\nlines",
    "breakfast " * 60,
]
ROWS = [{"id": f"r{n}", "text": text, "stars": n + 0.5} for n, text in enumerate(TEXTS)]
ADDED = [
    "predicted_label",
    "predicted_probability",
    *(f"probability_{name}" for name in CLASSES),
    "predicted_truncated",
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return Engine.load(build(tmp_path_factory.mktemp("files") / "model"))


def _write(path, rows, encoding="utf-8"):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        path.write_text("".join(lines), encoding=encoding)
    else:
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(
                file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ","
            )
            writer.writeheader()
            writer.writerows(rows)
    return path


def _read(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


def _plain(value):
    """Return a CSV cell's content as the value that was meant."""
    if value in ("true", "false"):
        return value == "true"
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _check(rows, engine, texts):
    for row, answer in zip(rows, engine.predict(texts), strict=True):
        assert row["predicted_label"] == answer["label"]
        assert _plain(row["predicted_probability"]) == pytest.approx(answer["probability"])
        assert _plain(row["predicted_truncated"]) == answer["truncated"]
        for name in CLASSES:
            found = _plain(row[f"probability_{name}"])
            assert found == pytest.approx(answer["probabilities"][name], abs=1e-6)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_the_same_rows_come_out_with_the_answers_added(engine, tmp_path, ending):
    path = _write(tmp_path / f"reviews{ending}", ROWS)
    output, rows, counts = predict_file(engine, path, "text", None)
    assert output == tmp_path / f"reviews.predicted{ending}"
    assert (rows, counts) == (5, {"truncated": 1})
    found = _read(output)
    assert list(found[0]) == ["id", "text", "stars", *ADDED]
    for row, given in zip(found, ROWS, strict=True):
        assert (row["id"], row["text"]) == (given["id"], given["text"])
        assert float(row["stars"]) == given["stars"]
    _check(found, engine, TEXTS)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, output.name])


def test_the_input_is_left_as_it_was(engine, tmp_path):
    path = _write(tmp_path / "x.csv", ROWS)
    before = path.read_bytes()
    predict_file(engine, path, "text", None)
    assert path.read_bytes() == before


def test_the_output_goes_where_it_is_wanted(engine, tmp_path):
    path = _write(tmp_path / "x.jsonl", ROWS)
    output, *_ = predict_file(engine, path, "text", tmp_path / "there.jsonl")
    assert output == tmp_path / "there.jsonl"
    _check(_read(output), engine, TEXTS)


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_missing_column_is_named_with_those_there_are(engine, tmp_path, ending):
    path = _write(tmp_path / f"x{ending}", ROWS)
    with pytest.raises(DataError, match=r"'review'.*'id', 'text', 'stars'"):
        predict_file(engine, path, "review", None)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_column_of_the_answers_that_is_there_already_is_not_overwritten(engine, tmp_path, ending):
    rows = [{**row, "predicted_label": "mine"} for row in ROWS]
    path = _write(tmp_path / f"x{ending}", rows)
    with pytest.raises(DataError, match="predicted_label"):
        predict_file(engine, path, "text", None)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_row_without_a_text_gets_no_answer_and_keeps_its_place(engine, tmp_path, ending):
    texts = ["the room was clean", None, "  ", "房间不行"]
    rows = [{"id": f"r{n}", "text": text} for n, text in enumerate(texts)]
    output, count, _ = predict_file(engine, _write(tmp_path / f"x{ending}", rows), "text", None)
    found = _read(output)
    assert count == 4
    assert [row["id"] for row in found] == ["r0", "r1", "r2", "r3"]
    for row in found[1:3]:
        assert all(row[name] in (None, "") for name in ADDED)
    _check([found[0], found[3]], engine, [texts[0], texts[3]])


@pytest.mark.parametrize("target", ["x.csv", "sub/../x.csv", "link.csv"])
def test_the_input_is_never_overwritten(engine, tmp_path, target):
    path = _write(tmp_path / "x.csv", ROWS)
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.csv").symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="overwrite"):
        predict_file(engine, path, "text", tmp_path / target)
    assert path.read_bytes() == before


def test_a_gb18030_csv_is_read_as_chinese(engine, tmp_path):
    texts = [
        "房间很干净，服务非常好",
        "早餐太差了，下次不来了",
        "风景不错，床不行",
        "酒店离车站很近",
    ]
    rows = [{"编号": f"号{n}", "评论": text} for n, text in enumerate(texts * 5)]
    path = _write(tmp_path / "评论.csv", rows, "gb18030")
    output, *_ = predict_file(engine, path, "评论", None)
    found = _read(output)
    assert [(row["编号"], row["评论"]) for row in found] == [tuple(row.values()) for row in rows]
    _check(found, engine, texts * 5)


@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_byte_order_mark_is_not_part_of_the_first_column(engine, tmp_path, ending):
    rows = [{"text": "the room was clean"}]
    output, *_ = predict_file(
        engine, _write(tmp_path / f"x{ending}", rows, "utf-8-sig"), "text", None
    )
    assert next(iter(_read(output)[0])) == "text"


def test_the_cells_of_a_csv_come_out_as_they_went_in(engine, tmp_path):
    """A reader that guesses types would make 7 of 007."""
    rows = [
        {
            "text": "the room was clean", "code": "007", "price": "1.10", "day": "2024-01-05",
            "at": "2024-01-05 10:00", "flag": "True", "none": "NA", "big": "12345678901234567890",
        }
    ] * 2  # fmt: skip
    output, *_ = predict_file(engine, _write(tmp_path / "x.csv", rows), "text", None)
    for row in _read(output):
        assert {name: row[name] for name in rows[0]} == rows[0]


def test_texts_that_look_like_numbers_are_read_as_they_are_written(engine, tmp_path):
    texts = ["007", "1.10", "+5"]
    path = tmp_path / "x.csv"
    path.write_text("id,text\n" + "".join(f"r,{text}\n" for text in texts), encoding="utf-8")
    _check(_read(predict_file(engine, path, "text", None)[0]), engine, texts)


def test_a_text_that_spells_a_missing_value_is_a_text(engine, tmp_path):
    texts = ["NA", "null", "None"]
    path = tmp_path / "x.csv"
    path.write_text("id,text\n" + "".join(f"r,{text}\n" for text in texts), encoding="utf-8")
    _check(_read(predict_file(engine, path, "text", None)[0]), engine, texts)


def test_a_broken_byte_in_one_row_does_not_change_the_others(engine, tmp_path):
    texts = [f"房间{n}很干净" for n in range(20)]
    lines = [f"r{n},{text}\n".encode() for n, text in enumerate(texts)]
    lines[7] = b"r7,\xe6\x88\n"
    path = tmp_path / "x.csv"
    path.write_bytes(b"id,text\n" + b"".join(lines))
    found = _read(predict_file(engine, path, "text", None)[0])
    assert [row["id"] for row in found] == [f"r{n}" for n in range(20)]
    _check(found[:7] + found[8:], engine, texts[:7] + texts[8:])


def test_keys_that_only_later_rows_have_are_kept(engine, tmp_path):
    rows = [{"text": "a"}, {"text": "b", "note": "kept"}, {"note": "no text"}]
    found = _read(predict_file(engine, _write(tmp_path / "x.jsonl", rows), "text", None)[0])
    assert [row.get("note") for row in found] == [None, "kept", "no text"]
    _check(found[:2], engine, ["a", "b"])


def test_the_text_may_be_missing_from_the_first_row(engine, tmp_path):
    rows = [{"id": 1}, {"id": 2, "text": "the room was clean"}]
    found = _read(predict_file(engine, _write(tmp_path / "x.jsonl", rows), "text", None)[0])
    assert [row["id"] for row in found] == [1, 2]
    _check(found[1:], engine, ["the room was clean"])


def test_values_of_json_keep_their_types_and_depth(engine, tmp_path):
    rows = [
        {"text": "a", "id": 1, "score": 1, "meta": {"x": [1, {"y": None}]}},
        {"text": "b", "id": "two", "score": 2.5, "meta": {"z": "深"}},
        {"text": "c", "id": 2**70, "score": None, "meta": []},
    ]
    found = _read(predict_file(engine, _write(tmp_path / "x.jsonl", rows), "text", None)[0])
    for row, given in zip(found, rows, strict=True):
        assert {name: row[name] for name in given} == given


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("x.jsonl", b'{"text": "a"}\n["b"]\n'),
        ("x.jsonl", b'{"text": "a"}\n"b"\n'),
        ("x.csv", b"id,text\n1,a\n1,b,c\n"),
        ("x.csv", b""),
        ("x.jsonl", b""),
        ("x.parquet", b"PAR1 this is none"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_danlu_error_that_names_it(engine, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DanluError) as caught:
        predict_file(engine, path, "text", None)
    assert str(path) in caught.value.where


def test_the_row_of_broken_json_is_named(engine, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": \n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        predict_file(engine, path, "text", None)
    assert caught.value.where.endswith("x.jsonl:3")


def test_a_missing_file_and_an_unknown_ending_are_the_users_errors(engine, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        predict_file(engine, tmp_path / "none.csv", "text", None)
    (tmp_path / "x.xlsx").write_bytes(b"x")
    with pytest.raises(InputError, match="csv"):
        predict_file(engine, tmp_path / "x.xlsx", "text", None)


def test_several_labels_and_values_have_columns_of_their_own(tmp_path):
    path = _write(tmp_path / "x.jsonl", ROWS)
    many = Engine.load(build(tmp_path / "labels", "multilabel"))
    found = _read(predict_file(many, path, "text", tmp_path / "many.jsonl")[0])
    for row, answer in zip(found, many.predict(TEXTS), strict=True):
        assert row["predicted_labels"] == "; ".join(answer["labels"])
        assert row["probability_neutral"] == answer["probabilities"]["neutral"]
    value = Engine.load(build(tmp_path / "value", "regress"))
    found = _read(predict_file(value, path, "text", tmp_path / "value.jsonl")[0])
    expected = [answer["value"] for answer in value.predict(TEXTS)]
    assert [row["predicted_value"] for row in found] == pytest.approx(expected)

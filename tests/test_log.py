"""Metric rows and the event log: what is written is what is read."""

from __future__ import annotations

import json
import math

from danlu.artifact import read_json, write_json
from danlu.log import Events, Metric, read_events


def test_a_metric_row_survives_json(tmp_path):
    rows = [
        Metric("evaluate", "ours", "test", "recall[a[b]]", 0.1 + 0.2, 0.1, 0.5, 7, "share", "W"),
        Metric("data", "名字", "all", "rows", 5, None, None, 5, "rows"),
    ]
    write_json(tmp_path / "metrics.json", [row.to_dict() for row in rows])
    assert [Metric(**row) for row in read_json(tmp_path / "metrics.json")] == rows
    assert list(rows[0].to_dict()) == [
        "stage", "model", "split", "metric", "value", "low", "high", "n", "unit", "interval",
    ]  # fmt: skip


def test_every_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "events.jsonl"
    events = Events(path)
    for number in range(3):
        events.write({"step": number, "loss": 0.5})
        lines = path.read_text(encoding="utf-8").split("\n")
        assert lines.pop() == "", "each row ends its line"
        assert [json.loads(line)["step"] for line in lines] == list(range(number + 1))


def test_every_file_gets_each_row_and_what_was_there_stays(tmp_path):
    paths = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    Events(paths[0]).write({"step": 0})
    Events(*paths).write({"step": 1})
    assert [row["step"] for row in read_events(paths[0])] == [0, 1]
    assert [row["step"] for row in read_events(paths[1])] == [1]


def test_rows_bear_the_time_in_seconds_and_keep_their_values(tmp_path):
    path = tmp_path / "events.jsonl"
    Events(path).write({"event": "步", "loss": 0.1, "flag": True, "none": None})
    (row,) = read_events(path)
    assert row.pop("time") > 1.6e9
    assert row == {"event": "步", "loss": 0.1, "flag": True, "none": None}


def test_line_separators_inside_a_value_do_not_cut_its_row(tmp_path):
    path = tmp_path / "events.jsonl"
    for mark in ("\n", "\r", "\u2028", "\u2029", "\x85", "\x0b", "\x1e"):
        Events(path).write({"text": f"one{mark}two"})
    assert [row["text"][3:-3] for row in read_events(path)] == [
        "\n", "\r", "\u2028", "\u2029", "\x85", "\x0b", "\x1e",
    ]  # fmt: skip


def test_a_torn_last_line_is_left_out_wherever_it_was_torn(tmp_path):
    path = tmp_path / "events.jsonl"
    events = Events(path)
    events.write({"step": 1})
    size = path.stat().st_size
    events.write({"step": 2, "text": "丹炉"})
    whole = path.read_bytes()
    for end in range(size, len(whole) - 2):
        path.write_bytes(whole[:end])
        assert [row["step"] for row in read_events(path)] == [1], f"torn after {end} bytes"


def test_a_row_written_after_a_torn_line_is_not_lost(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"step": 1}\n{"st', encoding="utf-8")
    Events(path).write({"step": 3})
    assert [row["step"] for row in read_events(path)] == [1, 3]


def test_a_log_that_is_not_there_is_empty(tmp_path):
    assert read_events(tmp_path / "none.jsonl") == []


def test_a_loss_that_is_not_a_number_does_not_lose_its_row(tmp_path):
    path = tmp_path / "events.jsonl"
    Events(path).write({"step": 9, "loss": math.nan})
    (row,) = read_events(path)
    assert row["step"] == 9

"""Reading that is interrupted goes on behind the last whole shard, and nothing differs."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from danlu.data import shards, sources
from danlu.data.pace import Pace
from danlu.data.shards import Shards
from danlu.data.sources import Columns, ingest, landed, open_source
from danlu.recipe import Source

ROWS, OF_A_SHARD = 95, 10


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_ROWS", OF_A_SHARD)
    for name, rows in (("a", range(40)), ("b", range(40, ROWS))):
        lines = "".join(f"text {number},{number % 2}\n" for number in rows)
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{lines}", encoding="utf-8")
    return open_source(Source(path=str(tmp_path / "*.csv")))


def refiner(until=ROWS):
    """Return what makes rows larger, the list of those that it saw, and stops at one of them."""
    seen = []

    def refine(row):
        if row["id"] == until:
            raise Killed
        seen.append(row["id"])
        return row | {"text": row["text"].upper(), "blobs": {"": str(row["id"]).encode()}}

    return refine, seen


def content(folder):
    """Everything that was written, but for shards that were left open."""
    return {
        path.name: pq.read_table(path).to_pylist()
        for place in (folder, folder / "shards")
        for path in place.glob("*.parquet")
    }


def read(files, folder, until=ROWS, say=lambda _: None):
    """Read everything; return the records, and the rows that were read this time."""
    folder.mkdir(exist_ok=True)
    refine, seen = refiner(until)
    with landed(files, Columns("text", "label"), folder, refine, say) as (records, _):
        return records, seen, content(folder)


@pytest.mark.parametrize("at", [3, 10, 39, 40, 57, 94])
def test_it_goes_on_behind_the_last_whole_shard(tmp_path, files, at):
    wanted, _, whole = read(files, tmp_path / "whole")
    with pytest.raises(Killed):
        read(files, tmp_path / "broken", at)
    said = []
    records, seen, found = read(files, tmp_path / "broken", say=said.append)
    done = at // OF_A_SHARD * OF_A_SHARD
    assert seen == list(range(done, ROWS))
    assert records == wanted
    assert found == whole
    assert said == (
        [f"goes on behind {done} rows that were read before it was interrupted"] * (done > 0)
    )


def test_a_shard_that_was_left_open_is_written_again(tmp_path, files):
    _, _, whole = read(files, tmp_path / "whole")
    with pytest.raises(Killed):
        read(files, tmp_path / "broken", 25)
    (tmp_path / "broken" / "shards" / "00002.parquet.new").write_bytes(b"half a sha")
    (tmp_path / "broken" / "blobs-00002.parquet").write_bytes(b"half a blob")
    _, seen, found = read(files, tmp_path / "broken")
    assert seen[0] == 20
    assert found == whole


def test_shards_are_gone_when_all_is_done(tmp_path, files):
    read(files, tmp_path / "c")
    assert not (tmp_path / "c" / "shards").exists()


def test_no_more_than_a_shard_is_held(tmp_path, files, monkeypatch):
    held, real = [], Shards.add

    def add(self, row):
        real(self, row)
        held.append(len(self._rows))

    monkeypatch.setattr(Shards, "add", add)
    (tmp_path / "c").mkdir()
    ingest(files, Columns("text", "label"), tmp_path / "c")
    assert max(held) < OF_A_SHARD


def test_a_waiting_person_is_told_how_far_it_is(files, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("danlu.data.pace.time.perf_counter", lambda: now[0])
    said = []
    pace = Pace(files, said.append)
    for rows in range(1, 4001):
        now[0] += 0.02
        pace.row(rows)
        if rows == 2000:
            pace.file(files[0])
    sizes = [file.path.stat().st_size for file in files]
    left = round(60 * sizes[1] / sizes[0])
    assert said[0] == "reading: 1 of 2 files, 1,000 rows"
    assert said[2] == f"reading: 2 of 2 files, 3,000 rows, about {left} s left"
    assert len(said) == 4
    assert sources.Pace is Pace

"""Stage folders: keys, finished and half-written stages, kills, locks."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from danlu.artifact import (
    MANIFEST,
    Store,
    code_version,
    digest,
    digest_file,
    read_json,
    verify,
    write_json,
)
from danlu.errors import ArtifactError, BusyError

CODE = ("errors.py",)
SECTION = {"depth": 4, "names": ["a", "b"]}


def _make(folder):
    (folder / "deep").mkdir(exist_ok=True)
    (folder / "deep" / "numbers.bin").write_bytes(bytes(range(256)))
    (folder / "text.txt").write_text("丹炉", encoding="utf-8")


def _build(store, make=_make, section=SECTION):
    return store.build("stage", section, {"data": "0123"}, CODE, make)


@contextlib.contextmanager
def _process(code, *arguments):
    """Run Python code in a process of its own, which is gone afterwards."""
    child = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def test_the_same_inputs_have_the_same_key_in_any_order(tmp_path):
    one = Store(tmp_path / "a", 7).key("s", {"x": 1, "y": [2]}, {"d": "1", "t": "2"}, CODE)
    other = Store(tmp_path / "b", 7).key("s", {"y": [2], "x": 1}, {"t": "2", "d": "1"}, CODE)
    assert one == other
    assert len(one) == 12
    assert int(one, 16) >= 0


def test_any_change_gives_another_key(tmp_path):
    def key(stage="s", section=None, inputs=None, code=CODE, seed=7):
        store = Store(tmp_path, seed)
        return store.key(stage, section or {"x": 1, "y": [2]}, inputs or {"d": "1"}, code)

    keys = [
        key(),
        key(stage="t"),
        key(section={"x": 2, "y": [2]}),
        key(section={"x": "1", "y": [2]}),
        key(section={"x": 1, "y": [2], "z": None}),
        key(section={"x": 1, "y": [2, 2]}),
        key(inputs={"d": "2"}),
        key(inputs={"e": "1"}),
        key(inputs={"d": "1", "e": "1"}),
        key(seed=8),
        key(code=("log.py",)),
        key(code=("errors.py", "log.py")),
    ]
    assert len(set(keys)) == len(keys)


def test_the_code_version_of_a_folder_covers_its_files():
    assert code_version(("audit",)) != code_version(("audit/gate.py",))
    files = ("audit/__init__.py", "audit/fairness.py", "audit/gate.py", "audit/leaks.py")
    assert code_version(("audit",)) == code_version(files)


def test_a_digest_does_not_mix_up_types_or_borders():
    values = [{"a": 1}, {"a": "1"}, {"a": [1]}, {"a": None}, [["a", 1]], {"a": 1.5}, {"a": True}]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_a_finished_stage_is_not_made_again(tmp_path):
    store, calls = Store(tmp_path, 0), []

    def make(folder):
        calls.append(folder)
        _make(folder)

    first, second = _build(store, make), _build(store, make)
    assert len(calls) == 1
    assert (first.built, second.built) == (True, False)
    assert first.path == second.path == store.find("stage", first.key).path
    assert _build(store, make, {"depth": 5}).path != first.path
    assert len(calls) == 2


def test_the_manifest_lists_every_file_with_its_hash(tmp_path):
    artifact = _build(Store(tmp_path, 3))
    manifest = artifact.manifest
    assert manifest["files"] == {
        name: digest_file(artifact.path / name) for name in ("deep/numbers.bin", "text.txt")
    }
    assert manifest["bytes"] == 256 + 6
    assert (manifest["stage"], manifest["key"], manifest["seed"]) == ("stage", artifact.key, 3)
    assert (manifest["section"], manifest["inputs"]) == (SECTION, {"data": "0123"})
    verify(artifact)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(bytes(256)),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.unlink(),
    ],
    ids=["changed", "truncated", "emptied", "lengthened", "missing"],
)
def test_verify_finds_every_damage(tmp_path, damage):
    artifact = _build(Store(tmp_path, 0))
    damage(artifact.path / "deep" / "numbers.bin")
    with pytest.raises(ArtifactError, match=r"numbers\.bin"):
        verify(artifact)


def test_verify_finds_a_damaged_manifest(tmp_path):
    artifact = _build(Store(tmp_path, 0))
    path = artifact.path / MANIFEST
    path.write_text(path.read_text(encoding="utf-8")[:50], encoding="utf-8")
    with pytest.raises(ArtifactError):
        verify(artifact)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_no_finished_folder_and_a_retry_works(tmp_path, error):
    store = Store(tmp_path, 0)

    def broken(folder):
        (folder / "text.txt").write_text("half", encoding="utf-8")
        raise error

    with pytest.raises(error):
        _build(store, broken)
    key = store.key("stage", SECTION, {"data": "0123"}, CODE)
    assert store.find("stage", key) is None
    assert not (store.stages / f"stage-{key}").exists()
    artifact = _build(store)
    assert artifact.built
    assert (artifact.path / "text.txt").read_text(encoding="utf-8") == "丹炉"
    verify(artifact)


def test_a_partial_folder_is_never_found_and_is_taken_up_again(tmp_path):
    store, seen = Store(tmp_path, 0), []

    def first(folder):
        (folder / "checkpoint").write_text("3", encoding="utf-8")
        raise RuntimeError

    def second(folder):
        seen.append((folder / "checkpoint").read_text(encoding="utf-8"))

    with pytest.raises(RuntimeError):
        _build(store, first)
    assert not list(store.stages.glob("stage-*"))
    _build(store, second)
    assert seen == ["3"]


def test_a_folder_without_a_manifest_is_not_finished_and_is_replaced(tmp_path):
    store = Store(tmp_path, 0)
    key = store.key("stage", SECTION, {"data": "0123"}, CODE)
    damaged = store.stages / f"stage-{key}"
    damaged.mkdir(parents=True)
    (damaged / "stray").write_text("x", encoding="utf-8")
    assert store.find("stage", key) is None
    artifact = _build(store)
    assert artifact.built
    assert not (artifact.path / "stray").exists()


def test_a_crash_after_the_manifest_was_written_does_not_spoil_the_retry(tmp_path):
    """The manifest of the attempt before lies in the partial folder."""
    store = Store(tmp_path, 0)
    key = store.key("stage", SECTION, {"data": "0123"}, CODE)
    partial = store.stages / f".partial-stage-{key}"
    partial.mkdir(parents=True)
    write_json(partial / MANIFEST, {"stage": "stage", "finished": "an hour ago"})
    artifact = _build(store)
    assert MANIFEST not in artifact.manifest["files"]
    verify(artifact)


_SLOW_BUILD = """
import sys, time
from pathlib import Path
from danlu.artifact import Store

def make(folder):
    (folder / "text.txt").write_text("half")
    print("writing", flush=True)
    time.sleep(60)

store = Store(Path(sys.argv[1]), 0)
with store.lock():
    store.build("stage", {"depth": 4, "names": ["a", "b"]}, {"data": "0123"}, ("errors.py",), make)
"""


def test_a_killed_process_leaves_the_store_usable_and_the_stage_unfinished(tmp_path):
    with _process(_SLOW_BUILD, tmp_path) as child:
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    store = Store(tmp_path, 0)
    key = store.key("stage", SECTION, {"data": "0123"}, CODE)
    assert [path.name for path in store.stages.iterdir()] == [f".partial-stage-{key}"]
    assert store.find("stage", key) is None
    with store.lock():
        artifact = _build(store)
    assert artifact.built
    assert (artifact.path / "text.txt").read_text(encoding="utf-8") == "丹炉"
    verify(artifact)
    assert [path.name for path in store.stages.iterdir()] == [f"stage-{key}"]


_HOLD = """
import sys, time
from pathlib import Path
from danlu.artifact import Store

with Store(Path(sys.argv[1]), 0).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_is_busy_and_the_lock_dies_with_its_process(tmp_path):
    store = Store(tmp_path, 0)
    with _process(_HOLD, tmp_path) as child:
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(BusyError, match=str(child.pid)), store.lock():
            pass
        with Store(tmp_path / "elsewhere", 0).lock():
            pass  # another run folder is free
        child.kill()
        child.wait()
        with store.lock():
            assert (tmp_path / ".lock").read_text(encoding="utf-8") == str(os.getpid())


_TRY = """
import sys
from pathlib import Path
from danlu.artifact import Store
from danlu.errors import BusyError

try:
    with Store(Path(sys.argv[1]), 0).lock():
        print("free")
except BusyError:
    print("busy")
"""


def test_a_lock_keeps_a_real_second_process_out_until_it_is_given_back(tmp_path):
    def answer():
        with _process(_TRY, tmp_path) as child:
            return child.communicate(timeout=60)[0].strip()

    with Store(tmp_path, 0).lock():
        assert answer() == "busy"
    assert answer() == "free"


def test_json_is_readable_and_has_no_nan(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"名": [1, 2.5, None]})
    assert "名" in path.read_text(encoding="utf-8")
    assert read_json(path) == {"名": [1, 2.5, None]}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"x": float("nan")})
    assert read_json(path) == {"名": [1, 2.5, None]}, "what was there stays whole"


def test_the_manifest_tells_how_long_it_took_and_on_what(tmp_path):
    manifest = _build(Store(tmp_path, 0), lambda _: time.sleep(0.02)).manifest
    assert 0.02 <= manifest["seconds"] < 30
    assert manifest["peak_memory_bytes"] > 1e6
    assert {"python", "torch", "numpy"} <= manifest["versions"].keys()

"""Files inside archives and compressed files: found, read, and refused where they are hostile."""

import bz2
import glob
import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.archive import members, unpack
from danlu.data.sources import locate, open_source, rows_of
from danlu.errors import DataError
from danlu.recipe import Source

FILES = {"top.txt": b"top\n", "a/one.txt": b"1\n2\n", "a/b/two.txt": b"3\n", "a/c.csv": b"x\n1\n"}
KINDS = ["zip", "whl", "tar", "tar.gz", "tgz", "tar.xz", "tar.bz2", "deb"]
MODES = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.xz": "w:xz", "tar.bz2": "w:bz2"}
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb here")
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_dpkg) if kind == "deb" else kind for kind in KINDS]
)


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    """Give each test a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "danlu"


def pack(folder: Path, kind: str, files: dict[str, bytes], name: str = "x") -> Path:
    """Write an archive of any kind."""
    path = folder / f"{name}.{kind}"
    if kind in ("zip", "whl"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in files.items():
                archive.writestr(member, content)
    elif kind == "deb":
        tree = folder / "tree"
        for member, content in files.items():
            (tree / member).parent.mkdir(parents=True, exist_ok=True)
            (tree / member).write_bytes(content)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN" / "control").write_text(
            "Package: x-data\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@x.x>\n"
            "Description: x\n"
        )
        command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(path)]
        subprocess.run(command, check=True, capture_output=True)
    else:
        with tarfile.open(path, MODES[kind]) as archive:
            for member, content in files.items():
                add(archive, member, content)
    return path


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


def texts(found: list[tuple[str, Path]]) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in found}


def kept(cached: Path) -> list[Path]:
    """Return every file that the cache holds, half-written ones included."""
    return [path for path in cached.rglob("*") if not path.is_dir()]


@kinds
def test_a_member_and_a_glob_of_members_are_read(tmp_path, kind):
    path = pack(tmp_path, kind, FILES)
    assert texts(members(path, "a/one.txt")) == {"a/one.txt": b"1\n2\n"}
    assert texts(members(path, "*.txt")) == {"top.txt": b"top\n"}
    assert list(texts(members(path, "**/*.txt"))) == ["a/b/two.txt", "a/one.txt", "top.txt"]
    rows = [
        row
        for file in open_source(Source(path=f"{path}!a/*.txt"))
        for row in rows_of(file, {"text": "line"})
    ]
    assert rows == [(1, {"line": "1"}), (2, {"line": "2"})]
    with pytest.raises(DataError, match="holds no 'a/on") as caught:
        members(path, "a/on.txt")
    assert "a/one.txt" in caught.value.mend


@kinds
def test_a_cut_archive_is_refused_and_nothing_of_it_is_kept(tmp_path, cached, kind):
    noise = {f"{n}.txt": os.urandom(50_000) for n in range(4)}
    path = pack(tmp_path, kind, noise)
    whole = path.read_bytes()
    for share in (0.3, 0.6, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(DataError, match="damaged"):
            members(path, "3.txt")
    assert all(f.read_bytes() == noise[f.name] for f in kept(cached))


def test_a_tar_that_ends_between_two_members_is_cut_too(tmp_path):
    path = pack(tmp_path, "tar", {"a.txt": b"a" * 512, "b.txt": b"b" * 512})
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match="the end is missing"):
        members(path, "*.txt")


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil"])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("inner", ["**/*.txt", "good.txt"])
def test_an_archive_with_a_name_that_leads_out_of_it_is_refused(
    tmp_path, cached, kind, name, inner
):
    path = pack(tmp_path, kind, {"good.txt": b"good", name: b"evil"})
    with pytest.raises(DataError, match="leads out"):
        members(path, inner)
    assert [file.name for file in kept(cached)] in ([], ["good.txt"])
    assert not list(tmp_path.parent.rglob("evil*"))


@pytest.mark.parametrize("inner", ["../x.txt", "/x.txt", "a/../../x.txt"])
def test_a_recipe_that_leads_out_of_an_archive_is_refused(tmp_path, inner):
    path = pack(tmp_path, "zip", FILES)
    with pytest.raises(ValueError, match=r"without '\.\.'"):
        Source(path=f"{path}!{inner}")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a link"),
        ({"type": tarfile.LNKTYPE, "linkname": "good.txt"}, "a link"),
        ({"type": tarfile.FIFOTYPE}, "a device"),
        ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}, "a device"),
    ],
)
def test_links_and_devices_are_refused_where_they_are_asked_for(tmp_path, cached, fields, what):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "good.txt", b"good")
        add(archive, "odd.txt", **fields)
    for inner in ("odd.txt", "*.txt"):
        with pytest.raises(DataError, match=what):
            members(path, inner)
    assert texts(members(path, "good.txt")) == {"good.txt": b"good"}
    assert [file.name for file in kept(cached)] == ["good.txt"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("odd.txt")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="a link"):
        members(path, "odd.txt")


def test_an_encrypted_member_and_one_that_is_there_twice_are_refused(tmp_path):
    path = pack(tmp_path, "zip", {"a.txt": b"a"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        members(path, "a.txt")
    twice = tmp_path / "twice.tar"
    with tarfile.open(twice, "w") as archive:
        add(archive, "a.txt", b"1")
        add(archive, "./a.txt", b"2")
    with pytest.raises(DataError, match="twice"):
        members(twice, "*.txt")


ZEROS = bytes(80 << 20)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("inner", ["bomb.txt", "z.txt"])
def test_a_bomb_in_an_archive_is_refused(tmp_path, cached, kind, inner):
    path = pack(tmp_path, kind, {"bomb.txt": ZEROS, "z.txt": b"z"})
    if kind == "zip" and inner == "z.txt":  # a member beside it is never unpacked
        assert texts(members(path, inner)) == {"z.txt": b"z"}
        return
    with pytest.raises(DataError, match="more than 500 times its size") as caught:
        members(path, inner)
    assert "unpack it yourself" in caught.value.mend
    assert kept(cached) == []


@pytest.mark.parametrize("codec", [gzip, lzma, bz2])
def test_a_compressed_bomb_is_refused(tmp_path, cached, codec):
    path = tmp_path / f"x.txt.{ {gzip: 'gz', lzma: 'xz', bz2: 'bz2'}[codec] }"
    path.write_bytes(codec.compress(ZEROS))
    with pytest.raises(DataError, match="more than 500 times its size"):
        unpack(path)
    assert kept(cached) == []


@pytest.mark.parametrize("declared", [10, 5_000_000])
def test_a_zip_that_lies_about_a_size_is_refused(tmp_path, cached, declared):
    path = pack(tmp_path, "zip", {"a.txt": os.urandom(100_000)})
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 24, declared)
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        members(path, "a.txt")
    assert kept(cached) == []


def test_a_tar_that_declares_more_than_a_bomb_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("a.txt")
    info.size = 1 << 40
    path.write_bytes(info.tobuf() + bytes(10_240))
    with pytest.raises(DataError, match="more than 500 times its size"):
        members(path, "a.txt")


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "x.tar.gz"
    info = tarfile.TarInfo("a.txt")
    info.type, info.size = tarfile.XHDTYPE, 60 << 20
    path.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(61 << 20)))
    with pytest.raises(DataError, match="a header of"):
        members(path, "a.txt")


def test_the_cache_is_used_and_follows_the_archive(tmp_path, cached):
    path = pack(tmp_path, "zip", {"a.txt": b"old\n"})
    first = members(path, "a.txt")[0][1]
    when = first.stat().st_mtime_ns
    assert members(path, "a.txt")[0][1] == first
    assert members(path, "*.txt")[0][1] == first
    assert first.stat().st_mtime_ns == when
    pack(tmp_path, "zip", {"a.txt": b"new\n"})
    assert members(path, "a.txt")[0][1].read_bytes() == b"new\n"
    assert first.read_bytes() == b"old\n"


def test_a_member_whose_name_looks_like_a_glob_is_itself(tmp_path):
    path = pack(tmp_path, "zip", {"a1.txt": b"y", "a[1].txt": b"x"})
    assert texts(members(path, "a[1].txt")) == {"a[1].txt": b"x"}


@pytest.mark.parametrize(
    ("ending", "pressed"),
    [
        (".gz", gzip.compress),
        (".xz", lzma.compress),
        (".bz2", bz2.compress),
        (".compress", lzma.compress),
        (".compress", gzip.compress),
    ],
)
def test_a_compressed_file_is_read_on_disk_and_inside_an_archive(tmp_path, ending, pressed):
    content = b"text,label\na,1\nb,2\n"
    (tmp_path / f"t.csv{ending}").write_bytes(pressed(content))
    outer = pack(tmp_path, "tar", {f"d/t.csv{ending}": pressed(content)})
    for path in (tmp_path / f"t.csv{ending}", f"{outer}!d/*.csv{ending}"):
        (file,) = open_source(Source(path=str(path)))
        assert (Path(file.name).name, file.format) == ("t.csv", "csv")
        assert [row["text"] for _, row in rows_of(file, {"text": "text"})] == ["a", "b"]


def test_a_zip_of_one_file_is_that_file_and_one_of_several_must_be_asked(tmp_path):
    inner = pack(tmp_path, "zip", {"t.csv": b"x\n1\n", "__MACOSX/._t.csv": b"\0"}, "t.csv")
    (file,) = open_source(Source(path=str(inner)))
    assert (file.name, file.format) == ("t.csv", "csv")
    outer = pack(tmp_path, "whl", {"data/t.csv.zip": inner.read_bytes()})
    assert locate(Source(path=f"{outer}!data/t.csv.zip"))[0][0] == "data/t.csv"
    assert locate(Source(path=f"{outer}!data/t.csv.zip!t.csv"))[0][1].read_bytes() == b"x\n1\n"
    several = pack(tmp_path, "zip", FILES, "several")
    with pytest.raises(DataError, match="4 files, not one"):
        open_source(Source(path=str(several)))
    with pytest.raises(DataError, match="an archive of files") as caught:
        open_source(Source(path=str(pack(tmp_path, "tar.gz", FILES)), format="txt"))
    assert "!PATH" in caught.value.mend


@pytest.mark.parametrize("ending", [".gz", ".xz", ".bz2", ".zip", ".compress"])
def test_a_file_that_is_not_what_its_ending_says_is_refused(tmp_path, ending):
    path = tmp_path / f"a.txt{ending}"
    path.write_bytes(b"plain text\n")
    with pytest.raises(DataError, match="whatever its name says"):
        unpack(path)


@pytest.mark.parametrize(
    ("ending", "pressed"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)],
)
def test_a_cut_or_changed_compressed_file_is_refused(tmp_path, cached, ending, pressed):
    path = tmp_path / f"a.txt{ending}"
    whole = pressed(os.urandom(100_000))
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 255
    for content in (whole[:-50_000], bytes(changed)):
        path.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            unpack(path)
    assert kept(cached) == []


def test_an_exclamation_mark_that_follows_no_archive_is_part_of_a_name(tmp_path):
    (tmp_path / "wow!.csv").write_bytes(b"x\n1\n")
    assert open_source(Source(path=str(tmp_path / "wow!.csv")))[0].name == "wow!.csv"


part = st.sampled_from(["a", "b", "ab", ".h", "a.txt", "b.txt"])
globs = st.sampled_from(["*", "**", "a*", "?", "*.txt", ".*", "[ab]", "a"])


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.lists(part, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8),
    st.lists(globs, min_size=1, max_size=4).map("/".join),
)
def test_a_glob_finds_in_an_archive_what_it_finds_in_a_folder(tmp_path_factory, names, pattern):
    tmp_path = tmp_path_factory.mktemp("glob")
    files = {n: b"x" for n in names if not any(o.startswith(f"{n}/") for o in names)}
    path = pack(tmp_path, "zip", files)
    for name in files:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"x")
    found = glob.glob(pattern, root_dir=tmp_path / "tree", recursive=True)
    expected = sorted({n for n in found if (tmp_path / "tree" / n).is_file()} - {""})
    try:
        assert [name for name, _ in members(path, pattern)] == expected
    except DataError:
        assert expected == []

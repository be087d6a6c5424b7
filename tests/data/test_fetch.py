"""Packages from registries: with consent, checked, once; by the real tools."""

import base64
import hashlib
import http.server
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from danlu.data.sources import open_source, rows_of
from danlu.errors import ArtifactError, DataError, MachineError, RecipeError
from danlu.recipe import Source, load, validate

CSV = "text,label\n" + "".join(
    f"w{n}a w{n}b w{n}c w{n}d w{n}e w{n}f,{'ab'[n % 2]}\n" for n in range(120)
)
BACKEND = """
import pathlib
def get_requires_for_build_wheel(settings=None): return []
def prepare_metadata_for_build_wheel(folder, settings=None):
    pathlib.Path({marker!r}).touch()
    name = "danlu_words-1.0.dist-info"
    (pathlib.Path(folder) / name).mkdir()
    (pathlib.Path(folder) / name / "METADATA").write_text({metadata!r})
    return name
"""
METADATA = "Metadata-Version: 2.1\nName: danlu-words\nVersion: 1.0\n"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    """Give each test a cache of its own, no consent, and no way to the real registries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DANLU_FETCH", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_update_notifier", "false")
    (tmp_path / "links").mkdir()
    return tmp_path / "cache" / "danlu"


@pytest.fixture
def wheel(tmp_path) -> Path:
    """Put a wheel with data where pip finds it."""
    path = tmp_path / "links" / "danlu_words-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("words/a.csv", CSV)
        archive.writestr("words/b.csv", CSV)
        info = "danlu_words-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def sdist(tmp_path) -> Path:
    """Put a source archive there whose build script leaves a trace."""
    path = tmp_path / "links" / "danlu_words-1.0.tar.gz"
    backend = BACKEND.format(marker=str(tmp_path / "built"), metadata=METADATA)
    project = '[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n'
    files = {"words/c.csv": CSV, "b.py": backend, "pyproject.toml": project, "PKG-INFO": METADATA}
    pack(path, "danlu_words-1.0", files)
    return path


def pack(path: Path, top: str, files: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(content.encode())
            archive.addfile(info, io.BytesIO(content.encode()))


def read(path: str, digest: str, *, fetch: bool = False) -> dict[str, int]:
    source = Source(path=path, sha256=digest, licence="CC0")
    files = open_source(source, fetch=fetch)
    return {file.name: len(list(rows_of(file, {"text": "text"}))) for file in files}


def test_nothing_is_downloaded_without_consent(wheel, cached):
    with pytest.raises(DataError, match="downloads nothing without your consent") as caught:
        read("pypi:danlu-words==1.0/words/*.csv", sha(wheel))
    for way in ("--fetch", "fetch=True", "DANLU_FETCH=1", f"archives/{sha(wheel)}/"):
        assert way in caught.value.mend
    assert caught.value.where == "pypi:danlu-words==1.0"
    assert [path for path in cached.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("value", ["0", "", "yes"])
def test_the_variable_consents_when_it_is_1_only(wheel, monkeypatch, value):
    monkeypatch.setenv("DANLU_FETCH", value)
    with pytest.raises(DataError, match="consent"):
        read("pypi:danlu-words==1.0/words/*.csv", sha(wheel))
    monkeypatch.setenv("DANLU_FETCH", "1")
    assert read("pypi:danlu-words==1.0/words/*.csv", sha(wheel)) == {
        "words/a.csv": 120,
        "words/b.csv": 120,
    }


def test_a_wheel_is_downloaded_once_and_then_read_from_the_cache(wheel, cached):
    path, digest = "pypi:danlu-words==1.0/words/a.csv", sha(wheel)
    assert read(path, digest, fetch=True) == {"words/a.csv": 120}
    wheel.unlink()
    assert read(path, digest) == {"words/a.csv": 120}
    assert [p.name for p in (cached / "archives" / digest).iterdir()] == [wheel.name]
    assert list(cached.glob("fetch-*")) == []


def test_the_file_of_the_sum_is_taken_where_a_package_has_several(wheel, sdist, tmp_path):
    path = "pypi:danlu-words==1.0/words/c.csv"
    assert read(path, sha(sdist), fetch=True) == {"words/c.csv": 120}
    assert (tmp_path / "built").exists()  # as the question to the user says


def test_another_sum_is_refused_with_both_and_runs_and_keeps_nothing(
    wheel, sdist, cached, tmp_path
):
    wrong = "0" * 64
    with pytest.raises(DataError, match="another SHA-256") as caught:
        read("pypi:danlu-words==1.0/words/a.csv", wrong, fetch=True)
    assert sha(wheel) in caught.value.what
    assert wrong in caught.value.what
    assert not (tmp_path / "built").exists()
    assert [path for path in cached.rglob("*") if path.is_file()] == []


def test_a_version_that_is_not_there_is_told_with_pips_words(wheel):
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        read("pypi:danlu-words==2.0/words/a.csv", sha(wheel), fetch=True)
    assert "No matching distribution" in caught.value.what


def test_an_archive_that_was_changed_in_the_cache_is_not_read(wheel, cached):
    path, digest = "pypi:danlu-words==1.0/words/a.csv", sha(wheel)
    read(path, digest, fetch=True)
    kept = cached / "archives" / digest / wheel.name
    kept.write_bytes(kept.read_bytes() + b"\0")
    with pytest.raises(ArtifactError, match="was changed"):
        read(path, digest)


def test_an_archive_may_be_brought_by_hand(wheel, cached):
    folder = cached / "archives" / sha(wheel)
    folder.mkdir(parents=True)
    shutil.move(wheel, folder / wheel.name)
    found = read("pypi:danlu-words==1.0/words/b.csv", sha(folder / wheel.name))
    assert found == {"words/b.csv": 120}


def test_a_tool_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="npm is not on this machine"):
        read("npm:danlu-words@1.0.0/a.csv", "0" * 64, fetch=True)


ASK = """
import sys
from danlu.data.sources import open_source
from danlu.errors import DataError
from danlu.recipe import Source
try:
    print(len(open_source(Source(path=sys.argv[1], sha256=sys.argv[2], licence="CC0"))))
except DataError as error:
    print(error.what)
"""


def answer(text: str, *arguments: str) -> tuple[str, str]:
    """Run a program at a terminal, answer its question, and return question and result."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", ASK, *arguments],
        stdin=theirs,
        stderr=theirs,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(theirs)
        asked = ""
        while "[y/N]" not in asked:
            asked += os.read(ours, 4096).decode()
        os.write(ours, f"{text}\n".encode())
        result = process.communicate(timeout=60)[0]
    os.close(ours)
    return asked, result


def test_at_a_terminal_the_user_is_asked_and_a_yes_is_needed(wheel):
    arguments = ("pypi:danlu-words==1.0/words/a.csv", sha(wheel))
    for no in ("", "n", "maybe"):
        asked, result = answer(no, *arguments)
        assert "without your consent" in result
    for word in ("danlu-words 1.0", "pypi", "CC0", "size not known", "pip download"):
        assert word in asked
    assert "pickle" not in asked
    assert answer("y", *arguments)[1].strip() == "1"


def test_a_pickle_is_told_of_before_it_is_downloaded(wheel):
    asked, _ = answer("n", "pypi:danlu-words==1.0/words/a.pkl.xz", sha(wheel))
    assert "runs code" in asked


class Registry(http.server.BaseHTTPRequestHandler):
    """Answers as the npm registry does, for one package."""

    tarball = b""

    def do_GET(self):
        host = f"http://127.0.0.1:{self.server.server_address[1]}"
        integrity = base64.b64encode(hashlib.sha512(self.tarball).digest()).decode()
        dist = {"tarball": f"{host}/x.tgz", "integrity": f"sha512-{integrity}"}
        version = {"name": "@danlu/words", "version": "1.0.0", "dist": dist}
        content = {
            "name": "@danlu/words",
            "dist-tags": {"latest": "1.0.0"},
            "versions": {"1.0.0": version},
        }
        body = self.tarball if self.path == "/x.tgz" else json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm here")
def test_npm_packs_a_package_whose_folder_is_left_out_of_the_path(tmp_path, monkeypatch):
    content = {"package.json": '{"name": "@danlu/words", "version": "1.0.0"}', "data/a.csv": CSV}
    pack(tmp_path / "x.tgz", "package", content)
    monkeypatch.setattr(Registry, "tarball", (tmp_path / "x.tgz").read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_address[1]}/")
        path = "npm:@danlu/words@1.0.0/data/*.csv"
        with pytest.raises(DataError, match="another SHA-256") as caught:
            read(path, "1" * 64, fetch=True)
        assert sha(tmp_path / "x.tgz") in caught.value.what
        assert read(path, sha(tmp_path / "x.tgz"), fetch=True) == {"data/a.csv": 120}
        server.shutdown()
    assert read(path, sha(tmp_path / "x.tgz")) == {"data/a.csv": 120}


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt here")
@pytest.mark.parametrize("version", ["=1.0-1", ""])
def test_apt_downloads_a_package_from_the_lists_of_this_machine(tmp_path, monkeypatch, version):
    tree, repo = tmp_path / "tree", tmp_path / "repo"
    for folder in (tree / "DEBIAN", tree / "usr/share/words", repo, tmp_path / "lists/partial"):
        folder.mkdir(parents=True)
    (tree / "usr/share/words/a.csv").write_text(CSV)
    control = (
        "Package: danlu-words\nVersion: 1.0-1\nArchitecture: all\nMaintainer: x <x@x.x>\n"
        "Description: x\n"
    )
    (tree / "DEBIAN" / "control").write_text(control)
    deb = repo / "danlu-words_1.0-1_all.deb"
    run = {"check": True, "capture_output": True}
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(deb)], **run)
    size = deb.stat().st_size
    entry = f"{control}Filename: ./{deb.name}\nSize: {size}\nSHA256: {sha(deb)}\n\n"
    (repo / "Packages").write_text(entry)
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{repo} ./\n")
    (tmp_path / "apt.conf").write_text(
        f'Dir::State::lists "{tmp_path}/lists";\nDir::Cache "{tmp_path}/apt";\n'
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "-";\n'
        'APT::Sandbox::User "";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    subprocess.run(["apt-get", "update"], **run)
    path = f"deb:danlu-words{version}/usr/share/words/a.csv"
    asked, _ = answer("n", path, sha(deb))
    assert f"{size / 1e6:.1f} MB" in asked
    assert read(path, sha(deb), fetch=True) == {"usr/share/words/a.csv": 120}


def test_danlu_check_fetches_with_the_flag_and_not_without(wheel, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        '[data]\ntask = "classify"\nlabel = "label"\nsources = [{ path = '
        f'"pypi:danlu-words==1.0/words/a.csv", sha256 = "{sha(wheel)}", licence = "CC0" }}]\n'
    )
    command = [sys.executable, "-m", "danlu", "check", str(recipe), "--json"]
    run = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "check": False}
    refused = subprocess.run(command, **run)
    assert refused.returncode == 2
    assert "consent" in json.loads(refused.stderr)["error"]
    done = subprocess.run([*command, "--fetch"], **run)
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout)["splits"].values()) == 120


SUM = "a" * 64


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ({"path": "pypi:x==1/a.csv"}, "sha256"),
        ({"path": "a.csv", "sha256": SUM}, "sha256"),
        ({"path": "pypi:x==1/a.csv", "sha256": "A" * 64}, "sha256"),
        ({"path": "pypi:x/a.csv", "sha256": SUM}, "path"),
        ({"path": "pypi:x>=1/a.csv", "sha256": SUM}, "path"),
        ({"path": "pypi:x==1 --index-url=evil/a.csv", "sha256": SUM}, "path"),
        ({"path": "pypi:x==1/../a.csv", "sha256": SUM}, "path"),
        ({"path": "npm:x@latest/a.csv", "sha256": SUM}, "path"),
        ({"path": "npm:x@file:../y/a.csv", "sha256": SUM}, "path"),
        ({"path": "npm:--help@1/a.csv", "sha256": SUM}, "path"),
        ({"path": "deb:xy=1", "sha256": SUM}, "path"),
        ({"path": "deb:-o/a.csv", "sha256": SUM}, "path"),
        ({"path": "x.zip!/etc/a.csv"}, "path"),
        ({"path": "a.csv", "labels": "b"}, "labels"),
        ({"path": "a-idx3-ubyte", "labels": "pypi:x==1/b"}, "labels"),
        ({"path": "a.pkl.xz"}, "format"),
        ({"path": "a.csv", "format": "pandas"}, "format"),
        ({"path": "npm:x@1/a.pkl", "sha256": SUM}, "format"),
        ({"path": "x.zip!a.pkl"}, "format"),
    ],
)
def test_a_source_that_cannot_work_is_refused_at_its_key(source, key):
    with pytest.raises(RecipeError) as caught:
        validate({"name": "r", "data": {"task": "pretrain", "sources": [source]}}, "r.toml")
    assert [path for path, _ in caught.value.problems] == [f"data.sources.0.{key}"]


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        ("pypi:x==1!2.0/d/adult.csv.zip", "adult.csv.zip", "csv"),
        ("npm:@s/x@1.2.3/data/train-images-idx3-ubyte", "train-images-idx3-ubyte", "idx"),
        ("deb:xy=1:2~3-4/usr/**/*.inter", "*.inter", "tsv"),
        ("pypi:x==1/a.pkl.compress", "a.pkl.compress", "pandas"),
        ("package:x/a.pkl.xz", "a.pkl.xz", "pandas"),
    ],
)
def test_name_and_format_are_told_from_the_path(tmp_path, path, name, kind):
    digest = "" if path.startswith("package") else f', sha256 = "{SUM}"'
    (tmp_path / "r.toml").write_text(
        f'[data]\ntask = "pretrain"\nsources = [{{ path = "{path}"{digest} }}]\n'
    )
    (source,) = load(tmp_path / "r.toml")[0].data.sources
    assert (source.path, source.name, source.format) == (path, name, kind)


def test_archives_and_labels_are_relative_to_the_recipe(tmp_path):
    (tmp_path / "r.toml").write_text(
        '[data]\ntask = "pretrain"\nsources = [{ path = "x.zip!d/a-idx3-ubyte.gz", '
        'labels = "l-idx1-ubyte" }]\n'
    )
    (source,) = load(tmp_path / "r.toml")[0].data.sources
    assert source.path == f"{tmp_path}/x.zip!d/a-idx3-ubyte.gz"
    assert (source.name, source.format) == ("a-idx3-ubyte.gz", "idx")
    assert source.labels == f"{tmp_path}/l-idx1-ubyte"

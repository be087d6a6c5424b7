"""The kernels' build: where it lands, what happens without it, and every kind of processor.

Each test starts processes of its own, since a process looks for its kernels once.
"""

import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch

from danlu.model import native
from tolerances import COMPOSED, SIMPLE

LOOK = "from danlu.model import native; print(native.library() is not None)"

COMPUTE = """
import sys, torch
from danlu.model import fast, native
from danlu.model.backbone import Backbone, BackboneConfig

torch.manual_seed(8)
config = BackboneConfig(vocab_size=50, num_layers=2, dim=32, num_heads=4, num_kv_heads=2,
                        head_dim=16, hidden_dim=48, causal=True)
backbone = Backbone(config)
torch.nn.init.normal_(backbone.embedding.weight)
ids = torch.randint(0, 50, (2, 70))
document = torch.tensor([[0] * 49 + [1] * 20 + [-1], [2] * 3 + [3] * 67])
for dtype in (torch.float32, torch.bfloat16):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = backbone(ids, torch.arange(70).expand(2, 70), document)
        loss = fast.cross_entropy(hidden.flatten(0, 1), backbone.embedding.weight, None,
                                  ids.flatten().roll(1), torch.ones(140) / 140)
    gradients = torch.autograd.grad(loss, list(backbone.parameters()))
    torch.save([hidden.detach(), loss.detach(), *gradients], sys.argv[1] + str(dtype))
print(native.library() is not None)
"""


def environment(**changes):
    """The environment of this process with some variables changed, or taken away by None."""
    kept = {k: v for k, v in os.environ.items() if k not in ("CXX", native.OFF)}
    kept |= {"PYTHONWARNINGS": "always", "OMP_NUM_THREADS": "1"} | changes
    return {k: str(v) for k, v in kept.items() if v is not None}


def python(code, *arguments, cwd=None, **changes):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(**changes),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return done


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def compiler(tmp_path_factory):
    """A compiler that notes each build in `builds` and does not take time to optimise."""
    folder = tmp_path_factory.mktemp("compiler")
    found = shutil.which("g++") or shutil.which("clang++")
    assert found, "these tests need a C++ compiler"
    note = f'[ "$1" = --version ] || echo "$@" >> {folder}/builds'
    return script(folder / "c++", f'{note}\nexec {found} "$@" -O0')


@pytest.fixture(scope="session")
def built(compiler, tmp_path_factory):
    """A cache with a library that is to be copied, not changed."""
    folder = tmp_path_factory.mktemp("built")
    assert python(LOOK, CXX=compiler, DANLU_CACHE=folder).stdout == "True\n"
    return folder


@pytest.fixture
def cache(built, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(built, folder)
    return folder


def numbers(folder, dtype):
    return torch.load(str(folder / "numbers") + str(dtype))


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """What the plain operations say, and how the process said it."""
    folder = tmp_path_factory.mktemp("plain")
    done = python(COMPUTE, folder / "numbers", DANLU_NO_KERNELS="1", DANLU_CACHE=folder / "cache")
    return folder, done


def agree(folder, wanted):
    """Outputs and gradients are those of the plain operations."""
    for found, expected in zip(
        numbers(folder, torch.float32), numbers(wanted, torch.float32), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=COMPOSED, atol=COMPOSED)
    hidden, loss = numbers(folder, torch.float32)[:2]
    expected_hidden, expected_loss = numbers(wanted, torch.float32)[:2]
    torch.testing.assert_close(hidden, expected_hidden, rtol=SIMPLE, atol=SIMPLE)
    torch.testing.assert_close(loss, expected_loss, rtol=SIMPLE, atol=SIMPLE)


def test_when_switched_off_nothing_is_built_and_nothing_is_said(plain):
    folder, done = plain
    assert done.stdout == "False\n"
    assert done.stderr == ""
    assert not (folder / "cache").exists()


def test_the_kernels_give_the_numbers_of_the_plain_operations(plain, tmp_path):
    assert python(COMPUTE, tmp_path / "numbers").stdout == "True\n"
    agree(tmp_path, plain[0])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86")
@pytest.mark.parametrize(
    "flags",
    ["-mno-avx512f", "-mno-avx512f -mno-avx", "-mno-avx512bf16"],
    ids=["8 lanes", "4 lanes", "no bfloat16"],
)
def test_processors_of_every_width_give_the_same_numbers(flags, plain, tmp_path):
    # Less optimised, and so built in half the time; the flag that comes last holds.
    other = script(tmp_path / "c++", f'exec {shutil.which("g++")} {flags} "$@" -O1')
    done = python(COMPUTE, tmp_path / "numbers", CXX=other, DANLU_CACHE=tmp_path / "cache")
    assert done.stdout == "True\n"
    agree(tmp_path, plain[0])
    # bfloat16 rounds elsewhere without the instruction; the loss must hardly notice.
    loss, wanted = (numbers(f, torch.bfloat16)[1] for f in (tmp_path, plain[0]))
    torch.testing.assert_close(loss, wanted, rtol=5e-3, atol=0)


@pytest.mark.parametrize("fault", ["none", "false", "absent", "fails"])
def test_without_a_working_compiler_one_warning_gives_the_reason(fault, plain, tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    chosen, reason = {
        "none": (None, "no C++ compiler was found"),
        "false": (shutil.which("false"), "false"),
        "absent": ("/nowhere/c++", "/nowhere/c++"),
        "fails": (
            script(empty / "fails", '[ "$1" = --version ] || { echo its words >&2; exit 1; }'),
            "its words",
        ),
    }[fault]
    done = python(
        COMPUTE if fault == "none" else f"{LOOK}; {LOOK}",
        tmp_path / "numbers",
        CXX=chosen,
        PATH=empty,
        DANLU_CACHE=tmp_path / "cache",
    )
    assert set(done.stdout.split()) == {"False"}
    assert done.stderr.count("NoKernelsWarning") == 1
    assert reason in done.stderr
    assert "need a C++ compiler" in done.stderr
    if fault == "none":
        for dtype in (torch.float32, torch.bfloat16):
            for found, wanted in zip(
                numbers(tmp_path, dtype), numbers(plain[0], dtype), strict=True
            ):
                assert torch.equal(found, wanted)
    cache = tmp_path / "cache"
    assert not cache.exists() or not list(cache.iterdir())  # no half-made thing is left


def test_a_second_process_finds_what_the_first_has_built(compiler, cache):
    (library,) = cache.iterdir()
    assert library.suffix == ".so"
    before = library.stat().st_mtime_ns
    builds = (compiler.parent / "builds").read_text()
    for _ in range(2):
        assert python(LOOK, CXX=compiler, DANLU_CACHE=cache).stdout == "True\n"
    assert library.stat().st_mtime_ns == before
    assert (compiler.parent / "builds").read_text() == builds
    assert list(cache.iterdir()) == [library]


def test_another_compiler_builds_a_library_of_its_own(compiler, cache):
    first = set(cache.iterdir())
    other = shutil.copy(compiler, cache.parent / "other")
    assert python(LOOK, CXX=other, DANLU_CACHE=cache).stdout == "True\n"
    assert len(set(cache.iterdir()) - first) == 1


def test_processes_that_build_at_the_same_moment_do_not_disturb_each_other(compiler, tmp_path):
    running = [
        subprocess.Popen(
            [sys.executable, "-c", LOOK],
            env=environment(CXX=compiler, DANLU_CACHE=tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in running:
        out, errors = process.communicate(timeout=300)
        assert (process.returncode, out, errors) == (0, "True\n", "")
    assert [path.suffix for path in tmp_path.iterdir()] == [".so"]


@pytest.mark.parametrize("kept", [0, 100, 4096, 0.5, "noise"])
def test_a_damaged_library_neither_ends_the_process_nor_stays(kept, compiler, cache):
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    size = int(kept * len(whole)) if isinstance(kept, float) else kept
    library.write_bytes(b"noise" * 9999 if kept == "noise" else whole[:size])
    done = python(LOOK, CXX=compiler, DANLU_CACHE=cache)
    assert done.stdout == "True\n", done.stderr
    assert done.stderr == ""
    assert python(LOOK, CXX=compiler, DANLU_CACHE=cache).stdout == "True\n"


@pytest.mark.parametrize("where", [".", "here", "a folder/with spaces"])
def test_the_cache_may_be_a_relative_path(where, compiler, tmp_path):
    (tmp_path / "here").mkdir()
    done = python(LOOK, cwd=tmp_path, CXX=compiler, DANLU_CACHE=where)
    assert done.stdout == "True\n", done.stderr
    assert [path.suffix for path in (tmp_path / where).glob("*.so")] == [".so"]


def test_a_cache_that_cannot_be_written_is_a_reason_like_any_other(compiler, tmp_path):
    (tmp_path / "file").write_text("")
    done = python(LOOK, CXX=compiler, DANLU_CACHE=tmp_path / "file" / "cache")
    assert done.stdout == "False\n"
    assert done.stderr.count("NoKernelsWarning") == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_user_without_a_home_is_no_reason_to_fail():
    """As in a container whose user has a number and no name."""
    code = f"import os, pwd; from danlu.model import native; os.setuid(54321); {LOOK}"
    done = python(code, HOME=None, XDG_CACHE_HOME=None, DANLU_CACHE=None)
    assert done.stderr.count("NoKernelsWarning") == (done.stdout == "False\n")


def test_the_cache_is_the_users_own_unless_one_is_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("DANLU_CACHE", raising=False)
    assert native.cache() == tmp_path / "xdg" / "danlu"
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path / "chosen"))
    assert native.cache() == tmp_path / "chosen"


CAREFUL = {
    "a default dtype of two bytes": """
torch.set_default_dtype(torch.bfloat16)
out = fast.attention(x, x, x, *table, layout)
out.sum().backward()
""",
    "targets of four bytes": """
try:
    fast.cross_entropy(x.flatten(0, 2), w, None, torch.zeros(1600, dtype=torch.int32), one)
except (RuntimeError, TypeError, ValueError):
    pass
""",
    "targets that are no id": """
for target in (10**9, -10**9):
    try:
        fast.cross_entropy(x.flatten(0, 2), w, None, torch.full((1600,), target), one)
        raise SystemExit("a target outside the vocabulary was taken")
    except (IndexError, RuntimeError, ValueError):
        pass
""",
    "a wide head": """
y = torch.randn(1, 2, 1, 4096)
table = ops.rotary_table(torch.arange(2)[None], 4096, 1e4)
layout = fast.Layout.of(torch.zeros(1, 2, dtype=torch.int64), causal=False)
found, wanted = (m.attention(y, y, y, *table, layout) for m in (fast, ops))
torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
""",
}


@pytest.mark.parametrize("name", CAREFUL)
def test_no_input_ends_the_process(name):
    python(
        "import torch; from danlu.model import fast, ops\n"
        "x = torch.randn(1, 400, 4, 16, requires_grad=True)\n"
        "w, one = torch.randn(50, 16), torch.ones(1600)\n"
        "table = ops.rotary_table(torch.arange(400)[None], 16, 1e4)\n"
        "layout = fast.Layout.of(torch.zeros(1, 400, dtype=torch.int64), causal=False)\n"
        + CAREFUL[name]
    )

"""The kernels in C++ beside this file, built once with the machine's own compiler.

The sources need nothing but a C++17 compiler with OpenMP: no header of torch, so the
build takes seconds. The library lands in a cache under a name that hashes the sources,
the flags, the compiler and the processor, and is found again by every later process.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

_SOURCES = Path(__file__).parent
_FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-fopenmp", "-shared", "-fPIC",
    # Not -ffast-math: a NaN has to stay one, or a diverged run would go unseen.
    "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing",
)  # fmt: skip
OFF = "DANLU_NO_KERNELS"
"""Environment variable: when set, nothing is built and the plain operations are used."""


class NoKernelsWarning(RuntimeWarning):
    """The fast kernels could not be built; the plain operations are used instead."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the kernels, built on first use, or None where they cannot be had.

    Warns
    -----
    NoKernelsWarning
        Once a process, with the reason, if there is no compiler or it fails.
    """
    if os.environ.get(OFF):
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            f"danlu's fast kernels could not be built: {said.strip()[-500:]}; the plain "
            "operations are used, at a fraction of the speed. They need a C++ compiler with "
            "OpenMP (such as g++) and a folder to keep the result in (DANLU_CACHE)",
            NoKernelsWarning,
            stacklevel=2,
        )
        return None


@functools.cache
def multiplies_bfloat16() -> bool:
    """Whether the kernels' bfloat16 products are done by the processor itself."""
    found = library()
    return found is not None and bool(found.multiplies_bfloat16())


def _built() -> Path:
    """Return the library's path, after building it if it is not there."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        raise FileNotFoundError("no C++ compiler was found (CXX, g++, clang++)")
    version = subprocess.run(
        [*shlex.split(compiler), "--version"], capture_output=True, text=True, check=True
    ).stdout
    digest = hashlib.sha256("\n".join((*_FLAGS, compiler, version, _processor())).encode())
    for source in sorted(_SOURCES.glob("*.[ch]*")):
        digest.update(source.read_bytes())
    target = cache() / f"kernels-{digest.hexdigest()[:16]}.so"
    if not _whole(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as aside:
            made = Path(aside) / target.name
            command = [*shlex.split(compiler), *_FLAGS, *map(str, sorted(_SOURCES.glob("*.cpp")))]
            command += ["-o", str(made)]
            subprocess.run(command, capture_output=True, text=True, check=True)
            with made.open("r+b") as file:
                content = file.read()
                file.write(hashlib.sha256(content).digest())
                file.flush()
                os.fsync(file.fileno())
            made.replace(target)  # whole or not at all, whoever else builds it at this moment
    return target


def _whole(path: Path) -> bool:
    """Whether a library is as it was built: its hash stands behind its last byte.

    A damaged one would end the process when it is loaded, not raise an error.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return len(content) > 32 and hashlib.sha256(content[:-32]).digest() == content[-32:]


def cache() -> Path:
    """Return the folder of built kernels: ``DANLU_CACHE``, or one in the user's cache."""
    if chosen := os.environ.get("DANLU_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "danlu"


def _processor() -> str:
    """Return what ``-march=native`` depends on."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return "\n".join(re.findall(r"^(?:model name|flags|Features)\s*:.*$", text, re.MULTILINE)[:2])

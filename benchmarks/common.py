"""What the benchmarks share: running contestants, summing up, writing results.

A benchmark runs in danlu's interpreter and starts every contestant as a process
of its own, so that none inherits another's memory, threads or compiled code.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environments

FOLDER = Path(__file__).parent
WORK = FOLDER / ".work"
RESULTS = FOLDER / "results"


# About 13.8 million parameters, tied embeddings counted once.
LANGUAGE_MODEL = {
    "vocab_size": 8192,
    "width": 384,
    "layers": 6,
    "heads": 6,
    "hidden": 1024,
    "context": 512,
    "batch": 8,
}
# A BERT for reviews; its feed-forward layer is not gated.
CLASSIFIER = {
    "vocab_size": 30_000,
    "width": 384,
    "layers": 6,
    "heads": 12,
    "hidden": 1536,
    "context": 256,
    "batch": 32,
    "gated": False,
}
# What --short runs: it shows that a benchmark works and measures nothing.
SHORT = {"width": 64, "layers": 2, "heads": 2, "hidden": 128, "batch": 2}
SHORT_DOCUMENTS = 2000


@dataclass(frozen=True, slots=True)
class Contestant:
    """A script, the interpreter it runs in, and the arguments that are its own."""

    name: str
    script: str
    python: str
    arguments: tuple[str, ...] = ()


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the arguments that every benchmark takes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=rounds, help="each runs every contestant once")
    made.add_argument("--short", action="store_true", help="tiny: shows that it works, no more")
    made.add_argument("--threads", type=int, default=0, help="0 leaves it to each contestant")
    made.add_argument("--documents", type=int, default=60_000, help="of the corpus; 0 takes all")
    made.add_argument("--only", nargs="+", help="contestants, by name or part of it")
    made.add_argument("--hf-python", help="an interpreter with transformers")
    made.add_argument("--litgpt-python", help="an interpreter with litgpt")
    return made


def interpreter(name: str, given: str | None) -> str:
    """Return a peer's interpreter: the one given, this one if it will do, or one made now."""
    if given:
        return given
    if name == "hf" and find_spec("transformers") and find_spec("accelerate"):
        return sys.executable
    return str(environments.make(name))


def chosen(contestants: Sequence[Contestant], only: Sequence[str] | None) -> list[Contestant]:
    """Return the contestants whose names hold one of the words of `only`."""
    return [c for c in contestants if not only or any(word in c.name for word in only)]


def resolved(contestants: Sequence[Contestant], options: argparse.Namespace) -> list[Contestant]:
    """Return the contestants with interpreters in the place of environments' names."""
    given = {"hf": options.hf_python, "litgpt": options.litgpt_python}
    return [
        replace(c, python=interpreter(c.python, given[c.python])) if c.python in given else c
        for c in contestants
    ]


def run(contestant: Contestant, arguments: Iterable[str], threads: int = 0) -> dict[str, Any]:
    """Run a contestant once; return what it wrote, or ``{"error": …}``.

    A contestant that fails must not take the others' results with it.
    """
    environment = os.environ | {
        "BENCHMARK_STARTED": repr(time.time()),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Compiled code is kept from one process to the next, as on a user's machine.
        "TORCHINDUCTOR_CACHE_DIR": str(WORK / "compiled" / Path(contestant.script).stem),
    }
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    script = FOLDER / "peers" / contestant.script
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [contestant.python, str(script), *arguments, *contestant.arguments]
        print(f"… {contestant.name}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [*command, "--out", str(out)], env=environment, capture_output=True, text=True
        )
        if done.returncode or not out.exists():
            last = "\n".join((done.stderr or done.stdout).splitlines()[-15:])
            print(f"{contestant.name} failed ({done.returncode}):\n{last}", file=sys.stderr)
            return {"error": last.splitlines()[-1:], "returncode": done.returncode}
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def spread(values: Iterable[float]) -> dict[str, Any] | None:
    """Return median, minimum and maximum; None of nothing."""
    found = [float(value) for value in values]
    if not found:
        return None
    return {
        "median": statistics.median(found),
        "low": min(found),
        "high": max(found),
        "n": len(found),
    }


def by_round(rounds: Sequence[dict[str, Any]], name: str, key: str) -> dict[int, float]:
    """Return a contestant's figure in each round where it finished; "a/b" divides."""
    found = {}
    for number, contestants in enumerate(rounds):
        record = contestants.get(name, {"error": "not run"})
        if "error" not in record:
            over, _, under = key.partition("/")
            found[number] = record[over] / (record[under] if under else 1)
    return found


def ratio(
    rounds: Sequence[dict[str, Any]], ours: str, theirs: str, key: str
) -> dict[str, Any] | None:
    """Return the spread of ours / theirs, each quotient from within one round.

    Machines grow faster and slower by the minute; neighbours in time share that.
    """
    a, b = by_round(rounds, ours, key), by_round(rounds, theirs, key)
    return spread(a[number] / b[number] for number in a.keys() & b.keys())


def machine() -> dict[str, Any]:
    """Return the hardware, the commit and the versions in danlu's environment."""
    from danlu.artifact import machine_record

    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        # Names alone tell two generations apart badly, of which one is twice as fast.
        told = dict(
            line.split(":", 1) for line in information.read_text().splitlines() if ":" in line
        )
        found = {key.strip(): value.strip() for key, value in told.items()}
        model = found.get("model name", model)
        if "cpu family" in found:
            model += f" (family {found['cpu family']}, model {found['model']})"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    changed = subprocess.run(
        [
            *("git", "-C", str(FOLDER), "status", "--porcelain", "--untracked-files=no"),
            *("--", ":/", ":(top,exclude)benchmarks/results"),  # written while others still run
        ],
        capture_output=True,
        text=True,
    ).stdout
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "uncommitted_changes": bool(changed.strip()),
        **machine_record(),
    }


def write(name: str, content: dict[str, Any], table: str, svg: str | None) -> None:
    """Write ``results/NAME.json``, ``.md`` and ``.svg``; called after every contestant.

    Each file is written aside and moved into place, so that a benchmark that is
    killed leaves the rounds it has finished.
    """
    RESULTS.mkdir(exist_ok=True)
    files = {"json": json.dumps(content, indent=1, ensure_ascii=False) + "\n", "md": table}
    if svg:
        files["svg"] = svg
    for ending, text in files.items():
        aside = RESULTS / f".{name}.{ending}"
        aside.write_text(text, encoding="utf-8")
        aside.replace(RESULTS / f"{name}.{ending}")


def play(
    benchmark: str,
    options: argparse.Namespace,
    shape: dict[str, Any],
    entrants: Sequence[Contestant],
    arguments: Sequence[str],
    after: Callable[[dict[str, Any]], None],
    before: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Run every contestant once a round, in turn; print the summary at the end.

    Parameters
    ----------
    benchmark : str
    options : Namespace
        As :func:`parser` gives them.
    shape : dict
        Of the model, for the record.
    entrants : sequence of Contestant
    arguments : sequence of str
        What all of them are given; the round's number is their seed.
    after : callable
        Given the record so far after every contestant: sums it up and writes it.
    before : callable
        Results that open a round, by name.
    """
    if not entrants:
        raise SystemExit(f"--only {' '.join(options.only)}: no contestant has such a name")
    content: dict[str, Any] = {
        "benchmark": benchmark,
        "settings": settings(options, shape=shape),
        "machine": machine(),
        "rounds": [],
    }
    for number in range(options.rounds):
        content["rounds"].append(before())
        for entrant in entrants:
            seeded = [*arguments, "--seed", str(number)]
            content["rounds"][-1][entrant.name] = run(entrant, seeded, options.threads)
            after(content)
    print(json.dumps(content["summary"], indent=1, ensure_ascii=False))


def settings(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Return what a benchmark was asked for, without the paths of one machine."""
    left_out = ("hf_python", "litgpt_python")
    return {k: v for k, v in vars(options).items() if k not in left_out} | more


def result_name(name: str, options: argparse.Namespace) -> str:
    """Return what results are called; a short run never replaces a real one."""
    return f"{name}-short" if options.short else name


def header(title: str, content: dict[str, Any]) -> str:
    """Return the head of a Markdown result: on what it was measured."""
    record = content["machine"]
    versions = {k: record["versions"][k] for k in ("python", "torch") if k in record["versions"]}
    for contestants in content.get("rounds", []):
        for result in contestants.values():
            for library, number in result.get("versions", {}).items():
                versions.setdefault(library, number)
    commit = (record["commit"] or "unknown")[:12]
    changed = ", with uncommitted changes" if record["uncommitted_changes"] else ""
    short = "\n**A `--short` run: it shows that the benchmark works and measures nothing.**\n"
    return (
        f"# {title}\n{short if content['settings'].get('short') else ''}\n"
        f"{record['processor']}, {record['cores']} cores, {record['memory_gib']} GiB · "
        f"{record['date'][:10]} · commit {commit}{changed} · "
        + ", ".join(f"{library} {number}" for library, number in versions.items())
        + "\n\n"
    )


def cell(found: dict[str, Any] | None, form: str = ",.0f") -> str:
    """Return "median (low–high)", or a dash for what could not be measured."""
    if not found:
        return "–"
    if found["n"] == 1:
        return f"{found['median']:{form}}"
    return f"{found['median']:{form}} ({found['low']:{form}}–{found['high']:{form}})"

"""README's commands, run as they are written, in order.

They run in a copy of recipes/ whose demo recipe reads a sample of the reviews and
trains a small model, because the full one takes minutes; the commands are README's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from danlu.recipe import dump, load

ROOT = Path(__file__).parent.parent
README, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.M | re.S)


def commands(path: Path) -> list[str]:
    return [line for block in blocks(path, "sh") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("readme")
    recipe, _ = load(ROOT / "recipes" / "reviews.toml", small)
    (folder / "recipes").mkdir()
    (folder / "recipes" / "reviews.toml").write_text(dump(recipe), encoding="utf-8")
    return folder


def run(command: list[str] | str, folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        command, cwd=folder, shell=isinstance(command, str), env=environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            assert time.monotonic() < deadline, f"{url} did not come up"
            time.sleep(0.2)


def test_the_commands_work_as_written(workplace):
    served = None
    ran = []
    try:
        for command in commands(README):
            if command.startswith("make "):
                continue
            if command.endswith("&"):
                environment = os.environ | {
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"
                }
                arguments = command.removesuffix("&").split()
                served = subprocess.Popen(arguments, cwd=workplace, env=environment)
                wait_for("http://127.0.0.1:8321/healthz")
            else:
                found = run(command, workplace)
                assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
                if command.startswith("curl"):
                    assert '"predictions"' in found.stdout
            ran.append(command.split()[0])
    finally:
        if served:
            served.terminate()
            served.wait(20)
    assert ran.count("danlu") >= 6
    assert "curl" in ran
    for block in blocks(README, "python"):
        found = run([sys.executable, "-c", block], workplace)
        assert found.returncode == 0, found.stderr
        assert len(found.stdout.splitlines()) == 2


def test_make_runs_what_readme_says():
    planned = subprocess.run(
        ["make", "-n", "demo", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "danlu run recipes/reviews.toml" in planned.stdout
    assert "pytest" in planned.stdout


def test_the_recipe_shown_is_valid(tmp_path):
    for path in (README, CHINESE):
        for number, block in enumerate(blocks(path, "toml")):
            recipe = tmp_path / f"{path.stem}{number}.toml"
            recipe.write_text(block, encoding="utf-8")
            load(recipe)


def test_the_chinese_readme_has_the_same_commands_and_code():
    assert commands(CHINESE) == commands(README)
    assert blocks(CHINESE, "python") == blocks(README, "python")
    assert len(blocks(CHINESE, "toml")) == len(blocks(README, "toml"))


def test_every_file_that_readme_points_to_is_there():
    for path in (README, CHINESE):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (ROOT / target).exists(), f"{path.name}: {target}"

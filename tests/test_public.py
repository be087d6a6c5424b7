"""What users may rely on: public names, no telemetry, no forbidden imports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import danlu

SOURCES = sorted((Path(__file__).parent.parent / "src").rglob("*.py"))


def test_the_public_names_are_these_and_all_exist():
    assert danlu.__all__ == ["DanluError", "Predictor", "__version__", "load", "run"]
    assert dir(danlu) == sorted(danlu.__all__)
    for name in danlu.__all__:
        assert getattr(danlu, name) is not None


def test_an_unknown_name_is_refused():
    import pytest

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = danlu.nothing


def test_importing_danlu_imports_nothing_heavy():
    code = (
        "import sys, danlu; print([m for m in ('torch', 'daft', 'pydantic') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_usage_reporting_of_dependencies_is_off():
    names = [
        "SCARF_NO_ANALYTICS",
        "DO_NOT_TRACK",
        "DAFT_ANALYTICS_ENABLED",
        "RAY_USAGE_STATS_ENABLED",
    ]
    code = f"import danlu.data.prepare, os; print([os.environ.get(n) for n in {names}])"
    clean = {key: value for key, value in os.environ.items() if key not in names}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True
    )
    assert found.stdout.strip() == "['1', 'true', '0', '0']"


def test_a_user_may_turn_usage_reporting_on():
    code = "import danlu.data, os; print(os.environ['DO_NOT_TRACK'])"
    environment = os.environ | {"DO_NOT_TRACK": "false"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert found.stdout.strip() == "false"


def test_files_stay_short():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: n for name, n in lengths.items() if n > 440} == {}


def test_the_changelog_knows_this_version():
    root = Path(__file__).parent.parent
    assert re.search(
        rf"^## {re.escape(danlu.__version__)}\b", (root / "CHANGELOG.md").read_text(), re.M
    )
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["name"] == "danlu"

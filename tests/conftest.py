"""What all tests share: no network, no telemetry, the repository's root."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("SCARF_NO_ANALYTICS", "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that make recipes/reviews.toml small."""
    from reviews import SMALL, sample

    return [*SMALL, *sample(tmp_path_factory.mktemp("reviews"))]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Path:
    """Run the demo's recipe once at a small size; return the run folder, to be read only."""
    import danlu

    folder = tmp_path_factory.mktemp("finished") / "reviews"
    danlu.run(ROOT / "recipes" / "reviews.toml", folder, small)
    return folder

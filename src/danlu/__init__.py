"""danlu 丹炉: from raw data to a foundation model that you can defend.

>>> import danlu
>>> sorted(danlu.__all__)
['DanluError', 'Predictor', '__version__', 'load', 'run']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["DanluError", "Predictor", "__version__", "load", "run"]

if TYPE_CHECKING:
    from danlu.api import Predictor, load, run
    from danlu.errors import DanluError

_HOMES = {
    "DanluError": "danlu.errors",
    "Predictor": "danlu.api",
    "load": "danlu.api",
    "run": "danlu.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: torch alone takes a second."""
    if name not in _HOMES:
        raise AttributeError(f"module 'danlu' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""What a checkpoint's ``config.json`` says, asked for by name and type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from danlu.errors import InputError
from danlu.model.rotary import Scaling

_LARGEST = 1 << 31


class Settings:
    """A configuration as it was read; what is asked for and wrong is an InputError.

    Parameters
    ----------
    content : mapping
    where : str
        The file, for messages.
    """

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content, self.where = content, where

    def wrong(self, what: str) -> InputError:
        """Return the error that says what is wrong with it."""
        return InputError(what, where=self.where)

    def given(self, key: str) -> Any:
        """Return a value as it stands; None where it is missing."""
        return self.content.get(key)

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """Return a whole number that is neither absurdly small nor absurdly large."""
        value = self.given(key)
        value = default if value is None else value
        if value is None:
            raise self.wrong(f"{key} is missing")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _LARGEST:
            raise self.wrong(f"{key} must be a whole number from {least} on, not {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        """Return a positive number."""
        value = self.given(key)
        value = default if value is None else value
        usable = isinstance(value, int | float) and not isinstance(value, bool)
        if not usable or not math.isfinite(value) or value <= 0:
            raise self.wrong(f"{key} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        value = self.given(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(f"{key} must be true or false, not {value!r}")
        return value

    def choice(self, key: str, known: Mapping[str, str], default: str) -> str:
        """Return what a name stands for."""
        value = self.given(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in known:
            raise self.wrong(f"{key} is {value!r}; danlu knows {', '.join(known)}")
        return known[value]

    def must_be(self, key: str, *wanted: Any) -> None:
        """Refuse a value that would change the mathematics; one that is missing will do."""
        if self.given(key) is not None and self.given(key) not in wanted:
            raise self.wrong(f"{key} is {self.given(key)!r}; danlu knows {wanted[0]!r} only")

    def part(self, key: str) -> Settings:
        """Return the object that stands under a key; an empty one if there is none."""
        value = self.given(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(f"{key} must be an object, not {value!r}")
        return Settings(value or {}, f"{self.where}: {key}")

    def local_layers(self, number: int, usual: tuple[int, ...]) -> tuple[int, ...]:
        """Return the layers with a window: those that `layer_types` says, or the usual ones."""
        types = self.given("layer_types")
        if types is None:
            return usual
        known = ("full_attention", "sliding_attention")
        named = isinstance(types, list) and len(types) == number
        if not named or any(kind not in known for kind in types):
            raise self.wrong(f"layer_types must name {' or '.join(known)} for each layer")
        return tuple(n for n, kind in enumerate(types) if kind == known[1])


def rotary(settings: Settings) -> dict[str, Any]:
    """Return the base of rotary positions and how they are scaled, in danlu's terms.

    Both spellings are read: ``rope_parameters``, or ``rope_theta`` beside ``rope_scaling``.
    """
    new = settings.given("rope_parameters") is not None
    own = settings.part("rope_parameters" if new else "rope_scaling")
    base = own if own.given("rope_theta") is not None else settings
    found: dict[str, Any] = {"rope_theta": base.number("rope_theta", 10_000.0)}
    for place in (settings, own):
        place.must_be("partial_rotary_factor", 1, 1.0)
    kind: Any = own.given("rope_type") or own.given("type") or "default"
    if kind == "default":
        return found
    positions = settings.size("max_position_embeddings", 2048)
    original = own.size("original_max_position_embeddings", positions)
    scaling: dict[str, Any]
    if kind == "linear":
        scaling = {"factor": own.number("factor", 1.0)}
    elif kind == "dynamic":
        scaling = {"factor": own.number("factor", 1.0), "original_positions": positions}
    elif kind == "llama3":
        scaling = {
            "factor": own.number("factor", 8.0),
            "original_positions": original,
            "low": own.number("low_freq_factor", 1.0),
            "high": own.number("high_freq_factor", 4.0),
        }
    elif kind == "yarn":
        scaling = _yarn(own, positions, original)
    else:
        known = "default, linear, dynamic, llama3, yarn"
        raise own.wrong(f"rope_type is {kind!r}; danlu knows {known}")
    return found | {"rope_scaling": Scaling(kind, **scaling)}


def _yarn(own: Settings, positions: int, original: int) -> dict[str, Any]:
    factor = own.number("factor", positions / original)

    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    usual = temperature(1.0)
    if own.given("mscale") and own.given("mscale_all_dim"):
        usual = temperature(own.number("mscale", 1)) / temperature(own.number("mscale_all_dim", 1))
    return {
        "factor": factor,
        "original_positions": original,
        "low": own.number("beta_slow", 1.0),
        "high": own.number("beta_fast", 32.0),
        "attention_factor": own.number("attention_factor", usual),
        "whole_bounds": own.flag("truncate", True),
    }


def rotary_settings(theta: float, scaling: Scaling | None) -> dict[str, Any]:
    """Return what :func:`rotary` reads, in the older spelling, which all versions read."""
    if scaling is None:
        return {"rope_theta": theta}
    names: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        names["original_max_position_embeddings"] = scaling.original_positions
        keys = {"llama3": ("low_freq_factor", "high_freq_factor")}
        low, high = keys.get(scaling.kind, ("beta_slow", "beta_fast"))
        names |= {low: scaling.low, high: scaling.high}
    if scaling.kind == "yarn":
        names |= {"attention_factor": scaling.attention_factor, "truncate": scaling.whole_bounds}
    found = {"rope_theta": theta, "rope_scaling": names}
    if scaling.kind == "dynamic":
        found["max_position_embeddings"] = scaling.original_positions
    return found

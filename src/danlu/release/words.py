"""Numbers, models and records as people want to read them."""

from __future__ import annotations

import json
from datetime import date
from typing import Any


def network(backbone: dict[str, Any]) -> str:
    """Return what a backbone is, in words.

    >>> network({"kind": "lstm", "num_layers": 1, "dim": 256, "hidden_dim": 128, "causal": True})
    'LSTM, 1 layer of width 256, 128 units, causal'
    """
    kind, layers = backbone.get("kind", "transformer"), backbone["num_layers"]
    if kind == "linear" and backbone["value_dims"]:
        return f"linear model of {backbone['dim']} numbers"
    if kind == "linear":
        return f"bag of tokens, embeddings of width {backbone['dim']}, no layers"
    name = {"transformer": "Transformer"}.get(kind, kind.upper())
    width = f"{layers} {'layer' if layers == 1 else 'layers'} of width {backbone['dim']}"
    sight = "causal" if backbone["causal"] else "bidirectional"
    if kind == "transformer":
        return f"{name}, {width}, {backbone['num_heads']} heads, {backbone['activation']}, {sight}"
    norm = "" if backbone.get("norm", "none") == "none" else f", {backbone['norm']} norm"
    how = f"{backbone['activation']}{norm}" if kind in ("mlp", "cnn") else ""
    if kind == "mlp":
        return f"{name}, {layers} hidden of width {backbone['dim']}, {how}"
    if backbone.get("value_shape"):
        image = " × ".join(map(str, backbone["value_shape"]))
        return f"{name} of {layers} stages up to width {backbone['dim']}, {how}, images of {image}"
    if kind == "cnn":
        return f"{name}, {width}, window {backbone['window']}, {how}"
    return f"{name}, {width}, {backbone['hidden_dim']} units, {sight}"


def figure(value: float | None, unit: str = "") -> str:
    """Return a number as a person wants to read it.

    >>> figure(0.85612, "share"), figure(1234567, "bytes"), figure(0.3127, "nats")
    ('85.6%', '1.2 MB', '0.313')
    """
    if value is None:
        return "–"
    if unit == "share":
        return f"{100 * value:.1f}%"
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    if unit == "seconds":
        return f"{value:,.1f} s"
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.3g}"


def day(number: float) -> str:
    """Return the date of a count of days, which tables read dates as.

    >>> day(738886.2)
    '2024-01-01'
    """
    return date.fromordinal(round(number)).isoformat()


def told(text: str, modality: str) -> str:
    """Return a record's text as a person wants to read it: the cells of a row, not its JSON.

    >>> told('{"age": 31, "job": null}', "table"), told("{1}", "text")
    ('age: 31 · job: –', '{1}')
    """
    if modality not in ("table", "series") or not text.startswith("{"):
        return text
    cells = json.loads(text)
    return " · ".join(f"{name}: {'–' if cell is None else cell}" for name, cell in cells.items())

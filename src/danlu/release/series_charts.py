"""Pictures of series: windows, forecasts as fans, errors by step, scores with alarms."""

from __future__ import annotations

from typing import Any

import altair as alt

from danlu.release.charts import INK, MUTED, PALETTE, diagonal, inline, render

Rows = list[dict[str, Any]]
_BANDS = ("95", "80", "50")  # per cent; wide to narrow


def _x(times: list[Any]) -> Any:
    kind = "T" if times and isinstance(times[0], str) else "Q"
    axis = alt.Axis(labelOverlap=True, labelSeparation=8)
    if kind == "T":
        axis = alt.Axis(
            format="%d %b %H:%M", labelAngle=0, tickCount=4, labelOverlap=True, labelSeparation=8
        )
    return alt.X(f"time:{kind}", title=None, axis=axis, scale=alt.Scale(zero=False, nice=False))


def _y(name: str, field: str = "value:Q") -> Any:
    return alt.Y(field, title=name, scale=alt.Scale(zero=False))


def _line(times: list[Any], values: list[Any]) -> Rows:
    """Return the rows of a line; where nothing was measured it is broken."""
    return [{"time": t, "value": v} for t, v in zip(times, values, strict=True)]


def window(sample: dict[str, Any], name: str) -> str:
    """Draw a training window: what is looked back on, patch by patch, and what is foretold."""
    times, past = sample["time"], sample["past"]
    rows = [
        {**row, "of": "seen" if n < past else "foretold"}
        for n, row in enumerate(_line(times, sample["value"]))
    ]
    edges = inline([{"time": times[n]} for n in range(0, past, sample["patch"])])
    rules = alt.Chart(edges).mark_rule(color="#eef0f4").encode(x=_x(times))
    line = (
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=1.4)
        .encode(x=_x(times), y=_y(name), color=alt.Color("of:N", sort=["seen", "foretold"]))
    )
    return render(alt.layer(rules, line), 400, 130)


def fan(found: dict[str, Any], name: str) -> str:
    """Draw a forecast: its median, the intervals around it, and what came."""
    times, past = found["time"], found["past"]
    ahead = times[past:]
    layers: list[Any] = []
    shown = [percent for percent in _BANDS if percent in found["bands"]]
    for number, percent in enumerate(shown):
        low, high = found["bands"][percent]
        rows = [{"time": t, "low": a, "high": b} for t, a, b in zip(ahead, low, high, strict=True)]
        layers.append(
            alt.Chart(inline(rows))
            .mark_area(color=PALETTE[0], opacity=0.13 + 0.09 * number)
            .encode(x=_x(times), y=_y(name, "low:Q"), y2="high:Q")
        )
    layers.append(
        alt.Chart(inline(_line(ahead, found["median"])))
        .mark_line(color=PALETTE[0], strokeWidth=1.6)
        .encode(x=_x(times), y=_y(name))
    )
    layers.append(
        alt.Chart(inline(_line(times, found["truth"])), title=found["title"])
        .mark_line(color=INK, strokeWidth=1.1)
        .encode(x=_x(times), y=_y(name))
    )
    return render(alt.layer(*layers), 400, 170)


def by_step(curves: dict[str, Any]) -> str:
    """Draw the scaled error of each model at each step ahead."""
    rows = [
        {"step": step, "error": error, "model": model}
        for model, curve in curves.items()
        for step, error in enumerate(curve["by_step"], 1)
    ]
    chart = (
        alt.Chart(inline(rows), title="Error by step ahead")
        .mark_line(strokeWidth=1.6)
        .encode(
            x=alt.X("step:Q", title="step ahead"),
            y=alt.Y("error:Q", title="scaled absolute error"),
            color=alt.Color("model:N", sort=list(curves), legend=alt.Legend(columns=3)),
        )
    )
    return render(chart, 380, 260)


def coverage(curves: dict[str, Any]) -> str:
    """Draw how often the truth lies below each quantile."""
    rows = [
        {"level": level, "share": share, "model": model}
        for model, curve in curves.items()
        for level, share in curve["reliability"]
    ]
    encoded = alt.Chart(inline(rows), title="Calibration of the quantiles").encode(
        x=alt.X("level:Q", title="level of the quantile", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("share:Q", title="share of truths below it", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("model:N", sort=list(curves), legend=alt.Legend(columns=3)),
    )
    layers = (diagonal(), encoded.mark_line(strokeWidth=1.3), encoded.mark_point(filled=True))
    return render(alt.layer(*layers), 260, 260)


def scores(rows: Rows, threshold: float) -> str:
    """Draw the score over the test, the threshold, and where there were anomalies."""
    named = [{**row, "of": "anomaly" if row["anomaly"] else "normal"} for row in rows]
    order = ["normal", "anomaly"]
    dots = (
        alt.Chart(inline(named), title="Score over the test period")
        .mark_point(filled=True, size=16, opacity=0.75)
        .encode(
            x=_x([row["time"] for row in rows]),
            y=alt.Y("score:Q", title="error (deviations)", scale=alt.Scale(type="log")),
            color=alt.Color(
                "of:N", sort=order, scale=alt.Scale(domain=order, range=[PALETTE[2], PALETTE[0]])
            ),
        )
    )  # fmt: skip
    line = (
        alt.Chart(inline([{"score": threshold}]))
        .mark_rule(color=MUTED, strokeDash=[4, 4])
        .encode(y="score:Q")
    )
    return render(alt.layer(dots, line), 820, 240)

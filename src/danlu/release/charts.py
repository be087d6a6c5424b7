"""The report's pictures, rendered to SVG without a network."""

from __future__ import annotations

from typing import Any

import altair as alt
import vl_convert

Rows = list[dict[str, Any]]

INK, MUTED, GRID = "#1f2430", "#667085", "#e6e8ee"
PALETTE = ["#b4402d", "#1f5f8b", "#8a8f9c", "#c58b2a", "#3f7d58", "#6a4c93", "#2b8a8a", "#a0527a"]

_THEME = {
    "background": "transparent",
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED, "titleColor": MUTED, "gridColor": GRID, "domainColor": GRID,
        "tickColor": GRID, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
    },
    "legend": {"labelColor": INK, "title": None, "orient": "top", "labelFontSize": 11},
    "title": {"color": INK, "fontSize": 13, "anchor": "start", "fontWeight": 600},
    "range": {"category": PALETTE},
}  # fmt: skip


def render(chart: Any, width: int = 380, height: int = 240) -> str:
    """Render a chart; the specification holds its data, so nothing is fetched."""
    spec = chart.properties(width=width, height=height).to_dict()
    spec["config"] = _THEME
    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg


def inline(rows: Rows) -> Any:
    """Return rows as data that the specification holds."""
    return alt.Data(values=rows)  # type: ignore[no-untyped-call]


def funnel(steps: Rows) -> str:
    """Draw how many rows remain after each step of the data stage."""
    order = [step["step"] for step in steps]
    rows = [{**step, "label": f"{step['rows']:,}"} for step in steps]
    base = alt.Chart(inline(rows)).encode(
        y=alt.Y("step:N", sort=order, title=None, axis=alt.Axis(labelLimit=220)),
        x=alt.X("rows:Q", title="rows", scale=alt.Scale(domainMin=0)),
    )
    bars = base.mark_bar(color=PALETTE[1], cornerRadiusEnd=3, height={"band": 0.65})
    text = base.mark_text(align="left", dx=4, color=INK, fontSize=11).encode(text="label:N")
    return render(alt.layer(bars, text), 460, 30 * len(rows))


def losses(events: Rows, unit: str, title: str) -> str:
    """Draw the training loss at each logged step and the validation losses.

    A run that was interrupted logged some steps twice: the last time counts.
    """
    of = {"step": "training", "validation": "validation"}
    found = {
        (e["event"], e["step"]): e["loss"]
        for e in events
        if e["event"] in of and e["loss"] is not None
    }
    rows = [
        {"step": step, "loss": loss, "of": of[event]}
        for (event, step), loss in sorted(found.items())
    ]
    colours = {"training": PALETTE[0], "validation": PALETTE[1]}
    there = [name for name in colours if any(row["of"] == name for row in rows)]
    scale = alt.Scale(domain=there, range=[colours[name] for name in there])
    chart = alt.Chart(inline(rows), title=title).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("loss:Q", title=unit, scale=alt.Scale(zero=False)),
        color=alt.Color("of:N", scale=scale),
    )
    line = chart.mark_line(strokeWidth=1.6, interpolate="monotone")
    alone = sum(row["of"] == "training" for row in rows) == 1  # a line of one point is not seen
    shown = "true" if alone else "datum.of == 'validation'"
    dots = chart.transform_filter(shown).mark_point(filled=True, size=40)
    return render(alt.layer(line, dots))


def step_time(profiles: dict[str, dict[str, Any]]) -> str:
    """Draw where the time of a training step goes: one bar for each training stage."""
    rows = [
        {"stage": stage, "order": number, "part": part["name"], "ms": 1e3 * part["seconds"]}
        for stage, found in profiles.items()
        for number, part in enumerate(found["parts"])
    ]
    parts = list(dict.fromkeys(str(row["part"]) for row in rows))
    bars = (
        alt.Chart(inline(rows), title="Where the time of a step goes")
        .mark_bar(height={"band": 0.6})
        .encode(
            y=alt.Y("stage:N", sort=list(profiles), title=None),
            x=alt.X("ms:Q", title="milliseconds a step"),
            color=alt.Color("part:N", sort=parts, legend=alt.Legend(columns=4)),
            order="order:Q",
        )
    )
    return render(bars, 620, 44 * len(profiles))


def roc(curves: dict[str, dict[str, list[list[float]]]]) -> str:
    """Draw ROC curves: a line for each model, or one for each of its classes in its colour."""
    rows = [
        {"model": model, "class": name, "wrong": w, "right": r, "order": i}
        for model, of_model in curves.items()
        for name, (wrong, right) in of_model.items()
        for i, (w, r) in enumerate(zip(wrong, right, strict=True))
    ]
    several = max(map(len, curves.values())) > 1
    lines = (
        alt.Chart(inline(rows), title="ROC, a line for each class" if several else "ROC")
        .mark_line(strokeWidth=1 if several else 1.8)
        .encode(
            x=alt.X("wrong:Q", title="false positive rate"),
            y=alt.Y("right:Q", title="true positive rate"),
            order="order:Q",
            color=alt.Color("model:N", sort=list(curves)),
            detail="class:N",
        )
    )
    return render(alt.layer(diagonal(), lines), 300, 300)


def reliability(curves: dict[str, Rows]) -> str:
    """Draw how often the models are right at each level of confidence."""
    rows = [{"model": model, **point} for model, points in curves.items() for point in points]
    encoded = alt.Chart(inline(rows), title="Reliability").encode(
        x=alt.X("confidence:Q", title="mean confidence", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("accuracy:Q", title="share right", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("model:N", sort=list(curves)),
    )
    dots = encoded.mark_point(filled=True, opacity=0.9).encode(
        size=alt.Size("n:Q", legend=None, scale=alt.Scale(range=[20, 220]))
    )
    return render(alt.layer(diagonal(), encoded.mark_line(strokeWidth=1.4), dots), 300, 300)


def confusion(matrix: list[list[int]], classes: list[str]) -> str:
    """Draw true against given classes, shaded by the share of the true class."""
    rows = [
        {
            "truth": classes[i], "said": classes[j], "n": n, "share": n / max(1, sum(line)),
            "label": f"{n:,}", "ink": "white" if n / max(1, sum(line)) > 0.55 else INK,
        }
        for i, line in enumerate(matrix)
        for j, n in enumerate(line)
    ]  # fmt: skip
    side = max(220, min(420, 60 * len(classes)))
    # About six pixels a letter: names that would touch each other are slanted.
    angle = 0 if max(map(len, classes)) * 6 < side / len(classes) else -40
    base = alt.Chart(inline(rows), title="Confusion").encode(
        x=alt.X("said:N", sort=classes, title="model says", axis=alt.Axis(labelAngle=angle)),
        y=alt.Y("truth:N", sort=classes, title="truth"),
    )
    scale = alt.Scale(domain=[0, 1], range=["#f4f6f9", PALETTE[1]])
    cells = base.mark_rect().encode(color=alt.Color("share:Q", scale=scale, legend=None))
    text = base.mark_text(fontSize=13).encode(text="label:N", color=alt.Color("ink:N", scale=None))
    chart = alt.layer(cells, text) if len(classes) <= 12 else cells
    return render(chart.resolve_scale(color="independent"), side, side)


def points(truth: list[float], said: list[float]) -> str:
    """Draw a regressor's answers against the truth."""
    rows = [{"truth": t, "said": s} for t, s in zip(truth, said, strict=True)][:2000]
    dots = (
        alt.Chart(inline(rows), title="Answers against the truth")
        .mark_point(filled=True, opacity=0.35, color=PALETTE[1], size=18)
        .encode(
            x=alt.X("truth:Q", scale=alt.Scale(zero=False)),
            y=alt.Y("said:Q", title="model says", scale=alt.Scale(zero=False)),
        )
    )
    return render(dots, 300, 300)


def compared(rows: Rows, title: str) -> str:
    """Draw the models' values of one metric with their intervals."""
    names = [row["model"] for row in rows]
    base = alt.Chart(inline(rows), title=title).encode(
        y=alt.Y("model:N", sort=names, title=None, axis=alt.Axis(labelLimit=200)),
        color=alt.Color("model:N", sort=names, legend=None),
    )
    lines = base.mark_rule(strokeWidth=3).encode(
        x=alt.X(
            "low:Q",
            title="value and 95% interval",
            scale=alt.Scale(zero=False),
            axis=alt.Axis(tickCount=6),
        ),
        x2="high:Q",
    )
    dots = base.mark_point(filled=True, size=90, opacity=1).encode(x="value:Q")
    return render(alt.layer(lines, dots), 340, 34 * len(rows))


def diagonal() -> Any:
    """Return the line on which both shares are equal."""
    rows = [{"x": 0, "y": 0}, {"x": 1, "y": 1}]
    return (
        alt.Chart(inline(rows))
        .mark_line(strokeDash=[4, 4], strokeWidth=1, color=MUTED)
        .encode(x="x:Q", y="y:Q")
    )

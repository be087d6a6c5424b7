"""The benchmarks' pictures, rendered to SVG without a network."""

from __future__ import annotations

from typing import Any

import altair as alt
import vl_convert

INK, MUTED, GRID = "#1f2430", "#667085", "#e6e8ee"
OURS, OTHERS = "#b4402d", "#8a8f9c"
PALETTE = [OURS, "#1f5f8b", OTHERS, "#c58b2a", "#3f7d58", "#6a4c93"]
_THEME = {
    "background": "white",
    "font": "system-ui, sans-serif",
    "padding": 12,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": MUTED,
        "gridColor": GRID,
        "domainColor": GRID,
        "tickColor": GRID,
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": INK, "title": None, "orient": "top", "labelLimit": 320},
    "title": {"color": INK, "fontSize": 13, "anchor": "start", "fontWeight": 600, "offset": 12},
    "range": {"category": PALETTE},
}


def _svg(chart: Any, width: int, height: int) -> str:
    spec = chart.properties(width=width, height=height).to_dict()
    spec["config"] = _THEME
    svg: str = vl_convert.vegalite_to_svg(spec)
    return svg


def bars(values: dict[str, list[float]], title: str, unit: str, form: str = ",.0f") -> str:
    """Draw one bar a contestant, the median, and a dot for each round.

    Parameters
    ----------
    values : dict of list of float
        Figures of each round by contestant; those whose name begins with "danlu"
        are drawn in our colour.
    title, unit : str
    form : str
        d3 format of the number beside a bar.
    """
    names = [name for name, found in values.items() if found]
    rows = [
        {"name": n, "value": v, "ours": n.startswith("danlu")} for n in names for v in values[n]
    ]
    base = alt.Chart(alt.Data(values=rows), title=title).encode(
        y=alt.Y("name:N", sort=names, title=None, axis=alt.Axis(labelLimit=260))
    )
    bar = base.mark_bar(height={"band": 0.6}, cornerRadiusEnd=3, opacity=0.85).encode(
        x=alt.X("median(value):Q", title=unit, scale=alt.Scale(domainMin=0)),
        color=alt.Color(
            "ours:N", scale=alt.Scale(domain=[True, False], range=[OURS, OTHERS]), legend=None
        ),
    )
    dots = base.mark_circle(size=22, color=INK, opacity=0.7).encode(x="value:Q")
    # Inside the bar, at its foot, where no dot can lie over it.
    label = base.mark_text(align="left", dx=6, color="white", fontSize=11, fontWeight=600).encode(
        x=alt.datum(0), text=alt.Text("median(value):Q", format=form)
    )
    return _svg(alt.layer(bar, dots, label), 420, 34 * max(1, len(names)))


def curves(
    points: dict[str, list[tuple[float, float]]], title: str, across: str, up: str, level: float
) -> str:
    """Draw one line a contestant, and a level that all are to reach."""
    names = list(points)
    rows = [{"name": n, "x": x, "y": y} for n in names for x, y in points[n]]
    # The first figures of training dwarf the rest; what matters is near the level.
    late = [y for n in names for x, y in points[n] if x >= 0.15 * points[n][-1][0]]
    top = max([*late, level]) + 0.02
    chart = alt.Chart(alt.Data(values=rows), title=title).encode(
        x=alt.X("x:Q", title=across),
        y=alt.Y("y:Q", title=up, scale=alt.Scale(zero=False, domainMax=top)),
        color=alt.Color("name:N", sort=names),
    )
    lines = chart.mark_line(strokeWidth=1.8, clip=True, point={"size": 18, "filled": True})
    rule = (
        alt.Chart(alt.Data(values=[{"y": level}]))
        .mark_rule(strokeDash=[4, 3], color=MUTED)
        .encode(y="y:Q")
    )
    return _svg(alt.layer(lines, rule), 520, 300)

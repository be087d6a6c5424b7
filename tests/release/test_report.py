"""The report and the card: complete, true to metrics.json, offline, and well drawn."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from danlu.log import Metric
from danlu.release import charts
from danlu.release.words import figure, told
from pages import look_at, needs_browser


@pytest.fixture
def html(finished):
    return (finished / "report.html").read_text(encoding="utf-8")


def test_it_fetches_nothing(html):
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#|data:)""", html)
    assert not re.search(r"""url\(["']?(?!["']?#)""", html)
    assert "@import" not in html
    outside = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert all(url.startswith("http://www.w3.org/") for url in outside), outside


def test_it_shows_the_numbers_of_metrics_json(finished, html):
    rows = [Metric(**row) for row in json.loads((finished / "metrics.json").read_text())]
    for row in rows:
        if row.split == "test" and row.metric in ("accuracy", "roc_auc", "log_loss"):
            assert figure(row.value, row.unit) in html, row
            assert f"{figure(row.low, row.unit)} … {figure(row.high, row.unit)}" in html, row


def test_the_first_line_compares_with_the_baseline(finished, html):
    headline = re.search(r'id="headline">([^<]*)<', html)[1]
    assert headline.startswith("reviews: accuracy ")
    rows = {
        (r["model"], r["metric"]): r for r in json.loads((finished / "metrics.json").read_text())
    }
    difference = rows["reviews", "accuracy - tfidf-logreg"]
    if difference["high"] < 0:
        assert "IT IS WORSE THAN tfidf-logreg" in headline
    elif difference["low"] > 0:
        assert "it beats tfidf-logreg" in headline
    else:
        assert "NOT SHOWN TO BEAT tfidf-logreg" in headline


def test_text_from_the_data_is_escaped(tmp_path, small):
    import danlu

    path = tmp_path / "evil.csv"
    rows = [f"<script>alert({n})</script> w{n} x{n} y{n},{'ab'[n % 2]}" for n in range(120)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    recipe = tmp_path / "evil.toml"
    recipe.write_text(
        '[data]\ntask = "classify"\nlabel = "label"\nsources = [{ path = "evil.csv", '
        'licence = "<img src=x onerror=alert(1)>" }]\n'
        "[model]\ndepth = 1\nwidth = 32\nhead_dim = 16\n[tokenizer]\nvocab_size = 300\n"
        '[pretrain]\nobjective = "none"\n[evaluate]\nbootstrap = 100\n'
    )
    danlu.run(recipe, tmp_path / "run")
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "<img" not in html


def test_the_card_traces_every_number(finished):
    card = (finished / "card.md").read_text(encoding="utf-8")
    rows = json.loads((finished / "metrics.json").read_text())
    accuracy = next(
        r for r in rows
        if (r["model"], r["split"], r["metric"]) == ("reviews", "test", "accuracy")
    )  # fmt: skip
    assert figure(accuracy["value"], "share") in card
    for stage in ("data", "finetune", "evaluate"):
        key = next((finished / "stages").glob(f"{stage}-*")).name.rsplit("-", 1)[1]
        assert f"`{key}`" in card
    assert "{{" not in card
    assert "\n\n\n" not in card


def test_every_chart_is_well_formed_and_draws_its_data():
    svg = charts.funnel([{"step": "read", "rows": 10}, {"step": "kept", "rows": 7}])
    assert {"read", "kept", "10", "7"} <= {
        node.text for node in ET.fromstring(svg).iter() if node.text
    }
    matrix = charts.confusion([[5, 1], [2, 8]], ["no", "yes"])
    assert {"5", "1", "2", "8"} <= {node.text for node in ET.fromstring(matrix).iter() if node.text}
    for drawn in (
        charts.losses([{"step": 1, "loss": 2.0, "event": "step"}], "nats", "t"),
        charts.roc({"a": {"x": [[0, 1], [0, 1]]}}),
        charts.reliability({"a": [{"confidence": 0.7, "accuracy": 0.6, "n": 5}]}),
        charts.points([1.0, 2.0], [1.1, 1.9]),
        charts.compared([{"model": "a", "value": 0.5, "low": 0.4, "high": 0.6}], "m"),
    ):
        assert ET.fromstring(drawn).tag.endswith("svg")


def test_figures_read_as_people_write_them():
    assert figure(None) == "–"
    assert figure(0.5, "share") == "50.0%"
    assert figure(12.34, "seconds") == "12.3 s"
    assert figure(1234, "rows") == "1,234"
    assert told('{"a": 1, "b": null}', "table") == "a: 1 · b: –"
    assert told("{", "text") == "{"
    assert told("", "table") == ""


def test_a_chart_of_many_classes_names_the_models_alone():
    curves = {m: {str(n): [[0, 1], [0, 1]] for n in range(40)} for m in ("own", "logreg")}
    root = ET.fromstring(charts.roc(curves))
    assert float(root.attrib["width"]) < 500
    told = {node.text for node in root.iter() if node.text}
    assert {"own", "logreg"} <= told
    assert "17" not in told


def test_names_of_classes_that_would_touch_are_slanted():
    matrix = [[5, 1], [2, 8]]
    short, long = (
        charts.confusion(matrix, names) for names in (["no", "yes"], ["x" * 30, "y" * 9])
    )
    assert "rotate(320)" not in short
    assert "rotate(320)" in long


@pytest.mark.browser
@needs_browser
def test_it_opens_in_a_browser_offline_without_errors(finished):
    charts = ("funnel", "compared", "confusion", "roc", "reliability")
    look_at(finished / "report.html", charts, "reviews: accuracy")

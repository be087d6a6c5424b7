"""A report as a person opens it: in chromium, without a network, on a desk and on a telephone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
_WIDTHS = (1280, 390)
_SIDEWAYS = "document.documentElement.scrollWidth - window.innerWidth"
_DEAD = """() => [...document.querySelectorAll('nav a')]
  .filter(a => !document.querySelector(a.getAttribute('href'))).map(a => a.textContent)"""
_SQUEEZED = """() => [...document.querySelectorAll('td.text, td.shown')]
  .filter(cell => cell.getBoundingClientRect().width < 180).map(cell => cell.textContent)"""
_UNSEEN = """() => [...document.querySelectorAll('img')]
  .filter(i => !i.complete || !i.naturalWidth || i.getBoundingClientRect().right > innerWidth + 700)
  .map(i => i.alt)"""


def look_at(report: Path, charts: tuple[str, ...], headline: str = "") -> str:
    """Open a report at both widths, and return its text.

    Nothing may be asked of a network or go wrong, no page may scroll sideways, each chart must
    be large enough to read, each link of the menu must lead somewhere, and no cell of texts or
    pictures may be squeezed.
    """
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
        for width in _WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(report.as_uri())
            assert page.locator("#headline").inner_text().startswith(headline)
            for name in charts:
                box = page.locator(f"#chart-{name} svg").bounding_box()
                assert box["width"] > 100, (name, width)
                assert box["height"] > 60, (name, width)
                letters = page.locator(f"#chart-{name} svg text").first.bounding_box()
                assert letters["height"] > 5, (name, width, "too small to read")
            assert page.evaluate(_SIDEWAYS) <= 0, f"the page scrolls sideways at {width}"
            assert page.evaluate(_DEAD) == []
            assert page.evaluate(_SQUEEZED) == []
            assert page.evaluate(_UNSEEN) == []
        text: str = page.locator("main").inner_text()
        browser.close()
    assert problems == []
    return text

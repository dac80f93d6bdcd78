"""The report in a browser: nothing is asked for, every chart is drawn, the layout holds with any fonts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheap_audits import undrawn
from synthetic_audit import HOSTILE, SCRIPT, synthetic_audit

from crushproof.attacks.measurement import Picture
from crushproof.audit.report.html import render, to_html

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=FLAGS)
        yield started
        started.close()


@pytest.mark.browser
def test_in_a_browser(browser: Any, tmp_path: Path) -> None:
    """No console message, no policy violation, no request, every chart drawn, hostile names shown, phone and paper."""
    path = tmp_path / "report.html"
    render(synthetic_audit(renamed={"int8": SCRIPT, "int4": "x" * 300}, classes=[SCRIPT, *HOSTILE[1:]]), path)
    view = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("dialog", lambda dialog: said.append(dialog.message))
    view.on("request", lambda request: asked.append(request.url))
    view.goto(path.as_uri())
    for width in (1280, 768, 390):
        view.set_viewport_size({"width": width, "height": 900})
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        charts_drawn = view.evaluate(
            "[...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.checkVisibility(), i.width])"
        )
        assert len(charts_drawn) >= 16
        assert all(
            done and w > 0 and h > 0 and seen and 200 < shown <= width for done, w, h, seen, shown in charts_drawn
        )
    assert SCRIPT in view.locator("#ship").text_content()  # inner_text is empty where no font is installed
    view.goto(path.as_uri() + "#finding-20")  # inside two closed <details>: the browser opens them
    assert view.locator("#finding-20").is_visible()
    pdf = view.pdf(format="A4", prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 10
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) <= 2
    view.close()


# Boxes that stick out of the page (but for what scrolls by itself), text that sticks out of its box, text cut off.
ASTRAY = """() => {
  const page = document.documentElement.clientWidth, text = 'p, li, dt, dd, h1, h2, h3, td, th, figcaption, summary';
  const name = e => `${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`;
  const wider = e => e.scrollWidth > e.clientWidth + 2;
  const scrolls = e => e && (getComputedStyle(e).overflowX !== 'visible' || scrolls(e.parentElement));
  const seen = [...document.body.querySelectorAll('*')].filter(e => e.clientWidth > 0 && !e.closest('.cards thead'));
  return [
    ...seen.filter(e => e.getBoundingClientRect().right > page + 0.5 && !scrolls(e.parentElement)),
    ...seen.filter(e => wider(e) && (e.matches(text) || ['hidden', 'clip'].includes(getComputedStyle(e).overflowX))),
  ].map(name).concat(document.documentElement.scrollWidth > page ? ['the page'] : []);
}"""
WIDTH_OF = """families => families.map(family => {
  const pen = document.createElement('canvas').getContext('2d');
  pen.font = `16px "${family}"`;
  return pen.measureText('Robust accuracy 49.7 %, inconclusive').width;
})"""


def families() -> list[str]:
    """Every family of fonts that is installed."""
    if shutil.which("fc-list") is None:
        return []
    said = subprocess.run(["fc-list", ":", "family"], capture_output=True, text=True, check=True).stdout
    return sorted({name.strip() for line in said.replace("\\", "").splitlines() for name in line.split(",")})


def check_layout(view: Any, family: str, **widths: tuple[int, ...]) -> None:
    """Looks for what is astray on so many pixels, at the usual text size and at twice that."""
    for percent in (100, 200):
        chosen = f"* {{ font-family: {json.dumps(family)} !important }}" if family else ""
        view.add_style_tag(content=f"html {{ font-size: {percent}% }} {chosen}")
        for width in widths["usual" if percent == 100 else "twice"]:
            view.set_viewport_size({"width": width, "height": 200})  # a small picture: only boxes are looked at
            assert view.evaluate(ASTRAY) == [], f"{family} at {percent} % on {width} pixels"


@pytest.mark.browser
def test_the_layout_holds_with_any_fonts(browser: Any, tmp_path: Path) -> None:
    audit, pixels = synthetic_audit(), np.full((8, 8, 3), 90, np.uint8)
    evasion = [finding.id for finding in audit.findings if finding.risk == "evasion"][:2]
    seen = [Picture(at, "x" * 60, pixels, pixels, pixels, 10, 0.1, 0.5, 0.9) for at in range(5)]
    with undrawn():  # a chart's box is as large as the page says
        (tmp_path / "report.html").write_text(to_html(audit, pictures=dict.fromkeys(evasion, seen)))
    (tmp_path / "fonts.conf").write_text(f"<fontconfig><cachedir>{tmp_path}</cachedir></fontconfig>")
    address = (tmp_path / "report.html").as_uri()
    with browser.new_page() as view:
        view.goto(address)
        assert view.locator(".records img").count() == 2 * 5 * 3
        shown = view.evaluate("[...document.querySelectorAll('details[open] .triple img')].map(i => i.naturalWidth)")
        assert shown == [8] * 15, "the first model's are seen at once"
        view.evaluate("document.querySelectorAll('details.records').forEach(d => d.open = true)")
        widths = dict(zip(installed := families(), view.evaluate(WIDTH_OF, installed), strict=True))
        widest = max(widths, key=widths.__getitem__) if widths else ""  # narrower ones need less room
        check_layout(view, widest, usual=(390, 768), twice=(390, 1280))
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    nothing = {**os.environ, "FONTCONFIG_FILE": str(tmp_path / "fonts.conf")}
    bare = browser.browser_type.launch(executable_path=chromium, args=FLAGS, env=nothing)
    with bare.new_page() as view:
        view.goto(address)
        check_layout(view, "", usual=(768,), twice=(390,))
    bare.close()

"""The report looks right in a browser: on a screen and on a telephone, by day and by night."""

from __future__ import annotations

import html
import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from core.config import ROOT
from core.process import run
from serve.bench.record import load
from serve.bench.report import page
from tests.unit.benchsamples import record

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# what a reader sees at once: something beside the page, a plot without size, words cut off or on each other
LOOK = """<script>
const box = one => one.getBoundingClientRect();
const meets = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
const plots = [...document.querySelectorAll("svg")];
const told = plots.map(plot => {
  const own = box(plot), words = [...plot.querySelectorAll("text")].filter(word => word.textContent.trim());
  const boxes = words.map(box);
  const out = words.filter((_, n) => boxes[n].left < own.left - 1 || boxes[n].right > own.right + 1
    || boxes[n].top < own.top - 1 || boxes[n].bottom > own.bottom + 1);
  const met = words.filter((_, n) => boxes.some((other, m) => m < n && meets(boxes[n], other)));
  return {width: own.width, height: own.height, marks: plot.querySelectorAll(".bar, .line").length,
    out: out.map(word => word.textContent), met: met.map(word => word.textContent)};
});
const body = getComputedStyle(document.body);
const found = {title: document.title, width: innerWidth, page: document.documentElement.scrollWidth, plots: told,
  loaded: performance.getEntriesByType("resource").map(one => one.name), paper: body.backgroundColor, ink: body.color,
  night: matchMedia("(prefers-color-scheme: dark)").matches};
const said = document.createElement("pre");
said.id = "found"; said.textContent = JSON.stringify(found); document.body.append(said);
</script>"""


def seen(text: str, folder: Path, *, width: int = 1280, night: bool = False) -> dict[str, Any]:
    """Open a page in a headless browser; return what is to be seen of it."""
    place = folder / "page.html"
    place.write_text(text.replace("</body>", f"{LOOK}</body>"), encoding="utf-8")
    argv = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    argv += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},1000", "--virtual-time-budget=3000"]
    argv += [f"--blink-settings=preferredColorScheme={0 if night else 1}", f"--screenshot={folder / 'page.png'}"]
    done = run([*argv, "--dump-dom", place.as_uri()], timeout=120)
    (told,) = re.findall(r'<pre id="found">(.*?)</pre>', done.out, re.DOTALL)
    answer: dict[str, Any] = json.loads(html.unescape(told))
    return answer


@cache
def pages() -> dict[str, str]:
    measured = sorted((ROOT / "docs" / "results").glob("*.json"))
    return {
        "two-sparks": page(record()),
        "compared": page(record(), record(0.8)),
        **{path.stem: page(load(path)) for path in measured},
    }


needs_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian's package chromium)")
MODES: tuple[dict[str, Any], ...] = ({"night": True}, {"width": 500})
CASES = [(name, {}) for name in pages()] + [(name, mode) for name in ("two-sparks", "compared") for mode in MODES]


@pytest.mark.processes
@needs_a_browser
@pytest.mark.parametrize(("name", "mode"), CASES, ids=lambda value: value if isinstance(value, str) else str(value))
def test_a_report_fits_its_window_with_every_plot_and_word_in_its_place(
    name: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    found = seen(pages()[name], tmp_path, **mode)
    assert found["title"]
    assert found["loaded"] == []
    assert found["page"] <= found["width"]
    assert found["night"] is mode.get("night", False)
    assert found["paper"] != found["ink"]
    assert found["plots"]
    for plot in found["plots"]:
        assert min(plot["width"], plot["height"]) > 100
        assert plot["marks"]
        assert (plot["out"], plot["met"]) == ([], [])


@pytest.mark.processes
@needs_a_browser
def test_what_is_out_of_its_place_is_seen(tmp_path: Path) -> None:
    style = "<style>body { min-width: 2000px } svg text { font-size: 60px !important }</style>"
    found = seen(page(record()).replace("</head>", f"{style}</head>"), tmp_path)
    assert found["page"] > found["width"]
    assert any(plot["out"] for plot in found["plots"])
    assert any(plot["met"] for plot in found["plots"])

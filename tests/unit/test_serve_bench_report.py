"""The report is one file that needs nothing else, and shows what was measured."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from serve.bench import plots
from serve.bench.report import page
from tests.unit.benchsamples import record, sparks

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Balanced(HTMLParser):
    """Collects the tags that are opened and not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        """<line/> opens nothing."""


@pytest.fixture(scope="module")
def html() -> str:
    return page(record())


@pytest.mark.parametrize("other", [None, record(0.8)], ids=["alone", "compared"])
def test_its_tags_are_closed(other):
    parser = Balanced()
    parser.feed(page(record(), other))
    assert (parser.open, parser.wrong) == ([], [])


def test_it_loads_nothing(html):
    assert not re.search(r"(src|href)=|url\(|@import|<script|<link", html)


def test_the_guides_tables_are_there_with_their_figures(html):
    for text in ("66.55", "90.00", "199.64", "4,970.00", "394.71", "432.37", "115.37", "198.00", "493.55"):
        assert html.count(text) >= 1, text
    for text in ("152,160", "511,392", "30.5", "0–31", "32–63"):
        assert text in html, text


def test_the_ceilings_are_there(html):
    assert "at 273 GB/s (the maker&#39;s figure)" in html
    assert "one stream" in html


def test_plots_are_well_formed_and_of_all_kinds(html):
    found = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    titles = {str(ElementTree.fromstring(svg).get("aria-label")) for svg in found}
    assert titles == {
        "output throughput, tok/s",
        "peak throughput, tok/s",
        "mean TTFT, ms",
        "mean TPOT, ms",
        "KV cache in use, %",
        "requests in the engine",
        "memory in use, GiB",
        "GPU memory of processes, GiB",
    }


def test_what_a_file_says_is_escaped():
    text = page(record(title="<script>alert(1)</script>", fingerprint=sparks(profile="<b>")))
    assert "<script" not in text
    assert "<b>" not in text


def test_elsewhere_than_on_sparks_the_guides_figures_are_not_shown():
    nodes = tuple(node.model_copy(update={"gpus": ()}) for node in sparks().nodes)
    text = page(record(fingerprint=sparks(nodes=nodes)))
    assert "so the two are not held against each other" in text
    assert ">published<" not in text


def test_a_comparison_says_what_is_better_and_what_differs():
    text = page(record(1.2, fingerprint=sparks(executor="mp")), record())
    assert 'class="better">better' in text
    assert "<td>executor</td><td>ray</td><td>mp</td>" in text


@pytest.mark.parametrize(
    ("high", "marks"),
    [
        (0, (0, 1)),
        (1, (0, 0.25, 0.5, 0.75, 1)),
        (264, (0, 100, 200, 300)),
        (7, (0, 2, 4, 6, 8)),
        (float("nan"), (0, 1)),
    ],
)
def test_an_axis_has_round_numbers(high, marks):
    assert plots.ticks(high) == marks


def test_a_plot_of_nothing_is_nothing():
    assert plots.lines("t", "", []) == plots.bars("t", "", []) == ""
    assert plots.lines("t", "", [plots.Series("x", ())]) == ""

"""The static package index: what its pages say, as installers read them."""

from __future__ import annotations

import hashlib
import json
from html.parser import HTMLParser
from urllib.parse import urljoin

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.samples import wheel
from wheels.publishing.index import Offer, offer, pages
from wheels.publishing.simple import from_html, from_json

METADATA = b"Metadata-Version: 2.1\nName: a-b\nVersion: 1.0+cu130\nRequires-Python: >=3.10,<4\n\nText\n"
BASE = "https://host/wheels/simple/a-b/"


class Tags(HTMLParser):
    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.anchors: list[dict[str, str | None]] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.anchors.append(dict(attrs))


def an_offer(version: str = "1.0+cu130", filename: str = "") -> Offer:
    one = wheel("a-b", version)
    return offer(one.model_copy(update={"filename": filename or one.filename}), METADATA)


def test_a_page_in_html_says_where_the_wheel_lies_and_what_an_installer_wants_to_know() -> None:
    one = an_offer()
    (anchor,) = Tags(pages([one])["simple/a-b/index.html"]).anchors
    metadata = f"sha256={hashlib.sha256(METADATA).hexdigest()}"
    assert anchor == {
        "href": f"../../a_b-1.0%2Bcu130-py3-none-any.whl#sha256={one.sha256}",
        "data-requires-python": ">=3.10,<4",
        "data-core-metadata": metadata,
        "data-dist-info-metadata": metadata,
    }


def test_a_page_in_json_says_the_same_with_sizes_and_versions() -> None:
    page = json.loads(pages([an_offer()])["simple/a-b/index.json"])
    assert page["meta"] == {"api-version": "1.1"}
    assert (page["name"], page["versions"]) == ("a-b", ["1.0+cu130"])
    (file,) = page["files"]
    assert file["size"] == 1000
    assert file["requires-python"] == ">=3.10,<4"
    assert file["core-metadata"] == {"sha256": hashlib.sha256(METADATA).hexdigest()}


def test_both_pages_lead_to_the_same_file_with_the_same_hash() -> None:
    made = pages([an_offer()])
    html = from_html(made["simple/a-b/index.html"].decode(), BASE)
    data = from_json(json.loads(made["simple/a-b/index.json"]), BASE)
    assert html == data
    assert html[0].url == "https://host/wheels/a_b-1.0%2Bcu130-py3-none-any.whl"
    assert html[0].name == "a_b-1.0+cu130-py3-none-any.whl"


def test_the_root_names_every_project() -> None:
    made = pages([an_offer(), offer(wheel("zlib-ng"), METADATA)])
    assert [anchor["href"] for anchor in Tags(made["simple/index.html"]).anchors] == ["a-b/", "zlib-ng/"]
    root = json.loads(made["simple/index.json"])
    assert root == {"meta": {"api-version": "1.1"}, "projects": [{"name": "a-b"}, {"name": "zlib-ng"}]}


def test_versions_stand_in_their_order_not_in_that_of_their_letters() -> None:
    page = json.loads(pages(map(an_offer, ["1.10", "1.9", "1.9.post1"]))["simple/a-b/index.json"])
    assert page["versions"] == ["1.9", "1.9.post1", "1.10"]


def test_a_wheel_that_wants_no_python_says_nothing_of_it() -> None:
    made = pages([offer(wheel("a-b"), b"Metadata-Version: 2.1\nName: a-b\nVersion: 1.0\n")])
    assert b"requires-python" not in made["simple/a-b/index.html"] + made["simple/a-b/index.json"]


def test_the_order_in_which_wheels_come_makes_no_difference() -> None:
    some = [an_offer("1.0"), an_offer("2.0"), offer(wheel("c"), METADATA)]
    assert pages(some) == pages(reversed(some))


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: "/" not in text))
def test_whatever_a_file_is_called_its_name_stays_one_attribute_and_one_address(name: str) -> None:
    made = pages([an_offer(filename=f"{name}.whl")])["simple/a-b/index.html"]
    (anchor,) = Tags(made).anchors
    assert urljoin(BASE, str(anchor["href"])).startswith("https://host/wheels/")
    assert from_html(made.decode(), BASE)[0].name == f"{name}.whl"

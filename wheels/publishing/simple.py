"""What a package index on the web offers, asked through its simple API: pages in HTML (PEP 503) or JSON (PEP 691)."""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import httpx
from packaging.utils import canonicalize_name

ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.01"


@dataclass(frozen=True)
class Link:
    """A file that an index offers; ``sha256`` (hex) is empty where the index does not say it."""

    name: str
    url: str
    sha256: str


def read_index(web: httpx.Client, index: str, name: str) -> list[Link]:
    """Return what an index offers of a distribution; nothing where it does not know it.

    Raises httpx.HTTPError, httpx.InvalidURL, and ValueError for what is no index page.
    """
    answer = web.get(f"{index.rstrip('/')}/{canonicalize_name(name)}/", headers={"Accept": ACCEPT})
    if answer.status_code == httpx.codes.NOT_FOUND:
        return []
    answer.raise_for_status()
    return links_of(answer)


def links_of(answer: httpx.Response) -> list[Link]:
    """Return the files of an index page as it came. Raises ValueError for what is none."""
    base = str(answer.url)
    if answer.headers.get("Content-Type", "").partition(";")[0].strip().endswith("+json"):
        return from_json(answer.json(), base)
    return from_html(answer.text, base)


def from_json(page: Any, base: str) -> list[Link]:
    """Return the files of an index page in JSON. Raises ValueError when it is something else."""
    try:
        return [
            Link(str(file["filename"]), urljoin(base, str(file["url"])), str(file["hashes"].get("sha256", "")))
            for file in page["files"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an index page: {error}") from error


def from_html(page: str, base: str) -> list[Link]:
    """Return the files of an index page in HTML."""
    anchors = _Anchors()
    anchors.feed(page)
    origin = urljoin(base, anchors.base)
    links = (urldefrag(urljoin(origin, href)) for href in anchors.found)
    return [Link(_last(link.url), link.url, _sha256(link.fragment)) for link in links]


def _last(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2]


def _sha256(fragment: str) -> str:
    kind, _, value = fragment.partition("=")
    return value.lower() if kind == "sha256" else ""


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember where a link leads."""
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.found.append(href)
        elif tag == "base" and href:
            self.base = href

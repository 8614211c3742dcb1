"""A package index of plain files, for any web server: pages for people (PEP 503) and for programs (PEP 691).

Each wheel stands in it with its hash, its size and the Python that it wants (PEP 700); beside the wheel lies
`WHEEL.metadata`, so that an installer reads what a wheel requires without fetching it (PEP 658, PEP 714). All addresses
are relative: the folder works wherever it is served. A plain server chooses nothing by what is asked for, so HTML
answers at `simple/NAME/`, JSON at `simple/NAME/index.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from packaging.metadata import parse_email
from packaging.version import Version

from wheels.manifest import Wheel

VERSION = "1.1"
"""Of the simple repository API: 1.1 has sizes and the list of versions."""
METADATA = ".metadata"
PAGES = "simple/"


@dataclass(frozen=True)
class Offer:
    """One wheel as an index offers it: ``url`` relative to its page, ``size`` in bytes, hashes in hex."""

    name: str
    version: str
    filename: str
    url: str
    sha256: str
    size: int
    metadata_sha256: str
    requires_python: str = ""

    @property
    def order(self) -> tuple[Version, str]:
        """Oldest version first, as the file names go within one."""
        return Version(self.version), self.filename


def offer(wheel: Wheel, metadata: bytes, folder: str = "") -> Offer:
    """Return a wheel's entry; ``metadata`` is its METADATA, ``folder`` where it lies below the index ("RELEASE/")."""
    return Offer(
        name=wheel.name,
        version=wheel.version,
        filename=wheel.filename,
        url=f"../../{quote(folder + wheel.filename)}",
        sha256=wheel.sha256,
        size=wheel.size,
        metadata_sha256=hashlib.sha256(metadata).hexdigest(),
        requires_python=parse_email(metadata)[0].get("requires_python", ""),
    )


def pages(offers: Iterable[Offer]) -> dict[str, bytes]:
    """Return every page of an index of these wheels: path below the index to content, UTF-8."""
    by_name: dict[str, list[Offer]] = {}
    for one in sorted(offers, key=lambda one: (one.name, *one.order)):
        by_name.setdefault(one.name, []).append(one)
    made = {"index.html": _root_html(by_name), "index.json": _json({"projects": [{"name": name} for name in by_name]})}
    for name, listed in by_name.items():
        made[f"{name}/index.html"] = _html(f"Links for {name}", map(_anchor, listed))
        made[f"{name}/index.json"] = _json(_project(name, listed))
    return {f"{PAGES}{path}": page for path, page in made.items()}


def _root_html(names: Iterable[str]) -> bytes:
    return _html("Simple index", (f'<a href="{quote(name)}/">{escape(name)}</a>' for name in names))


def _html(title: str, anchors: Iterable[str]) -> bytes:
    lines = (f"    {anchor}<br>\n" for anchor in anchors)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n  <head>\n    <meta charset="utf-8">\n'
        f'    <meta name="pypi:repository-version" content="{VERSION}">\n'
        f"    <title>{escape(title)}</title>\n  </head>\n  <body>\n    <h1>{escape(title)}</h1>\n"
        f"{''.join(lines)}  </body>\n</html>\n"
    ).encode()


def _anchor(one: Offer) -> str:
    metadata = f"sha256={one.metadata_sha256}"
    attributes = {"href": f"{one.url}#sha256={one.sha256}"}
    if one.requires_python:
        attributes["data-requires-python"] = one.requires_python
    # the older of the two names is the one that older installers know
    attributes |= {"data-core-metadata": metadata, "data-dist-info-metadata": metadata}
    words = " ".join(f'{key}="{escape(value)}"' for key, value in attributes.items())
    return f"<a {words}>{escape(one.filename)}</a>"


def _project(name: str, listed: Iterable[Offer]) -> dict[str, Any]:
    files = [_file(one) for one in listed]
    versions = list(dict.fromkeys(one.version for one in listed))
    return {"name": name, "versions": versions, "files": files}


def _file(one: Offer) -> dict[str, Any]:
    return {
        "filename": one.filename,
        "url": one.url,
        "hashes": {"sha256": one.sha256},
        **({"requires-python": one.requires_python} if one.requires_python else {}),
        "size": one.size,
        "core-metadata": {"sha256": one.metadata_sha256},
    }


def _json(page: Mapping[str, Any]) -> bytes:
    return (json.dumps({"meta": {"api-version": VERSION}, **page}, indent=1, ensure_ascii=False) + "\n").encode()

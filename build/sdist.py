"""Source distributions by hash, from where pip is configured to look; nothing of them is run to find or fetch them.

`pip download` would run a source distribution's setup.py to learn what it depends on.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from packaging.requirements import Requirement
from packaging.utils import InvalidSdistFilename, canonicalize_name, parse_sdist_filename
from packaging.version import Version

from core.config import WORK
from core.download import client, fetched, public, without_secrets
from core.errors import BuildFailed
from core.plan import Report
from core.process import run
from core.store import intact
from wheels.publishing.simple import Link, read_index

DEFAULT = "https://pypi.org/simple"


@dataclass(frozen=True)
class Indexes:
    """Where pip is configured to look, in its order, and a file of certificates that it is told to trust."""

    urls: tuple[str, ...]
    cert: str | None = None


def fetch_sdist(requirement: str, sha256: str, report: Report, *, work: Path = WORK) -> Path:
    """Return the stored source distribution, fetched where it is not there; ``requirement`` is NAME==VERSION.

    Raises BuildFailed when no index has it, or has another file under its name.
    """
    found = intact(sha256, report, work=work)
    if found is not None:
        return found
    indexes = pip_indexes()
    link = _choose(requirement, sha256, indexes)
    report(f"fetch {link.name} from {urlsplit(link.url).hostname}")
    return fetched(link.url, sha256, link.name, report, work=work, cert=indexes.cert)


def pip_indexes() -> Indexes:
    """Ask pip for its configuration: files, then the section of `pip download`, then the environment."""
    listing = run([sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"], check=False).out
    settings = dict(_settings(listing))
    first = settings.get("index-url", DEFAULT)
    urls = [*first.split()[:1], *settings.get("extra-index-url", "").split()]
    # a folder given as file:// is for wheels that were put there by hand
    web = tuple(url for url in urls if urlsplit(url).scheme in {"http", "https"})
    return Indexes(web, settings.get("cert"))


def _settings(listing: str) -> Iterator[tuple[str, str]]:
    """Yield what pip's listing says, what counts more later."""
    for section in ("global.", "download.", ":env:."):
        for line in listing.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(section):
                with suppress(ValueError, SyntaxError):
                    yield key.removeprefix(section), str(ast.literal_eval(value))


def _choose(requirement: str, sha256: str, indexes: Indexes) -> Link:
    wanted = Requirement(requirement)
    version = Version(next(iter(wanted.specifier)).version)
    seen: list[Link] = []
    problems: list[str] = []
    with client(indexes.cert) as web:
        for index in indexes.urls:
            try:
                links = read_index(web, index, wanted.name)
            except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                problems.append(f"{public(index)}: {without_secrets(str(error)) or type(error).__name__}")
                continue
            seen += [link for link in links if _is_sdist(link.name, wanted.name, version)]
    for link in sorted(seen, key=lambda link: link.sha256 != sha256):
        if link.sha256 in {sha256, ""}:
            return link
    raise _not_offered(requirement, sha256, seen, indexes, problems)


def _is_sdist(file: str, name: str, version: Version) -> bool:
    try:
        return parse_sdist_filename(file) == (canonicalize_name(name), version)
    except InvalidSdistFilename:
        return False


def _not_offered(requirement: str, sha256: str, seen: list[Link], indexes: Indexes, problems: list[str]) -> BuildFailed:
    asked = ", ".join(public(url) for url in indexes.urls) or "no index at all (pip is configured so)"
    if seen:
        return BuildFailed(
            f"the source distribution of {requirement} at {asked} is not what the recipe names: "
            f"its sha256 is {seen[0].sha256}, pinned is {sha256}",
            next_move="find out why the file was replaced before you pin it",
        )
    return BuildFailed(
        f"no source distribution of {requirement} at {asked}",
        next_move="configure pip for an index that has it (PIP_INDEX_URL), or read a bundle on this host",
        evidence="\n".join(problems),
    )

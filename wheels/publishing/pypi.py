"""A package index that takes uploads as PyPI does: what it has is asked of its pages, twine sends the rest.

Name and password are twine's business: TWINE_USERNAME and TWINE_PASSWORD, ~/.pypirc, a keyring. They stand in no
argument and no line of ours.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from packaging.utils import parse_wheel_filename
from twine.exceptions import TwineException
from twine.utils import DEFAULT_CONFIG_FILE, get_config

from core.download import SILENCE, public, without_secrets
from core.errors import CommandFailed, PublishRefused, RegistryRefused, UsageError
from core.plan import Report, megabytes
from core.process import follow
from wheels.publishing.release import Part, Release
from wheels.publishing.simple import ACCEPT, Link, links_of

KNOWN = {
    "https://upload.pypi.org/legacy/": "https://pypi.org/simple/",
    "https://test.pypi.org/legacy/": "https://test.pypi.org/simple/",
}
"""Servers whose pages are not below the address that takes uploads."""
SHAPE = "write index:URL, index:URL,URL-OF-SIMPLE, or index:NAME for a section of ~/.pypirc"
MOST_REDIRECTS = 5
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
"""What makes twine write plain lines, each as it comes."""
WAIT = 4 * 3600
"""Seconds that uploading may take altogether."""


@dataclass(frozen=True)
class PackageIndex:
    """A server: where it takes uploads, where its pages are; ``section`` is its name in ~/.pypirc, where it has one."""

    upload: str
    simple: str
    section: str = ""

    @property
    def address(self) -> str:
        """How it is written and shown."""
        return f"index:{self.section or self.upload}"

    def pending(self, release: Release) -> list[str]:
        """Say which wheels are not there. Raises PublishRefused when one is there with other bytes; RegistryRefused."""
        missing = self._missing(release)
        return [f"{part.name}, {megabytes(part.size)}" for part in missing]

    def send(self, release: Release, folder: Path, report: Report) -> None:
        """Upload what is not there. Raises PublishRefused and RegistryRefused."""
        missing = self._missing(release)
        if not missing:
            return
        where = ("--repository", self.section) if self.section else ("--repository-url", self.upload)
        flags = ("--non-interactive", "--disable-progress-bar")
        files = [str(folder / part.name) for part in missing]
        try:
            follow([sys.executable, "-m", "twine", "upload", *flags, *where, *files], report, env=PLAIN, timeout=WAIT)
        except CommandFailed as error:
            raise RegistryRefused(
                f"{self.address} did not take all of {len(missing)} wheels",
                next_move="read what twine says; set TWINE_USERNAME and TWINE_PASSWORD or write ~/.pypirc if it wants "
                "a password; the same command goes on with what is missing",
                evidence=without_secrets(error.evidence),
            ) from error

    def _missing(self, release: Release) -> list[Part]:
        with httpx.Client(timeout=SILENCE, headers={"User-Agent": "sparkstack"}) as web:
            return [part for part in release.wheels if not self._has(web, part)]

    def _has(self, web: httpx.Client, part: Part) -> bool:
        """Say whether the wheel is there. Raises PublishRefused when it is another one."""
        for link in self._offered(web, part):
            if link.name == part.name:
                found = link.sha256 or self._sha256(web, link)
                if found != part.sha256:
                    raise self._other(part, found)
                return True
        return False

    def _other(self, part: Part, found: str) -> PublishRefused:
        return PublishRefused(
            f"{self.address} has another {part.name}: its sha256 is {found}, ours {part.sha256}",
            next_move="an index never changes a file: give the wheel another version (a build tag or local version)",
        )

    def _offered(self, web: httpx.Client, part: Part) -> list[Link]:
        page = f"{self.simple}{parse_wheel_filename(part.name)[0]}/"
        with _explained(page):
            answer = web.get(page, headers={"Accept": ACCEPT}, auth=self._auth(page))
            for _ in range(MOST_REDIRECTS):
                following = answer.next_request
                if following is None or _origin(str(following.url)) != _origin(page):
                    break
                answer = web.send(following)
            # what a server does not have may be another's: it answers with the way there
            if answer.is_redirect or answer.status_code == httpx.codes.NOT_FOUND:
                return []
            answer.raise_for_status()
            return links_of(answer)

    def _sha256(self, web: httpx.Client, link: Link) -> str:
        """Return the hash of a file whose page does not say it: fetch it."""
        found = hashlib.sha256()
        with (
            _explained(link.url),
            web.stream("GET", link.url, auth=self._auth(link.url), follow_redirects=True) as answer,
        ):
            answer.raise_for_status()
            for block in answer.iter_bytes():
                found.update(block)
        return found.hexdigest()

    def _auth(self, url: str) -> httpx.BasicAuth | None:
        """Return what twine would log in with, for this server alone."""
        known = _pypirc().get(self.section, {})
        user = os.environ.get("TWINE_USERNAME") or known.get("username")
        password = os.environ.get("TWINE_PASSWORD") or known.get("password")
        ours = _origin(url) == _origin(self.upload)
        return httpx.BasicAuth(user, password) if user and password and ours else None


def package_index(text: str) -> PackageIndex:
    """Return the destination `index:URL[,URL-OF-SIMPLE]` or `index:NAME`. Raises UsageError for another text."""
    first, _, simple = text.partition(",")
    if "://" not in first:
        section, upload = first, (_pypirc().get(first) or {}).get("repository") or ""
        if not upload:
            raise UsageError(f"index:{public(first)} is no URL and no section of ~/.pypirc", next_move=SHAPE)
    else:
        section, upload = "", first
    for url in (upload, *([simple] if simple else [])):
        _require_plain(url)
    pages = simple or KNOWN.get(f"{upload.rstrip('/')}/") or f"{upload.rstrip('/')}/simple/"
    return PackageIndex(upload, f"{pages.rstrip('/')}/", section)


def _require_plain(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"index:{public(url)} is not an http(s) URL", next_move=SHAPE)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"the URL of {public(url)} holds a password, or more than an address",
            next_move="set TWINE_USERNAME and TWINE_PASSWORD, or name a section of ~/.pypirc",
        )


def _pypirc() -> dict[str, dict[str, str | None]]:
    """Return the sections of ~/.pypirc as twine reads them."""
    try:
        return get_config(DEFAULT_CONFIG_FILE)
    except (OSError, TwineException, configparser.Error):
        raise UsageError("~/.pypirc cannot be read", next_move="correct it") from None  # its lines may hold passwords


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"https": 443, "http": 80}.get(parts.scheme)


@contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        said = without_secrets(str(error)).partition("\n")[0] or type(error).__name__
        raise RegistryRefused(
            f"{public(url)} does not say what is there: {said}",
            next_move="look at address and network, and at TWINE_USERNAME and TWINE_PASSWORD if it wants them",
        ) from error

"""A release as a release of a GitHub repository, through its REST API: a draft until every file is there.

GitHub has no folders, so the files stand beside each other; index pages and `.metadata` would be of no use there and
stay away. GITHUB_TOKEN or GH_TOKEN lets us in, GITHUB_API_URL names another server (https://HOST/api/v3).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from core.download import SILENCE, public, without_secrets
from core.errors import PublishRefused, RegistryRefused, UsageError
from core.plan import Report, megabytes
from core.store import BLOCK, Slowly
from wheels.images.patience import BUSY, Patience
from wheels.images.reference import is_loopback
from wheels.manifest import Manifest
from wheels.publishing.index import METADATA, PAGES
from wheels.publishing.release import Part, Release

API = "https://api.github.com"
VERSION = "2022-11-28"
LARGEST = 2 * 1024**3
"""Bytes that a file must stay under."""
MOST_FILES = 1000
A_PAGE = 100
_REPOSITORY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,38})/[A-Za-z0-9._-]{1,100}")
_KEPT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._+-]*[A-Za-z0-9_])?")
"""Names that GitHub does not change: it puts full stops for other characters."""


class _Asset(BaseModel):
    id: int
    name: str
    state: str
    size: int
    digest: str | None = None


class _Found(BaseModel):
    id: int
    tag_name: str
    draft: bool
    upload_url: str


M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class GitHub:
    """A repository, "OWNER/REPOSITORY"."""

    repository: str

    @property
    def address(self) -> str:
        """How it is written and shown."""
        return f"github:{self.repository}"

    def pending(self, release: Release) -> list[str]:
        """Say what is still to do. Raises PublishRefused for another file under a name of ours; RegistryRefused."""
        parts = self._parts(release)
        with _Api(self.repository, _silent) as api:
            found = api.find(release.name)
            if found is None:
                return [f"{release.name}: {len(parts)} files, {megabytes(sum(part.size for part in parts))}"]
            missing = self._missing(api, found, parts)
        draft = [f"{release.name} is a draft until all is there"] if found.draft else []
        return [*(f"{part.last}, {megabytes(part.size)}" for part in missing), *draft]

    def send(self, release: Release, folder: Path, report: Report) -> None:
        """Make a draft, send what is missing, look again, publish. Raises PublishRefused and RegistryRefused."""
        parts = self._parts(release)
        with _Api(self.repository, report) as api:
            api.require_token()
            found = api.find(release.name) or api.create(release)
            missing = self._missing(api, found, parts)
            api.clear(found, *(part.last for part in missing))
            for part in missing:
                api.upload(found, part, folder / part.name)
            left = self._missing(api, found, parts)
            if left:
                raise RegistryRefused(f"{self.address} lost {left[0].last}", next_move="run the same command again")
            if found.draft:
                api.publish(found)
                report(f"{self.address}: {release.name} is published")

    def _parts(self, release: Release) -> list[Part]:
        """Return what is sent. Raises PublishRefused for what GitHub does not take."""
        files = release.files
        parts = [part for part in files if not part.name.startswith(PAGES) and not part.name.endswith(METADATA)]
        for part in parts:
            if part.size >= LARGEST:
                raise _unfit(f"{part.last} has {megabytes(part.size)}, a file of a GitHub release less than 2 GiB")
            if not _KEPT.fullmatch(part.last):
                raise _unfit(f"GitHub would give {part.last} another name")
        if len(parts) > MOST_FILES:
            raise _unfit(f"it has {len(parts)} files, a GitHub release {MOST_FILES} at most")
        return parts

    def _missing(self, api: _Api, found: _Found, parts: list[Part]) -> list[Part]:
        """Return what is not there whole. Raises PublishRefused when something is there with other bytes."""
        there = {asset.name: asset for asset in api.assets(found) if asset.state == "uploaded"}
        for part in parts:
            asset = there.get(part.last)
            digest = api.digest(asset) if asset else None
            if asset and (asset.size, digest) != (part.size, f"sha256:{part.sha256}"):
                raise PublishRefused(
                    f"{self.address} has another {part.last} in {found.tag_name}: {asset.size} bytes, {digest}; "
                    f"ours has {part.size} bytes, sha256:{part.sha256}",
                    next_move="a release is never changed: delete that file there if nobody has it, else make another",
                )
        return [part for part in parts if part.last not in there]


def github(text: str) -> GitHub:
    """Return the destination `github:OWNER/REPOSITORY`. Raises UsageError for another text."""
    if not _REPOSITORY.fullmatch(text):
        raise UsageError(f"github:{text[:200]} names no repository", next_move="write github:OWNER/REPOSITORY")
    return GitHub(text)


def notes(manifest: Manifest) -> str:
    """Return the text that stands on the page of a release."""
    return (
        f"{len(manifest.wheels)} wheels of the stack {manifest.stack} for {manifest.target.in_words}.\n\n"
        "`SHA256SUMS` holds the hash of every file (`sha256sum -c --ignore-missing SHA256SUMS`), `stack.lock` installs "
        "exactly these wheels (`pip install --no-deps --require-hashes --no-index --find-links . -r stack.lock`).\n"
    )


class _Api:
    """One session with the API, for one repository."""

    def __init__(self, repository: str, report: Report) -> None:
        self._report = report
        self.base = _base()
        self.path = f"{self.base}/repos/{repository}"
        self.repository = repository
        self.token = os.environ.get("GITHUB_TOKEN") or os.environ.get("GH_TOKEN") or ""
        self._web = httpx.Client(timeout=SILENCE, headers={"User-Agent": "sparkstack"}, follow_redirects=False)

    def __enter__(self) -> _Api:
        return self

    def __exit__(self, *_: object) -> None:
        self._web.close()

    def require_token(self) -> None:
        """Raise RegistryRefused without a token."""
        if not self.token:
            raise RegistryRefused(
                f"GitHub takes nothing for {self.repository} without a token",
                next_move="set GITHUB_TOKEN to one with the right to write contents of that repository",
            )

    def find(self, tag: str) -> _Found | None:
        """Return the release of a tag, published or, for those who may write, a draft."""
        answer = self.ask("GET", f"{self.path}/releases/tags/{tag}", accept=(200, 404))
        if answer.status_code == 200:
            return _read(_Found, answer.content)
        drafts = (_read(_Found, one) for one in self._listed(f"{self.path}/releases")) if self.token else iter(())
        return next((one for one in drafts if one.tag_name == tag), None)

    def create(self, release: Release) -> _Found:
        """Make a draft."""
        wanted = {"tag_name": release.name, "name": release.name, "body": notes(release.manifest), "draft": True}
        return _read(_Found, self.ask("POST", f"{self.path}/releases", body=wanted, accept=(201,)).content)

    def publish(self, found: _Found) -> None:
        """Make a draft a release."""
        self.ask("PATCH", f"{self.path}/releases/{found.id}", body={"draft": False})

    def assets(self, found: _Found) -> list[_Asset]:
        """Return the files of a release, those too whose upload broke off."""
        return [_read(_Asset, one) for one in self._listed(f"{self.path}/releases/{found.id}/assets")]

    def digest(self, asset: _Asset) -> str:
        """Return "sha256:HEX" of a file, fetched for that where GitHub does not say it (files from before 2025)."""
        if asset.digest:
            return asset.digest
        url, found = f"{self.path}/releases/assets/{asset.id}", hashlib.sha256()
        headers = {**self._headers(), "Accept": "application/octet-stream"}
        with self._explained(), self._web.stream("GET", url, headers=headers, follow_redirects=True) as answer:
            answer.raise_for_status()  # httpx sends Authorization to no other host
            for block in answer.iter_bytes():
                found.update(block)
        return f"sha256:{found.hexdigest()}"

    def upload(self, found: _Found, part: Part, path: Path) -> None:
        """Send a file and compare the answer. Raises RegistryRefused."""
        url = httpx.URL(self._upload_url(found), params={"name": part.last})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(part.size)}
        patience = Patience(url.host, self._report)
        while True:
            try:
                answer = self._sent("POST", str(url), headers, content=_blocks(path, part, Slowly(self._report)))
            except httpx.TransportError as error:
                patience.after_break(without_secrets(str(error)) or type(error).__name__)
            else:
                if answer.status_code == 201:
                    self._require_same(_read(_Asset, answer.content), part)
                    return
                if answer.status_code not in BUSY:
                    raise self._refused(answer)
                patience.after_busy(answer.status_code, answer.headers)
            if self._arrived(found, part):
                return

    def _require_same(self, asset: _Asset, part: Part) -> None:
        wanted = (part.last, part.size, f"sha256:{part.sha256}")
        if (asset.name, asset.size, asset.digest or wanted[2]) != wanted:
            raise RegistryRefused(
                f"GitHub took {part.last} as {asset.name}, {asset.size} bytes, {asset.digest}",
                next_move="delete that file there, run the same command again",
            )

    def _arrived(self, found: _Found, part: Part) -> bool:
        """Say whether a file is there, its answer lost; what else is there of it is removed."""
        self.clear(found, part.last)
        there = [asset for asset in self.assets(found) if asset.name == part.last]
        for asset in there:
            self._require_same(asset, part)
        return bool(there)

    def clear(self, found: _Found, *names: str) -> None:
        """Remove what uploads of these files left that broke off: GitHub takes no second file of the name."""
        for asset in self.assets(found):
            if asset.name in names and asset.state != "uploaded":
                self.ask("DELETE", f"{self.path}/releases/assets/{asset.id}", accept=(204, 404))

    def _upload_url(self, found: _Found) -> str:
        """Return where files go. Raises RegistryRefused for a server that our token is not for."""
        url = found.upload_url.partition("{")[0]
        there, home = urlsplit(url), urlsplit(self.base)
        hosts = {home.netloc, re.sub(r"^api\.", "uploads.", home.netloc)}
        if there.scheme != home.scheme or there.netloc not in hosts:
            raise RegistryRefused(
                f"GitHub sends us to {public(url)}, which is not its own", next_move="look at GITHUB_API_URL"
            )
        return url

    def _listed(self, url: str) -> Iterator[Any]:
        """Yield all that a listing has, page by page."""
        for page in range(1, 101):
            answer = self.ask("GET", f"{url}?per_page={A_PAGE}&page={page}")
            items = _json(answer.content)
            if not isinstance(items, list):
                raise _strange("no list")
            yield from items
            if len(items) < A_PAGE:
                return

    def ask(self, method: str, url: str, body: Any = None, accept: Collection[int] = (200,)) -> httpx.Response:
        """Ask, again while the server is busy, and return the answer. Raises RegistryRefused."""
        patience = Patience(urlsplit(self.base).hostname or "", self._report)
        while True:
            with self._explained():
                answer = self._sent(method, url, {}, json=body)
            if answer.status_code in accept:
                return answer
            limited = answer.status_code == 403 and "Retry-After" in answer.headers
            if answer.status_code not in BUSY and not limited:
                raise self._refused(answer)
            patience.after_busy(answer.status_code, answer.headers)

    def _sent(self, method: str, url: str, headers: dict[str, str], **body: Any) -> httpx.Response:
        return self._web.request(method, url, headers={**self._headers(), **headers}, **body)

    def _headers(self) -> dict[str, str]:
        token = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {"Accept": "application/vnd.github+json", "X-GitHub-Api-Version": VERSION, **token}

    def _refused(self, answer: httpx.Response) -> RegistryRefused:
        next_move = "run the same command again later"
        if answer.status_code in {401, 403, 404}:
            next_move = "look at the repository's name and at GITHUB_TOKEN: it needs the right to write contents"
        if answer.headers.get("X-RateLimit-Remaining") == "0":
            next_move = "wait until GitHub's limit of requests is over, run the same command again"
        what = f"{answer.request.method} {answer.request.url.path}"
        said = answer.text[:500].replace(self.token, "…") if self.token else answer.text[:500]
        return RegistryRefused(f"GitHub answered {answer.status_code} to {what}", next_move=next_move, evidence=said)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise RegistryRefused(
                f"GitHub cannot be asked: {without_secrets(str(error)) or type(error).__name__}",
                next_move="look at network and proxy, run the same command again",
            ) from error


def _base() -> str:
    """Return the API's address. Raises UsageError for one that a token must not be sent to."""
    base = os.environ.get("GITHUB_API_URL", "").rstrip("/") or API
    parts = urlsplit(base)
    if (
        not parts.hostname
        or "@" in parts.netloc
        or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname)))
    ):
        raise UsageError(f"GITHUB_API_URL {public(base)} is no https address", next_move=f"unset it, or write {API}")
    return base


def _blocks(path: Path, part: Part, say: Slowly) -> Iterator[bytes]:
    sent = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            sent += len(block)
            yield block
            say(f"{part.last}: {megabytes(sent)} of {megabytes(part.size)} sent")


def _read(model: type[M], data: object) -> M:
    try:
        return model.model_validate_json(data) if isinstance(data, bytes) else model.model_validate(data)
    except ValidationError as error:
        raise _strange(error.errors(include_url=False, include_input=False)[0]["msg"]) from error


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise _strange("no JSON") from error


def _strange(what: str) -> RegistryRefused:
    return RegistryRefused(f"GitHub's answer cannot be read: {what}", next_move="look at GITHUB_API_URL")


def _unfit(why: str) -> PublishRefused:
    return PublishRefused(f"{why}", next_move="publish to an index, a registry or a folder instead")


def _silent(_: str, /) -> None:
    """Say nothing while looking."""

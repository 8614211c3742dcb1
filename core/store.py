"""Files by their SHA-256 in `.work/files/SHA256/NAME`: fetched once, and their hash checked at every use.

A file that is being fetched is `.NAME.part` beside it; an interrupted download goes on where it stopped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx

from core.config import WORK, shown
from core.errors import BuildFailed, HostNotReady
from core.plan import Report, megabytes

LARGEST = 64 * 1024**3
"""Bytes at which a download is no source any more."""
BLOCK = 1024**2
SILENCE = 60
"""Seconds without a byte after which a server counts as gone."""
BETWEEN_LINES = 2.0
"""Seconds between two lines of progress."""


def intact(sha256: str, report: Report, *, work: Path = WORK) -> Path | None:
    """Return the stored file with that hash, hashed again now; a damaged one is removed, and None returned."""
    for path in _stored(sha256, work):
        if digest(path) == sha256:
            return path
        path.unlink()
        report(f"{shown(path)} is damaged: its hash is not the one that it is kept under; removed")
    return None


def has_file(sha256: str, *, work: Path = WORK) -> bool:
    """Say whether the file is in the store, without looking into it."""
    return bool(_stored(sha256, work))


def has_size(path: Path, size: int) -> bool:
    """Say whether a file is there and has so many bytes."""
    return path.is_file() and path.stat().st_size == size


def _stored(sha256: str, work: Path) -> list[Path]:
    folder = work / "files" / sha256
    return sorted(path for path in folder.glob("*") if not path.name.startswith("."))


def digest(path: Path) -> str:
    """Return a file's SHA-256 (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetched(url: str, sha256: str, name: str, report: Report, *, work: Path = WORK, cert: str | None = None) -> Path:
    """Return the stored file, fetched from ``url`` where it is not there; the URL does not matter, the hash does.

    ``cert`` is a file of certificates to trust. Raises BuildFailed when it cannot be had or is another file.
    """
    plain_name(name)
    folder = work / "files" / sha256
    with held(folder / ".lock", f"fetches {name}", report), full_disk_is_said(folder):
        found = intact(sha256, report, work=work)
        if found is None:
            found = _fetch(url, sha256, folder / name, report, cert)
    return found


def plain_name(name: str) -> str:
    """Return a file name that is one; raise BuildFailed for one that leads elsewhere."""
    if not name or name != PurePosixPath(name).name or name.startswith(".") or not name.isprintable():
        raise BuildFailed(f"{name!r} is no plain file name", next_move="do not use that file; look where it comes from")
    return name


def _fetch(url: str, sha256: str, target: Path, report: Report, cert: str | None) -> Path:
    part = target.with_name(f".{target.name}.part")
    resumed = part.exists()
    found = _download(url, part, report, cert)
    if found != sha256 and resumed:
        report(f"what an earlier run left of {target.name} does not fit; it is fetched from the beginning")
        part.unlink()
        found = _download(url, part, report, cert)
    if found != sha256:
        part.unlink()
        raise BuildFailed(
            f"{target.name} from {public(url)} is not what the recipe names: its sha256 is {found}, pinned is {sha256}",
            next_move="run the same command again; if it stays, the file was replaced: find out why before you pin it",
        )
    return settled(part, target)


def settled(part: Path, target: Path) -> Path:
    """Give a finished file its name, once its bytes are on the disk."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    return part.replace(target)


def _download(url: str, part: Path, report: Report, cert: str | None) -> str:
    """Write the file, or what is missing of it, and return the SHA-256 of the whole."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise BuildFailed(f"{public(url)} is not an http(s) URL", next_move="correct the URL in the recipe")
    try:
        with client(cert) as web:
            return _stream(web, url, part, report)
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
        raise BuildFailed(
            f"{public(url)} cannot be fetched: {without_secrets(str(error)) or type(error).__name__}",
            next_move=f"look at network and proxy, run the same command again: it goes on from {_so_far(part)}",
        ) from error


def client(cert: str | None = None) -> httpx.Client:
    """Return an HTTP client that follows redirects and honours the proxy variables."""
    trusted = ssl.create_default_context(cafile=cert) if cert else True
    return httpx.Client(follow_redirects=True, timeout=SILENCE, verify=trusted)


def _stream(web: httpx.Client, url: str, part: Path, report: Report) -> str:
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with web.stream("GET", url, headers=headers) as answer:
        if answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return digest(part)  # nothing is missing; the hash decides
        answer.raise_for_status()
        goes_on = answer.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        known = start if answer.status_code == httpx.codes.PARTIAL_CONTENT and goes_on else 0
        return _write(answer, part, known, report)


def _write(answer: httpx.Response, part: Path, known: int, report: Report) -> str:
    """Append the answer to the first ``known`` bytes of the part."""
    whole = known + int(answer.headers.get("Content-Length", 0))
    total = hashlib.sha256()
    say = Slowly(report)
    with part.open("r+b" if part.exists() else "xb") as file:
        while file.tell() < known and (block := file.read(min(BLOCK, known - file.tell()))):
            total.update(block)
        file.truncate()
        for block in answer.iter_raw():
            file.write(block)
            total.update(block)
            say(f"{part.name[1:-5]}: {megabytes(file.tell())} of {megabytes(whole) if whole > known else '?'}")
            _refuse_endless(file.tell(), answer)
    return total.hexdigest()


def _refuse_endless(size: int, answer: httpx.Response) -> None:
    if size > LARGEST:
        raise BuildFailed(f"{public(str(answer.url))} does not end", next_move="look at what that server gives")


def _so_far(part: Path) -> str:
    return megabytes(part.stat().st_size) if part.exists() else "the beginning"


def public(url: str) -> str:
    """Return a URL as it may be shown: without user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def without_secrets(text: str) -> str:
    """Return a library's message without the users and queries of its URLs: those hold passwords and signatures."""
    return re.sub(r"(?<=//)[^\s/@]*@|\?[^\s'\"]*", "", text)


class Slowly:
    """Passes lines of progress on, one every two seconds."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        """Take a line."""
        now = time.monotonic()
        if now - self._last >= BETWEEN_LINES:
            self._last = now
            self._report(line)


@contextmanager
def held(path: Path, what: str, report: Report) -> Iterator[None]:
    """Hold a lock file; where another command holds it, say so and wait. The kernel frees it however we end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"another command {what}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def full_disk_is_said(place: Path) -> Iterator[None]:
    """Turn "no space left" within the block into an error that says whose disk and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise full_disk(place) from error
        raise


def full_disk(place: Path) -> HostNotReady:
    """Return the error for a disk without space."""
    return HostNotReady(
        f"the disk of {shown(place)} is full",
        next_move="free space (`.work/` may be removed, it is fetched again), run the same command again",
    )

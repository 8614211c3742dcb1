"""Files from the web into the store (core/store.py): fetched once, and only what hashes to what was expected.

A file that is being fetched is `.NAME.part` beside it; an interrupted download goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from core.config import WORK
from core.errors import BuildFailed
from core.plan import Report, megabytes
from core.store import BLOCK, Slowly, digest, full_disk_is_said, held, intact, plain_name, settled

LARGEST = 64 * 1024**3
"""Bytes at which a download is no source any more."""
SILENCE = 60
"""Seconds without a byte after which a server counts as gone."""


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

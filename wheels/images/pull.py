"""An image in a registry: its documents verified, its blobs read from the network while they are kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx

from core.config import WORK
from core.errors import RegistryRefused
from core.plan import Report, megabytes
from core.store import BLOCK, Slowly
from wheels.images.blobstore import Growing, Kept, kept
from wheels.images.documents import (
    INDEXES,
    LARGEST_DOCUMENT,
    MANIFESTS,
    Blobs,
    Descriptor,
    Document,
    Image,
    check_digest,
    refused,
    resolve,
)
from wheels.images.reference import Reference
from wheels.images.registry import Answer, Registry, explained

ACCEPT = ", ".join((*INDEXES, *MANIFESTS))
ENOUGH = 1024**2
"""Bytes that a connection must have brought to count as progress."""
_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)")


@contextmanager
def open_repository(reference: Reference, report: Report, *, work: Path = WORK) -> Iterator[Blobs]:
    """Give the image that a reference names; what is fetched is kept below ``work``."""
    with Registry(reference.host, reference.repository, report) as registry:
        yield Repository(registry, reference, report, work)


class Repository:
    """Blobs of one image. Nothing that is kept already is asked for again, a pinned image needs no network then."""

    def __init__(self, registry: Registry, reference: Reference, report: Report, work: Path) -> None:
        self._registry = registry
        self._reference = reference
        self._report = report
        self._work = work

    def image(self, platform: str) -> Image:
        """Return the image for a platform, every document verified by its digest."""
        top = self._top()
        pinned = self._reference.pinned(top.descriptor.digest)
        return resolve(self, top, platform, str(self._reference), pinned)

    def document(self, wanted: Descriptor) -> bytes:
        """Return an index, manifest or configuration by its digest."""
        if wanted.size > LARGEST_DOCUMENT:
            raise refused(f"its document {wanted.short} has {megabytes(wanted.size)}")
        found = self._kept_document(wanted.digest)
        if found is None:
            is_manifest = wanted.media_type in (*INDEXES, *MANIFESTS)
            answer = self._asked(f"{'manifests' if is_manifest else 'blobs'}/{wanted.digest}")
            found = self._keep(answer.body, wanted.digest)
        if len(found) != wanted.size:
            raise refused(f"it gives {wanted.short} a size of {wanted.size} bytes; it has {len(found)}")
        return found

    def read(self, blob: Descriptor, report: Report) -> Generator[bytes, None, None]:
        """Yield a blob: from the disk, or from the network from where an earlier command stopped.

        Another command that reads it is waited for. Stopped early, the next one goes on from there.
        """
        place = kept(blob, self._work)
        with place.locked(report):
            if not place.intact(blob.size, report):
                yield from self._fetch(place, blob, report)
                return
            file = place.whole.open("rb")
        with file:
            yield from iter(lambda: file.read(BLOCK), b"")

    def _top(self) -> Document:
        """Return what the reference names: by its digest where it has one, by its tag otherwise."""
        digest = self._reference.digest
        data = self._kept_document(digest) if digest else None
        if data is not None:
            return Document(Descriptor("", digest, len(data)), data)
        answer = self._asked(f"manifests/{digest or self._reference.tag}")
        said = answer.headers.get("Docker-Content-Digest", "")
        found = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
        if not digest and said.startswith("sha256:") and said != found:
            raise self._not_the_one("what it gives for that tag", said, found)
        self._keep(answer.body, digest or found)
        return Document(Descriptor(_promised(answer), digest or found, len(answer.body)), answer.body)

    def _asked(self, path: str) -> Answer:
        return self._registry.request("GET", path, headers={"Accept": ACCEPT})

    def _kept_document(self, digest: str) -> bytes | None:
        """Return a document that an earlier command kept, if it still is that one."""
        path = kept(Descriptor("", check_digest(digest), 0), self._work).whole
        if not path.is_file() or path.stat().st_size > LARGEST_DOCUMENT:
            return None
        data = path.read_bytes()
        return data if f"sha256:{hashlib.sha256(data).hexdigest()}" == digest else None

    def _keep(self, data: bytes, digest: str) -> bytes:
        """Keep a document that came for a digest. Raises RegistryRefused when it is another one."""
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != digest:
            raise self._not_the_one("a document", digest, found)
        place = kept(Descriptor("", digest, len(data)), self._work)
        with place.locked(self._report):
            place.part.write_bytes(data)
            place.settle()
        return data

    def _not_the_one(self, what: str, wanted: str, found: str) -> RegistryRefused:
        return RegistryRefused(
            f"{what} of {self._registry.name} is not what it should be: its digest is {found}, asked for was {wanted}",
            next_move="run the same command again; if it stays, something changes what that registry gives",
        )

    def _fetch(self, place: Kept, blob: Descriptor, report: Report) -> Iterator[bytes]:
        """Yield what is there, then what is missing, and give it its name if it is the blob; else remove it."""
        with Growing(place) as part:
            yield from part.earlier(blob.size)
            if part.size:
                report(f"{blob.short}: going on from {megabytes(part.size)} of {megabytes(blob.size)}")
            yield from self._missing(part, blob, report)
            found = part.digest()
        if found == blob.digest:
            place.settle()
            return
        place.remove()
        report(f"{blob.short}: what came is not this blob; removed")
        raise self._not_the_one(f"a blob of {blob.size} bytes", blob.digest, found)

    def _missing(self, part: Growing, blob: Descriptor, report: Report) -> Iterator[bytes]:
        """Yield the rest of a blob, over as many connections as it takes."""
        patience = self._registry.patience()
        say = Slowly(report)
        ranged = True
        while part.size < blob.size:
            before = part.size
            headers = {"Range": f"bytes={before}-"} if before and ranged else {}
            with self._registry.stream(f"blobs/{blob.digest}", headers, patience) as answer:
                if answer.status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE and headers:
                    ranged = False  # asked for from its beginning, a server gives all or shows that it has less
                    patience.after_break("it does not give the rest of what it began")
                    continue
                with closing(self._rest(answer, before, blob)) as blocks:
                    why = yield from _appended(blocks, part, blob, say)
            if part.size - before >= ENOUGH:
                patience.progress()
            if part.size < blob.size:
                patience.after_break(f"{why} at {megabytes(part.size)} of {megabytes(blob.size)}")

    def _rest(self, answer: Answer, start: int, blob: Descriptor) -> Generator[bytes, None, None]:
        """Yield an answer's bytes from ``start`` on, and no more than belong to the blob."""
        if answer.status not in {200, 206}:
            raise self._registry.refused(answer)
        skip, left = (start if answer.status == 200 else 0), blob.size - start
        self._check_length(answer, start, blob)
        for block in answer.blocks():
            rest = block[skip:]
            skip = max(0, skip - len(block))
            left -= len(rest)
            if left < 0:
                raise self._other_size(blob, "more")
            if rest:
                yield rest

    def _check_length(self, answer: Answer, start: int, blob: Descriptor) -> None:
        """Refuse an answer whose header already says that it is something else."""
        if answer.status == 206:
            given = answer.headers.get("Content-Range", "")
            match = _RANGE.fullmatch(given)
            if match is None or int(match[1]) != start or match[3] not in {"*", str(blob.size)}:
                raise self._other_size(blob, f"the range {given[:60]!r} where bytes {start} to the end were asked for")
        else:
            length = answer.headers.get("Content-Length", "")
            if length.isdigit() and length != str(blob.size):
                raise self._other_size(blob, length[:20])

    def _other_size(self, blob: Descriptor, given: str) -> RegistryRefused:
        return RegistryRefused(
            f"{blob.short} of {self._registry.name} has {blob.size} bytes, the registry gives {given}",
            next_move="run the same command again; if it stays, do not use that registry",
        )


def _appended(blocks: Iterator[bytes], part: Growing, blob: Descriptor, say: Slowly) -> Generator[bytes, None, str]:
    """Yield the blocks as they are kept; return in words why there are no more."""
    try:
        for block in blocks:
            part.append(block)
            say(f"{blob.short}: {megabytes(part.size)} of {megabytes(blob.size)}")
            yield block
    except httpx.TransportError as error:
        return explained(error)
    return "it ended"


def _promised(answer: Answer) -> str:
    """Return the media type that the header gives, where it is one of ours: many servers say something general."""
    found = str(answer.headers.get("Content-Type", "")).partition(";")[0].strip()
    return found if found in (*INDEXES, *MANIFESTS) else ""

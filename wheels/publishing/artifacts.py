"""A release in a registry of images: one OCI artifact whose layers are its files, its tag the release's id.

`oras pull HOST/REPOSITORY:RELEASE` gives the folder back. A blob that the repository has is not sent again.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.errors import PublishRefused, RegistryRefused, UsageError
from core.plan import Report, megabytes
from core.store import Slowly
from wheels.images.documents import OCI_MANIFEST
from wheels.images.reference import parse_reference
from wheels.images.registry import Answer, Registry
from wheels.publishing.release import Part, Release

ARTIFACT = "application/vnd.sparkstack.release.v1"
EMPTY = "application/vnd.oci.empty.v1+json"
NOTHING = b"{}"
"""The content of the configuration that an artifact does not have."""
TITLE = "org.opencontainers.image.title"
KINDS = {".whl": "application/zip", ".json": "application/json", ".html": "text/html"}
OCTETS = {"Content-Type": "application/octet-stream"}
AT_ONCE = 32 * 1024**2
"""Bytes of one request; a larger blob is sent in pieces, so that a broken connection costs one piece."""
NO_PIECE = (400, 404, 405, 411, 413, 416, 501)
"""How registries answer that they do not take a piece, or not this one."""


@dataclass(frozen=True)
class Artifacts:
    """A repository that releases are sent to; ``repository`` is "HOST[:PORT]/REPOSITORY"."""

    repository: str

    @property
    def address(self) -> str:
        """How it is written and shown."""
        return f"oci:{self.repository}"

    def pending(self, release: Release) -> list[str]:
        """Say what is still to do. Raises PublishRefused when the tag is another release's; RegistryRefused."""
        with self._open(_silent) as registry:
            found = _tagged(registry, release.name)
        if found is None:
            return [f"{release.name}, {megabytes(release.size)}"]
        if release.unsigned:
            return [f"{release.name} is compared once it is signed"]
        wanted = digest_of(manifest_of(release))
        if found != wanted:
            raise PublishRefused(
                f"{self.repository}:{release.name} is there and is another one: its manifest is {found}, ours {wanted}",
                next_move="a release is never changed (signatures belong to it): delete that tag if nobody has it",
            )
        return []

    def send(self, release: Release, folder: Path, report: Report) -> None:
        """Send blobs that are not there, then the manifest with its tag. Raises PublishRefused and RegistryRefused."""
        if not self.pending(release):
            return
        document = manifest_of(release)
        with self._open(report, push=True) as registry:
            _send(registry, Part("the empty configuration", _hex(NOTHING), len(NOTHING), data=NOTHING), None, report)
            for part in release.files:
                _send(registry, part, folder / part.name, report)
            answer = registry.request(
                "PUT",
                f"manifests/{release.name}",
                headers={"Content-Type": OCI_MANIFEST},
                content=document,
                accept=(200, 201),
            )
        _require_digest(answer, digest_of(document), release.name)
        report(f"{self.repository}:{release.name} is {digest_of(document)}")

    def _open(self, report: Report, *, push: bool = False) -> Registry:
        reference = parse_reference(f"{self.repository}:x")
        return Registry(reference.host, reference.repository, report, push=push)


def artifacts(text: str) -> Artifacts:
    """Return the destination `oci:HOST[:PORT]/REPOSITORY`. Raises UsageError for another text."""
    if "@" in text or ":" in text.rpartition("/")[2]:
        raise UsageError(
            f"oci:{text[:200]} has a tag or digest; the tag is always the release's id",
            next_move="write oci:HOST/REPOSITORY",
        )
    found = parse_reference(f"{text}:x")
    return Artifacts(found.name)


def manifest_of(release: Release) -> bytes:
    """Return the artifact's manifest: the same bytes for the same files."""
    data = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": _descriptor(EMPTY, _hex(NOTHING), len(NOTHING)),
        "layers": [_layer(part) for part in release.files],
        "annotations": {TITLE: release.name},
    }
    return json.dumps(data, indent=1, sort_keys=True).encode()


def _layer(part: Part) -> dict[str, Any]:
    kind = KINDS.get(Path(part.name).suffix, "application/octet-stream")
    return {**_descriptor(kind, part.sha256, part.size), "annotations": {TITLE: part.name}}


def _descriptor(media_type: str, sha256: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": size}


def digest_of(document: bytes) -> str:
    """Return "sha256:HEX" of a document."""
    return f"sha256:{_hex(document)}"


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tagged(registry: Registry, tag: str) -> str | None:
    """Return the digest of the manifest with that tag, reckoned from its bytes; None where there is none."""
    answer = registry.request("GET", f"manifests/{tag}", headers={"Accept": f"{OCI_MANIFEST}, */*"}, accept=(200, 404))
    return digest_of(answer.body) if answer.status == 200 else None


def _send(registry: Registry, part: Part, path: Path | None, report: Report) -> None:
    """Send a blob unless it is there; the registry compares it with its digest at the end."""
    digest = f"sha256:{part.sha256}"
    if registry.request("HEAD", f"blobs/{digest}", accept=(200, 404)).status == 200:
        return
    location = _started(registry)
    body: bytes | Path = part.data if path is None else path
    if path is not None and part.size > AT_ONCE:
        end = _in_pieces(registry, part, path, location, report)
        location, body = (end, b"") if end else (_started(registry), path)
    done = registry.request("PUT", _with_digest(location, digest), headers=OCTETS, content=body, accept=(201, 204))
    _require_digest(done, digest, part.name)


def _started(registry: Registry) -> str:
    return registry.request("POST", "blobs/uploads/", content=b"", accept=(202,)).location


def _in_pieces(registry: Registry, part: Part, path: Path, location: str, report: Report) -> str:
    """Send a large file piece by piece, going on after a broken connection; return where its end is to be said.

    Empty for a registry that takes no pieces.
    """
    patience, say, sent = registry.patience(), Slowly(report), 0
    while sent < part.size:
        piece = _piece(path, sent)
        answer, error = _tried(registry, location, sent, piece)
        there = _received(answer, sent + len(piece)) if answer and answer.status == 202 else 0
        if answer and there > sent:
            patience.progress()
            location, sent = answer.location, there
            say(f"{part.last}: {megabytes(sent)} of {megabytes(part.size)} sent")
        elif answer and sent == 0:
            return ""
        else:
            patience.after_break(error)
            location, sent = _resumed(registry, location)
    return location


def _piece(path: Path, start: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(AT_ONCE)


def _tried(registry: Registry, location: str, start: int, piece: bytes) -> tuple[Answer | None, str]:
    """Send one piece; return the answer, or no answer and why."""
    headers = {**OCTETS, "Content-Range": f"{start}-{start + len(piece) - 1}"}
    try:
        answer = registry.request("PATCH", location, headers=headers, content=piece, accept=(202, *NO_PIECE))
    except RegistryRefused as error:
        return None, error.cause
    return answer, f"it answered {answer.status} for a piece"


def _resumed(registry: Registry, location: str) -> tuple[str, int]:
    """Return where an upload goes on and how much of it is there; a new one where the registry dropped it."""
    answer = registry.request("GET", location, accept=(204, *NO_PIECE))
    there = _received(answer, 0) if answer.status == 204 else 0
    return (answer.location, there) if there else (_started(registry), 0)


def _received(answer: Answer, otherwise: int) -> int:
    """Return how many bytes the registry has; it says the last one's number ("0-0" for none as well)."""
    found = re.fullmatch(r"(?:bytes=)?0-([0-9]{1,15})", answer.headers.get("Range", ""))
    return otherwise if found is None or found[1] == "0" else int(found[1]) + 1


def _with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest={quote(digest)}"


def _require_digest(answer: Answer, digest: str, what: str) -> None:
    found = answer.headers.get("Docker-Content-Digest", digest)
    if found != digest:
        raise RegistryRefused(
            f"the registry stored {what} as {found[:80]}, we sent {digest}", next_move="do not use that registry"
        )


def _silent(_: str, /) -> None:
    """Say nothing while looking."""

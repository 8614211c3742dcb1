"""The name of an image in a registry: HOST[:PORT]/REPOSITORY[:TAG][@sha256:HEX], as Docker writes it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from core.errors import UsageError

HUB = "docker.io"
HUB_SERVER = "registry-1.docker.io"
LONGEST = 255
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"((?:{_LABEL}(?:\.{_LABEL})*)|\[[0-9a-fA-F:]{{2,39}}\])(?::([0-9]{{1,5}}))?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Reference:
    """An image in a registry; ``tag`` and ``digest`` ("sha256:HEX") may be empty, and a digest counts more."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.host}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"

    def pinned(self, digest: str) -> str:
        """Return the reference that names exactly this manifest."""
        return f"{self.name}@{digest}"


def parse_reference(text: str) -> Reference:
    """Return the parts of a reference; without tag and digest the tag is "latest".

    Raises UsageError for what is none: nothing else than what its grammar allows ever comes into a URL.
    """
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise _refused(text, "its digest is not sha256: and 64 hexadecimal digits")
    host, slash, path = rest.partition("/")
    if not slash or not _is_host(host):
        raise _refused(text, "it does not begin with a registry")
    repository, colon, tag = path.partition(":")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > LONGEST:
        raise _refused(text, f"{repository[:80]!r} is no repository")
    if colon and not _TAG.fullmatch(tag):
        raise _refused(text, f"{tag[:80]!r} is no tag")
    if host == HUB and "/" not in repository:
        repository = f"library/{repository}"
    return Reference(host, repository, tag if colon or digest else "latest", digest)


def _is_host(text: str) -> bool:
    """Say whether it names a host; as for Docker, a plain word is one only with a port ("localhost" is)."""
    match = _HOST.fullmatch(text)
    if match is None or len(text) > LONGEST or (match[2] and not 0 < int(match[2]) < 65536):
        return False
    if match[1].startswith("["):
        return _address(match[1].strip("[]")) is not None
    return "." in text or ":" in text or text == "localhost"


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Say whether a host (without port) is this one, by its name: no other is asked without encryption."""
    if host == "localhost":
        return True
    found = _address(host.strip("[]"))
    return found is not None and found.is_loopback


def _refused(text: str, why: str) -> UsageError:
    return UsageError(
        f"{text[:200]!r} names no image: {why}",
        next_move="write it whole, as nvcr.io/nvidia/vllm:25.11-py3, HOST:PORT/REPOSITORY@sha256:…, oci:FOLDER:TAG or "
        "oci-archive:FILE:TAG",
    )

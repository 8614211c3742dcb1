"""The documents of an image (index, manifest, configuration; OCI or Docker v2) as data: hostile until checked."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.download import LARGEST
from core.errors import ImageRefused
from core.plan import Report

MOST_LAYERS = 1000
DEEPEST = 3
"""Indexes within indexes until the manifest."""
LARGEST_DOCUMENT = 4 * 1024**2
"""Bytes of an index, a manifest or a configuration."""
UNKNOWN = "unknown"
"""What BuildKit writes as the platform of a statement about an image (an attestation)."""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
INDEXES = (OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
CONFIGS = (OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
LAYERS = (
    *(f"application/vnd.oci.image.layer.v1.tar{packed}" for packed in ("", "+gzip", "+zstd")),
    *(f"application/vnd.docker.image.rootfs.diff.tar{packed}" for packed in ("", ".gzip", ".zstd")),
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OTHER_DIGEST = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[A-Za-z0-9=_-]{1,256}")
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7"}
"""What an architecture without variant means."""


@dataclass(frozen=True)
class Descriptor:
    """A blob or document by what it contains: ``digest`` is "sha256:HEX", ``size`` its bytes."""

    media_type: str
    digest: str
    size: int

    @property
    def short(self) -> str:
        """The beginning of the digest, for progress."""
        return self.digest[:19]


@dataclass(frozen=True)
class Layer:
    """One layer: its blob as it is stored, and the digest "sha256:HEX" of the tar archive in it."""

    blob: Descriptor
    diff_id: str


@dataclass(frozen=True)
class Image:
    """An image for one platform ("linux/arm64"), its layers bottom first.

    ``reference`` is how it was asked for, ``digest`` that of its manifest, ``pinned`` the reference by which the same
    image comes again, whatever becomes of its tag.
    """

    reference: str
    digest: str
    platform: str
    layers: tuple[Layer, ...]
    pinned: str = ""


class Blobs(Protocol):
    """Where the blobs of one image are: a registry, or a layout on the disk."""

    def image(self, platform: str) -> Image:
        """Return the image for a platform, its documents verified.

        Raises RegistryRefused or ImageRefused.
        """

    def read(self, blob: Descriptor, report: Report) -> Generator[bytes, None, None]:
        """Yield a blob's bytes as they are stored; what has come to the end has the blob's size and digest.

        Close it before the same blob is read again. Whoever finds its content wrong reads on to the end before saying
        so: then bytes that were changed on the way are known as such, and are not kept.

        Raises RegistryRefused or ImageRefused, at the latest at the end.
        """


class Source(Protocol):
    """Gives documents by their digest."""

    def document(self, wanted: Descriptor) -> bytes:
        """Return the bytes, which have this digest and size."""


@dataclass(frozen=True)
class Document:
    """An index or manifest as it came: its bytes have ``descriptor``'s digest; its media type is what was promised."""

    descriptor: Descriptor
    data: bytes


class _Part(BaseModel):
    """Strict about what we use; other keys are allowed (the specification demands that)."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Platform(_Part):
    os: str
    architecture: str
    variant: str | None = None


class Entry(_Part):
    """A descriptor as a document writes it."""

    media_type: str = Field(alias="mediaType")
    digest: str
    size: int = Field(ge=0, le=LARGEST)
    platform: _Platform | None = None
    annotations: dict[str, str] | None = None

    def descriptor(self) -> Descriptor:
        """Return it. Raises ImageRefused for a digest that is none."""
        return Descriptor(self.media_type, check_digest(self.digest), self.size)


class _Versioned(_Part):
    schema_version: int = Field(alias="schemaVersion", ge=0, le=99)
    media_type: str | None = Field(None, alias="mediaType")
    manifests: Any = None
    layers: Any = None


class _Index(_Part):
    manifests: list[Entry]


class _Manifest(_Part):
    config: Entry
    layers: list[Entry] = Field(max_length=MOST_LAYERS)


class _RootFs(_Part):
    type: str
    diff_ids: list[str]


class _Config(_Platform):
    rootfs: _RootFs


class LayoutVersion(_Part):
    """The file `oci-layout`."""

    image_layout_version: str = Field(alias="imageLayoutVersion")


P = TypeVar("P", bound=_Part)


def refused(cause: str, next_move: str = "do not use that image; look where it comes from") -> ImageRefused:
    """Return the error for an image whose documents are not those of an image."""
    return ImageRefused(f"the image is refused: {cause}", next_move=next_move)


def check_digest(digest: str) -> str:
    """Return a digest "sha256:HEX"; raise ImageRefused for one of another kind or none at all."""
    if _DIGEST.fullmatch(digest):
        return digest
    if _OTHER_DIGEST.fullmatch(digest) and not digest.startswith("sha256:"):
        raise refused(f"it names a blob by {digest.partition(':')[0][:20]}; only sha256 is read")
    raise refused(f"{digest[:80]!r} is no digest")


def parse(model: type[P], data: bytes, what: str) -> P:
    """Return the document's part that we use. Raises ImageRefused with the first key that is wrong."""
    if len(data) > LARGEST_DOCUMENT:
        raise refused(f"its {what} is larger than 4 MiB")
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part)[:40] for part in first["loc"])
        raise refused(f"its {what} cannot be read: {key + ': ' if key else ''}{first['msg']}") from error


def resolve(source: Source, top: Document, platform: str, reference: str, pinned: str) -> Image:
    """Follow an index to the manifest of a platform and to its configuration.

    Raises ImageRefused, or what ``source`` raises.
    """
    document = top
    for _ in range(DEEPEST):
        if _kind(document) in MANIFESTS:
            return _image(source, document, platform, reference, pinned)
        wanted = choose(parse(_Index, document.data, "index").manifests, platform)
        document = Document(wanted, source.document(wanted))
    raise refused(f"it is an index of indexes, {DEEPEST} deep")


def _kind(document: Document) -> str:
    """Return the media type, which the document and those who point to it must agree on (CVE-2021-41190)."""
    found = parse(_Versioned, document.data, "manifest")
    promised = document.descriptor.media_type
    if found.schema_version == 1:
        raise refused(
            "its manifest is of Docker's schema 1, which does not name its layers' contents",
            next_move="push that image again with a tool of today (skopeo copy --format oci)",
        )
    if found.schema_version != 2:
        raise refused(f"its manifest is of schema {found.schema_version}; 2 is read")
    if found.manifests is not None and found.layers is not None:
        raise refused("its manifest is an index at the same time")
    said = found.media_type or promised or _by_keys(found)  # OCI's documents need not say what they are
    if said != promised and promised:
        raise refused(f"its manifest calls itself {said[:80]!r}, it was promised as {promised[:80]!r}")
    if said not in (*INDEXES, *MANIFESTS):
        raise refused(f"it is of the kind {said[:80]!r}, which is no image")
    if (said in INDEXES) != (found.manifests is not None):
        raise refused(f"its manifest calls itself {said!r} and is none")
    return said


def _by_keys(found: _Versioned) -> str:
    return OCI_MANIFEST if found.manifests is None else OCI_INDEX


def listed(data: bytes, what: str) -> list[Entry]:
    """Return what an index lists. Raises ImageRefused when it is none."""
    if parse(_Versioned, data, what).schema_version != 2:
        raise refused(f"its {what} is not of schema 2")
    return parse(_Index, data, what).manifests


def choose(entries: list[Entry], platform: str) -> Descriptor:
    """Return the first entry for the platform; a single entry without platform counts, its configuration will tell.

    Raises ImageRefused naming the platforms that there are.
    """
    images = [entry for entry in entries if not _is_statement(entry)]
    wanted = normal(platform)
    for entry in images:
        if entry.platform and _words(entry.platform) == wanted:
            return entry.descriptor()
    if len(images) == 1 and images[0].platform is None:
        return images[0].descriptor()
    there = sorted({_words(entry.platform) if entry.platform else "one that is not said" for entry in images})
    raise refused(
        f"it is not for {platform}, but for {', '.join(there)[:200] or 'no platform at all'}",
        next_move="name one of these with --platform, or another image",
    )


def _is_statement(entry: Entry) -> bool:
    if (entry.annotations or {}).get("vnd.docker.reference.type"):
        return True
    return entry.platform is not None and entry.platform.os == entry.platform.architecture == UNKNOWN


def normal(platform: str) -> str:
    """Return "OS/ARCHITECTURE[/VARIANT]" without the variant that the architecture has anyway (arm64/v8).

    Raises ImageRefused for what is no platform.
    """
    parts = platform.split("/")
    if not 2 <= len(parts) <= 3 or not all(re.fullmatch(r"[a-z0-9][a-z0-9._]{0,31}", part) for part in parts):
        raise refused(f"{platform[:80]!r} is no platform", next_move="write it as linux/arm64 or linux/arm/v7")
    if len(parts) == 3 and parts[2] == _DEFAULT_VARIANT.get(parts[1]):
        parts.pop()
    return "/".join(parts)


def _words(platform: _Platform) -> str:
    parts = [platform.os, platform.architecture]
    if platform.variant and platform.variant != _DEFAULT_VARIANT.get(platform.architecture):
        parts.append(platform.variant)
    return "/".join(part[:32] for part in parts)


def _image(source: Source, document: Document, platform: str, reference: str, pinned: str) -> Image:
    manifest = parse(_Manifest, document.data, "manifest")
    if manifest.config.media_type not in CONFIGS:
        raise refused(f"it is no image of a container but holds {manifest.config.media_type[:80]!r}")
    config = parse(_Config, source.document(manifest.config.descriptor()), "configuration")
    if _words(config) != normal(platform):
        raise refused(
            f"it is for {_words(config)}, not for {platform}", next_move="name another image, or --platform that one"
        )
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise refused(f"it has {len(manifest.layers)} layers, its configuration speaks of {len(diff_ids)}")
    layers = tuple(
        Layer(_layer(entry), check_digest(diff_id)) for entry, diff_id in zip(manifest.layers, diff_ids, strict=True)
    )
    return Image(reference, document.descriptor.digest, platform, layers, pinned)


def _layer(entry: Entry) -> Descriptor:
    if ".foreign." in entry.media_type or ".nondistributable." in entry.media_type:
        raise refused(
            f"its layer {entry.digest[:19]} is not in the registry but elsewhere ({entry.media_type[:80]})",
            next_move="name an image without foreign layers",
        )
    if entry.media_type not in LAYERS:
        raise refused(f"its layer {entry.digest[:19]} is of the kind {entry.media_type[:80]!r}, which is not read")
    return entry.descriptor()

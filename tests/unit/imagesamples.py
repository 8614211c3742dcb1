"""Small images as documents and blobs, for a registry or a layout, whole or with whatever is wrong."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

OCI = {
    "index": "application/vnd.oci.image.index.v1+json",
    "manifest": "application/vnd.oci.image.manifest.v1+json",
    "config": "application/vnd.oci.image.config.v1+json",
    "layer": "application/vnd.oci.image.layer.v1.tar+gzip",
}
DOCKER = {
    "index": "application/vnd.docker.distribution.manifest.list.v2+json",
    "manifest": "application/vnd.docker.distribution.manifest.v2+json",
    "config": "application/vnd.docker.container.image.v1+json",
    "layer": "application/vnd.docker.image.rootfs.diff.tar.gzip",
}
NAME = "org.opencontainers.image.ref.name"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@cache
def _packed(tar: bytes) -> bytes:
    return gzip.compress(tar, 1, mtime=0)


def noise(size: int, seed: str = "x") -> bytes:
    """Return bytes that do not compress, the same every time."""
    return hashlib.shake_256(seed.encode()).digest(size)


@dataclass
class Sample:
    """Blobs by digest, documents among them with their media types."""

    kinds: dict[str, str] = field(default_factory=lambda: OCI)
    blobs: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def add(self, data: bytes | dict[str, Any], kind: str, **more: Any) -> dict[str, Any]:
        """Keep a blob and return its descriptor."""
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        media_type = self.kinds.get(kind, kind)
        digest = digest_of(content)
        self.blobs[digest] = content
        self.types[digest] = media_type
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def image(
        self,
        *tars: bytes,
        platform: str = "linux/arm64",
        config: dict[str, Any] | None = None,
        manifest: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Add an image with these layers (tar archives, bottom first) and return its manifest's descriptor."""
        layers = [self.add(_packed(tar), "layer") for tar in tars]
        system, architecture, *variant = platform.split("/")
        settings = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        settings["rootfs"] = {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]}
        told = {"schemaVersion": 2, "mediaType": self.kinds["manifest"], "layers": layers}
        told["config"] = self.add({**settings, **(config or {})}, "config")
        return self.add({**told, **(manifest or {})}, "manifest")

    def index(self, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Add an index of these entries and return its descriptor."""
        return self.add({"schemaVersion": 2, "mediaType": self.kinds["index"], "manifests": entries, **more}, "index")

    def listing(self, *entries: dict[str, Any]) -> bytes:
        """Return an index.json."""
        return json.dumps({"schemaVersion": 2, "manifests": entries}).encode()

    def files(self, *entries: dict[str, Any]) -> dict[str, bytes]:
        """Return the files of a layout by name."""
        blobs = {f"blobs/{digest.replace(':', '/')}": data for digest, data in self.blobs.items()}
        return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": self.listing(*entries), **blobs}

    def folder(self, path: Path, *entries: dict[str, Any]) -> Path:
        """Write a layout to a folder and return it."""
        for name, data in self.files(*entries).items():
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        return path

    def archive(self, path: Path, *entries: dict[str, Any]) -> Path:
        """Write a layout to a tar archive and return it."""
        path.write_bytes(tar_of(self.files(*entries)))
        return path


def of(platform: str) -> dict[str, str]:
    """Return a platform as an index writes it."""
    system, architecture, *variant = platform.split("/")
    return {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}


def tagged(descriptor: dict[str, Any], tag: str) -> dict[str, Any]:
    """Return an entry of index.json with a tag."""
    return {**descriptor, "annotations": {NAME: tag}}

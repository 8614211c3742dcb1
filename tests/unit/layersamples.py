"""Layers and images in memory: tar archives of all kinds of members, packed, and read as if from a registry."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from core.errors import RegistryRefused
from core.plan import Report
from wheels.images.oci import Descriptor, Image, Layer

SITE = "usr/lib/python3/dist-packages"
FILE, HARD, SYM, FOLDER, PIPE, DEVICE = (
    tarfile.REGTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
)
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, body: bytes = b"", **fields: object) -> Entry:
    """Describe a member; ``fields`` are TarInfo's."""
    info = tarfile.TarInfo(name)
    info.size = len(body)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, body


def link(name: str, target: str) -> Entry:
    return entry(name, type=SYM, linkname=target)


def hard(name: str, target: str) -> Entry:
    return entry(name, type=HARD, linkname=target)


def whiteout(path: str) -> Entry:
    folder, slash, name = path.rpartition("/")
    return entry(f"{folder}{slash}.wh.{name}")


def opaque(folder: str) -> Entry:
    return entry(f"{folder}/.wh..wh..opq")


def files(content: dict[str, bytes]) -> list[Entry]:
    return [entry(name, body) for name, body in content.items()]


def tar(*entries: Entry, kind: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for info, body in entries:
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def packed(data: bytes, how: str = "gzip") -> bytes:
    match how:
        case "gzip":
            return gzip.compress(data, 1, mtime=0)
        case "members":
            half = len(data) // 2
            return b"".join(gzip.compress(part, 1, mtime=0) for part in (data[:half], b"", data[half:]))
        case "zstd":
            return zstandard.compress(data)
        case _:
            return data


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Memory:
    """Blobs of an image in memory; ``asked`` has the digests in the order in which they were read."""

    layers: list[Layer] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    block: int = 1000

    def add(self, blob: bytes, diff_id: str) -> None:
        digest = digest_of(blob)
        self.blobs[digest] = blob
        self.layers.append(Layer(Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", digest, len(blob)), diff_id))

    def image(self, platform: str = "linux/arm64") -> Image:
        return Image("host/image:tag", digest_of(b"manifest"), platform, tuple(self.layers))

    def read(self, blob: Descriptor, report: Report) -> Iterator[bytes]:  # noqa: ARG002
        self.asked.append(blob.digest)
        data = self.blobs[blob.digest]
        for begin in range(0, len(data), self.block):
            yield data[begin : begin + self.block]
        if digest_of(data) != blob.digest or len(data) != blob.size:
            raise RegistryRefused("it is another blob", next_move="none")

    def times(self, number: int) -> int:
        """Return how often a layer was read; the lowest is number 1."""
        return self.asked.count(self.layers[number - 1].blob.digest)


def memory(*tars: bytes, how: str = "gzip", block: int = 1000) -> Memory:
    """Return an image of these archives, the lowest first."""
    made = Memory(block=block)
    for data in tars:
        made.add(packed(data, how), digest_of(data))
    return made


def distribution(
    name: str = "pkg", version: str = "1.0", content: dict[str, bytes] | None = None, site: str = SITE
) -> dict[str, bytes]:
    """Return the files of an installed distribution by their paths in the image, its RECORD last."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    parts = {f"{name}/__init__.py": b"", f"{name}/code.py": b"print()\n"} if content is None else dict(content)
    parts[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
    parts[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    made = {f"{site}/{path}": body for path, body in parts.items()}
    made[f"{site}/{info}/RECORD"] = record([*parts.items(), (f"{info}/RECORD", None)])
    return made


def record(rows: Sequence[tuple[str, bytes | None]]) -> bytes:
    def row(path: str, body: bytes | None) -> str:
        if body is None:
            return f"{path},,"
        spec = base64.urlsafe_b64encode(hashlib.sha256(body).digest()).rstrip(b"=").decode()
        return f"{path},sha256={spec},{len(body)}"

    return "".join(f"{row(path, body)}\n" for path, body in rows).encode()


def tree(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder; a link or a device there fails."""
    found = {}
    for path in folder.rglob("*"):
        assert not path.is_symlink()
        if not path.is_dir():
            assert path.is_file()
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found

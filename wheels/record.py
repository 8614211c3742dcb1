"""RECORD, the list of an installed distribution's or a wheel's files with their hashes (PEP 376, PEP 427)."""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from wheels.canonical import CHUNK, MAX_FILES, NotAWheel

ALGORITHMS = ("sha256", "sha384", "sha512")
"""Hashes that count (PEP 427 asks for sha256 or better; md5 and sha1 prove nothing)."""


@dataclass(frozen=True)
class Row:
    """One file: ``path`` as RECORD writes it, ``digest`` raw bytes of ``algorithm``, ``size`` in bytes.

    RECORD itself and byte code have neither hash nor size.
    """

    path: str
    algorithm: str = ""
    digest: bytes = b""
    size: int | None = None


def parse_record(data: bytes) -> tuple[Row, ...]:
    """Return the rows of a RECORD. Raises NotAWheel for one that cannot be read or names a file twice."""
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise NotAWheel(f"its RECORD cannot be read: {error}") from error
    rows = tuple(_row(line) for line in lines if line)
    if len(rows) > MAX_FILES:
        raise NotAWheel(f"its RECORD names more than {MAX_FILES} files")
    seen: set[str] = set()
    for row in rows:
        if row.path in seen:
            raise NotAWheel(f"its RECORD names {row.path} twice")
        seen.add(row.path)
    return rows


def _row(line: list[str]) -> Row:
    if len(line) != 3 or not line[0]:
        raise NotAWheel(f"a line of its RECORD has not path, hash and size: {','.join(line)[:80]!r}")
    path, spec, size = line
    algorithm, _, encoded = spec.partition("=")
    if spec and algorithm not in ALGORITHMS:
        raise NotAWheel(f"its RECORD has {path} by {algorithm[:20]!r}, which proves nothing")
    if size and not (size.isascii() and size.isdigit() and len(size) < 16):
        raise NotAWheel(f"its RECORD gives {path} a size of {size[:20]!r}")
    return Row(path, algorithm if spec else "", _decoded(path, encoded) if spec else b"", int(size) if size else None)


def _decoded(path: str, encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotAWheel(f"its RECORD has a hash of {path} that is none: {encoded[:60]!r}") from error


def located(site: PurePosixPath, path: str) -> PurePosixPath:
    """Return where an installed file lies, relative to the root that ``site`` (no leading slash) is relative to.

    Raises NotAWheel for a path that leads out of that root.
    """
    if "\\" in path or "\0" in path:
        raise NotAWheel(f"its RECORD names {path!r}, which is no path")
    if path.startswith("/"):  # installers write absolute paths for files on another root than the site's
        parts: list[str] = []
    else:
        parts = list(site.parts)
    for part in PurePosixPath(path.lstrip("/")).parts:
        if part == "..":
            if not parts:
                raise NotAWheel(f"its RECORD names {path!r}, which leads out of the root")
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def difference(row: Row, file: IO[bytes]) -> str:
    """Say in words how the open file differs from what RECORD says of it; empty when it does not.

    A row without hash is not checked: the caller says which may have none.
    """
    if not row.algorithm:
        return ""
    digest, size = hashlib.new(row.algorithm), 0
    while chunk := file.read(CHUNK):
        digest.update(chunk)
        size += len(chunk)
    if row.size is not None and size != row.size:
        return f"{row.path} has {size} bytes, its RECORD says {row.size}"
    return (
        "" if digest.digest() == row.digest else f"{row.path} is not the file that its RECORD names ({row.algorithm})"
    )

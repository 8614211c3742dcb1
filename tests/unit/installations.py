"""Installed distributions made by hand, as an installer leaves them below a root."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

SITE = PurePosixPath("usr/local/lib/python3.12/dist-packages")
INFO = "x-1.dist-info"
METADATA = b"Metadata-Version: 2.4\nName: x\nVersion: 1\n\nAbout x.\n"
WHEEL = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
FILES: dict[str, bytes] = {
    "x/__init__.py": b"print('hello')\n",
    "x/data, with comma.txt": b"1,2\n",
    f"{INFO}/METADATA": METADATA,
    f"{INFO}/WHEEL": WHEEL,
}


@dataclass(frozen=True)
class Found:
    """As wheels/images/image.py finds a distribution."""

    name: str = "x"
    version: str = "1"
    kind: Literal["installed", "wheel"] = "installed"
    site: PurePosixPath = SITE
    info: str = INFO
    layers: tuple[str, ...] = ()


def hashed(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def record_of(files: Mapping[str, bytes], info: str = INFO) -> list[list[str]]:
    rows = [[name, hashed(content), str(len(content))] for name, content in files.items()]
    return [*rows, [f"{info}/RECORD", "", ""]]


def written(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def install(root: Path, files: Mapping[str, bytes], found: Found = Found()) -> Found:
    """Write the files, by names as RECORD has them, and RECORD where it is not one of them."""
    listed = (
        {**files}
        if f"{found.info}/RECORD" in files
        else {
            **files,
            f"{found.info}/RECORD": written(record_of(files, found.info)),
        }
    )
    for name, content in listed.items():
        path = Path(str(root / found.site / name))
        path = Path(*_normalised(path.parts))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return found


def _normalised(parts: tuple[str, ...]) -> list[str]:
    """Return a path's parts without `..`: the folder that it leads up from need not exist."""
    kept: list[str] = []
    for part in parts:
        if part == "..":
            kept.pop()
        else:
            kept.append(part)
    return kept

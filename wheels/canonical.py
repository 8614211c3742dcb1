"""The one byte form of a wheel. Standard library only, and alone: a copy of this file packs on build machines.

The form: files only, sorted by name, `.dist-info` after the rest and RECORD the very last; one time, SOURCE_DATE_EPOCH;
mode 0755 for what its owner may execute, 0644 for all else; no extra fields, comments or byte code; RECORD made anew.

Nothing is compressed. What a deflater writes is its own business: zlib, zlib-ng and the variants of distributions and
processors give different bytes for the same level, so a compressed wheel is the same only where the packer is. Stored
files are the same everywhere. GPU code is compressed by nvcc already: a wheel of NCCL grows by 9 %.
"""

from __future__ import annotations

import base64
import csv
import errno
import hashlib
import io
import re
import shutil
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MAX_FILES = 200_000
MAX_BYTES = 64 * 1024**3
"""Of all files of a wheel, unpacked: larger is no wheel but a bomb."""
MAX_NAME = 2048
"""Bytes of a name with its folders."""
EARLIEST = 315532800
LATEST = 4354819198
"""Seconds since 1970 that a zip file can say: 1980-01-01 to 2107-12-31 23:59:58, UTC."""
CHUNK = 1024 * 1024
SIGNATURES = ("RECORD.jws", "RECORD.p7s")
"""They sign the RECORD that is made anew."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, UnicodeError)
"""What zipfile raises for damaged bytes."""


class NotAWheel(ValueError):
    """The archive or folder is no wheel, is damaged, or is made to do harm."""


@dataclass(frozen=True)
class Entry:
    """A file that goes into a wheel; ``size`` in bytes, ``name`` with slashes."""

    name: str
    executable: bool
    size: int
    open: Callable[[], IO[bytes]]


def canonicalize(source: Path, target: Path, epoch: int) -> None:
    """Write the wheel ``source`` in the one form to ``target`` (they may be the same); ``epoch`` in seconds.

    The source's RECORD is not believed and not checked: it is made anew. Raises NotAWheel, and OSError as it comes.
    """
    with _reading(source), zipfile.ZipFile(source) as archive:
        _write(wheel_files(archive), target, epoch)


def pack(folder: Path, target: Path, epoch: int) -> None:
    """Write the unpacked wheel ``folder`` in the one form to ``target``. Raises NotAWheel."""
    with _reading(folder):
        _write(_folder_files(folder), target, epoch)


def unpack(wheel: Path, folder: Path) -> None:
    """Write the files of ``wheel`` below ``folder``, which must be empty or missing. Raises NotAWheel.

    What fails in the middle leaves files behind: they are the caller's to remove.
    """
    with _reading(wheel), zipfile.ZipFile(wheel) as archive:
        entries = wheel_files(archive)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise NotAWheel(f"{folder} is not empty")
        for entry in entries:
            path = folder / entry.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with entry.open() as content, path.open("xb") as file:
                shutil.copyfileobj(content, file, CHUNK)
            path.chmod(0o755 if entry.executable else 0o644)


def wheel_files(archive: zipfile.ZipFile) -> list[Entry]:
    """Return the files of a wheel, in the archive's order, without byte code. Raises NotAWheel for hostile ones."""
    entries = []
    for info in archive.infolist():
        _check_member(info)
        if not info.is_dir():
            entries.append(_from_archive(archive, info))
    return _checked(entries)


def _from_archive(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Entry:
    executable = bool(info.external_attr >> 16 & stat.S_IXUSR)
    return Entry(info.filename, executable, info.file_size, lambda: archive.open(info))


def _check_member(info: zipfile.ZipInfo) -> None:
    if info.orig_filename != info.filename:
        raise NotAWheel(f"{info.orig_filename!r} has a name that hides another")
    _check_name(info.filename.removesuffix("/"))
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise NotAWheel(f"{info.filename} is a link or a device, not a file")
    if info.is_dir() and info.file_size:
        raise NotAWheel(f"{info.filename} is a folder with content")
    if info.flag_bits & 1 or info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise NotAWheel(f"{info.filename} is encrypted, or compressed in a way that installers do not read")


def _check_name(name: str) -> None:
    if name.startswith("/") or "\\" in name or any(part in {"", ".", ".."} for part in name.split("/")):
        raise NotAWheel(f"{name!r} leads out of the wheel or is not written as wheels write names")
    if _CONTROL.search(name):
        raise NotAWheel(f"{name!r} has control characters in its name")
    if len(name.encode()) > MAX_NAME or any(len(part.encode()) > 255 for part in name.split("/")):
        raise NotAWheel(f"{name[:40]}… is too long a name")


def _folder_files(folder: Path) -> list[Entry]:
    entries = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        _check_name(name)
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise NotAWheel(f"{name} is a link or a device, not a file")
        entries.append(Entry(name, bool(status.st_mode & stat.S_IXUSR), status.st_size, _opener(path)))
    return _checked(entries)


def _opener(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


def _checked(entries: list[Entry]) -> list[Entry]:
    """Return what belongs into a wheel; refuse too much, names that exclude each other, and what is no wheel."""
    if len(entries) > MAX_FILES or sum(entry.size for entry in entries) > MAX_BYTES:
        raise NotAWheel(f"it holds more than {MAX_FILES} files or {MAX_BYTES // 1024**3} GiB")
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise NotAWheel(f"{entry.name} is there twice")
        seen.add(entry.name)
    folders = {name[:at] for name in seen for at, character in enumerate(name) if character == "/"}
    if seen & folders:
        raise NotAWheel(f"{min(seen & folders)} is a file and a folder")
    _dist_info(entries)
    return [entry for entry in entries if "__pycache__" not in entry.name.split("/")]


def _dist_info(entries: Iterable[Entry]) -> str:
    """Return the name of the one `.dist-info` folder. Raises NotAWheel when it is not one, or not whole."""
    names = {entry.name for entry in entries}
    folders = {top for name in names if (top := name.partition("/")[0]).endswith(".dist-info") and "/" in name}
    if len(folders) != 1:
        raise NotAWheel(f"a wheel has one .dist-info folder, this has {', '.join(sorted(folders)) or 'none'}")
    folder = folders.pop()
    lacking = [name for name in ("METADATA", "WHEEL") if f"{folder}/{name}" not in names]
    if lacking:
        raise NotAWheel(f"{folder} lacks {', '.join(lacking)}")
    return folder


def _write(entries: list[Entry], target: Path, epoch: int) -> None:
    folder = _dist_info(entries)
    made_anew = {f"{folder}/{name}" for name in ("RECORD", *SIGNATURES)}
    moment = time.gmtime(min(max(epoch, EARLIEST), LATEST))[:6]
    listed = sorted(
        (entry for entry in entries if entry.name not in made_anew),
        key=lambda entry: (entry.name.startswith(f"{folder}/"), entry.name),
    )
    with _replacing(target) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        rows = [(entry.name, *_add(archive, entry, moment)) for entry in listed]
        record = _record([*rows, (f"{folder}/RECORD", "", "")])
        _add(archive, Entry(f"{folder}/RECORD", False, len(record), lambda: io.BytesIO(record)), moment)


def _add(archive: zipfile.ZipFile, entry: Entry, moment: tuple[int, int, int, int, int, int]) -> tuple[str, str]:
    """Copy the file into the archive and return its hash and size as RECORD says them."""
    info = zipfile.ZipInfo(entry.name, moment)
    info.create_system = 3  # Unix, wherever it is packed
    info.external_attr = (stat.S_IFREG | (0o755 if entry.executable else 0o644)) << 16
    info.file_size = entry.size  # tells zipfile whether the large format is needed
    digest, size = hashlib.sha256(), 0
    with entry.open() as content, archive.open(info, "w") as file:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    if size != entry.size:
        raise NotAWheel(f"{entry.name} has {size} bytes, not {entry.size}")
    return "sha256=" + base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode(), str(size)


def _record(rows: Iterable[tuple[str, str, str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Give a name beside the target that becomes the target when the block ends well, and vanishes when it does not."""
    temporary = target.with_name(target.name + ".new")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _reading(source: Path) -> Iterator[None]:
    """Say of what cannot be read as a wheel that it is none. A full disk or a missing file stays what it is."""
    try:
        yield
    except NotAWheel as error:
        raise NotAWheel(f"{source.name}: {error}") from error
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:  # offsets before the file's begin
            raise
        raise NotAWheel(f"{source.name} is not a wheel that can be read: {error}") from error

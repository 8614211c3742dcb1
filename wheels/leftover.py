"""A wheel file that was left over in an image: its own RECORD is proved, then it is taken, byte for byte."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from packaging.utils import parse_wheel_filename

from wheels.canonical import CHUNK, SIGNATURES, Entry, NotAWheel, wheel_files
from wheels.intact import UNREADABLE
from wheels.naming import HEADER, identify, machine_of, require_same, require_tags_fit
from wheels.record import Row, difference, parse_record

MOST = 64 * 1024**2
"""Bytes of a RECORD or METADATA."""


def take(wheel: Path, name: str, version: str, target: Path) -> Path:
    """Copy the wheel into the folder ``target`` under its own name, once all of it is proved; return where.

    Its bytes are its publisher's: they stay as they are, so that its hash can be looked up where it was published.
    Raises NotAWheel when its RECORD lies or is not whole, or its names do not agree.
    """
    prove(wheel, name, version)
    part = target / f".{wheel.name}.part"
    try:
        with wheel.open("rb") as source, part.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
            file.flush()
            os.fsync(file.fileno())
        return part.replace(target / wheel.name)
    finally:
        part.unlink(missing_ok=True)


def prove(wheel: Path, name: str, version: str) -> None:
    """Compare every file of a wheel with its RECORD, and the wheel with what it is called. Raises NotAWheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            files = {entry.name: entry for entry in wheel_files(archive)}
            _prove(wheel.name, files, name, version)
    except NotAWheel as error:
        raise NotAWheel(f"{wheel.name}: {error}") from error
    except UNREADABLE as error:
        raise NotAWheel(f"{wheel.name} is not a wheel that can be read: {error}") from error


def _prove(filename: str, files: Mapping[str, Entry], name: str, version: str) -> None:
    own_name, own_version, _, tags = parse_wheel_filename(filename)
    require_same(f"{own_name}-{own_version}", name, version)
    folder = next(found for found in files if found.endswith(".dist-info/METADATA") and found.count("/") == 1)
    folder = folder.partition("/")[0]
    rows = parse_record(_read(files, f"{folder}/RECORD"))
    apart = {f"{folder}/{one}" for one in ("RECORD", *SIGNATURES)}
    _require_whole({row.path for row in rows if not _byte_code(row.path)} - apart, files.keys() - apart)
    for row in rows:
        if row.path not in apart and not _byte_code(row.path):
            _compare(row, files[row.path])
    identity = identify(_read(files, f"{folder}/METADATA"), _read(files, f"{folder}/WHEEL"), folder)
    require_same(f"{own_name}-{own_version}", identity.name, identity.version)
    for entry in files.values():
        with entry.open() as file:
            machine = machine_of(file.read(HEADER))
        if machine:
            require_tags_fit(tags, entry.name, machine)


def _byte_code(path: str) -> bool:
    return "__pycache__" in path.split("/")


def _read(files: Mapping[str, Entry], name: str) -> bytes:
    if name not in files:
        raise NotAWheel(f"it has no {name}")
    if files[name].size > MOST:
        raise NotAWheel(f"its {name} has more than {MOST // 1024**2} MiB")
    with files[name].open() as file:
        return file.read()


def _require_whole(listed: set[str], there: set[str]) -> None:
    missing, unlisted = sorted(listed - there), sorted(there - listed)
    if missing:
        raise NotAWheel(f"its RECORD names {missing[0]}, which is not in it")
    if unlisted:
        raise NotAWheel(f"its RECORD does not name {unlisted[0]}, which is in it")


def _compare(row: Row, entry: Entry) -> None:
    if not row.algorithm:
        raise NotAWheel(f"its RECORD has no hash of {row.path}: nothing proves what it is")
    with entry.open() as file:
        wrong = difference(row, file)
    if wrong:
        raise NotAWheel(wrong)

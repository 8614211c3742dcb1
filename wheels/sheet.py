"""Everything that a gate asks of a wheel, read once: names, tags, metadata, RECORD, and every library in it.

A sheet is kept as `.work/sheets/SHA256.json` and belongs to the bytes of a wheel, not to its file name.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import IO, cast

from pydantic import ValidationError

from core.config import WORK, Model
from core.errors import BuildFailed, WheelRefused
from wheels.canonical import CHUNK, SIGNATURES, NotAWheel, wheel_files
from wheels.elf import MAGIC, UNREADABLE, Elf, device_code_sections, read_elf, sought
from wheels.fatbin import Code, device_code_of
from wheels.manifest import sha256_of
from wheels.members import of_each
from wheels.record import Row, difference, parse_record
from wheels.symbols import of_python, of_torch

FORM = 1
"""Of the sheets that are kept; another one is read again. It goes up with every change of what is read."""
MOST_PROBLEMS = 20
MOST_METADATA = 16 * 1024**2
"""Bytes of METADATA, WHEEL or RECORD."""
_NOT_FOR_PROCESSORS = {190, 224, 247}
"""ELF machines of CUDA, AMD's GPUs and the kernel's own: data for a program, nothing that it loads."""
_LICENCE = re.compile(r"(?i)(licen[cs]e|copying|notice|authors)[^/]*")


class Licence(Model):
    """What a wheel says of its licence."""

    expression: str = ""
    text: str = ""
    """First line of the old field License."""
    classifiers: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def in_words(self) -> str:
        """The first that there is of expression, classifiers, text and files."""
        classifiers = ", ".join(one.rpartition(":: ")[2] for one in self.classifiers)
        return self.expression or classifiers or self.text or ", ".join(self.files)


class Library(Model):
    """A library or program in a wheel; ``machine`` as `uname -m` says it, ``name`` with its folders."""

    name: str
    machine: str = ""
    soname: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    """Of glibc that it asks for, as symbols have them: GLIBC_2.34."""
    torch: tuple[str, ...] = ()
    """Names of PyTorch that another library has to give, and none in the wheel does."""
    python: tuple[str, ...] = ()
    """Names of Python that it asks for, and none in the wheel gives."""
    code: tuple[Code, ...] = ()
    """GPU code."""
    code_size: int = 0
    """Bytes of the sections that hold it."""
    unreadable: str = ""
    """Why nothing else is known of it."""

    @property
    def glibc(self) -> tuple[int, int] | None:
        """The newest glibc that it asks for."""
        return max((version for name in self.versions if (version := _glibc(name))), default=None)


class Sheet(Model):
    """A wheel; ``size`` and ``unpacked`` in bytes."""

    form: int
    sha256: str
    size: int
    unpacked: int
    files: int
    info: str
    """Its .dist-info folder."""
    name: str
    version: str
    requires_python: str
    requires: tuple[str, ...]
    """Requires-Dist, as METADATA has it."""
    licence: Licence
    wheel_version: str
    generator: str
    tags: tuple[str, ...]
    """Of WHEEL."""
    problems: tuple[str, ...]
    """Of RECORD; the first MOST_PROBLEMS."""
    libraries: tuple[Library, ...]
    exports: tuple[str, ...] = ()
    """Only of torch itself: the names that its libraries give to extensions."""


def sheet_of(wheel: Path, sha256: str | None = None, *, work: Path = WORK) -> Sheet:
    """Return the sheet of a wheel, from the one that was kept or read now.

    ``sha256`` is the wheel's hash where the caller has just compared it. Raises WheelRefused.
    """
    digest = sha256 or _hashed(wheel)
    kept = work / "sheets" / f"{digest}.json"
    try:
        found = Sheet.model_validate_json(kept.read_bytes())
    except (OSError, ValidationError):
        found = None
    if found is None or (found.form, found.sha256) != (FORM, digest):
        found = read_sheet(wheel, digest)
        _keep(found, kept)
    return found


def _hashed(wheel: Path) -> str:
    try:
        return sha256_of(wheel)
    except OSError as error:
        raise WheelRefused(f"{wheel} cannot be read: {error.strerror}", next_move="check the path") from error


def _keep(sheet: Sheet, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text(sheet.model_dump_json(exclude_defaults=True) + "\n", encoding="utf-8")
    fresh.replace(path)


def read_sheet(wheel: Path, sha256: str) -> Sheet:
    """Read a wheel. Raises WheelRefused for one that is damaged, hostile or no wheel at all."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return _read(archive, sha256, wheel.stat().st_size)
    except NotAWheel as error:
        raise _refused(wheel, str(error)) from error
    except UNREADABLE as error:
        raise _refused(wheel, f"it cannot be read: {error}") from error


def _refused(wheel: Path, why: str) -> WheelRefused:
    return WheelRefused(f"{wheel.name} is no wheel to use: {why}", next_move="delete it, and get or build it again")


def _read(archive: zipfile.ZipFile, sha256: str, size: int) -> Sheet:
    wheel_files(archive)  # refuses hostile names and sizes, and what has not one .dist-info folder
    members = [info for info in archive.infolist() if not info.is_dir()]
    info = next(top for one in members if (top := one.filename.partition("/")[0]).endswith(".dist-info"))
    metadata, wheel = (_headers(archive, f"{info}/{name}") for name in ("METADATA", "WHEEL"))
    rows = {row.path: row for row in parse_record(_small(archive, f"{info}/RECORD"))}
    found = of_each(members, lambda one: _member(archive, one, rows.get(one.filename)))
    torch = re.sub(r"[-_.]+", "-", metadata.get("Name", "")).lower() == "torch"
    return Sheet(
        form=FORM,
        sha256=sha256,
        size=size,
        unpacked=sum(one.file_size for one in members),
        files=len(members),
        info=info,
        name=metadata.get("Name", ""),
        version=metadata.get("Version", ""),
        requires_python=metadata.get("Requires-Python", ""),
        requires=tuple(" ".join(line.split()) for line in metadata.get_all("Requires-Dist", [])),
        licence=_licence(metadata, info, [one.filename for one in members]),
        wheel_version=wheel.get("Wheel-Version", ""),
        generator=wheel.get("Generator", ""),
        tags=tuple(wheel.get_all("Tag", [])),
        problems=tuple(_problems(members, found, rows, info))[:MOST_PROBLEMS],
        libraries=tuple(_libraries(found)),
        exports=tuple(sorted({name for one in found for name in of_torch(one.defined)})) if torch else (),
    )


def _small(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as file:
            content = file.read(MOST_METADATA + 1)
    except KeyError as error:
        raise NotAWheel(f"it has no {name}") from error
    if len(content) > MOST_METADATA:
        raise NotAWheel(f"its {name} has more than {MOST_METADATA} bytes")
    return content


def _headers(archive: zipfile.ZipFile, name: str) -> Message:
    return BytesParser().parsebytes(_small(archive, name), headersonly=True)


def _licence(metadata: Message, info: str, names: Iterable[str]) -> Licence:
    text = metadata.get("License", "").strip()
    own = (name.removeprefix(f"{info}/") for name in names if name.startswith(f"{info}/"))
    return Licence(
        expression=metadata.get("License-Expression", ""),
        text="" if text.upper() == "UNKNOWN" else text.partition("\n")[0][:100],
        classifiers=tuple(one for one in metadata.get_all("Classifier", []) if one.startswith("License ::")),
        files=tuple(one for one in own if one.startswith(("licenses/", "license_files/")) or _LICENCE.fullmatch(one)),
    )


@dataclass(frozen=True)
class _Member:
    """What is in one file: how it differs from RECORD, and the library that it is with the names that it gives."""

    problem: str = ""
    library: Library | None = None
    defined: frozenset[str] = frozenset()


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, row: Row | None) -> _Member:
    with archive.open(info) as opened:
        member = cast(zipfile.ZipExtFile, opened)
        start = member.peek(20)[:20]
        loaded = start.startswith(MAGIC) and int.from_bytes(start[18:20], "little") not in _NOT_FOR_PROCESSORS
        if not loaded:
            return _Member(_compared(row, opened))
        with sought(info.file_size) as file:
            while chunk := member.read(CHUNK):
                file.write(chunk)
            file.seek(0)
            return _library(info.filename, file, _compared(row, file))


def _compared(row: Row | None, file: IO[bytes]) -> str:
    """Say how the file differs from its row; what has no hash is read all the same, for zipfile compares its own."""
    if row is None or not row.algorithm:
        while file.read(CHUNK):
            pass
        return ""
    return difference(row, file)


def _library(name: str, file: IO[bytes], problem: str) -> _Member:
    try:
        elf = read_elf(file, name)
        code = device_code_of(file, elf, name)
    except BuildFailed as error:
        return _Member(problem, Library(name=name, unreadable=error.cause))
    library = Library(
        name=name,
        machine=elf.machine,
        soname=elf.soname,
        needed=elf.needed,
        rpath=elf.rpath,
        versions=tuple(sorted({version for _, version in elf.versions if version.startswith("GLIBC_")})),
        torch=of_torch(elf.undefined),
        python=of_python(elf.undefined),
        code=tuple(sorted(code)),
        code_size=sum(section.size for section in device_code_sections(elf)),
    )
    return _Member(problem, library, _given(elf))


def _given(elf: Elf) -> frozenset[str]:
    """Return the names that a library gives to others."""
    hidden = {"STV_HIDDEN", "STV_INTERNAL"}
    own = (one for one in elf.symbols if one.defined and one.binding != "STB_LOCAL" and one.visibility not in hidden)
    return frozenset(one.name for one in own)


def _libraries(found: Iterable[_Member]) -> Iterator[Library]:
    """Give the libraries, without the names that one of them gives to another."""
    members = [one for one in found if one.library]
    given = frozenset().union(*(one.defined for one in members))
    for library in (one.library for one in members if one.library):
        open_ends = {
            kind: tuple(name for name in getattr(library, kind) if name not in given) for kind in ("torch", "python")
        }
        yield library.model_copy(update=open_ends)


def _problems(
    members: list[zipfile.ZipInfo], found: Iterable[_Member], rows: Mapping[str, Row], info: str
) -> Iterator[str]:
    """Say how RECORD and the files disagree."""
    names = {one.filename for one in members}
    unhashed = {f"{info}/{name}" for name in ("RECORD", *SIGNATURES)}
    yield from (one.problem for one in found if one.problem)
    for name in sorted(names - unhashed):
        row = rows.get(name)
        if row is None:
            yield f"{name} is not in its RECORD"
        elif not row.algorithm:
            yield f"its RECORD has no hash of {name}"
    yield from (f"its RECORD names {name}, which is not there" for name in sorted(rows.keys() - names - unhashed))


def _glibc(version: str) -> tuple[int, int] | None:
    """Return the glibc that has a symbol version; None for a private one."""
    if version == "GLIBC_ABI_DT_RELR":
        return 2, 36
    match = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(\.\d+)?", version)
    return (int(match[1]), int(match[2])) if match else None

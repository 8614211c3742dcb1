"""An installed distribution, taken out of an image, to the wheel that it was: RECORD is proved before it is believed.

What the installer made stays behind (byte code, scripts of entry points, its notes); scripts, headers and data go back
into the `.data` folder; METADATA, WHEEL and all other contents are as they were.
"""

from __future__ import annotations

import configparser
import errno
import fnmatch
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING

from core.errors import ImageRefused
from core.store import full_disk_is_said
from wheels.canonical import MAX_NAME, SIGNATURES, NotAWheel, pack
from wheels.leftover import take
from wheels.naming import HEADER, Identity, identify, machine_of, require_same, require_tags_fit
from wheels.record import Row, difference, parse_record
from wheels.scheme import Place, Scheme, as_in_wheel, candidates, place_of, scheme_of

if TYPE_CHECKING:
    from wheels.images.image import Found

NOTES = frozenset({"INSTALLER", "REQUESTED", "direct_url.json", "uv_build.json", "uv_cache.json"})
"""What installers write into .dist-info: pip, and uv with its own two."""
MOST = 64 * 1024**2
"""Bytes of a RECORD, METADATA or script that is read whole."""
EDITABLE = ("__editable__*", "_editable_impl_*", "*_editable.pth", "*-editable.pth")
"""What an editable installation leaves in the site folder: setuptools, hatchling, scikit-build-core, meson-python."""
_VERSIONED = re.compile(r"(?P<name>pip|easy_install)-?\d+(\.\d+)?")
"""Scripts that pip makes under names with a Python version in them, besides those of entry_points.txt."""


@dataclass(frozen=True)
class Installation:
    """An installed distribution below ``root``: where its parts lie, its RECORD, the scripts its installer made."""

    root: Path
    found: Found
    scheme: Scheme
    rows: tuple[Row, ...]
    generated: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Member:
    """A file that goes into the wheel: proved, on the disk at ``source``, and where in the wheel it belongs."""

    row: Row
    source: Path
    place: Place


def rebuild(
    root: Path, found: Found, target: Path, *, epoch: int, extra: Mapping[str, bytes] = MappingProxyType({})
) -> Path:
    """Write the wheel of a distribution below ``root`` into the folder ``target`` and return its path.

    Every file that goes into it is first compared with RECORD. ``extra`` are further files of its .dist-info, by names
    like "sboms/image.cdx.json"; ``epoch`` is in seconds. A wheel that was left over in the image is taken as it is,
    when its own RECORD is true: its bytes are its publisher's, and nothing is added to them.

    Raises ImageRefused, with the file's name, for what is changed, missing, hostile, editable or no wheel any more.
    """
    with _said_of(found), full_disk_is_said(target):
        target.mkdir(parents=True, exist_ok=True)
        if found.kind == "wheel":
            return take(_plain(root, found.site / found.info), found.name, found.version, target)
        installation = _read(root, found)
        members = _proved(installation)
        identity = _identity(found, members)
        _require_machine(identity, members)
        path = target / identity.filename
        with tempfile.TemporaryDirectory(prefix=".wheel-", dir=root.parent) as place:
            tree = Path(place) / found.info.removesuffix(".dist-info")
            _lay_out(tree, _named(found, identity, members), {f"{found.info}/{name}": extra[name] for name in extra})
            pack(tree, path, epoch)
        return path


@contextmanager
def _said_of(found: Found) -> Iterator[None]:
    """Name the distribution in the error, and what to do."""
    try:
        yield
    except NotAWheel as error:
        raise ImageRefused(
            f"{found.name} {found.version} in /{found.site} of the image: {error}",
            next_move="take another image or tag of it, or have the wheel built from source (a component's origin)",
        ) from error


def _read(root: Path, found: Found) -> Installation:
    info = found.site / found.info
    rows = parse_record(_text(root, info / "RECORD"))
    scheme = scheme_of(found.site, _note(root, info / "INSTALLER"))
    _refuse_editable(_note(root, info / "direct_url.json"), rows)
    listed = {candidates(scheme, row.path)[0] for row in rows if row.algorithm}
    entries = info / "entry_points.txt"
    generated = _generated(_text(root, entries)) if entries in listed else frozenset()
    return Installation(root, found, scheme, rows, generated)


def _text(root: Path, path: PurePosixPath) -> bytes:
    return _whole(_plain(root, path), path.name)


def _whole(source: Path | None, name: str) -> bytes:
    if source is None:
        raise NotAWheel(f"its RECORD does not name its {name}")
    if source.stat().st_size > MOST:
        raise NotAWheel(f"its {name} has more than {MOST // 1024**2} MiB")
    return source.read_bytes()


def _note(root: Path, path: PurePosixPath) -> str:
    """Return what an installer noted down; nothing where it did not."""
    return _text(root, path).decode("utf-8", "replace") if os.path.lexists(root / path) else ""


def _plain(root: Path, path: PurePosixPath) -> Path:
    """Return the file below ``root``. Raises NotAWheel where it is missing, or a link is it or leads to it."""
    place, mode = root, root.lstat().st_mode
    for part in path.parts:
        place /= part
        try:
            mode = place.lstat().st_mode
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
                raise
            raise NotAWheel(f"/{str(path)[:MAX_NAME]} is listed and missing") from error
        if stat.S_ISLNK(mode):
            raise NotAWheel(f"/{place.relative_to(root)} is a link: what it leads to is not the distribution's")
    if not stat.S_ISREG(mode):
        raise NotAWheel(f"/{path} is no file")
    return place


def _refuse_editable(direct_url: str, rows: Iterable[Row]) -> None:
    """Refuse what is installed as a link to a source tree: the wheel's files were never there."""
    try:
        origin = json.loads(direct_url or "{}")
        editable = origin.get("dir_info", {}).get("editable", False)
    except (ValueError, AttributeError, RecursionError) as error:
        raise NotAWheel(f"its direct_url.json cannot be read: {error}") from error
    names = (PurePosixPath(row.path).name for row in rows)
    trace = next((name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in EDITABLE)), "")
    if editable or trace:
        where = f"in {str(origin.get('url'))[:200]}" if editable else f"where {trace} leads"
        raise NotAWheel(f"it is installed as editable, its files lie {where}: no wheel can be made of that")


def _generated(entry_points: bytes) -> frozenset[str]:
    """Return the names of scripts that installers make for entry points. Raises NotAWheel if they cannot be read."""
    parser = configparser.RawConfigParser(delimiters=("=",), strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(entry_points.decode("utf-8"))
    except (UnicodeDecodeError, configparser.Error) as error:
        raise NotAWheel(f"its entry_points.txt cannot be read: {str(error).splitlines()[0]}") from error
    groups = (group for group in ("console_scripts", "gui_scripts") if parser.has_section(group))
    return frozenset(name for group in groups for name, _ in parser.items(group))


def _proved(installation: Installation) -> tuple[Member, ...]:
    """Return the files that go into the wheel, each compared with RECORD. Raises NotAWheel for the first that lies."""
    return tuple(_member(installation, row) for row in installation.rows if not _left_behind(installation, row))


def _left_behind(installation: Installation, row: Row) -> bool:
    """Say whether the installer made it, or it belongs to the RECORD that is made anew."""
    found, scheme = installation.found, installation.scheme
    if row.path.endswith(".pyc") and ("__pycache__" in PurePosixPath(row.path).parts or not row.algorithm):
        candidates(scheme, row.path)  # refuses what leads out of the root, whoever made it
        return True
    place = place_of(scheme, row.path, found.name)
    if place.kind == "scripts":
        versioned = _VERSIONED.fullmatch(place.path)
        names = {place.path, versioned["name"]} if versioned else {place.path}
        return bool(names & installation.generated)
    folder, _, name = place.path.partition("/")
    return place.kind == "root" and folder == found.info and name in {*NOTES, *SIGNATURES, "RECORD"}


def _member(installation: Installation, row: Row) -> Member:
    if not row.algorithm:
        raise NotAWheel(f"its RECORD has no hash of {row.path}: nothing proves what it is")
    places = candidates(installation.scheme, row.path)
    there = [place for place in places if os.path.lexists(installation.root / place)] or places
    wrong = ""
    for place in there:
        source = _plain(installation.root, place)
        with source.open("rb") as file:
            wrong = difference(row, file)
        if not wrong:
            return Member(row, source, place_of(installation.scheme, row.path, installation.found.name))
    raise NotAWheel(wrong)


def _identity(found: Found, members: Iterable[Member]) -> Identity:
    """Read METADATA and WHEEL, both proved, and compare them with what the image was searched for."""
    own = {member.place.path: member.source for member in members if member.place.kind == "root"}
    metadata, wheel = (_whole(own.get(f"{found.info}/{name}"), name) for name in ("METADATA", "WHEEL"))
    identity = identify(metadata, wheel, found.info)
    require_same(f"{found.name}-{found.version}", identity.name, identity.version)
    return identity


def _require_machine(identity: Identity, members: Iterable[Member]) -> None:
    for member in members:
        with member.source.open("rb") as file:
            machine = machine_of(file.read(HEADER))
        if machine:
            require_tags_fit(identity.tags, member.row.path, machine)


def _named(found: Found, identity: Identity, members: Iterable[Member]) -> dict[str, Member]:
    """Return the members by their names in the wheel. Raises NotAWheel for one that is there twice."""
    data = found.info.removesuffix(".dist-info") + ".data"
    twin = f"{data}/{'platlib' if identity.root_is_purelib else 'purelib'}"
    named: dict[str, Member] = {}
    for member in members:
        kind, path = member.place.kind, member.place.path
        name = {"root": path, "twin": f"{twin}/{path}"}.get(kind, f"{data}/{kind}/{path}")
        if name in named:
            raise NotAWheel(f"its RECORD names {member.row.path} twice")
        named[name] = member
    return named


def _lay_out(tree: Path, named: Mapping[str, Member], extra: Mapping[str, bytes]) -> None:
    """Lay the wheel's files out as links to those of the root; only scripts are written anew, where they change."""
    taken = {*named, *extra}
    for name in taken:
        if len(name.encode()) > MAX_NAME:
            raise NotAWheel(f"{name[:40]}… is too long a name")
        above = next((str(up) for up in PurePosixPath(name).parents if str(up) in taken), None)
        if above or (name in named and name in extra):
            raise NotAWheel(f"{name} and {above or 'a file that is to be added'} exclude each other")
    for name, member in named.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.place.kind == "scripts":
            _lay_script(path, member.source)
        else:
            path.hardlink_to(member.source)
    for name, content in extra.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _lay_script(path: Path, source: Path) -> None:
    status = source.stat()
    content = source.read_bytes() if status.st_size <= MOST else b""
    changed = as_in_wheel(content)
    if changed == content:
        path.hardlink_to(source)
    else:
        path.write_bytes(changed)
        path.chmod(stat.S_IMODE(status.st_mode))

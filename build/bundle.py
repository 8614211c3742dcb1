"""One file with all that recipes need, for a host without network: git objects, source files, requirement wheels.

A bundle is a tar file, the same bytes for the same contents. It begins with index.json: `{"format": 1, "files":
{NAME: {"sha256": …, "size": …}}}`. The names are `git/HOST/PATH.git/COMMIT.pack`, `files/SHA256/NAME`, and below
`requirements/` and `toolkits/` what the caller gives. The project has the patches.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from build.git import Mirror
from build.packs import add_pack, pack
from build.recipe import Origin, Recipe
from build.source import TIME, origin_file
from build.submodules import gather
from build.tree import remove_tree
from core.config import WORK, Model, shown
from core.errors import BuildFailed, UsageError
from core.plan import Report, megabytes
from core.store import digest, full_disk_is_said, held, intact, settled

INDEX = "index.json"
LARGEST_INDEX = 64 * 1024**2
EXTRA = ("requirements", "toolkits")
"""Folders of `.work/` that a bundle may carry besides git objects and source files."""
_GIT = re.compile(r"git/(?P<mirror>[^/]+/.+\.git)/(?P<commit>[0-9a-f]{40})\.pack")
_FILE = re.compile(r"files/(?P<sha256>[0-9a-f]{64})/[^/]+")


class Entry(Model):
    """One file of a bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Index(Model):
    """index.json."""

    format: Literal[1] = 1
    files: dict[str, Entry]


def write_bundle(
    recipes: Iterable[Recipe],
    extra: Sequence[tuple[str, Path]],
    target: Path,
    report: Report,
    *,
    work: Path = WORK,
) -> str:
    """Write what the recipes need to ``target`` and return its SHA-256 (hex); fetches what is not there yet.

    ``extra`` is (name in the bundle, file); the name begins with `requirements/` or `toolkits/`. Raises BuildFailed
    when something cannot be had, HostNotReady when the disk is full.
    """
    with full_disk_is_said(target), _scratch(work, report) as scratch:
        files = {name: path for name, path in extra if _extra_name(name)}
        for origin in _origins(recipes):
            files |= _files_of(origin, scratch, report, work)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        _write(files, part)
        settled(part, target)
    found = digest(target)
    report(f"{shown(target)}: {len(files)} files, {megabytes(target.stat().st_size)}, sha256 {found}")
    return found


def _extra_name(name: str) -> str:
    if not (name.partition("/")[0] in EXTRA or _FILE.fullmatch(name)) or not _is_plain(name):
        raise UsageError(f"{name!r} has no place in a bundle", next_move=f"put it below one of: {', '.join(EXTRA)}")
    return name


def _is_plain(name: str) -> bool:
    return name.isprintable() and all(part and not part.startswith(".") for part in name.split("/")) and "/" in name


def _origins(recipes: Iterable[Recipe]) -> Iterator[Origin]:
    for recipe in recipes:
        yield recipe.source
        yield from recipe.dependencies


def _files_of(origin: Origin, scratch: Path, report: Report, work: Path) -> dict[str, Path]:
    """Return, by their names in the bundle, the files that one origin needs; packs are written to ``scratch``."""
    if origin.sha256:
        path = origin_file(origin, report, work=work)
        return {f"files/{origin.sha256}/{path.name}": path}
    if not origin.repository or not origin.commit:
        return {}
    pins = gather(origin.repository, origin.commit, origin.reference, report, submodules=origin.submodules, work=work)
    names = {f"git/{pin.mirror.folder.relative_to(work / 'mirrors').as_posix()}/{pin.commit}.pack": pin for pin in pins}
    for name, pin in names.items():
        if not (scratch / name).exists():
            report(f"pack {name.removeprefix('git/')}")
            pack(pin.mirror, pin.commit, scratch / name)
    return {name: scratch / name for name in names}


def _write(files: dict[str, Path], target: Path) -> None:
    entries = {name: Entry(sha256=digest(files[name]), size=files[name].stat().st_size) for name in sorted(files)}
    index = Index(files=entries).model_dump_json(indent=1).encode()
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(_header(INDEX, len(index)), io.BytesIO(index))
        for name, entry in entries.items():
            with files[name].open("rb") as file:
                tar.addfile(_header(name, entry.size), file)


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = size, TIME, 0o644
    return header


def read_bundle(bundle: Path, report: Report, *, work: Path = WORK) -> tuple[str, ...]:
    """Put a bundle's files where assemble() and the builder look for them, and return their names.

    All of it is checked before any of it is used. Raises BuildFailed naming the first file that is not as the index
    says, is missing or has no place; HostNotReady when the disk is full.
    """
    with full_disk_is_said(work), _scratch(work, report) as scratch:
        index = _checked(bundle, scratch)
        packs = [found for found in map(_GIT.fullmatch, index.files) if found]
        for found in packs:
            mirror = Mirror(found["mirror"], work / "mirrors" / found["mirror"])
            report(f"read {found['mirror']} at {found['commit'][:12]}")
            add_pack(mirror, found["commit"], scratch / found[0], report)
        for name in index.files.keys() - {found[0] for found in packs}:
            _move(scratch / name, work / name, report, work)
    report(f"{len(index.files)} files read from {shown(bundle)}")
    return tuple(index.files)


def _checked(bundle: Path, scratch: Path) -> Index:
    """Unpack the bundle to ``scratch`` and return its index; refuse it whole when anything does not fit."""
    try:
        with tarfile.open(bundle, "r:") as tar:
            index = _read_index(tar, bundle)
            seen = {_take(tar, member, index, scratch, bundle) for member in tar if member.name != INDEX}
    except OSError as error:
        raise _refused(bundle, f"cannot be read: {error.strerror or error}") from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _refused(bundle, f"is damaged: {error}") from error
    missing = sorted(index.files.keys() - seen)
    if missing:
        raise _refused(bundle, f"lacks {missing[0]}")
    return index


def _read_index(tar: tarfile.TarFile, bundle: Path) -> Index:
    first = tar.next()
    file = tar.extractfile(first) if first and first.name == INDEX and first.size <= LARGEST_INDEX else None
    if file is None:
        raise _refused(bundle, f"does not begin with {INDEX}")
    try:
        return Index.model_validate_json(file.read())
    except ValidationError as error:
        raise _refused(bundle, f"has an {INDEX} that cannot be read: {error.errors()[0]['msg']}") from error


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, index: Index, scratch: Path, bundle: Path) -> str:
    """Write one file to ``scratch`` and compare it with the index."""
    entry = index.files.get(member.name)
    if entry is None or not member.isreg() or not _has_place(member.name) or (scratch / member.name).exists():
        raise _refused(bundle, f"holds {member.name[:200]!r}, which does not belong there")
    source = tar.extractfile(member)
    assert source is not None
    path = scratch / member.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file, 1024**2)
    found = _FILE.fullmatch(member.name)
    if digest(path) not in {entry.sha256} & {found["sha256"] if found else entry.sha256}:
        raise _refused(bundle, f"was changed: {member.name} is not what its index says")
    return member.name


def _has_place(name: str) -> bool:
    return _is_plain(name) and bool(_GIT.fullmatch(name) or _FILE.fullmatch(name) or name.partition("/")[0] in EXTRA)


def _move(path: Path, target: Path, report: Report, work: Path) -> None:
    found = _FILE.fullmatch(target.relative_to(work).as_posix())
    if found and intact(found["sha256"], report, work=work):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    settled(path, target)


def _refused(bundle: Path, why: str) -> BuildFailed:
    return BuildFailed(
        f"the bundle {shown(bundle)} {why}; nothing of it was used",
        next_move="copy it again, or write it again with `invoke build.bundle`",
    )


@contextmanager
def _scratch(work: Path, report: Report) -> Iterator[Path]:
    folder = work / "bundle"
    with held(work / ".bundle.lock", "writes or reads a bundle", report):
        remove_tree(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            remove_tree(folder)

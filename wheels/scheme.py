"""Where installers put the parts of a wheel, read backwards: from an installed file to its name in the wheel.

The site folder tells the prefix: `usr/local/lib/python3.12/dist-packages` belongs to `usr/local`, Debian's own
`usr/lib/python3/dist-packages` to `usr`, `lib/python` (pip --home) to the folder above. Every other folder was named by
somebody (`--target`): pip writes RECORD there as if it were `lib/python` and then moves all into that one folder, and
uv has scripts, headers and data in it under their own names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from packaging.utils import canonicalize_name

from wheels.canonical import NotAWheel
from wheels.record import located

_LIBRARY = re.compile(r"python\d+(\.\d+)?t?")
_HEADERS = re.compile(r"include/(?:site/)?python(?:\d+(?:\.\d+)?t?)?/(?P<name>[^/]+)/(?P<rest>.+)")
_HEADERS_OF_UV = re.compile(r"include/(?P<name>[^/]+)/(?P<rest>.+)")
_UP = "../../"
"""How pip leads from `lib/python` to its prefix."""


@dataclass(frozen=True)
class Scheme:
    """An installation: ``site`` and ``prefix`` relative to the image's root; ``twin`` is lib64 for lib and back.

    ``prefix`` is None where the site folder was named by somebody. ``uv`` says who installed.
    """

    site: PurePosixPath
    prefix: PurePosixPath | None
    twin: PurePosixPath | None = None
    home: bool = False
    uv: bool = False


@dataclass(frozen=True)
class Place:
    """What a file is to a wheel: "root", "twin", "scripts", "headers" or "data", and its path in there."""

    kind: str
    path: str


def scheme_of(site: PurePosixPath, installer: str = "") -> Scheme:
    """Return the scheme of a site folder; ``installer`` is what the file INSTALLER says."""
    uv = installer.strip() == "uv"
    parts = site.parts
    if parts[-2:] == ("lib", "python"):
        return Scheme(site, PurePosixPath(*parts[:-2]), home=True, uv=uv)
    if not _is_library(parts[-3:]):
        return Scheme(site, None, uv=uv)
    prefix = PurePosixPath(*parts[:-3])
    other = "lib" if parts[-3] == "lib64" else "lib64"
    return Scheme(site, prefix, prefix.joinpath(other, *parts[-2:]), uv=uv)


def _is_library(parts: tuple[str, ...]) -> bool:
    return (
        len(parts) == 3
        and parts[0] in {"lib", "lib64"}
        and _LIBRARY.fullmatch(parts[1]) is not None
        and parts[2] in {"site-packages", "dist-packages"}
    )


def candidates(scheme: Scheme, path: str) -> tuple[PurePosixPath, ...]:
    """Return where a file of RECORD may lie, relative to the image's root, the likelier place first.

    It is one place, but for what `pip install --target` moved. Raises NotAWheel for a path that leads out of the root.
    """
    moved = (located(scheme.site, path.removeprefix(_UP)),) if path.startswith(_UP) else ()
    if moved and scheme.prefix is None:
        return moved
    return (located(scheme.site, path), *(moved if scheme.home else ()))


def place_of(scheme: Scheme, path: str, name: str) -> Place:
    """Return what the file is to the wheel of the distribution ``name``; ``path`` is as RECORD writes it.

    Raises NotAWheel for a file that lies outside the prefix.
    """
    lies = candidates(scheme, path)[0]
    if scheme.twin and lies.is_relative_to(scheme.twin):
        return Place("twin", str(lies.relative_to(scheme.twin)))
    if scheme.prefix is None:
        return _place_in_target(scheme, path, lies, name)
    if lies.is_relative_to(scheme.site):
        return Place("root", str(lies.relative_to(scheme.site)))
    if not lies.is_relative_to(scheme.prefix):
        raise NotAWheel(f"its RECORD names {path}, which lies outside /{scheme.prefix}, where it is installed")
    return _below_prefix(str(lies.relative_to(scheme.prefix)), name, _HEADERS)


def _place_in_target(scheme: Scheme, path: str, lies: PurePosixPath, name: str) -> Place:
    if not lies.is_relative_to(scheme.site):
        raise NotAWheel(f"its RECORD names {path}, which lies outside /{scheme.site}, where it is installed")
    inside = str(lies.relative_to(scheme.site))
    if path.startswith(_UP):
        return _below_prefix(inside, name, _HEADERS)
    if scheme.uv and inside.partition("/")[0] in {"bin", "include", "share", "etc"}:
        return _below_prefix(inside, name, _HEADERS_OF_UV)
    return Place("root", inside)


def _below_prefix(inside: str, name: str, headers: re.Pattern[str]) -> Place:
    if inside.startswith("bin/"):
        return Place("scripts", inside.removeprefix("bin/"))
    found = headers.fullmatch(inside)
    if found and canonicalize_name(found["name"]) == canonicalize_name(name):
        return Place("headers", found["rest"])
    return Place("data", inside)


_SHELL = re.compile(rb"#!/bin/sh\n'''exec' [^\n]*python[^\n]* \"\$0\" \"\$@\"\n' '''(?=\n|\Z)")
"""What stands for `#!` where the interpreter's path is too long for the kernel or has blanks in it."""
_DIRECT = re.compile(rb"#!(/[^\n ]*)?/python(\d+(\.\d+)?t?)?(?P<graphical>w?)(?=[ \n]|\Z)")


def as_in_wheel(script: bytes) -> bytes:
    """Return a script with `#!python` for the interpreter that the installer put in; others are as they were.

    `#!/usr/bin/env python3` was never the installer's. Arguments behind the interpreter stay.
    """
    shell = _SHELL.match(script)
    if shell:
        return b"#!python" + script[shell.end() :]
    found = _DIRECT.match(script)
    return b"#!python" + found["graphical"] + script[found.end() :] if found else script

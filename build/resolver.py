"""uv as the resolver: requirements in, hashed entries of a lock out."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from build.metadata import Stub, write_stubs
from core.errors import BuildFailed
from core.process import run

TIMEOUT = 900
NO_SOLUTION = 1
"""uv's exit code when no set of versions fits; 2 is any other error."""


@dataclass(frozen=True)
class Wanted:
    """What is to be resolved. ``label`` names the file that the requirements are from."""

    label: str
    requirements: tuple[str, ...]
    python: str
    """Oldest minor version that the lock is for; the only one where ``platform`` is given."""
    stubs: tuple[Stub, ...] = ()
    """Enter the resolution, and do not stand in what comes out."""
    without: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    platform: str | None = None
    """As uv names it; without it for all platforms."""
    exclude_newer: str | None = None
    """The moment (RFC 3339) before which files of the index count."""
    alone: bool = False
    """The requirements are the whole set: what they require themselves is left out."""


def resolve(wanted: Wanted, *, offline: bool = False) -> str:
    """Return the entries of the lock, sorted, hashed, each with what it is for.

    Only wheels count. Raises BuildFailed with uv's own words: where nothing fits, what excludes what.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _lines(folder / "wanted", wanted.requirements)
        _lines(folder / "excludes", wanted.without)
        _lines(folder / "overrides", wanted.overrides)
        write_stubs(folder / "stubs", wanted.stubs)
        argv = (sys.executable, "-m", "uv", "pip", "compile", *flags(wanted), *(["--offline"] if offline else []))
        # no Python is fetched for the sake of another version's markers
        environment = {"UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
        done = run(argv, check=False, env=environment, cwd=folder, timeout=TIMEOUT)
    if done.code != 0:
        raise _refused(wanted, done.code, _words(done.err))
    text = done.out.partition("# The following packages were excluded")[0].rstrip() + "\n"
    return text.replace("-r wanted", wanted.label).replace("--override overrides", f"{wanted.label} [overrides]")


def flags(wanted: Wanted) -> tuple[str, ...]:
    """Return uv's arguments, for a folder that holds `wanted`, `excludes`, `overrides` and `stubs/`."""
    where = ("--python-platform", wanted.platform) if wanted.platform else ("--universal",)
    return (
        *("--no-config", "--quiet", *where, "--python-version", wanted.python),
        *(("--exclude-newer", wanted.exclude_newer) if wanted.exclude_newer else ()),
        *(("--no-deps",) if wanted.alone else ()),
        *("--generate-hashes", "--only-binary", ":all:", "--no-header", "--find-links", "stubs"),
        *(word for stub in wanted.stubs for word in ("--no-emit-package", stub.name)),
        *("--excludes", "excludes", "--override", "overrides", "wanted"),
    )


def _lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _words(text: str) -> str:
    """Return uv's explanation without its warnings."""
    start = text.find("error:")
    return text[max(start, 0) :].strip()


def _refused(wanted: Wanted, code: int, words: str) -> BuildFailed:
    if "network was disabled" in words:
        return BuildFailed(
            f"what uv has kept is not enough to resolve {wanted.label}",
            next_move="run it again without --offline",
            evidence=words,
        )
    if code == NO_SOLUTION and "No solution found" in words:
        return BuildFailed(
            f"the requirements of {wanted.label} do not fit each other",
            next_move=f"change one of the two in {wanted.label}; a stack can say under [overrides] why both may stay",
            evidence=words,
        )
    return BuildFailed(
        f"{wanted.label} could not be resolved",
        next_move="see what uv says; it follows UV_DEFAULT_INDEX",
        evidence=words,
    )

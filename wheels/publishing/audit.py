"""A release folder as it came from elsewhere: is every byte what its hashes, its manifest and its signer say?"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from core.config import shown
from core.errors import SignatureRefused
from core.store import digest
from wheels.manifest import LOCK, MANIFEST, SIGNATURE, Manifest
from wheels.publishing.release import SIGNED, SUMS, names_in
from wheels.signature import verify

_LINE = re.compile(r"([0-9a-f]{64})  ([^/\\\x00-\x1f][^\\\x00-\x1f]*)")


def audit(folder: Path, signers: Path | None = None) -> str:
    """Return who signed the release in ``folder``, empty without ``signers`` (OpenSSH's allowed_signers).

    Every file is hashed, every wheel compared with manifest and lock. Raises SignatureRefused naming what is not so.
    """
    who = {verify(folder / name, signers) for name in SIGNED} if signers else set()
    sums = _sums(folder)
    there = set(names_in(folder)) - {SUMS, *(f"{name}{SIGNATURE}" for name in SIGNED)}
    for name in sorted(there ^ sums.keys()):
        raise _refused(folder, f"{name} is not in its {SUMS}" if name in there else f"{name} is missing")
    for name, sha256 in sums.items():
        found = digest(folder / name)
        if found != sha256:
            raise _refused(folder, f"{name} was changed: its sha256 is {found}, its {SUMS} says {sha256}")
    _compare(folder, sums)
    return ", ".join(sorted(who))


def _sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(folder, f"its {SUMS} cannot be read") from error
    found = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or ".." in match[2].split("/") or match[2] in found:
            raise _refused(folder, f"its {SUMS} has a line that is none: {line[:80]!r}")
        found[match[2]] = match[1]
    return found


def _compare(folder: Path, sums: dict[str, str]) -> None:
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (ValidationError, OSError) as error:
        raise _refused(folder, f"its {MANIFEST} cannot be read") from error
    if sums.get(LOCK) != manifest.lock_sha256:
        raise _refused(folder, f"its {LOCK} is not the one that its {MANIFEST} names")
    for wheel in manifest.wheels:
        if sums.get(wheel.filename) != wheel.sha256:
            raise _refused(folder, f"{wheel.filename} is not the one that its {MANIFEST} names")


def _refused(folder: Path, why: str) -> SignatureRefused:
    return SignatureRefused(
        f"{shown(folder)} is not a whole release: {why}", next_move="do not install from it; fetch it again"
    )

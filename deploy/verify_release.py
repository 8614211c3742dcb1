"""Asks on a node whether what was pushed is what somebody who may do so has signed; standard library only, and alone.

    python3 verify_release.py FOLDER NAMESPACE [WHEELS]

FOLDER holds manifest.json, manifest.json.sig, stack.lock and allowed_signers. The signature vouches for the manifest,
that for stack.lock, that for every wheel in the folder WHEELS. Answers who signed, or says what is not so and ends
with 1. It changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ENTRY = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")


def main(argv: Sequence[str]) -> int:
    """Verify; return the exit code."""
    folder, namespace, *wheels = argv
    try:
        who = signer(Path(folder), namespace)
        listed = require_lock(Path(folder))
        for place in wheels:
            require_wheels(listed, Path(place))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"refused: {error}")
        return 1
    print(f"good: {who}")
    return 0


def signer(folder: Path, namespace: str) -> str:
    """Return who signed the manifest. Raises ValueError with what ssh-keygen says."""
    manifest = folder / "manifest.json"
    allowed = ("-f", str(folder / "allowed_signers"), "-s", str(folder / "manifest.json.sig"))
    who = keygen(("find-principals", *allowed), manifest).splitlines()[0]
    keygen(("verify", "-I", who, "-n", namespace, *allowed), manifest)
    return who


def keygen(words: Sequence[str], signed: Path) -> str:
    """Run `ssh-keygen -Y` with what is signed on its input, and return what it prints."""
    with signed.open("rb") as content:
        done = subprocess.run(
            ["ssh-keygen", "-Y", *words],
            stdin=content,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    if done.returncode or not done.stdout.strip():
        raise ValueError(f"the signature of manifest.json: {done.stdout}{done.stderr}")
    return done.stdout


def require_lock(folder: Path) -> dict[str, str]:
    """Return file name to SHA-256 of every wheel. Raises ValueError when lock and manifest do not name the same."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    lock = (folder / "stack.lock").read_bytes()
    found = hashlib.sha256(lock).hexdigest()
    if found != manifest["lock_sha256"]:
        raise ValueError(f"stack.lock is not the one that was signed: its sha256 is {found}")
    told = sorted(f"{one['name']}=={one['version']} {one['sha256']}" for one in manifest["wheels"])
    named = sorted(entries(lock.decode()))
    if told != named:
        other = sorted({*told} ^ {*named})
        raise ValueError(f"stack.lock and manifest.json do not name the same wheels: {', '.join(other)[:300]}")
    return dict(plain(one) for one in manifest["wheels"])


def entries(lock: str) -> Iterator[str]:
    """Yield `NAME==VERSION SHA256` of every line but comments."""
    for line in lock.splitlines():
        match = ENTRY.fullmatch(line)
        if match:
            yield f"{match['name']}=={match['version']} {match['sha256']}"
        elif line and not line.startswith("#"):
            raise ValueError(f"stack.lock has a line that is none: {line[:80]!r}")


def plain(wheel: dict[str, Any]) -> tuple[str, str]:
    """Return a wheel's file name and hash. Raises ValueError for a name that leads elsewhere."""
    name = wheel["filename"]
    if name != Path(name).name or not name.endswith(".whl"):
        raise ValueError(f"{name!r} is no file name of a wheel")
    return name, wheel["sha256"]


def require_wheels(listed: dict[str, str], place: Path) -> None:
    """Refuse wheels that are not there or are not those that were signed."""
    for name, sha256 in sorted(listed.items()):
        path = place / name
        if not path.is_file():
            raise ValueError(f"{name} is missing in {place}")
        found = digest(path)
        if found != sha256:
            raise ValueError(f"{name} is not the one that was signed: its sha256 is {found}")


def digest(path: Path) -> str:
    """Return a file's SHA-256 (hex); by hand, because Python 3.10 has no file_digest."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1024 * 1024):
            total.update(chunk)
    return total.hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

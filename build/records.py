"""What was built stays built: an accepted wheel is recorded at once, so that an interrupted command goes on after it.

A record is `built/NAME.json` in the wheels' folder and has the form of the manifest's entry.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import BuildFailed
from core.store import has_size
from wheels.manifest import Wheel, sha256_of


def record(place: Path, wheel: Wheel) -> None:
    """Write down that the wheel in ``place`` was built and accepted."""
    path = place / "built" / f"{wheel.name}.json"
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(wheel.model_dump_json(indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def recorded(place: Path) -> tuple[Wheel, ...]:
    """Return the wheels that were built and are still there with their size."""
    records = sorted((place / "built").glob("*.json"))
    wheels = (Wheel.model_validate_json(path.read_text(encoding="utf-8")) for path in records)
    return tuple(wheel for wheel in wheels if has_size(place / wheel.filename, wheel.size))


def described(place: Path, filename: str) -> Wheel:
    """Return the record of a built wheel, its hash checked. Raises BuildFailed when it is missing or another one."""
    for wheel in recorded(place):
        if wheel.filename == filename and sha256_of(place / filename) == wheel.sha256:
            return wheel
    (place / filename).unlink(missing_ok=True)
    raise BuildFailed(f"{filename} is not the wheel that was built", next_move="run the same command again")

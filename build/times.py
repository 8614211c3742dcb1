"""How long the last build of a recipe took on a machine, so that the next one can say what to expect."""

from __future__ import annotations

import json

from core.config import WORK


def expected_seconds(site: str, name: str) -> float | None:
    """Return the seconds of the last build of ``name`` at ``site``; None when there was none."""
    return _times().get(f"{site} {name}")


def keep_seconds(site: str, name: str, seconds: float) -> None:
    """Write down how long a build took."""
    path = WORK / "build" / "times.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({**_times(), f"{site} {name}": seconds}, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def _times() -> dict[str, float]:
    try:
        found = json.loads((WORK / "build" / "times.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

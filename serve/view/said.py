"""What a node said, as values of a known type: files of others can hold anything. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from core.parsers import shown

LONGEST = 400
"""Signs of one text that fit on a screen."""
LATEST = 2.5e11
"""The last second that a date can be made of, nearly (the year 9892)."""
DAY = 86400.0


def text(value: Any) -> str:
    """Return a text as it may be shown, cut where it is long; nothing for anything else."""
    return (
        shown(value[: LONGEST + 1])[:LONGEST] + ("…" if len(value) > LONGEST else "") if isinstance(value, str) else ""
    )


def number(value: Any) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def count(value: Any) -> int:
    """Return a number of things; 0 for anything else."""
    return int(number(value) or 0)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return an object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def rows(value: Any) -> list[Any]:
    """Return a list; an empty one for anything else."""
    return value if isinstance(value, list) else []


def age(moment: float | None, now: float) -> float | None:
    """Return the seconds since a moment; None where the moment or the time is not known."""
    return None if moment is None or not now else now - moment


def span(seconds: float) -> str:
    """Return a time in words: "12 s", "3 min", "2 h 5 min", "3 d 4 h"."""
    whole = int(max(0.0, seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole} s"
    if hours < 2:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 2 else f"{days} d {hours % 24} h"


def clock(moment: float, now: float) -> str:
    """Return a moment as people read it, in UTC as in the logs, with the day where it is not of the last hours."""
    if not 0 < moment < LATEST:
        return "at no time"
    form = "%H:%M:%S UTC" if abs(now - moment) < DAY / 2 else "%Y-%m-%d %H:%M:%S UTC"
    return datetime.fromtimestamp(moment, UTC).strftime(form)

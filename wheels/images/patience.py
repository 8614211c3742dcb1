"""How often and how long a server is asked again that is busy, or whose connection broke."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from core.errors import RegistryRefused
from core.plan import Report

TRIES = 5
"""How often in a row, without anything that came in between."""
FIRST_PAUSE = 1.0
"""Seconds before the second try; doubled for each further one, where the server does not say how long."""
LONGEST_PAUSE = 120.0
"""Seconds that a server may ask us to wait at once."""
LONGEST_WAIT = 300.0
"""Seconds of all pauses of one request."""
BUSY = (429, 500, 502, 503, 504)
NEXT = "run the same command again later; what was fetched is kept"


class Patience:
    """Counts tries and seconds, pauses, and says so."""

    def __init__(self, host: str, report: Report) -> None:
        self.host = host
        self._report = report
        self._tries = 0
        self._waited = 0.0

    def progress(self) -> None:
        """Begin to count anew: something came."""
        self._tries = 0
        self._waited = 0.0

    def after_busy(self, status: int, headers: httpx.Headers) -> None:
        """Pause as long as the server asks for. Raises RegistryRefused when that is too long, or too often."""
        asked = retry_after(headers.get("Retry-After", ""))
        if asked is not None and asked > LONGEST_PAUSE:
            raise RegistryRefused(f"{self.host} is busy ({status}) and asks to wait {asked:.0f} s", next_move=NEXT)
        self._pause(f"{self.host} is busy ({status})", asked)

    def after_break(self, error: str) -> None:
        """Pause after a connection broke. Raises RegistryRefused when that was too often."""
        self._pause(f"the connection to {self.host} broke ({error})", None)

    def _pause(self, why: str, asked: float | None) -> None:
        self._tries += 1
        seconds = FIRST_PAUSE * 2 ** (self._tries - 1) if asked is None else asked
        if self._tries >= TRIES or self._waited + seconds > LONGEST_WAIT:
            raise RegistryRefused(f"{why}, {self._tries} times in a row", next_move=NEXT)
        self._report(f"{why}: try {self._tries + 1} of {TRIES} in {seconds:.0f} s")
        self._waited += seconds
        time.sleep(seconds)


def retry_after(text: str) -> float | None:
    """Return the seconds that a header Retry-After asks for, a number or a date; None where it says neither."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    aware = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (aware - datetime.now(UTC)).total_seconds())

"""A clock for waiting and for ages: seconds since the epoch as they were when we began, and steady from then on.

The time of day jumps when a machine first hears from a time server; a service that was silent for an hour by that clock
has been silent for a second.
"""

from __future__ import annotations

import time

BEGAN = time.time() - time.monotonic()
"""What this process adds to the steady clock, which all processes of one boot share."""


def now() -> float:
    """Return the time in seconds since the epoch, as this process counts it."""
    return BEGAN + time.monotonic()

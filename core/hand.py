"""Who does what a command does to the nodes, and since when: noted with releases, and told to whoever has to wait."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Hand:
    """A user at a controller; ``at`` is ISO 8601 in UTC, to the second."""

    by: str = "?"
    at: str = "?"

    @classmethod
    def mine(cls) -> Hand:
        """Return who we are, now."""
        return cls(f"{user()}@{socket.gethostname()}", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")


def user() -> str:
    """Return who works here; a user without a name by the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"


NOBODY = Hand()

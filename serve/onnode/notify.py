"""Words to systemd: ready, alive, what it does now (sd_notify(3))."""

from __future__ import annotations

import os
import socket


def notify(*words: str) -> None:
    """Send words like `READY=1`; nothing where no systemd listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
        line.connect("\0" + address[1:] if address.startswith("@") else address)
        line.sendall("\n".join(words).encode())

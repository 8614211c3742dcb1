"""One command at a time works on a cluster; a second one is told who holds it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from core.config import Cluster
from core.errors import LockHeld


@contextmanager
def locked(cluster: Cluster, command: str) -> Iterator[None]:
    """Hold the cluster's lock for ``command``. The kernel frees it when we end, however we end.

    Raises LockHeld naming the holder's command, process and start.
    """
    cluster.state.mkdir(parents=True, exist_ok=True)
    with (cluster.state / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _held(cluster, file.read()) from error
        file.truncate(0)
        file.write(json.dumps({"command": command, "pid": os.getpid(), "since": f"{datetime.now(UTC):%F %T} UTC"}))
        file.flush()
        yield
        file.truncate(0)


def _held(cluster: Cluster, text: str) -> LockHeld:
    try:
        holder = json.loads(text)
        who = f"{holder['command']} (process {holder['pid']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        who = "another command"
    return LockHeld(f"{who} works on the cluster {cluster.name}", next_move="wait for it to end, or stop it")

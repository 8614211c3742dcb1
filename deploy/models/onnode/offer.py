"""Offers a model of this node to others on the fabric, for the time that they take it.

`python3 -m deploy.models.onnode.offer REQUEST` reads and removes the request:

    {"address": "172.16.100.1", "port": 29777, "secret": HEX, "folder": "/opt/sparkstack/models/Qwen/..."}

It listens on the fabric address only, and ends when nobody has asked for a while. Nobody gets anything without the
secret (deploy/onnode/serving.py).
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from deploy.models.onnode import files
from deploy.models.onnode.files import Entry
from deploy.onnode import common, serving
from deploy.onnode.common import say
from deploy.onnode.serving import Served, server

HERE = "/here"
"""What a node asks for that has something else to do, and still takes the model."""


def main(request: Path) -> int:
    """Offer what the file names; return the exit code."""
    return common.ended(lambda: serve(common.taken(request)))


@dataclass(frozen=True)
class Model:
    """A whole model as what is offered."""

    folder: Path
    manifest: bytes
    entries: tuple[Entry, ...]

    def size(self, number: int) -> int | None:
        """Return a file's size, by its number in the manifest."""
        return self.entries[number].size if number < len(self.entries) else None

    def open(self, number: int) -> BinaryIO:
        """Open it."""
        return (self.folder / self.entries[number].path).open("rb")

    def reach(self, number: int, at: int) -> int:  # noqa: ARG002 - all of it is there
        """Return its size."""
        return self.entries[number].size

    def said(self, path: str) -> bool:
        """Whether a node says that it is at work: that somebody asks is all that counts."""
        return path == HERE


def served(told: Mapping[str, Any]) -> Served:
    """Return what a request to serve names. Raises Refused where there is no whole model."""
    folder = Path(told["folder"])
    entries = files.entries_of(files.read_manifest(folder))
    return Served(Model(folder, (folder / files.MANIFEST).read_bytes(), entries), told["secret"])


def serve(told: Mapping[str, Any]) -> None:
    """Answer until nobody has asked for a while."""
    what = served(told)
    with server(told, what) as made:
        threading.Thread(target=_end_when_idle, args=(made, what), daemon=True).start()
        say(f"serving {told['folder']} at {told['address']}:{made.server_port}")
        made.serve_forever(0.2)
    say(f"nobody asked for {serving.IDLE:.0f} s")


def _end_when_idle(made: ThreadingHTTPServer, what: Served) -> None:
    while what.idle < serving.IDLE:
        time.sleep(min(1.0, serving.IDLE))
    made.shutdown()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

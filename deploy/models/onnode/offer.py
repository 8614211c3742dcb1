"""Offers a model of this node to others on the fabric, for the time that they take it.

`python3 -m deploy.models.onnode.offer REQUEST` reads and removes the request:

    {"address": "172.16.100.1", "port": 29777, "secret": HEX, "folder": "/opt/sparkstack/models/Qwen/..."}

It listens on the fabric address only, and ends when nobody has asked for a while. Nobody gets anything without the
secret, which lives for one relay and never travels: requests, and the answer with the manifest, carry a code made with
it (HMAC-SHA256). The files need none: the manifest says what they must hash to.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from deploy.models.onnode import files
from deploy.models.onnode.files import Entry, Refused, say

CODE = "X-Sparkstack-Code"
IDLE = 120.0
"""Seconds without a request after which the server ends by itself."""

TIMEOUT = 60


def code_of(secret: str, *parts: bytes) -> str:
    """Return the code that only who has the secret can make; parts cannot be moved against each other."""
    text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return hmac.new(bytes.fromhex(secret), text, hashlib.sha256).hexdigest()


def main(request: Path) -> int:
    """Offer what the file names; return the exit code."""
    os.umask(0o022)
    try:
        with files.named_errors():
            serve(files.taken(request))
    except Refused as error:
        say(error.to_json())
        return 1
    return 0


@dataclass
class Served:
    """What is served, and when somebody last asked."""

    folder: Path
    secret: str
    manifest: bytes
    entries: tuple[Entry, ...]
    active: int = 0
    last: float = field(default_factory=time.monotonic)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, change: int) -> None:
        """Count requests under way."""
        with self.lock:
            self.active += change
            self.last = time.monotonic()

    @property
    def idle(self) -> float:
        """Seconds without a request."""
        with self.lock:
            return 0.0 if self.active else time.monotonic() - self.last


def served(told: Mapping[str, Any]) -> Served:
    """Return what a request to serve names. Raises Refused where there is no whole model."""
    folder = Path(told["folder"])
    entries = files.entries_of(files.read_manifest(folder))
    return Served(folder, told["secret"], (folder / files.MANIFEST).read_bytes(), entries)


def server(told: Mapping[str, Any], what: Served) -> ThreadingHTTPServer:
    """Return the server, bound and not yet answering."""
    handler = type("Handler", (_Handler,), {"served": what})
    ThreadingHTTPServer.allow_reuse_address = True
    made = ThreadingHTTPServer((told["address"], told["port"]), handler)
    made.daemon_threads = True
    return made


def serve(told: Mapping[str, Any]) -> None:
    """Answer until nobody has asked for a while."""
    what = served(told)
    with server(told, what) as made:
        threading.Thread(target=_end_when_idle, args=(made, what), daemon=True).start()
        say(f"serving {what.folder} at {told['address']}:{made.server_port}")
        made.serve_forever(0.2)
    say(f"nobody asked for {IDLE:.0f} s")


def _end_when_idle(made: ThreadingHTTPServer, what: Served) -> None:
    while what.idle < IDLE:
        time.sleep(min(1.0, IDLE))
    made.shutdown()


class _Handler(BaseHTTPRequestHandler):
    """Answers `/manifest` and, in ranges, `/file/NUMBER` in the manifest's order."""

    served: Served
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = TIMEOUT

    def do_GET(self) -> None:
        """Answer who has the secret."""
        self.served.count(1)
        try:
            self._answer()
        except OSError:
            self.close_connection = True  # who asked has gone, and asks again
        finally:
            self.served.count(-1)

    def _answer(self) -> None:
        wanted = self.headers.get("Range", "")
        expected = code_of(self.served.secret, self.path.encode(), wanted.encode())
        number = re.fullmatch(r"/file/(\d{1,6})", self.path)
        if not hmac.compare_digest(expected, self.headers.get(CODE, "")):
            self._empty(403)
        elif self.path == "/manifest":
            self._manifest()
        elif number and int(number[1]) < len(self.served.entries):
            self._range(self.served.entries[int(number[1])], wanted)
        else:
            self._empty(404)

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _manifest(self) -> None:
        body = self.served.manifest
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(CODE, code_of(self.served.secret, b"manifest", body))
        self.end_headers()
        self.wfile.write(body)

    def _range(self, entry: Entry, wanted: str) -> None:
        """Send a range out of the page cache, without a copy through this process (sendfile)."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        start, end = (int(match[1]), int(match[2])) if match else (0, -1)
        if not start <= end < entry.size:
            self._empty(416)
            return
        with (self.served.folder / entry.path).open("rb") as file:
            self.send_response(206)
            self.send_header("Content-Length", str(end - start + 1))
            self.send_header("Content-Range", f"bytes {start}-{end}/{entry.size}")
            self.end_headers()
            self.wfile.flush()
            sent = self.connection.sendfile(file, start, end - start + 1)
        self.close_connection = self.close_connection or sent != end - start + 1

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

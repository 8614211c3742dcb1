"""Offers files of this node to others on the fabric, over HTTP, to nobody without the secret.

The secret lives for one relay and never travels: requests, and the answer with the manifest, carry a code made with it
(HMAC-SHA256). The files need none: who takes them knows what they must hash to. What is offered may still be arriving:
a range is answered as it comes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import socketserver
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, Protocol

from deploy.onnode.common import Refused

CODE = "X-Sparkstack-Code"
IDLE = 120.0
"""Seconds without a request after which the server ends by itself."""

TIMEOUT = 60


def code_of(secret: str, *parts: bytes) -> str:
    """Return the code that only who has the secret can make; parts cannot be moved against each other."""
    text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return hmac.new(bytes.fromhex(secret), text, hashlib.sha256).hexdigest()


def is_code(expected: str, told: str) -> bool:
    """Whether it is that code; how long it takes to say so tells nothing of it."""
    return hmac.compare_digest(expected.encode(), told.encode())


class Source(Protocol):
    """What is offered: files by their number, and a manifest of them."""

    @property
    def manifest(self) -> bytes:
        """Return what says which files there are."""

    def size(self, number: int) -> int | None:
        """Return how large a file is once it is whole; None where there is no such file."""

    def open(self, number: int) -> BinaryIO:
        """Open a file, as soon as something of it is there. Raises OSError where nothing comes."""

    def reach(self, number: int, at: int) -> int:
        """Return how many bytes of it are there: more than ``at``, waited for. Raises OSError where none come."""

    def said(self, path: str) -> bool:
        """Take what somebody tells by asking for a path of another kind; False where it means nothing."""


@dataclass
class Served:
    """What is served, and when somebody last asked."""

    source: Source
    secret: str = field(repr=False)
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


class _Server(ThreadingHTTPServer):
    """Listens at once; HTTPServer asks a resolver for the name of its address first, for as long as that takes."""

    def server_bind(self) -> None:
        """Bind, and know the address by its digits."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def server(told: Mapping[str, Any], what: Served) -> ThreadingHTTPServer:
    """Return the server at the request's address and port, bound and not yet answering. Raises Refused."""
    handler = type("Handler", (Handler,), {"served": what})
    address, port = told["address"], told["port"]
    try:
        return _Server((address, port), handler)
    except OSError as error:
        cause = f"{address}:{port} cannot be listened at: {error.strerror or error}"
        raise Refused("network", cause, "look who listens there (ss -ltnp), and whether the fabric is up") from error


class Handler(BaseHTTPRequestHandler):
    """Answers `/manifest` and, in ranges, `/file/NUMBER` in the manifest's order, who has the secret."""

    served: Served
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = TIMEOUT

    def do_GET(self) -> None:
        """Answer; what others ask for counts for nothing, and keeps no offer open."""
        wanted = self.headers.get("Range", "")
        expected = code_of(self.served.secret, self.path.encode(), wanted.encode())
        if not is_code(expected, self.headers.get(CODE, "")):
            self._empty(403)
            return
        self.served.count(1)
        try:
            self._answer(wanted)
        except OSError:
            self.close_connection = True  # who asked has gone, or what was asked for does not come
        finally:
            self.served.count(-1)

    def _answer(self, wanted: str) -> None:
        number = re.fullmatch(r"/file/(\d{1,6})", self.path)
        size = self.served.source.size(int(number[1])) if number else None
        if self.path == "/manifest":
            self._manifest()
        elif number and size is not None:
            self._range(int(number[1]), size, wanted)
        else:
            self._empty(200 if self.served.source.said(self.path) else 404)

    def _empty(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _manifest(self) -> None:
        body = self.served.source.manifest
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(CODE, code_of(self.served.secret, b"manifest", body))
        self.end_headers()
        self.wfile.write(body)

    def _range(self, number: int, size: int, wanted: str) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        start, end = (int(match[1]), int(match[2])) if match else (0, -1)
        if not start <= end < size:
            self._empty(416)
            return
        with self.served.source.open(number) as file:
            self.send_response(206)
            self.send_header("Content-Length", str(end - start + 1))
            self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
            self.end_headers()
            self.wfile.flush()
            self._send(number, file, start, end + 1)

    def _send(self, number: int, file: BinaryIO, at: int, end: int) -> None:
        """Send bytes out of the page cache, without a copy through this process (sendfile), as they are there."""
        while at < end:
            there = min(self.served.source.reach(number, at), end)
            sent = self.connection.sendfile(file, at, there - at)
            if not sent:
                self.close_connection = True  # it is shorter than it was said to be
                return
            at += sent

    def log_message(self, *_: object) -> None:
        """Say nothing."""

"""A registry on loopback that fails on demand: by itself from blobs in memory, or in front of a real one."""

from __future__ import annotations

import base64
import http.client
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.unit.imagesamples import Sample

HOP = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def range(self) -> str | None:
        return self.headers.get("range")

    @property
    def authorization(self) -> str:
        return self.headers.get("authorization", "")


@dataclass(frozen=True)
class Reply:
    """What is answered. ``cut`` closes the connection after so many bytes of the body, -1 before any answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    ranged: bool = False
    cut: int | None = None
    chunked: bool = False
    """The length is not told before."""
    slow: float = 0
    """Seconds for each MiB of the body."""


@dataclass
class Fault:
    """What happens to the next ``times`` answers whose path fits (a regular expression)."""

    where: str
    change: Callable[[Reply], Reply]
    times: int = 1


Backend = Callable[[Asked], Reply]


@dataclass
class Server:
    """Where it listens, what goes wrong next, and what it was asked."""

    backend: Backend
    address: str = "127.0.0.1"
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def fail(self, where: str, change: Callable[[Reply], Reply], times: int = 1) -> None:
        self.faults.append(Fault(where, change, times))

    def paths(self, part: str = "") -> list[str]:
        """Return the paths asked for that have this part."""
        return [asked.path for asked in self.asked if part in asked.path]

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        reply = self.backend(asked)
        for fault in self.faults:
            if fault.times and re.search(fault.where, asked.path):
                fault.times -= 1
                return _ranged(fault.change(reply), asked)
        return _ranged(reply, asked)


def _ranged(reply: Reply, asked: Asked) -> Reply:
    """Answer a range as a server does that has the whole."""
    if not asked.range or not reply.ranged or reply.status != 200:
        return reply
    start, size = int(asked.range.removeprefix("bytes=").removesuffix("-")), len(reply.body)
    if start >= size:
        return replace(reply, status=416, body=b"")
    headers = {**reply.headers, "Content-Range": f"bytes {start}-{size - 1}/{size}"}
    return replace(reply, status=206, body=reply.body[start:], headers=headers)


def status(code: int, **headers: str) -> Callable[[Reply], Reply]:
    """Answer with a status and headers (underscores for hyphens) instead."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Reply(code, b"", named)


def cut(after: int) -> Callable[[Reply], Reply]:
    """Break the connection off after so many bytes of the body."""
    return lambda reply: replace(reply, cut=after)


def changed(at: int) -> Callable[[Reply], Reply]:
    """Change one byte."""

    def change(reply: Reply) -> Reply:
        body = bytearray(reply.body)
        body[at] ^= 1
        return replace(reply, body=bytes(body))

    return change


def whole(reply: Reply) -> Reply:
    """Ignore that a range was asked for."""
    return replace(reply, ranged=False)


class _Handler(BaseHTTPRequestHandler):
    server_: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(self.server_.answer(Asked(self.command, self.path, headers, self.rfile.read(length))))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.do_GET()

    def do_PATCH(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self.do_GET()

    def _send(self, reply: Reply) -> None:
        if reply.cut == -1:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        length = ("Transfer-Encoding", "chunked") if reply.chunked else ("Content-Length", str(len(reply.body)))
        self.send_header(*length)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(reply)

    def _send_body(self, reply: Reply) -> None:
        body = reply.body if reply.cut is None else reply.body[: reply.cut]
        self.close_connection = self.close_connection or reply.cut is not None
        try:
            for start in range(0, len(body), 1 << 20) if reply.slow else ():
                self.wfile.write(body[start : start + (1 << 20)])
                time.sleep(reply.slow)
            if not reply.slow:
                self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if reply.chunked else body)
        except OSError:
            self.close_connection = True  # who asked has gone

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(backend: Backend, address: str = "127.0.0.1") -> Iterator[Server]:
    made = Server(backend, address)
    handler = type("Handler", (_Handler,), {"server_": made})
    server = ThreadingHTTPServer((address, 0), handler)
    made.port = server.server_port
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a probe for https is no HTTP
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Memory:
    """A registry of blobs in memory. A ``closed`` one wants tokens; each is good for ``uses`` answers."""

    sample: Sample
    tags: dict[str, str] = field(default_factory=dict)
    closed: bool = False
    basic: bool = False
    anonymous: bool = True
    users: dict[str, str] = field(default_factory=dict)
    uses: int = 1000
    tokens: dict[str, int] = field(default_factory=dict)
    url: str = ""
    realm: str = ""
    scopes: list[str] = field(default_factory=list)
    issued: int = 0

    def __call__(self, asked: Asked) -> Reply:
        address = urlsplit(asked.path)
        if address.path == "/token":
            return self._token(asked, parse_qs(address.query))
        if self.closed and not self._let_in(asked):
            return self._challenge()
        if match := re.fullmatch(r"/v2/[a-z0-9/._-]+/(manifests|blobs)/([^/]+)", address.path):
            return self._content(match[1], match[2])
        return Reply(200 if address.path == "/v2/" else 404)

    def revoke(self, reply: Reply) -> Reply:
        """Make every token invalid that was given out; a change for a fault."""
        self.tokens.clear()
        return reply

    def _content(self, kind: str, name: str) -> Reply:
        digest = self.tags.get(name, name)
        data = self.sample.blobs.get(digest)
        if data is None:
            code = "MANIFEST_UNKNOWN" if kind == "manifests" else "BLOB_UNKNOWN"
            return Reply(404, json.dumps({"errors": [{"code": code, "message": "unknown to registry"}]}).encode())
        given = self.sample.types[digest] if kind == "manifests" else "application/octet-stream"
        return Reply(200, data, {"Content-Type": given, "Docker-Content-Digest": digest}, ranged=kind == "blobs")

    def _let_in(self, asked: Asked) -> bool:
        scheme, _, value = asked.authorization.partition(" ")
        if self.basic:
            return scheme == "Basic" and self._knows(value)
        left = self.tokens.get(value, 0) if scheme == "Bearer" else 0
        if left:
            self.tokens[value] = left - 1
        return left > 0

    def _knows(self, basic: str) -> bool:
        user, _, password = base64.b64decode(basic).decode().partition(":")
        return self.users.get(user) == password

    def _challenge(self) -> Reply:
        bearer = f'Bearer realm="{self.realm or self.url + "/token"}",service="here",scope="repository:x:pull,push"'
        body = json.dumps({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}).encode()
        return Reply(401, body, {"WWW-Authenticate": 'Basic realm="here"' if self.basic else bearer})

    def _token(self, asked: Asked, query: dict[str, list[str]]) -> Reply:
        self.scopes += query.get("scope", [])
        scheme, _, value = asked.authorization.partition(" ")
        if not (self._knows(value) if scheme == "Basic" else self.anonymous):
            return Reply(401, b'{"errors": [{"code": "DENIED", "message": "who are you"}]}')
        self.issued += 1
        token = f"token-{self.issued}"
        self.tokens[token] = self.uses
        return Reply(200, json.dumps({"token": token, "expires_in": 60}).encode(), {"Content-Type": "application/json"})


def in_front_of(host: str) -> Backend:
    """Pass every request on to a real registry and give back what it answers, of redirects and tokens too."""

    def passed_on(asked: Asked) -> Reply:
        connection = http.client.HTTPConnection(host, timeout=30)
        try:
            connection.request(asked.method, asked.path, asked.body or None, asked.headers)
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
            return Reply(answer.status, answer.read(), headers)
        finally:
            connection.close()

    return passed_on

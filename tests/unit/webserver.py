"""A web server on loopback for files and index pages, with faults on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What it serves (path to body), and what it was asked: (path, Range)."""

    port: int = 0
    pages: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    ends_after: int | None = None
    """Bytes after which the next answer breaks off."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    web: Web

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        path = self.path.partition("?")[0]
        self.web.asked.append((path, wanted))
        if path in self.web.moved:
            self.send_response(302)
            self.send_header("Location", self.web.moved[path])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path not in self.web.pages:
            self.send_error(404)
        else:
            self._send(path, wanted)

    def _send(self, path: str, wanted: str | None) -> None:
        body = self.web.pages[path]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", self.web.types.get(path, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        end, self.web.ends_after = self.web.ends_after, None
        self.wfile.write(body[start:] if end is None else body[start : start + end])

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Web]:
    web = Web()
    handler = type("Handler", (_Handler,), {"web": web})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

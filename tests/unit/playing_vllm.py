"""A server on this host's loopback that plays vLLM behind its guard, and the socket at which systemd would listen."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="tiny"}} {running}.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="tiny"}} {waiting}.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="tiny"}} {cache}
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="tiny"}} {prompt}.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{engine="0",model_name="tiny"}} {generated}.0
"""


@dataclass
class Server:
    """What it says, and what it was asked; a test changes the first while it runs."""

    port: int = 0
    numbers: dict[str, float] = field(
        default_factory=lambda: {"running": 0, "waiting": 0, "cache": 0.0, "prompt": 0, "generated": 0}
    )
    code: int = 200
    """Of an answer to a question."""
    tokens: int = 1
    in_flight: int = 0
    """Requests that the guard has let in."""
    draining: bool = False
    half: bool = False
    """Whether it breaks off in the middle of every answer."""
    frozen: threading.Event = field(default_factory=threading.Event)
    """Set: no question is answered, as when a rank hangs."""
    mute: threading.Event = field(default_factory=threading.Event)
    """Set: nothing at all is answered, as when the API's own process hangs."""
    over: threading.Event = field(default_factory=threading.Event)
    asked: list[dict[str, object]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, path: str, body: bytes) -> tuple[int, str]:
        while (self.mute.is_set() or (self.frozen.is_set() and body)) and not self.over.wait(0.01):
            pass
        if path == "/metrics":
            return 200, METRICS.format(**self.numbers)
        if path == "/sparkstack/live":
            return 200, json.dumps({"in_flight": self.in_flight, "draining": self.draining})
        self.asked.append(json.loads(body))
        if self.code != 200:
            return self.code, '{"error": "engine dead"}'
        self.numbers["generated"] += self.tokens
        return 200, json.dumps({"usage": {"completion_tokens": self.tokens}})


@contextmanager
def playing() -> Iterator[Server]:
    """Answer until the test ends."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(b"")

        def do_POST(self) -> None:
            self.reply(self.rfile.read(int(self.headers["Content-Length"])))

        def reply(self, body: bytes) -> None:
            server.keys.add(self.headers["Authorization"])
            code, text = server.answer(self.path, body)
            try:
                self.send_response(code)
                self.send_header("Content-Length", str(len(text) * (2 if server.half else 1)))
                self.end_headers()
                self.wfile.write(text.encode())
            except OSError:
                pass  # who asked has lost patience

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing."""

    http = Quiet(("127.0.0.1", 0), Handler)
    server.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()
        thread.join()


class Systemd:
    """A datagram socket like that of systemd, and what was said to it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def heard(self) -> list[str]:
        """Return what was said since the last look."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()

"""Servers of package indexes on loopback: Python's own for files, Debian's nginx unpacked, pypiserver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.config import WORK
from core.process import run
from core.store import held

NGINX = WORK / "tests" / "nginx"


@dataclass
class Served:
    """A server: its port, and the paths that were asked for with what was accepted."""

    port: int
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


class _Files(SimpleHTTPRequestHandler):
    served: Served

    def do_GET(self) -> None:
        self.served.asked.append((self.path, self.headers.get("Accept", "")))
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def plain(folder: Path) -> Iterator[Served]:
    """Serve a folder as `python3 -m http.server` does."""
    served = Served(0)
    handler = partial(type("Handler", (_Files,), {"served": served}), directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.port = server.server_port
    with _in_a_thread(server):
        yield served


@contextmanager
def _in_a_thread(server: Any) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def nginx_program() -> Path:
    """Return Debian's nginx, downloaded and unpacked once, never installed: its package would start a service."""
    found = NGINX / "root" / "usr" / "sbin" / "nginx"
    with held(NGINX / ".lock", "unpacks nginx", print):
        if not found.exists():
            run(["apt-get", "download", "nginx"], cwd=NGINX, timeout=300)
            (package,) = NGINX.glob("nginx_*.deb")
            run(["dpkg-deb", "-x", str(package), str(NGINX / "root")])
    return found


@contextmanager
def nginx(folder: Path, rule: str, root: Path) -> Iterator[Served]:
    """Serve ``root`` by nginx with a rule for its http block, its port and folder replaced; logs go to ``folder``."""
    folder.mkdir()
    served = Served(free_port())
    rule = rule.replace("listen 8080", f"listen 127.0.0.1:{served.port}").replace("/srv/wheels", str(root))
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}}\n"
        f"http {{ {places} log_format asked '$uri'; access_log {folder}/asked asked;\n{rule}}}\n"
    )
    argv = [str(nginx_program()), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "errors")]
    with process(argv, served, folder / "out"):
        yield served


@contextmanager
def pypi_server(folder: Path, log: Path) -> Iterator[Served]:
    """Run a pypiserver that takes uploads of everybody, and asks no other index."""
    folder.mkdir(exist_ok=True)
    served = Served(free_port())
    flags = ["--authenticate", ".", "--passwords", ".", "--disable-fallback", "--interface", "127.0.0.1"]
    argv = [sys.executable, "-m", "pypiserver", "run", *flags, "--port", str(served.port), str(folder)]
    with process(argv, served, log):
        yield served


CLOSED = """
import sys
from wsgiref.simple_server import make_server
import pypiserver

folder, port, user, password = sys.argv[1:]
app = pypiserver.app(
    roots=[folder],
    authenticate=["update", "list", "download"],
    auther=lambda name, word: (name, word) == (user, password),
    disable_fallback=True,
)
make_server("127.0.0.1", int(port), app).serve_forever()
"""
"""pypiserver's own files of passwords need a library that is kept by nobody."""


@contextmanager
def closed_pypi_server(folder: Path, user: str, password: str, log: Path) -> Iterator[Served]:
    """Run a pypiserver that wants a password for everything."""
    folder.mkdir(exist_ok=True)
    served = Served(free_port())
    argv = [sys.executable, "-W", "ignore", "-c", CLOSED, str(folder), str(served.port), user, password]
    with process(argv, served, log):
        yield served


@contextmanager
def process(argv: Sequence[str], served: Served, log: Path) -> Iterator[None]:
    """Run a server until the block ends."""
    with log.open("ab") as output:
        started = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait(lambda: knocked(served.port), started, log)
        yield
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def _wait(ready: Callable[[], bool], started: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and started.poll() is None:
        if ready():
            return
        time.sleep(0.05)
    pytest.fail(f"the server does not answer: {log.read_text()[-2000:]}")


def knocked(port: int) -> bool:
    with socket.socket() as knock:
        return knock.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

"""A real registry of images on loopback for measurements: Debian's, unpacked and never installed."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.config import WORK
from core.process import run

PLACE = WORK / "tests" / "registry"
"""Where the tests have it as well."""


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """Run a registry that is open to all, its files below ``folder``, and give its HOST:PORT."""
    program = _program()
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "for measurements"},
    }
    (folder / "config.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    daemon = ("start-stop-daemon", "--pidfile", str(folder / "pid"))
    start = ("--start", "--background", "--make-pidfile", "--exec", str(program))
    run([*daemon, *start, "--", "serve", str(folder / "config.yml")])
    try:
        _wait_for(port)
        yield f"127.0.0.1:{port}"
    finally:
        run([*daemon, "--stop", "--retry", "5"])


def _program() -> Path:
    found = PLACE / "root" / "usr" / "bin" / "docker-registry"
    if not found.exists():
        PLACE.mkdir(parents=True, exist_ok=True)
        run(["apt-get", "download", "docker-registry"], cwd=PLACE, timeout=300)
        (package,) = PLACE.glob("docker-registry_*.deb")
        run(["dpkg-deb", "-x", str(package), str(PLACE / "root")])
    return found


def _wait_for(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError("the registry does not answer")

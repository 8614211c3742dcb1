"""Repositories made for a test, and a real git daemon on loopback that serves them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core.process import run

IDENTITY = {
    name: value
    for who in ("AUTHOR", "COMMITTER")
    for name, value in ((f"GIT_{who}_NAME", "T"), (f"GIT_{who}_EMAIL", "t@example.org"))
} | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


@dataclass(frozen=True)
class Repository:
    """A repository with a work tree."""

    folder: Path

    def git(self, *argv: str) -> str:
        words = ("-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *argv)
        return run(["git", *words], cwd=self.folder, env=IDENTITY).out.strip()

    def commit(self, files: dict[str, str], message: str = "change") -> str:
        """Commit files (name to content) and return the commit."""
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "--all", "--force")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def link(self, place: str, url: str, commit: str) -> None:
        """Add a submodule to the index, whatever its URL; the next commit has it."""
        with (self.folder / ".gitmodules").open("a") as file:
            file.write(f'[submodule "{place}"]\n\tpath = {place}\n\turl = {url}\n')
        self.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{place}")
        (self.folder / place).mkdir(parents=True, exist_ok=True)


@dataclass
class Server:
    """A git daemon and the folder that it serves."""

    base: Path
    port: int = 0
    _process: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def repository(self, name: str) -> Repository:
        """Make an empty repository and serve it."""
        folder = self.base / f"{name}.git"
        folder.mkdir(parents=True)
        made = Repository(folder)
        made.git("init", "--quiet")
        return made

    def url(self, name: str) -> str:
        return f"git://127.0.0.1:{self.port}/{name}.git"

    def start(self) -> None:
        self.base.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = self.port or free.getsockname()[1]
        argv = ["git", "daemon", "--reuseaddr", "--export-all", "--informative-errors", "--listen=127.0.0.1"]
        argv += [f"--port={self.port}", f"--base-path={self.base}", str(self.base)]
        quiet = subprocess.DEVNULL
        self._process.append(subprocess.Popen(argv, stdout=quiet, stderr=quiet, start_new_session=True))
        until = time.monotonic() + 10
        while not self._answers() and time.monotonic() < until:
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket() as knock:
            return knock.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End the daemon and whatever it is serving just now."""
        for process in self._process:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._process.clear()


@contextmanager
def serving(base: Path) -> Iterator[Server]:
    server = Server(base)
    server.start()
    try:
        yield server
    finally:
        server.stop()

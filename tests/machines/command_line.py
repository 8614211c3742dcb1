"""The real command line, as a user runs it: to its end, or until a test presses Ctrl-C."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import IO

MARK = "SPARKSTACK_TEST_RUN"
"""Environment variable that every process of one command carries, however far it has come from its parent."""
DEFAULT_SIGNALS = ("env", "--default-signal=INT")
"""Tests that run in a shell's background ignore Ctrl-C, and what they start would inherit that."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    mark: str

    @property
    def error(self) -> str:
        """The one message that it ended with."""
        return self.errors[-1] if self.errors else ""

    @property
    def errors(self) -> list[str]:
        """Every message that begins a line with `error: `."""
        return f"\n{self.err}".split("\nerror: ")[1:]

    def __str__(self) -> str:
        return f"invoke {' '.join(self.words)}: {self.code} after {self.seconds:.1f} s\n{self.out}{self.err}"


@dataclass(frozen=True)
class CommandLine:
    """`invoke` in a checkout, for one cluster."""

    checkout: Path
    cluster: str

    def __call__(self, *words: str, timeout: float = 600, environment: Mapping[str, str] | None = None) -> Ended:
        """Run a command to its end."""
        with self.begin(*words, environment=environment) as started:
            return started.ended(timeout)

    def works(self, *words: str, timeout: float = 600) -> Ended:
        """Run a command that must end with 0."""
        done = self(*words, timeout=timeout)
        assert done.code == 0, str(done)
        return done

    @contextmanager
    def begin(self, *words: str, environment: Mapping[str, str] | None = None) -> Iterator[Started]:
        """Start a command in a session of its own, without a terminal; what still runs at the end is killed."""
        mark = secrets.token_hex(8)
        arguments = (*words, f"--cluster={self.cluster}") if self.cluster else words
        process = subprocess.Popen(
            [*DEFAULT_SIGNALS, str(Path(sys.executable).with_name("invoke")), *arguments],
            cwd=self.checkout,
            env={**os.environ, MARK: mark, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started = Started(arguments, process, mark)
        try:
            yield started
        finally:
            started.kill()


@dataclass
class Started:
    """A command under way."""

    words: tuple[str, ...]
    process: subprocess.Popen[str]
    mark: str
    began: float = field(default_factory=time.monotonic)
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._readers = [self._read(self.process.stdout, self.out), self._read(self.process.stderr, self.err)]

    @staticmethod
    def _read(stream: IO[str] | None, lines: list[str]) -> Thread:
        assert stream is not None
        reader = Thread(target=lambda: lines.extend(iter(stream.readline, "")), daemon=True)
        reader.start()
        return reader

    def says(self, text: str, seconds: float = 120) -> None:
        """Wait until it has printed ``text``."""
        self.reaches(lambda: text in "".join(self.err) + "".join(self.out), f"it never said {text!r}", seconds)

    def reaches(self, there: Callable[[], bool], otherwise: str, seconds: float = 120) -> None:
        """Wait until something is so while it runs; fail when it ends before that."""
        deadline = time.monotonic() + seconds
        while not there():
            ended = self.process.poll() is not None or time.monotonic() > deadline
            assert not ended, f"{otherwise}\n{''.join(self.out + self.err)}"
            time.sleep(0.05)

    def runs(self, text: str, seconds: float = 120) -> None:
        """Wait until it has started a process with ``text`` in its command line."""
        self.reaches(
            lambda: any(text in line for line in map(_command_line, left_of(self.mark))), f"no {text}", seconds
        )

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal sends SIGINT to every process of the foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self, seconds: float = 60) -> Ended:
        """Wait for its end."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s: {self.words}\n{''.join(self.err)}") from None
        for reader in self._readers:
            reader.join()
        took = time.monotonic() - self.began
        return Ended(self.words, code, "".join(self.out), "".join(self.err), took, self.mark)

    def kill(self) -> None:
        """Kill what is left of it."""
        for pid in left_of(self.mark):
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def left_of(mark: str) -> list[int]:
    """Return the processes of this host that a command started and that still live."""
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*") if _carries(folder, mark)]


def _carries(process: Path, mark: str) -> bool:
    try:
        return f"{MARK}={mark}".encode() in (process / "environ").read_bytes()
    except OSError:  # it has ended, or is a kernel thread
        return False


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").replace("\0", " ")
    except OSError:  # it has ended
        return ""


def assert_interrupted(done: Ended) -> None:
    """It ended as Ctrl-C must end a command: its own code, one message, the next move, no orphan on this host."""
    assert done.code == 130, str(done)
    assert len(done.errors) == 1, str(done)
    assert "goes on from here" in done.error, str(done)
    assert "Traceback" not in done.err, str(done)
    assert left_of(done.mark) == [], f"orphans of {done}"


def assert_refused(done: Ended, code: int, *says: str) -> None:
    """It ended with its own code and one clear message that says all of ``says`` and a next move."""
    assert done.code == code, str(done)
    assert len(done.errors) == 1, str(done)
    assert "\n  next: " in done.error, str(done)
    assert "Traceback" not in done.err, str(done)
    assert [text for text in says if text not in done.error] == [], str(done)

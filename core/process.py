"""The one door for processes on this host: argv lists in, a finished process out, nothing through a shell."""

from __future__ import annotations

import fcntl
import io
import os
import shlex
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Timer
from typing import Any

from core.errors import CommandFailed

GRACE = 10
"""Seconds between SIGTERM and SIGKILL."""

PIPE = 1 << 20
"""Bytes that a pipe holds of what is sent."""


@dataclass(frozen=True)
class Completed:
    """A finished command: its argv, exit code, and what it printed (UTF-8, undecodable bytes replaced)."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str = ""

    def tail(self, lines: int = 15) -> str:
        """Return the last lines that it printed, for an error's evidence."""
        return "\n".join((self.out + self.err).strip().splitlines()[-lines:])


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
) -> Completed:
    """Run ``argv`` and return it finished; ``env`` is added to our own environment, ``timeout`` is in seconds.

    Raises CommandFailed when the code is not 0 (unless ``check`` is off), it cannot be started or time runs out.
    """
    try:
        done = subprocess.run(
            list(argv),
            env=_environment(env),
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except OSError as error:
        raise _not_started(argv, error) from error
    except subprocess.TimeoutExpired as error:
        raise _late(argv, timeout) from error
    completed = Completed(tuple(argv), done.returncode, done.stdout, done.stderr)
    return _checked(completed) if check else completed


def follow(
    argv: Sequence[str],
    on_line: Callable[[str], None],
    *,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    timeout: float | None = None,
    own_session: bool = True,
) -> Completed:
    """Run ``argv`` and hand each line of its output (stderr merged) to ``on_line`` as it comes and to ``log``.

    The process has a group of its own, which ends with us: Ctrl-C here leaves no orphan. Without ``own_session`` it
    stays on our terminal, so that sudo can ask for a password there; Ctrl-C reaches it, and we wait for its end.
    Raises CommandFailed as run() does.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            env=_environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=own_session,
        )
    except OSError as error:
        raise _not_started(argv, error) from error
    _running.add(process)
    try:
        with _ended_with_us(process, timeout, own_session) as expired:
            out = _read(process, on_line, log)
            code = process.wait()
    finally:
        _running.discard(process)
    completed = Completed(tuple(argv), code, out)
    if expired.is_set():
        raise _late(argv, timeout, completed)
    return _checked(completed, log) if check else completed


def attached(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
    """Run ``argv`` on our own terminal, input and output, and return its exit code.

    Ctrl-C reaches it as it reaches us; we wait for its end before passing that on.
    """
    try:
        process = subprocess.Popen(list(argv), env=_environment(env))
    except OSError as error:
        raise _not_started(argv, error) from error
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


class Piped:
    """A process beside us that is written to and read from line by line; it ends when its stdin does."""

    def __init__(self, argv: Sequence[str]) -> None:
        try:
            self._process = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        except OSError as error:
            raise _not_started(argv, error) from error

    def line(self) -> str:
        """Return the next line of its output; empty at its end."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def beat(self) -> bool:
        """Write a line to its stdin; False when it has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return self._process.poll() is None

    def close(self) -> None:
        """End its stdin and wait for it; kill it when it stays."""
        try:
            self._process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            _end_group(self._process)
            self._process.communicate()


class Conversation:
    """A process beside us that says lines, and is sent bytes as fast as it takes them.

    What is sent to one that has ended raises BrokenPipeError.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = tuple(argv)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the conversation
        try:
            self._process = subprocess.Popen(
                self._argv,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,
            )
        except OSError as error:
            self._errors.close()
            raise _not_started(argv, error) from error
        _running.add(self._process)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input = self._process.stdin
        self._output = io.BufferedReader(self._process.stdout)  # type: ignore[type-var]
        with suppress(OSError):  # a larger pipe is faster and not needed: a host may forbid it
            fcntl.fcntl(self._input, fcntl.F_SETPIPE_SZ, PIPE)

    def line(self) -> str:
        """Return the next line that it says; empty at its end."""
        return self._output.readline().decode(errors="replace")

    def send(self, data: bytes) -> None:
        """Send all of this."""
        view = memoryview(data)
        while view:
            view = view[self._input.write(view) or 0 :]

    def send_file(self, path: Path, start: int, end: int, on_bytes: Callable[[int], None]) -> None:
        """Send the bytes of a file from ``start`` up to ``end``, past our own memory. Raises OSError, EOFError."""
        with path.open("rb") as file:
            while start < end:
                sent = os.sendfile(self._input.fileno(), file.fileno(), start, min(end - start, PIPE))
                if not sent:
                    raise EOFError(f"{path} has ended at byte {start}")
                start += sent
                on_bytes(sent)

    def ended(self) -> Completed:
        """End what it is sent, and wait for its end; a process that stays is killed. What it still said is left out."""
        self._input.close()
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            _end_group(self._process)
        finally:
            _running.discard(self._process)
            self._output.close()
        with self._errors as errors:
            errors.seek(0)
            said = errors.read(1 << 20).decode(errors="replace")
        return Completed(self._argv, self._process.returncode, "", said)


def converse(argv: Sequence[str], talk: Callable[[Conversation], object]) -> Completed:
    """Start ``argv``, have ``talk`` talk with it, and return it ended; that it ends in the middle is no error here."""
    conversation = Conversation(argv)
    try:
        talk(conversation)
    except BrokenPipeError:
        return conversation.ended()
    except BaseException:
        conversation.ended()
        raise
    return conversation.ended()


class Tunnel(socket.socket):
    """A process beside us whose stdin and stdout are a connection: a socket to it, which ends it when it is closed.

    It has a session of its own: nothing in it can ask on our terminal, and Ctrl-C does not break the connection while
    we end what runs at its other end.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self._lock = Lock()
        self._said = ""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process may write to it
        with theirs:
            end = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    list(argv), stdin=end, stdout=end, stderr=self._errors.fileno(), start_new_session=True
                )
            except OSError as error:
                super().close()
                self._errors.close()
                raise _not_started(argv, error) from error

    def close(self) -> None:
        """End the process."""
        with self._lock:
            super().close()
            if self._process.poll() is None:
                _end_group(self._process)
            if not self._errors.closed:
                self._errors.seek(0)
                self._said = self._errors.read().decode("utf-8", "replace")
                self._errors.close()

    def said(self) -> str:
        """Return what the process has printed to its stderr; it is given a moment to end by itself, then ended."""
        with suppress(subprocess.TimeoutExpired):  # it holds on to a connection that is of no use
            self._process.wait(1)
        self.close()
        return self._said


def end_all() -> None:
    """End every process that we follow or talk with in other threads: they cannot see Ctrl-C themselves."""
    for process in tuple(_running):
        _end_group(process)


_running: set[subprocess.Popen[Any]] = set()


def _read(process: subprocess.Popen[str], on_line: Callable[[str], None], log: Path | None) -> str:
    lines: list[str] = []
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
    assert process.stdout is not None
    with process.stdout as output, (log or Path(os.devnull)).open("a", buffering=1, encoding="utf-8") as record:
        assert isinstance(process.args, list)
        record.write(f"$ {shlex.join(process.args)}\n")
        for line in output:
            lines.append(line)
            record.write(line)
            on_line(line.rstrip("\n"))
    return "".join(lines)


@contextmanager
def _ended_with_us(process: subprocess.Popen[str], timeout: float | None, own_session: bool) -> Iterator[Event]:  # noqa: FBT001
    """End the process when the block fails or time runs out; the event tells the latter."""
    expired = Event()

    def end() -> None:
        _end_group(process) if own_session else process.wait()

    def expire() -> None:
        expired.set()
        _end_group(process)

    timer = Timer(timeout, expire) if timeout and own_session else None
    if timer:
        timer.start()
    finished = False
    try:
        yield expired
        finished = True
    finally:
        if timer:
            timer.cancel()
        if not finished:
            end()


def _end_group(process: subprocess.Popen[Any]) -> None:
    """End the process and all that it started, those too that outlived it."""
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # nobody is left in it


def _environment(extra: Mapping[str, str] | None) -> dict[str, str] | None:
    return {**os.environ, **extra} if extra is not None else None


def _not_started(argv: Sequence[str], error: OSError) -> CommandFailed:
    what = error.filename or argv[0]  # the program, or the folder it should have started in
    return CommandFailed(
        f"{argv[0]} cannot be run: {what}: {error.strerror}", next_move=f"install {what}, or check its path"
    )


def _late(argv: Sequence[str], timeout: float | None, completed: Completed | None = None) -> CommandFailed:
    return CommandFailed(
        f"`{_short(argv)}` did not end within {timeout:g} s",
        next_move="look at the machine's load, run it again",
        evidence=completed.tail() if completed else "",
    )


def _checked(completed: Completed, log: Path | None = None) -> Completed:
    if completed.code == 0:
        return completed
    ended = f"ended with {completed.code}" if completed.code > 0 else f"was ended by {_signal_name(-completed.code)}"
    raise CommandFailed(
        f"`{_short(completed.argv)}` {ended}",
        next_move=f"read {log}" if log else "run it by hand to see more",
        evidence=completed.tail(),
    )


def _signal_name(number: int) -> str:
    names = {member.value: member.name for member in signal.Signals}
    return names.get(number, f"signal {number}")


def _short(argv: Sequence[str]) -> str:
    return shlex.join(argv)[:300]

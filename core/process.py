"""The one door for processes on this host: argv lists in, a finished process out, nothing through a shell."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

from core.errors import CommandFailed


@dataclass(frozen=True)
class Completed:
    """A finished command: its argv, exit code, and what it printed (text, undecodable bytes replaced)."""

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

    Raises CommandFailed when the code is not 0 (unless ``check`` is off), the program is missing or time runs out.
    """
    try:
        done = subprocess.run(
            list(argv),
            env=_environment(env),
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise _missing(argv, error) from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            f"{shlex.join(argv)} did not end within {timeout:.0f} s", next_move="look at the machine's load, run it again"
        ) from error
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
) -> Completed:
    """Run ``argv`` and hand each line of its output (stderr merged) to ``on_line`` as it comes and to ``log``.

    The process has a group of its own, which ends with us: Ctrl-C here leaves no orphan.
    """
    lines: list[str] = []
    try:
        process = subprocess.Popen(
            list(argv),
            env=_environment(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise _missing(argv, error) from error
    timer = Timer(timeout, _end_group, [process]) if timeout else None
    if timer:
        timer.start()
    try:
        assert process.stdout is not None
        with (log or Path(os.devnull)).open("a", encoding="utf-8") as record:
            record.write(f"$ {shlex.join(argv)}\n")
            for line in process.stdout:
                lines.append(line)
                record.write(line)
                on_line(line.rstrip("\n"))
        code = process.wait()
    finally:
        if timer:
            timer.cancel()
        _end_group(process)
    completed = Completed(tuple(argv), code, "".join(lines))
    return _checked(completed, log) if check else completed


def _environment(extra: Mapping[str, str] | None) -> dict[str, str] | None:
    return {**os.environ, **extra} if extra is not None else None


def _end_group(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _missing(argv: Sequence[str], error: FileNotFoundError) -> CommandFailed:
    return CommandFailed(f"{argv[0]} cannot be run: {error.strerror}", next_move=f"install {argv[0]}, or check its path")


def _checked(completed: Completed, log: Path | None = None) -> Completed:
    if completed.code == 0:
        return completed
    raise CommandFailed(
        f"`{shlex.join(completed.argv)[:300]}` ended with {completed.code}",
        next_move=f"read {log}" if log else "run it by hand to see more",
        evidence=completed.tail(),
    )

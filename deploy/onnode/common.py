"""What work on a node stands on: how it is told what to do, what it says, how it ends, files that last, patience."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

BLOCK = 1 << 20
MARGIN = 1 << 30
"""Bytes that stay free on the disk."""

TRIES = 6
"""Tries without a single new byte after which it is given up."""

FEW = 4
"""Tries where nobody listens at an address that nothing has come from yet: it is more often wrong than busy."""

PAUSE = 1.0
"""Seconds before the second try; each further one waits twice as long."""

LONGEST = 300.0
"""Seconds that a server can make us wait."""

UNLINKABLE = (errno.EPERM, errno.EXDEV, errno.EMLINK)
"""Another owner's file (fs.protected_hardlinks), one on another disk, one with too many names."""


class Refused(Exception):
    """What ends the work: its kind, cause, next move.

    Kinds are "network", "hub", "access", "absent", "damaged", "disk" and "busy".
    """

    def __init__(self, kind: str, cause: str, next_move: str) -> None:
        super().__init__(cause)
        self.kind = kind
        self.cause = cause
        self.next_move = next_move

    def to_json(self) -> str:
        """Return the line that the controller reads."""
        return json.dumps({"error": self.kind, "cause": self.cause, "next": self.next_move})


class Again(Exception):
    """Something that passes: a broken connection, a busy server. ``wait`` in seconds where the server says it.

    ``nobody`` listened at the address.
    """

    def __init__(self, cause: str, wait: float = 0, *, nobody: bool = False) -> None:
        super().__init__(cause)
        self.wait = wait
        self.nobody = nobody


def ended(work: Callable[[], int | None]) -> int:
    """Do the work; return the exit code. What ends it is said in the line that the controller reads."""
    os.umask(0o022)
    try:
        with named_errors():
            return work() or 0
    except Refused as error:
        say(error.to_json())
        return 1


def said(line: str) -> dict[str, Any]:
    """Return the JSON object that a line is; an empty one for any other line."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def wrong(name: str, next_move: str) -> Refused:
    """Return the error of a file that came whole and hashes to something else."""
    return Refused("damaged", f"{name} did not arrive as the manifest lists it", next_move)


@contextmanager
def alone(lock: Path, patience: float, busy: str) -> Iterator[None]:
    """Have to ourselves what a file stands for; who has it may remove it. Raises Refused where another does not end.

    ``patience`` in seconds; ``busy`` says what the other one does.
    """
    deadline = time.monotonic() + patience
    while (held := _locked(lock)) is None:
        if time.monotonic() > deadline:
            raise Refused("busy", busy, "wait for its end, then run it again")
        time.sleep(min(0.2, patience))
    with held:
        yield


def _locked(lock: Path) -> IO[str] | None:
    """Return the locked file; None where another has it, or has removed it since it was opened."""
    file = lock.open("w")
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Have so many threads for the block; where it fails, what still waits for one of them is left undone."""
    with ThreadPoolExecutor(count) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def taken(request: Path) -> dict[str, Any]:
    """Read a request and remove it: it may hold secrets. Raises Refused where it is gone."""
    try:
        told: dict[str, Any] = json.loads(request.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        cause = "this work has ended meanwhile, or was started without a request"
        raise Refused("absent", cause, "run the same command again") from error
    request.unlink()
    return told


def digests(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> dict[str, str]:
    """Return a file's sha256, and the sha1 that git has for it as a blob."""
    sha256 = hashlib.sha256()
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    small = path.stat().st_size < 1 << 26  # larger files are in no git repository as such
    buffer = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha256.update(buffer[:count])
            if small:
                blob.update(buffer[:count])
            on_bytes(count)
    return {"sha256": sha256.hexdigest(), "git-sha1": blob.hexdigest()}


def keep(part: Path, whole: Path) -> None:
    """Give a verified file its name; what has a name is on the disk, also after a power loss."""
    sync_file(part)
    part.replace(whole)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, in place of what has it, once its bytes are on the disk; copy it where it cannot."""
    beside = target.with_name(f".{target.name}.new")
    beside.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), beside)
    except OSError as error:
        if error.errno not in UNLINKABLE:
            raise
        shutil.copyfile(source, beside)
    keep(beside, target)


def write_all(file: int, block: memoryview, at: int) -> None:
    """Write all of a block at a byte of a file, at the end of one that is open to append; one write may be short."""
    while block:
        count = os.pwrite(file, block, at)
        block, at = block[count:], at + count


def sync_file(path: Path) -> None:
    """Bring the bytes of a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Bring the names in a folder, and below it, to the disk."""
    for path in (folder, *(found for found in folder.rglob("*") if found.is_dir())):
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_room(folder: Path, wanted: int) -> None:
    """Raise Refused where the disk has no room for so many bytes and a margin."""
    free = shutil.disk_usage(folder).free
    if wanted and wanted + MARGIN > free:
        raise Refused(
            "disk",
            f"{size_words(wanted)} are still to come and {size_words(free)} are free in {folder}",
            "free space on the node: invoke releases --collect, or invoke model.remove",
        )


def size_words(size: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def how_far(done: int, total: int, new: int, seconds: float) -> str:
    """Return how far it is, the rate of the ``new`` bytes in so many seconds, and the time left."""
    rate = max(0, new) / max(seconds, 0.001)
    left = (total - done) / max(rate, 1)
    time_left = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
    end = f", {time_left} left" if rate > 1 else ""
    return f"{size_words(done)} of {size_words(total)}, {size_words(rate)}/s{end}"


class Progress:
    """Counts bytes from several threads, and says every few seconds how far it is."""

    def __init__(self, total: int, done: int = 0, interval: float = 2.0) -> None:
        self._total, self._done, self._began, self._first = total, done, time.monotonic(), done
        self._interval = interval
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def add(self, count: int) -> None:
        """Count more bytes; below 0 where some have to come again."""
        with self._lock:
            self._done += count

    def line(self) -> str:
        """Return how far it is, the rate since it began, and the time left."""
        return how_far(self._done, self._total, self._done - self._first, time.monotonic() - self._began)

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """Say it until the block ends, and once then."""
        thread = threading.Thread(target=self._tell, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()
            say(self.line())

    def _tell(self) -> None:
        while not self._ended.wait(self._interval):
            say(self.line())


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn what the disk says into Refused."""
    try:
        yield
    except OSError as error:
        cause = f"{error.filename or 'a file'}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused("disk", f"the disk is full ({cause})", "free space on the node, then run it again") from error
        raise Refused("disk", cause, "look at it on the node, then run the same command again") from error


def broken(error: Exception) -> Again | Refused:
    """Return what a failed connection means; a certificate that does not fit is nothing that passes."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        cause = f"the certificate is not good: {reason.verify_message}"
        return Refused("network", cause, "check the clock of the node, proxies, and SSL_CERT_FILE")
    return Again(str(reason) or type(error).__name__, nobody=isinstance(reason, ConnectionRefusedError))


def patiently(action: Callable[[], Any], *, to_nobody: int = TRIES) -> Any:
    """Return what ``action`` does, tried again while it raises Again, ``to_nobody`` times at most. Raises Refused."""
    for number in range(TRIES):
        try:
            return action()
        except Again as again:
            pause(again, number, min(TRIES, to_nobody) if again.nobody else TRIES)
    raise AssertionError("pause() ends the last try")


def pause(again: Again, number: int, tries: int = 0) -> None:
    """Wait before the next try; after the last one (of ``tries``, or TRIES) raise Refused."""
    if number + 1 >= (tries or TRIES):
        raise Refused(
            "network",
            f"{again}, {number + 1} times in a row",
            "check the network and run it again; what has arrived is kept",
        ) from again
    time.sleep(min(LONGEST, again.wait or PAUSE * 2**number))

"""Asks another node on the fabric for files that it offers (deploy/onnode/serving.py)."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from deploy.onnode.common import BLOCK, Again, Refused, broken, write_all
from deploy.onnode.serving import CODE, TIMEOUT, code_of, is_code

LARGEST_LIST = 64 << 20
BEAT = 5.0
"""Seconds between two words to the other node that we are at work."""
SENT = 5.0
"""Seconds for a word that is under way when the work ends."""


class Caller:
    """Asks the server, over one connection a thread."""

    def __init__(self, told: Mapping[str, Any]) -> None:
        self._address, self._port, self._secret = told["address"], told["port"], told["secret"]
        self._own = threading.local()
        self._all: list[http.client.HTTPConnection] = []

    def ask(self, path: str, wanted: str = "") -> http.client.HTTPResponse:
        """Return the answer. Raises Again where there is none, Refused where the secret is not good."""
        headers = {CODE: code_of(self._secret, path.encode(), wanted.encode()), **({"Range": wanted} if wanted else {})}
        try:
            connection = self._connection()
            connection.request("GET", path, headers=headers)
            answer: http.client.HTTPResponse = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.drop()
            raise broken(error) from error
        if answer.status not in (200, 206):
            self.drop()
            raise Refused("access", f"the other node answers {answer.status}", "run the same command again")
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(self._address, self._port, timeout=TIMEOUT)
            self._all.append(self._own.connection)
        found: http.client.HTTPConnection = self._own.connection
        return found

    def drop(self) -> None:
        """Close this thread's connection; the next request opens another."""
        if hasattr(self._own, "connection"):
            self._own.connection.close()
            del self._own.connection

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._all:
            connection.close()

    def manifest(self) -> bytes:
        """Return the manifest. Raises Refused where it is not from who has the secret."""
        answer = self.ask("/manifest")
        body = answer.read(LARGEST_LIST)
        if not is_code(code_of(self._secret, b"manifest", body), answer.headers.get(CODE, "")):
            raise Refused("access", "the manifest is not from the other node", "find out who answers at its address")
        return body

    def file(self, number: int, start: int, end: int, size: int) -> http.client.HTTPResponse:
        """Ask for the bytes of a file from ``start`` up to ``end``. Raises as ask(), and Refused for other ones."""
        answer = self.ask(f"/file/{number}", f"bytes={start}-{end - 1}")
        if answer.headers.get("Content-Range") != f"bytes {start}-{end - 1}/{size}":
            raise Refused("damaged", f"other bytes of file {number} came than were asked for", "run it again")
        return answer


def copied(answer: http.client.HTTPResponse, file: int, start: int, end: int) -> Iterator[memoryview]:
    """Write what comes into the file from ``start`` on; yield it, until the end or a broken connection."""
    buffer = memoryview(bytearray(BLOCK))
    while start < end:
        try:
            count = answer.readinto(buffer[: end - start])
        except (OSError, http.client.HTTPException):
            return
        if not count:
            return
        write_all(file, buffer[:count], start)
        start += count
        yield buffer[:count]


def require_all(caller: Caller, name: str, at: int, end: int) -> None:
    """Raise Again where the connection ended too early."""
    if at < end:
        caller.drop()
        raise Again(f"{name}: the connection ended at byte {at}")


def tell(caller: Caller, path: str) -> None:
    """Tell the other node something by asking for a path; it may have ended, and wait for nobody."""
    try:
        caller.ask(path).close()
    except (Again, Refused):
        return


@contextmanager
def at_work(caller: Caller, path: str) -> Iterator[None]:
    """Tell it now and then until the block ends: hashing what is here may take longer than silence is borne there."""
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(caller, path, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SENT)


def _beat(caller: Caller, path: str, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        tell(caller, path)

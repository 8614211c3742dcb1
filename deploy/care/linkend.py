"""One end of a measurement between two nodes; runs on a node with its own Python, the standard library only.

    linkend.py listen ADDRESS SECRET_FILE SECONDS       prints {"port": N}, serves until its stdin ends or time is up
    linkend.py measure SOURCE TARGET PORT SECRET_FILE   prints rates in Mb/s and microseconds a message, both directions
    linkend.py packets SOURCE TARGET LARGEST            prints {"largest": N}: bytes of the largest packet that passes

The secret's file is for one reader and removed as soon as it was read. Who connects without the secret is dropped.
"""

from __future__ import annotations

import hmac
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STREAMS = 4
LARGE = 2**20
SMALL = 10 * 2**10
"""What one token hands from rank to rank: a hidden state of 5120 numbers of two bytes."""
SECONDS = 0.7
PATIENCE = 8.0
"""Seconds without a byte after which a connection counts as stuck."""
LEAST = 576
"""Bytes that every IPv4 host must take (RFC 791)."""


def take(path: str) -> bytes:
    """Read the secret and remove its file."""
    secret = Path(path).read_bytes().strip()
    Path(path).unlink()
    return secret


def whole(connection: socket.socket, size: int) -> bytes:
    """Receive exactly ``size`` bytes; fewer at the connection's end."""
    found = b""
    while len(found) < size and (more := connection.recv(size - len(found))):
        found += more
    return found


def drain(connection: socket.socket) -> int:
    """Receive until the other end has sent all; returns the bytes."""
    buffer, total = bytearray(LARGE), 0
    while got := connection.recv_into(buffer):
        total += got
    return total


def flood(connection: socket.socket, seconds: float) -> None:
    """Send large buffers for a while, then say that this was all."""
    buffer, until = memoryview(bytes(LARGE)), time.monotonic() + seconds
    while time.monotonic() < until:
        connection.send(buffer)
    connection.shutdown(socket.SHUT_WR)


def prepared(connection: socket.socket) -> socket.socket:
    """Bound what is under way: on a slow link it would take long to arrive."""
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE)
    return connection


def receive_large(connection: socket.socket) -> None:
    """Receive all, and say how much it was."""
    connection.sendall(f"{drain(connection)}\n".encode())


def receive_small(connection: socket.socket) -> None:
    """Answer each small message with one byte."""
    while len(whole(connection, SMALL)) == SMALL:
        connection.sendall(b".")


def send_small(connection: socket.socket) -> None:
    """Send a small message, and another one for each byte."""
    connection.sendall(bytes(SMALL))
    while whole(connection, 1):
        connection.sendall(bytes(SMALL))


TASKS = {
    b"R": receive_large,
    b"S": lambda connection: flood(connection, SECONDS),
    b"P": receive_small,
    b"Q": send_small,
}
"""What who connects may ask for."""


def serve_one(connection: socket.socket, secret: bytes) -> None:
    """Do what one connection asks for, if it knows the secret."""
    with prepared(connection):
        try:
            if hmac.compare_digest(whole(connection, len(secret)), secret):
                TASKS[whole(connection, 1)](connection)
        except (OSError, KeyError):
            return  # the other end says what went wrong


def listen(address: str, path: str, seconds: float) -> None:
    """Serve on this address only, until stdin ends or time is up."""
    secret, until = take(path), time.monotonic() + seconds
    with socket.create_server((address, 0), backlog=16) as server:
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        while (left := until - time.monotonic()) > 0:
            ready, _, _ = select.select([0, server.fileno()], [], [], left)
            if 0 in ready and not os.read(0, 4096):
                break
            if server.fileno() in ready:
                connection, _ = server.accept()
                threading.Thread(target=serve_one, args=(connection, secret), daemon=True).start()


class Far:
    """The other end, as this one speaks to it."""

    def __init__(self, source: str, target: str, port: int, secret: bytes) -> None:
        self._way = (source, target, port)
        self._secret = secret

    def ask(self, what: bytes) -> socket.socket:
        """Open a connection for one task."""
        source, target, port = self._way
        connection = socket.create_connection((target, port), timeout=3, source_address=(source, 0))
        prepared(connection).sendall(self._secret + what)
        return connection

    def send_large(self) -> int:
        """Send for a while; returns the bytes that the other end received."""
        with self.ask(b"R") as connection:
            flood(connection, SECONDS)
            return int(connection.makefile().readline())

    def receive_large(self) -> int:
        """Receive for a while; returns the bytes."""
        with self.ask(b"S") as connection:
            return drain(connection)

    def send_small(self) -> float:
        """Return microseconds a small message there, until its answer of one byte."""
        with self.ask(b"P") as connection:
            return timed(lambda: turn(connection, bytes(SMALL), 1), 1)

    def receive_small(self) -> float:
        """Return microseconds an answer of one byte there, until the next small message."""
        with self.ask(b"Q") as connection:
            whole(connection, SMALL)
            return timed(lambda: turn(connection, b".", SMALL), SMALL)


def turn(connection: socket.socket, sent: bytes, size: int) -> bytes:
    """Send, and receive ``size`` bytes."""
    connection.sendall(sent)
    return whole(connection, size)


def timed(one: Callable[[], bytes], size: int) -> float:
    """Return the median time of a round in microseconds. Raises ConnectionError when the other end has gone."""
    took: list[float] = []
    until = time.monotonic() + SECONDS / 2
    while time.monotonic() < until or len(took) < 3:
        began = time.perf_counter()
        if len(one()) != size:
            raise ConnectionError("the other end has gone")
        took.append(time.perf_counter() - began)
    return sorted(took)[len(took) // 2] * 1e6


def rate(one: Callable[[], int]) -> float:
    """Return Mb/s of all streams at once."""
    began = time.monotonic()
    with ThreadPoolExecutor(STREAMS) as pool:
        total = sum(pool.map(lambda _: one(), range(STREAMS)))
    return total * 8 / 1e6 / (time.monotonic() - began)


def measure(source: str, target: str, port: int, path: str) -> dict[str, object]:
    """Measure both directions; what fails is said, and what was measured before is kept."""
    far, found = Far(source, target, port, take(path)), dict[str, object]()
    try:
        found["small_out"], found["small_in"] = far.send_small(), far.receive_small()
        found["large_out"], found["large_in"] = rate(far.send_large), rate(far.receive_large)
    except (OSError, ValueError) as error:
        found["error"] = str(error) or type(error).__name__
    return found


def passes(source: str, target: str, size: int) -> bool:
    """Whether a packet of so many bytes, which nobody may divide, comes back. Raises OSError when none can be sent.

    ping ends with 1 where nothing comes back, and with 2 for any other trouble (ping(8)).
    """
    argv = ["ping", "-n", "-q", "-c", "2", "-i", "0.2", "-W", "1", "-M", "do", "-s", str(size - 28), "-I", source]
    done = subprocess.run([*argv, target], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(said[-1] if said else f"ping ended with {done.returncode}")
    return done.returncode == 0


def largest(source: str, target: str, most: int) -> int | None:
    """Return the bytes of the largest packet that passes, up to ``most``; None where none does."""
    if passes(source, target, most):
        return most
    if not passes(source, target, LEAST):
        return None
    good, bad = LEAST, most
    with ThreadPoolExecutor(8) as pool:
        while bad - good > 1:
            step = max(1, (bad - good) // 9)
            sizes = list(range(good + step, bad, step))[:12]
            passed = dict(zip(sizes, pool.map(lambda size: passes(source, target, size), sizes), strict=True))
            good = max([good, *(size for size in sizes if passed[size])])
            bad = min([bad, *(size for size in sizes if not passed[size] and size > good)])
    return good


def packets(source: str, target: str, most: int) -> dict[str, object]:
    """Return the largest packet, or why none could be sent."""
    try:
        return {"largest": largest(source, target, most)}
    except OSError as error:
        return {"largest": None, "error": str(error)}


def main(words: list[str]) -> None:
    """Do what the words say."""
    if words[0] == "listen":
        listen(words[1], words[2], float(words[3]))
    elif words[0] == "measure":
        print(json.dumps(measure(words[1], words[2], int(words[3]), words[4])))
    else:
        print(json.dumps(packets(words[1], words[2], int(words[3]))))


if __name__ == "__main__":
    main(sys.argv[1:])

"""The line between the supervisors: a worker reports, the head answers with an order. Each message carries its proof.

TCP over the fabric. Both sides prove that they know the cluster's secret, which does not travel: an HMAC over a number
that the other side has just made up, then one over each message and its place in the conversation.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import socketserver
import threading
from collections.abc import Mapping
from dataclasses import asdict
from io import BufferedRWPair
from typing import Any

from serve.onnode import clock
from serve.onnode.decide import Order, Seen, Unit

LONGEST = 1 << 16
"""Bytes of a message."""
SILENCE = 5.0
"""Seconds that the other side has for a message."""
CONNECT = 2.0
"""Seconds that a connection may take: a worker without a head ends its ranks, and must not wait on its way there."""


class Broken(Exception):
    """The other side is gone, says nothing, or is not who it should be."""


class Line:
    """One connection after both sides have proved themselves."""

    def __init__(self, stream: BufferedRWPair, secret: bytes, *, head: bool) -> None:
        self._stream = stream
        mine = secrets.token_hex(16)
        self._put({"nonce": mine}, b"")
        theirs = str(self._get(b"").get("nonce", ""))
        nonces = mine + theirs if head else theirs + mine
        self._key = hmac.digest(secret, nonces.encode(), hashlib.sha256)
        self._sent = self._taken = 0
        self._names = (b"head", b"worker") if head else (b"worker", b"head")
        self.send({"hello": True})
        self.take()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message."""
        self._sent += 1
        self._put(message, self._key, self._names[0] + b"%d" % self._sent)

    def take(self) -> dict[str, Any]:
        """Return the next message of the other side. Raises Broken."""
        self._taken += 1
        return self._get(self._key, self._names[1] + b"%d" % self._taken)

    def _put(self, message: Mapping[str, Any], key: bytes, place: bytes = b"") -> None:
        body = json.dumps(message).encode()
        try:
            self._stream.write(_proof(key, place, body) + b" " + body + b"\n")
            self._stream.flush()
        except OSError as error:
            raise Broken(str(error)) from error

    def _get(self, key: bytes, place: bytes = b"") -> dict[str, Any]:
        try:
            line = self._stream.readline(LONGEST)
        except OSError as error:
            raise Broken(str(error) or "it says nothing") from error
        proof, _, body = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n"):
            raise Broken("its message is too long" if len(line) >= LONGEST else "it hung up")
        if not hmac.compare_digest(proof, _proof(key, place, body)):
            raise Broken("it does not know the cluster's secret")
        try:
            message = json.loads(body)
        except ValueError as error:
            raise Broken("it sends what is no JSON") from error
        if not isinstance(message, dict):
            raise Broken("it sends what is no message")
        return message


def _proof(key: bytes, place: bytes, body: bytes) -> bytes:
    return hmac.new(key, place + b" " + body, hashlib.sha256).hexdigest().encode() if key else b"-"


def report_message(node: str, seen: Seen) -> dict[str, Any]:
    """Return a report as it travels."""
    return {"node": node, **asdict(seen), "started": sorted(seen.started)}


def report(message: Mapping[str, Any], now: float) -> tuple[str, Seen]:
    """Return node and report of a message; the time is ours, clocks differ. Raises Broken."""
    try:
        units = {
            str(name): Unit(str(one["active"]), str(one["why"]), str(one["lost"]))
            for name, one in message["units"].items()
        }
        seen = Seen(
            at=now,
            generation=str(message["generation"]),
            serial=int(message["serial"]),
            units=units,
            memory=int(message["memory"]),
            started=frozenset(str(name) for name in message["started"]),
            notes=tuple(str(note) for note in message["notes"]),
        )
        return str(message["node"]), seen
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Broken(f"it sends what is no report: {error}") from error


def order(message: Mapping[str, Any]) -> Order:
    """Return the order of a message. Raises Broken."""
    try:
        return Order(str(message["generation"]), int(message["serial"]), tuple(str(name) for name in message["run"]))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Broken(f"it sends what is no order: {error}") from error


class Desk:
    """What the head's threads share: the last report of each worker, and the orders of the last turn."""

    def __init__(self) -> None:
        self._turned = threading.Condition()
        self._turn = 0
        self._reports: dict[str, Seen] = {}
        self._orders: Mapping[str, Order] = {}

    def reports(self) -> dict[str, Seen]:
        """Return the last report of each worker."""
        with self._turned:
            return dict(self._reports)

    def publish(self, orders: Mapping[str, Order]) -> None:
        """Hand out the orders of a turn, which has seen every report that came before it."""
        with self._turned:
            self._orders = orders
            self._turn += 1
            self._turned.notify_all()

    def hand_in(self, node: str, seen: Seen) -> Order | None:
        """Keep a report, and return the order that was decided with it in sight; None for a node that is not ours.

        Where the head takes too long for a turn: the order that the node has already, or None.
        """
        with self._turned:
            self._reports[node] = seen
            after = self._turn + 2  # the turn that is under way may have begun before
            decided = self._turned.wait_for(lambda: self._turn >= after, SILENCE)
            order = self._orders.get(node)
            had = order is not None and (order.generation, order.serial) == (seen.generation, seen.serial)
            return order if decided or had else None


class Server(socketserver.ThreadingTCPServer):
    """Takes the workers' reports on the head's fabric address."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], secret: bytes, desk: Desk) -> None:
        super().__init__(address, _Conversation)
        self.secret, self.desk = secret, desk
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A conversation ends with whatever was wrong with it; the worker begins another."""


class _Conversation(socketserver.StreamRequestHandler):
    server: Server
    timeout = SILENCE

    def handle(self) -> None:
        stream = self.request.makefile("rwb")
        try:
            line = Line(stream, self.server.secret, head=True)
            while True:
                node, seen = report(line.take(), clock.now())
                answer = self.server.desk.hand_in(node, seen)
                if answer is None:
                    return
                line.send(asdict(answer))
        except Broken:
            return


class Caller:
    """A worker's side: connects when it has to, and says what broke when it did."""

    def __init__(self, address: tuple[str, int], own: str, secret: bytes) -> None:
        self._address, self._own, self._secret = address, own, secret
        self._socket: socket.socket | None = None
        self._line: Line | None = None

    def exchange(self, message: Mapping[str, Any]) -> Order:
        """Report, and return the order. Raises Broken; the next call connects anew."""
        try:
            line = self._line or self._connect()
            line.send(message)
            return order(line.take())
        except Broken:
            self.close()
            raise

    def _connect(self) -> Line:
        try:
            self._socket = socket.create_connection(self._address, CONNECT, source_address=(self._own, 0))
        except OSError as error:
            raise Broken(f"{self._address[0]} port {self._address[1]}: {error}") from error
        self._socket.settimeout(SILENCE + 1)
        self._line = Line(self._socket.makefile("rwb"), self._secret, head=False)
        return self._line

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._line = None

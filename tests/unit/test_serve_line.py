"""The line between supervisors: who does not know the secret is not heard, and nothing that was said counts twice."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.onnode import link
from serve.onnode.decide import Order, Seen, Unit
from serve.onnode.link import Broken, Caller, Desk, Line, Server, order, report, report_message

SECRET, OTHER = b"5" * 64, b"6" * 64
SEEN = Seen(
    at=1.5,
    generation="g1",
    serial=7,
    units={"sparkstack-ray-worker": Unit("failed", "killed by SIGKILL", "its rank is gone")},
    memory=8 << 30,
    started=frozenset({"sparkstack-ray-worker"}),
    notes=("page cache not dropped: read-only file system",),
)
REPORT = report_message("lab-b", SEEN)
ORDER = Order("g1", 8, ("sparkstack-ray-worker",))
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(st.text(max_size=3), SCALAR, max_size=3)


class Counting(Desk):
    """A desk that remembers how many reports came."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def hand_in(self, node: str, seen: Seen) -> Order | None:
        self.count += 1
        return super().hand_in(node, seen)


@contextmanager
def head(orders: Mapping[str, Order], secret: bytes = SECRET) -> Iterator[tuple[tuple[str, int], Counting]]:
    """Listen on loopback as a head does that turns a hundred times a second; give address and desk."""
    desk, over = Counting(), threading.Event()
    server = Server(("127.0.0.1", 0), secret, desk)

    def turn() -> None:
        while not over.wait(0.01):
            desk.publish(orders)

    turning = threading.Thread(target=turn, daemon=True)
    turning.start()
    try:
        yield ("127.0.0.1", int(server.server_address[1])), desk
    finally:
        over.set()
        turning.join()
        # it looks whether it has to end twice a second: nobody waits for that
        threading.Thread(target=lambda: (server.shutdown(), server.server_close()), daemon=True).start()


class Tap:
    """A stream that remembers every line that was written to it, and every one that was read."""

    def __init__(self, connection: socket.socket) -> None:
        self.stream = connection.makefile("rwb")
        self.written: list[bytes] = []
        self.read: list[bytes] = []

    def write(self, line: bytes) -> None:
        self.written.append(line)
        self.stream.write(line)

    def flush(self) -> None:
        self.stream.flush()

    def readline(self, limit: int) -> bytes:
        self.read.append(self.stream.readline(limit))
        return self.read[-1]

    def say(self, line: bytes) -> bytes:
        """Write a line past the conversation, and return what comes back: nothing, where the other side hangs up."""
        self.stream.write(line)
        self.stream.flush()
        answer: bytes = self.stream.readline()
        return answer


@contextmanager
def tapped(address: tuple[str, int], secret: bytes = SECRET) -> Iterator[tuple[Tap, Line]]:
    with socket.create_connection(address, 5) as connection:
        tap = Tap(connection)
        line: Any = tap
        yield tap, Line(line, secret, head=False)
        tap.stream.close()


@pytest.mark.processes
class TestConversation:
    def test_a_worker_that_knows_the_secret_is_heard_and_gets_its_order(self) -> None:
        with head({"lab-b": ORDER}) as (address, desk):
            caller = Caller(address, "127.0.0.1", SECRET)
            before = time.time()
            assert [caller.exchange(REPORT) for _ in range(3)] == [ORDER] * 3
            (found,) = desk.reports().values()
            assert before <= found.at <= time.time(), "the time is the head's: clocks differ"
            assert (found.units, found.started, found.notes) == (SEEN.units, SEEN.started, SEEN.notes)
            caller.close()

    def test_a_worker_without_the_secret_is_not_heard(self) -> None:
        with head({"lab-b": ORDER}) as (address, desk):
            with pytest.raises(Broken, match="it does not know the cluster's secret"):
                Caller(address, "127.0.0.1", OTHER).exchange(REPORT)
            assert desk.count == 0

    def test_the_secret_does_not_travel(self) -> None:
        with head({"lab-b": ORDER}) as (address, _), tapped(address) as (tap, line):
            line.send(REPORT)
            line.take()
        assert SECRET not in b"".join([*tap.written, *tap.read])

    def test_a_report_that_is_played_again_is_not_heard(self) -> None:
        with head({"lab-b": ORDER}) as (address, desk):
            with tapped(address) as (tap, line):
                line.send(REPORT)
                line.take()
                assert tap.say(tap.written[-1]) == b"", "in the same conversation its place is taken"
            with socket.create_connection(address, 5) as again:
                other = Tap(again)
                for old in tap.written[:-1]:
                    other.write(old)
                other.flush()
                nonce, hello, nothing = (other.readline(1 << 16) for _ in range(3))
                other.stream.close()
            assert (bool(nonce), bool(hello), nothing) == (True, True, b""), "in another one its key is another"
            assert desk.count == 1

    def test_what_the_head_said_is_no_report_when_it_comes_back(self) -> None:
        with head({"lab-b": ORDER}) as (address, desk), tapped(address) as (tap, line):
            line.send(REPORT)
            line.take()
            assert tap.say(tap.read[-1]) == b""
            assert desk.count == 1

    @pytest.mark.parametrize(
        "line", [b"\n", b"- {}\n", b"x" * (1 << 17), b"- " + b"[" * 70_000 + b"\n", b'- {"nonce": 5}\n', b"\xff\xfe\n"]
    )
    def test_who_says_something_else_is_hung_up_on_and_others_are_heard_still(self, line: bytes) -> None:
        with head({"lab-b": ORDER}) as (address, desk):
            with socket.create_connection(address, 5) as connection:
                tap = Tap(connection)
                tap.stream.readline()
                try:
                    while answer := tap.say(line):
                        assert json.loads(answer.partition(b" ")[2]) == {"hello": True}
                except OSError:
                    pass  # hung up on with our words unread
            caller = Caller(address, "127.0.0.1", SECRET)
            assert caller.exchange(REPORT) == ORDER
            caller.close()
            assert desk.count == 1

    def test_a_node_that_is_none_of_the_clusters_gets_no_order(self) -> None:
        with head({"lab-b": ORDER}) as (address, _), pytest.raises(Broken, match="it hung up"):
            Caller(address, "127.0.0.1", SECRET).exchange({**REPORT, "node": "lab-z"})

    def test_a_worker_whose_head_was_started_anew_connects_again(self) -> None:
        with head({"lab-b": ORDER}) as (address, _):
            caller = Caller(address, "127.0.0.1", SECRET)
            caller.exchange(REPORT)
            caller.close()
            assert caller.exchange(REPORT) == ORDER
            caller.close()

    def test_where_nobody_listens_the_address_is_said(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = int(free.getsockname()[1])
        with pytest.raises(Broken, match=f"^127.0.0.1 port {port}: .*refused"):
            Caller(("127.0.0.1", port), "127.0.0.1", SECRET).exchange(REPORT)

    def test_a_head_that_says_nothing_is_not_waited_for_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link, "SILENCE", 0.05)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            caller = Caller(("127.0.0.1", int(silent.getsockname()[1])), "127.0.0.1", SECRET)
            with pytest.raises(Broken, match="timed out"):
                caller.exchange(REPORT)

    def test_a_worker_that_says_nothing_is_not_waited_for_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link._Conversation, "timeout", 0.05)
        with head({}) as (address, _), socket.create_connection(address, 5) as silent:
            stream = silent.makefile("rb")
            assert (bool(stream.readline()), stream.readline()) == (True, b"")
            stream.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [(b"", "it hung up"), (b'- {"nonc', "it hung up"), (b"- " + b"x" * (1 << 16), "its message is too long")],
    ids=["nothing", "half a line", "too much"],
)
def test_what_broke_is_said(said: bytes, why: str) -> None:
    here, there = socket.socketpair()
    with here, there:
        other = threading.Thread(target=lambda: (there.sendall(said), there.shutdown(socket.SHUT_WR)), daemon=True)
        other.start()
        stream: Any = here.makefile("rwb")
        with pytest.raises(Broken, match=why):
            Line(stream, SECRET, head=True)
        other.join(5)
        stream.close()


def test_a_report_comes_as_it_was_sent() -> None:
    node, found = report(json.loads(json.dumps(REPORT)), SEEN.at)
    assert (node, found) == ("lab-b", SEEN)


def test_an_order_comes_as_it_was_given() -> None:
    assert order(json.loads(json.dumps(asdict(ORDER)))) == ORDER


@given(st.dictionaries(st.sampled_from([*sorted(REPORT), "run"]), JSON))
def test_any_other_message_is_refused_or_read(message: dict[str, Any]) -> None:
    for read in (lambda: report(message, 0.0), lambda: order(message)):
        with contextlib.suppress(Broken):
            assert read()


class TestDesk:
    def handed_in(self, desk: Desk, seen: Seen = SEEN) -> tuple[threading.Thread, list[Order | None]]:
        """Hand a report in, and return when it lies on the desk."""
        got: list[Order | None] = []
        thread = threading.Thread(target=lambda: got.append(desk.hand_in("lab-b", seen)), daemon=True)
        thread.start()
        while "lab-b" not in desk.reports():
            time.sleep(0.001)
        return thread, got

    def test_an_order_that_was_decided_without_the_report_is_not_handed_out(self) -> None:
        desk = Desk()
        desk.publish({"lab-b": Order("g1", 6)})
        thread, got = self.handed_in(desk)
        desk.publish({"lab-b": Order("g1", 7)})  # the turn that had begun before the report came
        thread.join(0.02)
        assert not got
        desk.publish({"lab-b": ORDER})
        thread.join(5)
        assert got == [ORDER]

    def test_where_the_head_is_stuck_an_old_order_is_not_handed_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A node that was rebooted must not start by an order of before: nobody would notice that it was away."""
        monkeypatch.setattr(link, "SILENCE", 0.02)
        desk = Desk()
        desk.publish({"lab-b": ORDER})
        for seen in (SEEN, Seen(1, "g1", 0, {}, 0), Seen(1, "g0", 8, {}, 0)):
            assert desk.hand_in("lab-b", seen) is None

    def test_where_the_head_is_stuck_a_node_goes_on_with_what_it_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link, "SILENCE", 0.02)
        desk = Desk()
        desk.publish({"lab-b": ORDER})
        assert desk.hand_in("lab-b", Seen(1, "g1", 8, {}, 0)) == ORDER

    def test_before_the_first_turn_there_is_no_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link, "SILENCE", 0.02)
        assert Desk().hand_in("lab-b", SEEN) is None

"""The lock that lies on a node, with real processes: held, refused, freed by whatever ends its holder."""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Thread
from typing import Any

import pytest

from core import nodelock
from core.config import ROOT, Cluster
from core.errors import FactsError, LockHeld, NodeUnreachable
from core.host import SudoPassword
from core.local import LocalHost
from core.nodelock import held, hold_argv
from core.process import Piped
from tests.unit.samples import local

CONTROLLER = """
import sys, time
from core.nodelock import held
from tests.unit.test_core_nodelock import one_node, Here
with held(one_node(), Here("lab-a"), "invoke deploy", sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


class Here(dict[str, Any]):
    """Nodes that are all this host."""

    def __init__(self, *names: str) -> None:
        super().__init__({name: LocalHost(name, SudoPassword(None)) for name in names})


def one_node() -> Cluster:
    return local().model_copy(update={"nodes": local().nodes[:1]})


@pytest.fixture
def name() -> str:
    """A lock that only this test knows."""
    return f"sparkstack-test-{secrets.token_hex(8)}"


@contextmanager
def controller(name: str) -> Iterator[subprocess.Popen[str]]:
    """Another controller that holds the lock of a node."""
    process = subprocess.Popen([sys.executable, "-c", CONTROLLER, name], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def take(name: str, hosts: Any = None) -> Any:
    return held(one_node(), hosts or Here("lab-a"), "invoke serve", name)


def free(name: str, seconds: float = 10) -> bool:
    """Say whether the lock can be had within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with take(name):
                return True
        except LockHeld:
            time.sleep(0.1)
    return False


@pytest.mark.processes
def test_a_second_controller_is_told_who_works_there_and_a_killed_one_frees_the_node(name: str) -> None:
    with controller(name) as first:
        with pytest.raises(LockHeld) as caught, take(name):
            pytest.fail("two controllers at once")
        assert caught.value.node == "lab-a"
        assert caught.value.cause.startswith("invoke deploy by ")
        assert f"(process {first.pid} there, since 20" in caught.value.cause
        assert "the node notices within 30 s" in caught.value.next_move
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert free(name)


@pytest.mark.processes
def test_a_lock_is_free_as_soon_as_its_command_has_ended_or_failed(name: str) -> None:
    for _ in range(3):
        with take(name) as guard:
            guard()
    with pytest.raises(ZeroDivisionError), take(name):
        raise ZeroDivisionError
    with take(name):
        pass


@pytest.mark.processes
def test_a_holder_that_falls_silent_loses_the_lock_and_the_command_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodelock, "pulse", lambda _: 0.05)
    monkeypatch.setattr(nodelock, "hold_argv", lambda said, name, _: hold_argv(said, name, 2))
    with take(name) as guard:
        time.sleep(3)
        guard()
    monkeypatch.setattr(nodelock, "pulse", lambda _: 4)
    with take(name) as guard:
        time.sleep(5)
        with pytest.raises(LockHeld, match="the lock on this node was lost"):
            guard()
        assert free(name)


@pytest.mark.processes
def test_a_holder_that_does_not_answer_is_another_command(name: str) -> None:
    lock = Piped(hold_argv("no json", name))
    try:
        lock.beat()
        assert json.loads(lock.line()) == {"held": True}
        with pytest.raises(LockHeld, match="another command that does not say who it is") as caught, take(name):
            pytest.fail("two at once")
        assert "its process on the node is " in caught.value.next_move
        assert "not known" not in caught.value.next_move
    finally:
        lock.close()
    assert free(name)


@pytest.mark.processes
def test_a_holder_that_ends_just_as_it_is_asked_is_none(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as ending:
        ending.bind(f"\0{name}")
        ending.listen()
        asked = Thread(target=lambda: select.select([ending], [], [], 10) and ending.close())
        asked.start()
        with take(name):
            asked.join()


@contextmanager
def left_behind(name: str, pid: int, space: str, patience: float) -> Iterator[None]:
    """A node's lock that nobody gives signs of life to any more."""
    said = {"command": "invoke deploy", "pid": pid, "by": "me@here", "at": "2026-11-24T12:00:00Z", "space": space}
    lock = Piped(hold_argv(json.dumps(said), name, patience))
    lock.beat()
    assert json.loads(lock.line()) == {"held": True}
    try:
        yield
    finally:
        lock.close()


@pytest.mark.processes
def test_a_lock_that_an_ended_command_of_this_host_left_behind_is_waited_for(name: str) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    said: list[str] = []
    with (
        left_behind(name, ended.pid, nodelock._space(), 3),
        held(one_node(), Here("lab-a"), "invoke deploy", name, said.append) as guard,
    ):
        guard()
    assert said == ["lab-a: an earlier command's connection broke; its lock ends within 30 s"]


@pytest.mark.processes
@pytest.mark.parametrize("where", ["here", "another host"])
def test_a_lock_of_a_command_that_may_live_is_not_waited_for(name: str, where: str) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    pid, space = (os.getpid(), nodelock._space()) if where == "here" else (ended.pid, where)
    with left_behind(name, pid, space, 30):
        with pytest.raises(LockHeld, match="invoke deploy by me@here") as caught, take(name):
            pytest.fail("two at once")
        assert f"(process {pid} there, since 2026-11-24" in caught.value.cause


@pytest.mark.processes
def test_a_lock_that_stays_held_is_told_in_the_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodelock, "PATIENCE", 0.05)
    monkeypatch.setattr(nodelock, "MARGIN", 0.0)
    monkeypatch.setattr(nodelock, "WAIT", 0.3)
    ended = subprocess.Popen(["true"])
    ended.wait()
    with left_behind(name, ended.pid, nodelock._space(), 30):
        with pytest.raises(LockHeld, match="a command that has ended is still held") as caught, take(name):
            pytest.fail("two at once")
        assert caught.value.node == "lab-a"


@pytest.mark.processes
def test_a_process_that_is_never_told_to_begin_ends_by_itself(name: str) -> None:
    lock = Piped(hold_argv("{}", name, 0.3))
    try:
        assert lock.line() == ""
    finally:
        lock.close()


def test_what_a_holder_says_is_shown_as_one_short_line_of_signs() -> None:
    said = {"command": "\x1b]0;x\x07\x1b[2J\n  next: do this", "by": "a" * 500, "pid": 1, "at": "now"}
    shown = nodelock._who(json.dumps(said))
    assert shown.isprintable()
    assert len(shown) == nodelock.MOST


@pytest.mark.processes
def test_a_process_that_is_never_told_to_begin_takes_nothing(name: str) -> None:
    lock = Piped(hold_argv("{}", name))
    with take(name):
        pass
    lock.close()


class Said:
    """A process on a node that prints one line."""

    def __init__(self, line: str, closed: list[str], name: str) -> None:
        self._line, self._closed, self._name = line, closed, name

    def line(self) -> str:
        return self._line

    def beat(self) -> bool:
        return True

    def close(self) -> None:
        self._closed.append(self._name)


class Node:
    """A node on which something goes wrong, or nothing."""

    def __init__(self, name: str, line: str, closed: list[str]) -> None:
        self._name, self._line, self._closed = name, line, closed

    def hold(self, _: object) -> Said:
        if not self._line:
            raise NodeUnreachable("no connection", node=self._name, next_move="check the cable")
        return Said(self._line, self._closed, self._name)


OURS = '{"held": true}'


@pytest.mark.parametrize(
    ("lines", "error", "node", "closed"),
    [
        ((OURS, OURS), None, "", ["lab-a", "lab-b"]),
        ((OURS, '{"held": false, "holder": "", "pid": 0}'), LockHeld, "lab-b", ["lab-a", "lab-b"]),
        (('{"held": false, "holder": "", "pid": 0}', OURS), LockHeld, "lab-a", ["lab-a", "lab-b"]),
        ((OURS, ""), NodeUnreachable, "lab-b", ["lab-a"]),
        (("", OURS), NodeUnreachable, "lab-a", ["lab-b"]),
        ((OURS, "Welcome to lab-b!"), FactsError, "lab-b", ["lab-a", "lab-b"]),
    ],
)
def test_all_nodes_are_held_or_none_is(
    lines: tuple[str, str], error: type[LockHeld] | None, node: str, closed: list[str]
) -> None:
    said: list[str] = []
    hosts: Any = {name: Node(name, line, said) for name, line in zip(("lab-a", "lab-b"), lines, strict=True)}
    refused: Any = pytest.raises(error) if error else nullcontext()
    with refused as caught, held(local(), hosts, "invoke deploy"):
        assert not error, "it was let through"
        assert not said
    assert sorted(said) == closed
    assert not error or caught.value.node == node

"""The lock that lies on the nodes: commands of two controllers, or of two checkouts, cannot work on one node at once.

A process of ours on each node holds a socket in the kernel's abstract namespace, and answers who asks with who we are.
The kernel frees it when the process ends, and that ends with our connection; where the connection dies unseen, with our
silence. So there is no file that outlives its holder, and nothing to clean up after a power loss on either side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Event, Thread

from core.config import Cluster, Node
from core.errors import FactsError, LockHeld
from core.hand import Hand
from core.host import Held
from core.parsers import record
from core.remote import Hosts

NAME = "sparkstack"
BEAT = 5.0
"""Seconds between two signs of life."""
PATIENCE = 30.0
"""Seconds of silence after which a lock is let go."""

# Runs on the node, as the SSH user, as long as stdin is open and not silent. It begins when it is told to.
_HOLD = """
import errno, json, os, select, socket, struct, sys, time
name, said, patience = "\\0" + sys.argv[1], sys.argv[2].encode(), float(sys.argv[3])
def holder():
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(5)
        try:
            other.connect(name)
            pid = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        except OSError as error:
            return None if error.errno == errno.ECONNREFUSED else {"holder": "", "pid": 0}
        try:
            return {"holder": other.makefile(errors="replace").read(4096), "pid": pid}
        except OSError:
            return {"holder": "", "pid": pid}
if not os.read(0, 1):
    sys.exit()
lock, other = socket.socket(socket.AF_UNIX), None
for attempt in range(10):
    try:
        lock.bind(name)
        break
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    other = holder()
    if other:
        break
    time.sleep(0.1)  # its holder is just beginning, or ending
else:
    other = {"holder": "", "pid": 0}
if other:
    print(json.dumps({"held": False, **other}), flush=True)
    sys.exit()
lock.listen(16)
print(json.dumps({"held": True}), flush=True)
heard = time.monotonic()
while time.monotonic() < heard + patience:
    ready, _, _ = select.select([0, lock], [], [], heard + patience - time.monotonic())
    if 0 in ready:
        if not os.read(0, 4096):
            break
        heard = time.monotonic()
    if lock in ready:
        asker, _ = lock.accept()
        try:
            asker.sendall(said)
        except OSError:
            pass
        asker.close()
"""


def hold_argv(said: str, name: str = NAME, patience: float = PATIENCE) -> tuple[str, ...]:
    """Return what holds the lock on a node; ``said`` is what it answers to who asks."""
    return ("python3", "-I", "-c", _HOLD, name, said, str(patience))


@contextmanager
def held(cluster: Cluster, hosts: Hosts, command: str, name: str = NAME) -> Iterator[Callable[[], None]]:
    """Hold the lock of every node for ``command``; gives a guard that raises LockHeld once one of them is lost.

    Raises LockHeld naming node, command, holder and time; then none of the nodes is held.
    """
    said = json.dumps({"command": command, "pid": os.getpid(), "by": (hand := Hand.mine()).by, "since": hand.at})
    # in one order everywhere, so that of two commands that begin at once one gets all of them
    nodes = sorted(cluster.nodes, key=lambda node: node.management)
    with ExitStack() as stack, ThreadPoolExecutor(len(nodes)) as pool:
        begun = [pool.submit(hosts[node.name].hold, hold_argv(said, name)) for node in nodes]
        for one in begun:
            if one.exception() is None:
                stack.callback(one.result().close)
        locks = {node.name: one.result() for node, one in zip(nodes, begun, strict=True)}
        for node in nodes:
            _take(node, locks[node.name])
        beats = stack.enter_context(_beating(locks))
        yield beats


def _take(node: Node, lock: Held) -> None:
    lock.beat()
    text = lock.line()
    try:
        answer = record(text)
    except ValueError as error:
        raise FactsError(
            "the lock on the node cannot be taken",
            node=node.name,
            next_move="see that python3 runs there and that no login script prints (~/.bashrc)",
            evidence=text,
        ) from error
    if not answer.get("held"):
        raise LockHeld(
            f"{_who(str(answer.get('holder', '')))} works on this node",
            node=node.name,
            next_move=f"wait for it to end, or stop it there; where its controller is gone, the node notices within "
            f"{PATIENCE:.0f} s (its process on the node is {answer.get('pid') or 'not known'})",
        )


def _who(text: str) -> str:
    """Return the holder in words; what does not say who it is, is another command."""
    try:
        holder = record(text)
        return f"{holder['command']} by {holder['by']} (process {holder['pid']} there, since {holder['since']})"
    except (ValueError, KeyError):
        return "another command that does not say who it is"


@contextmanager
def _beating(locks: dict[str, Held]) -> Iterator[Callable[[], None]]:
    """Give signs of life to all locks until the end."""
    ended, lost = Event(), list[str]()

    def beat() -> None:
        while not ended.wait(BEAT):
            lost.extend(node for node, lock in locks.items() if node not in lost and not lock.beat())

    def guard() -> None:
        if lost:
            raise LockHeld(
                "the lock on this node was lost, and another command may have taken it",
                node=lost[0],
                next_move="check power and cable, then run the same command again",
            )

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield guard
    finally:
        ended.set()
        thread.join()

"""The lock that lies on the nodes: commands of two controllers, or of two checkouts, cannot work on one node at once.

A process of ours on each node holds a socket in the kernel's abstract namespace, and answers who asks with who we are.
The kernel frees it when the process ends, and that ends with our connection; where the connection dies unseen, with our
silence. So there is no file that outlives its holder, and nothing to clean up after a power loss on either side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep

from core.config import Cluster, Node
from core.errors import FactsError, LockHeld
from core.hand import Hand
from core.host import Held, Host
from core.parsers import record, shown
from core.remote import Hosts
from core.sshroute import pulse

NAME = "sparkstack"
PATIENCE = 1.5
"""A lock is let go after this many times the silence that counts as a loss: our own side gives up first."""
MOST = 200
"""Characters that a holder is shown with: any user of the node can hold the lock, and say anything."""
MARGIN = 5.0
"""Seconds that a lock may take longer to be let go."""
WAIT = 1.0
"""Seconds between two tries to take one that is about to be let go."""

# Runs on the node, as the SSH user, as long as stdin is open and not silent. It begins when it is told to.
_HOLD = """
import errno, json, os, select, socket, struct, sys, time
name, said, patience = "\\0" + sys.argv[1], sys.argv[2].encode(), float(sys.argv[3])
def holder():
    pid = 0
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(5)
        try:
            other.connect(name)
            pid = struct.unpack("3i", other.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            return {"holder": other.makefile(errors="replace").read(4096), "pid": pid}
        except OSError:
            return {"holder": "", "pid": pid}
if not select.select([0], [], [], patience)[0] or not os.read(0, 1):
    sys.exit()
lock, other, until = socket.socket(socket.AF_UNIX), None, time.monotonic() + 1
while True:
    try:
        lock.bind(name)
        other = None
        break
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    other = holder()
    if other["holder"] or time.monotonic() > until:
        break
    time.sleep(0.1)  # one that says nothing is just beginning, or ending
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


def patience_of(cluster: Cluster) -> float:
    """Return the seconds of silence after which a lock is let go."""
    return PATIENCE * cluster.silence


def hold_argv(said: str, name: str = NAME, patience: float = 30) -> tuple[str, ...]:
    """Return what holds the lock on a node; ``said`` is what it answers to who asks."""
    return ("python3", "-I", "-S", "-c", _HOLD, name, said, str(patience))


@contextmanager
def held(
    cluster: Cluster, hosts: Hosts, command: str, name: str = NAME, report: Callable[[str], None] = lambda _: None
) -> Iterator[Callable[[], None]]:
    """Hold the lock of every node for ``command``; gives a guard that raises LockHeld once one of them is lost.

    One that a command of this host has left behind (its connection died with the cable, say) is waited for. Raises
    LockHeld naming node, command, holder and time; then none of the nodes is held.
    """
    said = json.dumps({"command": command, "pid": os.getpid(), **asdict(Hand.mine()), "space": _space()})
    # in one order everywhere, so that of two commands that begin at once one gets all of them
    nodes = sorted(cluster.nodes, key=lambda node: node.management)
    with ExitStack() as stack, ThreadPoolExecutor(len(nodes)) as pool:
        argv = hold_argv(said, name, patience_of(cluster))
        begun = [pool.submit(hosts[node.name].hold, argv) for node in nodes]
        for one in begun:
            if one.exception() is None:
                stack.callback(one.result().close)
        locks = {node.name: one.result() for node, one in zip(nodes, begun, strict=True)}
        taken: dict[str, Held] = {}
        with _beating(taken, pulse(cluster)) as guard:
            for node in nodes:
                if not _take(node, locks[node.name], patience_of(cluster)):
                    within = f"within {patience_of(cluster):.0f} s"
                    report(f"{node.name}: an earlier command's connection broke; its lock ends {within}")
                    again = partial(_hold, hosts[node.name], argv, stack)
                    locks[node.name] = _wait(node, again, patience_of(cluster))
                taken[node.name] = locks[node.name]
            yield guard


def _hold(host: Host, argv: Sequence[str], stack: ExitStack) -> Held:
    return stack.enter_context(closing(host.hold(argv)))


def _take(node: Node, lock: Held, patience: float) -> bool:
    """Take the lock; False where a command holds it that has ended here. Raises LockHeld."""
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
    if answer.get("held"):
        return True
    holder = str(answer.get("holder", ""))
    if _ended_here(holder):
        return False
    raise LockHeld(
        f"{_who(holder)} works on this node",
        node=node.name,
        next_move=f"wait for it to end, or stop it there; where its controller is gone, the node notices within "
        f"{patience:.0f} s (its process on the node is {answer.get('pid') or 'not known'})",
    )


def _wait(node: Node, again: Callable[[], Held], patience: float) -> Held:
    """Try until the node has noticed that nobody speaks to it any more; what such a command ran there ends with it."""
    deadline = monotonic() + patience + MARGIN
    while monotonic() < deadline:
        sleep(WAIT)
        lock = again()
        if _take(node, lock, patience):
            return lock
        lock.close()
    raise LockHeld(
        "the lock of a command that has ended is still held on this node",
        node=node.name,
        next_move="run the same command again; if this stays, restart the node",
    )


def _space() -> str:
    """Return what tells the process numbers of this host from those of another one, or of a container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _ended_here(text: str) -> bool:
    """Whether a holder is a process of this host that has ended."""
    try:
        holder = record(text)
        pid = int(holder["pid"])
    except (ValueError, KeyError, TypeError):
        return False
    return holder.get("space") == _space() and not Path(f"/proc/{pid}").exists()


def _who(text: str) -> str:
    """Return the holder in words; what does not say who it is, is another command."""
    try:
        holder = record(text)
        said = f"{holder['command']} by {holder['by']} (process {holder['pid']} there, since {holder['at']})"
        return shown(said)[:MOST]
    except (ValueError, KeyError):
        return "another command that does not say who it is"


@contextmanager
def _beating(locks: dict[str, Held], seconds: float) -> Iterator[Callable[[], None]]:
    """Give signs of life to all locks that are taken, until the end."""
    ended, lost = Event(), list[str]()

    def beat() -> None:
        while not ended.wait(seconds):
            lost.extend(node for node, lock in tuple(locks.items()) if node not in lost and not lock.beat())

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

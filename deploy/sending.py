"""The controller's end of a push: says what a node is to do (deploy/onnode), and sends the bytes that it asks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from core.config import ROOT
from core.errors import BuildFailed, LockHeld, NodeUnreachable, SparkstackError, UnfitNode, WheelRefused
from core.plan import Report
from core.process import Conversation
from deploy.onnode.common import how_far, said

PACKAGE = "deploy.onnode"
SCRIPTS = ROOT / "deploy" / "onnode"
MODULES: Mapping[str, tuple[str, ...]] = {
    "receive": ("common", "serving", "store", "receive"),
    "join": ("common", "serving", "calling", "store", "join"),
}
"""What an errand runs, in the order in which they import each other: a node takes its time to compile each."""

ARGV = ("python3", "-I", "-S", "-c", (SCRIPTS / "boot.py").read_text(encoding="utf-8"), "sparkstack-push")
"""The last word is for whoever looks at a node's processes."""

INTERVAL = 0.5
"""Seconds between two lines of progress."""

KINDS: Mapping[str, type[SparkstackError]] = {"damaged": WheelRefused, "disk": UnfitNode, "busy": LockHeld}
"""What a script calls its failure, to our error; any other kind is the network's."""

Files = Mapping[str, tuple[Path, int]]
"""SHA-256 to file on this host and its size."""


def source(name: str) -> str:
    """Return the text of a module that nodes run."""
    return (SCRIPTS / f"{name}.py").read_text(encoding="utf-8")


def order(main: str, request: Mapping[str, Any]) -> bytes:
    """Return what boot.py takes: the modules, which of them to run, and with what."""
    modules = [(f"{PACKAGE}.{name}", source(name)) for name in MODULES[main]]
    told = json.dumps({"modules": modules, "main": f"{PACKAGE}.{main}", "request": request}).encode()
    return b"%d\n%b" % (len(told), told)


@dataclass(frozen=True)
class Errand:
    """What a node is to do: which module of deploy/onnode, its request, and the files that it may ask for."""

    node: str
    main: str
    request: Mapping[str, Any] = field(repr=False)
    files: Files = field(default_factory=dict)


def send(errand: Errand, conversation: Conversation, report: Report) -> None:
    """Have a node do its errand, and send what it needs of the files.

    Raises the error that the node names; BrokenPipeError where it ends without a word.
    """
    node = errand.node
    try:
        conversation.send(order(errand.main, errand.request))
    except BrokenPipeError:
        _hear(node, conversation, report)
        raise
    while (told := _hear(node, conversation, report)) and not told.get("done"):
        _send_files(node, told["need"], errand.files, conversation, report)
    if not told:
        raise BrokenPipeError
    while conversation.line():
        pass  # it waits until others have taken what it has


def _hear(node: str, conversation: Conversation, report: Report) -> dict[str, Any]:
    """Return what the node says next that is for us; nothing at its end. Raises its error."""
    while line := conversation.line():
        told = said(line)
        if "error" in told:
            kind = KINDS.get(str(told["error"]), NodeUnreachable)
            raise kind(str(told.get("cause")), node=node, next_move=str(told.get("next")))
        if "damaged" in told:
            report(f"note: {told['damaged']} is damaged there and comes again")
        elif "need" in told or "done" in told:
            return told
        else:
            report(line.rstrip())
    return {}


def _send_files(
    node: str, need: list[tuple[str, int]], files: Files, conversation: Conversation, report: Report
) -> None:
    """Send the rest of each file, one after the other."""
    progress = Progress(sum(files[sha256][1] - there for sha256, there in need), report)
    try:
        for sha256, there in need:
            path, size = files[sha256]
            conversation.send_file(path, there, size, progress.add)
    except BrokenPipeError:
        _hear(node, conversation, report)
        raise
    except (EOFError, FileNotFoundError) as error:
        raise BuildFailed(
            f"a wheel has changed while it was sent: {error}",
            node=node,
            next_move="invoke build-wheels makes it again; then run this again",
        ) from error


@dataclass
class Progress:
    """Counts bytes that were sent and says how far it is, the rate since it began, and the time left."""

    total: int
    report: Report
    clock: Callable[[], float] = monotonic
    done: int = 0
    began: float = field(init=False)
    said: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.said = self.clock()

    def add(self, count: int) -> None:
        """Count more bytes."""
        self.done += count
        now = self.clock()
        if now - self.said >= INTERVAL or self.done == self.total:
            self.said = now
            self.report(how_far(self.done, self.total, self.done, now - self.began))

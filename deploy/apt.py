"""Debian packages onto a node, as steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from core.config import Node
from core.errors import UnfitNode
from core.plan import Run, Step
from core.process import Completed

_APT = ("env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l", "apt-get", "--option=DPkg::Lock::Timeout=60")
"""needrestart (Ubuntu) would restart services by itself: it is told to list them only."""


def install(node: Node, packages: Sequence[str], reason: str) -> Iterator[Step]:
    """Install these packages, nothing that they merely recommend, and remove none for it."""
    words = ("install", "--yes", "--no-install-recommends", "--no-remove", *packages)
    for title, why, argv in (
        ("ask the package sources anew", "an old list names packages that are no longer there", ("update",)),
        (f"install {' '.join(packages)}", reason, words),
    ):
        yield Run(
            node=node.name,
            title=title,
            reason=why,
            argv=(*_APT, *argv),
            privileged=True,
            timeout=900,
            failure=partial(_failed, node, title),
        )


def _failed(node: Node, title: str, done: Completed) -> UnfitNode:
    said = [line for line in (done.out + done.err).splitlines() if line.startswith(("E:", "W:", "Err:"))]
    return UnfitNode(
        f"apt could not {title}",
        node=node.name,
        next_move="on the node: look at /etc/apt/sources.list, sources.list.d and the way to the mirror; then again",
        evidence="\n".join(said[-8:]) or done.tail(8),
    )

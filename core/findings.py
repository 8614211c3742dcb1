"""What keeps a machine from what is planned for it, each with its next move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from core.errors import UnfitNode
from core.host import CONTROLLER


class Severity(IntEnum):
    """How bad a finding is: worth knowing, doubtful, or in the way."""

    NOTE = 0
    WARNING = 1
    PROBLEM = 2

    @property
    def word(self) -> str:
        """Return it as people and programs read it."""
        return self.name.lower()


@dataclass(frozen=True)
class Finding:
    """Something that keeps a node, or this host, from serving or building, and what to do about it.

    ``meaning`` says what comes of it; a severity below PROBLEM is for what a doctor says and a plan does not.
    """

    node: str
    cause: str
    next_move: str
    meaning: str = ""
    severity: Severity = Severity.PROBLEM


def refuse_unfit(findings: Iterable[Finding]) -> None:
    """Raise UnfitNode for the first finding, with the others as evidence."""
    found = list(findings)
    if found:
        lines = "\n".join(f"also {other.node}: {other.cause}; next: {other.next_move}" for other in found[1:])
        raise UnfitNode(found[0].cause, node=found[0].node, next_move=found[0].next_move, evidence=lines)


def apt_install(packages: Iterable[str], node: str = "") -> str:
    """Return the next move for missing Debian packages; on a node unless ``node`` is this host."""
    command = f"sudo apt-get install {' '.join(packages)}"
    return command if node == CONTROLLER else f"on the node: {command}"

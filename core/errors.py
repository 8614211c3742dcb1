"""One family of errors: what happened, on which node, and the next move.

Each class has an exit code of its own, so that a script can tell a refused host key from a full disk. The codes are
part of the interface and are listed in the README; a new class takes a new code.
"""

from __future__ import annotations

from typing import ClassVar


class SparkstackError(Exception):
    """Something the user can act on.

    ``cause`` says what happened, ``next_move`` what to do about it (a command where there is one), ``node`` where.
    ``evidence`` is raw output or a path that supports the cause; it is shown below it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, cause: str, *, next_move: str, node: str | None = None, evidence: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_move = next_move
        self.node = node
        self.evidence = evidence.strip()

    def __str__(self) -> str:
        where = f"{self.node}: " if self.node else ""
        evidence = "".join(f"\n    {line}" for line in self.evidence.splitlines())
        return f"{where}{self.cause}{evidence}\n  next: {self.next_move}"


class ConfigError(SparkstackError):
    """A configuration file has an unknown key, a wrong type or is missing."""

    exit_code = 10


class UsageError(SparkstackError):
    """Flags that do not go together, or name something that does not exist."""

    exit_code = 11


class NodeUnreachable(SparkstackError):
    """No TCP connection to the node's SSH port, or it broke."""

    exit_code = 20


class HostKeyRefused(SparkstackError):
    """The node's host key is unknown, or not the one that was enrolled."""

    exit_code = 21


class AuthenticationRefused(SparkstackError):
    """The node is there and does not accept our key, or sudo not our password."""

    exit_code = 22


class CommandFailed(SparkstackError):
    """A command ended with a code other than 0."""

    exit_code = 23


class FactsError(SparkstackError):
    """A probe answered something that cannot be read."""

    exit_code = 24


class UnfitNode(SparkstackError):
    """Facts say that a node cannot do what the plan needs (disk, address, package, architecture)."""

    exit_code = 25


class LockHeld(SparkstackError):
    """Another command works on the same cluster."""

    exit_code = 26


class NotConverged(SparkstackError):
    """Everything ran, and looking again still finds something to do."""

    exit_code = 27


class ComesFirst(SparkstackError):
    """A plan that can be shown and not run: another command comes first."""

    exit_code = 28


class Doubtful(SparkstackError):
    """The doctor warns of something that does not forbid going on."""

    exit_code = 29


class BuildFailed(SparkstackError):
    """A wheel could not be built, fetched or verified."""

    exit_code = 30


class RegistryRefused(SparkstackError):
    """A registry, index or hub cannot be reached, does not let us in, or gives something else than it promised."""

    exit_code = 31


class ImageRefused(SparkstackError):
    """An image is damaged or hostile, or does not hold what was asked for."""

    exit_code = 32


class WheelRefused(SparkstackError):
    """A wheel is damaged, or a gate does not let it into the stack."""

    exit_code = 33


class SignatureRefused(SparkstackError):
    """A release carries no signature of somebody who may sign, or something in it was changed."""

    exit_code = 34


class PublishRefused(SparkstackError):
    """Something may not be published there, or another file has its name already."""

    exit_code = 35


class ModelRefused(SparkstackError):
    """A model on a node, or on its way there, is damaged."""

    exit_code = 36


class InUse(SparkstackError):
    """Something would be removed that still runs."""

    exit_code = 37


class NetworkReverted(SparkstackError):
    """A change of the network did not work on a node, and was taken back."""

    exit_code = 39


class NotServing(SparkstackError):
    """The service did not come up, or gave no token."""

    exit_code = 40


class WrongAnswer(SparkstackError):
    """The model answered something other than what was expected."""

    exit_code = 41


class Slower(SparkstackError):
    """A measurement is worse than the one that it was compared with."""

    exit_code = 42


class LabError(SparkstackError):
    """The local machines cannot be made or changed."""

    exit_code = 50


class HostNotReady(SparkstackError):
    """This host lacks a Debian package, or a Python, that the suite itself needs."""

    exit_code = 60


class Interrupted(SparkstackError):
    """Ctrl-C: what was done is kept, the same command goes on."""

    exit_code = 130

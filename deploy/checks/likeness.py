"""The nodes are alike, and their clocks agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import median

from core.errors import UnfitNode
from core.facts import NodeFacts
from core.findings import Finding, Severity
from deploy.checks.case import Case
from wheels.target import common_target

SKEW = 2.0
"""Seconds that clocks may differ."""
NTP = "on the node: sudo timedatectl set-ntp true; timedatectl timesync-status says whether a server answers"


def _driver(seen: NodeFacts) -> str | None:
    return seen.gpus[0].driver if seen.gpus else None


def _firmware(seen: NodeFacts) -> str | None:
    return ", ".join(sorted({port.firmware for port in seen.condition.rdma.values()})) or None


VERSIONS: Mapping[str, tuple[Callable[[NodeFacts], str | None], Severity]] = {
    "NVIDIA driver": (_driver, Severity.WARNING),
    "CUDA toolkit": (lambda seen: seen.cuda, Severity.WARNING),
    "network card's firmware": (_firmware, Severity.WARNING),
    "kernel": (lambda seen: seen.kernel, Severity.NOTE),
    "system": (lambda seen: seen.os.get("PRETTY_NAME"), Severity.NOTE),
    "DGX OS update": (lambda seen: seen.condition.dgx.get("DGX_OTA_VERSION"), Severity.NOTE),
    "glibc": (lambda seen: "{}.{}".format(*seen.glibc), Severity.NOTE),
}
"""What should be the same everywhere: how it is read, and how bad it is when not."""


def versions(case: Case) -> Iterator[Finding]:
    """A node has another version of something than the head."""
    for what, (read, severity) in VERSIONS.items():
        for head, seen in _others(case):
            own, heads = read(seen), read(head)
            if own and heads and own != heads:
                yield Finding(
                    seen.name,
                    f"its {what} is {own}, {head.name} has {heads}",
                    "update both to the same",
                    "ranks that differ can fail or hang in ways that look like the network",
                    severity,
                )


def _others(case: Case) -> Iterator[tuple[NodeFacts, NodeFacts]]:
    """Give every node that answered but the first of them, behind that one: the head, while it answers."""
    seen = [one for _, one, _ in case.nodes()]
    yield from ((seen[0], other) for other in seen[1:])


def target(case: Case) -> Iterator[Finding]:
    """The nodes want different wheels: another architecture, another Python."""
    nodes = tuple(node for node, _, _ in case.nodes())
    if not nodes:
        return
    try:
        common_target(case.cluster.model_copy(update={"nodes": nodes}), case.facts, case.stack)
    except UnfitNode as error:
        yield Finding(error.node or "", error.cause, error.next_move, "no release can be deployed to both")


def releases(case: Case) -> Iterator[Finding]:
    """A node is on another release than the head."""
    for head, seen in _others(case):
        if seen.current != head.current:
            yield Finding(
                seen.name,
                f"its release is {seen.current or 'none'}, {head.name} has {head.current or 'none'}",
                f"invoke deploy --cluster {case.cluster.flag}",
                "invoke serve refuses: all ranks must have the same wheels",
                Severity.WARNING,
            )


def clocks(case: Case) -> Iterator[Finding]:
    """A clock differs from the others (of the nodes, and of this host) by more than SKEW, whatever the round trip."""
    offsets = {node.name: condition.clock for node, _, condition in case.nodes() if condition.clock}
    agreed = median([0.0, *((clock.least + clock.most) / 2 for clock in offsets.values())])
    for name, clock in offsets.items():
        off = max(clock.least - agreed, agreed - clock.most)
        if off > SKEW:
            way = "ahead" if clock.least > agreed else "behind"
            yield Finding(
                name,
                f"its clock is {off:.0f} s {way}",
                NTP,
                "the merged logs are out of order, and certificates and signatures may be judged wrongly",
                Severity.WARNING,
            )

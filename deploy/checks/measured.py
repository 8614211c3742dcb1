"""The fabric as it was measured between each pair of nodes, against what its interfaces promise."""

from __future__ import annotations

from collections.abc import Iterator

from core.findings import Finding, Severity
from deploy.checks.case import Case, Direction

TCP_REACH = 40_000
"""Mb/s that four TCP streams can be trusted to reach on a Spark, whose port says 200000.

One PCIe half carries about 100 Gb/s; tools in C were seen at 96 Gb/s with 16 streams. More than this cannot be promised
of a short run that is not tuned, so a fast link is judged by this number.
"""
FAR = 0.4
"""Share of the expected rate below which a link is slow."""
LATE = 1000
"""Microseconds that a small message may take: on a cable it takes some tens."""


def expected(case: Case, one: Direction) -> int | None:
    """Return Mb/s that both ends promise, at most TCP_REACH; None where an interface does not say."""
    speeds = []
    for node, seen, _ in case.nodes():
        interface = seen.interface_of(node.fabric)
        if node.name in (one.sender, one.receiver) and interface is not None:
            speeds.append(interface.speed)
    known = [speed for speed in speeds if speed]
    return min(*known, TCP_REACH) if known else None


def rates(case: Case) -> Iterator[Finding]:
    """A direction is far slower than its interfaces say."""
    for one in case.measured:
        wanted = expected(case, one)
        if one.large is not None and wanted is not None and one.large < FAR * wanted:
            yield Finding(
                one.sender,
                f"to {one.receiver} {one.large / 1000:.2f} Gb/s were measured, {wanted / 1000:g} Gb/s are expected",
                "look at the cable, the MTU and the PCIe lanes of both ends, and at what else uses the link; if all is "
                "well, take both machines' power away for a minute",
                "what every token waits for takes longer",
                Severity.WARNING,
            )


def small_messages(case: Case) -> Iterator[Finding]:
    """Small messages take long."""
    for one in case.measured:
        if one.small is not None and one.small > LATE:
            yield Finding(
                one.sender,
                f"a message of 10 KiB to {one.receiver} takes {one.small / 1000:.1f} ms, on a cable it takes below 0.1",
                "see that nothing stands between the nodes (a VPN, a switch that saves power), and what else runs",
                "ranks exchange small messages for every token",
                Severity.WARNING,
            )


def packets(case: Case) -> Iterator[Finding]:
    """Packets that the sender's interface lets out do not arrive."""
    ends = {node.name: seen.interface_of(node.fabric) for node, seen, _ in case.nodes()}
    for one in case.measured:
        interface = ends[one.sender]
        if one.largest is None or interface is None or one.largest >= (interface.mtu or 0):
            continue
        yield Finding(
            one.sender,
            f"packets to {one.receiver} pass up to {one.largest} bytes, the MTU of {interface.name} is {interface.mtu}",
            "set the same MTU on both ends, and at least that on the switch where there is one",
            "larger packets vanish: small ones pass, and the first collective hangs without a message",
        )


def unmeasured(case: Case) -> Iterator[Finding]:
    """No connection came about over the fabric, or it got stuck."""
    for one in case.measured:
        if one.error or one.largest is None:
            yield Finding(
                one.sender,
                f"the fabric to {one.receiver} could not be measured: {one.error or 'no packet came back'}",
                "look at the firewall of both nodes (docs/ports.md), the addresses and the cable",
                "Ray and NCCL would wait for each other",
            )

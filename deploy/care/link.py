"""The fabric measured between each pair of nodes: rates, small messages, the largest packet, in both directions.

Plain TCP with four streams, by a small program that is given to both nodes and leaves nothing there. It listens on the
fabric address only, for seconds, and for who has the secret of this one measurement.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from core.config import Cluster, Node
from core.errors import FactsError
from core.facts import Facts
from core.host import Host, temporary_path
from core.parsers import record
from core.remote import Hosts
from deploy.checks.case import Direction

PROGRAM = Path(__file__).with_name("linkend.py")
LISTEN = 45
"""Seconds after which the listening end stops in any case."""


@dataclass(frozen=True)
class _End:
    node: Node
    host: Host
    mtu: int


def measure(cluster: Cluster, hosts: Hosts, facts: Facts) -> tuple[Direction, ...]:
    """Measure each pair of nodes that answered and have their fabric address, one pair after the other."""
    ends = list(_ends(cluster, hosts, facts))
    return tuple(one for here, there in combinations(ends, 2) for one in _pair(here, there))


def _ends(cluster: Cluster, hosts: Hosts, facts: Facts) -> Iterator[_End]:
    for node in cluster.nodes:
        interface = facts[node.name].interface_of(node.fabric) if node.name in facts else None
        if interface is not None:
            yield _End(node, hosts[node.name], interface.mtu or 1500)


def _argv(*words: str) -> tuple[str, ...]:
    return ("python3", "-I", "-c", PROGRAM.read_text(encoding="utf-8"), *words)


def _pair(here: _End, there: _End) -> Iterator[Direction]:
    with ThreadPoolExecutor(2) as pool:
        packets = list(pool.map(_largest, (here, there), (there, here)))
    found = _streams(here, there)
    for sender, receiver, way, largest in ((here, there, "out", packets[0]), (there, here, "in", packets[1])):
        yield Direction(
            sender=sender.node.name,
            receiver=receiver.node.name,
            large=found.get(f"large_{way}"),
            small=found.get(f"small_{way}"),
            largest=largest,
            error=str(found.get("error", "")),
        )


def _largest(here: _End, there: _End) -> int | None:
    argv = _argv("packets", str(here.node.fabric), str(there.node.fabric), str(here.mtu))
    largest: int | None = _answer(here, here.host.run(argv, timeout=60).out)["largest"]
    return largest


def _streams(here: _End, there: _End) -> dict[str, Any]:
    """Run the listening end there and the other one here, with a secret that lives for this measurement."""
    secret, files = secrets.token_hex(32), (temporary_path(), temporary_path())
    for end, path in zip((here, there), files, strict=True):
        end.host.write(PurePosixPath(path), secret, mode=0o600)
    listener = there.host.hold(_argv("listen", str(there.node.fabric), files[1], str(LISTEN)))
    try:
        port = _answer(there, listener.line())["port"]
        argv = _argv("measure", str(here.node.fabric), str(there.node.fabric), str(port), files[0])
        return _answer(here, here.host.run(argv, timeout=LISTEN).out)
    finally:
        listener.close()
        here.host.run(("rm", "-f", files[0]), check=False)


def _answer(end: _End, text: str) -> dict[str, Any]:
    try:
        return record(text)
    except json.JSONDecodeError as error:
        raise FactsError(
            "the measuring program answered something that is not JSON",
            node=end.node.name,
            next_move="see that python3 runs there and that no login script prints (~/.bashrc)",
            evidence=text[:500],
        ) from error

"""The fabric measured between each pair of nodes: rates, small messages, the largest packet, in both directions.

Plain TCP with four streams, by a small program that is given to both nodes and leaves nothing there. It listens on the
fabric address only, for seconds, and for who has the secret of this one measurement.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from core.config import Cluster, Node
from core.errors import FactsError, SparkstackError
from core.facts import Facts
from core.host import Host, temporary_path
from core.parsers import record_or_none, shown
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
    """Measure one pair; that it could not be measured is what is known of it then."""
    found: dict[str, Any] = {}
    try:
        with ThreadPoolExecutor(2) as pool:
            told = pool.map(_largest, (here, there), (there, here))
        found |= {**_packets("out", here, next(told)), **_packets("in", there, next(told))}
        found |= _streams(here, there)
    except SparkstackError as error:
        found["error"] = f"{error.node}: {error.cause}" if error.node else error.cause
    for sender, receiver, way in ((here, there, "out"), (there, here, "in")):
        yield Direction(
            sender=sender.node.name,
            receiver=receiver.node.name,
            large=_number(found.get(f"large_{way}")),
            small=_number(found.get(f"small_{way}")),
            largest=found.get(f"largest_{way}"),
            error=shown(str(found.get("error", ""))),
        )


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def _largest(here: _End, there: _End) -> dict[str, Any]:
    argv = _argv("packets", str(here.node.fabric), str(there.node.fabric), str(here.mtu))
    return _answer(here, here.host.run(argv, timeout=60).out, "largest")


def _packets(way: str, sender: _End, told: Mapping[str, Any]) -> dict[str, Any]:
    largest, error = told["largest"], told.get("error")
    found = {f"largest_{way}": largest if isinstance(largest, int) else None}
    return {**found, "error": f"{sender.node.name}: {error}"} if error else found


def _streams(here: _End, there: _End) -> dict[str, Any]:
    """Run the listening end there and the other one here, with a secret that lives for this measurement."""
    secret, files = secrets.token_hex(32), (temporary_path(), temporary_path())
    with ExitStack() as afterwards:  # all of it is done, whatever fails: no secret stays on a node
        for end, path in zip((here, there), files, strict=True):
            afterwards.callback(end.host.run, ("rm", "-f", path), check=False)
            end.host.write(PurePosixPath(path), secret, mode=0o600)
        listener = there.host.hold(_argv("listen", str(there.node.fabric), files[1], str(LISTEN)))
        afterwards.callback(listener.close)
        port = _answer(there, listener.line(), "port")["port"]
        argv = _argv("measure", str(here.node.fabric), str(there.node.fabric), str(port), files[0])
        return _answer(here, here.host.run(argv, timeout=LISTEN).out)


def _answer(end: _End, text: str, *needed: str) -> dict[str, Any]:
    """Read what the program printed. Raises FactsError where it is no JSON object with these keys."""
    found = record_or_none(text)
    if not found or not found.keys() >= set(needed):
        raise FactsError(
            "the measuring program answered something else than it should",
            node=end.node.name,
            next_move="see that python3 runs there and that no login script prints (~/.bashrc)",
            evidence=text[:500],
        )
    return found

"""The probe of the traffic: look at every node's network, wait, ask the API for some tokens, look again."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from typing import Any

from core.config import Cluster
from core.errors import Doubtful, FactsError
from core.host import Host
from core.parsers import record
from core.remote import Hosts
from serve.view import traffic
from serve.view.status import SERVICE

METER, ASKER = (Path(__file__).with_name(name) for name in ("meter.py", "asker.py"))
KEY = "/etc/sparkstack/credentials/api-key"
TOKENS = 32
PAUSE = 2.0
"""Seconds whose traffic is that of the time without the request."""


def prove(cluster: Cluster, hosts: Hosts) -> traffic.Proof:
    """Send one request and say which way what it moved has gone. Raises what the hosts raise, and FactsError."""
    first = _readings(cluster, hosts)
    sleep(PAUSE)
    before = _readings(cluster, hosts)
    found = _answered(hosts[cluster.head.name])
    after = _readings(cluster, hosts)
    return traffic.judge(traffic.Case(cluster, first, before, after, found, cluster.api.port))


def unproven(proof: traffic.Proof) -> Doubtful | None:
    """Return what the command ends with where the traffic is not shown to be on the fabric."""
    if proof.good:
        return None
    return Doubtful(
        proof.verdict,
        next_move="invoke doctor --link looks at the fabric; invoke restart begins anew on it",
        evidence="\n".join(proof.strays),
    )


def _readings(cluster: Cluster, hosts: Hosts) -> dict[str, traffic.Reading]:
    with ThreadPoolExecutor(len(cluster.nodes)) as pool:
        names = [node.name for node in cluster.nodes]
        return dict(zip(names, pool.map(lambda name: _reading(hosts[name]), names), strict=True))


def _reading(host: Host) -> traffic.Reading:
    data = _ran(host, METER)
    try:
        addresses = json.loads(str(data.get("addresses", "")))
    except (ValueError, RecursionError) as error:
        raise _unread(host, "its addresses", "") from error
    return traffic.reading(data, addresses)


def _answered(host: Host) -> traffic.Answer:
    return traffic.answer(_ran(host, ASKER, SERVICE, KEY, str(TOKENS), timeout=300))


def _ran(host: Host, program: Path, *words: str, timeout: float = 60) -> dict[str, Any]:
    argv = ("python3", "-I", "-S", "-c", program.read_text(encoding="utf-8"), *words)
    done = host.run(argv, privileged=True, timeout=timeout)
    try:
        return record(done.out)
    except (ValueError, RecursionError) as error:
        raise _unread(host, f"what {program.name} printed", done.tail(5)) from error


def _unread(host: Host, what: str, evidence: str) -> FactsError:
    return FactsError(
        f"{what} cannot be read", node=host.name, next_move="run the same command again", evidence=evidence
    )

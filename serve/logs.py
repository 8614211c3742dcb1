"""The journals of our units on all nodes, as one stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from core.config import Cluster
from core.remote import Hosts
from serve.cluster import START_ORDER

FOREVER = 10 * 365 * 86400.0


def journal_argv(lines: int, *, follow: bool) -> tuple[str, ...]:
    """Return the argv that prints our units' newest entries as JSON lines."""
    # by name: a pattern that matches no unit is an error, as on a node where nothing was started yet
    units = (f"--unit={name}" for name in START_ORDER)
    argv = ("journalctl", *units, "-o", "json", "--no-pager", "-n", str(lines))
    return (*argv, "-f") if follow else argv


def merged(cluster: Cluster, hosts: Hosts, lines: int) -> list[str]:
    """Return the last lines of every node, in the order of their time."""
    with ThreadPoolExecutor(len(cluster.nodes)) as pool:
        argv = journal_argv(lines, follow=False)
        texts = pool.map(lambda node: (node.name, hosts[node.name].run(argv, privileged=True).out), cluster.nodes)
        entries = [entry for name, text in texts for entry in parse(name, text)]
    return [text for _, text in sorted(entries)]


def follow(cluster: Cluster, hosts: Hosts, lines: int, on_line: Callable[[str], None]) -> None:
    """Hand on the lines of every node as they come, until Ctrl-C or until every connection has ended."""
    lock = Lock()

    def watch(name: str) -> None:
        def one(line: str) -> None:
            with lock:
                for _, text in parse(name, line):
                    on_line(text)

        hosts[name].run(journal_argv(lines, follow=True), privileged=True, timeout=FOREVER, on_line=one, check=False)

    with ThreadPoolExecutor(len(cluster.nodes)) as pool:
        watches = [pool.submit(watch, node.name) for node in cluster.nodes]
        try:
            for done in watches:
                done.result()
        except KeyboardInterrupt:
            hosts.close()


def parse(node: str, text: str) -> Iterator[tuple[int, str]]:
    """Parse `journalctl -o json`: (microseconds since the epoch, "time node unit: message") an entry."""
    for line in text.split("\n"):
        if not line.startswith("{"):
            continue
        entry: dict[str, Any] = json.loads(line)
        moment = int(entry["__REALTIME_TIMESTAMP"])
        unit = (
            str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT", ""))  # UNIT: what systemd itself says of a unit
            .removeprefix("sparkstack-")
            .removesuffix(".service")
        )
        stamp = datetime.fromtimestamp(moment / 1e6, UTC).strftime("%H:%M:%S.%f")[:-3]
        yield moment, f"{stamp} {node} {unit}: {_message(entry.get('MESSAGE'))}"


def _message(value: Any) -> str:
    """Return an entry's text; journald gives bytes that are no UTF-8 as numbers, and a field that came twice as a list.

    https://systemd.io/JOURNAL_EXPORT_FORMATS/#journal-json-format
    """
    if not isinstance(value, list):
        return str(value or "")
    numbers = all(isinstance(item, int) for item in value)
    return bytes(value).decode(errors="replace") if numbers else "\n".join(map(_message, value))

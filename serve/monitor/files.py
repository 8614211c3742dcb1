"""The files of `invoke monitor` on a node: Prometheus's configuration and the units, rendered purely."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from core.config import Cluster, Node
from core.facts import Facts
from core.units import MONITOR, NODE_EXPORTER, PROMETHEUS
from serve.api.keys import MONITOR_KEY, path_of
from serve.cluster import UNIT_FOLDER
from serve.monitor.scrape import EXPORTER_PORT, PROMETHEUS_PORT, exporters, key_print, networks, vllm
from serve.templates import render

CONFIG = PurePosixPath("/etc/sparkstack/prometheus.yml")
OWN = frozenset({str(CONFIG), *(str(UNIT_FOLDER / f"{name}.service") for name in MONITOR)})
"""Every file that `invoke monitor` may write to a node."""
TEXT_FILES = PurePosixPath("/run/sparkstack/metrics")
"""Where the supervisors put what the node exporters hand on."""
KEY_FILE = PurePosixPath(f"/run/credentials/{PROMETHEUS}.service") / MONITOR_KEY
"""Where systemd lays the credential for the unit: systemd.exec(5), LoadCredential=."""
SIZE, DAYS = "1GB", 30
"""What Prometheus keeps at most."""
COLLECTORS = (
    *("cpu", "diskstats", "filesystem", "hwmon", "infiniband", "loadavg", "meminfo", "netclass", "netdev"),
    *("pressure", "stat", "thermal_zone", "uname", "vmstat"),
)
MARKER = "made by sparkstack (invoke monitor); changes are overwritten"


def units_of(cluster: Cluster, node: Node) -> tuple[str, ...]:
    """Return the units that watch on ``node``."""
    return (NODE_EXPORTER, PROMETHEUS) if node == cluster.head else (NODE_EXPORTER,)


def files_of(cluster: Cluster, node: Node, facts: Facts) -> dict[PurePosixPath, str]:
    """Return path and content of every file that `invoke monitor` wants on ``node``."""
    files = {UNIT_FOLDER / f"{NODE_EXPORTER}.service": _exporter(cluster, node)}
    if node == cluster.head:
        files[CONFIG] = configuration(cluster, facts)
        files[UNIT_FOLDER / f"{PROMETHEUS}.service"] = _prometheus(cluster, node)
    return files


def configuration(cluster: Cluster, facts: Facts) -> str:
    """Return prometheus.yml; it names the key's fingerprint, so that another key makes another file and a new start."""
    head = facts[cluster.head.name]
    known = key_print(head)
    return render(
        "prometheus.yml",
        marker=MARKER,
        key_file=KEY_FILE,
        key_note=f" ({known[:12]}…)" if known else "",
        word=json.dumps,  # JSON's strings are YAML's
        vllm=vllm(cluster, head),
        nodes=exporters(cluster),
        networks=tuple(networks(cluster, facts)),
    )


def _prometheus(cluster: Cluster, node: Node) -> str:
    return render(
        f"{PROMETHEUS}.service",
        marker=MARKER,
        node=node,
        config=CONFIG,
        credential=f"{MONITOR_KEY}:{path_of(MONITOR_KEY)}",
        state=PROMETHEUS,
        port=PROMETHEUS_PORT,
        size=SIZE,
        days=DAYS,
        reached=(cluster.head.management, *(one.fabric for one in cluster.nodes)),
    )


def _exporter(cluster: Cluster, node: Node) -> str:
    return render(
        f"{NODE_EXPORTER}.service",
        marker=MARKER,
        node=node,
        port=EXPORTER_PORT,
        collectors=COLLECTORS,
        text_files=TEXT_FILES,
        subnet=cluster.fabric.subnet,
    )

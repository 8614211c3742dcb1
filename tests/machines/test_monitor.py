"""Prometheus, node exporters and the way to them: up while the service serves, and off again without a trace."""

from __future__ import annotations

import json

import pytest

from core.units import MONITOR, NODE_EXPORTER, PROMETHEUS
from serve.monitor.files import OWN
from tests.machines.command_line import CommandLine
from tests.machines.harness import Lab

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
UNITS = {A: set(MONITOR), B: {NODE_EXPORTER}}
TRACES = (
    *sorted(OWN),
    *(f"/etc/systemd/system/*.wants/{name}.service" for name in MONITOR),
    *(f"/var/lib/{PROMETHEUS}", f"/var/lib/private/{PROMETHEUS}"),
)


def watching(lab: Lab, name: str) -> set[str]:
    """Return the units that watch on a machine."""
    lines = lab.output(name, "systemctl list-units --plain --no-legend --state=active 'sparkstack-*'").splitlines()
    return {line.split()[0].removesuffix(".service") for line in lines} & set(MONITOR)


def listening(lab: Lab, name: str) -> set[str]:
    """Return where a machine listens on the ports of Prometheus and node exporters."""
    addresses = (line.split()[3] for line in lab.output(name, "ss -Hltn").splitlines())
    return {address for address in addresses if address.endswith((":9090", ":9100"))}


def answered(lab: Lab, query: str) -> list[dict[str, str]]:
    """Return the labels of what Prometheus answers."""
    found = json.loads(lab.output(A, f"promtool query instant --format=json http://127.0.0.1:9090 '{query}'"))
    return [row["metric"] for row in found]


@pytest.mark.usefixtures("deployed")
def test_what_watches_comes_up_is_heard_by_nobody_else_and_goes_without_a_trace(lab: Lab, invoke: CommandLine) -> None:
    invoke.works("lab.model")
    invoke.works("serve")

    done = invoke.works("monitor")
    assert [line.split()[:3] for line in done.out.splitlines()[:3]] == [
        ["up", "node", A],
        ["up", "node", B],
        ["up", "vllm", A],
    ]
    assert "ssh -N -L 9090:127.0.0.1:9090 " in done.out
    assert f"{lab.cluster.user}@{lab.cluster.head.management}" in done.out
    assert "serve/monitor/grafana.json" in done.out

    assert {name: watching(lab, name) for name in (A, B)} == UNITS
    fabric = {node.name: f"{node.fabric}:9100" for node in lab.cluster.nodes}
    assert listening(lab, A) == {"127.0.0.1:9090", fabric[A]}
    assert listening(lab, B) == {fabric[B]}
    assert {row["node"] for row in answered(lab, 'node_network_receive_bytes_total{network="fabric"}')} == {A, B}
    assert answered(lab, "vllm:num_requests_running")
    assert [row["phase"] for row in answered(lab, f'sparkstack_phase{{node="{A}"}} == 1')] == ["serving"]

    assert invoke.works("monitor").out.splitlines()[0] == "nothing to do"
    assert invoke.works("serve").out == "nothing to do\n", "what watches is no part of the service"

    invoke.works("monitor", "--off")
    for name in (A, B):
        assert watching(lab, name) == set()
        assert listening(lab, name) == set()
        traces = " ".join(TRACES)
        assert lab.as_root(name, f"for path in {traces}; do [ ! -e $path ] || echo $path; done") == ""
    assert invoke.works("monitor", "--off").out == "nothing to do\n"

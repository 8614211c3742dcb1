"""The Grafana dashboard as a pure function; `grafana.json` beside it is what it returns.

After a change: `python -m serve.monitor.dashboard`. Metrics are named as vLLM 0.11 and 0.32 both have them
(vllm/v1/metrics/loggers.py), so that one dashboard shows either.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_name("grafana.json")
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 24
"""Of a panel, and of Grafana's grid: three stand side by side."""
RATE = "[$__rate_interval]"

Queries = tuple[tuple[str, str], ...]
"""Expression and legend of each."""


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    unit: str
    queries: Queries
    kind: Literal["timeseries", "stat"] = "timeseries"
    top: float | None = None
    """Where the axis ends."""
    about: str = ""


def quantiles(metric: str) -> Queries:
    """Return the queries for the middle and the slow end of a histogram."""
    buckets = f"sum by (le) (rate({metric}_bucket{RATE}))"
    shares = ((0.5, "half within"), (0.9, "9 of 10 within"), (0.99, "99 of 100 within"))
    return tuple((f"histogram_quantile({share}, {buckets})", name) for share, name in shares)


def bits(received: str, sent: str, which: str) -> Queries:
    """Return the queries for bits per second, in and out, of the devices that a matcher names."""
    ways = ((received, "in"), (sent, "out"))
    return tuple((f"8 * rate({metric}{{{which}}}{RATE})", f"{{{{node}}}} {{{{device}}}} {way}") for metric, way in ways)


NETWORK = ("node_network_receive_bytes_total", "node_network_transmit_bytes_total")
RDMA = ("node_infiniband_port_data_received_bytes_total", "node_infiniband_port_data_transmitted_bytes_total")

SUPERVISION = (
    Panel("Phase", "none", (("sparkstack_phase == 1", "{{node}}: {{phase}}"),), "stat"),
    Panel(
        "Starts and failures",
        "none",
        (("max(sparkstack_attempts_total)", "attempts"), ("max(sparkstack_failures_total)", "failures")),
        about="since the supervisor of the head began; every attempt after the first is a restart",
    ),
    Panel("Serving for", "s", (("max(sparkstack_serving_seconds)", "serving"),), "stat"),
    Panel("Units", "none", (("min by (node, unit) (sparkstack_unit_up)", "{{node}} {{unit}}"),), top=1),
    Panel("Targets", "none", (("up", "{{job}} of {{node}}"),), top=1),
    Panel(
        "Age of the supervisors' word",
        "s",
        (('time() - node_textfile_mtime_seconds{file=~".*/sparkstack.prom"}', "{{node}} {{file}}"),),
        about="what they say is as old as this: it grows when a supervisor no longer writes",
    ),
)
VLLM = (
    Panel(
        "Requests",
        "none",
        (("sum(vllm:num_requests_running)", "running"), ("sum(vllm:num_requests_waiting)", "waiting")),
    ),
    Panel(
        "Tokens per second",
        "none",
        (
            (f"sum(rate(vllm:generation_tokens_total{RATE}))", "generated"),
            (f"sum(rate(vllm:prompt_tokens_total{RATE}))", "of prompts"),
        ),
    ),
    Panel(
        "KV cache in use", "percentunit", (("max by (engine) (vllm:kv_cache_usage_perc)", "engine {{engine}}"),), top=1
    ),
    Panel("Time to first token", "s", quantiles("vllm:time_to_first_token_seconds")),
    Panel(
        "Time per output token",
        "s",
        quantiles("vllm:request_time_per_output_token_seconds"),
        about="the mean of each request that ended",
    ),
    Panel("Time between tokens", "s", quantiles("vllm:inter_token_latency_seconds")),
    Panel("Whole requests", "s", quantiles("vllm:e2e_request_latency_seconds")),
    Panel(
        "Requests that ended",
        "reqps",
        ((f"sum by (finished_reason) (rate(vllm:request_success_total{RATE}))", "{{finished_reason}}"),),
    ),
    Panel(
        "Prefix cache and preemptions",
        "none",
        (
            (
                f"sum(rate(vllm:prefix_cache_hits_total{RATE})) / sum(rate(vllm:prefix_cache_queries_total{RATE}))",
                "share of the prompts found in the cache",
            ),
            (f"sum(rate(vllm:num_preemptions_total{RATE}))", "preemptions per second"),
        ),
    ),
)
RAY = (
    Panel(
        "Nodes on which Ray runs",
        "none",
        (("max(sparkstack_ray_nodes_alive)", "nodes"),),
        about="as its units tell; before vLLM starts, Ray itself is asked whether it has every node with its GPU",
    ),
    Panel("GPUs that Ray has", "none", (("max(sparkstack_ray_gpus)", "GPUs"),)),
)
NODES = (
    Panel(
        "Memory available",
        "bytes",
        (
            ("node_memory_MemAvailable_bytes", "{{node}}"),
            ("min by (node) (sparkstack_memory_available_bytes)", "{{node}}, within its limit"),
        ),
    ),
    Panel(
        "CPU",
        "percentunit",
        ((f'1 - avg by (node) (rate(node_cpu_seconds_total{{mode="idle"}}{RATE}))', "{{node}}"),),
        top=1,
    ),
    Panel(
        "Waiting for memory",
        "percentunit",
        ((f"rate(node_pressure_memory_waiting_seconds_total{RATE})", "{{node}}"),),
        about="share of the time in which some process waited for memory",
    ),
    Panel("Fabric, sockets", "bps", bits(*NETWORK, 'network="fabric"')),
    Panel(
        "Fabric, RDMA",
        "bps",
        bits(*RDMA, 'network="fabric"'),
        about="what NCCL sends by RoCE is not among the interface's own bytes",
    ),
    Panel("Other networks", "bps", bits(*NETWORK, 'network!="fabric",device!="lo"')),
    Panel("Disk free", "bytes", (('node_filesystem_avail_bytes{mountpoint="/"}', "{{node}}"),)),
    Panel("Temperature", "celsius", (("max by (node) (node_thermal_zone_temp)", "{{node}}"),)),
    Panel("Load", "none", (("node_load1", "{{node}}"),)),
)
ROWS = (("Supervision", SUPERVISION), ("vLLM", VLLM), ("Ray", RAY), ("Nodes", NODES))


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it; its data source is chosen in a list at the top."""
    return {
        "uid": "sparkstack",
        "title": "sparkstack",
        "description": "vLLM, Ray and the nodes of a cluster (invoke monitor)",
        "tags": ["sparkstack"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "annotations": {"list": []},
        "panels": list(_panels()),
    }


def as_text() -> str:
    """Return the file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _panels() -> Iterator[dict[str, Any]]:
    number, line, across = 0, 0, COLUMNS // WIDTH
    for title, panels in ROWS:
        number, top = number + 1, line + 1
        place = {"x": 0, "y": line, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        for index, panel in enumerate(panels):
            number += 1
            place = {"x": index % across * WIDTH, "y": top + index // across * HEIGHT, "w": WIDTH, "h": HEIGHT}
            yield {"id": number, "gridPos": place, **_panel(panel)}
        line = top + -(-len(panels) // across) * HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    limits = {"min": 0} if panel.top is None else {"min": 0, "max": panel.top}
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, **limits}, "overrides": []},
        "options": {"textMode": "name" if panel.unit == "none" else "value"} if panel.kind == "stat" else {},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": query, "legendFormat": legend}
            for index, (query, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    FILE.write_text(as_text(), encoding="utf-8")

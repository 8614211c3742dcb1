"""The dashboard: what Grafana imports, of metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from core.process import run
from serve.monitor.dashboard import FILE, SOURCE, as_text, dashboard
from serve.onnode.record import metrics
from tests.unit.samples import TABLES

METRICS = json.loads((TABLES / "metrics.json").read_text(encoding="utf-8"))
SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
METRIC = re.compile(r"\b(?:vllm:\w+|(?:node|sparkstack)_\w+|up)\b")
UNITS = {"none", "s", "percentunit", "reqps", "bytes", "bps", "celsius"}
"""Of Grafana's unit formats (packages/grafana-data/src/valueFormats/categories.ts), those that are used."""


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = dashboard()["panels"]
    return found


def queries() -> Iterator[str]:
    for panel in panels():
        yield from (target["expr"] for target in panel.get("targets", []))


def exported(version: str) -> set[str]:
    return {name + suffix for name, kind in METRICS["vllm"][version].items() for suffix in SUFFIXES[kind]}


def used() -> set[str]:
    """Return the metrics of all queries; what stands in braces or as a label to group by is none."""
    bare = (re.sub(r"\{[^}]*\}|by \([^)]*\)", "", query) for query in queries())
    return {name for query in bare for name in METRIC.findall(query)}


def test_the_file_is_what_the_function_returns() -> None:
    assert FILE.read_text(encoding="utf-8") == as_text(), "python -m serve.monitor.dashboard"


@pytest.mark.parametrize("version", METRICS["vllm"])
def test_each_metric_of_vllm_is_one_that_this_version_exports(version: str) -> None:
    ours = {name for name in used() if name.startswith("vllm:")}
    assert len(ours) > 8
    assert ours - exported(version) == set()


def test_each_other_metric_is_one_of_the_node_exporters_the_supervisors_or_prometheus_itself() -> None:
    known = {
        name
        for kind in ("node_exporter", "node_exporter_hardware", "sparkstack", "prometheus")
        for name in METRICS[kind]
    }
    assert {name for name in used() if not name.startswith("vllm:")} - known == set()


def test_everything_that_the_supervisors_write_is_shown() -> None:
    assert set(METRICS["sparkstack"]) <= used()


def test_what_the_supervisors_write_is_what_the_table_says() -> None:
    nodes = {"a": {"units": {"sparkstack-ray-head": "active"}, "memory_available": 1}}
    head = {
        "role": "head",
        "phase": "serving",
        "at": 2,
        "serving_since": 1,
        "attempt": 1,
        "failures": [],
        "nodes": nodes,
    }
    written = {re.split(r"[ {]", line)[0] for line in metrics(head).splitlines() if not line.startswith("#")}
    assert written == set(METRICS["sparkstack"])


def test_a_panel_is_complete_and_has_a_place_of_its_own() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        place = panel["gridPos"]
        assert set(place) == {"x", "y", "w", "h"}
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["datasource"] == SOURCE
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for one, other in combinations((panel["gridPos"] for panel in panels()), 2):
        assert not (_meet(one, other, "x", "w") and _meet(one, other, "y", "h")), (one, other)


def _meet(one: dict[str, int], other: dict[str, int], start: str, size: str) -> bool:
    return one[start] < other[start] + other[size] and other[start] < one[start] + one[size]


def test_the_data_source_is_chosen_on_the_dashboard() -> None:
    (variable,) = dashboard()["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    assert SOURCE["uid"] == f"${{{variable['name']}}}"


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")
def test_promtool_reads_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"q{index}", "expr": query.replace("$__rate_interval", "1m")}
        for index, query in enumerate(queries())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    run(["promtool", "check", "rules", str(path)])

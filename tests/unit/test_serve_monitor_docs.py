"""docs/monitoring.md tells the truth about flags, units, ports and metrics."""

from __future__ import annotations

import json
import re

import tasks
from core.config import ROOT
from core.units import MONITOR
from serve.monitor.files import DAYS, SIZE, TEXT_FILES
from serve.monitor.plan import PACKAGES
from serve.monitor.scrape import EXPORTER_PORT, PROMETHEUS_PORT
from tests.unit.samples import TABLES

HELP = dict(tasks.ns["monitor"].help)
"""Taken now: invoke uses it up when it parses."""
TEXT = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")


def test_every_flag_is_explained() -> None:
    assert set(HELP) <= set(re.findall(r"--([a-z-]+[a-z])", TEXT))


def test_every_command_in_it_exists() -> None:
    assert set(re.findall(r"\binvoke ([a-z.-]+[a-z])", TEXT)) <= set(tasks.ns.task_names)


def test_units_packages_folders_and_numbers_are_those_of_the_code() -> None:
    for name in (*MONITOR, *PACKAGES, f"{TEXT_FILES}"):
        assert f"`{name}`" in TEXT, name
    assert f"127.0.0.1:{PROMETHEUS_PORT} " in TEXT
    assert f"fabric address, {EXPORTER_PORT} " in TEXT
    assert f"{SIZE.replace('GB', ' GB')} or {DAYS} days" in TEXT


def test_every_metric_of_the_supervisors_is_explained() -> None:
    ours = set(json.loads((TABLES / "metrics.json").read_text(encoding="utf-8"))["sparkstack"])
    assert set(re.findall(r"`(sparkstack_\w+)", TEXT)) == ours

"""docs/network.md tells the truth about flags, files and commands."""

from __future__ import annotations

import re

import tasks
from core.config import ROOT
from core.wiring import GUARD, NETPLAN, NETWORKD, NETWORKD_HALF
from deploy.network import guard
from deploy.network.plan import DEADLINE, JUMBO

HELP = dict(tasks.ns["network"].help)
"""Taken now: invoke uses it up when it parses."""
TEXT = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")


def test_every_flag_is_explained() -> None:
    assert set(re.findall(r"--([a-z-]+[a-z])", TEXT)) == set(HELP)


def test_every_command_in_it_exists() -> None:
    assert set(re.findall(r"\binvoke ([a-z.-]+[a-z])", TEXT)) <= set(tasks.ns.task_names)


def test_files_units_and_numbers_are_those_of_the_code() -> None:
    for name in (NETPLAN, NETWORKD, GUARD, guard.BOOT_UNIT):
        assert f"`{name}`" in TEXT or f"`{name}/" in TEXT or f" {name}/" in TEXT, name
    assert NETWORKD_HALF.name.endswith("-half.network")
    assert f"largest packet, {JUMBO} without it" in TEXT
    assert f"nobody confirmed, {DEADLINE} without it" in TEXT

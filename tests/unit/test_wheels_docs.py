"""docs/wheels.md tells the truth about gates and flags."""

from __future__ import annotations

import re

import tasks
from core.config import ROOT
from wheels.gates import GATES

HELP = dict(tasks.ns["wheels.extract"].help)
"""Taken now: invoke uses it up when it parses."""
TEXT = (ROOT / "docs" / "wheels.md").read_text(encoding="utf-8")


def test_every_gate_is_listed_with_what_it_promises() -> None:
    rows = re.findall(r"^\| `([a-z0-9]+)` \| (.+) \|$", TEXT, flags=re.MULTILINE)
    assert rows == [(gate.name, gate.promise) for gate in GATES]


def test_every_flag_of_extract_is_explained() -> None:
    rows = set(re.findall(r"^\| `--([a-z-]+)` \|", TEXT, flags=re.MULTILINE))
    assert rows == set(HELP) - {"dry-run", "json"}


def test_every_command_in_it_exists() -> None:
    commands = set(re.findall(r"\binvoke ([a-z.-]+[a-z])", TEXT))
    assert commands <= set(tasks.ns.task_names)

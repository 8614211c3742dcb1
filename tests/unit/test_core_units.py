"""Units of ours: which states count as running, and how they are stopped."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from core.process import run
from core.units import runs, stop_argv
from tests.unit.samples import lab_facts, unit


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        *((state, True) for state in ("active", "activating", "reloading", "deactivating")),
        *((state, False) for state in ("failed", "inactive", "")),
    ],
)
def test_a_unit_runs_until_it_has_ended(state: str, *, expected: bool) -> None:
    seen = replace(lab_facts()["lab-a"], units={"sparkstack-x": unit("sparkstack-x", state)})
    assert runs(seen, "sparkstack-x") is expected


def test_a_unit_that_is_not_there_does_not_run() -> None:
    assert not runs(lab_facts()["lab-a"], "sparkstack-x")


SYSTEMCTL = """#!/bin/sh
printf '%s\\n' "$*" >> "$(dirname "$0")/said"
case "$1 $3" in
    "show absent") printf 'LoadState=not-found\\nActiveState=inactive\\n' ;;
    "show orphan") printf 'LoadState=not-found\\nActiveState=active\\n' ;;
    show*) printf 'LoadState=loaded\\nActiveState=inactive\\n' ;;
    *" failed") exit 0 ;;
    "--quiet "*) exit 1 ;;
esac
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("units", "changed"),
    [
        (["a", "absent", "b"], ["stop a b"]),
        (["absent"], []),
        (["orphan"], ["stop orphan"]),
        (["failed"], ["stop failed", "reset-failed failed"]),
    ],
)
def test_what_is_there_is_stopped_and_forgotten_and_what_is_not_there_is_no_failure(
    units: list[str], changed: list[str], tmp_path: Path
) -> None:
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    assert run(stop_argv(units), env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}).code == 0
    said = (tmp_path / "said").read_text().splitlines()
    assert [line for line in said if not line.startswith(("show", "--quiet is-failed"))] == changed

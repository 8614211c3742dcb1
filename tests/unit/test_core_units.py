"""Units of ours: which states count as running."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.units import runs
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

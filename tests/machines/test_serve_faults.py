"""The table of faults: what happens to a service that serves, and how soon it is back, with nothing answered wrongly.

Each row runs under one executor in CI, as its `ci` says, and under the other one in the long run as well. The rows
share one running service: each leaves it serving.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.machines.clients import ANSWERED, Traffic
from tests.machines.faults import (
    ENDS,
    Fault,
    cut,
    filled,
    frozen,
    judge,
    killed,
    note,
    powerless,
    rebooted,
    starved,
    strike,
)
from tests.machines.harness import Lab
from tests.machines.serving import MP, NODES, RAY, A, B, Service, footprint, nothing_left_behind

pytestmark = pytest.mark.machines


@dataclass(frozen=True)
class Row:
    """A fault, and what is expected of the service.

    ``stays``: it goes on without a restart; with None either is right. ``head_vanishes``: nobody is left to tell the
    clients anything, so that their own 30 s of patience count.
    """

    name: str
    fault: Fault
    ci: str
    """The executor under which it runs in CI; empty where only the long run has it."""
    executors: tuple[str, ...] = (RAY, MP)
    lasts: float = 0
    stays: bool | None = False
    head_vanishes: bool = False


OFF = 20
"""Seconds without power: longer than a node may be silent."""
ROWS = (
    Row("kill -9 of the worker's raylet", killed(B, "raylet"), RAY, executors=(RAY,)),
    Row("kill -9 of the head's raylet", killed(A, "raylet"), "", executors=(RAY,)),
    Row("kill -9 of the GCS", killed(A, "GCS"), RAY, executors=(RAY,)),
    Row("kill -9 of the API server", killed(A, "API server"), MP),
    # in CI with fifty clients: test_serve_load.py
    Row("kill -9 of the engine core", killed(A, "engine"), ""),
    Row("kill -9 of the head's rank", killed(A, "rank"), MP),
    Row("kill -9 of the worker's rank", killed(B, "rank"), MP),
    Row("both disks full", filled(A, B), MP, lasts=10, stays=True),
    Row("the fabric cut for 5 s", cut(B), MP, lasts=5, stays=None),
    Row("SIGSTOP of the worker's rank", frozen(B, "rank"), MP),
    Row("SIGSTOP of the head's rank", frozen(A, "rank"), ""),
    Row("the fabric cut for 5 min", cut(B), "", lasts=300),
    Row("memory pressure on the worker", starved(B), MP),
    Row("memory pressure on the head", starved(A), ""),
    Row("power loss of the worker", powerless(B), MP, lasts=OFF),
    Row("power loss of the head", powerless(A), "", lasts=OFF, head_vanishes=True),
    Row("power loss of both, the worker on first", powerless(B, A), MP, lasts=OFF, head_vanishes=True),
    Row("power loss of both, the head on first", powerless(A, B), "", lasts=OFF, head_vanishes=True),
    Row("reboot of the head", rebooted(A), MP, head_vanishes=True),
    Row("reboot of the worker", rebooted(B), ""),
    Row("reboot of both", rebooted(A, B), "", head_vanishes=True),
)


def cases() -> list[object]:
    """Return every row under each of its executors; Ray's first, so that the service changes once."""
    return [
        pytest.param(
            row,
            executor,
            id=f"{executor}-{re.sub(r'[^a-z0-9]+', '-', row.name.lower())}",
            marks=() if row.ci == executor else (pytest.mark.long,),
        )
        for executor in (RAY, MP)
        for row in ROWS
        if executor in row.executors
    ]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("row", "executor"), cases())
def test_after_a_fault_nothing_is_answered_wrongly_and_the_service_is_back(
    lab: Lab, serving_with: Callable[[str], Service], row: Row, executor: str
) -> None:
    service = serving_with(executor)
    before = {name: footprint(lab, name) for name in NODES}
    patience = ENDS if row.head_vanishes else 2 * ENDS
    with Traffic(service.door, patience=patience) as traffic:
        struck = strike(service, traffic, row.fault, lasts=row.lasts, stays=row.stays)
    note(row.name, executor, struck, service)
    judge(struck, traffic, service, head_vanishes=row.head_vanishes)
    if row.stays:
        assert [one for one in traffic.asked if one.outcome != ANSWERED] == []
    nothing_left_behind(lab, before)

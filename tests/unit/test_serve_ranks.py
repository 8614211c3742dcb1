"""A rank that has gone is seen while its unit goes on: by the processes in the unit's control group."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from serve.onnode.ranks import Ranks

GROUP = "/system.slice/sparkstack-ray-worker.service"
SHOW = {"Id": "sparkstack-ray-worker.service", "InvocationID": "1f", "ControlGroup": GROUP}
RAYLET, RANK = "/opt/venv/ray/raylet", "ray::RayWorkerProc.run"


class Machine:
    """The files that the kernel would show: processes of a control group, and their titles."""

    def __init__(self, folder: Path, version: int) -> None:
        self.folder = folder
        self.place = folder / ("cgroup" if version == 2 else "cgroup/systemd") / GROUP.lstrip("/")
        self.place.mkdir(parents=True)
        self.ranks = Ranks((folder / "cgroup", folder / "cgroup" / "systemd"), folder / "proc")

    def has(self, parents: Mapping[str, str] = {}, /, **titles: str) -> None:
        """Have these processes (p7="title"), and no others; children of 1 where nothing else is said."""
        numbers = {name.removeprefix("p"): title for name, title in titles.items()}
        (self.place / "cgroup.procs").write_text("".join(f"{number}\n" for number in numbers))
        for number, title in numbers.items():
            (self.folder / "proc" / number).mkdir(parents=True, exist_ok=True)
            (self.folder / "proc" / number / "cmdline").write_bytes(title.replace(" ", "\0").encode())
            parent = parents.get(f"p{number}", "p1").removeprefix("p")
            (self.folder / "proc" / number / "status").write_text(f"Name:\tx\nPPid:\t{parent}\nTracerPid:\t0\n")


@pytest.fixture(params=[2, 1], ids=["version-2", "version-1"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine(tmp_path, request.param)


def test_ranks_that_live_are_not_lost(machine: Machine) -> None:
    machine.has(p7=RAYLET, p8="ray::IDLE")
    assert machine.ranks.lost(SHOW) == ""
    machine.has(p7=RAYLET, p8=RANK)
    assert machine.ranks.lost(SHOW) == machine.ranks.lost(SHOW) == ""


def test_a_rank_that_is_gone_is_named_as_long_as_its_unit_runs(machine: Machine) -> None:
    machine.has(p7=RAYLET, p8=RANK)
    machine.ranks.lost(SHOW)
    machine.has(p7=RAYLET)
    assert machine.ranks.lost(SHOW) == machine.ranks.lost(SHOW) == "its rank ray::RayWorkerProc (process 8) is gone"


def test_a_rank_that_is_listed_and_has_ended_is_gone(machine: Machine) -> None:
    machine.has(p7="VLLM::EngineCore", p8="VLLM::Worker_PP0_TP0")
    machine.ranks.lost(SHOW)
    machine.has(p7="VLLM::EngineCore", p8="")
    assert machine.ranks.lost(SHOW) == "its rank VLLM::Worker_PP0_TP0 (process 8) is gone"


def test_other_processes_come_and_go(machine: Machine) -> None:
    machine.has(p7=RAYLET, p8="ray::IDLE", p9="python -m VLLM::Worker")
    machine.ranks.lost(SHOW)
    machine.has(p7=RAYLET)
    assert machine.ranks.lost(SHOW) == ""


def test_what_a_rank_starts_has_its_title_for_a_moment_and_is_none(machine: Machine) -> None:
    machine.has({"p9": "p8", "p10": "p9"}, p7=RAYLET, p8=RANK, p9=RANK, p10=RANK)
    machine.ranks.lost(SHOW)
    machine.has(p7=RAYLET, p8=RANK)
    assert machine.ranks.lost(SHOW) == ""


def test_what_has_ended_while_it_was_looked_at_is_no_rank(machine: Machine) -> None:
    machine.has(p7=RAYLET, p8=RANK, p9=RANK)
    (machine.folder / "proc" / "9" / "status").unlink()
    machine.ranks.lost(SHOW)
    machine.has(p7=RAYLET, p8=RANK)
    assert machine.ranks.lost(SHOW) == ""


def test_a_unit_that_was_started_anew_has_lost_nothing(machine: Machine) -> None:
    machine.has(p8=RANK)
    machine.ranks.lost(SHOW)
    machine.has(p9=RANK)
    assert machine.ranks.lost({**SHOW, "InvocationID": "2e"}) == ""


@pytest.mark.parametrize("missing", ["InvocationID", "ControlGroup"])
def test_a_unit_that_does_not_run_has_no_ranks(machine: Machine, missing: str) -> None:
    machine.has(p8=RANK)
    assert machine.ranks.lost({**SHOW, missing: ""}) == ""

"""What the doctor may end and install, as plans; and the program that ends processes, on some of this test's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import process
from core.condition import GpuProcess, Owner
from core.ending import end_argv
from core.errors import UnfitNode
from core.facts import NodeFacts
from core.parsers import Unit
from core.plan import Run
from core.process import Completed
from core.surroundings import OurProcess
from core.units import stop_argv
from deploy.care.fix import plan_fix
from deploy.checks.case import Case
from deploy.page import case_of
from tests.unit.samples import cpu, lab_facts, local, tiny, unit

LEFT = OurProcess(
    pid=4711,
    start=99,
    uid=1000,
    unit="session-3.scope",
    command="/opt/sparkstack/releases/r/venv/bin/raylet",
    ports=(6379,),
    top=4711,
    loose=True,
    starter="1 systemd",
)
CHILD = replace(LEFT, pid=4712, start=100, ports=(), command="ray::IDLE")


def case(*ours: OurProcess, units: tuple[Unit, ...] = (), packages: frozenset[str] | None = None, **more: Any) -> Case:
    """Return two local machines of which the second one has these."""
    facts = lab_facts(packages=frozenset(cpu().packages) if packages is None else packages)
    facts["lab-b"] = with_ours(facts["lab-b"], ours, units, **more)
    return case_of(local(), cpu(), tiny(), facts)


def with_ours(seen: NodeFacts, ours: tuple[OurProcess, ...], units: tuple[Unit, ...], **more: Any) -> NodeFacts:
    around = replace(seen.condition.around, ours=ours, uid=1000)
    condition = replace(seen.condition, around=around, **more)
    return replace(seen, condition=condition, units={one.name: one for one in units})


def commands(found: Case) -> list[tuple[str, ...]]:
    steps = [step for step in plan_fix(found).steps if isinstance(step, Run)]
    assert len(steps) == len(list(plan_fix(found).steps))
    return [(step.node, *step.argv[:1], *step.argv[4:]) for step in steps]


def test_what_is_well_needs_nothing() -> None:
    assert plan_fix(case()).empty


def test_a_family_of_which_one_holds_a_port_is_ended_whole() -> None:
    found = case(LEFT, replace(CHILD, top=4711))
    assert commands(found) == [("lab-b", "python3", "10", "4711:99", "4712:100")]


@pytest.mark.parametrize(
    ("title", "process", "units"),
    [
        ("nothing is held", replace(LEFT, ports=()), ()),
        ("its starter lives", replace(LEFT, loose=False), ()),
        ("its unit runs", replace(LEFT, unit="sparkstack-build-x.service"), (unit("sparkstack-build-x"),)),
        ("its unit ends now", replace(LEFT, unit="sparkstack-a.service"), (unit("sparkstack-a", "deactivating"),)),
        ("a service of somebody else holds it", replace(LEFT, unit="my-vllm.service"), ()),
        ("a service of a user holds it", replace(LEFT, unit="user@1000.service"), ()),
        ("its unit was not seen", replace(LEFT, unit="sparkstack-a.service"), ()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_be_of_use_is_not_ended(title: str, process: OurProcess, units: tuple[Unit, ...]) -> None:
    assert plan_fix(case(process, units=units)).empty, title


@pytest.mark.parametrize("place", ["-", "session-3.scope", "vte-spawn-1.scope"])
def test_what_no_service_holds_is_ended(place: str) -> None:
    assert commands(case(replace(LEFT, unit=place))) == [("lab-b", "python3", "10", "4711:99")]


def test_a_rank_that_outlived_its_unit_is_ended() -> None:
    left = replace(LEFT, unit="sparkstack-ray-worker.service")
    assert commands(case(left, units=(unit("sparkstack-ray-worker", "failed"),)))


def test_nothing_is_ended_while_a_service_runs() -> None:
    facts = lab_facts(packages=frozenset(cpu().packages))
    facts["lab-a"] = replace(facts["lab-a"], units={"sparkstack-vllm": unit("sparkstack-vllm")})
    facts["lab-b"] = with_ours(facts["lab-b"], (LEFT,), (unit("sparkstack-ray-worker"),))
    assert plan_fix(case_of(local(), cpu(), tiny(), facts)).empty


def test_a_plan_names_each_process_with_its_start_so_that_no_later_one_of_that_number_is_ended() -> None:
    found = case(LEFT, replace(CHILD, top=4712, ports=(6380,)))
    (step,) = plan_fix(found).steps
    assert commands(found)[0][2:] == ("10", "4711:99", "4712:100")
    assert step.title == "end process 4711, process 4712"


def test_a_rank_of_a_service_whose_vllm_has_ended_is_stopped_with_its_unit() -> None:
    found = case(
        units=(unit("sparkstack-ray-worker"),),
        gpu_processes=(GpuProcess(577, "ray::Worker", 2**30),),
        owners={577: Owner("spark", "sparkstack-ray-worker.service")},
    )
    (step,) = plan_fix(found).steps
    assert isinstance(step, Run)
    assert (step.node, step.argv, step.privileged) == ("lab-b", stop_argv(["sparkstack-ray-worker"]), True)


def test_logind_is_told_to_leave_the_memory_of_services_alone_where_it_would_take_it() -> None:
    found = case()
    seen = found.facts["lab-b"]
    around = replace(seen.condition.around, uid=1000, removes_ipc=True, lingers=False)
    facts = {**found.facts, "lab-b": replace(seen, condition=replace(seen.condition, around=around))}
    (step,) = plan_fix(replace(found, facts=facts)).steps
    assert isinstance(step, Run)
    assert (step.node, step.argv, step.privileged) == ("lab-b", ("loginctl", "enable-linger", local().user), True)


def test_missing_packages_are_installed_by_a_command_that_asks_nothing_and_removes_nothing() -> None:
    plan = plan_fix(case(packages=frozenset({"libgomp1"})))
    update, install = [step for step in plan.steps if isinstance(step, Run) and step.node == "lab-a"]
    assert install.argv == (
        *("env", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l", "apt-get"),
        *("--option=DPkg::Lock::Timeout=60", "install", "--yes", "--no-install-recommends", "--no-remove", "libnuma1"),
    )
    assert update.argv[-1] == "update"
    assert update.privileged
    assert install.failure is not None
    error = install.failure(Completed(install.argv, 100, "Reading\n", "E: Unable to locate package libnuma1\n"))
    assert isinstance(error, UnfitNode)
    assert (error.node, error.evidence) == ("lab-a", "E: Unable to locate package libnuma1")


def test_headers_of_a_python_that_the_node_does_not_have_from_debian_are_not_installed() -> None:
    found = case(packages=frozenset({"libgomp1", "libnuma1"}))
    asks = replace(found, stack=found.stack.model_copy(update={"packages": ("libgomp1", "python3.13-dev")}))
    assert plan_fix(asks).empty


@given(
    ours=st.lists(
        st.builds(
            OurProcess,
            pid=st.integers(2, 30),
            start=st.integers(0, 5),
            uid=st.just(1000),
            unit=st.sampled_from(["-", "session-1.scope", "sparkstack-vllm.service", "docker-1.scope", "x.service"]),
            command=st.just("x"),
            ports=st.lists(st.integers(1, 3), max_size=1).map(tuple),
            top=st.integers(2, 30),
            loose=st.booleans(),
            starter=st.just("1 systemd"),
        ),
        max_size=6,
        unique_by=lambda one: one.pid,
    ),
    state=st.sampled_from(["active", "activating", "failed", "inactive"]),
)
def test_nothing_is_ever_ended_that_somebody_holds_or_a_unit_runs(ours: list[OurProcess], state: str) -> None:
    found = case(*ours, units=(unit("sparkstack-vllm", state),))
    ended = {word for command in commands(found) for word in command[3:]}
    for one in ours:
        if (
            not one.loose
            or one.unit == "x.service"
            or (one.unit.startswith("sparkstack-") and state in ("active", "activating"))
        ):
            assert f"{one.pid}:{one.start}" not in ended


@contextmanager
def child(code: str = "pass") -> Iterator[tuple[int, int]]:
    """Run a program beside the test that ends when it is told to; gives its number and its start."""
    program = f"import os, signal, time; {code}; print(os.getpid(), flush=True); time.sleep(60)"
    running = process.Piped([sys.executable, "-c", program])
    try:
        pid = int(running.line())
        yield pid, int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    finally:
        running.close()


def ended(pid: int, start: int, grace: float = 5) -> Completed:
    return process.run(end_argv([replace(LEFT, pid=pid, start=start)], grace), check=False, timeout=30)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.processes
def test_a_process_is_ended_by_number_and_start() -> None:
    with child() as (pid, start):
        done = ended(pid, start)
        assert (done.code, done.out) == (0, f"process {pid} has ended\n")
        assert state_of(pid) == "Z"


@pytest.mark.processes
def test_a_process_that_does_not_listen_is_killed() -> None:
    with child("signal.signal(signal.SIGTERM, signal.SIG_IGN)") as (pid, start):
        done = ended(pid, start, 0.3)
        assert (done.code, done.out) == (0, f"process {pid} has ended\n")
        assert state_of(pid) == "Z"


@pytest.mark.processes
def test_another_process_with_the_number_is_left_alone() -> None:
    with child() as (pid, start):
        done = ended(pid, start - 1)
        assert (done.code, done.out) == (0, f"process {pid} is another one now: left alone\n")
        assert state_of(pid) in "SR"
        os.kill(pid, 9)


@pytest.mark.processes
def test_a_process_that_has_ended_already_is_no_error() -> None:
    with child() as (pid, start):
        os.kill(pid, 9)
    done = ended(pid, start)
    assert (done.code, done.out) == (0, f"process {pid} had ended already\n")

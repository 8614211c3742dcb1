"""Everything of ours off two machines, refused while something runs, and brought back by a deployment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.machines.command_line import CommandLine, assert_refused
from tests.machines.harness import Lab

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
ROOT = "/opt/sparkstack"


@contextmanager
def running(lab: Lab, name: str) -> Iterator[None]:
    """Have a unit of our name run on a machine."""
    lab.as_root(name, "systemd-run --unit=sparkstack-ray-worker sleep 600")
    try:
        yield
    finally:
        lab.as_root(name, "systemctl stop sparkstack-ray-worker*")


def entries(lab: Lab, name: str) -> set[str]:
    return set(lab.output(name, f"[ ! -e {ROOT} ] || ls -A {ROOT}").split())


@pytest.mark.usefixtures("deployed")
def test_a_machine_on_which_something_runs_keeps_everything(lab: Lab, invoke: CommandLine) -> None:
    invoke.works("stop")
    before = entries(lab, A)
    with running(lab, B):
        assert_refused(invoke("remove", "--yes"), 37, f"{B}: it still runs sparkstack-ray-worker", "--stop")
    assert entries(lab, A) == before


@pytest.mark.usefixtures("deployed")
def test_without_a_terminal_and_without_yes_nothing_is_removed(lab: Lab, invoke: CommandLine) -> None:
    invoke.works("stop")
    before = entries(lab, A)
    assert_refused(invoke("remove"), 11, "no terminal", "--yes")
    assert f"{A}: remove " in invoke.works("remove", "--dry-run").out
    assert entries(lab, A) == before


@pytest.mark.usefixtures("deployed")
def test_all_of_ours_goes_but_models_and_foreign_files_and_a_deployment_brings_it_back(
    lab: Lab, invoke: CommandLine
) -> None:
    lab.output(A, f"touch {ROOT}/thesis && mkdir -p {ROOT}/models")
    with running(lab, B):
        done = invoke.works("remove", "--yes", "--stop", "--keep-models")
    assert "nothing left to do" in done.err
    assert f"note: {A}: thesis in {ROOT} is not of the suite and stays" in done.out
    assert entries(lab, A) == {"models", "thesis"}
    assert entries(lab, B) <= {"models"}
    assert lab.output(B, "systemctl list-units --all --plain --no-legend 'sparkstack-*'") == ""
    assert lab.paths(B, "/etc/sparkstack /etc/systemd/system/sparkstack-*") == []
    assert invoke.works("remove", "--yes", "--keep-models").out == "nothing to do\n"
    lab.output(A, f"rm {ROOT}/thesis")
    invoke.works("deploy")
    assert lab.output(B, f"readlink {ROOT}/current").startswith("releases/cpu-")


@pytest.mark.usefixtures("deployed")
def test_the_folder_goes_too_when_nothing_else_is_in_it(lab: Lab, invoke: CommandLine) -> None:
    invoke.works("remove", "--yes", "--stop")
    for name in (A, B):
        assert lab.output(name, f"ls -d {ROOT} 2>/dev/null || echo gone") == "gone"
    assert invoke.works("remove").out == "nothing to do\n"

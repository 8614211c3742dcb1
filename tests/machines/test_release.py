"""The same release on every node: interrupted wherever it can be, and finished by the same command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from core.config import ROOT
from lab import lifecycle
from tests.machines.command_line import CommandLine, Started, assert_interrupted, assert_refused
from tests.machines.harness import Lab, eventually

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
WHEELS = "/opt/sparkstack/wheels"
STORE = "/opt/sparkstack/store"
ARRIVED = f"ls {STORE} 2>/dev/null | wc -l"
PUSH = "-f [s]parkstack-push"
OURS = "-af '[s]parkstack-push|[s]ystemd-run|[i]nstaller/|[i]mport torch'"
"""What a deployment runs on a node; the brackets keep the pattern from finding itself."""


def arrived(lab: Lab, name: str) -> int:
    return int(lab.output(name, ARRIVED))


def current(lab: Lab, name: str) -> str:
    return lab.output(name, "[ ! -L /opt/sparkstack/current ] || readlink /opt/sparkstack/current")


def forget_completion(lab: Lab, name: str) -> None:
    """Leave the release as an installation that did not end leaves it."""
    lab.output(name, "rm /opt/sparkstack/releases/*/complete.json")


@dataclass(frozen=True)
class Frozen:
    """A program on a machine that is stopped in the middle of its work as soon as it has come there."""

    lab: Lab
    name: str
    which: str
    """The program, as pgrep selects it."""

    def wait(self, started: Started) -> None:
        """Wait until it stands still while the command runs."""
        started.reaches(self._stands, f"{self.which} was never there")

    def _stands(self) -> bool:
        found = ",".join(self.lab.pgrep(self.name, self.which))
        return bool(found) and "T" in self.lab.ssh(self.name, f"ps -o stat= -p {found}").out


@contextmanager
def frozen(lab: Lab, name: str, which: str, when: str = "true") -> Iterator[Frozen]:
    """Freeze a program once the shell condition ``when`` holds, and let it go on at the end."""
    watch = f"until {when} && pkill -STOP {which}; do sleep 0.02; done"
    lab.output(name, f"setsid timeout 120 sh -c '{watch}' >/dev/null 2>&1 </dev/null & echo started")
    try:
        yield Frozen(lab, name, which)
    finally:
        lab.ssh(name, f"pkill -f '[p]kill -STOP'; pkill -CONT {which}")


def half_pushed(lab: Lab, name: str) -> AbstractContextManager[Frozen]:
    """Forget the node's wheels, and freeze the next push when some of them have arrived."""
    lab.output(name, f"rm -rf {WHEELS} {STORE}")
    return frozen(lab, name, PUSH, f"[ $(ls {STORE} | wc -l) -gt 20 ]")


def half_installed(lab: Lab, name: str) -> AbstractContextManager[Frozen]:
    """Leave the release as an installation that did not end leaves it, and freeze the next one."""
    forget_completion(lab, name)
    return frozen(lab, name, "-x uv")


@contextmanager
def filled_disk(lab: Lab, name: str, *, leave: int) -> Iterator[None]:
    """Take all space of the machine's own disk but ``leave`` megabytes."""
    free = f"$(( $(df --block-size=1M --output=avail /opt | tail -1) - {leave} ))M"
    try:
        lab.output(name, f"fallocate --length {free} /var/tmp/full && sync")
        yield
    finally:
        lab.output(name, "rm -f /var/tmp/full")


def test_a_disk_too_small_is_found_before_anything_is_pushed(lab: Lab, wheels: Path, invoke: CommandLine) -> None:
    assert wheels.is_file()
    lab.output(B, f"rm -rf {WHEELS} {STORE}")
    before = arrived(lab, A)
    with filled_disk(lab, B, leave=200):
        done = invoke("deploy")
    assert_refused(done, 25, f"{B}: the disk is full: ", "free below /opt/sparkstack", "needed", "free space")
    assert arrived(lab, A) == before
    assert arrived(lab, B) == 0


def test_deploy_brings_the_same_release_to_both_nodes_and_the_second_time_has_nothing_to_do(
    lab: Lab, deployed: str, invoke: CommandLine
) -> None:
    assert [current(lab, name) for name in (A, B)] == [f"releases/{deployed}"] * 2
    for name in (A, B):
        record = json.loads(lab.output(name, f"cat /opt/sparkstack/releases/{deployed}/complete.json"))
        assert record["release"] == deployed
        assert lab.output(name, "stat -c %U /opt/sparkstack /opt/sparkstack/current") == "\n".join(
            [lab.cluster.user] * 2
        )
    again = invoke.works("deploy")
    assert again.out == "nothing to do\n"
    assert again.seconds < 30


def test_a_dry_run_names_what_a_deployment_would_push_and_pushes_nothing(
    lab: Lab, deployed: str, invoke: CommandLine
) -> None:
    lab.output(A, f"rm $(find {STORE} {WHEELS} -samefile {WHEELS}/ray-*.whl)")
    look = f"find /opt/sparkstack -newer {WHEELS} | head -1; ls -la --time-style=full-iso {WHEELS} {STORE}"
    before = lab.output(A, look)
    plan = invoke.works("deploy", "--dry-run").out
    assert re.search(rf"{A}: push 1 wheels, \d+ MB", plan), plan
    assert deployed in plan
    assert lab.output(A, look) == before
    invoke.works("deploy")


@pytest.mark.usefixtures("deployed")
def test_ctrl_c_while_wheels_travel_and_the_rest_travels_afterwards(lab: Lab, invoke: CommandLine) -> None:
    with half_pushed(lab, A) as push, invoke.begin("deploy") as started:
        push.wait(started)
        started.interrupt()
        assert_interrupted(started.ended())
    assert eventually(lambda: not lab.pgrep(A, OURS)), lab.pgrep(A, OURS)
    there = arrived(lab, A)
    done = invoke.works("deploy")
    assert_only_the_rest_travelled(done.err, A, there)


def assert_only_the_rest_travelled(said: str, name: str, there: int) -> None:
    assert there > 20, "what had arrived is gone"
    found = re.search(rf"{name}: push (\d+) wheels", said)
    assert found, said
    assert int(found[1]) <= manifest_size() - there, said


def manifest_size() -> int:
    manifest = next((ROOT / "dist" / "cpu").glob("*/manifest.json"))
    return len(json.loads(manifest.read_text(encoding="utf-8"))["wheels"])


@pytest.mark.usefixtures("deployed")
def test_a_disk_that_fills_up_while_wheels_travel_is_told_and_what_arrived_is_kept(
    lab: Lab, invoke: CommandLine
) -> None:
    with half_pushed(lab, A) as push, invoke.begin("deploy") as started:
        push.wait(started)
        with filled_disk(lab, A, leave=20):
            lab.output(A, f"pkill -CONT {PUSH}")
            done = started.ended(120)
            there = arrived(lab, A)
    assert_refused(done, 25, f"{A}: the disk is full", "free space on the node")
    assert_only_the_rest_travelled(invoke.works("deploy").err, A, there)


@pytest.mark.long  # test_push.py cuts a link in mid push and asserts all of this
@pytest.mark.usefixtures("deployed")
def test_a_connection_lost_while_wheels_travel_is_told_within_seconds(lab: Lab, invoke: CommandLine) -> None:
    with half_pushed(lab, A) as push, invoke.begin("deploy") as started:
        push.wait(started)
        lifecycle.cut(lab.cluster, A, lab.said.append, "management")
        done = started.ended(60)
        lifecycle.heal(lab.cluster, A, lab.said.append, "management")
        assert eventually(lambda: lab.ssh(A, "true").code == 0)
    assert_refused(done, 20, f"{A}: the connection broke during the transfer", "cable")
    assert eventually(lambda: not lab.pgrep(A, OURS)), lab.pgrep(A, OURS)
    there = arrived(lab, A)
    assert_only_the_rest_travelled(invoke.works("deploy").err, A, there)


def test_a_wheel_that_was_damaged_on_a_node_is_found_and_replaced(lab: Lab, deployed: str, invoke: CommandLine) -> None:
    forget_completion(lab, A)
    damage = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(5000); f.write(b'damaged'); f.close()"
    lab.output(A, f'python3 -c "{damage}" {WHEELS}/transformers-*.whl')
    done = invoke.works("deploy")
    assert re.search(rf"{A}: verify \d+ wheels: transformers-.*whl is damaged there and comes again", done.err), (
        done.err
    )
    assert current(lab, A) == f"releases/{deployed}"


@pytest.mark.usefixtures("deployed")
def test_ctrl_c_while_wheels_are_installed_ends_the_installation_on_the_node_too(lab: Lab, invoke: CommandLine) -> None:
    with half_installed(lab, A) as installation, invoke.begin("deploy") as started:
        installation.wait(started)
        started.interrupt()
        assert_interrupted(started.ended())
        assert eventually(lambda: not lab.pgrep(A, OURS)), lab.pgrep(A, OURS)  # sudo and ssh follow their child
    assert_finishes(lab, A, invoke)


@pytest.mark.usefixtures("deployed")
def test_a_connection_lost_while_wheels_are_installed_is_told_and_the_installation_is_made_anew(
    lab: Lab, invoke: CommandLine
) -> None:
    with half_installed(lab, A) as installation, invoke.begin("deploy") as started:
        installation.wait(started)
        lifecycle.cut(lab.cluster, A, lab.said.append, "management")
        assert_refused(started.ended(60), 20, f"{A}: ", "connection", "cable")
        lifecycle.heal(lab.cluster, A, lab.said.append, "management")
        assert eventually(lambda: lab.ssh(A, "true").code == 0)
        assert f"{A}: stop the installation that was left running" in assert_finishes(lab, A, invoke)


@pytest.mark.long  # test_deploy_faults.py takes the power at this point, and here the lost connection has it made anew
@pytest.mark.usefixtures("deployed")
def test_a_power_loss_while_wheels_are_installed_is_told_and_the_installation_is_made_anew(
    lab: Lab, invoke: CommandLine
) -> None:
    with half_installed(lab, A) as installation, invoke.begin("deploy") as started:
        installation.wait(started)
        lifecycle.kill(lab.cluster, A, lab.said.append)
        done = started.ended(60)
        lifecycle.boot(lab.cluster, A, lab.said.append)
    assert_refused(done, 20, f"{A}: ", "connection", "power")
    assert_finishes(lab, A, invoke)


@pytest.mark.usefixtures("deployed")
def test_ctrl_c_while_the_release_is_checked(lab: Lab, invoke: CommandLine) -> None:
    forget_completion(lab, A)
    with invoke.begin("deploy") as started:
        started.says("check\n")
        started.reaches(lambda: "import torch" in "".join(lab.pgrep(A, OURS)), "nothing was imported")
        started.interrupt()
        assert_interrupted(started.ended())
    assert eventually(lambda: not lab.pgrep(A, OURS)), lab.pgrep(A, OURS)
    assert_finishes(lab, A, invoke)


def assert_finishes(lab: Lab, name: str, invoke: CommandLine) -> str:
    """The same command makes the release anew on the node that had none, and on no other; return what it said."""
    done = invoke.works("deploy")
    assert f"{name}: remove the unfinished environment" in done.err
    assert f"{name}: record the release as complete" in done.err
    assert not [line for line in done.err.splitlines() if f"{B}: " in line and name != B]
    assert current(lab, name).startswith("releases/cpu-")
    return done.err


@pytest.mark.usefixtures("deployed")
def test_a_second_command_is_told_who_works_and_the_first_one_is_not_disturbed(lab: Lab, invoke: CommandLine) -> None:
    push = half_pushed(lab, A)
    with invoke.begin("deploy") as first:
        with push as frozen:
            frozen.wait(first)
            for words in (("deploy",), ("serve",), ("stop",)):
                assert_refused(invoke(*words), 26, "invoke deploy", f"process {first.process.pid}", lab.cluster.name)
        done = first.ended(300)
    assert done.code == 0, str(done)

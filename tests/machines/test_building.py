"""Wheels built on a node: the build outlives the connection, and whatever ends it leaves nothing half-made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core.config import ROOT, WORK
from lab import lifecycle
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, Started, assert_refused
from tests.machines.harness import Lab, eventually
from tests.machines.test_release import filled_disk

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
BUILDS = ROOT / "tests" / "builds"
PARTS = "cc1plu[s].*part[0-9]"
"""Compilers at the source itself (CMake tries the compiler before); the brackets, so that no shell matches its own."""
LEFT = "/opt/sparkstack/build/*"


@pytest.fixture(scope="module")
def slow(checkout: Checkout) -> CommandLine:
    """Return the command line of a copy of the project for a stack of one wheel that takes ten seconds."""
    shutil.copytree(BUILDS / "stacks", checkout.folder / "config" / "stacks", dirs_exist_ok=True)
    shutil.copytree(BUILDS / "recipes", checkout.folder / "build" / "recipes", dirs_exist_ok=True)
    (WORK / "requirements").mkdir(exist_ok=True)
    (checkout.folder / ".work").mkdir(exist_ok=True)
    shared = checkout.folder / ".work" / "requirements"
    if not shared.exists():
        shared.symlink_to(WORK / "requirements")
    return checkout.variant("building", ('stack = "cpu"', 'stack = "slow"'))


@pytest.fixture(autouse=True)
def _nothing_built(lab: Lab, slow: CommandLine) -> None:
    """Begin each test without the wheel and without a build on the nodes."""
    for name in (A, B):
        lab.as_root(name, f"systemctl stop {UNIT}* ; rm -rf /opt/sparkstack/build")
    shutil.rmtree(slow.checkout / "dist" / "slow", ignore_errors=True)


UNIT = "sparkstack-build-slow-"


def wheels(invoke: CommandLine) -> list[str]:
    return sorted(path.name for path in (invoke.checkout / "dist" / "slow").glob("*/*.whl"))


def build(invoke: CommandLine, on: str = A) -> tuple[str, ...]:
    del invoke
    return ("build-wheels", f"--on={on}")


def compiles(started: Started, lab: Lab, name: str = A) -> None:
    """Wait until the node compiles."""
    started.reaches(lambda: bool(lab.pgrep(name, f"-f '{PARTS}'")), f"{name} never compiled")


def began(invoke: CommandLine) -> str:
    """Return when the build of which the log tells began: the same twice is one and the same run."""
    (log,) = (invoke.checkout / ".work" / "logs").glob("build-slow-*.log")
    return next(line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("began at "))


def test_a_wheel_is_built_on_the_node_that_is_named_and_listed_here(lab: Lab, slow: CommandLine) -> None:
    with slow.begin("build-wheels", f"--on={B}") as started:
        compiles(started, lab, B)
        shown = lab.output(B, f"systemctl show '{UNIT}*' --property=MemoryMax,PrivateNetwork,User")
        done = started.ended(300)
    assert done.code == 0, str(done)
    assert "PrivateNetwork=yes" in shown
    assert "User=spark" in shown
    assert "MemoryMax=infinity" not in shown
    assert wheels(slow) == ["slow-1.0-py3-none-linux_x86_64.whl"]
    assert lab.paths(B, LEFT) == []
    assert slow.works("build-wheels", f"--on={B}").out == "nothing to do\n"


def test_a_cut_connection_ends_nothing_and_the_same_command_follows_the_build(lab: Lab, slow: CommandLine) -> None:
    with slow.begin(*build(slow)) as started:
        compiles(started, lab)
        lifecycle.cut(lab.cluster, A, lab.said.append, "management")
        done = started.ended(120)
    assert_refused(done, 20, f"{A}: ", "the same command goes on")
    first = began(slow)
    lifecycle.heal(lab.cluster, A, lab.said.append, "management")
    again = slow.works(*build(slow))
    assert "lay out" not in again.err, "the build was followed, or its wheel brought here, not begun anew"
    assert began(slow) == first
    assert wheels(slow) == ["slow-1.0-py3-none-linux_x86_64.whl"]


def test_ctrl_c_looks_away_and_stop_ends_the_build(lab: Lab, slow: CommandLine) -> None:
    with slow.begin(*build(slow)) as started:
        compiles(started, lab)
        started.interrupt()
        done = started.ended()
    assert done.code == 130, str(done)
    assert f"{A}: {UNIT}" in done.error
    assert f"invoke build.stop --on {A}" in done.error
    assert lab.pgrep(A, "cc1plus")
    stopped = slow.works("build.stop", f"--on={A}")
    assert "stop sparkstack-build-slow-" in stopped.err
    assert not lab.pgrep(A, "cc1plus")
    assert slow.works("build.stop", f"--on={A}").out == "nothing to do\n"
    assert wheels(slow) == []


def test_a_compiler_that_is_killed_ends_the_build_and_the_next_run_goes_on(lab: Lab, slow: CommandLine) -> None:
    with slow.begin(*build(slow)) as started:
        compiles(started, lab)
        lab.output(A, f"pkill -KILL -f '{PARTS}'")
        done = started.ended(120)
    assert_refused(done, 30, f"{A}: ", "build slow-1.0", "cc1plus", ".work/logs/build-slow-")
    assert wheels(slow) == []
    assert slow.works(*build(slow)).code == 0
    assert wheels(slow) == ["slow-1.0-py3-none-linux_x86_64.whl"]


def test_a_full_disk_is_told_as_such(lab: Lab, slow: CommandLine) -> None:
    with slow.begin(*build(slow)) as started:
        compiles(started, lab)
        with filled_disk(lab, A, leave=1):
            lab.as_root(A, "cat /dev/zero > /opt/filler || test -s /opt/filler")
            done = started.ended(120)
            lab.as_root(A, "rm /opt/filler")
    assert_refused(done, 30, f"{A}: ", "No space left on device")
    assert wheels(slow) == []


def test_a_node_that_loses_power_is_told_and_builds_anew_once_it_is_back(lab: Lab, slow: CommandLine) -> None:
    with slow.begin(*build(slow)) as started:
        compiles(started, lab)
        lifecycle.kill(lab.cluster, A, lab.said.append)
        done = started.ended(120)
    assert_refused(done, 20, f"{A}: ")
    lifecycle.boot(lab.cluster, A, lab.said.append)
    assert slow.works(*build(slow)).code == 0
    assert wheels(slow) == ["slow-1.0-py3-none-linux_x86_64.whl"]


def test_a_build_that_ends_while_nobody_looks_is_brought_here(lab: Lab, slow: CommandLine) -> None:
    with slow.begin(*build(slow)) as started:
        compiles(started, lab)
        started.interrupt()
        assert started.ended().code == 130
    assert eventually(lambda: bool(lab.paths(A, "/opt/sparkstack/build/*/out/result.json")), 200)
    done = slow.works(*build(slow))
    assert "build slow-1.0" not in done.err
    assert "bring the wheel here" in done.err
    assert wheels(slow) == ["slow-1.0-py3-none-linux_x86_64.whl"]


def test_a_machine_without_a_compiler_is_refused_before_anything_is_sent(lab: Lab, slow: CommandLine) -> None:
    lab.as_root(A, "mv /usr/bin/g++ /usr/bin/g++.away")
    try:
        done = slow(*build(slow))
    finally:
        lab.as_root(A, "mv /usr/bin/g++.away /usr/bin/g++")
    assert_refused(done, 25, f"{A}: ", "g++", "apt-get install")
    assert lab.paths(A, LEFT) == []


@pytest.mark.long
def test_two_sites_give_the_same_bytes(lab: Lab, slow: CommandLine, tmp_path: Path) -> None:
    """On the node as a unit, here in namespaces: the same wheel, as far as both have the same compiler."""
    if lab.output(A, "g++ -dumpfullversion") != _own_compiler():
        pytest.skip("this host has another compiler than the machines")
    slow.works(*build(slow))
    (made,) = (slow.checkout / "dist" / "slow").glob("*/*.whl")
    first = shutil.copy(made, tmp_path)
    shutil.rmtree(slow.checkout / "dist" / "slow")
    slow.works("build-wheels")
    assert Path(first).read_bytes() == made.read_bytes()


def _own_compiler() -> str:
    from core.process import run

    return run(["g++", "-dumpfullversion"]).out.strip()

"""A deployment that is cut off anywhere: what was in use stays in use, and the same command finishes.

Each case brings a small new release to two machines on which an old one is in use and a service runs from it.
`make test-long` tries every point; the ordinary run some of them.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from lab import lifecycle
from tests.machines import test_release
from tests.machines.command_line import Started, assert_interrupted, assert_refused
from tests.machines.harness import eventually
from tests.machines.small import FOLDER, A, B, Point, Small

pytestmark = pytest.mark.machines

PUSH = "push"
POINTS = {
    "look": Point("getconf", "GNU_LIBC_VERSION"),
    "prepare": Point("install", f"*{FOLDER}"),
    "push begins": Point("python3", "*sparkstack-push*"),
    PUSH: None,
    "install begins": Point("cp", "*/boot_id"),
    "install": Point("rm", "-rf*/installer"),
    "check": Point("sync", "--file-system*"),
    "prepare the switch": Point("ln", "*.current.new"),
    "switch": Point("mv", "*.current.new*"),
    "after the switch": Point("sync", ".", "[ ! -e .current.new ]"),
    "check what is in use": Point("sh", '*"-I -c"*'),
    "note what is in use": Point("install", "*history.jsonl*"),
}
"""Where a deployment is cut off, in its order; a push is caught when a part has arrived."""
SWITCHED = ("after the switch", "check what is in use", "note what is in use")
"""Points at which the machine has the new release in use already."""


def some(*ordinary: str) -> list[object]:
    """Return all points, those that are not ``ordinary`` only for the long run."""
    return [point if point in ordinary else pytest.param(point, marks=pytest.mark.long) for point in POINTS]


def come_to(small: Small, point: str, stack: ExitStack) -> Started:
    """Begin a deployment of the new release and wait until it stands at a point on the second machine."""
    if point == "prepare":
        small.lab.as_root(B, f"chown root {FOLDER}")
    where = POINTS[point]
    if where is None:
        stack.enter_context(small.lab.slow_links("8mbit"))
        started = stack.enter_context(small.new.begin("deploy"))
        small.half_pushed(B, started)
        return started
    hold = stack.enter_context(small.held(B, where))
    started = stack.enter_context(small.new.begin("deploy"))
    hold.wait(started)
    return started


@pytest.mark.parametrize("point", some(PUSH, "after the switch"))
def test_ctrl_c_leaves_the_old_release_in_use_and_the_same_command_finishes(small: Small, point: str) -> None:
    serving = [small.serving(name) for name in (A, B)]
    with ExitStack() as stack:
        started = come_to(small, point, stack)
        started.interrupt()
        assert_interrupted(started.ended(60))
        assert small.in_use() == [small.before] * 2
    assert [small.serving(name) for name in (A, B)] == serving
    assert small.in_use() == [small.before] * 2, "a program that was held has switched"
    small.assert_finishes()
    assert [small.serving(name) for name in (A, B)] == serving


@pytest.mark.parametrize("point", some("install"))
def test_a_power_loss_leaves_a_release_that_is_whole_in_use_and_the_same_command_finishes(
    small: Small, point: str
) -> None:
    serving = small.serving(A)
    with ExitStack() as stack:
        started = come_to(small, point, stack)
        lifecycle.kill(small.lab.cluster, B, small.lab.said.append)
        done = started.ended(120)
    assert done.code in (20, 26), str(done)
    assert f"{B}: " in done.error
    assert small.current(A) == small.before
    assert small.serving(A) == serving
    lifecycle.boot(small.lab.cluster, B, small.lab.said.append)
    small.lab.as_root(B, "rm -f /usr/local/bin/*")
    assert small.current(B) in ((small.before, small.after) if point in SWITCHED else (small.before,))
    assert small.current(B) in small.complete(B)
    assert eventually(lambda: small.listens(B))
    assert small.serving(B) != "0"
    small.assert_finishes()


def test_a_link_that_is_cut_while_wheels_travel(small: Small) -> None:
    with ExitStack() as stack:
        started = come_to(small, PUSH, stack)
        lifecycle.cut(small.lab.cluster, B, small.lab.said.append, "management")
        done = started.ended(60)
        lifecycle.heal(small.lab.cluster, B, small.lab.said.append, "management")
    assert_refused(done, 20, f"{B}: ", "connection", "cable")
    assert eventually(lambda: small.lab.ssh(B, "true").code == 0)
    assert eventually(lambda: not small.lab.pgrep(B, test_release.PUSH)), "it goes on without us"
    assert small.in_use() == [small.before] * 2
    small.assert_finishes()


@pytest.mark.parametrize("point", ["install begins", pytest.param("prepare the switch", marks=pytest.mark.long)])
def test_a_link_that_is_cut_later_and_is_back_before_anybody_looks(small: Small, point: str) -> None:
    """A switch that loses its connection for less than the silence that counts as a loss goes on as if nothing was."""
    with ExitStack() as stack:
        started = come_to(small, point, stack)
        lifecycle.cut(small.lab.cluster, B, small.lab.said.append, "management")
        lifecycle.heal(small.lab.cluster, B, small.lab.said.append, "management")
        assert eventually(lambda: small.lab.ssh(B, "rm -f /tmp/hold /tmp/held").code == 0)
        done = started.ended(60)
    assert done.code == 0, str(done)
    assert small.in_use() == [small.after] * 2


def test_a_disk_that_is_full_while_the_release_is_made(small: Small) -> None:
    with small.held(B, POINTS["install begins"] or Point("", "")) as hold, small.new.begin("deploy") as started:
        hold.wait(started)
        with test_release.filled_disk(small.lab, B, leave=4):
            hold.end()
            done = started.ended(60)
    assert_refused(done, 25, f"{B}: ", "disk", "free space")
    assert small.in_use() == [small.before] * 2
    assert small.complete(B) == {small.before}
    small.serving(B)
    small.assert_finishes()


def test_one_machine_on_another_release_comes_to_the_same_as_the_others(small: Small) -> None:
    small.new.works("deploy")
    small.lab.output(B, f"cd {FOLDER} && ln -sfn releases/{small.before} .back && mv -T .back current")
    assert "the nodes are not on one release" in small.new.works("releases").out
    done = small.new.works("deploy")
    assert f"{B}: switch current to {small.after}" in done.err
    assert f"{A}: switch" not in done.err
    assert "push" not in done.err
    assert small.in_use() == [small.after] * 2
    small.assert_finishes()


def test_a_second_deployment_is_told_who_works_and_the_first_one_finishes(small: Small) -> None:
    """From the same checkout, and from another controller that would bring another release."""
    with ExitStack() as stack:
        started = come_to(small, "install", stack)
        for second in (small.new, small.old):
            done = second("deploy")
            assert_refused(done, 26, "invoke deploy", f"process {started.process.pid}", "wait for it to end")
        small.lab.output(B, "rm /tmp/held")
        done = started.ended(60)
    assert done.code == 0, str(done)
    assert small.in_use() == [small.after] * 2
    small.assert_finishes()

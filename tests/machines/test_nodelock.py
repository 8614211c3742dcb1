"""Two controllers at two machines: one works, the other is told who does, and a dead one is soon in nobody's way."""

from __future__ import annotations

import pytest

from lab import lifecycle
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, Started, assert_refused
from tests.machines.harness import Lab, eventually
from tests.machines.test_release import half_pushed

pytestmark = pytest.mark.machines

A, B = "test-a", "test-b"
LOCKING = ("releases", "--collect")
"""A command that takes the lock, and does not look at what else runs: a push that a test has frozen does."""


@pytest.fixture
def other(checkout: Checkout) -> CommandLine:
    """Another controller: its own state, its own lock on this host."""
    return checkout.variant("lock-other")


def refused(other: CommandLine, first: Started) -> None:
    assert_refused(
        other("stop"), 26, f"{A}: invoke deploy by ", f"process {first.process.pid} there", "wait for it to end"
    )


@pytest.mark.usefixtures("deployed")
def test_a_second_controller_is_told_who_works_and_the_first_is_not_disturbed(
    lab: Lab, invoke: CommandLine, other: CommandLine
) -> None:
    push = half_pushed(lab, A)
    with invoke.begin("deploy") as first:
        with push as frozen:
            frozen.wait(first)
            refused(other, first)
        done = first.ended(300)
    assert done.code == 0, str(done)
    other.works("stop")


@pytest.mark.usefixtures("deployed")
def test_a_controller_that_was_killed_frees_the_machines_at_once(
    lab: Lab, invoke: CommandLine, other: CommandLine
) -> None:
    with half_pushed(lab, A) as push, invoke.begin("deploy") as first:
        push.wait(first)
        refused(other, first)
        first.kill()
        assert eventually(lambda: other(*LOCKING).code == 0, 10)
    invoke.works("deploy")


@pytest.mark.usefixtures("deployed")
def test_a_controller_that_vanished_frees_the_machines_within_its_patience(
    lab: Lab, invoke: CommandLine, other: CommandLine
) -> None:
    """Its link is cut before it dies, so that no machine sees its connection end."""
    with half_pushed(lab, A) as push, invoke.begin("deploy") as first:
        push.wait(first)
        for name in (A, B):
            lifecycle.cut(lab.cluster, name, lab.said.append, "management")
        first.kill()
        for name in (A, B):
            lifecycle.heal(lab.cluster, name, lab.said.append, "management")
        assert eventually(lambda: lab.ssh(A, "true").code == 0)
        assert eventually(lambda: other(*LOCKING).code == 0, 60)
    invoke.works("deploy")


@pytest.mark.usefixtures("deployed")
def test_a_machine_that_lost_power_is_free_when_it_is_back(lab: Lab, invoke: CommandLine, other: CommandLine) -> None:
    with half_pushed(lab, A) as push, invoke.begin("deploy") as first:
        push.wait(first)
        lifecycle.kill(lab.cluster, A, lab.said.append)
        first.ended(60)
        lifecycle.boot(lab.cluster, A, lab.said.append)
    other.works("stop")
    invoke.works("deploy")

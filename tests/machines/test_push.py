"""Wheels to both machines: one copy from here and one over the fabric, whatever happens in between."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lab import lifecycle
from lab.network import shaped
from lab.place import bridge
from tests.machines.checkout import Checkout
from tests.machines.command_line import CommandLine, Started, assert_interrupted, assert_refused
from tests.machines.harness import Lab, eventually
from tests.machines.small import A, B, lay_out
from tests.machines.test_release import PUSH, filled_disk
from wheels.manifest import Manifest

pytestmark = pytest.mark.machines

ROOT = "/opt/pushed"
"""A folder of its own for a release of some wheels that are large enough to be stopped on their way."""
STORE, WHEELS = f"{ROOT}/store", f"{ROOT}/wheels"
CHOSEN = (
    *("attrs", "certifi", "idna", "llvmlite", "mpmath", "networkx", "numpy", "opencv-python-headless", "pillow"),
    *("pycountry", "sympy", "uv"),
)
SUMS = f"cd {STORE} && sha256sum $(ls) && find . -name '*.*' -type f"
PARTS = f"ls -l {STORE}/.incoming"


@pytest.fixture(scope="module")
def deployed_by_relay(lab_session: Lab, checkout: Checkout, wheels: Path) -> Iterator[CommandLine]:
    """The command line for the same machines, with the fabric for the second copy; its release is deployed."""
    lab_session.up()
    lay_out(checkout, "chosen", CHOSEN, Manifest.model_validate_json(wheels.read_bytes()), wheels.parent)
    root = ('user = "spark"', f'user = "spark"\nroot = "{ROOT}"')
    invoke = checkout.variant("relay", ('stack = "cpu"', 'stack = "chosen"\npush = "relay"'), root)
    invoke.works("deploy")
    yield invoke
    lab_session.up()
    lab_session.each(lambda name: lab_session.as_root(name, f"rm -rf {ROOT}"))


@pytest.fixture
def relay(lab: Lab, deployed_by_relay: CommandLine) -> CommandLine:
    """As after a deployment, but for the stores, which are empty."""
    empty(lab, A, B)
    return deployed_by_relay


def empty(lab: Lab, *names: str) -> None:
    for name in names:
        lab.output(name, f"rm -rf {STORE} {WHEELS}")


def crossed(lab: Lab, name: str = "") -> int:
    """Return the bytes that this host has sent to the machines (or to one) over management."""
    link = lab.place(name).link("management") if name else bridge(lab.cluster, "management")
    return int((Path("/sys/class/net") / link / "statistics" / "tx_bytes").read_text(encoding="ascii"))


def assert_same(lab: Lab) -> None:
    """Both have every wheel under its hash, and nothing that is on its way."""
    lab.each(lambda name: assert_whole(lab, name))


def assert_whole(lab: Lab, name: str) -> None:
    lines = [line.split() for line in lab.output(name, SUMS).splitlines()]
    assert all(line[0] == line[1] for line in lines if len(line) == 2), name
    assert len(lines) == len(CHOSEN) + 1, lines  # and the lock
    assert lab.output(name, PARTS) == "total 0"


def slow(lab: Lab) -> AbstractContextManager[None]:
    """Send no more than 150 Mbit/s to the machines, so that there is a middle of a push."""
    return shaped(bridge(lab.cluster, "management"), "150mbit")


def arrives(lab: Lab, name: str, started: Started, megabytes: int = 40) -> None:
    """Wait until so much is there."""
    size = f"[ ! -e {STORE} ] || du -sm {STORE} | cut -f1"
    started.reaches(lambda: int(lab.output(name, size) or 0) >= megabytes, "nothing arrived")


def megabytes(said: str, name: str) -> int:
    """Return what a plan or a run said that a node is sent, or takes."""
    found = re.search(rf"{name}: (?:push|take) \d+ wheels, (\d+) MB", said)
    assert found, said
    return int(found[1])


def assert_only_the_rest_travels(lab: Lab, relay: CommandLine, whole: int) -> None:
    """What had arrived of ``whole`` megabytes is there, and does not come again."""
    rest = megabytes(relay.works("deploy", "--dry-run").out, A)
    assert rest <= whole - 25, "what had arrived is gone"
    before = crossed(lab)
    relay.works("deploy")
    assert crossed(lab) - before < rest * 1e6 * 1.1 + 10e6
    assert_same(lab)


def test_one_copy_crosses_the_management_link_and_both_have_the_same_files(lab: Lab, relay: CommandLine) -> None:
    plan = relay.works("deploy", "--dry-run").out
    size = megabytes(plan, A)
    assert "push is relay in the cluster's file" in plan
    assert f"from {A} over the fabric" in plan
    before, to_b = crossed(lab), crossed(lab, B)
    relay.works("deploy")
    assert size * 1e6 < crossed(lab) - before < size * 1e6 * 1.15
    assert crossed(lab, B) - to_b < 10e6
    assert_same(lab)
    assert relay.works("deploy").out == "nothing to do\n"
    empty(lab, B)
    before = crossed(lab)
    relay.works("deploy")
    assert crossed(lab) - before < 10e6, "the first one has everything"
    assert_same(lab)
    assert eventually(lambda: "29778" not in lab.output(A, "ss -Hltn"))


def test_a_link_that_is_cut_in_mid_push_costs_nothing_that_arrived(lab: Lab, relay: CommandLine) -> None:
    with slow(lab), relay.begin("deploy") as started:
        arrives(lab, B, started)
        lifecycle.cut(lab.cluster, A, lab.said.append, "management")
        done = started.ended(90)
        lifecycle.heal(lab.cluster, A, lab.said.append, "management")
    assert_refused(done, 20, f"{A}: the connection broke during the transfer", "cable")
    assert eventually(lambda: lab.ssh(A, "true").code == 0)
    assert eventually(lambda: not lab.pgrep(A, PUSH)), "it goes on without us"
    assert_only_the_rest_travels(lab, relay, megabytes(done.err, A))


def test_ctrl_c_in_mid_push_leaves_nothing_running_and_the_rest_travels_afterwards(
    lab: Lab, relay: CommandLine
) -> None:
    with slow(lab), relay.begin("deploy") as started:
        arrives(lab, B, started)
        started.interrupt()
        done = started.ended()
    assert_interrupted(done)
    for name in (A, B):
        assert eventually(lambda name=name: not lab.pgrep(name, PUSH)), name  # type: ignore[misc]
    assert_only_the_rest_travels(lab, relay, megabytes(done.err, A))


def test_a_corrupted_file_of_the_store_is_found_and_replaced(lab: Lab, relay: CommandLine) -> None:
    relay.works("deploy")
    for name in (A, B):
        lab.output(name, f"printf damaged | dd of=$(ls -d {WHEELS}/sympy-*) bs=1 seek=5000 conv=notrunc status=none")
        lab.output(name, "rm /opt/pushed/releases/*/complete.json")
    before = crossed(lab)
    done = relay.works("deploy")
    for name in (A, B):
        assert re.search(rf"{name}: .*sympy-.*whl is damaged there and comes again", done.err), done.err
    assert 5e6 < crossed(lab) - before < 20e6
    assert_same(lab)


def test_a_disk_that_is_full_is_said_with_its_node_and_nothing_is_lost(lab: Lab, relay: CommandLine) -> None:
    with slow(lab), relay.begin("deploy") as started:
        arrives(lab, B, started)
        with filled_disk(lab, B, leave=5):
            done = started.ended(120)
    assert_refused(done, 25, f"{B}: the disk is full", "free space on the node")
    assert int(lab.output(B, f"du -sm {STORE} | cut -f1")) >= 40
    relay.works("deploy")
    assert_same(lab)

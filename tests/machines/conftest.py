"""The machines that the tests share, and what is kept when a test on them fails."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from core.config import ROOT, WORK, load_cluster
from lab import evidence, host, lifecycle
from tests.beforehand import WHEELS, Beforehand
from tests.machines.checkout import Checkout, copy_project
from tests.machines.command_line import CommandLine
from tests.machines.harness import CLUSTER, Lab
from tests.machines.serving import Service, bring_up
from tests.machines.small import Small, forget_small, make_small
from wheels.manifest import Manifest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def lab_session(before: Beforehand | None) -> Iterator[Lab]:
    """Make the machines of tests/clusters/lab-tests.toml once; SPARKSTACK_KEEP_LAB=1 leaves them up.

    Where wheels are needed, machines and wheels were begun with the session.
    """
    reason = host.can_run()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"no local machines in CI: {reason}")
    if reason:
        pytest.skip(reason)
    if before:
        before.wait(WHEELS)
    lab = Lab(load_cluster(str(CLUSTER)))
    lab.up()
    yield lab
    if os.environ.get("SPARKSTACK_KEEP_LAB") != "1":
        lifecycle.purge(lab.cluster, lab.said.append)


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """Two machines in order, whatever the test before did to them."""
    lab_session.said.clear()
    if not lab_session.in_order():
        lab_session.up()
    return lab_session


@pytest.fixture
def invoke(lab: Lab) -> CommandLine:
    """The command line of this project for the machines."""
    return CommandLine(ROOT, lab.cluster.flag)


@pytest.fixture(scope="session")
def checkout(lab_session: Lab) -> Iterator[Checkout]:
    """Copy the project: a checkout with a state and wheels of its own, where configuration and sources may change."""
    WORK.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="checkout-", dir=WORK))
    copy_project(ROOT, folder)
    yield Checkout(folder, lab_session.cluster, CLUSTER)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def wheels(lab_session: Lab) -> Path:
    """Return the manifest of the stack's wheels, built and fetched where they are not there yet."""
    lab_session.up()  # a session's fixture is made before `lab` is: the test before may have killed a machine
    CommandLine(ROOT, lab_session.cluster.flag).works("build-wheels", f"--stack={lab_session.cluster.stack}")
    return max(
        (ROOT / "dist" / lab_session.cluster.stack).glob("*/manifest.json"), key=lambda path: path.stat().st_mtime
    )


@pytest.fixture
def deployed(lab: Lab, wheels: Path, invoke: CommandLine) -> str:  # noqa: ARG001 (they have to be there)
    """Return the release that both nodes have in use, whatever the test before did to them."""
    invoke.works("deploy")
    target = lab.output(lab.cluster.head.name, "readlink /opt/sparkstack/current")
    return Path(target).name


@pytest.fixture(scope="module")
def small_made(lab_session: Lab, checkout: Checkout, wheels: Path) -> Iterator[Small]:
    """Two releases of a few wheels for tests to which a release's size is all the same; the old one is deployed."""
    lab_session.up()
    yield make_small(lab_session, checkout, Manifest.model_validate_json(wheels.read_bytes()), wheels.parent)
    lab_session.up()
    forget_small(lab_session)


@pytest.fixture
def small(lab: Lab, small_made: Small) -> Small:  # noqa: ARG001 (they have to run)
    """Both machines with the old release in use, whatever the test before left."""
    small_made.reset()
    return small_made


@pytest.fixture
def model(deployed: str, invoke: CommandLine) -> str:
    """Both nodes have the release and the tiny model."""
    invoke.works("lab.model")
    return deployed


@pytest.fixture
def serving_with(lab: Lab, invoke: CommandLine, request: pytest.FixtureRequest) -> Callable[[str], Service]:
    """Return what brings the service up under an executor; where it serves so already, nothing is done.

    All tests of serve/ share the one that runs: a start takes most of a minute.
    """
    return lambda executor: bring_up(lab, invoke, executor, lambda: request.getfixturevalue("model"))


TURNS = (
    *("test_serving.py", "test_monitor.py", "test_bench.py", "test_serve_doors.py", "test_serve_faults.py ray"),
    *("test_serve_change.py",),
    *("test_serve_faults.py mp", "test_serve_load.py", "test_serve_supervision.py", "test_serve_given_up.py"),
)
"""Tests that share one service, in the order that needs the fewest starts: Ray first, then mp, then none."""


def _turn(item: pytest.Item) -> str:
    executor = item.callspec.params["executor"] if item.path.name == "test_serve_faults.py" else ""  # type: ignore[attr-defined]
    return f"{item.path.name} {executor}".strip()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the tests that share a service to the end, in their order: a machine that serves is in others' way."""
    sharing = [item for item in items if item.path.parent == HERE and _turn(item) in TURNS]
    others = [item for item in items if item not in sharing]
    items[:] = [*others, *sorted(sharing, key=lambda item: TURNS.index(_turn(item)))]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep consoles and journals of a failed test, and say where."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        kept = evidence.keep(lab.cluster, WORK / "evidence" / item.name)
        report.sections.append(("evidence of the machines", "\n".join(str(path) for path in kept)))
    return report

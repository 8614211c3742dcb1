"""The machines that the tests share, and what is kept when a test on them fails."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from core.config import WORK, load_cluster
from lab import evidence, host, lifecycle
from tests.machines.harness import Lab

CLUSTER = Path(__file__).parent.parent / "clusters" / "lab-tests.toml"


@pytest.fixture(scope="session")
def lab_session() -> Iterator[Lab]:
    """Make the machines of tests/clusters/lab-tests.toml once; SPARKSTACK_KEEP_LAB=1 leaves them up."""
    reason = host.can_run()
    if reason and os.environ.get("CI") == "true":
        pytest.fail(f"no local machines in CI: {reason}")
    if reason:
        pytest.skip(reason)
    lab = Lab(load_cluster(str(CLUSTER)))
    lab.up()
    yield lab
    if os.environ.get("SPARKSTACK_KEEP_LAB") != "1":
        lifecycle.purge(lab.cluster, lab.said.append)


@pytest.fixture
def lab(lab_session: Lab) -> Lab:
    """Two machines in order, whatever the test before did to them."""
    lab_session.said.clear()
    lab_session.up()
    return lab_session


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep consoles and journals of a failed test, and say where."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        kept = evidence.keep(lab.cluster, WORK / "evidence" / item.name)
        report.sections.append(("evidence of the machines", "\n".join(str(path) for path in kept)))
    return report

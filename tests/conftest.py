"""What a session begins with: the makings that take minutes, where one of its tests asks for them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import pytest

from core.config import load_cluster
from lab import host, lifecycle
from tests import beforehand
from tests.machines.harness import CLUSTER

BEFOREHAND = pytest.StashKey[beforehand.Beforehand]()


def _wanted(session: pytest.Session) -> Iterator[str]:
    used = {(name, item.path.parent.name) for item in session.items for name in getattr(item, "fixturenames", ())}
    for fixture in (beforehand.UNFINISHED, beforehand.OBJECTS):
        if (fixture, "builds") in used and os.geteuid() == 0 and platform.machine() == "x86_64":
            yield fixture
    if ("wheels", "machines") in used and not host.can_run():
        yield beforehand.WHEELS


def pytest_collection_finish(session: pytest.Session) -> None:
    wanted = [] if session.config.option.collectonly else list(_wanted(session))
    if wanted:
        begun = beforehand.begin(wanted, CLUSTER)
        session.config.stash[BEFOREHAND] = begun
        session.config.add_cleanup(lambda: _end(begun, wanted))


def _end(begun: beforehand.Beforehand, wanted: list[str]) -> None:
    """Leave nothing of it, machines neither that no test came to."""
    begun.end()
    if beforehand.WHEELS in wanted and os.environ.get("SPARKSTACK_KEEP_LAB") != "1":
        lifecycle.purge(load_cluster(str(CLUSTER)), lambda _: None)


@pytest.fixture(scope="session")
def before(request: pytest.FixtureRequest) -> beforehand.Beforehand | None:
    """Return what was begun with the session; nothing where its tests ask for none of it."""
    return request.config.stash.get(BEFOREHAND, None)

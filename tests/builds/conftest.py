"""A copy of the project to build in, with small stacks; downloads are shared with the project's own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config import WORK
from tests.beforehand import Beforehand
from tests.builds.workshop import Unfinished, Workshop, build_unfinished, lay_out


@pytest.fixture(scope="session")
def workshops() -> Iterator[tuple[Workshop, Workshop]]:
    """Return two copies of the project in folders of different names."""
    _require_namespaces()
    WORK.mkdir(exist_ok=True)
    folders = [Path(tempfile.mkdtemp(prefix=prefix, dir=WORK)) for prefix in ("workshop-", "another-longer-name-")]
    yield (lay_out(folders[0]), lay_out(folders[1]))
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def workshop(workshops: tuple[Workshop, Workshop]) -> Workshop:
    """Return a copy of the project to build in."""
    return workshops[0]


@pytest.fixture(scope="session")
def unfinished(before: Beforehand | None, workshop: Workshop) -> Unfinished:
    """Return the CUDA build of vLLM that ends at its first external project, because none is given to it.

    It was begun with the session, in a copy of its own; where that was not possible it is made now.
    """
    return (before and before.unfinished) or Unfinished(workshop, build_unfinished(workshop))


def _require_namespaces() -> None:
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("builds need namespaces of their own: run as root, as `make test` does")

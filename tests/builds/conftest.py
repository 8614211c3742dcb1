"""A copy of the project to build in, with small stacks; downloads are shared with the project's own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config import ROOT, WORK
from tests.builds.workshop import Workshop
from tests.machines.checkout import copy_project

SHARED = ("requirements", "files", "toolkits", "emulation")
"""Folders of .work that hold what was fetched by hash, and what is made of nothing else."""


@pytest.fixture(scope="session")
def workshops() -> Iterator[tuple[Workshop, Workshop]]:
    """Return two copies of the project in folders of different names."""
    _require_namespaces()
    WORK.mkdir(exist_ok=True)
    folders = [Path(tempfile.mkdtemp(prefix=prefix, dir=WORK)) for prefix in ("workshop-", "another-longer-name-")]
    yield (_workshop(folders[0]), _workshop(folders[1]))
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def workshop(workshops: tuple[Workshop, Workshop]) -> Workshop:
    """Return a copy of the project to build in."""
    return workshops[0]


def _workshop(folder: Path) -> Workshop:
    copy_project(ROOT, folder)
    (folder / ".work").mkdir()
    for name in SHARED:
        (WORK / name).mkdir(exist_ok=True)
        (folder / ".work" / name).symlink_to(WORK / name)
    shutil.copytree(Path(__file__).parent / "stacks", folder / "config" / "stacks", dirs_exist_ok=True)
    return Workshop(folder)


def _require_namespaces() -> None:
    if os.geteuid() != 0 and not os.environ.get("CI"):
        pytest.skip("builds need namespaces of their own: run as root, as `make test` does")

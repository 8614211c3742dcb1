"""A bundle carries all that a build takes to a machine without network, and the build there gives the same bytes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config import ROOT, WORK
from core.process import Completed, run
from tests.builds.workshop import Workshop
from tests.machines.checkout import copy_project
from wheels.manifest import sha256_of

pytestmark = pytest.mark.builds

ARCHITECTURE = os.uname().machine
WHAT = ("--stack=probe-only", f"--target={ARCHITECTURE}", "--toolkit")


@pytest.fixture
def island(workshop: Workshop) -> Iterator[Workshop]:
    """Return another copy of the project, into which nothing was fetched."""
    folder = Path(tempfile.mkdtemp(prefix="island-", dir=WORK))
    copy_project(ROOT, folder)
    shutil.copytree(workshop.folder / "config" / "stacks", folder / "config" / "stacks", dirs_exist_ok=True)
    yield Workshop(folder)
    shutil.rmtree(folder)


def offline(shop: Workshop, *words: str) -> Completed:
    """Run a command in a copy of the project, in a network namespace that holds no way out."""
    invoke = str(Path(sys.executable).with_name("invoke"))
    return run(["unshare", "--net", "--", invoke, *words], cwd=shop.folder, check=False, timeout=600)


def test_a_bundle_builds_the_same_bytes_without_network(workshop: Workshop, island: Workshop, tmp_path: Path) -> None:
    alone = offline(island, "build-wheels", *WHAT)
    assert alone.code != 0, "without a bundle there is nothing to build from"
    workshop.invoke.works("build.bundle", *WHAT)
    workshop.builds(*(word.partition("=")[2] or word for word in WHAT))
    (bundle,) = (workshop.folder / "dist" / "bundles").glob("probe-only-*.tar")
    damaged = offline(island, "build.unbundle", f"--file={damaged_copy(bundle, tmp_path)}")
    assert damaged.code == 30, damaged.err
    assert "\n  next: " in damaged.err
    assert not list((island.folder / ".work").rglob("*.whl"))
    taken = offline(island, "build.unbundle", f"--file={bundle}")
    assert taken.code == 0, taken.err
    built = offline(island, "build-wheels", *WHAT)
    assert built.code == 0, built.err
    first, second = (shop.wheel("probe-only", ARCHITECTURE, "sparkstack_probe") for shop in (workshop, island))
    assert sha256_of(first) == sha256_of(second)


def damaged_copy(bundle: Path, folder: Path) -> Path:
    """Return a copy of a bundle with some bytes in its middle changed."""
    copy = Path(shutil.copy(bundle, folder / "damaged.tar"))
    with copy.open("r+b") as file:
        file.seek(copy.stat().st_size // 2)
        file.write(b"not what was written")
    return copy

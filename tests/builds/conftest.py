"""A copy of the project to build in, with small stacks; downloads are shared with the project's own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from build.recipe import load_recipe
from build.toolkit import Toolkit, toolkit_folder
from core.config import ROOT, WORK
from tests.builds.workshop import Unfinished, Workshop
from tests.machines.checkout import copy_project

SHARED = ("requirements", "files", "toolkits", "emulation")
"""Folders of .work that hold what was fetched by hash, and what is made of nothing else."""
CONFIGURE = """
[variants.configure]
dependencies = []
memory_per_job = "2 GiB"
disk = "8 GiB"

[variants.configure.source]
sdist = "{source.sdist}"
sha256 = "{source.sha256}"
"""
"""A variant of vLLM's recipe: its source distribution, without the external projects; small machines may try it."""


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


@pytest.fixture(scope="session")
def unfinished(workshop: Workshop) -> Unfinished:
    """Return the CUDA build of vLLM that ends at its first external project, because none is given to it."""
    recipe = workshop.folder / "build" / "recipes" / "vllm.toml"
    source = load_recipe("vllm", "sdist").source
    recipe.write_text(recipe.read_text(encoding="utf-8") + CONFIGURE.format(source=source), encoding="utf-8")
    ended = workshop.invoke("build-wheels", "--stack=vllm-cuda", "--target=x86_64", "--toolkit", timeout=1800)
    return Unfinished(ended, workshop.job("vllm"), toolkit_folder(Toolkit("13.0", "x86_64", "x86_64", libraries=True)))


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

"""What a test of builds holds in its hand: a copy of the project, its command line, and what it made."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.job import CUDA, FIXED, entered, own_python, runner_argv
from build.recipe import load_recipe
from build.toolkit import Toolkit, toolkit_folder
from core.config import ROOT, WORK
from core.process import Completed, run
from tests.machines.checkout import copy_project
from tests.machines.command_line import CommandLine, Ended

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


@dataclass(frozen=True)
class Workshop:
    """A copy of the project in ``folder``."""

    folder: Path

    @property
    def invoke(self) -> CommandLine:
        """The command line in the copy; the cluster is told by the stack or the target."""
        return CommandLine(self.folder, "")

    def builds(self, stack: str, target: str, *flags: str, timeout: float = 900) -> Ended:
        """Build a stack for an architecture on this host; it must end with 0."""
        return self.invoke.works("build-wheels", f"--stack={stack}", f"--target={target}", *flags, timeout=timeout)

    def manifest(self, stack: str, target: str) -> dict[str, Any]:
        """Return the wheels of a manifest by name."""
        (path,) = (self.folder / "dist" / stack).glob(f"{target}-*/manifest.json")
        return {wheel["name"]: wheel for wheel in json.loads(path.read_text(encoding="utf-8"))["wheels"]}

    def wheel(self, stack: str, target: str, name: str) -> Path:
        """Return a wheel that was made."""
        (path,) = (self.folder / "dist" / stack).glob(f"{target}-*/{name}-*.whl")
        return path

    def wheels(self, stack: str) -> list[str]:
        """Return the names of all wheel files of a stack, whether a manifest lists them or not."""
        return sorted(path.name for path in (self.folder / "dist" / stack).glob("*/*.whl"))

    def forget(self, stack: str) -> None:
        """Remove what was made of a stack."""
        shutil.rmtree(self.folder / "dist" / stack, ignore_errors=True)

    def jobs(self) -> list[str]:
        """Return the job folders that are there."""
        return sorted(path.name for path in (self.folder / ".work" / "build").glob("*") if path.is_dir())

    def job(self, recipe: str) -> Path:
        """Return the job folder that a failed build of a recipe has left."""
        (path,) = (self.folder / ".work" / "build").glob(f"{recipe}-*")
        return path


def lay_out(folder: Path) -> Workshop:
    """Copy the project into an empty folder, with the small stacks of the tests."""
    copy_project(ROOT, folder)
    (folder / ".work").mkdir()
    for name in SHARED:
        (WORK / name).mkdir(exist_ok=True)
        (folder / ".work" / name).symlink_to(WORK / name)
    shutil.copytree(Path(__file__).parent / "stacks", folder / "config" / "stacks", dirs_exist_ok=True)
    return Workshop(folder)


def build_unfinished(shop: Workshop) -> Ended:
    """Build vLLM for CUDA without its external projects: it ends at the first one."""
    recipe = shop.folder / "build" / "recipes" / "vllm.toml"
    source = load_recipe("vllm", "sdist").source
    recipe.write_text(recipe.read_text(encoding="utf-8") + CONFIGURE.format(source=source), encoding="utf-8")
    return shop.invoke("build-wheels", "--stack=vllm-cuda", "--target=x86_64", "--toolkit", timeout=1800)


@dataclass(frozen=True)
class Inside:
    """A job folder as the build saw it: at its fixed path, without network, with its environment and this toolkit."""

    job: Path
    cuda: Path

    def __call__(self, *argv: str) -> Completed:
        """Run a program there; it must end with 0."""
        python = own_python()
        namespaces = entered(self.job, python, cuda=str(self.cuda))[: -len(runner_argv(python))]
        told = json.loads((self.job / "in" / "job.json").read_text(encoding="utf-8"))["environment"]
        places = {"PATH": f"{FIXED}/venv/bin:{CUDA}/bin:/usr/bin:/bin", "TMPDIR": f"{FIXED}/tmp"}
        variables = (f"{key}={value}" for key, value in {**told, **places}.items())
        return run([*namespaces, "env", "-i", *variables, *argv])


@dataclass(frozen=True)
class Unfinished:
    """A build that failed: where it ran, and how it ended."""

    shop: Workshop
    ended: Ended

    @property
    def cuda(self) -> Path:
        """The toolkit that it had."""
        return toolkit_folder(Toolkit("13.0", "x86_64", "x86_64", libraries=True))

    @property
    def job(self) -> Path:
        """What it left."""
        return self.shop.job("vllm")

    @property
    def log(self) -> str:
        """What it said."""
        path = self.job.parent.parent / "logs" / f"build-{self.job.name}.log"
        return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Fresh:
    """A Python environment with nothing but the wheels that are put into it."""

    folder: Path

    @classmethod
    def made(cls, folder: Path, *wheels: Path) -> Fresh:
        """Make one of wheel files; nothing is downloaded, and what they require is not looked at."""
        uv = str(Path(sys.executable).with_name("uv"))
        run([uv, "--no-config", "venv", "--quiet", f"--python={sys.executable}", str(folder)])
        flags = ("--quiet", "--offline", "--no-cache", "--no-deps", f"--python={folder}/bin/python")
        run([uv, "--no-config", "pip", "install", *flags, *map(str, wheels)])
        return cls(folder)

    def python(self, code: str) -> str:
        """Run Python code in it and return what it printed; nothing of the caller's settings counts."""
        return run([str(self.folder / "bin" / "python"), "-I", "-c", code], cwd=self.folder).out.strip()

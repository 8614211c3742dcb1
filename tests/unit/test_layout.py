"""The house stands as designed: floors, doors, sizes, and what git sees."""

from __future__ import annotations

import ast
import re
import statistics
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from core.process import run

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {"core": 0, "wheels": 1, "lab": 1, "build": 2, "deploy": 2, "serve": 3, "tasks": 4, "benchmarks": 5}
ROOMS = [room for room in FLOORS if room != "tasks"]
RUN_ON_NODES = {
    *("lab/train.py", "build/runner.py", "deploy/verify_release.py"),
    *("deploy/network/guard.py", "deploy/care/linkend.py", "serve/view/meter.py"),
    *("benchmarks/gpu/drive.py", "benchmarks/gpu/machines.py", "benchmarks/gpu/client.py"),
}
"""Plain scripts that run elsewhere: inside a release, with what the stack brings, or where a wheel is built."""
DISTRIBUTIONS = {"cyclonedx": "cyclonedx-python-lib", "elftools": "pyelftools", "packageurl": "packageurl-python"}
"""Import names that are not those of their distributions."""
ALONE = {
    "build/runner.py": {"canonical"},
    "deploy/care/linkend.py": set(),
    "deploy/network/guard.py": set(),
    "deploy/unpack_python.py": set(),
    "deploy/verify_release.py": set(),
    "serve/view/asker.py": set(),
    "serve/view/meter.py": set(),
    "wheels/canonical.py": set(),
}
"""Copied to machines where nothing is installed: the standard library, and what is copied with them."""


ONNODE = {"deploy.models.onnode": {"deploy.onnode"}, "deploy.onnode": set(), "serve.onnode": set()}
"""Copied to nodes as packages: the standard library, and what lies below each; packages that stand on nothing else."""


@dataclass(frozen=True)
class Module:
    """A source file of ours and its syntax tree."""

    path: str
    room: str
    text: str
    tree: ast.Module

    def tops(self) -> set[str]:
        """Name the top packages that this one imports."""
        imports = [node for node in ast.walk(self.tree) if isinstance(node, ast.Import)]
        members = [node for node in ast.walk(self.tree) if isinstance(node, ast.ImportFrom)]
        assert not any(node.level for node in members), f"{self.path}: relative import"
        names = {alias.name for node in imports for alias in node.names} | {str(node.module) for node in members}
        return {name.split(".")[0] for name in names}


@cache
def modules() -> tuple[Module, ...]:
    found = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))] + list(ROOT.glob("*.py"))
    ours = [path.relative_to(ROOT) for path in found if "sources" not in path.parts]  # those are wheels' own sources
    return tuple(
        Module(str(path), path.parts[0].removesuffix(".py"), text, ast.parse(text))
        for path in ours
        for text in [(ROOT / path).read_text(encoding="utf-8")]
    )


def test_imports_run_downwards_only() -> None:
    upwards = [
        f"{module.path} imports {name}"
        for module in modules()
        for name in module.tops() & FLOORS.keys() - {module.room}
        if FLOORS[name] >= FLOORS[module.room]
    ]
    assert not upwards, "tasks → serve → build, deploy → wheels, lab → core"


@pytest.mark.parametrize(
    ("library", "door"),
    [("fabric", "core/connection.py"), ("paramiko", "core/connection.py"), ("subprocess", "core/process.py")],
)
def test_a_library_has_one_door(library: str, door: str) -> None:
    inside = [
        module
        for module in modules()
        if module.path not in RUN_ON_NODES and not module.path.startswith("serve/onnode/")
    ]
    assert [module.path for module in inside if library in module.tops()] == [door]


@pytest.mark.parametrize("path", ALONE)
def test_what_is_copied_to_a_machine_that_builds_needs_nothing_but_the_standard_library(path: str) -> None:
    (module,) = [module for module in modules() if module.path == path]
    assert module.tops() <= sys.stdlib_module_names | ALONE[path]


def sent_modules(package: str) -> list[Module]:
    return [module for module in modules() if module.path.startswith(f"{package.replace('.', '/')}/")]


@pytest.mark.parametrize("package", ONNODE)
def test_what_a_node_is_sent_imports_nothing_but_the_standard_library_and_itself(package: str) -> None:
    sent = sent_modules(package)
    allowed = {
        name
        for one in (package, *ONNODE[package])
        for name in (one, *(f"{one}.{Path(module.path).stem}" for module in sent_modules(one)))
    }
    imported = {
        str(node.module) for module in sent for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom)
    }
    room = package.split(".", maxsplit=1)[0]
    assert {name for name in imported if name.split(".")[0] in FLOORS} <= allowed
    assert set.union(*(module.tops() for module in sent)) <= sys.stdlib_module_names | {room}


@pytest.mark.processes
def test_what_supervises_runs_on_the_systems_own_python_alone(tmp_path: Path) -> None:
    """As a node has it: no other package of ours, nothing that was installed."""
    (tmp_path / "serve/onnode").mkdir(parents=True)
    (tmp_path / "serve/__init__.py").write_text("")
    for path in (ROOT / "serve/onnode").glob("*.py"):
        (tmp_path / "serve/onnode" / path.name).write_text(path.read_text())
    names = ", ".join(f"serve.onnode.{Path(module.path).stem}" for module in sent_modules("serve.onnode"))
    names = names.replace("serve.onnode.__init__, ", "")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {names}"
    assert run([sys.executable, "-I", "-S", "-c", code], check=False).code == 0


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = {re.split(r"[<>=\[ ]", line)[0].lower() for line in project["project"]["dependencies"]}
    undeclared = [
        f"{module.path} imports {name}"
        for module in modules()
        for name in module.tops() - sys.stdlib_module_names - FLOORS.keys()
        if DISTRIBUTIONS.get(name, name) not in declared and module.path not in RUN_ON_NODES
    ]
    assert not undeclared, "name it in pyproject.toml, then `make lock`"


def test_no_error_is_caught_wholesale() -> None:
    """BaseException may be looked at on its way out, nothing more."""
    offenders = []
    for module in modules():
        for handler in (node for node in ast.walk(module.tree) if isinstance(node, ast.ExceptHandler)):
            caught = {name.id for name in ast.walk(handler.type or ast.Name("Exception")) if isinstance(name, ast.Name)}
            passed_on = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
            if "Exception" in caught or ("BaseException" in caught and not passed_on):
                offenders.append(f"{module.path}:{handler.lineno}")
    assert not offenders


def test_a_module_says_what_it_is() -> None:
    assert not [module.path for module in modules() if not ast.get_docstring(module.tree)]


def test_files_stay_short() -> None:
    assert not {module.path: lines for module in modules() if (lines := module.text.count("\n")) > 400}


@pytest.mark.parametrize("room", ROOMS)
def test_half_of_the_functions_of_a_room_have_15_lines_or_fewer(room: str) -> None:
    lengths = [
        int(node.end_lineno or 0) - node.lineno + 1
        for module in modules()
        if module.room == room
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert not lengths or statistics.median(lengths) <= 15


@pytest.mark.processes
@pytest.mark.parametrize("path", ["build/new.py", "build/recipes/new.toml", "wheels/new.py", "requirements.lock"])
def test_git_sees_our_folders(path: str) -> None:
    assert run(["git", "check-ignore", "--no-index", path], cwd=ROOT, check=False).code == 1


@pytest.mark.processes
@pytest.mark.parametrize("path", [".venv/x", ".work/x", "dist/cpu/x.whl", "core/__pycache__/x.pyc"])
def test_git_ignores_what_is_made(path: str) -> None:
    assert run(["git", "check-ignore", "--no-index", "-q", path], cwd=ROOT, check=False).code == 0


def test_no_tests_hide_in_a_folder_that_pytest_skips() -> None:
    assert not [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and path.name in {"build", "dist"}]


def test_every_test_is_in_a_folder_that_runs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = [ROOT / path for path in project["tool"]["pytest"]["ini_options"]["testpaths"]]
    assert not [path for path in (ROOT / "tests").rglob("test_*.py") if path.parent not in folders]


def test_the_root_is_not_installable() -> None:
    assert "build-system" not in tomllib.loads((ROOT / "pyproject.toml").read_text()), "build/ is a package of ours"
